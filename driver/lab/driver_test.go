package labdriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"sordino/driver"
	"sordino/environment"
	"sordino/environment/address"
	"sordino/lab/host"
	"sordino/masq"
)

// TestAsOrdinaryUser runs those without rights in which rights may matter.
func TestAsOrdinaryUser(t *testing.T) {
	asOrdinaryUser(t, "^TestCluster(IsMade|Without|Configuration|Commands|Outlives|OfAHost|AgentThatDies)")
}

func names(d *Driver, e *environment.Environment) []string {
	var out []string
	for _, s := range d.Ensure(e) {
		out = append(out, s.Name)
	}
	return out
}

func TestClusterIsMadeOnceAndTakenAway(t *testing.T) {
	d, e := newDriver(t), newEnvironment(3)
	began := time.Now()
	details := ensure(t, d, e)
	t.Logf("a host and a cluster of three nodes took %v", time.Since(began))
	if want := "192.168.0.2 was seen as 10.128.0.2 by 203.0.113.10; the Pods of 2 other nodes likewise"; details["prove it with a packet"] != want {
		t.Errorf("details %q, want the proof %q", details, want)
	}
	if err := ready(d, e); err != nil {
		t.Fatal(err)
	}
	before := pids(t, d, e)
	details = ensure(t, d, e)
	if !strings.HasSuffix(details["build the network"], "there already") {
		t.Errorf("the network was changed by a second run: %q", details)
	}
	if after := pids(t, d, e); !maps.Equal(before, after) {
		t.Errorf("a second run started the agents again: %v, %v", before, after)
	}
	second := newEnvironment(3)
	began = time.Now()
	ensure(t, d, second)
	t.Logf("another cluster took %v", time.Since(began))
	for range 2 { // again is no error
		for _, one := range []*environment.Environment{e, second} {
			if _, err := run(t.Context(), d.Remove(one)); err != nil {
				t.Fatal(err)
			}
		}
	}
	o, err := d.Observe(t.Context(), e)
	if err != nil || o.Generation != 0 || o.Nodes[0].Error != "the node is not there" {
		t.Errorf("after the removal: %+v, %v", o, err)
	}
	c, err := host.Dial(t.Context(), d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if labs, err := c.Labs(t.Context()); err != nil || len(labs) != 0 {
		t.Errorf("labs left: %v, %v", labs, err)
	}
}

func TestClusterWithoutTheAgent(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	e.Spec.Config.NodeConfig.EnableIpMasqAgent = false
	if got := names(d, e); !slices.Equal(got, []string{"build the network", "prove it with a packet"}) {
		t.Errorf("steps %q", got)
	}
	details := ensure(t, d, e)
	if want := "192.168.0.2 kept its own address towards 203.0.113.10 (the agent is not enabled), whose firewall dropped it; the Pods of 1 other node likewise"; details["prove it with a packet"] != want {
		t.Errorf("proof %q, want %q", details["prove it with a packet"], want)
	}
	if err := ready(d, e); err != nil {
		t.Fatal(err)
	}
	if p := pids(t, d, e); len(p) != 0 {
		t.Errorf("agents run: %v", p)
	}
}

func TestClusterConfigurationGoesFromNodeToNode(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	ensure(t, d, e)
	before := pids(t, d, e)

	e.Generation, e.Agent = 2, environment.AgentConfig{Generation: 2, Text: "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 203.0.113.0/24\n"}
	if err := ready(d, e); err == nil {
		t.Error("a configuration that nobody was given yet counts as in place")
	}
	want := []string{"build the network", "start the agents", "configure the agent of node-1", "configure the agent of node-2", "prove it with a packet"}
	if got := names(d, e); !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
	details := ensure(t, d, e)
	if proof := details["prove it with a packet"]; !strings.HasPrefix(proof, "192.168.0.2 kept its own address towards 203.0.113.10 (203.0.113.10 is inside 203.0.113.0/24, a non-masquerade range (from ip-masq-agent:3:3)), whose firewall dropped it: the masquerade itself is not proven") {
		t.Errorf("proof %q", proof)
	}
	if err := ready(d, e); err != nil {
		t.Fatal(err)
	}
	if after := pids(t, d, e); !maps.Equal(before, after) {
		t.Errorf("a new configuration started agents again: %v, %v", before, after)
	}
	o, err := d.Observe(t.Context(), e)
	if err != nil || len(o.Nodes[0].Findings) == 0 || !strings.Contains(strings.Join(o.Nodes[0].Findings, " "), "ClusterRangeNotListed") {
		t.Errorf("the findings are missing: %+v, %v", o, err)
	}

	good := *e
	e.Generation, e.Agent = 3, environment.AgentConfig{Generation: 3, Text: "nonMasqueradeCIDRs:\n- 10.0.0.0/33\n"}
	_, err = run(t.Context(), d.Ensure(e))
	var final *environment.Error
	if !errors.As(err, &final) || final.Reason != "AGENT_CONFIG_REJECTED" || final.Metadata["node"] != "node-1" || !strings.Contains(final.Message, "ip-masq-agent:2:3: ") || strings.Contains(final.Message, "/run/") {
		t.Fatalf("a configuration that is rejected gives %v", err)
	}
	if o, err = d.Observe(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if n := o.Nodes[0]; n.Ready || n.ConfigGeneration != 3 || !strings.Contains(n.Error, "ip-masq-agent:2:3: ") {
		t.Errorf("the node that rejects: %+v", n)
	}
	if n := o.Nodes[1]; n.ConfigGeneration != 2 || n.AppliedGeneration != 2 {
		t.Errorf("the rollout went on to %+v", n)
	}
	// Back to what was, under a generation of its own.
	e.Agent = environment.AgentConfig{Generation: 4, Text: good.Agent.Text}
	ensure(t, d, e)
	if err := ready(d, e); err != nil {
		t.Error(err)
	}
	// And to no file at all.
	e.Generation, e.Agent = 5, environment.AgentConfig{Generation: 5}
	if proof := ensure(t, d, e)["prove it with a packet"]; !strings.Contains(proof, "was seen as 10.128.0.2") {
		t.Errorf("proof %q", proof)
	}
}

func TestClusterWhoseFirstConfigurationIsRejected(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	e.Agent.Text = "nonMasqueradeCIDRs: 5\n"
	details, err := run(t.Context(), d.Ensure(e))
	var final *environment.Error
	if !errors.As(err, &final) || final.Code != environment.FailedPrecondition || final.Metadata["reason"] == "" {
		t.Fatalf("%q, %v", details, err)
	}
}

func TestClusterWithAnAgentThatDoesNotStart(t *testing.T) {
	d, e := newDriver(t), newEnvironment(1)
	d.AgentBinary = "/bin/false"
	_, err := run(t.Context(), d.Ensure(e))
	var final *environment.Error
	if err == nil || errors.As(err, &final) || !strings.Contains(err.Error(), "the agent of node-1 does not stay up: it ended by itself: exit status 1") {
		t.Fatalf("%v", err)
	}
	o, err := d.Observe(t.Context(), e)
	if err != nil || o.Nodes[0].Ready || !strings.Contains(o.Nodes[0].Error, "it ended by itself") {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestClusterAgentThatDiesIsStartedAgain(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	ensure(t, d, e)
	saw := watch(t, d)
	before := pids(t, d, e)
	if status, err := d.Run(t.Context(), e, "node-2", []string{"kill", "-9", fmt.Sprint(before["node-2"])}, driver.Streams{}); err != nil || status != 0 {
		t.Fatalf("killing the agent: %d, %v", status, err)
	}
	eventually(t, func() error {
		if !saw(e.UUID) {
			return errors.New("nobody was told that an agent died")
		}
		if p := pids(t, d, e)["node-2"]; p == 0 || p == before["node-2"] {
			return fmt.Errorf("the agent was not started again: %d", p)
		}
		return ready(d, e)
	})
	is, err := d.lab(t.Context(), e.UUID)
	if a := is.Agents["node-2"]; err != nil || a.Restarts != 1 || a.LastExit != "it ended by itself: signal: killed" || is.Agents["node-1"].Restarts != 0 {
		t.Errorf("%+v, %v", is.Agents, err)
	}
}

func TestClusterWhoseRulesAreTakenAwayIsTold(t *testing.T) {
	d, e := newDriver(t), newEnvironment(1)
	ensure(t, d, e)
	saw := watch(t, d)
	c, err := host.Dial(t.Context(), d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := c.Exec(t.Context(), e.UUID, "node-1", host.Command{Args: []string{"nft", "flush", "ruleset"}, Env: os.Environ()}); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	eventually(t, func() error {
		if !saw(e.UUID) {
			return errors.New("nobody was told that the rules changed")
		}
		return nil
	})
}

func TestClusterOfAHostThatIsKilledIsBuiltAgain(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	ensure(t, d, e)
	saw := watch(t, d)
	c, err := host.Dial(t.Context(), d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := c.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(hello.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !saw("") {
			return errors.New("nobody was told that the host is gone")
		}
		return nil
	})
	o, err := d.Observe(t.Context(), e)
	if err != nil || o.Generation != 0 || o.Nodes[1].Ready {
		t.Errorf("observed %+v, %v", o, err)
	}
	ensure(t, d, e)
	if err := ready(d, e); err != nil {
		t.Error(err)
	}
}

// serverArgument makes the test binary a server that makes a cluster and is
// killed.
const serverArgument = "server"

func server(dir, id string) {
	d := New(Options{Dir: dir, AgentBinary: os.Getenv(agentVariable), Now: time.Now})
	e := newEnvironment(2)
	e.UUID = id
	if _, err := run(context.Background(), d.Ensure(e)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("up")
	select {}
}

func TestClusterOutlivesTheServer(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, serverArgument, d.Dir, e.UUID)
	cmd.Env = append(os.Environ(), agentVariable+"="+d.AgentBinary)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 3)
	_, err = out.Read(said)
	before := pids(t, d, e)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if string(said) != "up\n" || err != nil {
		t.Fatalf("the server said %q, %v", said, err)
	}
	if err := ready(d, e); err != nil {
		t.Errorf("after the server was killed: %v", err)
	}
	ensure(t, d, e)
	if after := pids(t, d, e); !maps.Equal(before, after) || len(after) != 2 {
		t.Errorf("the next server started agents again: %v, %v", before, after)
	}
}

func TestClusterCommands(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	_, err := d.Run(t.Context(), e, "", []string{"true"}, driver.Streams{})
	if environment.CodeOf(err) != environment.FailedPrecondition {
		t.Errorf("a command in a cluster that is not there: %v", err)
	}
	ensure(t, d, e)
	sh := func(ctx context.Context, script string, s driver.Streams) (int, error) {
		return d.Run(ctx, e, "node-2", []string{"sh", "-c", script}, s)
	}
	var out, complaint bytes.Buffer
	status, err := sh(t.Context(), `cat; echo "$HOME"; ip -4 -o addr show eth0 | grep -o "inet [0-9.]*"; echo no >&2; exit 3`, driver.Streams{Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &complaint})
	if status != 3 || err != nil || out.String() != "in\n\ninet 192.168.0.66\n" || complaint.String() != "no\n" {
		t.Errorf("status %d, %v, said %q and %q", status, err, out.String(), complaint.String())
	}
	if status, err := sh(t.Context(), "kill -TERM $$", driver.Streams{}); status != 128+15 || err != nil {
		t.Errorf("a command that a signal ends: %d, %v", status, err)
	}
	// A signal is passed on, and a process that stays behind holds nobody up.
	signals := make(chan os.Signal, 1)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	go func() {
		_, _ = reader.Read(make([]byte, 1))
		signals <- syscall.SIGUSR1
	}()
	status, err = sh(t.Context(), `setsid sleep 1000 & trap "exit 9" USR1; echo; while :; do sleep 0.01; done`, driver.Streams{Stdout: writer, Signals: signals})
	_ = writer.Close()
	if status != 9 || err != nil {
		t.Errorf("a command with a signal: %d, %v", status, err)
	}
	out.Reset()
	if status, err = sh(t.Context(), "sleep 1000 & echo done", driver.Streams{Stdout: &out}); status != 0 || err != nil || out.String() != "done\n" {
		t.Errorf("a command that leaves one behind: %d, %v, %q", status, err, out.String())
	}
	// Orphans fall to the host, which has to take note of their end.
	if status, err = sh(t.Context(), "(setsid true &) ; (setsid true &)", driver.Streams{}); status != 0 || err != nil {
		t.Errorf("a command that makes orphans: %d, %v", status, err)
	}
	eventually(t, func() error {
		out.Reset()
		if _, err := sh(t.Context(), "cat /proc/[0-9]*/stat", driver.Streams{Stdout: &out}); err != nil {
			return err
		}
		if strings.Contains(out.String(), ") Z ") {
			return fmt.Errorf("dead processes are left:\n%s", out.String())
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	reader2, writer2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader2.Close()
	go func() {
		_, _ = reader2.Read(make([]byte, 1))
		cancel()
	}()
	_, err = sh(ctx, "echo; exec sleep 1000", driver.Streams{Stdout: writer2})
	_ = writer2.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a command whose caller goes away: %v", err)
	}
	if status, err := d.Run(t.Context(), e, "", []string{"no-such-program"}, driver.Streams{}); environment.CodeOf(err) != environment.FailedPrecondition {
		t.Errorf("a program that is not there: %d, %v", status, err)
	}
	for _, node := range []string{"node-3", "node-0", "x"} {
		if _, err := d.Run(t.Context(), e, node, []string{"true"}, driver.Streams{}); err == nil {
			t.Errorf("a command on the node %q", node)
		}
	}
	// The removal ends what commands left behind: the namespaces would stay.
	if _, err := run(t.Context(), d.Remove(e)); err != nil {
		t.Fatal(err)
	}
	other := newEnvironment(1)
	ensure(t, d, other)
	eventually(t, func() error {
		out.Reset()
		if status, err := d.Run(t.Context(), other, "", []string{"sh", "-c", `cat /proc/[0-9]*/comm`}, driver.Streams{Stdout: &out}); err != nil {
			return fmt.Errorf("%d, %v", status, err)
		}
		if strings.Contains(out.String(), "sleep") {
			return fmt.Errorf("processes outlive their cluster:\n%s", out.String())
		}
		return nil
	})
}

func TestClusterExplainsAndPlans(t *testing.T) {
	d, e := newDriver(t), newEnvironment(2)
	e.Agent.Text = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n"
	ensure(t, d, e)
	a := netip.MustParseAddr
	explained, err := d.Explain(t.Context(), e, driver.Flow{Source: a("192.168.0.2"), Destination: a("203.0.113.10"), Protocol: "tcp", Port: 443})
	if err != nil || len(explained) != 2 {
		t.Fatal(explained, err)
	}
	for i, x := range explained {
		if x.Err != nil || x.Node != nodeName(i) || x.Action != string(masq.Masquerade) || x.SeenAs != e.Plan.NodeAddresses[i] {
			t.Errorf("%+v", x)
		}
	}
	explained, err = d.Explain(t.Context(), e, driver.Flow{Source: a("192.168.0.2"), Destination: a("10.1.2.3")})
	if err != nil || explained[0].Action != string(masq.Exempt) || explained[0].Origin != "ip-masq-agent:2:3" || explained[0].Range != "10.0.0.0/8" {
		t.Errorf("%+v, %v", explained, err)
	}
	plans, err := d.PlanAgent(t.Context(), e, "nonMasqueradeCIDRs:\n- 203.0.113.0/24\n")
	if err != nil || len(plans) != 2 || len(plans[1].Changes) == 0 {
		t.Errorf("%+v, %v", plans, err)
	}
	if plans, err = d.PlanAgent(t.Context(), e, e.Agent.Text); err != nil || len(plans[0].Changes) != 0 {
		t.Errorf("the same again: %+v, %v", plans, err)
	}
	if plans, err = d.PlanAgent(t.Context(), e, ""); err != nil || len(plans[0].Changes) == 0 {
		t.Errorf("no file: %+v, %v", plans, err)
	}
	if plans, err = d.PlanAgent(t.Context(), e, "nonMasqueradeCIDRs: [x]\n"); err != nil || plans[0].Err == nil || !strings.Contains(plans[0].Err.Error(), "ip-masq-agent:1:22") || strings.Contains(plans[0].Err.Error(), "/dev/stdin") {
		t.Errorf("a bad candidate: %+v, %v", plans, err)
	}
	if err := ready(d, e); err != nil {
		t.Errorf("planning changed something: %v", err)
	}
}

func TestClusterOfNoEnvironmentIsPruned(t *testing.T) {
	d := newDriver(t)
	if removed, err := d.Prune(t.Context(), nil); err != nil || removed != nil {
		t.Errorf("without a host: %v, %v", removed, err)
	}
	keep, prune := newEnvironment(1), newEnvironment(1)
	ensure(t, d, keep)
	ensure(t, d, prune)
	removed, err := d.Prune(t.Context(), map[string]bool{keep.UUID: true, uuid.NewString(): true})
	if err != nil || !slices.Equal(removed, []string{prune.UUID}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if err := ready(d, keep); err != nil {
		t.Error(err)
	}
}

func TestClustersTwentyAtOnce(t *testing.T) {
	d := newDriver(t)
	var all sync.WaitGroup
	began := time.Now()
	environments := make([]*environment.Environment, 20)
	for i := range environments {
		environments[i] = newEnvironment(3)
		all.Go(func() {
			if _, err := run(context.Background(), d.Ensure(environments[i])); err != nil {
				t.Errorf("%d: %v", i, err)
			} else if err := ready(d, environments[i]); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	c, err := host.Dial(t.Context(), d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := c.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hello.PID))
	if err != nil {
		t.Fatal(err)
	}
	resident := ""
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "VmRSS:") {
			resident = strings.TrimSpace(line)
		}
	}
	began = time.Now()
	if removed, err := d.Prune(t.Context(), nil); err != nil || len(removed) != 20 {
		t.Errorf("pruned %d, %v", len(removed), err)
	}
	t.Logf("20 clusters took %v (the host: %s), their removal %v", took, resident, time.Since(began))
}

func TestSpecFollowsThePlan(t *testing.T) {
	e := newEnvironment(3)
	s, err := Spec(e.Plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	n := s.Nodes[2]
	if n.Name != "node-3" || n.PodRanges[0].String() != "192.168.0.128/26" || n.Pods[0].Name != "airflow-worker-3" || n.Pods[0].Addresses[0].String() != "192.168.0.130" {
		t.Errorf("%+v", n)
	}
	if o := s.Outside[0]; o.Addresses[0].String() != "203.0.113.10" || len(o.Allow) != 1 || o.Allow[0].String() != "10.128.0.0/20" {
		t.Errorf("%+v", o)
	}
	// Public addresses that are used privately.
	e.Plan.Ranges[1].Prefix = netip.MustParsePrefix("203.0.112.0/21")
	if s, err = Spec(e.Plan); err != nil || s.Outside[0].Addresses[0].String() != "198.51.100.10" {
		t.Errorf("%+v, %v", s.Outside, err)
	}
	for name, change := range map[string]func(*address.Plan){
		"no room":      func(p *address.Plan) { p.Ranges[1].Prefix = netip.MustParsePrefix("192.168.0.0/25") },
		"no nodes":     func(p *address.Plan) { p.NodeAddresses = nil },
		"no Pod range": func(p *address.Plan) { p.Ranges = p.Ranges[:1] },
		"no bits":      func(p *address.Plan) { p.NodePodBits = 0 },
	} {
		p := newEnvironment(3).Plan
		change(&p)
		if _, err := Spec(p); environment.CodeOf(err) != environment.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
}
