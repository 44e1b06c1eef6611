package kubedriver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sordino/clusters"
	"sordino/deploy"
	"sordino/environment"
	"sordino/reconcile"
)

// Remove implements [reconcile.Driver]. What is the environment's is told by
// its label and by the claim, which goes last: until then the next attempt, of
// this server or of another, finds what there is to do.
func (d *Driver) Remove(e *environment.Environment) []reconcile.Step {
	if d.Clusters.ByName(e.Cluster) == nil {
		// Perhaps it is no more: its environment must be deletable all the same.
		return []reconcile.Step{{Name: "leave the cluster as it is", Do: func(context.Context) (string, error) {
			detail := fmt.Sprintf("the cluster %s is not declared any more: nothing was removed from it", e.Cluster)
			d.Log.Warn("a cluster is left as it is", "environment", e.Name.String(), "cluster", e.Cluster, "why", detail)
			return detail, nil
		}}}
	}
	t := tenant{uuid: e.UUID, name: e.Name.String()}
	var steps []reconcile.Step
	for _, s := range d.removal(t) {
		steps = append(steps, d.step(e, s.name, limit(e), s.do))
	}
	return steps
}

// tenant is whose cluster it is that is given back.
type tenant struct{ uuid, name string }

type removalStep struct {
	name string
	do   func(context.Context, *cluster) (string, error)
}

func (d *Driver) removal(t tenant) []removalStep {
	return []removalStep{
		{"take the workers away", func(ctx context.Context, c *cluster) (string, error) { return d.removeWorkers(ctx, c, t) }},
		{"take the agents away", func(ctx context.Context, c *cluster) (string, error) { return d.removeAgent(ctx, c, t) }},
		{"take the rules away", func(ctx context.Context, c *cluster) (string, error) { return d.clean(ctx, c, t) }},
		{"prove it with a packet", func(ctx context.Context, c *cluster) (string, error) { return d.proveClean(ctx, c, t) }},
		{"give the cluster back", func(ctx context.Context, c *cluster) (string, error) { return d.giveBack(ctx, c, t) }},
	}
}

// none is true of an attempt that finds what an earlier one has done, too.
const none = "there is none"

// held is what the claim says, if it is the tenant's.
func (c *cluster) held(ctx context.Context, t tenant) (s state, held bool, err error) {
	is, err := c.claimed(ctx)
	if err != nil || is == nil || is.uuid() != t.uuid {
		return s, false, err
	}
	s, err = is.state()
	return s, true, err
}

func (d *Driver) removeWorkers(ctx context.Context, c *cluster, t tenant) (string, error) {
	if err := d.claimAgain(ctx, c, t); err != nil {
		return "", err
	}
	removed, err := c.remove(ctx, t.uuid, d.workers(workerSet, false))
	if err != nil {
		return "", err
	}
	if _, held, err := c.held(ctx, t); err != nil || !held {
		return none, err
	}
	return detailOf(removed), c.gone(ctx, workerSet)
}

func detailOf(removed bool) string {
	if removed {
		return ""
	}
	return none
}

// claimAgain claims a cluster whose claim is gone and that still has something
// of the tenant's, or rules that are nobody's: they are not cleaned up while
// somebody else could take the cluster.
func (d *Driver) claimAgain(ctx context.Context, c *cluster, t tenant) error {
	is, err := c.claimed(ctx)
	if err != nil || is != nil {
		return err
	}
	agent, err := get[daemonSet](ctx, c, daemonSets, agentSet.namespace, agentSet.name)
	if err != nil {
		return err
	}
	left := agent != nil && agent.Metadata.Labels[clusters.EnvironmentLabel] == t.uuid
	if agent == nil {
		all, err := c.nodes(ctx)
		if err != nil {
			return err
		}
		left = slices.ContainsFunc(all, func(n node) bool { return n.traces() })
	}
	if !left {
		return nil
	}
	if _, err := d.claimFor(ctx, c, t); err != nil {
		return err
	}
	return c.note(ctx, t.uuid, func(s *state) { s.Agent = true })
}

