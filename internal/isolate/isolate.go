// Package isolate runs this program again in namespaces of its own, as root and
// as an ordinary user.
//
// It owns how such a process is started and what its mounts are. It refuses to
// leave anything behind: whatever the process mounted, made or started goes
// with it, however it ends.
//
// To debug it, enter the process: nsenter --all --target PID, and as an
// ordinary user with --user --preserve-credentials.
package isolate

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

	"sordino/internal/exitstatus"
)

// Variable tells the program that it is inside its own namespaces.
const Variable = "SORDINO_INSIDE"

// Exit is the exit status of a process; everything is said already.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Interrupted is the exit status after Ctrl-C or SIGTERM.
const Interrupted = 130

// Inside reports whether this is such a process.
func Inside() bool { return os.Getenv(Variable) != "" }

// Command prepares this program to run again in namespaces of its own:
// network, mounts and processes, and users when it is not root. When the first
// process of a PID namespace ends, the kernel ends the others, and with them
// go the mounts and networks that only they held: nothing can be left behind.
func Command(ctx context.Context, args []string, tied bool) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	// It cleans up when asked to end. A signal that comes before it is ready for
	// one is lost on the first process of a PID namespace.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endTime
	cmd.Env = append(os.Environ(), Variable+"=1")
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

// unheard is how Go's runtime ends the first process of a PID namespace on a
// signal for which there is no handler yet: the kernel does not kill that one.
const unheard = 2

// StartError adds what to do to the kernel's refusal of namespaces.
func StartError(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("entering namespaces of its own: %w: run as root, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)", err)
	}
	return err
}

// Run runs the program again in namespaces of its own and waits for it. An
// exit status other than 0 is an [Exit].
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	// The child's death signal comes when the thread that made it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd, err := Command(ctx, args, true)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	if err := cmd.Start(); err != nil {
		return StartError(err)
	}
	err = cmd.Wait()
	if cmd.ProcessState.ExitCode() == unheard {
		// Ctrl-C goes to both of us, and may be on its way to this one.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second / 10):
		}
	}
	if ctx.Err() != nil && cmd.ProcessState.ExitCode() != Interrupted {
		return ctx.Err() // it had no time to say so
	}
	status, err := exitstatus.Of(err)
	if status != 0 {
		return Exit(status)
	}
	return err
}

// Settle makes the mounts of the new namespace our own: nothing that is
// mounted here is seen outside, what is unmounted outside is not held here, /run
// is empty, and /proc shows this PID
// namespace where the kernel allows it.
func Settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("making the mounts our own: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mounting an empty /run: %w", err)
	}
	// Inside a container /proc may be covered in parts, and then the kernel
	// allows no second one. The first one serves too.
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}
