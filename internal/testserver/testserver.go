// Package testserver runs the built "sordino serve" for tests and benchmarks,
// and asks it what its clients ask.
//
// It owns a data folder and whatever lives on it: the server now and then, the
// log of all its runs, and the lab, which outlives the server. It refuses to
// leave anything up: Close takes all of it down, and so does a shell beside it
// when the test is killed. It knows no rule of the API; what is asked for, and
// what is right, stays with the tests.
//
//	s := testserver.Start(t, testserver.Options{Data: dir})
//	operation := s.Accepted("POST", "/v1/"+parent+"/environments", body)
//	s.Kill()    // kill -9
//	s.Restart() // at the same address
//	s.Succeeds(operation)
//
// Benchmarks use New instead, and have errors.
//
// To debug a test, run it alone with -v: a failed one prints the end of the
// server's log.
package testserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sordino/internal/netnstest"
	"sordino/internal/testprogram"
	"sordino/internal/testwait"
	"sordino/lab/host"
)

// Options say what is run.
type Options struct {
	Data string   // the data folder; the server makes it when it is not there
	Args []string // further arguments of "serve"; the log stays text
	// Program is the program sordino, with the agent beside it; the built one
	// unless it is given.
	Program string
}

// patience is how long a server may take to start, and to end.
const patience = time.Minute

// Server is the program on a data folder, whether it runs or not.
type Server struct {
	*Client
	Program, Data string
	Address       string // host:port, the same from run to run
	Log           *testwait.Log

	args   []string
	cmd    *exec.Cmd // nil while no server runs
	exited chan struct{}

	keeper     *exec.Cmd
	keeperSays testwait.Log
	keeperHas  io.WriteCloser
	frozen     int // the lab's host, while it is stopped
}

// keep takes everything down when its input ends, also when that is because the
// test was killed. Every line of input is the process numbers of the server and
// of a stopped host, 0 for none.
const keep = `
server=0 frozen=0
while read -r s f; do server=$s frozen=$f; done
[ "$frozen" = 0 ] || kill -CONT "$frozen"
[ "$server" = 0 ] || kill -KILL "$server"
exec "$1" lab down --data "$2"
`

// New is a server that does not run yet. Whoever makes it closes it.
func New(o Options) (*Server, error) {
	ports, err := netnstest.FreePorts(1)
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	s := &Server{Client: NewClient("http://"+address, ""), Program: o.Program, Data: o.Data, Address: address, Log: &testwait.Log{}, args: o.Args}
	if s.Program == "" {
		dir, err := testprogram.Built()
		if err != nil {
			return nil, err
		}
		s.Program = filepath.Join(dir, "sordino")
	}
	s.keeper = exec.Command("sh", "-c", keep, "sh", s.Program, s.Data)
	s.keeper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for the test
	s.keeper.Stdout, s.keeper.Stderr = &s.keeperSays, &s.keeperSays
	if s.keeperHas, err = s.keeper.StdinPipe(); err != nil {
		return nil, err
	}
	return s, s.keeper.Start()
}

// Run starts the server and waits until it serves.
func (s *Server) Run(ctx context.Context) error {
	cmd := exec.Command(s.Program, append([]string{"serve", "--data", s.Data, "--listen", s.Address}, s.args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	cmd.Stdout = cmd.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	serving, exited := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(exited)
		var line string
		var err error
		for lines := bufio.NewReader(output); err == nil; {
			line, err = lines.ReadString('\n')
			_, _ = io.WriteString(s.Log, line)
			if strings.Contains(line, " msg=serving ") {
				serving <- struct{}{}
			}
		}
		_ = cmd.Wait()
	}()
	s.cmd, s.exited = cmd, exited
	s.tell()
	var token []byte
	select {
	case <-serving:
		if token, err = os.ReadFile(filepath.Join(s.Data, "token")); err == nil {
			s.Token = strings.TrimSpace(string(token))
			return nil
		}
	case <-exited:
		err = fmt.Errorf("the server ended: %s", cmd.ProcessState)
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(patience):
		err = fmt.Errorf("the server does not serve after %v", patience)
	}
	s.Kill()
	return fmt.Errorf("starting the server: %w\n%s", err, s.said())
}

// PID is the server's process number, 0 while none runs.
func (s *Server) PID() int {
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Kill ends the server at once.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // fails only when it has ended
	<-s.exited
	s.over()
}

// Stop ends the server as an init system does. An error is that it did not end
// well.
func (s *Server) Stop() error { return errors.Join(s.Terminate(), s.Ended()) }

// Terminate asks the server to end, for Ended to wait for.
func (s *Server) Terminate() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Ended waits until a server that was asked to end has ended.
func (s *Server) Ended() error {
	select {
	case <-s.exited:
	case <-time.After(patience):
		s.Kill()
		return fmt.Errorf("the server does not end in %v when asked to\n%s", patience, s.said())
	}
	state := s.cmd.ProcessState
	s.over()
	if !state.Success() {
		return fmt.Errorf("the server: %s\n%s", state, s.said())
	}
	return nil
}

func (s *Server) over() {
	s.cmd = nil
	s.HTTP.CloseIdleConnections()
	s.tell()
}

// Close stops a server that runs, and takes down what it made.
func (s *Server) Close() error {
	err := s.Thaw()
	if s.cmd != nil {
		err = errors.Join(err, s.Stop())
	}
	err = errors.Join(err, s.keeperHas.Close())
	if down := s.keeper.Wait(); down != nil {
		err = errors.Join(err, fmt.Errorf("taking the lab down: %w\n%s", down, &s.keeperSays))
	}
	return err
}

// tell says to the keeper what there is to end.
func (s *Server) tell() { fmt.Fprintln(s.keeperHas, s.PID(), s.frozen) }

// said is the end of the log.
func (s *Server) said() string {
	text := s.Log.String()
	return text[max(0, len(text)-20_000):]
}

// LabHost is the process number of the lab's host.
func (s *Server) LabHost(ctx context.Context) (int, error) {
	c, err := host.Dial(ctx, s.Data)
	if err != nil {
		return 0, err
	}
	hello, err := c.Hello(ctx)
	return hello.PID, err
}

// Freeze stops the lab's host: an operation that needs it runs until Thaw.
func (s *Server) Freeze(ctx context.Context) (err error) {
	if s.frozen, err = s.LabHost(ctx); err != nil {
		return err
	}
	s.tell()
	return syscall.Kill(s.frozen, syscall.SIGSTOP)
}

// Thaw has a host that was stopped go on.
func (s *Server) Thaw() error {
	if s.frozen == 0 {
		return nil
	}
	err := syscall.Kill(s.frozen, syscall.SIGCONT)
	s.frozen = 0
	s.tell()
	return err
}

// Env is what "sordino env" sets for a client, as a shell sees it that evaluates
// what it prints: NAME=VALUE.
func (s *Server) Env(ctx context.Context, client string, flags ...string) (vars []string, err error) {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", `eval "$("$@")" && exec env -0`, "sh",
		s.Program, "env", client, "--data", s.Data, "--listen", s.Address}, flags...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("sordino env %s: %w\n%s", client, err, complaint.String())
	}
	for _, line := range strings.Split(string(out), "\x00") {
		if name, _, ok := strings.Cut(line, "="); ok && name != "PATH" && name != "PWD" && name != "_" && name != "SHLVL" {
			vars = append(vars, line)
		}
	}
	return vars, nil
}
