package testserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Client asks a server over REST: one connection for each call that is under
// way, kept for the next.
type Client struct {
	URL, Token string
	HTTP       *http.Client // without the token
}

// NewClient is a client of the server at a URL. Close its HTTP's idle
// connections at the end.
func NewClient(url, token string) *Client {
	return &Client{url, token, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: time.Minute}}
}

// Do sends a request, its path as it is written, and reads the whole answer. The
// token goes with it unless a header, a name and a value in turns, says
// otherwise.
func (c *Client) Do(ctx context.Context, method, path, body string, header ...string) (*http.Response, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.URL, strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	path, query, _ := strings.Cut(path, "?")
	r.URL.Opaque, r.URL.RawQuery = path, query
	r.Header.Set("Authorization", "Bearer "+c.Token)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := c.HTTP.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response, answer, err
}

// Refused is a call that the server did not answer with what was asked for.
type Refused struct {
	Method, Path string
	Status       int
	Answer       []byte
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s %s: %d %s\n%s", r.Method, r.Path, r.Status, http.StatusText(r.Status), r.Answer)
}

// Ask makes a call that the server does not refuse, and returns the answer.
func (c *Client) Ask(ctx context.Context, method, path, body string) ([]byte, error) {
	response, answer, err := c.Do(ctx, method, path, body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = &Refused{method, path, response.StatusCode, answer}
	}
	return answer, err
}

// Call is Ask, with the answer decoded.
func (c *Client) Call(ctx context.Context, method, path, body string, out any) error {
	answer, err := c.Ask(ctx, method, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: %w in %s", method, path, err, answer)
	}
	return nil
}

// Operation is one as the API tells it.
type Operation struct {
	Name     string
	Done     bool
	Error    *struct{ Message string }
	Metadata struct {
		CreateTime, EndTime time.Time
		Steps               []struct {
			Name, State, Detail string
			StartTime, EndTime  time.Time
		}
	}
}

// Succeeded is how many steps have.
func (o Operation) Succeeded() (n int) {
	for _, s := range o.Metadata.Steps {
		if s.State == "SUCCESSFUL" {
			n++
		}
	}
	return n
}

// Detail is what a step says of its outcome.
func (o Operation) Detail(step string) string {
	for _, s := range o.Metadata.Steps {
		if s.Name == step {
			return s.Detail
		}
	}
	return ""
}

// Operation is what has come of one so far.
func (c *Client) Operation(ctx context.Context, name string) (o Operation, err error) {
	err = c.Call(ctx, "GET", "/v1/"+name, "", &o)
	return o, err
}

// operationTime is how long an operation may take: one on nodes that pull
// nothing takes seconds.
const operationTime = 4 * time.Minute

// Wait waits until an operation has ended well. Benchmarks time it: it is late
// by a two-hundredth, and some milliseconds.
func (c *Client) Wait(ctx context.Context, name string) (Operation, error) {
	for began := time.Now(); ; {
		o, err := c.Operation(ctx, name)
		took := time.Since(began)
		switch {
		case err != nil:
			return o, err
		case o.Error != nil:
			return o, fmt.Errorf("the operation %s failed: %s", name, o.Error.Message)
		case o.Done:
			return o, nil
		case took > operationTime:
			return o, fmt.Errorf("the operation %s has not ended after %v: %+v", name, operationTime, o)
		}
		select {
		case <-ctx.Done():
			return o, ctx.Err()
		case <-time.After(max(time.Millisecond, min(took/200, 50*time.Millisecond))):
		}
	}
}

// MasqAgent is an environment's agent as our own API tells it.
type MasqAgent struct {
	InForce   bool
	Proof     string
	ProofTime time.Time
	Nodes     []struct {
		Name, Address, PodCIDR, Hash, Error string
		Ready                               bool
	}
}

// MasqAgent is the agent of an environment by its full name.
func (c *Client) MasqAgent(ctx context.Context, environment string) (m MasqAgent, err error) {
	err = c.Call(ctx, "GET", "/v1/"+environment+"/masqAgent", "", &m)
	return m, err
}
