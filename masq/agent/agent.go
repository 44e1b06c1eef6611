package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"sordino/masq"
)

// Source is where the configuration comes from.
type Source interface {
	// Load reads and validates the configuration as it is now. A *Rejected
	// error says why it cannot be used, an *Unavailable one that it is not known.
	Load() (Loaded, error)
	// Watch calls changed whenever Load may give something else, and once when
	// it begins to listen, until the context ends.
	Watch(ctx context.Context, changed func()) error
}

// Loaded is a valid configuration.
type Loaded struct {
	Config   masq.Config
	Warnings []string
	// From says what the configuration is made from, for a person.
	From string
	// Files are those that were read, if it is made from files.
	Files []string
	// Digest tells the text that was read from others; empty means no text.
	Digest string
}

// Rejected says that a configuration cannot be used.
type Rejected struct {
	// Reasons are short stable words, for metrics.
	Reasons []string
	Err     error
	// Digest is as of Loaded.
	Digest string
}

func (r *Rejected) Error() string { return r.Err.Error() }
func (r *Rejected) Unwrap() error { return r.Err }

// Unavailable says that the configuration is not known: whoever keeps it could
// not be asked. What is in force stays; at the start that is the last good
// configuration.
type Unavailable struct {
	Err error
	// Fallback is for a start without a last good configuration; nil for none.
	Fallback *Loaded
}

func (u *Unavailable) Error() string { return u.Err.Error() }

func (u *Unavailable) Unwrap() error { return u.Err }

// Backend makes one kernel hold a rule set.
type Backend interface {
	Name() string
	// Apply makes the kernel hold the rule set and nothing else of ours. It
	// writes only when the kernel does not hold it already.
	Apply(ctx context.Context, rs masq.RuleSet, generation uint64) (masq.Change, error)
	// Held reads the marks and counters back.
	Held(ctx context.Context) (masq.Held, error)
	// Watch calls touched when somebody else changed our rules, until the
	// context ends.
	Watch(ctx context.Context, touched func()) error
}

// Predecessors are other masquerade agents' rules on the node.
type Predecessors interface {
	// Remove takes them away; it is called when our own rules are in place.
	// unreadable names what is there but could not be looked into.
	Remove(ctx context.Context) (removed, unreadable []string, err error)
	// Watch calls touched when they may have come back.
	Watch(ctx context.Context, touched func()) error
	// Translators are everybody else's chains that translate sources, too.
	Translators(ctx context.Context) ([]Translator, error)
}

// Translator is a chain of somebody else that translates sources.
type Translator struct {
	Table, Chain string
	Rules        int
}

// Node tells what this node is.
type Node interface {
	Facts() (masq.Facts, error)
	Watch(ctx context.Context, changed func()) error
}

// Observer is told what the loop did, after every reconciliation.
type Observer interface {
	// Observe must not wait for anything: the loop does.
	Observe(Status, []Event)
}

// Event is something that happened in a reconciliation.
type Event struct {
	Reason  EventReason
	Message string
}

// EventReason is one word, as Kubernetes' Events have it.
type EventReason string

// What can happen.
const (
	ConfigApplied     EventReason = "ConfigApplied"
	ConfigRejected    EventReason = "ConfigRejected"
	ConfigUnavailable EventReason = "ConfigUnavailable"
	ApplyFailed       EventReason = "ApplyFailed"
	RulesRepaired     EventReason = "RulesRepaired"
	TookOver          EventReason = "TookOver"
)

// Remote is how it goes with a source that is not on this machine.
type Remote struct {
	Server string `json:"server"`
	// LastContact is when it last answered or sent something.
	LastContact time.Time `json:"lastContact,omitzero"`
	// WatchRestarts and ReportErrors count watches that broke, and what could
	// not be told.
	WatchRestarts uint64 `json:"watchRestarts"`
	ReportErrors  uint64 `json:"reportErrors"`
	// Problems are what does not work at present.
	Problems []string `json:"problems,omitempty"`
}

// Settings are everything that an Agent is made of.
type Settings struct {
	Options masq.Options
	Source  Source
	// SourceName is the kind of the source: "file".
	SourceName string
	// Remote is nil for a source on this machine.
	Remote       func() Remote
	Observers    []Observer
	Backend      Backend
	Predecessors Predecessors
	Node         Node
	// StateDir keeps the last good configuration; empty keeps nothing.
	StateDir string
	// Arguments are remembered beside it, so that the other commands can
	// answer for the agent that runs.
	Arguments []string
	// ResyncInterval, when not zero, stands above the configuration's.
	ResyncInterval time.Duration
	Log            *slog.Logger
}

