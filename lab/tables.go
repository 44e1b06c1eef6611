package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// The tables that a lab writes into its own namespaces.
const (
	firewallTable = "lab-firewall"
	servicesTable = "lab-services"
)

// ensureTables writes the firewall of an outside service and the translation
// of Service addresses. A table that is there is complete, because it was
// written in one transaction.
func (n namespace) ensureTables(did func(string, ...any)) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables netlink: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("listing the tables: %w", err)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
	}
	if n.firewall != nil && !has(firewallTable) {
		if err := writeFirewall(conn, n.firewall); err != nil {
			return fmt.Errorf("writing the firewall: %w", err)
		}
		did("%s: firewall written", n.name)
	}
	if len(n.virtuals) > 0 && !has(servicesTable) {
		writeServices(conn, n.virtuals)
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("writing the Service addresses: %w", err)
		}
		did("%s: Service addresses written", n.name)
	}
	return nil
}

// side tells the two families' parts of a table apart.
type side struct {
	proto          byte
	saddr, daddr   uint32
	length         uint32
	keyType        nftables.SetDatatype
	allow, dropped string
}

func sides() []side {
	return []side{
		{unix.NFPROTO_IPV4, 12, 16, 4, nftables.TypeIPAddr, "allow4", "dropped4"},
		{unix.NFPROTO_IPV6, 8, 24, 16, nftables.TypeIP6Addr, "allow6", "dropped6"},
	}
}

func (s side) of(a netip.Addr) bool { return a.Is4() == (s.length == 4) }

// writeFirewall drops what comes from anywhere but the allowed ranges, and
// keeps the sources that it dropped.
func writeFirewall(conn *nftables.Conn, allow []netip.Prefix) error {
	table := conn.AddTable(&nftables.Table{Name: firewallTable, Family: nftables.TableFamilyINet})
	drop := nftables.ChainPolicyDrop
	chain := conn.AddChain(&nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	add := func(exprs ...expr.Any) { conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs}) }
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	// Neighbour discovery is the link's, not a visitor's.
	for icmp := byte(133); icmp <= 137; icmp++ {
		// icmpv6 type … accept
		add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, eq(unix.IPPROTO_ICMPV6),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1}, eq(icmp), accept)
	}
	for _, s := range sides() {
		allowed := &nftables.Set{Table: table, Name: s.allow, KeyType: s.keyType, Interval: true}
		var elements []nftables.SetElement
		for _, p := range allow {
			if s.of(p.Addr()) {
				elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
				if end := after(p); end.IsValid() {
					elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
				}
			}
		}
		dropped := &nftables.Set{Table: table, Name: s.dropped, KeyType: s.keyType, Dynamic: true, Size: 1024}
		if err := conn.AddSet(allowed, elements); err != nil {
			return err
		}
		if err := conn.AddSet(dropped, nil); err != nil {
			return err
		}
		from := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, eq(s.proto),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: s.saddr, Len: s.length},
		}
		// ip saddr @allow4 accept
		add(append(slices.Clone(from), &expr.Lookup{SourceRegister: 1, SetName: allowed.Name, SetID: allowed.ID}, accept)...)
		// add @dropped4 { ip saddr } drop
		add(append(slices.Clone(from),
			&expr.Dynset{SrcRegKey: 1, SetName: dropped.Name, SetID: dropped.ID, Operation: unix.NFT_DYNSET_OP_ADD},
			&expr.Verdict{Kind: expr.VerdictDrop})...)
	}
	return conn.Flush()
}

// writeServices translates Service addresses to Pods, for what is forwarded
// and for what the node itself sends.
func writeServices(conn *nftables.Conn, virtuals []Virtual) {
	table := conn.AddTable(&nftables.Table{Name: servicesTable, Family: nftables.TableFamilyINet})
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
		for _, v := range virtuals {
			for _, s := range sides() {
				if !s.of(v.Address) {
					continue
				}
				// ip daddr 172.20.0.10 dnat ip to 192.168.2.2
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, eq(s.proto),
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: s.daddr, Len: s.length}, eq(v.Address.AsSlice()...),
					&expr.Immediate{Register: 1, Data: v.Pod.AsSlice()},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(s.proto), RegAddrMin: 1},
				}})
			}
		}
	}
}

func eq(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// after is the first address behind a prefix; invalid at the end of the space.
func after(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(a)*8; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(a)
	return last.Next()
}

// Dropped returns the sources that an outside service's firewall dropped since
// the last call, and forgets them.
func (l *Lab) Dropped(service string) ([]netip.Addr, error) {
	ns, err := l.Namespace(service)
	if err != nil {
		return nil, err
	}
	return dropped(ns)
}

func dropped(ns *netns.NS) (sources []netip.Addr, err error) {
	conn, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return nil, fmt.Errorf("opening nftables netlink: %w", err)
	}
	table := &nftables.Table{Name: firewallTable, Family: nftables.TableFamilyINet}
	for _, s := range sides() {
		set, err := conn.GetSetByName(table, s.dropped)
		if err != nil {
			return nil, fmt.Errorf("reading the firewall: %w", err)
		}
		set.Table = table
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("reading the firewall: %w", err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				sources = append(sources, a)
			}
		}
		conn.FlushSet(set)
	}
	return sources, conn.Flush()
}
