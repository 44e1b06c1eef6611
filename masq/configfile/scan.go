package configfile

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// scanPlain reads the YAML that configurations nearly always are: keys at the
// beginning of a line with a plain word or a block list of ranges. It is many
// times faster than a YAML parser, which counts with 100,000 ranges. Whatever
// else it meets makes it give up, and the parser decides; a fuzz test holds
// the two together.
func scanPlain(content string) (value, bool) {
	out := value{kind: mapping}
	var items []value // of all lists; allocated once, for as many as there can be
	first := 0        // of the list of the last key
	indent := -1      // of that list; -1 while it has no item
	closeList := func() {
		if indent >= 0 {
			last := &out.items[len(out.items)-1]
			last.kind, last.items = list, items[first:len(items):len(items)]
			first, indent = len(items), -1
		}
	}
	for line := int32(1); len(content) > 0; line++ {
		full, rest, _ := strings.Cut(content, "\n")
		content = rest
		full = strings.TrimSuffix(full, "\r")
		start := 0
		for start < len(full) && full[start] == ' ' {
			start++
		}
		body := full[start:]
		switch {
		case body == "":
			continue
		case body[0] == '#':
			if !all(body, printable) {
				return value{}, false
			}
		case len(body) > 1 && body[0] == '-' && body[1] == ' ':
			if len(out.items) == 0 || out.items[len(out.items)-1].text != "" || indent >= 0 && indent != start {
				return value{}, false
			}
			skip := 1
			for skip < len(body) && body[skip] == ' ' {
				skip++
			}
			word, ok := plainWord(body[skip:], inRange)
			// What holds a slash is a text for certain, unless it is a key.
			if !ok || strings.IndexByte(word, '/') < 0 || word[len(word)-1] == ':' {
				return value{}, false
			}
			if indent < 0 {
				indent = start
				if items == nil {
					items = make([]value, 0, 2+strings.Count(content, "\n"))
				}
				last := &out.items[len(out.items)-1]
				last.line, last.column = line, int32(start+1)
			}
			items = append(items, value{kind: text, line: line, column: int32(start + skip + 1), text: word})
		case start == 0:
			closeList()
			key, after, found := strings.Cut(body, ":")
			if !found || key == "" || len(key) > longestKey || !all(key, letter) {
				return value{}, false
			}
			if _, ambiguous := truth(key); ambiguous || strings.EqualFold(key, "null") {
				return value{}, false
			}
			if !all(after, printable) {
				return value{}, false
			}
			v := value{line: line, column: int32(len(key) + 2)}
			if word := strings.TrimLeft(after, " "); word != "" && (word[0] != '#' || len(word) == len(after)) {
				v.column = int32(len(full) - len(word) + 1)
				var ok bool
				if v.text, ok = plainWord(word, letterOrDigit); !ok || len(word) == len(after) {
					return value{}, false
				}
				v.kind = scalarKind(&yaml.Node{Kind: yaml.ScalarNode, Value: v.text})
			}
			out.items = append(out.items, value{kind: text, line: line, column: 1, text: key}, v)
		default:
			return value{}, false
		}
	}
	closeList()
	if len(out.items) == 0 {
		return value{}, false
	}
	out.line, out.column = out.items[0].line, out.items[0].column
	return out, true
}

// longestKey is far below the 1,024 characters that YAML allows.
const longestKey = 64

// plainWord returns the word that a line ends with, apart from blanks and a
// comment, if it has only such characters.
func plainWord(body string, allowed class) (string, bool) {
	n := 0
	for n < len(body) && classes[body[n]]&allowed != 0 {
		n++
	}
	rest := body[n:]
	if rest == "" {
		return body, n > 0
	}
	after := strings.TrimLeft(rest, " ")
	return body[:n], n > 0 && (after == "" || after[0] == '#' && len(after) < len(rest) && all(after, printable))
}

func all(text string, allowed class) bool {
	for i := range len(text) {
		if classes[text[i]]&allowed == 0 {
			return false
		}
	}
	return true
}

// class is a set of ASCII characters.
type class uint8

const (
	printable class = 1 << iota
	letter
	letterOrDigit
	inRange // of what an address range is written with
)

var classes = func() (table [256]class) {
	for c := ' '; c <= '~'; c++ {
		table[c] |= printable
	}
	for c := 'a'; c <= 'z'; c++ {
		table[c] |= letter | letterOrDigit
		table[c-'a'+'A'] |= letter | letterOrDigit
	}
	for c := '0'; c <= '9'; c++ {
		table[c] |= letterOrDigit | inRange
	}
	for _, c := range "abcdefABCDEF.:/" {
		table[c] |= inRange
	}
	return table
}()
