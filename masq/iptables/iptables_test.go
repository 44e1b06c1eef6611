package iptables

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/masq"
	"sordino/masq/xtables"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func parse(texts ...string) []masq.Range {
	var out []masq.Range
	for _, t := range texts {
		out = append(out, masq.Range{Prefix: netip.MustParsePrefix(t)})
	}
	return out
}

func plan(t testing.TB, change func(*masq.Config, *masq.Options)) masq.RuleSet {
	t.Helper()
	c, o := masq.DefaultConfig(false), masq.Options{Chain: masq.DefaultChain, RandomFully: true}
	if change != nil {
		change(&c, &o)
	}
	rs, _, err := masq.Plan(c, o, masq.Facts{Addresses: []masq.NodeAddress{{Interface: "eth1", Prefix: netip.MustParsePrefix("10.9.0.5/24")}}})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func open(t testing.TB, ns *netns.NS, f xtables.Flavour, chain string) *Backend {
	t.Helper()
	netnstest.Program(t, strings.TrimSuffix("iptables-"+string(f), "-"))
	var b *Backend
	netnstest.Do(t, ns, func() (err error) {
		b, err = New(t.Context(), Options{Flavour: f, Chain: chain})
		return err
	})
	t.Cleanup(func() { b.Close() })
	return b
}

var counters = regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]`)

// save prints the nat table without counters and remarks.
func save(t testing.TB, ns *netns.NS, f xtables.Flavour, program string) string {
	t.Helper()
	return counters.ReplaceAllString(netnstest.Run(t, ns, "", program+"-"+string(f)+"-save", "-t", "nat"), "")
}

func apply(t testing.TB, b *Backend, rs masq.RuleSet) masq.Change {
	t.Helper()
	c, err := b.Apply(t.Context(), rs, 1)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var shapes = map[string]func(*masq.Config, *masq.Options){
	"defaults": nil,
	"gke": func(c *masq.Config, o *masq.Options) {
		c.NonMasquerade = masq.DefaultNonMasquerade(true)
		o.ReservedRanges = true
	},
	"list": func(c *masq.Config, o *masq.Options) {
		c.NonMasquerade, c.NonMasqueradeGiven = parse("192.168.0.0/16", "10.0.0.0/8", "1.2.3.4/32", "10.0.0.0/8", "0.0.0.0/0"), true
		o.RandomFully = false
	},
	"ports": func(_ *masq.Config, o *masq.Options) {
		o.Ports = []masq.PortRange{{First: 60000, Last: 61000}, {First: 61001, Last: 62000}, {First: 63000, Last: 65000}}
	},
	"ipv6": func(c *masq.Config, o *masq.Options) {
		c.NonMasquerade, c.NonMasqueradeGiven = parse("10.0.0.0/8", "fd00::/8"), true
		o.IPv6 = true
	},
	"cluster": func(c *masq.Config, o *masq.Options) {
		c.NonMasquerade, c.NonMasqueradeGiven = parse("1.2.3.0/24"), true
		o.Cluster = masq.ClusterRanges{Node: parse("10.0.0.0/8"), Pod: parse("192.168.0.0/16", "172.16.0.0/24"), Service: parse("172.20.0.0/16")}
	},
	"everything-of-ours": func(c *masq.Config, o *masq.Options) {
		o.Cluster = masq.ClusterRanges{Pod: parse("192.168.0.0/16")}
		o.Ports = []masq.PortRange{{First: 100, Last: 200}}
		c.EnforceNonMasquerade, c.OutputInterfaces, c.SNATAddress = true, []string{"eth0", "eth1"}, parse("10.9.0.0/16")
	},
	"inverse": func(c *masq.Config, _ *masq.Options) { c.Masquerade = parse("203.0.113.0/24") },
	"upstream": func(c *masq.Config, o *masq.Options) {
		o.UpstreamCompat = true
		o.Cluster = masq.ClusterRanges{Pod: parse("192.168.0.0/16")}
	},
}

// TestGolden compares what the node's own iptables-save prints with the golden
// files, in both flavours, and looks that nothing is written twice.
func TestGolden(t *testing.T) {
	for name, change := range shapes {
		for _, f := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
			t.Run(name+"/"+string(f), func(t *testing.T) {
				ns := netnstest.New(t)
				b := open(t, ns, f, masq.DefaultChain)
				rs := plan(t, change)
				if c := apply(t, b, rs); !c.Wrote {
					t.Error("nothing was written")
				}
				got := save(t, ns, f, "iptables")
				if len(rs.Families) == 2 {
					got += save(t, ns, f, "ip6tables")
				}
				// The two flavours declare chains in different order; rules are what counts.
				got = regexp.MustCompile(`(?m)^[:*].*\n|^COMMIT\n`).ReplaceAllString(got, "")
				golden := filepath.Join("testdata", name+".rules")
				if *update {
					if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				if c := apply(t, b, rs); c.Wrote {
					t.Errorf("the second Apply wrote %v", c.What)
				}
				if d, err := open(t, ns, f, masq.DefaultChain).Diff(t.Context(), rs); err != nil || len(d) != 0 {
					t.Errorf("a new process sees differences: %v, %v", d, err)
				}
			})
		}
	}
}

// adopted is what an upgraded node can carry: two jumps, one with literal
// quotes inside its comment, and an old chain.
const adopted = `*nat
:%CHAIN% - [0:0]
:THEIRS - [0:0]
-A POSTROUTING -s 1.2.3.4/32 -j THEIRS
-A POSTROUTING -m comment --comment "\"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom %CHAIN% chain\"" -m addrtype ! --dst-type LOCAL -j %CHAIN%
-A POSTROUTING -s 1.2.3.5/32 -j THEIRS
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom %CHAIN% chain" -m addrtype ! --dst-type LOCAL -j %CHAIN%
-A %CHAIN% -d 9.0.0.0/8 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A %CHAIN% -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
COMMIT
`

func TestAdoption(t *testing.T) {
	for _, chain := range []string{"IP-MASQ-AGENT", "IP-MASQ"} {
		for _, f := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
			t.Run(chain+"/"+string(f), func(t *testing.T) {
				ns := netnstest.New(t)
				b := open(t, ns, f, chain)
				netnstest.Run(t, ns, strings.ReplaceAll(adopted, "%CHAIN%", chain), "iptables-"+string(f)+"-restore", "--noflush")
				apply(t, b, plan(t, func(_ *masq.Config, o *masq.Options) { o.Chain = chain }))
				got := save(t, ns, f, "iptables")
				if n := strings.Count(got, "-j "+chain+"\n"); n != 1 {
					t.Errorf("%d jumps:\n%s", n, got)
				}
				if strings.Contains(got, "9.0.0.0/8") || !strings.Contains(got, "10.0.0.0/8") || strings.Count(got, "-j THEIRS") != 2 {
					t.Errorf("not adopted, or theirs touched:\n%s", got)
				}
				// The surviving jump kept its place, before the second of theirs.
				if strings.Index(got, "-j "+chain+"\n") > strings.Index(got, "1.2.3.5") {
					t.Errorf("the jump moved:\n%s", got)
				}
				removed, err := b.Remove(t.Context(), false)
				if err != nil || len(removed) != 1 {
					t.Errorf("removed %v, %v", removed, err)
				}
				if got := save(t, ns, f, "iptables"); strings.Contains(got, chain) || strings.Count(got, "-j THEIRS") != 2 {
					t.Errorf("after cleanup:\n%s", got)
				}
			})
		}
	}
}

func TestLookingDoesNotLoadLegacyTables(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns, xtables.Legacy, masq.DefaultChain)
	if d, err := b.Diff(t.Context(), plan(t, nil)); err != nil || len(d) == 0 {
		t.Errorf("%v, %v", d, err)
	}
	if _, err := b.Remove(t.Context(), false); err != nil {
		t.Error(err)
	}
	if inUse, _ := xtables.LegacyInUse(ns, masq.IPv4); inUse {
		t.Error("asking loaded the legacy nat table, which hooks connection tracking")
	}
}

func TestIPv6RulesGoWhenItIsDisabled(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns, xtables.NFT, masq.DefaultChain)
	apply(t, b, plan(t, shapes["ipv6"]))
	apply(t, b, plan(t, nil))
	if got := save(t, ns, xtables.NFT, "ip6tables"); strings.Contains(got, masq.DefaultChain) {
		t.Errorf("still there:\n%s", got)
	}
}

// TestALookDoesNotChangeTheFlavour: to list a chain with the legacy program
// makes a legacy table.
func TestALookDoesNotChangeTheFlavour(t *testing.T) {
	ns := netnstest.New(t)
	apply(t, open(t, ns, xtables.NFT, masq.DefaultChain), plan(t, nil))
	netnstest.Run(t, ns, "", netnstest.Program(t, "iptables-legacy"), "-t", "nat", "-S")
	if b := open(t, ns, "", masq.DefaultChain); b.Flavour() != xtables.NFT {
		t.Errorf("%s because %s", b.Flavour(), b.Reason)
	}
}

func TestEnforcingNeedsThePodRanges(t *testing.T) {
	b := open(t, netnstest.New(t), xtables.NFT, masq.DefaultChain)
	_, err := b.Apply(t.Context(), plan(t, func(c *masq.Config, _ *masq.Options) { c.EnforceNonMasquerade = true }), 1)
	if err == nil || !strings.Contains(err.Error(), "--pod-cidrs") {
		t.Errorf("got %v", err)
	}
}

func TestDetectFlavour(t *testing.T) {
	for _, tc := range []struct {
		setup []string
		want  xtables.Flavour
	}{
		{[]string{"iptables-legacy", "-t", "nat", "-L"}, xtables.Legacy},
		{[]string{"iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"}, xtables.NFT},
	} {
		ns := netnstest.New(t)
		netnstest.Program(t, tc.setup[0])
		netnstest.Run(t, ns, "", tc.setup[0], tc.setup[1:]...)
		if b := open(t, ns, "", masq.DefaultChain); b.Flavour() != tc.want {
			t.Errorf("after %v: %s because %s", tc.setup, b.Flavour(), b.Reason)
		}
	}
}
