package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"strings"
	"time"

	"sordino/environment"
)

var (
	// errParked is the context's end: nothing is recorded, the next start goes on.
	errParked = errors.New("parked")
	// errStale says that what was worked on is not what is stored any more.
	errStale = errors.New("stale")
	// errCancelled says that somebody asked for the end of the operation.
	errCancelled = errors.New("cancelled")
)

// rollBack marks the steps of the way back.
const rollBack = "roll back: "

// job is one environment at a worker.
type job struct {
	*Reconciler
	log *slog.Logger
	a   *activity
	e   *environment.Environment
	o   *environment.Operation // nil when none runs
	// observed is what the last look found.
	observed environment.Observed
}

// work does what there is to do for an environment now.
func (r *Reconciler) work(ctx context.Context, name environment.Name, a *activity) {
	j := &job{Reconciler: r, log: r.Log.With("environment", name.String()), a: a}
	err := r.Store.View(ctx, func(tx environment.Tx) (err error) {
		if j.e, err = tx.Environment(name); err == nil {
			j.o, err = tx.RunningOperation(j.e.UUID)
		}
		return err
	})
	switch {
	case errors.Is(err, environment.ErrNotFound):
		err = r.endOrphans(ctx, name)
		if err == nil {
			r.succeeded(name)
			return
		}
		fallthrough
	case err != nil:
		if ctx.Err() == nil {
			j.log.Error("reading the environment", "error", err)
			r.failed(name)
		}
		return
	}
	r.remember(j.e.UUID, name)
	r.waitForPrune(ctx, j.e.UUID)
	if ctx.Err() != nil {
		return
	}
	if j.o != nil {
		j.log = j.log.With("operation", j.o.Name.ID)
	}
	switch {
	case j.o == nil && j.e.State == environment.Running:
		j.check(ctx)
		return
	case j.o == nil && environment.Unsettled(j.e.State):
		// Cannot be: both are written in one transaction. Delete can end it.
		j.log.Error("the environment has no operation to end its state", "state", j.e.State)
		err = j.settle(ctx, environment.Errored, nil)
	case j.o == nil:
	case j.o.Type == environment.Check:
		if err = j.settle(ctx, j.e.State, nil); err == nil {
			r.queue.add(name, false) // it may have been worked on when this came
		}
	case j.o.Type == environment.Delete:
		err = j.remove(ctx)
	default:
		err = j.bring(ctx)
	}
	switch {
	case errors.Is(err, errParked):
	case errors.Is(err, errStale):
		j.log.Info("the outcome is dropped: the environment was changed meanwhile")
		r.queue.add(name, true)
	default:
		r.succeeded(name)
	}
}

// bring makes the cluster what a create or an update asks for, or goes back.
func (j *job) bring(ctx context.Context) error {
	if j.o.Error == nil { // else the way back has begun
		err := j.run(ctx, "", j.ensure(), j.ChangeWithin)
		var final *environment.Error
		switch {
		case err == nil:
			return j.settle(ctx, environment.Running, nil)
		case errors.Is(err, errCancelled):
			final = &environment.Error{Code: environment.Cancelled, Reason: "OPERATION_CANCELLED",
				Message:  fmt.Sprintf("%s of %s was cancelled by request", verb(j.o), j.e.Name),
				Metadata: map[string]string{"environment": j.e.Name.String()}}
		case !errors.As(err, &final):
			return err
		case j.o.Type == environment.Create:
			// What was built stays for those who look for the cause; a delete
			// removes it.
			return j.settle(ctx, environment.Errored, final)
		}
		if err := j.turnBack(ctx, final); err != nil {
			return err
		}
	}
	if j.o.Type == environment.Create {
		err := j.run(ctx, rollBack, j.Driver.Remove(j.e), j.ChangeWithin)
		if err != nil && !isFinal(err) {
			return err
		}
		return j.settle(ctx, environment.Errored, alsoFailed(j.o.Error, err, "what was built is not all removed: delete the environment"))
	}
	var err error
	if j.o.Previous != nil {
		if err = j.run(ctx, rollBack, j.ensure(), j.ChangeWithin); err != nil && !isFinal(err) {
			return err
		}
	}
	// When the way back failed too, the environment is checked until it is in place.
	return j.settle(ctx, environment.Running, alsoFailed(j.o.Error, err, "what was before is not in place yet: it is tried on"))
}

