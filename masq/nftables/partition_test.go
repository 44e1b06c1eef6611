package nftables

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"sordino/internal/netnstest"
	"sordino/masq"
)

// TestPartition cuts lists of all shapes and puts them together again.
func TestPartition(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, change := range map[string]func(*masq.Config){
		"short":     func(c *masq.Config) { c.NonMasquerade = c.NonMasquerade[:100] },
		"even":      func(*masq.Config) {},
		"clustered": func(c *masq.Config) { c.NonMasquerade = append(c.NonMasquerade, parse("0.0.0.0/4", "128.0.0.0/1")...) },
		"across": func(c *masq.Config) {
			// 63.255.255.0 to 64.0.0.255: across the middle of the lower half.
			c.NonMasquerade = append(c.NonMasquerade, parse("63.255.255.0/24", "64.0.0.0/24")...)
		},
		"IPv6": func(c *masq.Config) {
			for range 20_000 {
				a := [16]byte{0x20, 1, 13: byte(random.Uint32()), 14: byte(random.Uint32())}
				c.NonMasquerade = append(c.NonMasquerade, masq.Range{Prefix: netip.PrefixFrom(netip.AddrFrom16(a), 124)})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, fr := range many(t, 30_000, change).Families {
				parts := familyOf(fr.Family).partition(fr.Exempt)
				var again []masq.Interval
				for _, p := range parts {
					if len(p.intervals) == 0 && len(fr.Exempt) > 0 || len(p.intervals) > partSize {
						t.Errorf("%s has %d ranges", p.set, len(p.intervals))
					}
					for _, iv := range p.intervals {
						if !p.prefix.Contains(iv.First) || !p.prefix.Contains(iv.Last) {
							t.Fatalf("%s: %s is not in %s", p.set, iv, p.prefix)
						}
						if n := len(again); n > 0 && again[n-1].Last.Next() == iv.First {
							again[n-1].Last = iv.Last
							continue
						}
						again = append(again, iv)
					}
				}
				if added, gone := intervalDifference(again, fr.Exempt); len(added)+len(gone) > 0 {
					t.Errorf("%s: missing %s, too much %s", fr.Family, sample(added), sample(gone))
				}
			}
		})
	}
}

// TestOneRangeOfManyChangesOnePart writes a long list and changes, damages and
// repairs a bit of it.
func TestOneRangeOfManyChangesOnePart(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns, Options{})
	before, after := many(t, 10_000, nil), many(t, 10_000, func(c *masq.Config) { c.NonMasquerade[5000].Prefix = netip.MustParsePrefix("20.2.255.240/30") })
	apply(t, b, before, 1)
	if c := apply(t, b, after, 2); len(c.What) != 1 || c.Repaired {
		t.Errorf("changed %q", c.What)
	}
	held := list(t, ns)
	netnstest.Run(t, ns, "delete element inet ip-masq-agent exempt4_1 { 20.1.0.0/28 }", netnstest.Program(t, "nft"), "-f", "-")
	if c := apply(t, open(t, ns, Options{}), after, 2); !c.Wrote {
		t.Error("a new process does not see what is missing")
	}
	if list(t, ns) != held {
		t.Error("the list is not what it was")
	}
}
