package clients

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// update rewrites what the scripts say that gcloud prints.
var update = flag.Bool("update", false, "rewrite the expected output in testdata/gcloud; read the diff")

// gcloudVariable set to "required" makes a machine without gcloud a failure.
const gcloudVariable = "SORDINO_GCLOUD"

// TestGcloud runs the scripts in testdata/gcloud with the real gcloud, pointed at
// a server by what "sordino env gcloud" prints, one server a script.
func TestGcloud(t *testing.T) {
	path, err := exec.LookPath("gcloud")
	if err != nil {
		const left = "LEFT OUT: gcloud is not installed here, so nothing was proven with it"
		if os.Getenv(gcloudVariable) == "required" {
			t.Fatalf("%s (%s=required)", left, gcloudVariable)
		}
		t.Skip(left) // the summary of the run names it, with this text
	}
	reportGcloudVersion(t, path)
	t.Run("tls", testGcloudTLS)
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "gcloud"),
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			s := &script{server: start(env.T().(testing.TB)), place: map[string]string{}, uuid: map[string]string{}}
			env.Values[scriptKey{}] = s
			vars, err := s.Env(s.tb.Context(), "gcloud")
			if err != nil {
				return err
			}
			env.Vars = append(env.Vars, vars...)
			env.Setenv("CLOUDSDK_CONFIG", filepath.Join(env.WorkDir, ".gcloud")) // no account, nobody's settings
			env.Setenv("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")                     // as in a script
			env.Setenv("VIEWER_TOKEN_FILE", s.viewerFile)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"gcloud": gcloud,
			"document": func(ts *testscript.TestScript, neg bool, args []string) {
				plain(ts, neg, args, 0, "document")
				here(ts).createDocument()
			},
			"settle": func(ts *testscript.TestScript, neg bool, args []string) {
				plain(ts, neg, args, 0, "settle")
				here(ts).settle(location)
			},
			"freeze": func(ts *testscript.TestScript, neg bool, args []string) {
				plain(ts, neg, args, 0, "freeze")
				ts.Check(here(ts).Freeze(here(ts).tb.Context()))
			},
			"thaw": func(ts *testscript.TestScript, neg bool, args []string) {
				plain(ts, neg, args, 0, "thaw")
				ts.Check(here(ts).Thaw())
			},
			"show": show,
			"api":  api,
		},
	})
}

// testGcloudTLS: gcloud trusts the certificate that "sordino env" was told of.
func testGcloudTLS(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sordino"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: certificate}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, "--tls-cert", certFile, "--tls-key", keyFile)
	cmd := exec.CommandContext(t.Context(), "gcloud", "composer", "environments", "list", "--locations", "us-central1")
	if cmd.Env, err = s.Env(t.Context(), "gcloud", "--tls-cert", certFile); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH"), "HOME="+dir, "CLOUDSDK_CONFIG="+filepath.Join(dir, "gcloud"))
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Listed 0 items.") {
		t.Fatalf("%v: %s", err, out)
	}
}

// script is a running script's server, and the names that it has for UUIDs:
// UUID-1 is the first that was seen.
type script struct {
	*server
	place, uuid map[string]string
}

type scriptKey struct{}

func here(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func plain(ts *testscript.TestScript, neg bool, args []string, n int, usage string) {
	if neg || len(args) != n {
		ts.Fatalf("usage: %s", usage)
	}
}

var (
	uuidForm     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	timeForm     = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|\+00:00)`)
	progressForm = regexp.MustCompile(`\.+(done|failed)\.`)
	ruleForm     = regexp.MustCompile(`─+`)
	gapForm      = regexp.MustCompile(` *│ *`)
	clusterForm  = regexp.MustCompile(`-[0-9a-f]{8}-gke`) // the start of the environment's UUID
	placeForm    = regexp.MustCompile(`UUID-\d+`)
)

// stable takes out of a text what differs from run to run.
func (s *script) stable(text string) string {
	text = uuidForm.ReplaceAllStringFunc(text, func(uuid string) string {
		if s.place[uuid] == "" {
			s.place[uuid] = fmt.Sprintf("UUID-%d", len(s.place)+1)
			s.uuid[s.place[uuid]] = uuid
		}
		return s.place[uuid]
	})
	text = timeForm.ReplaceAllString(text, "TIME")
	text = clusterForm.ReplaceAllString(text, "-UUID-gke")
	text = progressForm.ReplaceAllString(text, "...$1.")
	text = ruleForm.ReplaceAllString(text, "─") // a column is as wide as a time is long
	text = gapForm.ReplaceAllString(text, "│")
	return strings.NewReplacer(s.Address, "HOST:PORT", s.Data, "DATA").Replace(text)
}

// real puts UUIDs back.
func (s *script) real(args []string) (out []string) {
	for _, a := range args {
		out = append(out, placeForm.ReplaceAllStringFunc(a, func(place string) string { return s.uuid[place] }))
	}
	return out
}

// gcloud runs gcloud; with ! it must refuse.
func gcloud(ts *testscript.TestScript, neg bool, args []string) {
	s := here(ts)
	err := ts.Exec("gcloud", s.real(args)...)
	stdout, stderr := s.stable(ts.ReadFile("stdout")), s.stable(ts.ReadFile("stderr"))
	fmt.Fprint(ts.Stdout(), stdout)
	fmt.Fprint(ts.Stderr(), stderr)
	switch {
	case strings.Contains(stderr, "gcloud crashed") || strings.Contains(stderr, "Traceback"):
		ts.Fatalf("gcloud crashed")
	case err != nil && !neg:
		ts.Fatalf("gcloud: %v", err)
	case err == nil && neg:
		ts.Fatalf("gcloud succeeded")
	}
}

// show prints fields of an environment, one a line, as the server has them:
// show ENVIRONMENT FIELD…
func show(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: show ENVIRONMENT FIELD…")
	}
	a := here(ts).must("GET", "/v1beta1/"+location+"/environments/"+args[0], "")
	for _, field := range args[1:] {
		value, err := json.Marshal(a.at(strings.Split(field, ".")...))
		ts.Check(err)
		fmt.Fprintf(ts.Stdout(), "%s\n", value)
	}
}

// api sends a request without gcloud and prints the answer's status and its
// message: api METHOD PATH [BODY]
func api(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: api METHOD PATH [BODY]")
	}
	body := ""
	if len(args) == 3 {
		body = args[2]
	}
	s := here(ts)
	a := s.do(args[0], args[1], body)
	fmt.Fprintln(ts.Stdout(), a.Status)
	if message, ok := a.at("error", "message").(string); ok {
		fmt.Fprintln(ts.Stdout(), s.stable(message))
	}
}

var gcloudVersionForm = regexp.MustCompile(`Google Cloud SDK (\d+(?:\.\d+)+)`)

// reportGcloudVersion says which gcloud this is. Another one than the
// documentation names is used too, and the log tells.
func reportGcloudVersion(t *testing.T, path string) {
	cmd := exec.Command(path, "version")
	cmd.Env = append(os.Environ(), "CLOUDSDK_CONFIG="+t.TempDir(), "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING=true", "CLOUDSDK_METRICS_ENVIRONMENT=offline")
	out, err := cmd.Output()
	found := gcloudVersionForm.FindSubmatch(out)
	if err != nil || found == nil {
		t.Fatalf("gcloud version: %v: %s", err, out)
	}
	version := string(found[1])
	if !strings.Contains(compatibilityPage(t), "| "+version+" |") {
		t.Logf("NOTE: this gcloud is %s, and docs/compatibility.md tells of another", version)
		return
	}
	t.Logf("gcloud %s", version)
}
