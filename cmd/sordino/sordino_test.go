package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sordino/demo"
	"sordino/internal/netnstest"
	"sordino/internal/testprogram"
	"sordino/internal/testwait"
	"sordino/lab/host"
)

// programs is a folder with both programs, which every user can read.
var programs string

// TestMain also is the lab host of servers that run in the test's process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == host.Argument {
		main()
	}
	code := 1
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(programs)
	os.Exit(code)
}

func build() (err error) {
	if programs, err = os.MkdirTemp("", "sordino-test-"); err != nil {
		return err
	}
	if err := os.Chmod(programs, 0o755); err != nil {
		return err
	}
	return testprogram.Build(programs, testprogram.Both)
}

// user is who runs the program, with a folder for the lab's socket.
type user struct {
	name string
	uid  uint32
}

// users are root and an ordinary user, or whoever runs the tests where those
// cannot be had.
var users = available()

func available() []user {
	const nobody = 65534
	text, _ := os.ReadFile("/proc/self/uid_map")
	for line := range strings.Lines(string(text)) {
		var first, outer, count int
		if _, err := fmt.Sscan(line, &first, &outer, &count); err == nil && os.Getuid() == 0 && first+count > nobody {
			return []user{{"root", 0}, {"ordinary user", nobody}}
		}
	}
	self := user{"this user", uint32(os.Getuid())}
	return []user{self, self}
}

// command prepares a run of the program in a fresh environment without PATH.
func (u user) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "sordino"), args...)
	cmd.Env = []string{"TMPDIR=" + u.folder(t)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if int(u.uid) != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.uid, Gid: u.uid}
	}
	return cmd
}

