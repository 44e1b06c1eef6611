package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
)

// tb is what *testing.T and *rapid.T have in common.
type tb interface {
	Helper()
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// example is a Spec with everything in it: nodes and one Pod on each, in both
// families, a service outside and a Service address.
func example(nodes int) Spec {
	var s Spec
	for n := 1; n <= nodes; n++ {
		s.Nodes = append(s.Nodes, Node{
			Name:      fmt.Sprintf("node-%d", n),
			Addresses: addrs(fmt.Sprintf("10.0.0.%d", n), fmt.Sprintf("fd00:a::%d", n)),
			PodRanges: prefixes(fmt.Sprintf("192.168.%d.0/24", n), fmt.Sprintf("fd00:c0a8:%d::/48", n)),
			Pods:      []Pod{{fmt.Sprintf("pod-%d", n), addrs(fmt.Sprintf("192.168.%d.2", n), fmt.Sprintf("fd00:c0a8:%d::2", n))}},
		})
	}
	s.Outside = []Service{{"service", addrs("203.0.113.10", "2001:db8:113::10"), prefixes("10.0.0.0/8", "fd00:a::/64")}}
	s.Services = []Virtual{
		{netip.MustParseAddr("172.20.0.10"), s.Nodes[nodes-1].Pods[0].Addresses[0]},
		{netip.MustParseAddr("fd00:ac14::10"), s.Nodes[nodes-1].Pods[0].Addresses[1]},
	}
	return s
}

// newLab opens a lab that is removed when the test ends.
func newLab(t *testing.T) *Lab {
	t.Helper()
	netnstest.New(t) // fails or skips where there are no namespaces
	l, err := Open(filepath.Join(t.TempDir(), "lab"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func apply(t *testing.T, l *Lab, s Spec) []string {
	t.Helper()
	changes, err := l.Apply(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// do runs fn inside a namespace of the lab.
func do(t tb, l *Lab, name string, fn func() error) {
	t.Helper()
	ns, err := l.Namespace(name)
	if err == nil {
		err = ns.Do(fn)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// snapshot is all that the kernel lists of a lab, without what the kernel
// makes by itself and without numbers that differ from run to run.
func snapshot(t tb, l *Lab) string {
	t.Helper()
	names, err := l.Names()
	if err != nil {
		t.Fatalf("%v", err)
	}
	var out strings.Builder
	for _, name := range names {
		fmt.Fprintf(&out, "%s\n", name)
		for _, line := range state(t, l, name, names) {
			fmt.Fprintf(&out, "\t%s\n", line)
		}
	}
	return out.String()
}

func state(t tb, l *Lab, name string, names []string) []string {
	t.Helper()
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	do(t, l, name, func() error {
		links, err := netns.Listed(netlink.LinkList)
		if err != nil {
			return err
		}
		linkNames := map[int]string{}
		for _, link := range links {
			a := link.Attrs()
			linkNames[a.Index] = a.Name
			peer := ""
			for _, other := range names {
				if ns, err := l.Namespace(other); err == nil && a.Name != "lo" {
					if id, err := netlink.GetNetNsIdByFd(ns.FD()); err == nil && id >= 0 && id == a.NetNsID {
						peer = other
					}
				}
			}
			// The far end's number says nothing, its name is listed over there.
			say("link %s %s group %d up %v to %s", a.Name, link.Type(), a.Group, a.RawFlags&unix.IFF_UP != 0, peer)
		}
		all, err := netns.Listed(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		for _, a := range all {
			if p := prefixOf(a.IPNet); !p.Addr().IsLinkLocalUnicast() || p.IsSingleIP() {
				say("address %s scope %d on %s", p, a.Scope, linkNames[a.LinkIndex])
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netns.Listed(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Protocol != unix.RTPROT_KERNEL {
					say("route %s via %s dev %s scope %d proto %d metric %d", r.Dst, r.Gw, linkNames[r.LinkIndex], r.Scope, r.Protocol, r.Priority)
				}
			}
		}
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/accept_dad"} {
			value, err := os.ReadFile("/proc/sys/" + key)
			if err != nil {
				return err
			}
			say("setting %s %s", key, strings.TrimSpace(string(value)))
		}
		return nil
	})
	ns, err := l.Namespace(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	slices.Sort(lines) // the order is that of their making
	tables, err := tablesIn(ns)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if tables == 0 {
		return lines
	}
	rules, err := netnstest.Try(ns, "", "nft", "--stateless", "--terse", "list", "ruleset")
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, rules)
	}
	return append(lines, strings.Split(strings.TrimSpace(rules), "\n")...)
}

func tablesIn(ns *netns.NS) (int, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return 0, err
	}
	tables, err := conn.ListTables()
	return len(tables), err
}

// fresh is the snapshot of a lab that is built from nothing.
func fresh(t tb, dir string, s Spec) string {
	t.Helper()
	l, err := Open(filepath.Join(dir, "fresh"))
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer func() {
		if err := l.Remove(); err != nil {
			t.Errorf("%v", err)
		}
	}()
	if _, err := l.Apply(context.Background(), s); err != nil {
		t.Fatalf("%v", err)
	}
	return snapshot(t, l)
}
