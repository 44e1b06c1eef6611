package clusters_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/google/go-cmp/cmp"

	"sordino/agentconfig"
	"sordino/clusters"
	"sordino/environment"
	"sordino/environment/address"
	"sordino/environment/image"
	"sordino/internal/kubetest"
	"sordino/networks"
	"sordino/store/storetest"
)

const twoNodes = `
apiVersion: v1
kind: Node
metadata: {name: n0, labels: {kubernetes.io/os: windows}}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.88.1.0/24, podCIDRs: [10.88.1.0/24]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.88.2.0/24, podCIDRs: [10.88.2.0/24]}
`

// nodeStatus gives a Node what its kubelet would.
func nodeStatus(t *testing.T, k *kubetest.Cluster, name, address string) {
	t.Helper()
	k.Kubectl(t, "", "patch", "node", name, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(
		`{"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}],"allocatable":{"pods":"64","cpu":"2"},
		"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":"2026-11-28T00:00:00Z","lastTransitionTime":"2026-11-28T00:00:00Z"}]}}`, name, address))
}

// declare is a clusters file of one or more contexts of the API server.
func declare(t *testing.T, kubeconfig string, more string) *clusters.Clusters {
	t.Helper()
	text := "clusters:\n- {name: cluster-1, location: us-central1, kubeconfig: " + kubeconfig + ", context: CONTEXT, nodeRange: 10.89.0.0/24, podRange: 10.88.0.0/16}\n" + more
	path := filepath.Join(t.TempDir(), "clusters.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "CONTEXT", contextOf(t, kubeconfig))), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := clusters.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func contextOf(t *testing.T, kubeconfig string) string {
	t.Helper()
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "current-context:"); ok {
			return strings.TrimSpace(name)
		}
	}
	t.Fatalf("%s has no current context", kubeconfig)
	return ""
}

var comparers = cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

// One real API server, from facts to a claimed cluster.
func TestRealCluster(t *testing.T) {
	k := kubetest.Start(t, kubetest.Options{})
	k.Kubectl(t, twoNodes, "create", "-f", "-")
	nodeStatus(t, k, "n1", "10.89.0.11")
	nodeStatus(t, k, "n2", "10.89.0.12")
	declared := declare(t, k.Kubeconfig(), "")
	one := declared.ByName("cluster-1")

	facts, err := clusters.ReadFacts(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	node := func(name, address, pods string) clusters.Node {
		return clusters.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(address)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(pods)}, MaxPods: 64, Ready: true}
	}
	if !strings.HasPrefix(facts.Version, "v1.") {
		t.Errorf("the version is %q", facts.Version)
	}
	want := clusters.Facts{Version: facts.Version, Nodes: []clusters.Node{node("n1", "10.89.0.11", "10.88.1.0/24"), node("n2", "10.89.0.12", "10.88.2.0/24")},
		ServiceRanges: []netip.Prefix{kubetest.ServiceRange}}
	if diff := cmp.Diff(want, facts, comparers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if found := one.Check(facts); found != nil {
		t.Errorf("contradictions: %v", found)
	}

	ids := 0
	service := environment.NewService(environment.Options{
		Store: storetest.Open(t), Networks: networks.Default().OnClusters(), Clusters: declared, Images: image.Default(),
		CheckAgentConfig: agentconfig.Check, Now: time.Now,
		NewID: func() string { ids++; return fmt.Sprintf("%08d-0000-4000-8000-000000000000", ids) },
	})
	create := func(id string, validateOnly bool) (*environment.Operation, error) {
		return service.Create(t.Context(), environment.CreateRequest{
			Parent: environment.Location{Project: "p", ID: "us-central1"}, Name: environment.Name{ID: id},
			Spec: environment.Spec{Config: &servicepb.EnvironmentConfig{NodeConfig: &servicepb.NodeConfig{
				EnableIpMasqAgent: true, IpAllocationPolicy: &servicepb.IPAllocationPolicy{UseIpAliases: true}}}},
			CallOptions: environment.CallOptions{ValidateOnly: validateOnly}})
	}
	op, err := create("e1", true)
	if err != nil {
		t.Fatal(err)
	}
	wantPlan := address.Plan{Network: "projects/p/global/networks/default", Subnetwork: "projects/p/regions/us-central1/subnetworks/default", VPCNative: true,
		Ranges: []address.Range{{Kind: address.Nodes, Prefix: kubetest.NodeRange, By: address.Cluster}, {Kind: address.Pods, Prefix: kubetest.PodRange, By: address.Cluster},
			{Kind: address.Services, Prefix: kubetest.ServiceRange, By: address.Cluster}},
		NodeAddresses: []netip.Addr{netip.MustParseAddr("10.89.0.11"), netip.MustParseAddr("10.89.0.12")},
		NodePodBits:   24, MaxPodsPerNode: 64, MaxNodes: 252, MaxServices: 65536}
	if op.Result.Cluster != "cluster-1" {
		t.Errorf("it would take %q", op.Result.Cluster)
	}
	if diff := cmp.Diff(wantPlan, op.Result.Plan, comparers); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}

	// What another server has claimed is not free; nor is somebody's namespace.
	refused := func(want string) {
		t.Helper()
		var refusal *environment.Error
		if _, err := create("e1", false); !errors.As(err, &refusal) || refusal.Code != environment.FailedPrecondition || refusal.Reason != "NO_FREE_CLUSTER" || !strings.Contains(refusal.Message, want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	k.Kubectl(t, "", "create", "namespace", clusters.Namespace)
	refused("cluster-1: it is not what the clusters file declares, see \"sordino clusters check\": the namespace sordino is there without the label")
	k.Kubectl(t, "", "label", "namespace", clusters.Namespace, clusters.EnvironmentLabel+"=another-uuid")
	refused("cluster-1: it is claimed by the environment with UUID another-uuid, which this server does not have")
	k.Kubectl(t, "", "label", "namespace", clusters.Namespace, clusters.EnvironmentLabel+"-", "--overwrite")
	k.Kubectl(t, "", "delete", "namespace", clusters.Namespace, "--wait=false")

	// Who may not list Nodes is told so, with what to try.
	limited, err := k.KubeconfigFor("nobody", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clusters.ReadFacts(t.Context(), declare(t, limited, "").ByName("cluster-1")); err == nil || !strings.Contains(err.Error(), `nodes is forbidden: User "nobody" cannot list resource "nodes"`) || !strings.Contains(err.Error(), "try it with: kubectl --kubeconfig "+limited+" --context nobody get nodes") {
		t.Errorf("without permissions: %v", err)
	}
	k.StopAPI()
	refused("cluster-1: cluster cluster-1 at https://127.0.0.1:")
	readings := clusters.ReadAll(t.Context(), declared.All())
	if len(readings) != 1 || readings[0].Cluster != one || readings[0].Err == nil {
		t.Errorf("an API server that is away: %+v", readings)
	}
	if err := k.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the caller is gone"))
	if _, err := clusters.ReadFacts(ctx, one); err == nil || !strings.Contains(err.Error(), "the caller is gone") {
		t.Errorf("a call that has ended: %v", err)
	}
}
