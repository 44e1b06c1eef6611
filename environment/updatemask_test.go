package environment

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Every field, in every spelling, is understood as the same field.
func TestMaskSpellings(t *testing.T) {
	fields := leaves("*")
	if !slices.Contains(fields, fieldAgent) || !slices.Contains(fields, fieldMaxPodsPerNode) || !slices.Contains(fields, fieldNetworkingType) {
		t.Fatalf("the leaves are %v", fields)
	}
	spellings := map[string]func(string) string{
		"snake":       func(f string) string { return f },
		"camel":       restJSON,
		"capitalised": func(f string) string { return capitalise(restJSON(f)) },
		"upper":       strings.ToUpper,
	}
	for _, field := range fields {
		for name, spell := range spellings {
			got, ok := parseMaskPath(spell(field))
			if !ok || got.field != field || got.hasKey {
				t.Errorf("%s %s: %+v, %v", name, spell(field), got, ok)
			}
		}
	}
}

func capitalise(path string) string {
	parts := strings.Split(path, ".")
	for i, p := range parts {
		parts[i] = strings.ToUpper(p[:1]) + p[1:]
	}
	return strings.Join(parts, ".")
}

// A map's key is taken verbatim, with its dots, whatever it is.
func TestMaskKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		field := rapid.SampledFrom([]string{fieldLabels, fieldPypi, fieldOverrides, fieldEnvVariables}).Draw(t, "field")
		key := rapid.StringN(1, 40, -1).Filter(func(s string) bool { return !strings.Contains(s, "`") }).Draw(t, "key")
		for _, text := range []string{field + "." + key, restJSON(field) + "." + key, field + ".`" + key + "`"} {
			got, ok := parseMaskPath(text)
			if !ok || got.field != field || got.key != key || !got.hasKey {
				t.Fatalf("%q: %+v, %v", text, got, ok)
			}
		}
	})
}

func FuzzMaskPath(f *testing.F) {
	for _, text := range []string{"", "*", ".", "labels.", "labels.a.b", "config.nodeCount", "config..x", "config.maintenance_window.start_time.seconds", "labels.``"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, ok := parseMaskPath(text)
		if !ok || p.field == "*" {
			return
		}
		if p.hasKey && p.key == "" {
			t.Errorf("%q: an empty key", text)
		}
		again, ok := parseMaskPath(p.field)
		if !ok || again.field != p.field {
			t.Errorf("%q is %q, which is %+v, %v", text, p.field, again, ok)
		}
		if len(leaves(p.field)) == 0 {
			t.Errorf("%q: no leaves", p.field)
		}
		// Whatever a mask names can be copied, cleared and shown.
		var s, from Spec
		s.copyField(&from, p.field)
		s.clearField(p.field)
		_ = s.text(p.field)
	})
}

// Every field of the tables exists.
func TestFieldTables(t *testing.T) {
	var all []string
	all = append(append(all, mutable...), outputOnly...)
	for _, rule := range supported {
		all = append(all, rule.field)
	}
	for _, field := range all {
		if got, ok := parseMaskPath(field); !ok || got.field != field {
			t.Errorf("%s is no field", field)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, text := range []string{"projects/p/locations/us-central1/environments/e", "projects/example.com:proj/locations/l/environments/e", "projects//locations//environments/", "projects/p/locations/-/environments/e"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := ParseName(text); err == nil && n.String() != text {
			t.Errorf("%q has become %q", text, n)
		}
		if n, err := ParseOperationName(text); err == nil && n.String() != text {
			t.Errorf("%q has become %q", text, n)
		}
		for _, wildcard := range []bool{false, true} {
			l, err := ParseLocation(text, wildcard)
			if err == nil && (l.String() != text || l.ID == "-" && !wildcard) {
				t.Errorf("%q has become %q", text, l)
			}
		}
	})
}

// Names that are made of good parts are read back as they were.
func TestNamesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := Name{Location{
			Project: rapid.StringMatching(`([a-z]{1,10}\.com:)?[a-z][-a-z0-9]{0,28}[a-z0-9]`).Draw(t, "project"),
			ID:      rapid.StringMatching(`[a-z]{1,10}-[a-z]{1,10}[0-9]`).Draw(t, "location")},
			rapid.StringMatching(`[a-z]([-a-z0-9]{0,62}[a-z0-9])?`).Draw(t, "id")}
		got, err := ParseName(n.String())
		if err != nil || got != n {
			t.Fatalf("%s: %v, %v", n, got, err)
		}
	})
}

func TestPageToken(t *testing.T) {
	// A page token survives nothing but its own query.
	_, first, err := Page{}.open(10, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	first.After = "x"
	if _, _, err := (Page{Token: first.token()}).open(10, "a", "b"); err != nil {
		t.Errorf("its own query: %v", err)
	}
	if _, _, err := (Page{Token: first.token()}).open(10, "ab"); err == nil {
		t.Error("another query took the token")
	}
}
