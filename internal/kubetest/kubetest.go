// Package kubetest runs a real Kubernetes for tests and benchmarks, on one
// machine, without a container engine.
//
// It owns the processes, certificates and folders of one cluster. It refuses to
// leave anything behind: every process dies with the one that started it,
// however that ends, and Close takes the rest. It never builds anything either:
// hack/kubernetes/build does, once.
//
//	c := kubetest.Start(t, kubetest.Options{})     // etcd and an API server, 3 s
//	out := c.Kubectl(t, manifest, "apply", "-f", "-")
//	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
//	agent, err := c.KubeconfigFor("system:serviceaccount:kube-system:ip-masq-agent",
//		"system:serviceaccounts", "system:authenticated") // to try what RBAC allows
//	c.StopAPI()                                    // the API is away
//	err = c.StartAPI(ctx)                          // and back, at the same address
//
// With Options.Nodes there are nodes as well, see [Options]; then the outside
// service is c.Service, and each node's network namespace c.Node("n1").NS.
//
// To debug it, set SORDINO_KUBETEST_KEEP=1: the folder with all logs and
// certificates is kept and its path logged.
package kubetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
)

// Keep is the variable that keeps a cluster's folder.
const Keep = "SORDINO_KUBETEST_KEEP"

// Options say what is started.
type Options struct {
	// ControllerManager runs kube-controller-manager: service accounts,
	// DaemonSets, the garbage collector.
	ControllerManager bool
	// APIServerArgs are further arguments of kube-apiserver.
	APIServerArgs []string

	// Nodes is how many nodes there are: n1 at 10.89.0.11 with Pods from
	// 10.88.1.0/24, and so on. They take root, cgroups of version 1, and 6 s.
	// They imply a controller manager and a scheduler.
	Nodes int
	// Images are archives to import on every node, beside [Image]. Pods need
	// imagePullPolicy Never or IfNotPresent: there is no registry.
	Images []string
	// Each is what single nodes have in particular, n1's first; also those that
	// are added later.
	Each []NodeOptions
}

// NodeOptions are what differs between nodes.
type NodeOptions struct {
	// Proxy is kube-proxy's mode, "iptables" or "nftables". Without kube-proxy
	// only the Service kubernetes has an address that leads somewhere.
	Proxy string
	// IPMasq makes the node's CNI plugin masquerade by itself.
	IPMasq bool
}

// The ranges of every cluster.
var (
	ServiceRange = netip.MustParsePrefix("10.96.0.0/16")
	PodRange     = netip.MustParsePrefix("10.88.0.0/16")
	NodeRange    = netip.MustParsePrefix("10.89.0.0/24")
)

// startTime is how long a component may take to be ready: seconds on an idle
// machine. One that ends is not waited for.
const startTime = 4 * time.Minute

// callTime is how long one call of the API may take.
const callTime = time.Minute

// Cluster is a running Kubernetes.
type Cluster struct {
	dir     string // certificates, data, logs
	made    string // what hack/kubernetes/build made
	options Options
	starter *starter
	pki     *pki
	client  *http.Client // bears the admin's certificate

	address  netip.AddrPort // of the API server, as this process reaches it
	inside   netip.AddrPort // and as the cluster does
	etcdPort int
	running  []*process // in the order of their start
	api      *process

	Nodes     []*Node
	Service   *Service
	cgroup    *cgroup
	control   *netns.NS // of the control plane; nil without nodes
	forwarder *forwarder
}

