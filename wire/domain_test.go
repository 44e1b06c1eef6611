package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"sordino/agentconfig"
	"sordino/environment"
	"sordino/environment/image"
	"sordino/networks"
	"sordino/store"
	"sordino/store/storetest"
)

const networksFile = `
networks:
  - project: example-project
    name: default
    subnetworks:
      - name: default
        region: us-central1
        primary: 10.128.0.0/20
        secondary:
          - {name: svc, range: 10.200.0.0/20}
`

// domain is the real domain on a database on disk. What a reconciler does is
// done by settle, at once.
type domain struct {
	*served
	store *store.Store
}

func serveDomain(t *testing.T) *domain {
	t.Helper()
	declared, err := networks.Parse("networks.yaml", []byte(networksFile))
	if err != nil {
		t.Fatal(err)
	}
	d := &domain{store: storetest.Open(t)}
	ids := 0
	s := environment.NewService(environment.Options{
		Store: d.store, Networks: declared, Images: image.Default(), CheckAgentConfig: agentconfig.Check,
		Wake: func(environment.Name) {},
		Now:  func() time.Time { return start },
		NewID: func() string {
			ids++
			return fmt.Sprintf("%08d-0000-4000-8000-000000000000", ids)
		},
	})
	d.served = serve(t, func(o *Options) { o.Environments = s })
	return d
}

