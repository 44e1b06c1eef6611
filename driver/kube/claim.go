package kubedriver

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"sordino/clusters"
	"sordino/environment"
)

// Annotations of a claim.
const (
	annotationPrefix = "sordino.dev/"
	// serverAnnotation is whose claim it is: only that server prunes it.
	serverAnnotation = annotationPrefix + "server"
	nameAnnotation   = annotationPrefix + "environment-name"
	stateAnnotation  = annotationPrefix + "state"
)

// state is what a claim's annotation tells of its cluster. Whoever takes the
// cluster over, or takes it away, has nothing else to go by.
type state struct {
	Generation int64 `json:"generation,omitempty"`
	// Nodes is a digest of those that were there, and which had a worker to prove.
	Nodes   string    `json:"nodes,omitempty"`
	Proof   string    `json:"proof,omitempty"`
	Checked time.Time `json:"checked,omitzero"`
	// ConfigDigest and ConfigGeneration are the agents' configuration that was
	// applied.
	ConfigDigest     string `json:"configDigest,omitempty"`
	ConfigGeneration int64  `json:"configGeneration,omitempty"`
	// Agent says that the nodes may have the agent's rules.
	Agent bool `json:"agent,omitempty"`
}

// provenFor reports whether the environment, as it is to be, was in place once:
// what is missing since was taken away.
func (s *state) provenFor(e *environment.Environment) bool {
	return s.Generation == e.Generation && e.Generation > 0
}

// claim is the namespace that says whose a cluster is.
type claim struct {
	Metadata struct {
		UID               types.UID         `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		DeletionTimestamp *metav1.Time      `json:"deletionTimestamp"`
		Labels            map[string]string `json:"labels"`
		Annotations       map[string]string `json:"annotations"`
	} `json:"metadata"`
}

func (c *claim) uuid() string   { return c.Metadata.Labels[clusters.EnvironmentLabel] }
func (c *claim) server() string { return c.Metadata.Annotations[serverAnnotation] }
func (c *claim) leaving() bool  { return c.Metadata.DeletionTimestamp != nil }

func (c *claim) state() (s state, err error) {
	if text := c.Metadata.Annotations[stateAnnotation]; text != "" {
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return s, fmt.Errorf("the namespace %s has an annotation %s that is not ours: %w; remove it", clusters.Namespace, stateAnnotation, err)
		}
	}
	return s, nil
}

// claimed reads the claim; nil is that there is none.
func (c *cluster) claimed(ctx context.Context) (*claim, error) {
	return get[claim](ctx, c, namespaces, "", clusters.Namespace)
}

// claimNamespace is the namespace as it is made. Its Pods mount a folder of
// their node, which no stricter level of Pod security allows.
func claimNamespace(t tenant, server string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{
			"name": clusters.Namespace,
			"labels": map[string]any{clusters.EnvironmentLabel: t.uuid, "app.kubernetes.io/managed-by": "sordino",
				"pod-security.kubernetes.io/enforce": "privileged"},
			"annotations": map[string]any{serverAnnotation: server, nameAnnotation: t.name},
		},
	}}
}

// claimFor makes the cluster an environment's. Of two that try at once one wins:
// a namespace can be created once.
func (d *Driver) claimFor(ctx context.Context, c *cluster, t tenant) (string, error) {
	_, err := c.client.Resource(namespaces).Create(ctx, claimNamespace(t, d.Server), metav1.CreateOptions{FieldManager: clusters.FieldManager})
	if err == nil {
		return fmt.Sprintf("%s is this environment's", c.Name), nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("claiming the cluster by the namespace %s: %w", clusters.Namespace, err)
	}
	if _, err := c.mine(ctx, t.uuid); err != nil {
		return "", err
	}
	changes, err := c.applyOurs(ctx, []*unstructured.Unstructured{claimNamespace(t, d.Server)})
	return fmt.Sprintf("%s is this environment's already", c.Name) + d.told(c, t.name, changes), err
}

// mine reads the claim of an environment, and refuses another's.
func (c *cluster) mine(ctx context.Context, uuid string) (*claim, error) {
	is, err := c.claimed(ctx)
	switch {
	case err != nil:
		return nil, err
	case is == nil:
		return nil, fmt.Errorf("the namespace %s, which says whose the cluster is, is gone", clusters.Namespace)
	case is.leaving():
		return nil, fmt.Errorf("the namespace %s is still being deleted", clusters.Namespace)
	case is.uuid() == uuid:
		return is, nil
	case is.uuid() == "":
		return nil, c.refuse("CLUSTER_CLAIMED", "the namespace %s is there without the label %s: it is somebody else's; move what is in it elsewhere and delete the namespace", clusters.Namespace, clusters.EnvironmentLabel)
	}
	whose := "the environment " + is.uuid()
	if name := is.Metadata.Annotations[nameAnnotation]; name != "" {
		whose = fmt.Sprintf("%s (UUID %s)", name, is.uuid())
	}
	return nil, c.refuse("CLUSTER_CLAIMED", "it is claimed by %s; delete that environment, or take another cluster", whose)
}

// note changes a claim's state, unless somebody changed the claim meanwhile.
func (c *cluster) note(ctx context.Context, uuid string, change func(*state)) error {
	is, err := c.mine(ctx, uuid)
	if err != nil {
		return err
	}
	s, err := is.state()
	if err != nil {
		return err
	}
	before := s
	if change(&s); s == before {
		return nil
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": is.Metadata.UID, "resourceVersion": is.Metadata.ResourceVersion,
		"annotations": map[string]any{stateAnnotation: string(text)}}})
	if err != nil {
		return err
	}
	if _, err := c.client.Resource(namespaces).Patch(ctx, clusters.Namespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: clusters.FieldManager}); err != nil {
		return fmt.Errorf("noting the state at the namespace %s: %w", clusters.Namespace, err)
	}
	return nil
}
