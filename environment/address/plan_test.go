package address

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// network is the document's: VMs in 10.0.0.0/8, with two secondary ranges.
func network(primary string) Network {
	return Network{Name: "projects/p/global/networks/default", Subnetworks: []Subnetwork{{
		Name: "projects/p/regions/us-central1/subnetworks/default", Region: "us-central1", Primary: netip.MustParsePrefix(primary),
		Secondary: []Secondary{{"pods", netip.MustParsePrefix("192.168.0.0/16")}, {"services", netip.MustParsePrefix("172.20.0.0/16")}},
	}}}
}

func request(change func(*Request)) Request {
	r := Request{Owner: "projects/p/locations/us-central1/environments/e", Network: network("10.128.0.0/20"), Region: "us-central1", VPCNative: true, NodeCount: 3}
	if change != nil {
		change(&r)
	}
	return r
}

var comparePlans = []cmp.Option{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()}

func TestPlans(t *testing.T) {
	tests := map[string]struct {
		change func(*Request)
		want   []string // Explain, without the node range
	}{
		"nothing given": {nil, []string{"Pod range 10.16.0.0/14 (chosen)", "Service range 10.20.0.0/20 (chosen)",
			"room for 4092 nodes with 32 Pods each (a /26 a node) and 4096 Services"}},
		"sizes": {func(r *Request) { r.Pods.Text, r.Services.Text = "/21", "/27" }, []string{"Pod range 10.16.0.0/21 (chosen)", "Service range 10.16.8.0/27 (chosen)",
			"room for 32 nodes with 32 Pods each (a /26 a node) and 32 Services"}},
		"the document's: Pods beside the VMs' range": {func(r *Request) {
			r.Network = network("10.0.0.0/8")
			r.Network.Subnetworks[0].Secondary = nil
			r.Pods.Text = "192.168.0.0/16"
		}, []string{"Pod range 192.168.0.0/16 (given)", "Service range 172.16.0.0/20 (chosen)",
			"room for 1024 nodes with 32 Pods each (a /26 a node) and 4096 Services"}},
		"secondary ranges by name": {func(r *Request) { r.Pods.SecondaryName, r.Services.SecondaryName = "pods", "services" },
			[]string{"Pod range 192.168.0.0/16 (named pods)", "Service range 172.20.0.0/16 (named services)",
				"room for 1024 nodes with 32 Pods each (a /26 a node) and 65536 Services"}},
		"private, all defaults": {func(r *Request) { r.Private = &PrivateWish{} }, []string{"Pod range 10.16.0.0/14 (chosen)", "Service range 10.20.0.0/20 (chosen)",
			"control plane range 172.16.20.0/23 (chosen)", "web server range 172.31.245.0/24 (chosen)", "database range 10.0.0.0/12 (chosen)",
			"room for 4092 nodes with 32 Pods each (a /26 a node) and 4096 Services"}},
		"a second private environment": {func(r *Request) {
			r.Private = &PrivateWish{}
			first, _ := NewPlan(request(func(r *Request) { r.Private = &PrivateWish{} }))
			r.Reservations = first.Reservations("other")
		}, []string{"Pod range 10.24.0.0/14 (chosen)", "Service range 10.20.16.0/20 (chosen)",
			"control plane range 172.16.0.0/23 (chosen)", "web server range 172.16.2.0/24 (chosen)", "database range 10.32.0.0/12 (chosen)",
			"room for 4092 nodes with 32 Pods each (a /26 a node) and 4096 Services"}},
		"small, with a warning": {func(r *Request) { r.Pods.Text = "10.56.0.0/24" }, []string{"Pod range 10.56.0.0/24 (given)", "Service range 10.16.0.0/20 (chosen)",
			"room for 4 nodes with 32 Pods each (a /26 a node) and 4096 Services", "the Pod range 10.56.0.0/24 is smaller than a /23, the least that is recommended"}},
		"routes-based": {func(r *Request) { r.VPCNative = false }, []string{"Pod range 10.16.0.0/14 (chosen)", "Service range 10.20.0.0/20 (chosen)",
			"room for 1024 nodes with 32 Pods each (a /24 a node) and 4096 Services"}},
		"public addresses used privately": {func(r *Request) { r.Private, r.PUPI, r.Pods.Text = &PrivateWish{}, true, "100.0.0.0/14" }, []string{"Pod range 100.0.0.0/14 (given)", "Service range 10.16.0.0/20 (chosen)",
			"control plane range 172.16.20.0/23 (chosen)", "web server range 172.31.245.0/24 (chosen)", "database range 10.0.0.0/12 (chosen)",
			"room for 4092 nodes with 32 Pods each (a /26 a node) and 4096 Services"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p, violations := NewPlan(request(test.change))
			if len(violations) > 0 {
				t.Fatal(violations)
			}
			if diff := cmp.Diff(test.want, p.Explain()[1:]); diff != "" {
				t.Error(diff)
			}
			if len(p.NodeAddresses) != 3 || !p.Range(Nodes).Contains(p.NodeAddresses[2]) {
				t.Errorf("node addresses %v", p.NodeAddresses)
			}
		})
	}
}

