package environment

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment/address"
	"sordino/environment/image"
)

// The defaults of Composer 1.
const (
	DefaultNodeCount      = 3
	MinNodeCount          = 3
	DefaultMaxPodsPerNode = address.DefaultMaxPodsPerNode
	defaultMachineType    = "n1-standard-1"
	defaultDiskSizeGB     = 100
	minDiskSizeGB         = 30
	maxDiskSizeGB         = 64 * 1024
	defaultOAuthScope     = "https://www.googleapis.com/auth/cloud-platform"
)

// The machine types, the default first.
var (
	databaseMachines  = []string{"db-n1-standard-2", "db-n1-standard-4", "db-n1-standard-8", "db-n1-standard-16"}
	webServerMachines = []string{"composer-n1-webserver-2", "composer-n1-webserver-4", "composer-n1-webserver-8"}
	// The shared-core machine types.
	sharedCore = []string{"f1-micro", "g1-small", "e2-micro", "e2-small", "e2-medium"}
)

// reservedEnvVariables are set by Composer itself.
var reservedEnvVariables = []string{
	"AIRFLOW_HOME", "C_FORCE_ROOT", "CONTAINER_NAME", "DAGS_FOLDER", "GCP_PROJECT", "GCS_BUCKET", "GKE_CLUSTER_NAME",
	"SQL_DATABASE", "SQL_INSTANCE", "SQL_PASSWORD", "SQL_PROJECT", "SQL_REGION", "SQL_USER",
}

// blockedOverrides are the options that Composer needs for itself, whatever
// the version of Airflow. A section alone is blocked whole.
var blockedOverrides = []string{
	"cli",
	"celery-broker_url", "celery-celery_app_name", "celery-default_queue", "celery-result_backend", "celery-worker_log_server_port",
	"core-base_log_folder", "core-dags_folder", "core-encrypt_s3_logs", "core-fernet_key", "core-log_format", "core-logging_config_class",
	"core-plugins_folder", "core-remote_base_log_folder", "core-remote_log_conn_id", "core-remote_logging", "core-security",
	"core-sql_alchemy_conn", "core-sql_alchemy_pool_recycle", "core-sql_alchemy_pool_size", "core-task_log_reader",
	"database-alembic_ini_file_path", "database-sql_alchemy_conn", "database-sql_alchemy_pool_recycle", "database-sql_alchemy_pool_size",
	"kubernetes-namespace", "kubernetes-pod_template_file", "operators-default_queue",
}