// Agent is one run of the loop.
type Agent struct {
	Settings
	wake    chan struct{}
	ping    chan chan struct{}
	mu      sync.Mutex
	pending trigger
	status  atomic.Pointer[Status]
	metrics *metrics

	// What follows belongs to the loop alone.
	config      masq.Config
	haveConfig  bool
	facts       masq.Facts
	rules       masq.RuleSet
	generation  uint64
	hash        string
	saved       state
	restored    string // the hash that went with the generation of an earlier run
	retry       time.Duration
	lastWarning map[string]bool
	repairs     *rate.Limiter
	events      []Event // of this reconciliation
	lastError   string  // of the last apply
}

// trigger is a set of causes for a reconciliation.
type trigger uint8

const (
	onStart trigger = 1 << iota
	onConfig
	onDrift
	onFacts
	onResync
	onRetry
)

func (t trigger) String() string {
	names := []string{"start", "config", "drift", "node", "resync", "retry"}
	var out string
	for i, n := range names {
		if t&(1<<i) != 0 {
			if out != "" {
				out += "+"
			}
			out += n
		}
	}
	return out
}

// Retries of a failed apply start at firstRetry and double up to lastRetry.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// New makes an agent; Run starts it.
func New(s Settings) *Agent {
	a := &Agent{
		Settings:    s,
		wake:        make(chan struct{}, 1),
		ping:        make(chan chan struct{}),
		lastWarning: map[string]bool{},
		// Somebody who undoes our rules in a loop must not get the processor
		// as well: after a burst, repairs are spaced.
		repairs: rate.NewLimiter(50, 20),
	}
	a.status.Store(&Status{Backend: s.Backend.Name(), Source: s.SourceName})
	a.metrics = newMetrics(a)
	return a
}

// Run keeps the kernel holding the configuration until the context ends. The
// rules stay when it returns.
func (a *Agent) Run(ctx context.Context) error {
	a.restore(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for name, w := range map[string]struct {
		watch func(context.Context, func()) error
		cause trigger
	}{
		"the configuration":    {a.Source.Watch, onConfig},
		"our rules":            {a.Backend.Watch, onDrift},
		"other agents' rules":  {a.Predecessors.Watch, onDrift},
		"the node's addresses": {a.Node.Watch, onFacts},
	} {
		watchers.Go(func() { a.watch(ctx, name, w.watch, w.cause) })
	}
	a.poke(onStart)

	resync := time.NewTimer(0)
	defer resync.Stop()
	<-resync.C
	retry := time.NewTimer(0)
	defer retry.Stop()
	<-retry.C
	for {
		select {
		case <-ctx.Done():
			a.Log.Info("stopping; the rules stay in the kernel", "generation", a.generation)
			return nil
		case pong := <-a.ping:
			close(pong)
			continue
		case <-a.wake:
		case <-resync.C:
			a.poke(onResync)
			continue
		case <-retry.C:
			a.poke(onRetry)
			continue
		}
		causes := a.take()
		if causes == onDrift && a.repairs.Wait(ctx) != nil {
			continue // the context ended
		}
		if a.reconcile(ctx, causes) {
			a.retry = 0
			retry.Stop()
		} else {
			a.retry = min(max(2*a.retry, firstRetry), lastRetry)
			retry.Reset(a.retry)
		}
		resync.Reset(a.resyncInterval())
	}
}

// Alive reports whether the loop answers within the context's time.
func (a *Agent) Alive(ctx context.Context) error {
	pong := make(chan struct{})
	select {
	case a.ping <- pong:
		<-pong
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the reconcile loop does not answer: %w", ctx.Err())
	}
}

// watch keeps a watcher running: one that ends early is told of and started
// again, and what it may have missed is looked at.
func (a *Agent) watch(ctx context.Context, name string, watch func(context.Context, func()) error, cause trigger) {
	for {
		err := watch(ctx, func() { a.poke(cause) })
		if ctx.Err() != nil {
			return
		}
		a.Log.Warn("watching ended early; the resync timer still finds changes, and it is tried again", "watched", name, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(lastRetry):
			a.poke(cause)
		}
	}
}

func (a *Agent) poke(cause trigger) {
	a.mu.Lock()
	a.pending |= cause
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default: // one is waiting already, and takes this cause along
	}
}

