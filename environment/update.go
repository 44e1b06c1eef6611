package environment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment/address"
	"sordino/environment/image"
)

// noChange is the text that Terraform's provider looks for.
const noChange = "Update request does not result in any change to the environment's configuration"

func errNoChange(field string) error {
	return &Error{Code: InvalidArgument, Reason: "UPDATE_HAS_NO_EFFECT", Message: noChange,
		Violations: []Violation{{Field: field, Reason: "UPDATE_HAS_NO_EFFECT", Description: noChange}}}
}

// Update changes what the mask names. A field that the mask names and the
// request does not hold is cleared; what cannot be changed may be named with
// the value that it has.
func (s *Service) Update(ctx context.Context, r UpdateRequest) (*Operation, error) {
	paths, problems := parseMask(r.Mask)
	if err := Refuse(problems); err != nil {
		return nil, err
	}
	fingerprint, err := fingerprintOf("update", r.Name, &r.Spec, r.Mask)
	if err != nil {
		return nil, err
	}
	given := r.Spec.Clone()
	given.clearOutputOnly()
	return s.transact(ctx, r.Name, r.CallOptions, fingerprint, func(tx Tx) (*Operation, error) {
		e, err := load(tx, r.Name)
		if err != nil {
			return nil, err
		}
		if err := idle(tx, e); err != nil {
			return nil, err
		}
		next, violations := merge(e, &given, paths)
		found, version := s.checkImageChange(e, &next, paths)
		violations = append(violations, found...)
		violations = append(violations, newViolations(e, &next, version)...)
		plan, found, err := s.resize(tx, e, &next, version, violations)
		if err != nil {
			return nil, err
		}
		violations = append(violations, found...)
		if err := Refuse(violations); err != nil {
			return nil, asExhausted(err, violations)
		}
		was, is := comparable(e.Name, &e.Spec, e.Plan), comparable(e.Name, &next, plan)
		if equalSpecs(&was, &is) {
			return nil, errNoChange("update_mask")
		}
		return s.change(tx, e, r.ValidateOnly, func(e *Environment) { e.Spec, e.Plan = next, plan })
	})
}

// change stores an environment's new desired state with the operation that
// brings it about.
func (s *Service) change(tx Tx, e *Environment, validateOnly bool, apply func(*Environment)) (*Operation, error) {
	previous := &Previous{Spec: e.Spec.Clone(), Plan: e.Plan, Agent: e.Agent}
	apply(e)
	e.Generation++
	e.Updated = s.Now()
	if validateOnly {
		return s.planned(Update, e), nil
	}
	e.State = Updating
	op := s.begin(Update, e)
	op.Previous = previous
	if err := tx.PutEnvironment(e); err != nil {
		return nil, err
	}
	return op, tx.PutOperation(op)
}

