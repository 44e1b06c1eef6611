package wire

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	longrunning "cloud.google.com/go/longrunning/autogen"
	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	service "cloud.google.com/go/orchestration/airflow/service/apiv1"
	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/googleapis/gax-go/v2"
	"github.com/googleapis/gax-go/v2/apierror"
	composerv1 "google.golang.org/api/composer/v1"
	composerbeta "google.golang.org/api/composer/v1beta1"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"sordino/environment"
)

func (s *served) dial() *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

func documentEnvironment() *servicepb.Environment {
	return &servicepb.Environment{
		Name: example,
		Config: &servicepb.EnvironmentConfig{
			SoftwareConfig: &servicepb.SoftwareConfig{ImageVersion: "composer-1.20.12-airflow-1.10.15"},
			NodeConfig: &servicepb.NodeConfig{
				IpAllocationPolicy: &servicepb.IPAllocationPolicy{UseIpAliases: true},
				EnableIpMasqAgent:  true,
			},
		},
	}
}

// TestGoogleClient drives Google's generated client over both transports.
func TestGoogleClient(t *testing.T) {
	for _, transport := range []string{"grpc", "rest"} {
		t.Run(transport, func(t *testing.T) {
			s := serve(t)
			ctx := t.Context()
			var client *service.EnvironmentsClient
			var images *service.ImageVersionsClient
			var err error
			if transport == "grpc" {
				conn := option.WithGRPCConn(s.dial())
				client, err = service.NewEnvironmentsClient(ctx, conn)
				if err == nil {
					images, err = service.NewImageVersionsClient(ctx, conn)
				}
			} else {
				o := []option.ClientOption{option.WithEndpoint("http://" + s.addr), option.WithHTTPClient(s.client)}
				client, err = service.NewEnvironmentsRESTClient(ctx, o...)
				if err == nil {
					images, err = service.NewImageVersionsRESTClient(ctx, o...)
				}
			}
			if err != nil {
				t.Fatal(err)
			}

			create, err := client.CreateEnvironment(ctx, &servicepb.CreateEnvironmentRequest{Parent: parent, Environment: documentEnvironment()})
			if err != nil {
				t.Fatal(err)
			}
			meta, err := create.Metadata()
			if err != nil || meta.GetState() != servicepb.OperationMetadata_PENDING || meta.GetResource() != example {
				t.Fatalf("%v %v", meta, err)
			}
			for range 2 { // the second time it is done
				if _, err = create.Poll(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if !create.Done() {
				t.Fatal("the operation is not done")
			}
			got, err := client.GetEnvironment(ctx, &servicepb.GetEnvironmentRequest{Name: example})
			if err != nil {
				t.Fatal(err)
			}
			if c := got.GetConfig(); got.GetState() != servicepb.Environment_RUNNING || !c.GetNodeConfig().GetEnableIpMasqAgent() ||
				!c.GetNodeConfig().GetIpAllocationPolicy().GetUseIpAliases() || c.GetSoftwareConfig().GetPythonVersion() != "3" || c.GetNodeCount() != 3 {
				t.Fatalf("%v", got)
			}

			list := client.ListEnvironments(ctx, &servicepb.ListEnvironmentsRequest{Parent: parent, PageSize: 1})
			var names []string
			for {
				e, err := list.Next()
				if errors.Is(err, iterator.Done) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, e.GetName())
			}
			if !slices.Equal(names, []string{example}) {
				t.Fatalf("%v", names)
			}
			image, err := images.ListImageVersions(ctx, &servicepb.ListImageVersionsRequest{Parent: parent}).Next()
			if err != nil || image.GetImageVersionId() != "composer-1.20.12-airflow-1.10.15" || image.GetReleaseDate().GetYear() != 2023 {
				t.Fatalf("%v %v", image, err)
			}

			// REST has the client's own library between: protojson refuses to send
			// a mask with a map key that is no name in camel case.
			update, err := client.UpdateEnvironment(ctx, &servicepb.UpdateEnvironmentRequest{
				Name: example, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"config.node_count"}},
				Environment: &servicepb.Environment{Config: &servicepb.EnvironmentConfig{NodeCount: 5}},
			})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err = update.Poll(ctx); err != nil {
					t.Fatal(err)
				}
			}
			check, err := client.CheckUpgrade(ctx, &servicepb.CheckUpgradeRequest{Environment: example, ImageVersion: "composer-1.20.12-airflow-2.4.3"})
			if err != nil {
				t.Fatal(err)
			}
			var upgrade *servicepb.CheckUpgradeResponse
			for range 2 {
				if upgrade, err = check.Poll(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if upgrade.GetContainsPypiModulesConflict() != servicepb.CheckUpgradeResponse_NO_CONFLICT {
				t.Fatalf("%v", upgrade)
			}

			// An operation that fails carries the whole error.
			s.memory.fail = &environment.Error{
				Code: environment.FailedPrecondition, Reason: "NODE_REJECTED_CONFIG", Message: "node 2 rejected it",
				Metadata:      map[string]string{"node": "2"},
				Preconditions: []environment.Precondition{{Type: "NODE", Subject: "node 2", Description: "rejects"}},
			}
			failing, err := client.UpdateEnvironment(ctx, &servicepb.UpdateEnvironmentRequest{Name: example, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}, Environment: &servicepb.Environment{}})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = failing.Poll(ctx)
			_, err = failing.Poll(ctx)
			var api *apierror.APIError
			if !errors.As(err, &api) || api.Reason() != "NODE_REJECTED_CONFIG" || api.Domain() != Domain || api.Metadata()["node"] != "2" || api.Details().PreconditionFailure == nil {
				t.Fatalf("%v", err)
			}

			// Errors come with their details.
			wrong := documentEnvironment()
			wrong.Config.NodeConfig.IpAllocationPolicy = nil
			_, err = client.CreateEnvironment(ctx, &servicepb.CreateEnvironmentRequest{Parent: parent, Environment: wrong})
			api = nil
			if !errors.As(err, &api) || api.Reason() != "IP_MASQ_AGENT_REQUIRES_IP_ALIAS" || len(api.Details().BadRequest.GetFieldViolations()) != 1 ||
				api.Details().BadRequest.GetFieldViolations()[0].GetField() != "environment.config.node_config.enable_ip_masq_agent" || api.Details().Help == nil {
				t.Fatalf("%v", err)
			}
			_, err = client.GetEnvironment(ctx, &servicepb.GetEnvironmentRequest{Name: parent + "/environments/missing"})
			api = nil
			if !errors.As(err, &api) || api.Reason() != "ENVIRONMENT_NOT_FOUND" || api.Details().ResourceInfo.GetResourceName() == "" {
				t.Fatalf("%v", err)
			}
			// What is not served says so, by name.
			_, err = client.ExecuteAirflowCommand(ctx, &servicepb.ExecuteAirflowCommandRequest{Environment: example})
			api = nil
			if !errors.As(err, &api) || api.Reason() != "METHOD_NOT_IMPLEMENTED" || !strings.Contains(err.Error(), "ExecuteAirflowCommand") {
				t.Fatalf("%v", err)
			}

			remove, err := client.DeleteEnvironment(ctx, &servicepb.DeleteEnvironmentRequest{Name: example})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := remove.Poll(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if !remove.Done() {
				t.Fatal("the delete is not done")
			}
			_, err = client.GetEnvironment(ctx, &servicepb.GetEnvironmentRequest{Name: example}, gax.WithGRPCOptions())
			if api = nil; !errors.As(err, &api) || transport == "grpc" && api.GRPCStatus().Code() != codes.NotFound || transport == "rest" && api.HTTPCode() != 404 {
				t.Fatalf("%v", err)
			}
		})
	}
}

