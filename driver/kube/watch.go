package kubedriver

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"

	"sordino/clusters"
	"sordino/environment"
	"sordino/masq/kube"
)

// claimSelection is the namespace of the claim.
var claimSelection = selection{resource: namespaces, field: "metadata.name=" + clusters.Namespace}

// Between two attempts to listen to a cluster, and how long it has to answer.
const (
	firstRetry  = 200 * time.Millisecond
	lastRetry   = 15 * time.Second
	connectTime = 10 * time.Second
	// checkEvery finds what no event tells: an agent that went silent.
	checkEvery = 5 * time.Minute
	// gather is how long changes are gathered before they are told as one.
	gather = 200 * time.Millisecond
)

// Watch implements [reconcile.Driver]. Of a cluster without a claim only the
// claim is watched. One that does not answer is tried again and again; its
// environment is looked at when that begins, and when it ends.
func (d *Driver) Watch(ctx context.Context, changed func(uuid string)) error {
	var running sync.WaitGroup
	for _, declared := range d.Clusters.All() {
		running.Go(func() { d.watchCluster(ctx, declared, changed) })
	}
	running.Wait()
	return nil
}

// watchCluster follows who has a cluster, and what is that environment's.
func (d *Driver) watchCluster(ctx context.Context, declared *clusters.Cluster, changed func(uuid string)) {
	var mu sync.Mutex
	var uuid string
	following := func() {} // ends the watches of the environment
	var running sync.WaitGroup
	defer running.Wait()
	defer func() { following() }()
	d.listen(ctx, declared, claimSelection, func(o *unstructured.Unstructured, gone bool) {
		now := o.GetLabels()[clusters.EnvironmentLabel]
		if gone {
			now = ""
		}
		mu.Lock()
		before := uuid
		uuid = now
		mu.Unlock()
		if now == before {
			return
		}
		following()
		following = func() {}
		if now == "" {
			changed(before)
			return
		}
		inner, stop := context.WithCancel(ctx)
		following = stop
		running.Go(func() { d.watchEnvironment(inner, declared, now, changed) })
	}, func() {
		mu.Lock()
		defer mu.Unlock()
		if uuid != "" {
			changed(uuid)
		}
	})
}

// watchEnvironment tells of changes of a cluster that matter to its environment.
func (d *Driver) watchEnvironment(ctx context.Context, declared *clusters.Cluster, uuid string, changed func(uuid string)) {
	news := make(chan struct{}, 1)
	tell := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	for _, s := range d.watchedOf() {
		seen := map[string]string{}
		running.Go(func() {
			d.listen(ctx, declared, s, func(o *unstructured.Unstructured, gone bool) {
				key, now := o.GetNamespace()+"/"+o.GetName(), fingerprint(o)
				if gone {
					delete(seen, key)
					tell()
				} else if seen[key] != now {
					seen[key] = now
					tell()
				}
			}, tell)
		})
	}
	every := time.NewTicker(checkEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		case <-news:
			if pause(ctx, gather); ctx.Err() != nil {
				return
			}
		}
		changed(uuid)
	}
}

// watchedOf is everything that an environment has on its cluster, each by its
// name, as the server's rights are; and the nodes.
func (d *Driver) watchedOf() []selection {
	objects, err := d.agentObjects(&environment.Environment{})
	if err != nil {
		d.Log.Error("the agent's manifests cannot be read", "error", err) // a test reads them
	}
	out := []selection{{resource: nodes}}
	for _, o := range append(objects, daemonSetOf(workerSet), claimNamespace(tenant{}, "")) {
		out = append(out, selection{resource: resourceOf(o), namespace: o.GetNamespace(), field: "metadata.name=" + o.GetName()})
	}
	return out
}

