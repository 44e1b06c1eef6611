package server_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sordino/internal/testserver"
	"sordino/lab/host"
)

// sordino runs a command of the program and returns what it printed.
func (w *world) sordino(args ...string) string {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), w.Program, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("sordino %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// inForce waits until an environment's agents are proven again after a moment.
func (w *world) inForce(id string, after time.Time) {
	w.t.Helper()
	w.eventually(func() error {
		if m := w.masq(id); !m.InForce || !m.ProofTime.After(after) {
			return fmt.Errorf("not in force after %v: %+v", after, m)
		}
		return nil
	})
}

// inside are the processes in the PID namespace of one.
func inside(t *testing.T, pid int) map[int]string {
	t.Helper()
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	links, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if is, err := os.Readlink(link); err == nil && is == namespace {
			n, _ := strconv.Atoi(strings.Split(link, "/")[2])
			found[n], _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", n))
		}
	}
	return found
}

// What dies is started again and proven, while the server goes on.
func TestProcessesDie(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	for _, op := range []string{w.create("e0", withAgent), w.create("e1", withAgent)} {
		w.Succeeds(op)
	}

	// An agent.
	before := w.agents()
	for pid, exe := range inside(t, w.hostPID()) {
		if filepath.Base(exe) == "ip-masq-agent" {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	w.eventually(func() error {
		changed := 0
		now := w.agents()
		for agent, pid := range before {
			if now[agent] == 0 {
				return fmt.Errorf("the agent of %s does not run", agent)
			}
			if now[agent] != pid {
				changed++
			}
		}
		if changed != 1 || len(now) != len(before) {
			return fmt.Errorf("%d agents are others", changed)
		}
		return nil
	})
	w.inForce("e0", time.Time{})
	w.inForce("e1", time.Time{})

	// The lab host.
	first, now := w.hostPID(), time.Now()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.inForce("e0", now)
	w.inForce("e1", now)
	if w.hostPID() == first {
		t.Error("it is the same host")
	}
	w.settled("e0", "e1")

	// Everything at once.
	second, now := w.hostPID(), time.Now()
	w.Kill()
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.stored()
	w.Restart()
	w.inForce("e0", now)
	w.inForce("e1", now)
	w.settled("e0", "e1")
}

// A server that is asked to end answers what it was asked, leaves the
// environments up, and goes on at its next start.
func TestCleanStop(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.Succeeds(w.create("e0", withAgent))
	agents := w.agents()

	// A request whose body is not all there yet, and a create under way.
	half, err := net.Dial("tcp", w.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	body := fmt.Sprintf(`{"name": "%s/environments/late"}`, location)
	fmt.Fprintf(half, "POST /v1/%s/environments HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		location, w.Token, len(body), body[:10])
	op := w.create("e1", withAgent)
	w.eventually(func() error {
		o, err := w.Operation(t.Context(), op)
		if err == nil && len(o.Metadata.Steps) == 0 {
			err = errors.New("it has not begun")
		}
		return err
	})
	if err := w.Terminate(); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error { // no new ones are taken
		c, err := net.Dial("tcp", w.Address)
		if err == nil {
			c.Close()
			return errors.New("it still listens")
		}
		return nil
	})
	if _, err := io.WriteString(half, body[10:]); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(half), nil)
	if err != nil || response.StatusCode != 200 {
		t.Errorf("the request under way: %v %v", err, response)
	}
	if err := w.Ended(); err != nil {
		t.Error(err)
	}
	w.stored()
	for agent, pid := range agents {
		if now := w.agents()[agent]; now != pid {
			t.Errorf("the agent of %s was process %d, and is %d", agent, pid, now)
		}
	}

	w.Restart()
	w.Succeeds(op)
	w.eventually(func() error {
		if states, _ := w.environments(); states["late"] != "RUNNING" {
			return fmt.Errorf("%v", states)
		}
		return nil
	})
	w.settled("e0", "e1", "late")
	for agent, pid := range agents {
		if now := w.agents()[agent]; now != pid {
			t.Errorf("after the start the agent of %s was process %d, and is %d", agent, pid, now)
		}
	}

	// Taken down by hand while no server runs, all of it is built again.
	w.stop()
	if out := w.sordino("lab", "status", "--data", w.Data); !strings.Contains(out, location+"/environments/late") || !strings.Contains(out, "  airflow-worker-3") {
		t.Error(out)
	}
	processes := inside(t, w.hostPID())
	if len(processes) < 7 {
		t.Errorf("a host and six agents should run, not %v", processes)
	}
	w.sordino("lab", "down", "--data", w.Data)
	w.gone(processes)
	now := time.Now()
	w.Restart()
	w.inForce("e0", now)
	w.inForce("e1", now)
	w.eventually(func() error { // without the agent only the lab tells
		if n := len(w.labs()); n != 3 {
			return fmt.Errorf("%d labs", n)
		}
		return nil
	})

	// And while one runs.
	now = time.Now()
	w.sordino("lab", "down", "--data", w.Data)
	w.inForce("e0", now)
	w.inForce("e1", now)

	// The end of it all.
	for _, id := range []string{"e0", "e1", "late"} {
		w.Succeeds(w.Accepted("DELETE", environments+"/"+id, ""))
	}
	w.settled()
	w.stop()
	processes = inside(t, w.hostPID())
	w.sordino("lab", "down", "--data", w.Data)
	w.gone(processes)
	for _, name := range []string{"host.sock", "host.lock", "host.log"} {
		if _, err := os.Stat(filepath.Join(w.Data, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	after, err := os.ReadFile("/proc/self/mounts")
	if err != nil || string(after) != string(mounts) {
		t.Errorf("%v: other mounts:\n%s", err, after)
	}
}

func (w *world) gone(processes map[int]string) {
	w.t.Helper()
	w.eventually(func() error {
		for pid, exe := range processes {
			if is, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && is == exe {
				return fmt.Errorf("process %d, %s, is still there", pid, exe)
			}
		}
		return nil
	})
}

// mountsVariable tells the test that its mounts are its own.
const mountsVariable = "SORDINO_TEST_OWN_MOUNTS"

// With a full disk requests are refused, what was accepted waits, and all goes
// on when there is space again.
func TestFullDisk(t *testing.T) {
	if os.Getenv(mountsVariable) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), mountsVariable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=6m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	w := newWorld(t, filepath.Join(disk, "data"))
	w.Succeeds(w.create("e0", withAgent))

	ballast, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for {
		if _, err := ballast.Write(make([]byte, 512)); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	// What the database's files have room for is still accepted.
	want := []string{"e0"}
	var accepted []string
	for n := 1; ; n++ {
		id := fmt.Sprintf("e%d", n)
		var o testserver.Operation
		var refused *testserver.Refused
		err := w.Call(t.Context(), "POST", environments, fmt.Sprintf(`{"name": "%s/environments/%s"}`, location, id), &o)
		if err == nil {
			accepted, want = append(accepted, o.Name), append(want, id)
			if n > 100 {
				t.Fatal("the disk is not full")
			}
			continue
		}
		if !errors.As(err, &refused) || refused.Status != 503 || !strings.Contains(err.Error(), "STORE_DISK_FULL") || !strings.Contains(err.Error(), "the disk is full: free some space, then try again; nothing was stored") {
			t.Error(err)
		}
		break
	}
	if states, _ := w.environments(); states["e0"] != "RUNNING" || len(states) != len(want) {
		t.Errorf("%v, want %v", states, want)
	}
	if m := w.masq("e0"); !m.InForce {
		t.Errorf("%+v", m)
	}
	// Not even being killed loses something.
	w.Kill()
	if err := ballast.Truncate(0); err != nil {
		t.Fatal(err)
	}
	w.Restart()
	for _, op := range accepted {
		w.Succeeds(op)
	}
	w.Succeeds(w.create("last", withAgent))
	w.settled(append(want, "last")...)
	w.stop()
	w.stored()
	if err := host.Down(t.Context(), w.Data); err != nil {
		t.Error(err)
	}
}

// A second server on the same data folder is refused, and told who has it.
func TestTwoServers(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	out, err := exec.CommandContext(t.Context(), w.Program, "serve", "--data", w.Data, "--listen=127.0.0.1:0").CombinedOutput()
	want := fmt.Sprintf("the data folder %s is in use by another server, process %d: stop that one, or choose another folder", w.Data, w.PID())
	if err == nil || !strings.Contains(string(out), want) {
		t.Errorf("%v\n%s, want %s", err, out, want)
	}
	// Nor is the first one's port taken away, and its folder left as it was.
	out, err = exec.CommandContext(t.Context(), w.Program, "serve", "--data", filepath.Join(t.TempDir(), "other"), "--listen", w.Address).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "address already in use") {
		t.Errorf("%v\n%s", err, out)
	}
	w.settled()
}
