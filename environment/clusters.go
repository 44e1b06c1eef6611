package environment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sordino/environment/address"
	"sordino/environment/image"
)

// Clusters are existing clusters that environments are placed on, one on each.
type Clusters interface {
	// Locations are those that have a cluster, in order.
	Locations() []string
	// Read asks a location's clusters what they have. They come in the order in
	// which they are to be taken.
	Read(ctx context.Context, location string) []Cluster
}

// Cluster is what an existing cluster said when it was asked.
type Cluster struct {
	address.Existing
	// ClaimedBy is the UUID of the environment that it says it has; empty is none.
	ClaimedBy string
	// Unfit is why no environment can be placed on it: it does not answer, or it
	// is not what is declared.
	Unfit error
}

// locations are those that environments can be created in.
func (s *Service) locations() []string {
	if s.Clusters != nil {
		return s.Clusters.Locations()
	}
	return s.Networks.Locations()
}

// place gives an environment the first cluster that is free and has what is
// asked for, and makes its plan. Violations are told where no cluster of the
// location, free or not, has that; the error says why each that does cannot be
// taken.
func (s *Service) place(tx Tx, e *Environment, v image.Version, clusters []Cluster, refused []Violation) ([]Violation, error) {
	if refusesPlace(refused) {
		return nil, nil
	}
	request, found, err := s.addressRequest(nil, e, v)
	if err != nil || len(found) > 0 {
		return found, err
	}
	// What the user leaves out is not asked for.
	request.NodeCount, request.MaxPodsPerNode = int(e.Spec.Config.GetNodeCount()), int(e.Spec.MaxPodsPerNode)
	holders, err := tx.ClusterHolders()
	if err != nil {
		return nil, err
	}
	var mismatches []Violation
	var states []Precondition
	mismatched := 0
	for _, c := range clusters {
		var why string
		var plan address.Plan
		var problems []Violation
		if c.Unfit == nil {
			plan, problems = address.Adopt(request, c.Existing)
		}
		holder, held := holders[c.Name]
		switch {
		case c.Unfit != nil:
			why = c.Unfit.Error()
		case len(problems) > 0:
			mismatched++
			mismatches = append(mismatches, problems...)
			why = "it is not what is asked for: " + problems[0].Description
		case held:
			if why, err = heldBy(tx, holder); err != nil {
				return nil, err
			}
		case c.ClaimedBy != "":
			why = fmt.Sprintf("it is claimed by the environment with UUID %s, which this server does not have: delete that on its own server; if that server is no more, clean the cluster up as docs/environments.md says", c.ClaimedBy)
		default:
			e.Cluster, e.Plan = c.Name, plan
			return nil, nil
		}
		states = append(states, Precondition{Type: "CLUSTER", Subject: c.Name, Description: why})
	}
	if mismatched > 0 && mismatched == len(clusters) {
		return distinct(mismatches), nil
	}
	return nil, noFreeCluster(e.Name.Location, states)
}

// refusesPlace reports whether what a place is looked for with is refused.
func refusesPlace(refused []Violation) bool {
	return slices.ContainsFunc(refused, func(r Violation) bool {
		return within(r.Field, fieldNetwork) || within(r.Field, fieldSubnetwork) || r.Reason == "LOCATION_UNSUPPORTED"
	})
}

// distinct leaves out what is said twice: a range that is malformed is so for
// every cluster.
func distinct(violations []Violation) []Violation {
	var out []Violation
	for _, v := range violations {
		if !slices.ContainsFunc(out, func(o Violation) bool { return o.Field == v.Field && o.Description == v.Description }) {
			out = append(out, v)
		}
	}
	return out
}

func heldBy(tx Tx, holder Name) (string, error) {
	held := fmt.Sprintf("it is held by environment '%s'", holder)
	switch e, err := tx.Environment(holder); {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return "", err
	default:
		held += fmt.Sprintf(", in state %s", e.State)
		if e.State == Deleting {
			return held + ": it is free when that is gone", nil
		}
	}
	return held + ": delete that to free it", nil
}

func noFreeCluster(at Location, states []Precondition) error {
	var b strings.Builder
	metadata := map[string]string{"location": at.ID}
	for _, s := range states {
		fmt.Fprintf(&b, "\n\t%s: %s", s.Subject, s.Description)
		metadata[s.Subject] = s.Description
	}
	return &Error{Code: FailedPrecondition, Reason: "NO_FREE_CLUSTER",
		Message:       fmt.Sprintf("no cluster of location '%s' can take the environment; free one, choose another location, or declare one more in the clusters file:%s", at.ID, b.String()),
		Metadata:      metadata,
		Preconditions: states}
}

// nodeCount is how many nodes an environment has: on an existing cluster as many
// as were last seen there.
func (e *Environment) nodeCount() int {
	if e.Cluster != "" && len(e.Observed.Nodes) > 0 {
		return len(e.Observed.Nodes)
	}
	return len(e.Plan.NodeAddresses)
}

// checkNodesOfCluster refuses another number of nodes than the cluster has.
func checkNodesOfCluster(e *Environment, next *Spec) []Violation {
	asked, has := int(next.Config.GetNodeCount()), e.nodeCount()
	if asked == 0 || asked == has || asked == int(e.Spec.Config.GetNodeCount()) {
		return nil
	}
	var p problems
	p.add(fieldNodeCount, address.Mismatch,
		fmt.Sprintf("%d nodes are asked for, and the environment is on cluster '%s', which has %d. Add nodes to the cluster, or remove them, with what made it: the environment follows by itself.", asked, e.Cluster, has),
		"cluster", e.Cluster, "requested", fmt.Sprint(asked), "actual", fmt.Sprint(has))
	return p
}
