package access

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/environment"
	"sordino/wire/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) forward(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func logger() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

func reasonOf(err error) string {
	var e *environment.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return fmt.Sprint(err)
}

func TestPermissions(t *testing.T) {
	const service = "/google.cloud.orchestration.airflow.service.v1.Environments/"
	tests := map[string]Permission{
		service + "GetEnvironment":        {"composer.environments.get", Viewer},
		service + "ListEnvironments":      {"composer.environments.list", Viewer},
		service + "CreateEnvironment":     {"composer.environments.create", Editor},
		service + "DeleteEnvironment":     {"composer.environments.delete", Editor},
		service + "CheckUpgrade":          {"composer.environments.check", Viewer},
		service + "ExecuteAirflowCommand": {"composer.environments.execute", Editor},
		"/google.cloud.orchestration.airflow.service.v1beta1.ImageVersions/List": {"composer.imageVersions.list", Viewer},
		"/google.longrunning.Operations/DeleteOperation":                         {"composer.operations.delete", Editor},
		"/sordino.masq.v1.MasqAgents/ExplainFlow":                                {"sordino.masqAgents.explain", Viewer},
		"/sordino.masq.v1.MasqAgents/PlanMasqAgent":                              {"sordino.masqAgents.plan", Viewer},
		"/sordino.masq.v1.MasqAgents/UpdateMasqAgent":                            {"sordino.masqAgents.update", Editor},
		"/sordino.worker.v1.Workers/Run":                                         {"sordino.workers.run", Admin},
	}
	for method, want := range tests {
		if got := PermissionOf(method); got != want {
			t.Errorf("%s takes %v, want %v", method, got, want)
		}
	}
}

func TestRolesHoldForTheirProject(t *testing.T) {
	p := Principal{"ci", map[string]Role{"a": Editor, AllProjects: Viewer}}
	const create, get, run = "/s.Environments/CreateEnvironment", "/s.Environments/GetEnvironment", "/sordino.worker.v1.Workers/Run"
	for _, test := range []struct {
		method, project string
		allowed         bool
	}{{create, "a", true}, {create, "b", false}, {get, "b", true}, {run, "a", false}} {
		err := p.Authorize(test.method, test.project, "projects/"+test.project)
		if (err == nil) != test.allowed {
			t.Errorf("%s in %s: %v", test.method, test.project, err)
		}
		if err != nil && (environment.CodeOf(err) != environment.PermissionDenied || !strings.Contains(err.Error(), "(or it might not exist)")) {
			t.Errorf("the refusal is %v", err)
		}
	}
}

