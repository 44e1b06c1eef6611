package store

import (
	"context"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"sordino/environment"
)

// explain words an error of SQLite for the one who runs the server. Errors of
// other kinds pass as they are.
func explain(path string, err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	if e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY {
		return fmt.Errorf("%w (%v)", environment.ErrConflict, e)
	}
	unavailable := func(reason, advice string) error {
		return &failure{&environment.Error{Code: environment.Unavailable, Reason: reason,
			Message:  fmt.Sprintf("the database %s: %s; nothing was stored (%v)", path, advice, e),
			Metadata: map[string]string{"database": path}}, err}
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return unavailable("STORE_DISK_FULL", "the disk is full: free some space, then try again")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return unavailable("STORE_READ_ONLY", "it cannot be written: make the folder and its files writable for the server's user, then try again")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return unavailable("STORE_DAMAGED", "it is damaged: stop the server, keep a copy of the file, and put a backup in its place")
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return unavailable("STORE_BUSY", "another program has locked it for longer than "+busyTimeout.String()+": end that program (lsof names it), then try again")
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_PROTOCOL:
		return unavailable("STORE_IO", "the disk fails: look into the kernel's log, then try again")
	case sqlite3.SQLITE_NOMEM:
		return unavailable("STORE_NO_MEMORY", "there is no memory left: give the server more, then try again")
	}
	return fmt.Errorf("the database %s: %w", path, err)
}

// failure is the error for a person, with its cause for errors.As.
type failure struct {
	worded *environment.Error
	cause  error
}

func (f *failure) Error() string   { return f.worded.Message }
func (f *failure) Unwrap() []error { return []error{f.worded, f.cause} }

// unlessEnded tells a context's end apart from what it caused.
func unlessEnded(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
