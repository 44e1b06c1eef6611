package deploy_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sordino/deploy"
	"sordino/internal/kubetest"
	"sordino/internal/testwait"
)

// apply applies a base as people do, with every field known to the server.
func apply(t *testing.T, c *kubetest.Cluster, base string) {
	t.Helper()
	c.Kubectl(t, "", "apply", "--validate=strict", "--kustomize", base)
}

func TestCluster(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	for _, node := range []string{"n1", "n2"} {
		c.Kubectl(t, fmt.Sprintf(`{apiVersion: v1, kind: Node, metadata: {name: %s, labels: {zone: a}, annotations: {theirs: "1"}}}`, node), "create", "-f", "-")
	}
	t.Run("over upstream", func(t *testing.T) { testOverUpstream(t, c) })
	t.Run("rights", func(t *testing.T) { testRights(t, c) })
	t.Run("the same objects", func(t *testing.T) { testSameObjects(t, c) })
	t.Run("cleanup", func(t *testing.T) { testCleanup(t, c) })
	t.Run("other bases", func(t *testing.T) { testOtherBases(t, c) })
	t.Run("target cluster", func(t *testing.T) { testTargetCluster(t, c) })
}

// upstream is kubernetes-sigs/ip-masq-agent's manifest.
const upstream = `
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: ip-masq-agent
  namespace: kube-system
spec:
  selector:
    matchLabels:
      k8s-app: ip-masq-agent
  template:
    metadata:
      labels:
        k8s-app: ip-masq-agent
    spec:
      hostNetwork: true
      containers:
      - name: ip-masq-agent
        image: registry.k8s.io/networking/ip-masq-agent:v2.12.6
        args:
        - --masq-chain=IP-MASQ
        - --nomasq-all-reserved-ranges=true
        securityContext:
          privileged: false
          capabilities:
            drop: [ALL]
            add: [NET_ADMIN, NET_RAW]
        volumeMounts:
        - name: config
          mountPath: /etc/config
      volumes:
      - name: config
        configMap:
          name: ip-masq-agent
          optional: true
          items:
          - key: config
            path: ip-masq-agent
`

// testOverUpstream applies the base over upstream's DaemonSet and ConfigMap.
func testOverUpstream(t *testing.T, c *kubetest.Cluster) {
	c.Kubectl(t, upstream, "create", "-f", "-") // as a tool does that leaves no trace of what it set
	c.Kubectl(t, "", "create", "configmap", "ip-masq-agent", "--namespace=kube-system", "--from-literal=config=nonMasqueradeCIDRs: [10.0.0.0/8]")
	before := c.Kubectl(t, "", "get", "--namespace=kube-system", "daemonset/ip-masq-agent", "configmap/ip-masq-agent", "-o", "jsonpath={.items[*].metadata.uid}")
	apply(t, c, "agent")
	after := c.Kubectl(t, "", "get", "--namespace=kube-system", "daemonset/ip-masq-agent", "configmap/ip-masq-agent", "-o", "jsonpath={.items[*].metadata.uid}")
	if before != after {
		t.Errorf("objects were replaced: %s, then %s", before, after)
	}
	pod := c.Kubectl(t, "", "get", "--namespace=kube-system", "daemonset/ip-masq-agent", "-o", "jsonpath={.spec.template.spec}")
	var spec struct {
		HostNetwork bool
		Containers  []struct {
			Args            []string
			SecurityContext json.RawMessage
			VolumeMounts    []struct{ Name string }
		}
		Volumes []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(pod), &spec); err != nil {
		t.Fatal(err)
	}
	if len(spec.Containers) != 1 || len(spec.Volumes) != 3 || len(spec.Containers[0].VolumeMounts) != 3 {
		t.Fatalf("upstream's parts are left: %s", pod)
	}
	if strings.Contains(pod, "NET_RAW") || !strings.Contains(pod, `"add":["NET_ADMIN"]`) || strings.Contains(pod, "--masq-chain") {
		t.Errorf("upstream's settings are left: %s", pod)
	}
	apply(t, c, "agent") // again is no change
	if got := c.Kubectl(t, "", "get", "--namespace=kube-system", "daemonset/ip-masq-agent", "-o", "jsonpath={.metadata.generation}"); got != "2" {
		t.Errorf("generation %s after the same was applied again, want 2", got)
	}
}

