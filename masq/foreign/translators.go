package foreign

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/google/nftables"

	"sordino/masq"
	"sordino/masq/xtables"
)

// Translator is a foreign chain that translates sources.
type Translator struct {
	// Table is the kind of table and its name: "ip nat", "legacy IPv4 nat".
	Table string
	// Chain is its name. Chains that differ by a hash, as those of kube-proxy
	// and of CNI plugins do, are one.
	Chain string
	// Rules is how many of its rules translate.
	Rules int
}

var hashed = regexp.MustCompile(`-[0-9A-Za-z]{16,}$`)

// Translators are the foreign chains that a packet may come to after routing,
// and that translate sources, whatever flows they are for: [Node.Rewrites]
// tells that of one flow. What is kept is our own.
func (n *Node) Translators(ctx context.Context, keep []Keep) ([]Translator, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	counts := map[Translator]int{}
	count := func(table, chain string, rules func(string) ([]rule, error), own func(chain string) bool) error {
		seen, todo := map[string]bool{}, []string{chain}
		for len(todo) > 0 {
			chain, todo = todo[0], todo[1:]
			if seen[chain] || own(chain) {
				continue
			}
			seen[chain] = true
			read, err := rules(chain)
			if err != nil {
				return err
			}
			for _, r := range read {
				switch r.verdict {
				case translate:
					counts[Translator{Table: table, Chain: hashed.ReplaceAllString(chain, "-*")}]++
				case jump, gotoChain:
					todo = append(todo, r.target)
				}
			}
		}
		return nil
	}
	for _, family := range []masq.Family{masq.IPv4, masq.IPv6} {
		// Rules are read for a flow, which decides nothing here.
		flow := masq.Flow{Src: netip.IPv4Unspecified(), Dst: netip.IPv4Unspecified()}
		if family == masq.IPv6 {
			flow = masq.Flow{Src: netip.IPv6Unspecified(), Dst: netip.IPv6Unspecified()}
		}
		kinds := []nftables.TableFamily{nftFamily(family)}
		if family == masq.IPv4 {
			kinds = append(kinds, nftables.TableFamilyINet)
		}
		for _, kind := range kinds {
			chains, err := n.conn.ListChainsOfTableFamily(kind)
			if err != nil {
				return nil, fmt.Errorf("listing the %s chains: %w", familyName(kind), err)
			}
			for _, c := range chains {
				own := kind == nftables.TableFamilyINet && c.Table.Name == n.ownTable
				if own || c.Type != nftables.ChainTypeNAT || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookPostrouting {
					continue
				}
				e := &evaluator{node: n, flow: flow, family: family, table: c.Table}
				err := count(familyName(kind)+" "+c.Table.Name, c.Name, e.rules, func(chain string) bool {
					return kind != nftables.TableFamilyINet && c.Table.Name == "nat" && n.kept(keep, xtables.NFT, chain)
				})
				if err != nil {
					return nil, err
				}
			}
		}
		if n.legacyInUse(family) && n.legacy != nil && n.legacy.Has(family) {
			l := &legacyEvaluator{ctx: ctx, programs: n.legacy, flow: flow, family: family}
			err := count(fmt.Sprintf("legacy %s nat", family), "POSTROUTING", l.rules, func(chain string) bool { return n.kept(keep, xtables.Legacy, chain) })
			if err != nil {
				return nil, err
			}
		}
	}
	var found []Translator
	for t, rules := range counts {
		t.Rules = rules
		found = append(found, t)
	}
	slices.SortFunc(found, func(a, b Translator) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Chain, b.Chain))
	})
	return found, nil
}
