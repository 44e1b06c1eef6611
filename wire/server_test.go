package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"sordino/environment"
	"sordino/wire/rest"
)

// TestValidateOnly: the whole plan comes back, and nothing is stored.
func TestValidateOnly(t *testing.T) {
	s := serve(t)
	a := s.do("POST", location+"/environments?validateOnly=true", documentBody)
	if a.StatusCode != 200 || a.at("done") != true || a.at("name") != nil || len(s.environments) != 0 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	var plan struct {
		Network, Subnetwork                 string
		VpcNative                           bool
		Ranges                              []map[string]string
		NodeAddresses                       []string
		NodePodPrefixLength, MaxPodsPerNode int
		MaxNodes, MaxServices               int
		AgentExempts, Warnings              []string
	}
	b, _ := json.Marshal(a.at("metadata", "plan"))
	if err := json.Unmarshal(b, &plan); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(plan.AgentExempts, []string{"10.128.0.0/20", "10.4.0.0/14", "10.0.32.0/20"}) || plan.MaxNodes != 4096 || plan.NodePodPrefixLength != 26 ||
		plan.MaxPodsPerNode != 32 || plan.MaxServices != 4096 || len(plan.NodeAddresses) != 3 || len(plan.Warnings) != 1 || !plan.VpcNative || plan.Network == "" ||
		!reflect.DeepEqual(plan.Ranges[1], map[string]string{"kind": "Pod", "cidrBlock": "10.4.0.0/14", "chosenBy": "chosen"}) {
		t.Fatalf("%s", b)
	}
	if a := s.do("POST", location+"/environments?validateOnly=perhaps", documentBody); a.StatusCode != 400 || len(s.environments) != 0 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	if a := s.do("POST", location+"/environments?validateOnly=false", documentBody); a.StatusCode != 200 || len(s.environments) != 1 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	// A method that cannot only validate does not do it either.
	op := s.do("DELETE", "/v1/"+example, "").at("name").(string)
	if a := s.do("DELETE", "/v1/"+op+"?validateOnly=true", ""); a.StatusCode != 400 || s.operations[op] == nil || !strings.Contains(string(a.body), "was not run") {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
}

// requestIDs remembers the ids that came.
type requestIDs struct {
	*memory
	ids []string
}

func (r *requestIDs) Create(ctx context.Context, c environment.CreateRequest) (*environment.Operation, error) {
	r.ids = append(r.ids, c.RequestID)
	return r.memory.Create(ctx, c)
}

func TestRequestID(t *testing.T) {
	ids := &requestIDs{}
	s := serve(t, func(o *Options) { ids.memory = o.Environments.(*memory); o.Environments = ids })
	path := location + "/environments?alt=json"
	s.do("POST", path, documentBody)
	s.do("POST", path, documentBody, "X-Request-Id", "from-header")
	s.do("POST", path+"&requestId=from-query", documentBody, "X-Request-Id", "from-header")
	client := servicepb.NewEnvironmentsClient(s.dial())
	ctx := metadata.AppendToOutgoingContext(t.Context(), RequestIDKey, "from-grpc")
	_, _ = client.CreateEnvironment(ctx, &servicepb.CreateEnvironmentRequest{Parent: parent, Environment: documentEnvironment()})
	if want := []string{"", "from-header", "from-query", "from-grpc"}; !slices.Equal(ids.ids, want) {
		t.Fatalf("%q, want %q", ids.ids, want)
	}
}

func TestVersionsOverREST(t *testing.T) {
	s := serve(t)
	op := s.do("POST", location+"/environments", documentBody).at("name").(string)
	for _, c := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"GET", "/v1beta1/" + op, "", 200, `service.v1beta1.OperationMetadata`},
		{"GET", "/v1alpha2/" + op, "", 200, `SUCCESSFUL`},
		{"GET", "/v1/" + op, "", 200, `SUCCEEDED`},
		{"GET", "/v1/" + op + "?alt=json;enum-encoding=int", "", 200, `"state": 3`},
		// Cancel is beta's.
		{"POST", "/v1/" + op + ":cancel", "{}", 404, "v1alpha2 has this method"},
		{"POST", "/v1beta1/" + op + ":cancel", "{}", 200, "{}"},
		{"GET", "/v1/" + example + ":hibernate", "", 404, ""},
		{"POST", "/v1/" + example + ":hibernate", "{}", 404, "v1alpha2 has this method"},
		{"POST", "/v1beta1/" + example + ":hibernate", "{}", 501, "Hibernate is not served here"},
		{"GET", "/v1/" + parent + "/imageVersions", "", 200, `"releaseDate"`},
		{"GET", "/" + parent + "/imageVersions", "", 200, `"imageVersions"`},
		{"GET", "/v1/" + parent + "/imageVersions/composer-1.20.12-airflow-2.4.3", "", 200, `"isDefault": true`},
		{"GET", "/v1/" + parent + "/imageVersions/composer-9", "", 404, `IMAGE_VERSION_NOT_FOUND`},
		{"GET", "/v1/" + parent + "/operations?returnPartialSuccess=true", "", 200, `"operations"`},
		{"GET", "/v1/" + parent + "/operations?filter=x", "", 400, `FILTER_MALFORMED`},
		{"GET", "/v1/projects/example-project/locations/-/environments?pageSize=30", "", 200, example},
		{"GET", "/v1/projects/Bad_Project/locations/us-central1/environments", "", 400, `RESOURCE_NAME_MALFORMED`},
		{"GET", "/v1/" + parent + "/environments/Bad_Name", "", 400, `ENVIRONMENT_NAME_MALFORMED`},
		{"GET", "/v1/" + parent + "/environments?pageSize=-1", "", 400, `"field": "page_size"`},
		{"POST", location + "/environments", "", 400, `ENVIRONMENT_MISSING`},
		{"POST", location + "/environments", "{}", 400, `ENVIRONMENT_NAME_MISSING`},
		{"PATCH", "/v1/" + example, `{"config": {"nodeCount": 4}}`, 400, `UPDATE_MASK_MISSING`},
		{"PATCH", "/v1/" + example + "?updateMask=config.nodeCount", `{"config": {"nodeCount": "many"}}`, 400, `Invalid value at 'environment.config.node_count' (TYPE_INT32), \"many\"`},
		{"POST", location + "/environments", `{"config": {"nodeConfig": {"maxPodsPerNode": 8}, "x": 1}}`, 400, `Unknown name \"x\" at 'environment.config': Cannot find field.`},
		{"POST", location + "/environments", `{"config": {"nodeConfig": {"maxPodsPerNode": 8}, "x": 1}}`, 400, `Unknown name \"maxPodsPerNode\" at 'environment.config.node_config': Cannot find field.`},
		{"GET", "/v1/projects", "", 404, "PATH_NOT_FOUND"},
		{"GET", "/", "", 404, "paths look like /v1/projects/PROJECT/locations/LOCATION/environments"},
		{"GET", "/v1/" + example + "?fields=config(softwareConfig/imageVersion)", "", 200, `"imageVersion": "composer-1.20.12-airflow-1.10.15"`},
	} {
		a := s.do(c.method, c.path, c.body)
		if a.StatusCode != c.code || !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s %s %s: %d, want %d with %s: %s", c.method, c.path, c.body, a.StatusCode, c.code, c.want, a.body)
		}
	}
	a := s.do("HEAD", "/v1/"+example, "")
	if a.StatusCode != 200 || len(a.body) != 0 || a.ContentLength <= 0 {
		t.Errorf("HEAD: %d %q %d", a.StatusCode, a.body, a.ContentLength)
	}
}

