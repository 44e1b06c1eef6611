package wire

import (
	"fmt"
	"slices"
	"strings"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Version is a version of Composer's API.
type Version string

// The versions. Terraform's google and gcloud call v1, google-beta and gcloud
// beta call v1beta1, gcloud alpha calls v1alpha2.
const (
	V1       Version = "v1"
	V1Beta1  Version = "v1beta1"
	V1Alpha2 Version = "v1alpha2"
)

// Versions are all of them.
var Versions = []Version{V1, V1Beta1, V1Alpha2}

const packagePrefix = "google.cloud.orchestration.airflow.service."

func (v Version) protoPackage() string { return packagePrefix + string(v) }

// typeURL is the type URL of a message in an Any.
func (v Version) typeURL(message protoreflect.Name) string {
	return "type.googleapis.com/" + v.protoPackage() + "." + string(message)
}

// additions are what the REST API, the beta API or this server have beside
// Google's servicepb, by the message they are in. The first two numbers are
// Google's; networkingType has none that is public, so it is among ours, which
// begin at 10000 to stay clear of fields that Google adds.
var additions = map[string]string{
	// Only in v1beta1 and v1alpha2.
	"NodeConfig": `field { name: "max_pods_per_node" number: 10 type: TYPE_INT32 label: LABEL_OPTIONAL }`,

	"PrivateEnvironmentConfig": `
		field { name: "networking_type" number: 10000 type: TYPE_ENUM label: LABEL_OPTIONAL type_name: ".PACKAGE.PrivateEnvironmentConfig.NetworkingType" }
		enum_type {
			name: "NetworkingType"
			value { name: "NETWORKING_TYPE_UNSPECIFIED" number: 0 }
			value { name: "PRIVATE" number: 1 }
			value { name: "PUBLIC" number: 2 }
		}`,

	"OperationMetadata": `
		field { name: "steps" number: 10000 type: TYPE_MESSAGE label: LABEL_REPEATED type_name: ".PACKAGE.OperationMetadata.Step" }
		field { name: "plan" number: 10001 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: ".PACKAGE.OperationMetadata.Plan" }
		nested_type {
			name: "Step"
			field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
			field { name: "state" number: 2 type: TYPE_ENUM label: LABEL_OPTIONAL type_name: ".PACKAGE.OperationMetadata.State" }
			field { name: "detail" number: 3 type: TYPE_STRING label: LABEL_OPTIONAL }
			field { name: "start_time" number: 4 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: ".google.protobuf.Timestamp" }
			field { name: "end_time" number: 5 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: ".google.protobuf.Timestamp" }
		}
		nested_type {
			name: "Plan"
			field { name: "network" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
			field { name: "subnetwork" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
			field { name: "vpc_native" number: 3 type: TYPE_BOOL label: LABEL_OPTIONAL }
			field { name: "ranges" number: 4 type: TYPE_MESSAGE label: LABEL_REPEATED type_name: ".PACKAGE.OperationMetadata.Range" }
			field { name: "node_addresses" number: 5 type: TYPE_STRING label: LABEL_REPEATED }
			field { name: "node_pod_prefix_length" number: 6 type: TYPE_INT32 label: LABEL_OPTIONAL }
			field { name: "max_pods_per_node" number: 7 type: TYPE_INT32 label: LABEL_OPTIONAL }
			field { name: "max_nodes" number: 8 type: TYPE_INT32 label: LABEL_OPTIONAL }
			field { name: "max_services" number: 9 type: TYPE_INT32 label: LABEL_OPTIONAL }
			field { name: "agent_exempts" number: 10 type: TYPE_STRING label: LABEL_REPEATED }
			field { name: "warnings" number: 11 type: TYPE_STRING label: LABEL_REPEATED }
		}
		nested_type {
			name: "Range"
			field { name: "kind" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
			field { name: "cidr_block" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
			field { name: "chosen_by" number: 3 type: TYPE_STRING label: LABEL_OPTIONAL }
			field { name: "secondary_range_name" number: 4 type: TYPE_STRING label: LABEL_OPTIONAL }
		}`,
}

// addedMethods are the methods that servicepb lacks.
var addedMethods = []addedMethod{
	{"Environments", "RestartWebServer", "post", "/{name=projects/*/locations/*/environments/*}:restartWebServer", ".google.longrunning.Operation", Versions},
	{"Environments", "Hibernate", "post", "/{name=projects/*/locations/*/environments/*}:hibernate", ".google.longrunning.Operation", []Version{V1Beta1, V1Alpha2}},
	{"Environments", "Resume", "post", "/{name=projects/*/locations/*/environments/*}:resume", ".google.longrunning.Operation", []Version{V1Beta1, V1Alpha2}},
	{"ImageVersions", "GetImageVersion", "get", "/{name=projects/*/locations/*/imageVersions/*}", ".PACKAGE.ImageVersion", Versions},
}

// addedMethod takes a message that has a name as its field 1.
type addedMethod struct {
	service, name, verb, path, output string
	versions                          []Version
}

// schema is one version of the API.
type schema struct {
	version                     Version
	environments, imageVersions protoreflect.ServiceDescriptor
	metadata                    protoreflect.MessageDescriptor // OperationMetadata
	types                       *dynamicpb.Types
}

// schemas derives every version of the API from the descriptors that servicepb
// carries. The files are for reflection: they come before those of the same
// names in the global registry.
func schemas() (map[Version]*schema, *protoregistry.Files, error) {
	all := map[Version]*schema{}
	files := new(protoregistry.Files)
	for _, v := range Versions {
		for _, f := range []protoreflect.FileDescriptor{
			servicepb.File_google_cloud_orchestration_airflow_service_v1_operations_proto,
			servicepb.File_google_cloud_orchestration_airflow_service_v1_environments_proto,
			servicepb.File_google_cloud_orchestration_airflow_service_v1_image_versions_proto,
		} {
			fd, err := protodesc.NewFile(derive(f, v), resolver{files})
			if err != nil {
				return nil, nil, fmt.Errorf("deriving %s of %s: %w", v, f.Path(), err)
			}
			if err := files.RegisterFile(fd); err != nil {
				return nil, nil, fmt.Errorf("deriving %s of %s: %w", v, f.Path(), err)
			}
		}
		s := &schema{version: v, types: dynamicpb.NewTypes(files)}
		for name, d := range map[string]*protoreflect.ServiceDescriptor{"Environments": &s.environments, "ImageVersions": &s.imageVersions} {
			found, err := files.FindDescriptorByName(protoreflect.FullName(v.protoPackage() + "." + name))
			if err != nil {
				return nil, nil, err
			}
			*d = found.(protoreflect.ServiceDescriptor)
		}
		found, err := files.FindDescriptorByName(protoreflect.FullName(v.protoPackage() + ".OperationMetadata"))
		if err != nil {
			return nil, nil, err
		}
		s.metadata = found.(protoreflect.MessageDescriptor)
		all[v] = s
	}
	return all, files, nil
}

// resolver looks among the derived files first, then among all.
type resolver struct{ files *protoregistry.Files }

func (r resolver) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	if f, err := r.files.FindFileByPath(path); err == nil {
		return f, nil
	}
	return protoregistry.GlobalFiles.FindFileByPath(path)
}