// folder is one for each test and user.
func (u user) folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(programs, fmt.Sprintf("%s-%d", strings.NewReplacer("/", "-", "'", "").Replace(strings.SplitN(t.Name(), "/", 2)[0]), u.uid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(u.uid), int(u.uid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

type result struct {
	status         int
	stdout, stderr string
	took           time.Duration
}

func (u user) run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return finish(t, u.command(t, args...), stdin)
}

func finish(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String(), time.Since(start)}
}

// traces is what the programs may leave on the machine: processes, mounts, and
// rules, links and routes of this namespace. A namespace of theirs is there as
// long as a process is in it; its number alone says nothing, because the kernel
// gives it again.
type traces struct {
	processes map[string]string // what each is, by number and time of start
	mounts    string
	kernel    string
}

func look(t *testing.T) traces {
	t.Helper()
	found := traces{processes: processes(t)}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found.mounts = string(mounts)
	for _, args := range [][]string{{"nft", "list", "ruleset"}, {"ip", "-br", "link"}, {"ip", "route"}} {
		out, err := exec.Command(netnstest.Program(t, args[0]), args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		found.kernel += string(out)
	}
	return found
}

// processes finds those of the programs, and those of others in a namespace
// that one of the programs is in.
func processes(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	found, theirs := map[string]string{}, map[string]bool{}
	for _, first := range []bool{true, false} {
		for _, e := range entries {
			stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
			_, rest, _ := strings.Cut(string(stat), ") ")
			fields := strings.Fields(rest)
			// One that has ended and whose parent does not ask (Z) is the parent's.
			if err != nil || len(fields) < 20 || fields[0] == "Z" {
				continue
			}
			exe, _ := os.Readlink("/proc/" + e.Name() + "/exe")
			in := strings.HasPrefix(exe, programs)
			if first && !in {
				continue
			}
			for _, kind := range []string{"net", "mnt", "pid", "user"} {
				mine, _ := os.Readlink("/proc/self/ns/" + kind)
				link, err := os.Readlink("/proc/" + e.Name() + "/ns/" + kind)
				if err != nil || link == mine {
					continue
				}
				if first {
					theirs[link] = true
				}
				in = in || theirs[link]
			}
			if in {
				found[e.Name()+" "+fields[19]] = exe
			}
		}
	}
	return found
}

// nothingLeft waits until no process of the programs is there any more, nor
// any that was seen in their namespaces, and compares the rest with what was
// there before.
func nothingLeft(t *testing.T, before traces, seen map[string]string) {
	t.Helper()
	testwait.Until(t, time.Minute, 5*time.Millisecond, func() error {
		if left := processes(t); len(left) > 0 || !gone(seen) {
			return fmt.Errorf("left: %v, of %v", left, seen)
		}
		return nil
	})
	after := look(t)
	if diff := cmp.Diff(before.mounts, after.mounts); diff != "" {
		t.Errorf("mounts (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(before.kernel, after.kernel); diff != "" {
		t.Errorf("rules, links, routes (-before +after):\n%s", diff)
	}
}

// gone reports whether all these processes have ended.
func gone(seen map[string]string) bool {
	for id := range seen {
		pid, start, _ := strings.Cut(id, " ")
		stat, _ := os.ReadFile("/proc/" + pid + "/stat")
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) >= 20 && fields[0] != "Z" && fields[19] == start {
			return false
		}
	}
	return true
}

func TestDemo(t *testing.T) {
	netnstest.New(t)
	for _, u := range users {
		t.Run(u.name, func(t *testing.T) {
			before := look(t)
			r := u.run(t, "", "demo")
			if r.status != 0 || r.stderr != "" || !strings.Contains(r.stdout, "Every row is as expected.") || strings.Contains(r.stdout, "   NO") {
				t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
			}
			if r.took > time.Minute {
				t.Errorf("it took %v", r.took)
			}
			for _, part := range []string{"\n1. ", "\n2. ", "\n3. ", "\n4. ", "tcp udp icmp", "the firewall dropped 192.168.1.2", "fd00:a::11", "agent reports"} {
				if !strings.Contains(r.stdout, part) {
					t.Errorf("%q is not in the output:\n%s", part, r.stdout)
				}
			}
			nothingLeft(t, before, nil)
		})
	}
}

// document is what --output=json prints.
type document struct {
	Failed int          `json:"failed"`
	Phases []demo.Phase `json:"phases"`
}

func parse(t *testing.T, text string) document {
	t.Helper()
	var d document
	decoder := json.NewDecoder(strings.NewReader(text))
	if err := decoder.Decode(&d); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		t.Fatalf("there is more than one document:\n%s", text)
	}
	return d
}

func TestDemoJSON(t *testing.T) {
	netnstest.New(t)
	r := users[1].run(t, "", "demo", "--output=json")
	d := parse(t, r.stdout)
	if r.status != 0 || d.Failed != 0 || len(d.Phases) != 4 {
		t.Errorf("status %d, %+v", r.status, d)
	}
	for _, p := range d.Phases {
		if len(p.Rows) < 12 {
			t.Errorf("%s: %d rows", p.Title, len(p.Rows))
		}
		for _, row := range p.Rows {
			if !row.OK || row.Saw != row.Expected {
				t.Errorf("%s: %+v", p.Title, row)
			}
		}
	}
}

// program writes a shell script that stands in for the agent.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(users[0].folder(t), "agent")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnAgentThatDoesItsWorkBadlyFailsTheDemo(t *testing.T) {
	netnstest.New(t)
	// Compatible with upstream, it does not exempt what it is told of the cluster.
	agent := program(t, `exec `+filepath.Join(programs, "ip-masq-agent")+` "$@" --compat=upstream`)
	r := users[0].run(t, "", "demo", "--agent-binary", agent)
	if r.status != 1 || !strings.Contains(r.stdout, "   NO\n") || !strings.Contains(r.stdout, "Not as expected: ") || strings.Contains(r.stdout, "Every row") {
		t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	r = users[0].run(t, "", "demo", "--agent-binary", agent, "--output=json")
	failed := 0
	d := parse(t, r.stdout)
	for _, p := range d.Phases {
		for _, row := range p.Rows {
			if !row.OK {
				failed++
			}
		}
	}
	if r.status != 1 || failed == 0 || d.Failed != failed {
		t.Errorf("status %d, %d failed of which %d are told", r.status, failed, d.Failed)
	}
	// Kept, it can be looked at, and the status is the same.
	defer users[0].run(t, "", "lab", "down")
	r = users[0].run(t, "", "demo", "--agent-binary", agent, "--keep")
	if r.status != 1 || !strings.Contains(r.stdout, "lab exec") {
		t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	if r := users[0].run(t, "", "lab", "status"); r.status != 0 || !strings.Contains(r.stdout, "pod-1a\n") {
		t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
}

func TestABrokenAgentIsAClearErrorSoon(t *testing.T) {
	netnstest.New(t)
	before := look(t)
	notExecutable := filepath.Join(users[0].folder(t), "text")
	if err := os.WriteFile(notExecutable, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, binary, want string }{
		{"ends at once", program(t, "echo no luck today >&2; exit 3"), "no luck today"},
		{"is not a program", notExecutable, "permission denied"},
		{"is not there", "/nowhere/agent", "finding the agent program"},
		{"is a folder", "/", "finding the agent program"},
	} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keep=%v", tc.name, keep), func(t *testing.T) {
				args := []string{"demo", "--agent-binary", tc.binary}
				if keep {
					args = append(args, "--keep")
				}
				r := users[0].run(t, "", args...)
				if r.status != 1 || !strings.Contains(r.stderr, tc.want) || strings.Contains(r.stdout, "Every row") {
					t.Errorf("status %d, want %q\nstdout %s\nstderr %s", r.status, tc.want, r.stdout, r.stderr)
				}
				if r.took > time.Minute {
					t.Errorf("it took %v", r.took)
				}
				nothingLeft(t, before, nil)
			})
		}
	}
}

