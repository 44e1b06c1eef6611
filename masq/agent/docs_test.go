package agent

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestDocumentedMetrics holds the table of docs/configuration.md to what is
// exposed: name and type, nothing more and nothing less.
func TestDocumentedMetrics(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `"+namespace+"(\\w+)` \\| (\\w+) ").FindAllSubmatch(text, -1) {
		documented = append(documented, string(m[1])+" "+string(m[2]))
	}
	names := map[string]bool{}
	for _, e := range exposed {
		names[e.name] = true
		want = append(want, e.name+" "+e.kind)
	}
	if !slices.Equal(documented, want) {
		t.Errorf("documented\n%q\nexposed\n%q", documented, want)
	}
	for _, m := range regexp.MustCompile(`\b`+namespace+`(\w+)`).FindAllSubmatch(text, -1) {
		if !names[string(m[1])] {
			t.Errorf("the page speaks of %s%s, which is not exposed", namespace, m[1])
		}
	}
}
