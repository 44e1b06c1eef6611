package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/internal/testnet"
	"sordino/masq"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, ns *netns.NS) *Node {
	t.Helper()
	var n *Node
	netnstest.Do(t, ns, func() (err error) {
		n, err = Open()
		return err
	})
	t.Cleanup(func() { n.Close() })
	return n
}

func network(t *testing.T) *testnet.Net {
	t.Helper()
	netnstest.New(t) // fails or skips where there are no namespaces
	n, err := testnet.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func ip(t *testing.T, ns *netns.NS, args ...string) {
	t.Helper()
	netnstest.Run(t, ns, "", netnstest.Program(t, "ip"), args...)
}

func TestFacts(t *testing.T) {
	net := network(t)
	ip(t, net.Node, "addr", "add", "10.7.0.1/32", "dev", "lo")
	ip(t, net.Node, "route", "add", "192.168.7.0/24", "via", "192.168.1.2", "dev", "pod", "onlink") // behind a gateway
	ip(t, net.Node, "route", "add", "blackhole", "192.168.8.0/24")
	ip(t, net.Node, "route", "add", "192.168.9.0/24", "dev", "pod", "table", "99")
	n := open(t, net.Node)
	facts, err := n.Facts()
	if err != nil {
		t.Fatal(err)
	}
	var addresses, routes []string
	for _, a := range facts.Addresses {
		if !a.Prefix.Addr().IsLinkLocalUnicast() { // the kernel's own choice
			addresses = append(addresses, fmt.Sprintf("%s %s", a.Prefix, a.Interface))
		}
	}
	for _, r := range facts.LocalRoutes {
		routes = append(routes, fmt.Sprintf("%s %s", r.Prefix, r.Interface))
	}
	if want := []string{"10.0.0.11/24 eth0", "10.7.0.1/32 lo", "fd00:a::11/64 eth0"}; !slices.Equal(addresses, want) {
		t.Errorf("addresses %q, want %q", addresses, want)
	}
	if want := []string{"192.168.1.2/32 pod", "fd00:c0a8:1::2/128 pod"}; !slices.Equal(routes, want) {
		t.Errorf("local routes %q, want %q", routes, want)
	}
	again, err := n.Facts()
	if err != nil || !slices.Equal(facts.Addresses, again.Addresses) || !slices.Equal(facts.LocalRoutes, again.LocalRoutes) {
		t.Errorf("the same node has other facts the second time: %v, %v", again, err)
	}
}

// Without a default route nothing tells Pods' interfaces from others.
func TestNoDefaultRouteNoLocalRoutes(t *testing.T) {
	net := network(t)
	ip(t, net.Node, "route", "del", "default")
	facts, err := open(t, net.Node).Facts()
	if err != nil || len(facts.LocalRoutes) != 1 || !facts.LocalRoutes[0].Prefix.Addr().Is6() {
		t.Errorf("%v, %v", facts.LocalRoutes, err)
	}
	// Several ways out at once are all ways out.
	ip(t, net.Node, "route", "add", "default", "nexthop", "via", "10.0.0.1", "dev", "eth0", "nexthop", "via", "192.168.1.2", "dev", "pod", "onlink")
	if facts, err = open(t, net.Node).Facts(); err != nil || len(facts.LocalRoutes) != 1 {
		t.Errorf("%v, %v", facts.LocalRoutes, err)
	}
}

func TestOutputInterface(t *testing.T) {
	net := network(t)
	n := open(t, net.Node)
	for dst, want := range map[string]string{
		"203.0.113.10": "eth0", "192.168.1.2": "pod", "10.0.0.11": "lo", "2001:db8:113::10": "eth0", "fd00:c0a8:1::2": "pod", "127.0.0.1": "lo",
	} {
		if got := n.OutputInterface(netip.MustParseAddr(dst)); got != want {
			t.Errorf("%s leaves by %q, want %q", dst, got, want)
		}
	}
	if got := open(t, netnstest.New(t)).OutputInterface(testnet.Service4); got != "" {
		t.Errorf("without a route, by %q", got)
	}
}

func TestWatch(t *testing.T) {
	ns := netnstest.New(t)
	n := open(t, ns)
	ctx, cancel := context.WithCancel(t.Context())
	changed := make(chan struct{}, 100)
	done := make(chan error)
	go func() { done <- n.Watch(ctx, func() { changed <- struct{}{} }) }()
	expect := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case err := <-done:
			t.Fatalf("%s: %v", what, err)
		case <-time.After(time.Minute):
			t.Fatalf("%s was not noticed", what)
		}
	}
	expect("the beginning") // an address that came before is not missed
	has := func(want bool) {
		t.Helper()
		facts, err := n.Facts()
		if err != nil || slices.Contains(facts.Addresses, masq.NodeAddress{Interface: "lo", Prefix: netip.MustParsePrefix("10.1.0.1/32")}) != want {
			t.Errorf("%v, %v", facts, err)
		}
	}
	ip(t, ns, "addr", "add", "10.1.0.1/32", "dev", "lo")
	expect("a new address")
	has(true)
	ip(t, ns, "addr", "del", "10.1.0.1/32", "dev", "lo")
	expect("an address that went")
	has(false)
	ip(t, ns, "addr", "add", "fd01::1/128", "dev", "lo")
	expect("an IPv6 address")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
