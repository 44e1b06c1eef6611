package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sordino/internal/kubetest"
	"sordino/internal/netnstest"
	"sordino/internal/testwait"
)

// configMapYAML is what a person would apply.
func configMapYAML(namespace, name, key, text string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata:\n  %s: |\n    %s\n", name, namespace, key, strings.ReplaceAll(text, "\n", "\n    "))
}

// webhookManifest is the one that is shipped, asking at the address instead of
// the Service.
func webhookManifest(t *testing.T, address string) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/webhook/configuration.yaml")
	if err != nil {
		t.Fatal(err)
	}
	service := regexp.MustCompile(`service: \{[^}]*path: ([^}]*)\}`)
	if n := len(service.FindAll(text, -1)); n != 2 {
		t.Fatalf("%d webhooks with a service", n)
	}
	patient := strings.ReplaceAll(string(text), "timeoutSeconds: 3", "timeoutSeconds: 30") // the machine may be busy
	return service.ReplaceAllString(patient, "url: https://"+address+"$1")
}

// startWebhook runs the program until the returned function is called.
func startWebhook(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	log, end := background(t, nil, append([]string{"webhook"}, args...)...)
	stop = sync.OnceFunc(func() {
		if code := end(); code != 0 {
			t.Errorf("the webhook ended with %d\n%s", code, log)
		}
	})
	t.Cleanup(stop)
	return stop
}

