package deploy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sordino/internal/kubetest"
	"sordino/internal/testwait"
)

// testWebhook runs the webhook as its manifest says: the API server reaches it
// through its Service, and trusts the CA that it has made.
func testWebhook(t *testing.T, c *kubetest.Cluster) {
	apply(t, c, "webhook")
	if _, err := c.TryKubectl(t.Context(), "", "rollout", "status", "--namespace=kube-system", "deployment/ip-masq-agent-webhook", "--timeout=4m"); err != nil {
		t.Log(c.TryKubectl(t.Context(), "", "describe", "pods", "--namespace=kube-system", "--selector=k8s-app=ip-masq-agent-webhook"))
		t.Log(c.TryKubectl(t.Context(), "", "logs", "--namespace=kube-system", "--selector=k8s-app=ip-masq-agent-webhook"))
		t.Fatal(err)
	}
	const bad = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ip-masq-agent, namespace: kube-system}\ndata: {config: 'resyncInterval: 60'}\n"
	testwait.Until(t, 2*time.Minute, 200*time.Millisecond, func() error {
		_, err := c.TryKubectl(t.Context(), bad, "create", "--dry-run=server", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "data.config:1:17: resyncInterval") {
			return fmt.Errorf("a bad ConfigMap is not refused: %v", err)
		}
		return nil
	})
	c.Kubectl(t, "", "delete", "--kustomize", "webhook", "--wait=false")
}