// TestInternal: neither a panic nor an error of no kind tells the client
// anything; the log has it under the id that the client was told.
func TestInternal(t *testing.T) {
	for name, breakIt := range map[string]func(*memory){
		"panic": func(m *memory) { m.panics = true },
		"error": func(m *memory) { m.broken = true },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.do("POST", location+"/environments", documentBody)
			breakIt(s.memory)
			a := s.do("GET", "/v1/"+example, "")
			id, _ := a.at("error", "details", 0, "metadata", "id").(string)
			if a.StatusCode != 500 || strings.Contains(string(a.body), "secret") || id == "" {
				t.Fatalf("%d %s", a.StatusCode, a.body)
			}
			if log := s.log.String(); !strings.Contains(log, id) || !strings.Contains(log, "secret") {
				t.Fatalf("the log has no %s: %s", id, log)
			}
			_, err := servicepb.NewEnvironmentsClient(s.dial()).GetEnvironment(t.Context(), &servicepb.GetEnvironmentRequest{Name: example})
			if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
				t.Fatal(err)
			}
			s.memory.panics, s.memory.broken = false, false
			if a := s.do("GET", "/v1/"+example, ""); a.StatusCode != 200 {
				t.Fatalf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}

// TestAuthorization: both transports ask the same hook, before the request is
// validated and before anything is looked up, and tell how it ended.
func TestAuthorization(t *testing.T) {
	type record struct {
		method, resource, project string
		code                      codes.Code
	}
	type who struct{}
	var mu sync.Mutex
	var records []record
	s := serve(t, func(o *Options) {
		o.Authorize = func(ctx context.Context, c Call) (context.Context, error) {
			if token := c.Header.Get("Authorization"); token != "Bearer good" {
				return ctx, &environment.Error{Code: environment.PermissionDenied, Reason: "PERMISSION_DENIED",
					Message: fmt.Sprintf("permission denied on resource %q (or it might not exist)", c.Resource)}
			}
			return context.WithValue(ctx, who{}, "alice"), nil
		}
		o.Audit = func(ctx context.Context, c Call, o Outcome) {
			mu.Lock()
			defer mu.Unlock()
			if (ctx.Value(who{}) == "alice") == (o.Code == codes.PermissionDenied) {
				t.Errorf("%s: the context is not Authorize's", c.Method)
			}
			if c.Remote == "" {
				t.Errorf("%s: no remote address", c.Method)
			}
			records = append(records, record{c.Name(), c.Resource, c.Project, o.Code})
		}
	})
	conn := s.dial()
	client := servicepb.NewEnvironmentsClient(conn)
	ctx := t.Context()
	good := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer good")
	check := func(what string, want record) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if len(records) == 0 || records[len(records)-1] != want {
			t.Errorf("%s: audited %+v, want %+v", what, records, want)
		}
	}
	denied := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}

	// The body, the query and the name are all wrong, and nothing of it is told.
	if a := s.do("POST", location+"/environments?nope=1", "{{{"); a.StatusCode != 403 || a.at("error", "status") != "PERMISSION_DENIED" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	check("REST create", record{"CreateEnvironment", parent, "example-project", codes.PermissionDenied})
	if a := s.do("GET", location+"/environments/No_Such", ""); a.StatusCode != 403 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	check("REST get", record{"GetEnvironment", parent + "/environments/No_Such", "example-project", codes.PermissionDenied})
	if a := s.do("GET", location+"/environments/missing", "", "Authorization", "Bearer good"); a.StatusCode != 404 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	check("REST get", record{"GetEnvironment", parent + "/environments/missing", "example-project", codes.NotFound})
	if a := s.do("POST", location+"/environments", documentBody, "Authorization", "Bearer good"); a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	check("REST create", record{"CreateEnvironment", parent, "example-project", codes.OK})

	_, err := client.GetEnvironment(ctx, &servicepb.GetEnvironmentRequest{Name: example})
	denied("get", err)
	check("get", record{"GetEnvironment", example, "example-project", codes.PermissionDenied})
	if _, err = client.GetEnvironment(good, &servicepb.GetEnvironmentRequest{Name: example}); err != nil {
		t.Error(err)
	}
	check("get", record{"GetEnvironment", example, "example-project", codes.OK})
	_, err = client.UpdateEnvironment(ctx, &servicepb.UpdateEnvironmentRequest{Name: example})
	denied("update", err)
	check("update", record{"UpdateEnvironment", example, "example-project", codes.PermissionDenied})
	// The name in the body does not stand in for the one that was authorized.
	if _, err = client.UpdateEnvironment(good, &servicepb.UpdateEnvironmentRequest{Environment: &servicepb.Environment{Name: example}}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	_, err = client.CheckUpgrade(ctx, &servicepb.CheckUpgradeRequest{Environment: example})
	denied("check", err)
	check("check", record{"CheckUpgrade", example, "example-project", codes.PermissionDenied})
	_, err = client.UpdateUserWorkloadsSecret(ctx, &servicepb.UpdateUserWorkloadsSecretRequest{UserWorkloadsSecret: &servicepb.UserWorkloadsSecret{Name: example + "/userWorkloadsSecrets/s"}})
	denied("a method that is not served", err)
	check("not served", record{"UpdateUserWorkloadsSecret", example + "/userWorkloadsSecrets/s", "example-project", codes.PermissionDenied})
	_, err = longrunningpb.NewOperationsClient(conn).WaitOperation(ctx, &longrunningpb.WaitOperationRequest{Name: parent + "/operations/x"})
	denied("wait", err)
	check("wait", record{"WaitOperation", parent + "/operations/x", "example-project", codes.PermissionDenied})
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	denied("health", err)
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	denied("reflection", err)
	check("reflection", record{"ServerReflectionInfo", "", "", codes.PermissionDenied})

	// A message that is none is told to nobody but who may call.
	for _, method := range []string{
		"/google.cloud.orchestration.airflow.service.v1.Environments/DeleteEnvironment",
		"/google.cloud.orchestration.airflow.service.v1.Environments/RestartWebServer",
		"/google.longrunning.Operations/GetOperation",
	} {
		garbage := func(ctx context.Context) error {
			return conn.Invoke(ctx, method, []byte{0xff, 0xff}, new([]byte), grpc.ForceCodec(verbatim{}))
		}
		denied(method, garbage(ctx))
		name := method[strings.LastIndexByte(method, '/')+1:]
		check(method, record{name, "", "", codes.PermissionDenied})
		if err := garbage(good); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "cannot be decoded") {
			t.Errorf("%s: %v", method, err)
		}
		check(method, record{name, "", "", codes.InvalidArgument})
	}
}

