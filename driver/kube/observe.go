package kubedriver

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sordino/clusters"
	"sordino/environment"
	"sordino/masq/kube"
	"sordino/reconcile"
)

// Observe implements [reconcile.Driver]. What is told of a node is the node's
// own word; what was changed of our objects counts against all nodes.
func (d *Driver) Observe(ctx context.Context, e *environment.Environment) (environment.Observed, error) {
	c, err := d.connect(e.Cluster)
	if err != nil {
		return environment.Observed{}, fmt.Errorf("%w: %w", reconcile.ErrUnreachable, err)
	}
	o, err := d.observe(ctx, c, e)
	if err != nil {
		return environment.Observed{}, fmt.Errorf("%w: %w", reconcile.ErrUnreachable, c.about(err))
	}
	return o, nil
}

func (d *Driver) observe(ctx context.Context, c *cluster, e *environment.Environment) (o environment.Observed, err error) {
	machines, err := c.nodes(ctx)
	if err != nil {
		return o, err
	}
	is, err := c.claimed(ctx)
	if err != nil {
		return o, err
	}
	if is == nil || is.uuid() != e.UUID || is.leaving() {
		for i := range machines {
			o.Nodes = append(o.Nodes, environment.ObservedNode{Name: machines[i].Metadata.Name, Network: machines[i].network(),
				Error: "the cluster is not claimed by this environment"})
		}
		return o, nil
	}
	s, err := is.state()
	if err != nil {
		return o, err
	}
	o.Generation, o.Proof, o.Checked = s.Generation, s.Proof, s.Checked
	drift, err := d.drifted(ctx, c, e)
	if err != nil {
		return o, err
	}
	workers, err := c.podsOf(ctx, workerSet)
	if err != nil {
		return o, err
	}
	if s.Nodes != digestOfNodes(machines, workers) {
		o.Generation = 0 // a worker that came later has sent no packet yet
	}
	_, rolling := c.progress(ctx, workerSet)
	var agents []pod
	if e.AgentEnabled() {
		if agents, err = c.podsOf(ctx, agentSet); err != nil {
			return o, err
		}
	}
	digest, now := digestOf(e.Agent.Text), d.Now()
	for i := range machines {
		m := &machines[i]
		n := environment.ObservedNode{Name: m.Metadata.Name, Network: m.network(), Error: m.notReady()}
		if e.AgentEnabled() {
			m.observe(&n)
			if m.Metadata.Annotations[kube.AnnotationConfig] == s.ConfigDigest {
				n.ConfigGeneration = s.ConfigGeneration
			}
			n.Error = cmp.Or(n.Error, m.outside(e), m.rejects(digest, now), c.podTrouble(agentSet, agents, n.Name, true), m.lacks(digest, now))
		}
		// Taints may keep workers off a node; the agent takes them all.
		n.Error = cmp.Or(n.Error, c.podTrouble(workerSet, workers, n.Name, rolling != nil), drift)
		n.Ready = n.Error == ""
		o.Nodes = append(o.Nodes, n)
	}
	return o, nil
}

// podTrouble is why a node's Pod of a set is not ready. It reads no log: many
// nodes may be looked at often.
func (c *cluster) podTrouble(s set, all []pod, node string, must bool) string {
	i := slices.IndexFunc(all, func(p pod) bool { return p.node() == node && p.Metadata.DeletionTimestamp == nil })
	switch {
	case i >= 0:
		trouble, _ := c.trouble(&all[i])
		return trouble
	case must:
		return fmt.Sprintf("there is no Pod of the %s on it", s)
	}
	return ""
}

// drifted says what of our objects is not as it was applied; empty when nothing.
func (d *Driver) drifted(ctx context.Context, c *cluster, e *environment.Environment) (string, error) {
	objects := append(d.workerObjects(e), claimNamespace(tenant{e.UUID, e.Name.String()}, d.Server))
	if e.AgentEnabled() {
		more, err := d.agentObjects(e)
		if err != nil {
			return "", err
		}
		objects = append(objects, more...)
	}
	found := make([]string, len(objects))
	errs := make([]error, len(objects))
	parallel(len(objects), func(i int) { found[i], errs[i] = c.driftOf(ctx, e.UUID, objects[i]) })
	for _, err := range errs {
		if err != nil {
			return "", err
		}
	}
	found = slices.DeleteFunc(found, func(s string) bool { return s == "" })
	return clusters.Some(found), nil
}

func (c *cluster) driftOf(ctx context.Context, uuid string, o *unstructured.Unstructured) (string, error) {
	label(o, uuid)
	is, err := c.find(ctx, o)
	switch {
	case err != nil:
		return "", err
	case is == nil:
		return fmt.Sprintf("the %s is gone", nameOf(o)), nil
	case !ours(is, uuid):
		return fmt.Sprintf("the %s is not this environment's any more: %s", nameOf(o), whose(is, nil)), nil
	}
	differs, err := c.drift(ctx, o, is)
	switch {
	case apierrors.IsInvalid(err):
		return fmt.Sprintf("the %s was changed: %v", nameOf(o), err), nil
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return fmt.Sprintf("the %s changes at the moment", nameOf(o)), nil
	case err != nil:
		return "", fmt.Errorf("comparing %s: %w", nameOf(o), err)
	case differs != "":
		return fmt.Sprintf("the %s was changed: %s", nameOf(o), differs), nil
	}
	return "", nil
}
