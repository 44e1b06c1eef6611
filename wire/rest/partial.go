package rest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/tailscale/hujson"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// selection is what the parameter fields asks for: items(id,name),next/page.
// A nil selection is everything.
type selection struct {
	children map[string]*selection // "*" is any name
}

const (
	mostSelection      = 8 << 10
	mostSelectionDepth = 32
)

func parseSelection(text string) (*selection, error) {
	if len(text) > mostSelection {
		return nil, fmt.Errorf("fields is longer than %d bytes", mostSelection)
	}
	p := selectionParser{rest: text}
	s := &selection{children: map[string]*selection{}}
	if err := p.list(s, 0); err != nil {
		return nil, fmt.Errorf("fields=%s: %v", clip(text), err)
	}
	if p.rest != "" {
		return nil, fmt.Errorf("fields=%s: a parenthesis is closed that was not opened", clip(text))
	}
	return s, nil
}

type selectionParser struct{ rest string }

// list reads a,b/c,d(e,f) up to a closing parenthesis or the end.
func (p *selectionParser) list(into *selection, depth int) error {
	if depth > mostSelectionDepth {
		return fmt.Errorf("nested deeper than %d levels", mostSelectionDepth)
	}
	for {
		at := into
		var name string
		for {
			end := strings.IndexAny(p.rest, ",/.()")
			if end < 0 {
				end = len(p.rest)
			}
			name, p.rest = strings.TrimSpace(p.rest[:end]), p.rest[end:]
			if name == "" {
				return errors.New("a name is missing")
			}
			if !strings.HasPrefix(p.rest, "/") && !strings.HasPrefix(p.rest, ".") {
				break
			}
			p.rest = p.rest[1:]
			at = at.descend(name)
		}
		if strings.HasPrefix(p.rest, "(") {
			p.rest = p.rest[1:]
			if err := p.list(at.descend(name), depth+1); err != nil {
				return err
			}
			if !strings.HasPrefix(p.rest, ")") {
				return errors.New("a parenthesis is not closed")
			}
			p.rest = p.rest[1:]
		} else {
			at.children[name] = &selection{} // all of it
		}
		if !strings.HasPrefix(p.rest, ",") {
			if p.rest == "" || strings.HasPrefix(p.rest, ")") {
				return nil
			}
			return fmt.Errorf("a comma is missing before %q", clip(p.rest))
		}
		p.rest = p.rest[1:]
	}
}

func (s *selection) descend(name string) *selection {
	child, ok := s.children[name]
	if !ok {
		child = &selection{children: map[string]*selection{}}
		s.children[name] = child
	}
	if child.children == nil { // all of it was asked for already
		return &selection{children: map[string]*selection{}}
	}
	return child
}

func (s *selection) all() bool { return s.children == nil }

// check refuses names that the message does not have. In maps, and in an Any,
// every name may be.
func (s *selection) check(d protoreflect.MessageDescriptor, path string) error {
	if s.all() || wellKnown(d) {
		return nil
	}
	for name, child := range s.children {
		if name == "*" {
			continue
		}
		f := fieldByName(d, name)
		if f == nil {
			return description("Invalid field selection " + join(path, name))
		}
		if f.IsMap() || child.all() {
			continue
		}
		if f.Message() == nil {
			return description(fmt.Sprintf("Invalid field selection %s: %s has no fields", join(path, name), name))
		}
		if err := child.check(f.Message(), join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// apply keeps of a JSON object what is selected.
func (s *selection) apply(body []byte) ([]byte, error) {
	v, err := hujson.Parse(body)
	if err != nil {
		return nil, err
	}
	s.keep(&v)
	return v.Pack(), nil
}

func (s *selection) keep(v *hujson.Value) {
	if s.all() {
		return
	}
	switch value := v.Value.(type) {
	case *hujson.Array:
		for i := range value.Elements {
			s.keep(&value.Elements[i])
		}
	case *hujson.Object:
		kept := value.Members[:0]
		for _, member := range value.Members {
			name := member.Name.Value.(hujson.Literal).String()
			child := s.children[name]
			if child == nil {
				child = s.children[snake(name)]
			}
			if child == nil {
				child = s.children["*"]
			}
			if child != nil {
				child.keep(&member.Value)
				kept = append(kept, member)
			}
		}
		value.Members = kept
	}
}

// snake is a JSON name in proto spelling.
func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if 'A' <= r && r <= 'Z' {
			b.WriteByte('_')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