func (d *Driver) removeAgent(ctx context.Context, c *cluster, t tenant) (string, error) {
	removed := false
	for _, o := range []*unstructured.Unstructured{daemonSetOf(agentSet), configMap()} {
		one, err := c.remove(ctx, t.uuid, o)
		if err != nil {
			return "", err
		}
		removed = removed || one
	}
	other, err := c.otherAgent(ctx, t)
	switch {
	case err != nil:
		return "", err
	case other:
		return fmt.Sprintf("the %s is not this environment's, and stays", agentSet), nil
	}
	return detailOf(removed), c.gone(ctx, agentSet)
}

// otherAgent reports whether there is an agent that is not the tenant's. The
// tenant's own may be there for a while after it was deleted.
func (c *cluster) otherAgent(ctx context.Context, t tenant) (bool, error) {
	is, err := get[daemonSet](ctx, c, daemonSets, agentSet.namespace, agentSet.name)
	return is != nil && is.Metadata.Labels[clusters.EnvironmentLabel] != t.uuid, err
}

func daemonSetOf(s set) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "DaemonSet",
		"metadata": map[string]any{"name": s.name, "namespace": s.namespace}}}
}

// dirty reports whether the nodes may have rules of the tenant's agent; else
// the detail says why not.
func (c *cluster) dirty(ctx context.Context, t tenant) (bool, string, error) {
	s, held, err := c.held(ctx, t)
	if err != nil || !held || !s.Agent {
		return false, none, err
	}
	other, err := c.otherAgent(ctx, t)
	if err != nil || other {
		return false, fmt.Sprintf("the nodes' rules are those of a %s that is not this environment's, and stay", agentSet), err
	}
	return true, "", nil
}

