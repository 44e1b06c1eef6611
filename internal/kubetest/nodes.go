package kubetest

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/internal/probe"
)

//go:embed node.sh
var nodeScript string

// A Sighting is one call that the outside service answered.
type Sighting struct {
	At       time.Time
	Protocol string // "tcp" or "udp"
	From     netip.Addr
}

// Service is the service outside of the cluster, at ServiceAddress and
// probe.Port. It has routes to the Pods as well, so that a packet that was not
// masqueraded is answered too, and can be told apart.
type Service struct {
	NS       *netns.NS
	observer *probe.Observer

	mu   sync.Mutex
	seen []Sighting
}

// Since returns what was seen after a moment, the earliest first.
func (s *Service) Since(t time.Time) []Sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := slices.BinarySearchFunc(s.seen, t, func(a Sighting, t time.Time) int { return a.At.Compare(t) })
	return slices.Clone(s.seen[i:])
}

func (s *Service) note(protocol string, from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, Sighting{time.Now(), protocol, from})
}

// Node is one node: a kubelet and a containerd in namespaces of their own.
type Node struct {
	Name    string
	Address netip.Addr
	Pods    netip.Prefix
	NS      *netns.NS // nil while it is off; another one after each Start

	c       *Cluster
	options NodeOptions
	dir     string
	booted  time.Time
	process *process
}

// Path is where a file of the node's /var/lib or /var/log is.
func (n *Node) Path(path string) string {
	return filepath.Join(n.dir, strings.TrimPrefix(path, "/var/"))
}

// PID is the node's first process: nsenter --all --target PID.
func (n *Node) PID() int { return n.process.cmd.Process.Pid }

// PIDs are the processes of a program in the node's Pods.
func (n *Node) PIDs(program string) ([]int, error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != program {
			continue // it ended, or is another
		}
		groups, err := os.ReadFile(filepath.Join(filepath.Dir(name), "cgroup"))
		if err != nil || !strings.Contains(string(groups), "/"+n.c.cgroup.name+"/"+n.Name+"/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return nil, err
		}
		found = append(found, pid)
	}
	return found, nil
}

// Node returns a node by its name: n1, n2 and so on.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("no node " + name)
}

// startNetwork makes everything that nodes are plugged into.
func (c *Cluster) startNetwork() (err error) {
	if os.Geteuid() != 0 {
		return &Unmet{"nodes take root, for cgroups, mounts and containers"}
	}
	for _, program := range []string{"root/usr/bin/containerd", "root/usr/sbin/runc", "root/usr/lib/cni/ptp"} {
		if _, err := os.Stat(filepath.Join(c.made, program)); err != nil {
			return &Unmet{"there are no nodes without containerd, runc and the CNI plugins, which hack/kubernetes/build takes from Debian's packages; it found no apt-get: " + err.Error()}
		}
	}
	if c.cgroup, err = newCgroup(filepath.Base(c.dir)); err != nil {
		return err
	}
	if c.control, err = newControl(); err != nil {
		return err
	}
	c.Service = &Service{}
	if c.Service.NS, err = netns.New(); err != nil {
		return err
	}
	if err := c.plug(c.Service.NS, "outside", RouterAddress, ServiceAddress); err != nil {
		return err
	}
	// What is sent without a chosen address, as UDP, is sent with the service's.
	err = c.Service.NS.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(NodeRange), Src: ServiceAddress.AsSlice(), Scope: netlink.SCOPE_LINK})
	})
	if err != nil {
		return err
	}
	if err := route(c.control, netip.PrefixFrom(ServiceAddress, 32), RouterAddress, netip.Addr{}); err != nil {
		return err
	}
	c.Service.observer, err = probe.ObserveEach(c.Service.NS, c.Service.note)
	return err
}

func (s *Service) close() error {
	var errs []error
	if s.observer != nil {
		errs = append(errs, s.observer.Close())
	}
	if s.NS != nil {
		errs = append(errs, s.NS.Close())
	}
	return errors.Join(errs...)
}

