package kubedriver

import (
	"context"
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sordino/clusters"
	"sordino/environment"
)

const (
	workerName      = "airflow-worker"
	probeName       = "masquerade-probe"
	gateContainer   = "gate"
	workerContainer = "worker"
	runFolder       = "/run/ip-masq-agent"
	readyFile       = runFolder + "/ready"
	nobody          = 65532
)

var (
	workerSet = set{clusters.Namespace, workerName, "app=" + workerName, workerContainer}
	// probeSet sends the last packet of a cluster that is given back.
	probeSet = set{clusters.Namespace, probeName, "app=" + probeName, workerContainer}
)

// workers are a DaemonSet whose Pods wait for commands. With the gate a Pod
// starts when its node masquerades.
func (d *Driver) workers(of set, gate bool) *unstructured.Unstructured {
	labels := map[string]any{"app": of.name, "app.kubernetes.io/managed-by": "sordino"}
	container := func(name string, more map[string]any) map[string]any {
		c := map[string]any{
			"name": name, "image": d.SordinoImage, "imagePullPolicy": "IfNotPresent",
			"securityContext": map[string]any{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
				"capabilities": map[string]any{"drop": []any{"ALL"}}},
			"resources": map[string]any{"requests": map[string]any{"cpu": "10m", "memory": "16Mi"}, "limits": map[string]any{"memory": "256Mi"}},
		}
		maps.Copy(c, more)
		return c
	}
	spec := map[string]any{
		"automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": int64(2),
		"nodeSelector":    map[string]any{"kubernetes.io/os": "linux"},
		"securityContext": map[string]any{"runAsNonRoot": true, "runAsUser": int64(nobody), "runAsGroup": int64(nobody), "seccompProfile": map[string]any{"type": "RuntimeDefault"}},
		"containers":      []any{container(workerContainer, map[string]any{"args": []any{"worker"}})},
	}
	if gate {
		spec["initContainers"] = []any{container(gateContainer, map[string]any{
			"command":      []any{"/ip-masq-agent", "gate", "--ready-file=" + readyFile},
			"volumeMounts": []any{map[string]any{"name": "run", "mountPath": runFolder, "readOnly": true}},
		})}
		spec["volumes"] = []any{map[string]any{"name": "run", "hostPath": map[string]any{"path": runFolder, "type": "DirectoryOrCreate"}}}
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apps/v1", "kind": "DaemonSet",
		"metadata": map[string]any{"name": of.name, "namespace": of.namespace, "labels": labels},
		"spec": map[string]any{
			"selector":       map[string]any{"matchLabels": map[string]any{"app": of.name}},
			"updateStrategy": map[string]any{"type": "RollingUpdate", "rollingUpdate": map[string]any{"maxUnavailable": "25%"}},
			"template":       map[string]any{"metadata": map[string]any{"labels": maps.Clone(labels)}, "spec": spec},
		},
	}}
}

func (d *Driver) workerObjects(e *environment.Environment) []*unstructured.Unstructured {
	return []*unstructured.Unstructured{d.workers(workerSet, e.AgentEnabled())}
}

func (d *Driver) applyWorkers(ctx context.Context, c *cluster, e *environment.Environment) (string, error) {
	is, err := c.mine(ctx, e.UUID)
	if err != nil {
		return "", err
	}
	s, err := is.state()
	if err != nil {
		return "", err
	}
	changes, err := c.apply(ctx, e.UUID, d.workerObjects(e), s.provenFor(e))
	if err != nil {
		return "", err
	}
	detail := fmt.Sprintf("%s applied", workerSet) + d.told(c, e.Name.String(), changes)
	if e.AgentEnabled() {
		return detail, nil
	}
	if other, err := get[daemonSet](ctx, c, daemonSets, agentNamespace, agentName); err != nil {
		return "", err
	} else if other != nil {
		detail += fmt.Sprintf("; there is a %s that is not this environment's: it decides how the workers are seen", agentSet)
	}
	return detail, nil
}

func (d *Driver) awaitWorkers(ctx context.Context, c *cluster) (string, error) {
	var on int
	err := c.until(ctx, workerSet.watched(), func(ctx context.Context) (err error) {
		on, err = c.rolledOut(ctx, workerSet)
		return err
	})
	return onNodes("workers ready", on), err
}
