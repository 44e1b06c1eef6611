package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"sordino/clusters/fleet"
	"sordino/internal/kubetest"
	"sordino/masq/kube"
)

// The agent with EgressNATPolicies as its configuration, and what others see of
// it, with the permissions that are shipped.
func TestEgressNATSource(t *testing.T) {
	n := nodeOf(t)
	k := kubetest.Start(t, kubetest.Options{})
	for _, file := range []string{"agent/rbac.yaml", "egressnat/rbac.yaml", "egressnat/crd.yaml"} {
		k.Kubectl(t, "", "apply", "-f", "../../deploy/"+file)
	}
	k.Kubectl(t, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}`, "create", "-f", "-")
	k.Kubectl(t, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"agent","namespace":"kube-system","labels":{"k8s-app":"ip-masq-agent"}},"spec":{"nodeName":"n1","serviceAccountName":"ip-masq-agent","containers":[{"name":"a","image":"a"}]}}`, "create", "-f", "-")
	k.Kubectl(t, "", "patch", "pod", "-n", "kube-system", "agent", "--subresource=status", "--type=merge", "-p", `{"status": {"phase": "Running"}}`)
	policy := func(cidr string) {
		t.Helper()
		manifest := fmt.Sprintf("apiVersion: networking.gke.io/v1\nkind: EgressNATPolicy\nmetadata: {name: default}\nspec: {action: NoSNAT, destinations: [{cidr: %q}]}\n", cidr)
		eventually(t, "the kind is known", func() error {
			_, err := k.TryKubectl(t.Context(), manifest, "apply", "-f", "-")
			return err
		})
	}
	policy("198.51.100.0/24")

	kubeconfig, err := k.KubeconfigFor("system:serviceaccount:kube-system:ip-masq-agent", "system:serviceaccounts", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", k.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	reader, err := fleet.NewReader(config, "kube-system", "ip-masq-agent")
	if err != nil {
		t.Fatal(err)
	}
	seen := func(state kube.AgentState, reason string) {
		t.Helper()
		eventually(t, string(state), func() error {
			f, err := reader.Read(t.Context())
			if err == nil && (f.Nodes[0].State != state || !f.Nodes[0].Current || !strings.Contains(f.Nodes[0].Reason, reason)) {
				err = fmt.Errorf("%+v", f)
			}
			return err
		})
	}

	state := t.TempDir()
	background(t, n.Node, "run", "--state-dir="+state, "--config="+filepath.Join(state, "none"), "--http-address=", "--node-name=n1", "--config-source=egress-nat-policy", "--kubeconfig="+kubeconfig)
	seen(kube.AgentReady, "")
	explained := func(what string) {
		t.Helper()
		eventually(t, what, func() error {
			r := call(t, n.Node, "", "explain", "--state-dir="+state, "--src=192.168.1.2", "--dst=198.51.100.7")
			if r.code != 0 || !strings.Contains(r.stdout, what) {
				return fmt.Errorf("%d %s%s", r.code, r.stdout, r.stderr)
			}
			return nil
		})
	}
	explained("decided:  198.51.100.0/24, from EgressNATPolicy default, spec.destinations[0].cidr")

	// What it cannot use changes no rule, and all see why.
	policy("fd00::/8")
	seen(kube.AgentRejected, "EgressNATPolicy default, spec.destinations[0].cidr: ipv6 is not enabled")
	explained("decided:  198.51.100.0/24")
	k.Kubectl(t, "", "wait", "--for=condition=Accepted=False", "--timeout=2m", "egressnatpolicy/default")
	policy("203.0.113.0/24")
	seen(kube.AgentReady, "")
	explained("verdict:  masquerade")
}
