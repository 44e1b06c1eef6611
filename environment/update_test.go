package environment_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"sordino/environment"
	"sordino/environment/address"
)

const noChange = "Update request does not result in any change to the environment's configuration"

// base is an environment with something in every field that can be changed.
const base = `{"labels":{"env":"prod","team":"data"},"config":{"nodeCount":3,
	"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true},"enableIpMasqAgent":true},
	"softwareConfig":{"imageVersion":"composer-1.19.15-airflow-2.3.4","envVariables":{"FOO":"bar"},
		"airflowConfigOverrides":{"core-dags_are_paused_at_creation":"True","smtp-smtp_host":"mx"}}}}`

func TestUpdateMasks(t *testing.T) {
	f := newFixture(t)
	with := func(change func(s *environment.Spec)) environment.Spec {
		s := spec(t, base)
		change(&s)
		return s
	}
	nodes := func(n int32) environment.Spec { return with(func(s *environment.Spec) { s.Config.NodeCount = n }) }
	labels := func(kv ...string) environment.Spec {
		return with(func(s *environment.Spec) {
			s.Labels = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				s.Labels[kv[i]] = kv[i+1]
			}
		})
	}
	pypi := func(kv ...string) environment.Spec {
		return with(func(s *environment.Spec) {
			s.Config.SoftwareConfig.PypiPackages = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				s.Config.SoftwareConfig.PypiPackages[kv[i]] = kv[i+1]
			}
		})
	}
	software := func(change func(s *environment.Spec)) environment.Spec { return with(change) }
	body := func(config string) string { return `{"config":{` + config + `}}` }
	for i, test := range []struct {
		mask, body string
		want       environment.Spec
	}{
		// One field in every spelling that clients have.
		{"config.node_count", body(`"nodeCount":5`), nodes(5)},
		{"config.nodeCount", body(`"nodeCount":5`), nodes(5)},
		{"config.NodeCount", body(`"nodeCount":5`), nodes(5)},
		{"Config.nodecount", body(`"nodeCount":5`), nodes(5)},
		// What the body holds beside it does not count.
		{"config.node_count", `{"labels":{"x":"y"},"config":{"nodeCount":4,"airflowUri":"u","softwareConfig":{"pythonVersion":"2"}}}`, nodes(4)},

		// Maps: whole, and entry by entry.
		{"labels", `{"labels":{"a":"b"}}`, labels("a", "b")},
		{"labels", `{}`, labels()},
		{"labels.env,labels.team", `{"labels":{"env":"dev","team":"x"}}`, labels("env", "dev", "team", "x")},
		{"labels.env", `{"labels":{}}`, labels("team", "data")},
		{"labels.`env`", `{"labels":{"env":"dev"}}`, labels("env", "dev", "team", "data")},
		{"config.software_config.pypi_packages.zope.interface", body(`"softwareConfig":{"pypiPackages":{"zope.interface":"==5.0"}}`), pypi("zope.interface", "==5.0")},
		{"config.softwareConfig.pypiPackages", body(`"softwareConfig":{"pypiPackages":{"flask":"","numpy":"==1.19.5","requests":"[socks]>=2.0,<3"}}`), pypi("flask", "", "numpy", "==1.19.5", "requests", "[socks]>=2.0,<3")},
		{"config.softwareConfig.pypiPackages.a,config.softwareConfig.pypiPackages.b", body(`"softwareConfig":{"pypiPackages":{"a":"==1"}}`), pypi("a", "==1")},
		{"config.software_config.airflow_config_overrides.a-b,config.software_config.airflow_config_overrides.core-dags_are_paused_at_creation", body(`"softwareConfig":{"airflowConfigOverrides":{"a-b":"c"}}`),
			software(func(s *environment.Spec) {
				s.Config.SoftwareConfig.AirflowConfigOverrides = map[string]string{"a-b": "c", "smtp-smtp_host": "mx"}
			})},
		{"config.softwareConfig.airflowConfigOverrides", body(`"softwareConfig":{}`),
			software(func(s *environment.Spec) { s.Config.SoftwareConfig.AirflowConfigOverrides = nil })},
		{"config.softwareConfig.envVariables", body(`"softwareConfig":{"envVariables":{"FOO":"zap","NEW":"1"}}`),
			software(func(s *environment.Spec) {
				s.Config.SoftwareConfig.EnvVariables = map[string]string{"FOO": "zap", "NEW": "1"}
			})},

		// Messages, capitalised as Terraform does.
		{"config.MasterAuthorizedNetworksConfig", body(`"masterAuthorizedNetworksConfig":{"enabled":true,"cidrBlocks":[{"cidrBlock":"10.10.0.0/16","displayName":"corp"}]}`),
			with(func(s *environment.Spec) {
				s.Config.MasterAuthorizedNetworksConfig = spec(t, `{"config":{"masterAuthorizedNetworksConfig":{"enabled":true,"cidrBlocks":[{"cidrBlock":"10.10.0.0/16","displayName":"corp"}]}}}`).Config.MasterAuthorizedNetworksConfig
			})},
		{"config.web_server_network_access_control", body(`"webServerNetworkAccessControl":{}`),
			with(func(s *environment.Spec) {
				s.Config.WebServerNetworkAccessControl = spec(t, `{"config":{"webServerNetworkAccessControl":{}}}`).Config.WebServerNetworkAccessControl
			})},
		{"config.databaseConfig.machineType", body(`"databaseConfig":{"machineType":"db-n1-standard-8"}`),
			with(func(s *environment.Spec) {
				s.Config.DatabaseConfig = spec(t, `{"config":{"databaseConfig":{"machineType":"db-n1-standard-8"}}}`).Config.DatabaseConfig
			})},
		{"config.database_config", body(`"databaseConfig":{"machineType":"db-n1-standard-4"}`),
			with(func(s *environment.Spec) {
				s.Config.DatabaseConfig = spec(t, `{"config":{"databaseConfig":{"machineType":"db-n1-standard-4"}}}`).Config.DatabaseConfig
			})},
		{"config.software_config.scheduler_count", body(`"softwareConfig":{"schedulerCount":2}`), software(func(s *environment.Spec) { s.Config.SoftwareConfig.SchedulerCount = 2 })},
		{"config.software_config.image_version", body(`"softwareConfig":{"imageVersion":"composer-1-airflow-2"}`), software(func(s *environment.Spec) { s.Config.SoftwareConfig.ImageVersion = "composer-1.20.12-airflow-2.4.3" })},
		{"config.maintenanceWindow", body(`"maintenanceWindow":{"startTime":"2026-01-01T01:00:00Z","endTime":"2026-01-01T13:00:00Z","recurrence":"FREQ=WEEKLY;BYDAY=MO"}`),
			with(func(s *environment.Spec) {
				s.Config.MaintenanceWindow = spec(t, `{"config":{"maintenanceWindow":{"startTime":"2026-01-01T01:00:00Z","endTime":"2026-01-01T13:00:00Z","recurrence":"FREQ=WEEKLY;BYDAY=MO"}}}`).Config.MaintenanceWindow
			})},

		// What cannot be changed may be named with the value that it has, also
		// one that is a default; and what only the server can say is ignored.
		{"config.nodeConfig.enableIpMasqAgent,config.nodeConfig.network,config.nodeConfig.diskSizeGb,config.nodeConfig.maxPodsPerNode,config.airflowUri,uuid,config.nodeCount",
			body(`"nodeCount":4,"airflowUri":"x","nodeConfig":{"enableIpMasqAgent":true,"network":"projects/example-project/global/networks/default","diskSizeGb":100}`), nodes(4)},
		// A whole part of the configuration, of which one thing differs.
		{"config.nodeConfig,config.nodeCount", body(`"nodeCount":4,"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true},"enableIpMasqAgent":true,"machineType":"projects/example-project/zones/us-central1-b/machineTypes/n1-standard-1"}`), nodes(4)},
		{"*", strings.Replace(base, `"nodeCount":3`, `"nodeCount":6`, 1), nodes(6)},
	} {
		id := "mask-" + string(rune('a'+i))
		e := f.running(id, base)
		op, err := f.update(id, test.mask, test.body)
		if err != nil {
			t.Errorf("%s with %s: %v", test.mask, test.body, err)
			continue
		}
		got, err := f.Get(context.Background(), named(id))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got.Spec, protocmp.Transform(), cmp.Comparer(sameLabels)); diff != "" {
			t.Errorf("%s with %s (-want +got):\n%s", test.mask, test.body, diff)
		}
		if op.Type != environment.Update || got.State != environment.Updating || got.Generation != 2 || op.Generation != 2 || op.Previous == nil {
			t.Errorf("%s: operation %+v, environment %+v", test.mask, op, got)
		} else if diff := cmp.Diff(e.Spec, op.Previous.Spec, protocmp.Transform()); diff != "" {
			t.Errorf("%s: the way back (-want +got):\n%s", test.mask, diff)
		}
	}
}

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func TestUpdateRefuses(t *testing.T) {
	f := newFixture(t)
	f.running("e", base)
	f.running("plain", `{"config":{"softwareConfig":{"imageVersion":"composer-1.20.12-airflow-1.10.15"}}}`)
	f.running("two", `{"config":{"softwareConfig":{"imageVersion":"composer-2-airflow-2"}}}`)
	software := func(fields string) string { return `{"config":{"softwareConfig":{` + fields + `}}}` }
	const field = "update_mask UPDATE_HAS_NO_EFFECT " + noChange
	for _, test := range []struct{ id, mask, body, want string }{
		{"e", "", `{}`, "update_mask UPDATE_MASK_REQUIRED The update mask is missing. Name the fields to change in updateMask, for example updateMask=config.nodeCount."},
		{"e", "config.nodeCont", `{}`, "update_mask UPDATE_MASK_UNKNOWN_PATH The update mask's path 'config.nodeCont' names no field of an environment. Write it like config.nodeCount, or config.softwareConfig.pypiPackages.NAME for one entry of a map."},
		{"e", "config.nodeCount.x", `{}`, "update_mask UPDATE_MASK_UNKNOWN_PATH The update mask's path 'config.nodeCount.x' names no field of an environment. Write it like config.nodeCount, or config.softwareConfig.pypiPackages.NAME for one entry of a map."},
		{"e", "labels,labels.a", `{}`, "update_mask UPDATE_MASK_CONFLICT The update mask names both 'labels' and 'labels.a'. Name either the whole map or single entries of it."},
		{"e", "*,labels", `{}`, "update_mask UPDATE_MASK_CONFLICT The update mask names '*' and other paths. '*' replaces everything: write it alone."},
		{"e", "labels.a,config.softwareConfig.pypiPackages.b", `{"labels":{"a":"b"}}`, "update_mask UPDATE_TYPES_MIXED The update would change 2 things at once: labels, config.softwareConfig.pypiPackages. Only one type of update is possible in a request: send one request each, and wait for its operation to end."},

		// No change.
		{"e", "config.nodeCount", `{"config":{"nodeCount":3}}`, field},
		{"e", "labels", `{"labels":{"env":"prod","team":"data"}}`, field},
		{"e", "labels.none", `{}`, field},
		{"e", "uuid,state,config.airflowUri", `{"uuid":"x","config":{"airflowUri":"y"}}`, field},
		{"e", "config.nodeConfig.enableIpMasqAgent", `{"config":{"nodeConfig":{"enableIpMasqAgent":true}}}`, field},
		{"e", "config.workloadsConfig", `{}`, field},
		{"plain", "config.nodeConfig.enableIpMasqAgent", `{}`, field},
		{"plain", "config.databaseConfig.machineType", `{"config":{"databaseConfig":{"machineType":"db-n1-standard-2"}}}`, field},
		{"e", "*", base, field},

		// What is chosen when an environment is created.
		{"plain", "config.nodeConfig.enableIpMasqAgent", `{"config":{"nodeConfig":{"enableIpMasqAgent":true}}}`, "config.node_config.enable_ip_masq_agent FIELD_IMMUTABLE Field 'config.nodeConfig.enableIpMasqAgent' cannot be changed from false to true. The IP Masquerade agent cannot be enabled for an existing environment: it is chosen when the environment is created. Create a new environment, and move the work there."},
		{"e", "config.node_config.enable_ip_masq_agent", `{}`, "config.node_config.enable_ip_masq_agent FIELD_IMMUTABLE Field 'config.nodeConfig.enableIpMasqAgent' cannot be changed from true to false. The IP Masquerade agent cannot be disabled for an existing environment: it is chosen when the environment is created. Create a new environment, and move the work there."},
		{"plain", "config.nodeConfig", `{"config":{"nodeConfig":{"enableIpMasqAgent":true,"tags":["a","b"]}}}`, "config.node_config.tags FIELD_IMMUTABLE Field 'config.nodeConfig.tags' cannot be changed from unset to '[a, b]'. Create a new environment with the value that you want, and move the work there; or leave 'config.nodeConfig.tags' out of the update.\nconfig.node_config.enable_ip_masq_agent FIELD_IMMUTABLE Field 'config.nodeConfig.enableIpMasqAgent' cannot be changed from false to true. The IP Masquerade agent cannot be enabled for an existing environment: it is chosen when the environment is created. Create a new environment, and move the work there."},
		{"plain", "*", `{"config":{"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true}}}}`, "config.node_config.ip_allocation_policy.use_ip_aliases FIELD_IMMUTABLE Field 'config.nodeConfig.ipAllocationPolicy.useIpAliases' cannot be changed from false to true. Create a new environment with the value that you want, and move the work there; or leave 'config.nodeConfig.ipAllocationPolicy.useIpAliases' out of the update."},
		{"e", "config.nodeConfig.diskSizeGb", `{"config":{"nodeConfig":{"diskSizeGb":50}}}`, "config.node_config.disk_size_gb FIELD_IMMUTABLE Field 'config.nodeConfig.diskSizeGb' cannot be changed from '100' to '50'. Create a new environment with the value that you want, and move the work there; or leave 'config.nodeConfig.diskSizeGb' out of the update."},
		{"e", "config.softwareConfig.pythonVersion", software(`"pythonVersion":"2"`), "config.software_config.python_version FIELD_IMMUTABLE Field 'config.softwareConfig.pythonVersion' cannot be changed from '3' to '2'. Create a new environment with the value that you want, and move the work there; or leave 'config.softwareConfig.pythonVersion' out of the update."},
		{"e", "config.privateEnvironmentConfig.enablePrivateEnvironment", `{"config":{"privateEnvironmentConfig":{"enablePrivateEnvironment":true}}}`, "config.private_environment_config.enable_private_environment FIELD_IMMUTABLE Field 'config.privateEnvironmentConfig.enablePrivateEnvironment' cannot be changed from false to true. Create a new environment with the value that you want, and move the work there; or leave 'config.privateEnvironmentConfig.enablePrivateEnvironment' out of the update."},

		// The rules of create hold.
		{"e", "config.nodeCount", `{"config":{"nodeCount":2}}`, "config.node_count NODE_COUNT_TOO_SMALL The node count is 2. Ask for at least 3 nodes, or leave it out for 3."},
		{"e", "config.nodeCount", `{"config":{"nodeCount":4093}}`, "config.node_count IP_RANGE_TOO_SMALL The environment's ranges have room for 4092 nodes, and 4093 are asked for. The ranges of an existing environment cannot be changed: create a new one with a larger Pod range or subnetwork"},
		{"e", "config.softwareConfig.schedulerCount", software(`"schedulerCount":4`), "config.software_config.scheduler_count SCHEDULER_COUNT_OUT_OF_RANGE The scheduler count is 4, and there are 3 nodes. Ask for 1 to 3 schedulers."},
		{"e", "config.softwareConfig.pypiPackages", software(`"pypiPackages":{"NumPy":"1.0"}`), "config.software_config.pypi_packages.NumPy PYPI_PACKAGE_MALFORMED The PyPI package's name 'NumPy' is malformed. Write lower case letters, digits, dots, dashes and underscores, for example scikit-learn.\nconfig.software_config.pypi_packages.NumPy PYPI_VERSION_MALFORMED The PyPI package 'NumPy' has the malformed version '1.0'. Write extras and version specifiers such as [devel]>=1.8.2,<1.9.2, or nothing for any version."},
		{"e", "config.WorkloadsConfig", `{"config":{"workloadsConfig":{"scheduler":{"count":1,"cpu":2}}}}`, "config.workloads_config FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.workloadsConfig' is supported in Cloud Composer 2 and 3, and not in image version 'composer-1.19.15-airflow-2.3.4'. Leave it out, or ask for an image version that has it."},
		{"two", "config.nodeCount", `{"config":{"nodeCount":3}}`, "config.node_count FIELD_NOT_SUPPORTED_IN_VERSION Field 'config.nodeCount' is supported in Cloud Composer 1, and not in image version 'composer-2.14.2-airflow-2.10.5'. Leave it out, or ask for an image version that has it."},

		// Upgrades.
		{"e", "config.softwareConfig.imageVersion", software(`"imageVersion":"composer-1.20.13-airflow-2.4.3"`), "config.software_config.image_version IMAGE_VERSION_UNSUPPORTED Unsupported image version for upgrade: 'composer-1.20.13-airflow-2.4.3'. Currently suggested upgrades of 'composer-1.19.15-airflow-2.3.4' are: [composer-1.20.12-airflow-2.4.3, composer-1.20.12-airflow-2.3.4]."},
		{"e", "config.softwareConfig.imageVersion", software(`"imageVersion":"composer-1.18.12-airflow-2.2.5"`), "config.software_config.image_version IMAGE_UPGRADE_NOT_ALLOWED Cannot upgrade from image version 'composer-1.19.15-airflow-2.3.4' to 'composer-1.18.12-airflow-2.2.5': Cloud Composer cannot be downgraded. Currently suggested upgrades are: [composer-1.20.12-airflow-2.4.3, composer-1.20.12-airflow-2.3.4]."},
		{"e", "config.softwareConfig.imageVersion", software(`"imageVersion":"composer-2-airflow-2"`), "config.software_config.image_version IMAGE_UPGRADE_NOT_ALLOWED Cannot upgrade from image version 'composer-1.19.15-airflow-2.3.4' to 'composer-2.14.2-airflow-2.10.5': the major version of Cloud Composer cannot change. Currently suggested upgrades are: [composer-1.20.12-airflow-2.4.3, composer-1.20.12-airflow-2.3.4]."},
		{"e", "config.softwareConfig.imageVersion", `{}`, "config.software_config.image_version IMAGE_VERSION_REQUIRED The update mask names 'config.softwareConfig.imageVersion', and the request holds none. Send the image version to upgrade to, or leave it out of the mask."},
		{"plain", "config.softwareConfig.imageVersion", software(`"imageVersion":"composer-1.20.13-airflow-1.10.15"`), "config.software_config.image_version IMAGE_VERSION_UNSUPPORTED Unsupported image version for upgrade: 'composer-1.20.13-airflow-1.10.15'. There is no newer version than 'composer-1.20.12-airflow-1.10.15' to upgrade to."},

		{"gone", "labels", `{}`, "ENVIRONMENT_NOT_FOUND environment 'projects/example-project/locations/us-central1/environments/gone' is not there; list the environments to see which there are"},
	} {
		_, err := f.update(test.id, test.mask, test.body)
		got := violations(err)
		if got != test.want {
			t.Errorf("%s, %s with %s:\ngot  %s\nwant %s", test.id, test.mask, test.body, got, test.want)
		}
	}
	// Terraform's provider looks for the words in the message.
	if _, err := f.update("e", "config.nodeCount", `{"config":{"nodeCount":3}}`); err == nil || err.Error() != noChange {
		t.Errorf("got %v", err)
	}
	e, err := f.Get(context.Background(), named("e"))
	if err != nil || e.State != environment.Running || e.Generation != 1 {
		t.Errorf("the environment was touched: %+v, %v", e, err)
	}
}

