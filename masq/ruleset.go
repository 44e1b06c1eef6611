package masq

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// RuleSet is what the kernel is to hold: the whole of it, and nothing that
// depends on a backend. Two configurations that mean the same give equal
// rule sets, apart from FamilyRules.Returns, which keeps the file's order for
// the iptables backend.
type RuleSet struct {
	// Chain is the iptables chain's name; nftables does not use it.
	Chain string
	// AnySource translates whatever the source is, as upstream does. Without
	// it only Pod sources are translated, and nothing that goes to a local,
	// multicast, broadcast or anycast destination.
	AnySource bool
	// EnforceExempt makes exemptions binding for other agents' rules too.
	EnforceExempt bool
	// OutputInterfaces limits translation to these interfaces, sorted; empty
	// means all.
	OutputInterfaces []string
	// RandomFully and Ports choose the source port.
	RandomFully bool
	Ports       []PortRange
	// Families holds the rules of IPv4 and, when it is enabled, IPv6.
	Families []FamilyRules
}

// NATPriority lets our own NAT chain decide before the chains that other agents
// have at srcnat (100). The kernel runs all NAT chains of a hook from one place,
// in the order of their priorities, and stops at the first that binds the flow.
const NATPriority = 99

// FamilyRules are the rules of one address family.
type FamilyRules struct {
	Family Family
	// Pods are the sources that are translated, merged and sorted. Empty
	// means that the Pod ranges are not known: then every source counts that
	// is not an address of the node itself.
	Pods []Interval
	// Exempt are the destinations that keep the Pod's address, merged and
	// sorted: the complete answer, with the longest prefix already applied.
	Exempt []Interval
	// Returns says the same for rule-by-rule backends: link-local, then the
	// user's list in file order, then the cluster ranges that it leaves out.
	Returns Returns
	// SNAT is the address to translate to; the zero Addr means masquerade,
	// that is, the address of the outgoing interface.
	SNAT netip.Addr
}

// Return is one exemption of a rule-by-rule backend.
type Return struct {
	Prefix netip.Prefix
	// Cluster marks a range that the user's list does not hold.
	Cluster bool
}

// Returns are the exemptions rule by rule. They are laid out when somebody
// asks: the nftables backend does not, and a list may be long.
type Returns struct {
	// With a masquerade list there is no upstream order to keep, and disjoint
	// prefixes need none.
	exempt []Interval
	// Without one, the lists' ranges of the family are exempt in their order.
	lists   []list
	family  Family
	cluster []netip.Prefix
	// laidOut is what was read from JSON.
	laidOut []Return
}

// All lays the exemptions out.
func (r Returns) All() []Return {
	out := slices.Clone(r.laidOut)
	for _, iv := range r.exempt {
		for _, p := range iv.Prefixes() {
			out = append(out, Return{Prefix: p})
		}
	}
	for _, l := range r.lists {
		for i := range l.ranges {
			if p := l.ranges[i].Prefix; FamilyOf(p.Addr()) == r.family {
				out = append(out, Return{Prefix: p})
			}
		}
	}
	for _, p := range r.cluster {
		out = append(out, Return{Prefix: p, Cluster: true})
	}
	return out
}

// Equal reports whether both are the same rules in the same order.
func (r Returns) Equal(s Returns) bool { return slices.Equal(r.All(), s.All()) }

// MarshalJSON writes the list of All.
func (r Returns) MarshalJSON() ([]byte, error) { return json.Marshal(r.All()) }

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Returns) UnmarshalJSON(text []byte) error {
	*r = Returns{}
	return json.Unmarshal(text, &r.laidOut)
}

// Of returns the rules of a family, if the rule set has it.
func (r RuleSet) Of(f Family) (FamilyRules, bool) {
	for _, fr := range r.Families {
		if fr.Family == f {
			return fr, true
		}
	}
	return FamilyRules{}, false
}

// Canonical is the rule set as bytes, equal for equal meaning: a line a fact,
// with intervals as pairs of addresses in network order.
func (r RuleSet) Canonical() []byte {
	var b bytes.Buffer
	r.writeCanonical(&b)
	return b.Bytes()
}

// writeCanonical writes to what gives no errors.
func (r RuleSet) writeCanonical(w io.Writer) {
	fmt.Fprintf(w, "chain %s\nany-source %t\nenforce-exempt %t\nrandom-fully %t\n",
		r.Chain, r.AnySource, r.EnforceExempt, r.RandomFully)
	for _, i := range r.OutputInterfaces {
		fmt.Fprintf(w, "output-interface %s\n", i)
	}
	for _, p := range r.Ports {
		fmt.Fprintf(w, "ports %s\n", p)
	}
	intervals := func(word string, list []Interval) {
		fmt.Fprintf(w, "%s %d\n", word, len(list))
		const some = 256
		bytes := make([]byte, 0, some*2*16)
		for part := range slices.Chunk(list, some) {
			bytes = bytes[:0]
			for i := range part {
				bytes = appendAddr(appendAddr(bytes, part[i].First), part[i].Last)
			}
			w.Write(bytes)
		}
	}
	for _, f := range r.Families {
		fmt.Fprintf(w, "family %s\n", f.Family)
		if f.SNAT.IsValid() {
			fmt.Fprintf(w, "snat %s\n", f.SNAT)
		}
		intervals("pods", f.Pods)
		intervals("exempt", f.Exempt)
	}
}

func appendAddr(to []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(to, b[:]...)
	}
	b := a.As16()
	return append(to, b[:]...)
}

// Hash identifies the meaning of the rule set: the first 16 hex digits of the
// SHA-256 of Canonical.
func (r RuleSet) Hash() string {
	sum := sha256.New()
	r.writeCanonical(sum)
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