// start runs the demo and hands out what it prints, line by line.
func (u user) start(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer, <-chan error) {
	t.Helper()
	cmd := u.command(t, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return cmd, &out, ended
}

func TestHoweverItEndsNothingIsLeft(t *testing.T) {
	netnstest.New(t)
	before := look(t)
	whole := users[0].run(t, "", "demo").took
	for i, tc := range []struct {
		name   string
		send   func(pid int) error
		status int
	}{
		{"Ctrl-C", func(pid int) error { return syscall.Kill(-pid, syscall.SIGINT) }, 130},
		{"SIGTERM", func(pid int) error { return syscall.Kill(pid, syscall.SIGTERM) }, 130},
		{"SIGKILL", func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }, -1},
	} {
		// From before the inner process is there to the last phase.
		for n, percent := range []time.Duration{2, 10, 35, 70} {
			u := users[(i+n)%2]
			t.Run(fmt.Sprintf("%s after %d%% of it, %s", tc.name, percent, u.name), func(t *testing.T) {
				cmd, out, ended := u.start(t, "demo")
				<-time.After(whole * percent / 100) // a moment as good as any
				seen := processes(t)
				if err := tc.send(cmd.Process.Pid); err != nil && !errors.Is(err, syscall.ESRCH) { // it was through
					t.Fatal(err)
				}
				select {
				case <-ended:
				case <-time.After(time.Minute):
					t.Fatalf("it does not end:\n%s", out)
				}
				if got := cmd.ProcessState.ExitCode(); got != tc.status && got != 0 && got != -1 { // it was through, or had not begun
					t.Errorf("status %d, want %d:\n%s", got, tc.status, out)
				}
				if tc.status == 130 && cmd.ProcessState.ExitCode() == 130 && strings.Count(out.String(), "interrupted") > 1 {
					t.Errorf("it says more than once that it was interrupted:\n%s", out)
				}
				nothingLeft(t, before, seen)
			})
		}
		t.Run("again after "+tc.name, func(t *testing.T) {
			if r := users[i%2].run(t, "", "demo"); r.status != 0 {
				t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
			}
		})
	}
}

