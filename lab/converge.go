package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// How the lab knows its own things again among what others add to its
// namespaces.
const (
	// RouteProtocol is the protocol of the lab's routes, as "ip route show
	// proto 83" lists them.
	RouteProtocol = 83
	// LinkGroup is the group of the upper end of each of the lab's links, as
	// "ip link show group 83" lists them.
	LinkGroup = 83
)

// upperIndex is below the numbers of the links' upper ends and above all that
// the kernel gives by itself.
const upperIndex = 1000

// work is one Apply.
type work struct {
	lab     *Lab
	ctx     context.Context
	plan    plan
	kernels map[string]*kernel
	raised  bool // whether a link was set up
	changes []string
}

// kernel is one namespace, opened for the length of an Apply, so that its
// sockets are made once.
type kernel struct {
	ns     *netns.NS
	routes *netlink.Handle
	tables *nftables.Conn
	index  map[string]int // of the links that the lab wants
	up     map[string]bool
	last   int // the highest number of a link
}

// change does one thing, unless the context has ended, and notes it.
func (w *work) change(do func() error, format string, args ...any) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	what := fmt.Sprintf(format, args...)
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	w.changes = append(w.changes, what)
	return nil
}

func (w *work) close() error {
	var errs []error
	for _, k := range w.kernels {
		k.routes.Close()
		errs = append(errs, k.tables.CloseLasting())
	}
	return errors.Join(errs...)
}

// namespaces takes away those that are not wanted and makes those that are
// missing.
func (w *work) namespaces() error {
	have, err := w.lab.Names()
	if err != nil {
		return err
	}
	for _, name := range have {
		if !slices.ContainsFunc(w.plan.namespaces, func(n namespace) bool { return n.name == name }) {
			if err := w.change(func() error { return w.lab.drop(name) }, "remove namespace %s", name); err != nil {
				return err
			}
		}
	}
	var seen []*netns.NS
	for _, n := range w.plan.namespaces {
		ns, err := w.lab.Namespace(n.name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && slices.ContainsFunc(seen, ns.Same) {
			if err := w.change(func() error { return w.lab.drop(n.name) }, "remove namespace %s, which is bound twice", n.name); err != nil {
				return err
			}
			ns = nil
		}
		if ns == nil {
			if err := w.change(func() error { return w.lab.make(n.name) }, "make namespace %s", n.name); err != nil {
				return err
			}
			if ns, err = w.lab.Namespace(n.name); err != nil {
				return err
			}
		}
		seen = append(seen, ns)
	}
	return nil
}

// open opens every namespace and settles what has to be settled before there
// are links, which take their settings from the namespace.
func (w *work) open() error {
	w.kernels = map[string]*kernel{}
	for _, n := range w.plan.namespaces {
		ns, err := w.lab.Namespace(n.name)
		if err != nil {
			return err
		}
		err = ns.Do(func() error {
			k := &kernel{ns: ns, index: map[string]int{}, up: map[string]bool{}, last: upperIndex}
			if k.routes, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
				return fmt.Errorf("opening route netlink: %w", err)
			}
			if k.tables, err = nftables.New(nftables.AsLasting()); err != nil {
				k.routes.Close()
				return fmt.Errorf("opening nftables netlink: %w", err)
			}
			w.kernels[n.name] = k
			return w.settings(n)
		})
		if err != nil {
			return fmt.Errorf("namespace %s: %w", n.name, err)
		}
	}
	return nil
}

// settings runs inside the namespace. Duplicate address detection would hold
// every IPv6 address back for a second.
func (w *work) settings(n namespace) error {
	forward := "0"
	if n.forwards {
		forward = "1"
	}
	for _, s := range []struct{ key, value string }{
		{"net/ipv6/conf/all/accept_dad", "0"}, {"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv4/ip_forward", forward}, {"net/ipv6/conf/all/forwarding", forward},
	} {
		path := "/proc/sys/" + s.key
		is, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("reading the setting %s: %w", s.key, err)
		}
		if string(is) == s.value+"\n" {
			continue
		}
		err = w.change(func() error { return os.WriteFile(path, []byte(s.value), 0) }, "set %s to %s in %s", s.key, s.value, n.name)
		if err != nil {
			return err
		}
	}
	return nil
}