// remove takes the cluster away.
func (j *job) remove(ctx context.Context) error {
	err := j.run(ctx, "", j.Driver.Remove(j.e), j.DeleteWithin)
	var final *environment.Error
	if errors.As(err, &final) {
		return j.settle(ctx, environment.Errored, final)
	}
	if err != nil {
		return err
	}
	return j.settle(ctx, environment.Deleting, nil)
}

// ensure is the driver's steps and a look at what they led to.
func (j *job) ensure() []Step {
	return append(j.Driver.Ensure(j.e), Step{"look at the outcome", func(ctx context.Context) (string, error) {
		observed, err := j.Driver.Observe(ctx, j.e)
		if err != nil {
			return "", err
		}
		j.observed = observed
		return observed.Proof, j.e.Missing(observed)
	}})
}

// turnBack records durably why the operation fails and, for an update, that
// what was before is desired again.
func (j *job) turnBack(ctx context.Context, cause *environment.Error) error {
	return j.write(ctx, func(tx environment.Tx, e *environment.Environment, o *environment.Operation) error {
		o.Error = cause
		if o.Previous == nil {
			return tx.PutOperation(o)
		}
		// Generations only grow: a node that holds the failed one is told from
		// a node that went back.
		agent := o.Previous.Agent
		if agent.Generation != e.Agent.Generation {
			agent.Generation = e.Agent.Generation + 1
		}
		e.Spec, e.Plan, e.Agent = o.Previous.Spec, o.Previous.Plan, agent
		e.Generation++
		e.Updated = j.Now()
		o.Generation = e.Generation
		return errors.Join(tx.PutEnvironment(e), tx.PutOperation(o))
	})
}

// settle ends the operation, when there is one, and sets the environment's
// next state, in one transaction. A delete that succeeded leaves none.
func (j *job) settle(ctx context.Context, state environment.State, failure *environment.Error) error {
	err := j.write(ctx, func(tx environment.Tx, e *environment.Environment, o *environment.Operation) error {
		now := j.Now()
		gone := state == environment.Deleting
		if gone {
			if err := tx.DeleteEnvironment(e.Name); err != nil {
				return err
			}
		} else if state != e.State {
			e.State, e.Updated = state, now
			if j.observed.Generation == e.Generation {
				e.Observed = j.observed
			}
			if err := tx.PutEnvironment(e); err != nil {
				return err
			}
		}
		if o == nil {
			return nil
		}
		o.State, o.Ended, o.Error = environment.Succeeded, now, failure
		if failure != nil {
			o.State = environment.Failed
		} else if !gone && o.Type != environment.Check {
			o.Result = e
		}
		return tx.PutOperation(o)
	})
	if err != nil {
		return err
	}
	if state == environment.Deleting {
		j.forgetName(j.e.UUID)
	} else if state == environment.Running && failure != nil {
		j.queue.add(j.e.Name, false) // look whether what was before is in place
	}
	if j.o == nil {
		return nil
	}
	switch {
	case failure != nil:
		j.log.Error("the operation failed", "error", failure, "state", state)
	case state == environment.Deleting:
		j.log.Info("the operation succeeded: the environment is deleted")
	default:
		j.log.Info("the operation succeeded", "state", state)
	}
	return nil
}

