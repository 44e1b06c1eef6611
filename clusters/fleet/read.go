package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sordino/masq/kube"
	"sordino/masq/kube/egressnat"
)

// pageSize is how many objects come with one call. Nodes are large: the images
// they hold are listed in them.
const pageSize = 250

// Where the agents are, and what they read.
const (
	agentLabel = "k8s-app=ip-masq-agent"
	configKey  = "config"
)

// Reader reads one cluster.
type Reader struct {
	client *rest.RESTClient
	// namespace and name are of the agents' ConfigMap; the agents are in the
	// same namespace.
	namespace, name string
}

// NewReader makes a reader of a cluster whose agents read the ConfigMap. It
// takes the permissions to list nodes and egressnatpolicies.networking.gke.io,
// and in the namespace to list pods and to get the ConfigMap.
func NewReader(config *rest.Config, namespace, name string) (*Reader, error) {
	client, err := rest.UnversionedRESTClientFor(dynamic.ConfigFor(config))
	if err != nil {
		return nil, err
	}
	return &Reader{client, namespace, name}, nil
}

// Read judges the cluster as it is now.
func (r *Reader) Read(ctx context.Context) (Fleet, error) {
	objects, err := list[object](ctx, r.client, "/api/v1/nodes", "")
	if err != nil {
		return Fleet{}, fmt.Errorf("listing the nodes: %w", err)
	}
	pods, err := list[pod](ctx, r.client, "/api/v1/namespaces/"+r.namespace+"/pods", agentLabel)
	if err != nil {
		return Fleet{}, fmt.Errorf("listing the agents: %w", err)
	}
	agents := map[string]bool{}
	for _, p := range pods {
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
	configMap := Source{fmt.Sprintf("ConfigMap %s/%s", r.namespace, r.name), kube.NoConfig}
	var held struct {
		Data map[string]string `json:"data"`
	}
	err := get(ctx, r.client.Get().AbsPath("/api/v1/namespaces/"+r.namespace+"/configmaps/"+r.name), &held)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading the %s: %w", configMap.Name, err)
	}
	if text, given := held.Data[configKey]; given {
		sum := sha256.Sum256([]byte(text))
		configMap.Digest = hex.EncodeToString(sum[:])
	}
	sources := []Source{configMap}
	policies, err := list[egressnat.Policy](ctx, r.client, "/apis/"+egressnat.Group+"/"+egressnat.Version+"/"+egressnat.Resource, "")
	switch {
	case apierrors.IsNotFound(err):
		return sources, nil // no definition
	case err != nil:
		return nil, fmt.Errorf("listing the EgressNATPolicies: %w", err)
	}
	return append(sources, Source{fmt.Sprintf("%d EgressNATPolicies", len(policies)), egressnat.Digest(policies)}), nil
}

// list reads a collection in pages. Only what T has a place for is kept: an
// object of ours is a hundredth of a Node.
func list[T any](ctx context.Context, client *rest.RESTClient, path, labels string) ([]T, error) {
	var all []T
	next := ""
	for {
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []T `json:"items"`
		}
		request := client.Get().AbsPath(path).Param("limit", strconv.Itoa(pageSize)).Param("continue", next)
		if labels != "" {
			request = request.Param("labelSelector", labels)
		}
		if err := get(ctx, request, &page); err != nil {
			if next != "" && apierrors.IsResourceExpired(err) {
				// The pages' common state is gone: begin again.
				all, next = nil, ""
				continue
			}
			return nil, err
		}
		all = append(all, page.Items...)
		if next = page.Metadata.Continue; next == "" {
			return all, nil
		}
	}
}

func get(ctx context.Context, request *rest.Request, into any) error {
	var code int
	text, err := request.SetHeader("Accept", "application/json").Do(ctx).StatusCode(&code).Raw()
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("the API server answers %d", code)
	}
	return json.Unmarshal(text, into)
}
