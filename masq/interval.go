package masq

import (
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
	return Interval{p.Addr(), LastAddr(p)}
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
		return p, LastAddr(p) == i.Last
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
			if p.Masked() != p || LastAddr(p).Compare(i.Last) > 0 {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(first, bits)
		out = append(out, p)
		last := LastAddr(p)
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
		if c := a.First.Compare(b.First); c != 0 {
			return c
		}
		return a.Last.Compare(b.Last)
	})
	out := in[:0]
	for _, next := range in {
		if n := len(out); n > 0 && !apart(out[n-1], next) {
			if next.Last.Compare(out[n-1].Last) > 0 {
				out[n-1].Last = next.Last
			}
			continue
		}
		out = append(out, next)
	}
	return out
}

// union joins two merged lists into one. The second may be far the shorter
// one: the first is searched, and moved run by run.
//
// It uses the memory of the first list, in which there has to be room for the
// second before the first's beginning: withRoom gives back all of it.
func union(withRoom []Interval, room int, b []Interval) []Interval {
	a := withRoom[room:]
	if !slices.ContainsFunc(b, func(iv Interval) bool { held, ok := find(a, iv.First); return !ok || held.Last.Compare(iv.Last) < 0 }) {
		return a
	}
	// What is written never reaches what is still to be read.
	out := withRoom[:0]
	// add appends what begins at or behind the last one's beginning.
	add := func(iv Interval) {
		if n := len(out); n > 0 && !apart(out[n-1], iv) {
			if iv.Last.Compare(out[n-1].Last) > 0 {
				out[n-1].Last = iv.Last
			}
			return
		}
		out = append(out, iv)
	}
	// run appends the beginning of the first list: only its first intervals
	// can touch what is there.
	run := func(n int) {
		head := a[:n]
		a = a[n:]
		for len(head) > 0 && len(out) > 0 && !apart(out[len(out)-1], head[0]) {
			add(head[0])
			head = head[1:]
		}
		out = append(out, head...)
	}
	for _, iv := range b {
		n, _ := slices.BinarySearchFunc(a, iv.First, func(iv Interval, first netip.Addr) int { return iv.First.Compare(first) })
		run(n)
		add(iv)
	}
	run(len(a))
	return out
}

// apart reports whether there is an address between an interval and one that
// does not begin before it.
func apart(a, b Interval) bool {
	after := a.Last.Next()
	return after.IsValid() && b.First.Compare(after) > 0
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
	return ok && LastAddr(p).Compare(iv.Last) <= 0
}

// LastAddr is the highest address of a masked prefix.
func LastAddr(p netip.Prefix) netip.Addr {
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
	switch {
	case n == m:
		return 0
	case n.hi < m.hi || n.hi == m.hi && n.lo < m.lo:
		return -1
	}
	return 1
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
