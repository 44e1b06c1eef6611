package reconcile

import (
	"context"
	"sync"
	"time"

	"sordino/environment"
)

// queue holds the names of environments that want a worker. A name is with one
// worker at a time; one that is added meanwhile comes again after it.
type queue struct {
	mu     sync.Mutex
	filled sync.Cond
	closed bool
	// urgent are requests that somebody waits for, later are checks of what
	// should be in place. A name may stand in both; queued has those that count.
	urgent, later []environment.Name
	queued        map[environment.Name]bool
	active        map[environment.Name]*activity
	timers        map[environment.Name]*time.Timer
}

// activity is an environment at a worker.
type activity struct {
	again, urgent bool
	// poked says that somebody asked for the environment again: what it waits
	// for may have changed.
	poked chan struct{}
}

func newQueue() *queue {
	q := &queue{queued: map[environment.Name]bool{}, active: map[environment.Name]*activity{}, timers: map[environment.Name]*time.Timer{}}
	q.filled.L = &q.mu
	return q
}

func (q *queue) add(name environment.Name, urgent bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if a := q.active[name]; a != nil {
		a.again, a.urgent = true, a.urgent || urgent
		if urgent {
			select {
			case a.poked <- struct{}{}:
			default:
			}
		}
		return
	}
	isUrgent, isQueued := q.queued[name]
	switch {
	case urgent && !isUrgent:
		q.urgent = append(q.urgent, name)
	case !urgent && !isQueued:
		q.later = append(q.later, name)
	default:
		return
	}
	q.queued[name] = urgent
	q.filled.Signal()
}

// addAfter adds a name when some time has passed, in place of an earlier
// addAfter.
func (q *queue) addAfter(name environment.Name, delay time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t := q.timers[name]; t != nil {
		t.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(delay, func() {
		q.mu.Lock()
		if q.timers[name] == t {
			delete(q.timers, name)
		}
		q.mu.Unlock()
		q.add(name, false)
	})
	q.timers[name] = t
}

// take waits for a name; not ok is the end.
func (q *queue) take() (name environment.Name, a *activity, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed {
			return name, nil, false
		}
		for _, list := range []*[]environment.Name{&q.urgent, &q.later} {
			for len(*list) > 0 {
				name, *list = (*list)[0], (*list)[1:]
				if _, counts := q.queued[name]; counts {
					delete(q.queued, name)
					a = &activity{poked: make(chan struct{}, 1)}
					q.active[name] = a
					return name, a, true
				}
			}
		}
		q.filled.Wait()
	}
}

// done gives a name back.
func (q *queue) done(name environment.Name, a *activity) {
	q.mu.Lock()
	delete(q.active, name)
	q.mu.Unlock()
	if a.again {
		q.add(name, a.urgent)
	}
}

// closeWhen ends take and all timers with the context.
func (q *queue) closeWhen(ctx context.Context) {
	context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.closed = true
		for _, t := range q.timers {
			t.Stop()
		}
		q.filled.Broadcast()
	})
}

// wait waits for the time to pass, for a poke, or for the context's end.
func (a *activity) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-a.poked:
	case <-ctx.Done():
	}
}