func TestViolations(t *testing.T) {
	private := func(r *Request) { r.Private = &PrivateWish{} }
	tests := map[string]struct {
		change func(*Request)
		want   []string // reason and description, in order
	}{
		"a bare address": {func(r *Request) { r.Pods.Text = "10.56.0.0" },
			[]string{"IP_RANGE_MALFORMED The Pod range '10.56.0.0' is not an IPv4 range. Write a range such as 10.4.0.0/14, a size such as /14, or nothing for the default (did you mean 10.56.0.0/14?)"}},
		"an IPv6 range": {func(r *Request) { r.Services.Text = "fd00::/64" },
			[]string{"IP_RANGE_MALFORMED The Service range 'fd00::/64' is not an IPv4 range. Write a range such as 10.4.0.0/14, a size such as /14, or nothing for the default"}},
		"not aligned": {func(r *Request) { r.Pods.Text = "10.56.0.1/14" },
			[]string{"IP_RANGE_NOT_ALIGNED The Pod range 10.56.0.1/14 is not aligned to its size. Write 10.56.0.0/14"}},
		"too small for the nodes": {func(r *Request) { r.Pods.Text = "10.56.0.0/25" },
			[]string{"IP_RANGE_TOO_SMALL The Pod range 10.56.0.0/25 has room for 2 nodes with 32 Pods each (a /26 a node), and 3 are asked for. It must be at least a /24"}},
		"Services too small": {func(r *Request) { r.Services.Text = "/28" },
			[]string{"IP_RANGE_TOO_SMALL The Service range /28 is too small: it must be at least a /27"}},
		"a public range": {func(r *Request) { r.Pods.Text = "100.128.48.0/20" },
			[]string{"IP_RANGE_NOT_ALLOWED Cluster CIDR range 100.128.48.0/20 is not within allowed ranges. Take one from 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 240.0.0.0/4, or make a private environment with enablePrivatelyUsedPublicIps"}},
		"the Docker bridge": {func(r *Request) { private(r); r.Private.Master = "172.17.0.0/23" },
			[]string{"IP_RANGE_RESERVED The IP range 172.17.0.0/16 is reserved for the Docker bridge network. GKE master CIDR block must not overlap with it, and 172.17.0.0/23 does"}},
		"link-local": {func(r *Request) { r.Pods.Text = "169.254.0.0/20" },
			[]string{"IP_RANGE_NOT_ALLOWED Cluster CIDR range 169.254.0.0/20 is not within allowed ranges. It contains addresses of 169.254.0.0/16, link-local, where the metadata server is (RFC 3927)"}},
		"Pods in the VMs' range": {func(r *Request) { r.Pods.Text = "10.128.0.0/21" },
			[]string{"IP_RANGE_OVERLAP The Pod range 10.128.0.0/21 overlaps with the node range 10.128.0.0/20 of subnetwork projects/p/regions/us-central1/subnetworks/default. Free would be 10.16.0.0/21"}},
		"Pods and Services": {func(r *Request) { r.Pods.Text, r.Services.Text = "10.56.0.0/14", "10.56.0.0/20" }, []string{
			"IP_RANGE_OVERLAP The Service range 10.56.0.0/20 overlaps with this environment's own Pod range 10.56.0.0/14. Free would be 10.16.0.0/20",
			"IP_RANGE_OVERLAP The Pod range 10.56.0.0/14 overlaps with this environment's own Service range 10.56.0.0/20"}},
		"another environment": {func(r *Request) {
			r.Pods.Text = "10.56.0.0/14"
			r.Reservations = []Reservation{{netip.MustParsePrefix("10.58.0.0/20"), Services, "projects/p/locations/us-central1/environments/other"}}
		}, []string{"IP_RANGE_OVERLAP The Pod range 10.56.0.0/14 overlaps with the Service range 10.58.0.0/20 of environment projects/p/locations/us-central1/environments/other. Free would be 10.16.0.0/14"}},
		"a peer": {func(r *Request) {
			r.Pods.Text = "10.56.0.0/14"
			r.Network.Peers = []Reservation{{netip.MustParsePrefix("10.57.0.0/16"), "", "on-premises"}}
		}, []string{"IP_RANGE_OVERLAP The Pod range 10.56.0.0/14 overlaps with the peer range 10.57.0.0/16 of on-premises. Free would be 10.16.0.0/14"}},
		"the default database in the VMs' range": {func(r *Request) {
			private(r)
			r.Network = network("10.0.0.0/8")
			r.Pods.Text = "192.168.0.0/18"
			r.Network.Subnetworks[0].Secondary = nil
		},
			[]string{"IP_RANGE_OVERLAP The Cloud SQL range was left to its default, 10.0.0.0/12, which overlaps with the node range 10.0.0.0/8 of subnetwork projects/p/regions/us-central1/subnetworks/default. Give cloudSqlIpv4CidrBlock a free range, for example 172.20.0.0/14"}},
		"an unknown secondary range": {func(r *Request) { r.Pods.SecondaryName = "pod" },
			[]string{"SECONDARY_RANGE_NOT_FOUND The secondary range 'pod' was not found in subnetwork 'projects/p/regions/us-central1/subnetworks/default'; it has: pods, services"}},
		"one secondary range twice": {func(r *Request) { r.Pods.SecondaryName, r.Services.SecondaryName = "pods", "pods" },
			[]string{"IP_RANGE_OVERLAP The secondary range 'pods' is named for both Pods and Services. Name two different secondary ranges"}},
		"no subnetwork in the region": {func(r *Request) { r.Region = "europe-west1" },
			[]string{"SUBNETWORK_NOT_FOUND The network 'projects/p/global/networks/default' has no subnetwork in region 'europe-west1'. Declare one, or choose another network or location"}},
		"a subnetwork without room": {func(r *Request) { r.Network = network("10.128.0.0/29"); r.NodeCount = 5 },
			[]string{"IP_SPACE_EXHAUSTED The subnetwork projects/p/regions/us-central1/subnetworks/default (10.128.0.0/29) has 4 free addresses, and 5 more nodes are asked for (four addresses of a subnetwork are reserved). Use a larger subnetwork"}},
		"no free block": {func(r *Request) {
			for _, p := range []string{"10.0.0.0/9", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "10.130.0.0/15", "10.132.0.0/14", "10.136.0.0/13", "10.144.0.0/12", "10.160.0.0/11", "10.192.0.0/10"} {
				r.Reservations = append(r.Reservations, Reservation{netip.MustParsePrefix(p), Pods, "other"})
			}
			r.Services.Text = "/27"
		}, []string{"IP_SPACE_EXHAUSTED The network 'projects/p/global/networks/default' has no free /14 left for the Pod range. Ask for a smaller one, or give a range"}},
		"everything at once": {func(r *Request) {
			private(r)
			r.Pods.Text, r.Services.Text, r.Private.Master, r.Private.WebServer = "/31", "8.8.8.0/24", "10.0.0.0/8", "x"
		}, []string{
			"IP_RANGE_TOO_SMALL The Pod range /31 is too small: it must be at least a /30",
			"IP_RANGE_NOT_ALLOWED Services CIDR range 8.8.8.0/24 is not within allowed ranges. Take one from 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 240.0.0.0/4, or make a private environment with enablePrivatelyUsedPublicIps",
			"IP_RANGE_TOO_LARGE The control plane range 10.0.0.0/8 is too large: it must be at most a /23",
			"IP_RANGE_MALFORMED The web server range 'x' is not an IPv4 range. Write a range such as 10.4.0.0/14"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, violations := NewPlan(request(test.change))
			var got []string
			for _, v := range violations {
				got = append(got, v.Reason+" "+v.Description)
				if !strings.HasPrefix(v.Field, "config.") {
					t.Errorf("field %q is not a path from the environment", v.Field)
				}
				for key, value := range v.Metadata {
					if key != "requiredMask" && key != "actualMask" && !strings.Contains(v.Description, value) && key != "region" {
						t.Errorf("metadata %s=%s is not in the description %q", key, value, v.Description)
					}
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResizeKeepsAddresses(t *testing.T) {
	r := request(func(r *Request) { r.Pods.Text = "10.56.0.0/23" })
	three, _ := NewPlan(r)
	r.Reservations = []Reservation{{netip.MustParsePrefix("10.128.0.5/32"), Nodes, "other"}}
	r.NodeCount = 5
	five, violations := Resize(three, r)
	want := []string{"10.128.0.2", "10.128.0.3", "10.128.0.4", "10.128.0.6", "10.128.0.7"}
	if got := fmt.Sprint(five.NodeAddresses); len(violations) > 0 || got != fmt.Sprint(want) {
		t.Errorf("grown to %s, %v", got, violations)
	}
	r.NodeCount = 3
	back, violations := Resize(five, r)
	if diff := cmp.Diff(three, back, comparePlans...); diff != "" || len(violations) > 0 {
		t.Errorf("shrunk again: %v %s", violations, diff)
	}
	r.NodeCount = 9
	_, violations = Resize(three, r)
	if len(violations) != 1 || !strings.Contains(violations[0].Description, "room for 8 nodes, and 9 are asked for") {
		t.Errorf("nine nodes in a /23: %v", violations)
	}
	if last := three.NodePods(1<<(three.NodePodBits-three.Range(Pods).Bits()) - 1); !three.Range(Pods).Contains(last.Addr()) {
		t.Errorf("the last share is %s", last)
	}
	if beyond := three.NodePods(1 << (three.NodePodBits - three.Range(Pods).Bits())); beyond.IsValid() {
		t.Errorf("a share beyond the Pod range: %s", beyond)
	}
	if got := three.NodePods(2).String(); got != "10.56.0.128/26" {
		t.Errorf("the third node's Pods are %s", got)
	}
}

func TestNodePodBits(t *testing.T) {
	for pods, want := range map[int]int{8: 28, 9: 27, 16: 27, 17: 26, 32: 26, 33: 25, 64: 25, 65: 24, 110: 24, 128: 24, 129: 23, 256: 23} {
		if got := NodePodBits(pods); got != want {
			t.Errorf("%d Pods a node: /%d, want /%d", pods, got, want)
		}
	}
}

func prefixGenerator(t *rapid.T, name string, from, to int) netip.Prefix {
	bits := rapid.IntRange(from, to).Draw(t, name+" bits")
	return netip.PrefixFrom(addrOf(uint64(10)<<24|uint64(rapid.IntRange(0, 1<<24-1).Draw(t, name))), bits).Masked()
}

// The oracle looks at every aligned block in turn.
func TestFirstFreeAgreesWithTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var taken []netip.Prefix
		for range rapid.IntRange(0, 12).Draw(t, "count") {
			taken = append(taken, prefixGenerator(t, "taken", 9, 20))
		}
		bits := rapid.IntRange(8, 18).Draw(t, "bits")
		pool := netip.MustParsePrefix("10.0.0.0/8")
		var want netip.Prefix
		for n, end := span(pool); n < end; n += 1 << (32 - bits) {
			p := netip.PrefixFrom(addrOf(n), bits)
			if !slices.ContainsFunc(taken, p.Overlaps) {
				want = p
				break
			}
		}
		got, ok := firstFree([]netip.Prefix{pool}, bits, taken)
		if ok != want.IsValid() || ok && got != want {
			t.Fatalf("got %v %v, want %v", got, ok, want)
		}
	})
}

// Whatever plan is made without a violation keeps the rules.
func TestPlansKeepTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		wish := func(name string) string {
			switch rapid.IntRange(0, 2).Draw(t, name) {
			case 0:
				return ""
			case 1:
				return fmt.Sprintf("/%d", rapid.IntRange(8, 30).Draw(t, name))
			}
			return prefixGenerator(t, name, 8, 29).String()
		}
		r := request(func(r *Request) {
			r.NodeCount, r.MaxPodsPerNode = rapid.IntRange(1, 40).Draw(t, "nodes"), rapid.IntRange(8, 110).Draw(t, "pods")
			r.Pods.Text, r.Services.Text = wish("Pods"), wish("Services")
			if rapid.Bool().Draw(t, "private") {
				r.Private = &PrivateWish{Master: wish("master"), WebServer: wish("web"), Database: wish("database")}
			}
			for range rapid.IntRange(0, 10).Draw(t, "others") {
				r.Reservations = append(r.Reservations, Reservation{prefixGenerator(t, "other", 9, 24), Pods, "other"})
			}
		})
		p, violations := NewPlan(r)
		again, againViolations := NewPlan(r)
		if cmp.Diff(p, again, comparePlans...) != "" || cmp.Diff(violations, againViolations) != "" {
			t.Fatal("the same request gave another plan")
		}
		if len(violations) > 0 {
			return
		}
		for i, a := range p.Ranges {
			if a.Prefix.Masked() != a.Prefix || !within(allowed, a.Prefix) || a.Prefix.Overlaps(dockerBridge) {
				t.Fatalf("%v is not a good range", a)
			}
			for _, b := range p.Ranges[:i] {
				if a.Prefix.Overlaps(b.Prefix) {
					t.Fatalf("%v overlaps %v", a, b)
				}
			}
			for _, other := range r.Reservations {
				if a.Kind != Nodes && a.Prefix.Overlaps(other.Prefix) {
					t.Fatalf("%v overlaps %v", a, other)
				}
			}
		}
		seen := map[netip.Addr]bool{}
		for i, a := range p.NodeAddresses {
			if seen[a] || !p.Range(Nodes).Contains(a) || !p.Range(Pods).Overlaps(p.NodePods(i)) {
				t.Fatalf("node %d has %s and %s", i, a, p.NodePods(i))
			}
			seen[a] = true
		}
		if len(p.NodeAddresses) != r.NodeCount {
			t.Fatalf("%d nodes have addresses, want %d", len(p.NodeAddresses), r.NodeCount)
		}
	})
}
