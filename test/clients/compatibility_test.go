package clients

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// compatibilityPage is the page that says what was run.
func compatibilityPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "compatibility.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCompatibilityPage: the libraries have the versions that the page tells of.
func TestCompatibilityPage(t *testing.T) {
	page := compatibilityPage(t)
	mod, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for module, lines := range map[string]int{"cloud.google.com/go/orchestration": 2, "google.golang.org/api": 1, "google.golang.org/grpc": 1} {
		found := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(module) + ` (\S+)`).FindSubmatch(mod)
		if found == nil {
			t.Errorf("%s is not in go.mod", module)
		} else if n := strings.Count(page, "| "+string(found[1])+" |"); n != lines {
			t.Errorf("docs/compatibility.md has %d rows with version %s of %s, want %d", n, found[1], module, lines)
		}
	}
	// Every recording has its row.
	files, err := filepath.Glob(filepath.Join("testdata", "terraform", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := strings.TrimSuffix(filepath.Base(file), ".jsonl"); !strings.Contains(page, "| `"+name+"` |") {
			t.Errorf("docs/compatibility.md has no row for the recording %s", name)
		}
	}
}
