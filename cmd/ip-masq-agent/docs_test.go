package main

import (
	"flag"
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestDocumentedFlags holds the table of docs/configuration.md to the flags.
func TestDocumentedFlags(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, want []string
	for _, row := range regexp.MustCompile("(?m)^\\| `--[^|]*").FindAll(text, -1) {
		for _, m := range regexp.MustCompile("`--([a-z0-9-]+)`").FindAllSubmatch(row, -1) {
			documented = append(documented, string(m[1]))
		}
	}
	newFlags().set.VisitAll(func(f *flag.Flag) {
		if _, klog := klogFlags[f.Name]; !klog {
			want = append(want, f.Name)
		}
	})
	slices.Sort(documented)
	if !slices.Equal(documented, want) {
		t.Errorf("documented %q\nwant %q", documented, want)
	}
}
