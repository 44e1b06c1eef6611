package main

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/spf13/pflag"
)

// TestDocumentedServeFlags holds the table of docs/server.md to the flags of
// "sordino serve".
func TestDocumentedServeFlags(t *testing.T) {
	text, err := os.ReadFile("../../docs/server.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, want []string
	for _, row := range regexp.MustCompile("(?m)^\\| `--[^|]*").FindAll(text, -1) {
		for _, m := range regexp.MustCompile("`--([a-z0-9-]+)`").FindAllSubmatch(row, -1) {
			documented = append(documented, string(m[1]))
		}
	}
	c := serveCommand()
	for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
		set.VisitAll(func(f *pflag.Flag) { want = append(want, f.Name) })
	}
	slices.Sort(documented)
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(documented, want) {
		t.Errorf("documented %q\nwant %q", documented, want)
	}
}