// write changes the environment and its operation in one transaction, when
// they are still those that the job knows, and then the job knows the new ones.
// It tries until the store takes it.
func (j *job) write(ctx context.Context, change func(environment.Tx, *environment.Environment, *environment.Operation) error) error {
	for try := 1; ; try++ {
		var e *environment.Environment
		var o *environment.Operation
		err := j.Store.Update(ctx, func(tx environment.Tx) (err error) {
			if e, err = tx.Environment(j.e.Name); err != nil {
				return err
			}
			if e.UUID != j.e.UUID || e.Revision != j.e.Revision {
				return errStale
			}
			if j.o != nil {
				if o, err = tx.Operation(j.o.Name); err != nil {
					return err
				}
				if o.Done() {
					return errStale
				}
			}
			return change(tx, e, o)
		})
		switch {
		case err == nil:
			j.e, j.o = e, o
			return nil
		case ctx.Err() != nil:
			return errParked
		case errors.Is(err, errStale), errors.Is(err, environment.ErrConflict), errors.Is(err, environment.ErrNotFound):
			return errStale
		}
		j.log.Error("recording the outcome", "error", err, "again in", pause(try))
		sleep(ctx, pause(try))
	}
}

// record writes how far the operation is.
func (j *job) record(ctx context.Context, change func(*environment.Operation)) error {
	return j.write(ctx, func(tx environment.Tx, _ *environment.Environment, o *environment.Operation) error {
		change(o)
		return tx.PutOperation(o)
	})
}

// run runs steps until all have succeeded, one after the other, and records them in the operation
// under a prefix. A failure that is the operation's comes as an
// *environment.Error.
func (j *job) run(ctx context.Context, prefix string, steps []Step, within time.Duration) error {
	// Steps that an earlier start recorded are run again: what they made may
	// be gone.
	var first int
	set := func(i int, state environment.OperationState, detail string) func(*environment.Operation) {
		return func(o *environment.Operation) {
			s, now := &o.Steps[first+i], j.Now()
			s.State, s.Detail = state, detail
			if s.Started.IsZero() {
				s.Started = now
			}
			if state == environment.Succeeded || state == environment.Failed {
				s.Ended = now
			}
			if state != environment.Succeeded {
				for later := first + i + 1; later < len(o.Steps); later++ { // they come again
					o.Steps[later] = environment.Step{Name: o.Steps[later].Name, State: environment.Pending}
				}
			}
		}
	}
	if err := j.record(ctx, func(o *environment.Operation) {
		o.State = environment.Working
		for first = 0; first < len(o.Steps) && prefix != "" && !strings.HasPrefix(o.Steps[first].Name, prefix); first++ {
		}
		o.Steps = o.Steps[:first:first]
		for _, s := range steps {
			o.Steps = append(o.Steps, environment.Step{Name: prefix + s.Name, State: environment.Pending})
		}
		if len(steps) > 0 {
			set(0, environment.Working, "")(o)
		}
	}); err != nil {
		return err
	}
	cancellable := prefix == "" && j.o.Type != environment.Delete
	left := within
	for try := 1; ; try++ {
		i, err := j.attempt(ctx, steps, set, &left, cancellable)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errParked), errors.Is(err, errStale):
			return err
		case errors.Is(err, errCancelled):
			if err := j.record(ctx, set(i, environment.Failed, "cancelled")); err != nil {
				return err
			}
			return errCancelled
		}
		name := prefix + steps[i].Name
		j.log.Warn("a step failed", "step", name, "attempt", try, "error", err)
		if final := j.final(prefix, steps[i].Name, try, left <= lastTry, within, err); final != nil {
			if err := j.record(ctx, set(i, environment.Failed, err.Error())); err != nil {
				return err
			}
			return final
		}
		wait := min(pause(try), left-lastTry)
		if err := j.record(ctx, set(i, environment.Working, fmt.Sprintf("attempt %d: %v; the next within %s", try, err, wait))); err != nil {
			return err
		}
		began := time.Now()
		j.a.wait(ctx, wait) // ends early when woken: somebody cancels, perhaps
		left -= time.Since(began)
		if err := j.reread(ctx); err != nil {
			return err
		}
	}
}

