package clients

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	service "cloud.google.com/go/orchestration/airflow/service/apiv1"
	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/googleapis/gax-go/v2"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// bearer puts the owner's token into every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// authorized is an HTTP client with the owner's token.
func (s *server) authorized() *http.Client {
	return &http.Client{Transport: bearer{s.Token, s.HTTP.Transport}, Timeout: time.Minute}
}

// perRPC is the same for gRPC.
type perRPC string

func (p perRPC) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(p)}, nil
}
func (perRPC) RequireTransportSecurity() bool { return false }

func (s *server) dial() *grpc.ClientConn {
	s.tb.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(perRPC(s.Token)))
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() { conn.Close() })
	return conn
}

// TestGoClient drives Google's client for Go over both transports.
func TestGoClient(t *testing.T) {
	for _, transport := range []string{"grpc", "rest"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			ctx := t.Context()
			var environments *service.EnvironmentsClient
			var images *service.ImageVersionsClient
			var err, imagesErr error
			if transport == "grpc" {
				conn := option.WithGRPCConn(s.dial())
				environments, err = service.NewEnvironmentsClient(ctx, conn)
				images, imagesErr = service.NewImageVersionsClient(ctx, conn)
			} else {
				o := []option.ClientOption{option.WithEndpoint(s.URL), option.WithHTTPClient(s.authorized())}
				environments, err = service.NewEnvironmentsRESTClient(ctx, o...)
				images, imagesErr = service.NewImageVersionsRESTClient(ctx, o...)
			}
			if err := errors.Join(err, imagesErr); err != nil {
				t.Fatal(err)
			}
			soon := gax.WithTimeout(time.Minute)
			request := func(name string) *servicepb.CreateEnvironmentRequest {
				return &servicepb.CreateEnvironmentRequest{Parent: location, Environment: &servicepb.Environment{
					Name: location + "/environments/" + name,
					Config: &servicepb.EnvironmentConfig{
						SoftwareConfig: &servicepb.SoftwareConfig{ImageVersion: "composer-1.20.12-airflow-1.10.15"},
						NodeConfig: &servicepb.NodeConfig{
							IpAllocationPolicy: &servicepb.IPAllocationPolicy{UseIpAliases: true},
							EnableIpMasqAgent:  true,
						},
					},
				}}
			}

			// Create three, one after the other accepted, and wait for each.
			var creates []*service.CreateEnvironmentOperation
			for _, name := range []string{"example-environment", "second", "third"} {
				op, err := environments.CreateEnvironment(ctx, request(name), soon)
				if err != nil {
					t.Fatal(err)
				}
				meta, err := op.Metadata()
				if err != nil || meta.GetOperationType() != servicepb.OperationMetadata_CREATE || meta.GetResource() != location+"/environments/"+name || meta.GetResourceUuid() == "" {
					t.Fatalf("%v %v", meta, err)
				}
				creates = append(creates, op)
			}
			for _, op := range creates {
				// By name, as a program that was restarted meanwhile.
				made, err := environments.CreateEnvironmentOperation(op.Name()).Wait(ctx, gax.WithTimeout(2*time.Minute))
				if err != nil {
					t.Fatal(err)
				}
				if made.GetName() == "" || !made.GetConfig().GetNodeConfig().GetEnableIpMasqAgent() {
					t.Fatalf("%v", made)
				}
			}

			got, err := environments.GetEnvironment(ctx, &servicepb.GetEnvironmentRequest{Name: example}, soon)
			if err != nil {
				t.Fatal(err)
			}
			if c := got.GetConfig(); got.GetState() != servicepb.Environment_RUNNING || got.GetUuid() == "" || got.GetCreateTime() == nil ||
				!c.GetNodeConfig().GetIpAllocationPolicy().GetUseIpAliases() || c.GetNodeCount() != 3 || c.GetSoftwareConfig().GetPythonVersion() != "3" {
				t.Fatalf("%v", got)
			}

			var names []string
			pages := 0
			pager := iterator.NewPager(environments.ListEnvironments(ctx, &servicepb.ListEnvironmentsRequest{Parent: location}), 2, "")
			for next := "begin"; next != ""; pages++ {
				var page []*servicepb.Environment
				if next, err = pager.NextPage(&page); err != nil {
					t.Fatal(err)
				}
				for _, e := range page {
					names = append(names, strings.TrimPrefix(e.GetName(), location+"/environments/"))
				}
			}
			slices.Sort(names)
			if !slices.Equal(names, []string{"example-environment", "second", "third"}) || pages != 2 {
				t.Fatalf("%v in %d pages", names, pages)
			}

			versions := images.ListImageVersions(ctx, &servicepb.ListImageVersionsRequest{Parent: location})
			ids, standard := 0, ""
			for {
				v, err := versions.Next()
				if errors.Is(err, iterator.Done) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if ids++; v.GetIsDefault() {
					standard = v.GetImageVersionId()
				}
			}
			if ids < 3 || standard != "composer-1.20.12-airflow-1.10.15" {
				t.Fatalf("%d image versions, the default is %q", ids, standard)
			}

			update := func(e *servicepb.Environment, paths ...string) (*servicepb.Environment, error) {
				op, err := environments.UpdateEnvironment(ctx, &servicepb.UpdateEnvironmentRequest{Name: example, Environment: e, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}}, soon)
				if err != nil {
					return nil, err
				}
				return op.Wait(ctx, gax.WithTimeout(2*time.Minute))
			}
			if _, err := update(&servicepb.Environment{Config: &servicepb.EnvironmentConfig{NodeCount: 4}}, "config.node_count"); err != nil {
				t.Fatal(err)
			}
			if _, err := update(&servicepb.Environment{Labels: map[string]string{"team": "data"}}, "labels"); err != nil {
				t.Fatal(err)
			}
			if got, err = environments.GetEnvironment(ctx, &servicepb.GetEnvironmentRequest{Name: example}); err != nil || got.GetConfig().GetNodeCount() != 4 || got.GetLabels()["team"] != "data" {
				t.Fatalf("%v %v", got, err)
			}
			check, err := environments.CheckUpgrade(ctx, &servicepb.CheckUpgradeRequest{Environment: example, ImageVersion: "composer-1.20.12-airflow-1.10.15"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := check.Wait(ctx); err != nil {
				t.Fatal(err)
			}

			// Refusals, as a program takes them apart.
			noAlias, three := request("refused"), request("refused")
			noAlias.Environment.Config.NodeConfig.IpAllocationPolicy = nil
			three.Environment.Config.NodeConfig.IpAllocationPolicy = &servicepb.IPAllocationPolicy{UseIpAliases: true,
				ClusterIpAllocation:  &servicepb.IPAllocationPolicy_ClusterIpv4CidrBlock{ClusterIpv4CidrBlock: "10.128.0.0/14"},
				ServicesIpAllocation: &servicepb.IPAllocationPolicy_ServicesIpv4CidrBlock{ServicesIpv4CidrBlock: "8.8.0.0/20"}}
			enable := func() error {
				_, err := update(&servicepb.Environment{Config: &servicepb.EnvironmentConfig{NodeConfig: &servicepb.NodeConfig{}}}, "config.node_config.enable_ip_masq_agent")
				return err
			}
			create := func(r *servicepb.CreateEnvironmentRequest) func() error {
				return func() error { _, err := environments.CreateEnvironment(ctx, r); return err }
			}
			for _, c := range []struct {
				name     string
				call     func() error
				code     codes.Code
				http     int
				reason   string
				fields   []string // BadRequest's
				metadata string   // a key that is there
				help     bool
				resource bool
			}{
				{"the agent without aliases", create(noAlias), codes.InvalidArgument, 400, "IP_MASQ_AGENT_REQUIRES_IP_ALIAS",
					[]string{"environment.config.node_config.enable_ip_masq_agent"}, "useIpAliases", true, false},
				{"two bad ranges", create(three), codes.InvalidArgument, 400, "",
					[]string{"environment.config.node_config.ip_allocation_policy.cluster_ipv4_cidr_block", "environment.config.node_config.ip_allocation_policy.services_ipv4_cidr_block"}, "", true, false},
				{"disabling the agent", enable, codes.InvalidArgument, 400, "FIELD_IMMUTABLE",
					[]string{"environment.config.node_config.enable_ip_masq_agent"}, "requested", true, false},
				{"a duplicate", create(request("second")), codes.AlreadyExists, 409, "ENVIRONMENT_ALREADY_EXISTS", nil, "state", false, true},
				{"a missing one", func() error {
					_, err := environments.GetEnvironment(ctx, &servicepb.GetEnvironmentRequest{Name: location + "/environments/missing"})
					return err
				}, codes.NotFound, 404, "ENVIRONMENT_NOT_FOUND", nil, "environment", false, true},
				{"no change", func() error {
					_, err := update(&servicepb.Environment{Config: &servicepb.EnvironmentConfig{NodeCount: 4}}, "config.node_count")
					return err
				}, codes.InvalidArgument, 400, "UPDATE_HAS_NO_EFFECT", []string{"update_mask"}, "", false, false},
				{"a method that is not served", func() error {
					_, err := environments.ExecuteAirflowCommand(ctx, &servicepb.ExecuteAirflowCommandRequest{Environment: example})
					return err
				}, codes.Unimplemented, 501, "METHOD_NOT_IMPLEMENTED", nil, "method", false, false},
			} {
				err := c.call()
				var api *apierror.APIError
				if !errors.As(err, &api) {
					t.Errorf("%s: %v", c.name, err)
					continue
				}
				if transport == "grpc" && api.GRPCStatus().Code() != c.code || transport == "rest" && api.HTTPCode() != c.http {
					t.Errorf("%s: %v", c.name, err)
				}
				if c.reason != "" && api.Reason() != c.reason || api.Domain() != "sordino.dev" {
					t.Errorf("%s: reason %q of %q", c.name, api.Reason(), api.Domain())
				}
				if _, there := api.Metadata()[c.metadata]; c.metadata != "" && !there {
					t.Errorf("%s: the metadata is %v", c.name, api.Metadata())
				}
				var fields []string
				for _, v := range api.Details().BadRequest.GetFieldViolations() {
					if !slices.Contains(fields, v.GetField()) {
						fields = append(fields, v.GetField())
					}
				}
				slices.Sort(fields)
				if !slices.Equal(fields, c.fields) {
					t.Errorf("%s: the violations are of %q", c.name, fields)
				}
				if (api.Details().Help != nil) != c.help || (api.Details().ResourceInfo != nil) != c.resource {
					t.Errorf("%s: %+v", c.name, api.Details())
				}
			}

			var removes []*service.DeleteEnvironmentOperation
			for _, name := range []string{"example-environment", "second", "third"} {
				op, err := environments.DeleteEnvironment(ctx, &servicepb.DeleteEnvironmentRequest{Name: location + "/environments/" + name})
				if err != nil {
					t.Fatal(err)
				}
				removes = append(removes, op)
			}
			for _, op := range removes {
				if err := op.Wait(ctx, gax.WithTimeout(2*time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := environments.ListEnvironments(ctx, &servicepb.ListEnvironmentsRequest{Parent: location}).Next(); !errors.Is(err, iterator.Done) {
				t.Fatalf("something is left: %v", err)
			}
		})
	}
}

// TestReflectionAndHealth asks as grpcurl and a load balancer do.
func TestReflectionAndHealth(t *testing.T) {
	t.Parallel()
	s := start(t)
	conn := s.dial()
	health, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || health.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("%v %v", health, err)
	}
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var services []string
	for _, s := range r.GetListServicesResponse().GetService() {
		services = append(services, s.GetName())
	}
	for _, version := range []string{"v1", "v1beta1", "v1alpha2"} {
		if name := fmt.Sprintf("google.cloud.orchestration.airflow.service.%s.Environments", version); !slices.Contains(services, name) {
			t.Errorf("%s is not among %q", name, services)
		}
	}
	if !slices.Contains(services, "google.longrunning.Operations") {
		t.Errorf("the operations are not among %q", services)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}
