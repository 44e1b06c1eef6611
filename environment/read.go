package environment

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/genproto/googleapis/type/date"

	"sordino/environment/image"
)

// Get returns one environment.
func (s *Service) Get(ctx context.Context, name Name) (e *Environment, err error) {
	err = s.Store.View(ctx, func(tx Tx) error {
		e, err = load(tx, name)
		return err
	})
	return e, err
}

// List returns environments by name, and the token of the next page. The
// location "-" lists all of them.
func (s *Service) List(ctx context.Context, at Location, p Page) ([]*Environment, string, error) {
	size, from, err := p.open(DefaultPageSize, "environments", at.String())
	if err != nil {
		return nil, "", err
	}
	query := EnvironmentQuery{Project: at.Project, Location: everywhere(at.ID), Limit: size + 1}
	if from.After != "" {
		if query.After, err = ParseName(from.After); err != nil {
			return nil, "", err
		}
	}
	var list []*Environment
	if err := s.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Environments(query)
		return err
	}); err != nil {
		return nil, "", err
	}
	if len(list) <= size {
		return list, "", nil
	}
	list = list[:size]
	from.After = list[size-1].Name.String()
	return list, from.token(), nil
}

// everywhere is a location as a query wants it: "-" is all.
func everywhere(location string) string {
	if location == "-" {
		return ""
	}
	return location
}

// ImageVersions lists the image versions, the newest first, and the token of
// the next page.
func (s *Service) ImageVersions(_ context.Context, at Location, p Page, includePast bool) ([]*servicepb.ImageVersion, string, error) {
	// Terraform's provider looks at one page only: by default all are on it.
	size, from, err := p.open(MaxPageSize, "imageVersions", at.String(), fmt.Sprint(includePast))
	if err != nil {
		return nil, "", err
	}
	var list []*servicepb.ImageVersion
	started := from.After == ""
	for _, v := range s.Images.List(includePast) {
		if !started {
			started = v.ID == from.After
			continue
		}
		if len(list) == size {
			from.After = list[size-1].ImageVersionId
			return list, from.token(), nil
		}
		list = append(list, imageVersion(v))
	}
	return list, "", nil
}

// ImageVersion returns one image version.
func (s *Service) ImageVersion(_ context.Context, at Location, id string) (*servicepb.ImageVersion, error) {
	v, ok := s.Images.Version(id)
	if !ok {
		name := at.String() + "/imageVersions/" + id
		return nil, &Error{Code: NotFound, Reason: "IMAGE_VERSION_NOT_FOUND",
			Message:  fmt.Sprintf("image version '%s' is not known; list the image versions to see which there are", id),
			Metadata: map[string]string{"imageVersion": id},
			Resource: &Resource{Type: "ImageVersion", Name: name, Description: "It does not exist."}, Help: []Link{helpVersions}}
	}
	return imageVersion(v), nil
}

func imageVersion(v image.Version) *servicepb.ImageVersion {
	m := &servicepb.ImageVersion{ImageVersionId: v.ID, IsDefault: v.Default, SupportedPythonVersions: v.Python,
		CreationDisabled: v.CreationDisabled, UpgradeDisabled: v.UpgradeDisabled}
	if !v.Released.IsZero() {
		m.ReleaseDate = &date.Date{Year: int32(v.Released.Year()), Month: int32(v.Released.Month()), Day: int32(v.Released.Day())}
	}
	return m
}

// Operation returns one operation.
func (s *Service) Operation(ctx context.Context, name OperationName) (op *Operation, err error) {
	err = s.Store.View(ctx, func(tx Tx) error {
		op, err = loadOperation(tx, name)
		return err
	})
	return op, err
}

func loadOperation(tx Tx, name OperationName) (*Operation, error) {
	op, err := tx.Operation(name)
	if errors.Is(err, ErrNotFound) {
		return nil, &Error{Code: NotFound, Reason: "OPERATION_NOT_FOUND",
			Message:  fmt.Sprintf("operation '%s' is not there; operations are kept for %d days after their end", name, OperationRetention/(24*time.Hour)),
			Metadata: map[string]string{"operation": name.String()},
			Resource: &Resource{Type: "Operation", Name: name.String(), Description: "It does not exist."}}
	}
	return op, err
}

