package deploy_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"sordino/deploy/images"
	"sordino/internal/kubetest"
)

// TestNode runs the agent on a real node as its manifest says, and takes it
// away again.
func TestNode(t *testing.T) {
	dir := t.TempDir()
	if text, err := exec.Command("make", "-s", "-C", "..", "build-agent", "BIN="+dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	archive := filepath.Join(dir, "images.tar")
	if err := images.WriteTar(archive, "latest", images.Platform{Architecture: runtime.GOARCH, Binaries: dir}, images.Agent); err != nil {
		t.Fatal(err)
	}
	c := kubetest.Start(t, kubetest.Options{Nodes: 1, Images: []string{archive}})
	node := c.Nodes[0]
	apply(t, c, "agent")
	if err := c.Rollout(t.Context(), "kube-system", "ip-masq-agent"); err != nil {
		t.Log(c.TryKubectl(t.Context(), "", "logs", "--namespace=kube-system", "daemonset/ip-masq-agent"))
		t.Fatal(err)
	}

	pids, err := node.PIDs("ip-masq-agent")
	if err != nil || len(pids) != 1 {
		t.Fatal(pids, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("memory: %s", regexp.MustCompile(`(?m)^Vm(HWM|RSS):.*$`).FindAll(status, -1))
	const netAdmin = "0000000000001000"
	for field, want := range map[string]string{
		"CapEff": netAdmin, "CapPrm": netAdmin, "CapBnd": netAdmin, "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := regexp.MustCompile(`(?m)^` + field + `:\s*(\w+)$`).FindSubmatch(status); got == nil || string(got[1]) != want {
			t.Errorf("%s is %q, want %s", field, got, want)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^\S+ / \S+ ro,`).Match(mounts) {
		t.Errorf("the root can be written:\n%s", mounts)
	}

	c.Kubectl(t, "", "delete", "--kustomize", "agent", "--wait=false")
	c.Kubectl(t, "", "wait", "--for=delete", "--namespace=kube-system", "pod", "--selector=k8s-app=ip-masq-agent", "--timeout=60s")
	if !strings.Contains(tables(t, node), "ip-masq-agent") {
		t.Error("the rules went with the agent")
	}
	apply(t, c, "cleanup")
	if err := c.Rollout(t.Context(), "kube-system", "ip-masq-agent-cleanup"); err != nil {
		t.Log(c.TryKubectl(t.Context(), "", "logs", "--namespace=kube-system", "daemonset/ip-masq-agent-cleanup", "--all-containers"))
		t.Fatal(err)
	}
	if restarts := c.Kubectl(t, "", "get", "pods", "--namespace=kube-system", "--selector=k8s-app=ip-masq-agent-cleanup",
		"-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}{.items[*].status.containerStatuses[*].lastState}"); restarts != "0{}" {
		t.Errorf("the clean-up's Pod does not stay: restarts %s", restarts)
	}
	if left := tables(t, node); strings.Contains(left, "ip-masq-agent") {
		t.Errorf("left on a clean node: %s", left)
	}
	conditions := c.Kubectl(t, "", "get", "node", node.Name, "-o", "jsonpath={.status.conditions[*].type} {.metadata.annotations}")
	if strings.Contains(conditions, "IPMasquerade") || strings.Contains(conditions, "sordino.dev") {
		t.Errorf("left on its Node: %s", conditions)
	}
	c.Kubectl(t, "", "delete", "--kustomize", "cleanup", "--timeout=60s")
}

func tables(t *testing.T, node *kubetest.Node) string {
	t.Helper()
	var out []byte
	err := node.NS.Do(func() (err error) {
		out, err = exec.Command("nft", "list", "tables").CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestFlags holds the arguments in the manifests to the agent, which only
// warns of an unknown one and would run without.
func TestFlags(t *testing.T) {
	dir := t.TempDir()
	if text, err := exec.Command("make", "-s", "-C", "..", "build-agent", "BIN="+dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	known, err := exec.Command(filepath.Join(dir, "ip-masq-agent"), "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, known)
	}
	files, err := filepath.Glob("*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile(`(?m)#.*$`).ReplaceAll(text, nil)
		if dir := filepath.Dir(file); dir == "server" || dir == "example" {
			continue // of the server, which ends with an unknown one
		}
		for _, m := range regexp.MustCompile(`(?:^|[\s\[])(--[a-z][a-z0-9-]+)`).FindAllSubmatch(text, -1) {
			found++
			if !regexp.MustCompile(`(?m)(^|\s)` + string(m[1]) + `\b`).Match(known) {
				t.Errorf("%s gives %s, which the agent does not know", file, m[1])
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d arguments found", found)
	}
}
