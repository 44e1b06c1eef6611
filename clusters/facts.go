package clusters

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sordino/masq/kube"
)

// Facts are what a cluster says of itself.
type Facts struct {
	// Version is the API server's, for example "v1.37.2".
	Version string
	// Nodes are in the order of their names; those of other systems than Linux do not count.
	Nodes []Node
	// ServiceRanges are those of the ServiceCIDR objects; of the declaration
	// where the cluster has none.
	ServiceRanges []netip.Prefix
	// Claimed says that the namespace of a claim is there, ClaimedBy is the UUID
	// of the environment whose it is; empty when the namespace bears none.
	Claimed   bool
	ClaimedBy string
	// ForeignAgent says that a DaemonSet kube-system/ip-masq-agent is there and no
	// environment's: one with the agent is not made over it.
	ForeignAgent bool
}

// Node is one node.
type Node struct {
	Name string
	// Addresses are its internal addresses, PodCIDRs its shares of the Pod range:
	// none where the network plugin keeps them elsewhere.
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix
	// MaxPods is how many Pods the kubelet runs; 0 when it has not said.
	MaxPods int
	Ready   bool
}

const (
	// factsWithin bounds reading one cluster, allWithin reading many.
	factsWithin = 10 * time.Second
	allWithin   = 20 * time.Second
	// readers is how many clusters are read at a time.
	readers = 32
)

var (
	nodes = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	// serviceCIDRs are tried in this order: v1 came with Kubernetes 1.33.
	serviceCIDRs = []schema.GroupVersionResource{
		{Group: "networking.k8s.io", Version: "v1", Resource: "servicecidrs"},
		{Group: "networking.k8s.io", Version: "v1beta1", Resource: "servicecidrs"},
	}
)

// Reading is what came of reading one cluster.
type Reading struct {
	Cluster *Cluster
	Facts   Facts
	// Err is why it could not be read.
	Err error
}

// ReadAll reads several clusters at once, and returns what came of each, in
// their order.
func ReadAll(ctx context.Context, list []*Cluster) []Reading {
	ctx, cancel := context.WithTimeoutCause(ctx, allWithin, fmt.Errorf("no answer within %s", allWithin))
	defer cancel()
	readings := make([]Reading, len(list))
	var running sync.WaitGroup
	free := make(chan struct{}, readers)
	for i, c := range list {
		running.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			facts, err := ReadFacts(ctx, c)
			readings[i] = Reading{c, facts, err}
		})
	}
	running.Wait()
	return readings
}

// ReadFacts reads one cluster. It takes the permissions to list nodes and
// servicecidrs.networking.k8s.io, and to get the namespace of a claim and the
// agent's DaemonSet.
func ReadFacts(ctx context.Context, c *Cluster) (Facts, error) {
	config, err := c.RESTConfig()
	if err != nil {
		return Facts{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, factsWithin, fmt.Errorf("no answer within %s", factsWithin))
	defer cancel()
	facts, err := c.read(ctx, config)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Facts{}, fmt.Errorf("cluster %s at %s: %w; %s", c.Name, config.Host, err, c.Advice())
	}
	return facts, nil
}

func (c *Cluster) read(ctx context.Context, config *rest.Config) (f Facts, err error) {
	client, err := rest.UnversionedRESTClientFor(dynamic.ConfigFor(config))
	if err != nil {
		return f, err
	}
	// They are independent of each other, and a cluster may be far away.
	var running sync.WaitGroup
	errs := make([]error, 5)
	running.Go(func() { f.Version, errs[0] = readVersion(ctx, client) })
	running.Go(func() { f.Nodes, errs[1] = readNodes(ctx, client) })
	running.Go(func() { f.ServiceRanges, errs[2] = readServiceRanges(ctx, client) })
	running.Go(func() { f.Claimed, f.ClaimedBy, errs[3] = readClaim(ctx, client) })
	running.Go(func() { f.ForeignAgent, errs[4] = readAgent(ctx, client) })
	running.Wait()
	if len(f.ServiceRanges) == 0 && c.ServiceRange.IsValid() {
		f.ServiceRanges = []netip.Prefix{c.ServiceRange}
	}
	// One that is away says the same five times.
	for _, err := range errs {
		if err != nil {
			return Facts{}, err
		}
	}
	return f, nil
}

