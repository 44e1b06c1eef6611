package fleet

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"sordino/clusters"
	"sordino/internal/kubetest"
	"sordino/internal/testwait"
	"sordino/masq/kube"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func nodeOf(t *testing.T, text string) kube.Node {
	t.Helper()
	var o kube.Node
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestJudge(t *testing.T) {
	sources := []Source{{Name: "ConfigMap kube-system/ip-masq-agent", Digest: "aa"}}
	agents := map[string]bool{"n": true}
	node := func(spec, config, condition string) string {
		return fmt.Sprintf(`{"metadata": {"name": "n", "annotations": {"sordino.dev/masq-config": %q, "sordino.dev/masq-generation": "7", "sordino.dev/masq-hash": "h", "sordino.dev/masq-version": "v1"}},
			"spec": %s, "status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True"}%s]}}`, config, spec, condition)
	}
	condition := func(status, reason, message string, age time.Duration) string {
		return fmt.Sprintf(`, {"type": "IPMasqueradeReady", "status": %q, "reason": %q, "message": %q, "lastHeartbeatTime": %q}`, status, reason, message, now.Add(-age).Format(time.RFC3339))
	}
	for name, tc := range map[string]struct {
		node    string
		agents  map[string]bool
		state   kube.AgentState
		current bool
		reason  string
	}{
		"ready":           {node("{}", "aa", condition("True", "RulesInPlace", "generation 7", time.Minute)), agents, kube.AgentReady, true, ""},
		"behind":          {node("{}", "bb", condition("True", "RulesInPlace", "", time.Minute)), agents, kube.AgentReady, false, ""},
		"none, but there": {node("{}", "none", condition("True", "RulesInPlace", "", time.Minute)), agents, kube.AgentReady, false, ""},
		"rejected":        {node("{}", "aa", condition("False", "ConfigRejected", "config:3:3: bad", time.Minute)), agents, kube.AgentRejected, true, "config:3:3: bad"},
		"unavailable":     {node("{}", "none", condition("False", "ConfigUnavailable", "list configmaps: forbidden", time.Minute)), agents, kube.AgentFailed, false, "ConfigUnavailable: list configmaps: forbidden"},
		"apply failed":    {node("{}", "aa", condition("False", "ApplyFailed", "no nftables", time.Minute)), agents, kube.AgentFailed, true, "ApplyFailed: no nftables"},
		"plan rejected":   {node("{}", "aa", condition("False", "PlanRejected", "no such address", time.Minute)), agents, kube.AgentRejected, true, "no such address"},
		"no condition":    {node("{}", "aa", ""), agents, kube.AgentSilent, true, "there is no condition"},
		"old":             {node("{}", "aa", condition("True", "RulesInPlace", "", 16*time.Minute)), agents, kube.AgentSilent, true, "its agent has said nothing since 20"},
		"no Pod":          {node("{}", "aa", condition("True", "RulesInPlace", "", time.Minute)), nil, kube.AgentSilent, true, "no agent's Pod"},
		"cordoned":        {node(`{"unschedulable": true}`, "aa", condition("True", "RulesInPlace", "", time.Minute)), nil, kube.AgentReady, true, ""},
	} {
		f := judge([]kube.Node{nodeOf(t, tc.node)}, tc.agents, sources, now)
		n := f.Nodes[0]
		if told := slices.Contains(n.Findings, cordoned); told != (name == "cordoned") {
			t.Errorf("%s: %q", name, n.Findings)
		}
		if n.State != tc.state || n.Current != tc.current || !strings.Contains(n.Reason, tc.reason) || (tc.reason == "") != (n.Reason == "") {
			t.Errorf("%s: %+v", name, n)
		}
		if n.Address != "10.0.0.1" || n.Generation != "7" || n.Hash != "h" || n.Version != "v1" {
			t.Errorf("%s: %+v", name, n)
		}
		if want := tc.state == kube.AgentReady && tc.current; f.InForce != want || f.Counts[tc.state] != 1 || (f.Behind == 0) != tc.current {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if f := judge([]kube.Node{nodeOf(t, `{"metadata": {"name": "w", "labels": {"kubernetes.io/os": "windows"}}}`)}, nil, sources, now); len(f.Nodes) != 0 || f.InForce {
		t.Errorf("%+v", f)
	}
}

// A cluster of more nodes than fit on a page.
func TestRead(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	const nodes = 2*clusters.PageSize + 3
	var manifest strings.Builder
	for i := range nodes {
		fmt.Fprintf(&manifest, "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: n%03d\n  annotations: {sordino.dev/masq-config: none}\n", i)
	}
	c.Kubectl(t, manifest.String(), "create", "-f", "-")
	c.Kubectl(t, "", "patch", "node", "n001", "--subresource=status", "--type=merge", "-p", fmt.Sprintf(
		`{"metadata": {"annotations": {"sordino.dev/masq-generation": "3"}}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "conditions": [{"type": "IPMasqueradeReady", "status": "True", "reason": "RulesInPlace", "message": "m", "lastHeartbeatTime": %q, "lastTransitionTime": %[1]q}]}}`, time.Now().UTC().Format(time.RFC3339)))
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	reader, err := NewReader(config, "kube-system", "ip-masq-agent")
	if err != nil {
		t.Fatal(err)
	}
	read := func() Fleet {
		t.Helper()
		f, err := reader.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := read()
	if len(f.Nodes) != nodes || f.Counts[kube.AgentSilent] != nodes || f.Behind != 0 || len(f.Sources) != 1 || f.Sources[0].Digest != "none" {
		t.Fatalf("%d nodes, %v, %d behind, %v", len(f.Nodes), f.Counts, f.Behind, f.Sources)
	}
	if n := f.Nodes[1]; n.Name != "n001" || n.Generation != "3" || n.Address != "10.0.0.1" || !strings.Contains(n.Reason, "no agent's Pod") {
		t.Errorf("%+v", n)
	}

	// With a ConfigMap nobody is current, and with an agent's Pod the node is not silent.
	c.Kubectl(t, "", "create", "configmap", "-n", "kube-system", "ip-masq-agent", "--from-literal=config=abc")
	c.Kubectl(t, `{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "kube-system"}}`, "apply", "-f", "-")
	c.Kubectl(t, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "kube-system", "labels": {"k8s-app": "ip-masq-agent"}}, "spec": {"nodeName": "n001", "containers": [{"name": "a", "image": "a"}]}}`, "create", "-f", "-")
	c.Kubectl(t, "", "patch", "pod", "-n", "kube-system", "a", "--subresource=status", "--type=merge", "-p", `{"status": {"phase": "Running"}}`)
	f = read()
	if f.Behind != nodes || f.Counts[kube.AgentReady] != 1 || f.Sources[0].Digest != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("%v, %d behind, %v", f.Counts, f.Behind, f.Sources)
	}

	// Policies are a source as well, where the cluster knows them.
	for _, file := range []string{"crd.yaml", "default.yaml"} {
		text, err := os.ReadFile("../../deploy/egressnat/" + file)
		if err != nil {
			t.Fatal(err)
		}
		// A kind is known a moment after its definition.
		testwait.Until(t, 2*time.Minute, 200*time.Millisecond, func() error {
			_, err := c.TryKubectl(t.Context(), string(text), "apply", "-f", "-")
			return err
		})
	}
	f = read()
	if len(f.Sources) != 2 || f.Sources[1].Name != "the set of 1 EgressNATPolicy" || f.Behind != nodes {
		t.Fatalf("%v, %d behind", f.Sources, f.Behind)
	}
	c.Kubectl(t, "", "annotate", "node", "n001", "--overwrite", "sordino.dev/masq-config="+f.Sources[1].Digest)
	if f = read(); !f.Nodes[1].Current || f.Nodes[1].State != kube.AgentReady || f.Behind != nodes-1 {
		t.Errorf("%+v", f.Nodes[1])
	}

	// Who may not list them is told so, and of the rest.
	c.Kubectl(t, "", "create", "clusterrole", "reader", "--verb=get,list", "--resource=nodes,pods,configmaps")
	c.Kubectl(t, "", "create", "clusterrolebinding", "reader", "--clusterrole=reader", "--user=reader")
	kubeconfig, err := c.KubeconfigFor("reader")
	if err != nil {
		t.Fatal(err)
	}
	if config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		t.Fatal(err)
	}
	if reader, err = NewReader(config, "kube-system", "ip-masq-agent"); err != nil {
		t.Fatal(err)
	}
	testwait.Until(t, 2*time.Minute, 50*time.Millisecond, func() error { // rights are known a moment after they were given
		f, err = reader.Read(t.Context())
		return err
	})
	if len(f.Nodes) != nodes || f.Sources[1].Error == "" || f.Nodes[1].Current {
		t.Errorf("%+v, %+v", f.Sources, f.Nodes[1])
	}
}