// merge makes the spec that an update asks for, and refuses what cannot be
// changed.
func merge(e *Environment, given *Spec, paths []maskPath) (Spec, []Violation) {
	next := e.Spec.Clone()
	var violations []Violation
	var types []string // named by the mask, or changed by a path above them
	addType := func(field string) {
		if !slices.Contains(types, field) {
			types = append(types, field)
		}
	}
	immutable := func(field string) {
		if sameValue(e, given, field) {
			return
		}
		was, asked := comparable(e.Name, &e.Spec, e.Plan), comparable(e.Name, tried(e, given, field), e.Plan)
		violations = append(violations, immutableField(e, field, was.text(field), asked.text(field)))
	}
	for _, p := range paths {
		if _, skip := fieldIn(p.field, outputOnly); skip {
			continue
		}
		if p.hasKey {
			addType(p.field)
			setEntry(&next, given, p.field, p.key)
			continue
		}
		if unit, ok := fieldIn(p.field, mutable); ok {
			addType(unit)
			next.copyField(given, p.field)
			continue
		}
		below := leaves(p.field)
		if len(below) == 1 && below[0] == p.field {
			immutable(p.field)
			continue
		}
		for _, field := range below {
			if _, skip := fieldIn(field, outputOnly); skip {
				continue
			}
			_, _, has := given.value(field)
			has = has || field == fieldMaxPodsPerNode && given.MaxPodsPerNode != 0 || field == fieldNetworkingType && given.NetworkingType != ""
			switch _, ok := fieldIn(field, mutable); {
			case !ok && has:
				immutable(field)
			case ok && (has || field != fieldImageVersion): // an environment always has an image
				next.copyField(given, field)
				was, is := comparable(e.Name, &e.Spec, e.Plan), comparable(e.Name, &next, e.Plan)
				if !sameField(&was, &is, field) {
					addType(field)
				}
			}
		}
	}
	if len(types) > 1 {
		var names []string
		for _, t := range types {
			names = append(names, restJSON(t))
		}
		list := strings.Join(names, ", ")
		violations = append(violations, Violation{Field: "update_mask", Reason: "UPDATE_TYPES_MIXED",
			Description: fmt.Sprintf("The update would change %d things at once: %s. Only one type of update is possible in a request: send one request each, and wait for its operation to end.", len(types), list),
			Metadata:    map[string]string{"types": list}})
	}
	return next, violations
}

// tried is the environment's spec with one field as it is asked for.
func tried(e *Environment, given *Spec, field string) *Spec {
	s := e.Spec.Clone()
	s.copyField(given, field)
	return &s
}

// sameValue reports whether asking for a field's value changes nothing.
func sameValue(e *Environment, given *Spec, field string) bool {
	was, asked := comparable(e.Name, &e.Spec, e.Plan), comparable(e.Name, tried(e, given, field), e.Plan)
	return sameField(&was, &asked, field)
}

func immutableField(e *Environment, field, was, asked string) Violation {
	advice := fmt.Sprintf("Create a new environment with the value that you want, and move the work there; or leave '%s' out of the update.", restJSON(field))
	if field == fieldAgent {
		what := "enabled"
		if was == "true" {
			what = "disabled"
		}
		advice = fmt.Sprintf("The IP Masquerade agent cannot be %s for an existing environment: it is chosen when the environment is created. Create a new environment, and move the work there.", what)
	}
	return Violation{Field: field, Reason: "FIELD_IMMUTABLE",
		Description: fmt.Sprintf("Field '%s' cannot be changed from %s to %s. %s", restJSON(field), quoted(was), quoted(asked), advice),
		Metadata:    map[string]string{"environment": e.Name.String(), "field": restJSON(field), "value": was, "requested": asked}}
}

func quoted(value string) string {
	switch value {
	case "true", "false", "unset":
		return value
	}
	return "'" + value + "'"
}

// setEntry sets one entry of a map field as it is in another spec; not there
// means not here.
func setEntry(s, given *Spec, field, key string) {
	set := func(current, asked map[string]string) map[string]string {
		next := maps.Clone(current)
		if next == nil {
			next = map[string]string{}
		}
		if value, ok := asked[key]; ok {
			next[key] = value
		} else {
			delete(next, key)
		}
		return next
	}
	if field == fieldLabels {
		s.Labels = set(s.Labels, given.Labels)
		return
	}
	if s.Config == nil {
		s.Config = &servicepb.EnvironmentConfig{}
	}
	if s.Config.SoftwareConfig == nil {
		s.Config.SoftwareConfig = &servicepb.SoftwareConfig{}
	}
	c, asked := s.Config.SoftwareConfig, given.Config.GetSoftwareConfig()
	switch field {
	case fieldPypi:
		c.PypiPackages = set(c.PypiPackages, asked.GetPypiPackages())
	case fieldOverrides:
		c.AirflowConfigOverrides = set(c.AirflowConfigOverrides, asked.GetAirflowConfigOverrides())
	case fieldEnvVariables:
		c.EnvVariables = set(c.EnvVariables, asked.GetEnvVariables())
	}
}

