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

// Check finds what cannot be built.
func (s Spec) Check() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	names, addresses := map[string]bool{router: true}, map[netip.Addr]string{}
	name := func(n string) {
		if !nameForm.MatchString(n) {
			fail("the name %q: write lower case letters, digits and dashes, at most 63, a letter first", n)
		}
		if names[n] {
			fail("the name %q is used twice (%q is the router's)", n, router)
		}
		names[n] = true
	}
	address := func(owner string, list []netip.Addr) {
		families := map[bool]bool{}
		for _, a := range list {
			if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
				fail("%s: %q is not a plain address", owner, a)
			}
			if other, used := addresses[a]; used {
				fail("%s: %s is the address of %s already", owner, a, other)
			}
			if families[a.Is4()] {
				fail("%s: %s is a second address of its family", owner, a)
			}
			addresses[a], families[a.Is4()] = owner, true
		}
		if len(list) == 0 {
			fail("%s has no address", owner)
		}
	}
	for _, n := range s.Nodes {
		name(n.Name)
		address(n.Name, n.Addresses)
		for _, p := range n.Pods {
			name(p.Name)
			address(p.Name, p.Addresses)
			for _, a := range p.Addresses {
				inside := false
				for _, r := range n.PodRanges {
					inside = inside || r.Contains(a)
				}
				if !inside {
					fail("%s: %s is in none of node %s's Pod ranges %v", p.Name, a, n.Name, n.PodRanges)
				}
			}
		}
	}
	for _, o := range s.Outside {
		name(o.Name)
		address(o.Name, o.Addresses)
	}
	return errors.Join(errs...)
}
