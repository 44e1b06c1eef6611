package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/testwait"
	"sordino/lab"
)

// The test binary is also the host, and other programs that ask one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case Argument:
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			err = Main(ctx)
		case "connect":
			var c *Client
			if c, err = Connect(context.Background(), os.Args[2]); err == nil {
				var h Hello
				if h, err = c.Hello(context.Background()); err == nil {
					fmt.Println(h.PID)
				}
			}
		case "ask as another":
			err = askRaw(os.Args[2])
		default:
			goleak.VerifyTestMain(m)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// folder is a data folder whose host is taken down when the test ends. Its
// path is longer than a socket's may be.
func folder(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 10), "data")
	t.Cleanup(func() {
		if err := Down(context.Background(), dir); err != nil && !errors.Is(err, ErrNoHost) {
			t.Error(err)
		}
	})
	return dir
}

func self(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, args...)
}

func small() lab.Spec {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	return lab.Spec{
		Nodes: []lab.Node{{Name: "node-1", Addresses: []netip.Addr{a("10.0.0.2")}, PodRanges: []netip.Prefix{p("192.168.0.0/24")},
			Pods: []lab.Pod{{Name: "pod", Addresses: []netip.Addr{a("192.168.0.2")}}}}},
		Outside: []lab.Service{{Name: "outside", Addresses: []netip.Addr{a("203.0.113.10")}, Allow: []netip.Prefix{p("10.0.0.0/24")}}},
	}
}

func TestThereIsOneHostAFolder(t *testing.T) {
	dir := folder(t)
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoHost) {
		t.Errorf("before there is one: %v", err)
	}
	var all sync.WaitGroup
	said := make([]string, 6)
	for i := range said {
		cmd := self(t, "connect", dir)
		all.Go(func() {
			out, err := cmd.CombinedOutput()
			if said[i] = string(out); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	if said = slices.Compact(said); len(said) != 1 {
		t.Errorf("several hosts: %q", said)
	}
	c, err := Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := c.Hello(t.Context()); err != nil || fmt.Sprintln(h.PID) != said[0] || syscall.Kill(h.PID, 0) != nil {
		t.Errorf("%+v, %v, want process %s", h, err, said[0])
	}
	if _, err := Start(dir, []string{Argument}, nil, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("a second one: %v", err)
	}
}

// TestAHostOfAnotherVersionIsReplaced lets a program that speaks another
// version hold the folder.
func TestAHostOfAnotherVersionIsReplaced(t *testing.T) {
	dir := folder(t)
	lock, err := tryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			r, _, err := receive(conn)
			if err != nil {
				t.Error(err)
			}
			asked = append(asked, r.Op)
			_ = json.NewEncoder(conn).Encode(map[string]any{"result": map[string]any{"protocol": Protocol + 1, "pid": 1}})
			_ = conn.Close()
			if r.Op == opDown {
				_ = errors.Join(listener.Close(), lock.Close())
				return
			}
		}
	}()
	if _, err := Dial(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "sordino lab down --data "+dir) {
		t.Errorf("who only looks is told %v", err)
	}
	c, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	<-served
	if !slices.Equal(asked, []string{opHello, opHello, opHello, opDown}) {
		t.Errorf("it was asked %q", asked)
	}
	if h, err := c.Hello(t.Context()); err != nil || h.Protocol != Protocol || h.PID == 1 {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestWhatIsNotThereIsNamed(t *testing.T) {
	dir := folder(t)
	c, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), "one", small()); err != nil {
		t.Fatal(err)
	}
	if changes, err := c.Apply(t.Context(), "one", small()); err != nil || len(changes) != 0 {
		t.Errorf("the same again changes %q, %v", changes, err)
	}
	_, labErr := c.Lab(t.Context(), "two")
	_, execErr := c.Exec(t.Context(), "one", "node-2", Command{Args: []string{"true"}})
	_, awaitErr := c.Await(t.Context(), "one", "node-1")
	_, probeErr := c.Probe(t.Context(), "one", Probe{To: "elsewhere", Protocol: "tcp"})
	for text, err := range map[string]error{
		`there is no lab "two"`:                   labErr,
		`there is no "node-2" in the lab`:         execErr,
		`there is no agent on "node-1"`:           awaitErr,
		`there is no outside service "elsewhere"`: probeErr,
		`there is no node "pod" in the lab`:       c.SetAgent(t.Context(), "one", "pod", Agent{Binary: "/bin/true"}),
		`there is no lab "not-here": not there`:   c.Note(t.Context(), "not-here", nil),
	} {
		if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
	for _, id := range []string{"", "..", "a/b", "A", strings.Repeat("a", 65)} {
		if _, err := c.Apply(t.Context(), id, small()); err == nil {
			t.Errorf("the id %q was taken", id)
		}
	}
	if removed, err := c.Remove(t.Context(), "two"); removed || err != nil {
		t.Errorf("removing what is not there: %v, %v", removed, err)
	}
	if err := c.StopAgent(t.Context(), "one", "node-1"); err != nil {
		t.Error(err)
	}
}

func TestProbes(t *testing.T) {
	c, err := Connect(t.Context(), folder(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), "one", small()); err != nil {
		t.Fatal(err)
	}
	node, pod := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("192.168.0.2")
	for _, protocol := range []string{"tcp", "udp", "icmp"} {
		seen, err := c.Probe(t.Context(), "one", Probe{From: []string{"node-1", "pod", "nobody"}, To: "outside", Protocol: protocol})
		if err != nil || len(seen) != 3 {
			t.Fatalf("%s: %+v, %v", protocol, seen, err)
		}
		if s := seen[0]; s.As != node || s.Source != node || s.Dropped {
			t.Errorf("%s: from the node: %+v", protocol, s)
		}
		if s := seen[1]; s.As.IsValid() || s.Source != pod || !s.Dropped || s.Error != "" {
			t.Errorf("%s: from the Pod: %+v", protocol, s)
		}
		if s := seen[2]; s.As.IsValid() || !strings.Contains(s.Error, `there is no "nobody"`) {
			t.Errorf("%s: from nobody: %+v", protocol, s)
		}
	}
	if _, err := c.Probe(t.Context(), "one", Probe{To: "outside", Protocol: "sctp"}); err == nil {
		t.Error("a protocol that nobody answers")
	}
}

func TestALabThatIsAppliedAndRemovedByManyIsWhole(t *testing.T) {
	c, err := Connect(t.Context(), folder(t))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 3 {
				if _, err := c.Apply(t.Context(), "one", small()); err != nil {
					t.Error(err)
				}
				if _, err := c.Remove(t.Context(), "one"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if labs, err := c.Labs(t.Context()); err != nil || len(labs) != 0 {
		t.Errorf("left: %+v, %v", labs, err)
	}
	if _, err := c.Apply(t.Context(), "one", small()); err != nil {
		t.Error(err)
	}
	if s, err := c.Lab(t.Context(), "one"); err != nil || len(s.Namespaces) != 4 {
		t.Errorf("%+v, %v", s, err)
	}
}

// askRaw asks without the client's own check of who serves.
func askRaw(path string) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = send(conn, request{Op: opDown}, nil) // it may be cut off already
	text, err := io.ReadAll(conn)
	fmt.Printf("%s", text)
	return err
}

func TestOtherUsersAreRefused(t *testing.T) {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 || strings.Fields(string(text))[2] == "1" {
		return // there is no other user to be had
	}
	// A folder that anybody can enter, by mistake.
	dir, err := os.MkdirTemp("", "sordino")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "test"), program, 0o755)
	}
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, socketFile), 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "ask as another", filepath.Join(dir, socketFile))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if !strings.Contains(string(out), "is user 65534, not 0") {
		t.Errorf("another user was answered %s, %v", out, err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Errorf("and the host is gone: %v", err)
	}
}