// version is the image version that a stored environment has, also one that the
// catalogue does not know any more.
func (s *Service) version(spec *Spec) image.Version {
	id := spec.Config.GetSoftwareConfig().GetImageVersion()
	if v, ok := s.Images.Version(id); ok {
		return v
	}
	v, _ := image.Parse(id)
	return v
}

// checkImageChange resolves the image version that an update asks for, and
// checks the way to it. The version that comes back is the one whose rules
// hold.
func (s *Service) checkImageChange(e *Environment, next *Spec, paths []maskPath) ([]Violation, image.Version) {
	from := s.version(&e.Spec)
	asked := next.Config.GetSoftwareConfig().GetImageVersion()
	if asked == from.ID {
		return nil, from
	}
	if asked == "" {
		next.copyField(&e.Spec, fieldImageVersion)
		return []Violation{{Field: fieldImageVersion, Reason: "IMAGE_VERSION_REQUIRED",
			Description: "The update mask names 'config.softwareConfig.imageVersion', and the request holds none. Send the image version to upgrade to, or leave it out of the mask.",
			Metadata:    map[string]string{"suggestedVersions": strings.Join(s.Images.UpgradesFrom(from), ", ")}}}, from
	}
	to, violation := s.upgradeTarget(from, asked)
	if violation != nil {
		next.copyField(&e.Spec, fieldImageVersion)
		return []Violation{*violation}, from
	}
	next.Config.SoftwareConfig.ImageVersion = to.ID
	return nil, to
}

// upgradeTarget resolves an image version and checks that there is a way to it.
func (s *Service) upgradeTarget(from image.Version, asked string) (image.Version, *Violation) {
	to, err := s.Images.Resolve(asked)
	var malformed *image.MalformedError
	var unknown *image.UnknownError
	switch {
	case errors.As(err, &malformed):
		return to, &Violation{Field: fieldImageVersion, Reason: "IMAGE_VERSION_MALFORMED", Description: malformed.Error() + ".",
			Metadata: map[string]string{"imageVersion": asked}}
	case errors.As(err, &unknown):
		list := strings.Join(s.Images.UpgradesFrom(from), ", ")
		advice := fmt.Sprintf("Currently suggested upgrades of '%s' are: [%s].", from.ID, list)
		if list == "" {
			advice = fmt.Sprintf("There is no newer version than '%s' to upgrade to.", from.ID)
		}
		return to, &Violation{Field: fieldImageVersion, Reason: "IMAGE_VERSION_UNSUPPORTED",
			Description: fmt.Sprintf("Unsupported image version for upgrade: '%s'. %s", asked, advice),
			Metadata:    map[string]string{"imageVersion": asked, "currentVersion": from.ID, "suggestedVersions": list}}
	}
	if err := s.Images.CheckUpgrade(from, to); err != nil {
		return to, &Violation{Field: fieldImageVersion, Reason: "IMAGE_UPGRADE_NOT_ALLOWED", Description: err.Error(),
			Metadata: map[string]string{"imageVersion": to.ID, "currentVersion": from.ID, "suggestedVersions": strings.Join(s.Images.UpgradesFrom(from), ", ")}}
	}
	return to, nil
}

// newViolations are the rules that the next spec breaks and the stored one does
// not: an environment from before a rule stays changeable.
func newViolations(e *Environment, next *Spec, v image.Version) []Violation {
	before := checkSpec(e.Name.Location, &e.Spec, v)
	return slices.DeleteFunc(checkSpec(e.Name.Location, next, v), func(n Violation) bool {
		return slices.ContainsFunc(before, func(b Violation) bool { return b.Field == n.Field && b.Description == n.Description })
	})
}