// Whoever has proven who they are is named with a refusal, too.
func TestAuthorizeCalls(t *testing.T) {
	token, hash := NewToken()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write(t, path, fmt.Sprintf("tokens: [{name: vera, sha256: %x, grants: [{project: p, role: viewer}]}]\n", hash))
	log, _ := logger()
	a, err := New(Options{File: path, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ method, token, caller, reason string }{
		{"/s.Environments/GetEnvironment", token, "vera", "<nil>"},
		{"/s.Environments/CreateEnvironment", token, "vera", "IAM_PERMISSION_DENIED"},
		{"/s.Environments/GetEnvironment", "wrong", "", "ACCESS_TOKEN_INVALID"},
	} {
		ctx, err := a.Authorize(t.Context(), rest.Call{Method: test.method, Project: "p", Resource: "projects/p", Header: http.Header{"Authorization": {"Bearer " + test.token}}})
		if reasonOf(err) != test.reason || Caller(ctx) != test.caller {
			t.Errorf("%s: %v, by %q; want %+v", test.method, err, Caller(ctx), test)
		}
	}
}

func TestTokensFollowTheFile(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "policy.yaml"), newClock()
	first, firstHash := NewToken()
	second, secondHash := NewToken()
	owner, ownerHash := NewToken()
	policy := func(hash [32]byte) string {
		return fmt.Sprintf("tokens:\n- name: ci\n  sha256: %x\n  grants:\n  - {project: example-project, role: editor}\n", hash)
	}
	write(t, path, policy(firstHash))
	log, said := logger()
	a, err := New(Options{File: path, Token: &ownerHash, Now: now.Now, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(token string) string {
		p, err := a.Authenticate(t.Context(), "Bearer "+token)
		if err != nil {
			return reasonOf(err)
		}
		return fmt.Sprintf("%s %v", p.Name, p.Role("example-project"))
	}
	expect := func(token, want string) {
		t.Helper()
		if got := ask(token); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	expect(first, "ci editor")
	expect(second, "ACCESS_TOKEN_INVALID")
	expect(owner, "owner admin")

	write(t, path, policy(secondHash)+"# replaced\n")
	now.forward(2 * recheck)
	expect(first, "ACCESS_TOKEN_INVALID")
	expect(second, "ci editor")

	write(t, path, "tokens: [{name: x, colour: red}]")
	now.forward(2 * recheck)
	expect(second, "ci editor")
	if !strings.Contains(said.String(), "the last good one stays in force") {
		t.Errorf("the broken file was not complained of: %s", said)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now.forward(2 * recheck)
	expect(second, "ci editor")
	write(t, path, policy(firstHash))
	now.forward(2 * recheck)
	expect(first, "ci editor")

	for _, header := range []string{"", "Basic " + first, "Bearer", "Bearer "} {
		if _, err := a.Authenticate(t.Context(), header); reasonOf(err) != "CREDENTIALS_MISSING" {
			t.Errorf("header %q: %v", header, err)
		}
	}
}

func TestABadPolicyNamesEveryMistake(t *testing.T) {
	_, err := parsePolicy([]byte("tokens:\n- name: ''\n  sha256: abc\n  grants: [{project: '', role: owner}]\nsubjects:\n- name: ''\n"))
	for _, want := range []string{"sha256 must be the 64 hexadecimal digits", "a token needs a name", "a grant needs a project", `the role "owner": write viewer, editor or admin`, "a subject needs a name", "grants nothing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if p, err := parsePolicy(nil); err != nil || len(p.tokens) != 0 {
		t.Errorf("an empty file: %v", err)
	}
}

func TestOwnerToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	tokens := make([]string, 8)
	var together sync.WaitGroup
	for i := range tokens {
		together.Go(func() { tokens[i], _ = OwnerToken(path) })
	}
	together.Wait()
	for _, token := range tokens {
		if token == "" || token != tokens[0] {
			t.Fatalf("eight at once got %q", tokens)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OwnerToken(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
	write(t, path, "x")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OwnerToken(path); err == nil || !strings.Contains(err.Error(), "too short") {
		t.Errorf("a short one: %v", err)
	}
}

// issuer is a real OIDC issuer on loopback.
type issuer struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	mux := http.NewServeMux()
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"}})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1",
			"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes())}}})
	})
	return i
}

func (i *issuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signed := part(map[string]any{"alg": "RS256", "kid": "1"}) + "." + part(claims)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestOIDC(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	i, now := newIssuer(t), newClock()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write(t, path, "subjects:\n- {name: alice@example.com, grants: [{project: '*', role: editor}]}\n- {name: robot-7, grants: [{project: example-project, role: viewer}]}\n")
	log, _ := logger()
	a, err := New(Options{File: path, Issuer: i.URL, Audience: "sordino", Now: now.Now, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{"iss": i.URL, "aud": "sordino", "sub": "1", "email": "alice@example.com", "email_verified": true, "exp": now.Now().Add(time.Hour).Unix()}
		for k, v := range change {
			c[k] = v
		}
		return c
	}
	for name, test := range map[string]struct {
		claims map[string]any
		want   string
	}{
		"a known email":               {claims(nil), "alice@example.com editor"},
		"a known subject":             {claims(map[string]any{"sub": "robot-7", "email": ""}), "robot-7 viewer"},
		"an email that is not proven": {claims(map[string]any{"email_verified": false}), "1 nobody"},
		"somebody who is not known":   {claims(map[string]any{"email": "eve@example.com"}), "1 nobody"},
		"another audience":            {claims(map[string]any{"aud": "others"}), "ACCESS_TOKEN_INVALID"},
		"another issuer":              {claims(map[string]any{"iss": "https://issuer.example.com"}), "ACCESS_TOKEN_INVALID"},
		"a token that is out of date": {claims(map[string]any{"exp": now.Now().Add(-time.Hour).Unix()}), "ACCESS_TOKEN_INVALID"},
	} {
		p, err := a.Authenticate(t.Context(), "Bearer "+i.token(t, test.claims))
		got := fmt.Sprintf("%s %v", p.Name, p.Role("example-project"))
		if err != nil {
			got = reasonOf(err)
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s (%v)", name, got, test.want, err)
		}
	}
	token := i.token(t, claims(nil))
	if _, err := a.Authenticate(t.Context(), "Bearer "+token[:len(token)-4]+"AAAA"); reasonOf(err) != "ACCESS_TOKEN_INVALID" {
		t.Errorf("a forged signature: %v", err)
	}

	dead, err := New(Options{File: path, Issuer: "http://127.0.0.1:1", Audience: "sordino", Now: now.Now, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dead.Authenticate(t.Context(), "Bearer "+token); reasonOf(err) != "OIDC_ISSUER_UNREACHABLE" {
		t.Errorf("a dead issuer: %v", err)
	}
	if _, err := New(Options{Issuer: i.URL, Audience: "sordino"}); err == nil {
		t.Error("OIDC without a policy was accepted")
	}
}

func TestGuard(t *testing.T) {
	g := Guard{Hosts: []string{"sordino.example.com"}, Requests: 10, Refuse: func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, reasonOf(err), http.StatusForbidden)
	}}
	handler := g.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "in") }))
	for _, test := range []struct{ host, origin, want string }{
		{"127.0.0.1:8080", "", "in"}, {"localhost:8080", "", "in"}, {"[::1]:8080", "", "in"}, {"::1", "", "in"},
		{"sordino.example.com", "", "in"}, {"SORDINO.example.com.:443", "", "in"},
		{"evil.example.com:8080", "", "HOST_NOT_ALLOWED"}, {"10.0.0.1:8080", "", "HOST_NOT_ALLOWED"}, {"", "", "HOST_NOT_ALLOWED"},
		{"localhost:8080", "http://localhost:8080", "in"}, {"localhost:8080", "http://evil.example.com", "ORIGIN_NOT_ALLOWED"},
		{"localhost:8080", "null", "ORIGIN_NOT_ALLOWED"}, {"localhost:8080", "http://localhost:9090", "ORIGIN_NOT_ALLOWED"},
	} {
		r := httptest.NewRequest("GET", "/v1/x", nil)
		r.Host = test.host
		if test.origin != "" {
			r.Header.Set("Origin", test.origin)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if got := strings.TrimSpace(w.Body.String()); got != test.want {
			t.Errorf("host %q origin %q: %s, want %s", test.host, test.origin, got, test.want)
		}
	}
}

func TestTooManyRequests(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	g := Guard{Requests: 1, Refuse: func(w http.ResponseWriter, _ *http.Request, err error) { w.WriteHeader(http.StatusTooManyRequests) }}
	handler := g.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside <- struct{}{}; <-leave }))
	call := func() int {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = "localhost"
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Code
	}
	var first sync.WaitGroup
	first.Go(func() { call() })
	<-inside
	if got := call(); got != http.StatusTooManyRequests {
		t.Errorf("the second of one: %d", got)
	}
	close(leave)
	first.Wait()
}

