package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func TestCommands(t *testing.T) {
	s := serveHere(t, nil)
	s.point(t)
	file := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}

	t.Run("nothing yet", func(t *testing.T) {
		expectCommand(t, 0, "Listed 0 items.", "", "", "environments", "list")
		if a := expectCommand(t, 0, "[]", "", "", "environments", "list", "--format=json"); a.stdout != "[]\n" {
			t.Errorf("%q", a.stdout)
		}
		expectCommand(t, 0, "Listed 0 items.", "", "", "operations", "list")
		expectCommand(t, 0, "IMAGE VERSION\ncomposer-1.20.12-airflow-1.10.15", "", "", "image-versions", "list", "--include-past-releases")
	})
	t.Run("validate only", func(t *testing.T) {
		a := expectCommand(t, 0, `Valid: the create of projects/p/locations/us-central1/environments/e would be accepted. Nothing was changed.
			network:    projects/p/global/networks/default
			nodes:      10.128.0.2, 10.128.0.3, 10.128.0.4; at most
			the agent:  never masquerades to 10.128.0.0/20, 10.
			RANGE    CIDR`, "", "", "environments", "create", "e", "--enable-ip-alias", "--enable-ip-masq-agent", "--validate-only")
		if strings.Contains(a.stdout, "operation") {
			t.Error(a.stdout)
		}
		expectCommand(t, 0, "Listed 0 items.", "", "", "environments", "list")
	})
	t.Run("create", func(t *testing.T) {
		create := []string{"environments", "create", "e", "--enable-ip-alias", "--enable-ip-masq-agent", "--labels=b=2,a=1", "--request-id=one"}
		a := expectCommand(t, 0, "Created environment e.", `operation projects/p/locations/us-central1/operations/
			successful build the network: 3 nodes with a worker Pod each
			successful start the agents: 3 agents running
			was seen as 10.128.0.2 by 203.0.113.10; the Pods of 2 other nodes likewise`, "", create...)
		if strings.Contains(a.stderr, "; \n") {
			t.Errorf("a separator with nothing behind it:\n%s", a.stderr)
		}
		// The same request again is the same operation, also afterwards.
		again := expectCommand(t, 0, "Created environment e.", "operation", "", create...)
		name := regexp.MustCompile(`operation projects/\S+`)
		if name.FindString(again.stderr) != name.FindString(a.stderr) {
			t.Errorf("%s\n%s", a.stderr, again.stderr)
		}
		expectCommand(t, 1, "", "ALREADY_EXISTS: environment 'projects/p/locations/us-central1/environments/e' exists already\n  reason: ENVIRONMENT_ALREADY_EXISTS", "", "environments", "create", "e")
		expectCommand(t, 1, "", "INVALID_ARGUMENT: Found 1 problem:\nenable", "", "environments", "create", "f", "--enable-ip-masq-agent")
	})
	if t.Failed() {
		return
	}
	t.Run("list and describe", func(t *testing.T) {
		expectCommand(t, 0, "Listed 0 items.", "note: no environment is in europe-west1, mars; project p has some in us-central1", "", "environments", "list", "--locations=europe-west1,mars")
		a := expectCommand(t, 0, "NAME  LOCATION     STATE    MASQ AGENT  CREATED\ne     us-central1  RUNNING  yes", "", "", "environments", "list")
		if !regexp.MustCompile(`(?m)yes +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`).MatchString(a.stdout) {
			t.Errorf("no time for people in\n%s", a.stdout)
		}
		var e map[string]any
		if err := json.Unmarshal([]byte(expectCommand(t, 0, "{", "", "", "environments", "describe", "e", "--format=json").stdout), &e); err != nil || e["state"] != "RUNNING" {
			t.Errorf("%v %v", err, e)
		}
		described := expectCommand(t, 0, "state: RUNNING\nenableIpMasqAgent: true", "", "", "environments", "describe", "e").stdout
		if err := yaml.Unmarshal([]byte(described), &e); err != nil || !strings.Contains(described, "labels:\n  a: \"1\"\n  b: \"2\"\n") {
			t.Errorf("%v\n%s", err, described)
		}
		expectCommand(t, 1, "", "NOT_FOUND: environment 'projects/p/locations/us-central1/environments/nope' is not there\nreason: ENVIRONMENT_NOT_FOUND", "", "environments", "describe", "nope")
	})
	t.Run("where", func(t *testing.T) {
		t.Setenv("CLOUDSDK_COMPOSER_LOCATION", "")
		expectCommand(t, 0, "state: RUNNING", "", "", "environments", "describe", "e")
		expectCommand(t, 0, "in all:", "", "", "masq", "describe", "e")
		expectCommand(t, 1, "", `no location of the project p has an environment nope; "sordino environments list" shows`, "", "environments", "describe", "nope")
		expectCommand(t, 1, "", "which location? give --location", "", "environments", "create", "x")
		expectCommand(t, 0, "state: RUNNING", "", "", "environments", "describe", "projects/p/locations/us-central1/environments/e")
		t.Setenv("SORDINO_PROJECT", "")
		expectCommand(t, 1, "", "which project? give --project, or set SORDINO_PROJECT", "", "environments", "list")
		expectCommand(t, 0, "RUNNING", "", "", "environments", "list", "--project=p")
		t.Setenv("SORDINO_SERVER", "http://127.0.0.1:1")
		expectCommand(t, 1, "", `the server http://127.0.0.1:1 cannot be reached: dial tcp 127.0.0.1:1: connect: connection refused; is "sordino serve" running there?`, "", "environments", "list", "--project=p")
		expectCommand(t, 1, "", "the server http://127.0.0.1:1 cannot be reached", "", "masq", "describe", "e", "--project=p", "--location=l")
		expectCommand(t, 1, "", "a token is not sent in the clear to another machine", "", "environments", "list", "--server=http://192.0.2.1:80")
	})
	t.Run("complete", func(t *testing.T) {
		expectCommand(t, 0, "e\tRUNNING\n:4", "Completion", "", cobra.ShellCompRequestCmd, "environments", "describe", "")
		expectCommand(t, 0, "e\tRUNNING", "Completion", "", cobra.ShellCompRequestCmd, "masq", "set", "--server="+s.url, "")
		expectCommand(t, 0, ":4", "Completion", "", cobra.ShellCompRequestCmd, "environments", "describe", "--server=http://127.0.0.1:1", "")
		for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
			expectCommand(t, 0, "sordino", "", "", "completion", shell)
		}
	})
	t.Run("update", func(t *testing.T) {
		expectCommand(t, 1, "", "nothing to change: give one of the flags", "", "environments", "update", "e")
		expectCommand(t, 1, "", "INVALID_ARGUMENT: Update request does not result in any change\nreason: UPDATE_HAS_NO_EFFECT", "", "environments", "update", "e", "--node-count=3")
		expectCommand(t, 1, "", "reason: UPDATE_TYPES_MIXED\nsee: ", "", "environments", "update", "e", "--node-count=4", "--update-labels=c=3")
		expectCommand(t, 0, "Valid: the update of", "", "", "environments", "update", "e", "--node-count=4", "--validate-only")
		a := expectCommand(t, 0, "type:        UPDATE", "", "", "environments", "update", "e", "--node-count=4", "--async")
		id := regexp.MustCompile(`operations/(\S+)`).FindStringSubmatch(a.stdout)[1]
		expectCommand(t, 0, "state:       SUCCESSFUL\nstep:        successful build the network: 4 nodes with a worker Pod each\nended:", "successful prove it with a packet", "", "operations", "wait", id)
		expectCommand(t, 0, "state:       SUCCESSFUL", "", "", "operations", "describe", id)
		expectCommand(t, 0, "OPERATION\nUPDATE  e            SUCCESSFUL", "", "", "operations", "list")
		expectCommand(t, 0, "Updated environment e.", "operation", "", "environments", "update", "e", "--remove-labels=a", "--update-labels=c=3")
		expectCommand(t, 0, "labels:\n  b: \"2\"\n  c: \"3\"", "", "", "environments", "describe", "e")
		// As with gcloud, a package is what a requirements file says of it.
		expectCommand(t, 0, "Updated environment e.", "operation", "", "environments", "update", "e", "--update-pypi-package=scipy[all]>=1.2,<2", "--update-pypi-package=numpy")
		expectCommand(t, 0, "pypiPackages:\nnumpy: \"\"\nscipy: '[all]>=1.2,<2'", "", "", "environments", "describe", "e")
		expectCommand(t, 1, "", "--update-pypi-package: \"==1\" is not a package", "", "environments", "update", "e", "--update-pypi-package===1")
		expectCommand(t, 0, "Updated environment e.", "operation", "", "environments", "update", "e",
			"--update-pypi-packages-from-file", file("requirements.txt", "# what we need\npandas==1.1 # newest\n\nnumpy\n"))
		expectCommand(t, 0, "pandas: ==1.1", "", "", "environments", "describe", "e")
		expectCommand(t, 0, "Updated environment e.", "operation", "", "environments", "update", "e", "--maintenance-window-start=2026-01-01T01:00:00Z",
			"--maintenance-window-end=2026-01-01T13:00:00Z", "--maintenance-window-recurrence=FREQ=WEEKLY;BYDAY=SA")
		expectCommand(t, 0, "maintenanceWindow:\nrecurrence: FREQ=WEEKLY;BYDAY=SA", "", "", "environments", "describe", "e")
		expectCommand(t, 0, "Updated environment e.", "operation", "", "environments", "update", "e", "--clear-maintenance-window")
		if a := expectCommand(t, 0, "state: RUNNING", "", "", "environments", "describe", "e"); strings.Contains(a.stdout, "maintenanceWindow") {
			t.Error(a.stdout)
		}
		expectCommand(t, 0, "", "", "", "operations", "delete", id)
		expectCommand(t, 1, "", "NOT_FOUND: operation", "", "operations", "describe", id)
	})
	t.Run("masq", func(t *testing.T) {
		bad := file("bad.yaml", "nonMasqueradeCIDRs: [10.0.0.0/99]\n")
		expectCommand(t, 1, "", "INVALID_ARGUMENT: Found 1 problem:\nconfig:1:22\nreason: AGENT_CONFIG_INVALID", "", "masq", "set", "e", bad)
		expectCommand(t, 1, "", "INVALID_ARGUMENT: Found 1 problem:\nconfig:1:22", "", "masq", "plan", "e", bad)
		expectCommand(t, 1, "", "name a file, or give --defaults", "", "masq", "set", "e")
		expectCommand(t, 1, "", "is empty; to go back to the defaults give --defaults", "", "masq", "set", "e", file("empty", " \n"))
		good := file("good.yaml", "nonMasqueradeCIDRs: [10.0.0.0/8, 198.51.100.0/24]\n")
		expectCommand(t, 2, "node-1: set exempt4: 1 range added (198.51.100.0/24)\nnode-4: ", "", "", "masq", "plan", "e", good)
		expectCommand(t, 0, "Valid: the configuration would be accepted.", "", "", "masq", "set", "e", good, "--validate-only")
		expectCommand(t, 0, `"done": true`, "", "", "masq", "set", "e", good, "--validate-only", "--format=json")
		expectCommand(t, 1, "", "ABORTED: ", "", "masq", "set", "e", good, "--etag=77")
		expectCommand(t, 0, "All nodes of e hold the configuration.", "successful configure the agent of node-4", "", "masq", "set", "e", good)
		expectCommand(t, 0, "node-1: no changes", "", "", "masq", "plan", "e", good)
		expectCommand(t, 0, `config:
			nonMasqueradeCIDRs: [10.0.0.0/8, 198.51.100.0/24]
			exempt:     10.128.0.0/20, the cluster's node range
			in all:     Pods keep their address towards 10.0.0.0/8, 169.254.0.0/16, 198.51.100.0/24
			proof:
			NODE    ADDRESS
			node-4`, "", "", "masq", "describe", "e")
		var agent struct {
			InForce bool   `json:"inForce"`
			Proof   string `json:"proof"`
			Nodes   []any  `json:"nodes"`
		}
		if err := json.Unmarshal([]byte(expectCommand(t, 0, "{", "", "", "masq", "describe", "e", "--format=json").stdout), &agent); err != nil || !agent.InForce || agent.Proof == "" || len(agent.Nodes) != 4 {
			t.Errorf("%v %+v", err, agent)
		}
		pod := strings.TrimSpace(expectCommand(t, 0, "10.", "", "", "environments", "run", "e", "--node=node-2", "--", "sh", "-c", "ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'").stdout)
		expectCommand(t, 0, "node-2: exempt: 198.51.100.1 is inside 198.51.100.0/24\ndecided:  198.51.100.0/24, from ip-masq-agent:1:34\nseen as:  "+pod, "", "", "masq", "explain", "e", "--src", pod, "--dst", "198.51.100.1")
		expectCommand(t, 0, "node-2: masquerade:\nseen as:  10.128.0.3", "", "", "masq", "explain", "e", "--src", pod, "--dst", "203.0.113.10")
		expectCommand(t, 0, "The source is no Pod of this environment; this is what each node would do with it:\nnode-4:", "", "", "masq", "explain", "e", "--src", "192.0.2.1", "--dst", "203.0.113.10")
		expectCommand(t, 1, "", "INVALID_ARGUMENT: Found 2 problems:\nThe source 'x' is not an address\nThe destination 'y'", "", "masq", "explain", "e", "--src", "x", "--dst", "y")

		// A node that rejects it stops the roll-out, and all go back.
		rejected := file("rejected.yaml", "nonMasqueradeCIDRs: [10.0.0.0/8]\nsnatAddress: 192.0.2.77\n")
		expectCommand(t, 1, "node-1: the agent refuses: \nsnatAddress 192.0.2.77/32: this node has no address in it", "", "", "masq", "plan", "e", rejected)
		expectCommand(t, 1, "", "failed    configure the agent of node-1\nsuccessful roll back: prove it with a packet\nfailed: update of projects/p/locations/us-central1/environments/e: configure the agent of node-1: node-1 rejects the agent's configuration, and keeps the last good one: ip-masq-agent:2:14: snatAddress 192.0.2.77/32: this node has no address in it; it has 10.128.0.2", "", "masq", "set", "e", rejected)
		expectCommand(t, 0, "nonMasqueradeCIDRs: [10.0.0.0/8, 198.51.100.0/24]\nready", "", "", "masq", "describe", "e")
		expectCommand(t, 0, "All nodes of e hold the configuration.", "operation", "", "masq", "set", "e", "--defaults")
		expectCommand(t, 0, "config:     none, so the defaults hold", "", "", "masq", "describe", "e")
	})
	t.Run("run", func(t *testing.T) {
		if a := expectCommand(t, 7, "in\n", "err\n", "in\n", "environments", "run", "e", "--", "sh", "-c", "cat; echo err >&2; exit 7"); a.stdout != "in\n" || a.stderr != "err\n" {
			t.Errorf("%+v", a)
		}
		expectCommand(t, 137, "", "", "", "environments", "run", "e", "--", "sh", "-c", "kill -9 $$")
		expectCommand(t, 127, "", `the Pod airflow-worker-1: starting the command: exec: "no-such-command": executable file not found`, "", "environments", "run", "e", "--", "no-such-command")
		expectCommand(t, 1, "", "NOT_FOUND: there is no node \"node-x\"", "", "environments", "run", "e", "--node=node-x", "--", "true")
		if a := command(t, strings.Repeat("0123456789abcde\n", 1<<17), "environments", "run", "e", "--", "wc", "-c"); strings.TrimSpace(a.stdout) != fmt.Sprint(1<<21) {
			t.Errorf("%+v", a)
		}
	})
	t.Run("without the agent", func(t *testing.T) {
		expectCommand(t, 0, "Created environment plain.", "kept its own address towards", "", "environments", "create", "plain")
		expectCommand(t, 1, "", "FAILED_PRECONDITION: environment 'projects/p/locations/us-central1/environments/plain' was created without the IP masquerade agent\nreason: MASQ_AGENT_NOT_ENABLED", "", "masq", "describe", "plain")
	})
	t.Run("delete", func(t *testing.T) {
		expectCommand(t, 1, "", "Deletes projects/p/locations/us-central1/environments/plain.\nContinue? (y/N)\nnothing was deleted; answer y, or give --quiet", "n\n", "environments", "delete", "plain")
		expectCommand(t, 1, "", "nothing was deleted", "", "environments", "delete", "plain")
		expectCommand(t, 0, "Deleted environment plain.", "Continue?\noperation", "y\n", "environments", "delete", "plain")
		expectCommand(t, 1, "Deleted environment e.", "operation\nprojects/p/locations/us-central1/environments/gone: NOT_FOUND: ", "", "environments", "delete", "--quiet", "gone", "e")
		expectCommand(t, 0, "Listed 0 items.", "", "", "environments", "list")
		if strings.Contains(s.log.String(), "state=DELETING") {
			t.Errorf("a deleted environment has no state:\n%s", s.log)
		}
	})
	t.Run("help", func(t *testing.T) {
		for _, args := range []string{"", "serve", "env", "env gcloud", "env terraform", "env sordino", "token", "environments", "environments create", "environments describe",
			"environments list", "environments update", "environments delete", "environments run", "operations", "operations list", "operations describe", "operations wait",
			"operations delete", "image-versions list", "masq", "masq describe", "masq set", "masq explain", "masq plan", "completion"} {
			expectCommand(t, 0, "Usage:", "", "", append(strings.Fields(args), "--help")...)
		}
		expectCommand(t, 1, "", "--format \"table\": write json or yaml", "", "environments", "list", "--format=table")
		expectCommand(t, 1, "", "unknown flag: --nodes", "", "environments", "create", "x", "--nodes=3")
	})
}

