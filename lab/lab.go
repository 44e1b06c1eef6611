package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// Lab is one lab's namespaces, bound to files in a folder.
type Lab struct {
	dir    string
	opened map[string]*netns.NS
}

// Open opens the lab in a folder, which is made if it is not there. What is
// there from before is found again.
func Open(dir string) (*Lab, error) {
	l := &Lab{dir: dir, opened: map[string]*netns.NS{}}
	if err := os.MkdirAll(l.bindings(), 0o755); err != nil {
		return nil, fmt.Errorf("opening the lab: %w", err)
	}
	return l, nil
}

func (l *Lab) bindings() string { return filepath.Join(l.dir, "netns") }

// Namespace opens a namespace of the lab by name.
func (l *Lab) Namespace(name string) (*netns.NS, error) {
	if ns := l.opened[name]; ns != nil {
		return ns, nil
	}
	path := filepath.Join(l.bindings(), name)
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return nil, fmt.Errorf("there is no namespace %q in the lab at %s: %w", name, l.dir, err)
	}
	if stat.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("the namespace %q of the lab at %s is half made: %w", name, l.dir, fs.ErrNotExist)
	}
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	l.opened[name] = ns
	return ns, nil
}

// Names lists the namespaces that are there.
func (l *Lab) Names() ([]string, error) {
	entries, err := os.ReadDir(l.bindings())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the lab: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Apply makes the lab what the Spec says and returns what it changed: nothing,
// when it was so already.
func (l *Lab) Apply(ctx context.Context, s Spec) (changes []string, err error) {
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("checking the lab: %w", err)
	}
	p := planOf(s)
	did := func(format string, args ...any) { changes = append(changes, fmt.Sprintf(format, args...)) }
	have, err := l.Names()
	if err != nil {
		return nil, err
	}
	for _, name := range have {
		if !slices.ContainsFunc(p.namespaces, func(n namespace) bool { return n.name == name }) {
			if err := l.drop(name); err != nil {
				return changes, err
			}
			did("namespace %s removed", name)
		}
	}
	for _, n := range p.namespaces {
		made, err := l.ensureNamespace(n.name)
		if err != nil {
			return changes, err
		}
		if made {
			did("namespace %s made", n.name)
		}
	}
	for _, step := range []func() error{
		func() error { return l.ensureLinks(ctx, p, did) },
		func() error { return l.each(ctx, p, func(n namespace) error { return n.ensureSettings(did) }) },
		func() error { return l.each(ctx, p, func(n namespace) error { return n.ensureAddresses(did) }) },
		func() error { return l.each(ctx, p, func(n namespace) error { return n.ensureRoutes(did) }) },
		func() error { return l.each(ctx, p, func(n namespace) error { return n.ensureTables(did) }) },
	} {
		if err := step(); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

func (l *Lab) each(ctx context.Context, p plan, do func(namespace) error) error {
	for _, n := range p.namespaces {
		if err := ctx.Err(); err != nil {
			return err
		}
		ns, err := l.Namespace(n.name)
		if err != nil {
			return err
		}
		if err := ns.Do(func() error { return do(n) }); err != nil {
			return fmt.Errorf("namespace %s: %w", n.name, err)
		}
	}
	return nil
}

func (l *Lab) ensureNamespace(name string) (made bool, err error) {
	if _, err := l.Namespace(name); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	ns, err := netns.New()
	if err != nil {
		return false, err
	}
	if err := ns.Bind(filepath.Join(l.bindings(), name)); err != nil {
		return false, errors.Join(err, ns.Close())
	}
	l.opened[name] = ns
	return true, nil
}

// ensureLinks makes the pairs that are missing. A pair of which only one end
// is there, from a lab that was cut off, is made anew.
func (l *Lab) ensureLinks(ctx context.Context, p plan, did func(string, ...any)) error {
	for _, k := range p.links {
		if err := ctx.Err(); err != nil {
			return err
		}
		a, errA := l.Namespace(k.a)
		b, errB := l.Namespace(k.b)
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		hasA, errA := hasLink(a, k.aName)
		hasB, errB := hasLink(b, k.bName)
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		if hasA && hasB {
			continue
		}
		err := a.Do(func() error {
			if hasA {
				if stale, err := netlink.LinkByName(k.aName); err == nil {
					if err := netlink.LinkDel(stale); err != nil {
						return err
					}
				}
			}
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: k.aName}, PeerName: k.bName, PeerNamespace: netlink.NsFd(b.FD())})
		})
		if err != nil {
			return fmt.Errorf("joining %s and %s: %w", k.a, k.b, err)
		}
		did("link %s/%s to %s/%s made", k.a, k.aName, k.b, k.bName)
	}
	return nil
}

