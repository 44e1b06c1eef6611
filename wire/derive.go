package wire

import (
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// derive is a file of servicepb as it looks in a version, with the additions.
func derive(f protoreflect.FileDescriptor, v Version) *descriptorpb.FileDescriptorProto {
	p := protodesc.ToFileDescriptorProto(f)
	const oldPackage, oldPath = packagePrefix + "v1", "/service/v1/"
	rename := func(s *string) {
		if s != nil && strings.HasPrefix(*s, "."+oldPackage+".") {
			*s = "." + v.protoPackage() + strings.TrimPrefix(*s, "."+oldPackage)
		}
	}
	p.Package = proto.String(v.protoPackage())
	path := func(s string) string { return strings.Replace(s, oldPath, "/service/"+string(v)+"/", 1) }
	p.Name = proto.String(path(p.GetName()))
	for i := range p.Dependency {
		p.Dependency[i] = path(p.Dependency[i])
	}
	var inMessage func(m *descriptorpb.DescriptorProto)
	inMessage = func(m *descriptorpb.DescriptorProto) {
		for _, f := range m.Field {
			rename(f.TypeName)
		}
		for _, n := range m.NestedType {
			inMessage(n)
		}
	}
	for _, m := range p.MessageType {
		if text, ok := additions[m.GetName()]; ok && (m.GetName() != "NodeConfig" || v != V1) {
			added := new(descriptorpb.DescriptorProto)
			must(prototext.Unmarshal([]byte(strings.ReplaceAll(text, "PACKAGE", v.protoPackage())), added))
			for _, f := range added.Field {
				f.JsonName = nil // worked out from the name
			}
			proto.Merge(m, added)
		}
		if m.GetName() == "OperationMetadata" && v != V1 {
			// Only v1 has the newer name of this value.
			for _, e := range m.EnumType {
				e.Value = slices.DeleteFunc(e.Value, func(v *descriptorpb.EnumValueDescriptorProto) bool { return v.GetName() == "SUCCEEDED" })
				e.Options = nil // allow_alias, which is an error without an alias
			}
		}
		inMessage(m)
	}
	for _, s := range p.Service {
		for _, m := range s.Method {
			rename(m.InputType)
			rename(m.OutputType)
			if rule, ok := proto.GetExtension(m.Options, annotations.E_Http).(*annotations.HttpRule); ok && rule != nil {
				rule = proto.CloneOf(rule)
				reversion(rule, v)
				m.Options = proto.CloneOf(m.Options)
				proto.SetExtension(m.Options, annotations.E_Http, rule)
			}
		}
		for _, add := range addedMethods {
			if add.service != s.GetName() || !slices.Contains(add.versions, v) {
				continue
			}
			input := add.name + "Request"
			p.MessageType = append(p.MessageType, &descriptorpb.DescriptorProto{
				Name: proto.String(input),
				Field: []*descriptorpb.FieldDescriptorProto{{
					Name: proto.String("name"), Number: proto.Int32(1),
					Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
				}},
			})
			options := new(descriptorpb.MethodOptions)
			rule := &annotations.HttpRule{Pattern: &annotations.HttpRule_Get{Get: "/" + string(v) + add.path}}
			if add.verb == "post" {
				rule = &annotations.HttpRule{Pattern: &annotations.HttpRule_Post{Post: "/" + string(v) + add.path}, Body: "*"}
			}
			proto.SetExtension(options, annotations.E_Http, rule)
			s.Method = append(s.Method, &descriptorpb.MethodDescriptorProto{
				Name:       proto.String(add.name),
				InputType:  proto.String("." + v.protoPackage() + "." + input),
				OutputType: proto.String(strings.ReplaceAll(add.output, "PACKAGE", v.protoPackage())),
				Options:    options,
			})
		}
	}
	return p
}

// reversion moves a rule's path from v1 to another version.
func reversion(rule *annotations.HttpRule, v Version) {
	move := func(path *string) { *path = "/" + string(v) + strings.TrimPrefix(*path, "/v1") }
	switch p := rule.Pattern.(type) {
	case *annotations.HttpRule_Get:
		move(&p.Get)
	case *annotations.HttpRule_Put:
		move(&p.Put)
	case *annotations.HttpRule_Post:
		move(&p.Post)
	case *annotations.HttpRule_Delete:
		move(&p.Delete)
	case *annotations.HttpRule_Patch:
		move(&p.Patch)
	}
	for _, more := range rule.AdditionalBindings {
		reversion(more, v)
	}
}

func must(err error) {
	if err != nil {
		panic(err) // of the constants in additions.go
	}
}