// eventually waits for what the API server does in the background.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	testwait.Until(t, 2*time.Minute, 200*time.Millisecond, func() error {
		if err := ask(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

// A real API server asks the webhook with the objects that are shipped, and
// with the permissions that it has there.
func TestWebhook(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	address := netnstest.FreeAddress(t)
	rbac, err := os.ReadFile("../../deploy/webhook/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, string(rbac), "apply", "-f", "-")
	c.Kubectl(t, webhookManifest(t, address), "apply", "-f", "-")
	account, err := c.KubeconfigFor("system:serviceaccount:kube-system:ip-masq-agent-webhook", "system:serviceaccounts", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	caBundle := func() string {
		return c.Kubectl(t, "", "get", "validatingwebhookconfiguration", "ip-masq-agent-webhook", "-o", "jsonpath={.webhooks[*].clientConfig.caBundle}")
	}

	// Two replicas agree on the CA.
	stop := startWebhook(t, "--listen", address, "--kubeconfig", account)
	eventually(t, "the first has made its CA known", func() error {
		if bundles := strings.Fields(caBundle()); len(bundles) != 2 || bundles[0] != bundles[1] {
			return fmt.Errorf("%q", bundles)
		}
		return nil
	})
	known := caBundle()
	startWebhook(t, "--listen", "127.0.0.1:0", "--kubeconfig", account)
	judged(t, c)
	crd, err := os.ReadFile("../../deploy/egressnat/crd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, string(crd), "apply", "-f", "-")
	c.Kubectl(t, "", "wait", "--for=condition=Established", "--timeout=2m", "crd/egressnatpolicies.networking.gke.io")
	eventually(t, "a policy that the definition takes and the agents do not is refused", func() error {
		_, err := c.TryKubectl(t.Context(), "apiVersion: networking.gke.io/v1\nkind: EgressNATPolicy\nmetadata: {name: default}\nspec: {action: NoSNAT, destinations: [{cidr: 'fd00::/8'}]}", "apply", "--dry-run=server", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), `admission webhook "egressnatpolicies.ip-masq-agent.sordino.dev" denied the request`) || !strings.Contains(err.Error(), "EgressNATPolicy default, spec.destinations[0].cidr: ipv6 is not enabled") {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	// Applying the manifests anew takes nothing away.
	c.Kubectl(t, string(rbac), "apply", "-f", "-")
	c.Kubectl(t, webhookManifest(t, address), "apply", "-f", "-")
	if caBundle() != known {
		t.Error("the CA is another now")
	}
	refusesBad(t, c)

	// Without the webhook everything is accepted: it must not hold up a cluster.
	stop()
	c.Kubectl(t, configMapYAML("kube-system", "ip-masq-agent", "config", "resyncInterval: 60"), "apply", "-f", "-")
	if caBundle() != known {
		t.Error("the second replica has a CA of its own")
	}

	// With a certificate of one's own.
	certificate, key := selfSignedFiles(t)
	startWebhook(t, "--listen", address, "--tls-cert", certificate, "--tls-key", key)
	ca, err := os.ReadFile(certificate)
	if err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, strings.ReplaceAll(webhookManifest(t, address), "clientConfig:\n", "clientConfig:\n    caBundle: "+base64.StdEncoding.EncodeToString(ca)+"\n"), "replace", "-f", "-")
	refusesBad(t, c)
}

func TestWebhookFlags(t *testing.T) {
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"--tls-cert=a"}, "--tls-cert and --tls-key belong together"},
		{[]string{"--tls-cert=a", "--tls-key=b"}, "no such file"},
		{[]string{"--config-map=ip-masq-agent"}, "NAMESPACE/NAME"},
		{[]string{"--webhook=a/b/c"}, "NAMESPACE/NAME"},
		{[]string{"--listen=127.0.0.1:0"}, "give a kubeconfig"},
	} {
		call(t, nil, "", append([]string{"webhook"}, tc.args...)...).expect(t, 1, nil, []string{tc.says})
	}
}

var bad = configMapYAML("kube-system", "ip-masq-agent", "config", "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.1.2.3/8")

// refusesBad waits until a bad ConfigMap is refused, with place and fix.
func refusesBad(t *testing.T, c *kubetest.Cluster) {
	t.Helper()
	eventually(t, "a bad ConfigMap is refused", func() error {
		_, err := c.TryKubectl(t.Context(), bad, "apply", "--dry-run=server", "-f", "-")
		if err == nil {
			return fmt.Errorf("it was accepted")
		}
		for _, want := range []string{`admission webhook "configmaps.ip-masq-agent.sordino.dev" denied the request`, `data.config:3:3: CIDR "10.1.2.3/8" is not aligned`, "write 10.0.0.0/8"} {
			if !strings.Contains(err.Error(), want) {
				return fmt.Errorf("%q is not in %w", want, err)
			}
		}
		return nil
	})
}

// judged fails unless the API server lets the webhook judge.
func judged(t *testing.T, c *kubetest.Cluster) {
	t.Helper()
	apply := func(manifest string, args ...string) error {
		_, err := c.TryKubectl(t.Context(), manifest, append([]string{"apply", "-f", "-"}, args...)...)
		return err
	}
	refusesBad(t, c)
	if err := apply(bad); err == nil {
		t.Error("a bad ConfigMap was accepted")
	}
	good := configMapYAML("kube-system", "ip-masq-agent", "config", "nonMasqueradeCIDRs:\n- 10.0.0.0/8")
	if err := apply(good, "--warnings-as-errors"); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct{ manifest, warning string }{
		{configMapYAML("kube-system", "ip-masq-agent", "config", "nonMasqueradeCIDR: []"), `data.config:1:1: unknown key "nonMasqueradeCIDR" is ignored`},
		{configMapYAML("kube-system", "ip-masq-agent", "ip-masq-agent", "{}"), `no key "config"`},
		{configMapYAML("default", "ip-masq-agent", "config", "resyncInterval: 60"), "ip-masq-agent does not read this ConfigMap, but kube-system/ip-masq-agent"},
		{configMapYAML("kube-system", "ip-masq-agent-config", "config", "resyncInterval: 60"), "ip-masq-agent does not read this ConfigMap"},
	} {
		if err := apply(tc.manifest, "--warnings-as-errors", "--dry-run=server"); err == nil || !strings.Contains(err.Error(), tc.warning) {
			t.Errorf("%q is not warned of: %v\n%s", tc.warning, err, tc.manifest)
		}
		if err := apply(tc.manifest, "--dry-run=server"); err != nil {
			t.Errorf("refused: %v\n%s", err, tc.manifest)
		}
	}
	// Other ConfigMaps do not concern us.
	if err := apply(configMapYAML("default", "settings", "config", "resyncInterval: 60"), "--warnings-as-errors"); err != nil {
		t.Error(err)
	}
}

// selfSignedFiles are a certificate for 127.0.0.1 and its key.
func selfSignedFiles(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: encoded}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
}
