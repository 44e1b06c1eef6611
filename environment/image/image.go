// Package image knows the image versions of Composer 1, 2 and 3.
//
// It owns the list, in one data file (versions.yaml) with release and end dates
// as far as the public record has them, the resolution of aliases such as
// composer-1-airflow-1, and the rule for upgrades. It refuses what is not in
// the list, with the versions to take instead.
//
// To debug it, look into versions.yaml: it alone decides what can be asked for.
// A stored version that is not in it any more is read by its id ([Parse]).
package image

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed versions.yaml
var embedded []byte

// Number is a dotted version, perhaps a preview or a build. A part that is not
// given is -1.
type Number struct {
	Major, Minor, Patch int
	Preview             int // 0 is a release
	Build               int // 0 is none
}

// Compare orders versions from old to new; a preview comes before its release.
func (n Number) Compare(m Number) int {
	return cmp.Or(
		cmp.Compare(n.Major, m.Major), cmp.Compare(n.Minor, m.Minor), cmp.Compare(n.Patch, m.Patch),
		compareBool(n.Preview == 0, m.Preview == 0), cmp.Compare(n.Preview, m.Preview),
		cmp.Compare(n.Build, m.Build))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// matches reports whether n is what the pattern asks for; the pattern's parts
// that are -1 or 0 may be anything.
func (n Number) matches(pattern Number) bool {
	return (pattern.Major < 0 || n.Major == pattern.Major) &&
		(pattern.Minor < 0 || n.Minor == pattern.Minor) &&
		(pattern.Patch < 0 || n.Patch == pattern.Patch) &&
		(pattern.Preview == 0 && (n.Preview == 0 || pattern.Patch < 0) || n.Preview == pattern.Preview) &&
		(pattern.Build == 0 || n.Build == pattern.Build)
}

// Version is one image version.
type Version struct {
	// ID is composer-1.20.12-airflow-1.10.15, for example.
	ID                string
	Composer, Airflow Number
	// Default marks the version of an environment that asks for none.
	Default bool
	// Python are the major versions of Python that it has.
	Python []string
	// Released and End are days in UTC; zero is not known.
	Released, End time.Time
	// Past marks a superseded release.
	Past                              bool
	CreationDisabled, UpgradeDisabled bool
}

// Catalogue is the list of image versions, the newest first.
type Catalogue struct {
	versions []Version
	byID     map[string]Version
	standard Version
}

// Default is the catalogue that comes with the program.
func Default() *Catalogue {
	c, err := Load(embedded)
	if err != nil {
		panic("versions.yaml: " + err.Error()) // a test loads it
	}
	return c
}

// Load reads a catalogue.
func Load(text []byte) (*Catalogue, error) {
	var file struct {
		Default  string `yaml:"default"`
		Releases []struct {
			Composer string   `yaml:"composer"`
			Airflow  []string `yaml:"airflow"`
			Python   []string `yaml:"python"`
			Released string   `yaml:"released"`
			End      string   `yaml:"end"`
			Past     bool     `yaml:"past"`
			Creation string   `yaml:"creation"`
			Upgrade  string   `yaml:"upgrade"`
		} `yaml:"releases"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return nil, err
	}
	c := &Catalogue{byID: map[string]Version{}}
	for _, release := range file.Releases {
		for _, airflow := range release.Airflow {
			id := "composer-" + release.Composer + "-airflow-" + airflow
			composerNumber, airflowNumber, ok := parse(id)
			if !ok || alias(composerNumber, airflowNumber) {
				return nil, fmt.Errorf("%s is not the id of one image version", id)
			}
			v := Version{ID: id, Composer: composerNumber, Airflow: airflowNumber, Default: id == file.Default, Past: release.Past,
				CreationDisabled: release.Creation == "disabled", UpgradeDisabled: release.Upgrade == "disabled"}
			for _, field := range []struct {
				text string
				day  *time.Time
			}{{release.Released, &v.Released}, {release.End, &v.End}} {
				if field.text == "" {
					continue
				}
				day, err := time.Parse(time.DateOnly, field.text)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", id, err)
				}
				*field.day = day
			}
			v.Python = release.Python
			if len(v.Python) == 0 || airflowNumber.Major > 1 {
				v.Python = []string{"3"} // Airflow 2 has never run on Python 2
			}
			if _, twice := c.byID[id]; twice {
				return nil, fmt.Errorf("%s stands there twice", id)
			}
			if v.Default {
				c.standard = v
			}
			c.byID[id] = v
			c.versions = append(c.versions, v)
		}
	}
	if c.standard.ID == "" {
		return nil, fmt.Errorf("the default %q is not in the list", file.Default)
	}
	slices.SortStableFunc(c.versions, func(a, b Version) int {
		return cmp.Or(b.Composer.Compare(a.Composer), b.Airflow.Compare(a.Airflow))
	})
	return c, nil
}

// Standard is the version of an environment that asks for none.
func (c *Catalogue) Standard() Version { return c.standard }

// List returns the versions, the newest first; past ones only when asked for.
func (c *Catalogue) List(past bool) []Version {
	var list []Version
	for _, v := range c.versions {
		if past || !v.Past {
			list = append(list, v)
		}
	}
	return list
}

// Version returns the version of an id, which may not be an alias.
func (c *Catalogue) Version(id string) (Version, bool) {
	v, ok := c.byID[id]
	return v, ok
}

// MalformedError says that a text is no image version.
type MalformedError struct{ Text string }

func (e *MalformedError) Error() string {
	return fmt.Sprintf("Malformed image version '%s'. Write composer-A.B.C-airflow-X.Y.Z, or an alias such as composer-1-airflow-1", e.Text)
}

// UnknownError says that there is no such image version.
type UnknownError struct {
	Text        string
	Suggestions []string
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("Unsupported image version: '%s'. Currently suggested image versions are: [%s].", e.Text, strings.Join(e.Suggestions, ", "))
}

// Resolve returns the version that a text asks for: an id, or an alias whose
// missing parts are the newest that fit. Previews are taken only by their full
// name. The error is a *MalformedError or an *UnknownError.
func (c *Catalogue) Resolve(text string) (Version, error) {
	if v, ok := c.byID[text]; ok {
		return v, nil
	}
	composerPattern, airflowPattern, ok := parse(text)
	if !ok {
		return Version{}, &MalformedError{text}
	}
	var best Version
	for _, v := range c.versions {
		if v.Composer.Preview != composerPattern.Preview || !v.Composer.matches(composerPattern) || !v.Airflow.matches(airflowPattern) {
			continue
		}
		if composerPattern.Preview == 0 && v.Composer.Preview != 0 {
			continue
		}
		if best.ID == "" || cmp.Or(v.Composer.Compare(best.Composer), v.Airflow.Compare(best.Airflow)) > 0 {
			best = v
		}
	}
	if best.ID == "" {
		return Version{}, &UnknownError{text, c.suggestions(composerPattern, airflowPattern)}
	}
	return best, nil
}

// suggestions are current versions of the same Composer major, those of the
// same Airflow major first; of all majors when there is no such one.
func (c *Catalogue) suggestions(composerPattern, airflowPattern Number) []string {
	var same, other, rest []string
	for _, v := range c.List(false) {
		switch {
		case v.Composer.Major == composerPattern.Major && v.Airflow.Major == airflowPattern.Major:
			same = append(same, v.ID)
		case v.Composer.Major == composerPattern.Major:
			other = append(other, v.ID)
		default:
			rest = append(rest, v.ID)
		}
	}
	if found := append(same, other...); len(found) > 0 {
		return found
	}
	return rest
}

// UpgradeError says why there is no way from one version to another.
type UpgradeError struct {
	From, To Version
	Reason   string
	// Suggestions are versions that From can be upgraded to.
	Suggestions []string
}

func (e *UpgradeError) Error() string {
	advice := "There is no newer version of it: create a new environment and move the work there."
	if len(e.Suggestions) > 0 {
		advice = fmt.Sprintf("Currently suggested upgrades are: [%s].", strings.Join(e.Suggestions, ", "))
	}
	return fmt.Sprintf("Cannot upgrade from image version '%s' to '%s': %s. %s", e.From.ID, e.To.ID, e.Reason, advice)
}

// CheckUpgrade reports as an *UpgradeError why an environment with one version
// cannot be upgraded to another: the majors of Composer and Airflow have to
// stay, and neither may go down.
func (c *Catalogue) CheckUpgrade(from, to Version) error {
	reason := upgradeRefusal(from, to)
	if reason == "" {
		return nil
	}
	return &UpgradeError{from, to, reason, c.UpgradesFrom(from)}
}

// UpgradesFrom lists the current versions that one can be upgraded to.
func (c *Catalogue) UpgradesFrom(from Version) []string {
	var ids []string
	for _, v := range c.List(false) {
		if v.ID != from.ID && upgradeRefusal(from, v) == "" {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

func upgradeRefusal(from, to Version) string {
	switch {
	case from.UpgradeDisabled:
		return "upgrading from it is disabled"
	case to.CreationDisabled:
		return "the new version is disabled"
	case from.Composer.Major != to.Composer.Major:
		return "the major version of Cloud Composer cannot change"
	case from.Airflow.Major != to.Airflow.Major:
		return "the major version of Airflow cannot change"
	case to.Composer.Compare(from.Composer) < 0:
		return "Cloud Composer cannot be downgraded"
	case to.Airflow.Compare(from.Airflow) < 0:
		return "Airflow cannot be downgraded"
	}
	return ""
}

// form is the API's own pattern, with the builds of Composer 3 and previews.
var form = regexp.MustCompile(`^composer-(?:(\d{1,4})(?:\.(\d{1,4})\.(\d{1,4})(?:-preview\.(\d{1,4}))?)?|latest)-airflow-(\d{1,4})(?:\.(\d{1,4})(?:\.(\d{1,4})(?:-build\.(\d{1,4}))?)?)?$`)

func parse(text string) (composer, airflow Number, ok bool) {
	m := form.FindStringSubmatch(text)
	if m == nil {
		return Number{}, Number{}, false
	}
	part := func(i, missing int) int {
		if m[i] == "" {
			return missing
		}
		n, _ := strconv.Atoi(m[i]) // four digits at most
		return n
	}
	return Number{part(1, -1), part(2, -1), part(3, -1), part(4, 0), 0},
		Number{part(5, -1), part(6, -1), part(7, -1), 0, part(8, 0)}, true
}

// alias reports whether something is left open. Composer 3 has no minor
// version, and an image of it always has a build.
func alias(composer, airflow Number) bool {
	if composer.Major == 3 {
		return airflow.Patch < 0 || airflow.Build == 0
	}
	return composer.Patch < 0 || airflow.Patch < 0
}

// ComposerMajor is the major version of Composer that an id or an alias names;
// false when it is neither, or names the latest.
func ComposerMajor(text string) (int, bool) {
	composer, _, ok := parse(text)
	return composer.Major, ok && composer.Major > 0
}

// Parse reads an id without asking whether it is in the list. Its Python
// versions are not known: both majors.
func Parse(id string) (Version, bool) {
	composer, airflow, ok := parse(id)
	if !ok || alias(composer, airflow) {
		return Version{}, false
	}
	return Version{ID: id, Composer: composer, Airflow: airflow, Python: []string{"2", "3"}}, true
}