// resize plans the addresses of another number of nodes.
func (s *Service) resize(tx Tx, e *Environment, next *Spec, v image.Version, refused []Violation) (address.Plan, []Violation, error) {
	if e.Cluster != "" {
		return e.Plan, checkNodesOfCluster(e, next), nil
	}
	was, is := effective(e.Name, &e.Spec), effective(e.Name, next)
	if was.Config.NodeCount == is.Config.NodeCount || slices.ContainsFunc(refused, func(v Violation) bool { return within(v.Field, fieldNodeCount) }) {
		return e.Plan, nil, nil
	}
	wanted := *e
	wanted.Spec = *next
	request, found, err := s.addressRequest(tx, &wanted, v)
	if err != nil || len(found) > 0 {
		return e.Plan, found, err
	}
	plan, problems := address.Resize(e.Plan, request)
	if len(problems) > 0 {
		plan = e.Plan
	}
	return plan, problems, nil
}

// maxAgentConfig is what a ConfigMap has room for.
const maxAgentConfig = 1 << 20

// AgentEnvironment returns an environment that has the agent, or the refusal
// that there is none.
func (s *Service) AgentEnvironment(ctx context.Context, name Name) (*Environment, error) {
	e, err := s.Get(ctx, name)
	if err == nil {
		err = e.hasAgent()
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Environment) hasAgent() error {
	if e.AgentEnabled() {
		return nil
	}
	return &Error{Code: FailedPrecondition, Reason: "MASQ_AGENT_NOT_ENABLED",
		Message:  fmt.Sprintf("environment '%s' was created without the IP masquerade agent, and it cannot be enabled for an existing environment: create a new one with enableIpMasqAgent", e.Name),
		Metadata: map[string]string{"environment": e.Name.String()}}
}

// UpdateAgentConfig changes the configuration of an environment's agents. With
// ValidateOnly it says what is wrong with a text, or that nothing is.
func (s *Service) UpdateAgentConfig(ctx context.Context, r AgentConfigRequest) (*Operation, error) {
	if n := len(r.Text); n > maxAgentConfig {
		return nil, Refuse([]Violation{{Field: "agent.config", Reason: "AGENT_CONFIG_TOO_LARGE",
			Description: fmt.Sprintf("The agent's configuration has %d bytes. A ConfigMap has room for %d: join neighbouring ranges.", n, maxAgentConfig),
			Metadata:    map[string]string{"size": fmt.Sprint(n), "maximum": fmt.Sprint(maxAgentConfig)}}})
	}
	fingerprint, err := fingerprintOf("updateAgentConfig", r.Name, nil, r.Text, r.Generation)
	if err != nil {
		return nil, err
	}
	return s.transact(ctx, r.Name, r.CallOptions, fingerprint, func(tx Tx) (*Operation, error) {
		e, err := load(tx, r.Name)
		if err != nil {
			return nil, err
		}
		if err := e.hasAgent(); err != nil {
			return nil, err
		}
		if err := idle(tx, e); err != nil {
			return nil, err
		}
		if r.Generation != 0 && r.Generation != e.Agent.Generation {
			return nil, &Error{Code: Aborted, Reason: "AGENT_CONFIG_CHANGED",
				Message:  fmt.Sprintf("the agent's configuration of environment '%s' has generation %d, and the change was made from %d; read it again, and repeat the change", e.Name, e.Agent.Generation, r.Generation),
				Metadata: map[string]string{"environment": e.Name.String(), "generation": fmt.Sprint(e.Agent.Generation), "requested": fmt.Sprint(r.Generation)}}
		}
		violations, err := s.CheckAgentConfig(r.Text, e.Plan)
		if err != nil {
			return nil, err
		}
		if err := Refuse(violations); err != nil {
			return nil, err
		}
		if r.Text == e.Agent.Text && !r.ValidateOnly {
			return nil, errNoChange("agent.config")
		}
		return s.change(tx, e, r.ValidateOnly, func(e *Environment) {
			e.Agent = AgentConfig{Text: r.Text, Generation: e.Agent.Generation + 1}
		})
	})
}

// RestartWebServer restarts an environment's web server.
func (s *Service) RestartWebServer(ctx context.Context, name Name, o CallOptions) (*Operation, error) {
	fingerprint, err := fingerprintOf("restartWebServer", name, nil)
	if err != nil {
		return nil, err
	}
	return s.transact(ctx, name, o, fingerprint, func(tx Tx) (*Operation, error) {
		e, err := load(tx, name)
		if err != nil {
			return nil, err
		}
		if err := idle(tx, e); err != nil {
			return nil, err
		}
		op, err := s.change(tx, e, o.ValidateOnly, func(*Environment) {})
		if err != nil || o.ValidateOnly {
			return op, err
		}
		op.RestartWebServer = true
		return op, tx.PutOperation(op)
	})
}

// CheckUpgrade finds out whether an environment can be upgraded to an image
// version; none asks for the newest that it can be upgraded to. Nothing has to
// be built for that, so the operation that comes back has ended.
func (s *Service) CheckUpgrade(ctx context.Context, name Name, imageVersion string, o CallOptions) (*Operation, error) {
	fingerprint, err := fingerprintOf("checkUpgrade", name, nil, imageVersion)
	if err != nil {
		return nil, err
	}
	return s.transact(ctx, name, o, fingerprint, func(tx Tx) (*Operation, error) {
		e, err := load(tx, name)
		if err != nil {
			return nil, err
		}
		if err := idle(tx, e); err != nil {
			return nil, err
		}
		from := s.version(&e.Spec)
		target := from
		if imageVersion == "" {
			if newer := s.Images.UpgradesFrom(from); len(newer) > 0 {
				target, _ = s.Images.Version(newer[0])
			}
		} else {
			to, violation := s.upgradeTarget(from, imageVersion)
			if violation != nil {
				violation.Field = "image_version"
				return nil, Refuse([]Violation{*violation})
			}
			target = to
		}
		packages := e.Spec.Config.GetSoftwareConfig().GetPypiPackages()
		// No image is built here. Without packages there is nothing to be in
		// conflict; with some it is not known.
		result := servicepb.CheckUpgradeResponse_CONFLICT_RESULT_UNSPECIFIED
		if len(packages) == 0 {
			result = servicepb.CheckUpgradeResponse_NO_CONFLICT
		}
		op := s.begin(Check, e)
		op.State, op.Ended = Succeeded, op.Created
		op.Upgrade = &servicepb.CheckUpgradeResponse{ImageVersion: target.ID, ContainsPypiModulesConflict: result, PypiDependencies: maps.Clone(packages)}
		if o.ValidateOnly {
			op.Name = OperationName{}
			return op, nil
		}
		return op, tx.PutOperation(op)
	})
}

// Delete removes an environment. While it is being deleted, the operation that
// does it comes back.
func (s *Service) Delete(ctx context.Context, name Name, o CallOptions) (*Operation, error) {
	fingerprint, err := fingerprintOf("delete", name, nil)
	if err != nil {
		return nil, err
	}
	return s.transact(ctx, name, o, fingerprint, func(tx Tx) (*Operation, error) {
		e, err := load(tx, name)
		if err != nil {
			return nil, err
		}
		running, err := tx.RunningOperation(e.UUID)
		if err != nil {
			return nil, err
		}
		switch {
		case running != nil && running.Type == Delete:
			return running, nil
		case running != nil || e.State == Creating || e.State == Updating:
			return nil, inProgress(e, running)
		}
		e.Generation++
		e.Updated = s.Now()
		if o.ValidateOnly {
			return s.planned(Delete, e), nil
		}
		e.State = Deleting
		op := s.begin(Delete, e)
		if err := tx.PutEnvironment(e); err != nil {
			return nil, err
		}
		return op, tx.PutOperation(op)
	})
}
