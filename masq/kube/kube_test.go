package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/kubeapi"
	"sordino/internal/kubetest"
	"sordino/internal/testwait"
	"sordino/masq"
	"sordino/masq/agent"
	"sordino/masq/configfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// filed is a fallback that is there, or not.
type filed struct{ err error }

func (f filed) Load() (agent.Loaded, error) {
	return agent.Loaded{Config: masq.DefaultConfig(false), From: "files"}, f.err
}

func (f filed) Watch(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }

func connect(t *testing.T, kubeconfig string) *kubeapi.Client {
	t.Helper()
	config, err := kubeapi.FromKubeconfig(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c := kubeapi.New(config, "ip-masq-agent/test", quiet())
	t.Cleanup(c.Close)
	return c
}

// running is a Source that is watched, with what it says whenever it may have
// changed.
type running struct {
	*Source
	changed chan struct{}
	stop    func()
}

func run(t *testing.T, o Options) *running {
	t.Helper()
	if o.Fallback == nil {
		o.Fallback = filed{}
	}
	o.Node, o.Log = "n1", quiet()
	r := &running{Source: NewSource(o, NewConfigMap(o.Client, "kube-system", "ip-masq-agent", configfile.Settings{}, quiet())), changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = r.Watch(ctx, func() {
			select {
			case r.changed <- struct{}{}:
			default: // whoever looks is told already
			}
		})
	})
	r.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(r.stop)
	return r
}

// until loads until the configuration is as it should be.
func (r *running) until(t *testing.T, what string, ok func(agent.Loaded, error) bool) (agent.Loaded, error) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	for {
		loaded, err := r.Load()
		if ok(loaded, err) {
			return loaded, err
		}
		select {
		case <-r.changed:
		case <-limit:
			t.Fatalf("never %s: %+v, %v", what, loaded, err)
		}
	}
}

func from(text string) func(agent.Loaded, error) bool {
	return func(l agent.Loaded, err error) bool { return err == nil && l.From == text }
}

func warned(l agent.Loaded, text string) bool {
	return slices.ContainsFunc(l.Warnings, func(w string) bool { return strings.Contains(w, text) })
}

func ranges(list []masq.Range) (texts []string) {
	for _, r := range list {
		texts = append(texts, fmt.Sprintf("%s from %s", r.Prefix, r.Origin))
	}
	return texts
}

const node = `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"},"spec":{"podCIDR":"10.88.1.0/24","podCIDRs":["10.88.1.0/24","fd00:88:1::/64"]}}`

const addresses = `{"status":{"addresses":[{"type":"Hostname","address":"n1"},{"type":"InternalIP","address":"10.89.0.11"},{"type":"ExternalIP","address":"203.0.113.7"}]}}`

