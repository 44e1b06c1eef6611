package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"sordino/internal/count"
	"sordino/internal/nfnotify"
	"sordino/masq/agent"
	"sordino/masq/foreign"
	"sordino/masq/nftables"
	"sordino/masq/node"
)

func runAgent(ctx context.Context, inv *invocation) (err error) {
	f := inv.flags
	// The agent is one loop that is idle nearly always: one processor and a
	// small heap cost nothing that anybody would notice, and on a node with
	// many processors they save megabytes of the runtime's caches.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(longListGC)
	inv.log.Info("starting", "version", version, "source", f.configSource, "args", strings.Join(os.Args[1:], " "))

	var listeners nfnotify.Listeners
	backend, err := openBackend(ctx, f, &listeners, inv.log)
	if err != nil {
		return err
	}
	defer closing(&err, backend)
	others, err := openPredecessors(f, backend, &listeners, inv.log)
	if err != nil {
		return err
	}
	defer closing(&err, others)
	here, err := node.Open()
	if err != nil {
		return err
	}
	defer closing(&err, here)

	from, err := openSource(f, inv.log)
	if err != nil {
		return err
	}
	if f.readyFile != "" {
		from.observers = append(from.observers, &readyFile{path: f.readyFile, log: inv.log})
	}
	a := agent.New(agent.Settings{
		Options:        f.options,
		Source:         from.source,
		SourceName:     f.configSource,
		Remote:         from.remote,
		Observers:      from.observers,
		Backend:        backend,
		Predecessors:   others,
		Node:           here,
		StateDir:       f.stateDir,
		Arguments:      slices.Concat(inv.arguments, from.arguments),
		ResyncInterval: f.resyncInterval,
		Log:            inv.log,
	})
	var serving sync.WaitGroup
	defer serving.Wait()
	for _, run := range from.beside {
		serving.Go(func() { run(ctx) })
	}
	if f.httpAddress != "" {
		serving.Go(func() { agent.Serve(ctx, f.httpAddress, a.Handler(), inv.log) })
	}
	return a.Run(ctx)
}

// closing joins what closing says to what the function returns.
func closing(err *error, c interface{ Close() error }) { *err = errors.Join(*err, c.Close()) }

// predecessors removes other agents' rules, but never the chain that our own
// iptables backend writes.
type predecessors struct {
	node *foreign.Node
	keep []foreign.Keep
	// table is what an earlier run with the nftables backend may have left;
	// it would go on deciding before the iptables chain. Nil beside nftables.
	table *nftables.Backend
}

func openPredecessors(f *flags, backend chosenBackend, listeners *nfnotify.Listeners, log *slog.Logger) (predecessors, error) {
	p := predecessors{keep: backend.keep}
	var err error
	if p.node, err = foreign.Open(foreign.Options{Log: log, OwnTable: ownTable, Chains: []string{f.chain}, Listeners: listeners}); err != nil {
		return p, err
	}
	if len(p.keep) > 0 {
		// A kernel without nftables holds no such table.
		p.table, _ = nftables.New(nftables.Options{Table: ownTable, Log: log, Listeners: listeners})
	}
	return p, nil
}

func (p predecessors) Close() error {
	if p.table == nil {
		return p.node.Close()
	}
	return errors.Join(p.node.Close(), p.table.Close())
}

func (p predecessors) Remove(ctx context.Context) (removed, unreadable []string, err error) {
	gone, unreadable, err := p.node.RemovePredecessors(ctx, p.keep)
	for _, l := range gone {
		removed = append(removed, fmt.Sprintf("%s: %s chain %s (%s iptables) with %s and %s", l.Agent, l.Family, l.Chain, l.Flavour, count.Of(l.Rules, "rule"), count.Of(l.Jumps, "jump")))
	}
	if p.table != nil {
		tables, tableErr := p.table.Remove(ctx, false)
		for _, t := range tables {
			removed = append(removed, "this agent with its nftables backend: "+t)
		}
		err = errors.Join(err, tableErr)
	}
	return removed, unreadable, err
}

func (p predecessors) Translators(ctx context.Context) ([]agent.Translator, error) {
	found, err := p.node.Translators(ctx, p.keep)
	var out []agent.Translator
	for _, t := range found {
		out = append(out, agent.Translator(t))
	}
	return out, err
}

func (p predecessors) Watch(ctx context.Context, touched func()) error {
	return p.node.Watch(ctx, touched)
}
