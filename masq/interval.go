package masq

import (
	"cmp"
	"encoding/binary"
	"math/bits"
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

// union joins two merged lists into one.
func union(a, b []Interval) []Interval {
	if !slices.ContainsFunc(b, func(iv Interval) bool { held, ok := find(a, iv.First); return !ok || held.Last.Compare(iv.Last) < 0 }) {
		return a
	}
	all := make([]Interval, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].First.Compare(b[0].First) > 0 {
			a, b = b, a
		}
		all, a = append(all, a[0]), a[1:]
	}
	return merge(append(append(all, a...), b...))
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
	a := p.Addr()
	return numberOf(a).withHostBits(a.BitLen() - p.Bits()).addr(FamilyOf(a))
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

// number is an address as a number; IPv4's are below 2^32.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n number) addr(f Family) netip.Addr {
	if f == IPv4 {
		return netip.AddrFrom4([4]byte{byte(n.lo >> 24), byte(n.lo >> 16), byte(n.lo >> 8), byte(n.lo)})
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n number) compare(m number) int {
	return cmp.Or(cmp.Compare(n.hi, m.hi), cmp.Compare(n.lo, m.lo))
}

// next and prev wrap around.
func (n number) next() number {
	lo, carry := bits.Add64(n.lo, 1, 0)
	return number{n.hi + carry, lo}
}

func (n number) prev() number {
	lo, borrow := bits.Sub64(n.lo, 1, 0)
	return number{n.hi - borrow, lo}
}

// withHostBits sets the lowest bits.
func (n number) withHostBits(count int) number {
	if count > 64 {
		return number{n.hi | (1<<(count-64) - 1), ^uint64(0)}
	}
	return number{n.hi, n.lo | (1<<count - 1)}
}
