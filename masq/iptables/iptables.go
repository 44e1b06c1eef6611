// Package iptables makes a kernel hold a masq.RuleSet through the node's own
// iptables-restore, for nodes whose other components need the rules there.
//
// It owns one chain of the nat table in each family and the jump to it. It
// refuses to touch anything else, to read a whole table, and to print other
// rules than upstream's as long as only upstream's options are used.
//
// To debug it, compare "iptables -t nat -S IP-MASQ-AGENT" with docs/iptables.md.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"sordino/internal/count"
	"sordino/internal/netns"
	"sordino/internal/nfnotify"
	"sordino/masq"
	"sordino/masq/xtables"
)

// Options are what a Backend is made of.
type Options struct {
	// Flavour to use; empty asks the node.
	Flavour xtables.Flavour
	Chain   string
	Log     *slog.Logger
	// Listeners are those of the process in this namespace.
	Listeners *nfnotify.Listeners
}

// Backend is one network namespace's chain. Its methods may be called from any
// goroutine.
type Backend struct {
	ns        *netns.NS
	programs  *xtables.Programs
	chain     string
	log       *slog.Logger
	listeners *nfnotify.Listeners
	Reason    string // why this flavour

	mu         sync.Mutex
	hash       string // of the last applied rule set
	generation uint64
}

// New finds the node's programs in the calling thread's network namespace.
func New(ctx context.Context, o Options) (*Backend, error) {
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
	programs := xtables.Find(ctx, ns)
	reason := "asked for"
	if o.Flavour == "" {
		o.Flavour, reason, err = detect(ctx, ns, programs, o.Chain)
	} else if programs[o.Flavour] == nil {
		err = fmt.Errorf("there are no iptables programs of the %s flavour on this node", o.Flavour)
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &Backend{ns: ns, programs: programs[o.Flavour], chain: o.Chain, log: o.Log, listeners: o.Listeners, Reason: reason}, nil
}

// Flavours lists those whose programs are on this node.
func Flavours(ctx context.Context) []xtables.Flavour {
	var out []xtables.Flavour
	for f := range xtables.Find(ctx, nil) {
		out = append(out, f)
	}
	slices.Sort(out)
	return out
}

// detect decides which flavour the node's other components use. Rules in the
// other one would work too, but nobody would find them.
func detect(ctx context.Context, ns *netns.NS, programs map[xtables.Flavour]*xtables.Programs, chain string) (xtables.Flavour, string, error) {
	if len(programs) == 0 {
		return "", "", errors.New("there is no iptables program on this node; install iptables, or use --backend=nftables")
	}
	if len(programs) == 1 {
		for f := range programs {
			return f, "it is the only one on this node", nil
		}
	}
	// The kubelet leaves chains as a hint, and kube-proxy its own.
	if programs[xtables.NFT] != nil && inNFT(ns, func(name string) bool { return strings.HasPrefix(name, "KUBE-") }) {
		return xtables.NFT, "the kubelet's or kube-proxy's chains are there", nil
	}
	// Somebody who only looks with the legacy program makes a legacy table:
	// that must not move the rules, nor mislead the commands.
	if programs[xtables.NFT] != nil && inNFT(ns, func(name string) bool { return name == chain }) {
		return xtables.NFT, "the chain " + chain + " is there already", nil
	}
	if programs[xtables.Legacy] != nil {
		if inUse, _ := xtables.LegacyInUse(ns, masq.IPv4); inUse {
			return xtables.Legacy, "the kernel has a legacy nat table in use", nil
		}
	}
	if f, ok := xtables.Default(ctx); ok && programs[f] != nil {
		return f, "the program called iptables is of it", nil
	}
	return xtables.NFT, "nothing on the node speaks for another", nil
}

// inNFT reports whether iptables-nft keeps a chain of such a name.
func inNFT(ns *netns.NS, wanted func(name string) bool) bool {
	var chains []*nftables.Chain
	err := ns.Do(func() error {
		conn, err := nftables.New()
		if err == nil {
			chains, err = conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
		}
		return err
	})
	return err == nil && slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return wanted(c.Name) })
}

// Name tells the flavour too.
func (b *Backend) Name() string { return "iptables (" + string(b.programs.Flavour) + ")" }

// Flavour is the one in use.
func (b *Backend) Flavour() xtables.Flavour { return b.programs.Flavour }