// Operations lists operations, the newest first, and the token of the next
// page. The filter is a list of FIELD=VALUE joined by AND, with the fields
// done, metadata.state, metadata.operationType and metadata.resource.
func (s *Service) Operations(ctx context.Context, at Location, filter string, p Page) ([]*Operation, string, error) {
	size, from, err := p.open(DefaultPageSize, "operations", at.String(), filter)
	if err != nil {
		return nil, "", err
	}
	matches, err := operationFilter(filter)
	if err != nil {
		return nil, "", err
	}
	query := OperationQuery{Project: at.Project, Location: everywhere(at.ID), Limit: size + 1}
	if from.After != "" {
		name, err := ParseOperationName(from.After)
		if err != nil {
			return nil, "", err
		}
		query.Before = &Operation{Name: name, Created: time.Unix(0, from.Created).UTC()}
	}
	var list []*Operation
	err = s.Store.View(ctx, func(tx Tx) error {
		for len(list) <= size {
			page, err := tx.Operations(query)
			if err != nil {
				return err
			}
			for _, op := range page {
				if matches(op) {
					list = append(list, op)
				}
			}
			if len(page) < query.Limit {
				return nil
			}
			query.Before = page[len(page)-1]
		}
		return nil
	})
	if err != nil || len(list) <= size {
		return list, "", err
	}
	list = list[:size]
	last := list[size-1]
	from.After, from.Created = last.Name.String(), last.Created.UnixNano()
	return list, from.token(), nil
}

// operationFilter reads a filter (a small part of AIP-160).
func operationFilter(text string) (func(*Operation) bool, error) {
	type term struct{ field, value string }
	var terms []term
	if strings.TrimSpace(text) != "" {
		for _, part := range strings.Split(text, " AND ") {
			field, value, ok := strings.Cut(part, "=")
			if !ok {
				field, value, ok = strings.Cut(part, ":")
			}
			t := term{strings.TrimSpace(field), strings.Trim(strings.TrimSpace(value), `"'`)}
			switch foldName(t.field) {
			case "done":
				ok = ok && (t.value == "true" || t.value == "false")
			case "metadata.state", "metadata.operationtype", "metadata.resource":
			default:
				ok = false
			}
			if !ok {
				return nil, refuse([]Violation{{Field: "filter", Reason: "FILTER_INVALID",
					Description: fmt.Sprintf("The filter's part '%s' is not understood. Write FIELD=VALUE, joined by AND, with the fields done (true or false), metadata.state, metadata.operationType and metadata.resource.", strings.TrimSpace(part)),
					Metadata:    map[string]string{"filter": text}}})
			}
			terms = append(terms, t)
		}
	}
	return func(op *Operation) bool {
		for _, t := range terms {
			var value string
			switch foldName(t.field) {
			case "done":
				value = fmt.Sprint(op.Done())
			case "metadata.state":
				value = op.State.String()
				if op.State == Succeeded && (t.value == "SUCCESSFUL" || t.value == "SUCCEEDED") {
					value = t.value // two names of one state
				}
			case "metadata.operationtype":
				value = op.Type.String()
			case "metadata.resource":
				value = op.Target.String()
			}
			if value != t.value {
				return false
			}
		}
		return true
	}, nil
}

// DeleteOperation forgets an operation that has ended.
func (s *Service) DeleteOperation(ctx context.Context, name OperationName) error {
	return s.Store.Update(ctx, func(tx Tx) error {
		op, err := loadOperation(tx, name)
		if err != nil {
			return err
		}
		if !op.Done() {
			return &Error{Code: FailedPrecondition, Reason: "OPERATION_NOT_DONE",
				Message:       fmt.Sprintf("operation '%s' is under way, and only one that has ended can be deleted; wait for it, or cancel it", name),
				Metadata:      map[string]string{"operation": name.String(), "state": op.State.String()},
				Resource:      &Resource{Type: "Operation", Name: name.String()},
				Preconditions: []Precondition{{Type: "STATE", Subject: name.String(), Description: "The operation has to be done."}}}
		}
		return tx.DeleteOperation(name)
	})
}

// CancelOperation asks the reconciler to stop an operation between two steps.
// For one that has ended it does nothing.
func (s *Service) CancelOperation(ctx context.Context, name OperationName) error {
	var wake *Name
	err := s.Store.Update(ctx, func(tx Tx) error {
		wake = nil
		op, err := loadOperation(tx, name)
		if err != nil || op.Done() || op.CancelRequested {
			return err
		}
		op.CancelRequested = true
		wake = &op.Target
		return tx.PutOperation(op)
	})
	if err == nil && wake != nil && s.Wake != nil {
		s.Wake(*wake)
	}
	return err
}

// Forget deletes the operations that ended longer ago than OperationRetention,
// and says how many.
func (s *Service) Forget(ctx context.Context) (int, error) {
	const batch = 500 // one transaction stays short
	total := 0
	for {
		deleted := 0
		err := s.Store.Update(ctx, func(tx Tx) error {
			deleted = 0
			old, err := tx.Operations(OperationQuery{EndedBefore: s.Now().Add(-OperationRetention), Limit: batch})
			if err != nil {
				return err
			}
			for _, op := range old {
				if err := tx.DeleteOperation(op.Name); err != nil {
					return err
				}
			}
			deleted = len(old)
			return nil
		})
		if err != nil {
			return total, err
		}
		total += deleted
		if deleted < batch {
			return total, nil
		}
	}
}