// Start starts a cluster for the length of the test. A machine that cannot
// have one skips the test, or fails it where kernel tests are required; see
// [Skippable].
func Start(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	c, err := New(tb.Context(), o)
	if unmet := Skippable(err); unmet != nil {
		tb.Skip(unmet)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if os.Getenv(Keep) != "" {
			tb.Logf("kept: %s", c.dir)
		}
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// Unmet is what the machine lacks.
type Unmet struct{ What string }

func (u *Unmet) Error() string { return "a Kubernetes for tests: " + u.What }

// NodesVariable set to "none" leaves the tests on real nodes out, for machines
// that cannot have any: hack/test says so at its end.
const NodesVariable = "SORDINO_TEST_NODES"

// Skippable is what the machine lacks, if that is why there is no cluster and
// tests may be skipped for it; else nil. Where kernel tests are required only
// nodes may be lacking, and only by [NodesVariable].
func Skippable(err error) *Unmet {
	var unmet *Unmet
	if errors.As(err, &unmet) && (os.Getenv(netnstest.Required) == "" || unmet == leftOut) {
		return unmet
	}
	return nil
}

var leftOut = &Unmet{"LEFT OUT: nodes, by " + NodesVariable + "=none"}

// New starts a cluster. The context bounds the start only.
func New(ctx context.Context, o Options) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if o.Nodes > 0 && os.Getenv(NodesVariable) == "none" {
		return nil, leftOut
	}
	made, err := built()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir, made: made, options: o, starter: newStarter()}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if o.Nodes > 0 {
		if err := c.startNetwork(); err != nil {
			return nil, err
		}
	}
	if err := c.startControlPlane(ctx); err != nil {
		return nil, err
	}
	if o.Nodes > 0 {
		if err := c.startNodes(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// built is the folder with the programs.
func built() (string, error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		script := filepath.Join(root, "hack", "kubernetes", "build")
		if _, err := os.Stat(script); err == nil {
			out, err := exec.Command(script, "where").Output()
			folder := strings.TrimSpace(string(out))
			if err != nil {
				return "", &Unmet{fmt.Sprintf("it is not built: run %s once (%s: %v)", script, folder, err)}
			}
			return folder, nil
		}
		if filepath.Dir(root) == root {
			return "", &Unmet{"hack/kubernetes/build is in no folder above the working one: run this inside the repository"}
		}
		root = filepath.Dir(root)
	}
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	ports, err := netnstest.FreePorts(3)
	if err != nil {
		return err
	}
	c.etcdPort = ports[0]
	c.inside = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(ports[2]))
	c.address = c.inside
	if c.control != nil {
		c.inside = netip.AddrPortFrom(controlAddress, 443) // the Service's port, too
		if c.forwarder, err = newForwarder(c.control, c.inside); err != nil {
			return err
		}
		c.address = c.forwarder.listener.Addr().(*net.TCPAddr).AddrPort()
	}
	if c.pki, err = newPKI(filepath.Join(c.dir, "pki"), controlAddress, ServiceRange.Addr().Next()); err != nil {
		return err
	}
	if _, err := c.KubeconfigFor("admin", "system:masters"); err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(c.pki.path("admin.crt"), c.pki.path("admin.key"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.pki.ca)
	c.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}}}}

	peer := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	_, err = c.start("etcd", "etcd", "--name=e", "--data-dir="+filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+c.etcd(), "--advertise-client-urls="+c.etcd(),
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=e="+peer)
	if err != nil {
		return err
	}
	if err := c.StartAPI(ctx); err != nil {
		return err
	}
	if !c.options.ControllerManager && c.control == nil {
		return nil
	}
	config, err := c.kubeconfigFor("https://"+c.inside.String(), "system:kube-controller-manager")
	if err != nil {
		return err
	}
	args := []string{"kube-controller-manager", "--kubeconfig=" + config, "--leader-elect=false",
		"--bind-address=127.0.0.1", "--secure-port=0", "--use-service-account-credentials=true",
		"--service-account-private-key-file=" + c.pki.path("sa.key"), "--root-ca-file=" + c.pki.path("ca.crt")}
	if c.control == nil {
		// Nodes without a kubelet are what a test says, however long it takes.
		args = append(args, "--node-monitor-grace-period=24h", "--node-startup-grace-period=24h")
	}
	_, err = c.start("kube-controller-manager", args...)
	if err != nil {
		return err
	}
	// Pods of a namespace are refused until it has its default account.
	return c.until(ctx, "the service account default", func() error {
		_, err := c.Get(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
		return err
	})
}

func (c *Cluster) etcd() string { return fmt.Sprintf("http://127.0.0.1:%d", c.etcdPort) }

// StartAPI starts the API server after [Cluster.StopAPI], and waits until it
// is ready.
func (c *Cluster) StartAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	bind, reconciler := c.inside.Addr().String(), "none"
	if c.control != nil {
		bind, reconciler = "0.0.0.0", "master-count"
	}
	args := append([]string{"kube-apiserver", "--etcd-servers=" + c.etcd(),
		"--bind-address=" + bind, "--secure-port=" + strconv.Itoa(int(c.inside.Port())), "--advertise-address=" + c.inside.Addr().String(),
		// Webhooks are called at their Pods' addresses: the control plane has no kube-proxy.
		"--endpoint-reconciler-type=" + reconciler, "--enable-aggregator-routing=true", "--service-cluster-ip-range=" + ServiceRange.String(),
		"--client-ca-file=" + c.pki.path("ca.crt"), "--tls-cert-file=" + c.pki.path("apiserver.crt"), "--tls-private-key-file=" + c.pki.path("apiserver.key"),
		"--kubelet-client-certificate=" + c.pki.path("kubelet-client.crt"), "--kubelet-client-key=" + c.pki.path("kubelet-client.key"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + c.pki.path("sa.key"), "--service-account-signing-key-file=" + c.pki.path("sa.key"),
		"--authorization-mode=Node,RBAC", "--allow-privileged=true"}, c.options.APIServerArgs...)
	api, err := c.start("kube-apiserver", args...)
	if err != nil {
		return err
	}
	c.api = api
	err = c.until(ctx, "kube-apiserver", func() error {
		if state := api.Ended(); state != "" {
			return fatal{fmt.Errorf("it ended (%s):\n%s", state, c.tail("kube-apiserver"))}
		}
		_, err := c.Get(ctx, "/readyz")
		return err
	})
	return err
}

// StopAPI kills the API server, as a machine that loses power. Everything that
// it stored stays.
func (c *Cluster) StopAPI() {
	c.api.Kill()
	c.client.CloseIdleConnections()
}

// Server is the API server's URL.
func (c *Cluster) Server() string { return "https://" + c.address.String() }

// CA is the file with the certificate of the API server's authority.
func (c *Cluster) CA() string { return c.pki.path("ca.crt") }

// Dir is the cluster's folder, for files of the test as well.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig is the path of a kubeconfig that may do everything.
func (c *Cluster) Kubeconfig() string { return c.pki.path("admin.kubeconfig") }

// KubeconfigFor writes a kubeconfig for a user and groups, with a certificate
// of its own. The context is named after the user.
func (c *Cluster) KubeconfigFor(user string, groups ...string) (string, error) {
	return c.kubeconfigFor(c.Server(), user, groups...)
}

func (c *Cluster) kubeconfigFor(server, user string, groups ...string) (string, error) {
	file := strings.ReplaceAll(user, ":", "-")
	if err := c.pki.issue(file, user, groups, x509.ExtKeyUsageClientAuth); err != nil {
		return "", err
	}
	path := c.pki.path(file + ".kubeconfig")
	return path, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: %[3]q, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: %[3]q, context: {cluster: test, user: %[3]q}}]
