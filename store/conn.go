package store

import (
	"context"
	"database/sql"
	"errors"
)

// conn is one connection with the statements that it has compiled. There are
// few different ones.
type conn struct {
	sql        *sql.Conn
	statements map[string]*sql.Stmt
}

func (s *Store) connect(write bool) (*conn, error) {
	c, err := s.db.Conn(context.Background())
	if err != nil {
		return nil, err
	}
	if !write {
		if _, err := c.ExecContext(context.Background(), "PRAGMA query_only = on"); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return &conn{c, map[string]*sql.Stmt{}}, nil
}

// close also frees the statements: SQLite keeps a connection in memory that
// has any.
func (c *conn) close() error {
	var errs []error
	for _, s := range c.statements {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.sql.Close())...)
}

func (c *conn) prepare(query string) (*sql.Stmt, error) {
	if s := c.statements[query]; s != nil {
		return s, nil
	}
	s, err := c.sql.PrepareContext(context.Background(), query)
	if err == nil {
		c.statements[query] = s
	}
	return s, err
}

func (c *conn) exec(query string, arguments ...any) error {
	s, err := c.prepare(query)
	if err == nil {
		_, err = s.Exec(arguments...)
	}
	return err
}

// query calls each for every row.
func (c *conn) query(query string, arguments []any, each func(*sql.Rows) error) error {
	s, err := c.prepare(query)
	if err != nil {
		return err
	}
	rows, err := s.Query(arguments...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// idle reports whether no transaction is open: one can be begun.
func (c *conn) idle() bool {
	return c.exec("BEGIN") == nil && c.exec("ROLLBACK") == nil
}
