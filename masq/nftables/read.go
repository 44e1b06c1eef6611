package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/count"
	"sordino/masq"
)

// found is what a look at the kernel gave.
type found struct {
	found      bool
	layout     layout
	generation uint64
	hash       string
	counters   map[string]*expr.Counter
}

// generation asks for the number that the kernel counts up with every change
// of any table.
func (b *Backend) generation() (uint32, error) {
	// A socket of its own would cost a change of namespace, which waits for
	// other processors.
	conn, err := b.socket()
	if err != nil {
		return 0, err
	}
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("asking for the ruleset's generation: %w", err)
	}
	for _, m := range replies {
		if id, ok := generationOf(m.Data); ok {
			return id, nil
		}
	}
	return 0, errors.New("asking for the ruleset's generation: the kernel gave none")
}

func generationOf(data []byte) (uint32, bool) {
	ad, err := netlink.NewAttributeDecoder(data[min(4, len(data)):])
	if err != nil {
		return 0, false
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == unix.NFTA_GEN_ID {
			return ad.Uint32(), true
		}
	}
	return 0, false
}

// verify returns what the kernel holds, reading as little as it can.
func (b *Backend) verify(gen uint32) (found, error) {
	if b.held != nil && gen == b.gen {
		return found{found: true, layout: *b.held}, nil
	}
	return b.read()
}

// read looks at our table.
func (b *Backend) read() (found, error) {
	var f found
	err := b.readInto(&f)
	if err != nil && errors.Is(err, syscall.ENOENT) {
		// Somebody deleted it while it was read: that is the answer.
		return found{}, nil
	}
	return f, err
}

func (b *Backend) readInto(f *found) error {
	exists, err := b.exists()
	if err != nil || !exists {
		return err
	}
	f.found = true
	chains, err := b.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("reading the chains of table inet %s: %w", b.table.Name, err)
	}
	for _, c := range chains {
		if c.Table.Name != b.table.Name {
			continue
		}
		rules, err := b.conn.GetRules(b.table, c)
		if err != nil {
			return fmt.Errorf("reading chain %s of table inet %s: %w", c.Name, b.table.Name, err)
		}
		f.layout.chains = append(f.layout.chains, readChain(c, rules))
		if c.Name == "generation" && len(rules) == 1 {
			f.generation, f.hash = parseMark(f.layout.chains[len(f.layout.chains)-1].rules[0].comment)
		}
	}
	sets, err := b.conn.GetSets(b.table)
	if err != nil {
		return fmt.Errorf("reading the sets of table inet %s: %w", b.table.Name, err)
	}
	for _, s := range sets {
		if s.Anonymous {
			continue
		}
		read, err := b.readSet(s)
		if err != nil {
			return err
		}
		f.layout.sets = append(f.layout.sets, read)
	}
	if f.counters, err = b.readCounters(); err != nil {
		return err
	}
	f.layout.counters = slices.Collect(maps.Keys(f.counters))
	return nil
}

func (b *Backend) readCounters() (map[string]*expr.Counter, error) {
	objects, err := b.conn.GetNamedObjects(b.table)
	if err != nil {
		return nil, fmt.Errorf("reading the counters of table inet %s: %w", b.table.Name, err)
	}
	counters := map[string]*expr.Counter{}
	for _, o := range objects {
		if named, ok := o.(*nftables.NamedObj); ok {
			if c, ok := named.Obj.(*expr.Counter); ok {
				counters[named.Name] = c
			}
		}
	}
	return counters, nil
}

// parseMark reads the comment that layOut writes.
func parseMark(comment string) (generation uint64, hash string) {
	if n, err := fmt.Sscanf(comment, "generation %d hash %s", &generation, &hash); n != 2 || err != nil {
		return 0, ""
	}
	return generation, hash
}

func (b *Backend) readSet(s *nftables.Set) (setLayout, error) {
	read := setLayout{name: s.Name, keyType: s.KeyType, interval: s.Interval}
	elements, err := b.conn.GetSetElements(s)
	if err != nil {
		return read, fmt.Errorf("reading set %s of table inet %s: %w", s.Name, b.table.Name, err)
	}
	if !s.Interval {
		for _, e := range elements {
			read.names = append(read.names, strings.TrimRight(string(e.Key), "\x00"))
		}
		slices.Sort(read.names)
		return read, nil
	}
	intervals, ok := intervalsOf(elements, s.KeyType.Bytes)
	if !ok {
		read.name += notOurs
	}
	read.intervals = intervals
	return read, nil
}

