package kubetest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// A starter starts processes that end with this one. The kernel sends the
// death signal when the thread that made a process ends, so one thread makes
// all of them, and stays.
type starter struct{ work chan func() }

func newStarter() *starter {
	s := &starter{make(chan func())}
	go func() {
		// Never unlocked: the thread may be in another namespace, and ends here.
		runtime.LockOSThread()
		for fn := range s.work {
			fn()
		}
	}()
	return s
}

// close ends the thread, and with it whatever it started.
func (s *starter) close() { close(s.work) }

// process is one that a starter started.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// start starts a command in a network namespace, or where this process is when
// ns is nil; the log is appended to.
func (s *starter) start(ns *netns.NS, cmd *exec.Cmd, log string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true // a terminal's Ctrl-C is for us
	done := make(chan error)
	s.work <- func() {
		done <- func() error {
			if ns == nil {
				return cmd.Start()
			}
			home, err := netns.Current()
			if err != nil {
				return err
			}
			defer home.Close()
			if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
				return err
			}
			err = cmd.Start()
			if back := unix.Setns(home.FD(), unix.CLONE_NEWNET); back != nil {
				panic(back) // the next process would start elsewhere
			}
			return err
		}()
	}
	if err := <-done; err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Args[0], err)
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// Ended says how it ended; empty while it runs.
func (p *process) Ended() string {
	select {
	case <-p.exited:
		return p.cmd.ProcessState.String()
	default:
		return ""
	}
}

// Kill ends the process and waits until it has ended.
func (p *process) Kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended
	<-p.exited
}
