// Package labdriver makes an environment's cluster on this machine: a lab of
// network namespaces with a Pod of Airflow on every node and, where it is
// enabled, the real agent.
//
// It owns what a cluster is made of ([Spec], the agents' flags, the proof) and
// the steps to it. Namespaces and processes belong to the lab host, which
// outlives the server: the driver keeps nothing itself, so that the next one
// finds all as it was.
//
// It refuses to call a cluster good that it did not see work: the last step
// sends a packet from every node's Pod and compares whom the other side saw
// with what the agent's configuration means.
//
// To debug it: "sordino lab status --data DIR" lists the clusters, "sordino lab
// exec --data DIR --lab UUID node-1 -- CMD" enters one, DIR/host.log tells of
// agents that ended.
package labdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sordino/driver"
	"sordino/environment"
	"sordino/environment/address"
	"sordino/internal/count"
	"sordino/lab"
	"sordino/lab/host"
	"sordino/reconcile"
)

// Options are what a Driver is made of.
type Options struct {
	// Dir is the data folder; the lab host's files are in it.
	Dir string
	// AgentBinary is the ip-masq-agent program, an absolute path.
	AgentBinary string
	Now         func() time.Time
	Log         *slog.Logger
}

// Driver is a [reconcile.Driver].
type Driver struct{ Options }

var _ reconcile.Driver = (*Driver)(nil)

// New returns a Driver. It starts nothing before there is something to make.
func New(o Options) *Driver { return &Driver{o} }

// The notes that a cluster carries in the host.
const (
	noteName    = "name"
	noteState   = "state"
	noteVersion = "generation" // an agent's: the AgentConfig's
)

// state is what a cluster's note tells of it.
type state struct {
	Generation int64     `json:"generation"`
	Proof      string    `json:"proof"`
	Checked    time.Time `json:"checked"`
}

// Limits of time. They end in an error that is tried again.
const (
	buildTime = time.Minute
	agentTime = 30 * time.Second
	proofTime = 15 * time.Second
)

// Ensure implements [reconcile.Driver]. A first configuration of the agents
// reaches all nodes at once; later ones go from node to node, and the first
// that rejects it stops them.
func (d *Driver) Ensure(e *environment.Environment) []reconcile.Step {
	steps := []reconcile.Step{{Name: "build the network", Do: driver.Bounded(buildTime, func(ctx context.Context) (string, error) {
		return d.build(ctx, e)
	})}}
	if e.AgentEnabled() {
		steps = append(steps, reconcile.Step{Name: "start the agents", Do: driver.Bounded(agentTime, func(ctx context.Context) (string, error) {
			return d.startAgents(ctx, e)
		})})
		for i := range e.Plan.NodeAddresses {
			if e.Agent.Generation <= 1 {
				break
			}
			node := nodeName(i)
			steps = append(steps, reconcile.Step{Name: "configure the agent of " + node, Do: driver.Bounded(agentTime, func(ctx context.Context) (string, error) {
				return d.configure(ctx, e, node)
			})})
		}
	}
	return append(steps, reconcile.Step{Name: "prove it with a packet", Do: driver.Bounded(proofTime, func(ctx context.Context) (string, error) {
		return d.prove(ctx, e)
	})})
}

func (d *Driver) build(ctx context.Context, e *environment.Environment) (string, error) {
	spec, err := Spec(e.Plan)
	if err != nil {
		return "", err
	}
	c, err := host.Connect(ctx, d.Dir)
	if err != nil {
		return "", err
	}
	changes, err := c.Apply(ctx, e.UUID, spec)
	if err != nil {
		return "", fmt.Errorf("building the network: %w", err)
	}
	if err := c.Note(ctx, e.UUID, map[string]string{noteName: e.Name.String()}); err != nil {
		return "", err
	}
	detail := fmt.Sprintf("%s with a worker Pod each", count.Of(len(spec.Nodes), "node"))
	if len(changes) == 0 {
		detail += ", there already"
	}
	return detail, nil
}