func readChain(c *nftables.Chain, rules []*nftables.Rule) chainLayout {
	read := chainLayout{name: c.Name, nat: c.Type == nftables.ChainTypeNAT}
	if c.Hooknum != nil {
		read.prio = c.Priority
		if *c.Hooknum != *nftables.ChainHookPostrouting || c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
			read.name += notOurs
		}
	}
	for _, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		read.rules = append(read.rules, ruleLayout{comment, r.Exprs})
	}
	return read
}

// Held reads the marks, counters and set sizes.
func (b *Backend) Held(ctx context.Context) (masq.Held, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return masq.Held{}, err
	}
	exists, err := b.exists()
	if err != nil || !exists {
		return masq.Held{}, err
	}
	var held masq.Held
	rules, err := b.conn.GetRules(b.table, &nftables.Chain{Name: "generation"})
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		return masq.Held{}, fmt.Errorf("reading the generation of table inet %s: %w", b.table.Name, err)
	}
	if len(rules) == 1 {
		comment, _ := userdata.GetString(rules[0].UserData, userdata.TypeComment)
		held.Generation, held.Hash = parseMark(comment)
	}
	values, err := b.readCounters()
	if err != nil {
		return masq.Held{}, err
	}
	for _, f := range []masq.Family{masq.IPv4, masq.IPv6} {
		for _, kind := range []struct {
			action masq.Action
			name   string
		}{{masq.Masquerade, "masqueraded"}, {masq.Exempt, "exempted"}} {
			name := kind.name + familyOf(f).suffix
			first, rest := values[name+"_first"], values[name]
			if first == nil || rest == nil {
				continue
			}
			held.Counters = append(held.Counters, masq.Counter{
				Family: f, Action: kind.action, Connections: first.Packets,
				Packets: first.Packets + rest.Packets, Bytes: first.Bytes + rest.Bytes,
			})
		}
	}
	if b.held != nil {
		held.SetSizes = map[string]int{}
		for _, s := range b.held.sets {
			name, _, _ := strings.Cut(s.name, "_") // of all parts together
			held.SetSizes[name] += len(s.intervals) + len(s.names)
		}
	}
	return held, nil
}

// notOurs marks the name of what is not as we write it, so that it compares
// unequal.
const notOurs = " (not as we write it)"

func (s setLayout) kernelName() string   { name, _, _ := strings.Cut(s.name, " "); return name }
func (c chainLayout) kernelName() string { name, _, _ := strings.Cut(c.name, " "); return name }

// stagedSuffix ends the names of sets that came beside others of the same name.
const stagedSuffix = "_b"

func (f found) suffix() string {
	for name := range f.inUse() {
		if strings.HasSuffix(name, stagedSuffix) {
			return stagedSuffix
		}
	}
	return ""
}

// inUse names the sets that a rule looks up.
func (f found) inUse() map[string]bool {
	names := map[string]bool{}
	for _, c := range f.layout.chains {
		for _, r := range c.rules {
			for _, e := range r.exprs {
				if lookup, ok := e.(*expr.Lookup); ok {
					names[lookup.SetName] = true
				}
			}
		}
	}
	return names
}

// canStay reports whether the sets in use that are wanted too are as they have
// to be, but for their elements.
func (f found) canStay(want layout) bool {
	inUse := f.inUse()
	for _, w := range want.sets {
		if inUse[w.name] && !slices.ContainsFunc(f.layout.sets, func(s setLayout) bool {
			return s.name == w.name && s.sameType(w)
		}) {
			return false
		}
	}
	return true
}

func (s setLayout) sameType(w setLayout) bool {
	return s.interval == w.interval && s.keyType.Name == w.keyType.Name && slices.Equal(s.names, w.names)
}

func (f found) otherSuffix() string {
	if f.suffix() == "" {
		return stagedSuffix
	}
	return ""
}

// difference is what has to be done to get from one layout to another.
type difference struct {
	structure []string // differences that need the table to be written whole
	elements  map[string]elementDifference
	mark      bool
}

type elementDifference struct {
	set         setLayout
	added, gone []masq.Interval
}

func (d difference) empty() bool { return len(d.structure) == 0 && len(d.elements) == 0 && !d.mark }
func (d difference) ranges() int {
	n := 0
	for _, e := range d.elements {
		n += len(e.added) + len(e.gone)
	}
	return n
}

// bytes estimates from above what changing the elements sends, beside the
// rules: they are what makes it large.
func (d difference) bytes() int {
	n := 32 << 10
	for _, e := range d.elements {
		n += 2 * (len(e.added) + len(e.gone)) * (int(e.set.keyType.Bytes) + 28)
	}
	return n
}

