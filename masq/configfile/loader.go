package configfile

import (
	"bytes"
	"slices"
	"sort"

	"sordino/masq"
)

// Loader loads a configuration again and again. Its answers are those of
// [Load]; it only gives them sooner when a few lines in the midst of a long
// list are all that changed. It is not for concurrent use.
type Loader struct {
	Settings Settings
	last     *remembered
}

// remembered is the last configuration that a long plain list was read from.
type remembered struct {
	Source
	result Result
}

// longList is from how many ranges on it pays to keep the text.
const longList = 1000

// Load is as [Load], with the loader's settings.
func (l *Loader) Load(path string) (Result, error) {
	sources, err := readSources(path)
	if err != nil {
		return Result{}, unreadable(path, err)
	}
	return l.FromSources(sources)
}

// FromSources is as [FromSources], with the loader's settings.
func (l *Loader) FromSources(sources []Source) (Result, error) {
	if l.last != nil && len(sources) == 1 && sources[0].Name == l.last.Name {
		if config, ok := l.last.edited(sources[0].Text, l.Settings); ok {
			result := l.last.result
			result.Config, result.Digest = config, digest(sources)
			l.last = &remembered{sources[0], result}
			return result, nil
		}
	}
	result, plain, err := fromSources(sources, l.Settings)
	if err != nil {
		return result, err // what is remembered may well come back
	}
	l.last = nil
	if max(len(result.Config.NonMasquerade), len(result.Config.Masquerade)) >= longList {
		l.last = remember(sources, result, plain)
	}
	return result, nil
}

// remember keeps what later texts can be compared with.
func remember(sources []Source, result Result, plain bool) *remembered {
	if !plain || len(sources) != 1 || len(result.Warnings) > 0 {
		return nil
	}
	return &remembered{sources[0], result}
}

// edited returns what the text says if it differs from the remembered one only
// between two items of one list, and if nothing is wrong with it.
//
// Both items are on lines of their own, and so is whatever stands between: in
// a plain text every line means what it says, whatever the other lists hold.
func (m *remembered) edited(text []byte, s Settings) (masq.Config, bool) {
	config := m.result.Config
	if bytes.Equal(m.Text, text) {
		return config, true
	}
	start, oldEnd, newEnd := changedLines(m.Text, text)
	if oldEnd == len(m.Text) {
		return config, false // no item follows
	}
	from := 1 + bytes.Count(m.Text[:start], newline) // the first changed line
	to := from + bytes.Count(m.Text[start:oldEnd], newline)
	shift := bytes.Count(text[start:newEnd], newline) - (to - from)
	for _, list := range []*[]masq.Range{&config.NonMasquerade, &config.Masquerade} {
		old := *list
		before, after := atLine(old, from)-1, atLine(old, to)
		if before < 0 || old[before].Origin.Line == 0 || after == len(old) {
			continue
		}
		// From the item before on, which shows how far the list is indented.
		for range from - old[before].Origin.Line {
			start = 1 + bytes.LastIndexByte(text[:start-1], '\n')
		}
		added, ok := m.items(text[start:newEnd], old[before], s)
		if !ok {
			return config, false
		}
		*list = slices.Concat(old[:before], added, old[after:])
		if len(*list) > config.CIDRLimit {
			return config, false
		}
		shiftLines((*list)[before+len(added):], shift)
		for _, other := range []*[]masq.Range{&config.NonMasquerade, &config.Masquerade, &config.Cluster.Node, &config.Cluster.Pod, &config.Cluster.Service, &config.SNATAddress} {
			if i := atLine(*other, to); other != list && shift != 0 && i < len(*other) {
				*other = slices.Clone(*other)
				shiftLines((*other)[i:], shift)
			}
		}
		return config, true
	}
	return config, false
}

// items reads lines of a list that begin with an item that is known.
func (m *remembered) items(lines []byte, first masq.Range, s Settings) ([]masq.Range, bool) {
	tree, ok := scanPlain("list:\n" + string(lines))
	if !ok || len(tree.items) != 2 || tree.items[1].kind != list {
		return nil, false
	}
	v := tree.items[1]
	for i := range v.items {
		v.items[i].line += int32(first.Origin.Line) - 2
	}
	r := &reader{file: m.Name, settings: s}
	ranges := r.ranges(v, "list", s.IPv6)
	return ranges, len(r.problems) == 0 && len(ranges) > 0 && ranges[0] == first
}

// atLine is the index of the first range at the line or behind it. Ranges
// that are not from a file are before every line.
func atLine(ranges []masq.Range, line int) int {
	return sort.Search(len(ranges), func(i int) bool { return ranges[i].Origin.Line >= line })
}

func shiftLines(ranges []masq.Range, by int) {
	for i := range ranges {
		ranges[i].Origin.Line += by
	}
}

var newline = []byte{'\n'}

// changedLines returns the whole lines between which two texts differ: old
// from start to oldEnd became new from start to newEnd.
func changedLines(before, after []byte) (start, oldEnd, newEnd int) {
	// Blocks are compared by the processor's widest instructions.
	const block = 4096
	shorter := min(len(before), len(after))
	same := 0
	for same+block <= shorter && bytes.Equal(before[same:same+block], after[same:same+block]) {
		same += block
	}
	for same < shorter && before[same] == after[same] {
		same++
	}
	start = 1 + bytes.LastIndexByte(before[:same], '\n')

	longest, same := shorter-start, 0
	for same+block <= longest && bytes.Equal(before[len(before)-same-block:len(before)-same], after[len(after)-same-block:len(after)-same]) {
		same += block
	}
	for same < longest && before[len(before)-same-1] == after[len(after)-same-1] {
		same++
	}
	oldEnd, newEnd = len(before)-same, len(after)-same
	lineStart := func(text []byte, at int) bool { return at == 0 || text[at-1] == '\n' }
	if !lineStart(before, oldEnd) || !lineStart(after, newEnd) {
		// The line in which the same ends begin has another beginning.
		rest := bytes.IndexByte(before[oldEnd:], '\n') + 1
		if rest == 0 {
			rest = same
		}
		oldEnd, newEnd = oldEnd+rest, newEnd+rest
	}
	return start, oldEnd, newEnd
}
