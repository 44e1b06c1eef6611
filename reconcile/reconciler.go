package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"sordino/environment"
)

// Options are what a Reconciler is made of.
type Options struct {
	Store  environment.Store
	Driver Driver
	Log    *slog.Logger
	// Now is the clock of what is recorded; time.Now when nil.
	Now func() time.Time
	// Workers is how many environments are worked on at a time; 8 when 0.
	Workers int
	// ChangeWithin is how long the driver is tried for a create or an update
	// before the operation fails; 2 minutes when 0. DeleteWithin is that for a
	// delete; 10 minutes when 0. Time in which the server does not run, or its
	// database cannot be written, does not count.
	ChangeWithin, DeleteWithin time.Duration
}

const (
	firstPause = 100 * time.Millisecond // after the first failure; doubled after each more
	lastPause  = 15 * time.Second
	// lastTry is what is kept of a step's time for a last attempt.
	lastTry = time.Second
	// observeWithin and pruneWithin bound calls of the driver that are no steps.
	observeWithin = 30 * time.Second
	pruneWithin   = time.Minute
	// rescanEvery finds what was committed and never woken.
	rescanEvery = 30 * time.Second
	forgetEvery = time.Hour
	page        = 500
)

// Reconciler works on environments until they are what the store says.
type Reconciler struct {
	Options
	queue *queue

	mu       sync.Mutex
	names    map[string]environment.Name // by UUID, of all that are known
	failures map[environment.Name]int    // of checks, one after the other
	pruning  *pruning
}

// New returns a Reconciler. Wake may be called before Run.
func New(o Options) *Reconciler {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Workers == 0 {
		o.Workers = 8
	}
	if o.ChangeWithin == 0 {
		o.ChangeWithin = 2 * time.Minute
	}
	if o.DeleteWithin == 0 {
		o.DeleteWithin = 10 * time.Minute
	}
	return &Reconciler{Options: o, queue: newQueue(), names: map[string]environment.Name{}, failures: map[environment.Name]int{}}
}

// Wake says that an environment may have work. It never blocks.
func (r *Reconciler) Wake(name environment.Name) { r.queue.add(name, true) }

// Run works until the context ends. Then the steps that run are cut off by
// their contexts, and what they belong to stays as it is recorded: the next Run
// goes on with it.
func (r *Reconciler) Run(ctx context.Context) {
	r.queue.closeWhen(ctx)
	var running sync.WaitGroup
	for range r.Workers {
		running.Go(func() {
			for {
				name, a, ok := r.queue.take()
				if !ok {
					return
				}
				r.work(ctx, name, a)
				r.queue.done(name, a)
			}
		})
	}
	running.Go(func() { r.watch(ctx) })
	running.Go(func() {
		// What waits comes first, then what should be in place.
		r.untilDone(ctx, "reading what is to be done", r.scan)
		checked := false
		r.untilDone(ctx, "removing clusters without an environment", func(ctx context.Context) error {
			err := r.prune(ctx)
			// Those that are there do not wait for what is nobody's.
			if err == nil || !checked {
				checked = true
				r.checkAll()
			}
			return err
		})
	})
	running.Go(func() {
		r.untilDone(ctx, "forgetting old operations", r.forget)
		rescan, forget := time.NewTicker(rescanEvery), time.NewTicker(forgetEvery)
		defer rescan.Stop()
		defer forget.Stop()
		for {
			select {
			case <-rescan.C:
				r.untilDone(ctx, "reading what is to be done", r.scan)
			case <-forget.C:
				r.untilDone(ctx, "forgetting old operations", r.forget)
			case <-ctx.Done():
				return
			}
		}
	})
	running.Wait()
}

// untilDone tries until it succeeds; false is the context's end.
func (r *Reconciler) untilDone(ctx context.Context, what string, do func(context.Context) error) bool {
	for try := 1; ctx.Err() == nil; try++ {
		err := do(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			r.Log.Error(what, "error", err, "again in", pause(try))
			sleep(ctx, pause(try))
		}
	}
	return false
}

