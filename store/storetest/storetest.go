// Package storetest gives tests a database of their own.
package storetest

import (
	"os"
	"testing"

	"sordino/store"
)

// Open opens a new database for the length of the test. A test that fails
// keeps it, and says where.
func Open(tb testing.TB) *store.Store {
	tb.Helper()
	return OpenIn(tb, Folder(tb))
}

// OpenIn opens the database of a folder for the length of the test.
func OpenIn(tb testing.TB, folder string) *store.Store {
	tb.Helper()
	s, err := store.Open(folder)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Folder makes a data folder that outlives a test that fails.
func Folder(tb testing.TB) string {
	tb.Helper()
	return folderIn(tb, "")
}

// MemoryFolder is a Folder in memory where the machine has /dev/shm: for tests
// that make many databases and take no power away, only processes.
func MemoryFolder(tb testing.TB) string {
	tb.Helper()
	const shared = "/dev/shm"
	if info, err := os.Stat(shared); err != nil || !info.IsDir() {
		return folderIn(tb, "")
	}
	return folderIn(tb, shared)
}

func folderIn(tb testing.TB, parent string) string {
	tb.Helper()
	folder, err := os.MkdirTemp(parent, "sordino-store-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the database is kept: %s/%s", folder, store.Name)
			return
		}
		if err := os.RemoveAll(folder); err != nil {
			tb.Error(err)
		}
	})
	return folder
}