func TestUpdateNodeCountKeepsAddresses(t *testing.T) {
	f := newFixture(t)
	before := f.running("e", documented).Plan.NodeAddresses
	for _, n := range []int{5, 4} {
		op, err := f.update("e", "config.nodeCount", `{"config":{"nodeCount":`+string(rune('0'+n))+`}}`)
		if err != nil {
			t.Fatal(err)
		}
		e := f.end(op, environment.Running)
		if len(e.Plan.NodeAddresses) != n {
			t.Errorf("%d addresses for %d nodes", len(e.Plan.NodeAddresses), n)
		}
		for i := range before {
			if e.Plan.NodeAddresses[i] != before[i] {
				t.Errorf("node %d moved from %s to %s", i, before[i], e.Plan.NodeAddresses[i])
			}
		}
		if e.Plan.Range(address.Pods) != op.Previous.Plan.Range(address.Pods) {
			t.Error("the Pod range moved")
		}
	}
}

func TestStates(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	op, err := f.create("e", documented)
	if err != nil {
		t.Fatal(err)
	}
	const name = "projects/example-project/locations/us-central1/environments/e"
	changes := map[string]func() error{
		"update":  func() error { _, err := f.update("e", "labels", `{"labels":{"a":"b"}}`); return err },
		"check":   func() error { _, err := f.CheckUpgrade(ctx, named("e"), "", environment.CallOptions{}); return err },
		"restart": func() error { _, err := f.RestartWebServer(ctx, named("e"), environment.CallOptions{}); return err },
		"agent": func() error {
			_, err := f.UpdateAgentConfig(ctx, environment.AgentConfigRequest{Name: named("e"), Text: "resyncInterval: 30s"})
			return err
		},
	}
	busy := func(state environment.State, op *environment.Operation) {
		t.Helper()
		all := map[string]func() error{"delete": func() error { _, err := f.Delete(ctx, named("e"), environment.CallOptions{}); return err }}
		for what, change := range changes {
			all[what] = change
		}
		for what, change := range all {
			err := change()
			want := "OPERATION_IN_PROGRESS environment '" + name + "' is in state " + state.String() + ": operation '" + op.Name.String() + "' is under way; wait for it to end, then try again: sordino operations wait " + op.Name.String() + ", or the same with gcloud composer"
			if got := violations(err); got != want || environment.CodeOf(err) != environment.Aborted {
				t.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
			}
			var e *environment.Error
			if errors.As(err, &e) && (e.Metadata["operation"] != op.Name.String() || e.Metadata["state"] != state.String()) {
				t.Errorf("%s: metadata %v", what, e.Metadata)
			}
		}
	}
	busy(environment.Creating, op)
	f.end(op, environment.Running)
	if op, err = f.RestartWebServer(ctx, named("e"), environment.CallOptions{}); err != nil || !op.RestartWebServer || op.Type != environment.Update {
		t.Fatalf("restart: %+v, %v", op, err)
	}
	busy(environment.Updating, op)
	f.end(op, environment.Errored)
	for what, change := range changes {
		err := change()
		want := "ENVIRONMENT_NOT_RUNNING environment '" + name + "' is in state ERROR, and only a running one can be changed; it can only be deleted"
		if got := violations(err); got != want || environment.CodeOf(err) != environment.FailedPrecondition {
			t.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
		}
	}
	first, err := f.Delete(ctx, named("e"), environment.CallOptions{})
	if err != nil || first.Type != environment.Delete {
		t.Fatalf("delete: %+v, %v", first, err)
	}
	again, err := f.Delete(ctx, named("e"), environment.CallOptions{})
	if err != nil || again.Name != first.Name {
		t.Errorf("delete again: %+v, %v; want %s", again, err, first.Name)
	}
	if got := violations(changes["update"]()); got != "ENVIRONMENT_NOT_RUNNING environment '"+name+"' is in state DELETING, and only a running one can be changed; wait until it is gone" {
		t.Errorf("got %s", got)
	}
	if _, err := f.Delete(ctx, named("never"), environment.CallOptions{}); reason(err) != "ENVIRONMENT_NOT_FOUND" || environment.CodeOf(err) != environment.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestUpdateAgentConfig(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	f.running("e", documented)
	f.running("plain", `{}`)
	set := func(id, text string, generation int64, o environment.CallOptions) (*environment.Operation, error) {
		return f.UpdateAgentConfig(ctx, environment.AgentConfigRequest{Name: named(id), Text: text, Generation: generation, CallOptions: o})
	}
	const good = "nonMasqueradeCIDRs: [10.0.0.0/8]\n"
	for _, test := range []struct {
		id, text   string
		generation int64
		want       string
	}{
		{"plain", good, 0, "MASQ_AGENT_NOT_ENABLED environment 'projects/example-project/locations/us-central1/environments/plain' was created without the IP masquerade agent, and it cannot be enabled for an existing environment: create a new one with enableIpMasqAgent"},
		{"e", "nonMasqueradeCIDRs: [192.168.0.0/16]", 0, "agent.config AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE The agent's configuration would have traffic inside the cluster masqueraded: it does not cover the node range 10.128.0.0/20, the Pod range 10.16.0.0/14, the Service range 10.20.0.0/20. Non-masquerade destinations must at least include the cluster's node, Pod and Service ranges, because Cloud Composer uses intranode visibility. Add to nonMasqueradeCIDRs: 10.128.0.0/20, 10.16.0.0/14, 10.20.0.0/20."},
		{"e", "", 0, "agent.config UPDATE_HAS_NO_EFFECT " + noChange},
		{"e", good, 7, "AGENT_CONFIG_CHANGED the agent's configuration of environment 'projects/example-project/locations/us-central1/environments/e' has generation 1, and the change was made from 7; read it again, and repeat the change"},
		{"e", strings.Repeat("#", 1<<20+1), 0, "agent.config AGENT_CONFIG_TOO_LARGE The agent's configuration has 1048577 bytes. A ConfigMap has room for 1048576: join neighbouring ranges."},
	} {
		_, err := set(test.id, test.text, test.generation, environment.CallOptions{})
		if got := violations(err); got != test.want {
			t.Errorf("%.40q:\ngot  %s\nwant %s", test.text, got, test.want)
		}
	}
	plan, err := set("e", good, 1, environment.CallOptions{ValidateOnly: true})
	if err != nil || !plan.Done() || plan.Result.Agent.Generation != 2 {
		t.Errorf("plan: %+v, %v", plan, err)
	}
	op, err := set("e", good, 1, environment.CallOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := f.end(op, environment.Running)
	if e.Agent != (environment.AgentConfig{Text: good, Generation: 2}) || op.Previous.Agent.Generation != 1 || op.Type != environment.Update {
		t.Errorf("agent %+v, operation %+v", e.Agent, op)
	}
}

func TestCheckUpgrade(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	f.running("e", base)
	check := func(image string) (*environment.Operation, error) {
		return f.CheckUpgrade(ctx, named("e"), image, environment.CallOptions{})
	}
	for asked, want := range map[string]string{
		"": "composer-1.20.12-airflow-2.4.3", "composer-1-airflow-2.3": "composer-1.20.12-airflow-2.3.4"} {
		op, err := check(asked)
		if err != nil || op.Type != environment.Check || !op.Done() || op.Upgrade.ImageVersion != want || op.Upgrade.ContainsPypiModulesConflict.String() != "NO_CONFLICT" {
			t.Errorf("%q: %+v, %v", asked, op, err)
			continue
		}
		if stored, err := f.Operation(ctx, op.Name); err != nil || stored.Upgrade.ImageVersion != want {
			t.Errorf("%q: stored is %+v, %v", asked, stored, err)
		}
	}
	_, err := check("composer-2-airflow-2")
	if got := reason(err); got != "IMAGE_UPGRADE_NOT_ALLOWED" {
		t.Errorf("got %v", err)
	}
	if e, err := f.Get(ctx, named("e")); err != nil || e.State != environment.Running {
		t.Errorf("the environment is %+v, %v", e, err)
	}
}

// What was read can be sent back, with any mask: nothing changes (AIP-203).
func TestReadBackChangesNothing(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	for id, test := range map[string][]string{
		"base":    {base},
		"plain":   {`{}`},
		"two":     {`{"config":{"softwareConfig":{"imageVersion":"composer-2-airflow-2"},"nodeConfig":{"enableIpMasqAgent":true}}}`},
		"three":   {`{"config":{"softwareConfig":{"imageVersion":"composer-3-airflow-2"}}}`},
		"private": {`{"config":{"nodeConfig":{"ipAllocationPolicy":{"useIpAliases":true}},"privateEnvironmentConfig":{"networkingConfig":{}}}}`, "networkingType=PRIVATE", "maxPodsPerNode=16"},
		"shared":  {`{"config":{"nodeConfig":{"network":"https://www.googleapis.com/compute/v1/projects/host-project/global/networks/shared-net","subnetwork":"shared-sub","machineType":"projects/example-project/zones/us-central1-f/machineTypes/n1-standard-2","ipAllocationPolicy":{"useIpAliases":true,"clusterIpv4CidrBlock":"/20"}}}}`},
	} {
		e := f.running(id, test[0], test[1:]...)
		read := e.Spec.Clone()
		read.Config = e.Effective()
		read.MaxPodsPerNode = e.MaxPodsPerNode()
		for _, mask := range [][]string{{"*"}, {"config"}, {"config.nodeConfig"}, {"config.privateEnvironmentConfig", "config.softwareConfig.pythonVersion", "config.nodeConfig.location"}, {"labels"}} {
			_, err := f.Update(ctx, environment.UpdateRequest{Name: e.Name, Spec: read, Mask: mask})
			if got := reason(err); got != "UPDATE_HAS_NO_EFFECT" {
				t.Errorf("%s with %v: %v", id, mask, err)
			}
		}
	}
}
