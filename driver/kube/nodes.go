package kubedriver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sordino/driver"
	"sordino/environment"
	"sordino/environment/address"
	"sordino/masq/configfile"
	"sordino/masq/kube"
)

// node is what is read of a Node.
type node struct{ kube.Node }

// notReady is why the kubelet does not run Pods; empty when it does.
func (n *node) notReady() string {
	switch c := n.Condition("Ready"); {
	case c == nil:
		return "its kubelet has not said anything yet"
	case c.Status != "True":
		return fmt.Sprintf("its kubelet is not ready (%s: %s)", c.Reason, c.Message)
	}
	return ""
}

// addresses are the node's of a family, the internal ones first.
func (n *node) addresses(is4 bool) []netip.Addr {
	var internal, others []netip.Addr
	for _, one := range n.Status.Addresses {
		a, err := netip.ParseAddr(one.Address)
		switch {
		case err != nil || a.Is4() != is4:
		case one.Type == "InternalIP":
			internal = append(internal, a)
		default:
			others = append(others, a)
		}
	}
	return append(internal, others...)
}

func (n *node) network() *environment.NodeNetwork {
	var out environment.NodeNetwork
	if all := n.addresses(true); len(all) > 0 {
		out.Address = all[0]
	}
	for _, text := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
			out.PodCIDR = p
			break
		}
	}
	return &out
}

// outside is which of the node's addresses the environment's plan does not hold;
// empty when it holds them. The agents go by the plan's ranges.
func (n *node) outside(e *environment.Environment) string {
	is := n.network()
	for _, has := range []struct {
		what, key string
		kind      address.Kind
		prefix    netip.Prefix
	}{
		{"address " + is.Address.String(), "nodeRange", address.Nodes, netip.PrefixFrom(is.Address, is.Address.BitLen())},
		{"Pod CIDR " + is.PodCIDR.String(), "podRange", address.Pods, is.PodCIDR},
	} {
		within := e.Plan.Range(has.kind)
		if has.prefix.IsValid() && within.IsValid() && !(within.Bits() <= has.prefix.Bits() && within.Contains(has.prefix.Addr())) {
			return fmt.Sprintf("its %s is not in the environment's %s range %s%s", has.what, has.kind, within, driver.Widen(e, has.key))
		}
	}
	return ""
}

// rejects is why the agent does not take the configuration with a digest;
// empty when it does, or has not looked at it.
func (n *node) rejects(digest string, now time.Time) string {
	if state, why := n.Agent(now); state == kube.AgentRejected && n.Metadata.Annotations[kube.AnnotationConfig] == digest {
		return why
	}
	return ""
}

// lacks is why the node does not hold a configuration; empty when it does.
func (n *node) lacks(digest string, now time.Time) string {
	state, why := n.Agent(now)
	// Whatever was told of a former configuration is no news; that none could be
	// asked for is.
	if state != kube.AgentSilent && n.Metadata.Annotations[kube.AnnotationConfig] != digest && n.Condition(kube.ConditionType).Reason != kube.ConfigUnavailable {
		return "its agent has not looked at the configuration yet"
	}
	return why
}

// traces are what an agent left on the Node.
func (n *node) traces() bool {
	if n.Condition(kube.ConditionType) != nil {
		return true
	}
	for key := range n.Metadata.Annotations {
		if strings.HasPrefix(key, kube.AnnotationPrefix) {
			return true
		}
	}
	return false
}

// observe tells of a node's agent.
func (n *node) observe(o *environment.ObservedNode) {
	o.Hash = n.Metadata.Annotations[kube.AnnotationHash]
	o.AppliedGeneration, _ = strconv.ParseUint(n.Metadata.Annotations[kube.AnnotationGeneration], 10, 64)
	o.DesiredGeneration = o.AppliedGeneration
	o.Findings = n.Findings()
}

// digestOf is a configuration as agents tell it. An empty text is none, and
// stands in the ConfigMap as it is.
func digestOf(text string) string {
	return configfile.Digest([]byte(text))
}

// nodes are the cluster's that count, in the order of their names.
func (c *cluster) nodes(ctx context.Context) ([]node, error) {
	all, err := list[node](ctx, c, selection{resource: nodes})
	all = slices.DeleteFunc(all, func(n node) bool { return !n.Counts() })
	slices.SortFunc(all, func(a, b node) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) })
	return all, err
}

// digestOfNodes tells whether nodes are the same, and the same have a worker, which
// taints may keep off: one that is deleted and made again under its name is another.
func digestOfNodes(all []node, workers []pod) string {
	with := map[string]bool{}
	for i := range workers {
		if p := &workers[i]; p.Metadata.DeletionTimestamp == nil {
			with[p.node()] = true
		}
	}
	sum := sha256.New()
	for i := range all {
		m := &all[i].Metadata
		fmt.Fprintln(sum, m.Name, m.UID, with[m.Name])
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
