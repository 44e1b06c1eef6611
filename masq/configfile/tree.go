package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
	"go.yaml.in/yaml/v3"

	"sordino/masq"
)

// kind is what a value is, before anybody asks what it should be.
type kind uint8

const (
	null kind = iota
	text
	boolean
	number
	list
	mapping
)

func (k kind) String() string {
	return [...]string{"nothing", "a text", "a boolean", "a number", "a list", "a mapping"}[k]
}

// value is one value of either syntax with its place.
type value struct {
	kind         kind
	line, column int32 // from 1
	text         string
	// items are a list's, or a mapping's keys and values by turns.
	items []value
}

// entries are the keys and values of a mapping.
func (v value) entries() iter.Seq2[value, value] {
	return func(yield func(key, value value) bool) {
		for pair := range slices.Chunk(v.items, 2) {
			if !yield(pair[0], pair[1]) {
				return
			}
		}
	}
}

func (v value) in(file string) masq.Origin {
	return masq.Origin{Source: file, Line: int(v.line), Column: int(v.column)}
}

// empty is what an empty text holds.
var empty = value{line: 1, column: 1}

var bom = []byte("\xef\xbb\xbf")

// parseTree reads one text. As upstream does, a text that begins with a brace
// is JSON; unlike upstream, one that is not is tried as YAML's flow style.
// It reports whether the text was plain; see scanPlain.
func parseTree(name string, content []byte) (v value, plain bool, warnings []Warning, err error) {
	content = bytes.TrimPrefix(content, bom)
	if trimmed := bytes.TrimLeft(content, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		v, err := parseJSON(name, content)
		if err == nil {
			return v, false, nil, nil
		}
		if v, warnings, yamlErr := parseYAML(name, content); yamlErr == nil {
			return v, false, warnings, nil
		}
		return value{}, false, nil, err
	}
	if v, ok := scanPlain(string(content)); ok {
		return v, true, nil, nil
	}
	v, warnings, err = parseYAML(name, content)
	return v, false, warnings, err
}

func parseJSON(name string, content []byte) (value, error) {
	tree, err := hujson.Parse(content)
	if err != nil {
		line, column := 1, 1
		message := strings.TrimPrefix(err.Error(), "hujson: ")
		if _, scanErr := fmt.Sscanf(message, "line %d, column %d:", &line, &column); scanErr == nil {
			_, message, _ = strings.Cut(message, ": ")
		}
		return value{}, syntaxProblem(masq.Origin{Source: name, Line: line, Column: column}, content, "this is not valid JSON: "+message)
	}
	return jsonValue(&places{content: content, line: 1}, tree), nil
}

// places turns offsets, asked for in ascending order, into lines and columns.
type places struct {
	content             []byte
	offset, line, start int // the last answer, and where its line begins
}

func (p *places) at(offset int) (line, column int32) {
	offset = max(p.offset, min(offset, len(p.content)))
	passed := p.content[p.offset:offset]
	if last := bytes.LastIndexByte(passed, '\n'); last >= 0 {
		p.line += bytes.Count(passed, []byte{'\n'})
		p.start = p.offset + last + 1
	}
	p.offset = offset
	return int32(p.line), int32(utf8.RuneCount(p.content[p.start:offset]) + 1)
}

func jsonValue(p *places, v hujson.Value) value {
	var out value
	out.line, out.column = p.at(v.StartOffset)
	switch t := v.Value.(type) {
	case *hujson.Object:
		out.kind = mapping
		for _, m := range t.Members {
			out.items = append(out.items, jsonValue(p, m.Name), jsonValue(p, m.Value))
		}
	case *hujson.Array:
		out.kind = list
		for _, e := range t.Elements {
			out.items = append(out.items, jsonValue(p, e))
		}
	case hujson.Literal:
		out.text = string(t)
		switch t.Kind() {
		case 'n':
			out.kind = null
		case 't', 'f':
			out.kind = boolean
		case '"':
			out.kind, out.text = text, t.String()
		default:
			out.kind = number
		}
	}
	return out
}

