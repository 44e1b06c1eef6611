package netns_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// links lists the links of the calling thread's namespace.
func links(t *testing.T) (names []string) {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func TestANewNamespaceHasOnlyALoopbackThatIsUp(t *testing.T) {
	ns := netnstest.New(t)
	netnstest.Do(t, ns, func() error {
		list, err := netlink.LinkList()
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].Attrs().Name != "lo" || list[0].Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("got %+v, want lo alone, and up", list)
		}
		return nil
	})
}

func TestTheCallerStaysWhereItIs(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	ns := netnstest.New(t)
	netnstest.Do(t, ns, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "inside"}, PeerName: "peer"})
	})
	after, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if !before.Same(after) || before.Same(ns) {
		t.Errorf("the caller moved")
	}
	if got := links(t); strings.Contains(strings.Join(got, " "), "inside") {
		t.Errorf("a link made inside is outside: %v", got)
	}
}

// The process's first thread cannot be thrown away. Left in a namespace, it
// would keep that alive for as long as the process runs, and show the
// process itself there.
func TestTheFirstThreadIsNeverLeftInANamespace(t *testing.T) {
	first := func() string {
		link, err := os.Readlink("/proc/self/ns/net") // that of the first thread
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	before := first()
	ns := netnstest.New(t)
	// All at once, so that every idle thread is needed.
	var inside, running sync.WaitGroup
	const many = 50
	inside.Add(many)
	for range many {
		running.Go(func() {
			err := ns.Do(func() error {
				inside.Done()
				inside.Wait()
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if after := first(); after != before {
		t.Fatalf("the first thread moved from %s to %s", before, after)
	}
}

func TestDoReturnsWhateverEndsTheFunction(t *testing.T) {
	ns := netnstest.New(t)
	broken := errors.New("broken")
	for _, tc := range []struct {
		name, want string
		fn         func() error
	}{
		{"error", "broken", func() error { return broken }},
		{"panic", "panic in a network namespace: oh", func() error { panic("oh") }},
		{"end of the goroutine", "ended its goroutine", func() error { runtime.Goexit(); return nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			done := make(chan error, 1)
			go func() { done <- ns.Do(tc.fn) }()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
			case <-time.After(time.Minute):
				t.Fatal("Do never returns")
			}
		})
	}
}

func TestAClosedNamespaceCannotBeEntered(t *testing.T) {
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	ran := false
	if err := ns.Do(func() error { ran = true; return nil }); err == nil || !strings.Contains(err.Error(), "closed") || ran {
		t.Errorf("ran %v, error %v", ran, err)
	}
}

// A descriptor's number is used again at once; whoever enters while another
// closes must not end up in the next namespace.
func TestEnteringWhileClosingNeverEntersAnother(t *testing.T) {
	for range 40 {
		ns, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		name := func() string { link, _ := os.Readlink("/proc/thread-self/ns/net"); return link }
		var want string
		netnstest.Do(t, ns, func() error { want = name(); return nil })
		var running sync.WaitGroup
		for range 4 {
			running.Go(func() {
				_ = ns.Do(func() error {
					if got := name(); got != want {
						t.Errorf("entered %s instead of %s", got, want)
					}
					return nil
				})
			})
		}
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
		other, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		running.Wait()
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestABoundNamespaceOutlivesTheDescriptor(t *testing.T) {
	netnstest.New(t)
	path := filepath.Join(t.TempDir(), "bound")
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Bind(path); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	netnstest.Do(t, ns, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "kept"}, PeerName: "peer"})
	})
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	netnstest.Do(t, again, func() error {
		_, err := netlink.LinkByName("kept")
		return err
	})
}

func TestErrorsNameThePath(t *testing.T) {
	ns := netnstest.New(t)
	missing := filepath.Join(t.TempDir(), "missing", "ns")
	if err := ns.Bind(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Error(err)
	}
	if _, err := netns.Open(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Error(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	other, err := netns.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Do(func() error { return nil }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a plain file was entered: %v", err)
	}
}
