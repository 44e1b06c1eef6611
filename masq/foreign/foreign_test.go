package foreign

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/internal/testnet"
	"sordino/masq"
	"sordino/masq/xtables"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, ns *netns.NS, o Options) *Node {
	t.Helper()
	o.OwnTable = "ip-masq-agent"
	var n *Node
	netnstest.Do(t, ns, func() (err error) {
		n, err = Open(o)
		return err
	})
	t.Cleanup(func() { n.Close() })
	return n
}

func nft(t *testing.T, ns *netns.NS, rules string) {
	t.Helper()
	netnstest.Run(t, ns, rules, netnstest.Program(t, "nft"), "-f", "-")
}

// restore adds rules by the program of a flavour.
func restore(t *testing.T, ns *netns.NS, f xtables.Flavour, family masq.Family, rules string) {
	t.Helper()
	netnstest.Run(t, ns, "*nat\n"+rules+"COMMIT\n", netnstest.Program(t, tool(family)+"-"+string(f)+"-restore"), "--noflush")
}

func tool(family masq.Family) string {
	if family == masq.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// list prints the nat table of a flavour, sorted: the order of chains says nothing.
func list(t *testing.T, ns *netns.NS, f xtables.Flavour, family masq.Family) string {
	t.Helper()
	return netnstest.Run(t, ns, "", tool(family)+"-"+string(f), "-t", "nat", "-S")
}

// The rules of the agents that are taken over, as they write them.
var predecessors = map[string]struct{ chain, rules string }{
	"upstream": {"IP-MASQ-AGENT", `:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE --random-fully
`},
	"upstream, with the quotes of older versions and both jumps": {"IP-MASQ-AGENT", `:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "\"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain\"" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
`},
	"GKE": {"IP-MASQ", `:IP-MASQ - [0:0]
-A POSTROUTING -m comment --comment "ip-masq: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ
-A IP-MASQ -m comment --comment "ip-masq: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ -m comment --comment "ip-masq: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
`},
	"Azure": {"IP-MASQ-AGENT", `:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "\"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain\"" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
`},
	"one with a chain of its own": {"MY-MASQ", `:MY-MASQ - [0:0]
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom MY-MASQ chain" -m addrtype ! --dst-type LOCAL -j MY-MASQ
`},
	"one that lost its jump": {"IP-MASQ-AGENT", `:IP-MASQ-AGENT - [0:0]
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
`},
}

// others are rules of the components that share a node.
const others = `:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:DOCKER - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -m comment --comment "not ip-masq-agent: of ours" -j DOCKER
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
`

// others6 fits ip6tables.
var others6 = strings.ReplaceAll(others, "172.17.0.0/16", "fd00:17::/64")

func TestOnlyPredecessorsAreRemoved(t *testing.T) {
	for name, p := range predecessors {
		for _, flavour := range []xtables.Flavour{xtables.NFT, xtables.Legacy} {
			for _, family := range []masq.Family{masq.IPv4, masq.IPv6} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, flavour, family), func(t *testing.T) {
					ns := netnstest.New(t)
					theirs := others
					if family == masq.IPv6 {
						theirs = others6
					}
					restore(t, ns, flavour, family, theirs)
					before := list(t, ns, flavour, family)
					restore(t, ns, flavour, family, p.rules)

					n := open(t, ns, Options{Chains: []string{"MY-MASQ"}})
					// Our own backend's chain stays whatever is in it.
					gone, unreadable, err := n.RemovePredecessors(t.Context(), []Keep{{string(flavour), p.chain}})
					if err != nil || len(gone) != 0 || len(unreadable) != 0 {
						t.Fatalf("a kept chain: %v, %v, %v", gone, unreadable, err)
					}
					gone, unreadable, err = n.RemovePredecessors(t.Context(), nil)
					if err != nil || len(gone) != 1 || len(unreadable) != 0 {
						t.Fatalf("removed %v, unreadable %v, %v", gone, unreadable, err)
					}
					want := Predecessor{family, string(flavour), p.chain, strings.Count(p.rules, "-A POSTROUTING"), strings.Count(p.rules, "-A "+p.chain), xtables.AgentOf(p.chain).Name}
					if gone[0] != want {
						t.Errorf("removed %+v, want %+v", gone[0], want)
					}
					if after := list(t, ns, flavour, family); after != before {
						t.Errorf("before the agent came:\n%s\nafter it went:\n%s", before, after)
					}
					if gone, _, err := n.RemovePredecessors(t.Context(), nil); err != nil || len(gone) != 0 {
						t.Errorf("removed again: %v, %v", gone, err)
					}
				})
			}
		}
	}
}

