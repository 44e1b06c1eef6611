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
	folder, err := os.MkdirTemp("", "sordino-store-")
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
