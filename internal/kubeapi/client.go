package kubeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Ref names objects: one when it has a name, else all of the resource, within
// the namespace if there is one.
type Ref struct {
	Group, Version, Resource string // "networking.k8s.io", "v1", "servicecidrs"
	Namespace, Name          string
	Subresource              string // "status"
}

// The resources that more than one package needs.
var (
	ConfigMaps   = Ref{Version: "v1", Resource: "configmaps"}
	Nodes        = Ref{Version: "v1", Resource: "nodes"}
	Events       = Ref{Version: "v1", Resource: "events"}
	ServiceCIDRs = Ref{Group: "networking.k8s.io", Version: "v1", Resource: "servicecidrs"}
)

// In, Named and Sub narrow a reference down.
func (r Ref) In(namespace string) Ref    { r.Namespace = namespace; return r }
func (r Ref) Named(name string) Ref      { r.Name = name; return r }
func (r Ref) Sub(subresource string) Ref { r.Subresource = subresource; return r }

func (r Ref) String() string {
	name := r.Name
	if name != "" && r.Namespace != "" {
		name = r.Namespace + "/" + name
	} else if name == "" && r.Namespace != "" {
		name = "in " + r.Namespace
	}
	return strings.TrimSpace(r.rbac() + " " + name)
}

// rbac is the resource as RBAC names it.
func (r Ref) rbac() string {
	if r.Subresource != "" {
		return r.Resource + "/" + r.Subresource
	}
	return r.Resource
}

func (r Ref) path() string {
	parts := []string{"/apis", r.Group, r.Version}
	if r.Group == "" {
		parts = []string{"/api", r.Version}
	}
	if r.Namespace != "" {
		parts = append(parts, "namespaces", url.PathEscape(r.Namespace))
	}
	parts = append(parts, r.Resource)
	if r.Name != "" {
		parts = append(parts, url.PathEscape(r.Name))
	}
	if r.Subresource != "" {
		parts = append(parts, r.Subresource)
	}
	return strings.Join(parts, "/")
}

// Client talks to one API server. It is for concurrent use.
type Client struct {
	config    Config
	userAgent string
	log       *slog.Logger
	http      *http.Client
	transport *http.Transport

	mu     sync.Mutex
	health Health
}

// Health is how it goes with the API server.
type Health struct {
	// LastContact is when it last answered, or sent something in a watch.
	LastContact time.Time
	// WatchRestarts counts the watches that broke and were begun anew.
	WatchRestarts uint64
}

const (
	// callTime bounds everything but a watch.
	callTime = 10 * time.Second
	// maxBody bounds an answer: etcd takes objects of 1.5 MiB by default.
	maxBody = 32 << 20
)

// New makes a client. The user agent also names the manager of fields.
func New(c Config, userAgent string, log *slog.Logger) *Client {
	dialer := net.Dialer{Timeout: callTime, KeepAliveConfig: net.KeepAliveConfig{
		// A server that went without a word is noticed after half a minute, also
		// by a watch in which nothing is said.
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	t := &http.Transport{
		Proxy: c.Proxy, DialContext: dialer.DialContext, TLSClientConfig: c.TLS, TLSHandshakeTimeout: callTime,
		ResponseHeaderTimeout: callTime, IdleConnTimeout: time.Minute, MaxIdleConns: 2,
		ReadBufferSize: 2048, WriteBufferSize: 2048,
	}
	// Never HTTP/2, whatever the build: its buffers are most of a small client.
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	return &Client{config: c, userAgent: userAgent, log: log, http: &http.Client{Transport: t}, transport: t}
}

// Server is the API server's URL.
func (c *Client) Server() string { return c.config.Server }

// Close lets go of idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Health tells how it goes.
func (c *Client) Health() Health {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.health
}

func (c *Client) contact() {
	c.mu.Lock()
	c.health.LastContact = time.Now()
	c.mu.Unlock()
}

// Get reads one object.
func (c *Client) Get(ctx context.Context, ref Ref, into any) error {
	return c.call(ctx, "get", http.MethodGet, ref, nil, "", nil, into)
}

// Create makes an object. Into may be nil.
func (c *Client) Create(ctx context.Context, ref Ref, object, into any) error {
	ref.Name = ""
	return c.call(ctx, "create", http.MethodPost, ref, nil, "application/json", object, into)
}

// PatchKind is how a patch is meant.
type PatchKind string

// The kinds of patches that the API knows by content type.
const (
	MergePatch     PatchKind = "application/merge-patch+json"
	StrategicMerge PatchKind = "application/strategic-merge-patch+json"
)

// Patch changes an object. Into may be nil.
func (c *Client) Patch(ctx context.Context, ref Ref, kind PatchKind, patch, into any) error {
	manager, _, _ := strings.Cut(c.userAgent, "/")
	return c.call(ctx, "patch", http.MethodPatch, ref, url.Values{"fieldManager": {manager}}, string(kind), patch, into)
}

func (c *Client) call(ctx context.Context, verb, method string, ref Ref, query url.Values, contentType string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%s %s: %w", verb, ref, err)
		}
		content = bytes.NewReader(text)
	}
	response, err := c.do(ctx, verb, method, ref, query, contentType, content)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if into == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(response.Body, maxBody))
	} else {
		err = json.NewDecoder(io.LimitReader(response.Body, maxBody)).Decode(into)
		// To its end, or the connection is not used again.
		_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, maxBody))
	}
	if err != nil {
		return fmt.Errorf("%s %s: reading the answer: %w", verb, ref, err)
	}
	return nil
}

// do asks, and makes an error of every refusal.
func (c *Client) do(ctx context.Context, verb, method string, ref Ref, query url.Values, contentType string, body io.Reader) (*http.Response, error) {
	address := strings.TrimSuffix(c.config.Server, "/") + ref.path()
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", verb, ref, err)
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", c.userAgent)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	if c.config.Token != nil {
		token, err := c.config.Token()
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", verb, ref, err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		// The URL says nothing that the reference does not.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, fmt.Errorf("%s %s at %s: %w", verb, ref, c.config.Server, err)
	}
	c.log.Debug("asked the API server", "verb", verb, "of", ref.String(), "answer", response.StatusCode)
	c.contact()
	if response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	return nil, refused(verb, ref, response, text)
}
