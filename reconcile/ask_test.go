package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment"
	"sordino/environment/address"
)

// errRefused is an ask that the environment's state does not allow.
var errRefused = errors.New("refused")

var place = environment.Location{Project: "p", ID: "l"}

func named(id string) environment.Name { return environment.Name{Location: place, ID: id} }

// ask asks as the service does: environment, operation and request id in one
// transaction. The same id again is no error and does nothing.
func ask(ctx context.Context, store environment.Store, now time.Time, id, verb, target string, n int) error {
	return store.Update(ctx, func(tx environment.Tx) error {
		if _, err := tx.Request(place.Project, id); !errors.Is(err, environment.ErrNotFound) {
			return err
		}
		e, err := tx.Environment(named(target))
		if errors.Is(err, environment.ErrNotFound) {
			e, err = nil, nil
		}
		if err != nil {
			return err
		}
		if verb == "create" {
			if e != nil {
				return errRefused
			}
			e = &environment.Environment{Name: named(target), UUID: "of-" + id, State: environment.Creating, Created: now, Updated: now, Generation: 1,
				Spec:  environment.Spec{Config: &servicepb.EnvironmentConfig{NodeCount: int32(n)}},
				Agent: environment.AgentConfig{Text: "one", Generation: 1},
				Plan:  address.Plan{Network: "net", Ranges: []address.Range{{Kind: address.Pods, Prefix: freeBlock(tx), By: address.Chosen}}}}
			e.Plan.NodeAddresses = nodeAddresses(e.Plan, n)
			return begin(tx, now, id, environment.Create, e, nil)
		}
		if e == nil {
			return errRefused
		}
		running, err := tx.RunningOperation(e.UUID)
		if err != nil {
			return err
		}
		if verb == "cancel" {
			if running == nil {
				return errRefused
			}
			running.CancelRequested = true
			return errors.Join(tx.PutOperation(running), tx.PutRequest(place.Project, id, environment.Request{Operation: running.Name, Created: now}))
		}
		if running != nil || e.State != environment.Running && (verb != "delete" || e.State != environment.Errored) {
			return errRefused
		}
		previous := &environment.Previous{Spec: e.Spec, Plan: e.Plan, Agent: e.Agent}
		switch verb {
		case "update":
			e.Spec.Config = &servicepb.EnvironmentConfig{NodeCount: int32(n)}
			e.Plan.NodeAddresses = nodeAddresses(e.Plan, n)
			e.Generation++
		case "config":
			e.Agent = environment.AgentConfig{Text: fmt.Sprint("number ", n), Generation: e.Agent.Generation + 1}
			e.Generation++
		case "restart", "check":
			previous = nil
		case "delete":
			e.State = environment.Deleting
			return begin(tx, now, id, environment.Delete, e, nil)
		default:
			return fmt.Errorf("no such verb: %s", verb)
		}
		if verb == "check" {
			return begin(tx, now, id, environment.Check, e, nil)
		}
		e.State = environment.Updating
		return begin(tx, now, id, environment.Update, e, previous)
	})
}

func begin(tx environment.Tx, now time.Time, id string, kind environment.OperationType, e *environment.Environment, previous *environment.Previous) error {
	o := &environment.Operation{Name: environment.OperationName{Location: place, ID: id}, Type: kind, State: environment.Pending,
		Target: e.Name, TargetUUID: e.UUID, Created: now, Generation: e.Generation, Previous: previous, RestartWebServer: kind == environment.Update && previous == nil}
	if err := tx.PutEnvironment(e); err != nil {
		return err
	}
	return errors.Join(tx.PutOperation(o), tx.PutRequest(place.Project, id, environment.Request{Operation: o.Name, Created: now}))
}

// nodeAddresses are the first of the block, which nobody else has.
func nodeAddresses(p address.Plan, n int) (list []netip.Addr) {
	a := p.Range(address.Pods).Addr()
	for range n {
		a = a.Next()
		list = append(list, a)
	}
	return list
}

// freeBlock is the first /24 that no environment has.
func freeBlock(tx environment.Tx) netip.Prefix {
	reserved, err := tx.Reservations("net")
	if err != nil {
		panic(err)
	}
	taken := map[netip.Prefix]bool{}
	for _, r := range reserved {
		taken[r.Prefix] = true
	}
	for i := 0; ; i++ {
		if p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24); !taken[p] {
			return p
		}
	}
}
