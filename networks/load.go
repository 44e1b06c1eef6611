package networks

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"sordino/environment/address"
	"sordino/internal/yamlfile"
)

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
// joins every *yamlfile.Problem.
func Load(path string) (*Networks, error) {
	text, err := yamlfile.Load(path, "networks file")
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

type rangeDeclaration struct {
	Name  yamlfile.Word `yaml:"name"`
	Range yamlfile.Word `yaml:"range"`
}

type subnetworkDeclaration struct {
	Name      yamlfile.Word      `yaml:"name"`
	Region    yamlfile.Word      `yaml:"region"`
	Primary   yamlfile.Word      `yaml:"primary"`
	Secondary []rangeDeclaration `yaml:"secondary"`
}

type networkDeclaration struct {
	Project     yamlfile.Word           `yaml:"project"`
	Name        yamlfile.Word           `yaml:"name"`
	SharedWith  []yamlfile.Word         `yaml:"sharedWith"`
	Subnetworks []subnetworkDeclaration `yaml:"subnetworks"`
	Peers       []rangeDeclaration      `yaml:"peers"`
}

type fileDeclaration struct {
	DefaultNetwork *bool                `yaml:"defaultNetwork"`
	Networks       []networkDeclaration `yaml:"networks"`
}

var projectForm = regexp.MustCompile(`^(?:[a-z0-9.-]{1,63}:)?[a-z0-9](?:[-a-z0-9]{0,62}[a-z0-9])?$`)

// Parse reads the text of a file; path is its name in complaints.
func Parse(path string, text []byte) (*Networks, error) {
	var file fileDeclaration
	r, err := yamlfile.Decode(path, text, &file)
	if err != nil {
		return nil, err
	}
	n := &Networks{declared: map[string]network{}, standard: file.DefaultNetwork == nil || *file.DefaultNetwork}
	for _, d := range file.Networks {
		reader{r}.network(n, d)
	}
	if len(file.Networks) == 0 && !n.standard {
		r.Problem(r.Line, "there is no network at all", "declare one under networks:, or leave defaultNetwork out")
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	return n, nil
}

type reader struct{ *yamlfile.Reader }

// used is a range of a network that is read already.
type used struct {
	prefix netip.Prefix
	what   string
	line   int
}

func (r reader) network(n *Networks, d networkDeclaration) {
	okProject := r.Required(d.Project, "project", "PROJECT", projectForm)
	okName := r.Required(d.Name, "name", "NETWORK", yamlfile.NameForm)
	name := "projects/" + d.Project.Text + "/global/networks/" + d.Name.Text
	if _, twice := n.declared[name]; twice && okProject && okName {
		r.Problem(r.Line, fmt.Sprintf("network %s is declared twice", name), "give it another name, or join both entries")
	}
	out := network{Network: address.Network{Name: name}}
	for _, project := range d.SharedWith {
		r.At(project)
		if project.Text != "*" && !projectForm.MatchString(project.Text) {
			r.Problem(r.Line, fmt.Sprintf("the project %q of sharedWith is malformed", project.Text), `write the id of a project, or "*" for all`)
		}
		out.sharedWith = append(out.sharedWith, project.Text)
	}
	var taken []used
	take := func(p netip.Prefix, what string) {
		for _, u := range taken {
			if u.prefix.Overlaps(p) {
				r.Problem(r.Line, fmt.Sprintf("%s %s overlaps %s %s of line %d", what, p, u.what, u.prefix, u.line), "choose a range that no other of the network overlaps")
			}
		}
		taken = append(taken, used{p, what, r.Line})
	}
	if len(d.Subnetworks) == 0 {
		r.Problem(r.Line, fmt.Sprintf("network %s has no subnetwork", name), "add one under subnetworks: with name, region and primary")
	}
	for _, s := range d.Subnetworks {
		if sub, ok := r.subnetwork(d.Project.Text, s, take); ok {
			if slices.ContainsFunc(out.Subnetworks, func(o address.Subnetwork) bool { return o.Name == sub.Name }) {
				r.Problem(s.Name.Line, fmt.Sprintf("subnetwork %s is declared twice", sub.Name), "give it another name, or join both entries")
			}
			out.Subnetworks = append(out.Subnetworks, sub)
		}
	}
	for _, peer := range d.Peers {
		okName := r.Required(peer.Name, "name", "PEER", yamlfile.NameForm)
		if p, ok := r.Prefix(peer.Range, "range", 4, 29); ok && okName {
			take(p, "peer "+peer.Name.Text)
			out.Peers = append(out.Peers, address.Reservation{Prefix: p, Kind: address.Peer, Owner: peer.Name.Text})
		}
	}
	n.declared[name] = out
}

func (r reader) subnetwork(project string, d subnetworkDeclaration, take func(netip.Prefix, string)) (address.Subnetwork, bool) {
	okName := r.Required(d.Name, "name", "SUBNETWORK", yamlfile.NameForm)
	okRegion := r.Required(d.Region, "region", "REGION", yamlfile.NameForm)
	primary, okPrimary := r.Prefix(d.Primary, "primary", 4, 29)
	if okPrimary {
		take(primary, "the primary range of subnetwork "+d.Name.Text)
	}
	out := address.Subnetwork{Name: subnetworkName(project, d.Region.Text, d.Name.Text), Region: d.Region.Text, Primary: primary}
	for _, s := range d.Secondary {
		okName := r.Required(s.Name, "name", "RANGE", yamlfile.NameForm)
		p, ok := r.Prefix(s.Range, "range", 4, 29)
		if !ok || !okName {
			continue
		}
		if slices.ContainsFunc(out.Secondary, func(o address.Secondary) bool { return o.Name == s.Name.Text }) {
			r.Problem(s.Name.Line, fmt.Sprintf("the secondary range %s of subnetwork %s is declared twice", s.Name.Text, d.Name.Text), "give it another name")
		}
		take(p, "the secondary range "+s.Name.Text)
		out.Secondary = append(out.Secondary, address.Secondary{Name: s.Name.Text, Prefix: p})
	}
	// Google's own limit.
	if len(d.Secondary) > 30 {
		r.Problem(r.Line, fmt.Sprintf("subnetwork %s has %d secondary ranges", d.Name.Text, len(d.Secondary)), "declare at most 30")
	}
	return out, okName && okRegion && okPrimary
}