// What "env" prints is for a shell's eval, whatever is in the values.
func TestEnvIsForAShell(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's a $HOME folder")
	for _, kind := range []string{"gcloud", "terraform", "sordino"} {
		a := expectCommand(t, 0, "export", "", "", "env", kind, "--data", dir, "--listen=0.0.0.0:8443", "--tls-cert=cert's.pem", "--project=example.com:p")
		cmd := "set -eu; eval \"$(cat)\"; env"
		out := shell(t, a.stdout, cmd)
		want := map[string]string{
			"gcloud":    "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPOSER=https://127.0.0.1:8443/\nCLOUDSDK_AUTH_ACCESS_TOKEN_FILE=" + dir + "/token\nCLOUDSDK_CORE_PROJECT=example.com:p\ncert's.pem\nno_proxy=127.0.0.1,localhost",
			"terraform": "GOOGLE_COMPOSER_CUSTOM_ENDPOINT=https://127.0.0.1:8443/v1beta1/\nGOOGLE_OAUTH_ACCESS_TOKEN=sordino_\nGOOGLE_PROJECT=example.com:p",
			"sordino":   "SORDINO_SERVER=https://127.0.0.1:8443\nSORDINO_TOKEN_FILE=" + dir + "/token\nSORDINO_CA_FILE=/\nSORDINO_PROJECT=example.com:p",
		}[kind]
		for line := range strings.Lines(want) {
			if !strings.Contains(out, strings.TrimSuffix(line, "\n")) {
				t.Errorf("%s: %q is not in\n%s", kind, line, out)
			}
		}
	}
	info, err := os.Stat(filepath.Join(dir, "token"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	expectCommand(t, 1, "", "which port the server got cannot be known; give its URL with --url", "", "env", "gcloud", "--data", dir, "--listen=127.0.0.1:0")
	expectCommand(t, 1, "", "--listen \"x\": write ADDRESS:PORT", "", "env", "gcloud", "--data", dir, "--listen=x")
}

func shell(t *testing.T, stdin, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}