func hasLink(ns *netns.NS, name string) (has bool, err error) {
	err = ns.Do(func() error {
		_, err := netlink.LinkByName(name)
		if _, missing := err.(netlink.LinkNotFoundError); missing {
			return nil
		}
		has = err == nil
		return err
	})
	return has, err
}

// ensureSettings sets what has to be set before addresses: no duplicate
// address detection, which would hold every IPv6 address back for a second.
func (n namespace) ensureSettings(did func(string, ...any)) error {
	want := map[string]string{"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "0"}
	for _, a := range n.addresses {
		want["net/ipv6/conf/"+a.link+"/accept_dad"] = "0"
	}
	if n.forwards {
		want["net/ipv4/ip_forward"], want["net/ipv6/conf/all/forwarding"] = "1", "1"
	}
	for key, value := range want {
		path := "/proc/sys/" + key
		is, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("reading the setting %s: %w", key, err)
		}
		if string(is) == value+"\n" {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("setting %s: %w", key, err)
		}
		did("%s: %s set", n.name, key)
	}
	return nil
}

func (n namespace) ensureAddresses(did func(string, ...any)) error {
	for _, a := range n.addresses {
		link, err := netlink.LinkByName(a.link)
		if err != nil {
			return fmt.Errorf("finding link %s: %w", a.link, err)
		}
		have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("listing the addresses of %s: %w", a.link, err)
		}
		want := ipNet(a.prefix)
		if !slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IPNet.String() == want.String() }) {
			scope := unix.RT_SCOPE_UNIVERSE
			if a.prefix.Addr().IsLinkLocalUnicast() {
				// Or a node would masquerade to its gateway address on the link.
				scope = unix.RT_SCOPE_LINK
			}
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: want, Flags: unix.IFA_F_NODAD, Scope: scope}); err != nil {
				return fmt.Errorf("adding %s to %s: %w", a.prefix, a.link, err)
			}
			did("%s: address %s added to %s", n.name, a.prefix, a.link)
		}
		if link.Attrs().Flags&net.FlagUp == 0 {
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("setting %s up: %w", a.link, err)
			}
			did("%s: %s set up", n.name, a.link)
		}
	}
	return nil
}

func (n namespace) ensureRoutes(did func(string, ...any)) error {
	for _, r := range n.routes {
		link, err := netlink.LinkByName(r.link)
		if err != nil {
			return fmt.Errorf("finding link %s: %w", r.link, err)
		}
		want := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.to), Scope: netlink.SCOPE_LINK, Table: unix.RT_TABLE_MAIN}
		family := netlink.FAMILY_V4
		if r.to.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		if r.via.IsValid() {
			want.Gw, want.Scope = r.via.AsSlice(), netlink.SCOPE_UNIVERSE
		}
		have, err := netlink.RouteListFiltered(family, want, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("listing the routes: %w", err)
		}
		if slices.ContainsFunc(have, func(h netlink.Route) bool {
			return h.Dst != nil && h.Dst.String() == want.Dst.String() && h.Gw.Equal(want.Gw)
		}) {
			continue
		}
		if err := netlink.RouteReplace(want); err != nil {
			return fmt.Errorf("adding the route to %s on %s: %w", r.to, r.link, err)
		}
		did("%s: route to %s added", n.name, r.to)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Remove takes the whole lab away, whatever state it is in.
func (l *Lab) Remove() error {
	names, err := l.Names()
	errs := []error{err}
	for _, n := range names {
		errs = append(errs, l.drop(n))
	}
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

// Close lets go of the lab; it stays.
func (l *Lab) Close() error {
	var errs []error
	for name, ns := range l.opened {
		errs = append(errs, ns.Close())
		delete(l.opened, name)
	}
	return errors.Join(errs...)
}

func (l *Lab) drop(name string) error {
	if ns := l.opened[name]; ns != nil {
		delete(l.opened, name)
		if err := ns.Close(); err != nil {
			return err
		}
	}
	path := filepath.Join(l.bindings(), name)
	// EINVAL: nothing is mounted there, the namespace was never bound.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing namespace %s: %w", name, err)
	}
	return nil
}
