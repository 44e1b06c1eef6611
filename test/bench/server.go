package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/google/uuid"

	"sordino/environment"
	"sordino/environment/address"
	"sordino/lab/host"
	"sordino/store"
)

// place is where all environments of the measurements are.
var place = environment.Location{Project: "example-project", ID: "us-central1"}

// caller asks a server over REST as a client does: one connection for each
// call that is under way, kept for the next.
type caller struct {
	url, token string
	client     *http.Client
}

func newCaller(address, token string) *caller {
	return &caller{"http://" + address, token, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: 30 * time.Second}}
}

func (c *caller) close() { c.client.CloseIdleConnections() }

// do makes a call and reads its whole answer.
func (c *caller) do(ctx context.Context, method, path, body string) ([]byte, error) {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.url+path, reader)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+c.token)
	response, err := c.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s\n%s", method, path, response.Status, answer)
	}
	return answer, err
}

// server is the real program "sordino serve".
type server struct {
	*caller
	dir    string
	cmd    *exec.Cmd
	output bytes.Buffer
	exited chan struct{}
	// ready is how long it took from the start of the program to its first
	// answer to a call that needs everything: the token and the database.
	ready time.Duration
}

// startServer starts the program, with clusters on this machine, on a data
// folder and waits until it answers.
func startServer(ctx context.Context, b *bench, dir string) (*server, error) {
	return startServerWith(ctx, b, dir, "--agent-binary", b.agent)
}

// startServerWith is startServer for other kinds of clusters.
func startServerWith(ctx context.Context, b *bench, dir string, flags ...string) (*server, error) {
	// A port that is free now; the kernel does not give it to anybody else soon.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		return nil, err
	}
	s := &server{dir: dir, exited: make(chan struct{})}
	s.cmd = exec.Command(b.server, "serve", "--data", dir, "--listen", address)
	s.cmd.Args = append(s.cmd.Args, flags...)
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us, who stop it
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = s.cmd.Wait(); close(s.exited) }()
	for {
		token, err := os.ReadFile(filepath.Join(dir, "token"))
		if err == nil {
			s.caller = newCaller(address, strings.TrimSpace(string(token)))
			_, err = s.do(ctx, "GET", "/v1/"+place.String()+"/environments?pageSize=1", "")
			if err == nil {
				s.ready = time.Since(began)
				return s, nil
			}
		}
		select {
		case <-s.exited:
			return nil, fmt.Errorf("the server ended:\n%s", s.output.String())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), s.stop())
		case <-time.After(time.Millisecond):
		}
		if time.Since(began) > time.Minute {
			return nil, errors.Join(fmt.Errorf("the server does not answer: %w", err), s.stop())
		}
	}
}

