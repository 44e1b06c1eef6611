package wire

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sordino/environment"
)

// TestServices serves another service beside Composer's, as its generated code
// would register it.
func TestServices(t *testing.T) {
	method := func(name, path string) *descriptorpb.MethodDescriptorProto {
		options := new(descriptorpb.MethodOptions)
		proto.SetExtension(options, annotations.E_Http, &annotations.HttpRule{Pattern: &annotations.HttpRule_Get{Get: path}})
		return &descriptorpb.MethodDescriptorProto{Name: &name, InputType: proto.String(".google.protobuf.StringValue"), OutputType: proto.String(".google.protobuf.StringValue"), Options: options}
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("echo/v1/echo.proto"), Package: proto.String("echo.v1"), Syntax: proto.String("proto3"),
		Dependency: []string{"google/api/annotations.proto", "google/protobuf/wrappers.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("Echo"), Method: []*descriptorpb.MethodDescriptorProto{
			method("Say", "/v1/{value=projects/*/locations/*/environments/*}/agent"),
			method("Plan", "/v1/{value=projects/*/locations/*/environments/*}/agent:plan"),
		}}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	d := file.Services().Get(0)
	handler := func(m protoreflect.MethodDescriptor) grpc.MethodHandler {
		return func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := dec(in); err != nil {
				return nil, err
			}
			run := func(ctx context.Context, request any) (any, error) {
				asked, err := ValidateOnlyAsked(ctx)
				if in := request.(*wrapperspb.StringValue); asked {
					in.Value += " planned"
				} else if strings.HasSuffix(in.Value, "/missing") {
					return nil, &environment.Error{Code: environment.NotFound, Reason: "ENVIRONMENT_NOT_FOUND", Message: "there is none"}
				}
				return request, err
			}
			if interceptor == nil {
				return run(ctx, in)
			}
			return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/echo.v1.Echo/" + string(m.Name())}, run)
		}
	}
	desc := &grpc.ServiceDesc{ServiceName: "echo.v1.Echo", HandlerType: (*any)(nil)}
	for i := range d.Methods().Len() {
		m := d.Methods().Get(i)
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: string(m.Name()), Handler: handler(m)})
	}
	var calls []Call
	s := serve(t, func(o *Options) {
		o.Services = []Service{{Descriptor: d, Methods: desc, Implementation: struct{}{}, ValidateOnly: []string{"Plan"}}}
		o.Authorize = func(ctx context.Context, c Call) (context.Context, error) { calls = append(calls, c); return ctx, nil }
	})
	for path, want := range map[string]string{
		"/v1/" + example + "/agent":                                        "200 " + `"` + example + `"`,
		"/v1/" + example + "/agent:plan?validateOnly=true":                 "200 " + `"` + example + ` planned"`,
		"/v1/" + example + "/agent?validateOnly=true":                      "400 ",
		"/v1/" + parent + "/environments/missing/agent":                    "404 ",
		"/v1beta1/" + example + "/agent":                                   "404 ",
		"/v1/" + example + "/agent?frobnicate=1":                           "400 ",
		"/prefix/v1/" + example + "/agent":                                 "200 " + `"` + example + `"`,
		"/v1/projects/example.com:p/locations/l/environments/e/agent:plan": "200 " + `"projects/example.com:p/locations/l/environments/e"`,
	} {
		code, body := s.raw(path)
		if got := code + " " + body; !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	conn := s.dial()
	out := new(wrapperspb.StringValue)
	if err := conn.Invoke(t.Context(), "/echo.v1.Echo/Say", wrapperspb.String(example), out); err != nil || out.GetValue() != example {
		t.Fatalf("%v %v", out, err)
	}
	if c := calls[len(calls)-1]; c.Name() != "Say" || c.Resource != example || c.Project != "example-project" {
		t.Fatalf("%+v", c)
	}
	err = conn.Invoke(metadata.AppendToOutgoingContext(t.Context(), ValidateOnlyKey, "true"), "/echo.v1.Echo/Say", wrapperspb.String(example), out)
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	if err := conn.Invoke(t.Context(), "/echo.v1.Echo/Say", wrapperspb.String("x/missing"), out); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
}
