package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sordino/internal/exitstatus"
	"sordino/lab"
)

// exec runs a command inside a namespace. It ends when the command does, when
// whoever asked goes away, or when the lab is removed.
func (h *Host) exec(ctx context.Context, r request, files []*os.File, signals <-chan byte) (int, error) {
	if r.Protocol != Protocol {
		return 0, fmt.Errorf("this lab host speaks version %d of its protocol, not %d", Protocol, r.Protocol)
	}
	if r.Command == nil || len(files) != 3 || len(r.Command.Args) == 0 {
		return 0, errors.New("a command needs a name and three streams")
	}
	l, err := h.find(r.Lab)
	if err != nil {
		return 0, err
	}
	args := r.Command.Args
	if r.Command.OfAgent {
		a, err := l.agent(r.Name)
		if err != nil {
			return 0, err
		}
		a.mu.Lock()
		binary := a.want.Binary
		a.mu.Unlock()
		args = append([]string{binary}, args...)
		args = append(args, a.stateFlag())
		if !slices.ContainsFunc(args, func(s string) bool { return strings.HasPrefix(s, "--config=") }) {
			args = append(args, a.configFlag())
		}
	}
	end, err := l.begin()
	if err != nil {
		return 0, err
	}
	ns, err := l.namespace(r.Name)
	end()
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	l.state.Lock()
	if l.ctx.Err() != nil {
		l.state.Unlock()
		return 0, missing(fmt.Sprintf("there is no lab %q", l.id))
	}
	l.commands.Add(1)
	l.state.Unlock()
	defer l.commands.Done()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir = r.Command.Env, r.Command.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = h.children.start(func() (int, error) {
		if err := ns.Do(cmd.Start); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		return 0, notStarted{err}
	}
	for _, f := range files {
		_ = f.Close() // the command has them
	}
	ended := make(chan struct{})
	var guarding sync.WaitGroup
	guarding.Go(func() {
		kill := func(s syscall.Signal) { _ = syscall.Kill(-cmd.Process.Pid, s) }
		for {
			select {
			case s := <-signals:
				kill(syscall.Signal(s))
				continue
			case <-ctx.Done():
				kill(syscall.SIGKILL)
			case <-l.ctx.Done():
				kill(syscall.SIGKILL)
			case <-ended:
			}
			return
		}
	})
	err = cmd.Wait()
	close(ended)
	guarding.Wait()
	h.children.ended(cmd.Process.Pid)
	return exitstatus.Of(err)
}

// notStarted is an ErrNotStarted with the reason.
type notStarted struct{ error }

func (n notStarted) Is(target error) bool { return target == ErrNotStarted }

// children are the host's child processes. It is the first process of its PID
// namespace, and so gets the orphans of all that ran in it: those are nobody's
// to wait for but its own.
type children struct {
	mu    sync.Mutex
	known map[int]bool // those that somebody waits for
}

// start runs a function that makes a child, so that it is never taken for an
// orphan.
func (c *children) start(do func() (pid int, err error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := do()
	if err == nil {
		c.known[pid] = true
	}
	return err
}

// ended says that a child was waited for.
func (c *children) ended(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, pid)
}

// reapOrphans waits for orphans until the context ends.
func (c *children) reapOrphans(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	for {
		select {
		case <-ctx.Done():
			return
		case <-died:
			c.reap()
		}
	}
}

func (c *children) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pid, p := range processes() {
		if p.parent == os.Getpid() && p.state == 'Z' && !c.known[pid] {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
	}
}

// endAllIn kills what still runs in a lab's namespaces: commands may have left
// processes behind, which would keep the namespaces.
func (c *children) endAllIn(l *lab.Lab) {
	names, _ := l.Names()
	inodes := map[string]bool{}
	for _, name := range names {
		if ns, err := l.Namespace(name); err == nil {
			var stat unix.Stat_t
			if unix.Fstat(ns.FD(), &stat) == nil {
				inodes[fmt.Sprintf("net:[%d]", stat.Ino)] = true
			}
		}
	}
	for pid := range processes() {
		if at, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && pid != os.Getpid() && inodes[at] {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

type process struct {
	parent int
	state  byte
}

// processes lists those of this PID namespace; none when /proc is another's,
// because the kernel did not allow our own.
func processes() map[int]process {
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return nil
	}
	entries, _ := os.ReadDir("/proc")
	all := map[int]process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// "1 (a name) S 0 …": the name may hold anything.
		var p process
		if i := bytes.LastIndexByte(text, ')'); i >= 0 {
			if _, err := fmt.Sscanf(string(text[i+1:]), " %c %d", &p.state, &p.parent); err == nil {
				all[pid] = p
			}
		}
	}
	return all
}
