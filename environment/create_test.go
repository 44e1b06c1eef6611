package environment_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"sordino/environment"
	"sordino/environment/address"
)

func TestCreateTheDocumentedEnvironment(t *testing.T) {
	f := newFixture(t)
	op, err := f.create("example-environment", documented)
	if err != nil {
		t.Fatal(err)
	}
	if op.Type != environment.Create || op.State != environment.Pending || op.Done() || op.Name.Location != here || op.Target != named("example-environment") || op.Generation != 1 {
		t.Errorf("the operation is %+v", op)
	}
	e, err := f.Get(context.Background(), named("example-environment"))
	if err != nil {
		t.Fatal(err)
	}
	if e.State != environment.Creating || e.UUID != op.TargetUUID || !e.AgentEnabled() || !e.Created.Equal(f.now) {
		t.Errorf("the environment is %+v", e)
	}
	// What the server chose is not in the spec: Terraform would replace it.
	if want := spec(t, documented); !proto.Equal(want.Config, e.Spec.Config) {
		t.Errorf("the spec is %v, want %v", e.Spec.Config, want.Config)
	}
	for kind, want := range map[address.Kind]string{address.Nodes: "10.128.0.0/20", address.Pods: "10.16.0.0/14", address.Services: "10.20.0.0/20"} {
		if got := e.Plan.Range(kind).String(); got != want {
			t.Errorf("the %s range is %s, want %s", kind, got, want)
		}
	}
	if len(e.Plan.NodeAddresses) != 3 {
		t.Errorf("node addresses: %v", e.Plan.NodeAddresses)
	}
	if len(f.woken) != 1 || f.woken[0] != e.Name {
		t.Errorf("woken: %v", f.woken)
	}
	c := e.Effective()
	if c.NodeCount != 3 || c.NodeConfig.MachineType != "projects/example-project/zones/us-central1-b/machineTypes/n1-standard-1" ||
		c.NodeConfig.Location != "projects/example-project/zones/us-central1-b" || c.NodeConfig.DiskSizeGb != 100 || c.SoftwareConfig.PythonVersion != "3" ||
		c.DatabaseConfig.MachineType != "db-n1-standard-2" || c.WebServerConfig.MachineType != "composer-n1-webserver-2" || e.MaxPodsPerNode() != 32 ||
		c.GkeCluster != "projects/example-project/zones/us-central1-b/clusters/us-central1-example-environment-"+e.UUID[:8]+"-gke" {
		t.Errorf("the defaults are %v", c)
	}
	if p := c.NodeConfig.IpAllocationPolicy; p.ClusterIpAllocation != nil || p.ServicesIpAllocation != nil || len(c.NodeConfig.Tags) > 0 || c.MasterAuthorizedNetworksConfig != nil {
		t.Errorf("the defaults hold what a plan of Terraform takes for a change: %v", c)
	}
}

