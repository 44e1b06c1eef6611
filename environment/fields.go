package environment

import (
	"fmt"
	"slices"
	"strings"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"sordino/environment/image"
)

// A field's path has proto names from the environment's root, joined by dots:
// config.node_config.enable_ip_masq_agent.

// Fields that the REST API has and Google's Go messages do not: they are in
// Spec beside the message.
const (
	fieldMaxPodsPerNode = "config.node_config.max_pods_per_node"
	fieldNetworkingType = "config.private_environment_config.networking_type"
)

// Fields that are named in several places.
const (
	fieldLabels            = "labels"
	fieldNodeCount         = "config.node_count"
	fieldImageVersion      = "config.software_config.image_version"
	fieldPypi              = "config.software_config.pypi_packages"
	fieldOverrides         = "config.software_config.airflow_config_overrides"
	fieldEnvVariables      = "config.software_config.env_variables"
	fieldPython            = "config.software_config.python_version"
	fieldSchedulers        = "config.software_config.scheduler_count"
	fieldWebAccess         = "config.web_server_network_access_control"
	fieldDatabaseMachine   = "config.database_config.machine_type"
	fieldWebServerMachine  = "config.web_server_config.machine_type"
	fieldMaintenance       = "config.maintenance_window"
	fieldMasterNetworks    = "config.master_authorized_networks_config"
	fieldAgent             = "config.node_config.enable_ip_masq_agent"
	fieldIPAliases         = "config.node_config.ip_allocation_policy.use_ip_aliases"
	fieldPrivate           = "config.private_environment_config.enable_private_environment"
	fieldPrivatelyUsed     = "config.private_environment_config.enable_privately_used_public_ips"
	fieldNetwork           = "config.node_config.network"
	fieldSubnetwork        = "config.node_config.subnetwork"
	fieldZone              = "config.node_config.location"
	fieldMachineType       = "config.node_config.machine_type"
	fieldTags              = "config.node_config.tags"
	fieldPods              = "config.node_config.ip_allocation_policy.cluster_ipv4_cidr_block"
	fieldPodsName          = "config.node_config.ip_allocation_policy.cluster_secondary_range_name"
	fieldServices          = "config.node_config.ip_allocation_policy.services_ipv4_cidr_block"
	fieldServicesName      = "config.node_config.ip_allocation_policy.services_secondary_range_name"
	fieldConnectionType    = "config.private_environment_config.networking_config.connection_type"
	fieldPrivateEndpoint   = "config.private_environment_config.private_cluster_config.enable_private_endpoint"
	fieldMasterBlock       = "config.private_environment_config.private_cluster_config.master_ipv4_cidr_block"
	fieldWebServerBlock    = "config.private_environment_config.web_server_ipv4_cidr_block"
	fieldDatabaseBlock     = "config.private_environment_config.cloud_sql_ipv4_cidr_block"
	fieldMasterReserved    = "config.private_environment_config.private_cluster_config.master_ipv4_reserved_range"
	fieldWebServerReserved = "config.private_environment_config.web_server_ipv4_reserved_range"
)

// mutable are the fields that an update can change, each one a type of update:
// a request holds one type. A field below one of them belongs to it.
var mutable = []string{
	fieldLabels, fieldNodeCount, fieldImageVersion, fieldPypi, fieldOverrides, fieldEnvVariables, fieldSchedulers,
	fieldWebAccess, fieldDatabaseMachine, fieldWebServerMachine, fieldMaintenance, fieldMasterNetworks,
	"config.data_retention_config",
	"config.environment_size",
	"config.recovery_config",
	"config.resilience_mode",
	"config.workloads_config",
	"config.software_config.cloud_data_lineage_integration",
	"config.software_config.web_server_plugins_mode",
}

// outputOnly are cleared wherever they are given, and never an error (AIP-203):
// clients send back what they read. The name is checked apart.
var outputOnly = []string{
	"name", "uuid", "state", "create_time", "update_time", "satisfies_pzs", "satisfies_pzi",
	"config.gke_cluster", "config.dag_gcs_prefix", "config.airflow_uri", "config.airflow_byoid_uri",
	fieldMasterReserved, fieldWebServerReserved,
	"config.private_environment_config.cloud_composer_network_ipv4_reserved_range",
}

