package foreign

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sordino/masq"
)

// markUnknown is how a dependence on the packet's mark is put: on a Kubernetes
// node it is kube-proxy's, for what has to come back through this node.
const markUnknown = "the packet's mark (kube-proxy marks what it must masquerade)"

// evaluator evaluates the rules of one nft table for one flow.
type evaluator struct {
	node   *Node
	flow   masq.Flow
	family masq.Family
	local  map[netip.Addr]uint32
	table  *nftables.Table
	sets   map[string][]nftables.SetElement
}

// register is a value that an expression loaded, as far as it is known.
type register struct {
	data    []byte
	unknown string // what it is, when data is nil
	text    string
}

func (e *evaluator) rules(chain string) ([]rule, error) {
	read, err := e.node.conn.GetRules(e.table, &nftables.Chain{Name: chain})
	if errors.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading table %s %s chain %s: %w", familyName(e.table.Family), e.table.Name, chain, err)
	}
	var out []rule
	for _, r := range read {
		one, branches, err := e.rule(r)
		if err != nil {
			return nil, err
		}
		one.where = fmt.Sprintf("table %s %s chain %s handle %d", familyName(e.table.Family), e.table.Name, chain, r.Handle)
		if branches == nil {
			branches = []branch{{yes, one.verdict, one.target}}
		}
		for _, b := range branches {
			one := one
			one.verdict, one.target = b.verdict, b.target
			if b.match == no {
				one.match = no
			}
			out = append(out, one)
		}
	}
	return out, nil
}

// branch is one of the verdicts that a verdict map can give.
type branch struct {
	match   answer
	verdict verdict
	target  string
}

// rule evaluates one rule; a verdict map makes it several, of which one counts.
func (e *evaluator) rule(r *nftables.Rule) (out rule, branches []branch, err error) {
	out = rule{match: yes}
	registers := map[uint32]register{}
	var words []string
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	test := func(a answer, unknown string) {
		out.match = and(out.match, a)
		if a == maybe && unknown != "" {
			out.unknown = append(out.unknown, unknown)
		}
	}
	for _, x := range r.Exprs {
		switch x := x.(type) {
		case *expr.Meta:
			registers[x.Register] = e.meta(x)
		case *expr.Payload:
			registers[x.DestRegister] = e.payload(x)
		case *expr.Fib:
			registers[x.Register] = e.fib(x)
		case *expr.Ct:
			registers[x.Register] = e.ct(x)
		case *expr.Immediate:
			registers[x.Register] = register{data: x.Data}
		case *expr.Byteorder:
			v := registers[x.SourceRegister]
			if v.data != nil {
				v = register{unknown: v.text, text: v.text}
			}
			registers[x.DestRegister] = v
		case *expr.Numgen:
			registers[x.Register] = register{unknown: "chance", text: "numgen"}
		case *expr.Bitwise:
			v := registers[x.SourceRegister]
			v.text += fmt.Sprintf(" & %#x", x.Mask)
			if v.data != nil {
				v.data = bitwise(v.data, x.Mask, x.Xor)
			}
			registers[x.DestRegister] = v
		case *expr.Cmp:
			v := registers[x.Register]
			say("%s %s %s", v.text, operators[x.Op], value(v.text, x.Data))
			test(compare(v, x.Op, x.Data), v.unknown)
		case *expr.Range:
			v := registers[x.Register]
			say("%s %s-%s", v.text, value(v.text, x.FromData), value(v.text, x.ToData))
			inside := and(compare(v, expr.CmpOpGte, x.FromData), compare(v, expr.CmpOpLte, x.ToData))
			test(invertIf(x.Op == expr.CmpOpNeq, inside), v.unknown)
		case *expr.Lookup:
			v := registers[x.SourceRegister]
			say("%s @%s", v.text, x.SetName)
			l, err := e.lookup(x, v)
			if err != nil {
				return out, nil, err
			}
			test(l.match, l.unknown)
			switch {
			case x.IsDestRegSet && x.DestRegister == unix.NFT_REG_VERDICT:
				branches = l.branches()
			case x.IsDestRegSet:
				registers[x.DestRegister] = register{data: l.data, unknown: l.unknown, text: "map @" + x.SetName}
			}
		case *expr.Match:
			a, text := e.xtMatch(x)
			if text != "" {
				say("%s", text)
			}
			test(a, text)
		case *expr.Target:
			say("%s", x.Name)
			switch x.Name {
			case "MASQUERADE":
				out.verdict, out.effect = translate, "masquerade"
			case "SNAT", "NETMAP":
				out.verdict, out.effect = translate, "translate (iptables "+x.Name+")"
			}
		case *expr.Masq:
			say("masquerade")
			out.verdict, out.effect = translate, "masquerade"
		case *expr.NAT:
			if x.Type == expr.NATTypeSourceNAT {
				out.verdict, out.effect = translate, "snat"
				if to, ok := netip.AddrFromSlice(registers[x.RegAddrMin].data); ok {
					out.effect = "snat to " + to.String()
					if to == e.flow.Src {
						out.verdict, out.effect = bind, "" // to itself
					}
				}
				say("%s", out.effect)
			}
		case *expr.Verdict:
			out.verdict, out.target = verdictOf(x.Kind), x.Chain
			say("%s", strings.TrimSpace(verdictWords[x.Kind]+" "+x.Chain))
		case *expr.Counter, *expr.Objref, *expr.Log:
			// They change nothing about the flow.
		default:
			name := strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", x), "*expr."))
			say("%s", name)
			test(maybe, name)
			// It may have loaded something into any of them.
			clear(registers)
		}
	}
	out.text = strings.Join(words, " ")
	if c := commentOf(r); c != "" {
		out.text += fmt.Sprintf(" comment %q", c)
	}
	return out, branches, nil
}