func (r resolver) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	if d, err := r.files.FindDescriptorByName(name); err == nil {
		return d, nil
	}
	return protoregistry.GlobalFiles.FindDescriptorByName(name)
}

// types resolve what is in an Any: a version's messages first, then all.
type types struct {
	*dynamicpb.Types
}

func (t types) FindMessageByName(name protoreflect.FullName) (protoreflect.MessageType, error) {
	if m, err := t.Types.FindMessageByName(name); err == nil {
		return m, nil
	}
	return protoregistry.GlobalTypes.FindMessageByName(name)
}

func (t types) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if m, err := t.Types.FindMessageByURL(url); err == nil {
		return m, nil
	}
	return protoregistry.GlobalTypes.FindMessageByURL(url)
}

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

// operationRules are where the operations are found over REST: in Google's
// service they too come from the service's configuration, not from
// annotations. Only the beta versions have cancel.
func operationRules(v Version) map[protoreflect.Name][]*annotations.HttpRule {
	const list, one = "/{name=projects/*/locations/*}/operations", "/{name=projects/*/locations/*/operations/*}"
	prefix := "/" + string(v)
	rules := map[protoreflect.Name][]*annotations.HttpRule{
		"ListOperations":  {{Pattern: &annotations.HttpRule_Get{Get: prefix + list}}},
		"GetOperation":    {{Pattern: &annotations.HttpRule_Get{Get: prefix + one}}},
		"DeleteOperation": {{Pattern: &annotations.HttpRule_Delete{Delete: prefix + one}}},
	}
	if v != V1 {
		rules["CancelOperation"] = []*annotations.HttpRule{{Pattern: &annotations.HttpRule_Post{Post: prefix + one + ":cancel"}, Body: "*"}}
	} else {
		rules["CancelOperation"] = []*annotations.HttpRule{} // none, not the annotation's
	}
	return rules
}

func must(err error) {
	if err != nil {
		panic(err) // of a constant in this file
	}
}
