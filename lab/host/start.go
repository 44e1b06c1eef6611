package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sordino/internal/isolate"
)

// The files in a host's folder.
const (
	socketFile = "host.sock"
	lockFile   = "host.lock"
	logFile    = "host.log"
)

// The descriptors that a host is started with.
const (
	listenerFD = 3
	lockFD     = 4
)

// Argument is the program's first argument when it is to be a host.
const Argument = "lab-host"

// ErrRunning says that the folder has a host already, or just gets one.
var ErrRunning = errors.New("there is a lab host for this folder already")

// Start starts this program again as the host of a folder, with the arguments,
// which must lead to [Main] or [New]. Its output goes to the files; nil is
// host.log in the folder. The host stays when the caller ends.
func Start(dir string, args []string, stdout, stderr *os.File) (*os.Process, error) {
	lock, err := tryLock(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the host has it then
	if stdout == nil || stderr == nil {
		output, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("starting the lab host: %w", err)
		}
		defer output.Close()
		stdout, stderr = output, output
	}
	// The socket is made here: a host's mounts may be others, and who connects
	// from now on waits until it serves.
	listener, err := listen(dir)
	if err != nil {
		return nil, fmt.Errorf("starting the lab host: %w", err)
	}
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("starting the lab host: %w", err)
	}
	defer socket.Close()
	cmd, err := isolate.Command(context.Background(), args, false)
	if err != nil {
		return nil, err
	}
	cmd.Dir = "/"
	// What a server knows is not for agents and commands to see.
	cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return !slices.Contains([]string{"PATH", "HOME", "TMPDIR", isolate.Variable}, name)
	})
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{socket, lock}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(isolate.StartError(err), os.Remove(filepath.Join(dir, socketFile)))
	}
	if err := errors.Join(lock.Truncate(0), second(lock.WriteAt([]byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0))); err != nil {
		return nil, errors.Join(fmt.Errorf("noting the lab host's number: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	go func() { _ = cmd.Wait() }() // takes note of its end, should we live to see it
	return cmd.Process, nil
}

func second(_ int, err error) error { return err }

// tryLock takes the folder's lock, or says ErrRunning.
func tryLock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the lab host's folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the lab host's folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("locking the lab host's folder: %w", err)
	}
	// Who takes a host down removes the file: then this lock is nobody's.
	mine, err := lock.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Stat(lock.Name()); err == nil && os.SameFile(mine, there) {
			return lock, nil
		}
	}
	_ = lock.Close()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("locking the lab host's folder: %w", err)
	}
	return tryLock(dir)
}

// socketAddress is by way of the open folder, because a socket's path must not
// be longer than 107 bytes. The folder is the caller's to close.
func socketAddress(dir string) (*net.UnixAddr, *os.File, error) {
	folder, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	return &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), socketFile), Net: "unix"}, folder, nil
}

func listen(dir string) (*net.UnixListener, error) {
	address, folder, err := socketAddress(dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	if err := os.Remove(filepath.Join(dir, socketFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	return listener, os.Chmod(filepath.Join(dir, socketFile), 0o600)
}

// ErrNoHost says that a folder has no host.
var ErrNoHost = errors.New("there is no lab host for this folder")

func dial(dir string) (*net.UnixConn, error) {
	address, folder, err := socketAddress(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoHost
	}
	if err != nil {
		return nil, fmt.Errorf("reaching the lab host: %w", err)
	}
	defer folder.Close()
	conn, err := net.DialUnix("unix", nil, address)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNoHost
	}
	if err != nil {
		return nil, fmt.Errorf("reaching the lab host: %w", err)
	}
	if err := peer(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Dial returns a client of the folder's host, or ErrNoHost.
func Dial(ctx context.Context, dir string) (*Client, error) {
	c := &Client{dir: dir}
	hello, err := c.Hello(ctx)
	if err != nil {
		return nil, err
	}
	if hello.Protocol != Protocol {
		return nil, fmt.Errorf("the lab host of %s speaks version %d of its protocol, this program %d: take it down with \"sordino lab down --data %s\", its labs are built again by who made them",
			dir, hello.Protocol, Protocol, dir)
	}
	return c, nil
}

// startTime is how long a host may take to be there.
const startTime = 30 * time.Second

// Connect returns a client of the folder's host. It starts one if there is
// none, and in the place of one that speaks another version of the protocol.
func Connect(ctx context.Context, dir string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	c := &Client{dir: dir}
	started := false
	for {
		hello, err := c.Hello(ctx)
		switch {
		case err == nil && hello.Protocol == Protocol:
			return c, nil
		case err == nil:
			if err := c.Down(ctx); err != nil {
				return nil, fmt.Errorf("taking down a lab host of another version: %w", err)
			}
			continue
		case ctx.Err() != nil:
			return nil, err
		case started:
			text, _ := os.ReadFile(filepath.Join(dir, logFile))
			return nil, fmt.Errorf("the lab host did not stay up: %w\n%s", err, text)
		}
		// None, or one that is dying.
		_, err = Start(dir, []string{Argument}, nil, nil)
		if err == nil {
			started = true
			continue
		}
		if !errors.Is(err, ErrRunning) {
			return nil, err
		}
		if err := pause(ctx); err != nil {
			return nil, notAnswering(dir, err)
		}
	}
}

// pause is between two looks at something that tells nobody of its changes.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(5 * time.Millisecond):
		return nil
	}
}

// Down takes a folder's host down, whatever version it is of, with all that it
// holds and its files; ErrNoHost says that there is none. One that somebody
// starts in its place meanwhile is left alone.
func Down(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	was := ErrNoHost
	for {
		err := (&Client{dir: dir}).Down(ctx)
		if err != nil && !errors.Is(err, ErrNoHost) {
			return err
		}
		if err == nil {
			was = nil
		}
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return was
		}
		lock, err := tryLock(dir)
		if err == nil {
			return errors.Join(was, removeFiles(dir), lock.Close())
		}
		if !errors.Is(err, ErrRunning) {
			return err
		}
		if was == nil { // another one has taken its place
			return nil
		}
		// One that is dying, or just being started.
		if err := pause(ctx); err != nil {
			return notAnswering(dir, err)
		}
	}
}

// removeFiles takes the files of a folder without a host away.
func removeFiles(dir string) error {
	var errs []error
	for _, name := range []string{socketFile, logFile, lockFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func notAnswering(dir string, err error) error {
	pid, _ := os.ReadFile(filepath.Join(dir, lockFile))
	return fmt.Errorf("the lab host of %s does not answer, and its lock is held (process %s); if nothing starts one just now, kill that process, and its labs are built again: %w", dir, bytes.TrimSpace(pid), err)
}