// stop ends the program; what it made in the lab stays.
func (s *server) stop() error {
	if s.caller != nil {
		s.close()
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.exited
	if !s.cmd.ProcessState.Success() {
		return fmt.Errorf("the server: %s\n%s", s.cmd.ProcessState, s.output.String())
	}
	return nil
}

// takeDown ends the program and takes everything down that it made.
func (s *server) takeDown() error {
	err := s.stop()
	down := host.Down(context.Background(), s.dir)
	if errors.Is(down, host.ErrNoHost) {
		down = nil
	}
	return errors.Join(err, down)
}

// memory is the most that the program has held resident so far, in bytes.
func (s *server) memory() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("the kernel does not tell a process's memory")
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// create asks for an environment of three nodes with the agent. Its ranges are
// small, so that many fit into one network.
func (c *caller) create(ctx context.Context, id string) (operation string, err error) {
	body := fmt.Sprintf(`{"name": "%s/environments/%s", "config": {"nodeCount": 3, "softwareConfig": {"imageVersion": "composer-1.20.12-airflow-1.10.15"},
		"nodeConfig": {"ipAllocationPolicy": {"useIpAliases": true, "clusterIpv4CidrBlock": "/23", "servicesIpv4CidrBlock": "/27"}, "enableIpMasqAgent": true}}}`, place, id)
	return c.begin(ctx, id, body)
}

// createAsClusterIs is create with the ranges and nodes that a cluster has.
func (c *caller) createAsClusterIs(ctx context.Context, id string) (operation string, err error) {
	return c.begin(ctx, id, clusterBody(id))
}

func clusterBody(id string) string {
	return fmt.Sprintf(`{"name": "%s/environments/%s", "config": {"softwareConfig": {"imageVersion": "composer-1.20.12-airflow-1.10.15"},
		"nodeConfig": {"ipAllocationPolicy": {"useIpAliases": true}, "enableIpMasqAgent": true}}}`, place, id)
}

func (c *caller) begin(ctx context.Context, id, body string) (operation string, err error) {
	answer, err := c.do(ctx, "POST", "/v1/"+place.String()+"/environments", body)
	if err != nil {
		return "", err
	}
	var o struct{ Name string }
	if err := json.Unmarshal(answer, &o); err != nil || o.Name == "" {
		return "", fmt.Errorf("creating %s: no operation in the answer: %s", id, answer)
	}
	return o.Name, nil
}

// state is an environment's.
func (c *caller) state(ctx context.Context, id string) (string, error) {
	answer, err := c.do(ctx, "GET", "/v1/"+place.String()+"/environments/"+id, "")
	if err != nil {
		return "", err
	}
	var e struct{ State string }
	return e.State, json.Unmarshal(answer, &e)
}

// running waits until an environment is RUNNING.
func (c *caller) running(ctx context.Context, id, operation string) error {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		state, err := c.state(ctx, id)
		switch {
		case err != nil:
			return err
		case state == "RUNNING":
			return nil
		case state != "CREATING" || time.Now().After(deadline):
			answer, err := c.do(ctx, "GET", "/v1/"+operation, "")
			return errors.Join(fmt.Errorf("%s is %s:\n%s", id, state, answer), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// delete deletes an environment and waits until it is gone.
func (c *caller) delete(ctx context.Context, id string) error {
	if _, err := c.do(ctx, "DELETE", "/v1/"+place.String()+"/environments/"+id, ""); err != nil {
		return err
	}
	for {
		if _, err := c.state(ctx, id); err != nil {
			if strings.Contains(err.Error(), "404 ") {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// stored are how many environments are there for the measurements of size.
const stored = 10_000

// fill stores environments as they are after their creation, each with its
// operation. They are in state ERROR: no machine's lab holds as many clusters,
// and a RUNNING one would be built again. State apart they are whole, so that
// what is read, kept and sent is that of 10,000 that run.
func fill(ctx context.Context, dir string) error {
	s, err := store.Open(dir)
	if err != nil {
		return err
	}
	const batch = 1000
	for n := 0; n < stored && err == nil; n += batch {
		err = s.Update(ctx, func(tx environment.Tx) error {
			for i := n; i < n+batch; i++ {
				e := example(i)
				o := &environment.Operation{Name: environment.OperationName{Location: place, ID: uuid.NewString()}, Type: environment.Create,
					Target: e.Name, TargetUUID: e.UUID, Created: e.Created, Generation: e.Generation,
					State: environment.Succeeded, Ended: e.Updated, Result: e}
				for _, step := range []string{"build the network", "start the agents", "prove it with a packet", "look at the outcome"} {
					o.Steps = append(o.Steps, environment.Step{Name: step, State: environment.Succeeded, Detail: e.Observed.Proof, Started: e.Created, Ended: e.Updated})
				}
				if err := errors.Join(tx.PutEnvironment(e), tx.PutOperation(o)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(err, s.Close())
}

func exampleID(i int) string { return fmt.Sprintf("environment-%05d", i) }

// example is one of many environments on one network.
func example(i int) *environment.Environment {
	// The labels of a subnetwork's nodes and of Pod ranges just count on.
	node := func(n int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, 128 + byte(i>>13), byte(i >> 5), byte(i<<3 + n)})
	}
	now := time.Now().UTC()
	zone := "projects/" + place.Project + "/zones/us-central1-a"
	network := "projects/" + place.Project + "/global/networks/default"
	subnetwork := "projects/" + place.Project + "/regions/us-central1/subnetworks/default"
	e := &environment.Environment{
		Name: environment.Name{Location: place, ID: exampleID(i)}, UUID: uuid.NewString(), State: environment.Errored, Generation: 1, Created: now, Updated: now,
		Spec: environment.Spec{
			Config: &servicepb.EnvironmentConfig{NodeCount: 3, NodeConfig: &servicepb.NodeConfig{
				Location: zone, MachineType: zone + "/machineTypes/n1-standard-1", Network: network, Subnetwork: subnetwork,
				DiskSizeGb: 100, EnableIpMasqAgent: true, IpAllocationPolicy: &servicepb.IPAllocationPolicy{UseIpAliases: true},
			}, SoftwareConfig: &servicepb.SoftwareConfig{ImageVersion: "composer-1.20.12-airflow-1.10.15", PythonVersion: "3",
				EnvVariables: map[string]string{"STAGE": "production"}, AirflowConfigOverrides: map[string]string{"core-dags_are_paused_at_creation": "True"}}},
			Labels: map[string]string{"team": "data", "stage": "production"},
		},
		Plan: address.Plan{Network: network, Subnetwork: subnetwork, VPCNative: true, NodePodBits: 26, MaxPodsPerNode: 32, MaxNodes: 8, MaxServices: 32,
			Ranges: []address.Range{
				{Kind: address.Nodes, Prefix: netip.MustParsePrefix("10.128.0.0/14"), By: address.Named, Name: "default"},
				{Kind: address.Pods, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 7), byte(i << 1), 0}), 23), By: address.Chosen},
				{Kind: address.Services, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16 + byte(i>>11), byte(i >> 3), byte(i << 5)}), 27), By: address.Chosen},
			},
			NodeAddresses: []netip.Addr{node(2), node(3), node(4)}},
		Agent:    environment.AgentConfig{Text: "nonMasqueradeCIDRs: [10.0.0.0/8]\n", Generation: 1},
		Observed: environment.Observed{Generation: 1, Checked: now, Proof: fmt.Sprintf("10.%d.%d.2 was seen as %s by 203.0.113.10; the Pods of 2 other nodes likewise", i>>7, i<<1&255, node(2))},
	}
	for n := range 3 {
		e.Observed.Nodes = append(e.Observed.Nodes, environment.ObservedNode{Name: fmt.Sprintf("node-%d", n+1), Ready: true,
			ConfigGeneration: 1, DesiredGeneration: 3, AppliedGeneration: 3, Hash: strings.Repeat("ab", 32)})
	}
	return e
}

// page gets a page of the largest size, and returns the next one's token.
func (c *caller) page(ctx context.Context, token string) (next string, err error) {
	answer, err := c.do(ctx, "GET", "/v1/"+place.String()+"/environments?pageSize=1000&pageToken="+token, "")
	if err != nil {
		return "", err
	}
	var list struct{ NextPageToken string }
	return list.NextPageToken, json.Unmarshal(answer, &list)
}
