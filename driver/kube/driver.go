// Package kubedriver makes environments on existing Kubernetes clusters: the
// claim of a cluster, the agent on every node, a worker Pod beside it, and the
// proof that they are seen as their nodes.
//
// It owns the namespace of the claim and every object that bears the label
// sordino.dev/environment, and applies them by server-side apply as the field
// manager "sordino". What others changed of them is put right, and told. The
// agent's manifests are package deploy's, what agents say on their Nodes is
// docs/kubernetes.md's.
//
// It refuses to overwrite what is somebody else's, and to take a cluster that
// is claimed by another environment. It keeps nothing in memory: the claim's
// annotations have what the next server needs.
//
// To debug it: the operation's steps say what they wait for;
// "kubectl get namespace sordino -o yaml" has the claim,
// "kubectl get all,configmaps -A -l sordino.dev/environment" what was applied.
package kubedriver

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"sordino/clusters"
	"sordino/driver"
	"sordino/environment"
	"sordino/internal/count"
	"sordino/reconcile"
)

// Options are what a Driver is made of.
type Options struct {
	Clusters *clusters.Clusters
	// AgentImage and SordinoImage are the programs' images, as nodes pull them.
	AgentImage, SordinoImage string
	// Server tells this server's claims from other servers'. It stays the same
	// for a data folder; at most 63 letters, digits and dashes.
	Server string
	Now    func() time.Time
	Log    *slog.Logger
}

// Driver is a [reconcile.Driver].
type Driver struct{ Options }

var _ reconcile.Driver = (*Driver)(nil)

// New returns a Driver. It connects to nothing before there is something to do.
func New(o Options) *Driver { return &Driver{o} }

// Limits of time of one attempt. They end in an error that says what is missing
// and is tried again.
const (
	applyTime = 20 * time.Second
	waitTime  = 30 * time.Second
	// askTime is for nodes that are asked at once: a probe takes up to 5 seconds.
	askTime = 8 * time.Second
)

// limit is that of a step that waits for all nodes, or asks them.
func limit(e *environment.Environment) time.Duration {
	nodes := max(len(e.Plan.NodeAddresses), len(e.Observed.Nodes))
	return waitTime + time.Duration(nodes/atOnce)*askTime
}

// step is one on the environment's cluster.
func (d *Driver) step(e *environment.Environment, name string, limit time.Duration, do func(context.Context, *cluster) (string, error)) reconcile.Step {
	return reconcile.Step{Name: name, Do: driver.Bounded(limit, func(ctx context.Context) (string, error) {
		c, err := d.connect(e.Cluster)
		if err != nil {
			return "", err
		}
		detail, err := do(ctx, c)
		return detail, c.about(err)
	})}
}

// Ensure implements [reconcile.Driver].
func (d *Driver) Ensure(e *environment.Environment) []reconcile.Step {
	steps := []reconcile.Step{d.step(e, "claim the cluster", applyTime, func(ctx context.Context, c *cluster) (string, error) {
		return d.claimFor(ctx, c, tenant{e.UUID, e.Name.String()})
	})}
	if e.AgentEnabled() {
		steps = append(steps, d.step(e, "apply the agent", applyTime, func(ctx context.Context, c *cluster) (string, error) {
			return d.applyAgent(ctx, c, e)
		}))
	}
	// The workers' gates wait for the agents.
	steps = append(steps, d.step(e, "apply the workers", applyTime, func(ctx context.Context, c *cluster) (string, error) {
		return d.applyWorkers(ctx, c, e)
	}))
	if e.AgentEnabled() {
		steps = append(steps, d.step(e, "wait for the agents", limit(e), func(ctx context.Context, c *cluster) (string, error) {
			return d.awaitAgents(ctx, c, e)
		}))
	}
	return append(steps,
		d.step(e, "wait for the workers", limit(e), func(ctx context.Context, c *cluster) (string, error) {
			return d.awaitWorkers(ctx, c)
		}),
		d.step(e, "prove it with a packet", limit(e), func(ctx context.Context, c *cluster) (string, error) {
			return d.prove(ctx, c, e)
		}))
}

// told logs what was changed of an environment's objects, and is it as a step's
// detail.
func (d *Driver) told(c *cluster, environment string, changes []string) string {
	detail := ""
	for _, change := range changes {
		d.Log.Warn("drift", "environment", environment, "cluster", c.Name, "what", change)
		detail += "; " + change
	}
	return detail
}

func onNodes(what string, n int) string {
	return fmt.Sprintf("%s on %s", what, count.Of(n, "node"))
}
