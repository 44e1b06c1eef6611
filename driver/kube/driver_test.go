package kubedriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sordino/clusters"
	"sordino/driver"
	"sordino/environment"
	"sordino/masq/kube"
	"sordino/reconcile"
)

const (
	config1 = "nonMasqueradeCIDRs: [10.88.0.0/16, 10.89.0.0/24, 10.96.0.0/16]\n"
	config2 = "nonMasqueradeCIDRs: [10.88.0.0/16, 10.89.0.0/24, 10.96.0.0/16, 203.0.113.0/24]\n"
)

func TestEnvironmentIsMadeChangedAndRemoved(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	d, e := w.driver("server-1"), newEnvironment(config1)
	began := time.Now()
	details := w.ensure(d, e)
	t.Logf("made in %v: %q", time.Since(began), details)
	w.eventually(func() error { return w.inPlace(d, e) })
	if got := details["prove it with a packet"]; !strings.HasPrefix(got, "not proven: the cluster cluster-1 has no probe target") {
		t.Errorf("without a target: %q", got)
	}
	args := w.kubectl("get", "daemonset", "-n", "kube-system", "ip-masq-agent", "-o", "jsonpath={.spec.template.spec.containers[0].args} {.spec.template.spec.containers[0].image}")
	if !strings.Contains(args, "--node-cidrs=10.89.0.0/24") || !strings.Contains(args, "--pod-cidrs=10.88.0.0/16") || !strings.Contains(args, "--service-cidrs=10.96.0.0/16") || !strings.HasSuffix(args, "localhost/ip-masq-agent:test") {
		t.Errorf("the agent runs with %s", args)
	}

	// Again changes nothing.
	versionsOf := func(e *environment.Environment) string {
		return w.kubectl("get", "daemonsets,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings", "-A", "-l", "sordino.dev/environment="+e.UUID,
			"-o", `jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.uid} {.metadata.generation}{"\n"}{end}`)
	}
	versions := func() string { return versionsOf(e) }
	before := versions()
	w.ensure(d, e)
	if after := versions(); before != after {
		t.Errorf("a second run changed\n%s\nto\n%s", before, after)
	}

	e.Generation, e.Agent = 2, environment.AgentConfig{Generation: 2, Text: config2}
	if err := w.inPlace(d, e); err == nil {
		t.Error("a new configuration is in place before it was applied")
	}
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })

	for range 2 { // again is no error
		details, err := run(t.Context(), d.Remove(e))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%q", details)
	}
	if left := versions(); left != "" {
		t.Errorf("left over:\n%s", left)
	}
	if got := w.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.conditions[*].type} {.items[*].metadata.annotations}"); strings.Contains(got, kube.ConditionType) || strings.Contains(got, kube.AnnotationPrefix) {
		t.Errorf("left on the Nodes: %s", got)
	}
	// A claim that was deleted by hand keeps nothing from being cleaned up.
	again := newEnvironment(config1)
	w.ensure(d, again)
	w.kubectl("delete", "namespace", "sordino")
	if details, err := run(t.Context(), d.Remove(again)); err != nil || details["take the rules away"] != "rules and conditions removed on 3 nodes" {
		t.Errorf("%q, %v", details, err)
	}
	if left := versionsOf(again); left != "" {
		t.Errorf("left over without a claim:\n%s", left)
	}
	if o, err := d.Observe(t.Context(), e); err != nil || o.Generation != 0 || len(o.Nodes) != 3 || o.Nodes[0].Ready {
		t.Errorf("after the removal: %+v, %v", o, err)
	}
}

