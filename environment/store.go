package environment

import (
	"context"
	"errors"
	"time"

	"sordino/environment/address"
)

// Errors of a Store.
var (
	// ErrNotFound says that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the row was changed since it was read.
	ErrConflict = errors.New("changed by somebody else meanwhile")
)

// Store keeps environments and operations durably. What Update's function did
// is on disk, whole, when Update returns nil, and did not happen when it
// returns an error.
type Store interface {
	// View runs a function on one consistent state.
	View(ctx context.Context, do func(Tx) error) error
	// Update runs a function alone; it may be run once only, and must not block
	// on anything but the Tx.
	Update(ctx context.Context, do func(Tx) error) error
}

// Tx is one transaction. Values that it returns belong to the caller.
type Tx interface {
	// Environment returns one environment, or ErrNotFound.
	Environment(Name) (*Environment, error)
	// Environments lists by name, in order.
	Environments(EnvironmentQuery) ([]*Environment, error)
	// EnvironmentNames are the names of all environments by their UUIDs.
	EnvironmentNames() (map[string]Name, error)
	// PutEnvironment inserts an environment whose Revision is 0, and else
	// replaces the one with the same Revision (ErrConflict). It sets the new
	// Revision, and reserves what Plan holds.
	PutEnvironment(*Environment) error
	// ClusterHolders are the names of the environments that have an existing
	// cluster, by the cluster's name. No two can have the same one.
	ClusterHolders() (map[string]Name, error)
	// DeleteEnvironment removes it and what it reserves; removing what is not
	// there is no error.
	DeleteEnvironment(Name) error
	// Reservations are the ranges and addresses of all environments on a
	// network. Unlike other values the list is shared: it is not to be written.
	Reservations(network string) ([]address.Reservation, error)

	// Operation returns one operation, or ErrNotFound.
	Operation(OperationName) (*Operation, error)
	// Operations lists the newest first.
	Operations(OperationQuery) ([]*Operation, error)
	// RunningOperation is the one that has not ended for an environment; nil
	// when there is none.
	RunningOperation(environmentUUID string) (*Operation, error)
	// PutOperation inserts or replaces.
	PutOperation(*Operation) error
	// DeleteOperation removes it; removing what is not there is no error.
	DeleteOperation(OperationName) error

	// Request returns what a request id led to, or ErrNotFound.
	Request(project, id string) (Request, error)
	PutRequest(project, id string, r Request) error
}

// EnvironmentQuery asks for environments.
type EnvironmentQuery struct {
	// Project and Location limit the list; empty means all.
	Project, Location string
	// After is the last name of the page before.
	After Name
	// Limit is the most to return; 0 is no limit.
	Limit int
	// Unsettled asks only for those that the reconciler has to do with: see the
	// function of that name.
	Unsettled bool
}

// OperationQuery asks for operations.
type OperationQuery struct {
	Project, Location string
	// Before is the last operation of the page before: those that are older.
	Before *Operation
	Limit  int
	// Unfinished asks only for those that have not ended.
	Unfinished bool
	// EndedBefore, when not zero, asks only for those that ended before it.
	EndedBefore time.Time
}

// Request is what an idempotent request (AIP-155) led to.
type Request struct {
	// Fingerprint is a hash of the request's content: the same id with another
	// content is a mistake.
	Fingerprint string
	Operation   OperationName
	Created     time.Time
}