func readVersion(ctx context.Context, client rest.Interface) (string, error) {
	var answer struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := Get(ctx, client.Get().AbsPath("/version"), &answer); err != nil {
		return "", fmt.Errorf("reading the version: %w", err)
	}
	return answer.GitVersion, nil
}

func readNodes(ctx context.Context, client rest.Interface) ([]Node, error) {
	all, err := List[kube.Node](ctx, client, nodes, "", metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var list []Node
	for _, n := range all {
		if !n.Counts() {
			continue // neither agent nor worker runs there
		}
		node := Node{Name: n.Metadata.Name}
		for _, a := range n.Status.Addresses {
			if address, err := netip.ParseAddr(a.Address); err == nil && a.Type == "InternalIP" {
				node.Addresses = append(node.Addresses, address)
			}
		}
		for _, text := range n.Spec.PodCIDRs {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("reading node %s: %w", node.Name, err)
			}
			node.PodCIDRs = append(node.PodCIDRs, prefix.Masked())
		}
		_, _ = fmt.Sscanf(n.Status.Allocatable["pods"], "%d", &node.MaxPods)
		ready := n.Condition("Ready")
		node.Ready = ready != nil && ready.Status == "True"
		list = append(list, node)
	}
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// serviceCIDR is what is read of a ServiceCIDR.
type serviceCIDR struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		CIDRs []string `json:"cidrs"`
	} `json:"spec"`
}