// verbatim sends bytes as they are.
type verbatim struct{}

func (verbatim) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (verbatim) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (verbatim) Name() string                       { return "proto" }

// slow waits until its call is ended.
type slow struct{ *memory }

func (slow) Get(ctx context.Context, _ environment.Name) (*environment.Environment, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("reading: %w", ctx.Err())
}

func TestLimits(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.Environments = slow{o.Environments.(*memory)}
		o.Timeout = 50 * time.Millisecond
		o.MaxBody = 4096
		o.MaxDepth = 10
	})
	if a := s.do("GET", "/v1/"+example, ""); a.StatusCode != 504 || a.at("error", "status") != "DEADLINE_EXCEEDED" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	client := servicepb.NewEnvironmentsClient(s.dial())
	if _, err := client.GetEnvironment(t.Context(), &servicepb.GetEnvironmentRequest{Name: example}); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	if a := s.do("POST", location+"/environments", `{"name": "`+strings.Repeat("x", 5000)+`"}`); a.StatusCode != 400 || a.at("error", "details", 0, "reason") != "BODY_TOO_LARGE" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if _, err := client.GetEnvironment(t.Context(), &servicepb.GetEnvironmentRequest{Name: strings.Repeat("x", 5000)}); status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}
	if a := s.do("POST", location+"/environments", strings.Repeat("[", 4000)); a.StatusCode != 400 || !strings.Contains(string(a.body), "nested deeper than 10") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	// HTTP/1 with gRPC's content type is no gRPC.
	if a := s.do("POST", location+"/environments", "{}", "Content-Type", "application/grpc"); a.StatusCode != 400 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// TestErrorTable: every code of the domain has its own code here, and HTTP
