package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
)

// buildVariable makes the test program build a lab in the folder it names,
// over and over, until it is killed.
const buildVariable = "SORDINO_TEST_BUILD_LAB"

func TestMain(m *testing.M) {
	if dir := os.Getenv(buildVariable); dir != "" {
		buildForEver(dir)
	}
	goleak.VerifyTestMain(m)
}

func buildForEver(dir string) {
	fmt.Println("building")
	for n := 0; ; n++ {
		l, err := Open(dir)
		if err == nil {
			_, err = l.Apply(context.Background(), example(1+n%2))
		}
		if err == nil && n%3 == 2 {
			err = l.Remove()
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

func TestASecondApplyChangesNothing(t *testing.T) {
	l := newLab(t)
	s := example(3)
	if changes := apply(t, l, s); len(changes) == 0 {
		t.Error("the first Apply reports no changes")
	}
	before := snapshot(t, l)
	if changes := apply(t, l, s); len(changes) != 0 {
		t.Errorf("the second Apply changed %q", changes)
	}
	if diff := cmp.Diff(before, snapshot(t, l)); diff != "" {
		t.Errorf("the second Apply changed (-before +after):\n%s", diff)
	}
	// Another process finds it as it is.
	again, err := Open(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if changes := apply(t, again, s); len(changes) != 0 {
		t.Errorf("opened again, Apply changed %q", changes)
	}
}

// budget is a context that ends after it was asked so many times.
type budget struct {
	context.Context
	left int
}

func (b *budget) Err() error {
	if b.left == 0 {
		return context.Canceled
	}
	b.left--
	return nil
}

func TestALabCutOffAtAnyStepIsCompleted(t *testing.T) {
	s := example(1)
	dir := t.TempDir()
	netnstest.New(t)
	want := fresh(t, dir, s)
	for steps := 0; ; steps++ {
		l, err := Open(filepath.Join(dir, "cut"))
		if err != nil {
			t.Fatal(err)
		}
		done, err := l.Apply(&budget{t.Context(), steps}, s)
		finished := err == nil
		if !finished && (!errors.Is(err, context.Canceled) || len(done) != steps) {
			t.Fatalf("after %d steps: %d changes, error %v", steps, len(done), err)
		}
		if err := l.Close(); err != nil { // the process is gone
			t.Fatal(err)
		}
		if l, err = Open(l.dir); err != nil {
			t.Fatal(err)
		}
		if steps%3 == 0 {
			if _, err := l.Apply(t.Context(), s); err != nil {
				t.Fatalf("completing after %d steps: %v", steps, err)
			}
			if diff := cmp.Diff(want, snapshot(t, l)); diff != "" {
				t.Fatalf("cut off after %d steps and completed (-want +got):\n%s", steps, diff)
			}
		}
		// And each half-made one can be removed.
		if err := l.Remove(); err != nil {
			t.Fatalf("removing after %d steps: %v", steps, err)
		}
		if finished {
			break
		}
	}
}

// damages are what may happen to a lab of example(2); each is done to a whole
// one.
var damages = []struct {
	name, where string
	do          func(*Lab) error
}{
	{"a binding is gone", "", func(l *Lab) error { return unix.Unmount(l.path("pod-1"), unix.MNT_DETACH) }},
	{"a binding and its file are gone", "", func(l *Lab) error {
		return errors.Join(unix.Unmount(l.path("node-2"), unix.MNT_DETACH), os.Remove(l.path("node-2")))
	}},
	{"the router is gone", "", func(l *Lab) error { return unix.Unmount(l.path(router), unix.MNT_DETACH) }},
	{"bound twice", "", func(l *Lab) error { return unix.Mount(l.path("pod-2"), l.path("pod-1"), "", unix.MS_BIND, "") }},
	{"a stray namespace", "", func(l *Lab) error {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		return errors.Join(ns.Bind(l.path("stray")), ns.Close())
	}},
	{"a stray file", "", func(l *Lab) error { return os.WriteFile(l.path("stray"), nil, 0o444) }},
	{"a link is gone", "pod-1", func(*Lab) error { return withLink("eth0", netlink.LinkDel) }},
	{"a link of another kind", "pod-1", func(*Lab) error {
		return errors.Join(withLink("eth0", netlink.LinkDel), netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}),
			withLink("peer", func(l netlink.Link) error { return netlink.LinkSetGroup(l, LinkGroup) }))
	}},
	{"a link of the lab too many", "node-1", func(*Lab) error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "to-nobody", Group: LinkGroup}, PeerName: "peer"})
	}},
	{"a link is down", "node-1", func(*Lab) error { return withLink("eth0", netlink.LinkSetDown) }},
	{"an upper end is down", router, func(*Lab) error { return withLink("to-node-1", netlink.LinkSetDown) }},
	{"loopback is down", "pod-1", func(*Lab) error { return withLink("lo", netlink.LinkSetDown) }},
	{"an address is gone", "pod-1", func(*Lab) error {
		return withLink("eth0", func(l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.168.1.2/32"))})
		})
	}},
	{"an address too many", "pod-1", func(*Lab) error {
		return withLink("eth0", func(l netlink.Link) error {
			return errors.Join(netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.168.1.9/32"))}),
				netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("fd00:c0a8:1::9/128"))}))
		})
	}},
	{"a route is gone", "pod-1", func(*Lab) error { return netlink.RouteDel(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("::/0"))}) }},
	{"a route leads elsewhere", router, func(*Lab) error {
		return withLink("to-node-2", func(l netlink.Link) error {
			return netlink.RouteReplace(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("192.168.1.0/24")), LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.0.0.2")})
		})
	}},
	{"routes too many", router, func(*Lab) error {
		return withLink("to-node-2", func(l netlink.Link) error {
			return errors.Join(
				netlink.RouteReplace(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("192.168.9.0/24")), LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.0.0.2"), Protocol: RouteProtocol}),
				netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("fd00:c0a8:2::/48")), LinkIndex: l.Attrs().Index, Priority: 7, Protocol: RouteProtocol}))
		})
	}},
	{"forwarding is off", "node-1", func(*Lab) error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) }},
	{"forwarding is on", "pod-1", func(*Lab) error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0) }},
	{"a table is gone", "service", func(*Lab) error { return nft("delete table inet lab-firewall") }},
	{"a table is empty", "node-1", func(*Lab) error { return nft("flush table inet lab-services") }},
	{"a rule too many", "service", func(*Lab) error { return nft("insert rule inet lab-firewall input accept") }},
	{"a rule is another", "service", func(*Lab) error {
		return nft("flush chain inet lab-firewall input; add rule inet lab-firewall input accept")
	}},
	{"a table too many", "pod-1", func(*Lab) error { return nft("add table inet lab-firewall") }},
}

