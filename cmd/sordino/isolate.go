package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideVariable tells the program that it is inside its own namespaces.
const insideVariable = "SORDINO_INSIDE"

func inside() bool { return os.Getenv(insideVariable) != "" }

// isolated prepares this program to run again in namespaces of its own:
// network, mounts and processes, and users when it is not root. When the first
// process of a PID namespace ends, the kernel ends the others, and with them
// go the mounts and networks that only they held: nothing can be left behind.
func isolated(ctx context.Context, args []string, tied bool) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	// It cleans up when asked to end. A signal that comes before it is ready for
	// one is lost on the first process of a PID namespace.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endTime
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if tied {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	} else {
		cmd.SysProcAttr.Setsid = true
	}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd, nil
}

// endTime is how long the inner process has to clean up after it is told to
// end; then the kernel does it.
const endTime = 10 * time.Second

// startError adds what to do to the kernel's refusal of namespaces.
func startError(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("entering namespaces of its own: %w: run as root, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)", err)
	}
	return err
}

// runInside runs the program again in namespaces of its own and waits for it.
func runInside(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	// The child's death signal comes when the thread that made it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd, err := isolated(ctx, args, true)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	if err := cmd.Start(); err != nil {
		return startError(err)
	}
	err = cmd.Wait()
	if ctx.Err() != nil && cmd.ProcessState.ExitCode() != interrupted {
		return ctx.Err() // it had no time to say so
	}
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return exit(128 + int(status.Signal()))
		}
		return exit(ended.ExitCode())
	}
	return err
}

// settle makes the mounts of the new namespace our own: nothing that is
// mounted here is seen outside, /run is empty, and /proc shows this PID
// namespace where the kernel allows it.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mounting an empty /run: %w", err)
	}
	// Inside a container /proc may be covered in parts, and then the kernel
	// allows no second one. The first one serves too.
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}
