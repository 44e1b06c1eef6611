package main

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/spf13/pflag"
	composer "google.golang.org/api/composer/v1beta1"
)

// environmentFlags are gcloud's for "environments create". What is checked
// here is only what cannot be written into a request: the rest the server
// checks, for all its clients.
type environmentFlags struct {
	image, airflow, python                                   string
	nodeCount, schedulers, maxPods                           int64
	zone, machineType, diskSize                              string
	network, subnetwork, serviceAccount, bucket, key         string
	scopes, tags                                             []string
	labels, airflowConfigs, variables                        map[string]string
	alias, agent                                             bool
	pods, podsName, services, servicesName                   string
	private, privateEndpoint, pupi                           bool
	master, webServer, database, databaseMachine, webMachine string
	access                                                   accessFlags
	window                                                   windowFlags
	authorized                                               authorizedFlags
}

func (f *environmentFlags) create(s *pflag.FlagSet) {
	defer noEmptyDefaults(s)
	s.StringVar(&f.image, "image-version", "", "for example composer-1.20.12-airflow-1.10.15, or an alias such as composer-1-airflow-1")
	s.StringVar(&f.airflow, "airflow-version", "", "instead of --image-version: the newest Composer 1 image with this Airflow")
	s.StringVar(&f.python, "python-version", "", "2 or 3 (default 3)")
	s.Int64Var(&f.nodeCount, "node-count", 0, "number of nodes, at least 3 (default 3)")
	s.Int64Var(&f.schedulers, "scheduler-count", 0, "number of schedulers (Airflow 2)")
	s.Int64Var(&f.maxPods, "max-pods-per-node", 0, "8 to 110 (default 32)")
	s.StringVar(&f.zone, "zone", "", "the nodes' zone")
	s.StringVar(&f.machineType, "machine-type", "", "the nodes' machine type")
	s.StringVar(&f.diskSize, "disk-size", "", "the nodes' disks, for example 100GB")
	s.StringVar(&f.network, "network", "", "the network (default \"default\")")
	s.StringVar(&f.subnetwork, "subnetwork", "", "the subnetwork; needs --network")
	s.StringVar(&f.serviceAccount, "service-account", "", "the nodes' service account")
	s.StringVar(&f.bucket, "storage-bucket", "", "the bucket for DAGs and logs")
	s.StringVar(&f.key, "kms-key", "", "the key that encrypts the environment's data, by its full name")
	s.StringSliceVar(&f.scopes, "oauth-scopes", nil, "the nodes' OAuth scopes: `SCOPE,...`")
	s.StringSliceVar(&f.tags, "tags", nil, "the nodes' network tags: `TAG,...`")
	s.StringToStringVar(&f.labels, "labels", nil, "labels: `KEY=VALUE,...`")
	s.StringToStringVar(&f.airflowConfigs, "airflow-configs", nil, "Airflow configuration overrides: `SECTION-KEY=VALUE,...`")
	s.StringToStringVar(&f.variables, "env-variables", nil, "environment variables of the Pods: `NAME=VALUE,...`")
	s.BoolVar(&f.alias, "enable-ip-alias", false, "a VPC-native cluster: Pods and Services in ranges of their own")
	s.BoolVar(&f.agent, "enable-ip-masq-agent", false, "the IP masquerade agent; needs --enable-ip-alias, and cannot be enabled later")
	s.StringVar(&f.pods, "cluster-ipv4-cidr", "", "the Pods' range, or its size such as /14")
	s.StringVar(&f.podsName, "cluster-secondary-range-name", "", "the secondary range for Pods")
	s.StringVar(&f.services, "services-ipv4-cidr", "", "the Services' range, or its size such as /20")
	s.StringVar(&f.servicesName, "services-secondary-range-name", "", "the secondary range for Services")
	s.BoolVar(&f.private, "enable-private-environment", false, "nodes without public addresses")
	s.BoolVar(&f.privateEndpoint, "enable-private-endpoint", false, "a control plane without a public address")
	s.BoolVar(&f.pupi, "enable-privately-used-public-ips", false, "allow public addresses for Pods and Services of a private environment")
	s.StringVar(&f.master, "master-ipv4-cidr", "", "the control plane's range")
	s.StringVar(&f.webServer, "web-server-ipv4-cidr", "", "the web server's range")
	s.StringVar(&f.database, "cloud-sql-ipv4-cidr", "", "the database's range")
	s.StringVar(&f.databaseMachine, "cloud-sql-machine-type", "", "the database's machine type")
	s.StringVar(&f.webMachine, "web-server-machine-type", "", "the web server's machine type")
	f.access.define(s, "web-server-allow-ip")
	f.window.define(s)
	f.authorized.define(s)
}

