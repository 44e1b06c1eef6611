// Package agentproc runs the real agent program in a node's network namespace
// and listens to what it says.
//
// It owns the process, never the rules: they stay in the kernel however the
// process ends.
package agentproc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"sordino/internal/netns"
	"sordino/masq/agent"
)

// Address is where the agent serves HTTP unless it is told otherwise, in its
// own namespace.
const Address = "127.0.0.1:9927"

// Process is one run of the program.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}

	mu  sync.Mutex
	log []byte // the end of it
}

// logKept is how much of the log is kept: a process may run for months.
const logKept = 32 << 10

// Start runs the program inside the namespace. line, when not nil, gets every
// line of its log as it arrives.
func Start(ns *netns.NS, line func([]byte), binary string, args ...string) (*Process, error) {
	p := &Process{cmd: exec.Command(binary, args...), exited: make(chan struct{})}
	// A terminal's Ctrl-C is for the parent.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	err = ns.Do(p.cmd.Start)
	if err := errors.Join(err, writer.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", binary, err), reader.Close())
	}
	go func() {
		defer close(p.exited)
		lines := bufio.NewScanner(reader)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			p.mu.Lock()
			if p.log = append(append(p.log, lines.Bytes()...), '\n'); len(p.log) > 2*logKept {
				p.log = append(p.log[:0], p.log[len(p.log)-logKept:]...)
			}
			p.mu.Unlock()
			if line != nil {
				line(lines.Bytes())
			}
		}
		_, _ = io.Copy(io.Discard, reader) // a line too long to be one
		_ = reader.Close()
		_ = p.cmd.Wait()
	}()
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended and its log is complete.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Log is what it has said, or the end of it.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.log)
}

// Ended says how it ended; empty while it runs.
func (p *Process) Ended() string {
	select {
	case <-p.exited:
		return p.cmd.ProcessState.String()
	default:
		return ""
	}
}

// endTime is how long the process may take to end, as with a kubelet; it takes
// milliseconds.
const endTime = 30 * time.Second

// Stop ends the process as a kubelet does, and waits for it.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only when it has ended
	select {
	case <-p.exited:
		return nil
	case <-time.After(endTime):
		p.Kill()
		return fmt.Errorf("the agent did not end within %v of SIGTERM, and was killed", endTime)
	}
}

// Kill ends the process at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// Status asks the agent for its state.
func Status(ctx context.Context, ns *netns.NS) (s agent.Status, err error) {
	body, err := Get(ctx, ns, "/status")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// Get asks the agent for a page.
func Get(ctx context.Context, ns *netns.NS, path string) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+Address+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, response.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// readyTime is how long the agent may take on a machine that has much else to do;
// one that ends is not waited for.
const readyTime = 30 * time.Second

// Ready waits until the agent holds the wanted generation or a later one.
func (p *Process) Ready(ctx context.Context, ns *netns.NS, generation uint64) (agent.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := Status(ctx, ns)
		if err == nil && s.Ready && s.AppliedGeneration >= generation {
			return s, nil
		}
		select {
		case <-p.exited:
			return s, fmt.Errorf("the agent ended:\n%s", p.Log())
		case <-ctx.Done():
			return s, fmt.Errorf("the agent does not reach generation %d: %v\n%s", generation, err, p.Log())
		case <-tick.C:
		}
	}
}
