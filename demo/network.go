package demo

import (
	"fmt"
	"net/netip"

	"sordino/lab"
)

// The example's ranges: VMs, Pods and Services of the documented network, and
// their counterparts in IPv6.
const (
	nodeRanges    = "10.0.0.0/8,fd00:a::/64"
	podRanges     = "192.168.0.0/16,fd00:c0a8::/32"
	serviceRanges = "172.20.0.0/16,fd00:ac14::/112"
)

const picture = `
             VMs 10.0.0.0/8 (the only range that the firewall lets in)
  node-1 10.0.0.11          node-2 10.0.0.12          node-3 10.0.0.13
  ├ pod-1a 192.168.1.2      ├ pod-2a 192.168.2.2      ├ pod-3a 192.168.3.2
  └ pod-1b 192.168.1.3      └ pod-2b 192.168.2.3      └ pod-3b 192.168.3.3
        │                         │                         │
        └────────────── routes for 192.168.N.0/24 ──────────┘
                                  │
                      firewall: only 10.0.0.0/8
                                  │
                       service 203.0.113.10
`

// outside is the service behind the firewall.
const outside = "service"

// Network is the documented example as a lab.
func Network() lab.Spec {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	var s lab.Spec
	for n := 1; n <= 3; n++ {
		node := lab.Node{
			Name:      fmt.Sprintf("node-%d", n),
			Addresses: []netip.Addr{a(fmt.Sprintf("10.0.0.1%d", n)), a(fmt.Sprintf("fd00:a::1%d", n))},
			PodRanges: []netip.Prefix{p(fmt.Sprintf("192.168.%d.0/24", n)), p(fmt.Sprintf("fd00:c0a8:%d::/48", n))},
		}
		for i, letter := range []string{"a", "b"} {
			node.Pods = append(node.Pods, lab.Pod{
				Name:      fmt.Sprintf("pod-%d%s", n, letter),
				Addresses: []netip.Addr{a(fmt.Sprintf("192.168.%d.%d", n, i+2)), a(fmt.Sprintf("fd00:c0a8:%d::%d", n, i+2))},
			})
		}
		s.Nodes = append(s.Nodes, node)
	}
	s.Outside = []lab.Service{{
		Name:      outside,
		Addresses: []netip.Addr{a("203.0.113.10"), a("2001:db8:113::10")},
		Allow:     []netip.Prefix{p("10.0.0.0/8"), p("fd00:a::/64")},
	}}
	s.Services = []lab.Virtual{
		{Address: a("172.20.0.10"), Pod: a("192.168.2.3")},
		{Address: a("fd00:ac14::10"), Pod: a("fd00:c0a8:2::3")},
	}
	return s
}