func TestSource(t *testing.T) {
	k := kubetest.Start(t, kubetest.Options{})
	configMap := func(text string) {
		t.Helper()
		k.Kubectl(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"ip-masq-agent","namespace":"kube-system"},"data":{%q:%q,"other":"x"}}`, "config", text), "apply", "-f", "-")
	}
	k.Kubectl(t, node, "create", "-f", "-")
	k.Kubectl(t, "", "patch", "node", "n1", "--subresource=status", "-p", addresses)

	s := run(t, Options{Client: connect(t, k.Kubeconfig())})
	l, _ := s.until(t, "the defaults", from("defaults (there is no ConfigMap kube-system/ip-masq-agent)"))
	if l.Digest != "" || len(l.Warnings) != 0 || len(l.Config.NonMasquerade) != 3 {
		t.Errorf("without a ConfigMap: %+v", l)
	}
	for _, tc := range []struct{ got, want []string }{
		{ranges(l.Config.Cluster.ThisNodesPods), []string{"10.88.1.0/24 from Node n1, spec.podCIDRs", "fd00:88:1::/64 from Node n1, spec.podCIDRs"}},
		{ranges(l.Config.Cluster.Node), []string{"10.89.0.11/32 from Node n1, status.addresses"}},
		{ranges(l.Config.Cluster.Service), []string{"10.96.0.0/16 from ServiceCIDR kubernetes, spec.cidrs"}},
		{ranges(l.Config.Cluster.Pod), nil},
	} {
		if !slices.Equal(tc.got, tc.want) {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}

	const text = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\npodCIDRs: [10.88.0.0/16]\n"
	configMap(text)
	l, _ = s.until(t, "the ConfigMap", from("ConfigMap kube-system/ip-masq-agent"))
	if got, want := ranges(l.Config.NonMasquerade), []string{"10.0.0.0/8 from ConfigMap kube-system/ip-masq-agent, config:2:3"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if len(l.Config.Cluster.Pod) != 1 || len(l.Config.Cluster.ThisNodesPods) != 2 || len(l.Digest) != 64 || len(l.Warnings) != 0 {
		t.Errorf("%+v", l)
	}
	configMap("nonMasqueradeCIDRs:\n- 10.0.0.0/08\n")
	_, err := s.until(t, "rejected", func(_ agent.Loaded, err error) bool { return err != nil })
	if rejected := (*agent.Rejected)(nil); !errors.As(err, &rejected) || rejected.Digest == "" || rejected.Reasons[0] != "cidr" ||
		!strings.Contains(err.Error(), "ConfigMap kube-system/ip-masq-agent, config:2:3: ") {
		t.Errorf("%v", err)
	}
	k.Kubectl(t, "", "-n", "kube-system", "patch", "configmap", "ip-masq-agent", "--type=json", "-p", `[{"op":"remove","path":"/data/config"}]`)
	l, _ = s.until(t, "without the key", from(`defaults (ConfigMap kube-system/ip-masq-agent has no key "config")`))
	if !warned(l, `ConfigMap kube-system/ip-masq-agent has no key "config", so nothing of it takes effect; it has ["other"]`) || l.Digest != "" {
		t.Errorf("%+v", l)
	}
	k.Kubectl(t, "", "-n", "kube-system", "delete", "configmap", "ip-masq-agent")
	s.until(t, "deleted", from("defaults (there is no ConfigMap kube-system/ip-masq-agent)"))
	configMap(text)
	s.until(t, "made anew", from("ConfigMap kube-system/ip-masq-agent"))

	// A Node that is gone keeps its ranges, and another one of the name brings its own.
	k.Kubectl(t, "", "delete", "node", "n1")
	l, _ = s.until(t, "without the Node", func(l agent.Loaded, _ error) bool { return warned(l, "Node n1 is gone") })
	if len(l.Config.Cluster.ThisNodesPods) != 2 || len(l.Config.Cluster.Node) != 1 {
		t.Errorf("%+v", l.Config.Cluster)
	}
	k.Kubectl(t, strings.ReplaceAll(node, "10.88.1.0", "10.88.7.0"), "create", "-f", "-")
	l, _ = s.until(t, "another Node", func(l agent.Loaded, _ error) bool { return len(l.Config.Cluster.Node) == 0 })
	if got := l.Config.Cluster.ThisNodesPods[0].Prefix; got != netip.MustParsePrefix("10.88.7.0/24") {
		t.Errorf("its Pod range is %s", got)
	}
	k.Kubectl(t, `{"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","metadata":{"name":"more"},"spec":{"cidrs":["10.97.0.0/24"]}}`, "create", "-f", "-")
	s.until(t, "another ServiceCIDR", func(l agent.Loaded, _ error) bool { return len(l.Config.Cluster.Service) == 2 })

	// The API server goes and comes back.
	before, _ := s.Load()
	k.StopAPI()
	testwait.Until(t, 2*time.Minute, 10*time.Millisecond, func() error {
		if p := s.Problems(); len(p) < 3 {
			return fmt.Errorf("without an API server: %q", p)
		}
		return nil
	})
	if l, err := s.Load(); err != nil || !l.Config.Equal(before.Config) || l.Digest != before.Digest {
		t.Errorf("losing the API server changed the configuration: %+v, %v", l, err)
	}

	// One that starts now does not know the configuration, and does not wait long.
	late := run(t, Options{Client: connect(t, k.Kubeconfig())})
	began := time.Now()
	_, err = late.Load()
	var unavailable *agent.Unavailable
	if !errors.As(err, &unavailable) || unavailable.Fallback == nil || unavailable.Fallback.From != "files" ||
		!strings.Contains(err.Error(), "list configmaps in kube-system at "+k.Server()+": ") || !strings.HasSuffix(err.Error(), "; see that this node reaches the API server") {
		t.Errorf("started without an API server: %v", err)
	}
	if took := time.Since(began); took < firstAnswer || took > time.Minute {
		t.Errorf("it waited for %v", took)
	}
	broken := run(t, Options{Client: connect(t, k.Kubeconfig()), Fallback: filed{errors.New("a broken file")}})
	if _, err = broken.Load(); !errors.As(err, &unavailable) || unavailable.Fallback != nil || !strings.Contains(err.Error(), "a broken file") {
		t.Errorf("with a broken file: %v", err)
	}
	broken.stop()

	if err := k.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	configMap("nonMasqueradeCIDRs: [1.2.3.0/24]\n")
	for _, r := range []*running{s, late} {
		r.until(t, "the change", func(l agent.Loaded, err error) bool {
			return err == nil && len(l.Config.NonMasquerade) == 1 && l.Config.NonMasquerade[0].Prefix.String() == "1.2.3.0/24"
		})
	}

	// Without permissions nothing is taken for a missing ConfigMap.
	nobody, err := k.KubeconfigFor("nobody")
	if err != nil {
		t.Fatal(err)
	}
	refused := run(t, Options{Client: connect(t, nobody)})
	_, err = refused.until(t, "refused", func(_ agent.Loaded, err error) bool { return errors.Is(err, kubeapi.ErrForbidden) })
	if !errors.As(err, &unavailable) || !strings.Contains(err.Error(), `let a Role in the namespace kube-system allow the verb "list" on "configmaps"`) {
		t.Errorf("%v", err)
	}
	// What may be read of the cluster counts with the files, too.
	k.Kubectl(t, "", "create", "clusterrole", "ranges", "--verb=list,watch", "--resource=nodes,servicecidrs.networking.k8s.io")
	k.Kubectl(t, "", "create", "clusterrolebinding", "ranges", "--clusterrole=ranges", "--user=ranges")
	reader, err := k.KubeconfigFor("ranges")
	if err != nil {
		t.Fatal(err)
	}
	run(t, Options{Client: connect(t, reader)}).until(t, "with files and ranges", func(_ agent.Loaded, err error) bool {
		return errors.As(err, &unavailable) && unavailable.Fallback != nil && unavailable.Fallback.From == "files" &&
			len(unavailable.Fallback.Config.Cluster.ThisNodesPods) > 0 && len(unavailable.Fallback.Config.Cluster.Service) > 0
	})
	k.Kubectl(t, "", "create", "role", "-n", "kube-system", "some", "--verb=list,watch", "--resource=configmaps", "--resource-name=ip-masq-agent")
	k.Kubectl(t, "", "create", "rolebinding", "-n", "kube-system", "some", "--role=some", "--user=nobody")
	some := run(t, Options{Client: connect(t, nobody)})
	l, _ = some.until(t, "the ConfigMap alone", from("ConfigMap kube-system/ip-masq-agent"))
	if !warned(l, `let a ClusterRole allow the verb "list" on "nodes"`) || !warned(l, `"list" on "servicecidrs" of the API group "networking.k8s.io"`) {
		t.Errorf("%q", l.Warnings)
	}
}
