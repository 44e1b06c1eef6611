package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"sordino/clusters/fleet"
	"sordino/internal/kubetest"
	"sordino/masq/kube"
)

// The fleet of a real API server, with what agents write on their Nodes.
func TestMasqStatus(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	const configText = "nonMasqueradeCIDRs: [10.0.0.0/8]\n"
	const digest = "b8bf7a366802d10642d4c54c9baf4362835cb6729967f7e456e0230ec9af8176"
	c.Kubectl(t, "", "create", "configmap", "-n", "kube-system", "ip-masq-agent", "--from-literal=config="+configText)
	c.Kubectl(t, `{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "kube-system"}}`, "apply", "-f", "-")
	status := func(args ...string) (int, string, string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var stdout, stderr bytes.Buffer
		code := run(ctx, append([]string{"masq", "status", "--kubeconfig", c.Kubeconfig(), "--context", "admin"}, args...), strings.NewReader(""), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	node := func(i int, config, status, reason, message string) {
		t.Helper()
		name := fmt.Sprintf("n%d", i)
		c.Kubectl(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q}}`, name), "apply", "-f", "-")
		c.Kubectl(t, "", "patch", "node", name, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(
			`{"metadata": {"annotations": {"sordino.dev/masq-generation": "%d", "sordino.dev/masq-hash": "82be2fac16b5fa21", "sordino.dev/masq-config": %q, "sordino.dev/masq-version": "v0.4.0"}},
			"status": {"addresses": [{"type": "InternalIP", "address": "10.89.0.1%[1]d"}], "conditions": [{"type": "IPMasqueradeReady", "status": %[3]q, "reason": %[4]q, "message": %[5]q, "lastHeartbeatTime": %[6]q, "lastTransitionTime": %[6]q}]}}`,
			i, config, status, reason, message, time.Now().UTC().Format(time.RFC3339)))
		c.Kubectl(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-%[1]s", "namespace": "kube-system", "labels": {"k8s-app": "ip-masq-agent"}}, "spec": {"nodeName": %[1]q, "containers": [{"name": "a", "image": "a"}]}}`, name), "apply", "-f", "-")
		c.Kubectl(t, "", "patch", "pod", "-n", "kube-system", "agent-"+name, "--subresource=status", "--type=merge", "-p", `{"status": {"phase": "Running"}}`)
	}
	c.Kubectl(t, `{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}`, "apply", "-f", "-")
	if code, out, _ := status(); code != 1 || !strings.Contains(out, "No agent has ever told anything here: kubectl --kubeconfig "+c.Kubeconfig()+" --context admin apply -k deploy/agent installs it.") {
		t.Errorf("before anything is installed: %d\n%s", code, out)
	}
	node(1, digest, "True", "RulesInPlace", "generation 1")
	if code, out, errs := status(); code != 0 || !strings.Contains(out, "1 node: 1 ready. ConfigMap kube-system/ip-masq-agent is "+digest[:12]) {
		t.Errorf("%d\n%s%s", code, out, errs)
	}

	node(2, digest, "False", "ConfigRejected", `config:3:3: CIDR "10.1.2.3/8" is not aligned`)
	node(3, "none", "True", "RulesInPlace", "generation 3")
	c.Kubectl(t, `{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n4"}}`, "apply", "-f", "-")
	code, out, errs := status()
	want := `NODE  ADDRESS     STATE     GENERATION  HASH          CONFIG                AGENT  REASON
n1    10.89.0.11  ready     1           82be2fac16b5  b8bf7a366802 current  v0.4.0
n2    10.89.0.12  rejected  2           82be2fac16b5  b8bf7a366802 current  v0.4.0  config:3:3: CIDR "10.1.2.3/8" is not aligned
n3    10.89.0.13  ready     3           82be2fac16b5  none behind           v0.4.0
n4    -           silent    -           -             -                     -  there is no condition IPMasqueradeReady on the Node
4 nodes: 2 ready, 1 rejected, 1 silent, 2 not current. ConfigMap kube-system/ip-masq-agent is b8bf7a366802.
`
	if code != 1 || out != want || errs != "" {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	code, out, _ = status("--format", "json")
	var f fleet.Fleet
	if err := json.Unmarshal([]byte(out), &f); err != nil || code != 1 || len(f.Nodes) != 4 || f.InForce || f.Nodes[1].State != kube.AgentRejected || f.Nodes[0].Config != digest {
		t.Errorf("%d %v\n%s", code, err, out)
	}

	// What is in force, but not as its author thinks, is told: what most nodes say
	// first, and not a line a node.
	const typo = `ConfigMap kube-system/ip-masq-agent, config:1:1: unknown key "nonMasqueradeCIDR" is ignored; is nonMasqueradeCIDRs meant?`
	for i := range 4 {
		c.Kubectl(t, "", "annotate", "node", fmt.Sprintf("n%d", i+1), fmt.Sprintf(`sordino.dev/masq-findings=[%q, %q, %q]`, fmt.Sprintf("of n%d", i+1), fmt.Sprintf("also of n%d", i+1), typo))
	}
	_, out, _ = status()
	if _, notes, _ := strings.Cut(out, ".\nnote: "); notes != typo+` (n1, n2, n3, and 1 more)
note: also of n1 (n1)
note: of n1 (n1)
note: also of n2 (n2)
note: of n2 (n2)
and 4 more notes; --format json has all of them
` {
		t.Errorf("the notes are not as expected:\n%s", out)
	}
	if _, out, _ = status("--format", "json"); !strings.Contains(out, `unknown key \"nonMasqueradeCIDR\"`) {
		t.Errorf("no finding in\n%s", out)
	}

	// What docs/kubernetes.md shows for kubectl.
	docs, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(docs), "$ kubectl get nodes -o custom-columns='")
	shown, _, _ = strings.Cut(shown, "```")
	columns, table, _ := strings.Cut(shown, "'\n")
	if got := c.Kubectl(t, "", "get", "nodes", "-o", "custom-columns="+columns); strings.TrimSpace(got) != strings.TrimSpace(table) {
		t.Errorf("kubectl prints\n%s\nand docs/kubernetes.md shows\n%s", got, table)
	}

	// Who watches sees what changes, until they have seen enough.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var watched bytes.Buffer
	seen := writer(func(p []byte) (int, error) {
		watched.Write(p)
		if strings.Contains(watched.String(), "3 ready") {
			stop()
		}
		return len(p), nil
	})
	ended := make(chan int)
	go func() {
		ended <- run(ctx, []string{"masq", "status", "--kubeconfig", c.Kubeconfig(), "--watch"}, strings.NewReader(""), seen, seen)
	}()
	node(2, digest, "True", "RulesInPlace", "generation 4")
	if code := <-ended; code != int(interrupted) || strings.Count(watched.String(), "NODE") < 1 {
		t.Errorf("%d\n%s", code, &watched)
	}

	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"--context", "nowhere"}, "context was not found"},
		{[]string{"--config-map", "x"}, "NAMESPACE/NAME"},
		{[]string{"--format", "xml"}, "write json or yaml"},
	} {
		if code, _, errs := status(tc.args...); code != 1 || !strings.Contains(errs, tc.says) {
			t.Errorf("%q: %d %s", tc.args, code, errs)
		}
	}

	// A cluster that cannot be asked: how a person tries the same.
	c.StopAPI()
	if code, _, errs := status(); code != 1 || !strings.Contains(errs, "try it with: kubectl --kubeconfig "+c.Kubeconfig()+" --context admin get nodes") {
		t.Errorf("without an API server: %d %s", code, errs)
	}
	if code, _, errs := status("--kubeconfig", "/dev/null", "--context", ""); code != 1 || !strings.Contains(errs, "reading the current context of /dev/null: ") || !strings.Contains(errs, "try it with: kubectl --kubeconfig /dev/null get nodes") {
		t.Errorf("without a context: %d %s", code, errs)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
