// Package node tells the facts of this node that a plan depends on: its
// addresses and the destinations that it reaches by itself.
//
// It only reads, over route netlink, in the namespace of the thread that
// calls [Open].
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/masq"
)

// Node reads one network namespace.
type Node struct {
	handle *netlink.Handle
	ns     *netns.NS
}

// Open opens the calling thread's network namespace for reading.
func Open() (*Node, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening route netlink: %w", err), ns.Close())
	}
	return &Node{handle, ns}, nil
}

// Close lets go of the namespace.
func (n *Node) Close() error {
	n.handle.Close()
	return n.ns.Close()
}

// Facts reads the addresses of all interfaces and the routes of the main
// table that lead to a neighbour without a gateway.
func (n *Node) Facts() (masq.Facts, error) {
	links, err := netns.Listed(n.handle.LinkList)
	if err != nil {
		return masq.Facts{}, fmt.Errorf("listing the node's interfaces: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addresses, err := netns.Listed(func() ([]netlink.Addr, error) { return n.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return masq.Facts{}, fmt.Errorf("listing the node's addresses: %w", err)
	}
	var facts masq.Facts
	for _, a := range addresses {
		if p, ok := prefixOf(a.IPNet.IP, a.IPNet.Mask); ok && !p.Addr().IsLoopback() {
			facts.Addresses = append(facts.Addresses, masq.NodeAddress{Interface: names[a.LinkIndex], Prefix: p})
		}
	}
	slices.SortFunc(facts.Addresses, func(a, b masq.NodeAddress) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Interface, b.Interface))
	})
	facts.LocalRoutes, err = n.localRoutes(names)
	return facts, err
}

// localRoutes lists what lies behind interfaces other than those with a
// default route. Without a default route nothing is known to be local.
func (n *Node) localRoutes(names map[int]string) ([]masq.LocalRoute, error) {
	main := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	var local []masq.LocalRoute
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netns.Listed(func() ([]netlink.Route, error) {
			return n.handle.RouteListFiltered(family, main, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("listing the node's routes: %w", err)
		}
		uplinks := map[int]bool{}
		for _, r := range routes {
			if isDefault(r) {
				uplinks[r.LinkIndex] = true
				for _, hop := range r.MultiPath {
					uplinks[hop.LinkIndex] = true
				}
			}
		}
		for _, r := range routes {
			if isDefault(r) || r.Gw != nil || len(uplinks) == 0 || uplinks[r.LinkIndex] || r.LinkIndex == 0 || r.Type != unix.RTN_UNICAST {
				continue
			}
			p, ok := prefixOf(r.Dst.IP, r.Dst.Mask)
			if ok && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
				local = append(local, masq.LocalRoute{Prefix: p.Masked(), Interface: names[r.LinkIndex]})
			}
		}
	}
	slices.SortFunc(local, func(a, b masq.LocalRoute) int { return a.Prefix.Compare(b.Prefix) })
	return local, nil
}

// OutputInterface is where the node would send a packet to the destination;
// empty when it has no route.
func (n *Node) OutputInterface(dst netip.Addr) string {
	routes, err := n.handle.RouteGet(dst.AsSlice())
	if err != nil || len(routes) == 0 {
		return ""
	}
	link, err := n.handle.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}

// Watch calls changed when an address comes or goes, and once when it begins
// to listen, until the context ends.
func (n *Node) Watch(ctx context.Context, changed func()) error {
	updates := make(chan netlink.AddrUpdate, 16)
	done := make(chan struct{})
	defer func() {
		close(done)
		go func() { // the subscription may stand in a send; it closes the channel when it is through
			for range updates {
			}
		}()
	}()
	failed := make(chan error, 1)
	err := n.ns.Do(func() error {
		return netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
			ErrorCallback: func(err error) {
				select {
				case failed <- err:
				default: // the first one says enough
				}
			},
		})
	})
	if err != nil {
		return fmt.Errorf("subscribing to address changes: %w", err)
	}
	changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-updates:
			if !open {
				select {
				case err := <-failed:
					return fmt.Errorf("reading address changes: %w", err)
				default:
					return fmt.Errorf("reading address changes: the subscription ended")
				}
			}
			changed()
		}
	}
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

func prefixOf(ip []byte, mask []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	ones := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			ones++
		}
	}
	return netip.PrefixFrom(a.Unmap(), ones), ok
}
