package environment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment/address"
	"sordino/environment/image"
)

// Create checks a request for a new environment, plans its addresses, and
// stores the environment with the operation that makes it.
func (s *Service) Create(ctx context.Context, r CreateRequest) (*Operation, error) {
	name, err := createName(r.Parent, r.Name)
	if err != nil {
		return nil, err
	}
	fingerprint, err := fingerprintOf("create", name, &r.Spec)
	if err != nil {
		return nil, err
	}
	spec := r.Spec.Clone()
	v, violations := s.prepare(&spec, "config.software_config.image_version")
	violations = append(violations, s.checkLocation(name.Location)...)
	if v.ID != "" {
		violations = append(violations, checkSpec(name.Location, &spec, v)...)
		violations = append(violations, checkAtCreate(&spec)...)
		if v.CreationDisabled {
			violations = append(violations, s.unsupportedForNew(v.ID))
		}
	}
	// Clusters are asked before the transaction, which must not wait. What came
	// of it is looked at inside: a request that is sent again has its answer.
	var clusters []Cluster
	if s.Clusters != nil && v.ID != "" && !refusesPlace(violations) {
		clusters = s.Clusters.Read(ctx, name.Location.ID)
	}
	return s.transact(ctx, name, r.CallOptions, fingerprint, func(tx Tx) (*Operation, error) {
		if existing, err := tx.Environment(name); err == nil {
			return nil, &Error{Code: AlreadyExists, Reason: "ENVIRONMENT_ALREADY_EXISTS",
				Message:  fmt.Sprintf("environment '%s' exists already, in state %s; choose another name, or delete it first", name, existing.State),
				Metadata: map[string]string{"environment": name.String(), "state": existing.State.String()},
				Resource: &Resource{Type: "Environment", Name: name.String(), Description: "It exists already."}}
		} else if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		now := s.Now()
		e := &Environment{Name: name, UUID: s.NewID(), State: Creating, Spec: spec, Created: now, Updated: now,
			Agent: AgentConfig{Generation: 1}, Generation: 1}
		all := slices.Clone(violations)
		var place error
		switch {
		case v.ID == "":
		case s.Clusters != nil:
			var found []Violation
			found, place = s.place(tx, e, v, clusters, violations)
			all = append(all, found...)
		default:
			plan, found, err := s.plan(tx, e, v, violations)
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
			e.Plan = plan
		}
		if err := Refuse(all); err != nil {
			return nil, asExhausted(err, all)
		}
		if place != nil {
			return nil, place
		}
		if r.ValidateOnly {
			return s.planned(Create, e), nil
		}
		op := s.begin(Create, e)
		if err := tx.PutEnvironment(e); err != nil {
			return nil, err
		}
		return op, tx.PutOperation(op)
	})
}

// createName joins the parent and the environment's name, which may hold
// nothing but the id.
func createName(parent Location, name Name) (Name, error) {
	if name.Location == (Location{}) {
		name.Location = parent
	}
	if name.Location != parent {
		return Name{}, Refuse([]Violation{{Field: "name", Reason: "NAME_PARENT_MISMATCH",
			Description: fmt.Sprintf("The environment's name '%s' is not in the parent '%s'. Use the same project and location in both.", name, parent),
			Metadata:    map[string]string{"name": name.String(), "parent": parent.String()}}})
	}
	return ParseName(name.String())
}

// prepare brings a spec into the form that is stored: nothing that only the
// server can say, no empty member of a oneof, and a resolved image version.
func (s *Service) prepare(spec *Spec, field string) (image.Version, []Violation) {
	spec.clearOutputOnly()
	if spec.Config == nil {
		spec.Config = &servicepb.EnvironmentConfig{}
	}
	if spec.Config.SoftwareConfig == nil {
		spec.Config.SoftwareConfig = &servicepb.SoftwareConfig{}
	}
	if policy := spec.Config.GetNodeConfig().GetIpAllocationPolicy(); policy != nil {
		// Blank is the same as absent: the default size.
		if policy.GetClusterIpv4CidrBlock() == "" && policy.GetClusterSecondaryRangeName() == "" {
			policy.ClusterIpAllocation = nil
		}
		if policy.GetServicesIpv4CidrBlock() == "" && policy.GetServicesSecondaryRangeName() == "" {
			policy.ServicesIpAllocation = nil
		}
	}
	software := spec.Config.SoftwareConfig
	if software.ImageVersion == "" {
		// The API itself would take its newest Composer 2 or 3. Who comes here
		// has automation for Composer 1.
		v := s.Images.Standard()
		software.ImageVersion = v.ID
		return v, nil
	}
	v, err := s.Images.Resolve(software.ImageVersion)
	var malformed *image.MalformedError
	var unknown *image.UnknownError
	switch {
	case errors.As(err, &malformed):
		return v, []Violation{{Field: field, Reason: "IMAGE_VERSION_MALFORMED", Description: malformed.Error() + ".",
			Metadata: map[string]string{"imageVersion": malformed.Text}}}
	case errors.As(err, &unknown):
		return v, []Violation{s.unsupportedForNew(unknown.Text, unknown.Suggestions...)}
	}
	software.ImageVersion = v.ID
	return v, nil
}

