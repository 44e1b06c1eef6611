package kubedriver

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"sordino/clusters"
	"sordino/environment"
)

// The environment of a cluster that is no more can be deleted, and nothing
// else.
func TestUndeclaredCluster(t *testing.T) {
	declared, err := clusters.Parse("clusters.yaml", []byte("clusters:\n- {name: cluster-2, location: l, kubeconfig: /nowhere, context: c, nodeRange: 10.1.0.0/24, podRange: 10.2.0.0/16}\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := New(Options{Clusters: declared, Log: slog.New(slog.DiscardHandler)})
	e := &environment.Environment{UUID: "u", Cluster: "cluster-1"}
	steps := d.Remove(e)
	detail, err := steps[0].Do(t.Context())
	if len(steps) != 1 || err != nil || !strings.Contains(detail, "cluster-1 is not declared any more: nothing was removed from it") {
		t.Errorf("%d steps, %q, %v", len(steps), detail, err)
	}
	var refusal *environment.Error
	if _, err := d.Ensure(e)[0].Do(t.Context()); !errors.As(err, &refusal) || refusal.Reason != "CLUSTER_NOT_DECLARED" {
		t.Errorf("to make it: %v", err)
	}
}