// TestTerraformClient drives the client that the Terraform providers are built
// on.
func TestTerraformClient(t *testing.T) {
	s := serve(t)
	ctx := t.Context()
	v1, err := composerv1.NewService(ctx, option.WithEndpoint("http://"+s.addr+"/"), option.WithHTTPClient(s.client))
	if err != nil {
		t.Fatal(err)
	}
	op, err := v1.Projects.Locations.Environments.Create(parent, &composerv1.Environment{
		Name: example,
		Config: &composerv1.EnvironmentConfig{
			SoftwareConfig:           &composerv1.SoftwareConfig{ImageVersion: "composer-1.20.12-airflow-1.10.15"},
			NodeConfig:               &composerv1.NodeConfig{EnableIpMasqAgent: true, IpAllocationPolicy: &composerv1.IPAllocationPolicy{UseIpAliases: true}},
			PrivateEnvironmentConfig: &composerv1.PrivateEnvironmentConfig{NetworkingType: "PRIVATE", NetworkingConfig: &composerv1.NetworkingConfig{}},
		},
	}).Do()
	if err != nil || op.Name == "" || op.Done {
		t.Fatalf("%v %v", op, err)
	}
	for range 2 {
		if op, err = v1.Projects.Locations.Operations.Get(op.Name).Do(); err != nil {
			t.Fatal(err)
		}
	}
	if !op.Done || op.Error != nil || !strings.Contains(string(op.Metadata), `"SUCCEEDED"`) {
		t.Fatalf("%s", op.Metadata)
	}
	e, err := v1.Projects.Locations.Environments.Get(example).Do()
	if err != nil || e.Config.PrivateEnvironmentConfig.NetworkingType != "PRIVATE" || e.Config.NodeCount != 3 {
		t.Fatalf("%+v %v", e, err)
	}
	if p := e.Config.NodeConfig.IpAllocationPolicy; p.ClusterIpv4CidrBlock != "" || p.ServicesIpv4CidrBlock != "" || p.ClusterSecondaryRangeName != "" {
		t.Fatalf("ranges that the user did not give are in %+v", p)
	}
	list, err := v1.Projects.Locations.Operations.List(parent).Do()
	if err != nil || len(list.Operations) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	_, err = v1.Projects.Locations.Environments.Get(parent + "/environments/nope").Do()
	var api *googleapi.Error
	if !errors.As(err, &api) || api.Code != 404 || len(api.Details) == 0 {
		t.Fatalf("%v", err)
	}
	if _, err := v1.Projects.Locations.Operations.Delete(op.Name).Do(); err != nil {
		t.Fatal(err)
	}

	// Older providers put the version twice.
	beta, err := composerbeta.NewService(ctx, option.WithEndpoint("http://"+s.addr+"/prefix/v1beta1/"), option.WithHTTPClient(s.client))
	if err != nil {
		t.Fatal(err)
	}
	const second = parent + "/environments/second"
	bop, err := beta.Projects.Locations.Environments.Create(parent, &composerbeta.Environment{
		Name:   second,
		Config: &composerbeta.EnvironmentConfig{NodeConfig: &composerbeta.NodeConfig{MaxPodsPerNode: 16, IpAllocationPolicy: &composerbeta.IPAllocationPolicy{UseIpAliases: true}}},
	}).Do()
	if err != nil {
		t.Fatal(err)
	}
	if s.environments[second].Spec.MaxPodsPerNode != 16 {
		t.Fatalf("the domain got %d", s.environments[second].Spec.MaxPodsPerNode)
	}
	be, err := beta.Projects.Locations.Environments.Get(second).Do()
	if err != nil || be.Config.NodeConfig.MaxPodsPerNode != 16 {
		t.Fatalf("%+v %v", be, err)
	}
	for range 2 {
		if bop, err = beta.Projects.Locations.Operations.Get(bop.Name).Do(); err != nil {
			t.Fatal(err)
		}
	}
	if m := string(bop.Metadata); !strings.Contains(m, `"SUCCESSFUL"`) || !strings.Contains(m, "service.v1beta1.OperationMetadata") || !strings.Contains(string(bop.Response), "service.v1beta1.Environment") {
		t.Fatalf("%s", m)
	}
	restart, err := beta.Projects.Locations.Environments.RestartWebServer(second, &composerbeta.RestartWebServerRequest{}).Do()
	if err != nil || restart.Name == "" {
		t.Fatalf("%v %v", restart, err)
	}
	if _, err := v1.Projects.Locations.Environments.RestartWebServer(second, &composerv1.RestartWebServerRequest{}).Do(); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Hibernate": func() error {
			_, err := beta.Projects.Locations.Environments.Hibernate(second, &composerbeta.HibernateEnvironmentRequest{}).Do()
			return err
		},
		"Resume": func() error {
			_, err := beta.Projects.Locations.Environments.Resume(second, &composerbeta.ResumeEnvironmentRequest{}).Do()
			return err
		},
		"DatabaseFailover": func() error {
			_, err := v1.Projects.Locations.Environments.DatabaseFailover(second, &composerv1.DatabaseFailoverRequest{}).Do()
			return err
		},
	} {
		if err := call(); !errors.As(err, &api) || api.Code != 501 || !strings.Contains(api.Message, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBetaOverGRPC calls the beta service by its own name, with fields that
// servicepb lacks.
func TestBetaOverGRPC(t *testing.T) {
	s := serve(t)
	conn, ctx := s.dial(), t.Context()
	e := documentEnvironment()
	putUnknown(e.Config.NodeConfig.ProtoReflect(), maxPodsPerNode, 64)
	e.Config.PrivateEnvironmentConfig = &servicepb.PrivateEnvironmentConfig{}
	putUnknown(e.Config.PrivateEnvironmentConfig.ProtoReflect(), networkingType, networkingPublic)
	op := new(longrunningpb.Operation)
	const beta = "/google.cloud.orchestration.airflow.service.v1beta1.Environments/"
	if err := conn.Invoke(ctx, beta+"CreateEnvironment", &servicepb.CreateEnvironmentRequest{Parent: parent, Environment: e}, op); err != nil {
		t.Fatal(err)
	}
	if want := "type.googleapis.com/google.cloud.orchestration.airflow.service.v1beta1.OperationMetadata"; op.GetMetadata().GetTypeUrl() != want {
		t.Fatalf("%s", op.GetMetadata().GetTypeUrl())
	}
	if spec := s.environments[example].Spec; spec.MaxPodsPerNode != 64 || spec.NetworkingType != "PUBLIC" || len(spec.Config.NodeConfig.ProtoReflect().GetUnknown()) != 0 {
		t.Fatalf("%+v", spec)
	}
	got := new(servicepb.Environment)
	if err := conn.Invoke(ctx, beta+"GetEnvironment", &servicepb.GetEnvironmentRequest{Name: example}, got); err != nil {
		t.Fatal(err)
	}
	if n := takeUnknown(got.Config.NodeConfig.ProtoReflect(), maxPodsPerNode); n != 64 {
		t.Fatalf("maxPodsPerNode came back as %d", n)
	}
	// Methods that servicepb lacks.
	if err := conn.Invoke(ctx, beta+"RestartWebServer", &servicepb.GetEnvironmentRequest{Name: example}, op); err != nil {
		t.Fatal(err)
	}
	image := new(servicepb.ImageVersion)
	if err := conn.Invoke(ctx, "/google.cloud.orchestration.airflow.service.v1.ImageVersions/GetImageVersion", &servicepb.GetEnvironmentRequest{Name: parent + "/imageVersions/composer-1.20.12-airflow-2.4.3"}, image); err != nil || !image.GetIsDefault() {
		t.Fatalf("%v %v", image, err)
	}

	operations, err := longrunning.NewOperationsClient(ctx, option.WithGRPCConn(conn))
	if err != nil {
		t.Fatal(err)
	}
	if err := operations.CancelOperation(ctx, &longrunningpb.CancelOperationRequest{Name: op.GetName()}); err != nil || !s.operations[op.GetName()].CancelRequested {
		t.Fatal(err)
	}
	if _, err := operations.WaitOperation(ctx, &longrunningpb.WaitOperationRequest{Name: op.GetName()}); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "WaitOperation is not served here; ask GetOperation") {
		t.Fatal(err)
	}
	if _, err := operations.ListOperations(ctx, &longrunningpb.ListOperationsRequest{Name: parent + "/operations"}).Next(); err != nil {
		t.Fatal(err)
	}

	// Request ids and validation only, over gRPC's metadata.
	before := len(s.environments)
	validate := metadata.AppendToOutgoingContext(ctx, ValidateOnlyKey, "true")
	e.Name = parent + "/environments/planned"
	if err := conn.Invoke(validate, beta+"CreateEnvironment", &servicepb.CreateEnvironmentRequest{Parent: parent, Environment: e}, op); err != nil {
		t.Fatal(err)
	}
	if !op.GetDone() || op.GetName() != "" || len(s.environments) != before {
		t.Fatalf("%v, and there are %d environments", op, len(s.environments))
	}
	err = conn.Invoke(validate, "/google.longrunning.Operations/CancelOperation", &longrunningpb.CancelOperationRequest{Name: op.GetName()}, op)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "was not run") {
		t.Fatal(err)
	}
}

