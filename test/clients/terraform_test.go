package clients

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	composerv1 "google.golang.org/api/composer/v1"
	composerbeta "google.golang.org/api/composer/v1beta1"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"

	"sordino/internal/testwait"
)

// step is one request of a recording. The files in testdata/terraform hold what
// Terraform's google and google-beta providers sent, polling left out;
// composer2.jsonl was written after the provider's source.
type step struct {
	Scenario string          `json:"scenario"`
	Method   string          `json:"method"`
	Path     string          `json:"path"`
	Query    string          `json:"query"`
	Body     json.RawMessage `json:"body"`
	// Refused is in the message of the answer, Fails in that of the operation.
	Refused string `json:"refused"`
	Fails   string `json:"fails"`
}

// TestTerraform replays what the providers sent with the client that they are
// built on, and reads the answers as they do.
func TestTerraform(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "terraform", "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no recordings: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := &provider{t: t, server: start(t)}
			for lines := json.NewDecoder(bytes.NewReader(text)); lines.More(); {
				var s step
				if err := lines.Decode(&s); err != nil {
					t.Fatal(err)
				}
				p.replay(s)
				if t.Failed() {
					t.Fatalf("at %q: %s %s?%s", s.Scenario, s.Method, s.Path, s.Query)
				}
			}
		})
	}
}

// provider is as much of a Terraform provider as the recordings need. It is an
// http.RoundTripper that compares what the client sends with what was recorded.
type provider struct {
	t *testing.T
	*server
	step     step
	compared bool
	got      []byte // the last answer
	// want is the environment as the configuration has it.
	want map[string]any
}

func (p *provider) RoundTrip(r *http.Request) (*http.Response, error) {
	if !p.compared {
		p.compared = true
		if path := strings.ReplaceAll(r.URL.EscapedPath(), "%2F", "/"); r.Method != p.step.Method || path != p.step.Path || !sameQuery(r.URL.RawQuery, p.step.Query) {
			p.t.Errorf("the client sends %s %s?%s", r.Method, path, r.URL.RawQuery)
		}
		if len(p.step.Body) > 0 {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !sameJSON(body, p.step.Body) {
				p.t.Errorf("the client sends %s", body)
			}
		}
	}
	response, err := bearer{p.Token, p.HTTP.Transport}.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	p.got, err = io.ReadAll(response.Body)
	response.Body.Close()
	response.Body = io.NopCloser(bytes.NewReader(p.got))
	return response, err
}

