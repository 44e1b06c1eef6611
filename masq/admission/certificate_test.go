package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sordino/internal/kubeapi"
)

// cluster stands for the two objects of the API.
type cluster struct {
	mu       sync.Mutex
	secret   secret
	version  int
	hooks    webhookConfiguration
	patches  []string
	conflict func() // called before the Secret is written
}

func newCluster() *cluster {
	c := &cluster{}
	for _, name := range []string{"configmaps.example.org", "policies.example.org"} {
		w := webhook{Name: name}
		w.ClientConfig.Service = &struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		}{"kube-system", "hook"}
		c.hooks.Webhooks = append(c.hooks.Webhooks, w)
	}
	return c
}

func (c *cluster) Get(_ context.Context, ref kubeapi.Ref, into any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var from any = c.hooks
	if ref == secrets.In("kube-system").Named("hook") {
		c.secret.Metadata.ResourceVersion = fmt.Sprint(c.version)
		from = c.secret
	}
	text, _ := json.Marshal(from)
	return json.Unmarshal(text, into)
}

func (c *cluster) Patch(_ context.Context, ref kubeapi.Ref, kind kubeapi.PatchKind, patch, _ any) error {
	if f := c.conflict; f != nil && ref == secrets.In("kube-system").Named("hook") {
		c.conflict = nil
		f()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.patches = append(c.patches, ref.String())
	text, _ := json.Marshal(patch)
	if ref == secrets.In("kube-system").Named("hook") {
		var s secret
		if err := json.Unmarshal(text, &s); err != nil || kind != kubeapi.MergePatch {
			return fmt.Errorf("%s: %w", kind, err)
		}
		if s.Metadata.ResourceVersion != fmt.Sprint(c.version) {
			return fmt.Errorf("patching: %w", kubeapi.ErrConflict)
		}
		c.secret.Data = s.Data
		c.version++
		return nil
	}
	var changes webhookConfiguration
	if err := json.Unmarshal(text, &changes); err != nil || kind != kubeapi.StrategicMerge {
		return fmt.Errorf("%s: %w", kind, err)
	}
	for _, ch := range changes.Webhooks {
		for i := range c.hooks.Webhooks {
			if w := &c.hooks.Webhooks[i]; w.Name == ch.Name {
				w.ClientConfig.CABundle = ch.ClientConfig.CABundle
			}
		}
	}
	return nil
}

// trusted fails unless the API server would trust what the replica serves.
func (c *cluster) trusted(t *testing.T, s *SelfSigned, now time.Time) *x509.Certificate {
	t.Helper()
	served, err := s.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range c.hooks.Webhooks {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(w.ClientConfig.CABundle)
		if _, err := served.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "hook.kube-system.svc", CurrentTime: now}); err != nil {
			t.Fatalf("%s: %v", w.Name, err)
		}
	}
	return served.Leaf
}

func TestReplicasAgreeOnTheCA(t *testing.T) {
	c, now := newCluster(), time.Now()
	replica := func() *SelfSigned {
		return &SelfSigned{API: c, Namespace: "kube-system", Name: "hook", Log: slog.New(slog.DiscardHandler)}
	}
	a, b := replica(), replica()
	if _, err := a.GetCertificate(nil); err == nil {
		t.Error("a certificate from nothing")
	}
	ensure := func(s *SelfSigned) {
		t.Helper()
		if err := s.ensure(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	// Both start at once: b is first while a makes its CA.
	c.conflict = func() { ensure(b) }
	ensure(a)
	first := c.trusted(t, a, now)
	c.trusted(t, b, now)
	if len(c.patches) != 3 { // b's Secret, b's configuration, and a's Secret, which was refused
		t.Errorf("%q", c.patches)
	}

	// Looking again changes nothing, but for what somebody else took away.
	ensure(a)
	if len(c.patches) != 3 || c.trusted(t, a, now) != first {
		t.Errorf("%q", c.patches)
	}
	c.hooks.Webhooks[1].ClientConfig.CABundle = nil
	ensure(a)
	if c.trusted(t, a, now) != first || len(c.patches) != 4 {
		t.Errorf("%q", c.patches)
	}

	// Certificates are issued anew long before their end.
	now = now.Add(leafRenew + time.Hour)
	ensure(a)
	if renewed := c.trusted(t, a, now); renewed == first || renewed.NotAfter.Before(first.NotAfter) {
		t.Error("not renewed")
	}

	// Before the CA ends there is another, and a replica that has not looked
	// since is still trusted.
	now = now.Add(caLife - caRenewal - leafRenew - 2*time.Hour)
	ensure(b)
	before := c.secret.Data.Certificates
	now = now.Add(24 * time.Hour)
	ensure(a)
	if bytes.Equal(before, c.secret.Data.Certificates) {
		t.Error("the CA was not replaced")
	}
	c.trusted(t, a, now)
	c.trusted(t, b, now)
	ensure(b)
	c.trusted(t, b, now)
}

func TestCertificateFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	f := &Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Log: slog.New(slog.DiscardHandler)}
	if _, err := f.GetCertificate(nil); err == nil {
		t.Error("a certificate from nothing")
	}
	stamp := time.Now()
	put := func(s secret, what string) {
		t.Helper()
		stamp = stamp.Add(time.Second)
		for file, text := range map[string][]byte{f.Cert: s.Data.Certificates, f.Key: s.Data.Key} {
			if !strings.Contains(what, filepath.Ext(file)) {
				continue
			}
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(file, stamp, stamp); err != nil {
				t.Fatal(err)
			}
		}
	}
	serves := func(s secret) {
		t.Helper()
		block, _ := pem.Decode(s.Data.Certificates)
		got, err := f.GetCertificate(&tls.ClientHelloInfo{})
		if err != nil || !bytes.Equal(got.Certificate[0], block.Bytes) {
			t.Fatalf("another certificate is served (%v)", err)
		}
	}
	first, _ := newAuthority("first", time.Now())
	second, _ := newAuthority("second", time.Now())
	put(first, ".crt .key")
	serves(first)
	put(second, ".crt")
	serves(first) // the key is not there yet
	put(second, ".key")
	serves(second)
}
