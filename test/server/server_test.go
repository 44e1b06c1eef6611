// Package server_test treats the real "sordino serve" as the world does: it is
// killed, its disk fills up, its processes die.
package server_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sordino/internal/testserver"
	"sordino/internal/testwait"
	"sordino/lab/host"
	"sordino/reconcile"
	"sordino/store"
)

// world is a data folder with everything in it, and a server now and then.
type world struct {
	t *testing.T
	*testserver.Test
}

func newWorld(t *testing.T, data string) *world {
	t.Helper()
	return &world{t, testserver.Start(t, testserver.Options{Data: data})}
}

// stop ends the server, which has to end well.
func (w *world) stop() {
	w.t.Helper()
	if err := w.Stop(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) eventually(ask func() error) {
	w.t.Helper()
	testwait.Until(w.t, time.Minute, 3*time.Millisecond, ask)
}

const (
	location     = "projects/p/locations/us-central1"
	environments = "/v1beta1/" + location + "/environments"
)

const withAgent = `"config": {"nodeConfig": {"enableIpMasqAgent": true, "ipAllocationPolicy": {"useIpAliases": true}}}`

func (w *world) create(id, config string) string {
	w.t.Helper()
	if config != "" {
		config = ", " + config
	}
	return w.Accepted("POST", environments, fmt.Sprintf(`{"name": "%s/environments/%s"%s}`, location, id, config))
}

// environments are the stored environments' states and UUIDs.
func (w *world) environments() (states, uuids map[string]string) {
	w.t.Helper()
	var list struct {
		Environments []struct{ Name, State, UUID string }
	}
	w.Get(environments, &list)
	states, uuids = map[string]string{}, map[string]string{}
	for _, e := range list.Environments {
		id := filepath.Base(e.Name)
		states[id], uuids[id] = e.State, e.UUID
	}
	return states, uuids
}

// labs are the host's labs by their ids; none when there is no host.
func (w *world) labs() map[string]host.Status {
	w.t.Helper()
	c, err := host.Dial(w.t.Context(), w.Data)
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
	pid, err := w.LabHost(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return pid
}

// stored checks what is on disk while no server runs.
func (w *world) stored() {
	w.t.Helper()
	if w.PID() != 0 {
		w.t.Fatal("a server runs")
	}
	dir := w.t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		text, err := os.ReadFile(filepath.Join(w.Data, store.Name+suffix))
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
	var list struct{ Operations []testserver.Operation }
	w.Get("/v1beta1/"+location+"/operations", &list)
	for _, o := range list.Operations {
		if !o.Done {
			w.t.Errorf("not done: %+v", o)
		}
	}
	if has := slices.Sorted(maps.Keys(w.labs())); !slices.Equal(has, slices.Sorted(maps.Values(uuids))) {
		w.t.Errorf("the labs are %v, the environments %v", has, uuids)
	}
}

// masq is an environment's agent.
func (w *world) masq(id string) testserver.MasqAgent {
	w.t.Helper()
	m, err := w.MasqAgent(w.t.Context(), location+"/environments/"+id)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}
