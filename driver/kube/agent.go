package kubedriver

import (
	"cmp"
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sordino/clusters"
	"sordino/deploy"
	"sordino/driver"
	"sordino/environment"
	"sordino/environment/address"
	"sordino/internal/count"
	"sordino/masq/kube"
)

const (
	agentNamespace = "kube-system"
	agentName      = "ip-masq-agent"
)

var (
	agentSet   = set{agentNamespace, agentName, "k8s-app=" + agentName, agentName}
	cleanupSet = set{agentNamespace, agentName + "-cleanup", "k8s-app=" + agentName + "-cleanup", "clean"}
)

// agentObjects are what the agent is made of on an environment's cluster. The
// ConfigMap comes first, so that no agent starts without it. It is there without
// a configuration, too: agents would obey one that is somebody else's.
func (d *Driver) agentObjects(e *environment.Environment) ([]*unstructured.Unstructured, error) {
	options := deploy.Options{Image: d.AgentImage}
	for _, r := range []struct {
		flag string
		kind address.Kind
	}{{"--node-cidrs=", address.Nodes}, {"--pod-cidrs=", address.Pods}, {"--service-cidrs=", address.Services}} {
		flag := r.flag
		for _, in := range e.Plan.Ranges {
			if in.Kind == r.kind {
				if flag != r.flag {
					flag += ","
				}
				flag += in.Prefix.String()
			}
		}
		if flag != r.flag {
			options.Arguments = append(options.Arguments, flag)
		}
	}
	objects, err := deploy.Objects(deploy.AgentBase, options)
	if err != nil {
		return nil, err
	}
	config := configMap()
	config.Object["data"] = map[string]any{kube.ConfigKey: e.Agent.Text}
	return append([]*unstructured.Unstructured{config}, objects...), nil
}

func configMap() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": agentName, "namespace": agentNamespace, "labels": map[string]any{"k8s-app": agentName}}}}
}

func (d *Driver) applyAgent(ctx context.Context, c *cluster, e *environment.Environment) (string, error) {
	objects, err := d.agentObjects(e)
	if err != nil {
		return "", err
	}
	// Looked at before the note: what is somebody else's is never cleaned up.
	missing, err := c.foreign(ctx, e.UUID, objects)
	if err != nil {
		return "", err
	}
	before := false
	if err := c.note(ctx, e.UUID, func(s *state) {
		before = s.provenFor(e)
		s.Agent = true
		s.ConfigDigest, s.ConfigGeneration = digestOf(e.Agent.Text), e.Agent.Generation
	}); err != nil {
		return "", err
	}
	changes, err := c.applyOurs(ctx, objects)
	if err != nil {
		return "", err
	}
	if before {
		changes = append(missing, changes...)
	}
	return count.Of(len(objects), "object") + " of the agent applied" + d.told(c, e.Name.String(), changes), nil
}

// awaitAgents waits until every node's agent has looked at the configuration and
// the kernel holds its rules.
func (d *Driver) awaitAgents(ctx context.Context, c *cluster, e *environment.Environment) (string, error) {
	digest := digestOf(e.Agent.Text)
	var count int
	err := c.until(ctx, append(agentSet.watched(), selection{resource: nodes}), func(ctx context.Context) error {
		all, err := c.nodes(ctx)
		if err != nil {
			return err
		}
		for i := range all {
			if reason := all[i].rejects(digest, d.Now()); reason != "" {
				return driver.ConfigRejected(all[i].Metadata.Name, reason)
			}
		}
		if _, err := c.rolledOut(ctx, agentSet); err != nil {
			return err
		}
		// How many nodes the DaemonSet counts is not asked: a Node that is made
		// again under its name is not counted while its Pod is still there.
		agents, err := c.podsOf(ctx, agentSet)
		if err != nil {
			return err
		}
		var lack []string
		for i := range all {
			n := &all[i]
			if why := cmp.Or(n.lacks(digest, d.Now()), c.podTrouble(agentSet, agents, n.Metadata.Name, true)); why != "" {
				lack = append(lack, n.Metadata.Name+": "+why)
			}
		}
		if len(lack) > 0 {
			return fmt.Errorf("%s", clusters.Some(lack))
		}
		count = len(all)
		return nil
	})
	return onNodes("rules in place", count), err
}
