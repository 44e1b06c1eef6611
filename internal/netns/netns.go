// Package netns makes network namespaces and runs code inside them.
//
// It owns the one dangerous thing about namespaces in Go: a namespace belongs
// to an OS thread, and a goroutine that moved its thread must either move it
// back or take the thread to the grave. [NS.Do] does that; nothing else in
// this module calls setns.
//
// It refuses names: a namespace here is an open file, which vanishes with the
// process unless somebody binds it to a path.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is an open network namespace.
type NS struct{ file *os.File }

// threadNS is the calling thread's own namespace, not the main thread's.
const threadNS = "/proc/thread-self/ns/net"

// New makes a network namespace with its loopback up. The caller stays where
// it is.
func New() (*NS, error) {
	var made *NS
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w (it takes root, or a user namespace of one's own)", err)
		}
		ns, err := Open(threadNS)
		if err != nil {
			return err
		}
		made = ns
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("setting loopback up: %w", err), ns.Close())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

// Open opens a namespace by path, such as /proc/PID/ns/net or a bind mount.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening a network namespace: %w", err)
	}
	return &NS{f}, nil
}

// Current opens the namespace of the calling thread.
func Current() (*NS, error) { return Open(threadNS) }

// Do runs fn inside the namespace, on a thread of its own. Sockets and child
// processes made by fn stay in the namespace; goroutines that fn starts do
// not. In the process's own namespace it takes no privilege; entering another
// takes CAP_SYS_ADMIN.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return fn()
	})
}

// enter moves the calling thread. The descriptor is held meanwhile: once it is
// closed, its number may be another namespace's.
func (n *NS) enter() error {
	if n.IsAt(threadNS) {
		return nil // setns would want CAP_SYS_ADMIN even so
	}
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return errors.Join(err, setErr)
}

// Bind makes the namespace outlive the process by mounting it on a path.
func (n *NS) Bind(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("binding a network namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(n.Path(), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding a network namespace to %s: %w", path, err)
	}
	return nil
}

// Path is a path to the namespace that is valid in this process.
func (n *NS) Path() string { return fmt.Sprintf("/proc/self/fd/%d", n.file.Fd()) }

// FD is the open file's descriptor, valid until Close: the caller sees to it
// that nobody closes meanwhile.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Same reports whether both are the same namespace.
func (n *NS) Same(other *NS) bool {
	a, errA := n.file.Stat()
	b, errB := other.file.Stat()
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// IsAt reports whether the namespace is what a path leads to.
func (n *NS) IsAt(path string) bool {
	a, errA := n.file.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// Close lets go of the namespace; it vanishes when nothing else holds it.
func (n *NS) Close() error { return n.file.Close() }

// onThread runs fn on a thread that is thrown away afterwards, so that
// whatever fn does to it cannot leak into another goroutine.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread is parked for ever instead of thrown away, and would
			// keep the namespace. While it is locked here, another one does it.
			defer runtime.UnlockOSThread()
			done <- onThread(fn)
			return
		}
		// Never unlocked: a locked goroutine that ends takes its thread along.
		err := errors.New("a function in a network namespace ended its goroutine")
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("panic in a network namespace: %v\n%s", r, debug.Stack())
			}
			done <- err
		}()
		err = fn()
	}()
	return <-done
}