// supported says which Composer majors have a field; the fields below it too.
// A field that is not named is in all of them.
var supported = []struct {
	field    string
	from, to int // majors, both inclusive
}{
	{fieldNodeCount, 1, 1},
	{fieldPython, 1, 1},
	{fieldSchedulers, 1, 1},
	{fieldDatabaseMachine, 1, 1},
	{fieldWebServerMachine, 1, 1},
	{fieldZone, 1, 1},
	{fieldMachineType, 1, 1},
	{"config.node_config.disk_size_gb", 1, 1},
	{"config.node_config.oauth_scopes", 1, 1},
	{fieldMaxPodsPerNode, 1, 1},
	{fieldIPAliases, 1, 1},
	{fieldWebServerBlock, 1, 1},

	{"config.node_config.ip_allocation_policy", 1, 2},
	{fieldAgent, 1, 2},
	{fieldMasterNetworks, 1, 2},
	{"config.private_environment_config.private_cluster_config", 1, 2},
	{fieldDatabaseBlock, 1, 2},
	{fieldPrivatelyUsed, 1, 2},
	{"config.private_environment_config.networking_config", 1, 2},

	{"config.private_environment_config.cloud_composer_network_ipv4_cidr_block", 2, 2},
	{"config.private_environment_config.cloud_composer_connection_subnetwork", 2, 2},

	{"config.database_config.zone", 2, 3},
	{"config.environment_size", 2, 3},
	{"config.recovery_config", 2, 3},
	{"config.resilience_mode", 2, 3},
	{"config.workloads_config", 2, 3},
	{"config.data_retention_config", 2, 3},
	{"config.software_config.cloud_data_lineage_integration", 2, 3},

	{"config.workloads_config.dag_processor", 3, 3},
	{"config.software_config.web_server_plugins_mode", 3, 3},
	{"config.node_config.composer_network_attachment", 3, 3},
	{"config.node_config.composer_internal_ipv4_cidr_block", 3, 3},
	{"config.private_environment_config.enable_private_builds_only", 3, 3},
}

// within reports whether a path is a field or below it.
func within(path, field string) bool {
	return path == field || strings.HasPrefix(path, field) && path[len(field)] == '.'
}

// fieldIn returns the entry of a list that a path is within.
func fieldIn(path string, fields []string) (string, bool) {
	for _, f := range fields {
		if within(path, f) {
			return f, true
		}
	}
	return "", false
}

// toMessage shows a spec as the message that paths are relative to. It shares
// memory with the spec.
func (s *Spec) toMessage() *servicepb.Environment {
	return &servicepb.Environment{Config: s.Config, Labels: s.Labels, StorageConfig: s.Storage}
}

// Clone returns a copy that shares nothing.
func (s Spec) Clone() Spec {
	s.Config = proto.CloneOf(s.Config)
	s.Storage = proto.CloneOf(s.Storage)
	if s.Labels != nil {
		labels := make(map[string]string, len(s.Labels))
		for k, v := range s.Labels {
			labels[k] = v
		}
		s.Labels = labels
	}
	return s
}

// populated lists every field of a spec that has a value, down to scalars,
// lists, maps and timestamps, in the order of their numbers. A message without
// content is listed itself: an empty webServerNetworkAccessControl says
// something.
func (s *Spec) populated() []string {
	var paths []string
	var walk func(m protoreflect.Message, prefix string)
	walk = func(m protoreflect.Message, prefix string) {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if !m.Has(f) {
				continue
			}
			path := prefix + string(f.Name())
			if _, down := descends(f); down {
				before := len(paths)
				walk(m.Get(f).Message(), path+".")
				if len(paths) > before {
					continue
				}
			}
			paths = append(paths, path)
		}
	}
	walk(s.toMessage().ProtoReflect(), "")
	if s.MaxPodsPerNode != 0 {
		paths = append(paths, fieldMaxPodsPerNode)
	}
	if s.NetworkingType != "" {
		paths = append(paths, fieldNetworkingType)
	}
	return paths
}

// descends returns the message below a field that paths can go into.
func descends(f protoreflect.FieldDescriptor) (protoreflect.MessageDescriptor, bool) {
	if f.Message() == nil || f.IsList() || f.IsMap() || strings.HasPrefix(string(f.Message().FullName()), "google.protobuf.") {
		return nil, false
	}
	return f.Message(), true
}

// clearField removes what stands at a path.
func (s *Spec) clearField(path string) {
	switch path {
	case fieldMaxPodsPerNode:
		s.MaxPodsPerNode = 0
		return
	case fieldNetworkingType:
		s.NetworkingType = ""
		return
	}
	m := s.toMessage()
	reflected := m.ProtoReflect()
	parts := strings.Split(path, ".")
	for i, part := range parts {
		f := reflected.Descriptor().Fields().ByName(protoreflect.Name(part))
		if f == nil || !reflected.Has(f) {
			return
		}
		if i == len(parts)-1 {
			reflected.Clear(f)
			break
		}
		reflected = reflected.Mutable(f).Message()
	}
	s.Config, s.Labels, s.Storage = m.Config, m.Labels, m.StorageConfig
}