// fingerprint is what of an object matters: heartbeats do not.
func fingerprint(o *unstructured.Unstructured) string {
	switch o.GetKind() {
	case "Node":
	case "Namespace":
		return fingerprintOfClaim(o)
	default:
		parts := map[string]any{"labels": o.GetLabels(), "status": o.Object["status"]}
		if g := o.GetGeneration(); g != 0 {
			parts["generation"] = g
		} else {
			parts["version"] = o.GetResourceVersion()
		}
		return text(parts)
	}
	n, err := decode[node](o)
	if err != nil {
		return err.Error()
	}
	var conditions []kube.Condition
	for _, kind := range []string{"Ready", kube.ConditionType} {
		if c := n.Condition(kind); c != nil {
			c.LastHeartbeatTime = time.Time{}
			conditions = append(conditions, *c)
		}
	}
	n.Status.Conditions = conditions
	return text(n)
}

// fingerprintOfClaim leaves out when a proof was made, and of what: one that stays
// amiss is mended, and so proven, again and again, and in its own time.
func fingerprintOfClaim(o *unstructured.Unstructured) string {
	annotations := o.GetAnnotations()
	maps.DeleteFunc(annotations, func(key, _ string) bool { return !strings.HasPrefix(key, annotationPrefix) })
	var s state
	if err := json.Unmarshal([]byte(annotations[stateAnnotation]), &s); err == nil {
		s.Proof, s.Checked = "", time.Time{}
		annotations[stateAnnotation] = text(s)
	}
	return text(map[string]any{"labels": o.GetLabels(), "annotations": annotations, "status": o.Object["status"]})
}

func text(value any) string {
	out, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// listen tells of every object of a selection and of its changes until the
// context ends. When the cluster cannot be listened to, and when it can again,
// look is called: what is gone meanwhile is not told otherwise.
func (d *Driver) listen(ctx context.Context, declared *clusters.Cluster, s selection, each func(o *unstructured.Unstructured, gone bool), look func()) {
	retry := firstRetry
	lost, away := false, false
	for ctx.Err() == nil {
		c, err := open(declared)
		if err == nil {
			err = c.stream(ctx, s, func() {
				if retry, away = firstRetry, false; lost {
					lost = false
					look()
				}
			}, each)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil { // the server ends a watch now and then, what stands between perhaps at once
			lost = true
			pause(ctx, firstRetry)
			continue
		}
		if !away {
			level := slog.LevelDebug // the reconciler warns of an environment that cannot be seen
			if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
				level = slog.LevelWarn
			}
			d.Log.Log(ctx, level, "a cluster cannot be listened to; it is tried again", "cluster", declared.Name, "what", s.resource.Resource, "error", err)
			look()
		}
		lost, away = true, true
		pause(ctx, retry)
		retry = min(2*retry, lastRetry)
	}
}

// follow calls tell for every object of the selections and every change of
// them, until the context ends.
func (c *cluster) follow(ctx context.Context, all []selection, tell func()) {
	var running sync.WaitGroup
	for _, s := range all {
		running.Go(func() {
			for ctx.Err() == nil {
				_ = c.stream(ctx, s, tell, func(*unstructured.Unstructured, bool) { tell() }) // it is begun again
				pause(ctx, firstRetry)
			}
		})
	}
	running.Wait()
}

// stream watches a selection from now on; first comes what is there. It ends
// with the context, without an error when the server ends it.
func (c *cluster) stream(ctx context.Context, s selection, opened func(), each func(o *unstructured.Unstructured, gone bool)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	late := time.AfterFunc(connectTime, stop)
	w, err := c.in(s.resource, s.namespace).Watch(ctx, s.options())
	late.Stop()
	if err != nil {
		return fmt.Errorf("watching %s: %w", s.resource.Resource, err)
	}
	defer w.Stop()
	opened()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event, more := <-w.ResultChan():
			if !more {
				return nil
			}
			switch event.Type {
			case watch.Error:
				return apierrors.FromObject(event.Object)
			case watch.Added, watch.Modified, watch.Deleted:
				if o, ok := event.Object.(*unstructured.Unstructured); ok {
					each(o, event.Type == watch.Deleted)
				}
			}
		}
	}
}
