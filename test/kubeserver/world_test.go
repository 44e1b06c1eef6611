// Package kubeserver runs the server as people do, with environments on three real
// nodes: it is created by gcloud, judged by what a service outside sees, and
// killed at every step.
//
// All tests share one cluster, one after the other; each leaves it free. The
// server has the rights of deploy/target-cluster and no others.
//
// To debug it, set SORDINO_KUBETEST_KEEP=1 and run one test with -v: a failed
// test prints the server's log, the Pods and the Events.
package kubeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"sordino/deploy/images"
	"sordino/internal/kubetest"
	"sordino/internal/netnstest"
	"sordino/internal/probe"
	"sordino/internal/testprogram"
	"sordino/internal/testwait"
)

var (
	cluster *kubetest.Cluster
	unmet   *kubetest.Unmet
)

func TestMain(m *testing.M) {
	go func() {
		runtime.LockOSThread()
		for start := range starting {
			start()
		}
	}()
	os.Exit(func() (status int) {
		dir, err := os.MkdirTemp("", "sordino-clusters-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := begin(dir); err != nil {
			if unmet = kubetest.Skippable(err); unmet == nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		if cluster != nil {
			defer func() {
				if err := cluster.Close(); err != nil {
					fmt.Fprintln(os.Stderr, err)
					status = 1
				}
			}()
		}
		return m.Run()
	}())
}

// starting is what a thread starts that lives as long as the test: a program
// that dies with its parent dies with the thread that started it.
var starting = make(chan func())

func started(cmd *exec.Cmd) <-chan error {
	done := make(chan error, 1)
	starting <- func() { done <- cmd.Start() }
	return done
}

// begin packs the programs into their images and starts the cluster.
func begin(dir string) error {
	binaries, err := testprogram.Built()
	if err != nil {
		return err
	}
	archive := filepath.Join(dir, "images.tar")
	if err := images.WriteTar(archive, "latest", images.Platform{Architecture: runtime.GOARCH, Binaries: binaries}, images.Agent, images.Server); err != nil {
		return err
	}
	ctx := context.Background()
	if cluster, err = kubetest.New(ctx, kubetest.Options{Nodes: 3, Images: []string{archive}}); err != nil {
		return err
	}
	_, err = cluster.TryKubectl(ctx, "", "apply", "-k", "../../deploy/target-cluster")
	return err
}

// world is a data folder, and a server now and then.
type world struct {
	t       *testing.T
	dir     string
	address string
	token   string

	cmd    *exec.Cmd
	exited chan struct{}
	log    *testwait.Log // of all runs of the server
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if unmet != nil {
		t.Skip(unmet)
	}
	w := &world{t: t, dir: t.TempDir(), address: netnstest.FreeAddress(t), log: &testwait.Log{}}
	token, err := cluster.ServiceAccountToken(t.Context(), "sordino-system", "sordino")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"kubeconfig": fmt.Sprintf(`{apiVersion: v1, kind: Config,
  clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}],
  users: [{name: server, user: {token: %q}}],
  contexts: [{name: one, context: {cluster: test, user: server}}]}
`, cluster.Server(), cluster.CA(), token),
		"clusters.yaml": fmt.Sprintf("clusters:\n- {name: cluster-1, location: us-central1, kubeconfig: kubeconfig, context: one, nodeRange: %s, podRange: %s, probe: \"%s:%d\"}\n",
			kubetest.NodeRange, kubetest.PodRange, kubetest.ServiceAddress, probe.Port),
	} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if w.cmd != nil {
			w.kill()
		}
		if !t.Failed() {
			return
		}
		text := w.log.String()
		t.Logf("the end of the server's log:\n%s", text[max(0, len(text)-20_000):])
		for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"}, {"get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.metadata.annotations}{" "}{.status.conditions[?(@.type=="IPMasqueradeReady")]}{"\n"}{end}`}} {
			out, err := cluster.TryKubectl(context.Background(), "", args...)
			t.Logf("kubectl %s (%v):\n%s", strings.Join(args, " "), err, out)
		}
	})
	return w
}

// start runs the server and waits until it serves.
func (w *world) start() {
	w.t.Helper()
	binaries, err := testprogram.Built()
	if err != nil {
		w.t.Fatal(err)
	}
	from := len(w.log.String())
	w.cmd = exec.Command(filepath.Join(binaries, "sordino"), "serve", "--data", filepath.Join(w.dir, "data"), "--listen", w.address, "--verbose",
		"--clusters", filepath.Join(w.dir, "clusters.yaml"), "--agent-image", "localhost/ip-masq-agent:latest", "--sordino-image", "localhost/sordino:latest")
	w.cmd.Stderr = w.log
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := <-started(w.cmd); err != nil {
		w.t.Fatal(err)
	}
	cmd, exited := w.cmd, make(chan struct{})
	w.exited = exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	w.eventually(func() error {
		select {
		case <-exited:
			w.t.Fatalf("the server ended: %v\n%s", cmd.ProcessState, w.log.String()[from:])
		default:
		}
		if !strings.Contains(w.log.String()[from:], "msg=serving") {
			return errors.New("the server does not serve")
		}
		return nil
	})
	token, err := os.ReadFile(filepath.Join(w.dir, "data", "token"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.token = strings.TrimSpace(string(token))
}

// kill ends the server at once.
func (w *world) kill() {
	w.t.Helper()
	_ = w.cmd.Process.Kill()
	<-w.exited
	w.cmd = nil
}

func (w *world) eventually(ask func() error) {
	w.t.Helper()
	testwait.Until(w.t, 3*time.Minute, 200*time.Millisecond, ask)
}

const (
	location = "projects/p/locations/us-central1"
	example  = location + "/environments/example-environment"
)

// call asks the API. An error is that the server did not answer.
func (w *world) call(method, path, body string) (int, map[string]any, error) {
	r, err := http.NewRequest(method, "http://"+w.address+"/"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+w.token)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, nil, err
	}
	var answer map[string]any
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, nil, fmt.Errorf("%w in %s", err, text)
	}
	return response.StatusCode, answer, nil
}

// get asks for what is there.
func (w *world) get(path string, into any) error {
	code, answer, err := w.call("GET", path, "")
	if err != nil || code != 200 {
		return fmt.Errorf("GET %s: %d %v %w", path, code, answer, err)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// accepted asks for something, which must be accepted, and returns the
// operation's name.
func (w *world) accepted(method, path, body string) string {
	w.t.Helper()
	code, answer, err := w.call(method, path, body)
	if err != nil || code != 200 {
		w.t.Fatalf("%s %s: %d %v %v", method, path, code, answer, err)
	}
	return answer["name"].(string)
}

func (w *world) create() string {
	w.t.Helper()
	return w.accepted("POST", "v1beta1/"+location+"/environments",
		fmt.Sprintf(`{"name": %q, "config": {"nodeConfig": {"enableIpMasqAgent": true, "ipAllocationPolicy": {"useIpAliases": true}}}}`, example))
}

func (w *world) configure(config string) string {
	w.t.Helper()
	return w.accepted("PATCH", "v1/"+example+"/masqAgent", fmt.Sprintf(`{"config": %q}`, config))
}

// operation is one as the API tells it.
type operation struct {
	Done  bool `json:"done"`
	Error *struct {
		Message string `json:"message"`
	} `json:"error"`
	Metadata struct {
		CreateTime, EndTime time.Time
		Steps               []struct {
			Name, State, Detail string
			StartTime, EndTime  time.Time
		}
	} `json:"metadata"`
}

func (o operation) succeeded() (n int) {
	for _, s := range o.Metadata.Steps {
		if s.State == "SUCCESSFUL" {
			n++
		}
	}
	return n
}

// detail is what a step says of its outcome.
func (o operation) detail(step string) string {
	for _, s := range o.Metadata.Steps {
		if s.Name == step {
			return s.Detail
		}
	}
	return ""
}

func (w *world) operation(name string) (o operation, err error) {
	return o, w.get("v1beta1/"+name, &o)
}

// succeeds waits until an operation has ended well.
func (w *world) succeeds(name string) (o operation) {
	w.t.Helper()
	w.eventually(func() (err error) {
		if o, err = w.operation(name); err != nil {
			return err
		}
		if o.Error != nil {
			w.t.Fatalf("%s: %s", name, o.Error.Message)
		}
		if !o.Done {
			return fmt.Errorf("%s is not done: %+v", name, o)
		}
		return nil
	})
	return o
}

// masq is the environment's agent as our own API tells it.
type masq struct {
	InForce bool   `json:"inForce"`
	Proof   string `json:"proof"`
	Nodes   []struct {
		Name    string `json:"name"`
		Address string `json:"address"`
		PodCIDR string `json:"podCidr"`
		Ready   bool   `json:"ready"`
		Hash    string `json:"hash"`
		Error   string `json:"error"`
	} `json:"nodes"`
}

func (w *world) masq() (m masq, err error) { return m, w.get("v1/"+example+"/masqAgent", &m) }

// inForce waits until the environment is what it should be on so many nodes.
func (w *world) inForce(nodes int) (m masq) {
	w.t.Helper()
	w.eventually(func() (err error) {
		if m, err = w.masq(); err == nil && (!m.InForce || len(m.Nodes) != nodes) {
			err = fmt.Errorf("not in force on %d nodes: %+v", nodes, m)
		}
		return err
	})
	return m
}

// free checks that nothing of an environment is left on the cluster.
func (w *world) free() {
	w.t.Helper()
	left := cluster.Kubectl(w.t, "", "get", "daemonsets,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,validatingadmissionpolicies,namespaces", "-A", "-l", "sordino.dev/environment", "-o", "name")
	if left != "" {
		w.t.Errorf("left over:\n%s", left)
	}
	nodes := cluster.Kubectl(w.t, "", "get", "nodes", "-o", "jsonpath={.items[*].metadata.annotations} {.items[*].status.conditions[*].type}")
	if strings.Contains(nodes, "sordino.dev/") || strings.Contains(nodes, "IPMasqueradeReady") {
		w.t.Errorf("left on the Nodes: %s", nodes)
	}
}

// program runs "sordino" as a client, and returns its standard output.
func (w *world) program(args ...string) (string, error) {
	binaries, err := testprogram.Built()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(binaries, "sordino"), args...)
	cmd.Env = w.environ()
	out, err := cmd.Output()
	return string(out), err
}

// environ is the environment of clients.
func (w *world) environ() []string {
	return []string{"SORDINO_SERVER=http://" + w.address, "SORDINO_TOKEN_FILE=" + filepath.Join(w.dir, "data", "token"), "SORDINO_PROJECT=p", "CLOUDSDK_COMPOSER_LOCATION=us-central1"}
}
