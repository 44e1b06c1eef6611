package rest

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	_ "google.golang.org/genproto/googleapis/api/annotations"
	_ "google.golang.org/protobuf/types/known/durationpb"
	_ "google.golang.org/protobuf/types/known/fieldmaskpb"
	_ "google.golang.org/protobuf/types/known/structpb"
	_ "google.golang.org/protobuf/types/known/timestamppb"
	_ "google.golang.org/protobuf/types/known/wrapperspb"
)

// thingsFile is a service with every kind of field and of route.
const thingsFile = `
name: "things/v1/things.proto" package: "things.v1" syntax: "proto3"
dependency: ["google/api/annotations.proto", "google/protobuf/timestamp.proto", "google/protobuf/duration.proto", "google/protobuf/field_mask.proto", "google/protobuf/struct.proto", "google/protobuf/wrappers.proto"]
enum_type { name: "Color" value { name: "COLOR_UNSPECIFIED" number: 0 } value { name: "RED" number: 1 } }
message_type {
	name: "Thing"
	field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
	field { name: "int_value" number: 2 type: TYPE_INT32 label: LABEL_OPTIONAL }
	field { name: "big_value" number: 3 type: TYPE_INT64 label: LABEL_OPTIONAL }
	field { name: "unsigned_value" number: 4 type: TYPE_UINT32 label: LABEL_OPTIONAL }
	field { name: "huge_value" number: 5 type: TYPE_UINT64 label: LABEL_OPTIONAL }
	field { name: "real_value" number: 6 type: TYPE_DOUBLE label: LABEL_OPTIONAL }
	field { name: "bool_value" number: 7 type: TYPE_BOOL label: LABEL_OPTIONAL }
	field { name: "bytes_value" number: 8 type: TYPE_BYTES label: LABEL_OPTIONAL }
	field { name: "color" number: 9 type: TYPE_ENUM type_name: ".things.v1.Color" label: LABEL_OPTIONAL }
	field { name: "inner" number: 10 type: TYPE_MESSAGE type_name: ".things.v1.Thing" label: LABEL_OPTIONAL }
	field { name: "things" number: 11 type: TYPE_MESSAGE type_name: ".things.v1.Thing" label: LABEL_REPEATED }
	field { name: "texts" number: 12 type: TYPE_STRING label: LABEL_REPEATED }
	field { name: "labels" number: 13 type: TYPE_MESSAGE type_name: ".things.v1.Thing.LabelsEntry" label: LABEL_REPEATED }
	field { name: "time" number: 14 type: TYPE_MESSAGE type_name: ".google.protobuf.Timestamp" label: LABEL_OPTIONAL }
	field { name: "duration" number: 15 type: TYPE_MESSAGE type_name: ".google.protobuf.Duration" label: LABEL_OPTIONAL }
	field { name: "mask" number: 16 type: TYPE_MESSAGE type_name: ".google.protobuf.FieldMask" label: LABEL_OPTIONAL }
	field { name: "any_json" number: 17 type: TYPE_MESSAGE type_name: ".google.protobuf.Value" label: LABEL_OPTIONAL }
	field { name: "maybe" number: 18 type: TYPE_MESSAGE type_name: ".google.protobuf.Int32Value" label: LABEL_OPTIONAL }
	field { name: "by_name" number: 19 type: TYPE_STRING label: LABEL_OPTIONAL oneof_index: 0 }
	field { name: "by_range" number: 20 type: TYPE_STRING label: LABEL_OPTIONAL oneof_index: 0 }
	oneof_decl { name: "way" }
	nested_type {
		name: "LabelsEntry" options { map_entry: true }
		field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
		field { name: "value" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
	}
}
message_type {
	name: "Request"
	field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
	field { name: "thing" number: 2 type: TYPE_MESSAGE type_name: ".things.v1.Thing" label: LABEL_OPTIONAL }
	field { name: "update_mask" number: 3 type: TYPE_MESSAGE type_name: ".google.protobuf.FieldMask" label: LABEL_OPTIONAL }
	field { name: "page_size" number: 4 type: TYPE_INT32 label: LABEL_OPTIONAL }
	field { name: "tags" number: 5 type: TYPE_STRING label: LABEL_REPEATED }
	field { name: "color" number: 6 type: TYPE_ENUM type_name: ".things.v1.Color" label: LABEL_OPTIONAL }
	field { name: "since" number: 7 type: TYPE_MESSAGE type_name: ".google.protobuf.Timestamp" label: LABEL_OPTIONAL }
	field { name: "all" number: 8 type: TYPE_BOOL label: LABEL_OPTIONAL }
}
service {
	name: "Things"
	method { name: "Get" input_type: ".things.v1.Request" output_type: ".things.v1.Request" options { [google.api.http] { get: "/v1/{name=projects/*/things/*}" additional_bindings { get: "/v2/{thing.name=projects/*/things/**}" } } } }
	method { name: "Create" input_type: ".things.v1.Request" output_type: ".things.v1.Request" options { [google.api.http] { post: "/v1/{name=projects/*}/things" body: "thing" } } }
	method { name: "Run" input_type: ".things.v1.Request" output_type: ".things.v1.Request" options { [google.api.http] { post: "/v1/{name=projects/*/things/*}:run" body: "*" } } }
	method { name: "Patch" input_type: ".things.v1.Request" output_type: ".things.v1.Request" options { [google.api.http] { patch: "/v1/{name=projects/*/things/*}" body: "thing" } } }
	method { name: "Fail" input_type: ".things.v1.Request" output_type: ".things.v1.Request" options { [google.api.http] { post: "/v1/{name=projects/*/things/*}:fail" body: "*" } } }
}`

