package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// Lab is one lab's namespaces, bound to files in a folder. Its methods may be
// called from any goroutine, and labs in different folders know nothing of
// each other, whatever addresses they use. A folder is for one process at a
// time.
type Lab struct {
	dir string

	writing sync.Mutex // held while the lab is changed

	mu     sync.Mutex // guards opened
	opened map[string]*netns.NS
}

// Open opens the lab in a folder, which is made if it is not there. What is
// there from before is found again.
func Open(dir string) (*Lab, error) {
	l := &Lab{dir: dir, opened: map[string]*netns.NS{}}
	if err := os.MkdirAll(l.bindings(), 0o755); err != nil {
		return nil, fmt.Errorf("opening the lab: %w", err)
	}
	return l, nil
}

func (l *Lab) bindings() string { return filepath.Join(l.dir, "netns") }

func (l *Lab) path(name string) string { return filepath.Join(l.bindings(), name) }

// Namespace opens a namespace of the lab by name. It is valid until the
// namespace is removed or the lab closed; the caller does not close it.
func (l *Lab) Namespace(name string) (*netns.NS, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Somebody else may have bound another one there since it was opened.
	if ns := l.opened[name]; ns != nil {
		if ns.IsAt(l.path(name)) {
			return ns, nil
		}
		delete(l.opened, name)
		if err := ns.Close(); err != nil {
			return nil, err
		}
	}
	missing := fmt.Errorf("there is no namespace %q in the lab at %s: %w", name, l.dir, fs.ErrNotExist)
	if !nameForm.MatchString(name) {
		return nil, missing
	}
	if bound, err := l.bound(name); err != nil {
		return nil, err
	} else if !bound {
		return nil, missing
	}
	ns, err := netns.Open(l.path(name))
	if err != nil {
		return nil, err
	}
	l.opened[name] = ns
	return ns, nil
}

// bound tells a namespace from the empty file that it is bound to, which is
// all that a killed process or a reboot may have left.
func (l *Lab) bound(name string) (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(l.path(name), &stat); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("finding namespace %s: %w", name, err)
	} else if err != nil {
		return false, nil
	}
	return stat.Type == unix.NSFS_MAGIC, nil
}

// Names lists the namespaces that are there, also half-made ones.
func (l *Lab) Names() ([]string, error) {
	entries, err := os.ReadDir(l.bindings())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the lab: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Apply makes the lab what the Spec says, whatever state it is in, and returns
// what it changed: nothing, when it was so already. When it fails or the
// context ends, the lab is left half made and the next Apply completes it.
//
// What others added to the lab's namespaces stays: links that the lab did not
// make, addresses with a subnet, routes of another protocol than
// [RouteProtocol], tables of other names.
func (l *Lab) Apply(ctx context.Context, s Spec) (changes []string, err error) {
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("checking the lab: %w", err)
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	w := &work{lab: l, ctx: ctx, plan: planOf(s)}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, step := range []func() error{
		w.namespaces, w.open, w.links, w.addresses,
		// Routes need every link up at both ends.
		w.routes, w.tables, w.carriers,
	} {
		if err := step(); err != nil {
			return w.changes, err
		}
	}
	return w.changes, nil
}

// Remove takes the whole lab away, whatever state it is in. Its folder goes
// too, unless others keep something in it.
func (l *Lab) Remove() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	names, err := l.Names()
	errs := []error{err}
	for _, n := range names {
		errs = append(errs, l.drop(n))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, dir := range []string{l.bindings(), l.dir} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("removing the lab: %w", err)
		}
	}
	return nil
}

// Close lets go of the lab; it stays.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for name, ns := range l.opened {
		errs = append(errs, ns.Close())
		delete(l.opened, name)
	}
	return errors.Join(errs...)
}

// forget closes a namespace if it is open.
func (l *Lab) forget(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ns := l.opened[name]
	if ns == nil {
		return nil
	}
	delete(l.opened, name)
	return ns.Close()
}

// make makes a namespace and binds it to its file.
func (l *Lab) make(name string) error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.bindings(), 0o755); err != nil {
		return errors.Join(err, ns.Close())
	}
	if err := ns.Bind(l.path(name)); err != nil {
		return errors.Join(err, ns.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened[name] = ns
	return nil
}

func (l *Lab) drop(name string) error {
	if err := l.forget(name); err != nil {
		return err
	}
	path := l.path(name)
	// Whatever is bound there, however often. EINVAL: nothing is.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("removing namespace %s: %w", name, err)
		}
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("removing namespace %s: %w", name, err)
	}
	return nil
}
