package podexec

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call is one in progress, with the caller's end and the Pod's in one process.
type call struct {
	t       *testing.T
	stdin   *io.PipeWriter
	signals chan os.Signal
	frames  *Frames
	stdout  testwait.Log
	ended   chan int
}

func start(t *testing.T, command ...string) *call {
	t.Helper()
	in, stdin := io.Pipe()
	c := &call{t: t, stdin: stdin, signals: make(chan os.Signal, 8), ended: make(chan int, 1)}
	c.frames = NewFrames(in, c.signals)
	go func() {
		status, err := Run(c.frames, command, &c.stdout, &c.stdout)
		if err != nil {
			t.Error(err)
		}
		c.ended <- status
	}()
	t.Cleanup(func() { stdin.Close(); in.Close() })
	return c
}

func (c *call) says(text string) {
	c.t.Helper()
	testwait.Until(c.t, time.Minute, time.Millisecond, func() error {
		if !strings.Contains(c.stdout.String(), text) {
			return errors.New("it says only " + c.stdout.String())
		}
		return nil
	})
}

func (c *call) ends(status int) {
	c.t.Helper()
	select {
	case got := <-c.ended:
		if got != status {
			c.t.Errorf("it ended with %d, want %d: %s", got, status, &c.stdout)
		}
	case <-time.After(time.Minute):
		c.t.Errorf("it goes on: %s", &c.stdout)
	}
}

// Who reads frames may still do so when the call has ended, and says so in the
// server's log if that is an error.
func TestClosedFramesHaveAnEnd(t *testing.T) {
	in, stdin := io.Pipe()
	defer stdin.Close()
	frames := NewFrames(in, nil)
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, frames)
		read <- err
	}()
	if err := frames.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; err != nil {
		t.Errorf("reading closed frames: %v", err)
	}
	in.Close()
}

func TestInputOutputAndStatus(t *testing.T) {
	c := start(t, "sh", "-c", "cat; echo error >&2; exit 7")
	text := strings.Repeat("0123456789abcdef", 10_000) // more than one frame
	if _, err := io.WriteString(c.stdin, text); err != nil {
		t.Fatal(err)
	}
	c.says(text)
	if err := c.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	c.ends(7)
	if got := c.stdout.String(); got != text+"error\n" {
		t.Errorf("it says %d bytes, want %d", len(got), len(text)+6)
	}
	c.frames.Close()
}

// Nothing for standard input is its end, and not the call's.
func TestWithoutInput(t *testing.T) {
	frames := NewFrames(nil, nil)
	var out bytes.Buffer
	if status, err := Run(frames, []string{"sh", "-c", "cat; echo done"}, &out, &out); status != 0 || err != nil || out.String() != "done\n" {
		t.Errorf("%d, %v, %q", status, err, &out)
	}
	frames.Close()
}

func TestSignals(t *testing.T) {
	c := start(t, "sh", "-c", "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.01; done")
	c.says("up")
	c.signals <- syscall.SIGTERM
	c.says("caught")
	c.ends(5)
	c.frames.Close()

	c = start(t, "sh", "-c", "echo up; sleep 1000")
	c.says("up")
	c.signals <- syscall.SIGTERM // a shell's background job would ignore SIGINT
	c.ends(128 + 15)
	c.frames.Close()
}

// A caller who goes away takes the command along, what it has started, and also
// when it neither reads its input nor takes a signal.
func TestTheCallerGoesAway(t *testing.T) {
	c := start(t, "sh", "-c", "trap '' TERM INT HUP; echo up; sleep 1000 & wait; sleep 1000")
	c.says("up")
	if _, err := c.stdin.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.frames.Close()
	c.ends(128 + 9) // not before all that have its output have ended
}

// What is no frame ends the command, as a caller does who goes away.
func TestNoFrames(t *testing.T) {
	for _, text := range []string{"", "hello, world", "i\xff\xff\xff\xff", "s\x00\x00\x00\x02ab", "i\x00\x00\x00\x09half"} {
		if status, err := Run(strings.NewReader(text), []string{"sleep", "1000"}, io.Discard, io.Discard); status != 128+9 || err != nil {
			t.Errorf("%q: %d, %v", text, status, err)
		}
	}
}

func TestNotStarted(t *testing.T) {
	_, err := Run(strings.NewReader(""), []string{"/missing"}, io.Discard, io.Discard)
	var why *NotStarted
	if !errors.As(err, &why) || !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out bytes.Buffer
	stderr := &Stderr{To: &out}
	Refuse(stderr, why)
	if got := stderr.Refused(); got == nil || got.Error() != err.Error() || out.Len() != 0 {
		t.Errorf("%v, and %q", got, &out)
	}
	stderr = &Stderr{To: &out}
	for _, text := range []string{"a", refusal} { // only at the beginning
		if _, err := io.WriteString(stderr, text); err != nil {
			t.Fatal(err)
		}
	}
	if stderr.Refused() != nil || out.String() != "a"+refusal {
		t.Errorf("%v, and %q", stderr.Refused(), &out)
	}
}
