package access

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Certificate is the server's certificate in two files, read again when they
// change. A pair that does not fit leaves the last good one in use.
type Certificate struct {
	certFile, keyFile string
	now               func() time.Time
	log               *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	version [2]fileVersion
	pair    *tls.Certificate
}

// LoadCertificate reads the pair, which must be good to begin with.
func LoadCertificate(certFile, keyFile string, now func() time.Time, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, now: now, log: log, looked: now()}
	var err error
	if c.version, err = c.versions(); err == nil {
		c.pair, err = c.read()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the server's certificate: %w", err)
	}
	return c, nil
}

func (c *Certificate) versions() (v [2]fileVersion, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return v, err
		}
		v[i] = fileVersion{info.ModTime(), info.Size()}
	}
	return v, nil
}

func (c *Certificate) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	return &pair, err
}

// Config is what a TLS server needs.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current(), nil }}
}

func (c *Certificate) current() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if now.Sub(c.looked) < recheck {
		return c.pair
	}
	c.looked = now
	version, err := c.versions()
	if err == nil && version == c.version {
		return c.pair
	}
	if err == nil {
		c.version = version
		var pair *tls.Certificate
		if pair, err = c.read(); err == nil {
			c.pair = pair
			c.log.Info("the server's certificate was read again", "file", c.certFile)
			return c.pair
		}
	}
	c.log.Error("the server's new certificate was not taken over; the last good one stays in use", "error", err)
	return c.pair
}
