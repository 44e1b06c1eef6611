package environment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"google.golang.org/protobuf/proto"
)

// requestIDForm is what a request id may be: AIP-155 asks clients for a UUID,
// and nothing depends on it.
var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

func (o CallOptions) check() error {
	if o.RequestID != "" && !requestIDForm.MatchString(o.RequestID) {
		return Refuse([]Violation{{Field: "request_id", Reason: "REQUEST_ID_MALFORMED",
			Description: "The request id is malformed. Send a UUID, for example; at most 128 letters, digits, dots, colons, dashes and underscores."}})
	}
	return nil
}

// transact runs a change in one transaction: the operation of the first time
// where the request id was seen, and else what do returns, which is kept with
// the id. With ValidateOnly nothing is written. The environment is woken after
// the commit.
func (s *Service) transact(ctx context.Context, target Name, o CallOptions, fingerprint string, do func(Tx) (*Operation, error)) (*Operation, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	var op *Operation
	run := s.Store.Update
	if o.ValidateOnly {
		run = s.Store.View
	}
	err := run(ctx, func(tx Tx) error {
		op = nil
		if o.RequestID != "" && !o.ValidateOnly {
			first, err := replayed(tx, target.Project, o.RequestID, fingerprint)
			if first != nil || err != nil {
				op = first
				return err
			}
		}
		var err error
		if op, err = do(tx); err != nil {
			return err
		}
		if o.RequestID != "" && !o.ValidateOnly {
			return tx.PutRequest(target.Project, o.RequestID, Request{Fingerprint: fingerprint, Operation: op.Name, Created: s.Now()})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !o.ValidateOnly && s.Wake != nil {
		s.Wake(target)
	}
	return op, nil
}

// replayed returns what a request id led to before; nothing when it is new, or
// so old that its operation is forgotten.
func replayed(tx Tx, project, id, fingerprint string) (*Operation, error) {
	r, err := tx.Request(project, id)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if r.Fingerprint != fingerprint {
		return nil, Refuse([]Violation{{Field: "request_id", Reason: "REQUEST_ID_REUSED",
			Description: fmt.Sprintf("The request id '%s' was used for another request, which started operation '%s'. Send a new id with every new request.", id, r.Operation),
			Metadata:    map[string]string{"requestId": id, "operation": r.Operation.String()}}})
	}
	op, err := tx.Operation(r.Operation)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return op, err
}

// fingerprintOf is a hash of a request's content.
func fingerprintOf(method string, name Name, spec *Spec, rest ...any) (string, error) {
	h := sha256.New()
	encoder := json.NewEncoder(h)
	if err := encoder.Encode([]any{method, name.String(), rest}); err != nil {
		return "", err
	}
	if spec != nil {
		message, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec.toMessage())
		if err != nil {
			return "", err
		}
		if err := encoder.Encode([]any{message, spec.MaxPodsPerNode, spec.NetworkingType}); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// begin makes an environment's next operation.
func (s *Service) begin(t OperationType, e *Environment) *Operation {
	return &Operation{
		Name: OperationName{e.Name.Location, s.NewID()}, Type: t, State: Pending,
		Target: e.Name, TargetUUID: e.UUID, Created: s.Now(), Generation: e.Generation,
	}
}

// planned is the answer to ValidateOnly: done, without a name, and with the
// environment as it would be.
func (s *Service) planned(t OperationType, e *Environment) *Operation {
	now := s.Now()
	return &Operation{Type: t, State: Succeeded, Target: e.Name, TargetUUID: e.UUID, Created: now, Ended: now, Generation: e.Generation, Result: e}
}

// load returns an environment, or the refusal that there is none.
func load(tx Tx, name Name) (*Environment, error) {
	e, err := tx.Environment(name)
	if errors.Is(err, ErrNotFound) {
		return nil, &Error{Code: NotFound, Reason: "ENVIRONMENT_NOT_FOUND",
			Message:  fmt.Sprintf("environment '%s' is not there; list the environments to see which there are", name),
			Metadata: map[string]string{"environment": name.String()},
			Resource: &Resource{Type: "Environment", Name: name.String(), Description: "It does not exist."}}
	}
	return e, err
}

// idle refuses to change an environment that is being changed, or that is not
// running.
func idle(tx Tx, e *Environment) error {
	running, err := tx.RunningOperation(e.UUID)
	if err != nil {
		return err
	}
	if running != nil && e.State != Deleting {
		return inProgress(e, running)
	}
	switch e.State {
	case Running:
		return nil
	case Creating, Updating:
		return inProgress(e, nil)
	}
	advice := "it can only be deleted"
	if e.State == Deleting {
		advice = "wait until it is gone"
	}
	return &Error{Code: FailedPrecondition, Reason: "ENVIRONMENT_NOT_RUNNING",
		Message:       fmt.Sprintf("environment '%s' is in state %s, and only a running one can be changed; %s", e.Name, e.State, advice),
		Metadata:      map[string]string{"environment": e.Name.String(), "state": e.State.String()},
		Resource:      &Resource{Type: "Environment", Name: e.Name.String()},
		Preconditions: []Precondition{{Type: "STATE", Subject: e.Name.String(), Description: fmt.Sprintf("The environment has to be in state RUNNING, and is in state %s.", e.State)}}}
}

func inProgress(e *Environment, running *Operation) error {
	metadata := map[string]string{"environment": e.Name.String(), "state": e.State.String()}
	which, how := "an operation", ""
	if running != nil {
		metadata["operation"] = running.Name.String()
		which = fmt.Sprintf("operation '%s'", running.Name)
		how = fmt.Sprintf(": sordino operations wait %s, or the same with gcloud composer", running.Name)
	}
	return &Error{Code: Aborted, Reason: "OPERATION_IN_PROGRESS",
		Message:  fmt.Sprintf("environment '%s' is in state %s: %s is under way; wait for it to end, then try again%s", e.Name, e.State, which, how),
		Metadata: metadata,
		Resource: &Resource{Type: "Environment", Name: e.Name.String()}}
}