// things serves the file: every method answers with its request, but Fail.
func things(t testing.TB, change ...func(*Options)) *Handler {
	t.Helper()
	p := new(descriptorpb.FileDescriptorProto)
	if err := prototext.Unmarshal([]byte(thingsFile), p); err != nil {
		t.Fatal(err)
	}
	file, err := protodesc.NewFile(p, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	d := file.Services().Get(0)
	desc := &grpc.ServiceDesc{ServiceName: string(d.FullName())}
	for i := range d.Methods().Len() {
		m := d.Methods().Get(i)
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: string(m.Name()), Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := dynamicpb.NewMessage(m.Input())
			if err := dec(in); err != nil {
				return nil, err
			}
			if m.Name() == "Fail" {
				switch name := in.Get(m.Input().Fields().ByName("name")).String(); {
				case strings.HasSuffix(name, "/panic"):
					panic("a secret")
				default:
					return nil, status.Error(codes.FailedPrecondition, "it fails")
				}
			}
			// protojson cannot write every mask: they are shown as tags.
			tags := in.Mutable(m.Input().Fields().ByName("tags")).List()
			for _, holder := range []protoreflect.Message{in, in.Get(m.Input().Fields().ByName("thing")).Message()} {
				for _, name := range []protoreflect.Name{"update_mask", "mask"} {
					f := holder.Descriptor().Fields().ByName(name)
					if f == nil || !holder.Has(f) {
						continue
					}
					mask := holder.Get(f).Message()
					paths := mask.Get(mask.Descriptor().Fields().ByName("paths")).List()
					for i := range paths.Len() {
						tags.Append(protoreflect.ValueOfString("mask=" + paths.Get(i).String()))
					}
					holder.Clear(f)
				}
			}
			if md, _ := metadata.FromIncomingContext(ctx); len(md["x-extra"]) > 0 {
				tags.Append(protoreflect.ValueOfString("extra=" + md["x-extra"][0]))
			}
			return in, nil
		}})
	}
	o := Options{
		Services: []Service{{Descriptor: d, Methods: desc}}, Domain: "things.example", DefaultVersion: "v1",
		Parameters: map[string]string{"extra": "x-extra"}, MaxBody: 1 << 12, MaxDepth: 20,
		Status: func(_ context.Context, err error) *status.Status {
			if s, ok := status.FromError(err); ok {
				return s
			}
			return status.New(codes.Internal, "internal")
		},
	}
	for _, c := range change {
		c(&o)
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

type result struct {
	*httptest.ResponseRecorder
	json map[string]any
}

func send(t testing.TB, h http.Handler, method, target, body string, header ...string) result {
	t.Helper()
	r := httptest.NewRequest(method, "http://example.com/", strings.NewReader(body))
	path, query, _ := strings.Cut(target, "?")
	r.URL.Opaque, r.URL.RawQuery = "", query
	r.URL.Path, r.URL.RawPath = unescape(path), path
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	out := result{ResponseRecorder: w}
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &out.json); err != nil {
			t.Fatalf("%s %s: not JSON: %q", method, target, w.Body)
		}
	}
	return out
}

func (r result) message() string {
	e, _ := r.json["error"].(map[string]any)
	m, _ := e["message"].(string)
	return m
}

func (r result) reason() string {
	e, _ := r.json["error"].(map[string]any)
	details, _ := e["details"].([]any)
	for _, d := range details {
		if reason, ok := d.(map[string]any)["reason"].(string); ok {
			return reason
		}
	}
	return ""
}
