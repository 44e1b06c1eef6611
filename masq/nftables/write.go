package nftables

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// chunk is how many elements go into one netlink message: a nested attribute
// ends at 64 KiB, and an IPv6 element takes up to 44 bytes.
const chunk = 1000

// writeElements changes sets in place: for a new list that is what differs,
// with rules and counters untouched.
func (b *Backend) writeElements(want layout, d difference) error {
	for _, e := range d.elements {
		set := b.set(e.set)
		for part := range slices.Chunk(intervalElements(e.gone), chunk) {
			if err := b.conn.SetDeleteElements(set, part); err != nil {
				return err
			}
		}
		for part := range slices.Chunk(intervalElements(e.added), chunk) {
			if err := b.conn.SetAddElements(set, part); err != nil {
				return err
			}
		}
	}
	mark := want.chains[len(want.chains)-1]
	chain := &nftables.Chain{Name: mark.name, Table: b.table}
	b.conn.FlushChain(chain)
	b.addRules(chain, mark.rules)
	return b.conn.Flush()
}

// writeTable writes everything anew in one transaction: add (so that deleting
// cannot fail), delete, add. Established flows keep their translation, and the
// counters go on from what was read.
func (b *Backend) writeTable(want layout, known found) error {
	b.conn.AddTable(b.table)
	b.conn.DelTable(b.table)
	b.conn.AddTable(b.table)
	for _, s := range want.sets {
		if err := b.addSet(s); err != nil {
			return err
		}
	}
	b.addCounters(want, known)
	b.addChains(want)
	return b.conn.Flush()
}

func (b *Backend) set(s setLayout) *nftables.Set {
	return &nftables.Set{Table: b.table, Name: s.name, KeyType: s.keyType, Interval: s.interval}
}

func (b *Backend) addSet(s setLayout) error {
	set := b.set(s)
	if err := b.conn.AddSet(set, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(s.elements(), chunk) {
		if err := b.conn.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) addCounters(want layout, known found) {
	for _, name := range want.counters {
		value, ok := known.counters[name]
		if !ok {
			value = &expr.Counter{}
		}
		b.conn.AddObj(&nftables.NamedObj{Table: b.table, Name: name, Type: nftables.ObjTypeCounter, Obj: value})
	}
}

func (b *Backend) addChains(want layout) {
	accept := nftables.ChainPolicyAccept
	for _, c := range want.chains {
		chain := &nftables.Chain{Name: c.name, Table: b.table}
		if c.prio != nil {
			chain.Type, chain.Hooknum, chain.Priority, chain.Policy = nftables.ChainTypeFilter, nftables.ChainHookPostrouting, c.prio, &accept
			if c.nat {
				chain.Type = nftables.ChainTypeNAT
			}
		}
		b.addRules(b.conn.AddChain(chain), c.rules)
	}
}

// addRules adds rules, making the anonymous sets that they look up.
func (b *Backend) addRules(chain *nftables.Chain, rules []ruleLayout) {
	for _, r := range rules {
		exprs := slices.Clone(r.exprs)
		for i, e := range exprs {
			lookup, ok := e.(*expr.Lookup)
			if !ok {
				continue
			}
			filled := *lookup
			switch lookup.SetName {
			case anonymousTypes:
				b.anonymous(&filled, nftables.TypeFIBAddr, typeElements())
			case anonymousProtocols:
				b.anonymous(&filled, nftables.TypeInetProto, protocolElements())
			}
			exprs[i] = &filled
		}
		b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: exprs, UserData: commentData(r.comment)})
	}
}

func (b *Backend) anonymous(lookup *expr.Lookup, keyType nftables.SetDatatype, elements []nftables.SetElement) {
	set := &nftables.Set{Table: b.table, Anonymous: true, Constant: true, KeyType: keyType}
	// Only named sets can be refused here.
	_ = b.conn.AddSet(set, elements)
	lookup.SetName, lookup.SetID = set.Name, set.ID
}

// bytesOf estimates a batch from above: elements are what makes it large.
func bytesOf(l layout) int {
	n := 32 << 10
	for _, s := range l.sets {
		n += 2 * len(s.intervals) * (int(s.keyType.Bytes) + 28)
	}
	return n
}

// stageTable serves sockets whose buffer is too small for everything at once,
// as in a user namespace: the sets are filled under names that no rule knows
// yet, in as many transactions as it takes, and one last transaction swaps
// rules and sets. It returns the number of transactions.
func (b *Backend) stageTable(want layout, known found) (transactions uint32, err error) {
	flush := func() error {
		if err := b.conn.Flush(); err != nil {
			return err
		}
		transactions++
		return nil
	}
	b.conn.AddTable(b.table)
	for _, s := range want.sets {
		if err := b.conn.AddSet(b.set(s), nil); err != nil {
			return transactions, err
		}
		b.conn.FlushSet(b.set(s)) // of what an earlier attempt may have left
	}
	if err := flush(); err != nil {
		return transactions, err
	}
	perFlush := max(chunk, (b.batch-32<<10)/(16+28)/chunk*chunk)
	for _, s := range want.sets {
		for part := range slices.Chunk(s.elements(), perFlush) {
			for piece := range slices.Chunk(part, chunk) {
				if err := b.conn.SetAddElements(b.set(s), piece); err != nil {
					return transactions, err
				}
			}
			if err := flush(); err != nil {
				return transactions, err
			}
		}
	}
	for _, c := range known.layout.chains {
		b.conn.FlushChain(&nftables.Chain{Table: b.table, Name: c.kernelName()})
	}
	for _, c := range known.layout.chains {
		b.conn.DelChain(&nftables.Chain{Table: b.table, Name: c.kernelName()})
	}
	for _, s := range known.layout.sets {
		if !slices.ContainsFunc(want.sets, func(w setLayout) bool { return w.name == s.kernelName() }) {
			b.conn.DelSet(&nftables.Set{Table: b.table, Name: s.kernelName()})
		}
	}
	for _, name := range known.layout.counters {
		b.conn.DeleteObject(&nftables.NamedObj{Table: b.table, Name: name, Type: nftables.ObjTypeCounter})
	}
	b.addCounters(want, known)
	b.addChains(want)
	return transactions, flush()
}