func sameQuery(a, b string) bool {
	x, errX := url.ParseQuery(a)
	y, errY := url.ParseQuery(b)
	return errX == nil && errY == nil && reflect.DeepEqual(x, y)
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

func (p *provider) replay(s step) {
	p.step, p.compared = s, false
	prefix, _, _ := strings.Cut(s.Path, "/projects/")
	prefix, version := prefix[:strings.LastIndex(prefix, "/")], prefix[strings.LastIndex(prefix, "/")+1:]
	o := []option.ClientOption{option.WithEndpoint(p.URL + prefix + "/"), option.WithHTTPClient(&http.Client{Transport: p, Timeout: time.Minute})}
	name := strings.TrimPrefix(s.Path, prefix+"/"+version+"/")
	query, err := url.ParseQuery(s.Query)
	if err != nil {
		p.t.Fatal(err)
	}
	var operation, failure string
	if version == "v1" {
		operation, failure, err = p.callV1(s, o, name, query)
	} else {
		operation, failure, err = p.callBeta(s, o, name, query)
	}
	if s.Refused != "" {
		var api *googleapi.Error
		if !errors.As(err, &api) || !strings.Contains(api.Message, s.Refused) || len(api.Details) == 0 {
			p.t.Errorf("want a refusal that says %q: %v", s.Refused, err)
		}
		return
	}
	if err != nil {
		p.t.Error(err)
		return
	}
	if s.Fails != "" != (failure != "") || !strings.Contains(failure, s.Fails) {
		p.t.Errorf("the operation %s ends with %q, want %q", operation, failure, s.Fails)
	}
	switch s.Method {
	case "POST":
		p.want = nil
		if err := json.Unmarshal(s.Body, &p.want); err != nil {
			p.t.Fatal(err)
		}
	case "PATCH":
		var body map[string]any
		if err := json.Unmarshal(s.Body, &body); err != nil {
			p.t.Fatal(err)
		}
		var path []string
		for _, part := range strings.Split(query.Get("updateMask"), ".") {
			path = append(path, strings.ToLower(part[:1])+part[1:]) // config.WorkloadsConfig
		}
		replace(p.want, body, path)
	case "GET":
		if strings.Contains(s.Path, "/environments/") {
			p.checkPlan()
		}
	}
}

// callV1 and callBeta make a request as the provider does, and wait for the
// operation.
func (p *provider) callV1(s step, o []option.ClientOption, name string, query url.Values) (operation, failure string, err error) {
	c, err := composerv1.NewService(p.t.Context(), o...)
	if err != nil {
		p.t.Fatal(err)
	}
	var e composerv1.Environment
	if len(s.Body) > 0 {
		if err := json.Unmarshal(s.Body, &e); err != nil {
			p.t.Fatal(err)
		}
	}
	var op *composerv1.Operation
	switch environments := c.Projects.Locations.Environments; s.Method {
	case "POST":
		op, err = environments.Create(strings.TrimSuffix(name, "/environments"), &e).Do()
	case "PATCH":
		op, err = environments.Patch(name, &e).UpdateMask(query.Get("updateMask")).Do()
	case "DELETE":
		op, err = environments.Delete(name).Do()
	default:
		_, err = environments.Get(name).Do()
		return "", "", err
	}
	if err == nil && op.Done {
		p.t.Errorf("the operation %s has ended before it began", op.Name)
	}
	p.poll(func() bool {
		if err == nil && !op.Done {
			op, err = c.Projects.Locations.Operations.Get(op.Name).Do()
		}
		return err != nil || op.Done
	})
	if err != nil {
		return "", "", err
	}
	if op.Error != nil {
		failure = op.Error.Message
	}
	return op.Name, failure, nil
}

func (p *provider) callBeta(s step, o []option.ClientOption, name string, query url.Values) (operation, failure string, err error) {
	c, err := composerbeta.NewService(p.t.Context(), o...)
	if err != nil {
		p.t.Fatal(err)
	}
	var e composerbeta.Environment
	if len(s.Body) > 0 {
		if err := json.Unmarshal(s.Body, &e); err != nil {
			p.t.Fatal(err)
		}
	}
	var op *composerbeta.Operation
	environments := c.Projects.Locations.Environments
	switch {
	case strings.HasSuffix(name, "/imageVersions"):
		p.compared = true // the provider makes this request by hand
		list, err := c.Projects.Locations.ImageVersions.List(strings.TrimSuffix(name, "/imageVersions")).Do()
		if err == nil && (len(list.ImageVersions) == 0 || list.NextPageToken != "") {
			p.t.Errorf("the provider reads one page, and gets %s", p.got)
		}
		return "", "", err
	case s.Method == "POST":
		op, err = environments.Create(strings.TrimSuffix(name, "/environments"), &e).Do()
	case s.Method == "PATCH":
		op, err = environments.Patch(name, &e).UpdateMask(query.Get("updateMask")).Do()
	case s.Method == "DELETE":
		op, err = environments.Delete(name).Do()
	default:
		_, err = environments.Get(name).Do()
		return "", "", err
	}
	p.poll(func() bool {
		if err == nil && !op.Done {
			op, err = c.Projects.Locations.Operations.Get(op.Name).Do()
		}
		return err != nil || op.Done
	})
	if err != nil {
		return "", "", err
	}
	if op.Error != nil {
		failure = op.Error.Message
	}
	return op.Name, failure, nil
}

func (p *provider) poll(done func() bool) {
	p.t.Helper()
	testwait.Until(p.t, 2*time.Minute, 20*time.Millisecond, func() error {
		if !done() {
			return errors.New("the operation has not ended")
		}
		return nil
	})
}

// replace puts the field at a path as it is in another object; not there means
// cleared.
func replace(to, from map[string]any, path []string) {
	value, given := from[path[0]]
	if len(path) == 1 {
		if delete(to, path[0]); given {
			to[path[0]] = value
		}
		return
	}
	inner, _ := to[path[0]].(map[string]any)
	if inner == nil {
		inner = map[string]any{}
		to[path[0]] = inner
	}
	next, _ := value.(map[string]any)
	replace(inner, next, path[1:])
}

// What a plan is sensitive to when the configuration leaves it out.
var (
	// planFree may come back, or not: the provider takes what it reads.
	planFree = []string{
		"uuid", "state", "createTime", "updateTime",
		"config.gkeCluster", "config.dagGcsPrefix", "config.airflowUri", "config.nodeCount", "config.environmentSize",
		"config.privateEnvironmentConfig", "config.databaseConfig", "config.webServerConfig",
		"config.nodeConfig.location", "config.nodeConfig.machineType", "config.nodeConfig.diskSizeGb", "config.nodeConfig.oauthScopes",
		"config.nodeConfig.maxPodsPerNode", "config.softwareConfig.pythonVersion",
	}
	// planBroken would replace the environment, be a change in every plan, or be
	// an error. Every field that is in neither list is looked at as these are.
	planBroken = []string{
		"config.nodeConfig.ipAllocationPolicy.clusterIpv4CidrBlock", "config.nodeConfig.ipAllocationPolicy.servicesIpv4CidrBlock",
		"config.nodeConfig.ipAllocationPolicy.clusterSecondaryRangeName", "config.nodeConfig.ipAllocationPolicy.servicesSecondaryRangeName",
		"config.nodeConfig.tags", "config.masterAuthorizedNetworksConfig", "config.recoveryConfig",
		"config.softwareConfig.airflowConfigOverrides", "config.softwareConfig.envVariables", "config.softwareConfig.pypiPackages",
		"config.softwareConfig.webServerPluginsMode", "config.nodeConfig.composerNetworkAttachment",
		"config.nodeConfig.composerInternalIpv4CidrBlock", "config.workloadsConfig.dagProcessor",
	}
	// planNeeds must be there.
	planNeeds = []string{"name", "config.softwareConfig.imageVersion"}
)

// checkPlan looks at a read as a second plan does: it must be empty.
func (p *provider) checkPlan() {
	var got map[string]any
	if err := json.Unmarshal(p.got, &got); err != nil {
		p.t.Fatal(err)
	}
	for _, field := range planNeeds {
		if text, _ := (answer{json: got}).at(strings.Split(field, ".")...).(string); text == "" {
			p.t.Errorf("the provider does not work without %s", field)
		}
	}
	if p.step.Scenario == "a create that fails" {
		// In CREATING the provider would leave it behind; in any other state it
		// deletes it.
		if got["state"] != "ERROR" {
			p.t.Errorf("what could not be created is %v", got["state"])
		}
	}
	for _, difference := range planDifferences("", p.want, got) {
		p.t.Errorf("the second plan is not empty: %s", difference)
	}
}

func planDifferences(path string, want, got map[string]any) (list []string) {
	for key, asked := range want {
		field := strings.TrimPrefix(path+"."+key, ".")
		is, there := got[key]
		inner, isMap := asked.(map[string]any)
		isInner, isIsMap := is.(map[string]any)
		switch {
		case isMap && (isIsMap || !there): // an empty message may be left out
			list = append(list, planDifferences(field, inner, isInner)...)
		case !there:
			list = append(list, fmt.Sprintf("%s is %v in the configuration, and does not come back", field, asked))
		case !reflect.DeepEqual(asked, is):
			// The provider takes a size and a range of that size for the same.
			if size, _ := asked.(string); strings.HasPrefix(size, "/") && strings.HasSuffix(fmt.Sprint(is), size) {
				continue
			}
			list = append(list, fmt.Sprintf("%s is %v in the configuration, and comes back as %v", field, asked, is))
		}
	}
	for key, is := range got {
		if _, asked := want[key]; asked {
			continue
		}
		field := strings.TrimPrefix(path+"."+key, ".")
		inner, isMap := is.(map[string]any)
		switch {
		case slices.ContainsFunc(planFree, func(free string) bool { return field == free || strings.HasPrefix(field, free+".") }):
		case isMap && !slices.Contains(planBroken, field) && slices.ContainsFunc(planFree, func(free string) bool { return strings.HasPrefix(free, field+".") }):
			list = append(list, planDifferences(field, nil, inner)...)
		default:
			list = append(list, fmt.Sprintf("%s is not in the configuration, and comes back as %v", field, is))
		}
	}
	return list
}

// TestPlanDifferences: the check finds what it is for.
func TestPlanDifferences(t *testing.T) {
	t.Parallel()
	want := map[string]any{"name": "e", "config": map[string]any{"nodeConfig": map[string]any{"ipAllocationPolicy": map[string]any{"useIpAliases": true}}}}
	for _, field := range append(slices.Clone(planBroken), planFree...) {
		got := map[string]any{}
		copyOf, err := json.Marshal(want)
		if err != nil || json.Unmarshal(copyOf, &got) != nil {
			t.Fatal(err)
		}
		path := strings.Split(field, ".")
		extra := map[string]any{}
		replaceDeep(extra, path, "x")
		replace(got, extra, path)
		if found := planDifferences("", want, got); (len(found) > 0) != slices.Contains(planBroken, field) {
			t.Errorf("%s: %q", field, found)
		}
	}
	if found := planDifferences("", want, map[string]any{"name": "e"}); len(found) == 0 {
		t.Error("what is lost is not found")
	}
}

func replaceDeep(to map[string]any, path []string, value any) {
	for _, part := range path[:len(path)-1] {
		next := map[string]any{}
		to[part] = next
		to = next
	}
	to[path[len(path)-1]] = value
}
