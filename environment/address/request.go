package address

import "net/netip"

// Request is what an environment asks of a network.
type Request struct {
	// Owner is the environment's name; its own reservations are no obstacle.
	Owner   string
	Network Network
	Region  string
	// Subnetwork is a full resource name; empty is the region's only one, or
	// the one called "default".
	Subnetwork string
	// VPCNative asks for Pods and Services in alias IP ranges. Without it the
	// cluster is routes-based: every node's Pods are a /24.
	VPCNative      bool
	NodeCount      int
	MaxPodsPerNode int
	Pods, Services Wish
	// Private asks for the ranges of a private environment.
	Private *PrivateWish
	// PUPI allows privately used public addresses for Pods and Services. It
	// takes a private environment.
	PUPI bool
	// Reservations are what other environments on the network use.
	Reservations []Reservation
}

// Wish is what the user said about a secondary range: nothing, a size
// ("/14"), a range ("10.4.0.0/14"), or a secondary range's name.
type Wish struct {
	Text, SecondaryName string
}

// PrivateWish holds the ranges of a private environment; empty is the region's
// default.
type PrivateWish struct {
	Master, WebServer, Database string
}

// Violation is one thing that cannot be, its field as a path from the
// environment's root.
type Violation struct {
	Field       string            `json:"field"`
	Reason      string            `json:"reason"`
	Description string            `json:"description"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// The reasons of violations.
const (
	Malformed         = "IP_RANGE_MALFORMED"
	NotAligned        = "IP_RANGE_NOT_ALIGNED"
	NotAllowed        = "IP_RANGE_NOT_ALLOWED"
	Reserved          = "IP_RANGE_RESERVED"
	Overlap           = "IP_RANGE_OVERLAP"
	TooSmall          = "IP_RANGE_TOO_SMALL"
	TooLarge          = "IP_RANGE_TOO_LARGE"
	SecondaryNotFound = "SECONDARY_RANGE_NOT_FOUND"
	SubnetNotFound    = "SUBNETWORK_NOT_FOUND"
	// Exhausted is not the request's fault: there is no room.
	Exhausted = "IP_SPACE_EXHAUSTED"
)

// The fields that ranges are given in.
const (
	fieldSubnetwork    = "config.node_config.subnetwork"
	fieldNodeCount     = "config.node_count"
	fieldMaxPods       = "config.node_config.max_pods_per_node"
	fieldPods          = "config.node_config.ip_allocation_policy.cluster_ipv4_cidr_block"
	fieldPodsName      = "config.node_config.ip_allocation_policy.cluster_secondary_range_name"
	fieldServices      = "config.node_config.ip_allocation_policy.services_ipv4_cidr_block"
	fieldServicesName  = "config.node_config.ip_allocation_policy.services_secondary_range_name"
	fieldMaster        = "config.private_environment_config.private_cluster_config.master_ipv4_cidr_block"
	fieldWebServer     = "config.private_environment_config.web_server_ipv4_cidr_block"
	fieldDatabase      = "config.private_environment_config.cloud_sql_ipv4_cidr_block"
	defaultPodBits     = 14
	defaultServiceBits = 20
)

// DefaultMaxPodsPerNode is what a node has room for when nobody says.
const DefaultMaxPodsPerNode = 32

// NodePodBits is the prefix length of one node's share of the Pod range:
// twice as many addresses as Pods, rounded up to a power of two, so that an
// address is not used again at once.
func NodePodBits(maxPods int) int {
	bits := 32
	for 1<<(32-bits) < 2*maxPods {
		bits--
	}
	return bits
}

// primaryReserved is how many addresses of a primary range are not for nodes:
// network, gateway, the second to last and broadcast.
const primaryReserved = 4

func addressesIn(p netip.Prefix) int { return 1 << (32 - p.Bits()) }
