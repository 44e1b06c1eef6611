package kubeapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// What a [StatusError] may be, for errors.Is.
var (
	ErrNotFound      = errors.New("not found")
	ErrAlreadyExists = errors.New("already exists")
	ErrConflict      = errors.New("conflict")
	ErrForbidden     = errors.New("forbidden")
	ErrUnauthorized  = errors.New("unauthorized")
	// ErrExpired: the resource version is too old; list anew.
	ErrExpired = errors.New("expired")
)

// StatusError is the API server's refusal of a request.
type StatusError struct {
	// Verb is as RBAC names it: get, list, watch, create, patch.
	Verb string
	Ref  Ref
	// Code is HTTP's, Reason and Message are Kubernetes'.
	Code            int
	Reason, Message string
	// After is how long the server wants to be left alone; 0 when it says nothing.
	After time.Duration
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s %s: %s", e.Verb, e.Ref, e.Message)
	switch {
	case e.Is(ErrForbidden):
		where := "a ClusterRole"
		if e.Ref.Namespace != "" {
			where = "a Role in the namespace " + e.Ref.Namespace
		}
		text += fmt.Sprintf("; let %s allow the verb %q on %q of the API group %q", where, e.Verb, e.Ref.rbac(), e.Ref.Group)
	case e.Is(ErrUnauthorized):
		text += "; the credentials are not valid (any more): see that the ServiceAccount exists, or give another kubeconfig"
	}
	return text
}

// Is tells the kinds of refusal.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == http.StatusNotFound
	case ErrAlreadyExists:
		return e.Reason == "AlreadyExists"
	case ErrConflict:
		return e.Code == http.StatusConflict && e.Reason != "AlreadyExists"
	case ErrForbidden:
		return e.Code == http.StatusForbidden
	case ErrUnauthorized:
		return e.Code == http.StatusUnauthorized
	case ErrExpired:
		return e.Code == http.StatusGone
	}
	return false
}

// RetryAfter is how long the API server asked to be left alone; 0 when it did
// not.
func RetryAfter(err error) time.Duration {
	if s := (*StatusError)(nil); errors.As(err, &s) {
		return s.After
	}
	return 0
}

// status is Kubernetes' own form of a refusal.
type status struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Code    int    `json:"code"`
	Details struct {
		RetryAfterSeconds int `json:"retryAfterSeconds"`
	} `json:"details"`
}

func (s status) error(verb string, ref Ref) *StatusError {
	return &StatusError{
		Verb: verb, Ref: ref, Code: s.Code, Reason: s.Reason, Message: s.Message,
		After: time.Duration(s.Details.RetryAfterSeconds) * time.Second,
	}
}

// refused makes the error of a response that is none of success.
func refused(verb string, ref Ref, response *http.Response, body []byte) *StatusError {
	var s status
	if json.Unmarshal(body, &s) != nil || s.Kind != "Status" {
		// A proxy before the API server, or something else altogether.
		s = status{Message: fmt.Sprintf("%s: %.200q", response.Status, body)}
	}
	s.Code = response.StatusCode
	e := s.error(verb, ref)
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.After = time.Duration(seconds) * time.Second
	}
	return e
}
