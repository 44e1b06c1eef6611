package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"

	"golang.org/x/sys/unix"
)

// plan is a Spec in the kernel's terms.
type plan struct {
	namespaces []namespace
	links      []link
}

// namespace is what has to hold inside one namespace.
type namespace struct {
	name      string
	forwards  bool
	addresses []address
	routes    []route
	firewall  []netip.Prefix // what may come in; nil is no firewall
	virtuals  []Virtual
}

type address struct {
	link   string
	prefix netip.Prefix
}

type route struct {
	link string
	to   netip.Prefix
	via  netip.Addr // invalid is on-link
}

// link is a pair of virtual Ethernet ends.
type link struct{ a, aName, b, bName string }

// A gateway address stands on the near end of every link, as a point-to-point
// CNI does it: no subnet, so everything is routed. The router's is another
// than the nodes', or a node would take its own gateway for itself.
var routerGateway, nodeGateway, gateway6 = netip.MustParseAddr("169.254.0.1"), netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")

func gatewayOf(upper string, a netip.Addr) netip.Addr {
	switch {
	case a.Is6():
		return gateway6
	case upper == router:
		return routerGateway
	}
	return nodeGateway
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func planOf(s Spec) plan {
	var p plan
	hub := &namespace{name: router, forwards: true}
	// attach hangs a namespace on another by its only uplink.
	attach := func(below *namespace, upper *namespace, addresses []netip.Addr, behind []netip.Prefix) {
		down := endName(below.name)
		p.links = append(p.links, link{upper.name, down, below.name, "eth0"})
		for _, a := range addresses {
			gateway := gatewayOf(upper.name, a)
			upper.addresses = append(upper.addresses, address{down, single(gateway)})
			upper.routes = append(upper.routes, route{link: down, to: single(a)})
			below.addresses = append(below.addresses, address{"eth0", single(a)})
			below.routes = append(below.routes, route{link: "eth0", to: single(gateway)}, route{"eth0", everything(a), gateway})
			for _, r := range behind {
				if r.Addr().Is4() == a.Is4() {
					upper.routes = append(upper.routes, route{down, r, a})
				}
			}
		}
	}
	for _, n := range s.Nodes {
		node := &namespace{name: n.Name, forwards: true, virtuals: s.Services}
		attach(node, hub, n.Addresses, n.PodRanges)
		for _, pod := range n.Pods {
			below := &namespace{name: pod.Name}
			attach(below, node, pod.Addresses, nil)
			p.namespaces = append(p.namespaces, *below)
		}
		p.namespaces = append(p.namespaces, *node)
	}
	for _, o := range s.Outside {
		allow := o.Allow
		if allow == nil {
			allow = []netip.Prefix{}
		}
		below := &namespace{name: o.Name, firewall: allow}
		attach(below, hub, o.Addresses, nil)
		p.namespaces = append(p.namespaces, *below)
	}
	p.namespaces = append(p.namespaces, *hub)
	return p
}

// endName is the name of a link's upper end, for what hangs on it. "to-" keeps
// it apart from names of the kernel's own, such as lo, eth0 or sit0. The kernel
// allows 15 bytes; what is longer ends in a digest, and [Spec.Check] finds two
// that are the same.
func endName(name string) string {
	const prefix, longest = "to-", unix.IFNAMSIZ - 1
	if len(prefix+name) <= longest {
		return prefix + name
	}
	digest := sha256.Sum256([]byte(name))
	return prefix + name[:4] + hex.EncodeToString(digest[:4])
}
