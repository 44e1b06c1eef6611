package kubedriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sordino/environment"
)

// theirs is a ConfigMap that the agents would obey; the label has the world take
// it away.
const theirs = `{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ip-masq-agent", "namespace": "kube-system", "labels": {"k8s-app": "theirs"}}, "data": {"config": "nonMasqueradeCIDRs: [0.0.0.0/0]"}}`

// refused wants an error that names objects of others.
func refused(t *testing.T, err error, want string) {
	t.Helper()
	var final *environment.Error
	if !errors.As(err, &final) || final.Reason != "CLUSTER_OBJECT_CONFLICT" || !strings.Contains(final.Message, want) {
		t.Fatalf("got %v, want %q", err, want)
	}
}

func (w *world) config() string {
	w.t.Helper()
	return w.kubectl("get", "configmap", "-n", "kube-system", "ip-masq-agent", "-o", "jsonpath={.data.config} of {.metadata.labels.sordino\\.dev/environment}")
}

// An environment without a configuration has the defaults, and not what is in
// somebody's ConfigMap.
func TestConfigMapOfSomebodyElse(t *testing.T) {
	w := newWorld(t, "n1")
	d, e := w.driver("server-1"), newEnvironment("")
	w.k.Kubectl(t, theirs, "create", "-f", "-")
	_, err := run(t.Context(), d.Ensure(e))
	refused(t, err, "ConfigMap kube-system/ip-masq-agent: kubectl-create has set .data.config")
	if got := w.config(); got != "nonMasqueradeCIDRs: [0.0.0.0/0] of" {
		t.Errorf("it was overwritten: %s", got)
	}
	if got := w.kubectl("get", "daemonsets", "-A", "-o", "name"); got != "" {
		t.Errorf("something was applied all the same: %s", got)
	}
	w.kubectl("delete", "configmap", "-n", "kube-system", "ip-masq-agent")
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })

	// One that comes later is drift, which is not overwritten either.
	w.kubectl("delete", "configmap", "-n", "kube-system", "ip-masq-agent")
	w.k.Kubectl(t, theirs, "create", "-f", "-")
	w.eventually(func() error {
		o, err := d.Observe(t.Context(), e)
		const want = "the ConfigMap kube-system/ip-masq-agent is not this environment's any more"
		if err == nil && !strings.Contains(o.Nodes[0].Error, "its agent has not looked at the configuration yet") && !strings.Contains(o.Nodes[0].Error, want) {
			err = fmt.Errorf("%+v", o.Nodes)
		}
		return err
	})
	_, err = run(t.Context(), d.Ensure(e))
	refused(t, err, "ConfigMap kube-system/ip-masq-agent: ")
	w.kubectl("label", "configmap", "-n", "kube-system", "ip-masq-agent", "sordino.dev/environment=")
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })
	if got := w.config(); got != "of "+e.UUID {
		t.Errorf("handed over, and still %s", got)
	}
}

