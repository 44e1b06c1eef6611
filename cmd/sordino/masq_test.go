package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	masqv1 "sordino/api/sordino/masq/v1"
	"sordino/client"
)

// object is a JSON answer, to be walked.
type object map[string]any

func (o object) at(path ...any) any {
	var v any = map[string]any(o)
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// detail is the detail of an error of a type.
func (o object) detail(kind string) object {
	details, _ := o.at("error", "details").([]any)
	for _, d := range details {
		if m := d.(map[string]any); m["@type"] == "type.googleapis.com/google.rpc."+kind {
			return m
		}
	}
	return nil
}

func (s *serving) json(t *testing.T, method, path, body string) (int, object) {
	t.Helper()
	code, text, _ := s.ask(t, method, path, s.token, body)
	var o object
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return code, o
}

func (s *serving) wait(t *testing.T, operation string) object {
	t.Helper()
	var o object
	eventually(t, func() error {
		var code int
		if code, o = s.json(t, "GET", "/v1/"+operation, ""); code != 200 || o["done"] != true {
			return fmt.Errorf("%d %v", code, o)
		}
		return nil
	})
	return o
}

func TestMasqAgentsAPI(t *testing.T) {
	s := serveHere(t, nil)
	const location = "/v1/projects/p/locations/us-central1"
	const e, agent = location + "/environments/e", location + "/environments/e/masqAgent"
	create := func(id, config string) {
		t.Helper()
		code, op := s.json(t, "POST", location+"/environments", fmt.Sprintf(`{"name": "projects/p/locations/us-central1/environments/%s", %s}`, id, config))
		if code != 200 {
			t.Fatal(op)
		}
		if ended := s.wait(t, op["name"].(string)); ended["error"] != nil {
			t.Fatal(ended)
		}
	}
	create("e", `"config": {"nodeConfig": {"enableIpMasqAgent": true, "ipAllocationPolicy": {"useIpAliases": true}}}`)
	create("plain", `"config": {}`)

	_, got := s.json(t, "GET", agent, "")
	if got["inForce"] != true || got["etag"] != "1" || got.at("automaticExemptions", 1, "kind") != "Pod" || got.at("nodes", 2, "ready") != true ||
		!strings.Contains(fmt.Sprint(got["proof"]), "was seen as 10.128.0.2") || got["proofTime"] == nil {
		t.Fatalf("%v", got)
	}
	good := `{"config": "nonMasqueradeCIDRs: [10.0.0.0/8]"`
	for _, tc := range []struct {
		what, method, path, body string
		code                     int
		status, reason, field    string
	}{
		{"unknown environment", "GET", location + "/environments/nope/masqAgent", "", 404, "NOT_FOUND", "ENVIRONMENT_NOT_FOUND", ""},
		{"environment without the agent", "GET", location + "/environments/plain/masqAgent", "", 400, "FAILED_PRECONDITION", "MASQ_AGENT_NOT_ENABLED", ""},
		{"configure what is not there", "PATCH", location + "/environments/plain/masqAgent", good + "}", 400, "FAILED_PRECONDITION", "MASQ_AGENT_NOT_ENABLED", ""},
		{"not the stored one any more", "PATCH", agent, good + `, "etag": "9"}`, 409, "ABORTED", "", ""},
		{"no etag of this server", "PATCH", agent, good + `, "etag": "x"}`, 400, "INVALID_ARGUMENT", "ETAG_MALFORMED", "masq_agent.etag"},
		{"uncovers the cluster", "PATCH", agent, `{"config": "nonMasqueradeCIDRs: [192.168.0.0/16]"}`, 400, "INVALID_ARGUMENT", "AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE", "masq_agent.config"},
		{"no configuration", "PATCH", agent, `{"config": "nonMasqueradeCIDRs: 7"}`, 400, "INVALID_ARGUMENT", "AGENT_CONFIG_INVALID", "masq_agent.config"},
		{"plan no configuration", "POST", agent + ":plan", `{"config": "nonMasqueradeCIDRs: 7"}`, 400, "INVALID_ARGUMENT", "AGENT_CONFIG_INVALID", "config"},
		{"no change", "PATCH", agent, `{"config": ""}`, 400, "INVALID_ARGUMENT", "UPDATE_HAS_NO_EFFECT", "masq_agent.config"},
		{"no addresses", "GET", agent + ":explain?source=a&destination=10.0.0.1", "", 400, "INVALID_ARGUMENT", "ADDRESS_MALFORMED", "source"},
		{"families", "GET", agent + ":explain?source=10.0.0.1&destination=fd00::1", "", 400, "INVALID_ARGUMENT", "ADDRESS_FAMILIES_DIFFER", "destination"},
		{"port", "GET", agent + ":explain?source=10.0.0.1&destination=10.0.0.2&destinationPort=70000", "", 400, "INVALID_ARGUMENT", "PORT_OUT_OF_RANGE", "destination_port"},
		{"another field", "PATCH", agent, `{"configuration": ""}`, 400, "INVALID_ARGUMENT", "", ""},
		{"validateOnly of what cannot", "GET", agent + "?validateOnly=true", "", 400, "INVALID_ARGUMENT", "VALIDATE_ONLY_NOT_SUPPORTED", "validate_only"},
	} {
		code, o := s.json(t, tc.method, tc.path, tc.body)
		reason, field := o.detail("ErrorInfo")["reason"], o.detail("BadRequest").at("fieldViolations", 0, "field")
		if code != tc.code || o.at("error", "status") != tc.status || tc.reason != "" && reason != tc.reason || tc.field != "" && field != tc.field {
			t.Errorf("%s: %d, reason %v, field %v: %v; want %+v", tc.what, code, reason, field, o.at("error", "message"), tc)
		}
	}

	// Checked and planned, nothing changes.
	if code, o := s.json(t, "PATCH", agent+"?validateOnly=true", good+"}"); code != 200 || o["done"] != true || o["name"] != nil {
		t.Errorf("%d %v", code, o)
	}
	if code, o := s.json(t, "POST", agent+":plan", good+"}"); code != 200 || !strings.Contains(fmt.Sprint(o.at("nodes", 0, "changes")), "removed") || o.at("effectiveNonMasqueradeCidrs", 0) != "10.0.0.0/8" {
		t.Errorf("%d %v", code, o)
	}
	if _, o := s.json(t, "GET", agent, ""); o["etag"] != "1" {
		t.Errorf("%v", o)
	}

	// The same request id with the same content is the same operation.
	_, first := s.json(t, "PATCH", agent+"?requestId=r1", good+`, "etag": "1"}`)
	_, second := s.json(t, "PATCH", agent+"?requestId=r1", good+`, "etag": "1"}`)
	if first["name"] == nil || first["name"] != second["name"] {
		t.Fatalf("%v\n%v", first, second)
	}
	if op := s.wait(t, first["name"].(string)); op["error"] != nil || op.at("response", "state") != "RUNNING" || op.at("metadata", "state") != "SUCCEEDED" {
		t.Errorf("%v", op)
	}
	if code, o := s.json(t, "PATCH", agent+"?requestId=r1", `{"config": "nonMasqueradeCIDRs: [10.0.0.0/8, 203.0.113.0/24]"}`); code != 400 {
		t.Errorf("the id with another content: %d %v", code, o)
	}
	if _, o := s.json(t, "GET", agent, ""); o["etag"] != "2" || o["config"] != "nonMasqueradeCIDRs: [10.0.0.0/8]" || o["inForce"] != true || o.at("nodes", 1, "configGeneration") != "2" {
		t.Errorf("%v", o)
	}
	if code, o := s.json(t, "GET", agent+":explain?source=10.16.0.2&destination=203.0.113.10&protocol=tcp&destinationPort=443", ""); code != 200 ||
		o.at("nodes", 0, "action") != "masquerade" || o.at("nodes", 0, "seenAs") != "10.128.0.2" || o.at("nodes", 0, "sourceIsHere") != true || o.at("nodes", 1, "sourceIsHere") == true {
		t.Errorf("%d %v", code, o)
	}

	// A node rejects what the server could not know: all go back.
	_, op := s.json(t, "PATCH", agent, `{"config": "snatAddress: 192.0.2.77"}`)
	op = s.wait(t, op["name"].(string))
	if op.at("error", "code") != 9.0 || !strings.Contains(fmt.Sprint(op.at("error", "message")), "node-1 rejects the agent's configuration, and keeps the last good one: ip-masq-agent:1:14: snatAddress 192.0.2.77/32: this node has no address in it") {
		t.Errorf("%v", op)
	}
	if _, o := s.json(t, "GET", agent, ""); o["config"] != "nonMasqueradeCIDRs: [10.0.0.0/8]" || o["inForce"] != true {
		t.Errorf("%v", o)
	}
	if _, o := s.json(t, "GET", e, ""); o["state"] != "RUNNING" {
		t.Errorf("%v", o)
	}

	// Over gRPC it is the same.
	c, err := client.New(t.Context(), client.Options{Server: s.url, Token: s.token})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const name = "projects/p/locations/us-central1/environments/e/masqAgent"
	if a, err := c.Masq.GetMasqAgent(t.Context(), &masqv1.GetMasqAgentRequest{Name: name}); err != nil || !a.InForce || len(a.Nodes) != 3 || a.Proof == "" {
		t.Errorf("%v %v", a, err)
	}
	if _, err := c.Masq.GetMasqAgent(t.Context(), &masqv1.GetMasqAgentRequest{Name: "projects/p/locations/us-central1/environments/e"}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if _, err := c.Masq.UpdateMasqAgent(t.Context(), &masqv1.UpdateMasqAgentRequest{MasqAgent: &masqv1.MasqAgent{Name: name, Etag: "1"}}); status.Code(err) != codes.Aborted {
		t.Error(err)
	}
	if op, err := c.Masq.UpdateMasqAgent(t.Context(), &masqv1.UpdateMasqAgentRequest{MasqAgent: &masqv1.MasqAgent{Name: name}, ValidateOnly: true}); err != nil || !op.Done || op.Name != "" {
		t.Errorf("%v %v", op, err)
	}

	t.Run("signals reach the command", func(t *testing.T) {
		s.point(t)
		cmd := users[0].command(t, "environments", "run", "e", "--", "sh", "-c", `trap 'echo int' INT; trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do read x; done`)
		for _, name := range []string{"SORDINO_SERVER", "SORDINO_TOKEN_FILE", "SORDINO_PROJECT", "CLOUDSDK_COMPOSER_LOCATION"} {
			cmd.Env = append(cmd.Env, name+"="+envOr(name, ""))
		}
		in, out := pipes(t, cmd)
		expect(t, out, "ready\n")
		for _, s := range []struct {
			signal syscall.Signal
			answer string
		}{{syscall.SIGUSR1, "usr1\n"}, {syscall.SIGINT, "int\n"}, {syscall.SIGTERM, "term\n"}} {
			if err := cmd.Process.Signal(s.signal); err != nil {
				t.Fatal(err)
			}
			// The shell's read goes on after a trap only with a line.
			if _, err := io.WriteString(in, "\n"); err != nil {
				t.Fatal(err)
			}
			expect(t, out, s.answer)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
			t.Error(err)
		}
	})
}

// cancelling ends a context when something is written.
type cancelling struct {
	bytes.Buffer
	at     string
	cancel func()
}

func (c *cancelling) Write(b []byte) (int, error) {
	if strings.Contains(string(b), c.at) {
		c.cancel()
	}
	return c.Buffer.Write(b)
}

// Ctrl-C ends the waiting, not the operation, and says so.
func TestInterruptedWait(t *testing.T) {
	s := serveHere(t, func(o *serveOptions) {
		o.agentBinary, o.changeWithin = program(t, "exec cat"), 5*time.Minute // it is ended before
	})
	s.point(t)
	ctx, cancel := context.WithCancel(t.Context())
	stderr := &cancelling{at: "start the agents", cancel: cancel}
	var stdout bytes.Buffer
	code := run(ctx, []string{"environments", "create", "e", "--enable-ip-alias", "--enable-ip-masq-agent"}, strings.NewReader(""), &stdout, stderr)
	if want := "sordino: interrupted: no longer waiting for the operation, which goes on: projects/p/locations/us-central1/operations/"; code != 130 || !strings.Contains(stderr.String(), want) {
		t.Errorf("%d %s", code, stderr)
	}
	expectCommand(t, 0, "CREATING", "", "", "environments", "list")
	// A server that ends in the middle of it parks it; the next one goes on.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	again := serveHere(t, func(o *serveOptions) { o.data = s.data; o.agentBinary = filepath.Join(programs, "ip-masq-agent") })
	again.point(t)
	eventually(t, func() error {
		if a := command(t, "", "environments", "list"); !strings.Contains(a.stdout, "RUNNING") {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
}
