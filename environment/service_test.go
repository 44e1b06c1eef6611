package environment_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/encoding/protojson"

	"sordino/agentconfig"
	"sordino/environment"
	"sordino/environment/image"
	"sordino/networks"
	"sordino/store/storetest"
)

const networksFile = `
networks:
  - project: host-project
    name: shared-net
    sharedWith: [example-project]
    subnetworks:
      - name: shared-sub
        region: us-central1
        primary: 10.10.0.0/20
        secondary:
          - {name: pods, range: 10.20.0.0/16}
          - {name: services, range: 10.30.0.0/20}
`

// fixture is a service on a database of its own, with a clock that stands and
// ids that count.
type fixture struct {
	*environment.Service
	t     *testing.T
	now   time.Time
	ids   int
	woken []environment.Name
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	declared, err := networks.Parse("networks.yaml", []byte(networksFile))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	f.Service = environment.NewService(environment.Options{
		Store: storetest.Open(t), Networks: declared, Images: image.Default(), CheckAgentConfig: agentconfig.Check,
		Wake: func(n environment.Name) { f.woken = append(f.woken, n) },
		Now:  func() time.Time { return f.now },
		NewID: func() string {
			f.ids++
			return fmt.Sprintf("%08d-0000-4000-8000-000000000000", f.ids)
		},
	})
	return f
}

var here = environment.Location{Project: "example-project", ID: "us-central1"}

func named(id string) environment.Name { return environment.Name{Location: here, ID: id} }

// spec reads an environment's JSON, with the two fields that only REST has
// behind it: "maxPodsPerNode=16", "networkingType=PRIVATE".
func spec(t testing.TB, text string, rest ...string) environment.Spec {
	t.Helper()
	var m servicepb.Environment
	if err := protojson.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	s := environment.Spec{Config: m.Config, Labels: m.Labels, Storage: m.StorageConfig}
	for _, r := range rest {
		name, value, _ := strings.Cut(r, "=")
		switch name {
		case "maxPodsPerNode":
			if _, err := fmt.Sscan(value, &s.MaxPodsPerNode); err != nil {
				t.Fatal(err)
			}
		case "networkingType":
			s.NetworkingType = value
		}
	}
	return s
}

// documented is the request of the page that describes the agent.
const documented = `{"config":{"softwareConfig":{"imageVersion":"composer-1.20.12-airflow-1.10.15"},
	"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true},"enableIpMasqAgent":true}}}`

func (f *fixture) create(id, text string, rest ...string) (*environment.Operation, error) {
	f.t.Helper()
	return f.Create(context.Background(), environment.CreateRequest{Parent: here, Name: environment.Name{ID: id}, Spec: spec(f.t, text, rest...)})
}

// running makes an environment and ends its operation, as the reconciler does.
func (f *fixture) running(id, text string, rest ...string) *environment.Environment {
	f.t.Helper()
	op, err := f.create(id, text, rest...)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.end(op, environment.Running)
}

func (f *fixture) end(op *environment.Operation, state environment.State) *environment.Environment {
	f.t.Helper()
	var e *environment.Environment
	err := f.Store.Update(context.Background(), func(tx environment.Tx) (err error) {
		if e, err = tx.Environment(op.Target); err != nil {
			return err
		}
		e.State = state
		if err := tx.PutEnvironment(e); err != nil {
			return err
		}
		op.State, op.Ended, op.Result = environment.Succeeded, f.now, e
		return tx.PutOperation(op)
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return e
}

// update patches with a mask and a body.
func (f *fixture) update(id, mask, text string, rest ...string) (*environment.Operation, error) {
	f.t.Helper()
	var paths []string
	if mask != "" {
		paths = strings.Split(mask, ",")
	}
	return f.Update(context.Background(), environment.UpdateRequest{Name: named(id), Mask: paths, Spec: spec(f.t, text, rest...)})
}

// violations are an error's, one a line: field, reason, description.
func violations(err error) string {
	var e *environment.Error
	if !errors.As(err, &e) {
		if err != nil {
			return "not a refusal: " + err.Error()
		}
		return ""
	}
	var lines []string
	for _, v := range e.Violations {
		lines = append(lines, v.Field+" "+v.Reason+" "+v.Description)
	}
	if len(lines) == 0 {
		return e.Reason + " " + e.Message
	}
	return strings.Join(lines, "\n")
}

func reason(err error) string {
	var e *environment.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return fmt.Sprint(err)
}
