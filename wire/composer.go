package wire

import (
	"context"
	"fmt"
	"strings"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	"sordino/environment"
)

// Environments is what this package asks of the domain; *environment.Service
// is one.
type Environments interface {
	Create(context.Context, environment.CreateRequest) (*environment.Operation, error)
	Get(context.Context, environment.Name) (*environment.Environment, error)
	List(context.Context, environment.Location, environment.Page) ([]*environment.Environment, string, error)
	Update(context.Context, environment.UpdateRequest) (*environment.Operation, error)
	Delete(context.Context, environment.Name, environment.CallOptions) (*environment.Operation, error)
	CheckUpgrade(ctx context.Context, name environment.Name, imageVersion string, o environment.CallOptions) (*environment.Operation, error)
	RestartWebServer(context.Context, environment.Name, environment.CallOptions) (*environment.Operation, error)
	ImageVersions(ctx context.Context, l environment.Location, p environment.Page, includePast bool) ([]*servicepb.ImageVersion, string, error)
	ImageVersion(ctx context.Context, l environment.Location, id string) (*servicepb.ImageVersion, error)
	Operation(context.Context, environment.OperationName) (*environment.Operation, error)
	Operations(ctx context.Context, l environment.Location, filter string, p environment.Page) ([]*environment.Operation, string, error)
	DeleteOperation(context.Context, environment.OperationName) error
	CancelOperation(context.Context, environment.OperationName) error
}

// composer is the one implementation of Google's services, for every version
// and both transports. The methods that it leaves to the Unimplemented types
// are refused before they are reached: see instead.
type composer struct {
	servicepb.UnimplementedEnvironmentsServer
	servicepb.UnimplementedImageVersionsServer
	longrunningpb.UnimplementedOperationsServer

	environments Environments
	metadata     protoreflect.MessageDescriptor // OperationMetadata with its additions
}

var (
	_ servicepb.EnvironmentsServer   = (*composer)(nil)
	_ servicepb.ImageVersionsServer  = (*composer)(nil)
	_ longrunningpb.OperationsServer = (*composer)(nil)
)

// operation is how every change is answered.
func (c *composer) operation(ctx context.Context, o *environment.Operation, err error) (*longrunningpb.Operation, error) {
	if err != nil {
		return nil, err
	}
	return c.OperationOf(o, versionOf(ctx))
}

// missing refuses a request without something that it needs.
func missing(field, reason, message string) error {
	return &environment.Error{
		Code: environment.InvalidArgument, Reason: reason, Message: message,
		Violations: []environment.Violation{{Field: field, Reason: reason, Description: message}},
	}
}

func (c *composer) CreateEnvironment(ctx context.Context, r *servicepb.CreateEnvironmentRequest) (*longrunningpb.Operation, error) {
	parent, err := environment.ParseLocation(r.GetParent(), false)
	if err != nil {
		return nil, err
	}
	if r.GetEnvironment() == nil {
		return nil, missing("environment", "ENVIRONMENT_MISSING", "the request holds no environment; send its name and config in the body")
	}
	if r.GetEnvironment().GetName() == "" {
		return nil, missing("name", "ENVIRONMENT_NAME_MISSING", "the environment has no name; set it to "+parent.String()+"/environments/ENVIRONMENT")
	}
	name, err := environment.ParseName(r.GetEnvironment().GetName())
	if err != nil {
		return nil, err
	}
	options, err := callOptions(ctx)
	if err != nil {
		return nil, err
	}
	o, err := c.environments.Create(ctx, environment.CreateRequest{Parent: parent, Name: name, Spec: specOf(r.GetEnvironment()), CallOptions: options})
	return c.operation(ctx, o, err)
}

func (c *composer) GetEnvironment(ctx context.Context, r *servicepb.GetEnvironmentRequest) (*servicepb.Environment, error) {
	name, err := environment.ParseName(r.GetName())
	if err != nil {
		return nil, err
	}
	e, err := c.environments.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return EnvironmentOf(e), nil
}

func (c *composer) ListEnvironments(ctx context.Context, r *servicepb.ListEnvironmentsRequest) (*servicepb.ListEnvironmentsResponse, error) {
	parent, err := environment.ParseLocation(r.GetParent(), true)
	if err != nil {
		return nil, err
	}
	list, next, err := c.environments.List(ctx, parent, environment.Page{Size: r.GetPageSize(), Token: r.GetPageToken()})
	if err != nil {
		return nil, err
	}
	out := &servicepb.ListEnvironmentsResponse{NextPageToken: next, Environments: make([]*servicepb.Environment, len(list))}
	for i, e := range list {
		out.Environments[i] = EnvironmentOf(e)
	}
	return out, nil
}

func (c *composer) UpdateEnvironment(ctx context.Context, r *servicepb.UpdateEnvironmentRequest) (*longrunningpb.Operation, error) {
	// Not the name in the body: what was authorized is the name in the path.
	return c.change(ctx, r.GetName(), func(name environment.Name, o environment.CallOptions) (*environment.Operation, error) {
		return c.environments.Update(ctx, environment.UpdateRequest{
			Name: name, Spec: specOf(r.GetEnvironment()), Mask: r.GetUpdateMask().GetPaths(), CallOptions: o,
		})
	})
}

