package kubedriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sordino/clusters"
	"sordino/environment"
)

// cluster is a connection to one.
type cluster struct {
	*clusters.Cluster
	config *rest.Config
	client *dynamic.DynamicClient
	raw    *rest.RESTClient
}

// connect reads the kubeconfig anew; nothing is sent yet.
func (d *Driver) connect(name string) (*cluster, error) {
	declared := d.Clusters.ByName(name)
	if declared == nil {
		return nil, &environment.Error{Code: environment.FailedPrecondition, Reason: "CLUSTER_NOT_DECLARED",
			Message:  fmt.Sprintf("the cluster %s is not declared any more; declare it in the clusters file again, under the same name", name),
			Metadata: map[string]string{"cluster": name}}
	}
	return open(declared)
}

func open(declared *clusters.Cluster) (*cluster, error) {
	config, err := declared.RESTConfig()
	if err != nil {
		return nil, err
	}
	c := &cluster{Cluster: declared, config: config}
	if c.client, err = dynamic.NewForConfig(config); err != nil {
		return nil, c.about(err)
	}
	if c.raw, err = rest.UnversionedRESTClientFor(dynamic.ConfigFor(config)); err != nil {
		return nil, c.about(err)
	}
	return c, nil
}

// about names the cluster in an error.
func (c *cluster) about(err error) error {
	var final *environment.Error
	if err == nil || errors.As(err, &final) {
		return err
	}
	return fmt.Errorf("cluster %s at %s: %w", c.Name, c.config.Host, err)
}

// refuse is an error that trying again does not mend.
func (c *cluster) refuse(reason, format string, args ...any) *environment.Error {
	return &environment.Error{Code: environment.FailedPrecondition, Reason: reason,
		Message:  fmt.Sprintf("cluster %s: ", c.Name) + fmt.Sprintf(format, args...),
		Metadata: map[string]string{"cluster": c.Name}}
}

// The kinds that are read; those that are applied say themselves what they are.
var (
	nodes      = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	pods       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	events     = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	daemonSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
)

// resourceOf is an object's kind; empty namespace is the whole cluster.
func resourceOf(o *unstructured.Unstructured) schema.GroupVersionResource {
	r, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	return r
}

func (c *cluster) of(o *unstructured.Unstructured) dynamic.ResourceInterface {
	return c.in(resourceOf(o), o.GetNamespace())
}

func (c *cluster) in(r schema.GroupVersionResource, namespace string) dynamic.ResourceInterface {
	if namespace == "" {
		return c.client.Resource(r)
	}
	return c.client.Resource(r).Namespace(namespace)
}

// nameOf is an object for a person: "DaemonSet kube-system/ip-masq-agent".
func nameOf(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// selection is some objects of a kind.
type selection struct {
	resource      schema.GroupVersionResource
	namespace     string
	labels, field string
}

func (s selection) options() metav1.ListOptions {
	return metav1.ListOptions{LabelSelector: s.labels, FieldSelector: s.field}
}

// list decodes all objects of a selection.
func list[T any](ctx context.Context, c *cluster, s selection) ([]T, error) {
	return clusters.List[T](ctx, c.raw, s.resource, s.namespace, s.options())
}

// get decodes one object; nil is that there is none.
func get[T any](ctx context.Context, c *cluster, r schema.GroupVersionResource, namespace, name string) (*T, error) {
	o, err := c.in(r, namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %s: %w", r.Resource, name, err)
	}
	one, err := decode[T](o)
	return &one, err
}

// decode takes of an object what a type has.
func decode[T any](o *unstructured.Unstructured) (out T, err error) {
	text, err := json.Marshal(o.Object)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return out, fmt.Errorf("reading %s: %w", nameOf(o), err)
	}
	return out, nil
}

const (
	// calm is between two looks of until, lookAgain how long it trusts the
	// watches to tell.
	calm      = 100 * time.Millisecond
	lookAgain = 5 * time.Second
)

// pause ends after a time, or with the context.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// until looks, and looks again whenever something of the selections changes,
// until there is no error, or one that stays. When the time is over the error
// is what was missing last.
func (c *cluster) until(ctx context.Context, watched []selection, look func(context.Context) error) error {
	watching, stop := context.WithCancel(ctx)
	news := make(chan struct{}, 1)
	tell := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.follow(watching, watched, tell)
	}()
	defer func() { stop(); <-done }()
	var last error
	for {
		err := look(ctx)
		var final *environment.Error
		switch {
		case err == nil, errors.As(err, &final):
			return err
		case ctx.Err() != nil && last != nil:
			return last
		case ctx.Err() != nil:
			return err
		}
		last = err
		pause(ctx, calm)
		select {
		case <-news:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return last
		}
	}
}
