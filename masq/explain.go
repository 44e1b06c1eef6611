package masq

import (
	"fmt"
	"net/netip"
	"slices"
)

// Flow is the first packet of a connection, as the node's postrouting hook
// sees it.
type Flow struct {
	Src, Dst netip.Addr
	// Protocol ("tcp", "udp", "icmp", …) and DstPort narrow the question;
	// empty and zero mean any. Our own rules look at neither.
	Protocol string
	DstPort  uint16
	// OutputInterface is where the packet leaves, empty when not known.
	OutputInterface string
}

// Action is what our rules do with a flow.
type Action string

// The three outcomes. Exempt and Untouched both leave the packet alone:
// Exempt because its destination is to see the Pod's address, Untouched
// because the flow is none of our business.
const (
	Masquerade Action = "masquerade"
	Exempt     Action = "exempt"
	Untouched  Action = "untouched"
)

// Verdict is the answer of Explain.
type Verdict struct {
	Action Action `json:"action"`
	// Reason is one sentence for a person.
	Reason string `json:"reason"`
	// Decided is the range that decided; nil when none holds the destination.
	Decided *Range `json:"decided,omitempty"`
	// To is the address that the other side sees; invalid when that is the
	// outgoing interface's, or when nothing is translated.
	To netip.Addr `json:"to,omitzero"`
}

// Explain says what the planned rules do with a flow, and which line decided.
// It agrees with the rule set that Plan makes from the same input.
func Explain(cfg Config, opts Options, facts Facts, flow Flow) (Verdict, error) {
	flow.Src, flow.Dst = flow.Src.Unmap(), flow.Dst.Unmap()
	if FamilyOf(flow.Src) != FamilyOf(flow.Dst) {
		return Verdict{}, fmt.Errorf("explaining %s to %s: source and destination are of different families", flow.Src, flow.Dst)
	}
	rs, _, err := Plan(cfg, opts, facts)
	if err != nil {
		return Verdict{}, err
	}
	family := FamilyOf(flow.Src)
	fr, ok := rs.Of(family)
	if !ok {
		return Verdict{Action: Untouched, Reason: "IPv6 is not enabled (--enable-ipv6), so there are no rules for it"}, nil
	}
	if v, decided := explainEnds(rs, fr, facts, flow); decided {
		return v, nil
	}
	cluster := ClusterOf(cfg, opts)
	if !opts.UpstreamCompat {
		if r := longest(cluster.All(), flow.Dst); r != nil {
			return Verdict{Action: Exempt, Decided: r,
				Reason: fmt.Sprintf("%s is inside %s, a range of the cluster itself (from %s), which is always exempt", flow.Dst, r.Prefix, r.Origin)}, nil
		}
	}
	entry := decidingEntry(lists(cfg, family), flow.Dst)
	switch {
	case entry == nil && masqueradeOnly(cfg):
		return Verdict{Action: Exempt,
			Reason: fmt.Sprintf("no range of masqueradeCIDRs holds %s, and only those are masqueraded", flow.Dst)}, nil
	case entry != nil && !entry.masquerade:
		return Verdict{Action: Exempt, Decided: &entry.Range,
			Reason: fmt.Sprintf("%s is inside %s, a non-masquerade range (from %s)", flow.Dst, entry.Prefix, entry.Origin)}, nil
	}
	if len(rs.OutputInterfaces) > 0 && flow.OutputInterface != "" && !slices.Contains(rs.OutputInterfaces, flow.OutputInterface) {
		return Verdict{Action: Untouched,
			Reason: fmt.Sprintf("it leaves by %s, and outputInterfaces names only %v", flow.OutputInterface, rs.OutputInterfaces)}, nil
	}
	v := Verdict{Action: Masquerade, To: fr.SNAT}
	if entry == nil {
		v.Reason = fmt.Sprintf("no non-masquerade range holds %s", flow.Dst)
	} else {
		v.Decided = &entry.Range
		v.Reason = fmt.Sprintf("%s is inside %s, a masquerade range (from %s)", flow.Dst, entry.Prefix, entry.Origin)
	}
	if len(rs.OutputInterfaces) > 0 && flow.OutputInterface == "" {
		v.Reason += fmt.Sprintf("; only if it leaves by one of %v", rs.OutputInterfaces)
	}
	return v, nil
}

// explainEnds handles the flows that are left alone for what their ends are.
func explainEnds(rs RuleSet, fr FamilyRules, facts Facts, flow Flow) (Verdict, bool) {
	untouched := func(format string, args ...any) (Verdict, bool) {
		return Verdict{Action: Untouched, Reason: fmt.Sprintf(format, args...)}, true
	}
	own := func(a netip.Addr) bool {
		return a.IsLoopback() || slices.ContainsFunc(facts.Addresses, func(n NodeAddress) bool { return n.Prefix.Addr() == a })
	}
	if own(flow.Dst) {
		return untouched("%s is an address of this node", flow.Dst)
	}
	if rs.AnySource {
		return Verdict{}, false
	}
	if len(fr.Pods) > 0 {
		if _, ok := find(fr.Pods, flow.Src); !ok {
			return untouched("%s is not in a Pod range, and only Pods are masqueraded", flow.Src)
		}
	} else if own(flow.Src) {
		return untouched("%s is an address of this node itself, and only Pods are masqueraded", flow.Src)
	}
	if flow.Dst.IsMulticast() {
		return untouched("%s is a multicast address, which is never masqueraded", flow.Dst)
	}
	if flow.Dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return untouched("%s is the broadcast address, which is never masqueraded", flow.Dst)
	}
	for _, n := range facts.Addresses {
		p := n.Prefix.Masked()
		if !flow.Dst.Is4() || !p.Addr().Is4() || p.Bits() > 30 || !p.Contains(flow.Dst) {
			continue
		}
		if flow.Dst == LastAddr(p) {
			return untouched("%s is the broadcast address of %s on %s, which is never masqueraded", flow.Dst, p, n.Interface)
		}
	}
	return Verdict{}, false
}

func longest(ranges []Range, a netip.Addr) *Range {
	var best *Range
	for i, r := range ranges {
		if r.Prefix.Contains(a) && (best == nil || r.Prefix.Bits() > best.Prefix.Bits()) {
			best = &ranges[i]
		}
	}
	return best
}

// listedRange is one range of the lists, with what it asks for.
type listedRange struct {
	Range
	masquerade bool
}

func decidingEntry(lists []list, a netip.Addr) *listedRange {
	var best *listedRange
	for _, l := range lists {
		r := longest(l.ranges, a)
		if r != nil && (best == nil || r.Prefix.Bits() > best.Prefix.Bits() ||
			r.Prefix.Bits() == best.Prefix.Bits() && l.masquerade && !best.masquerade) {
			best = &listedRange{*r, l.masquerade}
		}
	}
	return best
}