// Close ends nothing in the kernel.
func (b *Backend) Close() error { return b.ns.Close() }

// Apply makes both families hold the rule set. An error of one family does not
// keep the other from being written.
func (b *Backend) Apply(ctx context.Context, rs masq.RuleSet, generation uint64) (masq.Change, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	plan, err := b.plan(ctx, rs)
	var change masq.Change
	for _, p := range plan {
		if restoreErr := b.programs.Restore(ctx, p.family, p.commands); restoreErr != nil {
			err = errors.Join(err, fmt.Errorf("writing the %s chain %s: %w", p.family, b.chain, restoreErr))
			continue
		}
		change.Wrote = true
		change.What = append(change.What, p.what...)
	}
	if err != nil {
		return change, err
	}
	change.Repaired = change.Wrote && b.hash == rs.Hash()
	b.hash, b.generation = rs.Hash(), generation
	return change, nil
}

// Diff says what Apply would change.
func (b *Backend) Diff(ctx context.Context, rs masq.RuleSet) ([]string, error) {
	plan, err := b.plan(ctx, rs)
	var what []string
	for _, p := range plan {
		what = append(what, p.what...)
	}
	return what, err
}

// familyPlan is what has to be done in one family.
type familyPlan struct {
	family   masq.Family
	commands []string
	what     []string
}

func (b *Backend) plan(ctx context.Context, rs masq.RuleSet) ([]familyPlan, error) {
	if rs.RandomFully && !b.programs.RandomFully() {
		b.log.Debug("this iptables does not know --random-fully; it is left out")
		rs.RandomFully = false
	}
	var plans []familyPlan
	var errs []error
	for _, family := range []masq.Family{masq.IPv4, masq.IPv6} {
		fr, wanted := rs.Of(family)
		if !wanted && !b.programs.Has(family) {
			continue
		}
		p := familyPlan{family: family}
		var err error
		if wanted {
			err = b.planWrite(ctx, rs, fr, &p)
		} else {
			err = b.planRemove(ctx, &p)
		}
		errs = append(errs, err)
		if err == nil && len(p.commands) > 0 {
			plans = append(plans, p)
		}
	}
	return plans, errors.Join(errs...)
}

func (b *Backend) planWrite(ctx context.Context, rs masq.RuleSet, fr masq.FamilyRules, p *familyPlan) error {
	want, err := chainRules(rs, fr)
	if err != nil {
		return err
	}
	held, exists, err := b.programs.List(ctx, fr.Family, b.chain)
	if err != nil {
		return err
	}
	jumps, err := b.jumps(ctx, fr.Family)
	if err != nil {
		return err
	}
	if !agents(held, jumps) {
		return fmt.Errorf("%s chain %s of the nat table holds rules that no masquerade agent wrote; give our chain another name with --masq-chain", fr.Family, b.chain)
	}
	if !exists || !slices.EqualFunc(held, want, sameRule) {
		// Declaring a chain empties it, in the same transaction that fills it.
		p.commands = append(p.commands, ":"+b.chain+" - [0:0]")
		p.commands = append(p.commands, want...)
		p.what = append(p.what, fmt.Sprintf("%s chain %s: %s instead of %d", fr.Family, b.chain, count.Of(len(want), "rule"), len(held)))
	}
	// The first jump stays where it is; another agent's version may have left more.
	if len(jumps) == 0 {
		p.commands = append(p.commands, b.jump())
		p.what = append(p.what, fmt.Sprintf("%s jump from POSTROUTING added", fr.Family))
	}
	for _, extra := range jumps[min(1, len(jumps)):] {
		p.commands = append(p.commands, "-D"+strings.TrimPrefix(extra, "-A"))
		p.what = append(p.what, fmt.Sprintf("%s surplus jump from POSTROUTING removed", fr.Family))
	}
	return nil
}

func (b *Backend) planRemove(ctx context.Context, p *familyPlan) error {
	held, exists, err := b.programs.List(ctx, p.family, b.chain)
	if err != nil || !exists {
		return err
	}
	jumps, err := b.jumps(ctx, p.family)
	if err != nil {
		return err
	}
	if !agents(held, jumps) {
		return nil
	}
	for _, j := range jumps {
		p.commands = append(p.commands, "-D"+strings.TrimPrefix(j, "-A"))
	}
	p.commands = append(p.commands, ":"+b.chain+" - [0:0]", "-X "+b.chain)
	p.what = append(p.what, fmt.Sprintf("%s chain %s with %s removed", p.family, b.chain, count.Of(len(jumps), "jump")))
	return nil
}

