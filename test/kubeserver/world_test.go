// Package kubeserver runs the server as people do, with environments on three real
// nodes: it is created by gcloud, judged by what a service outside sees, and
// killed at every step.
//
// All tests share one cluster, one after the other; each leaves it free. The
// server has the rights of deploy/target-cluster and no others.
//
// To debug it, set SORDINO_KUBETEST_KEEP=1 and run one test with -v: a failed
// test prints the server's log, the Pods and the Events.
package kubeserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"sordino/deploy/images"
	"sordino/internal/kubetest"
	"sordino/internal/probe"
	"sordino/internal/testprogram"
	"sordino/internal/testserver"
	"sordino/internal/testwait"
)

var (
	cluster *kubetest.Cluster
	unmet   *kubetest.Unmet
)

func TestMain(m *testing.M) {
	os.Exit(func() (status int) {
		dir, err := os.MkdirTemp("", "sordino-clusters-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := begin(dir); err != nil {
			if unmet = kubetest.Skippable(err); unmet == nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		if cluster != nil {
			defer func() {
				if err := cluster.Close(); err != nil {
					fmt.Fprintln(os.Stderr, err)
					status = 1
				}
			}()
		}
		return m.Run()
	}())
}

// begin packs the programs into their images and starts the cluster.
func begin(dir string) error {
	binaries, err := testprogram.Built()
	if err != nil {
		return err
	}
	archive := filepath.Join(dir, "images.tar")
	if err := images.WriteTar(archive, "latest", images.Platform{Architecture: runtime.GOARCH, Binaries: binaries}, images.Agent, images.Server); err != nil {
		return err
	}
	ctx := context.Background()
	if cluster, err = kubetest.New(ctx, kubetest.Options{Nodes: 3, Images: []string{archive}}); err != nil {
		return err
	}
	_, err = cluster.TryKubectl(ctx, "", "apply", "-k", "../../deploy/target-cluster")
	return err
}

// world is a server whose environments are on the cluster.
type world struct {
	t *testing.T
	*testserver.Test
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if unmet != nil {
		t.Skip(unmet)
	}
	dir := t.TempDir()
	token, err := cluster.ServiceAccountToken(t.Context(), "sordino-system", "sordino")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"kubeconfig": fmt.Sprintf(`{apiVersion: v1, kind: Config,
  clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}],
  users: [{name: server, user: {token: %q}}],
  contexts: [{name: one, context: {cluster: test, user: server}}]}
`, cluster.Server(), cluster.CA(), token),
		"clusters.yaml": fmt.Sprintf("clusters:\n- {name: cluster-1, location: us-central1, kubeconfig: kubeconfig, context: one, nodeRange: %s, podRange: %s, probe: \"%s:%d\"}\n",
			kubetest.NodeRange, kubetest.PodRange, kubetest.ServiceAddress, probe.Port),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"}, {"get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.metadata.annotations}{" "}{.status.conditions[?(@.type=="IPMasqueradeReady")]}{"\n"}{end}`}} {
			out, err := cluster.TryKubectl(context.Background(), "", args...)
			t.Logf("kubectl %s (%v):\n%s", strings.Join(args, " "), err, out)
		}
	})
	return &world{t, testserver.Start(t, testserver.Options{Data: filepath.Join(dir, "data"), Args: []string{"--verbose",
		"--clusters", filepath.Join(dir, "clusters.yaml"), "--agent-image", "localhost/ip-masq-agent:latest", "--sordino-image", "localhost/sordino:latest"}})}
}

func (w *world) eventually(ask func() error) {
	w.t.Helper()
	testwait.Until(w.t, 3*time.Minute, 200*time.Millisecond, ask)
}

const (
	location = "projects/p/locations/us-central1"
	example  = location + "/environments/example-environment"
)

func (w *world) create() string {
	w.t.Helper()
	return w.Accepted("POST", "/v1beta1/"+location+"/environments",
		fmt.Sprintf(`{"name": %q, "config": {"nodeConfig": {"enableIpMasqAgent": true, "ipAllocationPolicy": {"useIpAliases": true}}}}`, example))
}

func (w *world) configure(config string) string {
	w.t.Helper()
	return w.Accepted("PATCH", "/v1/"+example+"/masqAgent", fmt.Sprintf(`{"config": %q}`, config))
}

// inForce waits until the environment is what it should be on so many nodes.
func (w *world) inForce(nodes int) (m testserver.MasqAgent) {
	w.t.Helper()
	w.eventually(func() (err error) {
		if m, err = w.MasqAgent(w.t.Context(), example); err == nil && (!m.InForce || len(m.Nodes) != nodes) {
			err = fmt.Errorf("not in force on %d nodes: %+v", nodes, m)
		}
		return err
	})
	return m
}

// free checks that nothing of an environment is left on the cluster.
func (w *world) free() {
	w.t.Helper()
	left := cluster.Kubectl(w.t, "", "get", "daemonsets,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,validatingadmissionpolicies,namespaces", "-A", "-l", "sordino.dev/environment", "-o", "name")
	if left != "" {
		w.t.Errorf("left over:\n%s", left)
	}
	nodes := cluster.Kubectl(w.t, "", "get", "nodes", "-o", "jsonpath={.items[*].metadata.annotations} {.items[*].status.conditions[*].type}")
	if strings.Contains(nodes, "sordino.dev/") || strings.Contains(nodes, "IPMasqueradeReady") {
		w.t.Errorf("left on the Nodes: %s", nodes)
	}
}

// client is a program for which "sordino env" sets what it needs: gcloud, or
// "sordino" as a client of the server.
func (w *world) client(name string, args ...string) *exec.Cmd {
	w.t.Helper()
	vars, err := w.Env(w.t.Context(), name, "--project", "p")
	if err != nil {
		w.t.Fatal(err)
	}
	if name == "sordino" {
		name = w.Program
	}
	cmd := exec.CommandContext(w.t.Context(), name, args...)
	cmd.Env = append(vars, "PATH="+os.Getenv("PATH"))
	return cmd
}

// program runs "sordino" as a client, and returns its standard output.
func (w *world) program(args ...string) (string, error) {
	w.t.Helper()
	out, err := w.client("sordino", args...).Output()
	return string(out), err
}
