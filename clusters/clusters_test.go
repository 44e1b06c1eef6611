package clusters

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const two = `
clusters:
- name: cluster-1
  location: us-central1
  kubeconfig: /etc/sordino/kubeconfig
  context: one
  nodeRange: 10.89.0.0/24
  podRange: 10.88.0.0/16
  serviceRange: 10.96.0.0/16
  probe: 203.0.113.10:7000
- name: cluster-2
  location: europe-west1
  kubeconfig: in-cluster
  nodeRange: 10.89.0.0/24
  podRange: 10.88.0.0/16
`

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clusters.yaml")
	if err := os.WriteFile(path, []byte(two), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	one := &Cluster{Name: "cluster-1", Location: "us-central1", Kubeconfig: "/etc/sordino/kubeconfig", Context: "one",
		NodeRange: netip.MustParsePrefix("10.89.0.0/24"), PodRange: netip.MustParsePrefix("10.88.0.0/16"),
		ServiceRange: netip.MustParsePrefix("10.96.0.0/16"), Probe: netip.MustParseAddrPort("203.0.113.10:7000")}
	inside := &Cluster{Name: "cluster-2", Location: "europe-west1", Kubeconfig: InCluster, NodeRange: one.NodeRange, PodRange: one.PodRange}
	same := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}
	if diff := cmp.Diff([]*Cluster{one, inside}, c.All(), same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := c.Locations(); !slices.Equal(got, []string{"europe-west1", "us-central1"}) {
		t.Errorf("locations: %v", got)
	}
	if got := c.At("us-central1"); len(got) != 1 || got[0] != c.ByName("cluster-1") {
		t.Errorf("at us-central1: %v", got)
	}
	if got := c.ByName("cluster-3"); got != nil {
		t.Errorf("cluster-3: %v", got)
	}
	relative, err := Parse(path, []byte(strings.Replace(two, "/etc/sordino/kubeconfig", "kube/config", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := relative.ByName("cluster-1").Kubeconfig, filepath.Join(filepath.Dir(path), "kube/config"); got != want {
		t.Errorf("a relative kubeconfig is %s, want %s", got, want)
	}
}

func TestMistakes(t *testing.T) {
	for _, test := range []struct{ old, new, want string }{
		{"context: one", "contxt: one", "c.yaml:6: the key \"contxt\" is unknown here; write one of the documented keys, or leave it out\n" +
			"c.yaml:5: context is missing in the entry near this line; write context: and one that \"kubectl config get-contexts\" lists"},
		{"name: cluster-1", "name: Cluster_1", `c.yaml:3: name "Cluster_1" is malformed; write lower case letters, digits and dashes, a letter first`},
		{"name: cluster-2", "name: cluster-1", "c.yaml:11: cluster cluster-1 is declared twice, first in line 3; give it another name"},
		{"  location: us-central1\n", "", "c.yaml:3: location is missing in the entry near this line; write location: REGION, for example us-central1"},
		{"/etc/sordino/kubeconfig", "~/.kube/config", `c.yaml:5: kubeconfig "~/.kube/config" begins with a tilde, which only a shell replaces; write the whole path`},
		{"kubeconfig: in-cluster", "kubeconfig: /etc/sordino/kubeconfig\n  context: one", "c.yaml:11: cluster cluster-2 has the kubeconfig and context of the one in line 3; name another context: an environment has a cluster of its own"},
		{"kubeconfig: in-cluster", "kubeconfig: in-cluster\n  context: one", "c.yaml:14: context is given with kubeconfig: in-cluster, which has none; leave one of them out"},
		{"nodeRange: 10.89.0.0/24", "nodeRange: 10.89.0.1/24", "c.yaml:7: nodeRange 10.89.0.1/24 has bits beyond its length; write 10.89.0.0/24"},
		{"serviceRange: 10.96.0.0/16", "serviceRange: 10.88.16.0/20", "c.yaml:9: serviceRange 10.88.16.0/20 overlaps podRange 10.88.0.0/16; write the ranges that the cluster has: they cannot overlap"},
		{"203.0.113.10:7000", "203.0.113.10", `c.yaml:10: probe "203.0.113.10" is not an IPv4 address with a port; write ADDRESS:PORT, for example 203.0.113.10:7000`},
		{"203.0.113.10:7000", "10.89.0.100:7000", "c.yaml:10: probe 10.89.0.100:7000 is in nodeRange 10.89.0.0/24, to which Pods always keep their own address; use a target outside of the cluster's ranges: a packet to this one proves nothing"},
		{"203.0.113.10:7000", "10.88.0.100:7000", "c.yaml:10: probe 10.88.0.100:7000 is in podRange 10.88.0.0/16, to which Pods always keep their own address; use a target outside of the cluster's ranges: a packet to this one proves nothing"},
		{"203.0.113.10:7000", "10.96.0.100:7000", "c.yaml:10: probe 10.96.0.100:7000 is in serviceRange 10.96.0.0/16, to which Pods always keep their own address; use a target outside of the cluster's ranges: a packet to this one proves nothing"},
		{"clusters:", "clusters: 3\nignored:", "c.yaml:2: cannot unmarshal !!int `3` into what belongs here; write what the documented format has there\n" +
			"c.yaml:3: the key \"ignored\" is unknown here; write one of the documented keys, or leave it out\n" +
			"c.yaml:1: there is no cluster at all; declare one under clusters:"},
	} {
		_, err := Parse("c.yaml", []byte(strings.Replace(two, test.old, test.new, 1)))
		if err == nil || err.Error() != test.want {
			t.Errorf("%s for %s:\ngot  %v\nwant %s", test.new, test.old, err, test.want)
		}
	}
	for text, want := range map[string]string{
		"clusters:\n\t- name: a": "c.yaml:2: this is not valid YAML: found character that cannot start any token; mend the syntax there or in the line above: indent with spaces, YAML does not allow tabs",
		"a\nclusters:\n  ]":      "c.yaml:2: this is not valid YAML: ",
		"clusters: [":            "c.yaml:1: this is not valid YAML: did not find expected node content; mend the syntax there or in the line above",
	} {
		if _, err := Parse("c.yaml", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("no YAML: %v, want %s", err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	c := &Cluster{Name: "cluster-1", NodeRange: netip.MustParsePrefix("10.89.0.0/24"), PodRange: netip.MustParsePrefix("10.88.0.0/16")}
	node := func(name, address string, cidrs ...string) Node {
		n := Node{Name: name, Ready: true}
		if address != "" {
			n.Addresses = []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr(address)}
		}
		for _, text := range cidrs {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(text))
		}
		return n
	}
	good := Facts{Nodes: []Node{node("n1", "10.89.0.1", "10.88.1.0/24", "fd00:1::/64"), node("n2", "10.89.0.2")},
		ServiceRanges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:2::/108")}}
	if found := c.Check(good); found != nil {
		t.Errorf("got %v", found)
	}
	nodeRange, podRange := good.Suggest()
	if nodeRange.String() != "10.89.0.0/30" || podRange.String() != "10.88.1.0/24" {
		t.Errorf("suggested %s and %s", nodeRange, podRange)
	}
	for name, test := range map[string]struct {
		change func(*Facts, *Cluster)
		want   string
	}{
		"no nodes": {func(f *Facts, _ *Cluster) { f.Nodes = nil }, "the cluster has no Node; add a node"},
		"outside": {func(f *Facts, _ *Cluster) { f.Nodes = append(f.Nodes, node("n3", "10.90.0.1"), node("n4", "")) },
			"Nodes have no internal IPv4 address: n4; give the kubelet an IPv4 address with --node-ip\n" +
				"Nodes' addresses are not in nodeRange 10.89.0.0/24: n3 has 10.90.0.1; write a range that holds 10.88.0.0/14"},
		"strange": {func(f *Facts, _ *Cluster) { f.Nodes = append(f.Nodes, node("n3", "10.89.0.3", "10.87.0.0/24")) },
			"Nodes' Pod CIDRs are not in podRange 10.88.0.0/16: n3 has 10.87.0.0/24; write a range that holds 10.80.0.0/12"},
		"many": {func(f *Facts, _ *Cluster) {
			f.Nodes = []Node{node("a", "10.1.0.1"), node("b", "10.1.0.2"), node("c", "10.1.0.3"), node("d", "10.1.0.4")}
		}, "Nodes' addresses are not in nodeRange 10.89.0.0/24: a has 10.1.0.1, b has 10.1.0.2, c has 10.1.0.3, and 1 more; write a range that holds 10.1.0.0/29"},
		"no service range": {func(f *Facts, _ *Cluster) { f.ServiceRanges = f.ServiceRanges[1:] },
			"the cluster has no ServiceCIDR objects with an IPv4 range, and serviceRange is not declared; write serviceRange: with what the API server's --service-cluster-ip-range is"},
		"another service range": {func(_ *Facts, c *Cluster) { c.ServiceRange = netip.MustParsePrefix("10.97.0.0/16") },
			"the cluster's Service range 10.96.0.0/16 is not in serviceRange 10.97.0.0/16; leave it out: the cluster itself says it"},
		"overlap": {func(f *Facts, _ *Cluster) { f.ServiceRanges[0] = netip.MustParsePrefix("10.88.0.0/20") },
			"the cluster's Service range 10.88.0.0/20 overlaps podRange 10.88.0.0/16; write what Nodes' Pod CIDRs are really from"},
		"somebody's namespace": {func(f *Facts, _ *Cluster) { f.Claimed = true },
			"the namespace sordino is there without the label sordino.dev/environment: it is somebody else's; move what is in it elsewhere and delete the namespace: an environment makes and deletes it"},
		"claimed": {func(f *Facts, _ *Cluster) { f.Claimed, f.ClaimedBy = true, "an-uuid" }, ""},
	} {
		f, c := good, *c
		f.Nodes, f.ServiceRanges = slices.Clone(good.Nodes), slices.Clone(good.ServiceRanges)
		test.change(&f, &c)
		var got []string
		for _, problem := range c.Check(f) {
			got = append(got, problem.Error())
		}
		if strings.Join(got, "\n") != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, strings.Join(got, "\n"), test.want)
		}
	}
}

func TestKubeconfigs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(`
apiVersion: v1
kind: Config
current-context: other
clusters:
- {name: c, cluster: {server: "https://192.0.2.1:6443"}}
- {name: d, cluster: {server: "https://192.0.2.2:6443"}}
users:
- {name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: print-token, interactiveMode: Never}}}
contexts:
- {name: one, context: {cluster: c, user: u}}
- {name: other, context: {cluster: d, user: u}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := (&Cluster{Name: "cluster-1", Kubeconfig: path, Context: "one"}).RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://192.0.2.1:6443" || config.ExecProvider == nil || config.ExecProvider.Command != "print-token" || !config.ExecProvider.StdinUnavailable || config.Timeout != 0 {
		t.Errorf("got %+v", config)
	}
	for _, test := range []struct {
		cluster Cluster
		want    string
	}{
		{Cluster{Kubeconfig: path, Context: "two"}, `reading the context "two" of ` + path},
		{Cluster{Kubeconfig: path + ".missing", Context: "one"}, "no such file"},
		{Cluster{Kubeconfig: InCluster}, "run the server there with a service account, or give a kubeconfig"},
	} {
		if _, err := test.cluster.RESTConfig(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.cluster, err, test.want)
		}
	}
	t.Setenv("KUBECONFIG", path)
	if config, err := (&Cluster{Context: "one"}).RESTConfig(); err != nil || config.Host != "https://192.0.2.1:6443" {
		t.Errorf("as kubectl finds it: %v, %v", config, err)
	}
}

// What a person copies leads to the cluster that is meant.
func TestKubectl(t *testing.T) {
	for want, c := range map[string]Cluster{
		"kubectl":                 {Kubeconfig: InCluster},
		"kubectl --context one":   {Context: "one"},
		"kubectl --kubeconfig /k": {Kubeconfig: "/k"},
		"kubectl --kubeconfig /k/config --context one": {Kubeconfig: "/k/config", Context: "one"},
	} {
		if got := c.Kubectl(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