// TestReflection does what grpcurl does: lists the services, and asks for
// their files.
func TestReflection(t *testing.T) {
	s := serve(t)
	conn := s.dial()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *grpc_reflection_v1.ServerReflectionRequest) *grpc_reflection_v1.ServerReflectionResponse {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	var names []string
	for _, one := range ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		names = append(names, one.GetName())
	}
	set := &descriptorpb.FileDescriptorSet{} // a file is sent once a stream
	for _, v := range Versions {
		for _, want := range []string{v.protoPackage() + ".Environments", v.protoPackage() + ".ImageVersions", "google.longrunning.Operations", "grpc.health.v1.Health"} {
			if !slices.Contains(names, want) {
				t.Errorf("%s is not listed", want)
			}
		}
		// All files that the service needs, and the fields that we added.
		answer := ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: v.protoPackage() + ".Environments"}})
		for _, b := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
			f := new(descriptorpb.FileDescriptorProto)
			if err := proto.Unmarshal(b, f); err != nil {
				t.Fatal(err)
			}
			set.File = append(set.File, f)
		}
		files, err := protodesc.NewFiles(set)
		if err != nil {
			t.Fatalf("%v; %v", err, answer.GetErrorResponse())
		}
		for _, field := range []string{"PrivateEnvironmentConfig.networking_type", "OperationMetadata.steps", "OperationMetadata.plan"} {
			if _, err := files.FindDescriptorByName(protoreflect.FullName(v.protoPackage() + "." + field)); err != nil {
				t.Errorf("%s %s: %v", v, field, err)
			}
		}
		_, err = files.FindDescriptorByName(protoreflect.FullName(v.protoPackage() + "." + "NodeConfig.max_pods_per_node"))
		if (err == nil) != (v != V1) {
			t.Errorf("%s has max_pods_per_node: %v", v, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: V1.protoPackage() + ".Environments"})
	if err != nil || health.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("%v %v", health, err)
	}
}

// TestStepsOverGRPC: a gRPC client that knows nothing of steps
// keeps them.
func TestStepsOverGRPC(t *testing.T) {
	s := serve(t)
	ctx := t.Context()
	conn := s.dial()
	op, err := servicepb.NewEnvironmentsClient(conn).CreateEnvironment(ctx, &servicepb.CreateEnvironmentRequest{Parent: parent, Environment: documentEnvironment()})
	if err != nil {
		t.Fatal(err)
	}
	meta := new(servicepb.OperationMetadata)
	if err := op.GetMetadata().UnmarshalTo(meta); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(meta.ProtoReflect().GetUnknown()), "network") {
		t.Fatalf("%q", meta.ProtoReflect().GetUnknown())
	}
}