// links makes the pairs that are missing, after taking away what is in their
// way or not wanted: ends that the lab made once, and pairs that lead
// elsewhere.
func (w *work) links() error {
	have := map[string][]netlink.Link{}
	for _, n := range w.plan.namespaces {
		list, err := netns.Listed(w.kernels[n.name].routes.LinkList)
		if err != nil {
			return fmt.Errorf("listing the links of %s: %w", n.name, err)
		}
		have[n.name] = list
		for _, l := range list {
			w.kernels[n.name].last = max(w.kernels[n.name].last, l.Attrs().Index)
		}
	}
	find := func(namespace, name string) netlink.Link {
		for _, l := range have[namespace] {
			if l.Attrs().Name == name {
				return l
			}
		}
		return nil
	}
	type end struct{ namespace, name string }
	wanted := map[end]bool{}
	var missing []link
	for _, k := range w.plan.links {
		a, b := find(k.a, k.aName), find(k.b, k.bName)
		joined, err := w.joined(k, a, b)
		if err != nil {
			return err
		}
		if joined {
			w.kernels[k.a].found(a)
			w.kernels[k.b].found(b)
		} else {
			missing = append(missing, k)
		}
		wanted[end{k.a, k.aName}], wanted[end{k.b, k.bName}] = joined, joined
	}
	for _, n := range w.plan.namespaces {
		for _, l := range have[n.name] {
			if l.Attrs().Name == "lo" && l.Attrs().Flags&net.FlagUp == 0 {
				k := w.kernels[n.name]
				if err := w.change(func() error { return k.setUp(l.Attrs().Index) }, "set lo of %s up", n.name); err != nil {
					return err
				}
			}
			joined, named := wanted[end{n.name, l.Attrs().Name}]
			if joined || !named && l.Attrs().Group != LinkGroup {
				continue
			}
			// Its other end may have been taken away before, and this one with it.
			err := w.change(func() error { return ignore(w.kernels[n.name].routes.LinkDel(l), unix.ENODEV) },
				"remove link %s of %s", l.Attrs().Name, n.name)
			if err != nil {
				return err
			}
		}
	}
	for _, k := range missing {
		if err := w.join(k); err != nil {
			return err
		}
	}
	return nil
}

// joined reports whether two ends are the ends of one pair. Numbers alone do
// not tell: they are counted in each namespace anew.
func (w *work) joined(k link, a, b netlink.Link) (bool, error) {
	if a == nil || b == nil || a.Type() != "veth" || b.Type() != "veth" ||
		a.Attrs().ParentIndex != b.Attrs().Index || b.Attrs().ParentIndex != a.Attrs().Index || a.Attrs().Group != LinkGroup {
		return false, nil
	}
	id, err := w.kernels[k.a].routes.GetNetNsIdByFd(w.kernels[k.b].ns.FD())
	if err != nil {
		return false, fmt.Errorf("comparing the namespaces %s and %s: %w", k.a, k.b, err)
	}
	return id >= 0 && id == a.Attrs().NetNsID, nil
}

func (w *work) join(k link) error {
	a, b := w.kernels[k.a], w.kernels[k.b]
	attributes := netlink.NewLinkAttrs()
	// The kernel holds news of a link's carrier back for up to a second when
	// both ends have the same number, because it takes it for no pair then.
	a.last++
	attributes.Name, attributes.Group, attributes.Index = k.aName, LinkGroup, a.last
	pair := netlink.NewVeth(attributes)
	pair.PeerName, pair.PeerNamespace = k.bName, netlink.NsFd(b.ns.FD())
	if err := w.change(func() error { return a.routes.LinkAdd(pair) }, "join %s and %s", k.a, k.b); err != nil {
		return err
	}
	for _, end := range []struct {
		kernel *kernel
		name   string
	}{{a, k.aName}, {b, k.bName}} {
		l, err := end.kernel.routes.LinkByName(end.name)
		if err != nil {
			return fmt.Errorf("finding the link between %s and %s: %w", k.a, k.b, err)
		}
		end.kernel.found(l)
	}
	return nil
}

func (k *kernel) found(l netlink.Link) {
	name := l.Attrs().Name
	k.index[name], k.up[name] = l.Attrs().Index, l.Attrs().Flags&net.FlagUp != 0
}

// setUp sets a link up.
func (k *kernel) setUp(index int) error {
	return k.routes.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
}

