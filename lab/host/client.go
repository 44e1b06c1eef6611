package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"sordino/lab"
)

// Client asks a host. It holds nothing open; it may be used by many at once.
type Client struct{ dir string }

// ErrMissing says that a lab, a node or another namespace is not there.
var ErrMissing = errors.New("not there")

// ErrNotStarted says that a command could not be started.
var ErrNotStarted = errors.New("starting the command")

// call asks and waits for the answer. The end of the context cancels the
// request.
func (c *Client) call(ctx context.Context, r request, result any) error {
	conn, err := dial(c.dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	err = asked(conn, send(conn, r, nil), result)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// asked reads the answer to what was sent. One who is refused may be answered
// and cut off before all was sent.
func asked(conn net.Conn, sent error, result any) error {
	err := answer(conn, result)
	if sent != nil && errors.Is(err, errCutOff) {
		return fmt.Errorf("asking the lab host: %w", sent)
	}
	return err
}

var errCutOff = errors.New("the lab host went away")

func answer(from io.Reader, result any) error {
	var a response
	if err := json.NewDecoder(from).Decode(&a); err != nil {
		return fmt.Errorf("%w: %w", errCutOff, err)
	}
	switch {
	case a.Missing:
		return fmt.Errorf("%s: %w", a.Error, ErrMissing)
	case a.NotStarted:
		return fmt.Errorf("%w: %s", ErrNotStarted, a.Error)
	case a.Error != "":
		return errors.New(a.Error)
	case result == nil:
		return nil
	}
	return json.Unmarshal(a.Result, result)
}

// Hello asks who the host is.
func (c *Client) Hello(ctx context.Context) (h Hello, err error) {
	return h, c.call(ctx, request{Op: opHello}, &h)
}

// Down takes everything down, the host too, and waits until it is gone. When
// it returns there may be another one: who drives a host starts it again.
func (c *Client) Down(ctx context.Context) error {
	// One that dies meanwhile is as good.
	was, err := c.Hello(ctx)
	if err == nil {
		err = c.call(ctx, request{Op: opDown}, nil)
	}
	if err != nil && !errors.Is(err, errCutOff) {
		return err
	}
	for {
		lock, err := tryLock(c.dir)
		if err == nil {
			return lock.Close()
		}
		if !errors.Is(err, ErrRunning) {
			return err
		}
		if is, err := c.Hello(ctx); err == nil && is.PID != was.PID {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// Labs lists the labs without asking their agents.
func (c *Client) Labs(ctx context.Context) (labs []Status, err error) {
	return labs, c.call(ctx, request{Op: opLabs}, &labs)
}

// Lab tells what there is of a lab, or ErrMissing.
func (c *Client) Lab(ctx context.Context, id string) (s Status, err error) {
	return s, c.call(ctx, request{Op: opLab, Lab: id}, &s)
}

// Apply makes a lab what the Spec says, and returns what was changed. Agents
// of nodes that are no more are stopped.
func (c *Client) Apply(ctx context.Context, id string, s lab.Spec) (changes []string, err error) {
	return changes, c.call(ctx, request{Op: opApply, Lab: id, Spec: &s}, &changes)
}

// Remove takes a lab away with all that runs in it. One that is not there is
// no error; removed tells.
func (c *Client) Remove(ctx context.Context, id string) (removed bool, err error) {
	return removed, c.call(ctx, request{Op: opRemove, Lab: id}, &removed)
}

// Note adds to a lab's notes, which are the caller's own.
func (c *Client) Note(ctx context.Context, id string, notes map[string]string) error {
	return c.call(ctx, request{Op: opNote, Lab: id, Notes: notes}, nil)
}

// SetAgent makes an agent run on a node as it says, and keeps it running. One
// with other flags is replaced, another configuration is put under the running
// one, the same again changes nothing. It does not wait for the agent.
func (c *Client) SetAgent(ctx context.Context, id, node string, a Agent) error {
	return c.call(ctx, request{Op: opAgent, Lab: id, Name: node, Agent: &a}, nil)
}

// StopAgent ends the agent of a node; its rules stay.
func (c *Client) StopAgent(ctx context.Context, id, node string) error {
	return c.call(ctx, request{Op: opStop, Lab: id, Name: node}, nil)
}

// Await waits until a node's agent is settled, and returns its status.
func (c *Client) Await(ctx context.Context, id, node string) (s AgentStatus, err error) {
	return s, c.call(ctx, request{Op: opAwait, Lab: id, Name: node}, &s)
}

// Probe sends a packet from each namespace to the first address of an outside
// service, and tells whom the service saw.
func (c *Client) Probe(ctx context.Context, id string, p Probe) (seen []Seen, err error) {
	return seen, c.call(ctx, request{Op: opProbe, Lab: id, Probe: &p}, &seen)
}

// Watch calls ready once when it listens, and then changed with the id of a
// lab in which something may have changed. It returns when the context or the
// host ends.
func (c *Client) Watch(ctx context.Context, ready func(), changed func(id string)) error {
	conn, err := dial(c.dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := send(conn, request{Op: opWatch}, nil); err != nil {
		return fmt.Errorf("watching the lab host: %w", err)
	}
	lines := json.NewDecoder(conn)
	for first := true; ; first = false {
		var a response
		if err := lines.Decode(&a); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the lab host went away: %w", err)
		}
		if a.Error != "" {
			return errors.New(a.Error)
		}
		if first {
			ready()
			continue
		}
		var id string
		if err := json.Unmarshal(a.Result, &id); err != nil {
			return err
		}
		changed(id)
	}
}

// Command is something to run inside a namespace.
type Command struct {
	Args []string
	Env  []string
	// Dir is where; empty is the root folder.
	Dir string
	// Standard streams. Files are handed over as they are, others are copied;
	// nil is /dev/null.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Signals are passed on while it runs.
	Signals <-chan os.Signal
	// OfAgent runs the node's agent program with Args, its state folder and,
	// unless Args name one, its configuration.
	OfAgent bool
}

// drainTime is how long output is still read after a command has ended, when a
// process that it left behind holds it open.
const drainTime = time.Second

// Exec runs a command inside a namespace of a lab and returns its exit status;
// for one that was ended by a signal that is 128 and the signal's number. When
// the context ends the command is killed.
func (c *Client) Exec(ctx context.Context, id, namespace string, cmd Command) (status int, err error) {
	conn, err := dial(c.dir)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	s := &streams{}
	defer s.close()
	if err := s.open(cmd); err != nil {
		return 0, fmt.Errorf("preparing the command's streams: %w", err)
	}
	dir := cmd.Dir
	if dir == "" {
		dir = "/"
	}
	r := request{Op: opExec, Lab: id, Name: namespace, Command: &command{cmd.Args, cmd.Env, dir, cmd.OfAgent}}
	sent := send(conn, r, s.theirs)
	s.handedOver()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	ended := make(chan struct{})
	var passing sync.WaitGroup
	passing.Go(func() { pass(conn, cmd.Signals, ended) })
	err = asked(conn, sent, &status)
	close(ended)
	passing.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return status, errors.Join(err, s.drain())
}

func pass(conn net.Conn, signals <-chan os.Signal, ended <-chan struct{}) {
	for {
		select {
		case s, open := <-signals:
			if !open {
				return
			}
			if number, ok := s.(syscall.Signal); ok {
				_, _ = conn.Write([]byte{byte(number)})
			}
		case <-ended:
			return
		}
	}
}

// streams are a command's standard streams: theirs go to the host, ours are
// the other ends of pipes.
type streams struct {
	theirs  []*os.File
	opened  []*os.File // of theirs, those that are ours to close
	readers []*os.File
	input   *os.File
	copying sync.WaitGroup
	mu      sync.Mutex
	errs    []error
}

func (s *streams) open(cmd Command) error {
	if err := s.openInput(cmd.Stdin); err != nil {
		return err
	}
	if err := s.openOutput(cmd.Stdout); err != nil {
		return err
	}
	return s.openOutput(cmd.Stderr)
}

func (s *streams) openInput(from io.Reader) error {
	if f, ok := from.(*os.File); ok && f != nil {
		s.theirs = append(s.theirs, f)
		return nil
	}
	if from == nil {
		return s.openNull(os.O_RDONLY)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	s.theirs, s.opened, s.input = append(s.theirs, reader), append(s.opened, reader), writer
	// Not waited for: nobody can interrupt a reader, and a command that ended
	// needs no more input.
	go func() {
		_, _ = io.Copy(writer, from)
		_ = writer.Close()
	}()
	return nil
}

func (s *streams) openOutput(to io.Writer) error {
	if f, ok := to.(*os.File); ok && f != nil {
		s.theirs = append(s.theirs, f)
		return nil
	}
	if to == nil {
		return s.openNull(os.O_WRONLY)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	s.theirs, s.opened, s.readers = append(s.theirs, writer), append(s.opened, writer), append(s.readers, reader)
	s.copying.Go(func() {
		if _, err := io.Copy(to, reader); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			s.mu.Lock()
			s.errs = append(s.errs, fmt.Errorf("passing the command's output on: %w", err))
			s.mu.Unlock()
			_ = reader.Close() // the command is told by SIGPIPE
		}
	})
	return nil
}

func (s *streams) openNull(mode int) error {
	null, err := os.OpenFile(os.DevNull, mode, 0)
	if err == nil {
		s.theirs, s.opened = append(s.theirs, null), append(s.opened, null)
	}
	return err
}

func (s *streams) handedOver() {
	for _, f := range s.opened {
		_ = f.Close()
	}
	s.opened = nil
}

// drain waits for the rest of the output.
func (s *streams) drain() error {
	for _, r := range s.readers {
		_ = r.SetReadDeadline(time.Now().Add(drainTime))
	}
	s.copying.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

func (s *streams) close() {
	s.handedOver()
	for _, r := range s.readers {
		_ = r.Close()
	}
	if s.input != nil {
		_ = s.input.Close()
	}
	s.copying.Wait()
}
