package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment"
)

// request is one request as a client sent it. testdata/requests.jsonl was
// recorded from gcloud and from Terraform's google and google-beta providers,
// of several versions; polling is left out.
type request struct {
	Client string          `json:"client"`
	Case   string          `json:"case"`
	Method string          `json:"method"`
	Path   string          `json:"path"`
	Query  string          `json:"query"`
	Body   json.RawMessage `json:"body"`
	// Want is the HTTP status; 0 is 200. Message is in the answer's message.
	Want    int    `json:"want"`
	Message string `json:"message"`
}

func recorded(t testing.TB) []request {
	t.Helper()
	b, err := os.ReadFile("testdata/requests.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var list []request
	for scanner := bufio.NewScanner(bytes.NewReader(b)); scanner.Scan(); {
		var r request
		if err := json.Unmarshal(scanner.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

var (
	environmentIn = regexp.MustCompile(`(projects/[^/]+/locations/[^/]+)/environments/([^/:]+)`)
	operationIn   = regexp.MustCompile(`(projects/[^/]+/locations/[^/]+)/operations/([^/:]+)`)
)

// seed puts in place what a request is about.
func (m *memory) seed(t *testing.T, path string) {
	t.Helper()
	m.mu.Lock()
	fresh := newMemory()
	m.environments, m.operations, m.asked, m.ids, m.masks = fresh.environments, fresh.operations, fresh.asked, 0, nil
	m.mu.Unlock()
	name := ""
	if found := environmentIn.FindString(path); found != "" {
		name = found
	} else if found := operationIn.FindStringSubmatch(path); found != nil {
		name = found[1] + "/environments/seed"
	}
	if name == "" {
		return
	}
	n, err := environment.ParseName(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Create(context.Background(), environment.CreateRequest{Parent: n.Location, Name: n, Spec: environment.Spec{
		Config: &servicepb.EnvironmentConfig{SoftwareConfig: &servicepb.SoftwareConfig{ImageVersion: "composer-1.20.12-airflow-1.10.15"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRecordedRequests(t *testing.T) {
	s := serve(t)
	for i, r := range recorded(t) {
		t.Run(fmt.Sprintf("%03d_%s_%s", i, r.Client, r.Method), func(t *testing.T) {
			s.seed(t, r.Path)
			a := s.do(r.Method, r.Path+"?"+r.Query, string(r.Body))
			want := r.Want
			if want == 0 {
				want = 200
			}
			if a.StatusCode != want {
				t.Fatalf("%s\n%s %s?%s\n%s\nanswered %d, want %d: %s", r.Case, r.Method, r.Path, r.Query, r.Body, a.StatusCode, want, a.body)
			}
			if r.Message != "" {
				if message, _ := a.at("error", "message").(string); !strings.Contains(message, r.Message) {
					t.Fatalf("the message is %q, want %q in it", message, r.Message)
				}
			}
			if want != 200 {
				return
			}
			// prettyPrint=false, as Terraform asks.
			if pretty := bytes.Contains(a.body, []byte("\n  ")); len(a.json) > 0 && pretty == strings.Contains(r.Query, "prettyPrint=false") {
				t.Errorf("pretty is %v for %s", pretty, r.Query)
			}
			switch {
			case r.Method == "POST" && strings.HasSuffix(r.Path, "/environments"):
				var sent map[string]any
				if err := json.Unmarshal(r.Body, &sent); err != nil {
					t.Fatal(err)
				}
				version := regexp.MustCompile(`v1(beta1|alpha2)?/projects`).FindString(r.Path)
				got := s.do("GET", "/"+strings.TrimSuffix(version, "/projects")+"/"+sent["name"].(string), "")
				if got.StatusCode != 200 {
					t.Fatalf("%d %s", got.StatusCode, got.body)
				}
				compare(t, "", sent, got.json)
			case r.Method == "PATCH":
				query, err := url.ParseQuery(r.Query)
				if err != nil {
					t.Fatal(err)
				}
				if want := strings.Split(query.Get("updateMask"), ","); len(s.masks) != 1 || !reflect.DeepEqual(s.masks[0], want) {
					t.Fatalf("the mask came as %q, want %q", s.masks, want)
				}
			}
		})
	}
}

// additionsAllowed are what a client may get back without having sent it: a
// second plan of Terraform's stays empty, and gcloud finds what it reads.
var additionsAllowed = map[string]bool{
	"uuid": true, "state": true, "createTime": true, "updateTime": true,
	"config": true, "config.nodeCount": true,
	"config.softwareConfig": true, "config.softwareConfig.imageVersion": true, "config.softwareConfig.pythonVersion": true,
	"config.nodeConfig": true, "config.nodeConfig.maxPodsPerNode": true, "config.nodeConfig.location": true, "config.nodeConfig.machineType": true,
	"config.nodeConfig.diskSizeGb": true, "config.nodeConfig.oauthScopes": true,
	"config.databaseConfig": true, "config.databaseConfig.machineType": true,
	"config.webServerConfig": true, "config.webServerConfig.machineType": true,
	"config.gkeCluster": true, "config.privateEnvironmentConfig.enablePrivateEnvironment": true,
	"config.privateEnvironmentConfig.webServerIpv4ReservedRange":                   true,
	"config.privateEnvironmentConfig.privateClusterConfig.masterIpv4ReservedRange": true,
}

// compare looks at everything that was sent, which must come back as it was,
// and at everything that comes back, which must have been sent.
func compare(t *testing.T, path string, sent, got any) {
	t.Helper()
	sentMap, isMap := sent.(map[string]any)
	if !isMap {
		if text, ok := sent.(string); ok { // the same time of the day
			sent = strings.Replace(text, "+00:00", "Z", 1)
		}
		if !reflect.DeepEqual(sent, got) {
			t.Errorf("%s was sent as %v and came back as %v", path, sent, got)
		}
		return
	}
	gotMap, _ := got.(map[string]any)
	place := func(key string) string { return strings.TrimPrefix(path+"."+key, ".") }
	for key, value := range sentMap {
		if _, there := gotMap[key]; !there {
			t.Errorf("%s was sent and did not come back", place(key))
			continue
		}
		compare(t, place(key), value, gotMap[key])
	}
	for key, value := range gotMap {
		if _, given := sentMap[key]; given {
			continue
		}
		if !additionsAllowed[place(key)] {
			t.Errorf("%s was not sent and came back as %v", place(key), value)
		} else if inner, ok := value.(map[string]any); ok {
			compare(t, place(key), map[string]any{}, inner)
		}
	}
}
