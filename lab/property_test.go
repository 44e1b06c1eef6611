package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sordino/internal/netnstest"
)

// specs draws Specs whose names and addresses are from small pools, so that
// they often change places from one to the next.
var specs = rapid.Custom(func(t *rapid.T) Spec {
	names := rapid.Permutation([]string{"alpha", "beta", "gamma", "eth0", "a-name-of-many-bytes", "a-name-of-many-more"}).Draw(t, "names")
	take := func() string {
		n := names[0]
		names = names[1:]
		return n
	}
	families := func(four, six string) []netip.Addr {
		switch rapid.IntRange(0, 2).Draw(t, "families") {
		case 0:
			return addrs(four)
		case 1:
			return addrs(six)
		}
		return addrs(four, six)
	}
	var s Spec
	slots := rapid.Permutation([]int{1, 2, 3}).Draw(t, "slots")
	for _, slot := range slots[:rapid.IntRange(0, 2).Draw(t, "nodes")] {
		n := Node{Name: take(), Addresses: families(fmt.Sprintf("10.0.0.%d", slot), fmt.Sprintf("fd00:a::%d", slot))}
		pods := rapid.IntRange(0, 2).Draw(t, "pods")
		for _, a := range n.Addresses {
			if a.Is4() {
				n.PodRanges = append(n.PodRanges, netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", slot)))
			} else {
				n.PodRanges = append(n.PodRanges, netip.MustParsePrefix(fmt.Sprintf("fd00:c0a8:%d::/48", slot)))
			}
		}
		for host := range pods {
			p := Pod{Name: take()}
			for _, r := range n.PodRanges {
				text := fmt.Sprintf("192.168.%d.%d", slot, host+2)
				if r.Addr().Is6() {
					text = fmt.Sprintf("fd00:c0a8:%d::%d", slot, host+2)
				}
				p.Addresses = append(p.Addresses, netip.MustParseAddr(text))
			}
			n.Pods = append(n.Pods, p)
			if rapid.Bool().Draw(t, "virtual") {
				to := rapid.SampledFrom(p.Addresses).Draw(t, "to")
				v := Virtual{netip.MustParseAddr(fmt.Sprintf("172.20.0.%d", len(s.Services)+1)), to}
				if to.Is6() {
					v.Address = netip.MustParseAddr(fmt.Sprintf("fd00:ac14::%d", len(s.Services)+1))
				}
				s.Services = append(s.Services, v)
			}
		}
		s.Nodes = append(s.Nodes, n)
	}
	if len(names) > 0 && rapid.Bool().Draw(t, "outside") {
		s.Outside = []Service{{take(), families("203.0.113.10", "2001:db8:113::10"),
			rapid.SliceOfN(rapid.SampledFrom(prefixes("10.0.0.0/8", "10.0.0.0/9", "192.168.0.0/16", "0.0.0.0/0", "fd00::/16", "::/0")), 0, 3).Draw(t, "allow")}}
	}
	return s
})

// Whatever a lab was before, Apply makes it what building from nothing makes.
func TestAnySpecFromAnySpecIsAsBuiltFromNothing(t *testing.T) {
	netnstest.New(t)
	netnstest.Program(t, "nft")
	if flag.Lookup("rapid.checks").Value.String() == "100" {
		if err := flag.Set("rapid.checks", "12"); err != nil { // each builds five labs
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		l, err := Open(filepath.Join(dir, "lab"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Remove(); err != nil {
				t.Error(err)
			}
		}()
		for range 2 {
			// An Apply that is cut off on the way leaves any state at all.
			steps := rapid.IntRange(0, 120).Draw(t, "steps")
			if _, err := l.Apply(&budget{context.Background(), steps}, specs.Draw(t, "before")); err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		s := specs.Draw(t, "after")
		if _, err := l.Apply(context.Background(), s); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fresh(t, dir, s), snapshot(t, l)); diff != "" {
			t.Fatalf("changed instead of built (-built +changed):\n%s", diff)
		}
		if changes, err := l.Apply(context.Background(), s); err != nil || len(changes) != 0 {
			t.Fatalf("the next Apply changed %q, error %v", changes, err)
		}
	})
}
