package networks

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"

	"sordino/environment/address"
)

// maxFile bounds the file: a network of 10,000 subnetworks takes two megabytes.
const maxFile = 16 << 20

// Load reads the file that declares networks:
//
//	defaultNetwork: true        # also give every project a network "default"; true when left out
//	networks:
//	  - project: host-project   # the project that the network belongs to
//	    name: shared-net
//	    sharedWith: [team-a]    # Shared VPC: the service projects that may use it, or ["*"]
//	    subnetworks:
//	      - name: shared-sub
//	        region: us-central1
//	        primary: 10.10.0.0/20         # the nodes' range, /4 to /29
//	        secondary:                    # for Pods and Services, by name
//	          - {name: pods, range: 10.20.0.0/16}
//	          - {name: services, range: 10.30.0.0/20}
//	    peers:                            # ranges that the network reaches elsewhere
//	      - {name: on-premises, range: 10.200.0.0/16}
//
// Ranges are IPv4 in CIDR notation. No two of a network may overlap. The error
// joins every *Problem.
func Load(path string) (*Networks, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the networks file: %w; give the path of a file that can be read with --networks", err)
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the networks file: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("the networks file %s has more than %d bytes; declare fewer networks", path, maxFile)
	}
	return Parse(path, text)
}

// Problem is one mistake in the file.
type Problem struct {
	Path    string
	Line    int
	Message string
	// Fix says what to write instead.
	Fix string
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s:%d: %s; %s", p.Path, p.Line, p.Message, p.Fix)
}

// word is a scalar that remembers its line.
type word struct {
	text string
	line int
}

func (w *word) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.ScalarNode || node.Tag == "!!null" {
		return fmt.Errorf("line %d: this is not a text; write one value", node.Line)
	}
	w.text, w.line = node.Value, node.Line
	return nil
}

type rangeDeclaration struct {
	Name  word `yaml:"name"`
	Range word `yaml:"range"`
}

type subnetworkDeclaration struct {
	Name      word               `yaml:"name"`
	Region    word               `yaml:"region"`
	Primary   word               `yaml:"primary"`
	Secondary []rangeDeclaration `yaml:"secondary"`
}

type networkDeclaration struct {
	Project     word                    `yaml:"project"`
	Name        word                    `yaml:"name"`
	SharedWith  []word                  `yaml:"sharedWith"`
	Subnetworks []subnetworkDeclaration `yaml:"subnetworks"`
	Peers       []rangeDeclaration      `yaml:"peers"`
}

type fileDeclaration struct {
	DefaultNetwork *bool                `yaml:"defaultNetwork"`
	Networks       []networkDeclaration `yaml:"networks"`
}

var (
	nameForm    = regexp.MustCompile(`^[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$`)
	projectForm = regexp.MustCompile(`^(?:[a-z0-9.-]{1,63}:)?[a-z0-9](?:[-a-z0-9]{0,62}[a-z0-9])?$`)
)

// Parse reads the text of a file; path is its name in complaints.
func Parse(path string, text []byte) (*Networks, error) {
	var file fileDeclaration
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w; see the documented format of the networks file", path, err)
	}
	r := &reader{path: path}
	n := &Networks{declared: map[string]network{}, standard: file.DefaultNetwork == nil || *file.DefaultNetwork}
	line := 1
	for _, d := range file.Networks {
		r.network(n, d, &line)
	}
	if len(file.Networks) == 0 && !n.standard {
		r.problem(line, "there is no network at all", "declare one under networks:, or leave defaultNetwork out")
	}
	if len(r.problems) > 0 {
		return nil, errors.Join(r.problems...)
	}
	return n, nil
}

type reader struct {
	path     string
	problems []error
}

func (r *reader) problem(line int, message, fix string) {
	r.problems = append(r.problems, &Problem{r.path, line, message, fix})
}

// required checks a name; line moves on to where it stands, so that what is
// missing is reported near its place.
func (r *reader) required(w word, key, form string, pattern *regexp.Regexp, line *int) bool {
	if w.line != 0 {
		*line = w.line
	}
	switch {
	case w.text == "":
		r.problem(*line, fmt.Sprintf("%s is missing in the entry near this line", key), fmt.Sprintf("write %s: %s", key, form))
	case !pattern.MatchString(w.text):
		r.problem(*line, fmt.Sprintf("%s %q is malformed", key, w.text), "write lower case letters, digits and dashes, a letter first")
	default:
		return true
	}
	return false
}