// agent is what is to run on every node of an environment.
func (d *Driver) agent(e *environment.Environment) host.Agent {
	a := host.Agent{Binary: d.AgentBinary, Notes: map[string]string{noteVersion: strconv.FormatInt(e.Agent.Generation, 10)}}
	for _, r := range []struct {
		flag string
		kind address.Kind
	}{{"--node-cidrs=", address.Nodes}, {"--pod-cidrs=", address.Pods}, {"--service-cidrs=", address.Services}} {
		if p := e.Plan.Range(r.kind); p.IsValid() {
			a.Flags = append(a.Flags, r.flag+p.String())
		}
	}
	if e.Agent.Text != "" {
		a.Config = &e.Agent.Text
	}
	return a
}

// startAgents starts those that do not run. Those that run keep their
// configuration unless it is the first one.
func (d *Driver) startAgents(ctx context.Context, e *environment.Environment) (string, error) {
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return "", err
	}
	is, err := c.Lab(ctx, e.UUID)
	if err != nil {
		return "", err
	}
	want := d.agent(e)
	var told []string
	var mu sync.Mutex
	err = driver.Each(is.Spec.Nodes, func(n lab.Node) error {
		if has, ok := is.Agents[n.Name]; ok && e.Agent.Generation > 1 && slices.Equal(has.Agent.Flags, want.Flags) && has.PID != 0 {
			return nil
		}
		detail, err := d.set(ctx, c, e, n.Name, want)
		if err == nil && detail != "" {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, detail)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	slices.Sort(told)
	return strings.Join(append([]string{count.Of(len(is.Spec.Nodes), "agent") + " running"}, slices.Compact(told)...), "; "), nil
}

func (d *Driver) configure(ctx context.Context, e *environment.Environment, node string) (string, error) {
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return "", err
	}
	return d.set(ctx, c, e, node, d.agent(e))
}

