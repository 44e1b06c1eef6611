// Package podexec runs a command in a Pod for a caller who may go away.
//
// A call to a kubelet carries a command's streams and its exit status. It has no
// signals, and when the call ends the command goes on. So what a call starts is
// [Command]: a program in the Pod that starts the real one, and the call's
// standard input carries frames to it: pieces of the command's own input, the
// end of that, and signals. When the frames end by themselves nobody is there
// any more, and the command is killed with its process group; what left that by
// setsid stays.
//
// It refuses to keep more than 16 MiB of input that a command does not read:
// from then on the command's caller waits, and what comes after it too, signals
// and the end of the call.
//
// To debug it: "kubectl exec -i POD -- /sordino worker run -- COMMAND" hands on
// nothing that is no frame; with an empty standard input the command is killed
// at once.
package podexec

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"sordino/internal/exitstatus"
)

// Command is what a call starts instead of a command.
func Command(command []string) []string {
	return append([]string{"/sordino", "worker", "run", "--"}, command...)
}

// A frame is its kind, the length of its content in four bytes, and that.
const (
	input  = 'i' // content for the command's standard input
	end    = 'e' // of the command's standard input
	signal = 's' // the content is its number, in one byte
)

const (
	longest = 32 << 10 // of a frame's content
	pieces  = 16 << 20 / longest
)

// Frames are what a call's standard input has to be. Close them when the call
// has ended. A read of stdin that does not end may go on after that, until
// whoever made it closes it.
type Frames struct {
	*io.PipeReader
	writer *io.PipeWriter
	closed chan struct{}
	done   sync.WaitGroup
}

// NewFrames makes frames of a command's standard input, which may be nil, and of
// its signals.
func NewFrames(stdin io.Reader, signals <-chan os.Signal) *Frames {
	if stdin == nil {
		stdin = bytes.NewReader(nil)
	}
	reader, writer := io.Pipe()
	f := &Frames{PipeReader: reader, writer: writer, closed: make(chan struct{})}
	var one sync.Mutex // frame at a time
	send := func(kind byte, content []byte) error {
		one.Lock()
		defer one.Unlock()
		_, err := writer.Write(append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content))), content...))
		return err
	}
	go func() {
		buffer := make([]byte, longest)
		for {
			n, err := stdin.Read(buffer)
			if n > 0 && send(input, buffer[:n]) != nil {
				return
			}
			if err != nil {
				_ = send(end, nil) // fails when the call has ended
				return
			}
		}
	}()
	f.done.Go(func() {
		for {
			select {
			case <-f.closed:
				return
			case s := <-signals:
				if number, ok := s.(syscall.Signal); ok && send(signal, []byte{byte(number)}) != nil {
					return
				}
			}
		}
	})
	return f
}

// Close ends the frames. Who still reads gets to their end: the client of the
// Kubernetes API logs every other error of its standard input as its own.
func (f *Frames) Close() error {
	close(f.closed)
	err := f.writer.Close()
	f.done.Wait()
	return err
}

// NotStarted is a command that could not be started.
type NotStarted struct{ Err error }

func (n *NotStarted) Error() string { return "the command cannot be started: " + n.Err.Error() }

func (n *NotStarted) Unwrap() error { return n.Err }

// Run runs a command in the Pod, and returns its exit status; that of one that
// a signal ended is 128 and the signal's number. Frames are read until they end,
// which may be after the command has.
func Run(frames io.Reader, command []string, stdout, stderr io.Writer) (int, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, &NotStarted{err}
	}
	feed := make(chan []byte, pieces)
	go func() {
		for piece := range feed {
			_, _ = stdin.Write(piece) // a command that no longer reads is no error
		}
		_ = stdin.Close()
	}()
	var mu sync.Mutex
	ended := false
	kill := func(s syscall.Signal) {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			_ = syscall.Kill(-cmd.Process.Pid, s) // it may have ended this moment
		}
	}
	go func() {
		finish := sync.OnceFunc(func() { close(feed) })
		defer finish()
		defer kill(syscall.SIGKILL)
		r := bufio.NewReaderSize(frames, 5+longest)
		for over := false; ; {
			kind, content, err := read(r)
			switch {
			case err != nil:
				return
			case kind == input && !over:
				feed <- content
			case kind == end:
				over = true
				finish()
			case kind == signal && len(content) == 1:
				kill(syscall.Signal(content[0]))
			default:
				return // whoever writes this does not know us
			}
		}
	}()
	err = cmd.Wait()
	mu.Lock()
	ended = true
	mu.Unlock()
	return exitstatus.Of(err)
}

func read(r io.Reader) (kind byte, content []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length > longest {
		return 0, nil, fmt.Errorf("a frame of %d bytes", length)
	}
	content = make([]byte, length)
	_, err = io.ReadFull(r, content)
	return head[0], content, err
}

// refusal begins what the program in the Pod says on its standard error, and
// nothing else, when it could not start the command.
const refusal = "\x00podexec: "

// Refuse tells the caller on the call's standard error why the command was not
// started.
func Refuse(stderr io.Writer, why *NotStarted) {
	fmt.Fprintf(stderr, "%s%v", refusal, why.Err)
}

// Stderr is a call's standard error: the command's, or a refusal.
type Stderr struct {
	To io.Writer

	begun   bool
	refused *NotStarted
}

func (s *Stderr) Write(p []byte) (int, error) {
	if !s.begun {
		s.begun = true
		if why, ok := bytes.CutPrefix(p, []byte(refusal)); ok {
			s.refused = &NotStarted{errors.New(string(why))}
		}
	}
	if s.refused != nil || s.To == nil {
		return len(p), nil
	}
	return s.To.Write(p)
}

// Refused is why the command was not started; nil when it was. Ask when the
// call has ended.
func (s *Stderr) Refused() error {
	if s.refused == nil {
		return nil
	}
	return s.refused
}