func withLink(name string, do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return do(l)
}

func nft(text string) error {
	out, err := exec.Command("nft", text).CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft %s: %w: %s", text, err, out)
	}
	return nil
}

func damage(t tb, l *Lab, n int) {
	t.Helper()
	d := damages[n]
	if d.where == "" { // done to the folder
		if err := d.do(l); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		return
	}
	do(t, l, d.where, func() error { return d.do(l) })
}

func TestADamagedLabIsRepaired(t *testing.T) {
	netnstest.Program(t, "nft")
	l := newLab(t)
	s := example(2)
	apply(t, l, s)
	want := snapshot(t, l)
	for n, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			damage(t, l, n)
			// By the process that has it open, or by another.
			by := l
			if n%2 == 0 {
				var err error
				if by, err = Open(l.dir); err != nil {
					t.Fatal(err)
				}
				defer by.Close()
			}
			if changes := apply(t, by, s); len(changes) == 0 {
				t.Error("Apply changed nothing")
			}
			if err := l.Close(); err != nil { // what it had open may be gone
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, snapshot(t, l)); diff != "" {
				t.Errorf("repaired (-want +got):\n%s", diff)
			}
			if changes := apply(t, l, s); len(changes) != 0 {
				t.Errorf("the next Apply changed %q", changes)
			}
		})
	}
}

