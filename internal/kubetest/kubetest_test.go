package kubetest_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sordino/internal/kubetest"
	"sordino/internal/netnstest"
	"sordino/internal/testwait"
)

func TestAPIServer(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{ControllerManager: true})
	c.Kubectl(t, "", "create", "configmap", "kept", "--from-literal=a=b")

	c.StopAPI()
	if _, err := c.TryKubectl(t.Context(), "", "get", "configmap", "kept"); err == nil {
		t.Error("the API server answers after it was stopped")
	}
	if err := c.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.Kubectl(t, "", "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Errorf("after a restart the ConfigMap holds %q", got)
	}

	nobody, err := c.KubeconfigFor("nobody")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.TryKubectl(t.Context(), "", "--kubeconfig", nobody, "get", "nodes"); err == nil || !strings.Contains(err.Error(), `User "nobody" cannot list resource "nodes"`) {
		t.Errorf("a user without a role lists nodes: %v", err)
	}
	token, err := c.ServiceAccountToken(t.Context(), "default", "default")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Kubectl(t, "", "--kubeconfig", os.DevNull, "--server", c.Server(), "--certificate-authority", c.CA(), "--token", token, "auth", "whoami"); !strings.Contains(got, "system:serviceaccount:default:default") {
		t.Errorf("the token is of %s", got)
	}
}

// clients is a DaemonSet whose Pods call the outside service all the time.
const clients = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client, namespace: default}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: client, image: "kubetest.test/pod:1", imagePullPolicy: Never, args: [dial, "203.0.113.100:7000", 50ms]}
`

func TestNodes(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{Nodes: 2})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.TryKubectl(context.Background(), "", "get", "pods", "-A", "-o", "wide"))
		}
	})
	c.Kubectl(t, clients, "apply", "-f", "-")
	if err := c.Rollout(t.Context(), "default", "client"); err != nil {
		t.Fatal(err)
	}
	seen(t, c, time.Now(), "n1", "n2")
	testwait.Until(t, 2*time.Minute, 100*time.Millisecond, func() error {
		if log := c.Kubectl(t, "", "logs", "daemonset/client"); !strings.Contains(log, "seen as 10.88.") {
			return fmt.Errorf("a client's log says %q", log)
		}
		return nil
	})

	// A node that lost power has no rules any more, and what it stored.
	n := c.Node("n1")
	netnstest.Run(t, n.NS, "", "nft", "add table ip lost")
	if err := os.WriteFile(n.Path("/var/lib/stored"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := netnstest.Run(t, n.NS, "", "nft", "list tables"); strings.Contains(got, "lost") {
		t.Errorf("after a restart there are the tables %s", got)
	}
	if _, err := os.Stat(n.Path("/var/lib/stored")); err != nil {
		t.Error(err)
	}
	seen(t, c, time.Now(), "n1")

	if err := c.AddNodes(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	seen(t, c, time.Now(), "n3")
}

// seen waits until the outside has seen a Pod of each node.
func seen(t *testing.T, c *kubetest.Cluster, since time.Time, nodes ...string) {
	t.Helper()
	testwait.Until(t, 2*time.Minute, 20*time.Millisecond, func() error {
		all := c.Service.Since(since)
		for _, name := range nodes {
			if !slices.ContainsFunc(all, func(s kubetest.Sighting) bool { return c.Node(name).Pods.Contains(s.From) }) {
				return fmt.Errorf("the outside sees no Pod of %s; it sees %v", name, all)
			}
		}
		return nil
	})
}
