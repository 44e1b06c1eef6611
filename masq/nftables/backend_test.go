package nftables

import (
	"net/netip"
	"testing"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/masq"
)

func parse(texts ...string) []masq.Range {
	var out []masq.Range
	for _, t := range texts {
		out = append(out, masq.Range{Prefix: netip.MustParsePrefix(t)})
	}
	return out
}

// documentOptions are the documented example: VMs, Pods and Services.
func documentOptions() masq.Options {
	return masq.Options{
		Chain: masq.DefaultChain, IPv6: true, RandomFully: true,
		Cluster: masq.ClusterRanges{
			Node:    parse("10.0.0.0/8", "fd00:a::/64"),
			Pod:     parse("192.168.0.0/16", "fd00:c0a8::/32"),
			Service: parse("172.20.0.0/16"),
		},
	}
}

func rules(t testing.TB, change func(*masq.Config, *masq.Options)) masq.RuleSet {
	t.Helper()
	c, o := masq.DefaultConfig(false), documentOptions()
	c.NonMasquerade, c.NonMasqueradeGiven = parse("10.0.0.0/8", "192.168.0.0/16"), true
	if change != nil {
		change(&c, &o)
	}
	rs, _, err := masq.Plan(c, o, masq.Facts{Addresses: []masq.NodeAddress{{Interface: "eth1", Prefix: netip.MustParsePrefix("10.9.0.5/24")}}})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func open(t testing.TB, ns *netns.NS, o Options) *Backend {
	t.Helper()
	var b *Backend
	netnstest.Do(t, ns, func() (err error) {
		b, err = New(o)
		return err
	})
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func apply(t testing.TB, b *Backend, rs masq.RuleSet, generation uint64) masq.Change {
	t.Helper()
	change, err := b.Apply(t.Context(), rs, generation)
	if err != nil {
		t.Fatal(err)
	}
	return change
}

func list(t testing.TB, ns *netns.NS) string {
	t.Helper()
	return netnstest.Run(t, ns, "", netnstest.Program(t, "nft"), "list", "ruleset")
}

func TestShow(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns, Options{})
	t.Log(apply(t, b, rules(t, nil), 7))
	t.Log(list(t, ns))
	t.Log(apply(t, b, rules(t, nil), 7))
	b2 := open(t, ns, Options{})
	d, err := b2.Diff(t.Context(), rules(t, nil))
	t.Log(d, err)
	t.Log(apply(t, b2, rules(t, nil), 7))
	t.Log(b2.Held(t.Context()))
}