// agents reports whether a chain is a masquerade agent's, so that it may be
// emptied: somebody else can have a chain of the name that we were given.
func agents(rules, jumps []string) bool {
	return len(rules) == 0 || len(jumps) > 0 || slices.ContainsFunc(rules, func(r string) bool {
		return xtables.IsAgentComment(xtables.Option(xtables.Fields(r), "--comment"))
	})
}

// jumps returns the jumps to our chain, in order.
func (b *Backend) jumps(ctx context.Context, family masq.Family) ([]string, error) {
	rules, _, err := b.programs.List(ctx, family, "POSTROUTING")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rules, func(r string) bool { return !xtables.IsAgentJump(xtables.Fields(r), b.chain) }), nil
}

// Remove takes the chain and its jumps away in both families.
func (b *Backend) Remove(ctx context.Context, dryRun bool) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hash = ""
	var removed []string
	var errs []error
	for _, family := range []masq.Family{masq.IPv4, masq.IPv6} {
		if !b.programs.Has(family) {
			continue
		}
		p := familyPlan{family: family}
		err := b.planRemove(ctx, &p)
		if err == nil && len(p.commands) > 0 && !dryRun {
			err = b.programs.Restore(ctx, family, p.commands)
		}
		if err == nil && len(p.commands) > 0 {
			removed = append(removed, fmt.Sprintf("%s chain %s (%s) and its jumps", family, b.chain, b.programs.Flavour))
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// Held reads the counters of our chain. iptables rules have no room for a
// mark, so generation and hash are those of the last Apply of this process.
func (b *Backend) Held(ctx context.Context) (masq.Held, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := masq.Held{Generation: b.generation, Hash: b.hash, SetSizes: map[string]int{}}
	for _, family := range []masq.Family{masq.IPv4, masq.IPv6} {
		if !b.programs.Has(family) {
			continue
		}
		if _, exists, err := b.programs.List(ctx, family, b.chain); err != nil || !exists {
			if err != nil {
				return held, err
			}
			continue
		}
		out, err := b.programs.Counters(ctx, family, b.chain)
		if err != nil {
			return held, fmt.Errorf("reading the counters of chain %s: %w", b.chain, err)
		}
		masqueraded := masq.Counter{Family: family, Action: masq.Masquerade}
		exempt := masq.Counter{Family: family, Action: masq.Exempt}
		for line := range strings.Lines(out) {
			fields := xtables.Fields(strings.TrimSpace(line))
			at := slices.Index(fields, "-c")
			if at < 0 || at+2 >= len(fields) {
				continue
			}
			c := &masqueraded
			switch xtables.Option(fields, "-j") {
			case "RETURN", "NETMAP":
				c = &exempt
				held.SetSizes["exempt"+strconv.Itoa(int(family))]++
			case "MASQUERADE", "SNAT":
			default:
				continue
			}
			packets, _ := strconv.ParseUint(fields[at+1], 10, 64)
			size, _ := strconv.ParseUint(fields[at+2], 10, 64)
			// The nat table sees the first packet of a connection only.
			c.Connections += packets
			c.Packets += packets
			c.Bytes += size
		}
		held.Counters = append(held.Counters, masqueraded, exempt)
	}
	return held, nil
}

// Watch calls touched when our chain, POSTROUTING or the nat table changes, and
// once when it begins to listen, until the context ends. The changes of our
// own programs are among them: one look that finds nothing follows each write.
// Legacy iptables announces nothing, so there the resync timer finds drift.
func (b *Backend) Watch(ctx context.Context, touched func()) error {
	if b.programs.Flavour == xtables.Legacy {
		<-ctx.Done()
		return nil
	}
	heard := func(messages []netlink.Message) {
		if slices.ContainsFunc(messages, func(m netlink.Message) bool {
			c, ok := nfnotify.ChangeOf(m)
			return ok && c.InNAT() && (c.Chain == "" && !c.New || c.Chain == "POSTROUTING" || c.Chain == b.chain)
		}) {
			touched()
		}
	}
	return b.listeners.Listen(ctx, b.ns, heard, touched, touched)
}
