package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"sordino/wire/rest"
)

// Call is one call, as hooks see it.
type Call = rest.Call

// Service is a service beside Composer's.
type Service struct {
	// Descriptor has the google.api.http annotations that make its REST routes.
	Descriptor     protoreflect.ServiceDescriptor
	Methods        *grpc.ServiceDesc
	Implementation any
	// ValidateOnly names the methods that honour ValidateOnlyAsked. A call that
	// asks any other method for it is refused, and not run.
	ValidateOnly []string
}

// Outcome is how a call ended.
type Outcome struct {
	Code codes.Code
	// Reason is the word for programs of a call that was refused.
	Reason string
	// Operation is the one that the call started, and Target what that works on.
	Operation, Target string
}

// Options are what a Server is made of. The zero value of a limit is its
// default.
type Options struct {
	Environments Environments
	// Agents, when not nil, adds the services of our own.
	Agents *Agents
	// Services are served beside these, over gRPC and REST alike.
	Services []Service
	// Authorize decides who may make a call, before its request is validated and
	// before anything is looked up (AIP-211): an error is the answer. It sees
	// every call of every service, reflection and health too. Nil allows all.
	Authorize func(context.Context, Call) (context.Context, error)
	// Audit is told how each call ended, refused ones too. The context is the one
	// that Authorize returned, also with an error. Nil tells nobody.
	Audit func(context.Context, Call, Outcome)
	Log   *slog.Logger

	// MaxBody is the most bytes of a request's body or gRPC message: 1 MiB.
	MaxBody int
	// MaxDepth is how deep JSON may be nested: 64.
	MaxDepth int
	// MaxValues is the most values in a JSON body: 20,000.
	MaxValues int
	// MaxHeader is the most bytes of the headers: 64 KiB.
	MaxHeader int
	// Timeout is the most time for a call: 30 s. Streams have none.
	Timeout time.Duration
	// MaxStreams is how many calls one HTTP/2 connection makes at once: 100.
	MaxStreams int
}

// Server serves everything on one port.
type Server struct {
	o      Options
	grpc   *grpc.Server
	rest   *rest.Handler
	health *health.Server
}

var _ http.Handler = (*Server)(nil)

