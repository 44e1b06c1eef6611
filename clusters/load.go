package clusters

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"sordino/internal/yamlfile"
)

// Load reads the file that declares clusters:
//
//	clusters:
//	- name: cluster-1
//	  location: us-central1
//	  kubeconfig: /etc/sordino/kubeconfig   # left out: as kubectl finds it; or in-cluster
//	  context: cluster-1                    # always named: a current context changes
//	  nodeRange: 10.89.0.0/24               # what Nodes' addresses are from
//	  podRange: 10.88.0.0/16                # what Nodes' Pod CIDRs are from
//	  serviceRange: 10.96.0.0/16            # only for clusters without ServiceCIDR objects
//	  probe: 203.0.113.10:7000              # answers every caller with its address; may be left out
//
// A relative kubeconfig is beside the file. Ranges are IPv4 in CIDR notation,
// and no two of a cluster may overlap; the probe is in none of them, since they
// are always exempt and it would prove nothing. Outside of what an environment's
// configuration exempts (by default the private ranges) it proves the masquerade,
// inside only that Pods keep their address. The error joins every *yamlfile.Problem.
func Load(path string) (*Clusters, error) {
	text, err := yamlfile.Load(path, "clusters file")
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

type clusterDeclaration struct {
	Name         yamlfile.Word `yaml:"name"`
	Location     yamlfile.Word `yaml:"location"`
	Kubeconfig   yamlfile.Word `yaml:"kubeconfig"`
	Context      yamlfile.Word `yaml:"context"`
	NodeRange    yamlfile.Word `yaml:"nodeRange"`
	PodRange     yamlfile.Word `yaml:"podRange"`
	ServiceRange yamlfile.Word `yaml:"serviceRange"`
	Probe        yamlfile.Word `yaml:"probe"`
}

// Parse reads the text of a file; path is its name in complaints.
func Parse(path string, text []byte) (*Clusters, error) {
	var file struct {
		Clusters []clusterDeclaration `yaml:"clusters"`
	}
	r, err := yamlfile.Decode(path, text, &file)
	if err != nil {
		return nil, err
	}
	if len(file.Clusters) == 0 {
		r.Problem(1, "there is no cluster at all", "declare one under clusters:")
	}
	out := &Clusters{}
	names, contexts := map[string]int{}, map[string]int{}
	for _, d := range file.Clusters {
		c := read(r, d, filepath.Dir(path))
		if line, twice := names[c.Name]; twice && c.Name != "" {
			r.Problem(d.Name.Line, fmt.Sprintf("cluster %s is declared twice, first in line %d", c.Name, line), "give it another name")
		}
		names[c.Name] = d.Name.Line
		same := c.Kubeconfig + "\x00" + c.Context
		if line, twice := contexts[same]; twice && (c.Context != "" || c.Kubeconfig == InCluster) {
			r.Problem(d.Name.Line, fmt.Sprintf("cluster %s has the kubeconfig and context of the one in line %d", c.Name, line), "name another context: an environment has a cluster of its own")
		}
		contexts[same] = d.Name.Line
		out.list = append(out.list, c)
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

func read(r *yamlfile.Reader, d clusterDeclaration, dir string) *Cluster {
	r.Required(d.Name, "name", "CLUSTER", yamlfile.NameForm)
	r.Required(d.Location, "location", "REGION, for example us-central1", yamlfile.NameForm)
	c := &Cluster{Name: d.Name.Text, Location: d.Location.Text, Kubeconfig: d.Kubeconfig.Text, Context: d.Context.Text}
	r.At(d.Kubeconfig)
	switch {
	case strings.HasPrefix(c.Kubeconfig, "~"):
		r.Problem(r.Line, fmt.Sprintf("kubeconfig %q begins with a tilde, which only a shell replaces", c.Kubeconfig), "write the whole path")
	case c.Kubeconfig != "" && c.Kubeconfig != InCluster && !filepath.IsAbs(c.Kubeconfig):
		c.Kubeconfig = filepath.Join(dir, c.Kubeconfig)
	}
	r.At(d.Context)
	switch {
	case c.Kubeconfig == InCluster && c.Context != "":
		r.Problem(r.Line, "context is given with kubeconfig: in-cluster, which has none", "leave one of them out")
	case c.Kubeconfig != InCluster && c.Context == "":
		r.Problem(r.Line, "context is missing in the entry near this line", `write context: and one that "kubectl config get-contexts" lists`)
	}
	var ok bool
	var taken []struct {
		key    string
		prefix netip.Prefix
	}
	prefix := func(w yamlfile.Word, key string) netip.Prefix {
		p, good := r.Prefix(w, key, 4, 32)
		if !good {
			return p
		}
		for _, t := range taken {
			if t.prefix.Overlaps(p) {
				r.Problem(w.Line, fmt.Sprintf("%s %s overlaps %s %s", key, p, t.key, t.prefix), "write the ranges that the cluster has: they cannot overlap")
			}
		}
		taken = append(taken, struct {
			key    string
			prefix netip.Prefix
		}{key, p})
		return p
	}
	c.NodeRange, c.PodRange = prefix(d.NodeRange, "nodeRange"), prefix(d.PodRange, "podRange")
	if d.ServiceRange.Text != "" {
		c.ServiceRange = prefix(d.ServiceRange, "serviceRange")
	}
	if d.Probe.Text == "" {
		return c
	}
	r.At(d.Probe)
	if c.Probe, ok = probe(d.Probe.Text); !ok {
		r.Problem(r.Line, fmt.Sprintf("probe %q is not an IPv4 address with a port", d.Probe.Text), "write ADDRESS:PORT, for example 203.0.113.10:7000")
		return c
	}
	for _, t := range taken {
		if t.prefix.Contains(c.Probe.Addr()) {
			r.Problem(r.Line, fmt.Sprintf("probe %s is in %s %s, to which Pods always keep their own address", c.Probe, t.key, t.prefix), "use a target outside of the cluster's ranges: a packet to this one proves nothing")
		}
	}
	return c
}

func probe(text string) (netip.AddrPort, bool) {
	p, err := netip.ParseAddrPort(text)
	return p, err == nil && p.Addr().Is4() && p.Port() != 0
}
