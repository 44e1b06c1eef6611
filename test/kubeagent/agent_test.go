package kubeagent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"sordino/internal/kubetest"
	"sordino/internal/netnstest"
	"sordino/internal/testwait"
)

// Without the agent the service sees Pods' addresses, or a firewall before it
// drops them.
func TestWithoutAgent(t *testing.T) {
	c := shared(t)
	removeAgents(t)
	clients(t, ungated)
	seen(t, asPod, time.Now(), c.Nodes...)
	netnstest.Run(t, c.Service.NS, firewall, "nft", "-f", "-")
	defer netnstest.Run(t, c.Service.NS, "", "nft", "delete table ip firewall")
	clientsSay := func(text string) {
		t.Helper()
		testwait.Until(t, 3*time.Minute, time.Second, func() error {
			if log := c.Kubectl(t, "", "logs", "-l", "app=client", "--tail=1", "--prefix"); strings.Count(log, text) != len(c.Nodes) {
				return fmt.Errorf("not every client says %q: %s", text, log)
			}
			return nil
		})
	}
	clientsSay("i/o timeout")
	since, before := time.Now(), dropped(t, c)
	eventually(t, func() error {
		if now := dropped(t, c); now < before+10 {
			return fmt.Errorf("the firewall dropped %d packets, and %d before", now, before)
		}
		return nil
	})
	if got := c.Service.Since(since); len(got) > 0 {
		t.Errorf("behind the firewall the service sees %v", got)
	}
	// The kernel remembers for two minutes what was begun here and never answered:
	// a connection from the same port would be taken for it, and go as it did. What
	// is refused meanwhile it forgets by itself.
	netnstest.Run(t, c.Service.NS, "", "nft", "insert rule ip firewall input ip saddr 10.88.0.0/16 meta l4proto tcp reject with tcp reset")
	clientsSay("connection refused")
	for _, n := range c.Nodes {
		netnstest.Do(t, n.NS, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	}
}

const firewall = `table ip firewall { chain input { type filter hook input priority 0; ip saddr 10.88.0.0/16 counter drop; }; }`

// dropped is how many packets the firewall has dropped.
func dropped(t *testing.T, c *kubetest.Cluster) (packets int) {
	t.Helper()
	rules := netnstest.Run(t, c.Service.NS, "", "nft", "list table ip firewall")
	_, counter, _ := strings.Cut(rules, "counter packets ")
	if _, err := fmt.Sscan(counter, &packets); err != nil {
		t.Fatalf("no counter in %s", rules)
	}
	return packets
}

// upstreamRules are those of kubernetes-sigs/ip-masq-agent for the same
// configuration.
const upstreamRules = `*nat
:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -d 169.254.0.0/16 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ-AGENT -d 10.88.0.0/16 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ-AGENT -d 10.89.0.0/24 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE --random-fully
COMMIT
`

// upstream is its DaemonSet, with a program that does nothing.
const upstream = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ip-masq-agent, namespace: kube-system, labels: {k8s-app: ip-masq-agent}}
spec:
  selector: {matchLabels: {k8s-app: ip-masq-agent}}
  template:
    metadata: {labels: {k8s-app: ip-masq-agent}}
    spec:
      hostNetwork: true
      containers:
      - name: ip-masq-agent
        image: ` + kubetest.Image + `
        imagePullPolicy: Never
        securityContext: {privileged: false, capabilities: {drop: [ALL], add: [NET_ADMIN, NET_RAW]}}
        volumeMounts: [{name: config-volume, mountPath: /etc/config}]
      volumes:
      - {name: config-volume, configMap: {name: ip-masq-agent, optional: true, items: [{key: config, path: ip-masq-agent}]}}
