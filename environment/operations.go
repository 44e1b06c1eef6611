package environment

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

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
				return nil, Refuse([]Violation{{Field: "filter", Reason: "FILTER_INVALID",
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