// clean has the agent's own program take rules, condition and annotations away
// on every node.
func (d *Driver) clean(ctx context.Context, c *cluster, t tenant) (string, error) {
	dirty, detail, err := c.dirty(ctx, t)
	if err != nil || !dirty {
		return detail, err
	}
	objects, err := d.cleanupObjects()
	if err != nil {
		return "", err
	}
	if _, err := c.apply(ctx, t.uuid, objects, false); err != nil {
		return "", err
	}
	var on int
	err = c.until(ctx, append(cleanupSet.watched(), selection{resource: nodes}), func(ctx context.Context) (err error) {
		if on, err = c.rolledOut(ctx, cleanupSet); err != nil {
			return err
		}
		all, err := c.nodes(ctx)
		if err != nil {
			return err
		}
		var left []string
		for i := range all {
			if all[i].traces() {
				left = append(left, all[i].Metadata.Name)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("these Nodes still bear what the agent told on them: %s", clusters.Some(left))
		}
		return nil
	})
	return onNodes("rules and conditions removed", on), err
}

func (d *Driver) cleanupObjects() ([]*unstructured.Unstructured, error) {
	return deploy.Objects(deploy.CleanupBase, deploy.Options{Image: d.AgentImage})
}

// proveClean sends a packet from a Pod of every node. One that is still seen as
// its node is told and no error: the rules were removed, and some clusters
// masquerade by themselves.
func (d *Driver) proveClean(ctx context.Context, c *cluster, t tenant) (string, error) {
	dirty, detail, err := c.dirty(ctx, t)
	if err != nil || !dirty {
		return detail, err
	}
	if !c.Probe.IsValid() {
		return fmt.Sprintf("not proven: the cluster %s has no probe target", c.Name), nil
	}
	if _, err := c.apply(ctx, t.uuid, []*unstructured.Unstructured{d.workers(probeSet, false)}, false); err != nil {
		return "", err
	}
	if err := c.until(ctx, probeSet.watched(), func(ctx context.Context) error {
		_, err := c.rolledOut(ctx, probeSet)
		return err
	}); err != nil {
		return "", err
	}
	machines, err := c.nodes(ctx)
	if err != nil {
		return "", err
	}
	probes, err := c.podsOf(ctx, probeSet)
	if err != nil {
		return "", err
	}
	packets, err := c.send(ctx, probeSet, probes, machines)
	if err != nil {
		return "", err
	}
	var own, dropped, other []string
	for _, p := range packets {
		switch {
		case !p.SeenAs.IsValid():
			dropped = append(dropped, fmt.Sprintf("%s did not answer %s (%s)", p.To, p.From, p.Err))
		case p.SeenAs == p.From:
			own = append(own, fmt.Sprintf("%s was seen as itself by %s", p.From, p.To))
		default:
			other = append(other, fmt.Sprintf("%s on %s was seen as %s by %s", p.From, p.on, p.SeenAs, p.To))
		}
	}
	switch {
	case len(other) > 0:
		detail := "not proven: something else still masquerades: " + clusters.Some(other)
		d.Log.Warn("the agent's rules are removed", "cluster", c.Name, "but", detail)
		return detail, nil
	case len(own) > 0 && len(dropped) > 0:
		return clusters.Some(own) + "; " + clusters.Some(dropped), nil
	case len(own) > 0:
		return clusters.Some(own), nil
	}
	return clusters.Some(dropped), nil
}

// giveBack deletes whatever is left, and then the claim.
func (d *Driver) giveBack(ctx context.Context, c *cluster, t tenant) (string, error) {
	// Another attempt begins with the first step, and may find the claim half
	// gone: it is not to clean up again, where no Pod can be made for the proof.
	if is, err := c.claimed(ctx); err != nil {
		return "", err
	} else if is != nil && is.uuid() == t.uuid && !is.leaving() {
		if err := c.note(ctx, t.uuid, func(s *state) { s.Agent = false }); err != nil {
			return "", err
		}
	}
	objects, err := d.cleanupObjects()
	if err != nil {
		return "", err
	}
	more, err := d.agentObjects(&environment.Environment{})
	if err != nil {
		return "", err
	}
	objects = append(append(objects, more...), daemonSetOf(workerSet), daemonSetOf(probeSet))
	slices.Reverse(objects) // what others need goes after them
	for _, o := range objects {
		if _, err := c.remove(ctx, t.uuid, o); err != nil {
			return "", err
		}
	}
	if err := c.gone(ctx, cleanupSet); err != nil {
		return "", err
	}
	is, err := c.claimed(ctx)
	if err != nil || is == nil || is.uuid() != t.uuid {
		return none, err
	}
	err = c.client.Resource(namespaces).Delete(ctx, clusters.Namespace, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &is.Metadata.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return "", fmt.Errorf("deleting the namespace %s: %w", clusters.Namespace, err)
	}
	err = c.until(ctx, []selection{claimSelection}, func(ctx context.Context) error {
		now, err := c.claimed(ctx)
		if err == nil && now != nil && now.Metadata.UID == is.Metadata.UID {
			err = fmt.Errorf("the namespace %s is being deleted; what keeps it: %s get namespace %s -o yaml", clusters.Namespace, c.Kubectl(), clusters.Namespace)
		}
		return err
	})
	return fmt.Sprintf("%s is free", c.Name), err
}

// Prune implements [reconcile.Driver]. A claim of another server is never
// touched, and a cluster that does not answer is left for the next start.
func (d *Driver) Prune(ctx context.Context, keep map[string]bool) ([]string, error) {
	if d.Server == "" {
		return nil, nil
	}
	all := d.Clusters.All()
	var mu sync.Mutex
	var removed []string
	var errs []error
	parallel(len(all), func(i int) {
		uuid, err := d.pruneOne(ctx, all[i], keep)
		mu.Lock()
		defer mu.Unlock()
		if uuid != "" {
			removed = append(removed, uuid)
		}
		if err != nil {
			errs = append(errs, err)
		}
	})
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	slices.Sort(removed)
	return removed, errors.Join(errs...)
}

func (d *Driver) pruneOne(ctx context.Context, declared *clusters.Cluster, keep map[string]bool) (string, error) {
	look, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	c, err := open(declared)
	var is *claim
	if err == nil {
		is, err = c.claimed(look)
	}
	if err != nil {
		d.Log.Warn("a cluster does not say whose it is", "cluster", declared.Name, "error", err)
		return "", nil
	}
	if is == nil || is.server() != d.Server || is.uuid() == "" || keep[is.uuid()] {
		return "", nil
	}
	t := tenant{is.uuid(), is.Metadata.Annotations[nameAnnotation]}
	for _, s := range d.removal(t) {
		if _, err := s.do(ctx, c); err != nil {
			return "", fmt.Errorf("removing what is of no environment, %s: %s: %w", t.uuid, s.name, c.about(err))
		}
	}
	return t.uuid, nil
}
