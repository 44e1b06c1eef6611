// Package reconcile brings about what the store says is desired.
//
// It owns when an environment is worked on, in which order, what is tried
// again, and how an operation ends. It is level-triggered: a restart is only a
// scan for what is not settled. What a cluster is made of is the [Driver]'s.
//
// It refuses to lose an outcome: an operation ends in the same transaction in
// which its environment reaches its next state, and an outcome for another
// generation than the desired one is dropped.
//
// To debug it, describe the operation: every step says when it began, when it
// ended and what it met.
package reconcile

import (
	"context"
	"errors"

	"sordino/environment"
)

// Driver makes clusters. Environments are known to it by their UUID, so that
// one which is created again under the same name is another.
type Driver interface {
	// Ensure returns the steps that bring an environment's cluster to what the
	// environment says. The steps are the same for the same environment; each
	// may be run again at any time, also after it was cut off.
	Ensure(e *environment.Environment) []Step
	// Remove returns the steps that take a cluster away; removing what is not
	// there is no error.
	Remove(e *environment.Environment) []Step
	// Observe tells what is there. An environment whose Observed.Generation is
	// not its own, or that has a node that is not ready, is not in place. An
	// error that wraps ErrUnreachable says that nothing can be told: what was
	// found before stays, and nothing is mended until the cluster answers.
	Observe(ctx context.Context, e *environment.Environment) (environment.Observed, error)
	// Prune removes every cluster whose environment's UUID is not among those
	// given, and returns the UUIDs removed. Where clusters are shared with other
	// servers it removes this server's alone: theirs are not among those given.
	Prune(ctx context.Context, keep map[string]bool) ([]string, error)
	// Watch calls changed with the UUID of an environment whose cluster may no
	// longer be what it was, and with "" when all may be concerned, until the
	// context ends.
	Watch(ctx context.Context, changed func(uuid string)) error
}

// ErrUnreachable says that a cluster does not answer.
var ErrUnreachable = errors.New("the cluster cannot be reached")

// Step is one named part of the work.
type Step struct {
	// Name is a few words for a person: "build the network".
	Name string
	// Do does it. The detail is what a person wants to know of the outcome. An
	// error that is an *environment.Error will not be mended by trying again;
	// every other is tried again.
	Do func(ctx context.Context) (detail string, err error)
}