func TestClusterOfAnotherEnvironment(t *testing.T) {
	w := newWorld(t, "n1")
	d, e, other := w.driver("server-1"), newEnvironment(""), newEnvironment("")
	other.Name.ID = "another"
	w.ensure(d, e)
	_, err := run(t.Context(), d.Ensure(other))
	var final *environment.Error
	if !errors.As(err, &final) || final.Reason != "CLUSTER_CLAIMED" || !strings.Contains(final.Message, e.Name.String()) || !strings.Contains(final.Message, e.UUID) {
		t.Fatalf("got %v", err)
	}
	// Nor does its removal touch anything.
	if _, err := run(t.Context(), d.Remove(other)); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error { return w.inPlace(d, e) })
	// Another server's claims are not pruned, one's own are.
	if removed, err := w.driver("server-2").Prune(t.Context(), nil); err != nil || removed != nil {
		t.Errorf("another server pruned %v, %v", removed, err)
	}
	if removed, err := d.Prune(t.Context(), map[string]bool{e.UUID: true}); err != nil || removed != nil {
		t.Errorf("pruned what is to be kept: %v, %v", removed, err)
	}
	w.eventually(func() error { return w.inPlace(d, e) })
	if removed, err := d.Prune(t.Context(), nil); err != nil || !slices.Equal(removed, []string{e.UUID}) {
		t.Errorf("pruned %v, %v", removed, err)
	}
	if got := w.kubectl("get", "daemonsets", "-A", "-o", "name"); got != "" {
		t.Errorf("left over: %s", got)
	}
}

func TestWhatIsThereIsNotOverwritten(t *testing.T) {
	w := newWorld(t, "n1")
	d, e := w.driver("server-1"), newEnvironment(config1)
	const upstream = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ip-masq-agent, namespace: kube-system, labels: {k8s-app: ip-masq-agent}}
spec:
  selector: {matchLabels: {k8s-app: ip-masq-agent}}
  template:
    metadata: {labels: {k8s-app: ip-masq-agent}}
    spec:
      hostNetwork: true
      containers:
      - name: ip-masq-agent
        image: registry.k8s.io/networking/ip-masq-agent:v2.12.6
        args: [--masq-chain=IP-MASQ]
        securityContext: {privileged: true}
        volumeMounts: [{name: config, mountPath: /etc/config}, {name: more, mountPath: /more}]
      volumes:
      - {name: config, configMap: {name: ip-masq-agent, optional: true}}
      - {name: more, emptyDir: {}}
