package nftables

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"sordino/masq"
)

// countPriority is before the kernel's source NAT (100), where the packet
// still has the Pod's address.
const countPriority = 98

// kubeProxyMark is set by kube-proxy on packets that it must masquerade to get
// the answer back through this node (hairpins, NodePorts). Identity
// translation would take that away from it.
const kubeProxyMark = 0x4000

// layout is a rule set in the terms of nftables, the same for the same rule set.
type layout struct {
	sets     []setLayout
	counters []string
	chains   []chainLayout
	// randomFully goes with the ports of masquerade rules.
	randomFully bool
}

type setLayout struct {
	name      string
	keyType   nftables.SetDatatype
	interval  bool
	intervals []masq.Interval // of an interval set
	names     []string        // of a set of interface names
}

type chainLayout struct {
	name  string
	nat   bool // type nat, else filter
	prio  *nftables.ChainPriority
	rules []ruleLayout
}

// ranges counts those of all sets.
func (l layout) ranges() int {
	n := 0
	for _, s := range l.sets {
		n += len(s.intervals)
	}
	return n
}

// ruleLayout is one rule. A lookup of a name that begins with two underscores
// stands for an anonymous set.
type ruleLayout struct {
	comment string
	exprs   []expr.Any
}

// anonymousTypes is the placeholder name of the anonymous set in
// "fib daddr type { local, broadcast, multicast, anycast }".
const anonymousTypes = "__types"

// family knows how one address family is spelt in expressions.
type family struct {
	masq.Family
	suffix       string // of chains and counters
	sets         string // of sets
	proto        byte
	saddr, daddr uint32 // offsets in the network header
	length       uint32
	keyType      nftables.SetDatatype
}

func familyOf(f masq.Family) family {
	if f == masq.IPv4 {
		return family{f, "4", "4", unix.NFPROTO_IPV4, 12, 16, 4, nftables.TypeIPAddr}
	}
	return family{f, "6", "6", unix.NFPROTO_IPV6, 8, 24, 16, nftables.TypeIP6Addr}
}

// layOut translates a rule set. The nft line stands above every rule.
//
// Its sets' names end in the given suffix: a set that is too large to be
// filled in the transaction that brings it into force has to have another
// name than the one in force.
func layOut(rs masq.RuleSet, hash string, generation uint64, suffix string) layout {
	l := layout{randomFully: rs.RandomFully}
	post := chainLayout{name: "postrouting", nat: true, prio: nftables.ChainPriorityRef(masq.NATPriority)}
	count := chainLayout{name: "count", prio: nftables.ChainPriorityRef(countPriority), rules: []ruleLayout{{
		// ct direction reply accept
		"answers are not counted", []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal([]byte{1}), verdict(expr.VerdictAccept, "")},
	}}}
	var perFamily []chainLayout
	if len(rs.OutputInterfaces) > 0 {
		l.sets = append(l.sets, setLayout{name: "out" + suffix, keyType: nftables.TypeIFName, names: rs.OutputInterfaces})
	}
	for _, fr := range rs.Families {
		f := familyOf(fr.Family)
		f.sets = f.suffix + suffix
		if len(fr.Pods) > 0 {
			l.sets = append(l.sets, setLayout{name: "pods" + f.sets, keyType: f.keyType, interval: true, intervals: fr.Pods})
		}
		parts := f.partition(fr.Exempt)
		for _, p := range parts {
			l.sets = append(l.sets, setLayout{name: p.set, keyType: f.keyType, interval: true, intervals: p.intervals})
		}
		for _, what := range []string{"masqueraded", "exempted"} {
			l.counters = append(l.counters, what+f.suffix, what+f.suffix+"_first")
		}
		source, comment := f.source(rs, fr)
		post.rules = append(post.rules, ruleLayout{comment, append(slices.Clone(source), jump("decide"+f.suffix))})
		perFamily = append(perFamily, f.decide(rs, fr, parts), f.count())
		count.rules = append(count.rules, ruleLayout{"sent by Pods", append(slices.Clone(source), jump("count"+f.suffix))})
	}
	mark := chainLayout{name: "generation", rules: []ruleLayout{{
		// return comment "generation 7 hash 0123456789abcdef"
		fmt.Sprintf("generation %d hash %s", generation, hash), []expr.Any{verdict(expr.VerdictReturn, "")},
	}}}
	l.chains = slices.Concat(perFamily, []chainLayout{post, count, mark})
	return l
}

