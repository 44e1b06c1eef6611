package testserver

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fake is a program that keeps in its data folder what it was called with. It
// serves unless the folder has a file "broken".
const fake = `#!/bin/sh
case $1 in
serve)
	[ ! -e "$3/broken" ] || { echo "it is broken" >&2; exit 3; }
	echo "$5" >>"$3/listen"
	echo secret >"$3/token"
	echo "level=INFO msg=serving address=$5" >&2
	exec sleep 600 ;;
lab) echo "$@" >>"$4/lab" ;;
esac
`

func newFake(t *testing.T) (s *Server, read func(name string) string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "sordino")
	if err := os.WriteFile(program, []byte(fake), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Data: dir, Program: program})
	if err != nil {
		t.Fatal(err)
	}
	return s, func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(text)
	}
}

func TestRuns(t *testing.T) {
	s, read := newFake(t)
	for range 2 {
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.URL != "http://"+s.Address || s.Token != "secret" || s.PID() == 0 {
			t.Errorf("%q, %q, process %d", s.URL, s.Token, s.PID())
		}
		s.Kill()
		if s.PID() != 0 {
			t.Error("it still runs")
		}
	}
	if got := read("listen"); got != strings.Repeat(s.Address+"\n", 2) {
		t.Errorf("it was to listen on %q", got)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	// It ends by the signal, and not well.
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "signal: terminated\nlevel=INFO") {
		t.Errorf("%v", err)
	}
	if got := read("lab"); got != "lab down --data "+s.Data+"\n" {
		t.Errorf("the lab: %q", got)
	}
}

func TestDoesNotStart(t *testing.T) {
	s, _ := newFake(t)
	if err := os.WriteFile(filepath.Join(s.Data, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the server ended: exit status 3\nit is broken") {
		t.Errorf("%v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// When the test is killed, the end of the keeper's input is all there is of it.
func TestKilled(t *testing.T) {
	s, read := newFake(t)
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.keeperHas.Close(); err != nil {
		t.Fatal(err)
	}
	<-s.exited
	if status := s.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("the server: %s", s.cmd.ProcessState)
	}
	if err := s.keeper.Wait(); err != nil || read("lab") == "" {
		t.Errorf("the lab: %q, %v", read("lab"), err)
	}
	s.HTTP.CloseIdleConnections()
}

func TestClient(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/v1/bad":
			_, _ = w.Write([]byte(`{"done": true, "error": {"message": "no room"}}`))
		case r.URL.Path == "/v1/good":
			if asked++; asked < 3 {
				_, _ = w.Write([]byte(`{"metadata": {"steps": [{"state": "SUCCESSFUL"}, {"state": "RUNNING"}]}}`))
			} else {
				_, _ = w.Write([]byte(`{"done": true, "metadata": {"steps": [{"state": "SUCCESSFUL"}, {"state": "SUCCESSFUL"}]}}`))
			}
		default:
			_, _ = w.Write([]byte(r.Method + " " + r.RequestURI))
		}
	}))
	defer server.Close()
	c := NewClient(server.URL, "secret")
	defer c.HTTP.CloseIdleConnections()
	if o, err := c.Wait(t.Context(), "good"); err != nil || asked != 3 || o.Succeeded() != 2 {
		t.Errorf("%+v after %d questions, %v", o, asked, err)
	}
	if _, err := c.Wait(t.Context(), "bad"); err == nil || !strings.HasSuffix(err.Error(), "failed: no room") {
		t.Errorf("an operation that fails: %v", err)
	}
	// The path goes as it is.
	if answer, err := c.Ask(t.Context(), "PUT", "/a%2Fb/../c?d=%2F", "{}"); err != nil || string(answer) != "PUT /a%2Fb/../c?d=%2F" {
		t.Errorf("%s, %v", answer, err)
	}
	c.Token = "wrong"
	var refused *Refused
	if _, err := c.Operation(t.Context(), "good"); !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
		t.Errorf("a wrong token: %v", err)
	}
	// An answer that is no success is not an error of Do.
	if response, _, err := c.Do(t.Context(), "GET", "/v1/bad", "", "Authorization", "Bearer secret"); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", response, err)
	}
}
