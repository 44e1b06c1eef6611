package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"sordino/deploy"
	"sordino/internal/kubeapi"
	"sordino/internal/kubetest"
	"sordino/masq"
	"sordino/masq/agent"
	"sordino/masq/configfile"
	"sordino/masq/kube"
)

const (
	// fleetWatched is how long the calls are counted: two heartbeats, and the
	// time in which most watches are begun anew.
	fleetWatched = 10 * time.Minute
	fleetIdle    = time.Minute
)

// fleet: many agents follow one real API server, each with a connection and a
// token of its own, bound to its Node, under the permissions that are shipped.
// They are the agent's own loop, source and reporter in this process, on
// kernels that take every rule; the machine has no room for 1,000 programs. The
// sizes run one after the other but for the long count, in which nothing takes
// the processor's time. The time of an edit holds a patch of every Node and our
// own asking for them, all on this machine's processors: it shows how that
// grows, and is not when the kernels hold the rules (see kubernetes).
func fleet(ctx context.Context, b *bench) (rows []row, err error) {
	sizes := []int{100, 300, 1000}
	fleets := make([]*simulated, len(sizes))
	defer func() {
		for _, f := range fleets {
			if f != nil {
				err = errors.Join(err, f.close())
			}
		}
	}()
	idle := 0.0
	for i, n := range sizes {
		if fleets[i], err = newFleet(ctx, b, n); err != nil {
			return nil, err
		}
		if i == 0 { // an API server has the same to say to itself however many Nodes there are
			if idle, err = fleets[i].callsAMinute(ctx, fleetIdle); err != nil {
				return nil, err
			}
		}
		fleets[i].idle = idle
		if err := fleets[i].start(ctx); err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, fleetWatched); err != nil {
		return nil, err
	}
	var counts []fleetCount
	for _, f := range fleets {
		c, err := f.count(ctx)
		if err != nil {
			return nil, err
		}
		counts = append(counts, c)
	}
	for i, c := range counts {
		least := counts[0]
		of := func(is, first float64) string { return fmt.Sprintf("%.2f", is/first) }
		rows = append(rows,
			row{fmt.Sprintf("%d agents on one API server: calls a node a minute, in %v", sizes[i], fleetWatched), fmt.Sprintf("%.2f", c.calls), fmt.Sprintf("%d: %.2f", sizes[0], least.calls), of(c.calls, least.calls), "", true},
			row{fmt.Sprintf("%d agents: a ConfigMap edit, until the last one has told that it holds it", sizes[i]), ms(c.edit), fmt.Sprintf("%d: %s", sizes[0], ms(least.edit)), of(float64(c.edit), float64(least.edit)), "", true},
			row{fmt.Sprintf("%d agents: the API server's memory", sizes[i]), mib(int64(c.apiServer)), "their Nodes alone: " + mib(int64(c.nodesAlone)), of(c.apiServer, c.nodesAlone), "", true},
			row{fmt.Sprintf("%d agents: sordino's memory, having read their cluster", sizes[i]), mib(c.sordino), fmt.Sprintf("%d: %s", sizes[0], mib(least.sordino)), of(float64(c.sordino), float64(least.sordino)), "", true},
		)
	}
	return rows, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// fleetCount is what one size was found to cost.
type fleetCount struct {
	calls                 float64 // a node a minute
	edit                  time.Duration
	apiServer, nodesAlone float64 // bytes
	sordino               int64
}

// simulated is a cluster with many agents and no machine behind its Nodes.
type simulated struct {
	bench   *bench
	cluster *kubetest.Cluster
	client  *dynamic.DynamicClient
	http    *http.Client
	size    int
	tokens  map[string]string // by Node

	stop    context.CancelFunc
	running sync.WaitGroup

	began   time.Time
	before  float64 // calls until then
	idle    float64 // calls a minute without any agent
	counted fleetCount
}

func newFleet(ctx context.Context, b *bench, size int) (f *simulated, err error) {
	f = &simulated{bench: b.sub(fmt.Sprintf("fleet-%d", size)), size: size}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
			f = nil
		}
	}()
	if f.cluster, err = kubetest.New(ctx, kubetest.Options{}); err != nil {
		return f, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", f.cluster.Kubeconfig())
	if err != nil {
		return f, err
	}
	config.QPS = -1
	if f.http, err = rest.HTTPClientFor(config); err != nil {
		return f, err
	}
	if f.client, err = dynamic.NewForConfigAndClient(config, f.http); err != nil {
		return f, err
	}
	objects, err := deploy.Objects(deploy.AgentBase, deploy.Options{})
	if err != nil {
		return f, err
	}
	var manifest bytes.Buffer
	for _, o := range objects {
		text, err := o.MarshalJSON()
		if err != nil {
			return f, err
		}
		manifest.Write(append(text, "\n---\n"...))
	}
	if _, err := f.cluster.TryKubectl(ctx, manifest.String(), "apply", "-f", "-"); err != nil {
		return f, err
	}
	if f.tokens, err = f.makeNodes(ctx); err != nil {
		return f, err
	}
	_, f.counted.nodesAlone, err = f.metrics(ctx)
	return f, err
}

