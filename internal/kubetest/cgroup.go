package kubetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prefix begins the name of every folder and cgroup of this package.
const prefix = "sordino-kubetest-"

// A cgroup is one folder in every hierarchy. While it is in use a lock is held
// on it, so that what a killed process left can be told apart and removed.
type cgroup struct {
	name        string
	hierarchies []string
	lock        *os.File
}

// newCgroup makes a cgroup, and removes those that nobody holds any more, with
// the clusters' folders.
func newCgroup(name string) (*cgroup, error) {
	hierarchies, err := hierarchies()
	if err != nil {
		return nil, err
	}
	g := &cgroup{name: name, hierarchies: hierarchies}
	// One at a time: between making and locking, another would take it for a
	// leftover.
	all, err := flock(hierarchies[0], unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	old, err := filepath.Glob(filepath.Join(hierarchies[0], prefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, folder := range old {
		if lock, err := flock(folder, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			name := filepath.Base(folder)
			err := errors.Join((&cgroup{name, hierarchies, lock}).remove(), os.RemoveAll(filepath.Join(os.TempDir(), name)))
			if err != nil {
				return nil, fmt.Errorf("removing what an earlier run left: %w", err)
			}
		}
	}
	if err := g.make(""); err != nil {
		return nil, err
	}
	g.lock, err = flock(filepath.Join(hierarchies[0], name), unix.LOCK_EX|unix.LOCK_NB)
	return g, err
}

// hierarchies are the mount points of the machine's cgroup hierarchies.
func hierarchies() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found, unified []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) < 3:
		case f[2] == "cgroup":
			found = append(found, f[1])
		case f[2] == "cgroup2":
			unified = append(unified, f[1])
		}
	}
	if len(found) == 0 {
		return nil, &Unmet{"nodes need the cgroup hierarchies of version 1 (cpu, memory, pids and so on, each mounted below /sys/fs/cgroup), and there are none"}
	}
	return append(found, unified...), nil // runc makes folders there, too
}

func flock(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return f, nil
}

// make makes a cgroup below this one, or this one itself.
func (g *cgroup) make(child string) error {
	for _, h := range g.hierarchies {
		folder := filepath.Join(h, g.name, child)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return fmt.Errorf("making a cgroup for nodes: %w", err)
		}
		// A new cpuset has no CPU and no memory, and takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			all, err := os.ReadFile(filepath.Join(h, file))
			if err != nil {
				continue // another hierarchy
			}
			if err := os.WriteFile(filepath.Join(folder, file), all, 0o644); err != nil {
				return fmt.Errorf("filling in a cgroup for nodes: %w", err)
			}
		}
	}
	return nil
}

// clear removes everything below a child: a kubelet looks for long at what
// another left.
func (g *cgroup) clear(child string) error {
	var errs []error
	for _, h := range g.hierarchies {
		errs = append(errs, removeBelow(filepath.Join(h, g.name, child)))
	}
	return errors.Join(errs...)
}

func (g *cgroup) remove() error {
	err := g.clear("")
	return errors.Join(err, g.lock.Close())
}

// removeBelow removes a tree of cgroups. Processes that were just killed may
// hold one for a moment.
func removeBelow(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeBelow(filepath.Join(folder, e.Name())); err != nil {
				return err
			}
		}
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(folder)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("removing a cgroup: %w", err)
		}
	}
}