// settle ends everything that is under way, well.
func (d *domain) settle() {
	d.t.Helper()
	err := d.store.Update(context.Background(), func(tx environment.Tx) error {
		running, err := tx.Operations(environment.OperationQuery{Unfinished: true})
		if err != nil {
			return err
		}
		for _, o := range running {
			e, err := tx.Environment(o.Target)
			if err != nil {
				return err
			}
			o.State, o.Ended = environment.Succeeded, start
			if o.Type == environment.Delete {
				if err := tx.DeleteEnvironment(o.Target); err != nil {
					return err
				}
			} else {
				e.State = environment.Running
				o.Result = e
				if err := tx.PutEnvironment(e); err != nil {
					return err
				}
			}
			if err := tx.PutOperation(o); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

// TestTerraformSequences plays what the Terraform providers sent, in their
// order, and looks after each apply at what the next plan would compare.
func TestTerraformSequences(t *testing.T) {
	d := serveDomain(t)
	have := map[string]any{} // what was sent for the environment that is there
	for i, r := range recorded(t) {
		if r.Client != "terraform" || r.Method == "GET" {
			continue
		}
		// Its updates were recorded from the state that the scenario "full" leaves.
		if r.Case == "full-update" && r.Method != "PATCH" {
			continue
		}
		what := fmt.Sprintf("line %d, %s: %s %s?%s", i+1, r.Case, r.Method, r.Path, r.Query)
		if r.Method == "POST" && len(have) > 0 { // the recording had other servers between
			if a := d.do("DELETE", "/v1/"+example, ""); a.StatusCode != 200 {
				t.Fatalf("%d %s", a.StatusCode, a.body)
			}
			d.settle()
		}
		a := d.do(r.Method, r.Path+"?"+r.Query, string(r.Body))
		message, _ := a.at("error", "message").(string)
		if expected := refusals[r.Case+" "+r.Query[strings.LastIndexByte(r.Query, '=')+1:]]; expected != "" {
			if a.StatusCode != 400 || !strings.Contains(message, expected) {
				t.Errorf("%s\n%s\n%d %s, want 400 with %s", what, r.Body, a.StatusCode, message, expected)
			}
			continue
		}
		if a.StatusCode != 200 {
			t.Errorf("%s\n%s\n%d %s", what, r.Body, a.StatusCode, message)
			continue
		}
		d.settle()
		op := d.do("GET", "/v1beta1/"+a.at("name").(string), "")
		if op.at("done") != true || op.at("error") != nil {
			t.Fatalf("%s: %s", what, op.body)
		}
		var sent map[string]any
		_ = json.Unmarshal(r.Body, &sent)
		switch r.Method {
		case "DELETE":
			have = map[string]any{}
			if a := d.do("GET", "/v1beta1/"+example, ""); a.StatusCode != 404 {
				t.Fatalf("%s: %d %s", what, a.StatusCode, a.body)
			}
			continue
		case "POST":
			have = sent
		case "PATCH":
			query, _ := url.ParseQuery(r.Query)
			apply(have, sent, strings.Split(query.Get("updateMask"), "."))
		}
		compare(t, "", have, d.do("GET", "/v1beta1/"+example, "").json)
	}
}

// refusals are the recorded updates that are refused here, by scenario and
// mask: the other server took an image that never was, too short a maintenance
// window, and a change without effect, for which the provider looks for the
// words.
var refusals = map[string]string{
	"full-update config.softwareConfig.imageVersion": "composer-1.20.12-airflow-2.5.0",
	"full-update config.maintenanceWindow":           "It has to be at least 12 hours a week",
	"full-update config.softwareConfig.pypiPackages": "Update request does not result in any change to the environment's configuration",
}

// apply replaces what a mask names, or clears it when the body has none.
func apply(have, sent map[string]any, mask []string) {
	name := strings.ToLower(mask[0][:1]) + mask[0][1:]
	if len(mask) == 1 {
		delete(have, name)
		if value, ok := sent[name]; ok {
			have[name] = value
		}
		return
	}
	inner, _ := have[name].(map[string]any)
	if inner == nil {
		inner = map[string]any{}
		have[name] = inner
	}
	from, _ := sent[name].(map[string]any)
	apply(inner, from, mask[1:])
}

// TestDomainErrors: the domain's refusals as a person sees them.
func TestDomainErrors(t *testing.T) {
	d := serveDomain(t)
	plan := d.do("POST", location+"/environments?validateOnly=true", documentBody)
	if plan.StatusCode != 200 || plan.at("metadata", "plan", "ranges") == nil || plan.at("name") != nil {
		t.Fatalf("%d %s", plan.StatusCode, plan.body)
	}
	if a := d.do("GET", "/v1/"+example, ""); a.StatusCode != 404 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	first := d.do("POST", location+"/environments?requestId=11111111-2222-4333-8444-555555555555", documentBody)
	if first.StatusCode != 200 {
		t.Fatalf("%d %s", first.StatusCode, first.body)
	}
	for _, c := range []struct {
		what, method, path, body string
		code                     int
		reason                   string
	}{
		{"the same name", "POST", location + "/environments", documentBody, 409, "ENVIRONMENT_ALREADY_EXISTS"},
		{"an update while it is created", "PATCH", "/v1/" + example + "?updateMask=labels", `{"labels": {"a": "b"}}`, 409, "OPERATION_IN_PROGRESS"},
		{"the agent without aliases", "POST", location + "/environments", strings.NewReplacer(`"useIpAliases": true`, `"useIpAliases": false`, "example-environment", "other").Replace(documentBody), 400, "IP_MASQ_AGENT_REQUIRES_IP_ALIAS"},
		{"another location's name", "POST", "/v1/projects/example-project/locations/europe-west1/environments", documentBody, 400, "NAME_PARENT_MISMATCH"},
		{"one that is not there", "DELETE", "/v1/" + parent + "/environments/missing", "", 404, "ENVIRONMENT_NOT_FOUND"},
	} {
		a := d.do(c.method, c.path, c.body)
		if a.StatusCode != c.code || a.at("error", "details", 0, "reason") != c.reason || a.at("error", "details", 0, "domain") != Domain {
			t.Errorf("%s: %d, want %d %s: %s", c.what, a.StatusCode, c.code, c.reason, a.body)
		}
	}
	if a := d.do("DELETE", "/v1/"+example, ""); a.StatusCode != 409 || !strings.Contains(string(a.body), "operationInProgress") {
		t.Errorf("Terraform would not try again: %d %s", a.StatusCode, a.body)
	}
	again := d.do("POST", location+"/environments?requestId=11111111-2222-4333-8444-555555555555", documentBody)
	if again.StatusCode != 200 || again.at("name") != first.at("name") {
		t.Errorf("the same request id: %d %s", again.StatusCode, again.body)
	}
	d.settle()
	a := d.do("PATCH", "/v1/"+example+"?updateMask=config.nodeConfig.enableIpMasqAgent", `{"config": {"nodeConfig": {"enableIpMasqAgent": false}}}`)
	if a.StatusCode != 400 || a.at("error", "details", 0, "reason") != "FIELD_IMMUTABLE" {
		t.Errorf("disabling the agent: %d %s", a.StatusCode, a.body)
	}
	a = d.do("PATCH", "/v1/"+example+"?updateMask=config.nodeCount", `{"config": {"nodeCount": 3}}`)
	if message, _ := a.at("error", "message").(string); a.StatusCode != 400 || !strings.Contains(message, "Update request does not result in any change to the environment's configuration") {
		t.Errorf("no change: %d %s", a.StatusCode, a.body)
	}
	if a := d.do("GET", location+"/imageVersions?pageSize=1000", ""); a.StatusCode != 200 || a.at("imageVersions", 0, "imageVersionId") == nil {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}