func verdictOf(kind expr.VerdictKind) verdict {
	switch kind {
	case expr.VerdictAccept:
		return finish
	case expr.VerdictDrop:
		return bind
	case expr.VerdictReturn:
		return leave
	case expr.VerdictJump:
		return jump
	case expr.VerdictGoto:
		return gotoChain
	}
	return next
}

var operators = map[expr.CmpOp]string{expr.CmpOpEq: "==", expr.CmpOpNeq: "!=", expr.CmpOpLt: "<", expr.CmpOpLte: "<=", expr.CmpOpGt: ">", expr.CmpOpGte: ">="}

var verdictWords = map[expr.VerdictKind]string{expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictReturn: "return", expr.VerdictJump: "jump", expr.VerdictGoto: "goto"}

func compare(v register, op expr.CmpOp, data []byte) answer {
	if v.data == nil {
		return maybe
	}
	c := bytes.Compare(v.data[:min(len(v.data), len(data))], data)
	is := map[expr.CmpOp]bool{expr.CmpOpEq: c == 0, expr.CmpOpNeq: c != 0, expr.CmpOpLt: c < 0, expr.CmpOpLte: c <= 0, expr.CmpOpGt: c > 0, expr.CmpOpGte: c >= 0}[op]
	if is {
		return yes
	}
	return no
}

func invertIf(invert bool, a answer) answer {
	if !invert || a == maybe {
		return a
	}
	return yes - a
}

func bitwise(data, mask, xor []byte) []byte {
	out := bytes.Clone(data)
	for i := range out {
		if i < len(mask) && i < len(xor) {
			out[i] = out[i]&mask[i] ^ xor[i]
		}
	}
	return out
}

