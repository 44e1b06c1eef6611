package deploy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sordino/deploy/images"
	"sordino/internal/kubetest"
	"sordino/internal/netnstest"
	"sordino/internal/probe"
	"sordino/internal/testprogram"
	"sordino/internal/testserver"
	"sordino/internal/testwait"
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sordino-deploy-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built = sync.OnceValues(func() (archives, error) {
			programs, err := testprogram.Images(dir)
			return archives{dir, programs}, err
		})
		return m.Run()
	}())
}

// archives are the folder of what "make images" makes, and that of the programs
// in it.
type archives struct{ dir, programs string }

// built makes them when a test is the first to ask.
var built func() (archives, error)

func builtFor(t *testing.T) archives {
	t.Helper()
	all, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// oneNode starts a cluster of one node that has imported images as people do.
func oneNode(t *testing.T, all ...images.Image) *kubetest.Cluster {
	t.Helper()
	o := kubetest.Options{Nodes: 1}
	for _, image := range all {
		o.Images = append(o.Images, filepath.Join(builtFor(t).dir, image.Name+".tar"))
	}
	return kubetest.Start(t, o)
}

// TestNode runs the agent on a real node as its manifest says, and takes it
// away again.
func TestNode(t *testing.T) {
	c := oneNode(t, images.Agent)
	node := c.Nodes[0]
	apply(t, c, "agent")
	if err := c.Rollout(t.Context(), "kube-system", "ip-masq-agent"); err != nil {
		t.Log(c.TryKubectl(t.Context(), "", "logs", "--namespace=kube-system", "daemonset/ip-masq-agent"))
		t.Fatal(err)
	}

	// No library has a line of its own there, as one had for nodes without
	// pressure information, which these are.
	if log := c.Kubectl(t, "", "logs", "--namespace=kube-system", "daemonset/ip-masq-agent"); !strings.HasPrefix(log, "time=") {
		t.Errorf("the log does not begin with a line of ours:\n%s", log)
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
	c.Kubectl(t, "", "wait", "--for=delete", "--namespace=kube-system", "pod", "--selector=k8s-app=ip-masq-agent", "--timeout=4m")
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
	c.Kubectl(t, "", "delete", "--kustomize", "cleanup", "--timeout=4m")
	t.Run("webhook", func(t *testing.T) { testWebhook(t, c) })
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

// TestServer runs the server in a cluster as its manifest says: it answers by
// its Service's name, with what it accepted on the volume, as a user who may
// write nothing else; and makes an environment on that cluster.
func TestServer(t *testing.T) {
	c := oneNode(t, images.Agent, images.Server)
	node := c.Nodes[0]
	if err := os.MkdirAll(node.Path("/var/lib/volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, fmt.Sprintf(`{apiVersion: v1, kind: PersistentVolume, metadata: {name: sordino}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce],
		claimRef: {namespace: sordino-system, name: sordino}, local: {path: /var/lib/volume}, persistentVolumeReclaimPolicy: Retain,
		nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}}}}`, node.Name), "apply", "-f", "-")
	token, err := exec.Command(filepath.Join(builtFor(t).programs, "sordino"), "token", "--name", "ci", "--project", "*", "--role", "editor").Output()
	if err != nil {
		t.Fatal(err)
	}
	config := t.TempDir()
	authority := certificate(t, config)
	base, err := filepath.Abs("server")
	if err != nil {
		t.Fatal(err)
	}
	if base, err = filepath.Rel(config, base); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"clusters.yaml": fmt.Sprintf("clusters:\n- {name: own, location: us-central1, kubeconfig: in-cluster, nodeRange: %s, podRange: %s, probe: \"%s:%d\"}\n",
			kubetest.NodeRange, kubetest.PodRange, kubetest.ServiceAddress, probe.Port),
		"policy.yaml": fmt.Sprintf("tokens:\n- {name: ci, sha256: %x, grants: [{project: \"*\", role: editor}]}\n", sha256.Sum256(bytes.TrimSpace(token))),
		"kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + base + "]\n" +
			"configMapGenerator: [{name: sordino, namespace: sordino-system, files: [clusters.yaml, policy.yaml]}]\n" +
			"secretGenerator: [{name: sordino-tls, namespace: sordino-system, type: kubernetes.io/tls, files: [tls.crt, tls.key]}]\n",
	} {
		if err := os.WriteFile(filepath.Join(config, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, c, config)
	apply(t, c, "target-cluster")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.TryKubectl(context.Background(), "", "describe", "pods", "--namespace=sordino-system"))
			t.Log(c.TryKubectl(context.Background(), "", "logs", "--namespace=sordino-system", "deployment/sordino"))
			t.Log(c.TryKubectl(context.Background(), "", "get", "pods,events", "-A", "-o", "wide"))
		}
	})
	c.Kubectl(t, "", "rollout", "status", "--namespace=sordino-system", "deployment/sordino", "--timeout=4m")

	server := fromOutside(c, authority, strings.TrimSpace(string(token)))
	list := func() {
		t.Helper()
		if _, err := server.Ask(t.Context(), http.MethodGet, "/v1/"+location+"/environments", ""); err != nil {
			t.Fatal(err)
		}
	}
	list()
	const data = "/var/lib/volume/data"
	before, err := os.ReadFile(node.Path(data + "/token"))
	if err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, "", "rollout", "restart", "--namespace=sordino-system", "deployment/sordino")
	c.Kubectl(t, "", "rollout", "status", "--namespace=sordino-system", "deployment/sordino", "--timeout=4m")
	list()
	after, err := os.ReadFile(node.Path(data + "/token"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("another token after a restart (%v)", err)
	}
	pids, err := node.PIDs("sordino")
	if err != nil || len(pids) != 1 {
		t.Fatal(pids, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("memory: %s", regexp.MustCompile(`(?m)^Vm(HWM|RSS):.*$`).FindAll(status, -1))
	for field, want := range map[string]string{"Uid": "65532", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
		if got := regexp.MustCompile(`(?m)^` + field + `:\s*(\w+)`).FindSubmatch(status); got == nil || string(got[1]) != want {
			t.Errorf("%s is %q, want %s", field, got, want)
		}
	}
	testEnvironment(t, c, server)
}

// fromOutside is a client outside of the cluster that has the server by its
// Service's name, wherever its Pod is.
func fromOutside(c *kubetest.Cluster, authority *x509.CertPool, token string) *testserver.Client {
	client := testserver.NewClient("https://sordino.sordino-system.svc", token)
	client.HTTP.Transport = &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: authority}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (connection net.Conn, err error) {
			pod, err := serverPod(ctx, c)
			if err != nil {
				return nil, err
			}
			err = c.Service.NS.Do(func() error {
				connection, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, net.JoinHostPort(pod, "8443"))
				return err
			})
			return connection, err
		},
	}
	return client
}

// serverPod is the address of the server's Pod.
func serverPod(ctx context.Context, c *kubetest.Cluster) (string, error) {
	text, err := c.Get(ctx, "/api/v1/namespaces/sordino-system/pods")
	if err != nil {
		return "", err
	}
	var list struct {
		Items []struct {
			Metadata struct{ DeletionTimestamp string }
			Status   struct{ Phase, PodIP string }
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return "", err
	}
	for _, p := range list.Items {
		if p.Metadata.DeletionTimestamp == "" && p.Status.Phase == "Running" {
			return p.Status.PodIP, nil
		}
	}
	return "", errors.New("no Pod of the server runs")
}

const (
	location = "projects/p/locations/us-central1"
	example  = location + "/environments/example-environment"
)

// testEnvironment has the server make an environment on its own cluster, by the
// account of its Pod and with the images of its own version, and delete it. Its
// Pod is deleted before the creation ends, and the next one goes on.
func testEnvironment(t *testing.T, c *kubetest.Cluster, server *testserver.Client) {
	accepted := func(method, path, body string) (o testserver.Operation) {
		t.Helper()
		if err := server.Call(t.Context(), method, path, body, &o); err != nil {
			t.Fatal(err)
		}
		return o
	}
	succeeds := func(o testserver.Operation) {
		t.Helper()
		// A Deployment may count a Pod that has just gone.
		testwait.Until(t, 4*time.Minute, 50*time.Millisecond, func() error {
			is, err := server.Operation(t.Context(), o.Name)
			if is.Error != nil {
				t.Fatalf("the operation %s failed: %s", o.Name, is.Error.Message)
			}
			if err == nil && !is.Done {
				err = fmt.Errorf("it has not ended: %+v", is)
			}
			return err
		})
	}
	// While nobody outside answers, a creation does not end.
	netnstest.Run(t, c.Service.NS, fmt.Sprintf("table ip away { chain input { type filter hook input priority 0; tcp dport %d reject with tcp reset; }; }", probe.Port), "nft", "-f", "-")
	created := accepted(http.MethodPost, "/v1beta1/"+location+"/environments",
		fmt.Sprintf(`{"name": %q, "config": {"nodeConfig": {"enableIpMasqAgent": true, "ipAllocationPolicy": {"useIpAliases": true}}}}`, example))
	testwait.Until(t, 4*time.Minute, 200*time.Millisecond, func() error {
		o, err := server.Operation(t.Context(), created.Name)
		if o.Done {
			t.Fatalf("it ended without a proof: %+v", o)
		}
		if err == nil && !strings.Contains(o.Detail("prove it with a packet"), "saw nothing of") {
			err = fmt.Errorf("it does not wait for the target: %+v", o)
		}
		return err
	})
	c.Kubectl(t, "", "delete", "pod", "--namespace=sordino-system", "--selector=app.kubernetes.io/name=sordino", "--timeout=4m")
	since := time.Now()
	netnstest.Run(t, c.Service.NS, "", "nft", "delete table ip away")
	c.Kubectl(t, "", "rollout", "status", "--namespace=sordino-system", "deployment/sordino", "--timeout=4m")
	succeeds(created)

	var e struct{ State string }
	if err := server.Call(t.Context(), http.MethodGet, "/v1/"+example, "", &e); err != nil || e.State != "RUNNING" {
		t.Errorf("%+v, %v", e, err)
	}
	if m, err := server.MasqAgent(t.Context(), example); err != nil || !m.InForce ||
		!strings.HasSuffix(m.Proof, fmt.Sprintf(" was seen as %s by %s", c.Nodes[0].Address, kubetest.ServiceAddress)) {
		t.Errorf("%+v, %v", m, err)
	}
	seen := c.Service.Since(since)
	if len(seen) == 0 || slices.ContainsFunc(seen, func(s kubetest.Sighting) bool { return s.From != c.Nodes[0].Address }) {
		t.Errorf("the target outside saw %v, want %s alone", seen, c.Nodes[0].Address)
	}

	succeeds(accepted(http.MethodDelete, "/v1beta1/"+example, ""))
	if left := c.Kubectl(t, "", "get", "daemonsets,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,validatingadmissionpolicies,namespaces",
		"-A", "-l", "sordino.dev/environment", "-o", "name"); left != "" {
		t.Errorf("left over:\n%s", left)
	}
	if all := c.Kubectl(t, "", "get", "daemonsets,namespaces", "-A", "-o", "name"); strings.Contains(all, "ip-masq-agent") || strings.Contains(all+"\n", "namespace/sordino\n") {
		t.Errorf("the cluster is not clean:\n%s", all)
	}
	if left := tables(t, c.Nodes[0]); strings.Contains(left, "ip-masq-agent") {
		t.Errorf("left on the node: %s", left)
	}
}

// certificate writes a pair for the Service's name.
func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"sordino.sordino-system.svc"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return pool
}

// TestFlags holds the arguments in the manifests to the programs: the agent
// only warns of an unknown one, and would run without.
func TestFlags(t *testing.T) {
	dir := builtFor(t).programs
	known := map[string]string{}
	for name, command := range map[string][]string{
		"ip-masq-agent": {"ip-masq-agent", "--help"}, "sordino serve": {"sordino", "serve", "--help"},
	} {
		text, err := exec.Command(filepath.Join(dir, command[0]), command[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		known[name] = string(text)
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
		text = regexp.MustCompile(`(?m)#.*$`).ReplaceAll(text, nil)
		program := "ip-masq-agent"
		if dir := filepath.Dir(file); dir == "server" || dir == "example" {
			program = "sordino serve"
		}
		for _, m := range regexp.MustCompile(`[\s\[](--[a-z][a-z0-9-]+)`).FindAllSubmatch(text, -1) {
			found++
			if !regexp.MustCompile(`(?m)(^|\s)` + string(m[1]) + `\b`).MatchString(known[program]) {
				t.Errorf("%s gives %s, which %s does not know", file, m[1], program)
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d arguments found", found)
	}
}
