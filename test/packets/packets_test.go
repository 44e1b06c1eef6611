// Package packets judges rules by packets: what a service sees of a Pod behind
// a node that holds them, with each backend.
package packets

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/internal/testnet"
	"sordino/masq"
	"sordino/masq/foreign"
	"sordino/masq/iptables"
	"sordino/masq/nftables"
	"sordino/masq/node"
	"sordino/masq/xtables"
)

// backend is what the tests need of both.
type backend interface {
	Apply(context.Context, masq.RuleSet, uint64) (masq.Change, error)
	Remove(context.Context, bool) ([]string, error)
	Close() error
}

var backends = map[string]func(*testing.T, *netns.NS) backend{
	"nftables": func(t *testing.T, ns *netns.NS) backend {
		return open(t, ns, func() (backend, error) { return nftables.New(nftables.Options{}) })
	},
	"iptables-nft":    func(t *testing.T, ns *netns.NS) backend { return open(t, ns, newIPTables(t, xtables.NFT)) },
	"iptables-legacy": func(t *testing.T, ns *netns.NS) backend { return open(t, ns, newIPTables(t, xtables.Legacy)) },
}

func newIPTables(t *testing.T, f xtables.Flavour) func() (backend, error) {
	netnstest.Program(t, "iptables-"+string(f))
	return func() (backend, error) {
		return iptables.New(t.Context(), iptables.Options{Flavour: f, Chain: masq.DefaultChain})
	}
}

func open(t *testing.T, ns *netns.NS, make func() (backend, error)) backend {
	t.Helper()
	var b backend
	netnstest.Do(t, ns, func() (err error) {
		b, err = make()
		return err
	})
	t.Cleanup(func() { b.Close() })
	return b
}

