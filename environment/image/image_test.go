package image

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestResolve(t *testing.T) {
	c := Default()
	for text, want := range map[string]string{
		"composer-1.20.12-airflow-1.10.15":           "composer-1.20.12-airflow-1.10.15",
		"composer-1-airflow-1":                       "composer-1.20.12-airflow-1.10.15",
		"composer-1-airflow-2":                       "composer-1.20.12-airflow-2.4.3",
		"composer-1-airflow-2.3":                     "composer-1.20.12-airflow-2.3.4",
		"composer-1-airflow-2.1.4":                   "composer-1.19.15-airflow-2.1.4",
		"composer-1.20.12-airflow-2":                 "composer-1.20.12-airflow-2.4.3",
		"composer-latest-airflow-1.10.15":            "composer-1.20.12-airflow-1.10.15",
		"composer-latest-airflow-2.4.3":              "composer-2.1.14-airflow-2.4.3",
		"composer-2-airflow-2":                       "composer-2.14.2-airflow-2.10.5",
		"composer-3-airflow-2":                       "composer-3-airflow-2.10.5-build.14",
		"composer-3-airflow-2.9.3":                   "composer-3-airflow-2.9.3-build.34",
		"composer-3-airflow-2.9.3-build.1":           "composer-3-airflow-2.9.3-build.1",
		"composer-1.17.0-preview.7-airflow-2.0.2":    "composer-1.17.0-preview.7-airflow-2.0.2",
		"composer-1.17.0-airflow-2.0.2":              "composer-1.17.0-airflow-2.0.2",
		"composer-2-airflow-2.0.2":                   "",
		"composer-1.20.13-airflow-1.10.15":           "",
		"composer-1.20.12-airflow-2.5.0":             "",
		"composer-1.20.12-preview.3-airflow-1.10.15": "",
	} {
		v, err := c.Resolve(text)
		if want == "" {
			var unknown *UnknownError
			if !errors.As(err, &unknown) || len(unknown.Suggestions) == 0 {
				t.Errorf("%s resolved to %q, %v; want an UnknownError with suggestions", text, v.ID, err)
			}
			continue
		}
		if err != nil || v.ID != want {
			t.Errorf("%s resolved to %q, %v; want %s", text, v.ID, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	c := Default()
	_, err := c.Resolve("composer-1.20.13-airflow-1.10.15")
	if want := "Unsupported image version: 'composer-1.20.13-airflow-1.10.15'. Currently suggested image versions are: [composer-1.20.12-airflow-1.10.15, composer-1.20.12-airflow-2.4.3, composer-1.20.12-airflow-2.3.4]."; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	for _, text := range []string{"", "composer", "composer-1.20-airflow-1.10.15", "composer-1.20.12", "composer-1.20.12-airflow-", " composer-1-airflow-1", "composer-1-airflow-1\n",
		"composer-1.20.12-preview.3-airflow-1.10.15-build.7x", "composer-99999-airflow-1"} {
		var malformed *MalformedError
		if _, err := c.Resolve(text); !errors.As(err, &malformed) {
			t.Errorf("%q: got %v, want a MalformedError", text, err)
		}
	}
}

func TestCheckUpgrade(t *testing.T) {
	c := Default()
	for _, test := range []struct{ from, to, want string }{
		{"composer-1.17.7-airflow-1.10.15", "composer-1.20.12-airflow-1.10.15", ""},
		{"composer-1.19.15-airflow-2.2.5", "composer-1.20.12-airflow-2.4.3", ""},
		{"composer-1.20.12-airflow-1.10.15", "composer-1.20.10-airflow-1.10.15",
			"Cannot upgrade from image version 'composer-1.20.12-airflow-1.10.15' to 'composer-1.20.10-airflow-1.10.15': Cloud Composer cannot be downgraded. There is no newer version of it: create a new environment and move the work there."},
		{"composer-1.20.12-airflow-2.4.3", "composer-1.20.12-airflow-2.3.4",
			"Cannot upgrade from image version 'composer-1.20.12-airflow-2.4.3' to 'composer-1.20.12-airflow-2.3.4': Airflow cannot be downgraded. There is no newer version of it: create a new environment and move the work there."},
		{"composer-1.19.15-airflow-2.3.4", "composer-2.0.32-airflow-2.3.4",
			"Cannot upgrade from image version 'composer-1.19.15-airflow-2.3.4' to 'composer-2.0.32-airflow-2.3.4': the major version of Cloud Composer cannot change. Currently suggested upgrades are: [composer-1.20.12-airflow-2.4.3, composer-1.20.12-airflow-2.3.4]."},
		{"composer-1.20.10-airflow-1.10.15", "composer-1.20.12-airflow-2.4.3",
			"Cannot upgrade from image version 'composer-1.20.10-airflow-1.10.15' to 'composer-1.20.12-airflow-2.4.3': the major version of Airflow cannot change. Currently suggested upgrades are: [composer-1.20.12-airflow-1.10.15]."},
	} {
		from, _ := c.Version(test.from)
		to, _ := c.Version(test.to)
		got := ""
		if err := c.CheckUpgrade(from, to); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s to %s:\ngot  %s\nwant %s", test.from, test.to, got, test.want)
		}
	}
}

func TestCatalogue(t *testing.T) {
	c := Default()
	if got := c.Standard().ID; got != "composer-1.20.12-airflow-1.10.15" {
		t.Errorf("the default is %s", got)
	}
	end := time.Date(2026, 9, 15, 0, 0, 0, 0, time.UTC)
	for i, v := range c.List(true) {
		if v.Composer.Major == 1 && (v.CreationDisabled || !v.End.Equal(end)) {
			t.Errorf("%s: creation disabled %v, end %s", v.ID, v.CreationDisabled, v.End)
		}
		if back, err := c.Resolve(v.ID); err != nil || back.ID != v.ID {
			t.Errorf("%s resolved to %q, %v", v.ID, back.ID, err)
		}
		if i > 0 && c.List(true)[i-1].Composer.Compare(v.Composer) < 0 {
			t.Errorf("%s stands after an older one", v.ID)
		}
	}
	if len(c.List(false)) >= len(c.List(true)) {
		t.Error("nothing is past")
	}
}

func TestLoadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"default: a\nrelease: []":                                                              "field release not found",
		"default: composer-1.2.3-airflow-1.2.3":                                                "is not in the list",
		"releases: [{composer: 1.2.3, airflow: [1.2]}]":                                        "is not the id of one image version",
		"releases: [{composer: 1.2.3, airflow: [1.2.3], end: soon}]":                           "cannot parse",
		"releases: [{composer: 1.2.3, airflow: [1.2.3]}, {composer: 1.2.3, airflow: [1.2.3]}]": "stands there twice",
	} {
		if _, err := Load([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// An alias never resolves to something that it does not ask for.
func TestAliasKeepsItsParts(t *testing.T) {
	c := Default()
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SampledFrom(c.List(true)).Draw(t, "version")
		composer, airflow, _ := strings.Cut(strings.TrimPrefix(v.ID, "composer-"), "-airflow-")
		if v.Composer.Preview == 0 && rapid.Bool().Draw(t, "shorten composer") {
			composer, _, _ = strings.Cut(composer, ".")
		}
		parts := strings.Split(strings.SplitN(airflow, "-", 2)[0], ".")
		airflow = strings.Join(parts[:rapid.IntRange(1, 3).Draw(t, "parts")], ".")
		got, err := c.Resolve("composer-" + composer + "-airflow-" + airflow)
		if err != nil || got.Composer.Major != v.Composer.Major || !strings.Contains(got.ID, "-airflow-"+airflow) ||
			!strings.HasPrefix(got.ID, "composer-"+composer) || got.Composer.Compare(v.Composer) < 0 {
			t.Fatalf("composer-%s-airflow-%s resolved to %q, %v", composer, airflow, got.ID, err)
		}
	})
}

func TestComposerMajor(t *testing.T) {
	for text, want := range map[string]int{"composer-1.20.12-airflow-1.10.15": 1, "composer-2-airflow-2": 2, "composer-3-airflow-2.10.5-build.14": 3,
		"composer-latest-airflow-2": 0, "": 0, "composer-x": 0} {
		if major, ok := ComposerMajor(text); ok != (want > 0) || ok && major != want {
			t.Errorf("%q is of Composer %d, %v; want %d", text, major, ok, want)
		}
	}
}
