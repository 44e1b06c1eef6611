package lab

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// The tables that a lab writes into its own namespaces.
const (
	firewallTable = "lab-firewall"
	servicesTable = "lab-services"
)

// table is one of the lab's tables as it should be.
type table struct {
	name   string
	sets   []*nftables.Set
	chains []chain
}

type chain struct {
	nftables.Chain
	rules [][]expr.Any
}

// tables makes the lab's tables those that are wanted, each in one
// transaction.
func (w *work) tables() error {
	for _, n := range w.plan.namespaces {
		conn := w.kernels[n.name].tables
		there, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
		if err != nil {
			return fmt.Errorf("listing the tables of %s: %w", n.name, err)
		}
		for _, want := range []table{firewall(n.firewall), services(n.virtuals)} {
			is := slices.ContainsFunc(there, func(t *nftables.Table) bool { return t.Name == want.name })
			if len(want.chains) == 0 {
				if !is {
					continue
				}
				err := w.change(func() error {
					conn.DelTable(&nftables.Table{Name: want.name, Family: nftables.TableFamilyINet})
					return conn.Flush()
				}, "remove the table %s from %s", want.name, n.name)
				if err != nil {
					return err
				}
				continue
			}
			if is {
				same, err := want.isWritten(conn)
				if err != nil {
					return fmt.Errorf("reading the table %s of %s: %w", want.name, n.name, err)
				}
				if same {
					continue
				}
			}
			if err := w.change(func() error { return want.write(conn) }, "write the table %s of %s", want.name, n.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// write replaces the table in one transaction.
func (t table) write(conn *nftables.Conn) error {
	to := conn.AddTable(&nftables.Table{Name: t.name, Family: nftables.TableFamilyINet})
	conn.DelTable(to) // there it is, thanks to the line above
	conn.AddTable(to)
	for i, s := range t.sets {
		// A number of the transaction; the library's own counter is shared by all
		// goroutines, unguarded.
		s.Table, s.ID = to, uint32(i+1)
		if err := conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	for _, c := range t.chains {
		c.Chain.Table = to
		conn.AddChain(&c.Chain)
		for _, r := range c.rules {
			comment, err := fingerprint(r)
			if err != nil {
				return err
			}
			conn.AddRule(&nftables.Rule{Table: to, Chain: &c.Chain, Exprs: r, UserData: comment})
		}
	}
	return conn.Flush()
}

// isWritten reports whether the kernel holds exactly the table's rules. A rule
// cannot be changed under its comment, which tells what it does.
func (t table) isWritten(conn *nftables.Conn) (bool, error) {
	for _, c := range t.chains {
		have, err := conn.GetRules(&nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}, &c.Chain)
		if err != nil {
			return false, err
		}
		if len(have) != len(c.rules) {
			return false, nil
		}
		for i, r := range c.rules {
			comment, err := fingerprint(r)
			if err != nil {
				return false, err
			}
			if !bytes.Equal(have[i].UserData, comment) {
				return false, nil
			}
		}
	}
	return true, nil
}

// fingerprint is a comment that tells one rule from every other.
func fingerprint(rule []expr.Any) ([]byte, error) {
	digest := sha256.New()
	for _, e := range rule {
		text, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
		if err != nil {
			return nil, err
		}
		digest.Write(text)
	}
	return userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("lab %.6x", digest.Sum(nil))), nil
}

// side tells the two families' parts of a table apart.
type side struct {
	proto        byte
	saddr, daddr uint32
	length       uint32
	keyType      nftables.SetDatatype
	dropped      string
}

func sides() []side {
	return []side{
		{unix.NFPROTO_IPV4, 12, 16, 4, nftables.TypeIPAddr, "dropped4"},
		{unix.NFPROTO_IPV6, 8, 24, 16, nftables.TypeIP6Addr, "dropped6"},
	}
}

func (s side) of(a netip.Addr) bool { return a.Is4() == (s.length == 4) }

// load puts an address of a packet of this side into the register.
func (s side) load(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, eq(s.proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: s.length},
	}
}

// firewall drops what comes from anywhere but the allowed ranges, and keeps
// the sources that it dropped. No list is no firewall.
func firewall(allow []netip.Prefix) table {
	t := table{name: firewallTable}
	if allow == nil {
		return t
	}
	drop := nftables.ChainPolicyDrop
	input := chain{Chain: nftables.Chain{Name: "input", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop}}
	add := func(exprs ...expr.Any) { input.rules = append(input.rules, exprs) }
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	// Neighbour discovery is the link's, not a visitor's.
	for icmp := byte(133); icmp <= 137; icmp++ {
		// icmpv6 type … accept
		add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, eq(unix.IPPROTO_ICMPV6),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1}, eq(icmp), accept)
	}
	for _, s := range sides() {
		for _, p := range allow {
			if s.of(p.Addr()) {
				// ip saddr 10.0.0.0/8 accept
				add(append(s.load(s.saddr),
					&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: s.length, Mask: ipNet(p).Mask, Xor: make([]byte, s.length)},
					eq(p.Masked().Addr().AsSlice()...), accept)...)
			}
		}
		// add @dropped4 { ip saddr } drop
		t.sets = append(t.sets, &nftables.Set{Name: s.dropped, KeyType: s.keyType, Dynamic: true, Size: 1024})
		add(append(s.load(s.saddr),
			&expr.Dynset{SrcRegKey: 1, SetName: s.dropped, Operation: unix.NFT_DYNSET_OP_ADD},
			&expr.Verdict{Kind: expr.VerdictDrop})...)
	}
	t.chains = []chain{input}
	return t
}