`
	w.k.Kubectl(t, upstream, "apply", "-f", "-")
	generation := func() string {
		return w.kubectl("get", "daemonset", "-n", "kube-system", "ip-masq-agent", "-o", "jsonpath={.metadata.generation} {.metadata.labels}")
	}
	before := generation()
	_, err := run(t.Context(), d.Ensure(e))
	var final *environment.Error
	if !errors.As(err, &final) || final.Reason != "CLUSTER_OBJECT_CONFLICT" {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"DaemonSet kube-system/ip-masq-agent: kubectl-client-side-apply has set .spec.template.spec.",
		"\n\tkubectl --kubeconfig " + w.k.Kubeconfig() + " --context admin -n kube-system label daemonset ip-masq-agent sordino.dev/environment="} {
		if !strings.Contains(final.Message, want) {
			t.Errorf("%q is not in %s", want, final.Message)
		}
	}
	if after := generation(); before != after {
		t.Errorf("it was overwritten: %s, %s", before, after)
	}
	if got := w.kubectl("get", "configmaps,serviceaccounts", "-n", "kube-system", "-l", "sordino.dev/environment", "-o", "name"); got != "" {
		t.Errorf("something was applied all the same: %s", got)
	}
	// What was there before stays when the environment goes.
	if _, err := run(t.Context(), d.Remove(e)); err != nil {
		t.Fatal(err)
	}
	if after := generation(); before != after {
		t.Errorf("the removal touched it: %s, %s", before, after)
	}

	// An environment without the agent goes beside it, and says so.
	without := newEnvironment("")
	without.Spec.Config.NodeConfig.EnableIpMasqAgent = false
	details := w.ensure(d, without)
	if got := details["apply the workers"]; !strings.Contains(got, "a DaemonSet kube-system/ip-masq-agent that is not this environment's") {
		t.Errorf("without the agent: %q", details)
	}
	w.eventually(func() error { return w.inPlace(d, without) })
	if _, err := run(t.Context(), d.Remove(without)); err != nil {
		t.Fatal(err)
	}
	if after := generation(); before != after {
		t.Errorf("an environment without the agent touched it: %s, %s", before, after)
	}

	// Handed over, nothing of the former is left in it.
	w.kubectl("label", "daemonset", "-n", "kube-system", "ip-masq-agent", "sordino.dev/environment=")
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })
	spec := w.kubectl("get", "daemonset", "-n", "kube-system", "ip-masq-agent", "-o", "jsonpath={.spec.template.spec}")
	if strings.Contains(spec, "privileged") || strings.Contains(spec, "/more") {
		t.Errorf("handed over, and still %s", spec)
	}
}

func TestDriftIsRepairedAndTold(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	d, e := w.driver("server-1"), newEnvironment(config1)
	w.ensure(d, e)
	saw, forget := w.watch(d)
	w.eventually(func() error {
		if !saw(e.UUID) {
			return errors.New("nothing was told when listening began")
		}
		return nil
	})
	for _, test := range []struct {
		what string
		do   []string
		told string // by a step
	}{
		{"another image", []string{"set", "image", "-n", "kube-system", "daemonset/ip-masq-agent", "ip-masq-agent=else:1"}, "kubectl-set has set .spec.template.spec.containers[name=\"ip-masq-agent\"].image"},
		{"a node selector", []string{"patch", "daemonset", "-n", "kube-system", "ip-masq-agent", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"no":"where"}}}}}`}, "kubectl-patch has set .spec.template.spec.nodeSelector"},
		{"another configuration", []string{"patch", "configmap", "-n", "kube-system", "ip-masq-agent", "-p", `{"data":{"config":"nonMasqueradeCIDRs: []"}}`}, "kubectl-patch has set .data.config"},
		{"fewer rights", []string{"patch", "clusterrole", "ip-masq-agent", "--type=json", "-p", `[{"op":"remove","path":"/rules/0"}]`}, "kubectl-patch has set .rules"},
		{"a token for every Pod", []string{"patch", "serviceaccount", "-n", "kube-system", "ip-masq-agent", "-p", `{"automountServiceAccountToken":true}`}, "kubectl-patch has set .automountServiceAccountToken"},
		{"the processes of the node", []string{"patch", "daemonset", "-n", "kube-system", "ip-masq-agent", "-p", `{"spec":{"template":{"spec":{"hostPID":true}}}}`}, "it should be again: .spec.template.spec.hostPID"},
		{"another level of Pod security", []string{"label", "namespace", "sordino", "--overwrite", "pod-security.kubernetes.io/enforce=restricted"}, "kubectl-label has set .metadata.labels.pod-security.kubernetes.io/enforce"},
		{"no level of Pod security", []string{"label", "namespace", "sordino", "pod-security.kubernetes.io/enforce-"}, ""},
		{"no server", []string{"annotate", "namespace", "sordino", "sordino.dev/server-"}, ""},
		{"no workers", []string{"delete", "daemonset", "-n", "sordino", "airflow-worker"}, "DaemonSet sordino/airflow-worker was missing, and is there again"},
		{"no account", []string{"delete", "serviceaccount", "-n", "kube-system", "ip-masq-agent"}, "ServiceAccount kube-system/ip-masq-agent was missing, and is there again"},
		{"no configuration", []string{"delete", "configmap", "-n", "kube-system", "ip-masq-agent"}, "ConfigMap kube-system/ip-masq-agent was missing, and is there again"},
		{"a Pod deleted", []string{"delete", "pods", "-n", "sordino", "-l", "app=airflow-worker", "--wait=false"}, ""},
	} {
		forget()
		w.kubectl(test.do...)
		w.eventually(func() error {
			if !saw(e.UUID) {
				return errors.New(test.what + ": no check was asked for")
			}
			return nil
		})
		if err := w.inPlace(d, e); err == nil && test.what != "a Pod deleted" && test.what != "no workers" {
			t.Errorf("%s: it counts as in place", test.what)
		}
		details := w.ensure(d, e)
		if all := details["claim the cluster"] + details["apply the agent"] + details["apply the workers"]; !strings.Contains(all, test.told) {
			t.Errorf("%s: told %q, want %q", test.what, all, test.told)
		}
		w.eventually(func() error { return w.inPlace(d, e) })
	}
	// A restart by kubectl is nobody's mistake.
	w.kubectl("rollout", "restart", "-n", "kube-system", "daemonset/ip-masq-agent")
	details := w.ensure(d, e)
	if got := details["apply the agent"]; strings.Contains(got, "was changed") {
		t.Errorf("a restart is drift: %q", got)
	}
	// A node that joins.
	forget()
	w.addNode("n3", 13)
	w.eventually(func() error {
		if !saw(e.UUID) {
			return errors.New("no check was asked for")
		}
		return nil
	})
	if err := w.inPlace(d, e); err == nil {
		t.Error("a node that has sent no packet counts as in place")
	}
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })
	// One that is made again under its name is another.
	// The DaemonSets' controller, which has seen it go, does not count the new one
	// while the Pods of the former are there.
	w.kubectl("delete", "node", "n3")
	w.eventually(func() error {
		is, err := get[daemonSet](t.Context(), w.c, daemonSets, agentNamespace, agentName)
		if err == nil && is.Status.DesiredNumberScheduled != 2 {
			err = fmt.Errorf("%+v", is.Status)
		}
		return err
	})
	w.addNode("n3", 13)
	w.eventually(func() error {
		o, err := d.Observe(t.Context(), e)
		if err == nil && o.Generation == e.Generation {
			t.Fatal("a node that was made again counts as proven")
		}
		for _, n := range o.Nodes {
			if err == nil && !n.Ready {
				err = errors.New(n.Error)
			}
		}
		return err
	})
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })
	// A node that the agents do not count among the cluster's.
	w.addNodeAt("n4", "10.77.0.14", "10.88.4.0/24")
	w.eventually(func() error {
		o, err := d.Observe(t.Context(), e)
		if err == nil && (len(o.Nodes) != 4 || !strings.HasPrefix(o.Nodes[3].Error, "its address 10.77.0.14 is not in the environment's node range 10.89.0.0/24")) {
			err = fmt.Errorf("%+v", o.Nodes)
		}
		return err
	})
}

