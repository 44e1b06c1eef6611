package kubeagent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"sordino/internal/agentproc"
	"sordino/internal/kubetest"
	"sordino/internal/netns"
	"sordino/internal/netnstest"
)

// servers is a Pod on every node that tells its callers whom it sees, with a
// hostPort, and Services before them.
const servers = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: server, namespace: default}
spec:
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - name: server
        image: ` + kubetest.Image + `
        imagePullPolicy: Never
        args: [serve, ":8080"]
        ports: [{containerPort: 8080, hostPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: default}
spec: {clusterIP: 10.96.0.80, selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: server-local, namespace: default}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: server}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: server-cluster, namespace: default}
spec: {type: NodePort, selector: {app: server}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
`

// ask asks a server whom it sees, from a namespace.
func ask(ctx context.Context, ns *netns.NS, to string) (netip.Addr, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: 2 * time.Second, FallbackDelay: -1}).DialContext(ctx, "tcp", to)
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(strings.TrimSpace(string(answer)))
}

// podOf returns the network namespace and the address of the Pod on a node
// whose program does what is said.
func podOf(t *testing.T, n *kubetest.Node, does string) (*netns.NS, netip.Addr) {
	t.Helper()
	pids, err := n.PIDs("pod")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.Contains(string(line), "\x00"+does+"\x00") {
			continue
		}
		ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		var address netip.Addr
		netnstest.Do(t, ns, func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addresses, err := netlink.AddrList(eth0, netlink.FAMILY_V4)
			if err == nil {
				address, _ = netip.AddrFromSlice(addresses[0].IP)
			}
			return err
		})
		return ns, address.Unmap()
	}
	t.Fatalf("no Pod of %s does %q", n.Name, does)
	return nil, netip.Addr{}
}

// With the agent, Services, NodePorts and hostPorts work as before, with
// kube-proxy in both modes, and who is called sees the client's address where
// Kubernetes promises it.
func TestServices(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	c.Kubectl(t, servers, "apply", "-f", "-")
	rollout(t, "default", "server")
	since := time.Now()
	// asks wants the Pod that is asked to see one of these addresses.
	asks := func(ns *netns.NS, what, to string, want ...netip.Addr) {
		t.Helper()
		// kube-proxy and the CNI may need a moment for a new Pod.
		eventually(t, func() error {
			from, err := ask(t.Context(), ns, to)
			if err != nil || !slices.Contains(want, from) {
				return fmt.Errorf("%s at %s: the Pod that is asked sees %v (%v), not %v", what, to, from, err, want)
			}
			return nil
		})
	}
	outside := []netip.Addr{kubetest.ServiceAddress, kubetest.RouterAddress}
	for i, n := range c.Nodes {
		client, address := podOf(t, n, "dial")
		asks(c.Service.NS, "a hostPort of "+n.Name+", from outside", n.Address.String()+":8081", outside...)
		if n.Name != "n4" { // its CNI rewrites more than the configuration says: TestCNIMasquerades
			other := c.Nodes[(i+1)%len(c.Nodes)]
			_, server := podOf(t, other, "serve")
			asks(client, "another Pod, from a Pod of "+n.Name, server.String()+":8080", address)
			asks(client, "another node's hostPort, from a Pod of "+n.Name, other.Address.String()+":8081", address)
		}
		if n.Name != "n1" && n.Name != "n2" {
			continue // no kube-proxy
		}
		asks(c.Service.NS, "a NodePort of "+n.Name+" with externalTrafficPolicy: Local, from outside", n.Address.String()+":30080", outside...)
		_, local := podOf(t, n, "serve")
		gateway := local.As4() // the node's own address on its Pods' side
		gateway[3] = 1
		asks(c.Service.NS, "a NodePort of "+n.Name+", from outside", n.Address.String()+":30081", n.Address, netip.AddrFrom4(gateway))
		for range 6 { // whichever node's Pod answers
			asks(client, "a Service, from a Pod of "+n.Name, "10.96.0.80:80", address)
		}
	}
	during(t, asNode)
	only(t, asNode, since)
	c.Kubectl(t, servers, "delete", "-f", "-", "--wait=false")
}

// A CNI that masquerades by itself does so also where the configuration says
// not to: explain names the rule, and enforceNonMasquerade decides before it.
func TestCNIMasquerades(t *testing.T) {
	c := shared(t)
	if len(c.Nodes) < 4 {
		if err := c.AddNodes(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	agents(t, unmasked)
	n := c.Node("n4")
	_, address := podOf(t, n, "dial")
	since := time.Now()
	seen(t, asPod, since, c.Nodes[:3]...)
	seen(t, asNode, since, n)
	out := c.Kubectl(t, "", "exec", "-n", "kube-system", agentPod(t, n), "--", "/ip-masq-agent", "explain", "--src="+address.String(), "--dst="+kubetest.ServiceAddress.String(), "--proto=tcp", "--dport=7000")
	if !strings.Contains(out, "exempt") || !strings.Contains(out, "CNI-") {
		t.Errorf("explain on %s does not name the CNI's rule:\n%s", n.Name, out)
	}
	if metrics, err := agentproc.Get(t.Context(), n.NS, "/metrics"); err != nil || !strings.Contains(string(metrics), `ip_masq_agent_foreign_rules{table="ip nat",chain="CNI-*"}`) {
		t.Errorf("/metrics of %s do not name the CNI's rules (%v):\n%s", n.Name, err, metrics)
	}
	// kube-proxy's masquerading meets no Pod's flow to the outside, and is named.
	for name, want := range map[string]string{"n1": `{table="ip nat",chain="KUBE-POSTROUTING"} 1`, "n2": `{table="ip kube-proxy",chain="masquerading"} 1`} {
		metrics, err := agentproc.Get(t.Context(), c.Node(name).NS, "/metrics")
		if err != nil || !strings.Contains(string(metrics), want) {
			t.Errorf("/metrics of %s do not have %s (%v):\n%s", name, want, err, metrics)
		}
	}

	enforced := unmasked + "enforceNonMasquerade: true\n"
	before := time.Now()
	c.Kubectl(t, configMap(enforced), "apply", "-f", "-")
	converged(t, enforced)
	seen(t, asPod, before, c.Nodes...)
	agents(t, masked)
	during(t, asNode)
}