current-context: %[3]q
`, server, c.CA(), user, c.pki.path(file+".crt"), c.pki.path(file+".key")), 0o600)
}

// ServiceAccountToken asks the API server for a token of an account that
// exists.
func (c *Cluster) ServiceAccountToken(ctx context.Context, namespace, name string) (string, error) {
	out, err := c.TryKubectl(ctx, "", "create", "token", "--namespace", namespace, name)
	return strings.TrimSpace(out), err
}

// Kubectl runs kubectl as the admin and returns what it printed.
func (c *Cluster) Kubectl(tb testing.TB, stdin string, args ...string) string {
	tb.Helper()
	out, err := c.TryKubectl(tb.Context(), stdin, args...)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// TryKubectl is Kubectl for commands that may fail; the error has what was
// printed.
func (c *Cluster) TryKubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.made, "kubernetes"), append([]string{"kubectl", "--kubeconfig", c.Kubeconfig(), "--cache-dir", filepath.Join(c.dir, "kubectl")}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// startNodes builds the image and starts the nodes side by side.
func (c *Cluster) startNodes(ctx context.Context) error {
	config, err := c.kubeconfigFor("https://"+c.inside.String(), "system:kube-scheduler")
	if err != nil {
		return err
	}
	if _, err := c.start("kube-scheduler", "kube-scheduler", "--kubeconfig="+config, "--leader-elect=false", "--bind-address=127.0.0.1", "--secure-port=0"); err != nil {
		return err
	}
	if err := buildImage(filepath.Join(c.dir, "pod"), filepath.Join(c.dir, "pod.tar")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.dir, "node.sh"), []byte(nodeScript), 0o644); err != nil {
		return err
	}
	return c.AddNodes(ctx, c.options.Nodes)
}

// Close ends everything and removes it.
func (c *Cluster) Close() error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.Stop())
	}
	for i := len(c.running) - 1; i >= 0; i-- {
		c.running[i].Kill()
	}
	c.starter.close()
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	if c.forwarder != nil {
		c.forwarder.close()
	}
	if c.Service != nil {
		errs = append(errs, c.Service.close())
	}
	if c.control != nil {
		errs = append(errs, c.control.Close())
	}
	if c.cgroup != nil {
		errs = append(errs, c.cgroup.remove())
	}
	if os.Getenv(Keep) == "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// start starts a component of the control plane.
func (c *Cluster) start(log string, args ...string) (*process, error) {
	p, err := c.starter.start(c.control, exec.Command(filepath.Join(c.made, "kubernetes"), args...), filepath.Join(c.dir, log+".log"))
	if err == nil {
		c.running = append(c.running, p)
	}
	return p, err
}

// Get reads a path of the API as the admin.
func (c *Cluster) Get(ctx context.Context, path string) ([]byte, error) {
	return c.call(ctx, http.MethodGet, path, "")
}

// Patch changes an object as the admin, by a JSON merge patch: what kubectl
// does, without its own time.
func (c *Cluster) Patch(ctx context.Context, path, patch string) error {
	_, err := c.call(ctx, http.MethodPatch, path, patch)
	return err
}

func (c *Cluster) call(ctx context.Context, method, path, body string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, c.Server()+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/merge-patch+json")
	response, err := c.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return answer, err
}

// fatal is an error that waiting does not mend.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// until asks again until there is no error.
func (c *Cluster) until(ctx context.Context, what string, ask func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if f := (fatal{}); errors.As(err, &f) {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; at last: %w", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// tail is the end of a component's log.
func (c *Cluster) tail(log string) string {
	text, err := os.ReadFile(filepath.Join(c.dir, log+".log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}
