package wire

import (
	"fmt"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
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