// pause is how long to wait after so many failures.
func pause(failures int) time.Duration {
	if failures > 8 {
		return lastPause
	}
	return min(firstPause<<(failures-1), lastPause)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// scan wakes everything that is not settled.
func (r *Reconciler) scan(ctx context.Context) error {
	return r.Store.View(ctx, func(tx environment.Tx) error {
		environments, err := tx.Environments(environment.EnvironmentQuery{Unsettled: true})
		if err != nil {
			return err
		}
		operations, err := tx.Operations(environment.OperationQuery{Unfinished: true})
		if err != nil {
			return err
		}
		for _, e := range environments {
			r.queue.add(e.Name, false)
		}
		for _, o := range operations {
			r.queue.add(o.Target, false)
		}
		return nil
	})
}

// forget removes operations that ended long ago.
func (r *Reconciler) forget(ctx context.Context) error {
	for {
		var old []*environment.Operation
		if err := r.Store.Update(ctx, func(tx environment.Tx) (err error) {
			old, err = tx.Operations(environment.OperationQuery{EndedBefore: r.Now().Add(-environment.OperationRetention), Limit: page})
			for _, o := range old {
				err = errors.Join(err, tx.DeleteOperation(o.Name))
			}
			return err
		}); err != nil {
			return err
		}
		if len(old) < page {
			return nil
		}
	}
}

// watch listens to the driver.
func (r *Reconciler) watch(ctx context.Context) {
	for try := 1; ctx.Err() == nil; try++ {
		began := time.Now()
		err := guard(r.Log, "watch", func() error { return r.Driver.Watch(ctx, r.changed) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			try = 1
		}
		r.Log.Error("listening to the driver", "error", err, "again in", pause(try))
		sleep(ctx, pause(try))
		r.checkAll() // nobody listened meanwhile
	}
}

// changed is what the driver calls.
func (r *Reconciler) changed(uuid string) {
	if uuid == "" {
		r.checkAll()
		return
	}
	r.mu.Lock()
	name, known := r.names[uuid]
	r.mu.Unlock()
	if known {
		r.queue.add(name, false)
	}
}

// checkAll has every known environment looked at.
func (r *Reconciler) checkAll() {
	r.mu.Lock()
	names := make([]environment.Name, 0, len(r.names))
	for _, name := range r.names {
		names = append(names, name)
	}
	r.mu.Unlock()
	for _, name := range names {
		r.queue.add(name, false)
	}
}

// pruning is a Prune that runs. An environment that it does not know to keep
// has to wait for its end.
type pruning struct {
	loaded, done chan struct{}
	keep         map[string]bool // not before loaded
}

// prune removes the clusters of no environment.
func (r *Reconciler) prune(ctx context.Context) error {
	p := &pruning{loaded: make(chan struct{}), done: make(chan struct{})}
	// Whoever passed the gate before this was stored before the reading below.
	r.mu.Lock()
	r.pruning = p
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.pruning = nil
		r.mu.Unlock()
		close(p.done)
	}()
	var names map[string]environment.Name
	if err := r.Store.View(ctx, func(tx environment.Tx) (err error) {
		names, err = tx.EnvironmentNames()
		return err
	}); err != nil {
		return err
	}
	keep := map[string]bool{}
	for uuid, name := range names {
		keep[uuid] = true
		r.remember(uuid, name)
	}
	p.keep = keep
	close(p.loaded)
	ctx, cancel := context.WithTimeout(ctx, pruneWithin)
	defer cancel()
	var removed []string
	err := guard(r.Log, "prune", func() (err error) {
		removed, err = r.Driver.Prune(ctx, keep)
		return err
	})
	for _, uuid := range removed {
		r.Log.Warn("removed a cluster without an environment", "uuid", uuid)
	}
	return err
}

// waitForPrune waits while a Prune could take the environment's cluster for nobody's.
func (r *Reconciler) waitForPrune(ctx context.Context, uuid string) {
	r.mu.Lock()
	p := r.pruning
	r.mu.Unlock()
	if p == nil {
		return
	}
	select {
	case <-p.loaded:
		if p.keep[uuid] {
			return
		}
	case <-p.done:
	case <-ctx.Done():
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
}

func (r *Reconciler) remember(uuid string, name environment.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[uuid] = name
}

func (r *Reconciler) forgetName(uuid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.names, uuid)
}

// failed counts a failed check and has it made again later.
func (r *Reconciler) failed(name environment.Name) {
	r.mu.Lock()
	r.failures[name]++
	n := r.failures[name]
	r.mu.Unlock()
	r.queue.addAfter(name, pause(n))
}

func (r *Reconciler) succeeded(name environment.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.failures, name)
}
