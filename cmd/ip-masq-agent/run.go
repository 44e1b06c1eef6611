package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"sordino/internal/nfnotify"
	"sordino/masq"
	"sordino/masq/agent"
	"sordino/masq/configfile"
	"sordino/masq/foreign"
	"sordino/masq/nftables"
	"sordino/masq/node"
)

// pollInterval is how often the config is looked at when no file notification
// arrives, as on file systems that have none.
const pollInterval = 10 * time.Second

func runAgent(ctx context.Context, inv *invocation) (err error) {
	f := inv.flags
	// The agent is one loop that is idle nearly always: one processor and a
	// small heap cost nothing that anybody would notice, and on a node with
	// many processors they save megabytes of the runtime's caches.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(longListGC)
	inv.log.Info("starting", "version", version, "config", f.config, "args", strings.Join(os.Args[1:], " "))

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

	a := agent.New(agent.Settings{
		Options:        f.options,
		Source:         &fileSource{path: f.config, loader: configfile.Loader{Settings: f.settings()}, log: inv.log},
		Backend:        backend,
		Predecessors:   others,
		Node:           here,
		StateDir:       f.stateDir,
		Arguments:      inv.arguments,
		ResyncInterval: f.resyncInterval,
		Log:            inv.log,
	})
	var serving sync.WaitGroup
	defer serving.Wait()
	if f.httpAddress != "" {
		serving.Go(func() { agent.Serve(ctx, f.httpAddress, a.Handler(), inv.log) })
	}
	return a.Run(ctx)
}

// closing joins what closing says to what the function returns.
func closing(err *error, c interface{ Close() error }) { *err = errors.Join(*err, c.Close()) }

// fileSource is the agent's configuration in files.
type fileSource struct {
	path   string
	loader configfile.Loader
	log    logger
}

func (f *flags) settings() configfile.Settings {
	return configfile.Settings{ReservedRanges: f.reserved, IPv6: f.ipv6}
}

func (s *fileSource) Load() (agent.Loaded, error) {
	result, err := s.loader.Load(s.path)
	if err != nil {
		rejected := &agent.Rejected{Err: err, Digest: result.Digest}
		for _, p := range configfile.Problems(err) {
			rejected.Reasons = append(rejected.Reasons, p.Reason)
		}
		return agent.Loaded{}, rejected
	}
	collectFor(result.Config)
	loaded := agent.Loaded{Config: result.Config, Files: result.Files, Digest: result.Digest}
	for _, w := range result.Warnings {
		loaded.Warnings = append(loaded.Warnings, w.String())
	}
	return loaded, nil
}

// A small heap is collected within a millisecond, and collecting it often keeps
// it small. A long list loads a third faster with more room.
const (
	shortListGC, longListGC = 20, 50 // percent
	longList                = 1000   // ranges
)

func collectFor(c masq.Config) {
	percent := shortListGC
	if len(c.NonMasquerade)+len(c.Masquerade) > longList {
		percent = longListGC
	}
	debug.SetGCPercent(percent)
}

func (s *fileSource) Watch(ctx context.Context, changed func()) error {
	return configfile.Watch(ctx, s.path, pollInterval, changed, s.log)
}

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
		removed = append(removed, fmt.Sprintf("%s: %s chain %s (%s iptables) with %d rules and %d jumps", l.Agent, l.Family, l.Chain, l.Flavour, l.Rules, l.Jumps))
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

func (p predecessors) Watch(ctx context.Context, touched func()) error {
	return p.node.Watch(ctx, touched)
}
