package address

import "net/netip"

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
	Given  Chooser = "given"  // the user wrote it
	Named  Chooser = "named"  // the user named a secondary range or subnetwork
	Chosen Chooser = "chosen" // the server took the first free block
)

// Range is one range of a plan.
type Range struct {
	Kind   Kind         `json:"kind"`
	Prefix netip.Prefix `json:"prefix"`
	By     Chooser      `json:"by"`
	// Name is the secondary range's name when By is Named.
	Name string `json:"name,omitempty"`
}

// Plan is every range and address of one environment.
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

// Reservation is something that another environment, or the network itself,
// uses already. A node's address is one of kind Nodes and 32 bits.
type Reservation struct {
	Prefix netip.Prefix
	Kind   Kind
	// Owner is the environment's name, or what the declaration calls it.
	Owner string
}
