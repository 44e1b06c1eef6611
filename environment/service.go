package environment

import (
	"time"

	"sordino/environment/address"
	"sordino/environment/image"
)

// Options are what a Service is made of.
type Options struct {
	Store    Store
	Networks Networks
	// Clusters are existing ones that environments are placed on; nil where the
	// driver makes a cluster for each.
	Clusters Clusters
	// Images are the image versions that are known.
	Images *image.Catalogue
	// CheckAgentConfig validates a user's configuration of the agent for a
	// cluster with the plan's ranges; its error is a list of violations.
	CheckAgentConfig func(text string, plan address.Plan) ([]Violation, error)
	// Wake tells the reconciler that an environment wants it. It is called after
	// the transaction, and must not block.
	Wake func(Name)
	Now  func() time.Time
	// NewID makes the UUIDs of environments and operations.
	NewID func() string
}

// Networks are the declared networks.
type Networks interface {
	// Network returns a network by its full resource name for an environment of
	// a project: its own or, with Shared VPC, a host project's. An *Error says
	// why there is none, and which there are. One without subnetworks is that of
	// the existing cluster that is taken.
	Network(project, name string) (address.Network, error)
	// Locations are those that an environment can be created in.
	Locations() []string
}

// Service is what can be asked of environments. Every method checks the whole
// request before it stores anything, and returns an *Error for a refusal.
type Service struct{ Options }

// NewService returns a Service.
func NewService(o Options) *Service { return &Service{o} }

// CallOptions stand beside a request that changes something.
type CallOptions struct {
	// RequestID makes the request idempotent (AIP-155): the same id again, with
	// the same content, returns the operation of the first time.
	RequestID string
	// ValidateOnly checks and plans, and stores nothing (AIP-163): the operation
	// that comes back is done, has no name, and its Result is the whole plan.
	ValidateOnly bool
}

// CreateRequest asks for a new environment.
type CreateRequest struct {
	Parent Location
	// Name may be empty of everything but ID.
	Name Name
	Spec Spec
	CallOptions
}

// UpdateRequest asks for a change of what the mask's paths name.
type UpdateRequest struct {
	Name Name
	Spec Spec
	// Mask has the paths as the client wrote them: snake case or camel case,
	// map keys verbatim with their dots.
	Mask []string
	CallOptions
}

// AgentConfigRequest asks for another configuration of an environment's
// agents.
type AgentConfigRequest struct {
	Name Name
	// Text is what the ConfigMap ip-masq-agent would hold under the key
	// "config"; empty is the default configuration.
	Text string
	// Generation, when not 0, is the AgentConfig.Generation that the change was
	// made from: another one meanwhile is a conflict.
	Generation int64
	CallOptions
}

// Page asks for a part of a list (AIP-158).
type Page struct {
	// Size is the most to return: 0 is the default, more than the maximum is
	// the maximum, negative is an error.
	Size int32
	// Token is the one that came with the page before.
	Token string
}
