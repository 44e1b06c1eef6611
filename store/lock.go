package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sordino/environment"
)

// lockName is a file of its own because SQLite's locks are POSIX locks, which
// a process loses as soon as it closes any descriptor of the database.
const lockName = "sordino.lock"

// lock takes the folder for this process until the file is closed, which the
// kernel does for a process that was killed.
func lock(folder string) (*os.File, error) {
	path := filepath.Join(folder, lockName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data folder: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer file.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		text, _ := io.ReadAll(io.LimitReader(file, 32))
		pid := strings.TrimSpace(string(text))
		if pid == "" {
			pid = "unknown"
		}
		return nil, &environment.Error{Code: environment.FailedPrecondition, Reason: "DATA_FOLDER_IN_USE",
			Message:  fmt.Sprintf("the data folder %s is in use by another server, process %s: stop that one, or choose another folder", folder, pid),
			Metadata: map[string]string{"folder": folder, "pid": pid}}
	}
	// The number is for people; the lock is what holds. A full disk does not
	// keep a server from starting.
	if err := file.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(file, os.Getpid())
	}
	return file, nil
}

// unlock lets go of the folder, also when a process that is being started has
// a copy of the descriptor for a moment.
func unlock(file *os.File) error {
	return errors.Join(unix.Flock(int(file.Fd()), unix.LOCK_UN), file.Close())
}
