package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/google/uuid"

	"sordino/environment"
	"sordino/environment/address"
	"sordino/internal/testserver"
	"sordino/store"
)

// place is where all environments of the measurements are.
var place = environment.Location{Project: "example-project", ID: "us-central1"}

// environments is the path of all environments of the measurements.
var environments = "/v1/" + place.String() + "/environments"

// server is the real program "sordino serve".
type server struct {
	*testserver.Server
	// ready is how long it took from the start of the program to its first
	// answer to a call that needs everything: the token and the database.
	ready time.Duration
}

// startServer starts the program on a data folder and waits until it answers.
// Its clusters are on this machine unless arguments of "serve" say otherwise.
func startServer(ctx context.Context, b *bench, dir string, args ...string) (*server, error) {
	if len(args) == 0 {
		args = []string{"--agent-binary", b.agent}
	}
	s, err := testserver.New(testserver.Options{Program: b.server, Data: dir, Args: args})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err = s.Run(ctx); err == nil {
		_, err = s.Ask(ctx, "GET", environments+"?pageSize=1", "")
	}
	ready := time.Since(began)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &server{s, ready}, nil
}

// memory is the most that the program has held resident so far, in bytes.
func (s *server) memory() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
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

// exampleBody is that of an environment of three nodes with the agent. Its ranges
// are small, so that many fit into one network.
func exampleBody(id string) string {
	return fmt.Sprintf(`{"name": "%s/environments/%s", "config": {"nodeCount": 3, "softwareConfig": {"imageVersion": "composer-1.20.12-airflow-1.10.15"},
		"nodeConfig": {"ipAllocationPolicy": {"useIpAliases": true, "clusterIpv4CidrBlock": "/23", "servicesIpv4CidrBlock": "/27"}, "enableIpMasqAgent": true}}}`, place, id)
}

// clusterBody is exampleBody with the ranges and nodes that a cluster has.
func clusterBody(id string) string {
	return fmt.Sprintf(`{"name": "%s/environments/%s", "config": {"softwareConfig": {"imageVersion": "composer-1.20.12-airflow-1.10.15"},
		"nodeConfig": {"ipAllocationPolicy": {"useIpAliases": true}, "enableIpMasqAgent": true}}}`, place, id)
}

// create makes an environment and waits until it is RUNNING.
func create(ctx context.Context, c *testserver.Client, body string) error {
	return change(ctx, c, "POST", environments, body)
}

// remove deletes an environment and waits until it is gone.
func remove(ctx context.Context, c *testserver.Client, id string) error {
	return change(ctx, c, "DELETE", environments+"/"+id, "")
}

func change(ctx context.Context, c *testserver.Client, method, path, body string) error {
	var o testserver.Operation
	if err := c.Call(ctx, method, path, body, &o); err != nil {
		return err
	}
	_, err := c.Wait(ctx, o.Name)
	return err
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
func page(ctx context.Context, c *testserver.Client, token string) (next string, err error) {
	var list struct{ NextPageToken string }
	err = c.Call(ctx, "GET", environments+"?pageSize=1000&pageToken="+token, "", &list)
	return list.NextPageToken, err
}