// New returns a server. Close ends it.
func New(o Options) (*Server, error) {
	if o.Environments == nil {
		return nil, errors.New("wire: no environments to serve")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxBody == 0 {
		o.MaxBody = 1 << 20
	}
	if o.MaxHeader == 0 {
		o.MaxHeader = 64 << 10
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.MaxStreams == 0 {
		o.MaxStreams = 100
	}
	all, files, err := schemas()
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	s := &Server{o: o, health: health.NewServer()}
	s.grpc = grpc.NewServer(
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(o.MaxBody),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	implementation := &composer{environments: o.Environments, metadata: all[V1].metadata}

	var served []rest.Service
	operationsDescriptor := longrunningpb.File_google_longrunning_operations_proto.Services().ByName("Operations")
	for _, v := range Versions {
		types := types{all[v].types}
		for _, d := range []protoreflect.ServiceDescriptor{all[v].environments, all[v].imageVersions} {
			base := &servicepb.Environments_ServiceDesc
			if d.Name() == "ImageVersions" {
				base = &servicepb.ImageVersions_ServiceDesc
			}
			desc := describe(base, d, v)
			s.grpc.RegisterService(desc, implementation)
			served = append(served, rest.Service{Descriptor: d, Methods: desc, Implementation: implementation, Types: types})
		}
		operations := describe(&longrunningpb.Operations_ServiceDesc, operationsDescriptor, v)
		if v == V1 {
			s.grpc.RegisterService(operations, implementation)
		}
		served = append(served, rest.Service{
			Descriptor: operationsDescriptor, Methods: operations, Implementation: implementation, Rules: operationRules(v), Types: types,
		})
	}
	further := slices.Clone(o.Services)
	if o.Agents != nil {
		further = append(further, o.Agents.services(implementation)...)
	}
	for _, one := range further {
		desc := *one.Methods
		desc.Methods = nil
		for _, m := range one.Methods.Methods {
			desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: before(m.Handler, func(ctx context.Context) error {
				return refuseValidateOnly(ctx, m.MethodName, one.ValidateOnly)
			})})
		}
		s.grpc.RegisterService(&desc, one.Implementation)
		// Their operations hold Composer's messages.
		served = append(served, rest.Service{Descriptor: one.Descriptor, Methods: &desc, Implementation: one.Implementation, Types: types{all[V1].types}})
	}
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflectionOptions := reflection.ServerOptions{Services: s.grpc, DescriptorResolver: resolver{files}, ExtensionResolver: protoregistry.GlobalTypes}
	grpc_reflection_v1.RegisterServerReflectionServer(s.grpc, reflection.NewServerV1(reflectionOptions))
	grpc_reflection_v1alpha.RegisterServerReflectionServer(s.grpc, reflection.NewServer(reflectionOptions))

	s.rest, err = rest.New(rest.Options{
		Services:       served,
		Begin:          s.begin,
		Status:         func(ctx context.Context, err error) *status.Status { return Status(ctx, err, o.Log) },
		Domain:         Domain,
		DefaultVersion: string(V1),
		Parameters:     map[string]string{"requestId": RequestIDParameterKey, "validateOnly": ValidateOnlyKey},
		Headers:        []string{"X-Request-Id", "User-Agent"},
		MaxBody:        int64(o.MaxBody),
		MaxDepth:       o.MaxDepth,
		MaxValues:      o.MaxValues,
		Timeout:        o.Timeout,
	})
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	return s, nil
}

// describe is a generated service under a version's name, with what the
// version has beside it. Methods that are not served refuse by name.
func describe(base *grpc.ServiceDesc, d protoreflect.ServiceDescriptor, v Version) *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: string(d.FullName()), HandlerType: base.HandlerType, Metadata: d.ParentFile().Path()}
	for i := range d.Methods().Len() {
		name := string(d.Methods().Get(i).Name())
		full := fmt.Sprintf("/%s/%s", d.FullName(), name)
		handler := addedHandlers[name]
		for _, generated := range base.Methods {
			if generated.MethodName == name {
				handler = generated.Handler
			}
		}
		_, refused := instead[name]
		checked := before(handler, func(ctx context.Context) error {
			if refused {
				return notServed(name)
			}
			return refuseValidateOnly(ctx, name, validateOnlyMethods)
		})
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			ctx = context.WithValue(ctx, versionKey{}, v)
			if interceptor == nil {
				return checked(srv, ctx, dec, nil)
			}
			// Generated handlers name themselves by v1, whatever they are registered
			// as; this is where the version comes in.
			return checked(srv, ctx, dec, func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, run grpc.UnaryHandler) (any, error) {
				return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: srv, FullMethod: full}, run)
			})
		}})
	}
	return desc
}

// before puts a check between a method's interceptors, which authorize, and the
// method. A request that cannot be decoded gets that far too: generated code
// would tell everybody, and nobody would hear of it.
func before(handler grpc.MethodHandler, check func(context.Context) error) grpc.MethodHandler {
	return func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		if interceptor != nil {
			decode, inner := dec, check
			var undecoded error
			dec = func(request any) error {
				var raw frame
				if err := decode(&raw); err != nil {
					return err // it did not come whole
				}
				undecoded = proto.Unmarshal(raw, request.(proto.Message))
				return nil
			}
			check = func(ctx context.Context) error {
				if undecoded != nil {
					return undecodable(undecoded)
				}
				return inner(ctx)
			}
		}
		return handler(srv, ctx, dec, func(ctx context.Context, request any, info *grpc.UnaryServerInfo, run grpc.UnaryHandler) (any, error) {
			checked := func(ctx context.Context, request any) (any, error) {
				if err := check(ctx); err != nil {
					return nil, err
				}
				return run(ctx, request)
			}
			if interceptor == nil { // REST has authorized already
				return checked(ctx, request)
			}
			return interceptor(ctx, request, info, checked)
		})
	}
}

// addedHandlers serve addedMethods. Their requests are a GetEnvironmentRequest
// on the wire: a name as field 1.
var addedHandlers = map[string]grpc.MethodHandler{
	"RestartWebServer": addedHandler((*composer).restartWebServer),
	"GetImageVersion":  addedHandler((*composer).getImageVersion),
	"Hibernate":        addedHandler[*longrunningpb.Operation](nil), // refused before it is reached
	"Resume":           addedHandler[*longrunningpb.Operation](nil),
}

func addedHandler[T proto.Message](run func(*composer, context.Context, *servicepb.GetEnvironmentRequest) (T, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		in := new(servicepb.GetEnvironmentRequest)
		if err := dec(in); err != nil {
			return nil, err
		}
		return interceptor(ctx, in, nil, func(ctx context.Context, request any) (any, error) {
			return run(srv.(*composer), ctx, request.(*servicepb.GetEnvironmentRequest))
		})
	}
}