// value shows a compared value in the form that fits what it is compared with.
func value(of string, data []byte) string {
	switch {
	case strings.HasSuffix(of, "addr") && (len(data) == 4 || len(data) == 16):
		a, _ := netip.AddrFromSlice(data)
		return a.String()
	case strings.HasSuffix(of, "addr") && len(data) < 4:
		// iptables-nft compares just the bytes that a prefix of whole bytes has.
		full := make([]byte, 4)
		copy(full, data)
		a, _ := netip.AddrFromSlice(full)
		return fmt.Sprintf("%s/%d", a, 8*len(data))
	case strings.HasSuffix(of, "ifname"):
		return string(bytes.TrimRight(data, "\x00"))
	}
	return fmt.Sprintf("%#x", data)
}

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func (e *evaluator) meta(m *expr.Meta) register {
	switch m.Key {
	case expr.MetaKeyNFPROTO:
		if e.family == masq.IPv6 {
			return register{data: []byte{unix.NFPROTO_IPV6}, text: "nfproto"}
		}
		return register{data: []byte{unix.NFPROTO_IPV4}, text: "nfproto"}
	case expr.MetaKeyL4PROTO:
		if p, ok := protocols[e.flow.Protocol]; ok {
			return register{data: []byte{p}, text: "l4proto"}
		}
		return register{unknown: "the protocol", text: "l4proto"}
	case expr.MetaKeyOIFNAME:
		if e.flow.OutputInterface != "" {
			return register{data: interfaceName(e.flow.OutputInterface), text: "oifname"}
		}
		return register{unknown: "the outgoing interface", text: "oifname"}
	case expr.MetaKeyIIFNAME:
		return register{unknown: "the incoming interface", text: "iifname"}
	case expr.MetaKeyMARK:
		return register{unknown: markUnknown, text: "mark"}
	}
	return register{unknown: fmt.Sprintf("packet metadata %d", m.Key), text: fmt.Sprintf("meta %d", m.Key)}
}

func (e *evaluator) payload(p *expr.Payload) register {
	part := func(whole []byte, from uint32, text string) register {
		return register{data: whole[p.Offset-from : p.Offset-from+p.Len], text: text}
	}
	switch p.Base {
	case expr.PayloadBaseNetworkHeader:
		src, length := uint32(12), uint32(4)
		if e.family == masq.IPv6 {
			src, length = 8, 16
		}
		dst := src + length
		switch {
		case p.Offset >= src && p.Offset+p.Len <= dst:
			return part(e.flow.Src.AsSlice(), src, "saddr")
		case p.Offset >= dst && p.Offset+p.Len <= dst+length:
			return part(e.flow.Dst.AsSlice(), dst, "daddr")
		case e.family == masq.IPv4 && p.Offset == 9 && p.Len == 1, e.family == masq.IPv6 && p.Offset == 6 && p.Len == 1:
			return e.meta(&expr.Meta{Key: expr.MetaKeyL4PROTO})
		}
	case expr.PayloadBaseTransportHeader:
		if p.Offset == 2 && p.Len == 2 {
			if e.flow.DstPort != 0 {
				return register{data: binary.BigEndian.AppendUint16(nil, e.flow.DstPort), text: "dport"}
			}
			return register{unknown: "the destination port", text: "dport"}
		}
		return register{unknown: "the source port or other transport fields", text: fmt.Sprintf("th %d", p.Offset)}
	}
	return register{unknown: fmt.Sprintf("header bytes at %d", p.Offset), text: fmt.Sprintf("header %d", p.Offset)}
}

func (e *evaluator) fib(f *expr.Fib) register {
	text := "fib"
	if !f.ResultADDRTYPE || f.FlagIIF || f.FlagOIF || f.FlagMARK {
		return register{unknown: "a route lookup", text: text}
	}
	if f.FlagSADDR {
		return register{data: native(addressType(e.flow.Src, e.local)), text: "fib saddr type"}
	}
	return register{data: native(addressType(e.flow.Dst, e.local)), text: "fib daddr type"}
}

func (e *evaluator) ct(c *expr.Ct) register {
	switch c.Key {
	case expr.CtKeySTATE:
		return register{data: native(expr.CtStateBitNEW), text: "ct state"} // it is the first packet
	case expr.CtKeyDIRECTION:
		return register{data: []byte{0}, text: "ct direction"}
	}
	return register{unknown: "connection tracking data", text: "ct"}
}