// copyField makes a path's value what it is in another spec; not there means
// not here.
func (s *Spec) copyField(from *Spec, path string) {
	switch path {
	case fieldMaxPodsPerNode:
		s.MaxPodsPerNode = from.MaxPodsPerNode
		return
	case fieldNetworkingType:
		s.NetworkingType = from.NetworkingType
		return
	}
	value, field, ok := from.value(path)
	if !ok {
		s.clearField(path)
		return
	}
	if s.Config == nil && strings.HasPrefix(path, "config.") {
		s.Config = &servicepb.EnvironmentConfig{}
	}
	m := s.toMessage()
	reflected := m.ProtoReflect()
	parts := strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		reflected = reflected.Mutable(reflected.Descriptor().Fields().ByName(protoreflect.Name(part))).Message()
	}
	reflected.Set(field, value)
	s.Config, s.Labels, s.Storage = m.Config, m.Labels, m.StorageConfig
	*s = s.Clone() // value belongs to the other spec
}

// value returns what stands at a path.
func (s *Spec) value(path string) (protoreflect.Value, protoreflect.FieldDescriptor, bool) {
	reflected := s.toMessage().ProtoReflect()
	parts := strings.Split(path, ".")
	for i, part := range parts {
		f := reflected.Descriptor().Fields().ByName(protoreflect.Name(part))
		if f == nil || !reflected.Has(f) {
			return protoreflect.Value{}, nil, false
		}
		if i == len(parts)-1 {
			return reflected.Get(f), f, true
		}
		reflected = reflected.Get(f).Message()
	}
	return protoreflect.Value{}, nil, false
}

// text shows the value at a path for a message, "unset" for none.
func (s *Spec) text(path string) string {
	switch path {
	case fieldMaxPodsPerNode:
		return fmt.Sprint(s.MaxPodsPerNode)
	case fieldNetworkingType:
		if s.NetworkingType == "" {
			return "unset"
		}
		return s.NetworkingType
	}
	value, field, ok := s.value(path)
	switch {
	case !ok && boolean(path):
		return "false"
	case !ok:
		return "unset"
	case field.IsList():
		var items []string
		for i := range value.List().Len() {
			items = append(items, value.List().Get(i).String())
		}
		return "[" + strings.Join(items, ", ") + "]"
	case field.Enum() != nil:
		if v := field.Enum().Values().ByNumber(value.Enum()); v != nil {
			return string(v.Name())
		}
	}
	return value.String()
}

// boolean reports whether a path names a bool, for which unset is false.
func boolean(path string) bool {
	m := (&servicepb.Environment{}).ProtoReflect().Descriptor()
	parts := strings.Split(path, ".")
	for i, part := range parts {
		f := m.Fields().ByName(protoreflect.Name(part))
		if f == nil {
			return false
		}
		if i == len(parts)-1 {
			return f.Kind() == protoreflect.BoolKind
		}
		if m = f.Message(); m == nil {
			return false
		}
	}
	return false
}

// sameField reports whether two specs have the same at a path.
func sameField(a, b *Spec, path string) bool {
	switch path {
	case fieldMaxPodsPerNode:
		return a.MaxPodsPerNode == b.MaxPodsPerNode
	case fieldNetworkingType:
		return a.NetworkingType == b.NetworkingType
	}
	v, _, inA := a.value(path)
	w, _, inB := b.value(path)
	if inA != inB {
		return false
	}
	return !inA || v.Equal(w)
}

// clearOutputOnly removes what only the server can say.
func (s *Spec) clearOutputOnly() {
	for _, f := range outputOnly {
		s.clearField(f)
	}
}

// restJSON is a path as JSON spells it, for messages: config.nodeConfig.tags.
func restJSON(path string) string {
	parts := strings.Split(path, ".")
	for i, part := range parts {
		words := strings.Split(part, "_")
		for j, w := range words[1:] {
			if w != "" {
				words[j+1] = strings.ToUpper(w[:1]) + w[1:]
			}
		}
		parts[i] = strings.Join(words, "")
	}
	return strings.Join(parts, ".")
}

// unsupportedFields reports the given fields that the version does not have,
// each with all that is below it once.
func unsupportedFields(paths []string, v image.Version) []Violation {
	var found []Violation
	for _, path := range paths {
		for _, rule := range supported {
			if !within(path, rule.field) || v.Composer.Major >= rule.from && v.Composer.Major <= rule.to {
				continue
			}
			if slices.ContainsFunc(found, func(v Violation) bool { return v.Field == rule.field }) {
				break
			}
			majors := fmt.Sprintf("Cloud Composer %d", rule.from)
			if rule.to > rule.from {
				majors += fmt.Sprintf(" and %d", rule.to) // no rule spans three
			}
			found = append(found, Violation{Field: rule.field, Reason: "FIELD_NOT_SUPPORTED_IN_VERSION",
				Description: fmt.Sprintf("Field '%s' is supported in %s, and not in image version '%s'. Leave it out, or ask for an image version that has it.", restJSON(rule.field), majors, v.ID),
				Metadata:    map[string]string{"field": restJSON(rule.field), "imageVersion": v.ID, "supportedIn": majors}})
			break
		}
	}
	return found
}

// sortedKeys are a map's keys in order, so that messages do not change from
// call to call.
func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