func network(t testing.TB) *testnet.Net {
	t.Helper()
	netnstest.New(t) // fails or skips where there are no namespaces
	n, err := testnet.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func parse(list string) []masq.Range {
	var out []masq.Range
	for text := range strings.SplitSeq(list, ",") {
		out = append(out, masq.Range{Prefix: netip.MustParsePrefix(text)})
	}
	return out
}

// rules plans for the test network's node, whose ranges are told.
func rules(t testing.TB, n *testnet.Net, change func(*masq.Config, *masq.Options)) masq.RuleSet {
	t.Helper()
	c := masq.DefaultConfig(false)
	o := masq.Options{Chain: masq.DefaultChain, IPv6: true, RandomFully: true,
		Cluster: masq.ClusterRanges{Pod: parse(testnet.PodRanges), Node: parse(testnet.NodeRanges)}}
	if change != nil {
		change(&c, &o)
	}
	var facts masq.Facts
	netnstest.Do(t, n.Node, func() error {
		here, err := node.Open()
		if err != nil {
			return err
		}
		defer here.Close()
		facts, err = here.Facts()
		return err
	})
	rs, _, err := masq.Plan(c, o, facts)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// seen sends one packet and returns the source that the service sees.
func seen(t testing.TB, from *netns.NS, src, dst netip.Addr, n *testnet.Net) netip.AddrPort {
	t.Helper()
	var server, client net.PacketConn
	netnstest.Do(t, n.Service, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	defer server.Close()
	netnstest.Do(t, from, func() (err error) {
		client, err = net.ListenPacket("udp", netip.AddrPortFrom(src, 0).String())
		return err
	})
	defer client.Close()
	if _, err := client.WriteTo([]byte("x"), server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, peer, err := server.ReadFrom(make([]byte, 8))
	if err != nil {
		t.Fatalf("%s to %s: %v", src, dst, err)
	}
	return peer.(*net.UDPAddr).AddrPort()
}

func TestVerdicts(t *testing.T) {
	exempt := func(c *masq.Config, _ *masq.Options) {
		c.NonMasquerade, c.NonMasqueradeGiven = parse("203.0.113.0/24,2001:db8::/32"), true
	}
	for _, tc := range []struct {
		name   string
		change func(*masq.Config, *masq.Options)
		before string // foreign rules, for nft
		want4  netip.Addr
		want6  netip.Addr
		ports  [2]uint16
	}{
		{name: "masqueraded", want4: testnet.Node4, want6: testnet.Node6},
		{name: "exempt", change: exempt, want4: testnet.Pod4, want6: testnet.Pod6},
		{name: "exempt, but another agent masquerades", change: exempt, before: theirs, want4: testnet.Node4, want6: testnet.Node6},
		{name: "exempt and enforced", change: func(c *masq.Config, o *masq.Options) {
			exempt(c, o)
			c.EnforceNonMasquerade = true
		}, before: theirs, want4: testnet.Pod4, want6: testnet.Pod6},
		{name: "only these, and not this", change: func(c *masq.Config, _ *masq.Options) { c.Masquerade = parse("198.51.100.0/24") }, want4: testnet.Pod4, want6: testnet.Pod6},
		{name: "only these", change: func(c *masq.Config, _ *masq.Options) { c.Masquerade = parse("203.0.113.10/32,2001:db8:113::10/128") }, want4: testnet.Node4, want6: testnet.Node6},
		{name: "Pods unknown", change: func(_ *masq.Config, o *masq.Options) { o.Cluster = masq.ClusterRanges{} }, want4: testnet.Node4, want6: testnet.Node6},
		{name: "not a Pod", change: func(_ *masq.Config, o *masq.Options) { o.Cluster.Pod = parse("192.168.9.0/24,fd00:9::/32") }, want4: testnet.Pod4, want6: testnet.Pod6},
		{name: "upstream", change: func(_ *masq.Config, o *masq.Options) { o.UpstreamCompat = true }, want4: testnet.Node4, want6: testnet.Node6},
		{name: "this interface", change: func(c *masq.Config, _ *masq.Options) { c.OutputInterfaces = []string{"eth0", "eth9"} }, want4: testnet.Node4, want6: testnet.Node6},
		{name: "another interface", change: func(c *masq.Config, _ *masq.Options) { c.OutputInterfaces = []string{"eth9"} }, want4: testnet.Pod4, want6: testnet.Pod6},
		{name: "an address", change: func(c *masq.Config, _ *masq.Options) { c.SNATAddress = parse("10.7.0.0/16") }, want4: netip.MustParseAddr("10.7.0.1"), want6: testnet.Node6},
		{name: "ports", change: func(_ *masq.Config, o *masq.Options) {
			o.Ports = []masq.PortRange{{First: 100, Last: 150}, {First: 151, Last: 200}}
		}, want4: testnet.Node4, want6: testnet.Node6, ports: [2]uint16{100, 200}},
	} {
		for name, openBackend := range backends {
			t.Run(tc.name+"/"+name, func(t *testing.T) {
				n := network(t)
				if tc.before != "" {
					netnstest.Run(t, n.Node, tc.before, netnstest.Program(t, "nft"), "-f", "-")
				}
				netnstest.Run(t, n.Node, "", netnstest.Program(t, "ip"), "addr", "add", "10.7.0.1/32", "dev", "lo")
				netnstest.Run(t, n.Service, "", "ip", "route", "add", "10.7.0.0/16", "via", "10.0.0.11")
				b := openBackend(t, n.Node)
				if _, err := b.Apply(t.Context(), rules(t, n, tc.change), 1); err != nil {
					t.Fatal(err)
				}
				for range 5 {
					got4, got6 := seen(t, n.Pod, testnet.Pod4, testnet.Service4, n), seen(t, n.Pod, testnet.Pod6, testnet.Service6, n)
					if got4.Addr() != tc.want4 || got6.Addr() != tc.want6 {
						t.Fatalf("the service saw %s and %s, want %s and %s", got4, got6, tc.want4, tc.want6)
					}
					if p := got4.Port(); tc.ports[0] != 0 && (p < tc.ports[0] || p > tc.ports[1]) {
						t.Fatalf("the service saw port %d, want %v", p, tc.ports)
					}
				}
				// What the node itself sends keeps its address and port.
				if tc.before == "" {
					if got := seen(t, n.Node, testnet.Node4, testnet.Service4, n); got.Addr() != testnet.Node4 {
						t.Errorf("the node itself was seen as %s", got)
					}
				}
			})
		}
	}
}

// theirs is another agent that masquerades everything, later than us.
const theirs = `table inet theirs { chain post { type nat hook postrouting priority 110; masquerade; }; }`

// The host's own traffic: upstream's rules rewrite its port, ours do not.
func TestTheNodesOwnPortsStay(t *testing.T) {
	for name, openBackend := range backends {
		t.Run(name, func(t *testing.T) {
			n := network(t)
			if _, err := openBackend(t, n.Node).Apply(t.Context(), rules(t, n, nil), 1); err != nil {
				t.Fatal(err)
			}
			var server, client net.PacketConn
			netnstest.Do(t, n.Service, func() (err error) {
				server, err = net.ListenPacket("udp", "203.0.113.10:0")
				return err
			})
			defer server.Close()
			netnstest.Do(t, n.Node, func() (err error) {
				client, err = net.ListenPacket("udp", "10.0.0.11:4321")
				return err
			})
			defer client.Close()
			if _, err := client.WriteTo([]byte("x"), server.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			server.SetReadDeadline(time.Now().Add(time.Minute))
			if _, from, err := server.ReadFrom(make([]byte, 8)); err != nil || from.String() != "10.0.0.11:4321" {
				t.Errorf("the service saw %v, %v", from, err)
			}
		})
	}
}

// TestAConnectionSurvivesEveryChange keeps one TCP connection talking while
// rules are replaced around it.
func TestAConnectionSurvivesEveryChange(t *testing.T) {
	for name, openBackend := range backends {
		t.Run(name, func(t *testing.T) {
			n := network(t)
			b := openBackend(t, n.Node)
			plain := rules(t, n, nil)
			if _, err := b.Apply(t.Context(), plain, 1); err != nil {
				t.Fatal(err)
			}
			talk := n.Connection(t)
			for i, change := range []func(*masq.Config, *masq.Options){
				func(c *masq.Config, _ *masq.Options) {
					c.NonMasquerade, c.NonMasqueradeGiven = parse("0.0.0.0/0,::/0"), true
				},
				func(c *masq.Config, _ *masq.Options) { c.EnforceNonMasquerade = true },
				func(c *masq.Config, _ *masq.Options) { c.OutputInterfaces = []string{"eth9"} },
				nil,
			} {
				if _, err := b.Apply(t.Context(), rules(t, n, change), uint64(i+2)); err != nil {
					t.Fatal(err)
				}
				talk(fmt.Sprintf("after change %d", i))
			}
		})
	}
}

// upstream is the rules of another agent of each form; the chain is put in.
const upstream = `*nat
:%[1]s - [0:0]
-A POSTROUTING -m comment --comment "\"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom %[1]s chain\"" -m addrtype ! --dst-type LOCAL -j %[1]s
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom %[1]s chain" -m addrtype ! --dst-type LOCAL -j %[1]s
-A %[1]s -d 169.254.0.0/16 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A %[1]s -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
COMMIT
`

// TestTakeOver replaces another agent's rules by ours under a stream of new
// connections; a counter at the service looks for the Pod's address.
func TestTakeOver(t *testing.T) {
	for _, chain := range []string{"IP-MASQ-AGENT", "IP-MASQ"} {
		for _, flavour := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
			for name, openBackend := range backends {
				t.Run(fmt.Sprintf("%s/%s/%s", chain, flavour, name), func(t *testing.T) {
					n := network(t)
					netnstest.Run(t, n.Node, fmt.Sprintf(upstream, chain), netnstest.Program(t, "iptables-"+string(flavour)+"-restore"), "--noflush")
					netnstest.Run(t, n.Service, `table ip watch {
						counter pods { }
						counter nodes { }
						chain in { type filter hook input priority 0; ip saddr 192.168.0.0/16 counter name pods; ip saddr 10.0.0.0/8 counter name nodes; }
					}`, netnstest.Program(t, "nft"), "-f", "-")
					talk := n.Connection(t)
					stop := n.Stream(t)
					b := openBackend(t, n.Node)
					if _, err := b.Apply(t.Context(), rules(t, n, nil), 1); err != nil {
						t.Fatal(err)
					}
					others := takeOver(t, n, name, chain)
					if removed, unreadable, err := others(); err != nil || len(unreadable) != 0 {
						t.Fatalf("removed %v, unreadable %v, %v", removed, unreadable, err)
					}
					if removed, _, err := others(); err != nil || len(removed) != 0 {
						t.Errorf("taken over again: %v, %v", removed, err)
					}
					stop()
					talk("after the take-over")
					out := netnstest.Run(t, n.Service, "", "nft", "list", "counters")
					if !strings.Contains(out, "counter pods {\n\t\tpackets 0 bytes 0") {
						t.Errorf("the service saw the Pod's address:\n%s", out)
					}
					left := netnstest.Run(t, n.Node, "", "iptables-"+string(flavour), "-t", "nat", "-S")
					own := name == "iptables-"+string(flavour) && chain == masq.DefaultChain
					if strings.Contains(left, "-N "+chain+"\n") != own {
						t.Errorf("left:\n%s", left)
					}
				})
			}
		}
	}
}

// TestNoPacketEscapesAReplacement replaces rules by others of another
// structure, many times, under a stream of new connections whose verdict is
// the same before and after.
func TestNoPacketEscapesAReplacement(t *testing.T) {
	exempt := func(c *masq.Config) { c.NonMasquerade = append(c.NonMasquerade, parse("203.0.113.0/24")...) }
	for verdict, always := range map[string]func(*masq.Config){"masqueraded": func(*masq.Config) {}, "exempt": exempt} {
		for name, openBackend := range backends {
			t.Run(verdict+"/"+name, func(t *testing.T) {
				n := network(t)
				b := openBackend(t, n.Node)
				// More ranges take longer, and make several sets of them.
				var sets []masq.RuleSet
				times := 30
				for i, count := range []int{3, 6000, 300} {
					if name != "nftables" {
						count, times = min(count, 300), 9
					}
					sets = append(sets, rules(t, n, func(c *masq.Config, _ *masq.Options) {
						c.NonMasqueradeGiven, c.NonMasquerade = true, nil
						for k := range count {
							c.NonMasquerade = append(c.NonMasquerade, masq.Range{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(k >> 8), byte(k), 0}), 25)})
						}
						if i == 2 {
							c.OutputInterfaces = []string{"eth0", "eth1"}
						}
						always(c)
					}))
				}
				if _, err := b.Apply(t.Context(), sets[0], 1); err != nil {
					t.Fatal(err)
				}
				netnstest.Run(t, n.Service, `table ip watch {
					counter pods { }
					counter nodes { }
					chain in { type filter hook prerouting priority -300; ip saddr 192.168.0.0/16 counter name pods drop; ip saddr 10.0.0.0/8 counter name nodes drop; }
				}`, netnstest.Program(t, "nft"), "-f", "-")
				stop := n.Stream(t)
				for i := range times {
					if c, err := b.Apply(t.Context(), sets[(i+1)%len(sets)], uint64(i+2)); err != nil || !c.Wrote {
						t.Fatalf("wrote %v, %v", c.Wrote, err)
					}
				}
				stop()
				out := netnstest.Run(t, n.Service, "", "nft", "list", "counters")
				never := map[string]string{"masqueraded": "pods", "exempt": "nodes"}[verdict]
				if !strings.Contains(out, "counter "+never+" {\n\t\tpackets 0 bytes 0") {
					t.Errorf("the service saw %s:\n%s", never, out)
				}
			})
		}
	}
}

func takeOver(t *testing.T, n *testnet.Net, backend, chain string) func() ([]foreign.Predecessor, []string, error) {
	t.Helper()
	var others *foreign.Node
	netnstest.Do(t, n.Node, func() (err error) {
		others, err = foreign.Open(foreign.Options{OwnTable: nftables.DefaultTable, Chains: []string{chain}})
		return err
	})
	t.Cleanup(func() { others.Close() })
	var keep []foreign.Keep
	if flavour, ok := strings.CutPrefix(backend, "iptables-"); ok {
		keep = []foreign.Keep{{Flavour: flavour, Chain: masq.DefaultChain}}
	}
	return func() ([]foreign.Predecessor, []string, error) { return others.RemovePredecessors(t.Context(), keep) }
}

// TestMulticastAndBroadcastStay sends from an address in a Pod range what no
// answer comes back to; upstream's rules translate it, ours do not.
func TestMulticastAndBroadcastStay(t *testing.T) {
	for name, openBackend := range backends {
		for _, upstream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/upstream=%t", name, upstream), func(t *testing.T) {
				n := network(t)
				// The node holds an address in the Pod range, as with a bridge.
				const source = "192.168.1.1"
				netnstest.Run(t, n.Node, "", netnstest.Program(t, "ip"), "addr", "add", source+"/32", "dev", "eth0")
				netnstest.Run(t, n.Node, "", "ip", "route", "add", "239.1.1.1", "dev", "eth0")
				b := openBackend(t, n.Node)
				rs := rules(t, n, func(c *masq.Config, o *masq.Options) {
					c.NonMasquerade, c.NonMasqueradeGiven, o.UpstreamCompat = nil, true, upstream
					o.Cluster.Node = nil // or the broadcast address would be exempt
				})
				if _, err := b.Apply(t.Context(), rs, 1); err != nil {
					t.Fatal(err)
				}
				for dst, translated := range map[string]bool{"239.1.1.1": upstream, "10.0.0.255": upstream, "255.255.255.255": upstream, "203.0.113.10": true} {
					want := source
					if translated {
						want = testnet.Node4.String()
					}
					if got := seenOf(t, n, source, dst); got != want {
						t.Errorf("to %s: seen as %s, want %s", dst, got, want)
					}
				}
			})
		}
	}
}

// seenOf sends from the node, and listens at the service's interface to
// whatever it is that is sent to.
func seenOf(t *testing.T, n *testnet.Net, source, dst string) string {
	t.Helper()
	const port = 4242
	var server, client *net.UDPConn
	netnstest.Do(t, n.Service, func() (err error) {
		if ip := net.ParseIP(dst); ip.IsMulticast() {
			eth0, ifErr := net.InterfaceByName("eth0")
			if ifErr != nil {
				return ifErr
			}
			server, err = net.ListenMulticastUDP("udp4", eth0, &net.UDPAddr{IP: ip, Port: port})
			return err
		}
		server, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	defer server.Close()
	netnstest.Do(t, n.Node, func() (err error) {
		client, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(source)})
		return err
	})
	defer client.Close()
	if err := server.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(dst), Port: port}); err != nil {
		t.Fatalf("to %s: %v", dst, err)
	}
	_, from, err := server.ReadFromUDP(make([]byte, 8))
	if err != nil {
		t.Fatalf("to %s: %v", dst, err)
	}
	return from.IP.String()
}