func TestAChangedSpecIsBroughtAbout(t *testing.T) {
	netnstest.Program(t, "nft")
	l := newLab(t)
	dir := t.TempDir()
	apply(t, l, example(2))
	for _, tc := range []struct {
		name   string
		change func(*Spec)
	}{
		{"a node less", func(s *Spec) { *s = example(1) }},
		{"back", func(*Spec) {}},
		{"a Pod moves, with its name", func(s *Spec) {
			s.Nodes[1].Pods = append(s.Nodes[1].Pods, Pod{"pod-1", addrs("192.168.2.9")})
			s.Nodes[0].Pods = nil
		}},
		{"a Pod moves, with its addresses", func(s *Spec) {
			s.Nodes[0].Pods[0].Addresses, s.Nodes[1].Pods[0].Addresses = s.Nodes[1].Pods[0].Addresses, s.Nodes[0].Pods[0].Addresses
			s.Nodes[0].PodRanges, s.Nodes[1].PodRanges = s.Nodes[1].PodRanges, s.Nodes[0].PodRanges
		}},
		{"a Pod's address changes", func(s *Spec) { s.Nodes[0].Pods[0].Addresses[0] = netip.MustParseAddr("192.168.1.77") }},
		{"a node's address changes", func(s *Spec) { s.Nodes[0].Addresses = addrs("10.0.0.77", "fd00:a::77") }},
		{"nodes swap addresses", func(s *Spec) {
			s.Nodes[0].Addresses, s.Nodes[1].Addresses = s.Nodes[1].Addresses, s.Nodes[0].Addresses
		}},
		{"one family only", func(s *Spec) {
			for i := range s.Nodes {
				n := &s.Nodes[i]
				n.Addresses, n.PodRanges, n.Pods[0].Addresses = n.Addresses[:1], n.PodRanges[:1], n.Pods[0].Addresses[:1]
			}
			s.Services = s.Services[:1]
		}},
		{"the Pod range grows", func(s *Spec) { s.Nodes[0].PodRanges[0] = netip.MustParsePrefix("192.168.0.0/23") }},
		{"the firewall allows more", func(s *Spec) { s.Outside[0].Allow = prefixes("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "::/0") }},
		{"the firewall allows nothing", func(s *Spec) { s.Outside[0].Allow = nil }},
		{"the Service leads to another Pod", func(s *Spec) { s.Services[0].Pod = s.Nodes[0].Pods[0].Addresses[0] }},
		{"no Service addresses", func(s *Spec) { s.Services = nil }},
		{"no services outside", func(s *Spec) { s.Outside = nil }},
		{"names change places", func(s *Spec) {
			s.Nodes[0].Name, s.Nodes[1].Pods[0].Name, s.Outside[0].Name = "service", "node-1", "pod-2"
		}},
		{"nothing", func(s *Spec) { *s = Spec{} }},
		{"all again", func(*Spec) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := example(2)
			tc.change(&s)
			apply(t, l, s)
			if diff := cmp.Diff(fresh(t, dir, s), snapshot(t, l)); diff != "" {
				t.Errorf("changed instead of built (-built +changed):\n%s", diff)
			}
			if changes := apply(t, l, s); len(changes) != 0 {
				t.Errorf("the next Apply changed %q", changes)
			}
		})
	}
}

func TestWhatOthersAddedStays(t *testing.T) {
	netnstest.Program(t, "nft")
	l := newLab(t)
	s := example(1)
	apply(t, l, s)
	do(t, l, "node-1", func() error {
		return errors.Join(
			nft("table ip ip-masq-agent { chain c { accept; }; }"),
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "theirs"}, PeerName: "peer"}),
			withLink("theirs", netlink.LinkSetUp), withLink("peer", netlink.LinkSetUp),
			withLink("eth0", func(l netlink.Link) error {
				return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("172.31.0.1/24"))})
			}),
			withLink("theirs", func(l netlink.Link) error {
				return errors.Join(netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("172.30.0.1/32"))}),
					netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("198.18.0.0/15"))}))
			}))
	})
	before := state(t, l, "node-1", nil)
	s.Nodes[0].Pods, s.Services = nil, nil
	apply(t, l, s)
	after := state(t, l, "node-1", nil)
	for _, line := range before {
		theirs := strings.Contains(line, "theirs") || strings.Contains(line, "172.31.") || strings.Contains(line, "198.18.") || strings.Contains(line, "ip-masq-agent")
		if theirs && !slices.Contains(after, line) {
			t.Errorf("lost: %s", line)
		}
	}
}

