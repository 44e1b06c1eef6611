package kubeapi

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func file(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// served is a client of an API server that the handler plays.
func served(t *testing.T, handler http.HandlerFunc) *Client {
	c, _ := servedWith(t, handler)
	return c
}

// servedWith also tells the folder with the token.
func servedWith(t *testing.T, handler http.HandlerFunc) (*Client, string) {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	file(t, dir, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	config, err := FromKubeconfig(file(t, dir, "kubeconfig", fmt.Sprintf(`
current-context: a
contexts: [{name: a, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q, certificate-authority: ca.crt}}]
users: [{name: u, user: {tokenFile: token}}]
`, server.URL)))
	if err != nil {
		t.Fatal(err)
	}
	file(t, dir, "token", "first\n")
	c := New(config, "ip-masq-agent/test", quiet())
	t.Cleanup(c.Close)
	return c, dir
}

func TestCredentials(t *testing.T) {
	var seen []string
	c, dir := servedWith(t, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Authorization"), r.Header.Get("User-Agent"), r.URL.String(), r.Header.Get("Content-Type"))
		fmt.Fprint(w, `{}`)
	})
	if err := c.Get(t.Context(), Nodes.Named("n1"), nil); err != nil {
		t.Fatal(err)
	}
	file(t, dir, "token", "second") // the kubelet rotated it
	if err := c.Patch(t.Context(), Nodes.Named("n1").Sub("status"), StrategicMerge, map[string]string{}, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"Bearer first", "ip-masq-agent/test", "/api/v1/nodes/n1", "",
		"Bearer second", "ip-masq-agent/test", "/api/v1/nodes/n1/status?fieldManager=ip-masq-agent", "application/strategic-merge-patch+json",
	}
	if !slices.Equal(seen, want) {
		t.Errorf("asked\n%q, want\n%q", seen, want)
	}
}

func TestInCluster(t *testing.T) {
	dir := t.TempDir()
	environment := map[string]string{}
	get := func(name string) string { return environment[name] }
	if _, err := inCluster(get, dir); !errors.Is(err, errNoCluster) {
		t.Errorf("outside of a Pod: %v", err)
	}
	environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"] = "fd00::1", "443"
	if _, err := inCluster(get, dir); err == nil || !strings.Contains(err.Error(), "automountServiceAccountToken") {
		t.Errorf("without a token: %v", err)
	}
	file(t, dir, "token", "x\n")
	file(t, dir, "ca.crt", "nothing")
	if _, err := inCluster(get, dir); err == nil || !strings.Contains(err.Error(), "authority") {
		t.Errorf("without an authority: %v", err)
	}
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	file(t, dir, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	c, err := inCluster(get, dir)
	if err != nil || c.Server != "https://[fd00::1]:443" {
		t.Fatalf("%+v, %v", c, err)
	}
	if token, err := c.Token(); token != "x" || err != nil {
		t.Errorf("token %q, %v", token, err)
	}
}

func TestRefusedKubeconfigs(t *testing.T) {
	for user, want := range map[string]string{
		"{exec: {command: aws}}":            "another program",
		"{auth-provider: {name: gcp}}":      "auth-provider",
		"{username: a, password: b}":        "password",
		"{as: somebody, token: x}":          "act as another user",
		"{client-certificate: missing.crt}": "client-certificate",
		"{client-certificate-data: '????'}": "base64",
		"{client-certificate-data: YQ==}":   "client-certificate and client-key",
	} {
		path := file(t, t.TempDir(), "k", `{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}], users: [{name: u, user: `+user+`}]}`)
		if _, err := FromKubeconfig(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", user, err, want)
		}
	}
	for text, want := range map[string]string{
		"{}":                   "current-context",
		"{current-context: a}": `no context "a"`,
		"{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {server: here}}], users: [{name: u}]}": "is no URL",
	} {
		if _, err := FromKubeconfig(file(t, t.TempDir(), "k", text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	code, body, after := 0, "", ""
	c := served(t, func(w http.ResponseWriter, _ *http.Request) {
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	})
	for _, tc := range []struct {
		code        int
		body, after string
		is          error
		text        string
		wait        time.Duration
	}{
		{404, `{"kind":"Status","message":"configmaps \"x\" not found","reason":"NotFound"}`, "", ErrNotFound, `get configmaps kube-system/x: configmaps "x" not found`, 0},
		{403, `{"kind":"Status","message":"no"}`, "", ErrForbidden, `let a Role in the namespace kube-system allow the verb "get" on "configmaps" of the API group ""`, 0},
		{401, `{"kind":"Status","message":"Unauthorized"}`, "", ErrUnauthorized, "credentials", 0},
		{409, `{"kind":"Status","message":"changed","reason":"Conflict"}`, "", ErrConflict, "changed", 0},
		{409, `{"kind":"Status","message":"there","reason":"AlreadyExists"}`, "", ErrAlreadyExists, "there", 0},
		{410, `{"kind":"Status","message":"old"}`, "", ErrExpired, "old", 0},
		{429, `{"kind":"Status","message":"later","details":{"retryAfterSeconds":3}}`, "", nil, "later", 3 * time.Second},
		{429, `later`, "7", nil, `429 Too Many Requests: "later"`, 7 * time.Second},
		{502, `<html>`, "", nil, `502 Bad Gateway: "<html>"`, 0},
	} {
		code, body, after = tc.code, tc.body, tc.after
		err := c.Get(t.Context(), ConfigMaps.In("kube-system").Named("x"), &struct{}{})
		if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.text) || RetryAfter(err) != tc.wait {
			t.Errorf("%d: %v (after %v)", tc.code, err, RetryAfter(err))
		}
		for _, other := range []error{ErrNotFound, ErrForbidden, ErrUnauthorized, ErrConflict, ErrAlreadyExists, ErrExpired} {
			if errors.Is(err, other) != (other == tc.is) {
				t.Errorf("%d %s: is %v: %v", tc.code, tc.body, other, errors.Is(err, other))
			}
		}
	}
}

type object struct {
	Metadata struct{ Name string }
	Data     map[string]string
}

// following is one Follow whose calls the test looks at.
type following struct {
	mu   sync.Mutex
	seen [][]string // names and data at every call
	errs []error
	wake chan struct{}
}

func follow(t *testing.T, c *Client, ref Ref) *following {
	f := &following{wake: make(chan struct{}, 1000)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Follow(ctx, c, ref, func(all []object) {
			f.mu.Lock()
			defer f.mu.Unlock()
			seen := []string{}
			for _, o := range all {
				seen = append(seen, o.Metadata.Name+"="+o.Data["a"])
			}
			f.seen = append(f.seen, seen)
			f.wake <- struct{}{}
		}, func(err error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.errs = append(f.errs, err)
			f.wake <- struct{}{}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

// until waits for what a call brings.
func (f *following) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		f.mu.Lock()
		good := ok()
		f.mu.Unlock()
		if good {
			return
		}
		select {
		case <-f.wake:
		case <-limit:
			seen, errs := f.told()
			t.Fatalf("never %s; seen %q, errors %v", what, seen, errs)
		}
	}
}

// told is every call until now: what was seen, and the errors. More may come
// while the test looks, so it gets copies.
func (f *following) told() (seen [][]string, errs []error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen), slices.Clone(f.errs)
}

func (f *following) sees(t *testing.T, want ...string) {
	t.Helper()
	f.until(t, strings.Join(want, ","), func() bool {
		return len(f.seen) > 0 && slices.Equal(f.seen[len(f.seen)-1], want)
	})
}

// playing is an API server that ends watches, forgets versions and answers what
// the test likes; how often it was asked to watch is told to the function.
func playing(t *testing.T, version int, watch func(w http.ResponseWriter, r *http.Request, times int)) (c *Client, asked func() []string) {
	var mu sync.Mutex
	var log []string
	times := 0
	c = served(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		mu.Lock()
		if q.Get("watch") == "" {
			log = append(log, "list "+q.Get("fieldSelector"))
			mu.Unlock()
			fmt.Fprintf(w, `{"metadata":{"resourceVersion":"%d"},"items":[{"metadata":{"name":"x","resourceVersion":"%[1]d"},"data":{"a":"%[1]d"}}]}`, version)
			return
		}
		log = append(log, "watch "+q.Get("resourceVersion"))
		times++
		n := times
		mu.Unlock()
		watch(w, r, n)
	})
	return c, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(log)
	}
}

func hold(w http.ResponseWriter, r *http.Request, lines ...string) {
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

// Bookmarks move the version on, and a watch that ends goes on from there.
func TestFollowGoesOn(t *testing.T) {
	c, asked := playing(t, 10, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Query().Get("resourceVersion") == "10" {
			fmt.Fprintln(w, `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"15"}}}`)
			return
		}
		hold(w, r, `{"type":"MODIFIED","object":{"metadata":{"name":"x","resourceVersion":"16"},"data":{"a":"16"}}}`)
	})
	f := follow(t, c, ConfigMaps.In("kube-system").Named("x"))
	f.sees(t, "x=16")
	if got, want := asked(), []string{"list metadata.name=x", "watch 10", "watch 15"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	if seen, errs := f.told(); len(errs) != 0 || len(seen) != 2 {
		t.Errorf("seen %q, errors %v", seen, errs)
	}
}

// 410 in the watch: everything is read anew, and nobody is bothered.
func TestFollowExpired(t *testing.T) {
	c, _ := playing(t, 30, func(w http.ResponseWriter, r *http.Request, times int) {
		if times == 1 {
			fmt.Fprintln(w, `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}}`)
			return
		}
		hold(w, r)
	})
	f := follow(t, c, ConfigMaps.In("kube-system").Named("x"))
	f.until(t, "read twice", func() bool { return len(f.seen) == 2 })
	if _, errs := f.told(); len(errs) != 0 {
		t.Errorf("errors %v", errs)
	}
}

// A server that asks for patience gets it, and an answer that is no JSON is an
// error and no crash.
func TestFollowPatience(t *testing.T) {
	began := time.Now()
	c, _ := playing(t, 30, func(w http.ResponseWriter, r *http.Request, times int) {
		switch times {
		case 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(429)
		case 2:
			fmt.Fprintln(w, "<html>")
		default:
			hold(w, r)
		}
	})
	f := follow(t, c, ConfigMaps.In("kube-system").Named("x"))
	f.until(t, "read three times", func() bool { return len(f.seen) == 3 })
	if _, errs := f.told(); len(errs) != 2 || RetryAfter(errs[0]) != time.Second || time.Since(began) < time.Second {
		t.Errorf("errors %v after %v", errs, time.Since(began))
	}
}

func client(t *testing.T, kubeconfig string) *Client {
	t.Helper()
	config, err := FromKubeconfig(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c := New(config, "ip-masq-agent/test", quiet())
	t.Cleanup(c.Close)
	return c
}

func TestFollowARealServer(t *testing.T) {
	k := kubetest.Start(t, kubetest.Options{})
	c := client(t, k.Kubeconfig())
	one := follow(t, c, ConfigMaps.In("kube-system").Named("x"))
	one.sees(t)
	all := follow(t, c, ServiceCIDRs)
	all.sees(t, "kubernetes=")
	missing := follow(t, c, Ref{Group: "example.org", Version: "v1", Resource: "things"})
	missing.until(t, "not found", func() bool { return len(missing.errs) > 0 && errors.Is(missing.errs[0], ErrNotFound) })

	k.Kubectl(t, "", "-n", "kube-system", "create", "configmap", "x", "--from-literal=a=1")
	one.sees(t, "x=1")
	k.Kubectl(t, "", "-n", "kube-system", "create", "configmap", "y", "--from-literal=a=2")
	began := time.Now()
	if err := c.Patch(t.Context(), ConfigMaps.In("kube-system").Named("x"), MergePatch, json.RawMessage(`{"data":{"a":"3"}}`), nil); err != nil {
		t.Fatal(err)
	}
	one.sees(t, "x=3")
	t.Logf("a change was seen after %v", time.Since(began))
	k.Kubectl(t, "", "-n", "kube-system", "delete", "configmap", "x")
	one.sees(t)
	before, _ := one.told()
	for _, seen := range before {
		if slices.Contains(seen, "y=2") {
			t.Errorf("another object was seen: %q", before)
		}
	}
	k.Kubectl(t, "", "-n", "kube-system", "create", "configmap", "x", "--from-literal=a=4")
	one.sees(t, "x=4")

	// The server dies, and what changes before anybody watches again is seen.
	k.StopAPI()
	one.until(t, "lost", func() bool { return len(one.errs) > 0 })
	lost, _ := one.told()
	if err := k.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Kubectl(t, "", "-n", "kube-system", "patch", "configmap", "x", "-p", `{"data":{"a":"5"}}`)
	one.sees(t, "x=5")
	after, _ := one.told()
	for _, seen := range after[len(lost):] {
		if len(seen) == 0 {
			t.Error("losing the server looked like a deletion")
		}
	}
	if h := c.Health(); h.WatchRestarts == 0 || time.Since(h.LastContact) > time.Minute {
		t.Errorf("%+v", h)
	}

	// What RBAC must allow is said.
	nobody, err := k.KubeconfigFor("nobody")
	if err != nil {
		t.Fatal(err)
	}
	refused := follow(t, client(t, nobody), Nodes.Named("n1"))
	refused.until(t, "refused", func() bool { return len(refused.errs) > 0 })
	_, errs := refused.told()
	if err := errs[0]; !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), `let a ClusterRole allow the verb "list" on "nodes" of the API group ""`) {
		t.Error(err)
	}
}