// set gives a node its agent and waits until that has taken it in.
func (d *Driver) set(ctx context.Context, c *host.Client, e *environment.Environment, node string, want host.Agent) (string, error) {
	if err := c.SetAgent(ctx, e.UUID, node, want); err != nil {
		return "", fmt.Errorf("%s: %w", node, err)
	}
	began := time.Now()
	is, err := c.Await(ctx, e.UUID, node)
	if errors.Is(err, context.DeadlineExceeded) {
		late, lookErr := c.Lab(context.WithoutCancel(ctx), e.UUID)
		if a := late.Agents[node]; lookErr == nil {
			return "", fmt.Errorf("%s: the agent has not taken its configuration in after %v: %s", node, time.Since(began).Round(100*time.Millisecond), trouble(a))
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", node, err)
	}
	if reason := rejection(is); reason != "" {
		return "", driver.ConfigRejected(node, reason)
	}
	return strings.Join(findings(is), "; "), nil
}

// rejection is why an agent does not take its configuration; empty when it does.
func rejection(a host.AgentStatus) string {
	if a.Status == nil || !a.Arrived {
		return ""
	}
	reason := a.Status.ConfigError
	if reason == "" {
		reason = a.Status.PlanError
	}
	return readable(reason)
}

// readable names an agent's configuration file as the ConfigMap does: the
// folder in the host is nobody's to know, and a candidate has none.
func readable(text string) string {
	return driver.Readable(host.WithoutFolders(text))
}

// trouble is what keeps a node from holding what it should.
func trouble(a host.AgentStatus) string {
	switch s := a.Status; {
	case a.PID == 0 && a.LastExit != "":
		return fmt.Sprintf("the agent does not run: %s; the end of its log: %s", a.LastExit, lastLine(a.Log))
	case a.PID == 0:
		return "the agent does not run"
	case s == nil:
		return "the agent does not answer; the end of its log: " + lastLine(a.Log)
	case rejection(a) != "":
		return rejection(a)
	case s.LastError != "":
		return s.LastError
	case !a.Arrived:
		return "the agent has not looked at its new configuration yet"
	case !a.Settled:
		return "the kernel does not hold the rules yet"
	}
	return ""
}

func lastLine(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return lines[len(lines)-1]
}

func findings(a host.AgentStatus) []string {
	var out []string
	if a.Status != nil {
		for _, w := range a.Status.Warnings {
			out = append(out, readable(w))
		}
		for _, f := range a.Status.Findings {
			out = append(out, string(f.Code)+": "+readable(f.Message))
		}
	}
	return out
}

// Remove implements [reconcile.Driver].
func (d *Driver) Remove(e *environment.Environment) []reconcile.Step {
	return []reconcile.Step{{Name: "take the cluster away", Do: driver.Bounded(buildTime, func(ctx context.Context) (string, error) {
		removed, err := d.remove(ctx, e.UUID)
		if err != nil {
			return "", fmt.Errorf("taking the cluster away: %w", err)
		}
		if !removed {
			return "there is none", nil
		}
		return "", nil
	})}}
}

func (d *Driver) remove(ctx context.Context, uuid string) (bool, error) {
	c, err := host.Dial(ctx, d.Dir)
	if errors.Is(err, host.ErrNoHost) {
		return false, nil // nothing outlives a host
	}
	if err != nil {
		return false, err
	}
	return c.Remove(ctx, uuid)
}

// Observe implements [reconcile.Driver].
func (d *Driver) Observe(ctx context.Context, e *environment.Environment) (environment.Observed, error) {
	var o environment.Observed
	is, err := d.lab(ctx, e.UUID)
	gone := errors.Is(err, host.ErrMissing) || errors.Is(err, host.ErrNoHost)
	if err != nil && !gone {
		return o, err
	}
	var s state
	if text := is.Notes[noteState]; text != "" {
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return o, fmt.Errorf("reading the cluster's note: %w", err)
		}
	}
	o.Generation, o.Proof, o.Checked = s.Generation, s.Proof, s.Checked
	want := d.agent(e)
	for i := range e.Plan.NodeAddresses {
		n := environment.ObservedNode{Name: nodeName(i)}
		a, has := is.Agents[n.Name]
		switch {
		case gone || !slices.Contains(is.Namespaces, n.Name):
			n.Error = "the node is not there"
		case !e.AgentEnabled():
			n.Ready = true
		case !has:
			n.Error = "the agent does not run"
		default:
			n.ConfigGeneration, _ = strconv.ParseInt(a.Agent.Notes[noteVersion], 10, 64)
			if s := a.Status; s != nil {
				n.DesiredGeneration, n.AppliedGeneration, n.Hash = s.Generation, s.AppliedGeneration, s.AppliedHash
			}
			n.Findings, n.Error = findings(a), trouble(a)
			if n.Error == "" && !maps.Equal(a.Agent.Notes, want.Notes) {
				n.Error = fmt.Sprintf("the agent was given generation %d of its configuration, not %d", n.ConfigGeneration, e.Agent.Generation)
			}
			n.Ready = n.Error == ""
		}
		o.Nodes = append(o.Nodes, n)
	}
	return o, nil
}

func (d *Driver) lab(ctx context.Context, uuid string) (host.Status, error) {
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return host.Status{}, err
	}
	return c.Lab(ctx, uuid)
}

// Prune implements [reconcile.Driver].
func (d *Driver) Prune(ctx context.Context, keep map[string]bool) ([]string, error) {
	c, err := host.Dial(ctx, d.Dir)
	if errors.Is(err, host.ErrNoHost) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	labs, err := c.Labs(ctx)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, l := range labs {
		if keep[l.ID] {
			continue
		}
		if _, err := c.Remove(ctx, l.ID); err != nil {
			return removed, fmt.Errorf("removing the cluster of no environment, %s: %w", l.ID, err)
		}
		removed = append(removed, l.ID)
	}
	slices.Sort(removed)
	return removed, nil
}

// Between two attempts to reach a host that went away.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Watch implements [reconcile.Driver]. It starts the lab host, and starts it
// again when it ends.
func (d *Driver) Watch(ctx context.Context, changed func(uuid string)) error {
	retry := firstRetry
	for {
		c, err := host.Connect(ctx, d.Dir)
		if err == nil {
			err = c.Watch(ctx, func() {
				retry = firstRetry
				changed("") // whatever happened before somebody listened
			}, changed)
		}
		if ctx.Err() != nil {
			return nil
		}
		d.Log.Warn("the lab host is gone; it is started again, and the clusters are built again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
			retry = min(2*retry, lastRetry)
		}
	}
}
