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
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"sordino/deploy/images"
	"sordino/internal/kubetest"
	"sordino/internal/testprogram"
)

// oneNode builds programs into a folder, and starts a cluster of one node that
// has the image of them.
func oneNode(t *testing.T, target string, image images.Image) (dir string, c *kubetest.Cluster) {
	t.Helper()
	dir = t.TempDir()
	if err := testprogram.Build(dir, target); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "images.tar")
	if err := images.WriteTar(archive, "latest", images.Platform{Architecture: runtime.GOARCH, Binaries: dir}, image); err != nil {
		t.Fatal(err)
	}
	return dir, kubetest.Start(t, kubetest.Options{Nodes: 1, Images: []string{archive}})
}

// TestNode runs the agent on a real node as its manifest says, and takes it
// away again.
func TestNode(t *testing.T) {
	_, c := oneNode(t, testprogram.Agent, images.Agent)
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
// write nothing else.
func TestServer(t *testing.T) {
	dir, c := oneNode(t, testprogram.Both, images.Server)
	node := c.Nodes[0]
	if err := os.MkdirAll(node.Path("/var/lib/volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, fmt.Sprintf(`{apiVersion: v1, kind: PersistentVolume, metadata: {name: sordino}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce],
		claimRef: {namespace: sordino-system, name: sordino}, local: {path: /var/lib/volume}, persistentVolumeReclaimPolicy: Retain,
		nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}}}}`, node.Name), "apply", "-f", "-")
	token, err := exec.Command(filepath.Join(dir, "sordino"), "token", "--name", "ci", "--project", "*", "--role", "viewer").Output()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "overlay")
	if err := os.Mkdir(config, 0o755); err != nil {
		t.Fatal(err)
	}
	authority := certificate(t, config)
	base, err := filepath.Abs("server")
	if err != nil {
		t.Fatal(err)
	}
	if base, err = filepath.Rel(config, base); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"clusters.yaml": fmt.Sprintf("clusters:\n- {name: own, location: us-central1, kubeconfig: in-cluster, nodeRange: %s, podRange: %s}\n", kubetest.NodeRange, kubetest.PodRange),
		"policy.yaml":   fmt.Sprintf("tokens:\n- {name: ci, sha256: %x, grants: [{project: \"*\", role: viewer}]}\n", sha256.Sum256(bytes.TrimSpace(token))),
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
	if out, err := c.TryKubectl(t.Context(), "", "rollout", "status", "--namespace=sordino-system", "deployment/sordino", "--timeout=4m"); err != nil {
		t.Log(c.TryKubectl(t.Context(), "", "describe", "pods", "--namespace=sordino-system"))
		t.Log(c.TryKubectl(t.Context(), "", "logs", "--namespace=sordino-system", "deployment/sordino"))
		t.Fatal(out, err)
	}

	list := func() {
		t.Helper()
		pod := c.Kubectl(t, "", "get", "pods", "--namespace=sordino-system", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[0].status.podIP}")
		// From where the service outside is, to the Pod, by the Service's name.
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: authority}, DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, _ string) (connection net.Conn, err error) {
				err = c.Service.NS.Do(func() error {
					connection, err = (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(pod, "8443"))
					return err
				})
				return connection, err
			},
		}, Timeout: time.Minute}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://sordino.sordino-system.svc/v1/projects/p/locations/us-central1/environments", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s (%v)", response.Status, text, err)
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
	dir := t.TempDir()
	if err := testprogram.Build(dir, testprogram.Both); err != nil {
		t.Fatal(err)
	}
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
