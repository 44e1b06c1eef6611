package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"sordino/deploy/images"
	"sordino/internal/kubetest"
	"sordino/internal/nfnotify"
	"sordino/internal/probe"
	"sordino/masq/nftables"
)

// mountedConfigMap is what a mounted ConfigMap was found to take until the
// kubelet had written the file, on another machine: quoted.
const mountedConfigMap = 41 * time.Second

const imageTag = "bench"

// kubernetes: a cluster of three real nodes. The server creates an environment
// on it several times, each after the one before is gone; the images are on the
// nodes. Then the server ends, and the agents that it left are what the rest is
// measured with: from the beginning of the request that changes the ConfigMap to
// the moment in which the last of the three kernels holds the new rules, and
// the agents' memory meanwhile.
func kubernetes(ctx context.Context, b *bench) (rows []row, err error) {
	archive := filepath.Join(b.dir, "images.tar")
	if err := images.WriteTar(archive, imageTag, images.Platform{Architecture: runtime.GOARCH, Binaries: filepath.Dir(b.agent)}, images.Agent, images.Server); err != nil {
		return nil, err
	}
	c, err := kubetest.New(ctx, kubetest.Options{Nodes: 3, Images: []string{archive}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	took, err := createOn(ctx, b, c)
	if err != nil {
		return nil, err
	}
	const most = 20 * time.Second
	rows = append(rows, row{"an environment on a Kubernetes of 3 nodes, create to RUNNING, median", ms(percentile(took, 50)), "", "", "≤ " + ms(most), percentile(took, 50) <= most})

	edits, memory, err := editConfigMap(ctx, c)
	if err != nil {
		return nil, err
	}
	median, worst := percentile(edits, 50), percentile(edits, 99)
	return append(rows,
		row{"ConfigMap edited → the kernels of 3 nodes hold it, 64 CIDRs, median and p99", ms(median) + ", " + ms(worst),
			"a mounted ConfigMap, quoted: " + ms(mountedConfigMap), ratio(median, mountedConfigMap), "p99 ≤ 1000.0 ms", worst <= time.Second},
		row{"the agent on a node, watching the API, after those edits: resident memory", fmt.Sprintf("%.1f MiB", memory), "", "", "≤ 40 MiB", memory <= 40},
	), nil
}

// createOn creates an environment on a cluster several times, and leaves the
// last one there.
func createOn(ctx context.Context, b *bench, c *kubetest.Cluster) (took []time.Duration, err error) {
	file := filepath.Join(b.dir, "clusters.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "clusters:\n- name: bench\n  location: %s\n  kubeconfig: %s\n  context: admin\n  nodeRange: %s\n  podRange: %s\n  probe: %s:%d\n",
		place.ID, c.Kubeconfig(), kubetest.NodeRange, kubetest.PodRange, kubetest.ServiceAddress, probe.Port), 0o600); err != nil {
		return nil, err
	}
	s, err := startServer(ctx, b, filepath.Join(b.dir, "data"), "--clusters", file,
		"--agent-image", images.Registry+"/"+images.Agent.Name+":"+imageTag, "--sordino-image", images.Registry+"/"+images.Server.Name+":"+imageTag)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	const times = 3
	for i := range times {
		began := time.Now()
		if err := create(ctx, s.Client, clusterBody(exampleID(i))); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
		if i < times-1 {
			if err := remove(ctx, s.Client, exampleID(i)); err != nil {
				return nil, err
			}
		}
	}
	return took, nil
}

// editConfigMap changes one range among 64 many times.
func editConfigMap(ctx context.Context, c *kubetest.Cluster) (took []time.Duration, memory float64, err error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, 0, err
	}
	config.QPS = -1 // the client's own brake is not what is measured
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, 0, err
	}
	maps := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("kube-system")

	// A node says when its kernel holds another generation than before.
	ctx, stop := context.WithCancel(ctx)
	held, failed := make(chan time.Time, 1000), make(chan error, len(c.Nodes))
	ended := make(chan struct{}, len(c.Nodes))
	for _, n := range c.Nodes {
		go func() {
			if err := generations(ctx, n, held); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("watching the rules of %s: %w", n.Name, err)
			}
			ended <- struct{}{}
		}()
	}
	defer func() {
		stop()
		for range c.Nodes {
			<-ended
		}
	}()
	const edits = 101
	for i := range edits {
		// Applied: an environment without a configuration has no ConfigMap.
		config := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "ip-masq-agent"},
			"data": map[string]any{"config": list(64, i)}}}
		began := time.Now()
		if _, err := maps.Apply(ctx, "ip-masq-agent", config, metav1.ApplyOptions{FieldManager: "bench", Force: true}); err != nil {
			return nil, 0, err
		}
		var last time.Time
		for range c.Nodes {
			select {
			case last = <-held:
			case err := <-failed:
				return nil, 0, err
			case <-ctx.Done():
				return nil, 0, ctx.Err()
			case <-time.After(30 * time.Second):
				return nil, 0, errors.New("a node does not hold the new configuration after 30 s")
			}
		}
		if i > 0 { // the first one ends what came before
			took = append(took, last.Sub(began))
		}
	}
	memory, err = agentsMemory(len(c.Nodes))
	return took, memory, err
}

// generations tells whenever the kernel of a node holds another generation.
func generations(ctx context.Context, n *kubetest.Node, held chan<- time.Time) (err error) {
	var rules *nftables.Backend
	if err := n.NS.Do(func() (err error) { rules, err = nftables.New(nftables.Options{}); return err }); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rules.Close()) }()
	before, err := rules.Held(ctx)
	if err != nil {
		return err
	}
	var listeners nfnotify.Listeners
	var heldErr error
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	return errors.Join(listeners.Listen(ctx, n.NS, func([]netlink.Message) {
		now, err := rules.Held(ctx)
		switch {
		case err != nil:
			heldErr = err
			stop()
		case now.Generation != before.Generation:
			before = now
			held <- time.Now()
		}
	}, func() {}, func() {}), heldErr)
}

// agentsMemory is the largest of the agents that run in the nodes.
func agentsMemory(want int) (float64, error) {
	folders, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	most, found := 0.0, 0
	for _, f := range folders {
		command, err := os.ReadFile(f + "/cmdline")
		if err != nil || !strings.HasPrefix(string(command), "/ip-masq-agent\x00") || !strings.Contains(string(command), "--config-source=kube") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(f))
		if err != nil {
			return 0, err
		}
		resident, err := residentMiB(pid)
		if err != nil {
			return 0, err
		}
		most, found = max(most, resident), found+1
	}
	if found != want {
		return 0, fmt.Errorf("%d agents run on the nodes, not %d", found, want)
	}
	return most, nil
}