func (a *Agent) take() trigger {
	a.mu.Lock()
	defer a.mu.Unlock()
	causes := a.pending
	a.pending = 0
	return causes
}

func (a *Agent) resyncInterval() time.Duration {
	if a.ResyncInterval > 0 {
		return a.ResyncInterval
	}
	return max(a.config.ResyncInterval, time.Second)
}

// reconcile does what the causes ask for and reports whether the kernel holds
// what is desired.
func (a *Agent) reconcile(ctx context.Context, causes trigger) bool {
	status := *a.status.Load()
	status.LastError = ""
	log := a.Log.With("cause", causes.String())

	replan := !a.haveConfig
	if causes&(onStart|onConfig|onResync|onRetry) != 0 {
		replan = a.load(log, &status) || replan
	}
	if causes&^(onConfig|onDrift) != 0 {
		replan = a.readFacts(log) || replan
	}
	if replan || a.hash == "" {
		a.plan(log, &status)
	}
	ok := a.apply(ctx, log, &status)
	status.Ready = ok
	a.status.Store(&status)
	if ctx.Err() == nil {
		for _, o := range a.Observers {
			o.Observe(status, a.events)
		}
	}
	a.events = nil
	return ok
}

func (a *Agent) happened(reason EventReason, format string, args ...any) {
	a.events = append(a.events, Event{reason, fmt.Sprintf(format, args...)})
}

// load takes over the source's configuration, or says why it keeps another.
// It reports whether the configuration is another than before.
func (a *Agent) load(log *slog.Logger, status *Status) bool {
	loaded, err := a.Source.Load()
	if err == nil {
		for _, w := range loaded.Warnings {
			if !a.lastWarning[w] {
				a.lastWarning[w] = true
				log.Warn("configuration: " + w)
			}
		}
		if status.ConfigError != "" {
			log.Info("the configuration is valid again")
		}
		status.ConfigError, status.ConfigReason = "", ""
		status.Warnings, status.Files = loaded.Warnings, loaded.Files
		status.ConfigDigest, status.ConfigFrom = loaded.Digest, loaded.From
		changed := !a.haveConfig || !a.config.Equal(loaded.Config)
		a.config, a.haveConfig = loaded.Config, true
		return changed
	}

	status.ConfigDigest = ""
	if rejected := (*Rejected)(nil); errors.As(err, &rejected) {
		status.ConfigDigest = rejected.Digest
	}
	what, reason := "configuration rejected", ConfigRejected
	var unavailable *Unavailable
	if errors.As(err, &unavailable) {
		what, reason = "the configuration is not known", ConfigUnavailable
	}
	if again := err.Error(); status.ConfigError != again || status.ConfigReason != reason {
		status.ConfigError, status.ConfigReason = again, reason
		if reason == ConfigRejected {
			a.countReject(err)
		}
		a.happened(reason, "%v", err)
	} else if a.haveConfig {
		return false // the same rejected text as before: said already
	}
	switch {
	case a.haveConfig:
		log.Error(what+"; the last good one stays in force", "error", err)
		return false
	case a.saved.Config != nil:
		a.config, status.ConfigFrom = *a.saved.Config, "last good configuration, saved "+a.saved.Saved.Format(time.RFC3339)
		log.Error(what+"; starting with the last good one from the state folder", "saved", a.saved.Saved, "error", err)
	case unavailable != nil && unavailable.Fallback != nil:
		a.config, status.ConfigFrom = unavailable.Fallback.Config, unavailable.Fallback.From+", until the configuration is known"
		log.Error(what+", and there is no last good one; starting with the fallback", "fallback", unavailable.Fallback.From, "error", err)
	default:
		a.config, status.ConfigFrom = masq.DefaultConfig(a.Options.ReservedRanges), "defaults (the configuration is rejected or not known, and there is no last good one)"
		log.Error(what+", and there is no last good one; starting with the defaults", "error", err)
	}
	a.haveConfig = true
	return true
}

func (a *Agent) countReject(err error) {
	reasons := []string{"unreadable"}
	var rejected *Rejected
	if errors.As(err, &rejected) && len(rejected.Reasons) > 0 {
		reasons = slices.Compact(slices.Sorted(slices.Values(rejected.Reasons)))
	}
	for _, r := range reasons {
		a.metrics.reject(r)
	}
}