// services translates Service addresses to Pods, for what is forwarded and for
// what the node itself sends.
func services(virtuals []Virtual) table {
	t := table{name: servicesTable}
	if len(virtuals) == 0 {
		return t
	}
	for _, c := range []nftables.Chain{
		{Name: "prerouting", Hooknum: nftables.ChainHookPrerouting},
		{Name: "output", Hooknum: nftables.ChainHookOutput},
	} {
		c.Type, c.Priority = nftables.ChainTypeNAT, nftables.ChainPriorityNATDest
		var rules [][]expr.Any
		for _, v := range virtuals {
			for _, s := range sides() {
				if s.of(v.Address) {
					// ip daddr 172.20.0.10 dnat ip to 192.168.2.2
					rules = append(rules, append(s.load(s.daddr), eq(v.Address.AsSlice()...),
						&expr.Immediate{Register: 1, Data: v.Pod.AsSlice()},
						&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(s.proto), RegAddrMin: 1}))
				}
			}
		}
		t.chains = append(t.chains, chain{c, rules})
	}
	return t
}

func eq(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// Dropped returns the sources that an outside service's firewall dropped since
// the last call, and forgets them.
func (l *Lab) Dropped(service string) ([]netip.Addr, error) {
	ns, err := l.Namespace(service)
	if err != nil {
		return nil, err
	}
	sources, err := dropped(ns)
	if err != nil {
		return nil, fmt.Errorf("reading the firewall of %s: %w", service, err)
	}
	return sources, nil
}

func dropped(ns *netns.NS) ([]netip.Addr, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return nil, fmt.Errorf("opening nftables netlink: %w", err)
	}
	told := map[netip.Addr]bool{}
	for try := 1; ; try++ {
		// Packets add elements meanwhile, and the kernel then may not find one
		// that it has just listed. Nothing was deleted, so nothing is lost.
		err := takeDropped(conn, told)
		if err == nil {
			return slices.Collect(maps.Keys(told)), nil
		}
		if try == 5 || !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
	}
}

// takeDropped tells of the sources that are remembered, and forgets them all or
// none.
func takeDropped(conn *nftables.Conn, told map[netip.Addr]bool) error {
	table := &nftables.Table{Name: firewallTable, Family: nftables.TableFamilyINet}
	for _, s := range sides() {
		set, err := conn.GetSetByName(table, s.dropped)
		if err != nil {
			return err
		}
		set.Table = table
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return err
		}
		// While its hash table grows the kernel lists an element twice, and to
		// delete it twice would be refused.
		listed := map[netip.Addr]bool{}
		var forget []nftables.SetElement
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok && !listed[a] {
				listed[a], told[a] = true, true
				forget = append(forget, nftables.SetElement{Key: e.Key})
			}
		}
		if len(forget) == 0 {
			continue
		}
		// Not the whole set: what was dropped since it was read is for the next call.
		if err := conn.SetDeleteElements(set, forget); err != nil {
			return err
		}
	}
	return conn.Flush()
}
