package networks

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sordino/environment"
	"sordino/environment/address"
)

var _ environment.Networks = (*Networks)(nil)

func comparer() cmp.Option {
	return cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
}

const shared = `
networks:
  - project: host-project
    name: shared-net
    sharedWith: [team-a]
    subnetworks:
      - name: shared-sub
        region: us-central1
        primary: 10.10.0.0/20
        secondary:
          - {name: pods, range: 10.20.0.0/16}
          - {name: services, range: 10.30.0.0/20}
    peers:
      - {name: on-premises, range: 10.200.0.0/16}
`

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "networks.yaml")
	if err := os.WriteFile(path, []byte(shared), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	const name = "projects/host-project/global/networks/shared-net"
	want := address.Network{Name: name,
		Subnetworks: []address.Subnetwork{{Name: "projects/host-project/regions/us-central1/subnetworks/shared-sub", Region: "us-central1",
			Primary: netip.MustParsePrefix("10.10.0.0/20"),
			Secondary: []address.Secondary{{Name: "pods", Prefix: netip.MustParsePrefix("10.20.0.0/16")},
				{Name: "services", Prefix: netip.MustParsePrefix("10.30.0.0/20")}}}},
		Peers: []address.Reservation{{Prefix: netip.MustParsePrefix("10.200.0.0/16"), Kind: address.Peer, Owner: "on-premises"}}}
	for _, project := range []string{"host-project", "team-a"} {
		got, err := n.Network(project, name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, comparer()); diff != "" {
			t.Errorf("for %s (-want +got):\n%s", project, diff)
		}
	}
	for _, test := range []struct{ project, name, want string }{
		{"team-b", name, "Network 'projects/host-project/global/networks/shared-net' is not shared with project 'team-b'. Add the project to 'sharedWith' of the network's declaration, or use one of: projects/team-b/global/networks/default."},
		{"team-a", "projects/team-a/global/networks/mine", "Network 'projects/team-a/global/networks/mine' is not declared. Declare it in the networks file, or use one of: projects/host-project/global/networks/shared-net, projects/team-a/global/networks/default."},
		{"team-a", "projects/team-b/global/networks/default", "Network 'projects/team-b/global/networks/default' is not declared. Declare it in the networks file, or use one of: projects/host-project/global/networks/shared-net, projects/team-a/global/networks/default."},
	} {
		if _, err := n.Network(test.project, test.name); err == nil || err.Error() != test.want {
			t.Errorf("%s for %s:\ngot  %v\nwant %s", test.name, test.project, err, test.want)
		}
	}
	if _, err := Load(path + ".missing"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestDefault(t *testing.T) {
	n := Default()
	got, err := n.Network("p", "projects/p/global/networks/default")
	if err != nil {
		t.Fatal(err)
	}
	all := netip.MustParsePrefix("10.128.0.0/9")
	for i, s := range got.Subnetworks {
		if !all.Contains(s.Primary.Addr()) || s.Primary.Bits() != 20 || s.Primary.Masked() != s.Primary {
			t.Errorf("%s has %s", s.Name, s.Primary)
		}
		if want := "projects/p/regions/" + s.Region + "/subnetworks/default"; s.Name != want {
			t.Errorf("got %s, want %s", s.Name, want)
		}
		for _, o := range got.Subnetworks[:i] {
			if o.Primary.Overlaps(s.Primary) {
				t.Errorf("%s overlaps %s", o.Name, s.Name)
			}
		}
	}
	if locations := n.Locations(); len(locations) != 41 || !slices.Contains(locations, "us-central1") || !slices.IsSorted(locations) {
		t.Errorf("%d locations: %v", len(locations), locations)
	}
}

func TestWithoutDefault(t *testing.T) {
	n, err := Parse("n.yaml", []byte("defaultNetwork: false"+shared))
	if err != nil {
		t.Fatal(err)
	}
	if got := n.Locations(); !slices.Equal(got, []string{"us-central1"}) {
		t.Errorf("locations: %v", got)
	}
	if _, err := n.Network("team-b", "projects/team-b/global/networks/default"); err == nil || !strings.Contains(err.Error(), "(there is none for this project)") {
		t.Errorf("got %v", err)
	}
	if n, err := Parse("n.yaml", nil); err != nil || !n.standard {
		t.Errorf("an empty file: %v", err)
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"networks:\n  - project: p\n    nam: n":                            "n.yaml:3: the key \"nam\" is unknown here; write one of the documented keys, or leave it out\nn.yaml:2: name is missing in the entry near this line; write name: NETWORK\nn.yaml:2: network projects/p/global/networks/ has no subnetwork; add one under subnetworks: with name, region and primary",
		"networks:\n  - project: p\n    name: n":                           "n.yaml:3: network projects/p/global/networks/n has no subnetwork; add one under subnetworks: with name, region and primary",
		"defaultNetwork: false":                                            "n.yaml:1: there is no network at all; declare one under networks:, or leave defaultNetwork out",
		strings.Replace(shared, "10.10.0.0/20", "10.10.1.0/20", 1):         "n.yaml:9: primary 10.10.1.0/20 has bits beyond its length; write 10.10.0.0/20",
		strings.Replace(shared, "10.10.0.0/20", "fd00::/64", 1):            `n.yaml:9: primary "fd00::/64" is not an IPv4 range; write CIDR notation, for example 10.10.0.0/20`,
		strings.Replace(shared, "10.10.0.0/20", "10.0.0.0/3", 1):           "n.yaml:9: primary 10.0.0.0/3 has bits beyond its length; write 0.0.0.0/3",
		strings.Replace(shared, "10.10.0.0/20", "10.10.0.0/30", 1):         "n.yaml:9: primary 10.10.0.0/30 has length 30; use a length of 4 to 29",
		strings.Replace(shared, "10.30.0.0/20", "10.20.16.0/20", 1):        "n.yaml:12: the secondary range services 10.20.16.0/20 overlaps the secondary range pods 10.20.0.0/16 of line 11; choose a range that no other of the network overlaps",
		strings.Replace(shared, "10.200.0.0/16", "10.10.0.0/16", 1):        "n.yaml:14: peer on-premises 10.10.0.0/16 overlaps the primary range of subnetwork shared-sub 10.10.0.0/20 of line 9; choose a range that no other of the network overlaps",
		strings.Replace(shared, "        region: us-central1\n", "", 1):    "n.yaml:7: region is missing in the entry near this line; write region: REGION",
		strings.Replace(shared, "name: shared-sub", "name: Shared_Sub", 1): `n.yaml:7: name "Shared_Sub" is malformed; write lower case letters, digits and dashes, a letter first`,
		strings.Replace(shared, "name: services", "name: pods", 1):         "n.yaml:12: the secondary range pods of subnetwork shared-sub is declared twice; give it another name",
		strings.Replace(shared, "[team-a]", "[Team A]", 1):                 `n.yaml:5: the project "Team A" of sharedWith is malformed; write the id of a project, or "*" for all`,
	} {
		if _, err := Parse("n.yaml", []byte(text)); err == nil || err.Error() != want {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
	// Every mistake is told at once.
	_, err := Parse("n.yaml", []byte(strings.NewReplacer("10.10.0.0/20", "ten", "10.30.0.0/20", "thirty").Replace(shared)))
	if err == nil || strings.Count(err.Error(), "n.yaml:") != 2 {
		t.Errorf("got %v, want two problems", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(shared))
	f.Add([]byte("networks: [{peers: [{}]}]"))
	f.Add([]byte("- a"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := Parse("n.yaml", text)
		if (n == nil) == (err == nil) {
			t.Errorf("got both or neither of networks and error: %v", err)
		}
	})
}

// Every region that a project's network has a subnetwork in has default ranges
// of its own for private environments, and the other way round.
func TestRegionsHaveDefaultRanges(t *testing.T) {
	if diff := cmp.Diff(address.Regions(), slices.Sorted(maps.Keys(autoMode))); diff != "" {
		t.Errorf("regions with default ranges (-), with a subnetwork (+):\n%s", diff)
	}
}
