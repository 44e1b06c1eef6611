package rest

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

// httpOf maps a gRPC code to HTTP, as google.rpc.Code says.
var httpOf = map[codes.Code]int{
	codes.OK:                 200,
	codes.Canceled:           499,
	codes.Unknown:            500,
	codes.InvalidArgument:    400,
	codes.DeadlineExceeded:   504,
	codes.NotFound:           404,
	codes.AlreadyExists:      409,
	codes.PermissionDenied:   403,
	codes.ResourceExhausted:  429,
	codes.FailedPrecondition: 400,
	codes.Aborted:            409,
	codes.OutOfRange:         400,
	codes.Unimplemented:      501,
	codes.Internal:           500,
	codes.Unavailable:        503,
	codes.DataLoss:           500,
	codes.Unauthenticated:    401,
}

// HTTPStatus is the HTTP status of a gRPC code.
func HTTPStatus(c codes.Code) int {
	if s, ok := httpOf[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// legacyReason is the reason in the older form of an error, errors[].
var legacyReason = map[int]string{
	400: "badRequest", 401: "authError", 403: "forbidden", 404: "notFound", 405: "httpMethodNotAllowed", 409: "conflict",
	429: "rateLimitExceeded", 499: "clientClosedRequest", 501: "notImplemented", 503: "backendError", 504: "gatewayTimeout",
}

// methodError is told with the HTTP status 405, which has no gRPC code.
type methodError struct{ error }

func (e *methodError) Unwrap() error { return e.error }

// Envelope is how Google's APIs tell an error in JSON.
type Envelope struct {
	Error EnvelopeError `json:"error"`
}

// EnvelopeError is the error in an Envelope.
type EnvelopeError struct {
	Code    int               `json:"code"`
	Message string            `json:"message"`
	Errors  []LegacyError     `json:"errors,omitempty"`
	Status  string            `json:"status"`
	Details []json.RawMessage `json:"details,omitempty"`
}

// LegacyError is the older form of an error; it is told when $.xgafv=1 asks
// for it.
type LegacyError struct {
	Message string `json:"message"`
	Domain  string `json:"domain"`
	Reason  string `json:"reason"`
}

// WriteError answers a request with an error in Google's envelope, for what
// stands in front of the handler.
func WriteError(w http.ResponseWriter, s *status.Status) {
	writeStatus(w, s, HTTPStatus(s.Code()), params{pretty: true})
}

func (h *Handler) fail(ctx context.Context, w http.ResponseWriter, err error, p params) {
	var notAllowed *methodError
	s := h.o.Status(ctx, err)
	code := HTTPStatus(s.Code())
	if errors.As(err, &notAllowed) {
		s, code = status.Convert(notAllowed.error), http.StatusMethodNotAllowed
	}
	writeStatus(w, s, code, p)
}

func writeStatus(w http.ResponseWriter, s *status.Status, code int, p params) {
	e := EnvelopeError{Code: code, Message: s.Message(), Status: CodeName(s.Code())}
	for _, d := range s.Proto().GetDetails() {
		if b, err := detail(d); err == nil {
			e.Details = append(e.Details, b)
		}
	}
	for _, d := range s.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(retry.GetRetryDelay().AsDuration().Seconds()))))
		}
	}
	if p.legacyErrors {
		reason := legacyReason[code]
		if reason == "" {
			reason = "backendError"
		}
		e.Errors = []LegacyError{{Message: e.Message, Domain: "global", Reason: reason}}
	}
	if s.Code() == codes.Unauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(Envelope{e}) // strings and valid JSON only
	write(w, code, p.shape([]byte(b.String()), ""))
}

func detail(d *anypb.Any) (json.RawMessage, error) {
	return protojson.Marshal(d)
}

// CodeName is a code in the spelling of google.rpc.Code.
func CodeName(c codes.Code) string {
	switch c {
	case codes.OK:
		return "OK"
	case codes.Canceled:
		return "CANCELLED"
	}
	var b strings.Builder
	for i, r := range c.String() {
		if i > 0 && 'A' <= r && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}
