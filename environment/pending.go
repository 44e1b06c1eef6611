package environment

import (
	"context"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
)

var errPending = &Error{Code: Unimplemented, Reason: "NOT_BUILT_YET", Message: "this method is not built yet"}

// Create checks a request for a new environment, plans its addresses and
// stores both with the operation.
func (s *Service) Create(context.Context, CreateRequest) (*Operation, error) { return nil, errPending }

// Get returns one environment.
func (s *Service) Get(context.Context, Name) (*Environment, error) { return nil, errPending }

// List returns environments by name, and the token of the next page.
func (s *Service) List(context.Context, Location, Page) ([]*Environment, string, error) {
	return nil, "", errPending
}

// Update changes what the mask names.
func (s *Service) Update(context.Context, UpdateRequest) (*Operation, error) { return nil, errPending }

// UpdateAgentConfig changes the configuration of an environment's agents.
func (s *Service) UpdateAgentConfig(context.Context, AgentConfigRequest) (*Operation, error) {
	return nil, errPending
}

// Delete removes an environment.
func (s *Service) Delete(context.Context, Name, CallOptions) (*Operation, error) {
	return nil, errPending
}

// CheckUpgrade finds out whether an environment can be upgraded to an image.
func (s *Service) CheckUpgrade(ctx context.Context, name Name, imageVersion string, o CallOptions) (*Operation, error) {
	return nil, errPending
}

// RestartWebServer restarts an environment's web server.
func (s *Service) RestartWebServer(context.Context, Name, CallOptions) (*Operation, error) {
	return nil, errPending
}

// ImageVersions lists the image versions, the newest first, and the token of
// the next page.
func (s *Service) ImageVersions(ctx context.Context, l Location, p Page, includePast bool) ([]*servicepb.ImageVersion, string, error) {
	return nil, "", errPending
}

// ImageVersion returns one image version.
func (s *Service) ImageVersion(ctx context.Context, l Location, id string) (*servicepb.ImageVersion, error) {
	return nil, errPending
}

// Operation returns one operation.
func (s *Service) Operation(context.Context, OperationName) (*Operation, error) {
	return nil, errPending
}

// Operations lists operations, the newest first, and the token of the next
// page.
func (s *Service) Operations(ctx context.Context, l Location, filter string, p Page) ([]*Operation, string, error) {
	return nil, "", errPending
}

// DeleteOperation forgets an operation that has ended.
func (s *Service) DeleteOperation(context.Context, OperationName) error { return errPending }

// CancelOperation asks the reconciler to stop an operation between two steps.
func (s *Service) CancelOperation(context.Context, OperationName) error { return errPending }

// Forget deletes the operations that ended longer ago than OperationRetention,
// and says how many.
func (s *Service) Forget(context.Context) (int, error) { return 0, errPending }

// Effective is the environment's configuration with every default that the
// user left to the server, for showing; the ranges that the server chose are
// not in it.
func (e *Environment) Effective() *servicepb.EnvironmentConfig { return e.Spec.Config }