func TestAHostWhoseFolderIsRemovedEnds(t *testing.T) {
	dir := folder(t)
	c, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), "one", small()); err != nil {
		t.Fatal(err)
	}
	h, err := c.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A watcher's connection ends with it.
	watched := make(chan error, 1)
	ready := make(chan struct{})
	go func() { watched <- c.Watch(context.Background(), func() { close(ready) }, func(string) {}) }()
	<-ready
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := <-watched; err == nil {
		t.Error("the host went on")
	}
	testwait.Until(t, time.Minute, 5*time.Millisecond, func() error {
		if syscall.Kill(h.PID, 0) != syscall.ESRCH {
			return errors.New("the host is there")
		}
		return nil
	})
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	dir := folder(t)
	c, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "x\n", "{}\n", `{"protocol":1,"op":"apply","lab":"one"}` + "\n", `{"protocol":1,"op":"exec","lab":"one","name":"x","command":{"args":["true"]}}` + "\n", `{"protocol":9,"op":"labs"}` + "\n"} {
		conn, err := dial(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var a response
		if err := json.NewDecoder(conn).Decode(&a); err == nil && a.Error == "" {
			t.Errorf("%q was answered %+v", text, a)
		}
		_ = conn.Close()
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who drives a host starts it again at once: that one is down is seen all the
// same, and the new one is left alone.
func TestDownWhileAnotherIsStarted(t *testing.T) {
	dir := folder(t)
	first, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := first.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var driving sync.WaitGroup
	driving.Go(func() {
		for ctx.Err() == nil { // as a driver does, without any pause
			if c, err := Connect(ctx, dir); err == nil {
				_ = c.Watch(ctx, func() {}, func(string) {})
			}
		}
	})
	defer driving.Wait()
	defer stop()
	for range 5 {
		within, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := Down(within, dir)
		cancel()
		if err != nil && !errors.Is(err, ErrNoHost) {
			t.Fatal(err)
		}
	}
	c, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := c.Hello(t.Context()); err != nil || now.PID == hello.PID {
		t.Errorf("%+v %v, not another than %+v", now, err, hello)
	}
}
