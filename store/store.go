package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"

	"sordino/environment"
)

// Name is the database's file name in the data folder.
const Name = "sordino.db"

const (
	// busyTimeout is how long a write waits for another program, such as a
	// person's sqlite3, to let go of the database.
	busyTimeout = 5 * time.Second
	// readers is how many read at a time; more wait. Each has a page cache of
	// up to 2 MiB.
	readers = 4
)

// Store is an open database.
type Store struct {
	path   string
	opened os.FileInfo // what path named when it was opened
	lock   *os.File
	db     *sql.DB
	writer chan *conn // holds the one writer while nobody writes
	reader chan *conn
	// Of who holds the writer:
	group    *group // nil when no transaction is open
	reserved reservations

	documents documents
}

var _ environment.Store = (*Store)(nil)

// Open opens the database in a folder and brings its schema up to date. It
// makes the folder (0700) and the files (0600) where there are none. Errors
// say what to do about them.
func Open(folder string) (*Store, error) {
	scripts, err := loadMigrations(migrationFiles)
	if err != nil {
		return nil, err
	}
	return open(folder, scripts)
}

func open(folder string, scripts []string) (_ *Store, err error) {
	folder, err = filepath.Abs(folder)
	if err != nil {
		return nil, err
	}
	if err := makeFolder(folder); err != nil {
		return nil, err
	}
	s := &Store{path: filepath.Join(folder, Name), writer: make(chan *conn, 1), reader: make(chan *conn, readers)}
	if s.lock, err = lock(folder); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(explain(s.path, err), s.Close())
		}
	}()
	// SQLite would make the file readable for all. -wal and -shm get its mode.
	file, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	err = file.Chmod(0o600)
	s.opened, _ = file.Stat()
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	// As durable as fsync, and half the time: the file's timestamps may be
	// older after a power cut.
	if _, err := sqlite.Fdatasync(true); err != nil && !errors.Is(err, sqlite.ErrFdatasyncUnavailable) {
		return nil, err
	}
	s.db, err = dial(s.path, "rwc")
	if err != nil {
		return nil, err
	}
	for range cap(s.writer) {
		s.writer <- nil
	}
	for range cap(s.reader) {
		s.reader <- nil
	}
	writer, err := s.take(context.Background(), s.writer)
	if err != nil {
		return nil, err
	}
	err = migrate(writer, s.path, scripts)
	s.writer <- writer
	return s, err
}

// makeFolder makes the folder, or looks whether the one that is there can be
// trusted.
func makeFolder(folder string) error {
	info, err := os.Stat(folder)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return fmt.Errorf("making the data folder: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the data folder: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the data folder %s is a file: choose another folder", folder)
	}
	if mode := info.Mode(); mode.Perm()&0o002 != 0 && mode&os.ModeSticky == 0 {
		return fmt.Errorf("everybody can write into the data folder %s, and so replace the database: run chmod 700 on it", folder)
	}
	return nil
}

// Path is the database's file.
func (s *Store) Path() string { return s.path }

// Close waits for the transactions that run, and lets go of the folder.
func (s *Store) Close() error {
	var errs []error
	if s.db != nil {
		for _, pool := range []chan *conn{s.reader, s.writer} {
			for range cap(pool) {
				c := <-pool
				if pool == s.writer && s.group != nil {
					c = s.commit(c)
				}
				if c != nil {
					errs = append(errs, c.close())
				}
			}
			close(pool)
		}
		errs = append(errs, s.db.Close())
	}
	return errors.Join(append(errs, unlock(s.lock))...)
}

// View implements [environment.Store].
func (s *Store) View(ctx context.Context, do func(environment.Tx) error) error {
	c, err := s.take(ctx, s.reader)
	if err != nil {
		return explain(s.path, err)
	}
	defer func() { s.reader <- rollback(c) }()
	if err := c.exec("BEGIN"); err != nil {
		return explain(s.path, err)
	}
	return s.transaction(ctx, c, false, do)
}

// transaction runs a function with a Tx. The context ends it between two
// statements, never a statement: a COMMIT that is cut off would leave open what
// happened.
func (s *Store) transaction(ctx context.Context, c *conn, write bool, do func(environment.Tx) error) error {
	t := &tx{ctx: ctx, conn: c, write: write, path: s.path, documents: &s.documents}
	if write {
		t.reserved = &s.reserved
	}
	defer func() { t.conn = nil }()
	if err := do(t); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// rollback ends a transaction, and gives up a connection that does not get out
// of it. A write that failed may have rolled back all by itself.
func rollback(c *conn) *conn {
	if err := c.exec("ROLLBACK"); err != nil && !c.idle() {
		_ = c.close() // whatever it holds ends with it
		return nil
	}
	return c
}

// take waits for a connection, and makes it if it is the first time or the one
// before was given up.
func (s *Store) take(ctx context.Context, pool chan *conn) (*conn, error) {
	select {
	case c, open := <-pool:
		if !open {
			return nil, errors.New("the database is closed")
		}
		if c != nil {
			return c, nil
		}
		c, err := s.connect(pool == s.writer)
		if err != nil {
			pool <- nil
		}
		return c, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// inPlace looks whether the file is still there: SQLite would go on writing
// into one that was removed, and all would be lost with the process.
func (s *Store) inPlace() error {
	now, err := os.Stat(s.path)
	if err == nil && os.SameFile(now, s.opened) {
		return nil
	}
	return &environment.Error{Code: environment.Unavailable, Reason: "STORE_GONE",
		Message:  fmt.Sprintf("the database %s was removed or replaced while the server runs: nothing was stored; put the file back if it was moved, else start the server again", s.path),
		Metadata: map[string]string{"database": s.path}}
}

// Backup writes a whole, compact copy of a folder's database to a file that
// must not exist yet. The folder's server may run meanwhile: it is another
// process as often as this one.
func Backup(ctx context.Context, folder, path string) error {
	source := filepath.Join(folder, Name)
	if _, err := os.Stat(source); err != nil {
		return fmt.Errorf("backing up the database: %w", err)
	}
	// VACUUM INTO takes an empty file as well; this makes it 0600 from the start.
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the backup: %w", err)
	}
	if err := file.Close(); err != nil {
		return err
	}
	db, err := dial(source, "rw")
	if err == nil {
		_, err = db.ExecContext(ctx, "VACUUM INTO ?", path)
		err = errors.Join(err, db.Close())
	}
	if err == nil {
		// VACUUM INTO does not sync.
		if file, err = os.Open(path); err == nil {
			err = errors.Join(file.Sync(), file.Close())
		}
	}
	if err != nil {
		return errors.Join(explain(path, unlessEnded(ctx, err)), os.Remove(path))
	}
	return nil
}

// dial opens a database file; the mode is SQLite's: "rwc" makes it.
func dial(path, mode string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+url.Values{
		"mode":          {mode},
		"_busy_timeout": {fmt.Sprint(busyTimeout.Milliseconds())},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_foreign_keys": {"on"},
		"_dqs":          {"0"},
		"_defensive":    {"1"},
		"_error_rc":     {"1"},
	}.Encode())
}