// looked is what looking into a set or map gives.
type looked struct {
	match    answer
	unknown  string
	data     []byte // of the map's element, when it is known which
	elements []nftables.SetElement
}

func (e *evaluator) lookup(l *expr.Lookup, v register) (looked, error) {
	kind := "set "
	if l.IsDestRegSet {
		kind = "map "
	}
	out := looked{match: maybe, unknown: kind + l.SetName}
	set, err := e.node.conn.GetSetByName(e.table, l.SetName)
	if err != nil {
		return out, nil // gone meanwhile
	}
	if e.sets == nil {
		e.sets = map[string][]nftables.SetElement{}
	}
	elements, ok := e.sets[l.SetName]
	if !ok {
		if elements, err = e.node.conn.GetSetElements(set); err != nil {
			return out, fmt.Errorf("reading set %s: %w", l.SetName, err)
		}
		e.sets[l.SetName] = elements
	}
	out.elements = elements
	if v.data == nil {
		if v.unknown != "" {
			out.unknown = v.unknown
		}
		return out, nil
	}
	for _, el := range elements {
		if len(el.Key) != 0 && len(el.Key) != len(v.data) {
			return out, nil // of several fields, of which the register holds the first
		}
	}
	found := find(elements, v.data, set.Interval)
	out.match = no
	if (found != nil) != l.Invert {
		out.match = yes
	}
	out.elements = nil
	if found != nil {
		out.data, out.elements = found.Val, []nftables.SetElement{*found}
	}
	return out, nil
}

// branches are the verdicts that a verdict map can give, or gives.
func (l looked) branches() []branch {
	out := []branch{}
	for _, el := range l.elements {
		if el.IntervalEnd {
			continue
		}
		b := branch{match: l.match}
		ad, err := netlink.NewAttributeDecoder(el.Val)
		if err != nil {
			continue
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_VERDICT_CODE:
				b.verdict = verdictOf(expr.VerdictKind(int32(ad.Uint32())))
			case unix.NFTA_VERDICT_CHAIN:
				b.target = ad.String()
			}
		}
		out = append(out, b)
	}
	return out
}

// find looks a key up; in an interval set the greatest bound that is not above
// the key tells whether it is inside. An element without a key is for all that
// is in no other.
func find(elements []nftables.SetElement, key []byte, interval bool) *nftables.SetElement {
	var below, any *nftables.SetElement
	for i, el := range elements {
		c := bytes.Compare(el.Key, key)
		switch {
		case len(el.Key) == 0:
			any = &elements[i]
		case !interval && c == 0:
			return &elements[i]
		case interval && c <= 0 && (below == nil || bytes.Compare(el.Key, below.Key) > 0 || bytes.Equal(el.Key, below.Key) && below.IntervalEnd):
			below = &elements[i]
		}
	}
	if below != nil && !below.IntervalEnd {
		return below
	}
	return any
}

func (e *evaluator) xtMatch(m *expr.Match) (answer, string) {
	switch m.Name {
	case "comment":
		return yes, ""
	case "addrtype":
		if a, ok := m.Info.(*xt.AddrTypeV1); ok && a.Flags&^3 == 0 {
			// Bits 0 and 1 invert source and destination; further ones limit
			// the question to an interface.
			src := inMask(a.Source, addressType(e.flow.Src, e.local), a.Flags&1 != 0)
			dst := inMask(a.Dest, addressType(e.flow.Dst, e.local), a.Flags&2 != 0)
			return and(src, dst), "addrtype"
		}
	}
	if m.Name == "mark" {
		return maybe, markUnknown
	}
	return maybe, "iptables match " + m.Name
}

func inMask(mask uint16, kind uint32, invert bool) answer {
	if mask == 0 {
		return yes
	}
	if (mask&(1<<kind) != 0) != invert {
		return yes
	}
	return no
}
