package agent

import (
	"time"

	"sordino/masq"
)

// Status is what the agent tells of itself, at /status and by the status
// command.
type Status struct {
	Ready   bool   `json:"ready"`
	Backend string `json:"backend"`
	// Generation and Hash are what is desired, the Applied ones what the
	// kernel was last seen to hold.
	Generation        uint64 `json:"generation"`
	Hash              string `json:"hash"`
	AppliedGeneration uint64 `json:"appliedGeneration"`
	AppliedHash       string `json:"appliedHash"`
	// Source is the kind of the source, and Remote how it goes with one that is
	// not on this machine.
	Source string  `json:"source"`
	Remote *Remote `json:"remote,omitempty"`
	// ConfigFrom says what the configuration in force is made from.
	ConfigFrom string   `json:"configFrom"`
	Files      []string `json:"files,omitempty"`
	// ConfigDigest is the SHA-256 of the text that was last looked at, accepted
	// or rejected, so that a rollout sees that it has arrived; empty when there
	// is none.
	ConfigDigest string   `json:"configDigest,omitempty"`
	Warnings     []string `json:"warnings,omitempty"`
	// Findings are what the configuration's author should know.
	Findings []masq.Finding `json:"findings,omitempty"`
	// Unreadable names other rules that could not be looked into.
	Unreadable []string `json:"unreadable,omitempty"`
	// ConfigError, PlanError, LastError and StateError are empty when reading
	// the configuration, planning it for this node, the last apply and saving
	// went well.
	ConfigError string `json:"configError,omitempty"`
	// ConfigReason is what a ConfigError is: ConfigRejected, or
	// ConfigUnavailable when nobody could be asked.
	ConfigReason EventReason `json:"configReason,omitempty"`
	PlanError    string      `json:"planError,omitempty"`
	LastError    string      `json:"lastError,omitempty"`
	StateError   string      `json:"stateError,omitempty"`
	LastSuccess  time.Time   `json:"lastSuccess,omitzero"`
}

// Status returns the status after the last reconciliation.
func (a *Agent) Status() Status {
	s := *a.status.Load()
	if a.Remote != nil {
		remote := a.Remote()
		s.Remote = &remote
	}
	return s
}