func writePair(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cert"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	write(t, filepath.Join(dir, "key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func TestTheCertificateIsReadAgain(t *testing.T) {
	dir, now := t.TempDir(), newClock()
	log, said := logger()
	writePair(t, dir, "first")
	c, err := LoadCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), now.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		now.forward(2 * recheck)
		pair, err := c.Config().GetCertificate(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil || leaf.Subject.CommonName != want {
			t.Errorf("the certificate is %v, want %s (%v)", leaf.Subject, want, err)
		}
	}
	expect("first")
	writePair(t, dir, "a longer name")
	expect("a longer name")
	write(t, filepath.Join(dir, "key"), "nonsense")
	expect("a longer name")
	if !strings.Contains(said.String(), "the last good one stays in use") {
		t.Errorf("nothing was said: %s", said)
	}
	if _, err := LoadCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), now.Now, log); err == nil {
		t.Error("a pair that does not fit was accepted at the start")
	}
}

func TestAuditFollowsRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	log, _ := logger()
	a, err := OpenAudit(path, log)
	if err != nil {
		t.Fatal(err)
	}
	a.Record(Entry{Method: "one"})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	a.Record(Entry{Method: "two", Code: "OK"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{path + ".1": "one", path: "two"} {
		text, err := os.ReadFile(name)
		if err != nil || strings.Count(string(text), "\n") != 1 || !strings.Contains(string(text), want) {
			t.Errorf("%s holds %q %v", name, text, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

func FuzzParsePolicy(f *testing.F) {
	_, hash := NewToken()
	f.Add([]byte("tokens:\n- name: ci\n  sha256: " + hex.EncodeToString(hash[:]) + "\n  grants: [{project: p, role: viewer}]\n"))
	f.Add([]byte("subjects: [{name: a, grants: [{project: '*', role: admin}]}]"))
	f.Add([]byte("tokens: {a: 1}\n---\nx"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parsePolicy(text)
		if err != nil {
			return
		}
		for _, known := range p.tokens {
			if known.Name == "" || len(known.grants) == 0 {
				t.Fatalf("%q was accepted with a nameless or empty token", text)
			}
		}
	})
}