var (
	labelKeyForm   = regexp.MustCompile(`^[\p{Ll}\p{Lo}][\p{Ll}\p{Lo}\p{N}_-]{0,62}$`)
	labelValueForm = regexp.MustCompile(`^[\p{Ll}\p{Lo}\p{N}_-]{0,63}$`)
	envForm        = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	envAirflowForm = regexp.MustCompile(`^AIRFLOW__[A-Z0-9_]+__[A-Z0-9_]+$`)
	tagForm        = regexp.MustCompile(`^[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$`)
	zoneForm       = regexp.MustCompile(`^projects/([^/]+)/zones/([^/]+)$`)
	machineForm    = regexp.MustCompile(`^projects/([^/]+)/zones/([^/]+)/machineTypes/([a-z][-a-z0-9]{0,62})$`)
	keyForm        = regexp.MustCompile(`^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$`)
	accountForm    = regexp.MustCompile(`^(?:default|[0-9]+|[^@\s/]+@[^@\s/]+\.[^@\s/]+)$`)
	bucketForm     = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
	packageForm    = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?$`)
	// extras, then version specifiers (PEP 440), then an environment marker.
	specifierForm = regexp.MustCompile(`^(?:\[[a-z0-9._, -]*\])?\s*(?:(?:===|==|~=|!=|<=|>=|<|>)\s*[a-zA-Z0-9.*+!_-]+\s*(?:,\s*(?:===|==|~=|!=|<=|>=|<|>)\s*[a-zA-Z0-9.*+!_-]+\s*)*)?(?:;.*)?$`)
)

// problems collects violations.
type problems []Violation

// add appends one. The metadata are pairs of name and value.
func (p *problems) add(field, reason, description string, metadata ...string) {
	v := Violation{Field: field, Reason: reason, Description: description}
	for i := 0; i+1 < len(metadata); i += 2 {
		if v.Metadata == nil {
			v.Metadata = map[string]string{}
		}
		v.Metadata[metadata[i]] = metadata[i+1]
	}
	*p = append(*p, v)
}

// checkSpec applies every rule that needs no store and no network. The spec's
// image alias is resolved and its output-only fields are cleared already.
func checkSpec(at Location, s *Spec, v image.Version) []Violation {
	p := problems(unsupportedFields(s.populated(), v))
	had := func(field string) bool { // a field that is refused is not judged twice
		return slices.ContainsFunc(p, func(v Violation) bool { return within(v.Field, field) || within(field, v.Field) })
	}
	c := s.Config
	if !had(fieldNodeCount) {
		checkNodeCount(&p, c.GetNodeCount())
	}
	checkNodeConfig(&p, at, s, v, had)
	checkPrivate(&p, s, v, had)
	checkSoftware(&p, s, v, had)
	checkLabels(&p, s.Labels)
	checkWebAccess(&p, c.GetWebServerNetworkAccessControl())
	checkMasterNetworks(&p, c.GetMasterAuthorizedNetworksConfig())
	checkMaintenance(&p, c.GetMaintenanceWindow())
	checkOneOf(&p, fieldDatabaseMachine, "database", c.GetDatabaseConfig().GetMachineType(), databaseMachines)
	checkOneOf(&p, fieldWebServerMachine, "web server", c.GetWebServerConfig().GetMachineType(), webServerMachines)
	if key := c.GetEncryptionConfig().GetKmsKeyName(); key != "" && !keyForm.MatchString(key) {
		p.add("config.encryption_config.kms_key_name", "KMS_KEY_MALFORMED",
			fmt.Sprintf("The encryption key's name '%s' is malformed. Write it like projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY.", key), "value", key)
	}
	if bucket := s.Storage.GetBucket(); bucket != "" && !bucketForm.MatchString(bucket) {
		p.add("storage_config.bucket", "BUCKET_MALFORMED",
			fmt.Sprintf("The bucket's name '%s' is malformed. Write the name alone, without gs:// and without a path.", bucket), "value", bucket)
	}
	checkRetention(&p, c.GetDataRetentionConfig())
	return p
}

func checkNodeCount(p *problems, n int32) {
	if n != 0 && n < MinNodeCount {
		p.add(fieldNodeCount, "NODE_COUNT_TOO_SMALL",
			fmt.Sprintf("The node count is %d. Ask for at least %d nodes, or leave it out for %d.", n, MinNodeCount, DefaultNodeCount),
			"value", fmt.Sprint(n), "minimum", fmt.Sprint(MinNodeCount))
	}
}

func checkOneOf(p *problems, field, what, value string, allowed []string) {
	if value != "" && !slices.Contains(allowed, value) {
		p.add(field, "MACHINE_TYPE_UNSUPPORTED",
			fmt.Sprintf("The %s machine type '%s' is not supported. Choose one of: %s.", what, value, strings.Join(allowed, ", ")),
			"value", value, "allowed", strings.Join(allowed, ", "))
	}
}

// usesAlias reports whether the cluster is VPC-native.
func usesAlias(s *Spec, v image.Version) bool {
	return v.Composer.Major > 1 || s.Config.GetNodeConfig().GetIpAllocationPolicy().GetUseIpAliases()
}

func checkNodeConfig(p *problems, at Location, s *Spec, v image.Version, had func(string) bool) {
	n := s.Config.GetNodeConfig()
	if !had(fieldZone) {
		checkZone(p, at, n)
	}
	if size := n.GetDiskSizeGb(); size != 0 && (size < minDiskSizeGB || size > maxDiskSizeGB) {
		p.add("config.node_config.disk_size_gb", "DISK_SIZE_OUT_OF_RANGE",
			fmt.Sprintf("The disk size is %d GB. Ask for %d to %d GB, or leave it out for %d GB.", size, minDiskSizeGB, maxDiskSizeGB, defaultDiskSizeGB),
			"value", fmt.Sprint(size), "minimum", fmt.Sprint(minDiskSizeGB), "maximum", fmt.Sprint(maxDiskSizeGB))
	}
	for _, scope := range n.GetOauthScopes() {
		if !strings.HasPrefix(scope, "https://") || strings.ContainsAny(scope, " \t\r\n,") {
			p.add("config.node_config.oauth_scopes", "OAUTH_SCOPE_MALFORMED",
				fmt.Sprintf("The OAuth scope '%s' is malformed. Write its full URL, for example %s.", scope, defaultOAuthScope), "value", scope)
		}
	}
	if account := n.GetServiceAccount(); account != "" && !accountForm.MatchString(account) {
		p.add("config.node_config.service_account", "SERVICE_ACCOUNT_MALFORMED",
			fmt.Sprintf("The service account '%s' is malformed. Write its email address, for example airflow@%s.iam.gserviceaccount.com.", account, at.Project), "value", account)
	}
	if tags := n.GetTags(); len(tags) > 64 {
		p.add(fieldTags, "TOO_MANY_TAGS", fmt.Sprintf("There are %d tags. At most 64 are possible.", len(tags)), "value", fmt.Sprint(len(tags)), "maximum", "64")
	}
	for _, tag := range n.GetTags() {
		if !tagForm.MatchString(tag) {
			p.add(fieldTags, "TAG_MALFORMED",
				fmt.Sprintf("The tag '%s' is malformed. Write 1 to 63 lower case letters, digits and dashes, a letter first and no dash last (RFC 1035).", tag), "value", tag)
		}
	}
	if !had(fieldMaxPodsPerNode) && s.MaxPodsPerNode != 0 && (s.MaxPodsPerNode < 8 || s.MaxPodsPerNode > 110) {
		p.add(fieldMaxPodsPerNode, "MAX_PODS_PER_NODE_OUT_OF_RANGE",
			fmt.Sprintf("The maximum of Pods per node is %d. Ask for 8 to 110, or leave it out for %d.", s.MaxPodsPerNode, DefaultMaxPodsPerNode),
			"value", fmt.Sprint(s.MaxPodsPerNode), "minimum", "8", "maximum", "110")
	}
	checkNetworkNames(p, at, n)
	if !usesAlias(s, v) {
		checkWithoutAlias(p, s, v)
	}
	if attachment := n.GetComposerNetworkAttachment(); attachment != "" && !had("config.node_config.composer_network_attachment") {
		parts := strings.Split(attachment, "/")
		if len(parts) != 6 || parts[0] != "projects" || parts[2] != "regions" || parts[4] != "networkAttachments" || slices.Contains(parts, "") {
			p.add("config.node_config.composer_network_attachment", "NETWORK_ATTACHMENT_MALFORMED",
				fmt.Sprintf("The network attachment '%s' is malformed. Write it like projects/PROJECT/regions/REGION/networkAttachments/NAME.", attachment), "value", attachment)
		}
	}
}

// checkWithoutAlias refuses on a routes-based cluster what only a VPC-native
// one has: the agent first of all.
func checkWithoutAlias(p *problems, s *Spec, v image.Version) {
	const fix = "Set 'config.nodeConfig.ipAllocationPolicy.useIpAliases' to true (--enable-ip-alias)"
	if s.Config.GetNodeConfig().GetEnableIpMasqAgent() {
		p.add(fieldAgent, "IP_MASQ_AGENT_REQUIRES_IP_ALIAS",
			fmt.Sprintf("The IP Masquerade agent needs IP aliases: 'config.nodeConfig.enableIpMasqAgent' is true, and 'config.nodeConfig.ipAllocationPolicy.useIpAliases' is false for image version '%s'. %s, or leave the agent out.", v.ID, fix),
			"enableIpMasqAgent", "true", "useIpAliases", "false", "imageVersion", v.ID)
	}
	need := func(field, value string) {
		p.add(field, "IP_ALIAS_REQUIRED",
			fmt.Sprintf("Field '%s' (%s) needs IP aliases, and 'config.nodeConfig.ipAllocationPolicy.useIpAliases' is false. %s, or leave the field out.", restJSON(field), value, fix),
			"field", restJSON(field), "value", value, "useIpAliases", "false")
	}
	for _, field := range []string{fieldPods, fieldPodsName, fieldServices, fieldServicesName} {
		if _, _, ok := s.value(field); ok && s.text(field) != "" {
			need(field, "'"+s.text(field)+"'")
		}
	}
	if s.MaxPodsPerNode != 0 {
		need(fieldMaxPodsPerNode, fmt.Sprint(s.MaxPodsPerNode))
	}
	if s.Config.GetPrivateEnvironmentConfig().GetEnablePrivateEnvironment() {
		need(fieldPrivate, "true")
	} else if s.NetworkingType == "PRIVATE" {
		need(fieldNetworkingType, "PRIVATE")
	}
}

// relative takes the scheme and the host off a compute resource's full URL.
func relative(name string) string {
	for _, prefix := range []string{"https://www.googleapis.com/compute/", "https://compute.googleapis.com/compute/"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			_, rest, _ = strings.Cut(rest, "/") // v1, beta
			return rest
		}
	}
	return name
}

// networkName is the full resource name of a network, "" where it is malformed.
func networkName(project, given string) string {
	given = relative(given)
	switch parts := strings.Split(given, "/"); {
	case given == "":
		return "projects/" + project + "/global/networks/default"
	case len(parts) == 1:
		return "projects/" + project + "/global/networks/" + given
	case len(parts) == 5 && parts[0] == "projects" && parts[2] == "global" && parts[3] == "networks" && parts[1] != "" && parts[4] != "":
		return given
	}
	return ""
}

// subnetworkName is the full resource name of a subnetwork, "" where there is
// none or it is malformed. A short name is one of the network's project.
func subnetworkName(network, region, given string) string {
	given = relative(given)
	switch parts := strings.Split(given, "/"); {
	case given == "":
		return ""
	case len(parts) == 1:
		return "projects/" + strings.Split(network, "/")[1] + "/regions/" + region + "/subnetworks/" + given
	case len(parts) == 6 && parts[0] == "projects" && parts[2] == "regions" && parts[4] == "subnetworks" && !slices.Contains(parts, ""):
		return given
	}
	return ""
}

func checkNetworkNames(p *problems, at Location, n *servicepb.NodeConfig) {
	network := networkName(at.Project, n.GetNetwork())
	if network == "" {
		p.add(fieldNetwork, "NETWORK_MALFORMED",
			fmt.Sprintf("The network '%s' is malformed. Write it like projects/PROJECT/global/networks/NETWORK.", n.GetNetwork()), "value", n.GetNetwork())
		return
	}
	if n.GetSubnetwork() == "" {
		return
	}
	if n.GetNetwork() == "" {
		p.add(fieldNetwork, "NETWORK_REQUIRED",
			fmt.Sprintf("The subnetwork '%s' is given without its network. Name the network in 'config.nodeConfig.network' too.", n.GetSubnetwork()), "subnetwork", n.GetSubnetwork())
		return
	}
	subnetwork := subnetworkName(network, at.ID, n.GetSubnetwork())
	if subnetwork == "" {
		p.add(fieldSubnetwork, "SUBNETWORK_MALFORMED",
			fmt.Sprintf("The subnetwork '%s' is malformed. Write it like projects/PROJECT/regions/REGION/subnetworks/SUBNETWORK.", n.GetSubnetwork()), "value", n.GetSubnetwork())
		return
	}
	parts := strings.Split(subnetwork, "/")
	if region := parts[3]; region != at.ID {
		p.add(fieldSubnetwork, "SUBNETWORK_REGION_MISMATCH",
			fmt.Sprintf("The subnetwork '%s' is in region '%s', and the environment in '%s'. Choose a subnetwork of '%s'.", n.GetSubnetwork(), region, at.ID, at.ID),
			"subnetwork", n.GetSubnetwork(), "region", region, "location", at.ID)
	}
	if host := strings.Split(network, "/")[1]; parts[1] != host {
		p.add(fieldSubnetwork, "SUBNETWORK_PROJECT_MISMATCH",
			fmt.Sprintf("The subnetwork '%s' is in project '%s', and its network '%s' in '%s'. With Shared VPC both are in the host project.", n.GetSubnetwork(), parts[1], n.GetNetwork(), host),
			"subnetwork", n.GetSubnetwork(), "network", n.GetNetwork())
	}
}

// checkZone keeps zone and machine type inside the environment's location, and
// with each other.
func checkZone(p *problems, at Location, n *servicepb.NodeConfig) {
	inside := func(field, given, project, zone string) {
		if project != at.Project {
			p.add(field, "PROJECT_MISMATCH",
				fmt.Sprintf("Field '%s' ('%s') is in project '%s', and the environment in '%s'. Use the environment's project.", restJSON(field), given, project, at.Project),
				"value", given, "project", at.Project)
		}
		if letter, ok := strings.CutPrefix(zone, at.ID+"-"); !ok || len(letter) != 1 || letter[0] < 'a' || letter[0] > 'z' {
			p.add(field, "ZONE_NOT_IN_LOCATION",
				fmt.Sprintf("Field '%s' ('%s') names zone '%s', which is not in the environment's location '%s'. Choose a zone such as %s-b.", restJSON(field), given, zone, at.ID, at.ID),
				"value", given, "zone", zone, "location", at.ID)
		}
	}
	zone := zoneForm.FindStringSubmatch(relative(n.GetLocation()))
	if n.GetLocation() != "" {
		if zone == nil {
			p.add(fieldZone, "ZONE_MALFORMED",
				fmt.Sprintf("The zone '%s' is malformed. Write it like projects/%s/zones/%s-b.", n.GetLocation(), at.Project, at.ID), "value", n.GetLocation())
		} else {
			inside(fieldZone, n.GetLocation(), zone[1], zone[2])
		}
	}
	if n.GetMachineType() == "" {
		return
	}
	machine := machineForm.FindStringSubmatch(relative(n.GetMachineType()))
	if machine == nil {
		p.add(fieldMachineType, "MACHINE_TYPE_MALFORMED",
			fmt.Sprintf("The machine type '%s' is malformed. Write it like projects/%s/zones/%s-b/machineTypes/%s.", n.GetMachineType(), at.Project, at.ID, defaultMachineType), "value", n.GetMachineType())
		return
	}
	switch {
	case zone == nil || zone[2] == machine[2]:
		if n.GetLocation() == "" || zone != nil && zone[1] != machine[1] {
			inside(fieldMachineType, n.GetMachineType(), machine[1], machine[2])
		}
	default:
		p.add(fieldMachineType, "MACHINE_TYPE_ZONE_MISMATCH",
			fmt.Sprintf("The machine type '%s' is in zone '%s', and 'config.nodeConfig.location' is '%s'. Use the same zone in both, or leave one of them out.", n.GetMachineType(), machine[2], n.GetLocation()),
			"machineType", n.GetMachineType(), "location", n.GetLocation())
	}
	if slices.Contains(sharedCore, machine[3]) {
		p.add(fieldMachineType, "MACHINE_TYPE_SHARED_CORE",
			fmt.Sprintf("The machine type '%s' has shared cores, which Cloud Composer does not support. Choose another, for example %s.", machine[3], defaultMachineType), "value", machine[3])
	}
}

// private reports whether a private IP environment is asked for.
func private(s *Spec) bool {
	return s.Config.GetPrivateEnvironmentConfig().GetEnablePrivateEnvironment() || s.NetworkingType == "PRIVATE"
}

func checkPrivate(p *problems, s *Spec, v image.Version, had func(string) bool) {
	c := s.Config.GetPrivateEnvironmentConfig()
	switch s.NetworkingType {
	case "", "PUBLIC", "PRIVATE", "NETWORKING_TYPE_UNSPECIFIED":
	default:
		p.add(fieldNetworkingType, "NETWORKING_TYPE_UNKNOWN",
			fmt.Sprintf("The networking type '%s' is unknown. Choose PUBLIC or PRIVATE.", s.NetworkingType), "value", s.NetworkingType)
	}
	if s.NetworkingType == "PUBLIC" && c.GetEnablePrivateEnvironment() {
		p.add(fieldNetworkingType, "NETWORKING_TYPE_CONFLICT",
			"The networking type is PUBLIC, and 'config.privateEnvironmentConfig.enablePrivateEnvironment' is true. Leave one of them out.",
			"networkingType", "PUBLIC", "enablePrivateEnvironment", "true")
	}
	if !private(s) {
		for _, field := range []string{fieldPrivateEndpoint, fieldMasterBlock, fieldWebServerBlock, fieldDatabaseBlock, fieldPrivatelyUsed, fieldConnectionType,
			"config.private_environment_config.cloud_composer_network_ipv4_cidr_block", "config.private_environment_config.cloud_composer_connection_subnetwork"} {
			if _, _, ok := s.value(field); ok && s.text(field) != "" && !had(field) {
				p.add(field, "PRIVATE_ENVIRONMENT_REQUIRED",
					fmt.Sprintf("Field '%s' (%s) is for private IP environments, and this one is public. Set 'config.privateEnvironmentConfig.enablePrivateEnvironment' to true, or leave the field out.", restJSON(field), s.text(field)),
					"field", restJSON(field), "value", s.text(field))
			}
		}
		return
	}
	if v.Composer.Major == 1 && c.GetNetworkingConfig().GetConnectionType() == servicepb.NetworkingConfig_PRIVATE_SERVICE_CONNECT && !had(fieldConnectionType) {
		p.add(fieldConnectionType, "CONNECTION_TYPE_UNSUPPORTED",
			fmt.Sprintf("The connection type PRIVATE_SERVICE_CONNECT is not supported in image version '%s'. Composer 1 connects by VPC_PEERING: choose that, or leave it out.", v.ID),
			"value", "PRIVATE_SERVICE_CONNECT", "imageVersion", v.ID)
	}
}

func checkSoftware(p *problems, s *Spec, v image.Version, had func(string) bool) {
	c := s.Config.GetSoftwareConfig()
	if python := c.GetPythonVersion(); python != "" && !had(fieldPython) && !slices.Contains(v.Python, python) {
		p.add(fieldPython, "PYTHON_VERSION_UNSUPPORTED",
			fmt.Sprintf("The Python version '%s' is not in image version '%s'. Choose one of: %s.", python, v.ID, strings.Join(v.Python, ", ")),
			"value", python, "imageVersion", v.ID, "allowed", strings.Join(v.Python, ", "))
	}
	if n := c.GetSchedulerCount(); n != 0 && !had(fieldSchedulers) {
		nodes := s.Config.GetNodeCount()
		if nodes == 0 {
			nodes = DefaultNodeCount
		}
		switch {
		case v.Airflow.Major < 2 && n != 1:
			p.add(fieldSchedulers, "FIELD_NOT_SUPPORTED_IN_VERSION",
				fmt.Sprintf("Field '%s' (%d) is supported with Airflow 2, and not in image version '%s'. Leave it out, or ask for an image version with Airflow 2.", restJSON(fieldSchedulers), n, v.ID),
				"field", restJSON(fieldSchedulers), "value", fmt.Sprint(n), "imageVersion", v.ID)
		case n < 1 || n > nodes:
			p.add(fieldSchedulers, "SCHEDULER_COUNT_OUT_OF_RANGE",
				fmt.Sprintf("The scheduler count is %d, and there are %d nodes. Ask for 1 to %d schedulers.", n, nodes, nodes),
				"value", fmt.Sprint(n), "nodeCount", fmt.Sprint(nodes))
		}
	}
	for _, key := range sortedKeys(c.GetEnvVariables()) {
		checkEnvVariable(p, key)
	}
	for _, key := range sortedKeys(c.GetAirflowConfigOverrides()) {
		checkOverride(p, key)
	}
	for _, key := range sortedKeys(c.GetPypiPackages()) {
		checkPackage(p, key, c.GetPypiPackages()[key])
	}
}

func checkEnvVariable(p *problems, key string) {
	field := fieldEnvVariables + "." + key
	switch {
	case !envForm.MatchString(key):
		p.add(field, "ENV_VARIABLE_MALFORMED",
			fmt.Sprintf("The environment variable's name '%s' is malformed. Use letters, digits and underscores, and no digit first.", key), "name", key)
	case envAirflowForm.MatchString(key):
		p.add(field, "ENV_VARIABLE_RESERVED",
			fmt.Sprintf("The environment variable '%s' would override Airflow's configuration. Use 'config.softwareConfig.airflowConfigOverrides' for that.", key), "name", key)
	case slices.Contains(reservedEnvVariables, key):
		p.add(field, "ENV_VARIABLE_RESERVED",
			fmt.Sprintf("The environment variable '%s' is reserved for Cloud Composer itself. Choose another name. Reserved are: %s.", key, strings.Join(reservedEnvVariables, ", ")), "name", key)
	}
}

func checkOverride(p *problems, key string) {
	field := fieldOverrides + "." + key
	section, property, ok := strings.Cut(key, "-")
	switch {
	case !ok || section == "" || property == "":
		p.add(field, "AIRFLOW_CONFIG_KEY_MALFORMED",
			fmt.Sprintf("The Airflow configuration override '%s' is malformed. Write the section and the property with a dash between them, for example core-dags_are_paused_at_creation.", key), "key", key)
	case strings.ContainsAny(section, "[].") || strings.ContainsAny(property, "=;."):
		p.add(field, "AIRFLOW_CONFIG_KEY_MALFORMED",
			fmt.Sprintf("The Airflow configuration override '%s' is malformed. A section has no square bracket and no period, a property no equals sign, semicolon and period.", key), "key", key)
	case strings.ToLower(property) != property || strings.ContainsAny(property, "- "):
		p.add(field, "AIRFLOW_CONFIG_KEY_MALFORMED",
			fmt.Sprintf("The Airflow configuration override '%s' is malformed. Write the property '%s' in snake_case.", key, property), "key", key)
	case slices.Contains(blockedOverrides, key) || slices.Contains(blockedOverrides, section):
		p.add(field, "AIRFLOW_CONFIG_BLOCKED",
			fmt.Sprintf("The Airflow configuration option '%s' is blocked: Cloud Composer sets it itself. Leave it out.", key), "key", key)
	}
}

func checkPackage(p *problems, name, specifier string) {
	field := fieldPypi + "." + name
	if !packageForm.MatchString(name) {
		p.add(field, "PYPI_PACKAGE_MALFORMED",
			fmt.Sprintf("The PyPI package's name '%s' is malformed. Write lower case letters, digits, dots, dashes and underscores, for example scikit-learn.", name), "name", name)
	}
	if !specifierForm.MatchString(specifier) {
		p.add(field, "PYPI_VERSION_MALFORMED",
			fmt.Sprintf("The PyPI package '%s' has the malformed version '%s'. Write extras and version specifiers such as [devel]>=1.8.2,<1.9.2, or nothing for any version.", name, specifier), "name", name, "value", specifier)
	}
}

func checkLabels(p *problems, labels map[string]string) {
	if len(labels) > 64 {
		p.add(fieldLabels, "TOO_MANY_LABELS", fmt.Sprintf("There are %d labels. At most 64 are possible.", len(labels)), "value", fmt.Sprint(len(labels)), "maximum", "64")
	}
	for _, key := range sortedKeys(labels) {
		if !labelKeyForm.MatchString(key) || len(key) > 128 {
			p.add(fieldLabels+"."+key, "LABEL_KEY_MALFORMED",
				fmt.Sprintf("The label's key '%s' is malformed. Write 1 to 63 lower case letters, digits, underscores and dashes, a letter first, of at most 128 bytes.", key), "key", key)
		}
		if value := labels[key]; !labelValueForm.MatchString(value) || len(value) > 128 {
			p.add(fieldLabels+"."+key, "LABEL_VALUE_MALFORMED",
				fmt.Sprintf("The label '%s' has the malformed value '%s'. Write at most 63 lower case letters, digits, underscores and dashes, of at most 128 bytes.", key, value), "key", key, "value", value)
		}
	}
}

func checkWebAccess(p *problems, c *servicepb.WebServerNetworkAccessControl) {
	for i, r := range c.GetAllowedIpRanges() {
		field := fmt.Sprintf("%s.allowed_ip_ranges[%d]", fieldWebAccess, i)
		checkRange(p, field+".value", "allowed IP range", r.GetValue(), true)
		if n := utf8.RuneCountInString(r.GetDescription()); n > 300 {
			p.add(field+".description", "DESCRIPTION_TOO_LONG",
				fmt.Sprintf("The description of the allowed IP range '%s' has %d characters. At most 300 are possible.", r.GetValue(), n), "value", fmt.Sprint(n), "maximum", "300")
		}
	}
}

// checkRange accepts an address or an aligned range in CIDR notation.
func checkRange(p *problems, field, what, text string, ipv6 bool) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() && (ipv6 || a.Is4()) {
		return
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil || prefix.Addr().Is4In6() || !ipv6 && !prefix.Addr().Is4():
		family := "IPv4"
		if ipv6 {
			family = "IPv4 or IPv6"
		}
		p.add(field, "IP_RANGE_MALFORMED",
			fmt.Sprintf("The %s '%s' is malformed. Write an %s address, or a range in CIDR notation such as 192.168.0.0/16.", what, text, family), "value", text)
	case prefix.Masked() != prefix:
		p.add(field, "IP_RANGE_NOT_ALIGNED",
			fmt.Sprintf("The %s '%s' is not truncated. Write '%s'.", what, text, prefix.Masked()), "value", text, "suggestion", prefix.Masked().String())
	}
}

func checkMasterNetworks(p *problems, c *servicepb.MasterAuthorizedNetworksConfig) {
	if n := len(c.GetCidrBlocks()); n > 50 {
		p.add(fieldMasterNetworks+".cidr_blocks", "TOO_MANY_AUTHORIZED_NETWORKS",
			fmt.Sprintf("There are %d master authorized networks. At most 50 are possible.", n), "value", fmt.Sprint(n), "maximum", "50")
	}
	for i, block := range c.GetCidrBlocks() {
		checkRange(p, fmt.Sprintf("%s.cidr_blocks[%d].cidr_block", fieldMasterNetworks, i), "master authorized network", block.GetCidrBlock(), false)
	}
}

func checkRetention(p *problems, c *servicepb.DataRetentionConfig) {
	r := c.GetAirflowMetadataRetentionConfig()
	if days := r.GetRetentionDays(); days != 0 && (days < 30 || days > 730) {
		p.add("config.data_retention_config.airflow_metadata_retention_config.retention_days", "RETENTION_DAYS_OUT_OF_RANGE",
			fmt.Sprintf("The retention of Airflow's database is %d days. Ask for 30 to 730 days.", days), "value", fmt.Sprint(days), "minimum", "30", "maximum", "730")
	}
}

// checkAtCreate are the rules that hold for new environments only.
func checkAtCreate(s *Spec) []Violation {
	var p problems
	if packages := s.Config.GetSoftwareConfig().GetPypiPackages(); len(packages) > 0 {
		p.add(fieldPypi, "PYPI_PACKAGES_AT_CREATION",
			"User-provided PyPi dependencies forbidden at environment creation. Please create an environment without dependencies then perform an update.",
			"packages", strings.Join(slices.Sorted(maps.Keys(packages)), ", "))
	}
	return p
}