func TestCreateAccepts(t *testing.T) {
	f := newFixture(t)
	for id, test := range map[string]struct {
		text string
		rest []string
	}{
		"none":        {text: `{}`},
		"alias":       {text: `{"config":{"softwareConfig":{"imageVersion":"composer-1-airflow-2"}}}`},
		"composer2":   {text: `{"config":{"softwareConfig":{"imageVersion":"composer-2.9.7-airflow-2.9.3"},"nodeConfig":{"enableIpMasqAgent":true},"environmentSize":"ENVIRONMENT_SIZE_SMALL"}}`},
		"composer3":   {text: `{"config":{"softwareConfig":{"imageVersion":"composer-3-airflow-2","webServerPluginsMode":"PLUGINS_DISABLED"}}}`},
		"deny-all":    {text: `{"config":{"webServerNetworkAccessControl":{}}}`},
		"gcloud":      {text: `{"config":{"webServerNetworkAccessControl":{"allowedIpRanges":[{"value":"0.0.0.0/0"},{"value":"::0/0"},{"value":"2001:db8::1"}]}}}`},
		"shared-vpc":  {text: `{"config":{"nodeConfig":{"network":"https://www.googleapis.com/compute/v1/projects/host-project/global/networks/shared-net","subnetwork":"https://www.googleapis.com/compute/v1/projects/host-project/regions/us-central1/subnetworks/shared-sub","ipAllocationPolicy":{"useIpAliases":true,"clusterSecondaryRangeName":"pods","servicesSecondaryRangeName":"services"}}}}`},
		"short-names": {text: `{"config":{"nodeConfig":{"network":"projects/host-project/global/networks/shared-net","subnetwork":"shared-sub","ipAllocationPolicy":{"useIpAliases":true,"clusterIpv4CidrBlock":"","servicesIpv4CidrBlock":"/24"}}}}`},
		"terraform":   {text: `{"config":{"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true}},"privateEnvironmentConfig":{"networkingConfig":{}}}}`, rest: []string{"networkingType=PRIVATE", "maxPodsPerNode=16"}},
		"read-back":   {text: `{"uuid":"x","state":"RUNNING","createTime":"2026-01-01T00:00:00Z","config":{"gkeCluster":"c","airflowUri":"u","dagGcsPrefix":"d"}}`},
		"window":      {text: `{"config":{"maintenanceWindow":{"startTime":"2023-01-01T01:00:00Z","endTime":"2023-01-01T07:00:00Z","recurrence":"FREQ=WEEKLY;BYDAY=SU,SA"}}}`},
		"one":         {text: `{"config":{"softwareConfig":{"imageVersion":"composer-1.20.12-airflow-1.10.15","schedulerCount":1,"pythonVersion":"2"}}}`},
	} {
		if _, err := f.create(id, test.text, test.rest...); err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		e, err := f.Get(context.Background(), named(id))
		if err != nil {
			t.Fatal(err)
		}
		if e.Spec.Config.GetSoftwareConfig().GetImageVersion() == "" {
			t.Errorf("%s: the image version is %q", id, e.Spec.Config.SoftwareConfig.ImageVersion)
		}
		if e.Spec.Config.GkeCluster+e.Spec.Config.AirflowUri+e.Spec.Config.DagGcsPrefix != "" {
			t.Errorf("%s: output-only fields were kept: %v", id, e.Spec.Config)
		}
		if id == "deny-all" && e.Spec.Config.WebServerNetworkAccessControl == nil {
			t.Errorf("%s: present and empty has become absent", id)
		}
		if id == "short-names" && e.Spec.Config.NodeConfig.IpAllocationPolicy.ClusterIpAllocation != nil {
			t.Errorf("%s: an empty range was kept", id)
		}
		if id == "none" && e.Spec.Config.SoftwareConfig.ImageVersion != "composer-1.20.12-airflow-1.10.15" {
			t.Errorf("%s: the default image is %s", id, e.Spec.Config.SoftwareConfig.ImageVersion)
		}
		if id == "terraform" && (!e.Effective().PrivateEnvironmentConfig.EnablePrivateEnvironment || e.Effective().PrivateEnvironmentConfig.WebServerIpv4ReservedRange == "") {
			t.Errorf("%s: shown is %v", id, e.Effective())
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	f := newFixture(t)
	node := func(fields string) string { return `{"config":{"nodeConfig":{` + fields + `}}}` }
	software := func(fields string) string { return `{"config":{"softwareConfig":{` + fields + `}}}` }
	private := func(fields string) string {
		return `{"config":{"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true}},"privateEnvironmentConfig":{` + fields + `}}}`
	}
	window := func(start, end, recurrence string) string {
		return fmt.Sprintf(`{"config":{"maintenanceWindow":{"startTime":"2026-01-01T%sZ","endTime":"2026-01-%sZ","recurrence":"%s"}}}`, start, end, recurrence)
	}
	long := strings.Repeat("x", 301)
	for _, test := range []struct {
		text, want string
		rest       []string
	}{
		// The agent.
		{text: node(`"enableIpMasqAgent":true`), want: "config.node_config.enable_ip_masq_agent IP_MASQ_AGENT_REQUIRES_IP_ALIAS The IP Masquerade agent needs IP aliases: 'config.nodeConfig.enableIpMasqAgent' is true, and 'config.nodeConfig.ipAllocationPolicy.useIpAliases' is false for image version 'composer-1.20.12-airflow-1.10.15'. Set 'config.nodeConfig.ipAllocationPolicy.useIpAliases' to true (--enable-ip-alias), or leave the agent out."},
		{text: node(`"ipAllocationPolicy":{"clusterIpv4CidrBlock":"10.4.0.0/14"}`), want: "config.node_config.ip_allocation_policy.cluster_ipv4_cidr_block IP_ALIAS_REQUIRED Field 'config.nodeConfig.ipAllocationPolicy.clusterIpv4CidrBlock' ('10.4.0.0/14') needs IP aliases, and 'config.nodeConfig.ipAllocationPolicy.useIpAliases' is false. Set 'config.nodeConfig.ipAllocationPolicy.useIpAliases' to true (--enable-ip-alias), or leave the field out."},
		{text: `{}`, rest: []string{"maxPodsPerNode=32"}, want: "config.node_config.max_pods_per_node IP_ALIAS_REQUIRED Field 'config.nodeConfig.maxPodsPerNode' (32) needs IP aliases, and 'config.nodeConfig.ipAllocationPolicy.useIpAliases' is false. Set 'config.nodeConfig.ipAllocationPolicy.useIpAliases' to true (--enable-ip-alias), or leave the field out."},
		{text: `{}`, rest: []string{"networkingType=PRIVATE"}, want: "config.private_environment_config.networking_type IP_ALIAS_REQUIRED Field 'config.privateEnvironmentConfig.networkingType' (PRIVATE) needs IP aliases, and 'config.nodeConfig.ipAllocationPolicy.useIpAliases' is false. Set 'config.nodeConfig.ipAllocationPolicy.useIpAliases' to true (--enable-ip-alias), or leave the field out."},
		{text: `{"config":{"privateEnvironmentConfig":{"enablePrivateEnvironment":true}}}`, want: "config.private_environment_config.enable_private_environment IP_ALIAS_REQUIRED Field 'config.privateEnvironmentConfig.enablePrivateEnvironment' (true) needs IP aliases, and 'config.nodeConfig.ipAllocationPolicy.useIpAliases' is false. Set 'config.nodeConfig.ipAllocationPolicy.useIpAliases' to true (--enable-ip-alias), or leave the field out."},

		// Images and what they have.
		{text: software(`"imageVersion":"composer-1.20.13-airflow-1.10.15"`), want: "config.software_config.image_version IMAGE_VERSION_UNSUPPORTED Unsupported image version for new environment: 'composer-1.20.13-airflow-1.10.15'. Currently suggested new environment image versions are: [composer-1.20.12-airflow-1.10.15, composer-1.20.12-airflow-2.4.3, composer-1.20.12-airflow-2.3.4]."},
		{text: software(`"imageVersion":"1.20.12"`), want: "config.software_config.image_version IMAGE_VERSION_MALFORMED Malformed image version '1.20.12'. Write composer-A.B.C-airflow-X.Y.Z, or an alias such as composer-1-airflow-1."},
		{text: `{"config":{"environmentSize":"ENVIRONMENT_SIZE_SMALL"}}`, want: "config.environment_size FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.environmentSize' is supported in Cloud Composer 2 and 3, and not in image version 'composer-1.20.12-airflow-1.10.15'. Leave it out, or ask for an image version that has it."},
		{text: `{"config":{"workloadsConfig":{}}}`, want: "config.workloads_config FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.workloadsConfig' is supported in Cloud Composer 2 and 3, and not in image version 'composer-1.20.12-airflow-1.10.15'. Leave it out, or ask for an image version that has it."},
		{text: node(`"composerNetworkAttachment":"a"`), want: "config.node_config.composer_network_attachment FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.nodeConfig.composerNetworkAttachment' is supported in Cloud Composer 3, and not in image version 'composer-1.20.12-airflow-1.10.15'. Leave it out, or ask for an image version that has it."},
		{text: `{"config":{"nodeCount":3,"softwareConfig":{"imageVersion":"composer-2-airflow-2"},"nodeConfig":{"diskSizeGb":50}}}`, want: "config.node_count FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.nodeCount' is supported in Cloud Composer 1, and not in image version 'composer-2.14.2-airflow-2.10.5'. Leave it out, or ask for an image version that has it.\nconfig.node_config.disk_size_gb FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.nodeConfig.diskSizeGb' is supported in Cloud Composer 1, and not in image version 'composer-2.14.2-airflow-2.10.5'. Leave it out, or ask for an image version that has it."},
		{text: `{"config":{"softwareConfig":{"imageVersion":"composer-3-airflow-2"},"nodeConfig":{"enableIpMasqAgent":true}}}`, want: "config.node_config.enable_ip_masq_agent FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.nodeConfig.enableIpMasqAgent' is supported in Cloud Composer 1 and 2, and not in image version 'composer-3-airflow-2.10.5-build.14'. Leave it out, or ask for an image version that has it."},
		{text: software(`"schedulerCount":2`), want: "config.software_config.scheduler_count FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.softwareConfig.schedulerCount' (2) is supported with Airflow 2, and not in image version 'composer-1.20.12-airflow-1.10.15'. Leave it out, or ask for an image version with Airflow 2."},
		{text: software(`"imageVersion":"composer-1-airflow-2","schedulerCount":4`), want: "config.software_config.scheduler_count SCHEDULER_COUNT_OUT_OF_RANGE The scheduler count is 4, and there are 3 nodes. Ask for 1 to 3 schedulers."},
		{text: software(`"imageVersion":"composer-1-airflow-2","pythonVersion":"2"`), want: "config.software_config.python_version PYTHON_VERSION_UNSUPPORTED The Python version '2' is not in image version 'composer-1.20.12-airflow-2.4.3'. Choose one of: 3."},
		{text: software(`"pypiPackages":{"numpy":""}`), want: "config.software_config.pypi_packages PYPI_PACKAGES_AT_CREATION User-provided PyPi dependencies forbidden at environment creation. Please create an environment without dependencies then perform an update."},

		// Software.
		{text: software(`"envVariables":{"1A":"x"}`), want: "config.software_config.env_variables.1A ENV_VARIABLE_MALFORMED The environment variable's name '1A' is malformed. Use letters, digits and underscores, and no digit first."},
		{text: software(`"envVariables":{"SQL_USER":"x"}`), want: "config.software_config.env_variables.SQL_USER ENV_VARIABLE_RESERVED The environment variable 'SQL_USER' is reserved for Cloud Composer itself. Choose another name. Reserved are: AIRFLOW_HOME, C_FORCE_ROOT, CONTAINER_NAME, DAGS_FOLDER, GCP_PROJECT, GCS_BUCKET, GKE_CLUSTER_NAME, SQL_DATABASE, SQL_INSTANCE, SQL_PASSWORD, SQL_PROJECT, SQL_REGION, SQL_USER."},
		{text: software(`"envVariables":{"AIRFLOW__CORE__X":"x"}`), want: "config.software_config.env_variables.AIRFLOW__CORE__X ENV_VARIABLE_RESERVED The environment variable 'AIRFLOW__CORE__X' would override Airflow's configuration. Use 'config.softwareConfig.airflowConfigOverrides' for that."},
		{text: software(`"airflowConfigOverrides":{"foo":"x"}`), want: "config.software_config.airflow_config_overrides.foo AIRFLOW_CONFIG_KEY_MALFORMED The Airflow configuration override 'foo' is malformed. Write the section and the property with a dash between them, for example core-dags_are_paused_at_creation."},
		{text: software(`"airflowConfigOverrides":{"a[b-c":"x"}`), want: "config.software_config.airflow_config_overrides.a[b-c AIRFLOW_CONFIG_KEY_MALFORMED The Airflow configuration override 'a[b-c' is malformed. A section has no square bracket and no period, a property no equals sign, semicolon and period."},
		{text: software(`"airflowConfigOverrides":{"core-DagsFolder":"x"}`), want: "config.software_config.airflow_config_overrides.core-DagsFolder AIRFLOW_CONFIG_KEY_MALFORMED The Airflow configuration override 'core-DagsFolder' is malformed. Write the property 'DagsFolder' in snake_case."},
		{text: software(`"airflowConfigOverrides":{"core-dags_folder":"x"}`), want: "config.software_config.airflow_config_overrides.core-dags_folder AIRFLOW_CONFIG_BLOCKED The Airflow configuration option 'core-dags_folder' is blocked: Cloud Composer sets it itself. Leave it out."},

		// Nodes.
		{text: `{"config":{"nodeCount":-1}}`, want: "config.node_count NODE_COUNT_TOO_SMALL The node count is -1. Ask for at least 3 nodes, or leave it out for 3."},
		{text: `{"config":{"nodeCount":2,"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true,"servicesIpv4CidrBlock":"10.40.0.1/20"}}}}`, want: "config.node_count NODE_COUNT_TOO_SMALL The node count is 2. Ask for at least 3 nodes, or leave it out for 3.\nconfig.node_config.ip_allocation_policy.services_ipv4_cidr_block IP_RANGE_NOT_ALIGNED The Service range 10.40.0.1/20 is not aligned to its size. Write 10.40.0.0/20"},
		{text: `{"config":{"nodeCount":5000}}`, want: "config.node_config.ip_allocation_policy.cluster_ipv4_cidr_block IP_RANGE_TOO_SMALL The Pod range 10.16.0.0/14 has room for 1024 nodes with 32 Pods each (a /24 a node), and 5000 are asked for. It must be at least a /11\nconfig.node_count IP_SPACE_EXHAUSTED The subnetwork projects/example-project/regions/us-central1/subnetworks/default (10.128.0.0/20) has 4092 free addresses, and 5000 more nodes are asked for (four addresses of a subnetwork are reserved). Use a larger subnetwork"},
		{text: node(`"location":"us-central1-b"`), want: "config.node_config.location ZONE_MALFORMED The zone 'us-central1-b' is malformed. Write it like projects/example-project/zones/us-central1-b."},
		{text: node(`"location":"projects/example-project/zones/europe-west1-b"`), want: "config.node_config.location ZONE_NOT_IN_LOCATION Field 'config.nodeConfig.location' ('projects/example-project/zones/europe-west1-b') names zone 'europe-west1-b', which is not in the environment's location 'us-central1'. Choose a zone such as us-central1-b."},
		{text: node(`"location":"projects/other/zones/us-central1-b"`), want: "config.node_config.location PROJECT_MISMATCH Field 'config.nodeConfig.location' ('projects/other/zones/us-central1-b') is in project 'other', and the environment in 'example-project'. Use the environment's project."},
		{text: node(`"machineType":"n1-standard-1"`), want: "config.node_config.machine_type MACHINE_TYPE_MALFORMED The machine type 'n1-standard-1' is malformed. Write it like projects/example-project/zones/us-central1-b/machineTypes/n1-standard-1."},
		{text: node(`"machineType":"projects/example-project/zones/us-central1-a/machineTypes/f1-micro"`), want: "config.node_config.machine_type MACHINE_TYPE_SHARED_CORE The machine type 'f1-micro' has shared cores, which Cloud Composer does not support. Choose another, for example n1-standard-1."},
		{text: node(`"location":"projects/example-project/zones/us-central1-b","machineType":"projects/example-project/zones/us-central1-a/machineTypes/n1-standard-1"`), want: "config.node_config.machine_type MACHINE_TYPE_ZONE_MISMATCH The machine type 'projects/example-project/zones/us-central1-a/machineTypes/n1-standard-1' is in zone 'us-central1-a', and 'config.nodeConfig.location' is 'projects/example-project/zones/us-central1-b'. Use the same zone in both, or leave one of them out."},
		{text: node(`"diskSizeGb":20`), want: "config.node_config.disk_size_gb DISK_SIZE_OUT_OF_RANGE The disk size is 20 GB. Ask for 30 to 65536 GB, or leave it out for 100 GB."},
		{text: node(`"oauthScopes":["cloud-platform"]`), want: "config.node_config.oauth_scopes OAUTH_SCOPE_MALFORMED The OAuth scope 'cloud-platform' is malformed. Write its full URL, for example https://www.googleapis.com/auth/cloud-platform."},
		{text: node(`"serviceAccount":"me@"`), want: "config.node_config.service_account SERVICE_ACCOUNT_MALFORMED The service account 'me@' is malformed. Write its email address, for example airflow@example-project.iam.gserviceaccount.com."},
		{text: node(`"tags":["ok","Not_ok"]`), want: "config.node_config.tags TAG_MALFORMED The tag 'Not_ok' is malformed. Write 1 to 63 lower case letters, digits and dashes, a letter first and no dash last (RFC 1035)."},
		{text: node(`"ipAllocationPolicy":{"useIpAliases":true}`), rest: []string{"maxPodsPerNode=5"}, want: "config.node_config.max_pods_per_node MAX_PODS_PER_NODE_OUT_OF_RANGE The maximum of Pods per node is 5. Ask for 8 to 110, or leave it out for 32."},
		{text: node(`"network":"a/b"`), want: "config.node_config.network NETWORK_MALFORMED The network 'a/b' is malformed. Write it like projects/PROJECT/global/networks/NETWORK."},
		{text: node(`"network":"my-net"`), want: "config.node_config.network NETWORK_NOT_FOUND Network 'projects/example-project/global/networks/my-net' is not declared. Declare it in the networks file, or use one of: projects/example-project/global/networks/default, projects/host-project/global/networks/shared-net."},
		{text: node(`"subnetwork":"s"`), want: "config.node_config.network NETWORK_REQUIRED The subnetwork 's' is given without its network. Name the network in 'config.nodeConfig.network' too."},
		{text: node(`"network":"default","subnetwork":"projects/example-project/regions/us-east1/subnetworks/default"`), want: "config.node_config.subnetwork SUBNETWORK_REGION_MISMATCH The subnetwork 'projects/example-project/regions/us-east1/subnetworks/default' is in region 'us-east1', and the environment in 'us-central1'. Choose a subnetwork of 'us-central1'."},
		{text: node(`"network":"projects/host-project/global/networks/shared-net","subnetwork":"projects/example-project/regions/us-central1/subnetworks/s"`), want: "config.node_config.subnetwork SUBNETWORK_PROJECT_MISMATCH The subnetwork 'projects/example-project/regions/us-central1/subnetworks/s' is in project 'example-project', and its network 'projects/host-project/global/networks/shared-net' in 'host-project'. With Shared VPC both are in the host project."},
		{text: node(`"network":"default","subnetwork":"/"`), want: "config.node_config.subnetwork SUBNETWORK_MALFORMED The subnetwork '/' is malformed. Write it like projects/PROJECT/regions/REGION/subnetworks/SUBNETWORK."},

		// Private environments.
		{text: private(`"privateClusterConfig":{"masterIpv4CidrBlock":"172.16.0.0/28"}`), want: "config.private_environment_config.private_cluster_config.master_ipv4_cidr_block PRIVATE_ENVIRONMENT_REQUIRED Field 'config.privateEnvironmentConfig.privateClusterConfig.masterIpv4CidrBlock' (172.16.0.0/28) is for private IP environments, and this one is public. Set 'config.privateEnvironmentConfig.enablePrivateEnvironment' to true, or leave the field out."},
		{text: private(`"enablePrivateEnvironment":true`), rest: []string{"networkingType=PUBLIC"}, want: "config.private_environment_config.networking_type NETWORKING_TYPE_CONFLICT The networking type is PUBLIC, and 'config.privateEnvironmentConfig.enablePrivateEnvironment' is true. Leave one of them out."},
		{text: private(``), rest: []string{"networkingType=HIDDEN"}, want: "config.private_environment_config.networking_type NETWORKING_TYPE_UNKNOWN The networking type 'HIDDEN' is unknown. Choose PUBLIC or PRIVATE."},
		{text: private(`"enablePrivateEnvironment":true,"networkingConfig":{"connectionType":"PRIVATE_SERVICE_CONNECT"}`), want: "config.private_environment_config.networking_config.connection_type CONNECTION_TYPE_UNSUPPORTED The connection type PRIVATE_SERVICE_CONNECT is not supported in image version 'composer-1.20.12-airflow-1.10.15'. Composer 1 connects by VPC_PEERING: choose that, or leave it out."},
		{text: private(`"networkingConfig":{"connectionType":"VPC_PEERING"}`), want: "config.private_environment_config.networking_config.connection_type PRIVATE_ENVIRONMENT_REQUIRED Field 'config.privateEnvironmentConfig.networkingConfig.connectionType' (VPC_PEERING) is for private IP environments, and this one is public. Set 'config.privateEnvironmentConfig.enablePrivateEnvironment' to true, or leave the field out."},
		{text: private(`"enablePrivateEnvironment":true,"privateClusterConfig":{"masterIpv4CidrBlock":"172.17.0.0/28"}`), want: "config.private_environment_config.private_cluster_config.master_ipv4_cidr_block IP_RANGE_RESERVED The IP range 172.17.0.0/16 is reserved for the Docker bridge network. GKE master CIDR block must not overlap with it, and 172.17.0.0/28 does"},

		// Access, machines, windows.
		{text: `{"config":{"webServerNetworkAccessControl":{"allowedIpRanges":[{"value":"1.2.3.4/24"},{"value":"nowhere"},{"value":"::1","description":"` + long + `"}]}}}`, want: "config.web_server_network_access_control.allowed_ip_ranges[0].value IP_RANGE_NOT_ALIGNED The allowed IP range '1.2.3.4/24' is not truncated. Write '1.2.3.0/24'.\nconfig.web_server_network_access_control.allowed_ip_ranges[1].value IP_RANGE_MALFORMED The allowed IP range 'nowhere' is malformed. Write an IPv4 or IPv6 address, or a range in CIDR notation such as 192.168.0.0/16.\nconfig.web_server_network_access_control.allowed_ip_ranges[2].description DESCRIPTION_TOO_LONG The description of the allowed IP range '::1' has 301 characters. At most 300 are possible."},
		{text: `{"config":{"masterAuthorizedNetworksConfig":{"enabled":true,"cidrBlocks":[{"cidrBlock":"2001:db8::/32"}]}}}`, want: "config.master_authorized_networks_config.cidr_blocks[0].cidr_block IP_RANGE_MALFORMED The master authorized network '2001:db8::/32' is malformed. Write an IPv4 address, or a range in CIDR notation such as 192.168.0.0/16."},
		{text: `{"config":{"masterAuthorizedNetworksConfig":{"cidrBlocks":[` + strings.TrimSuffix(strings.Repeat(`{"cidrBlock":"10.0.0.0/8"},`, 51), ",") + `]}}}`, want: "config.master_authorized_networks_config.cidr_blocks TOO_MANY_AUTHORIZED_NETWORKS There are 51 master authorized networks. At most 50 are possible."},
		{text: `{"config":{"databaseConfig":{"machineType":"db-n1-standard-1"}}}`, want: "config.database_config.machine_type MACHINE_TYPE_UNSUPPORTED The database machine type 'db-n1-standard-1' is not supported. Choose one of: db-n1-standard-2, db-n1-standard-4, db-n1-standard-8, db-n1-standard-16."},
		{text: `{"config":{"webServerConfig":{"machineType":"x"}}}`, want: "config.web_server_config.machine_type MACHINE_TYPE_UNSUPPORTED The web server machine type 'x' is not supported. Choose one of: composer-n1-webserver-2, composer-n1-webserver-4, composer-n1-webserver-8."},
		{text: `{"config":{"encryptionConfig":{"kmsKeyName":"k"}}}`, want: "config.encryption_config.kms_key_name KMS_KEY_MALFORMED The encryption key's name 'k' is malformed. Write it like projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY."},
		{text: `{"storageConfig":{"bucket":"gs://b"}}`, want: "storage_config.bucket BUCKET_MALFORMED The bucket's name 'gs://b' is malformed. Write the name alone, without gs:// and without a path."},
		{text: window("01:00:00", "01T07:00:00", "FREQ=WEEKLY;BYDAY=MO"), want: "config.maintenance_window MAINTENANCE_WINDOW_TOO_SHORT The maintenance window is 6 hours long, once a week: 6 hours in all. It has to be at least 12 hours a week. Add days, or make it longer."},
		{text: window("01:00:00", "01T04:00:00", "FREQ=DAILY"), want: "config.maintenance_window.end_time MAINTENANCE_WINDOW_TOO_SHORT The maintenance window is 3 hours long. It has to be at least 4 hours long at a time."},
		{text: window("01:00:00", "01T00:00:00", "FREQ=DAILY"), want: "config.maintenance_window.end_time MAINTENANCE_WINDOW_TOO_SHORT The maintenance window ends at 2026-01-01T00:00:00Z, not after it starts at 2026-01-01T01:00:00Z. Choose a later end time."},
		{text: window("01:00:00", "01T07:00:00", "FREQ=MONTHLY"), want: "config.maintenance_window.recurrence MAINTENANCE_RECURRENCE_MALFORMED The maintenance window's recurrence 'FREQ=MONTHLY' has the frequency 'MONTHLY'. Write FREQ=DAILY, or FREQ=WEEKLY;BYDAY= with days of MO,TU,WE,TH,FR,SA,SU, for example FREQ=WEEKLY;BYDAY=SA,SU."},
		{text: window("01:00:00", "01T07:00:00", "FREQ=WEEKLY;BYDAY=XX"), want: "config.maintenance_window.recurrence MAINTENANCE_RECURRENCE_MALFORMED The maintenance window's recurrence 'FREQ=WEEKLY;BYDAY=XX' has the day 'XX'. Write FREQ=DAILY, or FREQ=WEEKLY;BYDAY= with days of MO,TU,WE,TH,FR,SA,SU, for example FREQ=WEEKLY;BYDAY=SA,SU."},
		{text: `{"config":{"maintenanceWindow":{"recurrence":"FREQ=DAILY"}}}`, want: "config.maintenance_window.start_time MAINTENANCE_WINDOW_INCOMPLETE The maintenance window has no start time. Give startTime, endTime and recurrence.\nconfig.maintenance_window.end_time MAINTENANCE_WINDOW_INCOMPLETE The maintenance window has no end time. Give startTime, endTime and recurrence."},

		// Labels.
		{text: `{"labels":{"Team":"data"}}`, want: "labels.Team LABEL_KEY_MALFORMED The label's key 'Team' is malformed. Write 1 to 63 lower case letters, digits, underscores and dashes, a letter first, of at most 128 bytes."},
		{text: `{"labels":{"team":"Data"}}`, want: "labels.team LABEL_VALUE_MALFORMED The label 'team' has the malformed value 'Data'. Write at most 63 lower case letters, digits, underscores and dashes, of at most 128 bytes."},
	} {
		_, err := f.create("refused", test.text, test.rest...)
		if got := violations(err); got != test.want {
			t.Errorf("%s %v:\ngot  %s\nwant %s", test.text, test.rest, got, test.want)
		}
		var e *environment.Error
		if errors.As(err, &e) {
			for _, link := range e.Help {
				if u, err := url.Parse(link.URL); err != nil || u.Scheme != "https" || u.Host == "" || link.Description == "" {
					t.Errorf("%s: the help link %+v is not absolute", test.text, link)
				}
			}
		}
	}
	if list, _, err := f.List(context.Background(), here, environment.Page{}); err != nil || len(list) > 0 {
		t.Errorf("something was stored: %v, %v", list, err)
	}
	if len(f.woken) > 0 {
		t.Errorf("woken: %v", f.woken)
	}
}

// All that is wrong is told at once, numbered, rules of the address planner
// included.
func TestCreateTellsEverything(t *testing.T) {
	f := newFixture(t)
	_, err := f.create("many", `{"labels":{"A":"b"},"config":{"softwareConfig":{"pypiPackages":{"a":""}},"nodeConfig":{"diskSizeGb":1,
		"ipAllocationPolicy":{"useIpAliases":true,"clusterIpv4CidrBlock":"10.56.0.0"}}}}`)
	var e *environment.Error
	if !errors.As(err, &e) || e.Code != environment.InvalidArgument || len(e.Violations) != 4 {
		t.Fatalf("got %v", err)
	}
	const start = "Found 4 problems:\n\t1) The disk size is 1 GB. "
	if !strings.HasPrefix(e.Message, start) || !strings.Contains(e.Message, "\n\t4) The Pod range '10.56.0.0' is not an IPv4 range.") {
		t.Errorf("got %s", e.Message)
	}
	if e.Metadata["range"] != "10.56.0.0" || e.Metadata["minimum"] != "30" {
		t.Errorf("metadata: %v", e.Metadata)
	}
}

func TestCreateNames(t *testing.T) {
	f := newFixture(t)
	for _, test := range []struct {
		name environment.Name
		want string
	}{
		{environment.Name{ID: "UPPER"}, "ENVIRONMENT_NAME_MALFORMED the environment's name \"UPPER\": write 1 to 64 lower case letters, digits and dashes, a letter first and no dash last"},
		{environment.Name{}, "ENVIRONMENT_NAME_MALFORMED the environment's name \"\": write 1 to 64 lower case letters, digits and dashes, a letter first and no dash last"},
		{environment.Name{Location: environment.Location{Project: "other", ID: "us-central1"}, ID: "a"}, "name NAME_PARENT_MISMATCH The environment's name 'projects/other/locations/us-central1/environments/a' is not in the parent 'projects/example-project/locations/us-central1'. Use the same project and location in both."},
		{environment.Name{Location: here, ID: strings.Repeat("a", 64)}, ""},
		{environment.Name{ID: strings.Repeat("a", 65)}, "ENVIRONMENT_NAME_MALFORMED the environment's name \"" + strings.Repeat("a", 65) + "\": write 1 to 64 lower case letters, digits and dashes, a letter first and no dash last"},
	} {
		_, err := f.Create(context.Background(), environment.CreateRequest{Parent: here, Name: test.name, Spec: spec(t, `{}`)})
		if got := violations(err); got != test.want {
			t.Errorf("%v:\ngot  %s\nwant %s", test.name, got, test.want)
		}
	}
	for id, want := range map[string]string{
		"us-central1-a": "parent LOCATION_UNSUPPORTED Location 'us-central1-a' is not one that environments can be created in. That looks like a zone: choose its region 'us-central1'.",
		"mars-1":        "parent LOCATION_UNSUPPORTED Location 'mars-1' is not one that environments can be created in. Choose one of: " + strings.Join(f.Networks.Locations(), ", ") + ".",
	} {
		_, err := f.Create(context.Background(), environment.CreateRequest{Parent: environment.Location{Project: "p", ID: id}, Name: environment.Name{ID: "a"}})
		if got := violations(err); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", id, got, want)
		}
	}
}

func TestCreateTwice(t *testing.T) {
	f := newFixture(t)
	op, err := f.create("twin", documented)
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []environment.State{environment.Creating, environment.Running, environment.Errored, environment.Deleting} {
		f.end(op, state)
		_, err := f.create("twin", documented)
		want := fmt.Sprintf("ENVIRONMENT_ALREADY_EXISTS environment 'projects/example-project/locations/us-central1/environments/twin' exists already, in state %s; choose another name, or delete it first", state)
		if got := violations(err); got != want || environment.CodeOf(err) != environment.AlreadyExists {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// Two environments on one network never get the same ranges, and one that is
// gone gives its own back.
func TestCreatePlansAroundOthers(t *testing.T) {
	f := newFixture(t)
	a, b := f.running("a", documented), f.running("b", documented)
	if a.Plan.Range(address.Pods).Overlaps(b.Plan.Range(address.Pods)) || a.Plan.NodeAddresses[0] == b.Plan.NodeAddresses[0] {
		t.Errorf("a has %v, b has %v", a.Plan, b.Plan)
	}
	err := f.Store.Update(context.Background(), func(tx environment.Tx) error { return tx.DeleteEnvironment(a.Name) })
	if err != nil {
		t.Fatal(err)
	}
	if c := f.running("c", documented); c.Plan.Range(address.Pods) != a.Plan.Range(address.Pods) {
		t.Errorf("c has %v, a had %v", c.Plan, a.Plan)
	}
}

func TestValidateOnly(t *testing.T) {
	f := newFixture(t)
	request := environment.CreateRequest{Parent: here, Name: environment.Name{ID: "plan"}, Spec: spec(t, documented),
		CallOptions: environment.CallOptions{ValidateOnly: true, RequestID: "r1"}}
	op, err := f.Create(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	if !op.Done() || op.Name != (environment.OperationName{}) || op.Result == nil || !op.Result.Plan.Range(address.Pods).IsValid() {
		t.Errorf("got %+v", op)
	}
	if _, err := f.Get(context.Background(), named("plan")); reason(err) != "ENVIRONMENT_NOT_FOUND" {
		t.Errorf("it is stored: %v", err)
	}
	if len(f.woken) > 0 {
		t.Errorf("woken: %v", f.woken)
	}
	// It did not use up the request id.
	request.ValidateOnly = false
	if op, err := f.Create(context.Background(), request); err != nil || op.Done() {
		t.Errorf("got %+v, %v", op, err)
	}
}

func TestRequestID(t *testing.T) {
	f := newFixture(t)
	request := environment.CreateRequest{Parent: here, Name: environment.Name{ID: "once"}, Spec: spec(t, documented), CallOptions: environment.CallOptions{RequestID: "r1"}}
	first, err := f.Create(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.Create(context.Background(), request)
	if err != nil || again.Name != first.Name {
		t.Errorf("again: %v, %v; want %v", again, err, first.Name)
	}
	request.Spec.Config.NodeCount = 5
	_, err = f.Create(context.Background(), request)
	want := "request_id REQUEST_ID_REUSED The request id 'r1' was used for another request, which started operation '" + first.Name.String() + "'. Send a new id with every new request."
	if got := violations(err); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// The id belongs to the project and to the method.
	_, err = f.Delete(context.Background(), named("once"), environment.CallOptions{RequestID: "r1"})
	if got := reason(err); got != "REQUEST_ID_REUSED" {
		t.Errorf("got %s", got)
	}
	request.CallOptions.RequestID = "not an id"
	if _, err := f.Create(context.Background(), request); reason(err) != "REQUEST_ID_MALFORMED" {
		t.Errorf("got %v", err)
	}
}

// Of many who ask at once for one name one gets it, and no two environments
// get the same range.
func TestCreateAtOnce(t *testing.T) {
	f := newFixture(t)
	f.Wake, f.NewID = nil, uuid.NewString
	const many = 20
	same, different := make(chan error, many), make(chan error, many)
	for i := range many {
		go func() {
			_, err := f.Create(context.Background(), environment.CreateRequest{Parent: here, Name: environment.Name{ID: "same"}, Spec: spec(t, documented)})
			same <- err
			_, err = f.Create(context.Background(), environment.CreateRequest{Parent: here, Name: environment.Name{ID: fmt.Sprintf("e%d", i)}, Spec: spec(t, documented)})
			different <- err
		}()
	}
	won := 0
	for range many {
		if err := <-same; err == nil {
			won++
		} else if reason(err) != "ENVIRONMENT_ALREADY_EXISTS" {
			t.Error(err)
		}
		if err := <-different; err != nil {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d were given the name", won)
	}
	list, _, err := f.List(context.Background(), here, environment.Page{})
	if err != nil || len(list) != many+1 {
		t.Fatalf("%d environments, %v", len(list), err)
	}
	for i, a := range list {
		for _, b := range list[:i] {
			if a.Plan.Range(address.Pods).Overlaps(b.Plan.Range(address.Pods)) || a.Plan.Range(address.Services).Overlaps(b.Plan.Range(address.Services)) ||
				a.Plan.NodeAddresses[0] == b.Plan.NodeAddresses[0] {
				t.Errorf("%s and %s share: %v, %v", a.Name, b.Name, a.Plan, b.Plan)
			}
		}
	}
}
