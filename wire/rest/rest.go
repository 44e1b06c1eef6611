package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Service is one gRPC service to serve.
type Service struct {
	// Descriptor has the methods with their google.api.http annotations. Its
	// messages may have more fields than the Go types that Methods take: those
	// travel as unknown fields.
	Descriptor protoreflect.ServiceDescriptor
	// Methods and Implementation are what would be registered with a
	// grpc.Server. Methods are found by their names.
	Methods        *grpc.ServiceDesc
	Implementation any
	// Rules stand in for the annotations of the methods that they name, as the
	// http section of a service's configuration does; an empty list serves none.
	// A method that has neither is not served.
	Rules map[protoreflect.Name][]*annotations.HttpRule
	// Types resolve what is packed in an Any; nil is the global registry.
	Types Types
}

// Types resolve messages in an Any and extensions.
type Types interface {
	protoregistry.MessageTypeResolver
	protoregistry.ExtensionTypeResolver
}

// Call is one call, as its transport tells of it before anything of it is
// validated.
type Call struct {
	// Method is the full gRPC name: /google.longrunning.Operations/GetOperation.
	Method string
	// Resource is the name or parent that the call is about, as it was sent; ""
	// when it has none. It may be malformed.
	Resource string
	// Project is the project in Resource: "" when there is none.
	Project string
	// Header are the HTTP headers, or gRPC's metadata as such.
	Header http.Header
	// Remote is the address of the other side.
	Remote string
}

// Name is the last element of Method: GetOperation.
func (c Call) Name() string { return c.Method[strings.LastIndexByte(c.Method, '/')+1:] }

// ProjectOf returns the project in a resource name; "" when there is none.
func ProjectOf(resource string) string {
	rest, ok := strings.CutPrefix(resource, "projects/")
	if !ok {
		return ""
	}
	project, _, _ := strings.Cut(rest, "/")
	return project
}

// Options are what a Handler is made of. The zero value of a limit is its
// default.
type Options struct {
	Services []Service
	// Begin is called when the method is known, and before the parameters and
	// the body are looked at: an error is the answer, else end is called with
	// the outcome; the response is nil where there is none.
	Begin func(context.Context, Call) (_ context.Context, end func(response any, err error), _ error)
	// Status says how an error is told. It sees every error, panics too, and
	// decides what the client may know of it.
	Status func(context.Context, error) *status.Status
	// Domain is the ErrorInfo.domain of this package's own errors.
	Domain string
	// DefaultVersion is the version of a path that names none: "v1".
	DefaultVersion string
	// Parameters are query parameters that any method takes beside its fields;
	// a method finds them in its incoming metadata, by the key given here.
	Parameters map[string]string
	// Headers are the HTTP headers that methods find in their incoming metadata
	// by the same name in lower case.
	Headers []string

	// MaxBody is the most bytes of a body: 1 MiB.
	MaxBody int64
	// MaxDepth is how deep objects and lists may be nested: 64.
	MaxDepth int
	// MaxValues is the most values in a body: 20,000.
	MaxValues int
	// Timeout is the most time for a call: 30 s.
	Timeout time.Duration
}

// Handler serves the services.
type Handler struct {
	o        Options
	routes   table
	elements elements
}