func TestRejectedConfiguration(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.set(func() { w.reject["n2"] = "203.0.113.0" })
	d, e := w.driver("server-1"), newEnvironment(config1)
	w.ensure(d, e)
	e.Generation, e.Agent = 2, environment.AgentConfig{Generation: 2, Text: config2}
	_, err := run(t.Context(), d.Ensure(e))
	var final *environment.Error
	if !errors.As(err, &final) || final.Reason != "AGENT_CONFIG_REJECTED" || final.Metadata["node"] != "n2" || !strings.Contains(final.Message, "ip-masq-agent:1:1") {
		t.Fatalf("got %v", err)
	}
	if err := w.inPlace(d, e); err == nil {
		t.Error("a rejected configuration counts as in place")
	}
	e.Generation, e.Agent = 3, environment.AgentConfig{Generation: 3, Text: config1}
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })
}

func TestErrorsNameThePod(t *testing.T) {
	w := newWorld(t, "n1")
	w.set(func() { w.waiting[agentSet.name] = "ImagePullBackOff" })
	d, e := w.driver("server-1"), newEnvironment("")
	steps := d.Ensure(e)
	if _, err := run(t.Context(), steps[:3]); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error { // the Pod is told of when its kubelet has said something
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := steps[3].Do(ctx)
		for _, want := range []string{"cluster cluster-1 at https://", "the DaemonSet kube-system/ip-masq-agent is ready on 0 of 1 nodes", "the Pod ip-masq-agent-", " on n1 waits: container ip-masq-agent: ImagePullBackOff as the test wants", "import the image on the nodes, or start the server with --agent-image"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				return fmt.Errorf("got %w, want %q", err, want)
			}
		}
		var final *environment.Error
		if errors.As(err, &final) {
			t.Error("it would not be tried again")
		}
		return nil
	})
	const want = "waits: container ip-masq-agent: ImagePullBackOff as the test wants"
	if answers, err := d.Explain(t.Context(), e, driver.Flow{}); err != nil || len(answers) != 1 || answers[0].Err == nil || !strings.Contains(answers[0].Err.Error(), want) {
		t.Errorf("explained: %+v, %v; want %q", answers, err, want)
	}
}

