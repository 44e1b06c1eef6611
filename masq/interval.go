package masq

import (
	"cmp"
	"net/netip"
	"slices"
)

// Interval is an inclusive run of addresses of one family.
type Interval struct {
	First, Last netip.Addr
}

func intervalOf(p netip.Prefix) Interval {
	return Interval{p.Addr(), lastAddr(p)}
}

// Contains reports whether the address lies in the interval.
func (i Interval) Contains(a netip.Addr) bool {
	return i.First.Compare(a) <= 0 && a.Compare(i.Last) <= 0
}

// Prefix returns the interval as one prefix, if it is one.
func (i Interval) Prefix() (netip.Prefix, bool) {
	for bits := commonBits(i.First, i.Last); bits <= i.First.BitLen(); bits++ {
		p := netip.PrefixFrom(i.First, bits)
		if p.Masked() != p {
			continue
		}
		return p, lastAddr(p) == i.Last
	}
	return netip.Prefix{}, false
}

// Prefixes splits the interval into the fewest prefixes, in order.
func (i Interval) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for first := i.First; ; {
		// The largest aligned block that starts here and does not reach past the end.
		bits := first.BitLen()
		for bits > 0 {
			p := netip.PrefixFrom(first, bits-1)
			if p.Masked() != p || lastAddr(p).Compare(i.Last) > 0 {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(first, bits)
		out = append(out, p)
		last := lastAddr(p)
		if last == i.Last {
			return out
		}
		first = last.Next()
	}
}

func (i Interval) String() string {
	if p, ok := i.Prefix(); ok {
		return p.String()
	}
	return i.First.String() + "-" + i.Last.String()
}

// merge sorts intervals and joins those that overlap or touch. It reuses the slice.
func merge(in []Interval) []Interval {
	slices.SortFunc(in, func(a, b Interval) int {
		return cmp.Or(a.First.Compare(b.First), a.Last.Compare(b.Last))
	})
	out := in[:0]
	for _, next := range in {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if after := last.Last.Next(); !after.IsValid() || next.First.Compare(after) <= 0 {
				if next.Last.Compare(last.Last) > 0 {
					last.Last = next.Last
				}
				continue
			}
		}
		out = append(out, next)
	}
	return out
}

func mergePrefixes(ranges []Range, family Family) []Interval {
	in := make([]Interval, 0, len(ranges))
	for _, r := range ranges {
		if FamilyOf(r.Prefix.Addr()) == family {
			in = append(in, intervalOf(r.Prefix))
		}
	}
	return merge(in)
}

// find returns the interval of a merged list that holds the address.
func find(merged []Interval, a netip.Addr) (Interval, bool) {
	i, found := slices.BinarySearchFunc(merged, a, func(iv Interval, a netip.Addr) int { return iv.First.Compare(a) })
	if !found {
		i--
	}
	if i >= 0 && merged[i].Contains(a) {
		return merged[i], true
	}
	return Interval{}, false
}

// covers reports whether a merged list holds the whole prefix.
func covers(merged []Interval, p netip.Prefix) bool {
	iv, ok := find(merged, p.Addr())
	return ok && lastAddr(p).Compare(iv.Last) <= 0
}

// lastAddr is the highest address of a masked prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		fillHostBits(a[:], p.Bits())
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	fillHostBits(a[:], p.Bits())
	return netip.AddrFrom16(a)
}

func fillHostBits(a []byte, bits int) {
	for i := range a {
		switch {
		case bits >= 8:
			bits -= 8
		default:
			a[i] |= 0xff >> bits
			bits = 0
		}
	}
}

func commonBits(a, b netip.Addr) int {
	x, y := a.AsSlice(), b.AsSlice()
	for i := range x {
		if d := x[i] ^ y[i]; d != 0 {
			n := 0
			for d&0x80 == 0 {
				d <<= 1
				n++
			}
			return i*8 + n
		}
	}
	return len(x) * 8
}