func TestAKeptLab(t *testing.T) {
	netnstest.New(t)
	for _, u := range users {
		t.Run(u.name, func(t *testing.T) {
			before := look(t)
			if r := u.run(t, "", "lab", "status"); r.status != 1 || !strings.Contains(r.stderr, "sordino demo --keep") {
				t.Errorf("status without a lab: %+v", r)
			}
			if r := u.run(t, "", "lab", "down"); r.status != 0 || r.stdout != "nothing is up\n" {
				t.Errorf("down without a lab: %+v", r)
			}
			defer u.run(t, "", "lab", "down")
			r := u.run(t, "", "demo", "--keep")
			if r.status != 0 || !strings.Contains(r.stdout, "Every row is as expected.") || !strings.Contains(r.stdout, "sordino lab exec pod-1a -- CMD") {
				t.Fatalf("status %d\n%s%s", r.status, r.stdout, r.stderr)
			}
			first := processes(t)
			if len(first) < 4 {
				t.Errorf("a holder and three agents should run, not %v", first)
			}
			if r := u.run(t, "", "lab", "status"); r.status != 0 || !strings.Contains(r.stdout, "node-1\n") || !strings.Contains(r.stdout, "service\n") {
				t.Errorf("%+v", r)
			}
			t.Run("exec", func(t *testing.T) { testExec(t, u) })

			// A second one takes its place.
			if r := u.run(t, "", "demo", "--keep"); r.status != 0 {
				t.Fatalf("%+v", r)
			}
			second := processes(t)
			for id, exe := range first {
				if second[id] != "" {
					t.Errorf("process %s %s of the first lab is still there", id, exe)
				}
			}
			// And a killed one can be replaced too. The agents go with their holder.
			for id := range second {
				var pid int
				if _, err := fmt.Sscan(id, &pid); err != nil {
					t.Fatal(err)
				}
				if exe := second[id]; filepath.Base(exe) == "sordino" {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			}
			nothingLeft(t, before, second)
			if r := u.run(t, "", "lab", "exec", "pod-1a", "--", "/bin/true"); r.status != 1 || !strings.Contains(r.stderr, "there is no kept lab") {
				t.Errorf("%+v", r)
			}
			if r := u.run(t, "", "demo", "--keep"); r.status != 0 {
				t.Fatalf("%+v", r)
			}
			third := processes(t)
			if r := u.run(t, "", "lab", "down"); r.status != 0 || r.stdout != "" {
				t.Errorf("%+v", r)
			}
			nothingLeft(t, before, third)
			if left, err := filepath.Glob(filepath.Join(u.folder(t), "sordino-*", "*")); err != nil || len(left) > 0 {
				t.Errorf("left: %v %v", left, err)
			}
		})
	}
}

func testExec(t *testing.T, u user) {
	sh := func(script string) []string { return []string{"lab", "exec", "pod-1a", "--", "/bin/sh", "-c", script} }
	for _, tc := range []struct {
		name           string
		stdin          string
		args           []string
		status         int
		stdout, stderr string
	}{
		{"exit status", "", sh("exit 7"), 7, "", ""},
		{"signal", "", sh("kill -9 $$"), 137, "", ""},
		{"streams", "in\n", sh("read x; echo out $x; echo err >&2"), 0, "out in\n", "err\n"},
		{"arguments", "", []string{"lab", "exec", "pod-1a", "--", "/bin/echo", "a b", "--flag", "$HOME"}, 0, "a b --flag $HOME\n", ""},
		{"a Pod's network", "", sh("cat /proc/net/dev | grep -c eth0"), 0, "1\n", ""},
		{"the folder", "", sh("pwd"), 0, "/\n", ""},
		{"unknown Pod", "", []string{"lab", "exec", "nobody", "--", "/bin/true"}, 1, "", `there is no "nobody" in the lab; there are [node-1`},
		{"unknown command", "", []string{"lab", "exec", "pod-1a", "--", "no-such-command"}, 127, "", "no-such-command"},
		{"no command", "", []string{"lab", "exec", "pod-1a"}, 1, "", "requires at least 2 arg"},
		{"a folder as command", "", []string{"lab", "exec", "pod-1a", "--", "/bin"}, 127, "", "/bin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := u.command(t, tc.args...)
			cmd.Env = append(cmd.Env, "PATH=/usr/bin:/bin")
			r := finish(t, cmd, tc.stdin)
			if r.status != tc.status || r.stdout != tc.stdout || !strings.Contains(r.stderr, tc.stderr) || tc.stderr == "" && r.stderr != "" {
				t.Errorf("%+v", r)
			}
		})
	}
	t.Run("PATH and a large environment", func(t *testing.T) {
		dir := u.folder(t)
		if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("#!/bin/sh\necho \"$GREETING\" ${#LARGE1} ${#LARGE9}\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := u.command(t, "lab", "exec", "pod-1a", "--", "mine")
		cmd.Env = append(cmd.Env, "PATH="+dir, "GREETING=hello")
		for n := range 10 {
			cmd.Env = append(cmd.Env, fmt.Sprintf("LARGE%d=%s", n, strings.Repeat("x", 100_000)))
		}
		if r := finish(t, cmd, ""); r.status != 0 || r.stdout != "hello 100000 100000\n" {
			t.Errorf("status %d %.200s %.200s", r.status, r.stdout, r.stderr)
		}
	})
	t.Run("signals are passed on, each of them", func(t *testing.T) {
		cmd := u.command(t, sh(`trap 'echo int' INT; trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do read x; done`)...)
		in, out := pipes(t, cmd)
		expect(t, out, "ready\n")
		for _, s := range []struct {
			signal syscall.Signal
			answer string
		}{{syscall.SIGINT, "int\n"}, {syscall.SIGINT, "int\n"}, {syscall.SIGUSR1, "usr1\n"}, {syscall.SIGTERM, "term\n"}} {
			if err := cmd.Process.Signal(s.signal); err != nil {
				t.Fatal(err)
			}
			// The shell's read goes on after a trap only with a line.
			if _, err := in.Write([]byte("\n")); err != nil {
				t.Fatal(err)
			}
			expect(t, out, s.answer)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
			t.Error(err)
		}
	})
	t.Run("a killed caller takes the command along", func(t *testing.T) {
		cmd := u.command(t, sh("echo ready; read x")...)
		_, out := pipes(t, cmd)
		expect(t, out, "ready\n")
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		// The command had the pipe, which ends when nobody has it any more.
		expect(t, out, "")
		_ = cmd.Wait()
	})
	t.Run("many at once", func(t *testing.T) {
		var running sync.WaitGroup
		for n := range 8 {
			running.Go(func() {
				r := u.run(t, fmt.Sprint(n), sh("cat; exit "+fmt.Sprint(n))...)
				if r.status != n && r.status != 127 || r.stdout != fmt.Sprint(n) && r.status != 127 {
					t.Errorf("%d: %+v", n, r)
				}
			})
		}
		running.Wait()
	})
}

// pipes starts the command with pipes that are the test's.
func pipes(t *testing.T, cmd *exec.Cmd) (io.Writer, *os.File) {
	t.Helper()
	stdinReader, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stdoutWriter, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdinReader, stdoutWriter, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stdinReader.Close(), stdoutWriter.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); stdout.Close() })
	return stdin, stdout
}