// status.
func TestErrorTable(t *testing.T) {
	for code := environment.Internal; code <= environment.Cancelled; code++ {
		if _, ok := codeOf[code]; !ok {
			t.Errorf("code %d is in no table", code)
		}
	}
	full := &environment.Error{
		Code: environment.FailedPrecondition, Message: "m\xff", Metadata: map[string]string{"a\xff": "b\xff"},
		Violations:    []environment.Violation{{Field: "config.node_count", Description: "d\xff"}, {Field: "update_mask"}},
		Resource:      &environment.Resource{Type: "Environment", Name: "n\xff"},
		Preconditions: []environment.Precondition{{Type: "T", Subject: "s\xff"}},
		Help:          []environment.Link{{Description: "d", URL: "https://example.com"}},
	}
	st := Status(t.Context(), fmt.Errorf("wrapped: %w", full), nil)
	if st.Code() != codes.FailedPrecondition || len(st.Details()) != 5 || !strings.Contains(fmt.Sprint(st.Details()[0]), "FAILED_PRECONDITION") {
		t.Fatalf("%v", st.Details())
	}
	if rest.HTTPStatus(st.Code()) != http.StatusBadRequest {
		t.Fatal(st.Code())
	}
}

// TestPage walks a list over both transports.
func TestPages(t *testing.T) {
	s := serve(t)
	for i := range 7 {
		body := strings.ReplaceAll(documentBody, "example-environment", fmt.Sprintf("e%d", i))
		if a := s.do("POST", location+"/environments", body); a.StatusCode != 200 {
			t.Fatalf("%s", a.body)
		}
	}
	var names []string
	for token, n := "", 0; ; n++ {
		a := s.do("GET", location+"/environments?pageSize=3&pageToken="+token, "")
		for i := range 3 {
			if name, ok := a.at("environments", i, "name").(string); ok {
				names = append(names, name)
			}
		}
		next, _ := a.at("nextPageToken").(string)
		if token = next; token == "" || n > 5 {
			break
		}
	}
	if len(names) != 7 || !slices.IsSorted(names) {
		t.Fatalf("%q", names)
	}
}

// TestClose: streams that are open do not keep a server from ending.
func TestClose(t *testing.T) {
	s := serve(t)
	stream, err := grpc_reflection_v1.NewServerReflectionClient(s.dial()).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	// The fixture's clean-up closes the server while the stream is open.
}

func BenchmarkREST(b *testing.B) {
	s := serve(b)
	for i := range 1000 {
		body := strings.ReplaceAll(documentBody, "example-environment", fmt.Sprintf("e%03d", i))
		if a := s.do("POST", location+"/environments", body); a.StatusCode != 200 {
			b.Fatalf("%s", a.body)
		}
	}
	for name, path := range map[string]string{
		"get":      "/v1/" + parent + "/environments/e001",
		"list30":   location + "/environments?pageSize=30",
		"list1000": location + "/environments?pageSize=1000&prettyPrint=false",
		"pretty":   location + "/environments?pageSize=1000",
		"fields":   location + "/environments?pageSize=1000&fields=environments/name",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				response, err := s.client.Get("http://" + s.addr + path)
				if err != nil || response.StatusCode != 200 {
					b.Fatal(err)
				}
				drain(response)
			}
		})
	}
}

func drain(r *http.Response) {
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
}