// driverOf has one cluster, whatever it is that answers there.
func driverOf(t *testing.T, url string) *Driver {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kubeconfig"), fmt.Appendf(nil, `{apiVersion: v1, kind: Config,
  clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {token: t}}], contexts: [{name: one, context: {cluster: c, user: u}}]}`, url), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := clusters.Parse(filepath.Join(dir, "clusters.yaml"), []byte("clusters: [{name: cluster-1, location: l, kubeconfig: kubeconfig, context: one, nodeRange: 10.89.0.0/24, podRange: 10.88.0.0/16}]"))
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Clusters: all, Server: "s", Now: time.Now, Log: slog.New(slog.DiscardHandler)})
}

// What stands between may end every watch as soon as it begins.
func TestWatchesThatEndAtOnce(t *testing.T) {
	const enough = 5
	asked := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("Content-Type", "application/json")
		select {
		case asked <- struct{}{}:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	d := driverOf(t, server.URL)
	c, err := d.connect("cluster-1")
	if err != nil {
		t.Fatal(err)
	}
	for what, watch := range map[string]func(ctx context.Context){
		"listen": func(ctx context.Context) { _ = d.Watch(ctx, func(string) {}) },
		"follow": func(ctx context.Context) { c.follow(ctx, []selection{claimSelection}, func() {}) },
	} {
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { watch(ctx) })
		<-asked
		began := time.Now()
		for range enough {
			<-asked
		}
		if took := time.Since(began); took < (enough-1)*firstRetry {
			t.Errorf("%s: asked %d times within %v", what, enough, took)
		}
		stop()
		running.Wait()
	}
}

// A cluster that does not answer is named, and tried again.
func TestClusterThatDoesNotAnswer(t *testing.T) {
	d, e := driverOf(t, "https://127.0.0.1:1"), newEnvironment("")
	for what, steps := range map[string][]reconcile.Step{"ensure": d.Ensure(e), "remove": d.Remove(e)} {
		_, err := steps[0].Do(t.Context())
		var final *environment.Error
		if err == nil || errors.As(err, &final) || !strings.Contains(err.Error(), "cluster cluster-1 at https://127.0.0.1:1: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := d.Observe(t.Context(), e); !errors.Is(err, reconcile.ErrUnreachable) {
		t.Errorf("observed: %v", err)
	}
	if removed, err := d.Prune(t.Context(), nil); err != nil || removed != nil {
		t.Errorf("pruned %v, %v: others would wait", removed, err)
	}
	for state, next := range map[environment.State]string{environment.Creating: "it is there when the environment is RUNNING", environment.Running: "\"sordino masq describe\" shows since when"} {
		e.State = state
		_, err := d.Explain(t.Context(), e, driver.Flow{})
		try := "try it with: kubectl --kubeconfig " + d.Clusters.ByName("cluster-1").Kubeconfig + " --context one get nodes; "
		if environment.CodeOf(err) != environment.FailedPrecondition || !strings.Contains(err.Error(), try+next) {
			t.Errorf("explained: %v, want %q", err, try+next)
		}
	}
	e.Cluster = "cluster-2"
	_, err := d.Ensure(e)[0].Do(t.Context())
	if environment.CodeOf(err) != environment.FailedPrecondition || !strings.Contains(err.Error(), "declare it in the clusters file again") {
		t.Errorf("not declared: %v", err)
	}
}
