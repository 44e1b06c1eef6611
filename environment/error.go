package environment

import (
	"errors"
	"fmt"
	"strings"

	"sordino/environment/address"
)

// Code says what kind of refusal an Error is. The edge maps each to one HTTP
// and one gRPC status.
type Code int

// The codes.
const (
	Internal Code = iota // also of every error that is not an *Error
	InvalidArgument
	FailedPrecondition
	NotFound
	AlreadyExists
	Aborted
	PermissionDenied
	Unauthenticated
	ResourceExhausted
	Unavailable
	Unimplemented
	Cancelled
)

// Error is a refusal, worded for the one who asked.
type Error struct {
	Code Code `json:"code"`
	// Reason is a stable UPPER_SNAKE_CASE word for programs (AIP-193).
	Reason string `json:"reason,omitempty"`
	// Message is for a person: what is wrong, with what, and what to do.
	Message string `json:"message"`
	// Metadata holds every value in the message that is not constant.
	Metadata map[string]string `json:"metadata,omitempty"`
	// Violations name the fields at fault, all of them.
	Violations []Violation `json:"violations,omitempty"`
	// Resource is what the request was about, where that is the point.
	Resource *Resource `json:"resource,omitempty"`
	// Preconditions are states that would have to be otherwise.
	Preconditions []Precondition `json:"preconditions,omitempty"`
	// Help are pages to read on: absolute URLs.
	Help []Link `json:"help,omitempty"`
}

// Violation is one field at fault, its path in proto spelling from the
// environment's root: "config.node_config.enable_ip_masq_agent".
type Violation = address.Violation

// Resource names a resource and its type, "Environment" for example.
type Resource struct {
	Type        string `json:"type"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
}

// Precondition is a state that stood in the way.
type Precondition struct {
	Type        string `json:"type"`
	Subject     string `json:"subject"`
	Description string `json:"description"`
}

// Link is a page to read on.
type Link struct {
	Description string `json:"description"`
	URL         string `json:"url"`
}

func (e *Error) Error() string { return e.Message }

// CodeOf is an error's code; Internal for one that is not an *Error.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// Refuse makes one InvalidArgument error of violations, numbered in the words
// that Composer itself uses, with the pages that help; nil when there are none.
// The error's reason is the first violation's.
func Refuse(violations []Violation) error {
	if len(violations) == 0 {
		return nil
	}
	var b strings.Builder
	if len(violations) == 1 {
		b.WriteString("Found 1 problem:")
	} else {
		fmt.Fprintf(&b, "Found %d problems:", len(violations))
	}
	metadata := map[string]string{}
	for i, v := range violations {
		fmt.Fprintf(&b, "\n\t%d) %s", i+1, v.Description)
		for key, value := range v.Metadata {
			if _, taken := metadata[key]; !taken {
				metadata[key] = value
			}
		}
	}
	return &Error{Code: InvalidArgument, Reason: violations[0].Reason, Message: b.String(), Metadata: metadata, Violations: violations,
		Help: helpOf(violations)}
}