// noEmptyDefaults keeps "(default [])" out of the help.
func noEmptyDefaults(s *pflag.FlagSet) {
	s.VisitAll(func(f *pflag.Flag) {
		if f.Value.Type() == "stringToString" {
			f.DefValue = ""
		}
	})
}

// environment is the request's body: what was given and nothing else.
func (f *environmentFlags) environment(s *pflag.FlagSet) (*composer.Environment, error) {
	if f.image != "" && f.airflow != "" {
		return nil, errors.New("--image-version and --airflow-version say the same thing: give one of them")
	}
	if f.airflow != "" {
		f.image = "composer-1-airflow-" + f.airflow
	}
	disk, err := gigabytes(f.diskSize)
	if err != nil {
		return nil, err
	}
	c := &composer.EnvironmentConfig{NodeCount: f.nodeCount,
		SoftwareConfig: &composer.SoftwareConfig{ImageVersion: f.image, PythonVersion: f.python, SchedulerCount: f.schedulers,
			AirflowConfigOverrides: f.airflowConfigs, EnvVariables: f.variables},
		NodeConfig: &composer.NodeConfig{Location: f.zone, MachineType: f.machineType, DiskSizeGb: disk, Network: f.network, Subnetwork: f.subnetwork,
			ServiceAccount: f.serviceAccount, OauthScopes: f.scopes, Tags: f.tags, EnableIpMasqAgent: f.agent, MaxPodsPerNode: f.maxPods},
	}
	if f.alias || f.pods != "" || f.podsName != "" || f.services != "" || f.servicesName != "" {
		c.NodeConfig.IpAllocationPolicy = &composer.IPAllocationPolicy{UseIpAliases: f.alias, ClusterIpv4CidrBlock: f.pods,
			ClusterSecondaryRangeName: f.podsName, ServicesIpv4CidrBlock: f.services, ServicesSecondaryRangeName: f.servicesName}
	}
	if f.private || f.privateEndpoint || f.pupi || f.master != "" || f.webServer != "" || f.database != "" {
		c.PrivateEnvironmentConfig = &composer.PrivateEnvironmentConfig{EnablePrivateEnvironment: f.private, EnablePrivatelyUsedPublicIps: f.pupi,
			WebServerIpv4CidrBlock: f.webServer, CloudSqlIpv4CidrBlock: f.database,
			PrivateClusterConfig: &composer.PrivateClusterConfig{EnablePrivateEndpoint: f.privateEndpoint, MasterIpv4CidrBlock: f.master}}
	}
	if f.key != "" {
		c.EncryptionConfig = &composer.EncryptionConfig{KmsKeyName: f.key}
	}
	if f.databaseMachine != "" {
		c.DatabaseConfig = &composer.DatabaseConfig{MachineType: f.databaseMachine}
	}
	if f.webMachine != "" {
		c.WebServerConfig = &composer.WebServerConfig{MachineType: f.webMachine}
	}
	if c.WebServerNetworkAccessControl, err = f.access.control(s, "web-server-allow-ip"); err != nil {
		return nil, err
	}
	if c.MaintenanceWindow, err = f.window.window(s); err != nil {
		return nil, err
	}
	if c.MasterAuthorizedNetworksConfig, err = f.authorized.config(s); err != nil {
		return nil, err
	}
	e := &composer.Environment{Config: c, Labels: f.labels}
	if f.bucket != "" {
		e.StorageConfig = &composer.StorageConfig{Bucket: f.bucket}
	}
	return e, nil
}

func gigabytes(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text), "B"), "G")
	var n int64
	if _, err := fmt.Sscanf(number+"\n", "%d\n", &n); err != nil || fmt.Sprint(n) != number {
		return 0, fmt.Errorf("--disk-size %q: write gigabytes, for example 100GB", text)
	}
	return n, nil
}