`

// Applied over upstream's DaemonSet the agent takes its rules over, and no
// packet leaves unmasked meanwhile. The nodes' iptables are of both kinds; for
// the legacy ones the image has no program, and the agent says so.
func TestUpgradeFromUpstream(t *testing.T) {
	c := shared(t)
	removeAgents(t)
	c.Kubectl(t, configMap(masked), "apply", "-f", "-")
	const legacy = "n3"
	flavour := map[string]string{legacy: "iptables-legacy"}
	for _, n := range c.Nodes {
		if flavour[n.Name] == "" {
			flavour[n.Name] = "iptables-nft"
		}
		netnstest.Run(t, n.NS, upstreamRules, netnstest.Program(t, flavour[n.Name]+"-restore"), "--noflush")
	}
	c.Kubectl(t, upstream, "apply", "-f", "-")
	rollout(t, "kube-system", "ip-masq-agent")
	clients(t, ungated)
	since := time.Now()
	during(t, asNode)

	c.Kubectl(t, "", "apply", "-k", "../../deploy/agent")
	deployed.agents = true
	rollout(t, "kube-system", "ip-masq-agent")
	converged(t, masked)
	during(t, asNode)
	only(t, asNode, since)
	for _, n := range c.Nodes {
		left := strings.Contains(netnstest.Run(t, n.NS, "", flavour[n.Name]+"-save", "-t", "nat"), "IP-MASQ-AGENT")
		if log := agentLog(t, n); left != (n.Name == legacy) || left != strings.Contains(log, "legacy IPv4 nat table") {
			t.Errorf("on %s upstream's rules are left: %v; the agent says:\n%s", n.Name, left, log)
		}
	}
	netnstest.Run(t, c.Node(legacy).NS, "", "iptables-legacy", "-t", "nat", "-F")
}

// agentPod is the name of a node's agent.
func agentPod(t *testing.T, n *kubetest.Node) string {
	t.Helper()
	return cluster.Kubectl(t, "", "get", "pod", "-n", "kube-system", "-l", "k8s-app=ip-masq-agent", "--field-selector", "spec.nodeName="+n.Name, "-o", "jsonpath={.items[0].metadata.name}")
}

func agentLog(t *testing.T, n *kubetest.Node) string {
	t.Helper()
	return cluster.Kubectl(t, "", "logs", "-n", "kube-system", agentPod(t, n))
}

// tooLate is much less than a mounted ConfigMap takes, and more than a busy
// machine does. What an edit really takes is in the log, and "make bench"
// holds it to a second.
const tooLate = 15 * time.Second

// An edit of the ConfigMap is in the kernels of all nodes at once, as packets
// show.
func TestConfigMap(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	during(t, asNode)
	// From when kubectl ends, and from before the API server was asked.
	byKubectl := func(config string) time.Time {
		c.Kubectl(t, configMap(config), "apply", "-f", "-")
		return time.Now()
	}
	byPatch := func(config string) time.Time {
		began := time.Now()
		if err := c.Patch(t.Context(), "/api/v1/namespaces/kube-system/configmaps/ip-masq-agent", configMap(config)); err != nil {
			t.Fatal(err)
		}
		return began
	}
	for i, edit := range []func(string) time.Time{byKubectl, byKubectl, byPatch, byPatch, byPatch, byPatch, byPatch, byPatch} {
		config, as := unmasked, asPod
		if i%2 == 1 {
			config, as = masked, asNode
		}
		before := time.Now()
		from := edit(config)
		last := before
		for _, at := range seen(t, as, before, c.Nodes...) {
			if at.After(last) {
				last = at
			}
		}
		during(t, as)
		only(t, as, last)
		t.Logf("edit %d is in the packets of every node after %s", i+1, last.Sub(from).Round(time.Millisecond))
		if took := last.Sub(from); took > tooLate {
			t.Errorf("edit %d took %s until the packets of every node showed it", i+1, took)
		}
	}
}

// A configuration that the agents refuse changes nothing, and every Node says
// why.
func TestBadConfigMap(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	since := time.Now()
	c.Kubectl(t, configMap("nonMasqueradeCIDRs:\n- 10.88.0.0/16\n-\n"), "apply", "-f", "-")
	c.Kubectl(t, "", "wait", "--for=condition=IPMasqueradeReady=False", "node", "--all", "--timeout=2m")
	for _, n := range nodes(t) {
		if _, reason, message := n.condition(); reason != "ConfigRejected" || !strings.Contains(message, ":3:") {
			t.Errorf("%s says %s: %s", n.Metadata.Name, reason, message)
		}
	}
	testwait.Until(t, 3*time.Minute, 300*time.Millisecond, func() error {
		for _, n := range c.Nodes {
			if out := c.Kubectl(t, "", "get", "events", "-A", "--field-selector", "reason=ConfigRejected,involvedObject.name="+n.Name, "-o", "name"); out == "" {
				return errors.New("no Event ConfigRejected about " + n.Name)
			}
		}
		return nil
	})
	during(t, asNode)
	only(t, asNode, since)

	c.Kubectl(t, configMap(masked), "apply", "-f", "-")
	c.Kubectl(t, "", "wait", "--for=condition=IPMasqueradeReady=True", "node", "--all", "--timeout=2m")
	converged(t, masked)
}

// kill kills a node's agent as the kernel would.
func kill(t *testing.T, n *kubetest.Node) {
	t.Helper()
	pids, err := n.PIDs("ip-masq-agent")
	if err != nil || len(pids) == 0 {
		t.Fatalf("no agent runs on %s: %v", n.Name, err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		now, err := n.PIDs("ip-masq-agent")
		if err != nil || len(now) == 0 || slices.Equal(now, pids) {
			return fmt.Errorf("the agent of %s is not back: %v, %v", n.Name, now, err)
		}
		return nil
	})
}

func TestAgentKilled(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	since := time.Now()
	for _, n := range c.Nodes {
		kill(t, n)
	}
	during(t, asNode)
	rollout(t, "kube-system", "ip-masq-agent")
	only(t, asNode, since)
}

func TestRollingUpdate(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	since := time.Now()
	c.Kubectl(t, "", "rollout", "restart", "daemonset/ip-masq-agent", "-n", "kube-system")
	rollout(t, "kube-system", "ip-masq-agent")
	during(t, asNode)
	only(t, asNode, since)
}

// While the API server is away the rules stay, also when an agent is killed;
// what changes afterwards is seen.
func TestAPIServerAway(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	since := time.Now()
	c.StopAPI()
	during(t, asNode)
	kill(t, c.Nodes[0])
	during(t, asNode)
	only(t, asNode, since)
	if err := c.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	c.Kubectl(t, configMap(unmasked), "apply", "-f", "-")
	seen(t, asPod, back, c.Nodes...)
	t.Logf("seen %s after the API server was back", time.Since(back).Round(time.Millisecond))
	converged(t, unmasked)
	agents(t, masked)
}

// A node that boots has no rules; its Pods wait at the gate until it has.
func TestNodeRestarted(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	n := c.Node("n2")
	since := time.Now()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	booted := time.Now()
	seen(t, asNode, booted, n)
	during(t, asNode)
	only(t, asNode, since)
	rollout(t, "kube-system", "ip-masq-agent")
}

// A node that joins is covered before its Pods' first packet.
func TestNodeJoins(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	since := time.Now()
	if len(c.Nodes) < 4 {
		if err := c.AddNodes(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	seen(t, asNode, since, c.Nodes[3])
	during(t, asNode)
	only(t, asNode, since)
	rollout(t, "kube-system", "ip-masq-agent")
	converged(t, masked)
}
