// Package testnet is the smallest network in which masquerading can be seen:
// a Pod, its node and a service, each a network namespace, in both families.
// Tests and benchmarks that need no cluster use it; everything larger is a
// lab. Its traffic, a connection that goes on and a stream of new ones, is what a
// change of rules is tested under.
package testnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// The addresses. The service is outside every default non-masquerade range.
var (
	Pod4, Pod6         = netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("fd00:c0a8:1::2")
	Node4, Node6       = netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("fd00:a::11")
	Service4, Service6 = netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:113::10")
)

// The ranges that the agent would be told.
const (
	PodRanges  = "192.168.0.0/16,fd00:c0a8::/32"
	NodeRanges = "10.0.0.0/8,fd00:a::/64"
)

// Net is the network. The service has routes back to the node and to the Pod,
// so a packet that was not translated is answered too, and can be told apart.
type Net struct{ Pod, Node, Service *netns.NS }

// New builds the network; Close takes it away.
func New() (*Net, error) {
	n := &Net{}
	var err error
	for _, ns := range []**netns.NS{&n.Pod, &n.Node, &n.Service} {
		if *ns, err = netns.New(); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	pod := end{"eth0", []string{"192.168.1.2/32", "fd00:c0a8:1::2/128"}, []string{"169.254.1.1/32 dev", "default 169.254.1.1", "fe80::1/128 dev", "::/0 fe80::1"}}
	nodePod := end{"pod", []string{"169.254.1.1/32", "fe80::1/64"}, []string{"192.168.1.2/32 dev", "fd00:c0a8:1::2/128 dev"}}
	nodeOut := end{"eth0", []string{"10.0.0.11/24", "fd00:a::11/64"}, []string{"default 10.0.0.1", "::/0 fd00:a::1"}}
	service := end{"eth0", []string{"10.0.0.1/24", "fd00:a::1/64", "203.0.113.10/32", "2001:db8:113::10/128"}, []string{"192.168.0.0/16 10.0.0.11", "fd00:c0a8::/32 fd00:a::11"}}
	for _, step := range []func() error{
		func() error { return n.Node.Do(forward) },
		func() error { return join(n.Node, n.Pod, nodePod, pod) },
		func() error { return join(n.Node, n.Service, nodeOut, service) },
	} {
		if err := step(); err != nil {
			return nil, errors.Join(fmt.Errorf("building the test network: %w", err), n.Close())
		}
	}
	return n, nil
}

// Close lets go of the namespaces.
func (n *Net) Close() error {
	var errs []error
	for _, ns := range []*netns.NS{n.Pod, n.Node, n.Service} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

// end is one end of a veth pair: its name, addresses, and routes as
// "DESTINATION GATEWAY" or "DESTINATION dev".
type end struct {
	name      string
	addresses []string
	routes    []string
}

func forward() error {
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/"+key, []byte("1"), 0); err != nil {
			return err
		}
	}
	return nil
}

func join(a, b *netns.NS, endA, endB end) error {
	err := a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: endA.name}, PeerName: endB.name, PeerNamespace: netlink.NsFd(b.FD())})
	})
	if err != nil {
		return fmt.Errorf("joining %s and %s: %w", endA.name, endB.name, err)
	}
	// Both ends are up before either gets a route, or IPv6 would wait for the carrier.
	if err := errors.Join(a.Do(endA.address), b.Do(endB.address)); err != nil {
		return err
	}
	return errors.Join(a.Do(endA.route), b.Do(endB.route))
}

func (e end) address() error {
	// Duplicate address detection would keep the addresses tentative for a second.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+e.name+"/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	link, err := netlink.LinkByName(e.name)
	if err != nil {
		return err
	}
	for _, text := range e.addresses {
		ip, ipnet, err := net.ParseCIDR(text)
		if err != nil {
			return err
		}
		ipnet.IP = ip
		address := &netlink.Addr{IPNet: ipnet}
		if ip.To4() == nil {
			address.Flags = unix.IFA_F_NODAD // usable at once, also on a busy machine
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("adding %s to %s: %w", text, e.name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func (e end) route() error {
	link, err := netlink.LinkByName(e.name)
	if err != nil {
		return err
	}
	for _, text := range e.routes {
		var to, via string
		if _, err := fmt.Sscan(text, &to, &via); err != nil {
			return err
		}
		if to == "default" {
			to = "0.0.0.0/0"
		}
		_, dst, err := net.ParseCIDR(to)
		if err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
		if via != "dev" {
			r.Gw, r.Scope = net.ParseIP(via), netlink.SCOPE_UNIVERSE
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("adding the route %q on %s: %w", text, e.name, err)
		}
	}
	return nil
}