// accessFlags say who may reach the web server.
type accessFlags struct {
	all, none bool
	ips       []string
}

func (f *accessFlags) define(s *pflag.FlagSet, allow string) {
	s.BoolVar(&f.all, "web-server-allow-all", false, "everybody may reach the web server")
	s.BoolVar(&f.none, "web-server-deny-all", false, "nobody may reach the web server")
	s.StringArrayVar(&f.ips, allow, nil, "who may reach the web server: `ip_range=RANGE[,description=TEXT]`, may be repeated")
}

func (f *accessFlags) control(s *pflag.FlagSet, allow string) (*composer.WebServerNetworkAccessControl, error) {
	given := 0
	for _, name := range []string{"web-server-allow-all", "web-server-deny-all", allow} {
		if s.Changed(name) {
			given++
		}
	}
	switch {
	case given == 0:
		return nil, nil
	case given > 1:
		return nil, fmt.Errorf("give one of --web-server-allow-all, --web-server-deny-all and --%s", allow)
	case f.none:
		return &composer.WebServerNetworkAccessControl{}, nil
	case f.all:
		return &composer.WebServerNetworkAccessControl{AllowedIpRanges: []*composer.AllowedIpRange{
			{Value: "0.0.0.0/0", Description: "Allows access from all IPv4 addresses (default value)"},
			{Value: "::0/0", Description: "Allows access from all IPv6 addresses (default value)"}}}, nil
	}
	c := &composer.WebServerNetworkAccessControl{}
	for _, text := range f.ips {
		r := &composer.AllowedIpRange{}
		for part := range strings.SplitSeq(text, ",") {
			key, value, _ := strings.Cut(part, "=")
			switch strings.TrimSpace(key) {
			case "ip_range":
				r.Value = value
			case "description":
				r.Description = value
			default:
				return nil, fmt.Errorf("--%s %q: write ip_range=RANGE[,description=TEXT]", allow, text)
			}
		}
		if r.Value == "" {
			return nil, fmt.Errorf("--%s %q: write ip_range=RANGE[,description=TEXT]", allow, text)
		}
		c.AllowedIpRanges = append(c.AllowedIpRanges, r)
	}
	return c, nil
}

// windowFlags say when maintenance may happen.
type windowFlags struct{ start, end, recurrence string }

func (f *windowFlags) define(s *pflag.FlagSet) {
	s.StringVar(&f.start, "maintenance-window-start", "", "for example 2026-01-01T01:00:00Z")
	s.StringVar(&f.end, "maintenance-window-end", "", "for example 2026-01-01T05:00:00Z")
	s.StringVar(&f.recurrence, "maintenance-window-recurrence", "", "for example FREQ=WEEKLY;BYDAY=FR,SA,SU")
}

func (f *windowFlags) window(*pflag.FlagSet) (*composer.MaintenanceWindow, error) {
	if f.start == "" && f.end == "" && f.recurrence == "" {
		return nil, nil
	}
	if f.start == "" || f.end == "" || f.recurrence == "" {
		return nil, errors.New("a maintenance window takes all of --maintenance-window-start, --maintenance-window-end and --maintenance-window-recurrence")
	}
	return &composer.MaintenanceWindow{StartTime: f.start, EndTime: f.end, Recurrence: f.recurrence}, nil
}

// authorizedFlags say who may reach the control plane.
type authorizedFlags struct {
	enable, disable bool
	networks        []string
}

func (f *authorizedFlags) define(s *pflag.FlagSet) {
	s.BoolVar(&f.enable, "enable-master-authorized-networks", false, "only the authorized networks may reach the control plane")
	s.StringSliceVar(&f.networks, "master-authorized-networks", nil, "the authorized networks: `RANGE,...`")
}

func (f *authorizedFlags) config(s *pflag.FlagSet) (*composer.MasterAuthorizedNetworksConfig, error) {
	switch {
	case f.enable && f.disable:
		return nil, errors.New("give one of --enable-master-authorized-networks and --disable-master-authorized-networks")
	case !f.enable && len(f.networks) > 0:
		return nil, errors.New("--master-authorized-networks takes --enable-master-authorized-networks too")
	case f.disable:
		return &composer.MasterAuthorizedNetworksConfig{Enabled: false, ForceSendFields: []string{"Enabled"}}, nil
	case !f.enable:
		return nil, nil
	}
	c := &composer.MasterAuthorizedNetworksConfig{Enabled: true}
	for _, n := range f.networks {
		c.CidrBlocks = append(c.CidrBlocks, &composer.CidrBlock{CidrBlock: n})
	}
	return c, nil
}

