package configfile

import (
	"bytes"

	"go.yaml.in/yaml/v3"

	"sordino/masq"
)

// scanPlain reads the YAML that configurations nearly always are: keys at the
// beginning of a line with a plain word or a block list of ranges. It is a
// hundred times faster than a YAML parser, which counts with 100,000 ranges.
// Whatever else it meets makes it give up, and the parser decides; a fuzz test
// holds the two together.
func scanPlain(name string, content []byte) (value, bool) {
	out := value{kind: mapping}
	var items []value // of all lists; allocated once, for as many as there can be
	first := 0        // of the list of the last key
	indent := -1      // of that list; -1 while it has no item
	closeList := func() {
		if indent >= 0 {
			last := &out.entries[len(out.entries)-1].value
			last.kind, last.items = list, items[first:len(items):len(items)]
			first, indent = len(items), -1
		}
	}
	for line := 1; len(content) > 0; line++ {
		full, rest, _ := bytes.Cut(content, []byte{'\n'})
		content = rest
		full = bytes.TrimSuffix(full, []byte{'\r'})
		if !all(full, isPrintable) {
			return value{}, false
		}
		body := bytes.TrimLeft(full, " ")
		start := len(full) - len(body)
		switch {
		case len(body) == 0 || body[0] == '#':
			continue
		case len(body) > 1 && body[0] == '-' && body[1] == ' ':
			if len(out.entries) == 0 || out.entries[len(out.entries)-1].value.text != "" || indent >= 0 && indent != start {
				return value{}, false
			}
			skip := len(body) - len(bytes.TrimLeft(body[1:], " "))
			word, ok := plainWord(body[skip:], isRange)
			// What holds a slash is a text for certain, unless it is a key.
			if !ok || bytes.IndexByte(word, '/') < 0 || word[len(word)-1] == ':' {
				return value{}, false
			}
			item := value{kind: text, text: string(word), origin: masq.Origin{File: name, Line: line, Column: start + skip + 1}}
			if indent < 0 {
				indent = start
				if items == nil {
					items = make([]value, 0, 2+bytes.Count(content, []byte{'\n'}))
				}
				out.entries[len(out.entries)-1].value.origin = masq.Origin{File: name, Line: line, Column: start + 1}
			}
			items = append(items, item)
		case start == 0:
			closeList()
			key, after, found := bytes.Cut(body, []byte{':'})
			if !found || len(key) == 0 || len(key) > longestKey || !all(key, isLetter) {
				return value{}, false
			}
			e := entry{key: value{kind: text, text: string(key), origin: masq.Origin{File: name, Line: line, Column: 1}}}
			if _, ambiguous := truth(e.key.text); ambiguous || e.key.text == "null" || e.key.text == "Null" || e.key.text == "NULL" {
				return value{}, false
			}
			trimmed := bytes.TrimLeft(after, " ")
			e.value.origin = masq.Origin{File: name, Line: line, Column: len(key) + 2}
			if len(trimmed) > 0 && (trimmed[0] != '#' || len(trimmed) == len(after)) {
				e.value.origin.Column = len(full) - len(trimmed) + 1
				word, ok := plainWord(trimmed, isLetterOrDigit)
				if !ok || len(trimmed) == len(after) {
					return value{}, false
				}
				e.value.text = string(word)
				e.value.kind = scalarKind(&yaml.Node{Kind: yaml.ScalarNode, Value: e.value.text})
			}
			out.entries = append(out.entries, e)
		default:
			return value{}, false
		}
	}
	closeList()
	if len(out.entries) == 0 {
		return value{}, false
	}
	out.origin = out.entries[0].key.origin
	return out, true
}

// longestKey is far below the 1,024 characters that YAML allows.
const longestKey = 64

// plainWord returns the word that a line ends with, apart from blanks and a
// comment, if it has only such bytes.
func plainWord(body []byte, allowed func(byte) bool) ([]byte, bool) {
	n := 0
	for n < len(body) && allowed(body[n]) {
		n++
	}
	rest := body[n:]
	after := bytes.TrimLeft(rest, " ")
	return body[:n], n > 0 && (len(after) == 0 || after[0] == '#' && len(after) < len(rest))
}

func all(text []byte, allowed func(byte) bool) bool {
	for _, c := range text {
		if !allowed(c) {
			return false
		}
	}
	return true
}

func isPrintable(c byte) bool     { return ' ' <= c && c <= '~' }
func isLetter(c byte) bool        { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isDigit(c byte) bool         { return '0' <= c && c <= '9' }
func isLetterOrDigit(c byte) bool { return isLetter(c) || isDigit(c) }
func isRange(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' || c == '.' || c == ':' || c == '/'
}