// readFacts reports whether the node's facts changed in a way that can matter.
func (a *Agent) readFacts(log *slog.Logger) bool {
	facts, err := a.Node.Facts()
	if err != nil {
		log.Warn("reading the node's addresses and routes; going on with what was known", "error", err)
		return false
	}
	changed := !slices.Equal(facts.Addresses, a.facts.Addresses) || !slices.Equal(facts.LocalRoutes, a.facts.LocalRoutes)
	a.facts = facts
	return changed
}

// plan works out the desired rules. A configuration that this node cannot
// keep leaves the rules that are desired so far.
func (a *Agent) plan(log *slog.Logger, status *Status) {
	rules, findings, err := masq.Plan(a.config, a.Options, a.facts)
	status.PlanError = ""
	if err != nil {
		status.PlanError = err.Error()
		a.metrics.reject("plan")
		if a.hash == "" && a.saved.Rules != nil {
			rules, findings = *a.saved.Rules, nil
			log.Error("the configuration cannot be kept on this node; starting with the last good rules from the state folder", "error", err)
		} else if a.hash == "" {
			// Without its snatAddress the rest of the configuration still holds,
			// and an untranslated packet would be the worse answer.
			reduced := a.config
			reduced.SNATAddress = nil
			rules, findings, _ = masq.Plan(reduced, a.Options, a.facts)
			log.Error("the configuration cannot be kept on this node; starting without its snatAddress", "error", err)
		} else {
			log.Error("the configuration cannot be kept on this node; the last good rules stay", "error", err)
			return
		}
	}
	for _, f := range findings {
		if !slices.Contains(status.Findings, f) {
			log.Warn(f.Message, "finding", string(f.Code))
		}
	}
	status.Findings = findings
	a.metrics.setFindings(findings)
	a.rules = rules
	if hash := rules.Hash(); hash != a.hash {
		if a.hash != "" || hash != a.restored || a.generation == 0 {
			a.generation++
		}
		a.hash = hash
	}
	status.Generation, status.Hash = a.generation, a.hash
}

func (a *Agent) apply(ctx context.Context, log *slog.Logger, status *Status) bool {
	began := time.Now()
	change, err := a.Backend.Apply(ctx, a.rules, a.generation)
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		a.metrics.applyErrors.Inc()
		if status.LastError = err.Error(); a.lastError != status.LastError {
			a.happened(ApplyFailed, "generation %d: %v", a.generation, err)
		}
		a.lastError = status.LastError
		log.Error("applying the rules; what the kernel holds stays, and it is tried again", "generation", a.generation, "error", err)
		return false
	}
	a.lastError = ""
	took := time.Since(began)
	status.AppliedGeneration, status.AppliedHash, status.LastSuccess = a.generation, a.hash, time.Now()
	if change.Wrote {
		a.metrics.apply.Update(took.Seconds())
		if change.Repaired {
			a.metrics.repairs.Inc()
			a.happened(RulesRepaired, "somebody changed our rules: %s", some(change.What))
			log.Warn("somebody changed our rules; repaired", "generation", a.generation, "what", change.What, "took", took)
		} else {
			a.happened(ConfigApplied, "generation %d (%s): %s", a.generation, a.hash, some(change.What))
			log.Info("applied", "generation", a.generation, "hash", a.hash, "what", change.What, "took", took)
		}
	} else {
		log.Debug("the kernel holds the rules already", "generation", a.generation)
	}
	a.removePredecessors(ctx, log, status)
	a.save(log, status)
	return true
}

// some is the beginning of a list that may be long.
func some(what []string) string {
	const show = 3
	if len(what) <= show {
		return strings.Join(what, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(what[:show], "; "), len(what)-show)
}

func (a *Agent) removePredecessors(ctx context.Context, log *slog.Logger, status *Status) {
	removed, unreadable, err := a.Predecessors.Remove(ctx)
	for _, r := range removed {
		a.metrics.takenOver.Inc()
		a.happened(TookOver, "%s", r)
		log.Info("took over from another masquerade agent: " + r)
	}
	if !slices.Equal(unreadable, status.Unreadable) {
		for _, u := range unreadable {
			log.Warn("other rules may still translate Pod traffic: " + u)
		}
	}
	status.Unreadable = unreadable
	if err != nil && ctx.Err() == nil {
		log.Error("removing another agent's rules; ours are in place, and it is tried again at the next resync", "error", err)
	}
}
