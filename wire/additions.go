package wire

import (
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/reflect/protoreflect"
)

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
			field { name: "cluster" number: 12 type: TYPE_STRING label: LABEL_OPTIONAL }
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
