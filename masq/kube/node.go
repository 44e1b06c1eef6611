package kube

import (
	"encoding/json"
	"slices"
	"time"

	"sordino/masq/agent"
)

// What stands on a Node, for those who read it there.
const (
	ConditionType = "IPMasqueradeReady"

	// The condition's reasons. RulesInPlace is the one of a condition that is
	// true. While it is ConfigRejected the last good configuration is in force
	// instead of the present one; while it is ConfigUnavailable, instead of one
	// that the agent could not ask for. Those that are Events too are named as
	// these are.
	RulesInPlace      = "RulesInPlace"
	ConfigRejected    = string(agent.ConfigRejected)
	ConfigUnavailable = string(agent.ConfigUnavailable)
	PlanRejected      = "PlanRejected"
	ApplyFailed       = string(agent.ApplyFailed)

	// AnnotationPrefix begins all annotations.
	AnnotationPrefix     = "sordino.dev/masq-"
	AnnotationGeneration = AnnotationPrefix + "generation"
	AnnotationHash       = AnnotationPrefix + "hash"
	AnnotationConfig     = AnnotationPrefix + "config"
	AnnotationFindings   = AnnotationPrefix + "findings"
	AnnotationVersion    = AnnotationPrefix + "version"

	// NoConfig is AnnotationConfig's value without a configuration.
	NoConfig = "none"

	// heartbeat is how often the Node is patched when nothing changed, give or
	// take a tenth.
	heartbeat = 5 * time.Minute
	// SilentAfter is without how long a heartbeat the condition is not to be
	// believed any more.
	SilentAfter = 3 * heartbeat
)

// Node is a Node, with the fields that agents and those who read what agents
// tell look at.
type Node struct {
	Metadata struct {
		Name        string            `json:"name"`
		UID         string            `json:"uid"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR       string   `json:"podCIDR"`
		PodCIDRs      []string `json:"podCIDRs"`
		Unschedulable bool     `json:"unschedulable"`
	} `json:"spec"`
	Status struct {
		Allocatable map[string]string `json:"allocatable"`
		Addresses   []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
		Conditions []Condition `json:"conditions"`
	} `json:"status"`
}

// Condition is a Node's condition.
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
	LastHeartbeatTime  time.Time `json:"lastHeartbeatTime"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
}

// Condition is the Node's condition of a type; nil when there is none.
func (n *Node) Condition(kind string) *Condition {
	i := slices.IndexFunc(n.Status.Conditions, func(c Condition) bool { return c.Type == kind })
	if i < 0 {
		return nil
	}
	return &n.Status.Conditions[i]
}

// Findings are what the Node's agent has found.
func (n *Node) Findings() (all []string) {
	text := n.Metadata.Annotations[AnnotationFindings]
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return []string{text} // somebody else's word
	}
	return all
}

// AgentState is how a Node's agent is, by what it told there.
type AgentState string

// The states.
const (
	// AgentReady: the kernel holds what the configuration means.
	AgentReady AgentState = "ready"
	// AgentRejected: the agent has refused the configuration; the last good one
	// is in force.
	AgentRejected AgentState = "rejected"
	// AgentFailed: the kernel does not hold what is desired, or the agent cannot
	// ask what that is.
	AgentFailed AgentState = "failed"
	// AgentSilent: nobody keeps the Node's condition up.
	AgentSilent AgentState = "silent"
)

// Agent judges the Node's condition at a time. Why says why the agent is not
// ready.
func (n *Node) Agent(now time.Time) (state AgentState, why string) {
	c := n.Condition(ConditionType)
	if c == nil {
		return AgentSilent, "there is no condition " + ConditionType + " on the Node"
	}
	switch {
	case now.Sub(c.LastHeartbeatTime) > SilentAfter:
		return AgentSilent, "its agent has said nothing since " + c.LastHeartbeatTime.UTC().Format(time.RFC3339)
	case c.Status == "True":
		return AgentReady, ""
	case c.Reason == ConfigRejected, c.Reason == PlanRejected:
		return AgentRejected, c.Message
	}
	return AgentFailed, c.Reason + ": " + c.Message
}

// Counts reports whether the Node is one that an agent has to be on: those of
// other systems than Linux are not. One that does not say its system counts.
// The DaemonSet leaves it out, and it is better named for want of an agent than
// overlooked.
func (n *Node) Counts() bool {
	os := n.Metadata.Labels["kubernetes.io/os"]
	return os == "" || os == "linux"
}