// addresses gives the links their addresses and sets them up.
func (w *work) addresses() error {
	for _, n := range w.plan.namespaces {
		k := w.kernels[n.name]
		have, err := netns.Listed(func() ([]netlink.Addr, error) { return k.routes.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("listing the addresses of %s: %w", n.name, err)
		}
		for _, a := range n.addresses {
			index := k.index[a.link]
			if slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.LinkIndex == index && prefixOf(h.IPNet) == a.prefix }) {
				continue
			}
			scope := unix.RT_SCOPE_UNIVERSE
			if a.prefix.Addr().IsLinkLocalUnicast() {
				// Or a node would masquerade to its gateway address on the link.
				scope = unix.RT_SCOPE_LINK
			}
			err := w.change(func() error {
				return k.routes.AddrReplace(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}},
					&netlink.Addr{IPNet: ipNet(a.prefix), Flags: unix.IFA_F_NODAD, Scope: scope})
			}, "add address %s to %s of %s", a.prefix.Addr(), a.link, n.name)
			if err != nil {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(k.index)) {
			index := k.index[name]
			if !k.up[name] {
				if err := w.change(func() error { return k.setUp(index) }, "set %s of %s up", name, n.name); err != nil {
					return err
				}
				w.raised = true
			}
			// After the new ones, because with its last address a link loses its
			// routes. The kernel's own addresses have a subnet, the lab's have none.
			for _, h := range have {
				p := prefixOf(h.IPNet)
				if h.LinkIndex != index || !p.IsSingleIP() || slices.Contains(n.addresses, address{name, p}) {
					continue
				}
				err := w.change(func() error {
					return k.routes.AddrDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, &netlink.Addr{IPNet: h.IPNet})
				}, "remove address %s from %s of %s", p.Addr(), name, n.name)
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// carriers waits until every link carries packets, because the kernel notices
// some time after both ends are up, and drops what is sent before.
func (w *work) carriers() error {
	if !w.raised {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.ctx, carrierTime)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for _, n := range w.plan.namespaces {
		k := w.kernels[n.name]
		for {
			links, err := netns.Listed(k.routes.LinkList)
			if err != nil {
				return fmt.Errorf("listing the links of %s: %w", n.name, err)
			}
			waiting := slices.IndexFunc(links, func(l netlink.Link) bool {
				return k.index[l.Attrs().Name] == l.Attrs().Index && l.Attrs().RawFlags&unix.IFF_RUNNING == 0
			})
			if waiting < 0 {
				break
			}
			select {
			case <-ctx.Done():
				if err := w.ctx.Err(); err != nil {
					return err
				}
				return fmt.Errorf("link %s of %s does not carry packets after %v: is somebody else setting it down?", links[waiting].Attrs().Name, n.name, carrierTime)
			case <-tick.C:
			}
		}
	}
	return nil
}

// carrierTime is how long a link may take: the kernel lets news wait for a second,
// and on a busy machine until other work on links, of all namespaces, is done.
const carrierTime = 15 * time.Second

// routes makes the lab's routes exactly those that are wanted.
func (w *work) routes() error {
	for _, n := range w.plan.namespaces {
		k := w.kernels[n.name]
		have := map[route]bool{}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netns.Listed(func() ([]netlink.Route, error) {
				return k.routes.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: RouteProtocol}, netlink.RT_FILTER_TABLE)
			})
			if err != nil {
				return fmt.Errorf("listing the routes of %s: %w", n.name, err)
			}
			for _, h := range list {
				if h.Protocol != RouteProtocol {
					continue
				}
				r := k.routeOf(h)
				if slices.Contains(n.routes, r) && !have[r] {
					have[r] = true
					continue
				}
				// ESRCH: it went with its gateway or its link.
				err := w.change(func() error { return ignore(k.routes.RouteDel(&h), unix.ESRCH) }, "remove the route to %s from %s", r.to, n.name)
				if err != nil {
					return err
				}
			}
		}
		for _, r := range n.routes {
			if have[r] {
				continue
			}
			want := &netlink.Route{LinkIndex: k.index[r.link], Dst: ipNet(r.to), Scope: netlink.SCOPE_LINK, Table: unix.RT_TABLE_MAIN, Protocol: RouteProtocol}
			if r.via.IsValid() {
				want.Gw, want.Scope = r.via.AsSlice(), netlink.SCOPE_UNIVERSE
			}
			if err := w.change(func() error { return k.routes.RouteReplace(want) }, "add the route to %s to %s", r.to, n.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// routeOf is a route of the kernel in the plan's terms; what the plan has no
// word for makes it another one.
func (k *kernel) routeOf(h netlink.Route) route {
	r := route{to: prefixOf(h.Dst)}
	for name, index := range k.index {
		if index == h.LinkIndex {
			r.link = name
		}
	}
	if a, ok := netip.AddrFromSlice(h.Gw); ok {
		r.via = a.Unmap()
	}
	return r
}

func ignore(err error, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is ipNet's inverse; invalid for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
