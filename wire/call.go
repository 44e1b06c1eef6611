package wire

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc/metadata"

	"sordino/environment"
)

// Keys of a call's incoming metadata. Over gRPC a client sends them as such;
// over REST they are the query parameters requestId and validateOnly and the
// header X-Request-Id.
const (
	// RequestIDKey makes a change idempotent (AIP-155).
	RequestIDKey = "x-request-id"
	// RequestIDParameterKey is the query parameter, which has precedence.
	RequestIDParameterKey = "x-sordino-request-id"
	// ValidateOnlyKey asks to check and plan only (AIP-163): "true" or "false".
	ValidateOnlyKey = "x-sordino-validate-only"
)

// validateOnlyMethods are Composer's methods that can check without doing.
var validateOnlyMethods = []string{"CreateEnvironment", "UpdateEnvironment", "DeleteEnvironment", "CheckUpgrade", "RestartWebServer"}

// ValidateOnlyAsked reports whether a call asks for validation only.
func ValidateOnlyAsked(ctx context.Context) (bool, error) {
	value := last(ctx, ValidateOnlyKey)
	switch value {
	case "", "false", "0":
		return false, nil
	case "true", "1":
		return true, nil
	}
	return false, &environment.Error{
		Code: environment.InvalidArgument, Reason: "VALIDATE_ONLY_MALFORMED",
		Message:    fmt.Sprintf("validateOnly is %q; write true or false", value),
		Metadata:   map[string]string{"value": value},
		Violations: []environment.Violation{{Field: "validate_only", Reason: "VALIDATE_ONLY_MALFORMED", Description: "write true or false"}},
	}
}

// RequestID is the id that makes a call idempotent; "" when it has none.
func RequestID(ctx context.Context) string {
	if id := last(ctx, RequestIDParameterKey); id != "" {
		return id
	}
	return last(ctx, RequestIDKey)
}

func last(ctx context.Context, key string) string {
	values := metadata.ValueFromIncomingContext(ctx, key)
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// callOptions are a call's options beside its request.
func callOptions(ctx context.Context) (environment.CallOptions, error) {
	validate, err := ValidateOnlyAsked(ctx)
	return environment.CallOptions{RequestID: RequestID(ctx), ValidateOnly: validate}, err
}

// refuseValidateOnly keeps a method that cannot only validate from doing what
// it was asked not to do.
func refuseValidateOnly(ctx context.Context, method string, able []string) error {
	asked, err := ValidateOnlyAsked(ctx)
	if err != nil || !asked || slices.Contains(able, method) {
		return err
	}
	return &environment.Error{
		Code: environment.InvalidArgument, Reason: "VALIDATE_ONLY_NOT_SUPPORTED",
		Message:    fmt.Sprintf("%s has no validateOnly, and was not run; leave validateOnly out", method),
		Metadata:   map[string]string{"method": method},
		Violations: []environment.Violation{{Field: "validate_only", Reason: "VALIDATE_ONLY_NOT_SUPPORTED", Description: method + " has no validateOnly"}},
	}
}

type versionKey struct{}

// versionOf is the version of the API that a call came by; v1 for
// google.longrunning.Operations over gRPC, which has none.
func versionOf(ctx context.Context) Version {
	if v, ok := ctx.Value(versionKey{}).(Version); ok {
		return v
	}
	return V1
}
