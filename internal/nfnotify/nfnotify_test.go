package nfnotify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"go.uber.org/goleak"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listener is one Listen that has begun.
type listener struct {
	heard, lost chan struct{} // filled once each until they are read
	stop        func() error
}

func listen(t *testing.T, l *Listeners, ns *netns.NS, onHeard func()) *listener {
	t.Helper()
	got := &listener{heard: make(chan struct{}, 1), lost: make(chan struct{}, 1)}
	note := func(c chan struct{}) func() {
		return func() {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	listening, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- l.Listen(ctx, ns, func(m []netlink.Message) {
			if len(m) == 0 {
				t.Error("heard nothing")
			}
			note(got.heard)()
			onHeard()
		}, func() { close(listening) }, note(got.lost))
	}()
	got.stop = func() error { cancel(); return <-ended }
	t.Cleanup(cancel)
	select {
	case <-listening:
	case err := <-ended:
		t.Fatal(err)
	}
	return got
}

func arrives(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatalf("%s never", what)
	}
}

func TestAChangeIsHeardUntilTheContextEnds(t *testing.T) {
	ns := netnstest.New(t)
	nft := netnstest.Program(t, "nft")
	var all Listeners
	a, b := listen(t, &all, ns, func() {}), listen(t, &all, ns, func() {})
	netnstest.Run(t, ns, "", nft, "add table inet t")
	arrives(t, "heard", a.heard)
	arrives(t, "heard by the other", b.heard)
	for _, l := range []*listener{a, b} {
		if err := l.stop(); err != nil {
			t.Errorf("ended with %v", err)
		}
	}
	if len(all.conns) != 0 {
		t.Errorf("%d listeners are left", len(all.conns))
	}
}

func TestOnlyItsOwnNamespaceIsHeard(t *testing.T) {
	ns, other := netnstest.New(t), netnstest.New(t)
	nft := netnstest.Program(t, "nft")
	var all Listeners
	l := listen(t, &all, ns, func() {})
	netnstest.Run(t, other, "", nft, "add table inet t")
	if len(l.heard) != 0 {
		t.Error("heard another namespace")
	}
	netnstest.Run(t, ns, "", nft, "add table inet t")
	arrives(t, "heard", l.heard)
	if err := l.stop(); err != nil {
		t.Error(err)
	}
}

func TestQuietWritesAreNotHeardButKnownToBeLost(t *testing.T) {
	ns := netnstest.New(t)
	nft := netnstest.Program(t, "nft")
	var all Listeners
	for range 3 {
		l := listen(t, &all, ns, func() {})
		for range 2 {
			broken := errors.New("broken")
			err := all.Quiet(func() error {
				netnstest.Run(t, ns, "", nft, "add table inet t; delete table inet t")
				return broken
			})
			if !errors.Is(err, broken) {
				t.Errorf("the write's error became %v", err)
			}
			arrives(t, "lost", l.lost)
			if len(l.heard) != 0 {
				t.Error("a quiet write was heard")
			}
		}
		// And it listens again.
		netnstest.Run(t, ns, "", nft, "add table inet t; delete table inet t")
		arrives(t, "heard", l.heard)
		if err := l.stop(); err != nil {
			t.Error(err)
		}
	}
	if err := all.Quiet(func() error { return nil }); err != nil {
		t.Errorf("with nobody to be quiet for: %v", err)
	}
}

func TestWhatComesTooFastIsKnownToBeLost(t *testing.T) {
	ns := netnstest.New(t)
	nft := netnstest.Program(t, "nft")
	var all Listeners
	release := make(chan struct{})
	l := listen(t, &all, ns, func() { <-release })
	netnstest.Run(t, ns, "", nft, "add table inet t")
	arrives(t, "heard", l.heard) // and is busy with it
	var rules strings.Builder
	rules.WriteString("table inet t { set s { type ipv4_addr; }; }\n")
	for block := range 200 {
		rules.WriteString("add element inet t s {")
		for host := range 250 {
			fmt.Fprintf(&rules, "10.0.%d.%d,", block, host)
		}
		rules.WriteString("}\n")
	}
	netnstest.Run(t, ns, rules.String(), nft, "-f", "-")
	close(release)
	arrives(t, "lost", l.lost)
	if err := l.stop(); err != nil {
		t.Error(err)
	}
}

func TestAClosedNamespaceIsAnError(t *testing.T) {
	netnstest.New(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	var all Listeners
	if err := all.Listen(t.Context(), ns, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "opening netfilter netlink") {
		t.Error(err)
	}
	if len(all.conns) != 0 {
		t.Error("it is still among the listeners")
	}
}