// attempt runs the steps from the first on, also those that succeeded before: what
// they made may be gone. It returns the step that failed.
func (j *job) attempt(ctx context.Context, steps []Step, set func(int, environment.OperationState, string) func(*environment.Operation), left *time.Duration, cancellable bool) (int, error) {
	first := len(j.o.Steps) - len(steps)
	succeeded := func(i int) bool { return j.o.Steps[first+i].State == environment.Succeeded }
	for i, step := range steps {
		if cancellable && j.o.CancelRequested {
			for succeeded(i) {
				i++
			}
			return i, errCancelled
		}
		began := time.Now()
		detail, err := j.do(ctx, step, *left)
		*left -= time.Since(began)
		if ctx.Err() != nil {
			return i, errParked
		}
		if err != nil {
			return i, err
		}
		if succeeded(i) { // in an earlier attempt
			continue
		}
		if err := j.record(ctx, func(o *environment.Operation) {
			set(i, environment.Succeeded, detail)(o)
			if i+1 < len(steps) {
				set(i+1, environment.Working, "")(o)
			}
		}); err != nil {
			return i, err
		}
	}
	return 0, nil
}

// reread looks whether the operation was cancelled.
func (j *job) reread(ctx context.Context) error {
	err := j.Store.View(ctx, func(tx environment.Tx) error {
		o, err := tx.Operation(j.o.Name)
		if err == nil {
			j.o = o
		}
		return err
	})
	if ctx.Err() != nil {
		return errParked
	}
	if errors.Is(err, environment.ErrNotFound) {
		return errStale
	}
	return nil // unreadable for the moment: the next record tells
}

// do runs a step once.
func (j *job) do(ctx context.Context, s Step, within time.Duration) (detail string, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err = guard(j.log, s.Name, func() (err error) {
		detail, err = s.Do(ctx)
		return err
	})
	return detail, err
}

// guard makes a panic of the driver an error: it costs an operation, not the
// server.
func guard(log *slog.Logger, what string, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("the driver panicked", "in", what, "panic", p, "stack", string(debug.Stack()))
			err = &environment.Error{Code: environment.Internal, Reason: "DRIVER_PANICKED",
				Message: fmt.Sprintf("the server has a defect: %v; its log has more", p)}
		}
	}()
	return do()
}

// final is a step's error when it ends the operation; else nil.
func (j *job) final(prefix, step string, tries int, late bool, within time.Duration, err error) *environment.Error {
	about := fmt.Sprintf("%s of %s: %s", verb(j.o), j.e.Name, step)
	advice := "; mend that, then ask again"
	if prefix != "" { // it is told together with why the way back was taken
		about, advice = prefix+step, ""
	}
	var refused *environment.Error
	if errors.As(err, &refused) {
		worded := *refused
		worded.Message = about + ": " + refused.Message
		return &worded
	}
	if !late {
		return nil
	}
	return &environment.Error{Code: environment.Unavailable, Reason: "STEP_TIMED_OUT",
		Message:  fmt.Sprintf("%s: did not succeed within %s in %d attempts: %v%s", about, within, tries, err, advice),
		Metadata: map[string]string{"environment": j.e.Name.String(), "step": step, "limit": within.String(), "cause": err.Error()}}
}

func isFinal(err error) bool {
	var final *environment.Error
	return errors.As(err, &final)
}

// alsoFailed adds to why an operation failed that the way back failed too.
func alsoFailed(cause *environment.Error, err error, so string) *environment.Error {
	if err == nil {
		return cause
	}
	both := *cause
	both.Message = fmt.Sprintf("%s; and %v; %s", cause.Message, err, so)
	return &both
}

func verb(o *environment.Operation) string {
	switch {
	case o.Type == environment.Create:
		return "create"
	case o.Type == environment.Delete:
		return "delete"
	case o.RestartWebServer:
		return "web server restart"
	}
	return "update"
}

