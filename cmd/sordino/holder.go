package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sordino/lab"
)

// A kept lab lives in the namespaces of one process, the holder. It answers on
// a socket that the outer process made, because its own mounts are elsewhere.

// listenerFD is the socket that the outer process hands to the holder.
const listenerFD = 3

// request is what a command asks the holder; its standard streams come along
// as descriptors.
type request struct {
	Op  string `json:"op"` // "exec", "status" or "down"
	Pod string `json:"pod,omitempty"`
	// Cmd is a command whose program is a path.
	Cmd []string `json:"cmd,omitempty"`
	Env []string `json:"env,omitempty"`
	Dir string   `json:"dir,omitempty"`
}

// response ends an answer. Exit is the command's status, or the demo's.
type response struct {
	Exit  int      `json:"exit"`
	Error string   `json:"error,omitempty"`
	Names []string `json:"names,omitempty"`
}

// socketPath is per user, in a folder that only the user can enter.
func socketPath() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("sordino-%d", os.Getuid()))
	} else {
		dir = filepath.Join(dir, "sordino")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of the lab's socket: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != os.Getuid() || !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("the folder %s must be this user's, and closed to others", dir)
	}
	return filepath.Join(dir, "lab.sock"), nil
}

// startHolder runs the demo in a process of its own that stays, and returns
// when the demo is through.
func startHolder(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	path, err := socketPath()
	if err != nil {
		return err
	}
	// One kept lab a user: a new one takes the place of the old.
	if _, err := ask(ctx, request{Op: "down"}, nil); err != nil && !errors.Is(err, errNoLab) {
		return err
	}
	if err := removeSocket(path); err != nil {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("making the lab's socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	// Only the holder listens, or nobody would notice that it ended.
	if err := errors.Join(err, listener.Close()); err != nil {
		return err
	}
	ready, readyWriter, err := os.Pipe()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	defer ready.Close()
	cmd, err := isolated(ctx, args, false)
	if err != nil {
		return errors.Join(err, file.Close(), readyWriter.Close())
	}
	// The demo's output comes through a pipe that is closed when it is through.
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stdout, cmd.Stderr = readyWriter, readyWriter
	if f, ok := stderr.(*os.File); ok {
		cmd.Stderr = f
	}
	err = cmd.Start()
	if err := errors.Join(startError(err), file.Close(), readyWriter.Close()); err != nil {
		return errors.Join(err, removeSocket(path))
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	_, err = io.Copy(stdout, ready)
	if ctx.Err() != nil { // the holder was told to end, and says so
		<-ended
		return errors.Join(exit(interrupted), removeSocket(path))
	}
	if err != nil {
		_ = cmd.Process.Kill() // fails only when it has ended
		return errors.Join(err, <-ended, removeSocket(path))
	}
	answer, err := ask(ctx, request{Op: "status"}, nil)
	if err != nil {
		_ = cmd.Process.Kill()
		var status *exec.ExitError
		if err := <-ended; errors.As(err, &status) && status.Exited() {
			return errors.Join(exit(status.ExitCode()), removeSocket(path)) // it said why
		}
		return errors.Join(fmt.Errorf("the lab did not stay up: %w", err), removeSocket(path))
	}
	self := filepath.Base(os.Args[0])
	fmt.Fprintf(stdout, "\nThe network stays up. Enter a Pod, a node or the service:\n  %[1]s lab exec pod-1a -- CMD\nSee what there is, and take it down:\n  %[1]s lab status\n  %[1]s lab down\n", self)
	if answer.Exit != 0 {
		return exit(answer.Exit)
	}
	return nil
}

// removeSocket takes away the socket of a lab that is gone.
func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hold serves the socket until it is told to stop. Whoever asks is told the
// demo's exit status; who takes the lab down is answered when end has ended
// everything.
func hold(ctx context.Context, l *lab.Lab, status int, end func() error) error {
	listener, err := net.FileListener(os.NewFile(listenerFD, "listener"))
	if err != nil {
		return fmt.Errorf("taking over the lab's socket: %w", err)
	}
	defer listener.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	// Letting go of the output tells the outer process that the lab is up.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("telling that the lab is up: %w", err)
		}
	}
	if err := null.Close(); err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serving the lab's socket: %w", err)
		}
		running.Go(func() {
			defer conn.Close()
			serve(ctx, l, status, conn.(*net.UnixConn), func() error {
				defer stop()
				return end()
			})
		})
	}
}

