// Package clients proves the built program with clients that nobody here wrote:
// gcloud, Google's Go client over gRPC and REST, the client that the Terraform
// providers are built on, and plain HTTP.
//
// It owns no rule of the API; those have tests where they are. It refuses fakes:
// every test starts "sordino serve" from bin with a data folder of its own, the
// lab and the agents included, and takes all of it down.
//
// To debug a test, run it alone with -v: a failed test prints the server's log.
package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/testprogram"
	"sordino/internal/testserver"
	"sordino/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	project  = "example-project"
	location = "projects/example-project/locations/us-central1"
	example  = location + "/environments/example-environment"
)

// server is a running "sordino serve".
type server struct {
	tb testing.TB
	*testserver.Test
	viewerFile string // has the token of somebody who may only look
}

// start starts a server that is taken down when the test ends. More flags are
// for "serve".
func start(tb testing.TB, flags ...string) *server {
	tb.Helper()
	bin, err := testprogram.Built()
	if err != nil {
		tb.Fatal(err)
	}
	// A test's own folder may have a name too long for a socket in it.
	dir, err := os.MkdirTemp("", "sordino-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	var token, policy bytes.Buffer
	makeToken := exec.Command(filepath.Join(bin, "sordino"), "token", "--name", "viewer", "--project", project, "--role", "viewer")
	makeToken.Stdout, makeToken.Stderr = &token, &policy
	if err := makeToken.Run(); err != nil {
		tb.Fatalf("%v: %s", err, &policy)
	}
	viewerFile, policyFile := filepath.Join(dir, "viewer"), filepath.Join(dir, "policy.yaml")
	for name, text := range map[string][]byte{viewerFile: token.Bytes(), policyFile: policy.Bytes()} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	s := &server{tb: tb, viewerFile: viewerFile}
	tb.Cleanup(func() { // when the server has ended
		if tb.Failed() {
			return
		}
		if log := s.Log.String(); strings.Contains(log, " level=ERROR ") && !strings.Contains(log, `"the operation failed"`) {
			tb.Errorf("the server met errors:\n%s", log)
		}
	})
	s.Test = testserver.Start(tb, testserver.Options{Data: dir, Args: append([]string{
		"--networks", filepath.Join("testdata", "networks.yaml"), "--policy", policyFile}, flags...)})
	return s
}

// answer is an HTTP answer.
type answer struct {
	*http.Response
	body []byte
	json map[string]any
}

// do sends a request as curl would; the path stays as it is written. The
// owner's token goes with it unless a header says otherwise.
func (s *server) do(method, path, body string, header ...string) (a answer) {
	s.tb.Helper()
	var err error
	if a.Response, a.body, err = s.Do(s.tb.Context(), method, path, body, header...); err != nil {
		s.tb.Fatal(err)
	}
	_ = json.Unmarshal(a.body, &a.json) // nil where it is no object
	return a
}

// at walks into an answer: at("error", "status").
func (a answer) at(path ...string) any {
	var v any = a.json
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	return v
}

// must is the answer to a request that succeeds.
func (s *server) must(method, path, body string, header ...string) answer {
	s.tb.Helper()
	a := s.do(method, path, body, header...)
	if a.StatusCode != http.StatusOK {
		s.tb.Fatalf("%s %s: %s: %s", method, path, a.Status, a.body)
	}
	return a
}

// settle waits until no operation of a location runs.
func (s *server) settle(location string) {
	s.tb.Helper()
	testwait.Until(s.tb, 2*time.Minute, 20*time.Millisecond, func() error {
		operations, _ := s.must("GET", "/v1/"+location+"/operations?pageSize=100", "").json["operations"].([]any)
		for _, o := range operations {
			if o := o.(map[string]any); o["done"] != true {
				return fmt.Errorf("the operation %s has not ended", o["name"])
			}
		}
		return nil
	})
}

// createDocument makes the document's environment and waits for it.
func (s *server) createDocument() {
	s.tb.Helper()
	s.must("POST", "/v1/"+location+"/environments", documentBody)
	s.settle(location)
	if state := s.must("GET", "/v1/"+example, "").at("state"); state != "RUNNING" {
		s.tb.Fatalf("the environment is %v", state)
	}
}

// documentBody is the request body of Google's page on the IP Masquerade agent,
// byte for byte: with its comment and its trailing comma.
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