// New returns a handler. It fails when an annotation does not fit its message.
func New(o Options) (*Handler, error) {
	if o.Begin == nil {
		o.Begin = func(ctx context.Context, _ Call) (context.Context, func(any, error), error) {
			return ctx, func(any, error) {}, nil
		}
	}
	if o.Status == nil {
		o.Status = func(_ context.Context, err error) *status.Status { return status.Convert(err) }
	}
	if o.MaxBody == 0 {
		o.MaxBody = 1 << 20
	}
	if o.MaxDepth == 0 {
		o.MaxDepth = 64
	}
	if o.MaxValues == 0 {
		o.MaxValues = 20_000
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	h := &Handler{o: o, routes: table{byVersion: map[string][]*route{}, byMethod: map[string]*route{}}}
	for i := range o.Services {
		if err := h.add(&o.Services[i]); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (h *Handler) add(s *Service) error {
	if s.Types == nil {
		s.Types = protoregistry.GlobalTypes
	}
	methods := s.Descriptor.Methods()
	for i := range methods.Len() {
		m := methods.Get(i)
		rules, given := s.Rules[m.Name()]
		if !given {
			if rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule); ok && rule != nil {
				rules = []*annotations.HttpRule{rule}
			}
		}
		if len(rules) == 0 {
			continue
		}
		var call *grpc.MethodDesc
		for j := range s.Methods.Methods {
			if s.Methods.Methods[j].MethodName == string(m.Name()) {
				call = &s.Methods.Methods[j]
			}
		}
		if call == nil {
			return fmt.Errorf("%s has a REST route and no implementation", m.FullName())
		}
		for _, rule := range rules {
			for _, r := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
				route, err := newRoute(r, m)
				if err != nil {
					return fmt.Errorf("the route of %s: %w", m.FullName(), err)
				}
				route.service, route.call = s, call
				h.routes.add(route)
			}
		}
	}
	return nil
}

// Routes lists every route: "GET /v1/{name=projects/*} package.Service.Method".
func (h *Handler) Routes() []string { return h.routes.list() }

// stackError is a panic.
type stackError struct {
	value any
	stack []byte
}

func (e *stackError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// Panic makes an error of what recover returned, with the stack in its text.
func Panic(value any) error { return &stackError{value, debug.Stack()} }

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), h.o.Timeout)
	defer cancel()
	var params params
	body, err := func() (body []byte, err error) {
		defer func() {
			if v := recover(); v != nil {
				if v == http.ErrAbortHandler {
					panic(v)
				}
				err = Panic(v)
			}
		}()
		return h.serve(ctx, w, r, &params)
	}()
	if err != nil {
		h.fail(ctx, w, err, params)
		return
	}
	if body == nil { // OPTIONS
		w.WriteHeader(http.StatusNoContent)
		return
	}
	write(w, http.StatusOK, body)
}

// serve returns the answer's body; nil for a request that has none.
func (h *Handler) serve(ctx context.Context, w http.ResponseWriter, r *http.Request, params *params) ([]byte, error) {
	query, queryErr := parseQuery(r.URL.RawQuery)
	params.read(query) // also for the shape of errors that follow

	method := r.Method
	if override := r.Header.Get("X-HTTP-Method-Override"); override != "" && method == http.MethodPost {
		method = strings.ToUpper(override)
	}
	found, allowed, err := h.routes.match(method, r.URL.EscapedPath(), h.o.DefaultVersion)
	if err != nil {
		return nil, h.refuse(codes.InvalidArgument, "PATH_MALFORMED", err.Error(), nil)
	}
	if found.route == nil {
		if len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			if method == http.MethodOptions {
				return nil, nil
			}
			return nil, &methodError{h.refuse(codes.Unimplemented, "METHOD_NOT_ALLOWED",
				fmt.Sprintf("%s is not what this path takes; it takes %s", method, strings.Join(allowed, ", ")),
				map[string]string{"method": method, "allowed": strings.Join(allowed, ",")})}
		}
		message := fmt.Sprintf("nothing is served at %s %s; paths look like /v1/projects/PROJECT/locations/LOCATION/environments", method, clip(r.URL.Path))
		metadata := map[string]string{"method": clip(method), "path": clip(r.URL.Path)}
		if version := h.routes.elsewhere(method, r.URL.EscapedPath()); version != "" {
			message = fmt.Sprintf("nothing is served at %s %s; %s has this method", method, clip(r.URL.Path), version)
			metadata["version"] = version
		}
		return nil, h.refuse(codes.NotFound, "PATH_NOT_FOUND", message, metadata)
	}

	route := found.route
	call := Call{Method: route.fullMethod, Resource: found.resource(), Header: r.Header, Remote: r.RemoteAddr}
	call.Project = ProjectOf(call.Resource)
	ctx, end, err := h.o.Begin(ctx, call)
	if err != nil {
		return nil, err
	}
	var answer []byte
	var response proto.Message
	err = fmt.Errorf("the call did not return")
	defer func() { end(response, err) }()
	if response, err = h.call(ctx, w, r, found, query, queryErr, params); err != nil {
		return nil, err
	}
	answer, err = h.encode(route, response, params)
	return answer, err
}

