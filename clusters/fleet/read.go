package fleet

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sordino/clusters"
	"sordino/internal/count"
	"sordino/masq/configfile"
	"sordino/masq/kube"
	"sordino/masq/kube/egressnat"
)

// agentLabel selects the agents' Pods.
const agentLabel = "k8s-app=ip-masq-agent"

// What is read.
var (
	nodes    = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	pods     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	policies = schema.GroupVersionResource{Group: egressnat.Group, Version: egressnat.Version, Resource: egressnat.Resource}
)

// Reader reads one cluster.
type Reader struct {
	client *rest.RESTClient
	// namespace and name are of the agents' ConfigMap; the agents are in the
	// same namespace.
	namespace, name string
}

// NewReader makes a reader of a cluster whose agents read the ConfigMap. It
// takes the permissions to list nodes, and in the namespace to list pods and to
// get the ConfigMap; and to list egressnatpolicies.networking.gke.io where nodes
// hold these.
func NewReader(config *rest.Config, namespace, name string) (*Reader, error) {
	client, err := rest.UnversionedRESTClientFor(dynamic.ConfigFor(config))
	if err != nil {
		return nil, err
	}
	return &Reader{client, namespace, name}, nil
}

// Read judges the cluster as it is now.
func (r *Reader) Read(ctx context.Context) (Fleet, error) {
	objects, err := clusters.List[kube.Node](ctx, r.client, nodes, "", metav1.ListOptions{})
	if err != nil {
		return Fleet{}, err
	}
	found, err := clusters.List[pod](ctx, r.client, pods, r.namespace, metav1.ListOptions{LabelSelector: agentLabel})
	if err != nil {
		return Fleet{}, err
	}
	agents := map[string]bool{}
	for _, p := range found {
		if p.Metadata.DeletionTimestamp == nil && p.Status.Phase == "Running" {
			agents[p.Spec.NodeName] = true
		}
	}
	sources, err := r.sources(ctx)
	if err != nil {
		return Fleet{}, err
	}
	return judge(objects, agents, sources, time.Now()), nil
}

type pod struct {
	Metadata struct {
		DeletionTimestamp *time.Time `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

// sources are the ConfigMap, and the policies where the cluster knows them.
func (r *Reader) sources(ctx context.Context) ([]Source, error) {
	configMap := Source{Name: fmt.Sprintf("ConfigMap %s/%s", r.namespace, r.name), Digest: kube.NoConfig}
	var held struct {
		Data map[string]string `json:"data"`
	}
	err := clusters.Get(ctx, r.client.Get().AbsPath("/api/v1/namespaces/"+r.namespace+"/configmaps/"+r.name), &held)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading the %s: %w", configMap.Name, err)
	}
	if text, given := held.Data[kube.ConfigKey]; given {
		configMap.Digest = configfile.Digest([]byte(text))
	}
	sources := []Source{configMap}
	all, err := clusters.List[egressnat.Policy](ctx, r.client, policies, "", metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return sources, nil // no definition
	case apierrors.IsForbidden(err):
		return append(sources, Source{Name: "EgressNATPolicies", Error: "you may not list egressnatpolicies.networking.gke.io, so nodes that hold them count as behind"}), nil
	case err != nil:
		return nil, err
	}
	return append(sources, Source{Name: "the set of " + count.Of(len(all), egressnat.Kind), Digest: egressnat.Digest(all)}), nil
}
