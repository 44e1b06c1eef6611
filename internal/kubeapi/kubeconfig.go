package kubeapi

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// kubeconfig is what we read of one. What is named beside it has no meaning for
// a program that runs unattended, or is refused.
type kubeconfig struct {
	CurrentContext string      `yaml:"current-context"`
	Contexts       []kubeNamed `yaml:"contexts"`
	Clusters       []kubeNamed `yaml:"clusters"`
	Users          []kubeNamed `yaml:"users"`
}

// kubeNamed is an entry of any of the three lists.
type kubeNamed struct {
	Name    string      `yaml:"name"`
	Context kubeContext `yaml:"context"`
	Cluster kubeCluster `yaml:"cluster"`
	User    kubeUser    `yaml:"user"`
}

type kubeContext struct {
	Cluster string `yaml:"cluster"`
	User    string `yaml:"user"`
}

type kubeCluster struct {
	Server        string `yaml:"server"`
	Authority     string `yaml:"certificate-authority"`
	AuthorityData string `yaml:"certificate-authority-data"`
	ServerName    string `yaml:"tls-server-name"`
	Insecure      bool   `yaml:"insecure-skip-tls-verify"`
	ProxyURL      string `yaml:"proxy-url"`
}

type kubeUser struct {
	Token           string    `yaml:"token"`
	TokenFile       string    `yaml:"tokenFile"`
	Certificate     string    `yaml:"client-certificate"`
	CertificateData string    `yaml:"client-certificate-data"`
	Key             string    `yaml:"client-key"`
	KeyData         string    `yaml:"client-key-data"`
	Exec            yaml.Node `yaml:"exec"`
	AuthProvider    yaml.Node `yaml:"auth-provider"`
	Username        string    `yaml:"username"`
	As              string    `yaml:"as"`
}

// FromKubeconfig is the API server of a kubeconfig's current context.
func FromKubeconfig(path string) (Config, error) {
	c, err := fromKubeconfig(path)
	if err != nil {
		return Config{}, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return c, nil
}

func fromKubeconfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(text, &k); err != nil {
		return Config{}, err
	}
	if k.CurrentContext == "" {
		return Config{}, errors.New("it has no current-context; name one")
	}
	context, err := named("context", k.Contexts, k.CurrentContext)
	if err != nil {
		return Config{}, err
	}
	cluster, err := named("cluster", k.Clusters, context.Context.Cluster)
	if err != nil {
		return Config{}, err
	}
	user, err := named("user", k.Users, context.Context.User)
	if err != nil {
		return Config{}, err
	}
	c := Config{Proxy: http.ProxyFromEnvironment, TLS: &tls.Config{MinVersion: tls.VersionTLS12}}
	folder := filepath.Dir(path)
	if err := c.setCluster(cluster.Cluster, folder); err != nil {
		return Config{}, fmt.Errorf("cluster %q: %w", cluster.Name, err)
	}
	if err := c.setUser(user.User, folder); err != nil {
		return Config{}, fmt.Errorf("user %q: %w", user.Name, err)
	}
	return c, nil
}

func named(kind string, list []kubeNamed, name string) (kubeNamed, error) {
	for _, n := range list {
		if n.Name == name {
			return n, nil
		}
	}
	return kubeNamed{}, fmt.Errorf("it has no %s %q", kind, name)
}

func (c *Config) setCluster(k kubeCluster, folder string) error {
	server, err := url.Parse(k.Server)
	if err != nil || server.Host == "" {
		return fmt.Errorf("server %q is no URL; write it like https://10.0.0.1:6443", k.Server)
	}
	c.Server = k.Server
	c.TLS.ServerName, c.TLS.InsecureSkipVerify = k.ServerName, k.Insecure
	authority, err := content(k.AuthorityData, k.Authority, folder)
	if err == nil && authority != nil {
		c.TLS.RootCAs, err = pool(authority)
	}
	if err != nil {
		return fmt.Errorf("reading certificate-authority: %w", err)
	}
	if k.ProxyURL != "" {
		proxy, err := url.Parse(k.ProxyURL)
		if err != nil {
			return fmt.Errorf("proxy-url: %w", err)
		}
		c.Proxy = http.ProxyURL(proxy)
	}
	return nil
}

func (c *Config) setUser(k kubeUser, folder string) error {
	switch {
	case !k.Exec.IsZero():
		return errors.New(`its credentials come from another program ("exec"), which the agent does not run; give a token, tokenFile or client-certificate`)
	case !k.AuthProvider.IsZero():
		return errors.New(`its credentials come from an "auth-provider", which Kubernetes has given up; give a token, tokenFile or client-certificate`)
	case k.Username != "":
		return errors.New("it has a username and password, which API servers take no more; give a token, tokenFile or client-certificate")
	case k.As != "":
		return errors.New(`it asks to act as another user ("as"), which the agent does not do; give that user's own credentials`)
	}
	switch {
	case k.TokenFile != "":
		c.Token = tokenFile(inFolder(k.TokenFile, folder))
	case k.Token != "":
		c.Token = func() (string, error) { return k.Token, nil }
	}
	if k.Certificate == "" && k.CertificateData == "" {
		return nil
	}
	// Read for every connection: certificates in files are renewed.
	load := func() (tls.Certificate, error) {
		certificate, err := content(k.CertificateData, k.Certificate, folder)
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("reading client-certificate: %w", err)
		}
		key, err := content(k.KeyData, k.Key, folder)
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("reading client-key: %w", err)
		}
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("client-certificate and client-key: %w", err)
		}
		return pair, nil
	}
	c.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := load()
		return &pair, err
	}
	_, err := load()
	return err
}

// content is what stands in the kubeconfig in base64, or in a file beside it;
// nil when neither is given.
func content(data, file, folder string) ([]byte, error) {
	switch {
	case data != "":
		return base64.StdEncoding.DecodeString(data)
	case file != "":
		return os.ReadFile(inFolder(file, folder))
	}
	return nil, nil
}

func inFolder(file, folder string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(folder, file)
}
