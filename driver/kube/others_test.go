package kubedriver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sordino/clusters"
	"sordino/environment"
	"sordino/masq/kube"
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
	ctx, cutOff := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := steps[last].Do(ctx)
		ended <- err
	}()
	w.eventually(func() error {
		is, err := w.c.claimed(t.Context())
		if err == nil && !is.leaving() {
			err = errors.New("the claim is not given back")
		}
		return err
	})
	cutOff()
	if err := <-ended; err == nil {
		t.Error("a claim that is held counts as given back")
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

// stamping has the cluster write into every ConfigMap when it was changed, as some
// clusters' webhooks do.
func (w *world) stamping() {
	w.t.Helper()
	var calls atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		var review struct {
			Request struct {
				UID string `json:"uid"`
			} `json:"request"`
		}
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			w.t.Error(err)
		}
		patch := fmt.Sprintf(`[{"op": "add", "path": "/metadata/annotations", "value": {"example.com/changed": "%d"}}]`, calls.Add(1))
		_ = json.NewEncoder(out).Encode(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
			"response": map[string]any{"uid": review.Request.UID, "allowed": true, "patchType": "JSONPatch", "patch": []byte(patch)}})
	}))
	w.t.Cleanup(server.Close)
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	w.k.Kubectl(w.t, fmt.Sprintf(`{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "stamp"}, "webhooks": [{
		"name": "stamp.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"url": %q, "caBundle": %q},
		"objectSelector": {"matchLabels": {"k8s-app": "ip-masq-agent"}},
		"rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]}]}`,
		server.URL, base64.StdEncoding.EncodeToString(authority)), "create", "-f", "-")
	w.t.Cleanup(func() {
		if _, err := w.k.TryKubectl(context.Background(), "", "delete", "mutatingwebhookconfiguration", "stamp"); err != nil {
			w.t.Error(err)
		}
	})
}

// What a cluster writes into annotations of its own is no drift, also when it is
// another with every change.
func TestStampsAreNoDrift(t *testing.T) {
	w := newWorld(t, "n1")
	d, e := w.driver("server-1"), newEnvironment(config1)
	w.stamping()
	w.eventually(func() error { // the API server hears of the webhook a little later
		w.ensure(d, e)
		if w.kubectl("get", "configmap", "-n", "kube-system", "ip-masq-agent", "-o", "jsonpath={.metadata.annotations.example\\.com/changed}") == "" {
			return errors.New("the webhook is not asked yet")
		}
		return nil
	})
	if drift, err := d.drifted(t.Context(), w.c, e); err != nil || drift != "" {
		t.Errorf("%q, %v", drift, err)
	}
	if told := w.ensure(d, e)["apply the agent"]; strings.Contains(told, "was changed") {
		t.Errorf("told: %s", told)
	}
}

// The note of a proof is nobody's change: an environment that stays amiss would
// be mended, and so proven and noted, without an end.
func TestProofIsNoNews(t *testing.T) {
	w := newWorld(t)
	d, e := w.driver("server-1"), newEnvironment("")
	if _, err := d.claimFor(t.Context(), w.c, tenant{e.UUID, e.Name.String()}); err != nil {
		t.Fatal(err)
	}
	note := func(change func(*state)) func() {
		return func() {
			if err := w.c.note(t.Context(), e.UUID, change); err != nil {
				t.Error(err)
			}
		}
	}
	label := func(args ...string) func() {
		return func() { w.kubectl(append([]string{"label", "namespace", "sordino"}, args...)...) }
	}
	note(func(s *state) { s.Generation, s.Proof, s.Checked = 1, "a", time.Unix(1, 0).UTC() })()
	last := ""
	for _, test := range []struct {
		what string
		do   func()
		news bool
	}{
		{"as it was made", func() {}, true},
		{"proven again", note(func(s *state) { s.Proof, s.Checked = "b", time.Unix(2, 0).UTC() }), false},
		{"another configuration", note(func(s *state) { s.ConfigGeneration = 2 }), true},
		{"another level of Pod security", label("--overwrite", "pod-security.kubernetes.io/enforce=baseline"), true},
		{"another's server", func() { w.kubectl("annotate", "namespace", "sordino", "--overwrite", "sordino.dev/server=else") }, true},
		{"no note", func() { w.kubectl("annotate", "namespace", "sordino", "sordino.dev/state-") }, true},
		{"a note that cannot be read", func() { w.kubectl("annotate", "namespace", "sordino", "sordino.dev/state=x") }, true},
		{"being deleted", func() { w.kubectl("delete", "namespace", "sordino", "--wait=false") }, true},
	} {
		if test.what == "being deleted" { // and still there to be looked at
			w.kubectl("patch", "namespace", "sordino", "--type=merge", "-p", `{"metadata": {"finalizers": ["example.com/wait"]}}`)
			defer w.kubectl("patch", "namespace", "sordino", "--type=merge", "-p", `{"metadata": {"finalizers": null}}`)
		}
		test.do()
		is, err := w.c.find(t.Context(), claimNamespace(tenant{}, ""))
		if err != nil || is == nil {
			t.Fatalf("%s: %v, %v", test.what, is, err)
		}
		now := fingerprint(is)
		if (now != last) != test.news {
			t.Errorf("%s: from\n%s\nto\n%s", test.what, last, now)
		}
		last = now
	}
}

