package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"unicode/utf8"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"

	"sordino/environment"
	"sordino/wire/rest"
)

// Domain is the ErrorInfo.domain of every error of this server (AIP-193).
const Domain = "sordino.dev"

// codeOf is the one table from the domain's codes to gRPC's; rest maps those
// on to HTTP.
var codeOf = map[environment.Code]codes.Code{
	environment.Internal:           codes.Internal,
	environment.InvalidArgument:    codes.InvalidArgument,
	environment.FailedPrecondition: codes.FailedPrecondition,
	environment.NotFound:           codes.NotFound,
	environment.AlreadyExists:      codes.AlreadyExists,
	environment.Aborted:            codes.Aborted,
	environment.PermissionDenied:   codes.PermissionDenied,
	environment.Unauthenticated:    codes.Unauthenticated,
	environment.ResourceExhausted:  codes.ResourceExhausted,
	environment.Unavailable:        codes.Unavailable,
	environment.Unimplemented:      codes.Unimplemented,
	environment.Cancelled:          codes.Canceled,
}

// Status is how an error is told to a client. A refusal of the domain is told
// whole. Anything else is none of the client's business: it is logged in full
// with an id, and the client gets the id.
func Status(ctx context.Context, err error, log *slog.Logger) *status.Status {
	if err == nil {
		return nil
	}
	var refusal *environment.Error
	if errors.As(err, &refusal) && refusal.Code != environment.Internal {
		return statusOf(refusal)
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown && s.Code() != codes.Internal {
		return withInfo(s)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return withInfo(status.New(codes.Canceled, "the client went away before the answer"))
	case errors.Is(err, context.DeadlineExceeded):
		return withInfo(status.New(codes.DeadlineExceeded, "the request took longer than the server allows; ask for its state before you send it again"))
	}
	id := uuid.NewString()
	if log != nil {
		log.ErrorContext(ctx, "a request ended with an internal error", "id", id, "error", err.Error())
	}
	s := status.New(codes.Internal, "internal error; the server's log has the cause under the id "+id)
	return with(s, &errdetails.ErrorInfo{Reason: "INTERNAL", Domain: Domain, Metadata: map[string]string{"id": id}})
}

// withInfo gives a status the ErrorInfo that every error has.
func withInfo(s *status.Status) *status.Status {
	for _, d := range s.Details() {
		if _, ok := d.(*errdetails.ErrorInfo); ok {
			return s
		}
	}
	return with(s, &errdetails.ErrorInfo{Reason: rest.CodeName(s.Code()), Domain: Domain})
}

func with(s *status.Status, details ...protoadapt.MessageV1) *status.Status {
	if more, err := s.WithDetails(details...); err == nil {
		return more
	}
	return s
}

// statusOf tells a refusal with all its details: at most one of each type.
func statusOf(e *environment.Error) *status.Status {
	code, ok := codeOf[e.Code]
	if !ok {
		code = codes.Internal
	}
	info := &errdetails.ErrorInfo{Reason: e.Reason, Domain: Domain, Metadata: map[string]string{}}
	if info.Reason == "" {
		info.Reason = rest.CodeName(code)
	}
	for key, value := range e.Metadata {
		info.Metadata[valid(key)] = valid(value)
	}
	if info.Reason == "OPERATION_IN_PROGRESS" {
		// The Terraform providers try again for two minutes when an answer with
		// the status 409 has this word in it, and give up at once when not.
		info.Metadata["condition"] = "operationInProgress"
	}
	details := []protoadapt.MessageV1{info}
	if len(e.Violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range e.Violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: requestField(v.Field), Description: valid(v.Description), Reason: v.Reason,
			})
		}
		details = append(details, bad)
	}
	if len(e.Preconditions) > 0 {
		failure := &errdetails.PreconditionFailure{}
		for _, p := range e.Preconditions {
			failure.Violations = append(failure.Violations, &errdetails.PreconditionFailure_Violation{Type: p.Type, Subject: valid(p.Subject), Description: valid(p.Description)})
		}
		details = append(details, failure)
	}
	if e.Resource != nil {
		details = append(details, &errdetails.ResourceInfo{ResourceType: e.Resource.Type, ResourceName: valid(e.Resource.Name), Description: valid(e.Resource.Description)})
	}
	if len(e.Help) > 0 {
		help := &errdetails.Help{}
		for _, l := range e.Help {
			help.Links = append(help.Links, &errdetails.Help_Link{Description: l.Description, Url: l.URL})
		}
		details = append(details, help)
	}
	return with(status.New(code, valid(e.Message)), details...)
}

