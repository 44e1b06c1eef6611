package testserver

import "testing"

// Test is a server in a test, which ends when something that must be is not.
type Test struct {
	*Server
	tb testing.TB
}

// Start starts a server that is taken down when the test ends, by which it has
// to end well.
func Start(tb testing.TB, o Options) *Test {
	tb.Helper()
	s, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
		if tb.Failed() {
			tb.Logf("the end of the server's log:\n%s", s.said())
		}
	})
	t := &Test{s, tb}
	t.Restart()
	return t
}

// Restart runs a server that was killed or stopped.
func (t *Test) Restart() {
	t.tb.Helper()
	if err := t.Run(t.tb.Context()); err != nil {
		t.tb.Fatal(err)
	}
}

// Get asks for what has to be there.
func (t *Test) Get(path string, out any) {
	t.tb.Helper()
	if err := t.Call(t.tb.Context(), "GET", path, "", out); err != nil {
		t.tb.Fatal(err)
	}
}

// Accepted asks for something that takes an operation, and returns its name.
func (t *Test) Accepted(method, path, body string) string {
	t.tb.Helper()
	var o Operation
	if err := t.Call(t.tb.Context(), method, path, body, &o); err != nil || o.Name == "" {
		t.tb.Fatalf("no operation for %s %s %s: %v", method, path, body, err)
	}
	return o.Name
}

// Succeeds waits until an operation has ended well.
func (t *Test) Succeeds(operation string) Operation {
	t.tb.Helper()
	o, err := t.Wait(t.tb.Context(), operation)
	if err != nil {
		t.tb.Fatal(err)
	}
	return o
}
