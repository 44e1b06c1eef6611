package address

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Mismatch is the reason where a request asks for something else than an
// existing cluster has.
const Mismatch = "CLUSTER_MISMATCH"

// Existing is what a cluster has that is there already.
type Existing struct {
	Name            string
	NodeRange, Pods netip.Prefix
	// Services are the ranges of Services, at least one.
	Services []netip.Prefix
	// Nodes are the addresses of its nodes, in their order.
	Nodes []netip.Addr
	// NodePodBits is the prefix length of a node's share of the Pod range,
	// MaxPodsPerNode the least that a node takes; 0 is not known.
	NodePodBits, MaxPodsPerNode int
}

// The secondary ranges that an existing cluster has where no declared network
// says otherwise.
const (
	podsName     = "pods"
	servicesName = "services"
)

// Adopt makes the plan of an environment on an existing cluster: nothing is
// chosen, and what the request asks for has to be what the cluster has. A
// NodeCount or MaxPodsPerNode of 0 is not asked for. A network without
// subnetworks is the cluster's own.
func Adopt(r Request, c Existing) (Plan, []Violation) {
	if len(r.Network.Subnetworks) == 0 {
		r.Network.Subnetworks = []Subnetwork{c.subnetwork(r.Network.Name, r.Region)}
	}
	p := &planner{request: r, plan: Plan{
		Network: r.Network.Name, VPCNative: r.VPCNative, MaxPodsPerNode: c.MaxPodsPerNode, NodePodBits: c.NodePodBits,
	}}
	if p.plan.MaxPodsPerNode == 0 {
		p.plan.MaxPodsPerNode = max(r.MaxPodsPerNode, DefaultMaxPodsPerNode)
	}
	if p.plan.NodePodBits == 0 {
		p.plan.NodePodBits = max(24, c.Pods.Bits())
	}
	if !p.chooseSubnetwork() {
		return p.plan, p.violations
	}
	for _, a := range c.Nodes {
		if !p.subnetwork.Primary.Contains(a) {
			p.mismatch(c, fieldSubnetwork, p.subnetwork.Primary.String(), a.String(),
				"The subnetwork '%s' is %s, and %s has a node at %s. Name the subnetwork that the cluster is in", p.plan.Subnetwork, p.subnetwork.Primary, c, a)
			break
		}
	}
	p.plan.Ranges = []Range{{Kind: Nodes, Prefix: c.NodeRange, By: Cluster}}
	p.adopt(c, claim{kind: Pods, field: fieldPods, text: r.Pods.Text, secondary: r.Pods.SecondaryName, nameField: fieldPodsName, largest: 8, smallest: 30}, []netip.Prefix{c.Pods})
	p.adopt(c, claim{kind: Services, field: fieldServices, text: r.Services.Text, secondary: r.Services.SecondaryName, nameField: fieldServicesName, largest: 8, smallest: 30}, c.Services)
	if w := r.Private; w != nil {
		for _, private := range []struct {
			kind        Kind
			field, text string
		}{{Master, fieldMaster, w.Master}, {WebServer, fieldWebServer, w.WebServer}, {Database, fieldDatabase, w.Database}} {
			if private.text != "" {
				p.mismatch(c, private.field, private.text, "",
					"The %s range %s is asked for, and %s is there already, with its own control plane. Leave the range out", private.kind, private.text, c)
			}
		}
	}
	if n := r.NodeCount; n != 0 && n != len(c.Nodes) {
		p.mismatch(c, fieldNodeCount, strconv.Itoa(n), strconv.Itoa(len(c.Nodes)),
			"%d nodes are asked for, and %s has %d. Leave the number out: the environment has the nodes that its cluster has", n, c, len(c.Nodes))
	}
	if n := r.MaxPodsPerNode; c.MaxPodsPerNode != 0 && n > c.MaxPodsPerNode {
		p.mismatch(c, fieldMaxPods, strconv.Itoa(n), strconv.Itoa(c.MaxPodsPerNode),
			"%d Pods per node are asked for, and a node of %s takes %d. Ask for at most that, or leave it out", n, c, c.MaxPodsPerNode)
	}
	p.plan.NodeAddresses = slices.Clone(c.Nodes)
	p.plan.MaxNodes = addressesIn(c.NodeRange) - primaryReserved
	if c.NodePodBits >= c.Pods.Bits() {
		p.plan.MaxNodes = min(p.plan.MaxNodes, 1<<(c.NodePodBits-c.Pods.Bits()))
	}
	p.plan.MaxNodes = max(p.plan.MaxNodes, len(c.Nodes))
	for _, s := range c.Services {
		p.plan.MaxServices += addressesIn(s)
	}
	return p.plan, p.violations
}

func (c Existing) String() string { return fmt.Sprintf("cluster '%s'", c.Name) }

// subnetwork is where the cluster is when nothing is declared.
func (c Existing) subnetwork(network, region string) Subnetwork {
	project := strings.Split(network, "/")[1]
	s := Subnetwork{Name: fmt.Sprintf("projects/%s/regions/%s/subnetworks/default", project, region), Region: region,
		Primary: c.NodeRange, Secondary: []Secondary{{podsName, c.Pods}}}
	if len(c.Services) > 0 {
		s.Secondary = append(s.Secondary, Secondary{servicesName, c.Services[0]})
	}
	return s
}

// adopt compares what is asked for with what the cluster has.
func (p *planner) adopt(c Existing, asked claim, has []netip.Prefix) {
	before := len(p.violations)
	p.read(&asked)
	by, name := Cluster, ""
	var same func(netip.Prefix) bool
	switch {
	case len(p.violations) > before:
		return
	case asked.prefix.IsValid():
		by, name = asked.by, asked.secondary
		same = func(h netip.Prefix) bool { return h == asked.prefix }
	case asked.text != "":
		same = func(h netip.Prefix) bool { return h.Bits() == asked.bits }
	}
	if same != nil && !slices.ContainsFunc(has, same) {
		what := asked.text
		if asked.secondary != "" {
			what = fmt.Sprintf("'%s' (%s)", asked.secondary, asked.prefix)
		}
		p.mismatch(c, asked.field, what, list(has),
			"The %s range %s is asked for, and %s has %s. Ask for that, or leave it out", asked.kind, what, c, list(has))
		return
	}
	for _, h := range has {
		r := Range{Kind: asked.kind, Prefix: h, By: Cluster}
		if same != nil && same(h) {
			r.By, r.Name = by, name
		}
		p.plan.Ranges = append(p.plan.Ranges, r)
	}
}

func (p *planner) mismatch(c Existing, field, asked, has, format string, args ...any) {
	metadata := map[string]string{"cluster": c.Name, "requested": asked}
	if has != "" {
		metadata["actual"] = has
	}
	p.violate(field, Mismatch, metadata, format, args...)
}