// ServeHTTP takes gRPC by its content type, and everything else as REST.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.grpc.ServeHTTP(w, r)
		return
	}
	s.rest.ServeHTTP(w, r)
}

// HTTPServer is an http.Server for a handler that is s or stands before it:
// HTTP/1 and HTTP/2, which gRPC needs, with and without TLS, and with limits.
func (s *Server) HTTPServer(handler http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           handler,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: s.o.MaxStreams},
		MaxHeaderBytes:    s.o.MaxHeader,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// No time limit on a whole request here: it would end streams too.
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelWarn),
	}
}

// Routes lists the REST routes.
func (s *Server) Routes() []string { return s.rest.Routes() }

// SetServing tells gRPC's health service whether calls can be served.
func (s *Server) SetServing(serving bool) {
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, status)
	}
}

// Close ends what is under way over gRPC, streams too. Shut the http.Server
// down first, so that calls may end by themselves.
func (s *Server) Close() {
	s.health.Shutdown()
	s.grpc.Stop()
}

// begin is what both transports do before a call, and end after it.
func (s *Server) begin(ctx context.Context, call Call) (context.Context, func(any, error), error) {
	audit := func(ctx context.Context, response any, err error) {
		if s.o.Audit != nil {
			s.o.Audit(ctx, call, outcome(ctx, response, err))
		}
	}
	if s.o.Authorize != nil {
		// Also with an error the context may know who it was.
		var err error
		if ctx, err = s.o.Authorize(ctx, call); err != nil {
			audit(ctx, nil, err)
			return ctx, nil, err
		}
	}
	return ctx, func(response any, err error) { audit(ctx, response, err) }, nil
}

func outcome(ctx context.Context, response any, err error) Outcome {
	st := Status(ctx, err, nil)
	o := Outcome{Code: st.Code()}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			o.Reason = info.Reason
		}
	}
	if op, ok := response.(*longrunningpb.Operation); ok && err == nil {
		o.Operation = op.GetName()
		// The same on the wire in every version.
		var m servicepb.OperationMetadata
		if proto.Unmarshal(op.GetMetadata().GetValue(), &m) == nil {
			o.Target = m.Resource
		}
	}
	return o
}

// grpcCall is a gRPC call for the hooks.
func grpcCall(ctx context.Context, method, resource string) Call {
	call := Call{Method: method, Resource: resource, Project: rest.ProjectOf(resource), Header: http.Header{}}
	md, _ := metadata.FromIncomingContext(ctx)
	for key, values := range md {
		call.Header[textproto.CanonicalMIMEHeaderKey(key)] = values
	}
	if p, ok := peer.FromContext(ctx); ok {
		call.Remote = p.Addr.String()
	}
	return call
}

func (s *Server) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	defer func() {
		if err != nil {
			response, err = nil, Status(ctx, err, s.o.Log).Err()
		}
	}()
	ctx, end, err := s.begin(ctx, grpcCall(ctx, info.FullMethod, s.rest.ResourceIn(info.FullMethod, request)))
	if err != nil {
		return nil, err
	}
	defer func() { end(response, err) }()
	defer func() {
		if v := recover(); v != nil {
			err = rest.Panic(v)
		}
	}()
	return handler(ctx, request)
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	ctx := stream.Context()
	defer func() {
		if err != nil {
			err = Status(ctx, err, s.o.Log).Err()
		}
	}()
	ctx, end, err := s.begin(ctx, grpcCall(ctx, info.FullMethod, streamResource(ctx)))
	if err != nil {
		return err
	}
	defer func() { end(nil, err) }()
	defer func() {
		if v := recover(); v != nil {
			err = rest.Panic(v)
		}
	}()
	return handler(srv, &authorizedStream{stream, ctx})
}

// routingHeader tells what a call is about before its first message; Google's
// clients send it with every call. A stream is authorized by it, so a handler
// must refuse a message that is about something else.
const routingHeader = "x-goog-request-params"

// streamResource is the resource that a stream's routing header names.
func streamResource(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, header := range md.Get(routingHeader) {
		values, err := url.ParseQuery(header)
		if err != nil {
			continue
		}
		for _, v := range values {
			return v[0]
		}
	}
	return ""
}

// authorizedStream has the context that Authorize returned.
type authorizedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *authorizedStream) Context() context.Context { return s.ctx }