func (d difference) onlyElements() bool { return len(d.structure) == 0 }

func (d difference) describe() []string {
	out := slices.Clone(d.structure)
	var names []string
	for n := range d.elements {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		e := d.elements[n]
		out = append(out, fmt.Sprintf("set %s: %s added%s, %d removed%s", n, count.Of(len(e.added), "range"), sample(e.added), len(e.gone), sample(e.gone)))
	}
	if len(out) == 0 && d.mark {
		out = append(out, "the generation mark")
	}
	return out
}

func sample(intervals []masq.Interval) string {
	const show = 4
	if len(intervals) == 0 {
		return ""
	}
	var texts []string
	for _, iv := range intervals[:min(show, len(intervals))] {
		texts = append(texts, iv.String())
	}
	if len(intervals) > show {
		texts = append(texts, "…")
	}
	return " (" + strings.Join(texts, " ") + ")"
}

// compare finds what separates what is from what is wanted.
func compare(is, want layout) difference {
	var d difference
	note := func(format string, args ...any) { d.structure = append(d.structure, fmt.Sprintf(format, args...)) }
	for _, w := range want.sets {
		i := slices.IndexFunc(is.sets, func(s setLayout) bool { return s.name == w.name })
		if i < 0 {
			note("set %s: missing", w.name)
			continue
		}
		s := is.sets[i]
		if !s.sameType(w) {
			note("set %s: differs", w.name)
			continue
		}
		if added, gone := intervalDifference(s.intervals, w.intervals); len(added)+len(gone) > 0 {
			if d.elements == nil {
				d.elements = map[string]elementDifference{}
			}
			d.elements[w.name] = elementDifference{w, added, gone}
		}
	}
	for _, s := range is.sets {
		if !slices.ContainsFunc(want.sets, func(w setLayout) bool { return w.name == s.name }) {
			note("set %s: not ours", s.name)
		}
	}
	a, b := slices.Sorted(slices.Values(is.counters)), slices.Sorted(slices.Values(want.counters))
	if !slices.Equal(a, b) {
		note("counters: %v instead of %v", a, b)
	}
	for _, w := range want.chains {
		i := slices.IndexFunc(is.chains, func(c chainLayout) bool { return c.name == w.name })
		if i < 0 {
			note("chain %s: missing", w.name)
			continue
		}
		c := is.chains[i]
		if w.name == "generation" && len(c.rules) == 1 {
			d.mark = c.rules[0].comment != w.rules[0].comment
			continue
		}
		if c.nat != w.nat || !reflect.DeepEqual(c.prio, w.prio) {
			note("chain %s: another hook", w.name)
		}
		if !slices.EqualFunc(c.rules, w.rules, equalRules) {
			note("chain %s: other rules", w.name)
		}
	}
	for _, c := range is.chains {
		if !slices.ContainsFunc(want.chains, func(w chainLayout) bool { return w.name == c.name }) {
			note("chain %s: not ours", c.name)
		}
	}
	return d
}

// intervalDifference walks two merged lists side by side.
func intervalDifference(is, want []masq.Interval) (added, gone []masq.Interval) {
	for len(is) > 0 || len(want) > 0 {
		switch {
		case len(is) == 0:
			return append(added, want...), gone
		case len(want) == 0:
			return added, append(gone, is...)
		case is[0] == want[0]:
			is, want = is[1:], want[1:]
		case is[0].First.Compare(want[0].First) <= 0:
			gone, is = append(gone, is[0]), is[1:]
		default:
			added, want = append(added, want[0]), want[1:]
		}
	}
	return added, gone
}

// equalRules compares what was read with what is wanted; the kernel names
// anonymous sets itself and reports no set ids, and the library does not
// decode byteorder expressions.
func equalRules(a, b ruleLayout) bool {
	wanted := slices.DeleteFunc(slices.Clone(b.exprs), func(e expr.Any) bool {
		_, undecoded := e.(*expr.Byteorder)
		return undecoded
	})
	return a.comment == b.comment && slices.EqualFunc(a.exprs, wanted, func(x, y expr.Any) bool {
		lx, okx := x.(*expr.Lookup)
		ly, oky := y.(*expr.Lookup)
		if okx && oky {
			same := lx.SetName == ly.SetName || strings.HasPrefix(lx.SetName, "__") && strings.HasPrefix(ly.SetName, "__")
			return same && lx.SourceRegister == ly.SourceRegister && lx.Invert == ly.Invert
		}
		return reflect.DeepEqual(x, y)
	})
}