// source matches the packets that are ours to decide.
func (f family) source(rs masq.RuleSet, fr masq.FamilyRules) ([]expr.Any, string) {
	// meta nfproto ipv4
	match := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{f.proto})}
	switch {
	case rs.AnySource:
		return match, "whatever the source, as upstream does"
	case len(fr.Pods) > 0:
		// ip saddr @pods4
		return append(match, f.load(f.saddr), &expr.Lookup{SourceRegister: 1, SetName: "pods" + f.sets}), "only Pods are masqueraded"
	}
	// fib saddr type != local
	return append(match,
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	), "the Pod ranges are not known: whatever is not this node's own"
}

// decide is the chain that only the first packet of a flow passes.
func (f family) decide(rs masq.RuleSet, fr masq.FamilyRules, parts []part) chainLayout {
	c := chainLayout{name: "decide" + f.suffix}
	add := func(comment string, exprs ...expr.Any) { c.rules = append(c.rules, ruleLayout{comment, exprs}) }
	fib := &expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}
	if rs.AnySource {
		// fib daddr type local return
		add("to this node itself", fib, equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)), verdict(expr.VerdictReturn, ""))
	} else {
		// fib daddr type { local, broadcast, multicast, anycast } return
		add("to this node itself, or to many at once", fib, &expr.Lookup{SourceRegister: 1, SetName: anonymousTypes}, verdict(expr.VerdictReturn, ""))
	}
	if rs.EnforceExempt {
		// meta mark & 0x00004000 == 0x00004000 return
		add("kube-proxy must masquerade this itself",
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(kubeProxyMark), Xor: make([]byte, 4)},
			equal(binaryutil.NativeEndian.PutUint32(kubeProxyMark)), verdict(expr.VerdictReturn, ""))
		for _, p := range parts {
			// ip daddr @exempt4 counter name "exempted4_first" snat ip to ip saddr
			add("exempt, and no other agent may masquerade it", append(f.exempt(p), f.load(f.saddr),
				&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: 1, RegAddrMax: 1})...)
		}
	} else {
		for _, p := range parts {
			// ip daddr @exempt4 counter name "exempted4_first" return
			add("exempt: the destination sees the Pod's address", append(f.exempt(p), verdict(expr.VerdictReturn, ""))...)
		}
	}
	if len(rs.OutputInterfaces) > 0 {
		// oifname != @out return
		add("leaves by another interface", &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: "out" + f.sets[len(f.suffix):], Invert: true}, verdict(expr.VerdictReturn, ""))
	}
	first := counter("masqueraded" + f.suffix + "_first")
	if len(rs.Ports) > 0 {
		// The ports exist for these protocols only; each interval is taken with
		// a probability of its share of what is left.
		remaining := 0
		for _, p := range rs.Ports {
			remaining += p.Size()
		}
		for i, p := range rs.Ports {
			// meta l4proto { tcp, udp, sctp } numgen random mod 2002 < 1001 counter name … masquerade to :60000-61000
			match := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: anonymousProtocols}}
			if i < len(rs.Ports)-1 {
				match = append(match, &expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: uint32(remaining)},
					&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
					&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(p.Size()))})
			}
			ports := p
			add("masquerade to ports "+p.String(), slices.Concat(match, []expr.Any{first}, f.translate(rs, fr, &ports))...)
			remaining -= p.Size()
		}
	}
	// counter name "masqueraded4_first" masquerade fully-random
	add("everything else gets the node's address", append([]expr.Any{first}, f.translate(rs, fr, nil)...)...)
	return c
}

// exempt matches the destinations of one part; of several, the address is
// compared with the part's prefix before its set is searched.
func (f family) exempt(p part) []expr.Any {
	match := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{f.proto})}
	if bits := p.prefix.Bits(); bits > 0 {
		// ip daddr 10.0.0.0/8
		mask := net.CIDRMask(bits, f.Bits())
		match = append(match, f.load(f.daddr),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.length, Mask: mask, Xor: make([]byte, f.length)},
			equal(p.prefix.Addr().AsSlice()))
	}
	return append(match, f.load(f.daddr), &expr.Lookup{SourceRegister: 1, SetName: p.set}, counter("exempted"+f.suffix+"_first"))
}

// anonymousProtocols is the placeholder name of "{ tcp, udp, sctp }".
const anonymousProtocols = "__protocols"

