package address

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

// allowed is what a VPC network may use without privately used public
// addresses: RFC 1918, 6598, 6890, 5737, 7526, 2544 and 1112.
var allowed = prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
	"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4")

// never is what no range may touch, and why.
var never = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 1122)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback (RFC 1122)"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, where the metadata server is (RFC 3927)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast (RFC 5771)"},
	{netip.MustParsePrefix("255.255.255.255/32"), "limited broadcast (RFC 919)"},
	{netip.MustParsePrefix("199.36.153.4/30"), "restricted.googleapis.com"},
	{netip.MustParsePrefix("199.36.153.8/30"), "private.googleapis.com"},
}

// dockerBridge is taken on every machine of the control plane and database.
var dockerBridge = netip.MustParsePrefix("172.17.0.0/16")

// pools are searched in this order for what is left to the server. The default
// range of a private environment's database, 10.0.0.0/12, comes last.
var pools = prefixes("10.16.0.0/12", "10.32.0.0/11", "10.64.0.0/10", "10.128.0.0/9",
	"172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/12", "100.64.0.0/10")

func poolsOf(k Kind) []netip.Prefix {
	switch k {
	case Master, WebServer:
		return prefixes("172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8")
	case Database:
		return pools[:len(pools)-1] // RFC 1918 only
	}
	return pools
}

func within(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(a netip.Prefix) bool { return a.Bits() <= p.Bits() && a.Contains(p.Addr()) })
}

func number(a netip.Addr) uint64 {
	b := a.As4()
	return uint64(binary.BigEndian.Uint32(b[:]))
}

func addrOf(n uint64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

// span is a prefix as numbers; end is exclusive.
func span(p netip.Prefix) (first, end uint64) {
	first = number(p.Masked().Addr())
	return first, first + 1<<(32-p.Bits())
}

// firstFree finds the first aligned block of a size in the pools that touches
// nothing that is taken.
func firstFree(pools []netip.Prefix, bits int, taken []netip.Prefix) (netip.Prefix, bool) {
	sorted := slices.SortedFunc(slices.Values(taken), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	size := uint64(1) << (32 - bits)
	for _, pool := range pools {
		if pool.Bits() > bits {
			continue
		}
		candidate, end := span(pool)
		for _, t := range sorted {
			first, after := span(t)
			if candidate+size <= first {
				break // everything taken that follows begins later still
			}
			if after > candidate {
				candidate = (after + size - 1) / size * size
			}
		}
		if candidate+size <= end {
			return netip.PrefixFrom(addrOf(candidate), bits), true
		}
	}
	return netip.Prefix{}, false
}