func TestLabsDoNotKnowEachOther(t *testing.T) {
	netnstest.Program(t, "nft")
	dir := t.TempDir()
	netnstest.New(t)
	s := example(2) // the same addresses and names in all of them
	labs := make([]*Lab, 6)
	var running sync.WaitGroup
	for i := range labs {
		var err error
		if labs[i], err = Open(filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := labs[i].Remove(); err != nil {
				t.Error(err)
			}
		}()
		running.Go(func() {
			if _, err := labs[i].Apply(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	want := fresh(t, dir, s)
	// While half of them go, are changed and come again, the others stay.
	for i, l := range labs {
		running.Go(func() {
			if i%2 == 0 {
				if changes, err := l.Apply(t.Context(), s); len(changes) != 0 || err != nil {
					t.Errorf("lab %d: changes %q, error %v", i, changes, err)
				}
				return
			}
			if err := l.Remove(); err != nil {
				t.Error(err)
			}
			for n := range 2 {
				if _, err := l.Apply(t.Context(), example(n+1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	for i, l := range labs {
		if diff := cmp.Diff(want, snapshot(t, l)); diff != "" {
			t.Errorf("lab %d (-want +got):\n%s", i, diff)
		}
	}
}

// A lab that is built is ready: no link waits for the kernel to notice that it
// has a carrier, which takes up to a second when both ends have one number.
func TestEveryLinkCarriesPacketsAtOnce(t *testing.T) {
	l := newLab(t)
	s := example(3)
	apply(t, l, s)
	names, err := l.Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		do(t, l, name, func() error {
			links, err := netlink.LinkList()
			for _, link := range links {
				a := link.Attrs()
				if a.RawFlags&unix.IFF_RUNNING == 0 && a.Name != "lo" {
					t.Errorf("%s of %s has no carrier", a.Name, name)
				}
				if a.Name != "lo" && a.Index == a.ParentIndex {
					t.Errorf("both ends of %s of %s have the number %d", a.Name, name, a.Index)
				}
			}
			return err
		})
	}
}

// One lab is used from several goroutines: commands run in it while it is
// changed.
func TestALabIsUsedWhileItChanges(t *testing.T) {
	l := newLab(t)
	apply(t, l, example(2))
	var running sync.WaitGroup
	for n := range 4 {
		running.Go(func() {
			for i := range 3 {
				if n == 0 {
					if _, err := l.Apply(t.Context(), example(1+i%2)); err != nil {
						t.Error(err)
					}
				}
				ns, err := l.Namespace("pod-1")
				if err == nil {
					err = ns.Do(func() error { _, err := netlink.LinkByName("eth0"); return err })
				}
				if err != nil {
					t.Error(err)
				}
				if _, err := l.Dropped("service"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
}

func TestALabIsFoundAgainAfterAKill(t *testing.T) {
	netnstest.Program(t, "nft")
	l := newLab(t)
	s := example(2)
	want := fresh(t, t.TempDir(), s)
	for n := range 8 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), buildVariable+"="+l.dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 16)); err != nil {
			t.Error(err)
		}
		<-time.After(time.Duration(n*n) * time.Millisecond) // some moment of the building
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() == 1 {
			t.Fatalf("the builder ended by itself: %v", err)
		}
		again, err := Open(l.dir)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, again, s)
		if diff := cmp.Diff(want, snapshot(t, again)); diff != "" {
			t.Errorf("after kill %d (-want +got):\n%s", n, diff)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNothingIsLeftOfARemovedLab(t *testing.T) {
	netnstest.New(t)
	dir := filepath.Join(t.TempDir(), "lab")
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	mounts := func() string {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	round := func(watch func(*Lab)) {
		l, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 2 {
			apply(t, l, example(2-n))
		}
		watch(l)
		if err := l.Remove(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the folder is left: %v", err)
		}
	}
	round(func(*Lab) {}) // opens what the runtime keeps
	fds, table := descriptors(), mounts()
	// A link into each namespace goes with it, when nothing keeps it any more.
	outside := netnstest.New(t)
	gone := make(chan netlink.LinkUpdate, 64)
	ended := make(chan struct{})
	defer close(ended)
	netnstest.Do(t, outside, func() error { return netlink.LinkSubscribe(gone, ended) })
	fds += 2 // the namespace and the subscription
	count := 0
	round(func(l *Lab) {
		names, err := l.Names()
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range names {
			ns, err := l.Namespace(name)
			if err != nil {
				t.Fatal(err)
			}
			netnstest.Do(t, outside, func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("probe%d", i)}, PeerName: "probe", PeerNamespace: netlink.NsFd(ns.FD())})
			})
			count++
		}
	})
	limit := time.After(2 * time.Minute) // the kernel takes away those of all programs in turn
	for left := count; left > 0; {
		select {
		case u := <-gone:
			if u.Header.Type == unix.RTM_DELLINK {
				left--
			}
		case <-limit:
			t.Fatalf("%d of %d namespaces are left", left, count)
		}
	}
	if got := descriptors(); got > fds {
		t.Errorf("%d descriptors are open, %d were before", got, fds)
	}
	if diff := cmp.Diff(table, mounts()); diff != "" {
		t.Errorf("the mounts changed (-before +after):\n%s", diff)
	}
}

func TestRemoveTakesOnlyTheLab(t *testing.T) {
	l := newLab(t)
	apply(t, l, example(1))
	kept := filepath.Join(l.dir, "notes")
	if err := os.WriteFile(kept, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also when it is gone already
		if err := l.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	if names, err := l.Names(); len(names) != 0 || err != nil {
		t.Errorf("left: %v, %v", names, err)
	}
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	// And it can be built again.
	apply(t, l, example(1))
}

func TestANamespaceThatIsNotThereIsNamed(t *testing.T) {
	l := newLab(t)
	apply(t, l, Spec{})
	if err := os.WriteFile(l.path("half"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pod-9", "half", "../netns/vpc", "", "."} {
		if _, err := l.Namespace(name); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestABadSpecTouchesNothing(t *testing.T) {
	l := newLab(t)
	apply(t, l, example(1))
	before := snapshot(t, l)
	s := example(1)
	s.Nodes[0].Pods[0].Name = "No"
	if changes, err := l.Apply(t.Context(), s); err == nil || len(changes) != 0 {
		t.Errorf("changes %q, error %v", changes, err)
	}
	if diff := cmp.Diff(before, snapshot(t, l)); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkApply(b *testing.B) {
	s := example(3)
	for b.Loop() {
		l, err := Open(filepath.Join(b.TempDir(), "lab"))
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if _, err := l.Apply(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		built := time.Now()
		if _, err := l.Apply(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(built.Sub(start).Microseconds())/1000, "ms-build")
		b.ReportMetric(float64(time.Since(built).Microseconds())/1000, "ms-again")
		if err := l.Remove(); err != nil {
			b.Fatal(err)
		}
	}
}
