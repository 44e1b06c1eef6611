package foreign

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/internal/nfnotify"
	"sordino/masq"
	"sordino/masq/xtables"
)

// Options are what a Node is opened with.
type Options struct {
	Log *slog.Logger
	// OwnTable is the inet table that is ours, and left alone.
	OwnTable string
	// Chains are further chains of masquerade agents.
	Chains []string
	// OwnChain is our own iptables chain, if that is the backend in use: what
	// stands before the jump to it decides before us.
	OwnChain Keep
	// Listeners are those of the process in this namespace.
	Listeners *nfnotify.Listeners
}

// Node is one network namespace. Its methods may be called from any goroutine.
type Node struct {
	ns       *netns.NS
	ownTable string
	ownChain Keep
	chains   []string
	log      *slog.Logger
	legacy   *xtables.Programs

	listeners *nfnotify.Listeners

	mu   sync.Mutex // guards conn
	conn *nftables.Conn
	port uint32 // of conn, to know our own changes
}

// Open opens the calling thread's network namespace.
func Open(o Options) (*Node, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Listeners == nil {
		o.Listeners = &nfnotify.Listeners{}
	}
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	n := &Node{ns: ns, ownTable: o.OwnTable, ownChain: o.OwnChain, log: o.Log, listeners: o.Listeners}
	for _, a := range xtables.Agents {
		n.chains = append(n.chains, a.Chain)
	}
	for _, c := range o.Chains {
		if !slices.Contains(n.chains, c) {
			n.chains = append(n.chains, c)
		}
	}
	n.legacy = xtables.Find(context.Background(), ns)[xtables.Legacy]
	n.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(n.learnPort))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening nftables netlink: %w", err), ns.Close())
	}
	return n, nil
}

func (n *Node) learnPort(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var nameErr error
	err = raw.Control(func(fd uintptr) {
		var name unix.Sockaddr
		if name, nameErr = unix.Getsockname(int(fd)); nameErr == nil {
			n.port = name.(*unix.SockaddrNetlink).Pid
		}
	})
	return errors.Join(err, nameErr)
}

// Close lets go of the namespace.
func (n *Node) Close() error { return errors.Join(n.conn.CloseLasting(), n.ns.Close()) }

// Predecessor is another masquerade agent's chain, with what leads to it.
type Predecessor struct {
	Family  masq.Family `json:"family"`
	Flavour string      `json:"flavour"`
	Chain   string      `json:"chain"`
	Jumps   int         `json:"jumps"`
	Rules   int         `json:"rules"`
	Agent   string      `json:"agent"`
}

// Keep is a chain that is not to be removed: our own iptables backend's.
type Keep struct{ Flavour, Chain string }

// RemovePredecessors removes the chains of other masquerade agents and the
// jumps to them, in one transaction a family and flavour. Call it when our own
// rules are in the kernel. unreadable names what could not be looked into.
func (n *Node) RemovePredecessors(ctx context.Context, keep []Keep) (removed []Predecessor, unreadable []string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, family := range []masq.Family{masq.IPv4, masq.IPv6} {
		gone, err := n.removeNFT(family, keep)
		removed, errs = append(removed, gone...), append(errs, err)
		gone, unread, err := n.removeLegacy(ctx, family, keep)
		removed, errs = append(removed, gone...), append(errs, err)
		if unread != "" {
			unreadable = append(unreadable, unread)
		}
	}
	return removed, unreadable, errors.Join(errs...)
}

func (n *Node) kept(keep []Keep, flavour xtables.Flavour, chain string) bool {
	return slices.Contains(keep, Keep{string(flavour), chain})
}

func nftFamily(f masq.Family) nftables.TableFamily {
	if f == masq.IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// removeNFT edits the tables that iptables-nft keeps, rule by handle.
func (n *Node) removeNFT(family masq.Family, keep []Keep) ([]Predecessor, error) {
	chains, err := n.conn.ListChainsOfTableFamily(nftFamily(family))
	if err != nil {
		return nil, fmt.Errorf("listing the %s chains: %w", family, err)
	}
	inNAT := func(name string) *nftables.Chain {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == "nat" && c.Name == name })
		if i < 0 {
			return nil
		}
		return chains[i]
	}
	postrouting := inNAT("POSTROUTING")
	var removed []Predecessor
	for _, name := range n.chains {
		chain := inNAT(name)
		if chain == nil || postrouting == nil || n.kept(keep, xtables.NFT, name) {
			continue
		}
		rules, err := n.conn.GetRules(chain.Table, chain)
		if err != nil {
			return removed, fmt.Errorf("reading chain %s: %w", name, err)
		}
		ours, err := n.conn.GetRules(postrouting.Table, postrouting)
		if err != nil {
			return removed, fmt.Errorf("reading chain POSTROUTING: %w", err)
		}
		jumps := 0
		for _, r := range ours {
			if jumpsTo(r, name) && xtables.IsAgentComment(commentOf(r)) {
				jumps++
				if err := n.conn.DelRule(r); err != nil {
					return removed, err
				}
			}
		}
		if jumps == 0 && !slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return xtables.IsAgentComment(commentOf(r)) }) {
			continue // a chain of that name, but somebody else's
		}
		n.conn.FlushChain(chain)
		n.conn.DelChain(chain)
		if err := n.conn.Flush(); err != nil {
			return removed, fmt.Errorf("removing the %s chain %s: %w", family, name, err)
		}
		removed = append(removed, Predecessor{family, string(xtables.NFT), name, jumps, len(rules), xtables.AgentOf(name).Name})
	}
	return removed, nil
}

