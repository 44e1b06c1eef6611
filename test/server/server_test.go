// Package server_test treats the real "sordino serve" as the world does: it is
// killed, its disk fills up, its processes die.
package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sordino/internal/testprogram"
	"sordino/internal/testwait"
	"sordino/lab/host"
	"sordino/reconcile"
	"sordino/store"
)

// world is a data folder with everything in it, and a server now and then.
type world struct {
	t       *testing.T
	data    string
	address string
	token   string

	cmd    *exec.Cmd
	exited chan struct{}
	log    *testwait.Log // what all runs wrote
}

func program(t *testing.T, name string) string {
	t.Helper()
	dir, err := testprogram.Built()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func newWorld(t *testing.T, data string) *world {
	t.Helper()
	// A port that stays the same from start to start.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, data: data, address: l.Addr().String(), log: &testwait.Log{}}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.cmd != nil {
			w.kill()
		}
		if err := host.Down(context.Background(), w.data); err != nil && !errors.Is(err, host.ErrNoHost) {
			t.Error(err)
		}
		if t.Failed() {
			text := w.log.String()
			t.Logf("the end of the server's log:\n%s", text[max(0, len(text)-20_000):])
		}
	})
	return w
}

// start runs the server and waits until it serves.
func (w *world) start(args ...string) {
	w.t.Helper()
	from := len(w.log.String())
	w.cmd = exec.Command(program(w.t, "sordino"), append([]string{"serve", "--data", w.data, "--listen", w.address}, args...)...)
	w.cmd.Stderr = w.log
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.cmd.Start(); err != nil {
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
	token, err := os.ReadFile(filepath.Join(w.data, "token"))
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

// stop ends the server as an init system does, and returns its exit status.
func (w *world) stop() int {
	w.t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	return w.ended()
}

func (w *world) ended() int {
	w.t.Helper()
	select {
	case <-w.exited:
	case <-time.After(20 * time.Second):
		w.t.Fatal("the server does not end")
	}
	status := w.cmd.ProcessState.ExitCode()
	w.cmd = nil
	return status
}

func (w *world) eventually(ask func() error) {
	w.t.Helper()
	testwait.Until(w.t, 40*time.Second, 3*time.Millisecond, ask)
}

const location = "projects/p/locations/us-central1"

// call asks the API. An error is that the server did not answer.
func (w *world) call(method, path, body string) (int, map[string]any, error) {
	r, err := http.NewRequest(method, "http://"+w.address+"/v1beta1/"+path, strings.NewReader(body))
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

const withAgent = `"config": {"nodeConfig": {"enableIpMasqAgent": true, "ipAllocationPolicy": {"useIpAliases": true}}}`

func (w *world) create(id, config string) string {
	w.t.Helper()
	if config != "" {
		config = ", " + config
	}
	return w.accepted("POST", location+"/environments", fmt.Sprintf(`{"name": "%s/environments/%s"%s}`, location, id, config))
}

// operation is one as the API tells it.
type operation struct {
	done      bool
	failure   string
	succeeded int // steps
	steps     int
}

func (w *world) operation(name string) (operation, error) {
	code, answer, err := w.call("GET", name, "")
	if err != nil || code != 200 {
		return operation{}, fmt.Errorf("%d %v %w", code, answer, err)
	}
	o := operation{}
	o.done, _ = answer["done"].(bool)
	if e, ok := answer["error"].(map[string]any); ok {
		o.failure = e["message"].(string)
	}
	metadata, _ := answer["metadata"].(map[string]any)
	steps, _ := metadata["steps"].([]any)
	o.steps = len(steps)
	for _, s := range steps {
		if s.(map[string]any)["state"] == "SUCCESSFUL" {
			o.succeeded++
		}
	}
	return o, nil
}

// succeeds waits until an operation has ended well.
func (w *world) succeeds(name string) {
	w.t.Helper()
	w.eventually(func() error {
		o, err := w.operation(name)
		if err != nil {
			return err
		}
		if o.failure != "" {
			w.t.Fatalf("%s: %s", name, o.failure)
		}
		if !o.done {
			return fmt.Errorf("%s is not done: %+v", name, o)
		}
		return nil
	})
}

// environments are the stored environments' states and UUIDs.
func (w *world) environments() (states, uuids map[string]string) {
	w.t.Helper()
	code, answer, err := w.call("GET", location+"/environments", "")
	if err != nil || code != 200 {
		w.t.Fatalf("%d %v %v", code, answer, err)
	}
	states, uuids = map[string]string{}, map[string]string{}
	list, _ := answer["environments"].([]any)
	for _, one := range list {
		e := one.(map[string]any)
		id := filepath.Base(e["name"].(string))
		states[id], uuids[id] = e["state"].(string), e["uuid"].(string)
	}
	return states, uuids
}

// labs are the host's labs by their ids; none when there is no host.
func (w *world) labs() map[string]host.Status {
	w.t.Helper()
	c, err := host.Dial(w.t.Context(), w.data)
	if errors.Is(err, host.ErrNoHost) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	list, err := c.Labs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	labs := map[string]host.Status{}
	for _, l := range list {
		if labs[l.ID], err = c.Lab(w.t.Context(), l.ID); err != nil && !errors.Is(err, host.ErrMissing) {
			w.t.Fatal(err)
		}
	}
	return labs
}

// agents are the process numbers of the agents that run, by lab and node.
func (w *world) agents() map[string]int {
	w.t.Helper()
	pids := map[string]int{}
	for id, l := range w.labs() {
		for node, a := range l.Agents {
			if a.PID != 0 {
				pids[id+" "+node] = a.PID
			}
		}
	}
	return pids
}

func (w *world) hostPID() int {
	w.t.Helper()
	c, err := host.Dial(w.t.Context(), w.data)
	if err != nil {
		w.t.Fatal(err)
	}
	hello, err := c.Hello(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return hello.PID
}

// stored checks what is on disk while no server runs.
func (w *world) stored() {
	w.t.Helper()
	if w.cmd != nil {
		w.t.Fatal("a server runs")
	}
	dir := w.t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		text, err := os.ReadFile(filepath.Join(w.data, store.Name+suffix))
		if err != nil && (suffix == "" || !errors.Is(err, os.ErrNotExist)) {
			w.t.Fatal(err)
		}
		if err == nil {
			if err := os.WriteFile(filepath.Join(dir, store.Name+suffix), text, 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	s, err := store.Open(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	if err := reconcile.CheckInvariants(w.t.Context(), s); err != nil {
		w.t.Error(err)
	}
}

// settled checks that nothing is under way, that exactly these environments are
// there and RUNNING, and that the labs are theirs.
func (w *world) settled(want ...string) {
	w.t.Helper()
	states, uuids := w.environments()
	for id, state := range states {
		if state != "RUNNING" {
			w.t.Errorf("%s is %s", id, state)
		}
	}
	if has := slices.Sorted(maps.Keys(states)); !slices.Equal(has, slices.Sorted(slices.Values(want))) {
		w.t.Errorf("the environments are %v, not %v", has, want)
	}
	code, answer, err := w.call("GET", location+"/operations", "")
	if err != nil || code != 200 {
		w.t.Fatalf("%d %v %v", code, answer, err)
	}
	list, _ := answer["operations"].([]any)
	for _, o := range list {
		if done, _ := o.(map[string]any)["done"].(bool); !done {
			w.t.Errorf("not done: %v", o)
		}
	}
	if has := slices.Sorted(maps.Keys(w.labs())); !slices.Equal(has, slices.Sorted(maps.Values(uuids))) {
		w.t.Errorf("the labs are %v, the environments %v", has, uuids)
	}
}

// masq is the agent of an environment as our own API tells it.
type masq struct {
	InForce   bool      `json:"inForce"`
	Proof     string    `json:"proof"`
	ProofTime time.Time `json:"proofTime"`
	Config    string    `json:"config"`
	Nodes     []struct {
		Ready bool   `json:"ready"`
		Error string `json:"error"`
	} `json:"nodes"`
}

func (w *world) masq(id string) (m masq) {
	w.t.Helper()
	code, answer, err := w.call("GET", "v1/"+location+"/environments/"+id+"/masqAgent", "")
	if err != nil || code != 200 {
		w.t.Fatalf("%d %v %v", code, answer, err)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		w.t.Fatal(err)
	}
	return m
}