// valid makes text fit for protobuf: a client's own bytes may be in it.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

var environmentFields = (&servicepb.Environment{}).ProtoReflect().Descriptor().Fields()

// requestField is a violation's path from the request: the domain counts from
// the environment, which is a field of the requests that have one. Its agent is
// one of our own service's. A path that begins with a dot counts from the request
// already.
func requestField(path string) string {
	if path, ok := strings.CutPrefix(path, "."); ok {
		return valid(path)
	}
	first, rest, _ := strings.Cut(path, ".")
	if first == "agent" {
		return "masq_agent." + valid(rest)
	}
	if environmentFields.ByName(protoreflect.Name(first)) == nil {
		return valid(path)
	}
	return "environment." + valid(path)
}

// undecodable is the answer to a gRPC message that is not what the method takes.
func undecodable(err error) error {
	return &environment.Error{Code: environment.InvalidArgument, Reason: "REQUEST_MALFORMED",
		Message: "the request's message cannot be decoded as what the method takes: " + err.Error()}
}

// instead says what to use in place of a method that is not served.
var instead = map[string]string{
	"ExecuteAirflowCommand":        "run a command in a worker Pod with: sordino environments run",
	"StopAirflowCommand":           "commands that sordino environments run started end with it",
	"PollAirflowCommand":           "sordino environments run prints a command's output as it comes",
	"ListWorkloads":                "sordino environments describe lists the nodes and their Pods",
	"CreateUserWorkloadsSecret":    "Composer 3 alone has Secrets; set config.softwareConfig.envVariables",
	"GetUserWorkloadsSecret":       "Composer 3 alone has Secrets; set config.softwareConfig.envVariables",
	"ListUserWorkloadsSecrets":     "Composer 3 alone has Secrets; set config.softwareConfig.envVariables",
	"UpdateUserWorkloadsSecret":    "Composer 3 alone has Secrets; set config.softwareConfig.envVariables",
	"DeleteUserWorkloadsSecret":    "Composer 3 alone has Secrets; set config.softwareConfig.envVariables",
	"CreateUserWorkloadsConfigMap": "Composer 3 alone has ConfigMaps; the agent's is set with: sordino masq set",
	"GetUserWorkloadsConfigMap":    "Composer 3 alone has ConfigMaps; the agent's is shown by: sordino masq describe",
	"ListUserWorkloadsConfigMaps":  "Composer 3 alone has ConfigMaps; the agent's is shown by: sordino masq describe",
	"UpdateUserWorkloadsConfigMap": "Composer 3 alone has ConfigMaps; the agent's is set with: sordino masq set",
	"DeleteUserWorkloadsConfigMap": "Composer 3 alone has ConfigMaps; the agent's is set with: sordino masq set",
	"SaveSnapshot":                 "there is no Airflow database to save; keep the environment's definition in Terraform",
	"LoadSnapshot":                 "there is no Airflow database to load into; create an environment from its definition",
	"DatabaseFailover":             "the environment has no database that could fail over",
	"FetchDatabaseProperties":      "the environment has no database",
	"Hibernate":                    "delete the environment, and create it again when it is wanted",
	"Resume":                       "an environment cannot be hibernated, so it need not be resumed",
	"WaitOperation":                "ask GetOperation until it is done",
}

// notServed refuses a method by its name.
func notServed(method string) error {
	message := fmt.Sprintf("%s is not served here", method)
	if use := instead[method]; use != "" {
		message += "; " + use
	}
	return &environment.Error{Code: environment.Unimplemented, Reason: "METHOD_NOT_IMPLEMENTED", Message: message, Metadata: map[string]string{"method": method}}
}

// Refuse answers a request that does not reach the API, in the API's own form.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	rest.WriteError(w, Status(r.Context(), err, nil))
}
