package foreign

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/ti-mo/conntrack"

	"sordino/masq"
)

// ConntrackUsers names what, besides our table, keeps connection tracking
// hooked into this node's packets of a family: NAT chains, and rules that look
// at it.
func (n *Node) ConntrackUsers(ctx context.Context, family masq.Family) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var users []string
	if n.legacyInUse(family) {
		users = append(users, fmt.Sprintf("legacy iptables nat table (%s)", family))
	}
	chains, err := n.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("listing the chains: %w", err)
	}
	for _, c := range chains {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		where := fmt.Sprintf("table %s %s chain %s", familyName(c.Table.Family), c.Table.Name, c.Name)
		if c.Table.Name == n.ownTable && c.Table.Family == nftables.TableFamilyINet {
			continue
		}
		switch c.Table.Family {
		case nftFamily(family), nftables.TableFamilyINet, nftables.TableFamilyBridge: // the latter two hook both
		default:
			continue
		}
		if c.Type == nftables.ChainTypeNAT {
			users = append(users, where)
			continue
		}
		rules, err := n.conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", where, err)
		}
		if usesConntrack(rules) {
			users = append(users, where)
		}
	}
	return users, nil
}

func usesConntrack(rules []*nftables.Rule) bool {
	for _, r := range rules {
		for _, e := range r.Exprs {
			switch m := e.(type) {
			case *expr.Ct, *expr.FlowOffload:
				return true
			case *expr.Match:
				if m.Name == "conntrack" || m.Name == "state" || m.Name == "connmark" {
					return true
				}
			}
		}
	}
	return false
}

// TranslatedFlows counts the live connections of a family whose source was
// translated.
func (n *Node) TranslatedFlows(_ context.Context, family masq.Family) (count int, err error) {
	var conn *conntrack.Conn
	err = n.ns.Do(func() (err error) {
		conn, err = conntrack.Dial(nil)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("opening conntrack netlink: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	flows, err := conn.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("reading the tracked connections: %w", err)
	}
	for _, f := range flows {
		if masq.FamilyOf(f.TupleOrig.IP.SourceAddress) == family && f.TupleReply.IP.DestinationAddress != f.TupleOrig.IP.SourceAddress {
			count++
		}
	}
	return count, nil
}
