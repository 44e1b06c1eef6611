// Package lab builds a cluster's network on one machine: every node, Pod and
// outside service is a network namespace.
//
// It owns what it builds under one folder, and nothing else on the machine. A
// [Spec] says what is wanted; [Lab.Apply] brings it about, completes what is
// half made, takes away what is not wanted, and changes nothing when called
// again. It needs no program, only netlink, and the right to make namespaces.
//
// It refuses to guess addresses: a Spec is checked whole before anything is
// made.
//
// To debug a lab, enter one of its namespaces: nsenter --net=DIR/netns/NAME.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// Spec describes a lab. Nodes hang on one router, the VPC; routes to their Pod
// ranges lead to them, so that Pod addresses are routable inside the network
// (alias IP). The traffic between two Pods of one node is routed by the node
// (intranode visibility).
type Spec struct {
	Nodes    []Node    `json:"nodes"`
	Outside  []Service `json:"outside"`
	Services []Virtual `json:"services"`
}

// Node is a VM. Addresses and Pod ranges hold at most one of each family.
type Node struct {
	Name      string         `json:"name"`
	Addresses []netip.Addr   `json:"addresses"`
	PodRanges []netip.Prefix `json:"podRanges"`
	Pods      []Pod          `json:"pods"`
}

// Pod is a workload on a node; its addresses are in the node's Pod ranges.
type Pod struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
}

// Service is something outside the cluster, behind a firewall that lets only
// the allowed ranges in and remembers whom it dropped.
type Service struct {
	Name      string         `json:"name"`
	Addresses []netip.Addr   `json:"addresses"`
	Allow     []netip.Prefix `json:"allow"`
}

// Virtual is a Service address of the cluster, which every node translates to
// a Pod, as kube-proxy does.
type Virtual struct {
	Address netip.Addr `json:"address"`
	Pod     netip.Addr `json:"pod"`
}

var nameForm = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)

// router is the name of the namespace that joins everything.
const router = "vpc"

// Check finds what cannot be built, all of it at once.
func (s Spec) Check() error {
	c := checker{names: map[string]bool{router: true}, owners: map[netip.Addr]string{}}
	pods := map[netip.Addr]bool{}
	for _, n := range s.Nodes {
		c.name(n.Name)
		c.addresses(n.Name, n.Addresses)
		c.ranges(n)
		links := map[string]string{}
		for _, p := range n.Pods {
			c.name(p.Name)
			c.addresses(p.Name, p.Addresses)
			c.link(links, p.Name)
			for _, a := range p.Addresses {
				pods[a] = true
				if !slices.ContainsFunc(n.PodRanges, func(r netip.Prefix) bool { return r.Contains(a) }) {
					c.fail("%s: %s is in none of the Pod ranges %v of node %s", p.Name, a, n.PodRanges, n.Name)
				}
			}
		}
	}
	links := map[string]string{}
	for _, n := range s.Nodes {
		c.link(links, n.Name)
	}
	for _, o := range s.Outside {
		c.name(o.Name)
		c.addresses(o.Name, o.Addresses)
		c.link(links, o.Name)
		for _, p := range o.Allow {
			c.prefix(o.Name, "allowed range", p)
		}
	}
	for _, v := range s.Services {
		owner := fmt.Sprintf("Service address %s", v.Address)
		c.address(owner, v.Address)
		if !pods[v.Pod] {
			c.fail("%s: %s is not the address of a Pod", owner, v.Pod)
		} else if v.Pod.Is4() != v.Address.Is4() {
			c.fail("%s: the Pod's address %s is of the other family", owner, v.Pod)
		}
	}
	for _, a := range c.seen {
		for _, r := range c.podRanges {
			if !pods[a] && r.prefix.Contains(a) {
				c.fail("%s: %s is in the Pod range %s of node %s: keep Pod ranges for Pods", c.owners[a], a, r.prefix, r.node)
			}
		}
	}
	return errors.Join(c.errs...)
}

// checker collects what is wrong with a Spec.
type checker struct {
	errs      []error
	names     map[string]bool
	owners    map[netip.Addr]string
	seen      []netip.Addr // the keys of owners, in the Spec's order
	podRanges []podRange
}

type podRange struct {
	node   string
	prefix netip.Prefix
}

func (c *checker) fail(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *checker) name(n string) {
	if !nameForm.MatchString(n) {
		c.fail("the name %q: write lower case letters, digits and dashes, at most 63, a letter first and no dash last", n)
	}
	if n == router {
		c.fail("the name %q is the router's: choose another one", n)
	} else if c.names[n] {
		c.fail("the name %q is used twice", n)
	}
	c.names[n] = true
}

// link finds names that the kernel's 15 bytes for a link's name make the same.
func (c *checker) link(taken map[string]string, name string) {
	if other, is := taken[endName(name)]; is && other != name {
		c.fail("the names %q and %q give the same link name %q: change one of them", other, name, endName(name))
	}
	taken[endName(name)] = name
}

func (c *checker) addresses(owner string, list []netip.Addr) {
	families := map[bool]bool{}
	for _, a := range list {
		c.address(owner, a)
		if a.IsValid() && families[a.Is4()] {
			c.fail("%s: %s is a second address of its family", owner, a)
		}
		families[a.Is4()] = true
	}
	if len(list) == 0 {
		c.fail("%s has no address", owner)
	}
}

func (c *checker) address(owner string, a netip.Addr) {
	switch other, used := c.owners[a]; {
	case !a.IsValid():
		c.fail("%s: an address is empty", owner)
		return
	case a.Is4In6() || a.Zone() != "":
		c.fail("%s: %s is not a plain address: write it without zone, and IPv4 as 192.0.2.1", owner, a)
	case !a.IsGlobalUnicast():
		c.fail("%s: %s is not a unicast address that can be routed", owner, a)
	case used:
		c.fail("%s: %s is the address of %s already", owner, a, other)
	}
	c.owners[a] = owner
	c.seen = append(c.seen, a)
}

// prefix reports whether it is a proper one.
func (c *checker) prefix(owner, what string, p netip.Prefix) bool {
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		c.fail("%s: the %s %s is not a range of addresses, such as 10.0.0.0/8", owner, what, p)
	case p != p.Masked():
		c.fail("%s: the %s %s has bits behind its length: write %s", owner, what, p, p.Masked())
	default:
		return true
	}
	return false
}

// ranges checks a node's Pod ranges against its addresses and against those of
// the nodes before it.
func (c *checker) ranges(n Node) {
	families := map[bool]bool{}
	for _, p := range n.PodRanges {
		if !c.prefix(n.Name, "Pod range", p) {
			continue
		}
		if families[p.Addr().Is4()] {
			c.fail("%s: %s is a second Pod range of its family", n.Name, p)
		}
		families[p.Addr().Is4()] = true
		if !slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }) {
			c.fail("%s: the Pod range %s needs an address of its family on the node, to be routed to", n.Name, p)
		}
		for _, other := range c.podRanges {
			if other.node != n.Name && other.prefix.Overlaps(p) {
				c.fail("%s: the Pod range %s overlaps with %s of node %s", n.Name, p, other.prefix, other.node)
			}
		}
		c.podRanges = append(c.podRanges, podRange{n.Name, p})
	}
}
