package labdriver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"sordino/environment"
	"sordino/environment/address"
	"sordino/internal/testprogram"
	"sordino/internal/testwait"
	"sordino/lab/host"
	"sordino/reconcile"
)

// The test binary is also what the tests start: the lab host, and a server
// that is killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case host.Argument:
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			if err := host.Main(ctx); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		case serverArgument:
			server(os.Args[2], os.Args[3])
			return
		}
	}
	goleak.VerifyTestMain(m)
}

// agentVariable names the agent program where it is not in the tree's bin.
const agentVariable = "SORDINO_TEST_AGENT"

func agentBinary(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv(agentVariable); path != "" {
		return path
	}
	dir, err := testprogram.Built()
	if err != nil {
		tb.Fatal(err)
	}
	return filepath.Join(dir, "ip-masq-agent")
}

// newDriver makes a driver with a data folder of its own, and takes its host
// down when the test ends.
func newDriver(tb testing.TB) *Driver {
	tb.Helper()
	d := New(Options{Dir: filepath.Join(tb.TempDir(), "data"), AgentBinary: agentBinary(tb), Now: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	tb.Cleanup(func() {
		c, err := host.Dial(context.Background(), d.Dir)
		if err != nil {
			return // there is none
		}
		hello, err := c.Hello(context.Background())
		if err != nil {
			tb.Error(err)
		}
		if err := c.Down(context.Background()); err != nil {
			tb.Error(err)
		}
		gone(tb, hello.PID)
	})
	return d
}

// gone waits until a process is gone.
func gone(tb testing.TB, pid int) {
	tb.Helper()
	eventually(tb, func() error {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			return fmt.Errorf("the process %d is still there", pid)
		}
		return nil
	})
}

// eventually asks until there is no error.
func eventually(tb testing.TB, ask func() error) {
	tb.Helper()
	testwait.Until(tb, time.Minute, 5*time.Millisecond, ask)
}

// newEnvironment is one with the agent and a number of nodes.
func newEnvironment(nodes int) *environment.Environment {
	e := &environment.Environment{UUID: uuid.NewString(), Generation: 1, Agent: environment.AgentConfig{Generation: 1},
		Name: environment.Name{Location: environment.Location{Project: "p", ID: "us-central1"}, ID: "example-environment"},
		Spec: environment.Spec{Config: &servicepb.EnvironmentConfig{NodeConfig: &servicepb.NodeConfig{EnableIpMasqAgent: true}}},
		Plan: address.Plan{NodePodBits: 26, VPCNative: true, Ranges: []address.Range{
			{Kind: address.Nodes, Prefix: netip.MustParsePrefix("10.128.0.0/20")},
			{Kind: address.Pods, Prefix: netip.MustParsePrefix("192.168.0.0/18")},
			{Kind: address.Services, Prefix: netip.MustParsePrefix("172.20.0.0/20")},
		}},
	}
	for i := range nodes {
		e.Plan.NodeAddresses = append(e.Plan.NodeAddresses, netip.MustParseAddr(fmt.Sprintf("10.128.0.%d", i+2)))
	}
	return e
}

// run does steps as the reconciler would, and returns their details by name.
func run(ctx context.Context, steps []reconcile.Step) (map[string]string, error) {
	details := map[string]string{}
	for _, s := range steps {
		detail, err := s.Do(ctx)
		if err != nil {
			return details, fmt.Errorf("%s: %w", s.Name, err)
		}
		details[s.Name] = detail
	}
	return details, nil
}

func ensure(tb testing.TB, d *Driver, e *environment.Environment) map[string]string {
	tb.Helper()
	details, err := run(context.Background(), d.Ensure(e))
	if err != nil {
		tb.Fatal(err)
	}
	return details
}

// ready observes an environment and fails unless all of it is as it should be.
func ready(d *Driver, e *environment.Environment) error {
	o, err := d.Observe(context.Background(), e)
	if err != nil {
		return err
	}
	if o.Generation != e.Generation || o.Proof == "" || o.Checked.IsZero() || len(o.Nodes) != len(e.Plan.NodeAddresses) {
		return fmt.Errorf("observed %+v, want generation %d with a proof", o, e.Generation)
	}
	for _, n := range o.Nodes {
		if !n.Ready || n.Error != "" {
			return fmt.Errorf("not ready: %+v", n)
		}
		if e.AgentEnabled() && (n.Hash == "" || n.DesiredGeneration == 0 || n.AppliedGeneration != n.DesiredGeneration || n.ConfigGeneration != e.Agent.Generation) {
			return fmt.Errorf("the agent's part is missing: %+v", n)
		}
	}
	return nil
}

// pids are the agents' process numbers by node.
func pids(tb testing.TB, d *Driver, e *environment.Environment) map[string]int {
	tb.Helper()
	is, err := d.lab(context.Background(), e.UUID)
	if err != nil {
		tb.Fatal(err)
	}
	out := map[string]int{}
	for node, a := range is.Agents {
		out[node] = a.PID
	}
	return out
}

// watch collects what the driver's Watch says; it returns when it listens.
func watch(tb testing.TB, d *Driver) (saw func(uuid string) bool) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	all := map[string]int{}
	listening, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- d.Watch(ctx, func(uuid string) {
			mu.Lock()
			defer mu.Unlock()
			if all[uuid]++; len(all) == 1 && all[""] == 1 {
				close(listening)
			}
		})
	}()
	<-listening
	mu.Lock()
	clear(all)
	all["listening"] = 1
	mu.Unlock()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return func(uuid string) bool {
		mu.Lock()
		defer mu.Unlock()
		return all[uuid] > 0
	}
}

// asOrdinaryUser runs the test again as a user without rights.
func asOrdinaryUser(t *testing.T, pattern string) {
	if text, err := os.ReadFile("/proc/self/uid_map"); err != nil || os.Getuid() != 0 || strings.Fields(string(text))[2] == "1" {
		return // this is one
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "sordino")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{self: "test", agentBinary(t): "ip-masq-agent"} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.run="+pattern, "-test.v", "-test.timeout=5m")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir, "HOME=" + dir, agentVariable + "=" + filepath.Join(dir, "ip-masq-agent")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as user %d: %v\n%s", nobody, err, out)
	}
	t.Logf("as user %d:\n%s", nobody, out)
}