// AddNodes adds nodes and waits until they are ready.
func (c *Cluster) AddNodes(ctx context.Context, count int) error {
	var added []*Node
	for range count {
		n, err := c.addNode(ctx)
		if err != nil {
			return err
		}
		added = append(added, n)
	}
	errs := make([]error, count)
	var all sync.WaitGroup
	for i, n := range added {
		if err := n.boot(); err != nil {
			return err
		}
		all.Go(func() { errs[i] = n.ready(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// addNode makes a node that is off.
func (c *Cluster) addNode(ctx context.Context) (*Node, error) {
	i := len(c.Nodes) + 1
	n := &Node{Name: fmt.Sprintf("n%d", i), Address: nodeAddress(i), Pods: podRange(i), c: c}
	n.dir = filepath.Join(c.dir, n.Name)
	if len(c.options.Each) >= i {
		n.options = c.options.Each[i-1]
	}
	c.Nodes = append(c.Nodes, n)
	if err := n.configure(); err != nil {
		return nil, err
	}
	// Made before the kubelet registers it, with the Pod range that its CNI has.
	_, err := c.TryKubectl(ctx, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q}, "spec": {"podCIDR": %[2]q, "podCIDRs": [%[2]q]}}`, n.Name, n.Pods), "create", "-f", "-")
	if err != nil {
		return nil, err
	}
	for _, ns := range []*netns.NS{c.control, c.Service.NS} {
		source := netip.Addr{}
		if ns == c.Service.NS {
			source = ServiceAddress
		}
		if err := route(ns, n.Pods, n.Address, source); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Start boots a node that is off, and waits until it is ready.
func (n *Node) Start(ctx context.Context) error {
	if err := n.boot(); err != nil {
		return err
	}
	return n.ready(ctx)
}

func (n *Node) boot() (err error) {
	c := n.c
	n.booted = time.Now().Truncate(time.Second) // as times are in the API
	if n.NS, err = netns.New(); err != nil {
		return err
	}
	if err := c.plug(n.NS, n.Name, n.Address); err != nil {
		return err
	}
	if err := route(n.NS, netip.MustParsePrefix("0.0.0.0/0"), RouterAddress, netip.Addr{}); err != nil {
		return err
	}
	if err := route(n.NS, ServiceRange, controlAddress, netip.Addr{}); err != nil {
		return err
	}
	for _, other := range c.Nodes {
		if other == n {
			continue
		}
		if err := route(n.NS, other.Pods, other.Address, netip.Addr{}); err != nil {
			return err
		}
		if other.NS != nil {
			if err := route(other.NS, n.Pods, n.Address, netip.Addr{}); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(c.cgroup.clear(n.Name), c.cgroup.make(n.Name)); err != nil {
		return err
	}
	cmd := exec.Command("sh", filepath.Join(c.dir, "node.sh"), n.Name, n.dir, c.made, n.Address.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS}
	n.process, err = c.starter.start(n.NS, cmd, filepath.Join(c.dir, n.Name+".log"))
	return err
}

func (n *Node) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	c := n.c
	return c.until(ctx, "node "+n.Name, func() error {
		if state := n.process.Ended(); state != "" {
			return fatal{fmt.Errorf("it ended (%s):\n%s%s", state, c.tail(n.Name), c.tail(filepath.Join(n.Name, "kubelet")))}
		}
		body, err := c.Get(ctx, "/api/v1/nodes/"+n.Name)
		if err != nil {
			return err
		}
		var node struct {
			Status struct {
				Conditions []struct {
					Type, Status, Message string
					LastHeartbeatTime     time.Time
				}
			}
		}
		if err := json.Unmarshal(body, &node); err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type != "Ready" {
				continue
			}
			if condition.Status == "True" && !condition.LastHeartbeatTime.Before(n.booted) {
				return nil
			}
			return fmt.Errorf("it is not ready: %s\n%s", condition.Message, c.tail(filepath.Join(n.Name, "kubelet")))
		}
		return fmt.Errorf("its kubelet says nothing of itself yet:\n%s", c.tail(filepath.Join(n.Name, "kubelet")))
	})
}

// Stop takes the power from a node: every process dies, /run, the network and
// the rules in it are gone. What is in /var/lib stays.
func (n *Node) Stop() error {
	if n.process != nil {
		n.process.Kill()
		n.process = nil
	}
	if n.NS == nil {
		return nil
	}
	err := n.c.control.Do(func() error {
		port, err := netlink.LinkByName(n.Name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(port)
	})
	err = errors.Join(err, n.NS.Close())
	n.NS = nil
	return err
}

// Rollout waits until a DaemonSet's Pods are ready, on every node, with its
// newest template.
func (c *Cluster) Rollout(ctx context.Context, namespace, name string) error {
	limited, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	err := c.until(limited, "DaemonSet "+namespace+"/"+name, func() error {
		body, err := c.Get(limited, "/apis/apps/v1/namespaces/"+namespace+"/daemonsets/"+name)
		if err != nil {
			return err
		}
		var set struct {
			Metadata struct{ Generation int }
			Status   struct{ ObservedGeneration, DesiredNumberScheduled, UpdatedNumberScheduled, NumberReady int }
		}
		if err := json.Unmarshal(body, &set); err != nil {
			return err
		}
		// None is desired before the controller has looked.
		if s, all := set.Status, len(c.Nodes); s.ObservedGeneration != set.Metadata.Generation || s.DesiredNumberScheduled != all || s.UpdatedNumberScheduled != all || s.NumberReady != all {
			return fmt.Errorf("%d nodes, and it says %+v", all, s)
		}
		return nil
	})
	if err != nil {
		pods, _ := c.TryKubectl(ctx, "", "get", "pods", "--namespace", namespace, "-o", "wide")
		return fmt.Errorf("%w\n%s", err, pods)
	}
	return nil
}

// configure writes the node's files.
func (n *Node) configure() error {
	if err := os.MkdirAll(filepath.Join(n.dir, "images"), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(n.dir, "cni"), 0o755); err != nil {
		return err
	}
	for i, image := range append([]string{filepath.Join(n.c.dir, "pod.tar")}, n.c.options.Images...) {
		path, err := filepath.Abs(image)
		if err != nil {
			return err
		}
		if err := os.Symlink(path, filepath.Join(n.dir, "images", fmt.Sprintf("%d.tar", i))); err != nil {
			return err
		}
	}
	server := "https://" + n.c.inside.String()
	kubelet, err := n.c.kubeconfigFor(server, "system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	if err := os.Symlink(kubelet, filepath.Join(n.dir, "kubelet.kubeconfig")); err != nil {
		return err
	}
	proxy := ""
	if n.options.Proxy != "" {
		if proxy, err = n.c.kubeconfigFor(server, "system:kube-proxy"); err != nil {
			return err
		}
	}
	for name, text := range nodeFiles {
		if name == "kube-proxy.yaml" && proxy == "" {
			continue
		}
		var out strings.Builder
		err := template.Must(template.New(name).Parse(text)).Execute(&out, map[string]any{
			"Name": n.Name, "Dir": n.dir, "Root": filepath.Join(n.c.made, "root"), "Image": Image, "Pods": n.Pods, "IPMasq": n.options.IPMasq,
			"CA": n.c.CA(), "Cgroup": "/" + n.c.cgroup.name + "/" + n.Name, "Mode": n.options.Proxy, "Kubeconfig": proxy, "PodRange": PodRange,
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(out.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

var nodeFiles = map[string]string{
	"cni/10-nodes.conflist": `{"cniVersion": "0.4.0", "name": "nodes", "plugins": [
  {"type": "ptp", "ipMasq": {{.IPMasq}}, "mtu": 1500,
   "ipam": {"type": "host-local", "subnet": "{{.Pods}}", "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`,
	// Without CAP_SYS_RESOURCE runc may not lower a score for the OOM killer.
	"containerd.toml": `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Image}}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.Root}}/usr/lib/cni"
    conf_dir = "{{.Dir}}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{{.Root}}/usr/sbin/runc"
      SystemdCgroup = false
`,
	"kubelet.yaml": `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "{{.CA}}"}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: {{.Cgroup}}
enforceNodeAllocatable: [pods]
failSwapOn: false
failCgroupV1: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volumeplugins
resolvConf: ""
clusterDNS: [10.96.0.10]
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%"}
nodeStatusUpdateFrequency: 5s
`,
	// The machine's limits of conntrack are not a node's to set.
	"kube-proxy.yaml": `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {{.Mode}}
clientConnection: {kubeconfig: "{{.Kubeconfig}}"}
hostnameOverride: {{.Name}}
clusterCIDR: {{.PodRange}}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`,
}