func readServiceRanges(ctx context.Context, client rest.Interface) ([]netip.Prefix, error) {
	for _, resource := range serviceCIDRs {
		all, err := List[serviceCIDR](ctx, client, resource, "", metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var ranges []netip.Prefix
		for _, s := range all {
			for _, text := range s.Spec.CIDRs {
				prefix, err := netip.ParsePrefix(text)
				if err != nil {
					return nil, fmt.Errorf("reading ServiceCIDR %s: %w", s.Metadata.Name, err)
				}
				ranges = append(ranges, prefix.Masked())
			}
		}
		return ranges, nil
	}
	return nil, nil
}

func readAgent(ctx context.Context, client rest.Interface) (foreign bool, err error) {
	there, labels, err := labelsOf(ctx, client, "/apis/apps/v1/namespaces/kube-system/daemonsets/ip-masq-agent")
	if err != nil {
		return false, fmt.Errorf("reading the DaemonSet kube-system/ip-masq-agent: %w", err)
	}
	_, labelled := labels[EnvironmentLabel]
	return there && !labelled, nil
}

func readClaim(ctx context.Context, client rest.Interface) (claimed bool, by string, err error) {
	there, labels, err := labelsOf(ctx, client, "/api/v1/namespaces/"+Namespace)
	if err != nil {
		return false, "", fmt.Errorf("reading the namespace %s: %w", Namespace, err)
	}
	return there, labels[EnvironmentLabel], nil
}

// labelsOf are an object's labels, if it is there.
func labelsOf(ctx context.Context, client rest.Interface, path string) (there bool, labels map[string]string, err error) {
	var object struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	err = Get(ctx, client.Get().AbsPath(path), &object)
	if apierrors.IsNotFound(err) {
		return false, nil, nil
	}
	return err == nil, object.Metadata.Labels, err
}

// Contradiction is one thing in which a cluster is not what the file says, or
// that keeps environments off it.
type Contradiction struct {
	Message string
	// Fix says what to do.
	Fix string
}

func (c Contradiction) Error() string { return c.Message + "; " + c.Fix }

// Check compares a cluster's facts with its declaration.
func (c *Cluster) Check(f Facts) []Contradiction {
	var found []Contradiction
	add := func(fix, format string, args ...any) {
		found = append(found, Contradiction{fmt.Sprintf(format, args...), fix})
	}
	if len(f.Nodes) == 0 {
		add("add a node", "the cluster has no Node")
	}
	var lost, outside, strange []string
	for _, n := range f.Nodes {
		address := n.Address()
		switch {
		case !address.IsValid():
			lost = append(lost, n.Name)
		case !c.NodeRange.Contains(address):
			outside = append(outside, fmt.Sprintf("%s has %s", n.Name, address))
		}
		for _, p := range n.PodCIDRs {
			if p.Addr().Is4() && !holds(c.PodRange, p) {
				strange = append(strange, fmt.Sprintf("%s has %s", n.Name, p))
			}
		}
	}
	nodeRange, podRange := f.Suggest()
	if len(lost) > 0 {
		add("give the kubelet an IPv4 address with --node-ip", "Nodes have no internal IPv4 address: %s", Some(lost))
	}
	if len(outside) > 0 {
		add(fmt.Sprintf("write a range that holds %s", nodeRange), "Nodes' addresses are not in nodeRange %s: %s", c.NodeRange, Some(outside))
	}
	if len(strange) > 0 {
		add(fmt.Sprintf("write a range that holds %s", podRange), "Nodes' Pod CIDRs are not in podRange %s: %s", c.PodRange, Some(strange))
	}
	if !slices.ContainsFunc(f.ServiceRanges, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		add("write serviceRange: with what the API server's --service-cluster-ip-range is", "the cluster has no ServiceCIDR objects with an IPv4 range, and serviceRange is not declared")
	}
	for _, p := range f.ServiceRanges {
		switch {
		case !p.Addr().Is4():
		case c.ServiceRange.IsValid() && !holds(c.ServiceRange, p):
			add("leave it out: the cluster itself says it", "the cluster's Service range %s is not in serviceRange %s", p, c.ServiceRange)
		case c.NodeRange.Overlaps(p):
			add("write what Nodes' addresses are really from", "the cluster's Service range %s overlaps nodeRange %s", p, c.NodeRange)
		case c.PodRange.Overlaps(p):
			add("write what Nodes' Pod CIDRs are really from", "the cluster's Service range %s overlaps podRange %s", p, c.PodRange)
		}
	}
	if f.Claimed && f.ClaimedBy == "" {
		add("move what is in it elsewhere and delete the namespace: an environment makes and deletes it", "the namespace %s is there without the label %s: it is somebody else's", Namespace, EnvironmentLabel)
	}
	return found
}

// Address is the node's first internal IPv4 address; invalid when it has none.
func (n Node) Address() netip.Addr {
	if i := slices.IndexFunc(n.Addresses, netip.Addr.Is4); i >= 0 {
		return n.Addresses[i]
	}
	return netip.Addr{}
}

// Suggest are the smallest ranges that hold the Nodes' addresses and their Pod
// CIDRs; invalid where there are none.
func (f Facts) Suggest() (nodeRange, podRange netip.Prefix) {
	for _, n := range f.Nodes {
		if a := n.Address(); a.IsValid() {
			nodeRange = cover(nodeRange, netip.PrefixFrom(a, 32))
		}
		for _, p := range n.PodCIDRs {
			if p.Addr().Is4() {
				podRange = cover(podRange, p)
			}
		}
	}
	return nodeRange, podRange
}

// cover is the smallest range that holds both.
func cover(a, b netip.Prefix) netip.Prefix {
	if !a.IsValid() {
		return b
	}
	for bits := min(a.Bits(), b.Bits()); ; bits-- {
		if p := netip.PrefixFrom(a.Addr(), bits).Masked(); p.Contains(b.Addr()) {
			return p
		}
	}
}

func holds(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// Named is how many of many are named.
const Named = 3

// Some names a few of many.
func Some(list []string) string {
	if len(list) <= Named {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s, and %d more", strings.Join(list[:Named], ", "), len(list)-Named)
}
