// Package yamlfile reads a YAML file that a person wrote, and tells every
// mistake in it at once: where it stands, what it is, and what to write instead.
//
// It owns strictness (an unknown key is a mistake), sizes, lines, and the forms
// that several files share: names and IPv4 ranges. It refuses to repair.
//
// To debug it, look at the line that a [Problem] names: for what is missing that
// is the entry's last line that was read before.
package yamlfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a file: a network of 10,000 subnetworks takes two megabytes.
const maxFile = 16 << 20

// Load reads a file; what names it: "networks file".
func Load(path, what string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the %s: %w; give the path of a file that can be read", what, err)
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the %s: %w", what, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("the %s %s has more than %d bytes; declare less", what, path, maxFile)
	}
	return text, nil
}

// Problem is one mistake in a file.
type Problem struct {
	Path    string
	Line    int
	Message string
	// Fix says what to write instead.
	Fix string
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s:%d: %s; %s", p.Path, p.Line, p.Message, p.Fix)
}

// Word is a scalar that remembers its line.
type Word struct {
	Text string
	Line int
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (w *Word) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.ScalarNode || node.Tag == "!!null" {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: this is not a text", node.Line)}}
	}
	w.Text, w.Line = node.Value, node.Line
	return nil
}

// Reader collects the problems of one file. Line is where it has got to, so that
// what is missing is told near its place.
type Reader struct {
	Path     string
	Line     int
	problems []error
}

// Decode fills a declaration from a file's text; path is its name in complaints.
// What can be read is read also when there are mistakes. The error is for a text
// that is no YAML at all.
func Decode(path string, text []byte, into any) (*Reader, error) {
	r := &Reader{Path: path, Line: 1}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	err := decoder.Decode(into)
	var wrong *yaml.TypeError
	switch {
	case errors.As(err, &wrong):
		for _, text := range wrong.Errors {
			r.mistyped(text)
		}
	case err != nil && !errors.Is(err, io.EOF):
		return nil, misspelt(path, text, err)
	}
	return r, nil
}

var (
	lineForm    = regexp.MustCompile(`^line (\d+): (.*)$`)
	tabbed      = regexp.MustCompile(`(?m)^ *\t`)
	unknownForm = regexp.MustCompile(`^field (.*?) not found in type .*$`)
)

// misspelt makes a problem of what is no YAML.
func misspelt(path string, text []byte, err error) error {
	p := &Problem{Path: path, Line: 1, Message: strings.TrimPrefix(err.Error(), "yaml: "), Fix: "mend the syntax there or in the line above"}
	if m := lineForm.FindStringSubmatch(p.Message); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Message = m[2]
	}
	if tabbed.Match(text) {
		p.Fix += ": indent with spaces, YAML does not allow tabs"
	}
	p.Message = "this is not valid YAML: " + p.Message
	return p
}

// mistyped makes a problem of what the YAML package says.
func (r *Reader) mistyped(text string) {
	line := 1
	if m := lineForm.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	if m := unknownForm.FindStringSubmatch(text); m != nil {
		r.Problem(line, fmt.Sprintf("the key %q is unknown here", m[1]), "write one of the documented keys, or leave it out")
		return
	}
	if at := strings.LastIndex(text, " into "); at > 0 { // what follows is a type of ours
		text = text[:at] + " into what belongs here"
	}
	r.Problem(line, text, "write what the documented format has there")
}

// Problem adds one.
func (r *Reader) Problem(line int, message, fix string) {
	r.problems = append(r.problems, &Problem{r.Path, line, message, fix})
}

// Err joins every *Problem; nil is a good file.
func (r *Reader) Err() error { return errors.Join(r.problems...) }

// At moves on to where a word stands, if it stands anywhere.
func (r *Reader) At(w Word) {
	if w.Line != 0 {
		r.Line = w.Line
	}
}

// NameForm is what names of networks, regions and clusters look like.
var NameForm = regexp.MustCompile(`^[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$`)

// Required checks a name that must be there; form stands for it in advice.
func (r *Reader) Required(w Word, key, form string, pattern *regexp.Regexp) bool {
	r.At(w)
	switch {
	case w.Text == "":
		r.Problem(r.Line, fmt.Sprintf("%s is missing in the entry near this line", key), fmt.Sprintf("write %s: %s", key, form))
	case !pattern.MatchString(w.Text):
		r.Problem(r.Line, fmt.Sprintf("%s %q is malformed", key, w.Text), "write lower case letters, digits and dashes, a letter first")
	default:
		return true
	}
	return false
}

// Prefix reads an IPv4 range that must be there, of a length between two.
func (r *Reader) Prefix(w Word, key string, from, to int) (netip.Prefix, bool) {
	r.At(w)
	if w.Text == "" {
		r.Problem(r.Line, fmt.Sprintf("%s is missing in the entry near this line", key), fmt.Sprintf("write %s: with an IPv4 range in CIDR notation, for example 10.10.0.0/20", key))
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(w.Text)
	switch {
	case err != nil || !p.Addr().Is4():
		r.Problem(r.Line, fmt.Sprintf("%s %q is not an IPv4 range", key, w.Text), "write CIDR notation, for example 10.10.0.0/20")
	case p.Masked() != p:
		r.Problem(r.Line, fmt.Sprintf("%s %s has bits beyond its length", key, w.Text), fmt.Sprintf("write %s", p.Masked()))
	case p.Bits() < from || p.Bits() > to:
		r.Problem(r.Line, fmt.Sprintf("%s %s has length %d", key, w.Text, p.Bits()), fmt.Sprintf("use a length of %d to %d", from, to))
	default:
		return p, true
	}
	return netip.Prefix{}, false
}
