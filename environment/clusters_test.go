package environment_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"sordino/environment"
	"sordino/environment/address"
	"sordino/networks"
)

// existing are clusters by location, as they would answer.
type existing map[string][]environment.Cluster

func (e existing) Locations() []string { return []string{"us-central1", "us-east1"} }

func (e existing) Read(_ context.Context, location string) []environment.Cluster { return e[location] }

// cluster has three nodes; its ranges follow its number.
func cluster(n int) environment.Cluster {
	c := environment.Cluster{Existing: address.Existing{Name: fmt.Sprintf("cluster-%d", n),
		NodeRange: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", n)), Pods: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 100+n)),
		Services: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/20", 200+n))}, NodePodBits: 24, MaxPodsPerNode: 110}}
	for i := range 3 {
		c.Nodes = append(c.Nodes, netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", n, 2+i)))
	}
	return c
}

const onClusterNetworks = `
networks:
  - project: example-project
    name: prod
    subnetworks:
      - name: prod-1
        region: us-central1
        primary: 10.1.0.0/16
        secondary: [{name: prod-pods, range: 10.101.0.0/16}, {name: other, range: 10.77.0.0/16}]
      - name: prod-2
        region: us-central1
        primary: 10.2.0.0/16
`

func onClusters(t *testing.T, at ...environment.Cluster) *fixture {
	t.Helper()
	f := newFixture(t)
	declared, err := networks.Parse("networks.yaml", []byte(onClusterNetworks))
	if err != nil {
		t.Fatal(err)
	}
	f.Networks, f.Clusters = declared.OnClusters(), existing{"us-central1": at}
	return f
}

func withAgent(rest string) string {
	return `{"config":{` + rest +
		`"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true},"enableIpMasqAgent":true}}}`
}

func nodeConfig(fields, policy string) string {
	return `{"config":{"nodeConfig":{` + fields + `"ipAllocationPolicy":{` + policy + `"useIpAliases":true},"enableIpMasqAgent":true}}}`
}

func TestOnClusterRequests(t *testing.T) {
	const field = "config.node_config."
	for name, test := range map[string]struct {
		body string
		rest []string
		// cluster is what is taken; else want is the refusal.
		cluster, want string
	}{
		"nothing is asked for":  {body: nodeConfig("", ""), cluster: "cluster-1"},
		"its own Pod range":     {body: nodeConfig("", `"clusterIpv4CidrBlock":"10.101.0.0/16",`), cluster: "cluster-1"},
		"the second's":          {body: nodeConfig("", `"clusterIpv4CidrBlock":"10.102.0.0/16","servicesIpv4CidrBlock":"10.202.0.0/20",`), cluster: "cluster-2"},
		"a size":                {body: nodeConfig("", `"clusterIpv4CidrBlock":"/16","servicesIpv4CidrBlock":"/20",`), cluster: "cluster-1"},
		"the cluster's names":   {body: nodeConfig("", `"clusterSecondaryRangeName":"pods","servicesSecondaryRangeName":"services",`), cluster: "cluster-1"},
		"the default by name":   {body: nodeConfig(`"network":"projects/example-project/global/networks/default","subnetwork":"default",`, ""), cluster: "cluster-1"},
		"a declared subnetwork": {body: nodeConfig(`"network":"prod","subnetwork":"prod-2",`, ""), cluster: "cluster-2"},
		"a declared range":      {body: nodeConfig(`"network":"prod","subnetwork":"prod-1",`, `"clusterSecondaryRangeName":"prod-pods",`), cluster: "cluster-1"},
		"the number of nodes":   {body: withAgent(`"nodeCount":3,`), cluster: "cluster-1"},
		"room for Pods":         {body: nodeConfig("", ""), rest: []string{"maxPodsPerNode=110"}, cluster: "cluster-1"},
		"a private environment": {body: withAgent(`"privateEnvironmentConfig":{"enablePrivateEnvironment":true},`), cluster: "cluster-1"},

		"another Pod range": {body: nodeConfig("", `"clusterIpv4CidrBlock":"10.4.0.0/14",`), want: field + "ip_allocation_policy.cluster_ipv4_cidr_block CLUSTER_MISMATCH The Pod range 10.4.0.0/14 is asked for, and cluster 'cluster-1' has 10.101.0.0/16. Ask for that, or leave it out\n" +
			field + "ip_allocation_policy.cluster_ipv4_cidr_block CLUSTER_MISMATCH The Pod range 10.4.0.0/14 is asked for, and cluster 'cluster-2' has 10.102.0.0/16. Ask for that, or leave it out"},
		"another size": {body: nodeConfig("", `"servicesIpv4CidrBlock":"/22",`), want: "The Service range /22 is asked for, and cluster 'cluster-1' has 10.201.0.0/20."},
		"two ranges of different clusters": {body: nodeConfig("", `"clusterIpv4CidrBlock":"10.101.0.0/16","servicesIpv4CidrBlock":"10.202.0.0/20",`),
			want: field + "ip_allocation_policy.services_ipv4_cidr_block CLUSTER_MISMATCH The Service range 10.202.0.0/20 is asked for, and cluster 'cluster-1' has 10.201.0.0/20. Ask for that, or leave it out\n" +
				field + "ip_allocation_policy.cluster_ipv4_cidr_block CLUSTER_MISMATCH The Pod range 10.101.0.0/16 is asked for, and cluster 'cluster-2' has 10.102.0.0/16. Ask for that, or leave it out"},
		"a malformed range": {body: nodeConfig("", `"clusterIpv4CidrBlock":"ten",`),
			want: field + "ip_allocation_policy.cluster_ipv4_cidr_block IP_RANGE_MALFORMED The Pod range 'ten' is not an IPv4 range. Write a range such as 10.4.0.0/14, a size such as /14, or nothing for the default"},
		"an unknown name":       {body: nodeConfig("", `"clusterSecondaryRangeName":"mine",`), want: "The secondary range 'mine' was not found in subnetwork 'projects/example-project/regions/us-central1/subnetworks/default'; it has: pods, services"},
		"another declared name": {body: nodeConfig(`"network":"prod","subnetwork":"prod-1",`, `"clusterSecondaryRangeName":"other",`), want: "The Pod range 'other' (10.77.0.0/16) is asked for, and cluster 'cluster-1' has 10.101.0.0/16."},
		"an unknown network":    {body: nodeConfig(`"network":"mine",`, ""), want: field + "network NETWORK_NOT_FOUND Network 'projects/example-project/global/networks/mine' is not declared. Declare it in the networks file, or use one of: projects/example-project/global/networks/default, projects/example-project/global/networks/prod."},
		"another subnetwork":    {body: nodeConfig(`"network":"default","subnetwork":"mine",`, ""), want: "SUBNETWORK_NOT_FOUND"},
		"more nodes":            {body: withAgent(`"nodeCount":5,`), want: "config.node_count CLUSTER_MISMATCH 5 nodes are asked for, and cluster 'cluster-1' has 3. Leave the number out: the environment has the nodes that its cluster has"},
		"a control plane": {body: withAgent(`"privateEnvironmentConfig":{"enablePrivateEnvironment":true,"privateClusterConfig":{"masterIpv4CidrBlock":"172.16.0.0/23"}},`),
			want: "The control plane range 172.16.0.0/23 is asked for, and cluster 'cluster-1' is there already, with its own control plane. Leave the range out"},
		"no agent":           {body: `{}`, cluster: "cluster-1"},
		"what else is wrong": {body: withAgent(`"nodeCount":5,"webServerConfig":{"machineType":"none"},`), want: "MACHINE_TYPE_UNSUPPORTED"},
	} {
		f := onClusters(t, cluster(1), cluster(2))
		op, err := f.create("e1", test.body, test.rest...)
		switch {
		case test.want != "":
			if !strings.Contains(violations(err), test.want) {
				t.Errorf("%s:\ngot  %s\nwant %s", name, violations(err), test.want)
			}
			if code := environment.CodeOf(err); code != environment.InvalidArgument {
				t.Errorf("%s: code %v", name, code)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		default:
			e, err := f.Get(t.Context(), op.Target)
			if err != nil {
				t.Fatal(err)
			}
			if e.Cluster != test.cluster {
				t.Errorf("%s takes %q, not %q", name, e.Cluster, test.cluster)
			}
			if got, want := e.Effective().GetGkeCluster(), "projects/example-project/locations/us-central1/clusters/"+test.cluster; got != want {
				t.Errorf("%s: gkeCluster %s, want %s", name, got, want)
			}
		}
	}
	f := onClusters(t, cluster(1))
	_, err := f.Create(t.Context(), environment.CreateRequest{Parent: environment.Location{Project: "example-project", ID: "europe-west1"}, Name: environment.Name{ID: "e1"}, Spec: spec(t, nodeConfig("", ""))})
	if got, want := violations(err), "parent LOCATION_UNSUPPORTED Location 'europe-west1' is not one that environments can be created in. Choose one of: us-central1, us-east1."; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNoFreeCluster(t *testing.T) {
	unreachable, claimed, small := cluster(2), cluster(3), cluster(4)
	unreachable.Unfit = errors.New("cluster cluster-2 at https://192.0.2.1: no answer within 10s")
	claimed.ClaimedBy = "another-uuid"
	small.Nodes = small.Nodes[:1]
	f := onClusters(t, cluster(1), unreachable, claimed, small)
	body := withAgent(`"nodeCount":3,`)
	first := f.running("e1", body)
	_, err := f.create("e2", body)
	var refusal *environment.Error
	if !errors.As(err, &refusal) {
		t.Fatal(err)
	}
	const want = "no cluster of location 'us-central1' can take the environment; free one, choose another location, or declare one more in the clusters file:\n" +
		"\tcluster-1: it is held by environment 'projects/example-project/locations/us-central1/environments/e1', in state RUNNING: delete that to free it\n" +
		"\tcluster-2: cluster cluster-2 at https://192.0.2.1: no answer within 10s\n" +
		"\tcluster-3: it is claimed by the environment with UUID another-uuid, which this server does not have: delete that on its own server; if that server is no more, clean the cluster up as docs/environments.md says\n" +
		"\tcluster-4: it is not what is asked for: 3 nodes are asked for, and cluster 'cluster-4' has 1. Leave the number out: the environment has the nodes that its cluster has"
	if refusal.Message != want || refusal.Code != environment.FailedPrecondition || refusal.Reason != "NO_FREE_CLUSTER" {
		t.Errorf("got  %v %s %s\nwant %s", refusal.Code, refusal.Reason, refusal.Message, want)
	}
	if len(refusal.Preconditions) != 4 || refusal.Preconditions[0].Subject != "cluster-1" || refusal.Metadata["cluster-2"] == "" {
		t.Errorf("preconditions %+v, metadata %v", refusal.Preconditions, refusal.Metadata)
	}

	// It is not free before the delete has ended.
	op, err := f.Delete(t.Context(), first.Name, environment.CallOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.create("e2", body); reason(err) != "NO_FREE_CLUSTER" || !strings.Contains(err.Error(), "in state DELETING: it is free when that is gone") {
		t.Errorf("while it is deleted: %v", err)
	}
	if err := f.Store.Update(t.Context(), func(tx environment.Tx) error {
		op.State, op.Ended = environment.Succeeded, f.now
		return errors.Join(tx.PutOperation(op), tx.DeleteEnvironment(first.Name))
	}); err != nil {
		t.Fatal(err)
	}
	if e := f.running("e2", body); e.Cluster != "cluster-1" {
		t.Errorf("after the delete %q is taken", e.Cluster)
	}
}

// A request that is sent again has its answer, whatever the clusters say now.
func TestOnClusterReplay(t *testing.T) {
	f := onClusters(t, cluster(1))
	create := func() (*environment.Operation, error) {
		return f.Create(t.Context(), environment.CreateRequest{Parent: here, Name: environment.Name{ID: "e1"}, Spec: spec(t, nodeConfig("", "")),
			CallOptions: environment.CallOptions{RequestID: "once"}})
	}
	first, err := create()
	if err != nil {
		t.Fatal(err)
	}
	f.Clusters = existing{}
	again, err := create()
	if err != nil || again.Name != first.Name {
		t.Errorf("again: %v, %v", again, err)
	}
}

// Creates at once never get the same cluster, and as many succeed as there are
// clusters.
func TestClaimsAtOnce(t *testing.T) {
	f := onClusters(t, cluster(1), cluster(2), cluster(3))
	ids := make(chan string, 100)
	for i := range cap(ids) {
		ids <- fmt.Sprintf("%08d-0000-4000-8000-000000000000", i)
	}
	f.NewID, f.Wake = func() string { return <-ids }, nil
	var running sync.WaitGroup
	var mu sync.Mutex
	var taken []string
	for i := range 12 {
		running.Go(func() {
			op, err := f.Create(context.Background(), environment.CreateRequest{Parent: here, Name: environment.Name{ID: fmt.Sprintf("e%d", i)}, Spec: spec(t, nodeConfig("", ""))})
			if err != nil {
				if reason(err) != "NO_FREE_CLUSTER" {
					t.Error(err)
				}
				return
			}
			e, err := f.Get(context.Background(), op.Target)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			taken = append(taken, e.Cluster)
		})
	}
	running.Wait()
	slices.Sort(taken)
	if !slices.Equal(taken, []string{"cluster-1", "cluster-2", "cluster-3"}) {
		t.Errorf("taken are %v", taken)
	}
}

// Nodes that join or leave are followed, and cannot be asked for.
func TestNodesOfCluster(t *testing.T) {
	f := onClusters(t, cluster(1))
	e := f.running("e1", nodeConfig("", ""))
	if n := e.Effective().GetNodeCount(); n != 3 {
		t.Errorf("%d nodes are shown", n)
	}
	if n := e.MaxPodsPerNode(); n != 110 {
		t.Errorf("%d Pods a node are shown", n)
	}
	observed := environment.Observed{Generation: e.Generation}
	if err := e.Missing(observed); err == nil {
		t.Error("a cluster without nodes is in place")
	}
	for i := range 4 {
		observed.Nodes = append(observed.Nodes, environment.ObservedNode{Name: fmt.Sprintf("n%d", i), Ready: true, ConfigGeneration: 1,
			Network: &environment.NodeNetwork{Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(2 + i)})}})
	}
	if err := e.Missing(observed); err != nil {
		t.Errorf("with one more node: %v", err)
	}
	observed.Nodes[3].Ready = false
	if err := e.Missing(observed); err == nil {
		t.Error("a node that joined and is not ready is in place")
	}
	observed.Nodes[3].Ready = true
	if err := f.Store.Update(t.Context(), func(tx environment.Tx) error {
		stored, err := tx.Environment(e.Name)
		if err != nil {
			return err
		}
		stored.Observed = observed
		return tx.PutEnvironment(stored)
	}); err != nil {
		t.Fatal(err)
	}
	e, err := f.Get(t.Context(), e.Name)
	if err != nil {
		t.Fatal(err)
	}
	if n := e.Effective().GetNodeCount(); n != 4 {
		t.Errorf("%d nodes are shown after one joined", n)
	}
	if node, pods := e.NodeNetwork(3); node.String() != "10.1.0.5" || pods.IsValid() {
		t.Errorf("it is at %s, its Pods at %s", node, pods)
	}
	_, err = f.update("e1", "config.nodeCount", `{"config":{"nodeCount":5}}`)
	if got, want := violations(err), "config.node_count CLUSTER_MISMATCH 5 nodes are asked for, and the environment is on cluster 'cluster-1', which has 4. Add nodes to the cluster, or remove them, with what made it: the environment follows by itself."; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := f.update("e1", "config.nodeCount", `{"config":{"nodeCount":4}}`); err != nil {
		t.Errorf("the number that there is: %v", err)
	}
}

// Two clusters may have the same ranges: nothing of theirs is reserved.
func TestSameRangesTwice(t *testing.T) {
	twin := cluster(1)
	twin.Name = "cluster-2"
	f := onClusters(t, cluster(1), twin)
	for i, want := range []string{"cluster-1", "cluster-2"} {
		if e := f.running(fmt.Sprintf("e%d", i), nodeConfig("", `"clusterIpv4CidrBlock":"10.101.0.0/16",`)); e.Cluster != want {
			t.Errorf("%q is taken", e.Cluster)
		}
	}
}
