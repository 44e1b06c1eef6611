package kubetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"

	"sordino/internal/netns"
)

// The addresses of a cluster with nodes. The control plane and the outside
// stand in the nodes' network; the outside is their router, and the service
// there has an address beyond every range of the cluster, and beyond those that
// are exempt by default: Pods are masqueraded to it unless somebody says otherwise.
var (
	controlAddress = netip.MustParseAddr("10.89.0.1")
	RouterAddress  = netip.MustParseAddr("10.89.0.100")
	ServiceAddress = netip.MustParseAddr("203.0.113.100")
)

func nodeAddress(i int) netip.Addr {
	a := NodeRange.Addr().As4()
	a[3] = byte(10 + i)
	return netip.AddrFrom4(a)
}

func podRange(i int) netip.Prefix {
	a := PodRange.Addr().As4()
	a[2] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

const bridge = "nodes"

// newControl makes the control plane's namespace. The nodes' network is a
// bridge in it. It also has the address of the Service kubernetes, so that it
// can be reached without kube-proxy.
func newControl() (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, &Unmet{err.Error()}
	}
	err = ns.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}); err != nil {
			return err
		}
		return configure(bridge, "lo", []netip.Prefix{netip.PrefixFrom(controlAddress, NodeRange.Bits())}, ServiceRange.Addr().Next())
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the nodes' network: %w", err), ns.Close())
	}
	return ns, nil
}

// configure sets links up and gives them their addresses.
func configure(name, lo string, addresses []netip.Prefix, more ...netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return err
		}
	}
	loopback, err := netlink.LinkByName(lo)
	if err != nil {
		return err
	}
	for _, a := range more {
		if err := netlink.AddrAdd(loopback, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, 32))}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// plug connects a namespace with the nodes' network, as eth0.
func (c *Cluster) plug(ns *netns.NS, name string, address netip.Addr, more ...netip.Addr) error {
	err := c.control.Do(func() error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.FD())}
		if err := netlink.LinkAdd(port); err != nil {
			return err
		}
		return netlink.LinkSetUp(port)
	})
	if err == nil {
		err = ns.Do(func() error {
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
				return err
			}
			return configure("eth0", "lo", []netip.Prefix{netip.PrefixFrom(address, NodeRange.Bits())}, more...)
		})
	}
	if err != nil {
		return fmt.Errorf("plugging %s into the nodes' network: %w", name, err)
	}
	return nil
}

// route adds or replaces a route of a namespace. The source may be left out.
func route(ns *netns.NS, to netip.Prefix, via, source netip.Addr) error {
	err := ns.Do(func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice(), Src: source.AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("adding the route to %s: %w", to, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// forwarder is a port of this process's loopback that leads into a namespace:
// the cluster's network is none of the machine's.
type forwarder struct {
	listener net.Listener
	ns       *netns.NS
	to       string
	done     sync.WaitGroup
	ctx      context.Context
	end      context.CancelFunc
}

func newForwarder(ns *netns.NS, to netip.AddrPort) (*forwarder, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &forwarder{listener: listener, ns: ns, to: to.String()}
	f.ctx, f.end = context.WithCancel(context.Background())
	f.done.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			f.done.Go(func() { f.forward(conn) })
		}
	})
	return f, nil
}

func (f *forwarder) forward(near net.Conn) {
	defer near.Close()
	var far net.Conn
	err := f.ns.Do(func() (err error) {
		far, err = (&net.Dialer{FallbackDelay: -1}).DialContext(f.ctx, "tcp", f.to)
		return err
	})
	if err != nil {
		return // the caller sees a connection that is closed
	}
	defer far.Close()
	defer context.AfterFunc(f.ctx, func() { near.Close(); far.Close() })()
	var both sync.WaitGroup
	pipe := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // whatever ends it ends both
		near.Close()
		far.Close()
	}
	both.Go(func() { pipe(far, near) })
	both.Go(func() { pipe(near, far) })
	both.Wait()
}

func (f *forwarder) close() {
	f.listener.Close()
	f.end()
	f.done.Wait()
}
