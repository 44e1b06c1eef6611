package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sordino/access"
	"sordino/internal/testwait"
	"sordino/lab/host"
)

// serving is a server in the test's process, on this machine's real lab.
type serving struct {
	*server
	url, token, data string
	log              *testwait.Log
	stop             func() error // ends it as SIGTERM does
}

// serveHere starts a server and takes all that it made away when the test ends.
func serveHere(t *testing.T, change func(*serveOptions)) *serving {
	t.Helper()
	o := serveOptions{logFormat: "text", workers: 4, agentBinary: filepath.Join(programs, "ip-masq-agent")}
	o.data, o.listen = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0"
	if change != nil {
		change(&o)
	}
	l := &testwait.Log{}
	s, err := newServer(t.Context(), o, l)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute):
			return errors.New("the server does not end")
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := host.Down(context.Background(), o.data); err != nil && !errors.Is(err, host.ErrNoHost) {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", l)
		}
	})
	scheme := "http://"
	if o.certFile != "" {
		scheme = "https://"
	}
	token, err := access.OwnerToken(filepath.Join(o.data, tokenName))
	if err != nil {
		t.Fatal(err)
	}
	return &serving{server: s, url: scheme + s.listener.Addr().String(), token: token, data: o.data, log: l, stop: stop}
}

// point has the commands that follow ask this server.
func (s *serving) point(t *testing.T) {
	t.Helper()
	for name, value := range map[string]string{"SORDINO_SERVER": s.url, "SORDINO_TOKEN": "", "SORDINO_TOKEN_FILE": filepath.Join(s.data, tokenName),
		"SORDINO_PROJECT": "p", "CLOUDSDK_CORE_PROJECT": "", "CLOUDSDK_COMPOSER_LOCATION": "us-central1", "SORDINO_CA_FILE": ""} {
		t.Setenv(name, value)
	}
}

// answer is what a command came to.
type answer struct {
	status         int
	stdout, stderr string
}

func command(t *testing.T, stdin string, args ...string) answer {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := run(t.Context(), args, strings.NewReader(stdin), &stdout, &stderr)
	return answer{status, stdout.String(), stderr.String()}
}

// expect runs a command. Every line of out must be in its output, every line
// of complaint in what it says on standard error; nothing is nothing at all.
func expectCommand(t *testing.T, status int, out, complaint string, stdin string, args ...string) answer {
	t.Helper()
	a := command(t, stdin, args...)
	if a.status != status {
		t.Errorf("sordino %s: status %d, want %d", strings.Join(args, " "), a.status, status)
	}
	for _, s := range []struct{ what, has, want string }{{"output", a.stdout, out}, {"complaint", a.stderr, complaint}} {
		if s.want == "" && s.has != "" {
			t.Errorf("sordino %s: the %s should be empty", strings.Join(args, " "), s.what)
		}
		for line := range strings.Lines(s.want) {
			if line = strings.TrimSpace(line); !strings.Contains(s.has, line) {
				t.Errorf("sordino %s: the %s lacks %q", strings.Join(args, " "), s.what, line)
			}
		}
	}
	if t.Failed() {
		t.Fatalf("stdout:\n%s\nstderr:\n%s", a.stdout, a.stderr)
	}
	return a
}

// ask sends a request with a token; headers are name, value, …
func (s *serving) ask(t *testing.T, method, path, token, body string, headers ...string) (int, string, http.Header) {
	t.Helper()
	return askAt(t, http.DefaultClient, s.url, method, path, token, body, headers...)
}

func askAt(t *testing.T, c *http.Client, url, method, path, token, body string, headers ...string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	response, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text), response.Header
}
