package configfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// remembering is a loader that has read the text, however short it is; nil
// when the text is none to remember.
func remembering(text string, s Settings) *Loader {
	sources := []Source{{"f", []byte(text)}}
	result, plain, err := fromSources(sources, s)
	if err != nil {
		return nil
	}
	last := remember(sources, result, plain)
	if last == nil {
		return nil
	}
	return &Loader{s, last}
}

// agree holds what the loader says to what decoding everything says.
func agree(t interface{ Fatalf(string, ...any) }, l *Loader, before, after string) {
	want, wantErr := decode(after, l.Settings)
	got, err := l.FromSources([]Source{{"f", []byte(after)}})
	if fmt.Sprint(err) != fmt.Sprint(wantErr) || !reflect.DeepEqual(got, want) {
		t.Fatalf("from\n%q to\n%q:\ngot  %+v, %v\nwant %+v, %v", before, after, got, err, want, wantErr)
	}
}

const edited = `# of the network team
cidrLimit: 8
podCIDRs:
- 192.168.0.0/16
nonMasqueradeCIDRs:
  - 10.0.0.0/8
  - 10.1.0.0/16 # a comment

  # another
  - 10.2.0.0/16
  - 10.3.0.0/16
masqueradeCIDRs:
- 1.0.0.0/8
- 2.0.0.0/8
- 3.0.0.0/8
serviceCIDRs:
- 10.96.0.0/16
`

func TestLoaderReadsOnlyWhatChanged(t *testing.T) {
	for _, tc := range []struct {
		name, old, new string
		quick          bool
	}{
		{"nothing", "", "", true},
		{"an item", "10.2.0.0/16", "10.200.0.0/16", true},
		{"an item that goes", "  - 10.2.0.0/16\n", "", true},
		{"items that come", "  - 10.2.0.0/16\n", "  - 10.2.0.0/16\n  - 10.9.0.0/16\n\n  - 10.8.0.0/16\n", true},
		{"a comment that goes", " # a comment", "", true},
		{"a comment that comes", "  # another\n", "  # another\n# one more\n", true},
		{"a duplicate", "10.2.0.0/16", "10.1.0.0/16", true},
		{"CRLF", "10.2.0.0/16\n", "10.2.0.0/16\r\n", true},
		{"the other list", "- 2.0.0.0/8\n", "- 4.0.0.0/8\n- 5.0.0.0/8\n", true},
		{"another indentation", "  - 10.2.0.0/16", " - 10.2.0.0/16", false},
		{"the first item", "10.0.0.0/8", "10.0.0.0/9", false},
		{"the last item", "10.3.0.0/16", "10.3.0.0/17", false},
		{"a bad item", "10.2.0.0/16", "10.2.0.1/16", false},
		{"IPv6 that is not enabled", "10.2.0.0/16", "fd00::/8", false},
		{"text that only the parser reads", "10.2.0.0/16", "'10.2.0.0/16'", false},
		{"another key", "  - 10.2.0.0/16\n", "nodeCIDRs:\n  - 10.2.0.0/16\n", false},
		{"a list that becomes two", "  - 10.2.0.0/16\n", "masqLinkLocal: true\nmasqueradeCIDRs:\n", false},
		{"a short list", "192.168.0.0/16", "192.168.0.0/17", false},
		{"too many", "  # another\n", strings.Repeat("  - 10.2.0.0/16\n", 5), false},
		{"the end", "- 10.96.0.0/16\n", "- 10.96.0.0/16", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			after := strings.Replace(edited, tc.old, tc.new, 1)
			if after == edited && tc.old != tc.new {
				t.Fatal("nothing is replaced")
			}
			l := remembering(edited, Settings{})
			if _, quick := l.last.edited([]byte(after), l.Settings); quick != tc.quick {
				t.Errorf("answered from what was remembered: %t, want %t", quick, tc.quick)
			}
			agree(t, l, edited, after)
		})
	}
}

