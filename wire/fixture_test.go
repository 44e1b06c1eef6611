package wire

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// served is a server on loopback.
type served struct {
	*memory
	t      testing.TB
	addr   string // host:port
	client *http.Client
	log    *testwait.Log
}

func serve(t testing.TB, change ...func(*Options)) *served {
	t.Helper()
	s := &served{memory: newMemory(), t: t, log: &testwait.Log{}}
	o := Options{Environments: s.memory, Log: slog.New(slog.NewTextHandler(s.log, nil))}
	for _, c := range change {
		c(&o)
	}
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = listener.Addr().String()
	httpServer := server.HTTPServer(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := httpServer.Serve(listener); err != http.ErrServerClosed {
			t.Error(err)
		}
	}()
	server.SetServing(true)
	transport := &http.Transport{}
	s.client = &http.Client{Transport: transport, Timeout: time.Minute}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		server.Close()
		if err := httpServer.Shutdown(ctx); err != nil {
			t.Error("shutdown:", err)
		}
		<-done
	})
	return s
}

// answer is a REST answer.
type answer struct {
	*http.Response
	body []byte
	json map[string]any
}

func (s *served) do(method, path, body string, header ...string) answer {
	s.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, "http://"+s.addr, reader)
	if err != nil {
		s.t.Fatal(err)
	}
	// As it is written: clients do not all encode a colon, for example.
	path, query, _ := strings.Cut(path, "?")
	r.URL.Opaque, r.URL.RawQuery = "//"+s.addr+path, query
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	a := answer{Response: response}
	if a.body, err = io.ReadAll(response.Body); err != nil {
		s.t.Fatal(err)
	}
	if len(a.body) > 0 {
		if err := json.Unmarshal(a.body, &a.json); err != nil {
			s.t.Fatalf("%s %s: not JSON: %q", method, path, a.body)
		}
	}
	return a
}

// raw gets a path whose answer may be any JSON.
func (s *served) raw(path string) (code, body string) {
	s.t.Helper()
	response, err := s.client.Get("http://" + s.addr + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return strconv.Itoa(response.StatusCode), string(b)
}

// at walks into JSON: "error", "details", "0".
func (a answer) at(path ...any) any {
	var v any = a.json
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

const (
	location = "/v1/projects/example-project/locations/us-central1"
	parent   = "projects/example-project/locations/us-central1"
	example  = parent + "/environments/example-environment"
)

// documentBody is the body of the page that defines the API, byte for byte,
// with its comment line and its trailing comma.
const documentBody = `// POST https://composer.googleapis.com/v1/{parent=projects/*/locations/*}/environments

{
  "name": "projects/example-project/locations/us-central1/environments/example-environment",
  "config": {
    "softwareConfig": {
      "imageVersion": "composer-1.20.12-airflow-1.10.15"
    },
    "nodeConfig": {
      "ipAllocationPolicy": {
        "useIpAliases": true,
      },
      "enableIpMasqAgent": true
    }
  }
}
`
