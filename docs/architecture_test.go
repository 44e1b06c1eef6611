// Package docs has the project's pages. Those of flags, keys and reasons are
// tested beside what they describe; the list of packages, here.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPackageList holds the list in architecture.md to the folders of the tree
// that have Go files: each is there, and whatever is there exists.
func TestPackageList(t *testing.T) {
	text, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(string(text), "\n```\n", 3)
	if len(parts) != 3 {
		t.Fatal("architecture.md has no list between ``` and ```")
	}
	listed := map[string]bool{}
	for line := range strings.Lines(parts[1]) {
		names := regexp.MustCompile(`^[a-z][^ ,\n]*(, [a-z][^ ,\n]*)*`).FindString(line)
		for _, name := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
			name = strings.TrimSuffix(name, "/")
			if listed[name] {
				t.Errorf("architecture.md lists %s twice", name)
			}
			listed[name] = true
			if info, err := os.Stat(filepath.Join("..", name)); err != nil || !info.IsDir() {
				t.Errorf("architecture.md lists %s, and there is no such folder", name)
			}
		}
	}
	var folders []string
	err = filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != ".." && (name[0] == '.' || name == "testdata" || path == "../bin"):
			return fs.SkipDir
		case strings.HasSuffix(name, ".go"):
			folders = append(folders, strings.TrimPrefix(filepath.Dir(path), "../"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range slices.Compact(folders) {
		if !listed[folder] {
			listed[folder] = true
			t.Errorf("architecture.md lacks the package %s", folder)
		}
	}
}
