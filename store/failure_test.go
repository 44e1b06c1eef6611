package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sordino/environment"
	"sordino/internal/netnstest"
	"sordino/store"
	"sordino/store/storetest"
)

// unavailable is a typed error that says all of the given.
func unavailable(t *testing.T, err error, reason string, says ...string) {
	t.Helper()
	var e *environment.Error
	if !errors.As(err, &e) || e.Code != environment.Unavailable || e.Reason != reason {
		t.Errorf("not %s: %v", reason, err)
		return
	}
	for _, words := range says {
		if !strings.Contains(e.Message, words) {
			t.Errorf("%q does not say %q", e.Message, words)
		}
	}
}

// inPrivateMounts runs the test that calls it again, in a process with mounts
// of its own, and reports whether this is that process.
func inPrivateMounts(t *testing.T) bool {
	t.Helper()
	const inside = "SORDINO_STORE_INSIDE"
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatalf("this test mounts a file system: run it as root, or with hack/test (%s)", netnstest.Required)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// A full disk refuses what is new, keeps what was, and takes writes again when
// there is space.
func TestDiskFull(t *testing.T) {
	if !inPrivateMounts(t) {
		return
	}
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, 0)
	folder := filepath.Join(disk, "data")
	s, err := store.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := 0
	put := func() error {
		e := number(kept)
		err := s.Update(t.Context(), func(tx environment.Tx) error {
			return errors.Join(tx.PutEnvironment(e), tx.PutOperation(createOf(e)))
		})
		if err == nil {
			kept++
		}
		return err
	}
	whole := func(when string) {
		t.Helper()
		view(t, s, func(tx environment.Tx) error {
			list, err := tx.Environments(environment.EnvironmentQuery{})
			operations, err2 := tx.Operations(environment.OperationQuery{})
			if len(list) != kept || len(operations) != kept {
				t.Errorf("%s: %d environments and %d operations of %d", when, len(list), len(operations), kept)
			}
			return errors.Join(err, err2)
		})
	}
	for err = put(); err == nil; err = put() {
	}
	unavailable(t, err, "STORE_DISK_FULL", filepath.Join(folder, store.Name), "the disk is full: free some space", "nothing was stored")
	unavailable(t, put(), "STORE_DISK_FULL")
	if kept == 0 {
		t.Error("nothing fitted")
	}
	whole("while the disk is full")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := put(); err != nil {
		t.Errorf("with space again: %v", err)
	}
	whole("with space again")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if s, err = store.Open(folder); err != nil {
		t.Fatal(err)
	}
	whole("opened again")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	if !inPrivateMounts(t) {
		return
	}
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	s, err := store.Open(disk)
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(disk); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("opened on a read-only disk: %v", err)
	}
}

func TestDamaged(t *testing.T) {
	t.Run("header", func(t *testing.T) {
		folder := storetest.Folder(t)
		if err := os.WriteFile(filepath.Join(folder, store.Name), []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := store.Open(folder)
		unavailable(t, err, "STORE_DAMAGED", folder, "keep a copy", "backup")
	})
	t.Run("pages", func(t *testing.T) {
		folder := storetest.Folder(t)
		s := storetest.OpenIn(t, folder)
		update(t, s, func(tx environment.Tx) (err error) {
			for i := range 200 {
				err = errors.Join(err, tx.PutEnvironment(number(i)))
			}
			return err
		})
		if err := store.Backup(t.Context(), folder, filepath.Join(folder, "copy")); err != nil {
			t.Fatal(err)
		}
		damaged := filepath.Join(folder, "damaged")
		if err := os.Mkdir(damaged, 0o700); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(folder, "copy"))
		if err != nil {
			t.Fatal(err)
		}
		for i := 8192; i < len(data); i++ { // behind the schema
			data[i] = 0xa5
		}
		if err := os.WriteFile(filepath.Join(damaged, store.Name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s = storetest.OpenIn(t, damaged)
		unavailable(t, s.View(t.Context(), func(tx environment.Tx) error {
			_, err := tx.Environments(environment.EnvironmentQuery{})
			return err
		}), "STORE_DAMAGED")
	})
}

func TestRemovedWhileOpen(t *testing.T) {
	folder := storetest.Folder(t)
	s := storetest.OpenIn(t, folder)
	path := filepath.Join(folder, store.Name)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	write := func() error {
		return s.Update(t.Context(), func(tx environment.Tx) error { return tx.PutEnvironment(number(1)) })
	}
	unavailable(t, write(), "STORE_GONE", path, "put the file back")
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Errorf("with the file in its place again: %v", err)
	}
}

func TestTwoServers(t *testing.T) {
	folder := storetest.Folder(t)
	s, err := store.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(folder)
	if e := (*environment.Error)(nil); !errors.As(err, &e) || e.Reason != "DATA_FOLDER_IN_USE" || !strings.Contains(e.Message, fmt.Sprintf("process %d:", os.Getpid())) || !strings.Contains(e.Message, folder) {
		t.Errorf("the second server: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.OpenIn(t, folder)
}

// Another program's lock is waited for, and then named.
func TestLockedByAPerson(t *testing.T) {
	folder := storetest.Folder(t)
	s := storetest.OpenIn(t, folder)
	person := exec.Command(netnstest.Program(t, "sqlite3"), filepath.Join(folder, store.Name))
	in, err := person.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := person.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := person.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "BEGIN IMMEDIATE; SELECT 'has it';")
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	write := func() error {
		return s.Update(context.Background(), func(tx environment.Tx) error { return tx.PutOperation(createOf(number(1))) })
	}
	unavailable(t, write(), "STORE_BUSY", "another program has locked it", "lsof")
	view(t, s, func(tx environment.Tx) error { _, err := tx.Operations(environment.OperationQuery{}); return err })
	if err := errors.Join(in.Close(), person.Wait()); err != nil {
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestFolders(t *testing.T) {
	folder := storetest.Folder(t)
	open := filepath.Join(folder, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{open: "chmod 700", file: "is a file"} {
		if _, err := store.Open(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestBackup(t *testing.T) {
	folder := storetest.Folder(t)
	s := storetest.OpenIn(t, folder)
	e := number(1)
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(e) })
	copied := filepath.Join(folder, "copy")
	if err := os.Mkdir(copied, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(copied, store.Name)
	if err := store.Backup(t.Context(), folder, path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := store.Backup(t.Context(), folder, path); !errors.Is(err, os.ErrExist) {
		t.Errorf("over what is there: %v", err)
	}
	view(t, storetest.OpenIn(t, copied), func(tx environment.Tx) error { _, err := tx.Environment(e.Name); return err })
}