func (h *Handler) call(ctx context.Context, w http.ResponseWriter, r *http.Request, found match, query []parameter, queryErr error, params *params) (proto.Message, error) {
	route := found.route
	if queryErr != nil {
		return nil, h.refuse(codes.InvalidArgument, "QUERY_MALFORMED", queryErr.Error(), nil)
	}
	if params.fieldsErr != nil {
		return nil, h.refuse(codes.InvalidArgument, "FIELDS_MALFORMED", params.fieldsErr.Error(), nil, violation("fields", params.fieldsErr.Error()))
	}
	if params.fields != nil {
		if err := params.fields.check(route.method.Output(), ""); err != nil {
			return nil, h.refuse(codes.InvalidArgument, "FIELDS_MALFORMED", err.Error(), nil, violation("fields", err.Error()))
		}
	}
	body, err := h.body(w, r)
	if err != nil {
		return nil, err
	}

	md := metadata.MD{}
	for _, name := range h.o.Headers {
		if values := r.Header.Values(name); len(values) > 0 {
			md[strings.ToLower(name)] = values
		}
	}
	in := newMessage(route.method.Input())
	if err := h.fill(in.ProtoReflect(), found, query, body, md); err != nil {
		return nil, err
	}
	ctx = metadata.NewIncomingContext(ctx, md)
	out, err := route.call.Handler(route.service.Implementation, ctx, func(target any) error { return transfer(in, target.(proto.Message)) }, nil)
	if err != nil {
		return nil, err
	}
	message, ok := out.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%s returned %T, which is not a message", route.fullMethod, out)
	}
	return message, nil
}

// transfer makes target what source is. They are of one Go type, or of two
// that are the same on the wire.
func transfer(source, target proto.Message) error {
	if source.ProtoReflect().Descriptor() == target.ProtoReflect().Descriptor() {
		proto.Merge(target, source)
		return nil
	}
	// AllowPartial: there are no required fields here, and looking for them is a
	// fifth of the time.
	b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(source)
	if err != nil {
		return err
	}
	return proto.UnmarshalOptions{AllowPartial: true}.Unmarshal(b, target)
}

// newMessage makes a message of the generated type, where that is exactly what
// the descriptor says.
func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	if t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName()); err == nil && t.Descriptor() == d {
		return t.New().Interface()
	}
	return dynamicpb.NewMessage(d)
}

// encode writes a response as JSON.
func (h *Handler) encode(r *route, m proto.Message, p *params) ([]byte, error) {
	if fields := m.ProtoReflect().Descriptor().Fields(); p.fields == nil && fields.Len() > 0 {
		if f := fields.Get(0); f.IsList() && f.Message() != nil && m.ProtoReflect().Get(f).List().Len() > 1 {
			return h.encodeList(r, m, f, p)
		}
	}
	body, err := r.marshal(m, r.method.Output(), p)
	if err != nil {
		return nil, err
	}
	if p.fields != nil {
		if body, err = p.fields.apply(body); err != nil {
			return nil, err
		}
	}
	return p.shape(body, ""), nil
}

// marshal writes a message as JSON of a type.
func (r *route) marshal(m proto.Message, as protoreflect.MessageDescriptor, p *params) ([]byte, error) {
	if m.ProtoReflect().Descriptor() != as {
		own := newMessage(as)
		if err := transfer(m, own); err != nil {
			return nil, err
		}
		m = own
	}
	return protojson.MarshalOptions{AllowPartial: true, Resolver: r.service.Types, UseEnumNumbers: p.enumNumbers}.Marshal(m)
}

// body reads the body, which must be JSON in UTF-8.
func (h *Handler) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, nil
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, h.refuse(codes.InvalidArgument, "CONTENT_ENCODING_UNSUPPORTED",
			fmt.Sprintf("the body is encoded with %q; send it as it is", clip(encoding)), map[string]string{"encoding": clip(encoding)})
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.o.MaxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		limit := strconv.FormatInt(h.o.MaxBody, 10)
		return nil, h.refuse(codes.InvalidArgument, "BODY_TOO_LARGE", "the body is larger than "+limit+" bytes, which is the limit", map[string]string{"limit": limit})
	}
	if err != nil {
		if ctxErr := r.Context().Err(); ctxErr != nil {
			return nil, ctxErr
		}
		return nil, h.refuse(codes.InvalidArgument, "BODY_UNREADABLE", "the body ended before it was whole: send it again", nil)
	}
	// A browser sends the other types across origins without asking: they are
	// refused even when the body would be JSON.
	if given := r.Header.Get("Content-Type"); given != "" && len(b) > 0 {
		kind, parameters, err := mime.ParseMediaType(given)
		charset := parameters["charset"]
		json := kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")
		if err != nil || !json || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return nil, h.refuse(codes.InvalidArgument, "CONTENT_TYPE_UNSUPPORTED",
				fmt.Sprintf("the body's Content-Type is %q; send JSON in UTF-8, with the header \"Content-Type: application/json\"", clip(given)),
				map[string]string{"contentType": clip(given)})
		}
	}
	return b, nil
}

