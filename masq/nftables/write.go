package nftables

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// chunk is how many elements go into one netlink message: a nested attribute
// ends at 64 KiB, and an IPv6 element takes up to 44 bytes.
const chunk = 1000

// writeElements changes sets in place: for a new list that is what differs,
// with rules and counters untouched.
func (b *Backend) writeElements(want layout, d difference) error {
	tx, err := newEncoder(want.randomFully)
	if err != nil {
		return err
	}
	for _, e := range d.elements {
		if err := b.changeElements(tx, e); err != nil {
			return err
		}
	}
	mark := want.chains[len(want.chains)-1]
	chain := &nftables.Chain{Name: mark.name, Table: b.table}
	tx.FlushChain(chain)
	b.addRules(tx, chain, mark.rules)
	return b.send(tx)
}

func (b *Backend) changeElements(tx *encoder, e elementDifference) error {
	set := b.set(e.set)
	for part := range slices.Chunk(intervalElements(e.gone), chunk) {
		if err := tx.SetDeleteElements(set, part); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(intervalElements(e.added), chunk) {
		if err := tx.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

// writeTable deletes whatever the table holds and writes everything anew, in
// one transaction: add (so that deleting cannot fail), delete, add. It is for
// a table that somebody put things into that cannot be removed one by one.
// Established flows keep their translation, and the counters go on from what
// was read.
func (b *Backend) writeTable(want layout, known found) error {
	tx, err := newEncoder(want.randomFully)
	if err != nil {
		return err
	}
	tx.AddTable(b.table)
	tx.DelTable(b.table)
	tx.AddTable(b.table)
	for _, s := range want.sets {
		if err := b.addSet(tx, s); err != nil {
			return err
		}
	}
	b.addCounters(tx, want, known)
	b.addChains(tx, want)
	return b.send(tx)
}

func (b *Backend) set(s setLayout) *nftables.Set {
	set := &nftables.Set{Table: b.table, Name: s.name, KeyType: s.keyType, Interval: s.interval}
	if s.keyType == nftables.TypeIFName {
		// For the nft program alone: it reads names backwards otherwise.
		set.KeyByteOrder = binaryutil.NativeEndian
	}
	return set
}

func (b *Backend) addSet(tx *encoder, s setLayout) error {
	set := b.set(s)
	if err := tx.AddSet(set, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(s.elements(), chunk) {
		if err := tx.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) addCounters(tx *encoder, want layout, known found) {
	for _, name := range want.counters {
		value, ok := known.counters[name]
		if !ok {
			value = &expr.Counter{}
		}
		tx.AddObj(&nftables.NamedObj{Table: b.table, Name: name, Type: nftables.ObjTypeCounter, Obj: value})
	}
}

func (b *Backend) addChains(tx *encoder, want layout) {
	accept := nftables.ChainPolicyAccept
	for _, c := range want.chains {
		chain := &nftables.Chain{Name: c.name, Table: b.table}
		if c.prio != nil {
			chain.Type, chain.Hooknum, chain.Priority, chain.Policy = nftables.ChainTypeFilter, nftables.ChainHookPostrouting, c.prio, &accept
			if c.nat {
				chain.Type = nftables.ChainTypeNAT
			}
		}
		b.addRules(tx, tx.AddChain(chain), c.rules)
	}
}

// addRules adds rules, making the anonymous sets that they look up.
func (b *Backend) addRules(tx *encoder, chain *nftables.Chain, rules []ruleLayout) {
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
				b.anonymous(tx, &filled, nftables.TypeFIBAddr, typeElements())
			case anonymousProtocols:
				b.anonymous(tx, &filled, nftables.TypeInetProto, protocolElements())
			}
			exprs[i] = &filled
		}
		tx.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: exprs, UserData: commentData(r.comment)})
	}
}

func (b *Backend) anonymous(tx *encoder, lookup *expr.Lookup, keyType nftables.SetDatatype, elements []nftables.SetElement) {
	set := &nftables.Set{Table: b.table, Anonymous: true, Constant: true, KeyType: keyType}
	// Only named sets can be refused here.
	_ = tx.AddSet(set, elements)
	lookup.SetName, lookup.SetID = set.Name, set.ID
}

// stage brings the table to a new structure. Sets that no rule looks up yet
// are filled first, in as many transactions as their size takes; the last
// transaction swaps the rules and changes the sets that stay. It returns the
// number of transactions.
//
// Rules and sets must not come together: newer kernels look ranges up in an
// array that a set gets at the very end of a commit. Until then, for up to
// milliseconds, the new rules are in force and find the new sets empty, and a
// packet leaves with the wrong address.
func (b *Backend) stage(want layout, known found, d difference) (transactions uint32, err error) {
	tx, err := newEncoder(want.randomFully)
	if err != nil {
		return 0, err
	}
	flush := func() error {
		if err := b.send(tx); err != nil {
			return err
		}
		transactions++
		return nil
	}
	inUse := known.inUse()
	fill := !known.found                           // there is something to do before the rules
	room := max(1, (b.batch-32<<10)/(16+28)/chunk) // pieces that fit
	pieces := 0
	tx.AddTable(b.table)
	for _, s := range want.sets {
		if inUse[s.name] {
			continue
		}
		fill = true
		if err := tx.AddSet(b.set(s), nil); err != nil {
			return transactions, err
		}
		tx.FlushSet(b.set(s)) // of what an earlier attempt may have left
		for piece := range slices.Chunk(s.elements(), chunk) {
			if pieces == room {
				if err := flush(); err != nil {
					return transactions, err
				}
				pieces = 0
			}
			if err := tx.SetAddElements(b.set(s), piece); err != nil {
				return transactions, err
			}
			pieces++
		}
	}
	if fill {
		if err := flush(); err != nil {
			return transactions, err
		}
	}

	for _, c := range known.layout.chains {
		tx.FlushChain(&nftables.Chain{Table: b.table, Name: c.kernelName()})
	}
	for _, c := range known.layout.chains {
		tx.DelChain(&nftables.Chain{Table: b.table, Name: c.kernelName()})
	}
	for _, s := range known.layout.sets {
		if !slices.ContainsFunc(want.sets, func(w setLayout) bool { return w.name == s.kernelName() }) {
			tx.DelSet(&nftables.Set{Table: b.table, Name: s.kernelName()})
		}
	}
	for name, e := range d.elements {
		if inUse[name] {
			if err := b.changeElements(tx, e); err != nil {
				return transactions, err
			}
		}
	}
	for _, name := range known.layout.counters {
		tx.DeleteObject(&nftables.NamedObj{Table: b.table, Name: name, Type: nftables.ObjTypeCounter})
	}
	b.addCounters(tx, want, known)
	b.addChains(tx, want)
	err = flush()
	return transactions, err
}