// updateFlags are gcloud's for "environments update".
type updateFlags struct {
	environmentFlags
	variables, configs, labelled, packages mapFlags
	requirements                           []string
	clearWindow                            bool
	packagesFile                           string
}

// mapFlags change the entries of a map.
type mapFlags struct {
	update map[string]string
	remove []string
	clear  bool
}

func (m *mapFlags) define(s *pflag.FlagSet, noun, what string) {
	s.StringToStringVar(&m.update, "update-"+noun, nil, "set "+what+": `KEY=VALUE,...`")
	s.StringSliceVar(&m.remove, "remove-"+noun, nil, "remove "+what+": `KEY,...`")
	s.BoolVar(&m.clear, "clear-"+noun, false, "remove all "+what+" first")
}

func (m *mapFlags) changed() bool { return m.clear || len(m.update) > 0 || len(m.remove) > 0 }

// apply returns what a map becomes.
func (m *mapFlags) apply(old map[string]string) map[string]string {
	is := map[string]string{}
	if !m.clear {
		maps.Copy(is, old)
	}
	for _, k := range m.remove {
		delete(is, k)
	}
	maps.Copy(is, m.update)
	return is
}

func (f *updateFlags) define(s *pflag.FlagSet) {
	defer noEmptyDefaults(s)
	s.Int64Var(&f.nodeCount, "node-count", 0, "number of nodes, at least 3")
	s.Int64Var(&f.schedulers, "scheduler-count", 0, "number of schedulers (Airflow 2)")
	s.StringVar(&f.image, "image-version", "", "upgrade to this image version")
	s.StringVar(&f.airflow, "airflow-version", "", "upgrade to the newest Composer 1 image with this Airflow")
	s.StringVar(&f.databaseMachine, "cloud-sql-machine-type", "", "the database's machine type")
	s.StringVar(&f.webMachine, "web-server-machine-type", "", "the web server's machine type")
	f.access.define(s, "update-web-server-allow-ip")
	f.window.define(s)
	f.authorized.define(s)
	s.BoolVar(&f.clearWindow, "clear-maintenance-window", false, "maintenance may happen at any time")
	s.BoolVar(&f.authorized.disable, "disable-master-authorized-networks", false, "everybody may reach the control plane")
	f.variables.define(s, "env-variables", "environment variables")
	f.configs.define(s, "airflow-configs", "Airflow configuration overrides")
	f.labelled.define(s, "labels", "labels")
	s.StringArrayVar(&f.requirements, "update-pypi-package", nil, "set a PyPI package: `NAME[EXTRA]==VERSION`, may be repeated")
	s.StringSliceVar(&f.packages.remove, "remove-pypi-packages", nil, "remove PyPI packages: `NAME,...`")
	s.BoolVar(&f.packages.clear, "clear-pypi-packages", false, "remove all PyPI packages first")
	s.StringVar(&f.packagesFile, "update-pypi-packages-from-file", "", "replace the PyPI packages by those of this requirements `FILE`")
}