// A server that had no ConfigMap for an environment without a configuration, and
// told nodes by their names, left this. The next one mends it, and nothing fails.
func TestEnvironmentOfAFormerVersion(t *testing.T) {
	w := newWorld(t, "n1")
	d, e := w.driver("server-1"), newEnvironment("")
	w.ensure(d, e)
	w.kubectl("delete", "configmap", "-n", "kube-system", "ip-masq-agent")
	if err := w.c.note(t.Context(), e.UUID, func(s *state) { s.Nodes, s.ConfigDigest = "d6cb4bf1ea4c3a05", kube.NoConfig }); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error {
		n, err := w.c.nodes(t.Context())
		if err == nil && n[0].Metadata.Annotations[kube.AnnotationConfig] != kube.NoConfig {
			err = errors.New("the agent still has a configuration")
		}
		return err
	})
	o, err := d.Observe(t.Context(), e)
	if err != nil || o.Generation != 0 || o.Nodes[0].ConfigGeneration != 1 || o.Nodes[0].Error != "its agent has not looked at the configuration yet" {
		t.Errorf("as it was left: %+v, %v", o, err)
	}
	for _, s := range d.Ensure(e) { // once each, as the reconciler mends
		if detail, err := s.Do(t.Context()); err != nil || strings.Contains(detail, "was changed") {
			t.Errorf("%s: %q, %v", s.Name, detail, err)
		}
	}
	w.eventually(func() error { return w.inPlace(d, e) })
	if got := w.config(); got != "of "+e.UUID {
		t.Errorf("the ConfigMap: %s", got)
	}
}

// A node is proven by a worker's packet: one that had no worker then is not.
func TestWorkerComesLater(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	d, e := w.driver("server-1"), newEnvironment(config1)
	w.kubectl("taint", "node", "n2", "example.com/no=workers:NoSchedule")
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })
	w.kubectl("taint", "node", "n2", "example.com/no-")
	w.eventually(func() error {
		all, err := w.c.podsOf(t.Context(), workerSet)
		if err == nil && (len(all) != 2 || !all[1].ready()) {
			err = fmt.Errorf("%d workers", len(all))
		}
		return err
	})
	o, err := d.Observe(t.Context(), e)
	if err != nil || o.Generation == e.Generation {
		t.Errorf("it counts as proven with a worker that has sent nothing: %+v, %v", o, err)
	}
	w.ensure(d, e)
	w.eventually(func() error { return w.inPlace(d, e) })
}

// through is the cluster behind another way to its API server.
func (w *world) through(way func(next http.RoundTripper) http.RoundTripper) *cluster {
	w.t.Helper()
	c := &cluster{Cluster: w.c.Cluster, config: rest.CopyConfig(w.c.config)}
	c.config.Wrap(way)
	var err error
	if c.client, err = dynamic.NewForConfig(c.config); err != nil {
		w.t.Fatal(err)
	}
	if c.raw, err = rest.UnversionedRESTClientFor(dynamic.ConfigFor(c.config)); err != nil {
		w.t.Fatal(err)
	}
	return c
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Between our look at an object and its removal others write to it.
func TestRemovedThoughItChanges(t *testing.T) {
	w := newWorld(t)
	o := configMap()
	label(o, "an-uuid")
	before := func(command ...string) *cluster {
		w.kubectl("delete", "configmap", "-n", "kube-system", "ip-masq-agent", "--ignore-not-found")
		if _, err := w.c.applyOne(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		var once sync.Once
		return w.through(func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodDelete {
					once.Do(func() { w.kubectl(command...) })
				}
				return next.RoundTrip(r)
			})
		})
	}
	c := before("annotate", "configmap", "-n", "kube-system", "ip-masq-agent", "else=where")
	if removed, err := c.remove(t.Context(), "an-uuid", o); err != nil || !removed {
		t.Errorf("annotated meanwhile: %v, %v", removed, err)
	}
	c = before("delete", "configmap", "-n", "kube-system", "ip-masq-agent")
	if removed, err := c.remove(t.Context(), "an-uuid", o); err != nil || removed {
		t.Errorf("deleted meanwhile: %v, %v", removed, err)
	}
	c = before("label", "configmap", "-n", "kube-system", "ip-masq-agent", "--overwrite", clusters.EnvironmentLabel+"=another")
	if removed, err := c.remove(t.Context(), "an-uuid", o); err != nil || removed {
		t.Errorf("another's meanwhile: %v, %v", removed, err)
	}
	if is, err := w.c.find(t.Context(), o); err != nil || is == nil {
		t.Errorf("another's is gone: %v", err)
	}
	w.kubectl("delete", "configmap", "-n", "kube-system", "ip-masq-agent")
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
	c := w.through(func(next http.RoundTripper) http.RoundTripper { read.next = next; return read })
	_, err := c.rolledOut(t.Context(), workerSet)
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
