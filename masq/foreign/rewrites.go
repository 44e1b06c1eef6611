package foreign

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sordino/masq"
	"sordino/masq/xtables"
)

// Rewrite is a foreign rule that would, or might, translate a flow's source.
type Rewrite struct {
	// Where names table, chain and handle (or number, with legacy iptables).
	Where string `json:"where"`
	// Rule is the rule for a person to read.
	Rule string `json:"rule"`
	// Effect is "masquerade" or "snat to ADDRESS".
	Effect string `json:"effect"`
	// Certain is true when nothing about the flow is left open.
	Certain bool `json:"certain"`
	// Unknown names what it depends on and the flow does not tell.
	Unknown []string `json:"unknown,omitempty"`
	// Priority is the chain's; BeforeOurs tells that it decides before us.
	Priority   int  `json:"priority"`
	BeforeOurs bool `json:"beforeOurs"`
}

// legacyPriority is where legacy iptables hooks its nat POSTROUTING.
const legacyPriority = 100

// answer is a match's outcome when not everything is known.
type answer int

const (
	no answer = iota
	maybe
	yes
)

func and(a, b answer) answer { return min(a, b) }

// verdict is what a rule does when it matches.
type verdict int

const (
	next verdict = iota
	translate
	bind   // nothing translates the flow any more
	finish // accept: ends the base chain, and no other
	jump
	gotoChain
	leave // return
)

// rule is a rule of either kind, evaluated for one flow.
type rule struct {
	where, text, effect, target string
	match                       answer
	unknown                     []string
	verdict                     verdict
}

// Rewrites evaluates every foreign NAT rule that the flow's first packet would
// pass after routing, in the kernel's order, and returns those that would or
// might translate its source. A rule that certainly does ends the search: the
// first translation binds the flow.
func (n *Node) Rewrites(ctx context.Context, flow masq.Flow) ([]Rewrite, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	local, err := n.addressTypes()
	if err != nil {
		return nil, err
	}
	family := masq.FamilyOf(flow.Src)
	var bases []base
	for _, f := range []nftables.TableFamily{nftFamily(family), nftables.TableFamilyINet} {
		chains, err := n.conn.ListChainsOfTableFamily(f)
		if err != nil {
			return nil, fmt.Errorf("listing the %s chains: %w", familyName(f), err)
		}
		for _, c := range chains {
			own := f == nftables.TableFamilyINet && c.Table.Name == n.ownTable
			if own || c.Type != nftables.ChainTypeNAT || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookPostrouting {
				continue
			}
			e := &evaluator{node: n, flow: flow, family: family, local: local, table: c.Table}
			b := base{priority: int(*c.Priority), chain: c.Name, rules: e.rules}
			if c.Table.Name == "nat" && f == nftFamily(family) && n.ownChain.Flavour == string(xtables.NFT) {
				b.own = n.ownChain.Chain
			}
			bases = append(bases, b)
		}
	}
	if n.legacyInUse(family) && n.legacy != nil && n.legacy.Has(family) {
		l := &legacyEvaluator{ctx: ctx, programs: n.legacy, flow: flow, family: family, local: local}
		b := base{priority: legacyPriority, chain: "POSTROUTING", rules: l.rules}
		if n.ownChain.Flavour == string(xtables.Legacy) {
			b.own = n.ownChain.Chain
		}
		bases = append(bases, b)
	}
	slices.SortStableFunc(bases, func(a, b base) int { return cmp.Compare(a.priority, b.priority) })
	w := &walk{}
	for _, b := range bases {
		w.priority, w.rules, w.own, w.steps = b.priority, b.rules, b.own, 0
		w.behind = w.behind || n.ownChain.Chain == "" && b.priority >= masq.NATPriority
		if _, _, err := w.chain(b.chain, w.mayBeBound, slices.Clone(w.open), nil); err != nil {
			return nil, err
		}
		if w.bound {
			break
		}
	}
	return w.found, nil
}

// base is a chain that the kernel calls by itself.
type base struct {
	priority int
	chain    string
	rules    func(chain string) ([]rule, error)
	own      string // our own chain, if it is among those behind this one
}

