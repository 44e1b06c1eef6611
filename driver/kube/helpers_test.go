package kubedriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/google/uuid"
	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"sordino/clusters"
	"sordino/environment"
	"sordino/environment/address"
	"sordino/internal/kubetest"
	"sordino/internal/testwait"
	"sordino/masq/kube"
	"sordino/reconcile"
)

func TestMain(m *testing.M) {
	status := m.Run()
	if shared != nil {
		if err := shared.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	if status == 0 {
		// What client-go keeps for all who have the same kubeconfig: connections,
		// and what looks at the certificate's files.
		ours := []goleak.Option{
			goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"),
			goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
			goleak.IgnoreAnyFunction("k8s.io/client-go/transport.(*dynamicClientCert).run"),
			goleak.IgnoreAnyFunction("k8s.io/client-go/transport.(*dynamicClientCert).runWorker"),
			goleak.IgnoreAnyFunction("k8s.io/client-go/util/workqueue.(*delayingType[...]).waitingLoop"),
			goleak.IgnoreAnyFunction("k8s.io/apimachinery/pkg/util/wait.PollImmediateUntilWithContext"),
			goleak.IgnoreAnyFunction("k8s.io/apimachinery/pkg/util/wait.PollImmediateUntilWithContext.poller.func1.1"),
		}
		err := goleak.Find(ours...)
		for range 30 { // it waits for a second only
			if err != nil {
				err = goleak.Find(ours...)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}

// shared is the API server of all tests; one after the other has it.
var shared *kubetest.Cluster

// world is a cluster whose nodes are the test: it binds Pods and says of them
// and of Nodes what kubelets and agents would.
type world struct {
	t    *testing.T
	k    *kubetest.Cluster
	c    *cluster
	file *clusters.Clusters

	// news is that the nodes may have something to do.
	news chan struct{}

	// mu is held while the nodes do something: what they do after set is what
	// it wants.
	mu sync.Mutex
	// reject is a text in a configuration that the agent of a node rejects.
	reject map[string]string
	// waiting is why the Pods of a set do not start: "ImagePullBackOff".
	waiting map[string]string
}

func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	if shared == nil {
		var err error
		if shared, err = kubetest.New(context.Background(), kubetest.Options{ControllerManager: true}); err != nil {
			kubetest.Start(t, kubetest.Options{ControllerManager: true}) // skips, or fails
			t.Fatal(err)
		}
	}
	w := &world{t: t, k: shared, news: make(chan struct{}, 1), reject: map[string]string{}, waiting: map[string]string{}}
	w.file = declare(t, shared, "cluster-1")
	var err error
	if w.c, err = open(w.file.ByName("cluster-1")); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		w.addNode(name, i+11)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		w.c.follow(ctx, []selection{{resource: pods}, {resource: nodes}, {resource: configMaps, namespace: agentNamespace}}, w.poke)
	})
	running.Go(func() {
		last := ""
		for ctx.Err() == nil {
			if err := w.play(ctx); err != nil && ctx.Err() == nil {
				if err.Error() != last {
					last = err.Error()
					t.Logf("the nodes: %v", err)
				}
				w.poke() // it is tried again
			}
			pause(ctx, 30*time.Millisecond) // what changes at once is one thing to do
			select {
			case <-w.news:
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() {
		defer func() { w.empty(nodes, "", "") }()
		defer func() { stop(); running.Wait() }()
		w.clear()
	})
	return w
}

func (w *world) poke() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// empty deletes all objects of a kind that bear a label.
func (w *world) empty(r schema.GroupVersionResource, namespace, labels string) {
	w.t.Helper()
	if err := w.c.in(r, namespace).DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: labels}); err != nil {
		w.t.Errorf("deleting all %s: %v", r.Resource, err)
	}
}

// clear takes everything of the driver's away, whatever state it is in.
func (w *world) clear() {
	ctx := context.Background()
	if err := w.c.client.Resource(namespaces).Delete(ctx, clusters.Namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		w.t.Error(err)
	}
	rights := func(kind string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: kind}
	}
	policies := func(kind string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: kind}
	}
	w.empty(daemonSets, clusters.Namespace, "")
	w.empty(daemonSets, agentNamespace, "k8s-app")
	w.empty(configMaps, agentNamespace, "k8s-app")
	w.empty(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, agentNamespace, "k8s-app")
	for _, namespace := range []string{agentNamespace, "default"} {
		w.empty(rights("roles"), namespace, "k8s-app")
		w.empty(rights("rolebindings"), namespace, "k8s-app")
	}
	w.empty(rights("clusterroles"), "", "k8s-app")
	w.empty(rights("clusterrolebindings"), "", "k8s-app")
	w.empty(policies("validatingadmissionpolicies"), "", "k8s-app")
	w.empty(policies("validatingadmissionpolicybindings"), "", "k8s-app")
	w.eventually(func() error {
		left, err := list[pod](ctx, w.c, selection{resource: pods})
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("the Pod %s is still there", left[0].Metadata.Name)
		}
		if err != nil {
			return err
		}
		is, err := w.c.client.Resource(namespaces).Get(ctx, clusters.Namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		// The controller that empties namespaces takes 5 seconds before it begins.
		w.empty(events, clusters.Namespace, "")
		unstructured.RemoveNestedField(is.Object, "spec", "finalizers")
		if _, err := w.c.client.Resource(namespaces).Update(ctx, is, metav1.UpdateOptions{}, "finalize"); err != nil {
			return err
		}
		return fmt.Errorf("the namespace is still there")
	})
}