// prefix reads a range.
func (r *reader) prefix(w word, key string, line *int) (netip.Prefix, bool) {
	if w.line != 0 {
		*line = w.line
	}
	if w.text == "" {
		r.problem(*line, fmt.Sprintf("%s is missing in the entry near this line", key), fmt.Sprintf("write %s: with an IPv4 range in CIDR notation, for example 10.10.0.0/20", key))
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(w.text)
	switch {
	case err != nil || !p.Addr().Is4():
		r.problem(*line, fmt.Sprintf("%s %q is not an IPv4 range", key, w.text), "write CIDR notation, for example 10.10.0.0/20")
	case p.Masked() != p:
		r.problem(*line, fmt.Sprintf("%s %s has bits beyond its length", key, w.text), fmt.Sprintf("write %s", p.Masked()))
	case p.Bits() < 4 || p.Bits() > 29:
		r.problem(*line, fmt.Sprintf("%s %s has length %d", key, w.text, p.Bits()), "use a length of 4 to 29")
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

// used is a range of a network that is read already.
type used struct {
	prefix netip.Prefix
	what   string
	line   int
}

func (r *reader) network(n *Networks, d networkDeclaration, line *int) {
	okProject := r.required(d.Project, "project", "PROJECT", projectForm, line)
	okName := r.required(d.Name, "name", "NETWORK", nameForm, line)
	name := "projects/" + d.Project.text + "/global/networks/" + d.Name.text
	if _, twice := n.declared[name]; twice && okProject && okName {
		r.problem(*line, fmt.Sprintf("network %s is declared twice", name), "give it another name, or join both entries")
	}
	out := network{Network: address.Network{Name: name}}
	for _, project := range d.SharedWith {
		*line = project.line
		if project.text != "*" && !projectForm.MatchString(project.text) {
			r.problem(*line, fmt.Sprintf("the project %q of sharedWith is malformed", project.text), `write the id of a project, or "*" for all`)
		}
		out.sharedWith = append(out.sharedWith, project.text)
	}
	var taken []used
	take := func(p netip.Prefix, what string) {
		for _, u := range taken {
			if u.prefix.Overlaps(p) {
				r.problem(*line, fmt.Sprintf("%s %s overlaps %s %s of line %d", what, p, u.what, u.prefix, u.line), "choose a range that no other of the network overlaps")
			}
		}
		taken = append(taken, used{p, what, *line})
	}
	if len(d.Subnetworks) == 0 {
		r.problem(*line, fmt.Sprintf("network %s has no subnetwork", name), "add one under subnetworks: with name, region and primary")
	}
	for _, s := range d.Subnetworks {
		if sub, ok := r.subnetwork(d.Project.text, s, line, take); ok {
			if slices.ContainsFunc(out.Subnetworks, func(o address.Subnetwork) bool { return o.Name == sub.Name }) {
				r.problem(s.Name.line, fmt.Sprintf("subnetwork %s is declared twice", sub.Name), "give it another name, or join both entries")
			}
			out.Subnetworks = append(out.Subnetworks, sub)
		}
	}
	for _, peer := range d.Peers {
		okName := r.required(peer.Name, "name", "PEER", nameForm, line)
		if p, ok := r.prefix(peer.Range, "range", line); ok && okName {
			take(p, "peer "+peer.Name.text)
			out.Peers = append(out.Peers, address.Reservation{Prefix: p, Kind: address.Peer, Owner: peer.Name.text})
		}
	}
	n.declared[name] = out
}

func (r *reader) subnetwork(project string, d subnetworkDeclaration, line *int, take func(netip.Prefix, string)) (address.Subnetwork, bool) {
	okName := r.required(d.Name, "name", "SUBNETWORK", nameForm, line)
	okRegion := r.required(d.Region, "region", "REGION", nameForm, line)
	primary, okPrimary := r.prefix(d.Primary, "primary", line)
	if okPrimary {
		take(primary, "the primary range of subnetwork "+d.Name.text)
	}
	out := address.Subnetwork{Name: subnetworkName(project, d.Region.text, d.Name.text), Region: d.Region.text, Primary: primary}
	for _, s := range d.Secondary {
		okName := r.required(s.Name, "name", "RANGE", nameForm, line)
		p, ok := r.prefix(s.Range, "range", line)
		if !ok || !okName {
			continue
		}
		if slices.ContainsFunc(out.Secondary, func(o address.Secondary) bool { return o.Name == s.Name.text }) {
			r.problem(s.Name.line, fmt.Sprintf("the secondary range %s of subnetwork %s is declared twice", s.Name.text, d.Name.text), "give it another name")
		}
		take(p, "the secondary range "+s.Name.text)
		out.Secondary = append(out.Secondary, address.Secondary{Name: s.Name.text, Prefix: p})
	}
	// Google's own limit.
	if len(d.Secondary) > 30 {
		r.problem(*line, fmt.Sprintf("subnetwork %s has %d secondary ranges", d.Name.text, len(d.Secondary)), "declare at most 30")
	}
	return out, okName && okRegion && okPrimary
}