// callsAMinute counts for a while.
func (f *simulated) callsAMinute(ctx context.Context, d time.Duration) (float64, error) {
	before, _, err := f.metrics(ctx)
	if err == nil {
		err = pause(ctx, d)
	}
	if err != nil {
		return 0, err
	}
	after, _, err := f.metrics(ctx)
	return (after - before) / d.Minutes(), err
}

// start starts the agents, and the count when all hold an edited ConfigMap.
func (f *simulated) start(ctx context.Context) (err error) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	f.stop = stop
	for name, token := range f.tokens {
		if err := f.startAgent(running, name, token); err != nil {
			return err
		}
	}
	if err := f.all(ctx, ""); err != nil {
		return err
	}
	if f.counted.edit, err = f.edit(ctx); err != nil {
		return err
	}
	f.began = time.Now()
	f.before, _, err = f.metrics(ctx)
	return err
}

func (f *simulated) close() error {
	if f.stop != nil {
		f.stop()
		f.running.Wait()
	}
	if f.cluster == nil {
		return nil
	}
	return f.cluster.Close()
}

// makeNodes makes the Nodes, and a token for the agent of each.
func (f *simulated) makeNodes(ctx context.Context) (map[string]string, error) {
	nodes := f.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	accounts := f.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).Namespace("kube-system")
	tokens := map[string]string{}
	var mu sync.Mutex
	work := make(chan int)
	errs := make([]error, 8)
	var workers sync.WaitGroup
	for w := range errs {
		workers.Go(func() {
			for i := range work {
				name, address, pods := fmt.Sprintf("node-%04d", i), fmt.Sprintf("10.128.%d.%d", i>>8, i&255), fmt.Sprintf("10.%d.%d.0/24", 16+i>>8, i&255)
				node, err := nodes.Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name},
					"spec":   map[string]any{"podCIDR": pods, "podCIDRs": []any{pods}},
					"status": map[string]any{"addresses": []any{map[string]any{"type": "InternalIP", "address": address}}}}}, metav1.CreateOptions{})
				var answer *unstructured.Unstructured
				if err == nil {
					answer, err = accounts.Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
						"metadata": map[string]any{"name": "ip-masq-agent"},
						"spec":     map[string]any{"boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Node", "name": name, "uid": string(node.GetUID())}}}}, metav1.CreateOptions{}, "token")
				}
				if err != nil {
					errs[w] = err
					continue
				}
				token, _, err := unstructured.NestedString(answer.Object, "status", "token")
				mu.Lock()
				tokens[name] = token
				mu.Unlock()
				errs[w] = errors.Join(errs[w], err)
			}
		})
	}
	for i := range f.size {
		work <- i
	}
	close(work)
	workers.Wait()
	return tokens, errors.Join(errs...)
}

// startAgent runs one agent of the fleet.
func (f *simulated) startAgent(ctx context.Context, node, token string) error {
	config, err := kubeapi.FromKubeconfig(f.cluster.Kubeconfig())
	if err != nil {
		return err
	}
	config.TLS.Certificates, config.TLS.GetClientCertificate = nil, nil
	config.Token = func() (string, error) { return token, nil }
	log := slog.New(slog.DiscardHandler)
	client := kubeapi.New(config, "ip-masq-agent/bench", log)
	settings := configfile.Settings{}
	reporter := kube.NewReporter(client, node, "bench", log)
	source := kube.NewSource(kube.Options{Client: client, Node: node, Fallback: noFiles{}, Log: log, NodeSeen: reporter.NodeSeen}, kube.NewConfigMap(client, "kube-system", "ip-masq-agent", settings, log))
	a := agent.New(agent.Settings{
		Options: masq.Options{Chain: masq.DefaultChain}, Source: source, SourceName: "kube", Observers: []agent.Observer{reporter},
		Backend: &willing{}, Predecessors: nobody{}, Node: nowhere{}, Log: log,
	})
	f.running.Go(func() { reporter.Run(ctx); client.Close() })
	f.running.Go(func() { _ = a.Run(ctx) })
	return nil
}

