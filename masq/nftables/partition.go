package nftables

import (
	"fmt"
	"net/netip"
	"slices"

	"sordino/masq"
)

// partSize is how many ranges one set holds at most. The kernel walks a whole
// interval set at every change of it, and from its beginning for every part of
// a dump: with 100,000 ranges in one set the first takes 20 ms, the second
// seconds.
const partSize = 5000

// part is a set of exempt ranges inside a prefix.
type part struct {
	set       string
	prefix    netip.Prefix
	intervals []masq.Interval
}

// partition cuts a long list at powers of two until every piece fits into one
// set. Where it cuts depends on the list alone, and one range more or less
// nearly always changes one piece.
func (f family) partition(list []masq.Interval) []part {
	whole := part{set: "exempt" + f.sets, prefix: f.Everything(), intervals: list}
	if len(list) <= partSize {
		return []part{whole}
	}
	var parts []part
	var cut func(prefix netip.Prefix, list []masq.Interval)
	cut = func(prefix netip.Prefix, list []masq.Interval) {
		if len(list) == 0 {
			return
		}
		if len(list) <= partSize {
			parts = append(parts, part{fmt.Sprintf("exempt%s_%d%s", f.suffix, len(parts), f.sets[len(f.suffix):]), prefix, list})
			return
		}
		lower, upper := halves(prefix)
		i, _ := slices.BinarySearchFunc(list, upper.Addr(), func(iv masq.Interval, a netip.Addr) int { return iv.First.Compare(a) })
		low, high := list[:i], list[i:]
		if i > 0 && list[i-1].Last.Compare(upper.Addr()) >= 0 {
			// One range lies across: it becomes two.
			last := list[i-1]
			low = append(slices.Clone(list[:i-1]), masq.Interval{First: last.First, Last: upper.Addr().Prev()})
			high = append([]masq.Interval{{First: upper.Addr(), Last: last.Last}}, list[i:]...)
		}
		cut(lower, low)
		cut(upper, high)
	}
	cut(whole.prefix, list)
	return parts
}

// halves splits a prefix that is longer than one address.
func halves(p netip.Prefix) (lower, upper netip.Prefix) {
	address := p.Addr().AsSlice()
	address[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	middle, _ := netip.AddrFromSlice(address)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(middle, p.Bits()+1)
}