// check looks whether a running environment is in place, and mends it without
// an operation.
func (j *job) check(ctx context.Context) {
	err := j.look(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errStale) && !errors.Is(err, ErrUnreachable) {
		j.log.Warn("not in place: mending it", "error", err)
		err = j.mend(ctx)
	}
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, errStale):
		j.queue.add(j.e.Name, false)
	case errors.Is(err, ErrUnreachable):
		j.log.Warn("the environment cannot be seen; it stays as it is", "error", err, "again in", lastPause)
		j.queue.addAfter(j.e.Name, lastPause)
	case err != nil:
		j.log.Error("mending the environment", "error", err)
		j.failed(j.e.Name)
	default:
		j.succeeded(j.e.Name)
	}
}

// look observes the cluster, stores what is new, and says what is missing.
func (j *job) look(ctx context.Context) error {
	var observed environment.Observed
	if _, err := j.do(ctx, Step{"observe", func(ctx context.Context) (_ string, err error) {
		observed, err = j.Driver.Observe(ctx, j.e)
		return "", err
	}}, observeWithin); err != nil {
		if !errors.Is(err, ErrUnreachable) || j.e.Observed.Unseen != nil || ctx.Err() != nil {
			return err
		}
		return errors.Join(err, j.write(ctx, func(tx environment.Tx, e *environment.Environment, _ *environment.Operation) error {
			e.Observed.Unseen = &environment.Unseen{Since: j.Now(), Cause: err.Error()}
			return tx.PutEnvironment(e)
		}))
	}
	if old := j.e.Observed; !same(old, observed) {
		if err := j.write(ctx, func(tx environment.Tx, e *environment.Environment, _ *environment.Operation) error {
			e.Observed = observed
			return tx.PutEnvironment(e)
		}); err != nil {
			return err
		}
	}
	return j.e.Missing(observed)
}

// same tells whether two observations are of the same: one that was proven
// again is another.
func same(a, b environment.Observed) bool {
	if !a.Checked.Equal(b.Checked) {
		return false
	}
	a.Checked, b.Checked = time.Time{}, time.Time{} // as structs they may differ still
	return reflect.DeepEqual(a, b)
}

// mend runs the driver's steps once each, while nobody wants anything else of
// the environment.
func (j *job) mend(ctx context.Context) error {
	left := j.ChangeWithin
	for _, step := range j.Driver.Ensure(j.e) {
		var current *environment.Environment
		if err := j.Store.View(ctx, func(tx environment.Tx) (err error) {
			current, err = tx.Environment(j.e.Name)
			return err
		}); err != nil {
			return err
		}
		if current.UUID != j.e.UUID || current.Revision != j.e.Revision {
			return errStale
		}
		began := time.Now()
		if _, err := j.do(ctx, step, left); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		left -= time.Since(began)
	}
	return j.look(ctx)
}

// endOrphans ends operations whose environment is not there. It cannot be:
// both go in one transaction.
func (r *Reconciler) endOrphans(ctx context.Context, name environment.Name) error {
	return r.Store.Update(ctx, func(tx environment.Tx) error {
		if _, err := tx.Environment(name); !errors.Is(err, environment.ErrNotFound) {
			return err // somebody made it meanwhile, and wakes it
		}
		operations, err := tx.Operations(environment.OperationQuery{Unfinished: true})
		for _, o := range operations {
			if o.Target != name {
				continue
			}
			r.Log.Error("the operation has no environment", "operation", o.Name.String())
			o.State, o.Ended = environment.Failed, r.Now()
			o.Error = &environment.Error{Code: environment.Internal, Reason: "ENVIRONMENT_GONE",
				Message:  fmt.Sprintf("the environment %s of this operation is not stored: ask for it again", name),
				Metadata: map[string]string{"environment": name.String()}}
			err = errors.Join(err, tx.PutOperation(o))
		}
		return err
	})
}