func TestLoaderAgreesWithDecodingEverything(t *testing.T) {
	lines := []string{
		"- 10.0.0.0/8", "- 10.1.0.0/16", "- 10.1.0.0/16", "- 10.2.0.0/16", "-  10.3.0.0/16", "  - 10.4.0.0/16", "- 10.5.0.0/16 # c", "- fd00::/8", "- 10.6.0.0/16\r",
		"", "  ", "# c", "  # c", "# \u00e9", "- 10.0.0.1/8", "- x", "-", "- '10.7.0.0/16'", "- 10.8.0.0/16:", "\t", "- [a]", "\r",
		"nonMasqueradeCIDRs:", "masqueradeCIDRs:", "podCIDRs:", "snatAddress:", "cidrLimit: 6", "cidrLimit: 100", "masqLinkLocal: true", "unknown: 1", "---",
	}
	text := func(t *rapid.T, label string, most int) []string {
		// Good items twice as often as all else together.
		return rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom(lines[:5]), rapid.SampledFrom(lines[:5]), rapid.SampledFrom(lines)), 0, most).Draw(t, label)
	}
	rapid.Check(t, func(t *rapid.T) {
		var now []string
		for _, key := range rapid.Permutation([]string{"nonMasqueradeCIDRs:", "masqueradeCIDRs:", "podCIDRs:", "cidrLimit: 12"}).Draw(t, "keys") {
			now = append(now, key)
			if strings.HasSuffix(key, ":") {
				now = append(now, rapid.SliceOfN(rapid.SampledFrom(lines[:5]), 1, 6).Draw(t, key)...)
			}
		}
		end := rapid.SampledFrom([]string{"", "\n"}).Draw(t, "end")
		settings := Settings{IPv6: rapid.Bool().Draw(t, "IPv6")}
		before := strings.Join(now, "\n") + end
		l := remembering(before, settings)
		if l == nil {
			return
		}
		for range rapid.IntRange(1, 4).Draw(t, "edits") {
			from := rapid.IntRange(0, len(now)).Draw(t, "from")
			to := min(len(now), from+rapid.IntRange(0, 3).Draw(t, "gone"))
			now = slices.Replace(slices.Clone(now), from, to, text(t, "added", 3)...)
			after := strings.Join(now, "\n") + end
			agree(t, l, before, after)
			if before = after; l.last == nil { // it forgets what is short
				if l = remembering(after, settings); l == nil {
					return
				}
			}
		}
	})
}

func FuzzLoader(f *testing.F) {
	f.Add(edited, 100, 3, "12")
	f.Add(edited, len(edited)-1, 1, "")
	f.Add("\xef\xbb\xbfnonMasqueradeCIDRs:\n- 1.0.0.0/8\n- 2.0.0.0/8\n- 3.0.0.0/8", 35, 0, "- 4.0.0.0/8\r\n")
	f.Add("nonMasqueradeCIDRs:\n- 1.0.0.0/8\n- 2.0.0.0/8\n- 3.0.0.0/8\n", 31, 0, "nodeCIDRs:\n")
	f.Fuzz(func(t *testing.T, before string, at, gone int, added string) {
		l := remembering(before, Settings{IPv6: true})
		if l == nil || at < 0 || gone < 0 || at > len(before) || gone > len(before)-at {
			return
		}
		agree(t, l, before, before[:at]+added+before[at+gone:])
	})
}

func TestLoaderFollowsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ip-masq-agent")
	l := Loader{}
	for i, tc := range []struct {
		text       []byte
		remembered bool
	}{
		{[]byte(edited), false}, // a short list is not kept
		{many(longList), true},
		{bytes.Replace(many(longList), []byte("\n- 20.0.9.0/28\n"), []byte("\n\n# gone\n"), 1), true},
		{[]byte("nonMasqueradeCIDRs: x\n"), true}, // what is wrong is not kept
		{many(2 * longList), true},
		{nil, false},
	} {
		if err := os.WriteFile(file, tc.text, 0o600); err != nil {
			t.Fatal(err)
		}
		want, wantErr := Load(file, Settings{})
		got, err := l.Load(file)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) || !reflect.DeepEqual(got, want) {
			t.Errorf("text %d: the loader says otherwise than Load: %v, %v", i, err, wantErr)
		}
		if (l.last != nil) != tc.remembered {
			t.Errorf("text %d: remembered: %t, want %t", i, l.last != nil, tc.remembered)
		}
	}
}

func BenchmarkLoader(b *testing.B) {
	texts := [][]byte{many(100_000), many(100_000)}
	copy(texts[1][len(texts[1])/2:], bytes.Replace(texts[1][len(texts[1])/2:], []byte("/28"), []byte("/29"), 1))
	var l Loader
	i := 0
	for b.Loop() {
		if _, err := l.FromSources([]Source{{"c", texts[i%2]}}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
