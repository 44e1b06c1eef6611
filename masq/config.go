package masq

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"
)

// Defaults that a drop-in must share with kubernetes-sigs/ip-masq-agent.
const (
	DefaultChain          = "IP-MASQ-AGENT"
	DefaultCIDRLimit      = 64
	DefaultResyncInterval = time.Minute
)

// Family is an address family that rules are made for.
type Family uint8

// The two families. Their values index nothing and mean nothing else.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family of an address; an IPv4-mapped IPv6 address
// counts as IPv6, because that is how it travels.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// Bits is the length of an address of the family: 32 or 128.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

// Everything is the prefix that holds every address of the family.
func (f Family) Everything() netip.Prefix {
	if f == IPv4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// LinkLocal is the family's link-local range, exempt unless masqLinkLocal
// (masqLinkLocalIPv6) is set.
func (f Family) LinkLocal() netip.Prefix {
	if f == IPv4 {
		return linkLocal4
	}
	return linkLocal6
}

// Origin says where a value came from, so that an answer at 3 a.m. can name
// the line to edit.
type Origin struct {
	// Source is a file's path, or names anything that is not a file:
	// "default", "link-local", "flag --pod-cidrs".
	Source string `json:"source"`
	// Line and Column, both from 1, are the place in a file; 0 elsewhere.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
}

func (o Origin) String() string {
	if o.Line == 0 {
		return o.Source
	}
	return fmt.Sprintf("%s:%d:%d", o.Source, o.Line, o.Column)
}

// Range is a prefix that remembers where it came from. The prefix is always
// masked and never IPv4-mapped.
type Range struct {
	Prefix netip.Prefix `json:"prefix"`
	Origin Origin       `json:"origin"`
}

// ClusterRanges are the cluster's own ranges. They are exempt whatever the
// lists say, because masquerading towards them breaks the cluster: with
// intranode visibility even the traffic between two Pods of one node passes
// the node's postrouting hook.
type ClusterRanges struct {
	// Pod ranges are also the only sources that are masqueraded, when there are
	// any.
	Node, Pod, Service []Range
	// ThisNodesPods are the ranges that the cluster has set aside for this
	// node's Pods. They never limit the sources: a CNI with an address management
	// of its own gives Pods others, and those would leave untranslated.
	ThisNodesPods []Range
}

// All returns node, Pod and Service ranges in this order.
func (c ClusterRanges) All() []Range {
	return slices.Concat(c.Node, c.Pod, c.ThisNodesPods, c.Service)
}

// Config is one complete, validated configuration: the user's files merged
// over the defaults.
type Config struct {
	// NonMasquerade lists destinations whose traffic keeps the Pod's address,
	// in file order. When the user gave no list these are the defaults.
	NonMasquerade []Range
	// NonMasqueradeGiven tells a given (perhaps empty) list from the defaults.
	NonMasqueradeGiven bool
	// Masquerade is the inverse list: destinations that are translated; empty
	// when not given. The longest prefix of both lists wins, and a tie
	// masquerades. Without a given NonMasquerade list, only these
	// destinations are translated.
	Masquerade []Range
	// MasqLinkLocal and MasqLinkLocalIPv6 take the link-local exemption away.
	MasqLinkLocal, MasqLinkLocalIPv6 bool
	// ResyncInterval is how often the rules are checked without being asked.
	ResyncInterval time.Duration
	// CIDRLimit is how many prefixes the NonMasquerade list may hold.
	CIDRLimit int
	// EnforceNonMasquerade makes "do not masquerade" binding for the other
	// agents of the node too, by translating exempt traffic to itself.
	EnforceNonMasquerade bool
	// OutputInterfaces limits masquerading to traffic that leaves by one of
	// these interfaces. Empty means all.
	OutputInterfaces []string
	// SNATAddress holds at most one prefix a family: Pod traffic gets the
	// node's own address inside it, instead of the outgoing interface's.
	SNATAddress []Range
	// Cluster holds the ranges given as config keys, and those that the source
	// knows from the cluster itself.
	Cluster ClusterRanges
}

// Equal reports whether both say the same from the same places.
func (c Config) Equal(d Config) bool {
	// Long lists are compared first and without reflection; what remains is short.
	if !slices.Equal(c.NonMasquerade, d.NonMasquerade) || !slices.Equal(c.Masquerade, d.Masquerade) {
		return false
	}
	c.NonMasquerade, c.Masquerade, d.NonMasquerade, d.Masquerade = nil, nil, nil, nil
	return reflect.DeepEqual(c, d)
}

// PortRange is an inclusive range of source ports, both 1 to 65535.
type PortRange struct {
	First, Last uint16
}

func (p PortRange) String() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

// Size is the number of ports in the range.
func (p PortRange) Size() int { return int(p.Last) - int(p.First) + 1 }

// Options are what the command line decides, the same for every config that
// is loaded in the process's life.
type Options struct {
	// Chain is the iptables chain (--masq-chain).
	Chain string
	// ReservedRanges adds the reserved ranges to the defaults
	// (--nomasq-all-reserved-ranges).
	ReservedRanges bool
	// IPv6 makes rules for IPv6 too (--enable-ipv6).
	IPv6 bool
	// RandomFully asks for fully random source ports (--random-fully).
	RandomFully bool
	// Ports limits source ports (--to-ports).
	Ports []PortRange
	// UpstreamCompat (--compat=upstream) gives upstream's behaviour: whatever
	// the source, and only the user's own list counts.
	UpstreamCompat bool
	// Cluster holds the ranges given as flags.
	Cluster ClusterRanges
}

// NodeAddress is an address of the node and the interface that bears it.
type NodeAddress struct {
	Interface string
	Prefix    netip.Prefix // the address with its on-link length
}

// LocalRoute is a destination that the node reaches without a gateway and
// not through its default route's interface: on a node with a point-to-point
// CNI, a Pod.
type LocalRoute struct {
	Prefix    netip.Prefix
	Interface string
}

// Facts are what the node is at the moment of planning.
type Facts struct {
	Addresses []NodeAddress
	// LocalRoutes only feed findings: they never change a rule.
	LocalRoutes []LocalRoute
}

var (
	linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")

	defaultRanges = mustParsePrefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
	// The further ranges of RFC 5735 and RFC 1112 that GKE never masquerades.
	reservedRanges = mustParsePrefixes(
		"100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
		"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4")
)

// DefaultNonMasquerade returns the list that holds when the user gives none:
// the private ranges, and the reserved ones when asked for.
func DefaultNonMasquerade(reserved bool) []Range {
	var ranges []Range
	for _, p := range defaultRanges {
		ranges = append(ranges, Range{p, Origin{Source: "default"}})
	}
	if reserved {
		for _, p := range reservedRanges {
			ranges = append(ranges, Range{p, Origin{Source: "default (--nomasq-all-reserved-ranges)"}})
		}
	}
	return ranges
}

// DefaultConfig is the configuration of a node without a config file.
func DefaultConfig(reserved bool) Config {
	return Config{
		NonMasquerade:  DefaultNonMasquerade(reserved),
		ResyncInterval: DefaultResyncInterval,
		CIDRLimit:      DefaultCIDRLimit,
	}
}

func mustParsePrefixes(texts ...string) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		prefixes[i] = netip.MustParsePrefix(t)
	}
	return prefixes
}
