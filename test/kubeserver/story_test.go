package kubeserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sordino/internal/kubetest"
	"sordino/internal/testserver"
)

// The outside service is in 203.0.113.0/24, which the defaults do not exempt.
const (
	masked = "nonMasqueradeCIDRs: [10.88.0.0/16, 10.89.0.0/24, 10.96.0.0/16]\n"
	exempt = "nonMasqueradeCIDRs: [10.88.0.0/16, 10.89.0.0/24, 10.96.0.0/16, 203.0.113.0/24]\n"
)

// gcloud runs the real one against the server.
func (w *world) gcloud(args ...string) {
	w.t.Helper()
	cmd := w.client("gcloud", args...)
	home := w.t.TempDir()
	cmd.Env = append(cmd.Env, "HOME="+home, "CLOUDSDK_CONFIG="+filepath.Join(home, "gcloud"), "CLOUDSDK_CORE_DISABLE_PROMPTS=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("gcloud %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// last is the newest operation.
func (w *world) last() testserver.Operation {
	w.t.Helper()
	var list struct{ Operations []testserver.Operation }
	w.Get("/v1beta1/"+location+"/operations", &list)
	last := list.Operations[0]
	for _, o := range list.Operations {
		if o.Metadata.CreateTime.After(last.Metadata.CreateTime) {
			last = o
		}
	}
	return last
}

// steps logs how long each took.
func (w *world) steps(what string, o testserver.Operation) {
	var parts []string
	for _, s := range o.Metadata.Steps {
		parts = append(parts, fmt.Sprintf("%s %v (%s)", s.Name, s.EndTime.Sub(s.StartTime).Round(time.Millisecond), s.Detail))
	}
	w.t.Logf("%s took %v:\n\t%s", what, o.Metadata.EndTime.Sub(o.Metadata.CreateTime).Round(time.Millisecond), strings.Join(parts, "\n\t"))
}

// TestWithoutAgent makes an environment as Composer does by default. Its Pods
// are seen as themselves, and the agent cannot come later.
func TestWithoutAgent(t *testing.T) {
	w := newWorld(t)
	created := w.Succeeds(w.Accepted("POST", "/v1beta1/"+location+"/environments",
		fmt.Sprintf(`{"name": %q, "config": {"nodeConfig": {"ipAllocationPolicy": {"useIpAliases": true}}}}`, example)))
	w.steps("create", created)
	var e struct{ State string }
	if w.Get("/v1/"+example, &e); e.State != "RUNNING" {
		t.Fatalf("%+v", e)
	}
	pods := strings.Fields(cluster.Kubectl(t, "", "get", "pods", "-n", "sordino", "-l", "app=airflow-worker", "-o", `jsonpath={range .items[?(@.status.phase=="Running")]}{.status.podIP}{"\n"}{end}`))
	proof := created.Detail("prove it with a packet")
	if len(pods) != len(cluster.Nodes) || strings.Count(proof, " was seen as ") != len(pods) {
		t.Errorf("the workers have %v, and the proof is %q", pods, proof)
	}
	for _, pod := range pods {
		if want := fmt.Sprintf("%s was seen as %[1]s by %s (the agent is not enabled)", pod, kubetest.ServiceAddress); !strings.Contains(proof, want) {
			t.Errorf("%q is not in the proof: %q", want, proof)
		}
		if !slices.ContainsFunc(cluster.Service.Since(created.Metadata.CreateTime), func(s kubetest.Sighting) bool { return s.From.String() == pod }) {
			t.Errorf("the service outside did not see the worker %s", pod)
		}
	}
	if all := cluster.Kubectl(t, "", "get", "daemonsets,configmaps", "-A", "-o", "name"); strings.Contains(all, "ip-masq-agent") || !strings.Contains(all, "airflow-worker") {
		t.Errorf("there should be workers alone:\n%s", all)
	}
	for _, refused := range []struct{ method, path, body, reason string }{
		{"PATCH", "/v1beta1/" + example + "?updateMask=config.nodeConfig.enableIpMasqAgent", `{"config": {"nodeConfig": {"enableIpMasqAgent": true}}}`, "FIELD_IMMUTABLE"},
		{"PATCH", "/v1/" + example + "/masqAgent", fmt.Sprintf(`{"config": %q}`, masked), "MASQ_AGENT_NOT_ENABLED"},
	} {
		response, answer, err := w.Do(t.Context(), refused.method, refused.path, refused.body)
		if text := string(answer); err != nil || response.StatusCode != 400 || !strings.Contains(text, refused.reason) || !strings.Contains(text, "cannot be enabled for an existing environment") {
			t.Errorf("%s %s: %s (%v)", refused.method, refused.path, text, err)
		}
	}
	deleted := w.Succeeds(w.Accepted("DELETE", "/v1beta1/"+example, ""))
	w.steps("delete", deleted)
	if rules := deleted.Detail("take the rules away"); rules != "there is none" {
		t.Errorf("the rules of no agent: %q", rules)
	}
	w.free()
}

// TestStory is an environment's life: gcloud makes it and deletes it, and in
// between everything happens to it that happens to clusters.
func TestStory(t *testing.T) {
	w := newWorld(t)
	if _, err := exec.LookPath("gcloud"); err == nil {
		w.gcloud("composer", "environments", "create", "example-environment", "--location", "us-central1",
			"--image-version", "composer-1.20.12-airflow-1.10.15", "--enable-ip-alias", "--enable-ip-masq-agent")
	} else if os.Getenv("SORDINO_GCLOUD") == "required" {
		t.Fatal(err)
	} else {
		t.Log("gcloud is not installed here: the environment is made by HTTP")
		w.Succeeds(w.create())
	}
	created := w.last()
	w.steps("create", created)
	var e struct{ State, UUID string }
	if w.Get("/v1/"+example, &e); e.State != "RUNNING" {
		t.Fatalf("%+v", e)
	}
	m := w.inForce(3)
	asNodes := func(what string) {
		t.Helper()
		if !strings.Contains(m.Proof, "was seen as 10.89.0.1") || !strings.HasSuffix(m.Proof, "by 203.0.113.100; the Pods of 2 other nodes likewise") {
			t.Errorf("%s: %q", what, m.Proof)
		}
	}
	asNodes("the proof with the defaults")
	if n := m.Nodes[1]; n.Name != "n2" || n.Address != "10.89.0.12" || n.PodCIDR != "10.88.2.0/24" || n.Hash == "" {
		t.Errorf("a node: %+v", n)
	}

	// Another configuration, and back.
	configured := w.Succeeds(w.configure(exempt))
	w.steps("configure", configured)
	if m = w.inForce(3); !strings.Contains(m.Proof, "kept its own address towards 203.0.113.100") || !strings.Contains(m.Proof, "the masquerade itself is not proven") {
		t.Errorf("exempt: %q", m.Proof)
	}
	out, err := w.program("masq", "explain", "example-environment", "--all-nodes", "--src", "10.88.1.9", "--dst", kubetest.ServiceAddress.String())
	if err != nil || strings.Count(out, "exempt") < 3 || !strings.Contains(out, "203.0.113.0/24") {
		t.Errorf("explain: %v\n%s", err, out)
	}
	w.Succeeds(w.configure(masked))
	m = w.inForce(3)
	asNodes("masked")

	// Commands in workers.
	out, err = w.program("environments", "run", "example-environment", "--node", "n2", "--", "/sordino", "probe", kubetest.ServiceAddress.String()+":7000")
	if err != nil || strings.TrimSpace(out) != "10.89.0.12" {
		t.Errorf("a command on n2: %q, %v", out, err)
	}
	var status *exec.ExitError
	if out, err = w.program("environments", "run", "example-environment", "--", "/sordino", "probe", kubetest.ServiceAddress.String()+":1", "--timeout", "1s"); !errors.As(err, &status) || status.ExitCode() != 1 {
		t.Errorf("a command that fails: %q, %v", out, err)
	}
	if out, err = w.program("environments", "run", "example-environment", "--", "/bin/sh"); !errors.As(err, &status) || status.ExitCode() != 127 {
		t.Errorf("a command that is not there: %q, %v", out, err)
	}

	w.commandsEnd()

	// Drift.
	cluster.Kubectl(t, "", "patch", "configmap", "-n", "kube-system", "ip-masq-agent", "-p", `{"data":{"config":"nonMasqueradeCIDRs: [0.0.0.0/0]"}}`)
	cluster.Kubectl(t, "", "delete", "daemonset", "-n", "sordino", "airflow-worker")
	w.configMapHolds(masked)
	w.inForce(3)
	w.eventually(func() error {
		if !strings.Contains(w.Log.String(), "kubectl-patch has set .data.config") {
			return errors.New("the log does not say who changed the ConfigMap")
		}
		return nil
	})

	// A node that joins.
	if err := cluster.AddNodes(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if m = w.inForce(4); !strings.HasSuffix(m.Proof, "the Pods of 3 other nodes likewise") {
		t.Errorf("with another node: %q", m.Proof)
	}

	// The API server is away, and back; meanwhile the environment stays.
	cluster.StopAPI()
	w.eventually(func() error {
		if !strings.Contains(w.Log.String(), "the environment cannot be seen") {
			return errors.New("nobody noticed that the API server is away")
		}
		return nil
	})
	if w.Get("/v1/"+example, &e); e.State != "RUNNING" {
		t.Errorf("while the cluster is away: %+v", e)
	}
	if err := cluster.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	cluster.Kubectl(t, "", "delete", "configmap", "-n", "kube-system", "ip-masq-agent")
	w.configMapHolds(masked)
	w.inForce(4)

	if _, err := exec.LookPath("gcloud"); err == nil {
		w.gcloud("composer", "environments", "delete", "example-environment", "--location", "us-central1")
	} else {
		w.Succeeds(w.Accepted("DELETE", "/v1beta1/"+example, ""))
	}
	deleted := w.last()
	w.steps("delete", deleted)
	if proof := deleted.Detail("prove it with a packet"); !strings.Contains(proof, "was seen as itself by 203.0.113.100") {
		t.Errorf("the proof of the removal: %q", proof)
	}
	w.free()
}

// configMapHolds waits until the agents' ConfigMap has this configuration.
func (w *world) configMapHolds(config string) {
	w.t.Helper()
	w.eventually(func() error {
		var has struct{ Data struct{ Config string } }
		text, err := cluster.Get(w.t.Context(), "/api/v1/namespaces/kube-system/configmaps/ip-masq-agent")
		if err == nil {
			err = json.Unmarshal(text, &has)
		}
		if err == nil && has.Data.Config != config {
			err = fmt.Errorf("the ConfigMap holds %q", has.Data.Config)
		}
		return err
	})
}

// commandsEnd interrupts and kills clients whose command would go on for ever,
// and the server: the command ends each time.
func (w *world) commandsEnd() {
	w.t.Helper()
	running := func(want int) {
		w.t.Helper()
		w.eventually(func() error {
			pids, err := cluster.Node("n2").PIDs("sordino")
			if err == nil && len(pids) != want {
				err = fmt.Errorf("%d processes of sordino run on n2, want %d", len(pids), want)
			}
			return err
		})
	}
	running(1) // the worker's first
	for i, send := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		cmd := w.client("sordino", "environments", "run", "example-environment", "--node", "n2", "--",
			"/sordino", "probe", "serve", "--listen", fmt.Sprintf(":%d", 7001+i))
		if err := cmd.Start(); err != nil {
			w.t.Fatal(err)
		}
		running(3) // and what runs the command, and that
		if err := cmd.Process.Signal(send); err != nil {
			w.t.Fatal(err)
		}
		_ = cmd.Wait() // the status is the command's, or the signal's
		running(1)
	}
	left := w.client("sordino", "environments", "run", "example-environment", "--node", "n2", "--",
		"/sordino", "probe", "serve", "--listen", ":7010")
	if err := left.Start(); err != nil {
		w.t.Fatal(err)
	}
	running(3)
	w.Kill()
	_ = left.Wait() // the server is gone
	running(1)
	w.Restart()
}

// TestKilledAtEveryStep kills the server after every step of a create, of a
// change and of a delete. The next start goes on.
func TestKilledAtEveryStep(t *testing.T) {
	w := newWorld(t)
	for _, change := range []struct {
		what string
		ask  func() string
	}{
		{"create", w.create},
		{"configure", func() string { return w.configure(masked) }},
		{"delete", func() string { return w.Accepted("DELETE", "/v1beta1/"+example, "") }},
	} {
		name := change.ask()
		for boundary := 0; ; boundary++ {
			var o testserver.Operation
			w.eventually(func() (err error) {
				if o, err = w.Operation(t.Context(), name); err == nil && !o.Done && o.Succeeded() < boundary {
					err = fmt.Errorf("%s: %d of %d steps: %+v", change.what, o.Succeeded(), boundary, o)
				}
				return err
			})
			if o.Done {
				break
			}
			t.Logf("%s: killed after %d of %d steps", change.what, o.Succeeded(), len(o.Metadata.Steps))
			w.Kill()
			w.Restart()
		}
		w.Succeeds(name)
		if change.what != "delete" {
			w.inForce(len(cluster.Nodes))
		}
	}
	w.free()
}
