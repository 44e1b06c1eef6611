package environment

import (
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment/address"
)

// OperationType is what an operation does, with the API's own values.
type OperationType = servicepb.OperationMetadata_Type

// The types of operation that this server starts. A restart of the web server
// and a change of the agent's configuration are updates.
const (
	Create OperationType = servicepb.OperationMetadata_CREATE
	Delete OperationType = servicepb.OperationMetadata_DELETE
	Update OperationType = servicepb.OperationMetadata_UPDATE
	Check  OperationType = servicepb.OperationMetadata_CHECK
)

// OperationState is how far an operation is, with the API's own values.
type OperationState = servicepb.OperationMetadata_State

// The states of an operation.
const (
	Pending   OperationState = servicepb.OperationMetadata_PENDING
	Working   OperationState = servicepb.OperationMetadata_RUNNING
	Succeeded OperationState = servicepb.OperationMetadata_SUCCEEDED
	Failed    OperationState = servicepb.OperationMetadata_FAILED
)

// OperationRetention is how long an ended operation can be asked for (AIP-151).
const OperationRetention = 30 * 24 * time.Hour

// Operation is a change that is under way or has ended.
type Operation struct {
	Name       OperationName
	Type       OperationType
	State      OperationState
	Target     Name
	TargetUUID string
	Created    time.Time
	Ended      time.Time // zero while it runs

	// Generation of the environment that ends the operation when it is in place.
	Generation int64
	// Steps are the named parts of the work, in order.
	Steps []Step
	// Error is why it failed; while it runs, why it is rolled back.
	Error *Error
	// Result is the environment as it was when the operation succeeded; nil for
	// a delete, and while it runs.
	Result *Environment
	// Upgrade is the result of a check.
	Upgrade *servicepb.CheckUpgradeResponse
	// Previous is what the environment was before an update, to go back to.
	Previous *Previous
	// CancelRequested asks the reconciler to stop between steps.
	CancelRequested bool
	// RestartWebServer tells this update from others.
	RestartWebServer bool
}

// Done reports whether the operation has ended.
func (o *Operation) Done() bool { return o.State == Succeeded || o.State == Failed }

// Previous is what an update goes back to when it fails.
type Previous struct {
	Spec  Spec
	Plan  address.Plan
	Agent AgentConfig
}

// Step is one named, idempotent part of an operation's work.
type Step struct {
	Name    string         `json:"name"`
	State   OperationState `json:"state"`
	Detail  string         `json:"detail,omitempty"`
	Started time.Time      `json:"started,omitzero"`
	Ended   time.Time      `json:"ended,omitzero"`
}
