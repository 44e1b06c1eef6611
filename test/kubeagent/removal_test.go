package kubeagent

import (
	"strings"
	"testing"
	"time"

	"sordino/internal/netnstest"
)

// removeAgents takes the agents away, and their rules.
func removeAgents(t *testing.T) {
	t.Helper()
	c := cluster
	if c.Kubectl(t, "", "get", "daemonset", "-n", "kube-system", "ip-masq-agent", "--ignore-not-found") == "" {
		return
	}
	deployed.agents = false
	c.Kubectl(t, "", "delete", "-k", "../../deploy/agent", "--ignore-not-found", "--wait")
	c.Kubectl(t, "", "wait", "--for=delete", "pod", "-n", "kube-system", "-l", "k8s-app=ip-masq-agent", "--timeout=4m")
	c.Kubectl(t, "", "apply", "-k", "../../deploy/cleanup")
	rollout(t, "kube-system", "ip-masq-agent-cleanup")
	c.Kubectl(t, "", "delete", "-k", "../../deploy/cleanup", "--wait")
}

// After the clean-up the nodes hold no rule of the agent, and the Nodes say
// nothing of it.
func TestCleanup(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	during(t, asNode)
	clients(t, ungated)
	removeAgents(t)
	seen(t, asPod, time.Now(), c.Nodes[:3]...)
	for _, n := range c.Nodes {
		if tables := netnstest.Run(t, n.NS, "", "nft", "list", "tables"); strings.Contains(tables, "masq") {
			t.Errorf("%s still holds:\n%s", n.Name, tables)
		}
	}
	for _, n := range nodes(t) {
		if status, _, _ := n.condition(); status != "" {
			t.Errorf("%s still has the condition", n.Metadata.Name)
		}
		for key := range n.Metadata.Annotations {
			if strings.HasPrefix(key, "sordino.dev/") {
				t.Errorf("%s still has the annotation %s", n.Metadata.Name, key)
			}
		}
	}
}
