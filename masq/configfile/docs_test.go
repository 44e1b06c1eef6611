package configfile

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestDocumentedKeys holds the table of docs/configuration.md to the keys.
func TestDocumentedKeys(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile(`(?s)\n## Keys\n.*?\n## `).Find(text)
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `[^|]*").FindAll(section, -1) {
		for _, m := range regexp.MustCompile("`([A-Za-z0-9]+)`").FindAllSubmatch(row, -1) {
			documented = append(documented, string(m[1]))
		}
	}
	slices.Sort(documented)
	if want := slices.Sorted(maps.Keys(keys)); !slices.Equal(documented, want) {
		t.Errorf("documented %q\nwant %q", documented, want)
	}
}
