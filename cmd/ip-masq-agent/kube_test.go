package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sordino/deploy"
	"sordino/internal/kubetest"
	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/internal/testwait"
	"sordino/masq"
)

// background runs the program until the returned function is called, which
// gives the exit status. Without a namespace it runs where the test does.
func background(t *testing.T, ns *netns.NS, args ...string) (log *testwait.Log, stop func() int) {
	t.Helper()
	log = &testwait.Log{}
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	program := func() error {
		code <- run(ctx, args, strings.NewReader(""), log, log)
		return nil
	}
	go func() {
		if ns == nil {
			_ = program()
		} else {
			_ = ns.Do(program)
		}
	}()
	stop = sync.OnceValue(func() int { cancel(); return <-code })
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("%s:\n%s", args[0], log)
		}
	})
	return log, stop
}

// The agent with its configuration in a cluster, from its start to its end,
// with the permissions that are shipped.
func TestKubeSource(t *testing.T) {
	n := nodeOf(t)
	k := kubetest.Start(t, kubetest.Options{})
	k.Kubectl(t, "", "apply", "-f", "../../deploy/agent/rbac.yaml")
	k.Kubectl(t, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"},"spec":{"podCIDR":"192.168.1.0/24","podCIDRs":["192.168.1.0/24"]}}`, "create", "-f", "-")
	kubeconfig, err := k.KubeconfigFor("system:serviceaccount:kube-system:ip-masq-agent", "system:serviceaccounts", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	configMap := func(text string) {
		t.Helper()
		k.Kubectl(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"ip-masq-agent","namespace":"kube-system"},"data":{"config":%q}}`, text), "apply", "-f", "-")
	}
	condition := func() string {
		return k.Kubectl(t, "", "get", "node", "n1", "-o", `jsonpath={range .status.conditions[?(@.type=="IPMasqueradeReady")]}{.status} {.reason} {.message}{end}`)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		testwait.Until(t, 2*time.Minute, 5*time.Millisecond, func() error {
			if !ok() {
				return errors.New("not " + what)
			}
			return nil
		})
	}
	held := func() (h masq.Held) {
		t.Helper()
		inv := &invocation{stderr: os.Stderr}
		if err := inv.parse("plan", []string{"--state-dir="}); err != nil {
			t.Fatal(err)
		}
		netnstest.Do(t, n.Node, func() error {
			b, err := openBackend(t.Context(), inv.flags, nil, inv.log)
			if err != nil {
				return err
			}
			defer b.Close()
			h, err = b.Held(t.Context())
			return err
		})
		return h
	}

	state, ready := t.TempDir(), filepath.Join(t.TempDir(), "new", "ready")
	gate, gateEnd := background(t, n.Node, "gate", "--ready-file="+ready)
	impatient, impatientEnd := background(t, n.Node, "gate", "--ready-file="+ready+"-never")
	until("the gate says what it waits for", func() bool { return strings.Contains(impatient.String(), "waiting for "+ready) })
	if impatientEnd() != 1 || !strings.Contains(impatient.String(), "ended while waiting") {
		t.Errorf("a gate that is stopped: %s", impatient)
	}
	agentArgs := []string{"run", "--state-dir=" + state, "--config=" + filepath.Join(state, "none"), "--http-address=127.0.0.1:19927", "--config-source=kube", "--kubeconfig=" + kubeconfig, "--ready-file=" + ready}
	t.Setenv("NODE_NAME", "n1")
	_, stop := background(t, n.Node, agentArgs...)
	until("the ready file", func() bool { _, err := os.Stat(ready); return err == nil })
	until("the condition", func() bool { return strings.HasPrefix(condition(), "True RulesInPlace ") })
	until("the gate opens", func() bool { return strings.Contains(gate.String(), "the node masquerades") })
	if code := gateEnd(); code != 0 {
		t.Errorf("the gate ended with %d", code)
	}
	generation := held().Generation

	configMap("nonMasqueradeCIDRs:\n- 198.51.100.0/24\n")
	began := time.Now()
	until("the ConfigMap in the kernel", func() bool { return held().Generation > generation })
	t.Logf("a ConfigMap was in the kernel %v after kubectl ended; test/kubeagent and make bench measure it with packets", time.Since(began))

	// The other commands answer for this agent, without the file.
	os.Unsetenv("NODE_NAME")
	ask := func(command string, args ...string) result {
		t.Helper()
		return call(t, n.Node, "", append([]string{command, "--state-dir=" + state}, args...)...)
	}
	const from = "ConfigMap kube-system/ip-masq-agent"
	until("the state is saved", func() bool {
		return strings.Contains(ask("explain", "--src=192.168.1.2", "--dst=198.51.100.7").stdout, "exempt")
	})
	ask("explain", "--src=192.168.1.2", "--dst=198.51.100.7").expect(t, 0, []string{"verdict:  exempt: ", "decided:  198.51.100.0/24, from " + from + ", config:2:3", "config:   " + from + ", saved "}, nil)
	ask("explain", "--src=192.168.1.2", "--dst=192.168.1.3").expect(t, 0, []string{"exempt: ", "(from Node n1, spec.podCIDRs)"}, nil)
	ask("explain", "--src=192.168.1.2", "--dst=10.96.0.1").expect(t, 0, []string{"exempt: ", "(from ServiceCIDR kubernetes, spec.cidrs)"}, nil)
	// Pods with addresses that the Node does not know of are masqueraded too.
	ask("explain", "--src=172.20.0.2", "--dst=203.0.113.10").expect(t, 0, []string{"verdict:  masquerade: "}, nil)
	ask("plan").expect(t, 0, []string{"no changes: ", "are not known, but for those of this node: 192.168.1.0/24 (from Node n1, spec.podCIDRs), so every source"}, nil)
	ask("plan", "--config="+write(t, "nonMasqueradeCIDRs: [198.51.100.0/24, 1.0.0.0/8]\n")).expect(t, 2, []string{"1.0.0.0"}, nil)
	ask("plan", "--config="+write(t, "nonMasqueradeCIDRs: [198.51.100.0/24]\n")).expect(t, 0, []string{"no changes: "}, nil)
	ask("status").expect(t, 0, []string{"ready, ", "config:   " + from, "API:      " + k.Server()}, nil)

	generation = held().Generation
	configMap("nonMasqueradeCIDRs:\n- 10.0.0.0/08\n")
	until("the rejection on the Node", func() bool { return strings.HasPrefix(condition(), "False ConfigRejected "+from+", config:2:3: ") })
	if held().Generation != generation {
		t.Error("a rejected configuration changed the rules")
	}
	ask("explain", "--src=192.168.1.2", "--dst=198.51.100.7").expect(t, 0, []string{"exempt: "}, nil)
	if code := stop(); code != 0 {
		t.Errorf("the agent ended with %d", code)
	}

	// Started without an API server: what was in force stays.
	k.StopAPI()
	t.Setenv("NODE_NAME", "n1")
	log, stop := background(t, n.Node, agentArgs...)
	until("the last good configuration", func() bool {
		return strings.Contains(log.String(), "starting with the last good one from the state folder")
	})
	until("ready", func() bool { return ask("status").code == 0 })
	ask("status").expect(t, 0, []string{"error:    ConfigUnavailable: list ", "; see that this node reaches the API server", "config:   last good configuration"}, nil)
	if held().Generation != generation {
		t.Error("a start without an API server changed the rules")
	}
	if err := k.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	configMap("nonMasqueradeCIDRs:\n- 198.51.100.0/25\n")
	until("a change after the outage", func() bool { return held().Generation > generation })
	until("the condition after the outage", func() bool { return strings.HasPrefix(condition(), "True RulesInPlace ") })
	stop()

	os.Unsetenv("NODE_NAME")
	ask("cleanup", "--dry-run").expect(t, 0, []string{"would remove ", "the condition IPMasqueradeReady and our annotations of the Node n1"}, nil)
	if condition() == "" || held().Hash == "" {
		t.Error("a dry run changed something")
	}
	ask("cleanup").expect(t, 0, []string{"removed the condition IPMasqueradeReady"}, nil)
	if _, err := os.Stat(ready); condition() != "" || held().Hash != "" || err == nil {
		t.Errorf("after the clean-up: condition %q, kernel %+v, ready file %v", condition(), held(), err)
	}
	if left := k.Kubectl(t, "", "get", "node", "n1", "-o", "jsonpath={.metadata.annotations}"); strings.Contains(left, "sordino.dev") {
		t.Errorf("left on the Node: %s", left)
	}

	// As the manifest has it, after an agent that has no state: it never ran well.
	k.Kubectl(t, `{"status": {"conditions": [{"type": "IPMasqueradeReady", "status": "False", "reason": "ApplyFailed"}]}}`, "patch", "node", "n1", "--subresource=status", "--patch-file=/dev/stdin")
	if err := os.WriteFile(ready, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NODE_NAME", "n1")
	args := append(cleanupArguments(t), "--state-dir="+t.TempDir(), "--kubeconfig="+kubeconfig, "--ready-file="+ready)
	call(t, n.Node, "", args...).expect(t, 0, []string{"removed the condition IPMasqueradeReady"}, nil)
	if _, err := os.Stat(ready); condition() != "" || err == nil {
		t.Errorf("without a state: condition %q, ready file %v", condition(), err)
	}
}

// cleanupArguments are those of deploy/cleanup, as far as they matter here.
func cleanupArguments(t *testing.T) (args []string) {
	t.Helper()
	objects, err := deploy.Objects(deploy.CleanupBase, deploy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if containers, found, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "initContainers"); err != nil {
			t.Fatal(err)
		} else if found {
			args, _, _ = unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
		}
	}
	if !slices.Contains(args, "--ready-file=/run/ip-masq-agent/ready") {
		t.Errorf("the ready file would stay: %q", args)
	}
	return args
}
