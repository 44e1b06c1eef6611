package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sordino/internal/kubetest"
	"sordino/internal/probe"
	"sordino/internal/testwait"
)

func TestClustersCheck(t *testing.T) {
	k := kubetest.Start(t, kubetest.Options{})
	k.Kubectl(t, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"},"spec":{"podCIDR":"10.88.1.0/24","podCIDRs":["10.88.1.0/24"]}}`, "create", "-f", "-")
	k.Kubectl(t, "", "patch", "node", "n1", "--subresource=status", "--type=merge", "-p", `{"status":{"addresses":[{"type":"InternalIP","address":"10.89.0.11"}]}}`)
	contextName := strings.TrimSpace(k.Kubectl(t, "", "config", "current-context"))
	file := filepath.Join(t.TempDir(), "clusters.yaml")
	write := func(nodeRange, more string) {
		t.Helper()
		text := fmt.Sprintf("clusters:\n- {name: cluster-1, location: us-central1, kubeconfig: %s, context: %s, nodeRange: %s, podRange: 10.88.0.0/16}\n%s", k.Kubeconfig(), contextName, nodeRange, more)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("10.89.0.0/24", "")
	expectCommand(t, 0, `cluster-1, at us-central1
  nodes     1, 0 ready: n1 (10.89.0.11 NOT READY)
  has       nodes in 10.89.0.11/32, Pod CIDRs in 10.88.1.0/24, Services in 10.96.0.0/16
  probe     none: that workers are seen as their nodes will not be proven
  claim     free`, "", "", "clusters", "check", file)

	write(`10.89.0.0/24, probe: "10.20.0.9:7000"`, "")
	expectCommand(t, 0, `probe     10.20.0.9:7000; "sordino probe" in a worker Pod asks it
it is in 10.0.0.0/8, to which Pods keep their own address by default: that does not prove the masquerade`, "", "", "clusters", "check", file)

	// An agent that is installed already stands in the way of one of ours.
	k.Kubectl(t, "", "apply", "-f", "../../deploy/agent/daemonset.yaml")
	expectCommand(t, 0, "agent     a DaemonSet kube-system/ip-masq-agent is there that is no environment's", "", "", "clusters", "check", file)
	k.Kubectl(t, "", "label", "daemonset", "-n", "kube-system", "ip-masq-agent", "sordino.dev/environment=")

	k.Kubectl(t, "", "create", "namespace", "sordino")
	k.Kubectl(t, "", "label", "namespace", "sordino", "sordino.dev/environment=an-uuid")
	write("10.90.0.0/24", "- {name: cluster-2, location: us-central1, kubeconfig: /nowhere, context: c, nodeRange: 10.1.0.0/24, podRange: 10.2.0.0/16}\n")
	expectCommand(t, 1, `  claim     taken by the environment with UUID an-uuid
  WRONG     Nodes' addresses are not in nodeRange 10.90.0.0/24: n1 has 10.89.0.11; write a range that holds 10.89.0.11/32
cluster-2, at us-central1
  WRONG     cluster cluster-2: reading the context "c" of /nowhere:`, "sordino: 2 of 2 clusters cannot take an environment", "", "clusters", "check", file)
	write("10.90.0.1/24", "")
	expectCommand(t, 1, "", file+":2: nodeRange 10.90.0.1/24 has bits beyond its length; write 10.90.0.0/24", "", "clusters", "check", file)
}

func TestProbe(t *testing.T) {
	o, err := probe.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := o.Address().String()
	for _, flags := range [][]string{{}, {"--udp"}} {
		expectCommand(t, 0, "127.0.0.1", "", "", append([]string{"probe", target}, flags...)...)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	expectCommand(t, 1, "", "sordino: probing "+target+" by tcp: ", "", "probe", target)
	expectCommand(t, 1, "", `sordino: the target "nobody": write ADDRESS:PORT`, "", "probe", "nobody")

	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	expectCommand(t, 1, "", "no answer within 50ms; the packet, or the answer, is dropped on the way, or nothing listens there", "", "probe", silent.LocalAddr().String(), "--udp", "--timeout", "50ms")
}

// The target and the worker end with SIGTERM, and nothing is wrong then.
func TestProbeServeAndWorker(t *testing.T) {
	for _, args := range [][]string{{"worker"}, {"probe", "serve", "--listen", "127.0.0.1:0"}} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan int, 1)
		said := &testwait.Log{}
		go func() { ended <- run(ctx, args, strings.NewReader(""), said, said) }()
		select {
		case status := <-ended:
			t.Errorf("%v ends by itself with %d: %s", args, status, said)
		case <-time.After(50 * time.Millisecond):
		}
		cancel()
		if status := <-ended; status != 0 {
			t.Errorf("%v ends with %d: %s", args, status, said)
		}
	}
}

// The server with --clusters on a real API server, without nodes that work:
// what is asked over REST, and which data folders it takes.
func TestServeOnClusters(t *testing.T) {
	k := kubetest.Start(t, kubetest.Options{})
	k.Kubectl(t, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"},"spec":{"podCIDR":"10.88.1.0/24","podCIDRs":["10.88.1.0/24"]}}`, "create", "-f", "-")
	k.Kubectl(t, "", "patch", "node", "n1", "--subresource=status", "--type=merge", "-p", `{"status":{"addresses":[{"type":"InternalIP","address":"10.89.0.11"}]}}`)
	file := filepath.Join(t.TempDir(), "clusters.yaml")
	text := fmt.Sprintf("clusters:\n- {name: cluster-1, location: us-central1, kubeconfig: %s, context: %s, nodeRange: 10.89.0.0/24, podRange: 10.88.0.0/16}\n",
		k.Kubeconfig(), strings.TrimSpace(k.Kubectl(t, "", "config", "current-context")))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	onClusters := func(o *serveOptions) { o.agentBinary, o.clusters, o.changeWithin = "", file, 2*time.Minute }
	s := serveHere(t, onClusters)
	s.point(t)
	const environments = "/v1/projects/p/locations/us-central1/environments"
	body := func(id, rest string) string {
		return fmt.Sprintf(`{"name":"projects/p/locations/us-central1/environments/%s","config":{%s"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true},"enableIpMasqAgent":true}}}`, id, rest)
	}
	want := func(what string, status int, got int, answer string, parts ...string) {
		t.Helper()
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(answer)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		answer = compact.String()
		if got != status {
			t.Errorf("%s: status %d: %s", what, got, answer)
		}
		for _, part := range parts {
			if !strings.Contains(answer, part) {
				t.Errorf("%s lacks %s: %s", what, part, answer)
			}
		}
	}
	status, answer, _ := s.ask(t, "POST", environments+"?validateOnly=true", s.token, body("e1", ""))
	want("the plan", 200, status, answer, `"cluster":"cluster-1"`, `"nodeAddresses":["10.89.0.11"]`, `"cidrBlock":"10.88.0.0/16","chosenBy":"cluster"`)
	status, answer, _ = s.ask(t, "POST", environments, s.token, body("e1", `"nodeCount":4,`))
	want("four nodes", 400, status, answer, `"CLUSTER_MISMATCH"`, "4 nodes are asked for, and cluster 'cluster-1' has 1.", `"INVALID_ARGUMENT"`)
	status, answer, _ = s.ask(t, "POST", environments, s.token, body("e1", ""))
	want("the first", 200, status, answer, `"operationType":"CREATE"`)
	status, answer, _ = s.ask(t, "POST", environments, s.token, body("e2", ""))
	want("the second", 400, status, answer, `"NO_FREE_CLUSTER"`, `"FAILED_PRECONDITION"`, "cluster-1: it is held by environment 'projects/p/locations/us-central1/environments/e1', in state CREATING")
	status, answer, _ = s.ask(t, "GET", environments+"/e1", s.token, "")
	want("the environment", 200, status, answer, `"gkeCluster":"projects/p/locations/us-central1/clusters/cluster-1"`, `"nodeCount":1`)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}

	// The same folder again, and not for clusters of this machine.
	first, err := os.ReadFile(filepath.Join(s.data, serverIDName))
	if err != nil {
		t.Fatal(err)
	}
	again := serveHere(t, func(o *serveOptions) { onClusters(o); o.data = s.data })
	if err := again.stop(); err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(filepath.Join(s.data, serverIDName)); err != nil || string(second) != string(first) {
		t.Errorf("the server's identity is %s, and was %s: %v", second, first, err)
	}
	refused := func(want string, change func(*serveOptions)) {
		t.Helper()
		o := serveOptions{logFormat: "text", workers: 4}
		o.data, o.listen = s.data, "127.0.0.1:0"
		change(&o)
		if _, err := newServer(t.Context(), o, &testwait.Log{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	refused("the data folder has 1 environment on existing clusters (cluster-1): give their file with --clusters", func(o *serveOptions) { o.agentBinary = filepath.Join(programs, "ip-masq-agent") })
	refused("--agent-binary is for clusters on this machine", func(o *serveOptions) { onClusters(o); o.agentBinary = "x" })
	refused("--agent-image and --sordino-image are for existing clusters", func(o *serveOptions) { o.agentImage = "x" })
	refused("opening the clusters file", func(o *serveOptions) { o.clusters = file + ".missing" })
}

// What the Kubernetes client says is a line of the server's log like any other:
// whoever collects that as JSON gets nothing else.
func TestClientsOfClustersLogAsTheServerDoes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"kubeconfig": `{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "https://127.0.0.1:1", insecure-skip-tls-verify: true}}], users: [{name: u, user: {token: t}}], contexts: [{name: one, context: {cluster: c, user: u}}]}`,
		"clusters":   "clusters: [{name: cluster-1, location: l, kubeconfig: kubeconfig, context: one, nodeRange: 10.89.0.0/24, podRange: 10.88.0.0/16}]",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	said := &testwait.Log{}
	cmd := users[0].command(t, "serve", "--data", filepath.Join(dir, "data"), "--listen=127.0.0.1:0", "--clusters", filepath.Join(dir, "clusters"), "--log-format=json")
	cmd.Env = append(cmd.Env, "DISABLE_HTTP2=1") // the client tells that it heeds this
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(func() error { return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()) })
	t.Cleanup(func() { _ = stop() })
	testwait.Until(t, time.Minute, 10*time.Millisecond, func() error {
		if !strings.Contains(said.String(), "HTTP2 has been explicitly disabled") {
			return fmt.Errorf("the client has said nothing:\n%s", said)
		}
		return nil
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(said.String()) {
		var entry struct{ Time, Level, Msg string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time == "" || entry.Level == "" || entry.Msg == "" {
			t.Errorf("no line of the log, %v: %s", err, line)
		}
	}
}