func parseYAML(name string, content []byte) (value, []Warning, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var document yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return empty, nil, nil
	} else if err != nil {
		return value{}, nil, yamlProblem(name, content, err)
	}
	var warnings []Warning
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		line := max(second.Line, 1)
		warnings = append(warnings, Warning{masq.Origin{Source: name, Line: line, Column: 1}, "---", "only the first YAML document counts; what follows is ignored"})
	}
	if len(document.Content) == 0 {
		return empty, warnings, nil
	}
	v, err := yamlValue(name, document.Content[0], 0)
	return v, warnings, err
}

// maxDepth bounds nesting and chains of aliases; a configuration needs three.
const maxDepth = 16

// truths are YAML 1.1's words, which upstream's parser knows and YAML 1.2 does not.
var truths = map[string]bool{
	"true": true, "yes": true, "on": true, "y": true,
	"false": false, "no": false, "off": false, "n": false,
}

func truth(word string) (isTrue, ok bool) {
	lower := strings.ToLower(word)
	// As a word, in capitals or with a capital; not as "yEs".
	if word != lower && word != strings.ToUpper(word) && word != strings.ToUpper(lower[:1])+lower[1:] {
		return false, false
	}
	isTrue, ok = truths[lower]
	return isTrue, ok
}

func yamlValue(name string, n *yaml.Node, depth int) (value, error) {
	out := value{text: n.Value, line: int32(max(n.Line, 1)), column: int32(max(n.Column, 1))}
	if depth > maxDepth {
		return out, &Problem{Origin: out.in(name), Message: "values are nested too deeply", Fix: "a configuration needs no more than lists", Reason: ReasonSyntax}
	}
	switch n.Kind {
	case yaml.AliasNode:
		target, err := yamlValue(name, n.Alias, depth+1)
		return target, err
	case yaml.SequenceNode:
		out.kind = list
		for _, c := range n.Content {
			if c.Kind == yaml.AliasNode && c.Alias.Kind != yaml.ScalarNode {
				// Lists hold texts only; following it could only multiply.
				out.items = append(out.items, value{kind: list, text: "*" + c.Value, line: int32(c.Line), column: int32(c.Column)})
				continue
			}
			v, err := yamlValue(name, c, depth+1)
			if err != nil {
				return out, err
			}
			out.items = append(out.items, v)
		}
	case yaml.MappingNode:
		out.kind = mapping
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, err := yamlValue(name, n.Content[i], depth+1)
			if err != nil {
				return out, err
			}
			v, err := yamlValue(name, n.Content[i+1], depth+1)
			if err != nil {
				return out, err
			}
			if n.Content[i].Tag == "!!merge" && v.kind == mapping {
				// What is merged stands behind what is written here.
				out.items = slices.Concat(v.items, out.items)
				continue
			}
			out.items = append(out.items, key, v)
		}
	case yaml.ScalarNode:
		out.kind = scalarKind(n)
	}
	return out, nil
}

func scalarKind(n *yaml.Node) kind {
	switch n.ShortTag() {
	case "!!null":
		return null
	case "!!bool":
		return boolean
	case "!!int", "!!float":
		return number
	}
	if n.Style == 0 && n.Value != "" {
		if _, ok := truth(n.Value); ok {
			return boolean
		}
	}
	return text
}

func yamlProblem(name string, content []byte, err error) *Problem {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if _, scanErr := fmt.Sscanf(message, "line %d:", &line); scanErr == nil {
		_, message, _ = strings.Cut(message, ": ")
	}
	return syntaxProblem(masq.Origin{Source: name, Line: line, Column: 1}, content, "this is not valid YAML: "+message)
}

// syntaxProblem quotes the line and knows the commonest cause.
func syntaxProblem(at masq.Origin, content []byte, message string) *Problem {
	lines := strings.Split(string(content), "\n")
	at.Line = min(max(at.Line, 1), len(lines))
	quoted := strings.TrimRight(lines[at.Line-1], "\r")
	p := &Problem{Origin: at, Text: quoted, Message: fmt.Sprintf("%s, at %s", message, strconv.Quote(quoted)), Fix: "mend the syntax there or in the line above", Reason: ReasonSyntax}
	if indent := quoted[:len(quoted)-len(strings.TrimLeft(quoted, " \t"))]; strings.Contains(indent, "\t") {
		p.Origin.Column = strings.Index(indent, "\t") + 1
		p.Fix = "indent with spaces, YAML does not allow tabs"
	}
	return p
}