func serve(ctx context.Context, l *lab.Lab, status int, conn *net.UnixConn, end func() error) {
	var answer response
	r, files, signals, err := receive(conn)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	switch {
	case err != nil:
		answer.Error = err.Error()
	case r.Op == "status":
		answer.Names, err = l.Names()
		answer.Exit = status
	case r.Op == "down":
		err = end()
	case r.Op == "exec" && len(files) == 3 && len(r.Cmd) > 0:
		answer.Exit, err = execute(ctx, l, r, files, signals)
	default:
		err = fmt.Errorf("the lab does not know the request %q", r.Op)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(answer)
}

// receive reads one request and the descriptors that come with it. What
// follows on the connection is read from rest.
func receive(conn *net.UnixConn) (r request, files []*os.File, rest io.Reader, err error) {
	buffer, oob := make([]byte, 1<<20), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buffer, oob)
	if err != nil {
		return r, nil, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return r, nil, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return r, files, nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "stream"))
		}
	}
	reader := bufio.NewReader(io.MultiReader(bytes.NewReader(buffer[:n]), conn))
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return r, files, nil, err
	}
	return r, files, reader, json.Unmarshal(line, &r)
}

// execute runs a command inside a namespace of the lab. It ends when the
// command does; whoever asked and goes away before takes it along. Each byte
// of signals is the number of one to pass on.
func execute(ctx context.Context, l *lab.Lab, r request, files []*os.File, signals io.Reader) (int, error) {
	ns, err := l.Namespace(r.Pod)
	if err != nil {
		names, _ := l.Names()
		return 1, fmt.Errorf("there is no %q in the lab; there are %v", r.Pod, names)
	}
	cmd := exec.Command(r.Cmd[0], r.Cmd[1:]...)
	cmd.Env, cmd.Dir = r.Env, r.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.Do(cmd.Start); err != nil {
		return 126, fmt.Errorf("running %s in %s: %w", r.Cmd[0], r.Pod, err)
	}
	// What the command left in the background stays, and once it is over its
	// number may be another's.
	var over sync.Mutex
	group := -cmd.Process.Pid
	kill := func(s syscall.Signal) {
		over.Lock()
		defer over.Unlock()
		if group != 0 {
			_ = syscall.Kill(group, s)
		}
	}
	defer context.AfterFunc(ctx, func() { kill(syscall.SIGKILL) })()
	go func() {
		one := make([]byte, 1)
		for {
			if _, err := signals.Read(one); err != nil {
				kill(syscall.SIGKILL)
				return
			}
			kill(syscall.Signal(one[0]))
		}
	}()
	defer func() {
		over.Lock()
		defer over.Unlock()
		group = 0
	}()
	err = cmd.Wait()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return ended.ExitCode(), nil
	}
	return 0, err
}

// errNoLab says that there is no holder.
var errNoLab = errors.New("there is no kept lab; start one with \"sordino demo --keep\"")

// ask sends a request to the holder and waits for its answer. A command gets
// the signals that arrive meanwhile.
func ask(ctx context.Context, r request, files []*os.File) (response, error) {
	var answer response
	path, err := socketPath()
	if err != nil {
		return answer, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return answer, errNoLab
	}
	if err != nil {
		return answer, fmt.Errorf("reaching the kept lab: %w", err)
	}
	defer conn.Close()
	text, err := json.Marshal(r)
	if err != nil {
		return answer, err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	text = append(text, '\n')
	// An environment may be larger than the socket's buffer.
	sent, _, err := conn.WriteMsgUnix(text, unix.UnixRights(fds...), nil)
	if err == nil && sent < len(text) {
		_, err = conn.Write(text[sent:])
	}
	if err != nil {
		return answer, fmt.Errorf("asking the kept lab: %w", err)
	}
	if r.Op == "exec" {
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, passedOn...)
		defer close(signals)
		defer signal.Stop(signals)
		go func() {
			for s := range signals {
				_, _ = conn.Write([]byte{byte(s.(syscall.Signal))})
			}
		}()
	} else {
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		defer context.AfterFunc(ctx, func() { conn.Close() })()
	}
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return answer, fmt.Errorf("the kept lab went away: %w", err)
	}
	if answer.Error != "" {
		return answer, errors.New(answer.Error)
	}
	return answer, nil
}

// passedOn are the signals that a command in the lab gets.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
