package kubetest_test

import (
	"os"
	"strings"
	"testing"

	"sordino/internal/kubetest"
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