// patch is the request's body and its mask.
func (f *updateFlags) patch(s *pflag.FlagSet, old *composer.Environment) (*composer.Environment, []string, error) {
	software := &composer.SoftwareConfig{}
	if old.Config != nil && old.Config.SoftwareConfig != nil {
		software = old.Config.SoftwareConfig
	}
	e := &composer.Environment{Config: &composer.EnvironmentConfig{SoftwareConfig: &composer.SoftwareConfig{}}}
	c := e.Config
	var mask []string
	if s.Changed("node-count") {
		c.NodeCount, mask = f.nodeCount, append(mask, "config.node_count")
		c.ForceSendFields = append(c.ForceSendFields, "NodeCount")
	}
	if s.Changed("scheduler-count") {
		c.SoftwareConfig.SchedulerCount, mask = f.schedulers, append(mask, "config.software_config.scheduler_count")
		c.SoftwareConfig.ForceSendFields = append(c.SoftwareConfig.ForceSendFields, "SchedulerCount")
	}
	if f.image != "" && f.airflow != "" {
		return nil, nil, errors.New("--image-version and --airflow-version say the same thing: give one of them")
	}
	if f.airflow != "" {
		f.image = "composer-1-airflow-" + f.airflow
	}
	if f.image != "" {
		c.SoftwareConfig.ImageVersion, mask = f.image, append(mask, "config.software_config.image_version")
	}
	if f.databaseMachine != "" {
		c.DatabaseConfig, mask = &composer.DatabaseConfig{MachineType: f.databaseMachine}, append(mask, "config.database_config.machine_type")
	}
	if f.webMachine != "" {
		c.WebServerConfig, mask = &composer.WebServerConfig{MachineType: f.webMachine}, append(mask, "config.web_server_config.machine_type")
	}
	var err error
	if c.WebServerNetworkAccessControl, err = f.access.control(s, "update-web-server-allow-ip"); err != nil {
		return nil, nil, err
	}
	if c.WebServerNetworkAccessControl != nil {
		mask = append(mask, "config.web_server_network_access_control")
	}
	if c.MaintenanceWindow, err = f.window.window(s); err != nil {
		return nil, nil, err
	}
	if f.clearWindow && c.MaintenanceWindow != nil {
		return nil, nil, errors.New("--clear-maintenance-window and a new maintenance window exclude each other: give one of them")
	}
	if f.clearWindow || c.MaintenanceWindow != nil {
		mask = append(mask, "config.maintenance_window")
	}
	if c.MasterAuthorizedNetworksConfig, err = f.authorized.config(s); err != nil {
		return nil, nil, err
	}
	if c.MasterAuthorizedNetworksConfig != nil {
		mask = append(mask, "config.master_authorized_networks_config")
	}
	for _, text := range f.requirements {
		name, specifier, err := requirement(text)
		if err != nil {
			return nil, nil, fmt.Errorf("--update-pypi-package: %w", err)
		}
		if f.packages.update == nil {
			f.packages.update = map[string]string{}
		}
		f.packages.update[name] = specifier
	}
	if f.packagesFile != "" {
		if f.packages.changed() {
			return nil, nil, errors.New("--update-pypi-packages-from-file replaces all packages: give no other flag for packages")
		}
		if f.packages.update, err = readRequirements(f.packagesFile); err != nil {
			return nil, nil, err
		}
		f.packages.clear = true
	}
	if f.variables.changed() {
		c.SoftwareConfig.EnvVariables, mask = f.variables.apply(software.EnvVariables), append(mask, "config.software_config.env_variables")
	}
	if f.configs.changed() {
		c.SoftwareConfig.AirflowConfigOverrides, mask = f.configs.apply(software.AirflowConfigOverrides), append(mask, "config.software_config.airflow_config_overrides")
	}
	if f.packages.changed() {
		c.SoftwareConfig.PypiPackages, mask = f.packages.apply(software.PypiPackages), append(mask, "config.software_config.pypi_packages")
	}
	if f.labelled.changed() {
		e.Labels, mask = f.labelled.apply(old.Labels), append(mask, "labels")
	}
	if len(mask) == 0 {
		return nil, nil, errors.New("nothing to change: give one of the flags that \"sordino environments update --help\" lists")
	}
	return e, mask, nil
}

// readRequirements reads a requirements file: a name and what follows it.
func readRequirements(path string) (map[string]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the packages: %w", err)
	}
	defer file.Close()
	packages := map[string]string{}
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		name, specifier, err := requirement(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		packages[name] = specifier
	}
	return packages, lines.Err()
}

// requirement cuts a PyPI requirement into the package's name and what follows.
func requirement(text string) (name, specifier string, err error) {
	end := strings.IndexAny(text, "[<>=!~ ;")
	if end < 0 {
		end = len(text)
	}
	name = text[:end]
	if name == "" || strings.HasPrefix(name, "-") {
		return "", "", fmt.Errorf("%q is not a package; write NAME, NAME==VERSION or NAME[EXTRA]>=VERSION", text)
	}
	return name, strings.TrimSpace(text[end:]), nil
}