// expect reads until the text is there; nothing means the end.
func expect(t *testing.T, from *os.File, text string) {
	t.Helper()
	if err := from.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if text == "" {
		if rest, err := io.ReadAll(from); err != nil {
			t.Fatalf("still open: %v after %q", err, rest)
		}
		return
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(from, got); err != nil || string(got) != text {
		t.Fatalf("got %q, error %v, want %q", got, err, text)
	}
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"version"}, 0, "sordino devel"},
		{[]string{"--help"}, 0, "demo"},
		{[]string{"demo", "--help"}, 0, "--agent-binary"},
		{[]string{"lab", "--help"}, 0, "exec"},
		{[]string{"demo", "--output=yaml"}, 1, `--output "yaml": write text or json`},
		{[]string{"demo", "now"}, 1, `unknown command "now"`},
		{[]string{"demo", "--agent-binary=/nowhere"}, 1, `finding the agent program: exec: "/nowhere": stat /nowhere: no such file or directory; build it with "make build"`},
		{[]string{"dance"}, 1, `unknown command "dance"`},
		{[]string{"demo", "--dance"}, 1, "unknown flag: --dance; see: sordino demo --help"},
		{[]string{"clusters", "check"}, 1, "accepts 1 arg(s), received 0; write it as: sordino clusters check FILE"},
		{[]string{"clusters", "check", "/nonexistent"}, 1, "no such file or directory; give the path of a file that can be read\n"},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			var out bytes.Buffer
			if status := run(context.Background(), tc.args, strings.NewReader(""), &out, &out); status != tc.status || !strings.Contains(out.String(), tc.want) {
				t.Errorf("status %d:\n%s", status, out.String())
			}
		})
	}
}

func TestTheFolderOfAKeptLabMustBePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sordino")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Dir(dir))
	if path, err := keptDir(); err != nil || path != dir {
		t.Errorf("%s %v", path, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := keptDir(); err == nil || !strings.Contains(err.Error(), "closed to others") {
		t.Errorf("a folder that others can enter: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := keptDir(); err == nil {
		t.Error("a symbolic link was followed")
	}
}