// declare is a clusters file with one cluster.
func declare(t *testing.T, k *kubetest.Cluster, name string) *clusters.Clusters {
	t.Helper()
	all, err := clusters.Parse(filepath.Join(t.TempDir(), "clusters.yaml"), fmt.Appendf(nil, `clusters:
- {name: %s, location: us-central1, kubeconfig: %s, context: admin, nodeRange: %s, podRange: %s}
`, name, k.Kubeconfig(), kubetest.NodeRange, kubetest.PodRange))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (w *world) addNode(name string, number int) {
	w.t.Helper()
	w.addNodeAt(name, fmt.Sprintf("10.89.0.%d", number), fmt.Sprintf("10.88.%d.0/24", number-10))
}

func (w *world) addNodeAt(name, address, pods string) {
	w.t.Helper()
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"kubernetes.io/os": "linux"}},
		"spec":     map[string]any{"podCIDR": pods, "podCIDRs": []any{pods}}}}
	if _, err := w.c.client.Resource(nodes).Create(w.t.Context(), object, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.patch(nodes, "", name, map[string]any{"status": map[string]any{
		"addresses":   []any{map[string]any{"type": "InternalIP", "address": address}},
		"conditions":  []any{map[string]any{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": time.Now().UTC().Format(time.RFC3339)}},
		"allocatable": map[string]any{"pods": "110"}}})
}

func (w *world) patch(r schema.GroupVersionResource, namespace, name string, patch any) {
	w.t.Helper()
	if err := w.tryPatch(context.Background(), r, namespace, name, patch); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryPatch(ctx context.Context, r schema.GroupVersionResource, namespace, name string, patch any) error {
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	_, err = w.c.in(r, namespace).Patch(ctx, name, types.StrategicMergePatchType, text, metav1.PatchOptions{FieldManager: "kubelet"}, "status")
	return err
}

// play does once what kubelets and agents have to do.
func (w *world) play(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	config, err := get[struct {
		Data map[string]string `json:"data"`
	}](ctx, w.c, configMaps, agentNamespace, agentName)
	if err != nil {
		return err
	}
	text, digest := "", kube.NoConfig
	if config != nil {
		text = config.Data["config"]
		digest = digestOf(text)
	}
	all, err := list[pod](ctx, w.c, selection{resource: pods})
	if err != nil {
		return err
	}
	sets := map[string]set{agentSet.name: agentSet, cleanupSet.name: cleanupSet, workerSet.name: workerSet, probeSet.name: probeSet}
	for i := range all {
		p := &all[i]
		if len(p.Metadata.OwnerReferences) == 0 {
			continue
		}
		s, known := sets[p.Metadata.OwnerReferences[0].Name]
		on := p.node()
		if !known {
			continue
		}
		if p.Metadata.DeletionTimestamp != nil {
			zero := int64(0)
			if err := w.c.in(pods, s.namespace).Delete(ctx, p.Metadata.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			continue
		}
		if p.Spec.NodeName == "" {
			binding := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Binding",
				"metadata": map[string]any{"name": p.Metadata.Name, "namespace": s.namespace}, "target": map[string]any{"kind": "Node", "name": on}}}
			if _, err := w.c.in(pods, s.namespace).Create(ctx, binding, metav1.CreateOptions{}, "binding"); err != nil {
				return err
			}
		}
		if why := w.waiting[s.name]; why != "" {
			if p.Status.Phase == "Pending" && len(p.Status.ContainerStatuses) == 0 {
				if err := w.tryPatch(ctx, pods, s.namespace, p.Metadata.Name, map[string]any{"status": map[string]any{"containerStatuses": []any{map[string]any{
					"name": s.container, "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": map[string]any{"waiting": map[string]any{"reason": why, "message": "as the test wants"}}}}}}); err != nil {
					return err
				}
			}
			continue
		}
		switch s {
		case agentSet:
			reason, status, message := "RulesInPlace", "True", "generation 1"
			if bad := w.reject[on]; bad != "" && strings.Contains(text, bad) {
				reason, status, message = "ConfigRejected", "False", "ip-masq-agent:1:1: the test does not like it"
			}
			err = w.tell(ctx, on, digest, reason, status, message)
		case cleanupSet:
			err = w.tryPatch(ctx, nodes, "", on, map[string]any{"metadata": map[string]any{"annotations": map[string]any{kube.AnnotationGeneration: nil, kube.AnnotationHash: nil, kube.AnnotationConfig: nil}},
				"status": map[string]any{"conditions": []any{map[string]any{"$patch": "delete", "type": kube.ConditionType}}}})
		}
		if err != nil {
			return err
		}
		if !p.ready() {
			now := time.Now().UTC().Format(time.RFC3339)
			if err := w.tryPatch(ctx, pods, s.namespace, p.Metadata.Name, map[string]any{"status": map[string]any{
				"phase": "Running", "podIP": "10.88.1.7", "podIPs": []any{map[string]any{"ip": "10.88.1.7"}},
				"containerStatuses": []any{map[string]any{"name": s.container, "image": "x", "imageID": "x", "ready": true, "restartCount": 0, "state": map[string]any{"running": map[string]any{"startedAt": now}}}},
				"conditions":        []any{map[string]any{"type": "Ready", "status": "True", "lastTransitionTime": now}}}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// tell is an agent's word on its Node.
func (w *world) tell(ctx context.Context, on, digest, reason, status, message string) error {
	is, err := get[node](ctx, w.c, nodes, "", on)
	if err != nil || is == nil {
		return err
	}
	if c := is.Condition(kube.ConditionType); c != nil && c.Reason == reason && is.Metadata.Annotations[kube.AnnotationConfig] == digest {
		return nil
	}
	return w.tryPatch(ctx, nodes, "", on, map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{kube.AnnotationGeneration: "1", kube.AnnotationHash: "sha256:x", kube.AnnotationConfig: digest}},
		"status": map[string]any{"conditions": []any{map[string]any{"type": kube.ConditionType, "status": status, "reason": reason, "message": message,
			"lastHeartbeatTime": time.Now().UTC().Format(time.RFC3339)}}}})
}

// set changes what the nodes are to do, between two of their doings.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	w.poke()
}

func (w *world) driver(server string) *Driver {
	return New(Options{Clusters: w.file, AgentImage: "localhost/ip-masq-agent:test", SordinoImage: "localhost/sordino:test", Server: server, Now: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

func newEnvironment(config string) *environment.Environment {
	return &environment.Environment{UUID: uuid.NewString(), Generation: 1, Agent: environment.AgentConfig{Generation: 1, Text: config}, Cluster: "cluster-1",
		Name: environment.Name{Location: environment.Location{Project: "p", ID: "us-central1"}, ID: "example-environment"},
		Spec: environment.Spec{Config: &servicepb.EnvironmentConfig{NodeConfig: &servicepb.NodeConfig{EnableIpMasqAgent: true}}},
		Plan: address.Plan{VPCNative: true, NodePodBits: 24, Ranges: []address.Range{
			{Kind: address.Nodes, Prefix: kubetest.NodeRange}, {Kind: address.Pods, Prefix: kubetest.PodRange}, {Kind: address.Services, Prefix: kubetest.ServiceRange},
		}, NodeAddresses: []netip.Addr{netip.MustParseAddr("10.89.0.11")}},
	}
}

// run does steps as the reconciler would, each until it succeeds, and returns
// their details.
func run(ctx context.Context, steps []reconcile.Step) (map[string]string, error) {
	details := map[string]string{}
	for _, s := range steps {
		var final *environment.Error
		detail, err := s.Do(ctx)
		for range 5 { // a step has its limit, and the machine may be busy
			if err == nil || errors.As(err, &final) {
				break
			}
			detail, err = s.Do(ctx)
		}
		if err != nil {
			return details, fmt.Errorf("%s: %w", s.Name, err)
		}
		details[s.Name] = detail
	}
	return details, nil
}

func (w *world) ensure(d *Driver, e *environment.Environment) map[string]string {
	w.t.Helper()
	details, err := run(w.t.Context(), d.Ensure(e))
	if err != nil {
		w.t.Fatal(err)
	}
	return details
}

func (w *world) inPlace(d *Driver, e *environment.Environment) error {
	o, err := d.Observe(w.t.Context(), e)
	if err != nil {
		return err
	}
	return e.Missing(o)
}

func (w *world) eventually(ask func() error) {
	w.t.Helper()
	testwait.Until(w.t, 2*time.Minute, 100*time.Millisecond, ask)
}

func (w *world) kubectl(args ...string) string {
	w.t.Helper()
	return strings.TrimSpace(w.k.Kubectl(w.t, "", args...))
}

// watch collects what the driver's Watch says.
func (w *world) watch(d *Driver) (saw func(uuid string) bool, forget func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	all := map[string]int{}
	done := make(chan error, 1)
	go func() {
		done <- d.Watch(ctx, func(uuid string) {
			mu.Lock()
			defer mu.Unlock()
			all[uuid]++
		})
	}()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return func(uuid string) bool {
			mu.Lock()
			defer mu.Unlock()
			return all[uuid] > 0
		}, func() {
			mu.Lock()
			defer mu.Unlock()
			clear(all)
		}
}

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
