package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"sordino/environment"
	"sordino/reconcile"
)

// world is clusters in a folder, so that they outlive a process: UUID/network,
// UUID/node-N, UUID/config (the generation that is in place). It is a driver,
// and notes in the file "violations" what a reconciler must never do:
//
//   - work on one environment twice at a time;
//   - run a step before the ones before it;
//   - go back to an earlier generation;
//   - build what is removed, or is being removed;
//   - prune what is still wanted (wanted, where it is set).
type world struct {
	folder string
	// before is called before and after each step's work with its name, "make
	// the network" and "make the network, done"; its error is the step's.
	before func(ctx context.Context, at string, e *environment.Environment) error
	wanted func(uuid string) bool

	mu      sync.Mutex
	changed func(uuid string)
}

func newWorld(folder string) (*world, error) {
	for _, sub := range []string{"clusters", "removed", "locks"} {
		if err := os.MkdirAll(filepath.Join(folder, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return &world{folder: folder}, nil
}

func (w *world) cluster(uuid string, parts ...string) string {
	return filepath.Join(append([]string{w.folder, "clusters", uuid}, parts...)...)
}

func (w *world) violation(format string, arguments ...any) {
	file, err := os.OpenFile(filepath.Join(w.folder, "violations"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	fmt.Fprintf(file, format+"\n", arguments...)
}

// violations are what was noted so far.
func (w *world) violations() string {
	text, err := os.ReadFile(filepath.Join(w.folder, "violations"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return string(text)
}

// alone runs a step's work under the environment's lock, which a killed
// process lets go of.
func (w *world) alone(ctx context.Context, name string, e *environment.Environment, do func() error) (string, error) {
	lock, err := os.OpenFile(filepath.Join(w.folder, "locks", e.UUID), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		w.violation("%s: two at a time on %s", name, e.Name)
	}
	if w.before != nil {
		if err := w.before(ctx, name, e); err != nil {
			return "", err
		}
	}
	if err := do(); err != nil {
		return "", err
	}
	if w.before != nil {
		if err := w.before(ctx, name+", done", e); err != nil {
			return "", err
		}
	}
	return "done for generation " + strconv.FormatInt(e.Generation, 10), nil
}

func (w *world) exists(uuid string, parts ...string) bool {
	_, err := os.Stat(w.cluster(uuid, parts...))
	return err == nil
}

// make creates a thing once.
func (w *world) make(e *environment.Environment, part string) error {
	err := os.WriteFile(w.cluster(e.UUID, part), []byte(e.Name.String()), 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		w.violation("%s of %s before its network", part, e.Name)
	}
	return err
}

func (w *world) nodes(uuid string) (names []string) {
	entries, _ := os.ReadDir(w.cluster(uuid))
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "node-") {
			names = append(names, entry.Name())
		}
	}
	return names
}

func (w *world) generation(uuid string) int64 {
	text, _ := os.ReadFile(w.cluster(uuid, "config"))
	n, _ := strconv.ParseInt(string(text), 10, 64)
	return n
}

func (w *world) Ensure(e *environment.Environment) []reconcile.Step {
	step := func(name string, do func() error) reconcile.Step {
		return reconcile.Step{Name: name, Do: func(ctx context.Context) (string, error) {
			return w.alone(ctx, name, e, func() error {
				if _, err := os.Stat(filepath.Join(w.folder, "removed", e.UUID)); err == nil {
					w.violation("%s of %s after its removal began", name, e.Name)
				}
				if at := w.generation(e.UUID); at > e.Generation {
					w.violation("%s of %s for generation %d after %d", name, e.Name, e.Generation, at)
				}
				return do()
			})
		}}
	}
	return []reconcile.Step{
		step("make the network", func() error { return os.MkdirAll(w.cluster(e.UUID, "network"), 0o700) }),
		step("start the nodes", func() error {
			wanted := map[string]bool{}
			for n := range int(e.Spec.Config.GetNodeCount()) {
				name := fmt.Sprintf("node-%d", n+1)
				wanted[name] = true
				if !w.exists(e.UUID, name) {
					if err := w.make(e, name); err != nil {
						return err
					}
				}
			}
			for _, name := range w.nodes(e.UUID) {
				if !wanted[name] {
					if err := os.Remove(w.cluster(e.UUID, name)); err != nil {
						return err
					}
				}
			}
			return nil
		}),
		step("configure the agents", func() error {
			if got := len(w.nodes(e.UUID)); got != int(e.Spec.Config.GetNodeCount()) {
				return fmt.Errorf("there are %d nodes of %d", got, e.Spec.Config.GetNodeCount())
			}
			fresh := w.cluster(e.UUID, "config.new")
			if err := os.WriteFile(fresh, []byte(strconv.FormatInt(e.Generation, 10)), 0o600); err != nil {
				return err
			}
			return os.Rename(fresh, w.cluster(e.UUID, "config"))
		}),
	}
}

func (w *world) Remove(e *environment.Environment) []reconcile.Step {
	step := func(name string, do func() error) reconcile.Step {
		return reconcile.Step{Name: name, Do: func(ctx context.Context) (string, error) {
			return w.alone(ctx, name, e, func() error {
				if err := os.WriteFile(filepath.Join(w.folder, "removed", e.UUID), nil, 0o600); err != nil {
					return err
				}
				return do()
			})
		}}
	}
	return []reconcile.Step{
		step("stop the nodes", func() error {
			for _, name := range w.nodes(e.UUID) {
				if err := os.Remove(w.cluster(e.UUID, name)); err != nil {
					return err
				}
			}
			return nil
		}),
		step("remove the network", func() error { return os.RemoveAll(w.cluster(e.UUID)) }),
	}
}

func (w *world) Observe(ctx context.Context, e *environment.Environment) (o environment.Observed, err error) {
	if w.before != nil {
		if err := w.before(ctx, "observe", e); err != nil {
			return o, err
		}
	}
	o.Generation = w.generation(e.UUID)
	for n := range int(e.Spec.Config.GetNodeCount()) {
		node := environment.ObservedNode{Name: fmt.Sprintf("node-%d", n+1), ConfigGeneration: e.Agent.Generation}
		if node.Ready = w.exists(e.UUID, node.Name); !node.Ready {
			node.Error = "it is not there"
		}
		o.Nodes = append(o.Nodes, node)
	}
	return o, nil
}

func (w *world) Prune(ctx context.Context, keep map[string]bool) (removed []string, err error) {
	if w.before != nil {
		if err := w.before(ctx, "prune", nil); err != nil {
			return nil, err
		}
	}
	for _, uuid := range w.clusters() {
		if keep[uuid] {
			continue
		}
		if w.wanted != nil && w.wanted(uuid) {
			w.violation("prune of %s, which is stored", uuid)
		}
		if err := os.RemoveAll(w.cluster(uuid)); err != nil {
			return removed, err
		}
		removed = append(removed, uuid)
	}
	return removed, nil
}

func (w *world) Watch(ctx context.Context, changed func(string)) error {
	w.mu.Lock()
	w.changed = changed
	w.mu.Unlock()
	if w.before != nil {
		if err := w.before(ctx, "watch", nil); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func (w *world) clusters() (uuids []string) {
	entries, _ := os.ReadDir(filepath.Join(w.folder, "clusters"))
	for _, entry := range entries {
		uuids = append(uuids, entry.Name())
	}
	return uuids
}

// judge compares the world with the store: what runs is whole, what is gone
// left nothing, nothing was done that must not be.
func judge(t testing.TB, w *world, store environment.Store) {
	t.Helper()
	if err := reconcile.CheckInvariants(context.Background(), store); err != nil {
		t.Errorf("the store: %v", err)
	}
	if v := w.violations(); v != "" {
		t.Errorf("violations:\n%s", v)
	}
	stored := map[string]bool{}
	if err := store.View(context.Background(), func(tx environment.Tx) error {
		list, err := tx.Environments(environment.EnvironmentQuery{})
		for _, e := range list {
			stored[e.UUID] = true
			nodes, want := len(w.nodes(e.UUID)), int(e.Spec.Config.GetNodeCount())
			if e.State == environment.Running && (nodes != want || w.generation(e.UUID) != e.Generation) {
				t.Errorf("%s runs with %d of %d nodes, generation %d of %d", e.Name, nodes, want, w.generation(e.UUID), e.Generation)
			}
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	for _, uuid := range w.clusters() {
		if !stored[uuid] {
			t.Errorf("the cluster %s is nobody's", uuid)
		}
	}
}

// faulty is a store whose writes fail while err is set.
type faulty struct {
	environment.Store
	mu  sync.Mutex
	err error
	// around is called before and after each write that does something.
	around func(at string)
}

func (f *faulty) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *faulty) Update(ctx context.Context, do func(environment.Tx) error) error {
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if f.around != nil {
		f.around("before a write")
		defer f.around("after a write")
	}
	return f.Store.Update(ctx, do)
}