// caller makes requests with a token.
type caller struct {
	client *http.Client
	server string
	token  string
}

func newCaller(t *testing.T, c *kubetest.Cluster, token string) caller {
	t.Helper()
	pem, err := os.ReadFile(c.CA())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return caller{
		client: &http.Client{
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true},
			Timeout:   time.Minute,
		},
		server: c.Server(), token: strings.TrimSpace(token),
	}
}

func (c caller) do(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, c.server+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	}
	response, err := c.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// podToken is the token that a Pod of an account has on a node.
func podToken(t *testing.T, c *kubetest.Cluster, account, node string) string {
	t.Helper()
	pod := account + "-" + node
	c.Kubectl(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: kube-system},
		spec: {serviceAccountName: %s, nodeName: %s, hostNetwork: true, containers: [{name: c, image: none}]}}`, pod, account, node), "create", "-f", "-")
	uid := c.Kubectl(t, "", "get", "--namespace=kube-system", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	return c.Kubectl(t, "", "create", "token", "--namespace=kube-system", account,
		"--bound-object-kind=Pod", "--bound-object-name="+pod, "--bound-object-uid="+uid)
}

const (
	kubeSystem = "/api/v1/namespaces/kube-system"
	ownStatus  = `{"metadata": {"annotations": {"sordino.dev/masq-generation": "%[1]d", "sordino.dev/masq-hash": "abc"}},
		"status": {"conditions": [{"type": "IPMasqueradeReady", "status": "True", "reason": "RulesInPlace", "message": "generation %[1]d", "lastTransitionTime": "2026-11-01T00:00:00Z", "lastHeartbeatTime": "2026-11-01T00:00:00Z"}]}}`
	someEvent = `{"metadata": {"name": "n1.1"}, "involvedObject": {"kind": "Node", "name": "n1"}, "reason": "ConfigApplied", "type": "Normal", "message": "applied"}`
)

// policyRefuses waits until it is an admission policy that refuses a request. A
// policy is in force a moment after it was made, and so are rights: what has none
// yet is forbidden, too.
func policyRefuses(t *testing.T, what string, ask func() (int, string)) {
	t.Helper()
	testwait.Until(t, 2*time.Minute, 50*time.Millisecond, func() error {
		if code, text := ask(); code != http.StatusForbidden || !strings.Contains(text, "ValidatingAdmissionPolicy") {
			return fmt.Errorf("%s: %d %s", what, code, text)
		}
		return nil
	})
}

// refusesOtherNodes waits until what runs on n1 may patch its own Node alone.
func refusesOtherNodes(t *testing.T, agent caller, patch string) {
	t.Helper()
	policyRefuses(t, "another Node's status was patched", func() (int, string) {
		return agent.do(t, "PATCH", "/api/v1/nodes/n2/status", patch)
	})
}

// testRights holds the agent's account to what it does, with the token that
// its Pod on n1 has.
func testRights(t *testing.T, c *kubetest.Cluster) {
	agent := newCaller(t, c, podToken(t, c, "ip-masq-agent", "n1"))
	refusesOtherNodes(t, agent, fmt.Sprintf(ownStatus, 0))

	for _, allowed := range []struct{ method, path, body string }{
		{"GET", kubeSystem + "/configmaps?fieldSelector=metadata.name%3Dip-masq-agent", ""},
		{"GET", kubeSystem + "/configmaps?fieldSelector=metadata.name%3Dip-masq-agent&watch=true&timeoutSeconds=1", ""},
		{"GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dn1", ""},
		{"GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dn1&watch=true&timeoutSeconds=1", ""},
		{"GET", "/apis/networking.k8s.io/v1/servicecidrs", ""},
		{"GET", "/apis/networking.k8s.io/v1/servicecidrs?watch=true&timeoutSeconds=1", ""},
		{"PATCH", "/api/v1/nodes/n1/status", fmt.Sprintf(ownStatus, 1)},
		{"PATCH", "/api/v1/nodes/n1/status", fmt.Sprintf(ownStatus, 2)},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"annotations": {"sordino.dev/masq-hash": null}}, "status": {"conditions": [{"type": "IPMasqueradeReady", "$patch": "delete"}]}}`},
		{"POST", "/api/v1/namespaces/default/events", someEvent},
		{"PATCH", "/api/v1/namespaces/default/events/n1.1", `{"count": 2}`},
	} {
		if code, text := agent.do(t, allowed.method, allowed.path, allowed.body); code != http.StatusOK && code != http.StatusCreated {
			t.Errorf("%s %s: %d %s", allowed.method, allowed.path, code, text)
		}
	}

	condition := `{"status": {"conditions": [{"type": %q, "status": "False", "reason": "X", "message": "x"}]}}`
	for _, refused := range []struct{ method, path, body string }{
		{"GET", kubeSystem + "/configmaps/ip-masq-agent", ""}, // it lists and watches
		{"GET", "/api/v1/nodes/n1", ""},
		{"GET", kubeSystem + "/configmaps", ""},
		{"GET", kubeSystem + "/configmaps/extension-apiserver-authentication", ""},
		{"GET", kubeSystem + "/configmaps?watch=true&timeoutSeconds=1", ""},
		{"GET", "/api/v1/namespaces/default/configmaps/ip-masq-agent", ""},
		{"PATCH", kubeSystem + "/configmaps/ip-masq-agent", `{"data": {"config": ""}}`},
		{"GET", kubeSystem + "/secrets", ""},
		{"GET", kubeSystem + "/pods", ""},
		{"POST", kubeSystem + "/serviceaccounts/ip-masq-agent/token", `{}`},
		{"POST", kubeSystem + "/events", someEvent},
		{"DELETE", "/api/v1/namespaces/default/events/n1.1", ""},
		{"GET", "/api/v1/namespaces/default/events", ""},
		{"PATCH", "/api/v1/nodes/n1", `{"metadata": {"annotations": {"sordino.dev/masq-hash": "x"}}}`},
		{"PUT", "/api/v1/nodes/n1/status", `{"metadata": {"name": "n1"}}`},
		{"DELETE", "/api/v1/nodes/n1", ""},
		{"POST", "/apis/networking.k8s.io/v1/servicecidrs", `{"metadata": {"name": "x"}, "spec": {"cidrs": ["10.97.0.0/16"]}}`},
		// What takes the admission policy.
		{"PATCH", "/api/v1/nodes/n2/status", fmt.Sprintf(ownStatus, 1)},
		{"PATCH", "/api/v1/nodes/n1/status", fmt.Sprintf(condition, "Ready")},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"annotations": {"theirs": "2"}}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"annotations": {"theirs": null}}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"annotations": {"new": "1"}}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"labels": {"zone": "b"}}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"labels": {"zone": null}}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"finalizers": ["example.com/x"]}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"status": {"capacity": {"cpu": "99"}}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"status": {"addresses": [{"type": "InternalIP", "address": "10.89.0.99"}]}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"status": {"nodeInfo": {"kernelVersion": "1"}}}`},
		{"PATCH", "/api/v1/nodes/n1/status", `{"status": {"volumesAttached": [{"name": "x", "devicePath": "/"}]}}`},
	} {
		if code, text := agent.do(t, refused.method, refused.path, refused.body); code != http.StatusForbidden {
			t.Errorf("%s %s %s: %d, want 403: %s", refused.method, refused.path, refused.body, code, text)
		}
	}

	// A token that somebody made by hand is of no node.
	token := c.Kubectl(t, "", "create", "token", "--namespace=kube-system", "ip-masq-agent")
	if code, text := newCaller(t, c, token).do(t, "PATCH", "/api/v1/nodes/n1/status", fmt.Sprintf(ownStatus, 3)); code != http.StatusForbidden {
		t.Errorf("a token of no Pod patched a Node: %d %s", code, text)
	}
	// Nobody else is held to the policy.
	c.Kubectl(t, "", "patch", "node", "n2", "--subresource=status", "--type=merge", "-p", `{"status": {"capacity": {"cpu": "4"}}}`)
}

// testSameObjects compares what a program applies with what kustomize makes.
func testSameObjects(t *testing.T, c *kubetest.Cluster) {
	for _, base := range []string{deploy.AgentBase, deploy.CleanupBase} {
		objects, err := deploy.Objects(base, deploy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ours := map[string]map[string]any{}
		for _, o := range objects {
			ours[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = o.Object
		}
		rendered := json.NewDecoder(strings.NewReader(
			c.Kubectl(t, c.Kubectl(t, "", "kustomize", base), "create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-")))
		n := 0
		for ; ; n++ {
			var object map[string]any
			if err := rendered.Decode(&object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			metadata := object["metadata"].(map[string]any)
			namespace, _ := metadata["namespace"].(string)
			key := object["kind"].(string) + " " + namespace + "/" + metadata["name"].(string)
			if diff := cmp.Diff(numbers(t, object), numbers(t, ours[key])); diff != "" {
				t.Errorf("%s: %s, from kustomize (-) and from the package (+):\n%s", base, key, diff)
			}
		}
		if n != len(ours) {
			t.Errorf("%s: kustomize makes %d objects, the package has %d", base, n, len(ours))
		}
	}
}

// numbers makes all of them of one type.
func numbers(t *testing.T, object map[string]any) (same map[string]any) {
	t.Helper()
	text, err := json.Marshal(object)
	if err == nil {
		err = json.Unmarshal(text, &same)
	}
	if err != nil {
		t.Fatal(err)
	}
	return same
}

// testCleanup applies the clean-up when the agent is gone, and holds it to its
// own rights.
func testCleanup(t *testing.T, c *kubetest.Cluster) {
	c.Kubectl(t, "", "delete", "--kustomize", "agent", "--wait=false")
	apply(t, c, "cleanup")
	cleanup := newCaller(t, c, podToken(t, c, "ip-masq-agent-cleanup", "n1"))
	refusesOtherNodes(t, cleanup, `{"metadata": {"annotations": {"sordino.dev/masq-hash": "x"}}}`)
	for _, request := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/api/v1/nodes/n1", "", 403},
		{"PATCH", "/api/v1/nodes/n1/status", `{"metadata": {"annotations": {"sordino.dev/masq-hash": null, "sordino.dev/masq-generation": null}}}`, 200},
		{"GET", "/api/v1/nodes", "", 403},
		{"GET", kubeSystem + "/configmaps/ip-masq-agent", "", 403},
		{"PATCH", "/api/v1/nodes/n1", `{}`, 403},
	} {
		if code, text := cleanup.do(t, request.method, request.path, request.body); code != request.want {
			t.Errorf("%s %s: %d, want %d: %s", request.method, request.path, code, request.want, text)
		}
	}
}

// testOtherBases applies the rest, with every field known to the server.
func testOtherBases(t *testing.T, c *kubetest.Cluster) {
	for _, base := range []string{"server", "example", "webhook", "agent-egressnat"} {
		apply(t, c, base)
	}
	args := c.Kubectl(t, "", "get", "--namespace=kube-system", "daemonset/ip-masq-agent", "-o", "jsonpath={.spec.template.spec.containers[0].args}")
	if !strings.Contains(args, `"--config-source=egress-nat-policy"`) || strings.Contains(args, "=kube") {
		t.Errorf("the agent's arguments are %s", args)
	}
	// A resource is known a moment after its definition.
	testwait.Until(t, 2*time.Minute, 200*time.Millisecond, func() error {
		_, err := c.TryKubectl(t.Context(), "", "create", "--validate=strict", "-f", "egressnat/default.yaml")
		return err
	})
	c.Kubectl(t, "", "delete", "--kustomize", "agent-egressnat", "--wait=false")
}

// testTargetCluster makes an environment's objects with the server's account,
// and holds it to them.
func testTargetCluster(t *testing.T, c *kubetest.Cluster) {
	apply(t, c, "target-cluster")
	token := strings.TrimSpace(c.Kubectl(t, "", "create", "token", "--namespace=sordino-system", "sordino"))
	server := newCaller(t, c, token)
	as := func(stdin string, args ...string) (string, error) {
		// The token counts, not the administrator's certificate.
		return c.TryKubectl(t.Context(), stdin, append([]string{"--kubeconfig", serverKubeconfig(t, c, token)}, args...)...)
	}

	testwait.Until(t, 2*time.Minute, 50*time.Millisecond, func() error { // rights are known a moment after they were given
		if code, text := server.do(t, "POST", "/api/v1/namespaces", `{"metadata": {"name": "sordino"}}`); code != http.StatusCreated {
			return fmt.Errorf("claiming: %d %s", code, text)
		}
		return nil
	})
	for _, base := range []string{deploy.AgentBase, deploy.CleanupBase} {
		objects, err := deploy.Objects(base, deploy.Options{Image: "registry.example.com/ip-masq-agent:v1"})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			text, err := json.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // made, and changed
				if _, err := as(string(text), "apply", "--server-side", "--field-manager=sordino", "--force-conflicts", "--validate=false", "-f", "-"); err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := as("", "delete", "--kustomize", base, "--wait=false"); err != nil {
			t.Error(err)
		}
	}
	worker := `{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": %q, "namespace": "sordino"}, "spec": {"selector": {"matchLabels": {"app": "w"}},
		"template": {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "w", "image": "none"}]}}}}`
	if _, err := as(fmt.Sprintf(worker, "airflow-worker"), "apply", "--server-side", "--field-manager=sordino", "--validate=false", "-f", "-"); err != nil {
		t.Error(err)
	}

	pod := `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": %q}, "spec": {"automountServiceAccountToken": false, "nodeName": "n1", "containers": [{"name": "c", "image": "none"}]}}`
	c.Kubectl(t, `{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "sordino"}}`, "apply", "-f", "-")
	c.Kubectl(t, `{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "kube-system"}}`, "apply", "-f", "-")
	for _, p := range [][2]string{{"airflow-worker-1", "sordino"}, {"ip-masq-agent-1", "kube-system"}, {"kube-proxy-1", "kube-system"}} {
		c.Kubectl(t, fmt.Sprintf(pod, p[0], p[1]), "create", "-f", "-")
	}
	exec := func(namespace, pod string) (int, string) {
		return server.do(t, "POST", "/api/v1/namespaces/"+namespace+"/pods/"+pod+"/exec?command=x&stdout=true", "")
	}
	policyRefuses(t, "the server may run commands in kube-proxy", func() (int, string) { return exec("kube-system", "kube-proxy-1") })
	// There is no kubelet: what is allowed fails later.
	for namespace, pod := range map[string]string{"sordino": "airflow-worker-1", "kube-system": "ip-masq-agent-1"} {
		if code, text := exec(namespace, pod); code == http.StatusForbidden || code == http.StatusUnauthorized {
			t.Errorf("running a command in %s: %d %s", pod, code, text)
		}
	}

	for _, request := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/version", "", 200},
		{"GET", "/api/v1/nodes", "", 200},
		{"GET", "/apis/networking.k8s.io/v1/servicecidrs", "", 200},
		{"GET", "/api/v1/namespaces/sordino", "", 200},
		{"PATCH", "/api/v1/namespaces/sordino", `{"metadata": {"annotations": {"sordino.dev/state": "{}"}}}`, 200},
		{"GET", "/api/v1/namespaces/sordino/pods?watch=true&timeoutSeconds=1", "", 200},
		{"GET", "/apis/apps/v1/namespaces/kube-system/daemonsets?fieldSelector=metadata.name%3Dip-masq-agent", "", 200},
		{"GET", "/api/v1/namespaces/kube-system/events?fieldSelector=type%3DWarning", "", 200},
		{"DELETE", "/api/v1/namespaces/sordino", "", 200},
		{"DELETE", "/api/v1/namespaces/default", "", 403},
		{"GET", "/api/v1/secrets", "", 403},
		{"GET", "/api/v1/namespaces/kube-system/configmaps", "", 403},
		{"PATCH", "/api/v1/nodes/n1", `{"spec": {"unschedulable": true}}`, 403},
		{"POST", "/api/v1/namespaces/kube-system/pods", fmt.Sprintf(pod, "x", "kube-system"), 403},
		{"PATCH", "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy", `{"metadata": {"labels": {"x": "y"}}}`, 403},
		{"PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/sordino-target-cluster", `{"rules": []}`, 403},
		// What it has not itself it cannot give to the agent.
		{"POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"metadata": {"name": "ip-masq-agent"}, "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}`, 403},
	} {
		if code, text := server.do(t, request.method, request.path, request.body); code != request.want {
			t.Errorf("%s %s: %d, want %d: %s", request.method, request.path, code, request.want, text)
		}
	}
}

func serverKubeconfig(t *testing.T, c *kubetest.Cluster, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
		clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}],
		users: [{name: u, user: {token: %q}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, c.Server(), c.CA(), token)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
