package address

import (
	"fmt"
	"net/netip"
)

// Kind is what a range is used for.
type Kind string

// The kinds of ranges of an environment.
const (
	Nodes     Kind = "node"          // the subnetwork's primary range; shared by all on it
	Pods      Kind = "Pod"           // a secondary range
	Services  Kind = "Service"       // a secondary range
	Master    Kind = "control plane" // private environments only
	WebServer Kind = "web server"    // private environments only
	Database  Kind = "database"      // private environments only
	Peer      Kind = "peer"          // a declared range that the network reaches elsewhere
)

// Chooser says who chose a range.
type Chooser string

// Who chooses.
const (
	Given   Chooser = "given"   // the user wrote it
	Named   Chooser = "named"   // the user named a secondary range or subnetwork
	Chosen  Chooser = "chosen"  // the server took the first free block
	Cluster Chooser = "cluster" // the existing cluster has it
)

// Range is one range of a plan.
type Range struct {
	Kind   Kind         `json:"kind"`
	Prefix netip.Prefix `json:"prefix"`
	By     Chooser      `json:"by"`
	// Name is the secondary range's name when By is Named.
	Name string `json:"name,omitempty"`
}

// Plan is every range and address of one environment. That of an environment on
// an existing cluster is what the cluster had when it was taken: nodes may come
// and go after.
type Plan struct {
	// Network and Subnetwork are full resource names:
	// projects/P/global/networks/N, projects/P/regions/R/subnetworks/S.
	Network    string `json:"network"`
	Subnetwork string `json:"subnetwork"`
	// VPCNative is false for a routes-based cluster (no IP alias).
	VPCNative bool    `json:"vpcNative"`
	Ranges    []Range `json:"ranges"`
	// NodeAddresses are the nodes' addresses, one a node, in the node range.
	NodeAddresses []netip.Addr `json:"nodeAddresses"`
	// NodePodBits is the Pod range's share of one node, as a prefix length.
	NodePodBits int `json:"nodePodBits"`
	// MaxPodsPerNode, MaxNodes and MaxServices are what the ranges have room for.
	MaxPodsPerNode int `json:"maxPodsPerNode"`
	MaxNodes       int `json:"maxNodes"`
	MaxServices    int `json:"maxServices"`
	// Warnings are ranges that work and are unwise.
	Warnings []string `json:"warnings,omitempty"`
}

// Range returns the range of a kind; invalid when there is none.
func (p Plan) Range(k Kind) netip.Prefix {
	for _, r := range p.Ranges {
		if r.Kind == k {
			return r.Prefix
		}
	}
	return netip.Prefix{}
}

// InCluster are the ranges that traffic inside the cluster is between: node, Pod,
// Service, in this order.
func (p Plan) InCluster() []Range {
	var all []Range
	for _, k := range []Kind{Nodes, Pods, Services} {
		for _, r := range p.Ranges {
			if r.Kind == k {
				all = append(all, r)
			}
		}
	}
	return all
}

// Reservations are what the plan uses, for those who come after.
func (p Plan) Reservations(owner string) []Reservation {
	var out []Reservation
	for _, r := range p.Ranges {
		if r.Kind != Nodes {
			out = append(out, Reservation{r.Prefix, r.Kind, owner})
		}
	}
	for _, a := range p.NodeAddresses {
		out = append(out, Reservation{netip.PrefixFrom(a, 32), Nodes, owner})
	}
	return out
}

// NodePods is one node's share of the Pod range; nodes count from 0. It is
// invalid when the range has none for so many nodes.
func (p Plan) NodePods(node int) netip.Prefix {
	pods := p.Range(Pods)
	if !pods.IsValid() || p.NodePodBits < pods.Bits() || p.NodePodBits > 32 {
		return netip.Prefix{}
	}
	first, end := span(pods)
	block := first + uint64(node)<<(32-p.NodePodBits)
	if block >= end {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(addrOf(block), p.NodePodBits)
}

// Explain says in lines what the plan uses and has room for.
func (p Plan) Explain() []string {
	var out []string
	for _, r := range p.Ranges {
		by := string(r.By)
		if r.Name != "" {
			by += " " + r.Name
		}
		out = append(out, fmt.Sprintf("%s range %s (%s)", r.Kind, r.Prefix, by))
	}
	out = append(out, fmt.Sprintf("room for %d nodes with %d Pods each (a /%d a node) and %d Services", p.MaxNodes, p.MaxPodsPerNode, p.NodePodBits, p.MaxServices))
	return append(out, p.Warnings...)
}

// Reservation is something that another environment, or the network itself,
// uses already. A node's address is one of kind Nodes and 32 bits.
type Reservation struct {
	Prefix netip.Prefix
	Kind   Kind
	// Owner is the environment's name, or what the declaration calls it.
	Owner string
}
