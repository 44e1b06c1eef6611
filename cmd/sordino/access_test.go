package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sordino/access"
	masqv1 "sordino/api/sordino/masq/v1"
	workerv1 "sordino/api/sordino/worker/v1"
	"sordino/client"
	"sordino/internal/testwait"
)

// issuer is an OIDC issuer on this machine.
type issuer struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": %q, "id_token_signing_alg_values_supported": ["ES256"]}`, i.URL, i.URL+"/keys")
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{"iss": i.URL, "aud": "sordino", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()}
	for k, v := range claims {
		all[k] = v
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// policy writes a policy file of tokens (name, project, role) and subjects.
func writePolicy(t *testing.T, path string, tokens map[string][3]string, subjects string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("tokens:\n")
	for token, is := range tokens {
		fmt.Fprintf(&b, "- {name: %s, sha256: %x, grants: [{project: %q, role: %s}]}\n", is[0], sha256.Sum256([]byte(token)), is[1], is[2])
	}
	b.WriteString(subjects)
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLettingNobodyIn(t *testing.T) {
	oidc := newIssuer(t)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	tokens := map[string][3]string{"viewer-token": {"vera", "p", "viewer"}, "editor-token": {"ed", "p", "editor"}, "admin-token": {"ada", "q", "admin"}}
	const subjects = "subjects:\n- {name: ops@example.com, grants: [{project: p, role: editor}]}\n- {name: robot, grants: [{project: p, role: viewer}]}\n"
	writePolicy(t, policy, tokens, subjects)
	s := serveHere(t, func(o *serveOptions) {
		o.policy, o.issuer, o.audience, o.hosts = policy, oidc.URL, "sordino", []string{"sordino.test"}
	})
	const environments = "/v1/projects/p/locations/us-central1/environments"
	const one = environments + "/e"
	type want struct {
		code   int
		reason string
	}
	for _, tc := range []struct {
		what, method, path, token, body string
		want
	}{
		{"no token", "GET", environments, "", "", want{401, "CREDENTIALS_MISSING"}},
		{"wrong token", "GET", environments, "wrong", "", want{401, "ACCESS_TOKEN_INVALID"}},
		{"no token, and nothing is told of the body", "POST", environments + "?nope=1", "", "{{{", want{401, "CREDENTIALS_MISSING"}},
		{"the owner", "GET", environments, s.token, "", want{200, ""}},
		{"a viewer reads", "GET", environments, "viewer-token", "", want{200, ""}},
		{"a viewer reads what is not there", "GET", one, "viewer-token", "", want{404, "ENVIRONMENT_NOT_FOUND"}},
		{"a viewer may not create", "POST", environments, "viewer-token", `{"nonsense": 1}`, want{403, "IAM_PERMISSION_DENIED"}},
		{"nor delete what is not there", "DELETE", one, "viewer-token", "", want{403, "IAM_PERMISSION_DENIED"}},
		{"nor configure the agent", "PATCH", one + "/masqAgent", "viewer-token", "{}", want{403, "IAM_PERMISSION_DENIED"}},
		{"nor look into another project", "GET", "/v1/projects/q/locations/us-central1/environments/e", "viewer-token", "", want{403, "IAM_PERMISSION_DENIED"}},
		{"nor into all of them", "GET", "/v1/projects/-/locations/us-central1/environments", "viewer-token", "", want{403, "IAM_PERMISSION_DENIED"}},
		{"an editor may, and is told what is wrong", "POST", environments, "editor-token", `{"nonsense": 1}`, want{400, ""}},
		{"another project's admin may not", "POST", environments, "admin-token", `{}`, want{403, "IAM_PERMISSION_DENIED"}},
		{"by OIDC, verified email", "POST", environments, oidc.token(t, map[string]any{"sub": "1", "email": "ops@example.com", "email_verified": true}), `{"nonsense": 1}`, want{400, ""}},
		{"by OIDC, email not verified", "GET", environments, oidc.token(t, map[string]any{"sub": "1", "email": "ops@example.com"}), "", want{403, "IAM_PERMISSION_DENIED"}},
		{"by OIDC, subject", "GET", environments, oidc.token(t, map[string]any{"sub": "robot"}), "", want{200, ""}},
		{"by OIDC, for somebody else", "GET", environments, oidc.token(t, map[string]any{"sub": "robot", "aud": "other"}), "", want{401, "ACCESS_TOKEN_INVALID"}},
		{"by OIDC, expired", "GET", environments, oidc.token(t, map[string]any{"sub": "robot", "exp": 1}), "", want{401, "ACCESS_TOKEN_INVALID"}},
		{"by OIDC, of another key", "GET", environments, newIssuer(t).token(t, map[string]any{"sub": "robot", "iss": oidc.URL}), "", want{401, "ACCESS_TOKEN_INVALID"}},
		{"by OIDC, not signed", "GET", environments, "eyJhbGciOiJub25lIn0.e30.", "", want{401, "ACCESS_TOKEN_INVALID"}},
	} {
		code, body, header := s.ask(t, tc.method, tc.path, tc.token, tc.body)
		if code != tc.code || !strings.Contains(body, tc.reason) {
			t.Errorf("%s: %d %s, want %+v", tc.what, code, body, tc.want)
		}
		if (code == 401) != (header.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: WWW-Authenticate %q", tc.what, header.Get("WWW-Authenticate"))
		}
	}

	t.Run("the policy is read again", func(t *testing.T) {
		tokens["viewer-token"] = [3]string{"vera", "p", "editor"}
		delete(tokens, "editor-token")
		writePolicy(t, policy, tokens, subjects)
		eventually(t, func() error {
			promoted, _, _ := s.ask(t, "DELETE", one, "viewer-token", "")
			gone, _, _ := s.ask(t, "GET", environments, "editor-token", "")
			if promoted != 404 || gone != 401 {
				return fmt.Errorf("%d %d", promoted, gone)
			}
			return nil
		})
		if err := os.WriteFile(policy, []byte("tokens: [{name: x}]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if code, _, _ := s.ask(t, "GET", environments, "viewer-token", ""); code != 200 {
				t.Fatalf("the last good policy is not in force: %d", code)
			}
			if !strings.Contains(s.log.String(), "the policy file was not taken over") {
				return fmt.Errorf("nobody complained:\n%s", s.log)
			}
			return nil
		})
	})
	t.Run("DNS rebinding", func(t *testing.T) {
		for _, tc := range []struct {
			code    int
			headers []string
		}{
			{200, []string{"Host", "sordino.test"}}, {200, []string{"Host", "SORDINO.test:8080"}}, {200, []string{"Host", "localhost"}}, {200, []string{"Host", "[::1]:80"}},
			{403, []string{"Host", "evil.example"}}, {403, []string{"Host", "127.0.0.1.evil.example"}}, {403, []string{"Host", "192.0.2.1"}},
			{403, []string{"Origin", "http://evil.example"}}, {403, []string{"Origin", "null"}}, {200, []string{"Host", "sordino.test", "Origin", "http://sordino.test"}},
		} {
			if code, body, _ := s.ask(t, "GET", environments, s.token, "", tc.headers...); code != tc.code {
				t.Errorf("%v: %d %s", tc.headers, code, body)
			}
		}
	})
	t.Run("limits", func(t *testing.T) {
		if code, body, _ := s.ask(t, "POST", environments, s.token, `{"name": "`+strings.Repeat("x", 1<<20)+`"}`); code != 400 || !strings.Contains(body, "1048576") {
			t.Errorf("a large body: %d %.300s", code, body)
		}
		if code, _, _ := s.ask(t, "GET", environments, s.token, "", "X-Long", strings.Repeat("x", 70<<10)); code != 431 {
			t.Errorf("large headers: %d", code)
		}
		// All places are taken by requests whose bodies do not come.
		var conns []net.Conn
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		for range maxRequests {
			c, err := net.Dial("tcp", s.listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 10\r\nContent-Type: application/json\r\n\r\n", environments, s.token)
		}
		eventually(t, func() error {
			if code, body, _ := s.ask(t, "GET", environments, s.token, ""); code != 429 || !strings.Contains(body, "TOO_MANY_REQUESTS") {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
		for _, c := range conns {
			c.Close()
		}
		eventually(t, func() error {
			if code, body, _ := s.ask(t, "GET", environments, s.token, ""); code != 200 {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
	})
	t.Run("gRPC", func(t *testing.T) {
		as := func(token string) *client.Client {
			c, err := client.New(t.Context(), client.Options{Server: s.url, Token: token})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		run := func(token, header, environment string) codes.Code {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if header != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "x-goog-request-params", "environment="+header)
			}
			stream, err := as(token).Workers.Run(ctx)
			if err == nil {
				_ = stream.Send(&workerv1.RunRequest{Message: &workerv1.RunRequest_Start{Start: &workerv1.Start{Environment: environment, Command: []string{"true"}}}})
				_, err = stream.Recv()
			}
			return status.Code(err)
		}
		const inP, inQ = "projects/p/locations/l/environments/e", "projects/q/locations/l/environments/e"
		for _, tc := range []struct {
			what, token, header, environment string
			want                             codes.Code
		}{
			{"nobody", "", inP, inP, codes.Unauthenticated},
			{"an editor", "viewer-token", inP, inP, codes.PermissionDenied},
			{"another project's admin", "admin-token", inP, inP, codes.PermissionDenied},
			{"an admin, with another header", "admin-token", inQ, inP, codes.InvalidArgument},
			{"an admin, without the header", "admin-token", "", inQ, codes.PermissionDenied},
			{"the owner, without the header", s.token, "", inQ, codes.InvalidArgument},
			{"an admin", "admin-token", inQ, inQ, codes.NotFound},
		} {
			if got := run(tc.token, tc.header, tc.environment); got != tc.want {
				t.Errorf("%s: %v, want %v", tc.what, got, tc.want)
			}
		}
		if _, err := as("viewer-token").Masq.GetMasqAgent(t.Context(), &masqv1.GetMasqAgentRequest{Name: inQ + "/masqAgent"}); status.Code(err) != codes.PermissionDenied {
			t.Error(err)
		}
	})
	t.Run("the audit log", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join(s.data, "audit.log"))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for line := range bytes.Lines(text) {
			var e access.Entry
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			if e.Time.IsZero() || e.Remote == "" || e.Code == "" {
				t.Errorf("%+v", e)
			}
			method := e.Method[strings.LastIndexByte(e.Method, '/')+1:]
			seen[strings.Join([]string{e.Caller, method, e.Resource, e.Code, e.Reason}, " ")] = true
		}
		for _, line := range []string{
			" ListEnvironments projects/p/locations/us-central1 UNAUTHENTICATED CREDENTIALS_MISSING",
			"vera CreateEnvironment projects/p/locations/us-central1 PERMISSION_DENIED IAM_PERMISSION_DENIED",
			"vera GetEnvironment projects/p/locations/us-central1/environments/e NOT_FOUND ENVIRONMENT_NOT_FOUND",
			"ops@example.com CreateEnvironment projects/p/locations/us-central1 INVALID_ARGUMENT",
			"ada Run projects/q/locations/l/environments/e NOT_FOUND ENVIRONMENT_NOT_FOUND",
			"owner Run  INVALID_ARGUMENT ROUTING_HEADER_MISSING",
		} {
			found := false
			for s := range seen {
				found = found || strings.HasPrefix(s, line)
			}
			if !found {
				t.Errorf("not in the audit log: %s", line)
			}
		}
		for s := range seen {
			if strings.Contains(s, "token") && !strings.Contains(s, "TOKEN") {
				t.Errorf("a secret in the audit log? %s", s)
			}
			if strings.HasSuffix(s, " OK ") {
				t.Errorf("reading is in the audit log: %s", s)
			}
		}
	})
}

// certificate writes a self-signed pair with a serial number.
func certificate(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "sordino"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir, 1)
	s := serveHere(t, func(o *serveOptions) { o.certFile, o.keyFile = cert, key })
	s.point(t)
	// REST and gRPC, with the certificate as the one to trust.
	expectCommand(t, 0, "Listed 0 items.", "", "", "environments", "list", "--ca-file="+cert)
	expectCommand(t, 1, "", "NOT_FOUND: environment", "", "masq", "describe", "e", "--ca-file="+cert)
	expectCommand(t, 1, "", "certificate signed by unknown authority", "", "environments", "list")
	expectCommand(t, 1, "", "certificate signed by unknown authority", "", "masq", "describe", "e")
	if code, body, _ := askAt(t, http.DefaultClient, strings.Replace(s.url, "https", "http", 1), "GET", "/", "", ""); code != 400 || !strings.Contains(body, "HTTPS") {
		t.Errorf("plain HTTP: %d %s", code, body)
	}
	serial := func() int64 {
		conn, err := tls.Dial("tcp", s.listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Fatal(n)
	}
	certificate(t, dir, 2)
	eventually(t, func() error {
		if n := serial(); n != 2 {
			return fmt.Errorf("still certificate %d", n)
		}
		return nil
	})
	expectCommand(t, 0, "Listed 0 items.", "", "", "environments", "list", "--ca-file="+cert)
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n := serial(); n != 2 {
			t.Fatalf("certificate %d", n)
		}
		if !strings.Contains(s.log.String(), "the server's new certificate was not taken over") {
			return fmt.Errorf("nobody complained:\n%s", s.log)
		}
		return nil
	})
}

func TestServeRefuses(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir, 1)
	data := "--data=" + filepath.Join(dir, "data")
	binary := "--agent-binary=" + filepath.Join(programs, "ip-masq-agent")
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"--listen 0.0.0.0:0 can be reached from other machines: give --tls-cert and --tls-key, or say --plaintext-tokens-on-the-network", []string{"--listen=0.0.0.0:0"}},
		{"can be reached from other machines", []string{"--listen=:0"}},
		{"can be reached from other machines", []string{"--listen=sordino.example:0"}},
		{"TLS takes both --tls-cert and --tls-key", []string{"--tls-cert=" + cert}},
		{"reading the server's certificate: stat " + dir + "/none", []string{"--tls-cert=" + dir + "/none", "--tls-key=" + key}},
		{"--workers 0: write at least 1", []string{"--workers=0"}},
		{"--log-format \"xml\": write text or json", []string{"--log-format=xml"}},
		{"OIDC takes both an issuer and an audience", []string{"--oidc-issuer=https://x"}},
		{"OIDC takes a policy file too", []string{"--oidc-issuer=https://x", "--oidc-audience=y"}},
		{"reading the policy file: open /none", []string{"--policy=/none"}},
		{"/none", []string{"--networks=/none"}},
		{"finding the agent program", []string{"--agent-binary=/none"}},
	} {
		a := command(t, "", append([]string{"serve", data, binary, "--listen=127.0.0.1:0"}, tc.args...)...)
		if a.status != 1 || !strings.Contains(a.stderr, tc.want) {
			t.Errorf("%v: %+v, want %q", tc.args, a, tc.want)
		}
	}
	// In so many words it does.
	s := serveHere(t, func(o *serveOptions) { o.listen, o.plaintext = "0.0.0.0:0", true })
	if code, body, _ := askAt(t, http.DefaultClient, strings.Replace(s.url, "[::]", "127.0.0.1", 1), "GET", "/v1/projects/p/locations/l/environments", s.token, ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	// A second one on the same folder is told who has it.
	a := command(t, "", "serve", "--data="+s.data, binary, "--listen=127.0.0.1:0")
	if want := fmt.Sprintf("is in use by another server, process %d: stop that one, or choose another folder", os.Getpid()); a.status != 1 || !strings.Contains(a.stderr, want) {
		t.Errorf("%+v, want %q", a, want)
	}
}

// A token that "sordino token" made, entered in the policy as printed, is let in.
func TestTokenCommand(t *testing.T) {
	a := expectCommand(t, 0, "sordino_", "tokens:\n- name: \"ci\"\nsha256:\n{project: \"p\", role: editor}", "", "token", "--name=ci", "--project=p", "--role=editor")
	token := strings.TrimSpace(a.stdout)
	if strings.Contains(a.stderr, token) {
		t.Error("the policy entry has the token itself")
	}
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(a.stderr), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serveHere(t, func(o *serveOptions) { o.policy = policy })
	if code, body, _ := s.ask(t, "GET", "/v1/projects/p/locations/l/environments", token, ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	if code, _, _ := s.ask(t, "GET", "/v1/projects/q/locations/l/environments", token, ""); code != 403 {
		t.Errorf("%d", code)
	}
	expectCommand(t, 1, "", `--role: the role "owner": write viewer, editor or admin`, "", "token", "--name=x", "--project=p", "--role=owner")
	expectCommand(t, 1, "", `required flag(s) "name", "project" not set`, "", "token")
}

// A driver that cannot do its work ends a create in ERROR, with the reason, and
// the environment can be deleted.
func TestBrokenAgent(t *testing.T) {
	broken := program(t, "echo no luck today >&2; exit 1")
	s := serveHere(t, func(o *serveOptions) { o.agentBinary, o.changeWithin = broken, 6*time.Second })
	s.point(t)
	start := time.Now()
	expectCommand(t, 1, "", "create of projects/p/locations/us-central1/environments/e: start the agents: did not succeed within 6s in\nno luck today", "", "environments", "create", "e", "--enable-ip-alias", "--enable-ip-masq-agent")
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	expectCommand(t, 0, "ERROR", "", "", "environments", "list")
	expectCommand(t, 1, "nodes:      none was seen at work", "", "", "masq", "describe", "e")
	expectCommand(t, 0, "Deleted environment e.", "operation", "", "environments", "delete", "-q", "e")
	expectCommand(t, 0, "Listed 0 items.", "", "", "environments", "list")
}

// eventually asks until there is no error.
func eventually(t *testing.T, ask func() error) {
	t.Helper()
	testwait.Until(t, 2*time.Minute, 20*time.Millisecond, ask)
}
