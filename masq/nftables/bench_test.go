package nftables

import (
	"net/netip"
	"testing"

	"sordino/internal/netnstest"
	"sordino/masq"
)

// many are rules with n exempt ranges that cannot be merged.
func many(tb testing.TB, n int, change func(*masq.Config)) masq.RuleSet {
	return rules(tb, func(c *masq.Config, _ *masq.Options) {
		c.NonMasquerade = nil
		for i := range n {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{20 + byte(i>>19), byte(i >> 11), byte(i >> 3), byte(i&7) * 32}), 28)
			c.NonMasquerade = append(c.NonMasquerade, masq.Range{Prefix: p})
		}
		if change != nil {
			change(c)
		}
	})
}

func BenchmarkFirstLoad(b *testing.B) {
	rs := many(b, 100_000, nil)
	for b.Loop() {
		b.StopTimer()
		backend := open(b, netnstest.New(b), Options{})
		b.StartTimer()
		apply(b, backend, rs, 1)
	}
}

func BenchmarkOneRangeChanged(b *testing.B) {
	backend := open(b, netnstest.New(b), Options{})
	sets := []masq.RuleSet{many(b, 100_000, nil), many(b, 100_000, func(c *masq.Config) {
		c.NonMasquerade[5000].Prefix = netip.MustParsePrefix("7.7.7.0/24")
	})}
	apply(b, backend, sets[0], 1)
	for i := 1; b.Loop(); i++ {
		apply(b, backend, sets[i%2], uint64(i))
	}
}
