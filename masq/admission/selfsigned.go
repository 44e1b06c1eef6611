package admission

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"sordino/internal/kubeapi"
)

// How long the certificates are valid, and when they are replaced before.
const (
	caLife     = 10 * 365 * 24 * time.Hour
	caRenewal  = 90 * 24 * time.Hour // before its end
	leafLife   = 90 * 24 * time.Hour
	leafRenew  = leafLife / 2
	clockSkew  = 5 * time.Minute
	lookAgain  = 5 * time.Minute
	firstRetry = time.Second
)

// API is what is asked of the Kubernetes API.
type API interface {
	Get(ctx context.Context, ref kubeapi.Ref, into any) error
	Patch(ctx context.Context, ref kubeapi.Ref, kind kubeapi.PatchKind, patch, into any) error
}

// The kinds of the two objects.
var (
	secrets        = kubeapi.Ref{Version: "v1", Resource: "secrets"}
	configurations = kubeapi.Ref{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
)

// SelfSigned serves certificates of a CA of its own. The CA is kept in a
// Secret, so that several replicas agree, and is put into the
// ValidatingWebhookConfiguration, so that the API server trusts it.
//
// Both objects exist already and have to be named, so that the program needs
// "get" and "patch" on these two and may create nothing.
type SelfSigned struct {
	API API
	// Namespace and Name are the Secret's; the ValidatingWebhookConfiguration
	// has the same name.
	Namespace, Name string
	Log             *slog.Logger

	mu   sync.Mutex
	ca   []byte // that issued the leaf, in PEM form
	leaf *tls.Certificate
}

// GetCertificate is for tls.Config.
func (s *SelfSigned) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaf == nil {
		return nil, errors.New("there is no certificate yet: the Kubernetes API has not answered")
	}
	return s.leaf, nil
}

// Run makes what is needed, and looks again from time to time: somebody may
// have applied the manifest anew, or replaced the CA.
func (s *SelfSigned) Run(ctx context.Context) {
	retry := firstRetry
	for {
		wait := lookAgain
		if err := s.ensure(ctx, time.Now()); err == nil {
			retry = firstRetry
		} else if ctx.Err() == nil {
			wait, retry = retry, min(2*retry, lookAgain)
			s.Log.Error("the webhook's certificate; it is tried again", "in", wait, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

type secret struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion,omitempty"`
	} `json:"metadata"`
	Data struct {
		// Certificates are the CA's, and those before it as long as replicas may
		// still serve what they issued.
		Certificates []byte `json:"ca.crt,omitempty"`
		Key          []byte `json:"ca.key,omitempty"`
	} `json:"data"`
}

type webhookConfiguration struct {
	Webhooks []webhook `json:"webhooks"`
}

type webhook struct {
	Name         string `json:"name"`
	ClientConfig struct {
		CABundle []byte `json:"caBundle,omitempty"`
		URL      string `json:"url,omitempty"`
		Service  *struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"service,omitempty"`
	} `json:"clientConfig"`
}

// host is the name that the API server looks for in the certificate.
func (w webhook) host() string {
	if s := w.ClientConfig.Service; s != nil {
		return s.Name + "." + s.Namespace + ".svc"
	}
	u, err := url.Parse(w.ClientConfig.URL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// ensure makes the CA, has the API server trust it, and only then issues from it.
func (s *SelfSigned) ensure(ctx context.Context, now time.Time) error {
	authority, err := s.authority(ctx, now)
	if err != nil {
		return err
	}
	ref := configurations.Named(s.Name)
	var c webhookConfiguration
	if err := s.API.Get(ctx, ref, &c); err != nil {
		return err
	}
	type change struct {
		Name         string `json:"name"`
		ClientConfig struct {
			CABundle []byte `json:"caBundle"`
		} `json:"clientConfig"`
	}
	var changes []change
	var hosts []string
	for _, w := range c.Webhooks {
		if host := w.host(); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
		if !bytes.Equal(w.ClientConfig.CABundle, authority.Data.Certificates) {
			ch := change{Name: w.Name}
			ch.ClientConfig.CABundle = authority.Data.Certificates
			changes = append(changes, ch)
		}
	}
	if len(changes) > 0 {
		// Merged by the webhooks' names: nothing else of them is touched.
		if err := s.API.Patch(ctx, ref, kubeapi.StrategicMerge, map[string]any{"webhooks": changes}, nil); err != nil {
			return err
		}
		s.Log.Info("the API server trusts our CA now", "configuration", s.Name)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaf != nil && bytes.Equal(s.ca, authority.Data.Certificates) && now.Before(s.leaf.Leaf.NotBefore.Add(leafRenew)) &&
		slices.Equal(hosts, names(s.leaf.Leaf)) {
		return nil
	}
	leaf, err := issue(authority, hosts, now)
	if err != nil {
		return err
	}
	s.ca, s.leaf = authority.Data.Certificates, leaf
	return nil
}

// names are the hosts that a certificate of ours is for, in their order.
func names(c *x509.Certificate) []string {
	hosts := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// authority reads the CA from the Secret, and makes one where there is none or
// where it ends soon.
func (s *SelfSigned) authority(ctx context.Context, now time.Time) (secret, error) {
	ref := secrets.In(s.Namespace).Named(s.Name)
	for {
		var held secret
		if err := s.API.Get(ctx, ref, &held); errors.Is(err, kubeapi.ErrNotFound) {
			return held, fmt.Errorf("%w; it comes with the webhook's manifests", err)
		} else if err != nil {
			return held, err
		}
		ca, _, err := certificateOf(held)
		if err == nil && now.Before(ca.NotAfter.Add(-caRenewal)) {
			return held, nil
		}
		made, err := newAuthority(s.Name, now)
		if err != nil {
			return held, err
		}
		if ca != nil && now.Before(ca.NotAfter) {
			made.Data.Certificates = append(made.Data.Certificates, held.Data.Certificates...)
		}
		made.Metadata.ResourceVersion = held.Metadata.ResourceVersion
		err = s.API.Patch(ctx, ref, kubeapi.MergePatch, made, nil)
		if errors.Is(err, kubeapi.ErrConflict) {
			continue // another replica was first: its CA is ours
		}
		if err != nil {
			return held, err
		}
		s.Log.Info("made a CA for the webhook", "secret", s.Namespace+"/"+s.Name, "until", now.Add(caLife).UTC().Format(time.DateOnly))
		return made, nil
	}
}

func newAuthority(name string, now time.Time) (secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return secret{}, fmt.Errorf("making a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name + " CA"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return secret{}, fmt.Errorf("making a CA: %w", err)
	}
	encodedKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret{}, fmt.Errorf("encoding the CA's key: %w", err)
	}
	var made secret
	made.Data.Certificates = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	made.Data.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encodedKey})
	return made, nil
}

// certificateOf reads the CA that issues: the first of the certificates.
func certificateOf(s secret) (*x509.Certificate, crypto.Signer, error) {
	pair, err := tls.X509KeyPair(s.Data.Certificates, s.Data.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the webhook's CA: %w", err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, nil, errors.New("reading the webhook's CA: this is no CA that can sign")
	}
	return pair.Leaf, signer, nil
}

func issue(authority secret, hosts []string, now time.Time) (*tls.Certificate, error) {
	ca, signer, err := certificateOf(authority)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "ip-masq-agent webhook"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("issuing the webhook's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the webhook's certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return new(big.Int).SetBytes(b)
}
