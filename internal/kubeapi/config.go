package kubeapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Config is how an API server is reached, and as whom.
type Config struct {
	// Server is its URL.
	Server string
	// TLS holds its authority, and the client's certificate if there is one.
	TLS *tls.Config
	// Token returns the bearer token of the moment; nil without one. Tokens in
	// files are read for every request, because they are rotated.
	Token func() (string, error)
	// Proxy is as of [http.Transport].
	Proxy func(*http.Request) (*url.URL, error)
}

// accountFolder is where a Pod finds its service account.
const accountFolder = "/var/run/secrets/kubernetes.io/serviceaccount"

// errNoCluster says that this process is in no Pod with a service account.
var errNoCluster = errors.New("this is no Pod with a service account (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set); give a kubeconfig")

// InCluster is the API server of the Pod that this process runs in.
func InCluster() (Config, error) { return inCluster(os.Getenv, accountFolder) }

func inCluster(getenv func(string) string, folder string) (Config, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Config{}, errNoCluster
	}
	c := Config{
		Server: "https://" + net.JoinHostPort(host, port), TLS: &tls.Config{MinVersion: tls.VersionTLS12},
		Token: tokenFile(filepath.Join(folder, "token")), Proxy: http.ProxyFromEnvironment,
	}
	if _, err := c.Token(); err != nil {
		return Config{}, err
	}
	authority, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err == nil {
		c.TLS.RootCAs, err = pool(authority)
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the cluster's authority: %w", err)
	}
	return c, nil
}

func tokenFile(path string) func() (string, error) {
	return func() (string, error) {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("reading the token: %w; the Pod needs automountServiceAccountToken: true", err)
		}
		if err != nil {
			return "", fmt.Errorf("reading the token: %w", err)
		}
		return strings.TrimSpace(string(text)), nil
	}
}

func pool(certificates []byte) (*x509.CertPool, error) {
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(certificates) {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return p, nil
}
