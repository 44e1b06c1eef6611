package environment

import (
	"fmt"
	"net/netip"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment/address"
)

// State is an environment's state, with the API's own values.
type State = servicepb.Environment_State

// The states. An ended operation never leaves an environment in Creating,
// Updating or Deleting.
const (
	Creating = servicepb.Environment_CREATING
	Running  = servicepb.Environment_RUNNING
	Updating = servicepb.Environment_UPDATING
	Deleting = servicepb.Environment_DELETING
	Errored  = servicepb.Environment_ERROR
)

// Unsettled reports whether an operation works on an environment in this state.
func Unsettled(s State) bool { return s == Creating || s == Updating || s == Deleting }

// Spec is what a user asks for, exactly as given but for image aliases, which
// are resolved. What the server chooses is never in it (see [Environment]):
// a client that compares would take it for a change.
type Spec struct {
	Config  *servicepb.EnvironmentConfig
	Labels  map[string]string
	Storage *servicepb.StorageConfig
	// MaxPodsPerNode is v1beta1's nodeConfig.maxPodsPerNode; 0 is the default, 32.
	MaxPodsPerNode int32
	// NetworkingType is the REST API's privateEnvironmentConfig.networkingType:
	// "", "PUBLIC" or "PRIVATE".
	NetworkingType string
}

// Environment is one environment as it is stored.
type Environment struct {
	Name             Name
	UUID             string
	State            State
	Spec             Spec
	Created, Updated time.Time
	// Cluster is the existing cluster that the environment has; empty where the
	// driver makes one. It never changes.
	Cluster string

	// Plan is every range and address that the environment uses, given or
	// chosen.
	Plan address.Plan
	// Agent is the user's configuration of the agent.
	Agent AgentConfig

	// Generation counts the accepted changes of what is desired, from 1.
	Generation int64
	// Observed is the last that the driver told of it.
	Observed Observed
	// Revision changes with every write of the row; a write with another one
	// than is stored is refused (ErrConflict).
	Revision int64
}

// AgentConfig is the user's configuration of an environment's agents: the text
// that the ConfigMap ip-masq-agent would hold under the key "config".
type AgentConfig struct {
	Text       string `json:"text"`
	Generation int64  `json:"generation"`
}

// AgentEnabled reports whether the environment was created with the agent.
func (e *Environment) AgentEnabled() bool {
	return e.Spec.Config.GetNodeConfig().GetEnableIpMasqAgent()
}

// Missing says what of the environment is not in force in an observation; nil
// when every node is there, ready, and holds what is desired.
func (e *Environment) Missing(o Observed) error {
	if o.Unseen != nil {
		return fmt.Errorf("not seen since %s: %s", o.Unseen.Since.Format(time.RFC3339), o.Unseen.Cause)
	}
	switch o.Generation {
	case e.Generation:
	case 0:
		return fmt.Errorf("generation %d is not in place, or not proven for the nodes and workers that are there now", e.Generation)
	default:
		return fmt.Errorf("generation %d is in place, not %d", o.Generation, e.Generation)
	}
	// An existing cluster has the nodes that it has, at least one.
	if want := len(e.Plan.NodeAddresses); len(o.Nodes) != want && (e.Cluster == "" || len(o.Nodes) == 0) {
		return fmt.Errorf("the number of nodes in place is %d, not %d", len(o.Nodes), want)
	}
	for _, n := range o.Nodes {
		switch {
		case !n.Ready:
			return fmt.Errorf("node %s is not ready: %s", n.Name, n.Error)
		case e.AgentEnabled() && n.ConfigGeneration != e.Agent.Generation:
			return fmt.Errorf("the agent of node %s holds generation %d of its configuration, not %d", n.Name, n.ConfigGeneration, e.Agent.Generation)
		}
	}
	return nil
}

// Reservations are the ranges and addresses that nobody else on the network may
// have. An existing cluster's are its own affair: two clusters may have the same.
func (e *Environment) Reservations() []address.Reservation {
	if e.Cluster != "" {
		return nil
	}
	return e.Plan.Reservations(e.Name.String())
}

// NodeNetwork are the addresses of the i-th observed node and of its Pods;
// invalid where they are not known.
func (e *Environment) NodeNetwork(i int) (node netip.Addr, pods netip.Prefix) {
	if n := e.Observed.Nodes[i].Network; n != nil {
		return n.Address, n.PodCIDR
	}
	if e.Cluster == "" && i < len(e.Plan.NodeAddresses) {
		return e.Plan.NodeAddresses[i], e.Plan.NodePods(i)
	}
	return netip.Addr{}, netip.Prefix{}
}

// Observed is what a driver found.
type Observed struct {
	// Generation is the environment's generation that is in place.
	Generation int64          `json:"generation"`
	Nodes      []ObservedNode `json:"nodes,omitempty"`
	// Proof says how masquerading was last proven by a packet: "192.168.0.2 was
	// seen as 10.128.0.2 by 203.0.113.10". Empty is not proven.
	Proof string `json:"proof,omitempty"`
	// Checked is when that was, not when somebody looked.
	Checked time.Time `json:"checked,omitzero"`
	// Unseen says that the cluster cannot be observed at the moment: everything
	// else is what was found before. The reconciler sets it.
	Unseen *Unseen `json:"unseen,omitempty"`
}

// Unseen is since when a cluster could not be observed, and why not at first.
type Unseen struct {
	Since time.Time `json:"since"`
	Cause string    `json:"cause"`
}

// ObservedNode is one node and its agent.
type ObservedNode struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	// ConfigGeneration is the AgentConfig.Generation that the agent was given.
	ConfigGeneration int64 `json:"configGeneration"`
	// DesiredGeneration and AppliedGeneration are the agent's own count, Hash
	// is of the applied rules.
	DesiredGeneration uint64 `json:"desiredGeneration"`
	AppliedGeneration uint64 `json:"appliedGeneration"`
	Hash              string `json:"hash"`
	// Error is why the node does not hold what it should.
	Error string `json:"error,omitempty"`
	// Network is where an existing cluster's node is; nil where it follows from
	// the plan.
	Network *NodeNetwork `json:"network,omitempty"`
	// Findings are what the agent has to say of its configuration.
	Findings []string `json:"findings,omitempty"`
}

// NodeNetwork is where a node is.
type NodeNetwork struct {
	Address netip.Addr `json:"address,omitzero"`
	// PodCIDR is its Pods' range; invalid where the network plugin keeps it to
	// itself.
	PodCIDR netip.Prefix `json:"podCidr,omitzero"`
}
