// Package fleet reads from a cluster which node's agent holds which rules, and
// which one does not.
//
// It owns the judgement: a node is ready, rejected, failed or silent, and its
// configuration is current or behind. What the agents write on their Nodes is
// masq/kube's. It only reads, with few calls however many nodes there are, and
// needs no server of ours.
//
// It refuses to take a condition for true that nobody keeps up: without a
// heartbeat, or without an agent, a node is silent, whatever stands on it.
//
// To debug it, compare with "kubectl get node NAME -o yaml".
package fleet

import (
	"cmp"
	"slices"
	"time"

	"sordino/masq/kube"
)

// Fleet is all nodes of a cluster at one time.
type Fleet struct {
	// Sources are what the agents may read, with the digest of the moment.
	Sources []Source `json:"sources"`
	Nodes   []Node   `json:"nodes"`
	// Counts are how many nodes are in each state.
	Counts map[kube.AgentState]int `json:"counts"`
	Behind int                     `json:"behind"`
	// InForce says that every node is ready and current.
	InForce bool `json:"inForce"`
}

// Source is a configuration in the cluster.
type Source struct {
	Name   string `json:"name"`
	Digest string `json:"digest,omitempty"`
	// Error is why there is no digest.
	Error string `json:"error,omitempty"`
}

// Node is one node.
type Node struct {
	Name       string          `json:"name"`
	Address    string          `json:"address,omitempty"`
	State      kube.AgentState `json:"state"`
	Generation string          `json:"generation,omitempty"`
	Hash       string          `json:"hash,omitempty"`
	// Config is the digest of the configuration that the agent last looked at,
	// "none" without one, and empty when it has said nothing.
	Config string `json:"config,omitempty"`
	// Current says that this is a configuration of the moment.
	Current bool   `json:"current"`
	Version string `json:"version,omitempty"`
	// Reason says why a node is not ready.
	Reason string `json:"reason,omitempty"`
	// Findings are what the configuration's author should know, and ours.
	Findings []string `json:"findings,omitempty"`
}

// cordoned is why a node without an agent's Pod is not silent.
const cordoned = "the node is cordoned and has no agent's Pod: what that told last counts as long as it is fresh"

// judge makes a fleet of what was read. agents are the names of the nodes that
// an agent's Pod is on.
func judge(objects []kube.Node, agents map[string]bool, sources []Source, now time.Time) Fleet {
	f := Fleet{Sources: sources, Nodes: []Node{}, Counts: map[kube.AgentState]int{}}
	for _, o := range objects {
		if !o.Counts() {
			continue // there is no agent for it
		}
		n := judgeNode(o, agents, sources, now)
		f.Nodes = append(f.Nodes, n)
		f.Counts[n.State]++
		if !n.Current {
			f.Behind++
		}
	}
	slices.SortFunc(f.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	f.InForce = len(f.Nodes) > 0 && f.Counts[kube.AgentReady] == len(f.Nodes) && f.Behind == 0
	return f
}

func judgeNode(o kube.Node, agents map[string]bool, sources []Source, now time.Time) Node {
	a := o.Metadata.Annotations
	n := Node{Name: o.Metadata.Name, Generation: a[kube.AnnotationGeneration], Hash: a[kube.AnnotationHash], Config: a[kube.AnnotationConfig], Version: a[kube.AnnotationVersion], Findings: o.Findings()}
	for _, address := range o.Status.Addresses {
		if address.Type == "InternalIP" && n.Address == "" {
			n.Address = address.Address
		}
	}
	n.Current = slices.ContainsFunc(sources, func(s Source) bool { return s.Error == "" && s.Digest == n.Config })
	n.State, n.Reason = o.Agent(now)
	if n.State != kube.AgentSilent && !agents[n.Name] {
		if o.Spec.Unschedulable {
			n.Findings = append(n.Findings, cordoned)
		} else {
			n.State, n.Reason = kube.AgentSilent, "there is no agent's Pod on the node"
		}
	}
	return n
}