// fill sets a request message's fields from body, query and path, in this
// order: the path has the last word.
func (h *Handler) fill(m protoreflect.Message, found match, query []parameter, body []byte, md metadata.MD) error {
	r := found.route
	if err := h.fillBody(m, r, body); err != nil {
		return err
	}
	var faults faults
	for _, p := range query {
		if systemParameter(p.name) {
			continue
		}
		switch known, err := bindQuery(m, r, p); {
		case err != nil:
			faults.add(p.name, err.Error())
		case known:
		case h.o.Parameters[p.name] != "":
			md.Append(h.o.Parameters[p.name], p.value)
		default:
			faults.add(p.name, fmt.Sprintf("Invalid JSON payload received. Unknown name %q: Cannot bind query parameter. Field '%s' could not be found in request message.", clip(p.name), clip(p.name)))
		}
	}
	if len(faults) > 0 {
		return h.refuseFaults("QUERY_PARAMETER_INVALID", faults)
	}
	for i, v := range r.variables {
		if err := setPath(m, v.fields, found.values[i]); err != nil {
			return h.refuse(codes.InvalidArgument, "PATH_MALFORMED", err.Error(), nil)
		}
	}
	return nil
}

func (h *Handler) fillBody(m protoreflect.Message, r *route, body []byte) error {
	body = trimBody(body)
	if len(body) == 0 {
		return nil
	}
	if r.body == "" {
		if string(body) == "{}" {
			return nil
		}
		return h.refuse(codes.InvalidArgument, "BODY_NOT_TAKEN", fmt.Sprintf("%s takes no body; leave it out", r.method.Name()), nil)
	}
	path := ""
	if r.bodyField != nil {
		path = string(r.bodyField.Name())
	}
	faults, err := decodeJSON(body, h.o.MaxDepth, h.o.MaxValues, path, func() protoreflect.Message {
		if r.bodyField != nil {
			return m.Mutable(r.bodyField).Message()
		}
		return m
	})
	if err != nil {
		return h.refuse(codes.InvalidArgument, "JSON_MALFORMED", "Invalid JSON payload received: "+err.Error(), nil)
	}
	if len(faults) > 0 {
		return h.refuseFaults("JSON_INVALID", faults)
	}
	return nil
}

// refuse makes an error with an ErrorInfo, and a BadRequest when fields are at
// fault.
func (h *Handler) refuse(code codes.Code, reason, message string, metadata map[string]string, violations ...*errdetails.BadRequest_FieldViolation) error {
	s := status.New(code, message)
	details, err := s.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: h.o.Domain, Metadata: metadata})
	if err == nil && len(violations) > 0 {
		details, err = details.WithDetails(&errdetails.BadRequest{FieldViolations: violations})
	}
	if err != nil { // text that is not UTF-8
		return status.Error(code, strings.ToValidUTF8(message, "\uFFFD"))
	}
	return details.Err()
}

func (h *Handler) refuseFaults(reason string, f faults) error {
	return h.refuse(codes.InvalidArgument, reason, f.message(), nil, f.violations()...)
}

func violation(field, description string) *errdetails.BadRequest_FieldViolation {
	return &errdetails.BadRequest_FieldViolation{Field: field, Description: description}
}

// clip shortens what a client sent, for a message.
func clip(s string) string {
	const most = 200
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func write(w http.ResponseWriter, code int, body []byte) {
	header := w.Header()
	header.Set("Content-Type", "application/json; charset=UTF-8")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client is gone when this fails
}