func (f family) translate(rs masq.RuleSet, fr masq.FamilyRules, ports *masq.PortRange) []expr.Any {
	var exprs []expr.Any
	if fr.SNAT.IsValid() {
		exprs = append(exprs, &expr.Immediate{Register: 1, Data: fr.SNAT.AsSlice()})
	}
	if ports != nil {
		exprs = append(exprs,
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(ports.First)},
			&expr.Immediate{Register: 3, Data: binaryutil.BigEndian.PutUint16(ports.Last)})
	}
	if fr.SNAT.IsValid() {
		nat := &expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: 1, RegAddrMax: 1, FullyRandom: rs.RandomFully}
		if ports != nil {
			nat.RegProtoMin, nat.RegProtoMax, nat.Specified = 2, 3, true
		}
		return append(exprs, nat)
	}
	m := &expr.Masq{FullyRandom: rs.RandomFully}
	if ports != nil {
		m.ToPorts, m.RegProtoMin, m.RegProtoMax = true, 2, 3
	}
	return append(exprs, m)
}

// count is what every packet of a Pod's own connections passes. The first one
// is counted where it is decided: it is not confirmed yet, and not translated.
func (f family) count() chainLayout {
	const confirmed, snat = 1 << 3, 1 << 4 // IPS_CONFIRMED, IPS_SRC_NAT
	rule := func(comment, name string, status uint32) ruleLayout {
		// ct status & (confirmed | snat) == … counter name …
		return ruleLayout{comment, []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(confirmed | snat), Xor: make([]byte, 4)},
			equal(binaryutil.NativeEndian.PutUint32(status)),
			counter(name), verdict(expr.VerdictAccept, ""),
		}}
	}
	return chainLayout{name: "count" + f.suffix, rules: []ruleLayout{
		rule("masqueraded, from the second packet on", "masqueraded"+f.suffix, confirmed|snat),
		rule("left alone, from the second packet on", "exempted"+f.suffix, confirmed),
	}}
}

func (f family) load(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

func jump(chain string) expr.Any { return verdict(expr.VerdictJump, chain) }

func counter(name string) expr.Any { return &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name} }

func commentData(text string) []byte {
	return userdata.AppendString(nil, userdata.TypeComment, text)
}

// elements spells a set's content as the kernel keeps it: an interval is its
// first address and, unless it reaches the end of the space, the address after
// its last one, flagged as an end.
func (s setLayout) elements() []nftables.SetElement {
	if !s.interval {
		var out []nftables.SetElement
		for _, n := range s.names {
			key := make([]byte, unix.IFNAMSIZ)
			copy(key, n)
			out = append(out, nftables.SetElement{Key: key})
		}
		return out
	}
	return intervalElements(s.intervals)
}

func intervalElements(intervals []masq.Interval) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, 2*len(intervals))
	for _, iv := range intervals {
		out = append(out, nftables.SetElement{Key: iv.First.AsSlice()})
		if end := iv.Last.Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// intervalsOf is the inverse; it fails on anything that we would not write.
func intervalsOf(elements []nftables.SetElement, size uint32) ([]masq.Interval, bool) {
	type bound struct {
		addr netip.Addr
		end  bool
	}
	bounds := make([]bound, 0, len(elements))
	for _, e := range elements {
		a, ok := netip.AddrFromSlice(e.Key)
		if !ok || len(e.Key) != int(size) {
			return nil, false
		}
		bounds = append(bounds, bound{a, e.IntervalEnd})
	}
	slices.SortFunc(bounds, func(a, b bound) int {
		if c := a.addr.Compare(b.addr); c != 0 || a.end == b.end {
			return c
		} else if a.end {
			return -1
		}
		return 1
	})
	var out []masq.Interval
	open := false
	for _, b := range bounds {
		switch {
		case b.end && open:
			out[len(out)-1].Last = b.addr.Prev()
			open = false
		case b.end && len(out) == 0 && b.addr.IsUnspecified():
			// The nft program begins a set with an end at zero; it means nothing.
		case b.end || open:
			return nil, false
		default:
			last := netip.AddrFrom4([4]byte{255, 255, 255, 255})
			if size == 16 {
				last = netip.AddrFrom16([16]byte(slices.Repeat([]byte{255}, 16)))
			}
			out = append(out, masq.Interval{First: b.addr, Last: last})
			open = true
		}
	}
	return out, true
}

// typeElements and protocolElements fill the anonymous sets.
func typeElements() []nftables.SetElement {
	var out []nftables.SetElement
	for _, t := range []uint32{unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST} {
		key := make([]byte, 4)
		binary.NativeEndian.PutUint32(key, t)
		out = append(out, nftables.SetElement{Key: key})
	}
	return out
}

func protocolElements() []nftables.SetElement {
	return []nftables.SetElement{{Key: []byte{unix.IPPROTO_TCP}}, {Key: []byte{unix.IPPROTO_UDP}}, {Key: []byte{unix.IPPROTO_SCTP}}}
}
