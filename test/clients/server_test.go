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
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/testprogram"
	"sordino/internal/testwait"
	"sordino/lab/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	project  = "example-project"
	location = "projects/example-project/locations/us-central1"
	example  = location + "/environments/example-environment"
)

// server is a running "sordino serve".
type server struct {
	tb   testing.TB
	bin  string // the folder of the programs
	dir  string // --data
	addr string // host:port
	url  string
	// token is the owner's; viewerFile holds the token of somebody who may only
	// look.
	token, viewerFile string
	client            *http.Client // without the token

	cmd    *exec.Cmd
	log    testwait.Log
	keeper io.WriteCloser
	frozen int // the lab's host, while it is stopped
}

// keep takes everything down when its input ends, also when that is because
// the test was killed: the lab outlives its server. Every line of input is the
// process numbers of the server and of a stopped host, 0 for none.
const keep = `
server=0 frozen=0
while read -r s f; do server=$s frozen=$f; done
[ "$frozen" = 0 ] || kill -CONT "$frozen"
[ "$server" = 0 ] || kill -TERM "$server"
exec "$1" lab down --data "$2"
`

// start starts a server that is taken down when the test ends. More flags are
// for "serve".
func start(tb testing.TB, flags ...string) *server {
	tb.Helper()
	bin, err := testprogram.Built()
	if err != nil {
		tb.Fatal(err)
	}
	program := filepath.Join(bin, "sordino")
	// A test's own folder may have a name too long for a socket in it.
	dir, err := os.MkdirTemp("", "sordino-")
	if err != nil {
		tb.Fatal(err)
	}
	s := &server{tb: tb, bin: bin, dir: dir, viewerFile: filepath.Join(dir, "viewer")}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})

	var token, policy bytes.Buffer
	makeToken := exec.Command(program, "token", "--name", "viewer", "--project", project, "--role", "viewer")
	makeToken.Stdout, makeToken.Stderr = &token, &policy
	policyFile := filepath.Join(dir, "policy.yaml")
	if err := makeToken.Run(); err != nil {
		tb.Fatalf("%v: %s", err, &policy)
	}
	for name, text := range map[string][]byte{s.viewerFile: token.Bytes(), policyFile: policy.Bytes()} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			tb.Fatal(err)
		}
	}

	keeper := exec.Command("sh", "-c", keep, "sh", program, dir)
	keeper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	keeperLog := &testwait.Log{}
	keeper.Stdout, keeper.Stderr = keeperLog, keeperLog
	if s.keeper, err = keeper.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	if err := keeper.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = s.keeper.Close()
		if err := keeper.Wait(); err != nil {
			tb.Errorf("taking the lab down: %v: %s", err, keeperLog)
		}
	})

	s.cmd = exec.Command(program, append([]string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--log-format", "json",
		"--networks", filepath.Join("testdata", "networks.yaml"), "--policy", policyFile}, flags...)...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	reader, writer := io.Pipe()
	s.cmd.Stdout, s.cmd.Stderr = writer, writer
	serving := make(chan string, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			fmt.Fprintf(&s.log, "%s\n", lines.Bytes())
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				serving <- line.Address
			}
		}
		_, _ = io.Copy(io.Discard, reader)
	})
	if err := s.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- s.cmd.Wait()
		_ = writer.Close()
	}()
	s.tell()
	tb.Cleanup(func() {
		s.thaw()
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				tb.Errorf("the server ended with %v", err)
			}
		case <-time.After(time.Minute):
			tb.Error("the server does not end when asked to")
			_ = s.cmd.Process.Kill()
			<-ended
		}
		reading.Wait()
		fmt.Fprintln(s.keeper, 0, 0)
		if log := s.log.String(); tb.Failed() {
			tb.Logf("the server's log:\n%s", log)
		} else if strings.Contains(log, `"level":"ERROR"`) && !strings.Contains(log, `"the operation failed"`) {
			tb.Errorf("the server met errors:\n%s", log)
		}
	})
	select {
	case s.addr = <-serving:
	case err := <-ended:
		ended <- err
		tb.Fatalf("the server ended with %v", err)
	case <-time.After(time.Minute):
		tb.Fatal("the server does not serve")
	}
	s.url = "http://" + s.addr
	text, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		tb.Fatal(err)
	}
	s.token = strings.TrimSpace(string(text))
	transport := &http.Transport{}
	s.client = &http.Client{Transport: transport, Timeout: time.Minute}
	tb.Cleanup(transport.CloseIdleConnections)
	return s
}

// tell says to the keeper what there is to end.
func (s *server) tell() { fmt.Fprintln(s.keeper, s.cmd.Process.Pid, s.frozen) }

// freeze stops the lab's host: an operation that needs it runs until thaw.
func (s *server) freeze() {
	s.tb.Helper()
	client, err := host.Dial(s.tb.Context(), s.dir)
	if err != nil {
		s.tb.Fatal(err)
	}
	hello, err := client.Hello(s.tb.Context())
	if err != nil {
		s.tb.Fatal(err)
	}
	s.frozen = hello.PID
	s.tell()
	if err := syscall.Kill(s.frozen, syscall.SIGSTOP); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *server) thaw() {
	if s.frozen == 0 {
		return
	}
	if err := syscall.Kill(s.frozen, syscall.SIGCONT); err != nil {
		s.tb.Error(err)
	}
	s.frozen = 0
	s.tell()
}

// env is what "sordino env CLIENT" sets, as a shell sees it that evaluates the
// output.
func (s *server) env(client string, flags ...string) map[string]string {
	s.tb.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `eval "$("$@")" && exec env -0`, "sh",
		filepath.Join(s.bin, "sordino"), "env", client, "--data", s.dir, "--listen", s.addr}, flags...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if err != nil {
		s.tb.Fatalf("%v: %s", err, out)
	}
	vars := map[string]string{}
	for _, line := range strings.Split(string(out), "\x00") {
		if name, value, ok := strings.Cut(line, "="); ok && name != "PATH" && name != "PWD" && name != "_" && name != "SHLVL" {
			vars[name] = value
		}
	}
	return vars
}

// answer is an HTTP answer.
type answer struct {
	*http.Response
	body []byte
	json map[string]any
}

// do sends a request as curl would; the path stays as it is written. The
// owner's token goes with it unless a header says otherwise.
func (s *server) do(method, path, body string, header ...string) answer {
	s.tb.Helper()
	return s.doWith(s.client, method, path, body, header...)
}

func (s *server) doWith(client *http.Client, method, path, body string, header ...string) answer {
	s.tb.Helper()
	r, err := http.NewRequestWithContext(s.tb.Context(), method, s.url, strings.NewReader(body))
	if err != nil {
		s.tb.Fatal(err)
	}
	path, query, _ := strings.Cut(path, "?")
	r.URL.Opaque, r.URL.RawQuery = "//"+s.addr+path, query
	r.Header.Set("Authorization", "Bearer "+s.token)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(r)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer response.Body.Close()
	a := answer{Response: response}
	if a.body, err = io.ReadAll(response.Body); err != nil {
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
