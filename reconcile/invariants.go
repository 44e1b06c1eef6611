package reconcile

import (
	"context"
	"errors"
	"fmt"

	"sordino/environment"
)

// CheckInvariants says everything that is stored and must never be, also
// between two transactions: it holds at any moment. It reads the whole store,
// and is meant for tests.
func CheckInvariants(ctx context.Context, store environment.Store) error {
	var broken []error
	wrong := func(format string, arguments ...any) { broken = append(broken, fmt.Errorf(format, arguments...)) }
	err := store.View(ctx, func(tx environment.Tx) error {
		environments, err := tx.Environments(environment.EnvironmentQuery{})
		if err != nil {
			return err
		}
		operations, err := tx.Operations(environment.OperationQuery{})
		if err != nil {
			return err
		}
		running := map[string]*environment.Operation{}
		for _, o := range operations {
			switch {
			case o.Done() != !o.Ended.IsZero():
				wrong("%s is %v and ended %v", o.Name, o.State, o.Ended)
			case o.Done() && (o.State == environment.Failed) != (o.Error != nil):
				wrong("%s is %v with the error %v", o.Name, o.State, o.Error)
			case o.State == environment.Succeeded && (o.Type == environment.Create || o.Type == environment.Update) && o.Result == nil:
				wrong("%s succeeded without a result", o.Name)
			case o.State == environment.Succeeded && o.Type == environment.Delete && o.Result != nil:
				wrong("%s is a delete with a result", o.Name)
			case !o.Done() && running[o.TargetUUID] != nil:
				wrong("%s and %s run at once for %s", o.Name, running[o.TargetUUID].Name, o.Target)
			case !o.Done():
				running[o.TargetUUID] = o
			}
		}
		// An operation that works on an environment, by the state it is in.
		works := map[environment.State]environment.OperationType{environment.Creating: environment.Create, environment.Updating: environment.Update, environment.Deleting: environment.Delete}
		owners := map[string]bool{}
		networks := map[string]bool{}
		for _, e := range environments {
			owners[e.Name.String()] = true
			networks[e.Plan.Network] = true
			o := running[e.UUID]
			delete(running, e.UUID)
			t, unsettled := works[e.State], environment.Unsettled(e.State)
			switch {
			case unsettled && o == nil:
				wrong("%s is %v and no operation runs", e.Name, e.State)
			case unsettled && o.Type != t, !unsettled && o != nil && o.Type != environment.Check:
				wrong("%s is %v while %s runs, a %v", e.Name, e.State, o.Name, o.Type)
			case unsettled && o.Type != environment.Delete && o.Generation != e.Generation:
				wrong("%s is for generation %d of %s, which is at %d", o.Name, o.Generation, e.Name, e.Generation)
			}
			// Elsewhere it is an observation of something that was.
			if e.Observed.Generation > e.Generation {
				wrong("%s was observed at generation %d before it got to it: it is at %d", e.Name, e.Observed.Generation, e.Generation)
			}
		}
		for _, o := range running {
			wrong("%s runs for %s, which is not stored", o.Name, o.Target)
		}
		for network := range networks {
			reservations, err := tx.Reservations(network)
			if err != nil {
				return err
			}
			for i, r := range reservations {
				if !owners[r.Owner] {
					wrong("%s is reserved for %s, which is not stored", r.Prefix, r.Owner)
				}
				for _, other := range reservations[:i] {
					if r.Owner != other.Owner && r.Prefix.Overlaps(other.Prefix) {
						wrong("%s of %s overlaps %s of %s", r.Prefix, r.Owner, other.Prefix, other.Owner)
					}
				}
			}
		}
		return nil
	})
	return errors.Join(append(broken, err)...)
}