// all waits until every agent has told on its Node that it looked at a
// configuration with another digest than this one. It asks: a watch of so many
// changes at once is cut off by the API server.
func (f *simulated) all(ctx context.Context, before string) error {
	ctx, stop := context.WithTimeout(ctx, 5*time.Minute)
	defer stop()
	nodes := f.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	for {
		list, err := nodes.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		told := 0
		for _, n := range list.Items {
			if digest := n.GetAnnotations()[kube.AnnotationConfig]; digest != "" && digest != before {
				told++
			}
		}
		if told == f.size {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("only %d of %d agents told on their Nodes what they hold: %w", told, f.size, err)
		}
	}
}

// edit makes the ConfigMap.
func (f *simulated) edit(ctx context.Context) (time.Duration, error) {
	maps := f.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("kube-system")
	began := time.Now()
	if _, err := maps.Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "ip-masq-agent"},
		"data": map[string]any{"config": list(64, 0)}}}, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	err := f.all(ctx, "none")
	return time.Since(began), err
}

// count ends the count, and has the server look at the cluster.
func (f *simulated) count(ctx context.Context) (fleetCount, error) {
	minutes := time.Since(f.began).Minutes()
	after, memory, err := f.metrics(ctx)
	if err != nil {
		return fleetCount{}, err
	}
	f.counted.calls = ((after-f.before)/minutes - f.idle) / float64(f.size)
	f.counted.apiServer = memory
	f.counted.sordino, err = f.read(ctx)
	return f.counted, err
}

// read has a server that was just started answer a request that reads the
// whole cluster, and tells its memory.
func (f *simulated) read(ctx context.Context) (memory int64, err error) {
	if err := os.MkdirAll(f.bench.dir, 0o700); err != nil {
		return 0, err
	}
	file := filepath.Join(f.bench.dir, "clusters.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "clusters:\n- name: fleet\n  location: %s\n  kubeconfig: %s\n  context: admin\n  nodeRange: 10.128.0.0/16\n  podRange: 10.16.0.0/14\n",
		place.ID, f.cluster.Kubeconfig()), 0o600); err != nil {
		return 0, err
	}
	s, err := startServer(ctx, f.bench, filepath.Join(f.bench.dir, "data"), "--clusters", file)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := s.Ask(ctx, "POST", environments+"?validateOnly=true", clusterBody("fleet")); err != nil {
		return 0, err
	}
	return s.memory()
}

// metrics are the calls that the API server answered about what agents read
// and write, and its memory.
func (f *simulated) metrics(ctx context.Context) (calls, memory float64, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.cluster.Server()+"/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	answer, err := f.http.Do(r)
	if err != nil {
		return 0, 0, err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		value, _ := strconv.ParseFloat(text, 64)
		if name == "process_resident_memory_bytes" {
			memory = value
		}
		for _, resource := range []string{"nodes", "configmaps", "servicecidrs", "events"} {
			if strings.HasPrefix(name, "apiserver_request_total{") && strings.Contains(lines.Text(), fmt.Sprintf("resource=%q", resource)) {
				_, text, _ := strings.Cut(lines.Text(), "} ")
				value, err := strconv.ParseFloat(text, 64)
				if err != nil {
					return 0, 0, fmt.Errorf("reading the API server's metrics: %w", err)
				}
				calls += value
			}
		}
	}
	if err := lines.Err(); err != nil || memory == 0 || calls == 0 {
		return 0, 0, errors.Join(fmt.Errorf("the API server's metrics: %s, %v calls, %v bytes", answer.Status, calls, memory), err)
	}
	return calls, memory, nil
}

// willing is a kernel that takes every rule.
type willing struct {
	mu   sync.Mutex
	held masq.Held
}

func (*willing) Name() string { return "none" }

func (w *willing) Apply(_ context.Context, rs masq.RuleSet, generation uint64) (masq.Change, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	is := masq.Held{Generation: generation, Hash: rs.Hash()}
	change := masq.Change{Wrote: is.Generation != w.held.Generation || is.Hash != w.held.Hash}
	w.held = is
	return change, nil
}

func (w *willing) Held(context.Context) (masq.Held, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held, nil
}

func (*willing) Watch(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }

type nobody struct{}

func (nobody) Remove(context.Context) (removed, unreadable []string, err error) { return nil, nil, nil }
func (nobody) Watch(ctx context.Context, _ func()) error                        { <-ctx.Done(); return nil }

func (nobody) Translators(context.Context) ([]agent.Translator, error) { return nil, nil }

type nowhere struct{}

func (nowhere) Facts() (masq.Facts, error)                { return masq.Facts{}, nil }
func (nowhere) Watch(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }

type noFiles struct{}

func (noFiles) Load() (agent.Loaded, error) {
	return agent.Loaded{Config: masq.DefaultConfig(false), From: "defaults"}, nil
}
func (noFiles) Watch(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }
