package store

import (
	"context"
	"errors"

	"modernc.org/sqlite"

	"sordino/environment"
)

// group is the updates that one COMMIT makes durable. Waiting for the disk is
// nearly all that an update costs, so those that come while others write go to
// the disk together: each is a savepoint, and whoever gets the writer back and
// finds nobody else before him commits. An update that nobody meets is a group
// of its own.
type group struct {
	members int
	done    chan struct{} // closed when err is what became of the group
	err     error
}

// Update implements [environment.Store].
func (s *Store) Update(ctx context.Context, do func(environment.Tx) error) error {
	c, err := s.take(ctx, s.writer)
	if err != nil {
		return explain(s.path, err)
	}
	g, err := s.join(ctx, c, do)
	if err != nil {
		return err
	}
	// Those who waited for the writer come first, in their order.
	select {
	case <-g.done:
	case c, open := <-s.writer:
		if open {
			if s.group == g {
				c = s.commit(c)
			}
			s.writer <- c
		}
	}
	<-g.done
	return g.err
}

// join runs a function as a member of the open group, and gives the writer back.
func (s *Store) join(ctx context.Context, c *conn, do func(environment.Tx) error) (g *group, err error) {
	joined := false
	defer func() { // also after a panic
		if !joined {
			c = s.leave(c, err)
		}
		s.writer <- c
	}()
	if s.group == nil {
		if err := s.inPlace(); err != nil {
			return nil, err
		}
		if err := c.exec("BEGIN IMMEDIATE"); err != nil {
			return nil, explain(s.path, err)
		}
		s.group = &group{done: make(chan struct{})}
	}
	s.reserved.changed = false
	if err := c.exec("SAVEPOINT member"); err != nil {
		return nil, explain(s.path, err)
	}
	if err := s.transaction(ctx, c, true, do); err != nil {
		return nil, err
	}
	if err := c.exec("RELEASE member"); err != nil {
		return nil, explain(s.path, err)
	}
	joined = true
	s.group.members++
	return s.group, nil
}

// leave undoes what a member did who failed by the error. The others stay, if
// SQLite has not rolled back all, as it does when the disk is full.
func (s *Store) leave(c *conn, failure error) *conn {
	g := s.group
	if g == nil {
		return rollback(c)
	}
	if s.reserved.changed {
		s.reserved.forget()
	}
	if g.members > 0 {
		err := errors.Join(c.exec("ROLLBACK TO member"), c.exec("RELEASE member"))
		if err == nil {
			return c
		}
		if !errors.As(failure, new(*sqlite.Error)) {
			failure = explain(s.path, err)
		}
	}
	return s.end(rollback(c), failure)
}

// commit makes the group durable.
func (s *Store) commit(c *conn) *conn {
	if err := c.exec("COMMIT"); err != nil {
		return s.end(rollback(c), explain(s.path, err))
	}
	return s.end(c, nil)
}

func (s *Store) end(c *conn, err error) *conn {
	if err != nil && s.group.members > 0 {
		s.reserved.forget()
	}
	s.group.err = err
	close(s.group.done)
	s.group = nil
	return c
}
