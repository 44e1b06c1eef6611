// Package client reaches a Sordino server: Composer's API by Google's own
// generated client, and the services of our own by gRPC, on the same port with
// the same token.
//
// It owns how a server is found and proven ([Options]) and how an operation is
// waited for. It refuses to send a token in the clear to another machine.
//
// To debug it, run the command with --log-http, which prints every request.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"time"

	composer "google.golang.org/api/composer/v1beta1"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	masqv1 "sordino/api/sordino/masq/v1"
	workerv1 "sordino/api/sordino/worker/v1"
	"sordino/internal/loopback"
)

// Options say which server, and who asks.
type Options struct {
	// Server is its URL: http://127.0.0.1:8080 or https://sordino.example.com.
	Server string
	Token  string
	// CAFile holds the certificates to trust instead of the machine's; empty is
	// the machine's.
	CAFile string
	// LogHTTP gets every request and answer of Composer's API, without the
	// token; nil is nobody.
	LogHTTP io.Writer
}

// Client is a connection to a server.
type Client struct {
	Composer *composer.Service
	Masq     masqv1.MasqAgentsClient
	Workers  workerv1.WorkersClient

	conn      *grpc.ClientConn
	transport *http.Transport
}

// New prepares a client; nothing is sent yet.
func New(ctx context.Context, o Options) (*Client, error) {
	u, err := url.Parse(o.Server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("the server %q: write a URL such as http://127.0.0.1:8080", o.Server)
	}
	target := u.Host
	if u.Port() == "" {
		target += map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	}
	if u.Scheme == "http" && o.Token != "" && !loopback.Only(target) {
		return nil, fmt.Errorf("the server %s: a token is not sent in the clear to another machine; use https", o.Server)
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute}
	transportCredentials := insecure.NewCredentials()
	if u.Scheme == "https" {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if o.CAFile != "" {
			pem, err := os.ReadFile(o.CAFile)
			if err != nil {
				return nil, fmt.Errorf("reading the certificates to trust: %w", err)
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("the file %s holds no certificate in PEM form", o.CAFile)
			}
		}
		transport.TLSClientConfig, transportCredentials = config, credentials.NewTLS(config.Clone())
	}
	c := &Client{transport: transport}
	c.Composer, err = composer.NewService(ctx, option.WithHTTPClient(&http.Client{Transport: authorized{o, transport}}), option.WithEndpoint(strings.TrimSuffix(o.Server, "/")+"/"))
	if err != nil {
		return nil, err
	}
	c.conn, err = grpc.NewClient(target, grpc.WithTransportCredentials(transportCredentials), grpc.WithPerRPCCredentials(bearer(o.Token)))
	if err != nil {
		return nil, fmt.Errorf("reaching the server %s: %w", o.Server, err)
	}
	c.Masq, c.Workers = masqv1.NewMasqAgentsClient(c.conn), workerv1.NewWorkersClient(c.conn)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return c.conn.Close()
}

// bearer is a token as gRPC wants it. New has seen to it that it goes by TLS
// or stays on this machine.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if b == "" {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// authorized adds the token to requests, after they were logged.
type authorized struct {
	Options
	next http.RoundTripper
}

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.LogHTTP != nil {
		if text, err := httputil.DumpRequestOut(r, true); err == nil {
			fmt.Fprintf(a.LogHTTP, "%s\n\n", text)
		}
	}
	r = r.Clone(r.Context())
	if a.Token != "" {
		r.Header.Set("Authorization", "Bearer "+a.Token)
	}
	response, err := a.next.RoundTrip(r)
	if err == nil && a.LogHTTP != nil {
		if text, err := httputil.DumpResponse(response, true); err == nil {
			fmt.Fprintf(a.LogHTTP, "%s\n\n", text)
		}
	}
	return response, err
}

// Waiting is told how far an operation is.
type Waiting func(*composer.Operation)

// OperationError is an operation that ended in an error.
type OperationError struct {
	Name   string
	Status *composer.Status
}

func (e *OperationError) Error() string {
	return fmt.Sprintf("operation %s failed: %s", e.Name, e.Status.Message)
}

// ErrStillRunning says that nobody waits any more for an operation that goes on.
var ErrStillRunning = errors.New("no longer waiting for the operation, which goes on")

// Wait polls an operation until it has ended: soon at first, then every two
// seconds. When the context ends, the operation goes on: [ErrStillRunning].
func (c *Client) Wait(ctx context.Context, op *composer.Operation, told Waiting) (*composer.Operation, error) {
	pause := 50 * time.Millisecond
	var away time.Time // since when the server does not answer
	for {
		if told != nil {
			told(op)
		}
		if op.Done {
			if op.Error != nil {
				return op, &OperationError{op.Name, op.Error}
			}
			return op, nil
		}
		select {
		case <-ctx.Done():
			return op, fmt.Errorf("%w: %s", ErrStillRunning, op.Name)
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
		next, err := c.Composer.Projects.Locations.Operations.Get(op.Name).Context(ctx).Do()
		switch {
		case err == nil:
			op, away = next, time.Time{}
		case ctx.Err() != nil: // said above
		case transient(err) && (away.IsZero() || time.Since(away) < patience):
			// The server restarts: what it accepted it goes on with.
			if away.IsZero() {
				away = time.Now()
			}
		default:
			return op, err
		}
	}
}

// patience is how long a server may be away while an operation is waited for.
const patience = 2 * time.Minute

// transient reports whether asking again can help.
func transient(err error) bool {
	var unreachable *url.Error
	var answer *googleapi.Error
	return errors.As(err, &unreachable) || errors.As(err, &answer) && (answer.Code == http.StatusTooManyRequests || answer.Code >= 500)
}