func jumpsTo(r *nftables.Rule, chain string) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		v, ok := e.(*expr.Verdict)
		return ok && (v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto) && v.Chain == chain
	})
}

// commentOf is the comment that iptables-nft keeps as a match of its own.
func commentOf(r *nftables.Rule) string {
	for _, e := range r.Exprs {
		if m, ok := e.(*expr.Match); ok && m.Name == "comment" {
			switch c := m.Info.(type) {
			case *xt.Comment:
				return string(*c)
			case *xt.Unknown:
				return strings.TrimRight(string(*c), "\x00")
			}
		}
	}
	return ""
}

// removeLegacy edits legacy iptables through its program.
func (n *Node) removeLegacy(ctx context.Context, family masq.Family, keep []Keep) ([]Predecessor, string, error) {
	inUse, err := xtables.LegacyInUse(n.ns, family)
	if err != nil {
		return nil, fmt.Sprintf("only root may see whether there is a legacy %s nat table (%v)", family, err), nil
	}
	if !inUse {
		return nil, "", nil // looking would load the table
	}
	if n.legacy == nil || !n.legacy.Has(family) {
		return nil, fmt.Sprintf("the kernel has a legacy %s nat table, and there is no iptables-legacy program to look into it", family), nil
	}
	var removed []Predecessor
	for _, name := range n.chains {
		if n.kept(keep, xtables.Legacy, name) {
			continue
		}
		rules, exists, err := n.legacy.List(ctx, family, name)
		if err != nil {
			return removed, "", err
		}
		if !exists {
			continue
		}
		post, _, err := n.legacy.List(ctx, family, "POSTROUTING")
		if err != nil {
			return removed, "", err
		}
		var commands []string
		for _, r := range post {
			if xtables.IsAgentJump(xtables.Fields(r), name) {
				commands = append(commands, "-D"+strings.TrimPrefix(r, "-A"))
			}
		}
		jumps := len(commands)
		if jumps == 0 && !slices.ContainsFunc(rules, func(r string) bool {
			return xtables.IsAgentComment(xtables.Option(xtables.Fields(r), "--comment"))
		}) {
			continue
		}
		commands = append(commands, ":"+name+" - [0:0]", "-X "+name)
		if err := n.legacy.Restore(ctx, family, commands); err != nil {
			return removed, "", fmt.Errorf("removing the legacy %s chain %s: %w", family, name, err)
		}
		removed = append(removed, Predecessor{family, string(xtables.Legacy), name, jumps, len(rules), xtables.AgentOf(name).Name})
	}
	return removed, "", nil
}

// legacyInUse is for those who only read; what cannot be seen is said.
func (n *Node) legacyInUse(family masq.Family) bool {
	inUse, err := xtables.LegacyInUse(n.ns, family)
	if err != nil {
		n.log.Warn("only root may see legacy iptables rules; they are left out", "family", family, "error", err)
	}
	return inUse
}

// Watch calls touched when somebody adds a rule or chain to the nat tables
// that iptables-nft keeps, until the context ends. Legacy iptables announces
// nothing.
func (n *Node) Watch(ctx context.Context, touched func()) error {
	heard := func(messages []netlink.Message) {
		if slices.ContainsFunc(messages, func(m netlink.Message) bool { return m.Header.PID != n.port && n.addsToNAT(m) }) {
			touched()
		}
	}
	return n.listeners.Listen(ctx, n.ns, heard, touched, touched)
}

// addsToNAT recognises new chains of the agents' names and new rules in them or
// in POSTROUTING.
func (n *Node) addsToNAT(m netlink.Message) bool {
	c, ok := nfnotify.ChangeOf(m)
	return ok && c.New && c.InNAT() && (c.Chain == "POSTROUTING" || slices.Contains(n.chains, c.Chain))
}
