// Package kubeagent runs the agent as people do, from deploy/agent by kubectl, on
// three real nodes, and judges it by what a service outside sees of the Pods.
//
// All tests share one cluster, whose nodes differ: n1 has kube-proxy in
// iptables mode, n2 in nftables mode, n3 none, and n4, which joins late, a CNI
// that masquerades by itself. On every node a Pod opens a connection to the
// service every 20 ms, so "never unmasked" is said of thousands of them.
package kubeagent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"sordino/deploy/images"
	"sordino/internal/kubetest"
	"sordino/internal/testprogram"
	"sordino/internal/testwait"
)

var (
	cluster *kubetest.Cluster
	unmet   *kubetest.Unmet
)

func TestMain(m *testing.M) {
	os.Exit(func() (status int) {
		dir, err := os.MkdirTemp("", "sordino-cluster-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := start(dir); err != nil {
			if unmet = kubetest.Skippable(err); unmet == nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		if cluster != nil {
			defer func() {
				if os.Getenv(kubetest.Keep) != "" {
					fmt.Fprintln(os.Stderr, "kept:", cluster.Dir())
				}
				if err := cluster.Close(); err != nil {
					fmt.Fprintln(os.Stderr, err)
					status = 1
				}
			}()
		}
		return m.Run()
	}())
}

// start packs the agent into its image and starts the cluster.
func start(dir string) (err error) {
	if err := testprogram.Build(dir, testprogram.Agent); err != nil {
		return err
	}
	archive := filepath.Join(dir, "agent.tar")
	if err := images.WriteTar(archive, "latest", images.Platform{Architecture: runtime.GOARCH, Binaries: dir}, images.Agent); err != nil {
		return err
	}
	cluster, err = kubetest.New(context.Background(), kubetest.Options{Nodes: 3, Images: []string{archive},
		Each: []kubetest.NodeOptions{{Proxy: "iptables"}, {Proxy: "nftables"}, {}, {IPMasq: true}}})
	return err
}

// shared is the cluster.
func shared(t *testing.T) *kubetest.Cluster {
	t.Helper()
	if unmet != nil {
		t.Skip(unmet)
	}
	t.Cleanup(func() {
		if t.Failed() {
			ctx := context.Background()
			for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"}, {"logs", "-n", "kube-system", "-l", "k8s-app=ip-masq-agent", "--tail=30", "--prefix"}, {"get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.metadata.annotations}{" "}{.status.conditions[?(@.type=="IPMasqueradeReady")]}{"\n"}{end}`}} {
				out, err := cluster.TryKubectl(ctx, "", args...)
				t.Logf("kubectl %s (%v):\n%s", strings.Join(args, " "), err, out)
			}
		}
	})
	return cluster
}

// The configurations. The service stands in 203.0.113.0/24.
const (
	masked   = "nonMasqueradeCIDRs: [10.88.0.0/16, 10.89.0.0/24]\nresyncInterval: 10m\n"
	unmasked = "nonMasqueradeCIDRs: [10.88.0.0/16, 10.89.0.0/24, 203.0.113.0/24]\nresyncInterval: 10m\n"
)

// configMap is the manifest of a configuration.
func configMap(config string) string {
	text, _ := json.Marshal(config) // never fails on a string
	return fmt.Sprintf(`{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ip-masq-agent", "namespace": "kube-system"}, "data": {"config": %s}}`, text)
}

// deployed says whether the agents are there, and which clients.
var deployed struct {
	agents  bool
	clients string
}

// agents sees to it that the agents run with a configuration and the clients
// call, on every node.
func agents(t *testing.T, config string) {
	t.Helper()
	c := cluster
	c.Kubectl(t, configMap(config), "apply", "-f", "-")
	if !deployed.agents {
		c.Kubectl(t, "", "apply", "-k", "../../deploy/agent")
		deployed.agents = true
	}
	rollout(t, "kube-system", "ip-masq-agent")
	converged(t, config)
	clients(t, gated)
}

func rollout(t *testing.T, namespace, name string) {
	t.Helper()
	if err := cluster.Rollout(t.Context(), namespace, name); err != nil {
		t.Fatal(err)
	}
}

// clients are Pods that call the service all the time. With the gate they wait
// until their node masquerades.
func clients(t *testing.T, initContainers string) {
	t.Helper()
	if deployed.clients == initContainers {
		rollout(t, "default", "client")
		return
	}
	cluster.Kubectl(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client, namespace: default}
spec:
  selector: {matchLabels: {app: client}}
  updateStrategy: {rollingUpdate: {maxUnavailable: 100%%}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      volumes: [{name: ready, hostPath: {path: /run/ip-masq-agent, type: DirectoryOrCreate}}]
      initContainers: %s
      containers:
      - {name: client, image: %q, imagePullPolicy: Never, args: [dial, "%s:7000", 20ms]}
`, initContainers, kubetest.Image, kubetest.ServiceAddress), "apply", "-f", "-")
	deployed.clients = initContainers
	rollout(t, "default", "client")
}

const (
	ungated = "[]"
	gated   = `[{name: gate, image: "localhost/ip-masq-agent:latest", imagePullPolicy: Never, args: [gate, --ready-file=/run/ip-masq-agent/ready], volumeMounts: [{name: ready, mountPath: /run/ip-masq-agent}]}]`
)

// node is what a Node says of its agent.
type node struct {
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Status struct {
		Conditions []struct{ Type, Status, Reason, Message string }
	}
}

func (n node) condition() (status, reason, message string) {
	for _, c := range n.Status.Conditions {
		if c.Type == "IPMasqueradeReady" {
			return c.Status, c.Reason, c.Message
		}
	}
	return "", "", ""
}

func nodes(t *testing.T) []node {
	t.Helper()
	body, err := cluster.Get(t.Context(), "/api/v1/nodes")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Items []node }
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// eventually asks until there is no error.
func eventually(t *testing.T, ask func() error) {
	t.Helper()
	testwait.Until(t, 3*time.Minute, 20*time.Millisecond, ask)
}

// converged waits until every Node says that its kernel holds a configuration.
func converged(t *testing.T, config string) {
	t.Helper()
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(config)))
	eventually(t, func() error {
		for _, n := range nodes(t) {
			if status, reason, message := n.condition(); status != "True" || n.Metadata.Annotations["sordino.dev/masq-config"] != digest {
				return fmt.Errorf("%s says IPMasqueradeReady=%q, %s: %s; it looked at %s, wanted is %s", n.Metadata.Name, status, reason, message, n.Metadata.Annotations["sordino.dev/masq-config"], digest)
			}
		}
		return nil
	})
}

// How a node's Pods are seen.
const (
	asNode = "with their node's address"
	asPod  = "with their own address"
)

func isSeen(n *kubetest.Node, as string, from netip.Addr) bool {
	return as == asNode && from == n.Address || as == asPod && n.Pods.Contains(from)
}

// seen waits until the service has seen new connections of every node's Pod
// as wanted, and returns the moment of the first of each node.
func seen(t *testing.T, as string, since time.Time, nodes ...*kubetest.Node) map[string]time.Time {
	t.Helper()
	first := map[string]time.Time{}
	eventually(t, func() error {
		all := cluster.Service.Since(since)
		for _, n := range nodes {
			i := slices.IndexFunc(all, func(s kubetest.Sighting) bool { return isSeen(n, as, s.From) })
			if i < 0 {
				return fmt.Errorf("the service has not seen a Pod of %s %s, among %d connections since then", n.Name, as, len(all))
			}
			first[n.Name] = all[i].At
		}
		return nil
	})
	return first
}

// only fails the test if a Pod was seen otherwise since a moment, or if a node
// called too little for that to mean anything.
func only(t *testing.T, as string, since time.Time) {
	t.Helper()
	calls, wrong := map[string]int{}, map[string][]kubetest.Sighting{}
	for _, s := range cluster.Service.Since(since) {
		for _, n := range cluster.Nodes {
			switch {
			case isSeen(n, as, s.From):
				calls[n.Name]++
			case isSeen(n, asNode, s.From) || isSeen(n, asPod, s.From):
				wrong[n.Name] = append(wrong[n.Name], s)
			}
		}
	}
	for _, n := range cluster.Nodes {
		if w := wrong[n.Name]; len(w) > 0 {
			t.Errorf("%d of %d connections of %s were not seen %s; the first %s after the beginning, the last %s", len(w), calls[n.Name]+len(w), n.Name, as, w[0].At.Sub(since), w[len(w)-1].At.Sub(since))
		}
		if calls[n.Name] < 10 {
			t.Errorf("%s called only %d times, which proves nothing", n.Name, calls[n.Name])
		}
	}
	t.Logf("%v connections, all seen %s", calls, as)
}

// during waits until each node's Pod has called a few more times after
// something was done.
func during(t *testing.T, as string) {
	t.Helper()
	from := time.Now()
	eventually(t, func() error {
		for _, n := range cluster.Nodes {
			count := 0
			for _, s := range cluster.Service.Since(from) {
				if isSeen(n, as, s.From) {
					count++
				}
			}
			if count < 10 {
				return fmt.Errorf("%s was seen %s only %d times", n.Name, as, count)
			}
		}
		return nil
	})
}