// unsupportedForNew is Composer's own refusal of an image version.
func (s *Service) unsupportedForNew(id string, suggestions ...string) Violation {
	if len(suggestions) == 0 {
		for _, v := range s.Images.List(false) {
			if !v.CreationDisabled {
				suggestions = append(suggestions, v.ID)
			}
		}
	}
	list := strings.Join(suggestions, ", ")
	return Violation{Field: fieldImageVersion, Reason: "IMAGE_VERSION_UNSUPPORTED",
		Description: fmt.Sprintf("Unsupported image version for new environment: '%s'. Currently suggested new environment image versions are: [%s].", id, list),
		Metadata:    map[string]string{"imageVersion": id, "suggestedVersions": list}}
}

func (s *Service) checkLocation(at Location) []Violation {
	known := s.locations()
	if slices.Contains(known, at.ID) {
		return nil
	}
	advice := "Choose one of: " + strings.Join(known, ", ") + "."
	if i := strings.LastIndexByte(at.ID, '-'); i > 0 && slices.Contains(known, at.ID[:i]) {
		advice = fmt.Sprintf("That looks like a zone: choose its region '%s'.", at.ID[:i])
	}
	return []Violation{{Field: "parent", Reason: "LOCATION_UNSUPPORTED",
		Description: fmt.Sprintf("Location '%s' is not one that environments can be created in. %s", at.ID, advice),
		Metadata:    map[string]string{"location": at.ID}}}
}

// plan plans an environment's addresses. Where the fields that it would be made
// from are refused already, there is no plan and no further violation.
func (s *Service) plan(tx Tx, e *Environment, v image.Version, refused []Violation) (address.Plan, []Violation, error) {
	refuses := func(field string) bool {
		return slices.ContainsFunc(refused, func(r Violation) bool { return within(r.Field, field) })
	}
	if refusesPlace(refused) {
		return address.Plan{}, nil, nil
	}
	request, found, err := s.addressRequest(tx, e, v)
	if err != nil || len(found) > 0 {
		return address.Plan{}, found, err
	}
	// With a number that is refused the ranges are still looked at, for the
	// default number: their faults are to be told in the same answer.
	if refuses(fieldNodeCount) {
		request.NodeCount = DefaultNodeCount
	}
	if refuses(fieldMaxPodsPerNode) {
		request.MaxPodsPerNode = address.DefaultMaxPodsPerNode
	}
	plan, problems := address.NewPlan(request)
	return plan, problems, nil
}

// addressRequest asks for what a spec needs of its network. Without a
// transaction nobody else is on it: an existing cluster's ranges are its own.
func (s *Service) addressRequest(tx Tx, e *Environment, v image.Version) (address.Request, []Violation, error) {
	n := e.Spec.Config.GetNodeConfig()
	networkID := networkName(e.Name.Project, n.GetNetwork())
	network, err := s.Networks.Network(e.Name.Project, networkID)
	var unknown *Error
	if errors.As(err, &unknown) {
		return address.Request{}, []Violation{{Field: fieldNetwork, Reason: unknown.Reason, Description: unknown.Message, Metadata: unknown.Metadata}}, nil
	}
	if err != nil {
		return address.Request{}, nil, err
	}
	var reservations []address.Reservation
	if tx != nil {
		if reservations, err = tx.Reservations(networkID); err != nil {
			return address.Request{}, nil, err
		}
	}
	nodes := int(e.Spec.Config.GetNodeCount())
	if nodes == 0 {
		nodes = DefaultNodeCount
	}
	request := address.Request{
		Owner: e.Name.String(), Network: network, Region: e.Name.Location.ID,
		Subnetwork: subnetworkName(networkID, e.Name.Location.ID, n.GetSubnetwork()),
		VPCNative:  usesAlias(&e.Spec, v), NodeCount: nodes, MaxPodsPerNode: int(e.MaxPodsPerNode()),
		Reservations: reservations,
	}
	if policy := n.GetIpAllocationPolicy(); request.VPCNative { // refused without, see checkWithoutAlias
		request.Pods = address.Wish{Text: policy.GetClusterIpv4CidrBlock(), SecondaryName: policy.GetClusterSecondaryRangeName()}
		request.Services = address.Wish{Text: policy.GetServicesIpv4CidrBlock(), SecondaryName: policy.GetServicesSecondaryRangeName()}
	}
	// Composer 3 keeps its cluster out of the user's network.
	if p := e.Spec.Config.GetPrivateEnvironmentConfig(); private(&e.Spec) && v.Composer.Major < 3 {
		request.PUPI = p.GetEnablePrivatelyUsedPublicIps()
		request.Private = &address.PrivateWish{
			Master: p.GetPrivateClusterConfig().GetMasterIpv4CidrBlock(), WebServer: p.GetWebServerIpv4CidrBlock(), Database: p.GetCloudSqlIpv4CidrBlock()}
	}
	return request, nil, nil
}

// asExhausted makes the refusal one of a failed precondition when all that is
// wrong is that the network has no room: the same request may do later.
func asExhausted(err error, violations []Violation) error {
	e, ok := err.(*Error)
	if !ok || slices.ContainsFunc(violations, func(v Violation) bool { return v.Reason != address.Exhausted }) {
		return err
	}
	e.Code = FailedPrecondition
	for _, v := range violations {
		e.Preconditions = append(e.Preconditions, Precondition{Type: address.Exhausted, Subject: v.Field, Description: v.Description})
	}
	return e
}
