// Package exitstatus tells what a command ended with, as shells do.
//
// It owns the convention that a command which a signal ended has the status of
// 128 and the signal's number. It refuses to make a status of what was no end of
// a command. To debug it, ask a shell: sh -c 'kill -TERM $$'; echo $?
package exitstatus

import (
	"errors"
	"os/exec"
	"syscall"
)

// Of is the exit status of a command, from what waiting for it returned.
func Of(err error) (int, error) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}