// A chain of an agent's name without a word of an agent's is somebody else's.
func TestAChainThatOnlyHasTheName(t *testing.T) {
	for _, flavour := range []xtables.Flavour{xtables.NFT, xtables.Legacy} {
		ns := netnstest.New(t)
		restore(t, ns, flavour, masq.IPv4, ":IP-MASQ - [0:0]\n-A POSTROUTING -j IP-MASQ\n-A IP-MASQ -m comment --comment \"by hand\" -j MASQUERADE\n")
		before := list(t, ns, flavour, masq.IPv4)
		if gone, _, err := open(t, ns, Options{}).RemovePredecessors(t.Context(), nil); err != nil || len(gone) != 0 {
			t.Errorf("removed %v, %v", gone, err)
		}
		if after := list(t, ns, flavour, masq.IPv4); after != before {
			t.Errorf("%s:\n%s", flavour, after)
		}
	}
}

// Looking for legacy rules must not make the kernel load legacy tables.
func TestLookingLeavesNoTraces(t *testing.T) {
	ns := netnstest.New(t)
	n := open(t, ns, Options{})
	if _, _, err := n.RemovePredecessors(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Rewrites(t.Context(), flow); err != nil {
		t.Fatal(err)
	}
	if n.legacyInUse(masq.IPv4) || n.legacyInUse(masq.IPv6) {
		t.Error("a legacy nat table is there now")
	}
	if out := netnstest.Run(t, ns, "", netnstest.Program(t, "nft"), "list", "ruleset"); out != "" {
		t.Errorf("nft tables are there now:\n%s", out)
	}
}

func TestWatchHearsOfPredecessorsAlone(t *testing.T) {
	ns := netnstest.New(t)
	restore(t, ns, xtables.NFT, masq.IPv4, others)
	n := open(t, ns, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	touched := make(chan struct{}, 100)
	done := make(chan error)
	go func() { done <- n.Watch(ctx, func() { touched <- struct{}{} }) }()
	<-touched // it listens
	for range 20 {
		netnstest.Run(t, ns, "", "iptables-nft", "-t", "nat", "-A", "DOCKER", "-j", "RETURN")
	}
	nft(t, ns, "table inet other { chain post { type nat hook postrouting priority 0; masquerade; }; }")
	restore(t, ns, xtables.NFT, masq.IPv4, predecessors["upstream"].rules)
	<-touched
	if more := len(touched); more > 10 { // one for the chain, and one for each of its rules
		t.Errorf("others' rules woke it: %d times more", more)
	}
	if gone, _, err := n.RemovePredecessors(t.Context(), nil); err != nil || len(gone) != 1 {
		t.Fatalf("%v, %v", gone, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// flow is what the rules are asked for.
var flow = masq.Flow{Src: testnet.Pod4, Dst: testnet.Service4, Protocol: "tcp", DstPort: 443, OutputInterface: "eth0"}

// found is a Rewrite in short: effect, ! when it is certain, what it depends on.
func found(list []Rewrite) string {
	var out []string
	for _, r := range list {
		s := r.Effect
		if r.Certain {
			s += "!"
		}
		if len(r.Unknown) > 0 {
			s += " (" + strings.Join(r.Unknown, ", ") + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func TestRewritesOfNFTRules(t *testing.T) {
	for _, tc := range []struct{ name, sets, rules, want string }{
		{"everything", "", "masquerade", "masquerade!"},
		{"the first decides", "", "snat to 10.0.0.5; masquerade", "snat to 10.0.0.5!"},
		{"a source", "", "ip saddr 192.168.0.0/16 masquerade", "masquerade!"},
		{"a source of whole bits", "", "ip saddr 192.160.0.0/12 masquerade", "masquerade!"},
		{"another source", "", "ip saddr 192.169.0.0/16 masquerade", ""},
		{"not a destination", "", "ip daddr != 203.0.113.0/24 masquerade", ""},
		{"a range", "", "ip daddr 203.0.113.5-203.0.113.20 masquerade", "masquerade!"},
		{"not a range", "", "ip daddr != 203.0.113.5-203.0.113.20 masquerade", ""},
		{"a port", "", "tcp dport 443 masquerade", "masquerade!"},
		{"ports", "", "tcp dport { 80, 443 } masquerade", "masquerade!"},
		{"a range of ports", "", "tcp dport 400-500 masquerade", "masquerade!"},
		{"another port", "", "tcp dport 80 masquerade", ""},
		{"another protocol", "", "udp dport 443 masquerade", ""},
		{"protocols", "", "meta l4proto { tcp, udp } masquerade", "masquerade!"},
		{"a source port", "", "tcp sport 1024-65535 masquerade", "masquerade (the source port or other transport fields)"},
		{"an interface", "", "oifname \"eth0\" masquerade", "masquerade!"},
		{"interfaces", "", "oifname \"eth*\" masquerade", "masquerade!"},
		{"another interface", "", "oifname != \"eth0\" masquerade", ""},
		{"where it comes in", "", "iifname \"cni0\" masquerade", "masquerade (the incoming interface)"},
		{"the mark", "", "meta mark and 0x4000 == 0x4000 masquerade", "masquerade (" + markUnknown + ")"},
		{"a new connection", "", "ct state new masquerade", "masquerade!"},
		{"an established one", "", "ct state established masquerade", ""},
		{"translated before", "", "ct status dnat masquerade", "masquerade (connection tracking data)"},
		{"a set", "set s { type ipv4_addr; elements = { 203.0.113.10 }; }", "ip daddr @s masquerade", "masquerade!"},
		{"not in a set", "set s { type ipv4_addr; elements = { 203.0.113.10 }; }", "ip daddr != @s masquerade", ""},
		{"a set of ranges", "set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 203.0.113.0/24 }; }", "ip daddr @s return; masquerade", ""},
		{"between the ranges of a set", "set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 224.0.0.0/4 }; }", "ip daddr @s return; masquerade", "masquerade!"},
		{"an empty set", "set s { type ipv4_addr; flags interval; }", "ip daddr @s return; masquerade", "masquerade!"},
		{"a set of pairs", "set s { type ipv4_addr . inet_service; elements = { 203.0.113.10 . 443 }; }", "ip daddr . tcp dport @s masquerade", "masquerade (set s)"},
		{"local destinations", "", "fib daddr type local return; masquerade", "masquerade!"},
		{"not local", "", "fib daddr type != local masquerade", "masquerade!"},
		{"a local source", "", "fib saddr type local masquerade", ""},
		{"a rate", "", "limit rate 5/second masquerade", "masquerade (limit)"},
		{"chance", "", "numgen random mod 2 0 masquerade", "masquerade (chance)"},
		{"accepted before", "", "ip daddr 203.0.113.10 accept; masquerade", ""},
		{"perhaps accepted before", "", "meta mark 1 accept; masquerade", "masquerade (" + markUnknown + ")"},
		{"perhaps masqueraded before", "", "meta mark 1 masquerade; snat to 10.0.0.5", "masquerade (" + markUnknown + "); snat to 10.0.0.5 (" + markUnknown + ")"},
		{"to itself", "", "ip saddr 192.168.1.2 snat to 192.168.1.2; masquerade", ""},
		{"to what a map says", "map m { type ipv4_addr : ipv4_addr; elements = { 192.168.1.2 : 10.0.0.9 }; }", "snat to ip saddr map @m", "snat to 10.0.0.9!"},
		{"to what a map does not say", "map m { type ipv4_addr : ipv4_addr; elements = { 192.168.1.3 : 10.0.0.9 }; }", "snat to ip saddr map @m; masquerade", "masquerade!"},
		{"to what a map of marks says", "map m { type mark : ipv4_addr; elements = { 1 : 10.0.0.9 }; }", "snat to meta mark map @m", "snat (" + markUnknown + ")"},
		{"to its own address by a map", "map m { type ipv4_addr : ipv4_addr; elements = { 192.168.1.2 : 192.168.1.2 }; }", "snat to ip saddr map @m; masquerade", ""},
		{"a field that is not understood", "", "ip daddr 203.0.113.10 tcp option maxseg size 1400 masquerade", "masquerade (exthdr)"},
		{"dropped before", "", "ip daddr 203.0.113.10 drop; masquerade", ""},
		{"kube-proxy", "chain k { meta mark & 0x4000 != 0x4000 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }", "jump k", "masquerade (" + markUnknown + ")"},
		{"a chain that returns", "chain c { ip daddr 203.0.113.0/24 return; masquerade; }", "jump c; snat to 10.0.0.5", "snat to 10.0.0.5!"},
		{"a chain that accepts", "chain c { ip daddr 203.0.113.0/24 accept; }", "jump c; masquerade", ""},
		{"a chain that perhaps returns and else accepts", "chain c { meta mark 1 return; accept; }", "jump c; masquerade", "masquerade (" + markUnknown + ")"},
		{"a chain that is perhaps left for another, and else accepts", "chain d { counter; }; chain c { meta mark 1 goto d; accept; }", "jump c; masquerade", "masquerade (" + markUnknown + ")"},
		{"goto ends the chain", "chain c { ip daddr 10.0.0.0/8 masquerade; }", "goto c; masquerade", ""},
		{"a jump deep down", "chain e { masquerade; }; chain d { tcp dport 443 jump e; }; chain c { jump d; }", "ip saddr 192.168.1.2 jump c", "masquerade!"},
		{"a verdict map", "chain c { masquerade; }", "ip daddr vmap { 203.0.113.10 : jump c, 203.0.113.11 : accept }", "masquerade!"},
		{"another entry of a verdict map", "chain c { masquerade; }", "ip daddr vmap { 203.0.113.11 : jump c }", ""},
		{"a verdict map that ends it", "", "ip saddr vmap { 192.168.0.0/16 : accept }; masquerade", ""},
		{"a verdict map of what is not known", "chain c { masquerade; }; chain d { accept; }", "meta mark vmap { 1 : jump c, 2 : goto d }", "masquerade (" + markUnknown + ")"},
		{"a verdict map of pairs", "chain c { masquerade; }", "ip daddr . tcp dport vmap { 203.0.113.10 . 443 : goto c }", "masquerade (map __map0)"},
		{"not a NAT chain", "chain f { type filter hook postrouting priority 0; drop; }", "masquerade", "masquerade!"},
		{"IPv6 alone", "", "meta nfproto ipv6 masquerade", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := netnstest.New(t)
			family := "ip"
			if strings.Contains(tc.rules, "nfproto") {
				family = "inet"
			}
			nft(t, ns, fmt.Sprintf("table %s t { %s; chain post { type nat hook postrouting priority srcnat; %s; }; }", family, strings.TrimSpace(tc.sets), tc.rules))
			got, err := open(t, ns, Options{}).Rewrites(t.Context(), flow)
			if err != nil {
				t.Fatal(err)
			}
			if found(got) != tc.want {
				t.Errorf("got  %s\nwant %s\n%+v", found(got), tc.want, got)
			}
		})
	}
}

func TestRewritesOfIPTables(t *testing.T) {
	for _, tc := range []struct{ name, rules, want string }{
		{"docker", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", ""},
		{"a CNI", "-A POSTROUTING -s 192.168.0.0/16 ! -d 192.168.0.0/16 -j MASQUERADE", "masquerade!"},
		{"flannel", ":FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n-A FLANNEL-POSTRTG -s 192.168.0.0/16 -d 192.168.0.0/16 -j RETURN\n-A FLANNEL-POSTRTG -s 192.168.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully", "masquerade (" + markUnknown + ")"},
		{"kube-proxy", others, "masquerade (" + markUnknown + "); masquerade (" + markUnknown + ")"},
		{"upstream's agent", predecessors["upstream"].rules, "masquerade!"},
		{"a protocol and port", "-A POSTROUTING -p tcp -m tcp --dport 440:443 -j MASQUERADE", "masquerade!"},
		{"another port", "-A POSTROUTING -p tcp -m tcp --dport 80 -j MASQUERADE", ""},
		{"another protocol", "-A POSTROUTING -p udp -j MASQUERADE", ""},
		{"not a protocol", "-A POSTROUTING ! -p tcp -j MASQUERADE", ""},
		{"local destinations", "-A POSTROUTING -m addrtype --dst-type LOCAL -j RETURN\n-A POSTROUTING -j MASQUERADE", "masquerade!"},
		{"local sources", "-A POSTROUTING -m addrtype --src-type LOCAL -j MASQUERADE", ""},
		{"an interface", "-A POSTROUTING -o eth+ -j MASQUERADE", "masquerade!"},
		{"another interface", "-A POSTROUTING -o eth1 -j MASQUERADE", ""},
		{"accepted before", "-A POSTROUTING -d 203.0.113.0/24 -j ACCEPT\n-A POSTROUTING -j MASQUERADE", ""},
		{"goto", ":X - [0:0]\n-A POSTROUTING -g X\n-A POSTROUTING -j MASQUERADE\n-A X -d 10.0.0.0/8 -j MASQUERADE", ""},
		{"a chain that perhaps returns and else accepts", ":X - [0:0]\n-A POSTROUTING -j X\n-A POSTROUTING -j MASQUERADE\n-A X -m mark --mark 1 -j RETURN\n-A X -j ACCEPT", "masquerade (" + markUnknown + ")"},
	} {
		for _, flavour := range []xtables.Flavour{xtables.NFT, xtables.Legacy} {
			t.Run(tc.name+"/"+string(flavour), func(t *testing.T) {
				ns := netnstest.New(t)
				restore(t, ns, flavour, masq.IPv4, tc.rules+"\n")
				got, err := open(t, ns, Options{}).Rewrites(t.Context(), flow)
				if err != nil {
					t.Fatal(err)
				}
				if found(got) != tc.want {
					t.Errorf("got  %s\nwant %s\n%+v", found(got), tc.want, got)
				}
			})
		}
	}
	// What is not understood makes the answer open, in both flavours.
	for rules, wants := range map[string][2]string{
		"-A POSTROUTING -m statistic --mode random --probability 0.5 -j MASQUERADE": {"statistic", "--mode"},
		"-A POSTROUTING -p tcp -m multiport --dports 80,443 -j MASQUERADE":          {"", "--dports"},
		"-A POSTROUTING -m conntrack --ctstate DNAT -j SNAT --to-source 10.0.0.5":   {"conntrack", "--ctstate"},
		"-A POSTROUTING -m limit --limit 5/sec -j NETMAP --to 10.0.0.0/16":          {"", "--limit"},
	} {
		for i, flavour := range []xtables.Flavour{xtables.NFT, xtables.Legacy} {
			ns := netnstest.New(t)
			restore(t, ns, flavour, masq.IPv4, rules+"\n")
			got, err := open(t, ns, Options{}).Rewrites(t.Context(), flow)
			if err != nil || len(got) != 1 || got[0].Certain || !strings.Contains(strings.Join(got[0].Unknown, " "), wants[i]) {
				t.Errorf("%s: %s: %+v, %v", flavour, rules, got, err)
			}
		}
	}
}

func TestRewritesInTheKernelsOrder(t *testing.T) {
	ns := netnstest.New(t)
	nft(t, ns, `
table ip late { chain post { type nat hook postrouting priority 200; snat to 10.0.0.3; }; }
table inet early { chain post { type nat hook postrouting priority 50; meta mark 1 snat ip to 10.0.0.1; }; }
table ip pre { chain pre { type nat hook prerouting priority 0; dnat to 10.0.0.9; }; }
table ip6 six { chain post { type nat hook postrouting priority 0; masquerade; }; }
table inet ip-masq-agent { chain post { type nat hook postrouting priority 99; masquerade; }; }`)
	restore(t, ns, xtables.NFT, masq.IPv4, "-A POSTROUTING -o eth7 -j MASQUERADE\n-A POSTROUTING -m mark --mark 2 -j SNAT --to-source 10.0.0.2\n")
	got, err := open(t, ns, Options{}).Rewrites(t.Context(), flow)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, r := range got {
		order = append(order, fmt.Sprintf("%d %t %t %s", r.Priority, r.BeforeOurs, r.Certain, strings.Fields(r.Where)[2]))
	}
	if want := []string{"50 true false early", "100 false false nat", "200 false false late"}; !slices.Equal(order, want) {
		t.Errorf("got %q, want %q", order, want)
	}
	six := masq.Flow{Src: testnet.Pod6, Dst: testnet.Service6}
	if got, err := open(t, ns, Options{}).Rewrites(t.Context(), six); err != nil || len(got) == 0 || !strings.Contains(got[0].Where, "ip6 six") {
		t.Errorf("IPv6: %+v, %v", got, err)
	}
}

// Accepting ends one table's chain; translating to itself, or dropping, ends all.
func TestWhatBindsAFlow(t *testing.T) {
	for first, want := range map[string]string{"accept": "masquerade!", "return": "masquerade!", "ip saddr 192.168.1.2 snat to 192.168.1.2": "", "drop": "",
		"meta mark 1 ip saddr 192.168.1.2 snat to 192.168.1.2": "masquerade (" + markUnknown + ")"} {
		ns := netnstest.New(t)
		nft(t, ns, "table ip a { chain post { type nat hook postrouting priority 0; "+first+"; }; }; table ip b { chain post { type nat hook postrouting priority 1; masquerade; }; }")
		if got, err := open(t, ns, Options{}).Rewrites(t.Context(), flow); err != nil || found(got) != want {
			t.Errorf("after %s: got %q, want %q, %v", first, found(got), want, err)
		}
	}
}

func TestTranslators(t *testing.T) {
	ns := netnstest.New(t)
	nft(t, ns, `table ip nat {
		chain KUBE-POSTROUTING { meta mark & 0x4000 != 0x4000 return; masquerade; }
		chain CNI-0123456789abcdef01234567 { ip daddr 10.0.0.0/8 accept; ip daddr != 224.0.0.0/4 masquerade; }
		chain CNI-76543210fedcba9876543210 { ip daddr != 224.0.0.0/4 masquerade; }
		chain IP-MASQ-AGENT { masquerade; }
		chain UNUSED { masquerade; }
		chain POSTROUTING { type nat hook postrouting priority srcnat;
			jump KUBE-POSTROUTING; ip saddr 10.88.1.2 jump CNI-0123456789abcdef01234567; ip saddr 10.88.1.3 goto CNI-76543210fedcba9876543210; jump IP-MASQ-AGENT; }
		chain OUTPUT { type nat hook output priority -100; dnat to 10.0.0.1; }
	}
	table inet ip-masq-agent { chain post { type nat hook postrouting priority 90; masquerade; }; }
	table ip6 theirs { chain post { type nat hook postrouting priority 90; snat to fd00::1; }; }`)
	got, err := open(t, ns, Options{}).Translators(t.Context(), []Keep{{"nft", "IP-MASQ-AGENT"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Translator{{"ip nat", "CNI-*", 2}, {"ip nat", "KUBE-POSTROUTING", 1}, {"ip6 theirs", "post", 1}}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestRewritesOfAFlowThatIsHalfKnown(t *testing.T) {
	ns := netnstest.New(t)
	nft(t, ns, "table ip t { chain post { type nat hook postrouting priority 0; tcp dport 443 oifname eth0 masquerade; }; }")
	got, err := open(t, ns, Options{}).Rewrites(t.Context(), masq.Flow{Src: flow.Src, Dst: flow.Dst})
	if want := "masquerade (the destination port, the outgoing interface, the protocol)"; err != nil || found(got) != want {
		t.Errorf("got %s, %v", found(got), err)
	}
	legacy := netnstest.New(t)
	restore(t, legacy, xtables.Legacy, masq.IPv4, "-A POSTROUTING -o eth0 -p tcp -m tcp --dport 443 -j MASQUERADE\n")
	got, err = open(t, legacy, Options{}).Rewrites(t.Context(), masq.Flow{Src: flow.Src, Dst: flow.Dst})
	if want := "masquerade (the destination port, the outgoing interface, the protocol)"; err != nil || found(got) != want {
		t.Errorf("legacy: got %s, %v", found(got), err)
	}
}

// The node's own addresses and broadcast addresses are what the kernel's fib
// and addrtype say of them.
func TestKindsOfAddresses(t *testing.T) {
	n, err := testnet.New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	nft(t, n.Node, "table ip t { chain post { type nat hook postrouting priority 0; fib daddr type { local, broadcast, multicast } return; masquerade; }; }")
	node := open(t, n.Node, Options{})
	for dst, want := range map[string]string{
		"203.0.113.10": "masquerade!", "10.0.0.12": "masquerade!", "10.0.0.11": "", "127.0.0.1": "", "239.1.1.1": "", "255.255.255.255": "", "10.0.0.255": "",
	} {
		f := flow
		f.Dst = netip.MustParseAddr(dst)
		if got, err := node.Rewrites(t.Context(), f); err != nil || found(got) != want {
			t.Errorf("%s: got %q, want %q, %v", dst, found(got), want, err)
		}
	}
}

func TestConntrackUsers(t *testing.T) {
	for _, tc := range []struct {
		name string
		add  func(*testing.T, *netns.NS)
		want string
	}{
		{"nobody", func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table inet ip-masq-agent { chain post { type nat hook postrouting priority 99; masquerade; }; chain count { type filter hook forward priority 0; ct direction original counter; }; }\ntable inet fw { chain in { type filter hook input priority 0; tcp dport 22 accept; }; }")
		}, ""},
		{"another table of our name", func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table ip ip-masq-agent { chain post { type nat hook postrouting priority 99; }; }")
		}, "table ip ip-masq-agent chain post"},
		{"a firewall", func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table inet fw { chain in { type filter hook input priority 0; ct state established accept; }; }")
		}, "table inet fw chain in"},
		{"NAT without a rule", func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; }; }")
		}, "table ip nat chain POSTROUTING"},
		{"iptables-nft with conntrack", func(t *testing.T, ns *netns.NS) {
			netnstest.Run(t, ns, "", "iptables-nft", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
		}, "table ip filter chain FORWARD"},
		{"legacy NAT", func(t *testing.T, ns *netns.NS) {
			netnstest.Run(t, ns, "", "iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-j", "RETURN")
		}, "legacy iptables nat table (IPv4)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := netnstest.New(t)
			tc.add(t, ns)
			n := open(t, ns, Options{})
			users, err := n.ConntrackUsers(t.Context(), masq.IPv4)
			if err != nil || strings.Join(users, "; ") != tc.want {
				t.Errorf("got %q, want %q, %v", users, tc.want, err)
			}
			six := tc.want
			if !strings.Contains(six, "inet") {
				six = "" // what is of IPv4 alone hooks nothing into IPv6
			}
			if users, err = n.ConntrackUsers(t.Context(), masq.IPv6); err != nil || strings.Join(users, "; ") != six {
				t.Errorf("IPv6: got %q, want %q, %v", users, six, err)
			}
		})
	}
}

func TestTranslatedFlows(t *testing.T) {
	n, err := testnet.New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	node := open(t, n.Node, Options{})
	count := func(want4, want6 int) {
		t.Helper()
		for family, want := range map[masq.Family]int{masq.IPv4: want4, masq.IPv6: want6} {
			if got, err := node.TranslatedFlows(t.Context(), family); err != nil || got != want {
				t.Errorf("%d translated %s flows, want %d, %v", got, family, want, err)
			}
		}
	}
	count(0, 0)
	nft(t, n.Node, "table inet t { chain post { type nat hook postrouting priority 0; ip daddr 203.0.113.10 masquerade; ip6 daddr 2001:db8:113::10 masquerade; }; }")
	send := func(src, dst string) {
		t.Helper()
		netnstest.Do(t, n.Pod, func() error {
			conn, err := (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(src))}).Dial("udp", dst)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("x"))
			return err
		})
	}
	send("192.168.1.2:1000", "10.0.0.1:9") // passes as it is
	count(0, 0)
	send("192.168.1.2:1000", "203.0.113.10:9")
	send("192.168.1.2:1001", "203.0.113.10:9")
	count(2, 0)
	send("[fd00:c0a8:1::2]:1000", "[2001:db8:113::10]:9")
	count(2, 1)
}