// change is what every change of an existing environment begins and ends with.
func (c *composer) change(ctx context.Context, environmentName string, do func(environment.Name, environment.CallOptions) (*environment.Operation, error)) (*longrunningpb.Operation, error) {
	name, err := environment.ParseName(environmentName)
	if err != nil {
		return nil, err
	}
	options, err := callOptions(ctx)
	if err != nil {
		return nil, err
	}
	o, err := do(name, options)
	return c.operation(ctx, o, err)
}

func (c *composer) DeleteEnvironment(ctx context.Context, r *servicepb.DeleteEnvironmentRequest) (*longrunningpb.Operation, error) {
	return c.change(ctx, r.GetName(), func(name environment.Name, o environment.CallOptions) (*environment.Operation, error) {
		return c.environments.Delete(ctx, name, o)
	})
}

func (c *composer) CheckUpgrade(ctx context.Context, r *servicepb.CheckUpgradeRequest) (*longrunningpb.Operation, error) {
	return c.change(ctx, r.GetEnvironment(), func(name environment.Name, o environment.CallOptions) (*environment.Operation, error) {
		return c.environments.CheckUpgrade(ctx, name, r.GetImageVersion(), o)
	})
}

// restartWebServer takes a message that is a RestartWebServerRequest on the
// wire: a name as field 1.
func (c *composer) restartWebServer(ctx context.Context, r *servicepb.GetEnvironmentRequest) (*longrunningpb.Operation, error) {
	return c.change(ctx, r.GetName(), func(name environment.Name, o environment.CallOptions) (*environment.Operation, error) {
		return c.environments.RestartWebServer(ctx, name, o)
	})
}

func (c *composer) ListImageVersions(ctx context.Context, r *servicepb.ListImageVersionsRequest) (*servicepb.ListImageVersionsResponse, error) {
	parent, err := environment.ParseLocation(r.GetParent(), false)
	if err != nil {
		return nil, err
	}
	list, next, err := c.environments.ImageVersions(ctx, parent, environment.Page{Size: r.GetPageSize(), Token: r.GetPageToken()}, r.GetIncludePastReleases())
	if err != nil {
		return nil, err
	}
	return &servicepb.ListImageVersionsResponse{ImageVersions: list, NextPageToken: next}, nil
}

// getImageVersion takes a message that is a GetImageVersionRequest on the wire:
// a name as field 1.
func (c *composer) getImageVersion(ctx context.Context, r *servicepb.GetEnvironmentRequest) (*servicepb.ImageVersion, error) {
	parent, id, found := strings.Cut(r.GetName(), "/imageVersions/")
	location, err := environment.ParseLocation(parent, false)
	if !found || id == "" || strings.Contains(id, "/") || err != nil {
		return nil, &environment.Error{
			Code: environment.InvalidArgument, Reason: "RESOURCE_NAME_MALFORMED",
			Message:  fmt.Sprintf("the resource name %q is malformed; write it like projects/PROJECT/locations/LOCATION/imageVersions/IMAGE_VERSION", r.GetName()),
			Metadata: map[string]string{"name": r.GetName()},
		}
	}
	return c.environments.ImageVersion(ctx, location, id)
}

func (c *composer) GetOperation(ctx context.Context, r *longrunningpb.GetOperationRequest) (*longrunningpb.Operation, error) {
	name, err := environment.ParseOperationName(r.GetName())
	if err != nil {
		return nil, err
	}
	o, err := c.environments.Operation(ctx, name)
	return c.operation(ctx, o, err)
}

func (c *composer) ListOperations(ctx context.Context, r *longrunningpb.ListOperationsRequest) (*longrunningpb.ListOperationsResponse, error) {
	// Google's generated clients send the collection's name, REST its parent.
	parent, err := environment.ParseLocation(strings.TrimSuffix(r.GetName(), "/operations"), true)
	if err != nil {
		return nil, err
	}
	list, next, err := c.environments.Operations(ctx, parent, r.GetFilter(), environment.Page{Size: r.GetPageSize(), Token: r.GetPageToken()})
	if err != nil {
		return nil, err
	}
	out := &longrunningpb.ListOperationsResponse{NextPageToken: next, Operations: make([]*longrunningpb.Operation, len(list))}
	for i, o := range list {
		if out.Operations[i], err = c.OperationOf(o, versionOf(ctx)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *composer) DeleteOperation(ctx context.Context, r *longrunningpb.DeleteOperationRequest) (*emptypb.Empty, error) {
	name, err := environment.ParseOperationName(r.GetName())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.environments.DeleteOperation(ctx, name)
}

func (c *composer) CancelOperation(ctx context.Context, r *longrunningpb.CancelOperationRequest) (*emptypb.Empty, error) {
	name, err := environment.ParseOperationName(r.GetName())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.environments.CancelOperation(ctx, name)
}