// What somebody makes while objects are applied is not forced over.
func TestMadeMeanwhile(t *testing.T) {
	w := newWorld(t, "n1")
	o := configMap()
	o.Object["data"] = map[string]any{"config": config1}
	label(o, "an-uuid")
	force := metav1.ApplyOptions{Force: true}
	w.k.Kubectl(t, theirs, "create", "-f", "-")
	_, err := w.c.applyOurs(t.Context(), []*unstructured.Unstructured{o})
	refused(t, err, "ConfigMap kube-system/ip-masq-agent: kubectl-create has set .data.config")
	// After it was looked whether there is one.
	if _, err := w.c.serverSideApply(t.Context(), o, nil, force); !apierrors.IsConflict(err) {
		t.Errorf("applied where there was nothing: %v", err)
	}
	before, err := w.c.find(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	w.kubectl("delete", "configmap", "-n", "kube-system", "ip-masq-agent")
	w.k.Kubectl(t, theirs, "create", "-f", "-")
	if _, err := w.c.serverSideApply(t.Context(), o, before, force); !apierrors.IsConflict(err) {
		t.Errorf("applied to one that was deleted: %v", err)
	}
	if got := w.config(); got != "nonMasqueradeCIDRs: [0.0.0.0/0] of" {
		t.Errorf("it was overwritten: %s", got)
	}
	w.kubectl("delete", "configmap", "-n", "kube-system", "ip-masq-agent")
	if told, err := w.c.applyOne(t.Context(), o); err != nil || told != "" {
		t.Errorf("with nothing there: %q, %v", told, err)
	}
}

// What others wait for before an object may go, and what it goes with, is theirs.
func TestFinalizersAndOwnersStay(t *testing.T) {
	w := newWorld(t, "n1")
	d, e := w.driver("server-1"), newEnvironment(config1)
	w.ensure(d, e)
	owner := w.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
	w.kubectl("patch", "configmap", "-n", "kube-system", "ip-masq-agent", "--type=merge", "-p",
		fmt.Sprintf(`{"metadata": {"finalizers": ["example.com/wait"], "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": "kube-system", "uid": %q}]}, "data": {"more": "of theirs"}}`, owner))
	defer w.kubectl("patch", "configmap", "-n", "kube-system", "ip-masq-agent", "--type=merge", "-p", `{"metadata": {"finalizers": null}}`)
	if told := w.ensure(d, e)["apply the agent"]; !strings.Contains(told, ".data.more") {
		t.Errorf("what was added is not told: %q", told)
	}
	if got := w.kubectl("get", "configmap", "-n", "kube-system", "ip-masq-agent", "-o", "jsonpath={.data.more} {.metadata.finalizers} {.metadata.ownerReferences[0].kind}"); got != `["example.com/wait"] Namespace` {
		t.Errorf("left of it: %s", got)
	}
}

// A removal that is tried again when only the claim is left cleans up nothing
// again: no Pod can be made any more that would prove it.
func TestRemovalIsTriedAgain(t *testing.T) {
	w := newWorld(t, "n1")
	d, e := w.driver("server-1"), newEnvironment(config1)
	w.ensure(d, e)
	w.kubectl("patch", "namespace", "sordino", "--type=merge", "-p", `{"metadata": {"finalizers": ["example.com/wait"]}}`)
	steps := d.Remove(e)
	last := len(steps) - 1
	details, err := run(t.Context(), steps[:last])
	if err != nil || details["take the rules away"] != "rules and conditions removed on 1 node" {
		t.Fatalf("%q, %v", details, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := steps[last].Do(ctx); err == nil || !strings.Contains(err.Error(), "the namespace sordino is being deleted") {
		t.Errorf("the claim is held: %v", err)
	}
	details, err = run(t.Context(), steps[:last])
	if err != nil || details["take the agents away"] != none || details["take the rules away"] != none || details["prove it with a packet"] != none {
		t.Errorf("again: %q, %v", details, err)
	}
	if got := w.kubectl("get", "daemonsets", "-A", "-o", "name"); got != "" {
		t.Errorf("made again: %s", got)
	}
	w.kubectl("patch", "namespace", "sordino", "--type=merge", "-p", `{"metadata": {"finalizers": null}}`)
	if _, err := run(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
}

// logs answers for kubelets that are asked for logs.
type logs struct {
	next http.RoundTripper
	mu   sync.Mutex
	// within is how long each had to answer.
	within []time.Duration
}

func (l *logs) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, "/log") {
		return l.next.RoundTrip(r)
	}
	deadline, _ := r.Context().Deadline()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.within = append(l.within, time.Until(deadline))
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/plain"}}, Body: io.NopCloser(bytes.NewReader([]byte("one\nno such file\n"))), Request: r}, nil
}

// Logs come from kubelets, and many Pods may be in trouble at once.
func TestLogsAreReadSparingly(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3", "n4", "n5")
	w.set(func() { w.waiting[workerSet.name] = "CrashLoopBackOff" })
	d, e := w.driver("server-1"), newEnvironment("")
	e.Spec.Config.NodeConfig.EnableIpMasqAgent = false
	if _, err := run(t.Context(), d.Ensure(e)[:2]); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error {
		all, err := w.c.podsOf(t.Context(), workerSet)
		if err != nil {
			return err
		}
		crashed := 0
		for _, p := range all {
			if len(p.Status.ContainerStatuses) == 0 {
				continue
			}
			crashed++
			w.patch(pods, workerSet.namespace, p.Metadata.Name, map[string]any{"status": map[string]any{"containerStatuses": []any{map[string]any{
				"name": workerSet.container, "image": "x", "imageID": "", "ready": false, "restartCount": 1,
				"state":     map[string]any{"waiting": map[string]any{"reason": "CrashLoopBackOff"}},
				"lastState": map[string]any{"terminated": map[string]any{"exitCode": 1, "startedAt": nil, "finishedAt": nil}}}}}})
		}
		if crashed != 5 {
			return fmt.Errorf("%d Pods crashed", crashed)
		}
		return nil
	})
	read := &logs{}
	c := &cluster{Cluster: w.c.Cluster, config: rest.CopyConfig(w.c.config)}
	c.config.Wrap(func(next http.RoundTripper) http.RoundTripper { read.next = next; return read })
	var err error
	if c.client, err = dynamic.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	if c.raw, err = rest.UnversionedRESTClientFor(dynamic.ConfigFor(c.config)); err != nil {
		t.Fatal(err)
	}
	_, err = c.rolledOut(t.Context(), workerSet)
	if err == nil || strings.Count(err.Error(), "it ended with status 1; the end of its log: no such file") != 3 || !strings.HasSuffix(err.Error(), "and 2 more") {
		t.Errorf("said: %v", err)
	}
	if len(read.within) != 3 {
		t.Errorf("%d logs were read", len(read.within))
	}
	for _, within := range read.within {
		if within <= 0 || within > 2*time.Second {
			t.Errorf("a log may take %v", within)
		}
	}
	read.within = nil
	o, err := d.observe(t.Context(), c, e)
	if err != nil || len(o.Nodes) != 5 || !strings.HasSuffix(o.Nodes[4].Error, "it ended with status 1") {
		t.Errorf("%+v, %v", o, err)
	}
	if len(read.within) != 0 {
		t.Errorf("a look at the nodes read %d logs", len(read.within))
	}
}