// walk follows one flow through chains.
type walk struct {
	priority   int
	rules      func(chain string) ([]rule, error)
	own        string
	behind     bool // our own decision
	found      []Rewrite
	bound      bool // certainly translated
	mayBeBound bool
	open       []string // what that depends on
	steps      int
}

// maxSteps bounds the rules that are looked at, chains visited twice included.
const maxSteps = 200_000

// chain reports how surely a flow that enters the chain does not come back to
// the caller, and what that depends on.
func (w *walk) chain(name string, uncertain bool, unknown, path []string) (ended answer, open []string, err error) {
	if slices.Contains(path, name) || len(path) > 32 {
		return no, unknown, nil // the kernel allows no loops; a name seen twice is of a chain that changed meanwhile
	}
	rules, err := w.rules(name)
	if err != nil {
		return no, unknown, err
	}
	path = append(slices.Clone(path), name)
	left := false // the flow may have gone back to the caller
	stop := func() answer {
		if left {
			return maybe
		}
		return yes
	}
	for _, r := range rules {
		if w.steps++; w.steps > maxSteps {
			return ended, unknown, fmt.Errorf("chain %s: too many rules to follow", name)
		}
		if r.match == no {
			continue
		}
		if r.verdict == jump && r.target == w.own {
			w.behind = true // what our own rules decide the caller knows
			continue
		}
		certain := r.match == yes && !uncertain
		open := slices.Concat(unknown, r.unknown)
		perhaps := func() { uncertain, unknown = true, open }
		switch r.verdict {
		case translate, bind, finish:
			if r.verdict == translate {
				w.found = append(w.found, Rewrite{r.where, r.text, r.effect, certain, dedupe(open), w.priority, !w.behind})
			}
			if r.verdict != finish {
				w.bound = w.bound || certain
				w.mayBeBound, w.open = true, slices.Concat(w.open, open)
			}
			if r.match == yes {
				return stop(), open, nil
			}
			ended = maybe
			perhaps()
		case leave:
			if r.match == yes {
				return ended, unknown, nil
			}
			left = true
			perhaps()
		case jump, gotoChain:
			sub, subOpen, err := w.chain(r.target, !certain, open, path)
			if err != nil {
				return ended, unknown, err
			}
			if sub == yes && r.match == yes {
				return stop(), subOpen, nil
			}
			if sub != no {
				ended, open = maybe, subOpen
				perhaps()
			}
			if r.verdict == gotoChain {
				if r.match == yes {
					return ended, unknown, nil
				}
				left = true
				perhaps()
			}
		}
	}
	return ended, unknown, nil
}

func dedupe(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// addressTypes are the RTN_ numbers of the addresses that are special on this
// node, as the kernel's own routing table has them.
func (n *Node) addressTypes() (map[netip.Addr]uint32, error) {
	var handle *netlink.Handle
	err := n.ns.Do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening route netlink: %w", err)
	}
	defer handle.Close()
	list, err := handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("listing the node's addresses: %w", err)
	}
	local := map[netip.Addr]uint32{}
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		ones, bits := r.Dst.Mask.Size()
		if addr, ok := netip.AddrFromSlice(r.Dst.IP); ok && ones == bits {
			local[addr.Unmap()] = uint32(r.Type)
		}
	}
	return local, nil
}

// addressType is the kernel's RTN_ number of an address.
func addressType(a netip.Addr, special map[netip.Addr]uint32) uint32 {
	switch {
	case special[a] != 0:
		return special[a]
	case a.IsLoopback():
		return unix.RTN_LOCAL
	case a.IsMulticast():
		return unix.RTN_MULTICAST
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return unix.RTN_BROADCAST
	}
	return unix.RTN_UNICAST
}

var protocols = map[string]byte{"icmp": unix.IPPROTO_ICMP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP, "icmpv6": unix.IPPROTO_ICMPV6, "udplite": unix.IPPROTO_UDPLITE}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	case nftables.TableFamilyARP:
		return "arp"
	}
	return fmt.Sprintf("family %d", f)
}
