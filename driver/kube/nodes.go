package kubedriver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sordino/environment"
)

// What an agent tells on its Node; docs/kubernetes.md has the meanings.
const (
	conditionType = "IPMasqueradeReady"

	generationAnnotation = "sordino.dev/masq-generation"
	hashAnnotation       = "sordino.dev/masq-hash"
	digestAnnotation     = "sordino.dev/masq-config"
	findingsAnnotation   = "sordino.dev/masq-findings"
	ownAnnotations       = "sordino.dev/masq-"
)

// silence is after how long without a heartbeat an agent's condition is not
// believed; there is one every 5 minutes.
const silence = 16 * time.Minute

// node is what is read of a Node.
type node struct {
	Metadata struct {
		Name        string            `json:"name"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

type condition struct {
	Type              string    `json:"type"`
	Status            string    `json:"status"`
	Reason            string    `json:"reason"`
	Message           string    `json:"message"`
	LastHeartbeatTime time.Time `json:"lastHeartbeatTime"`
}

func (n *node) condition(kind string) *condition {
	i := slices.IndexFunc(n.Status.Conditions, func(c condition) bool { return c.Type == kind })
	if i < 0 {
		return nil
	}
	return &n.Status.Conditions[i]
}

// ready is why the kubelet does not run Pods; empty when it does.
func (n *node) notReady() string {
	switch c := n.condition("Ready"); {
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

// rejects is why the agent does not take the configuration with a digest;
// empty when it does, or has not looked at it.
func (n *node) rejects(digest string) string {
	c := n.condition(conditionType)
	if c == nil || c.Status != "False" || c.Reason != "ConfigRejected" && c.Reason != "PlanRejected" || n.Metadata.Annotations[digestAnnotation] != digest {
		return ""
	}
	return c.Message
}

// lacks is why the node does not hold a configuration; empty when it does.
func (n *node) lacks(digest string, now time.Time) string {
	c := n.condition(conditionType)
	switch {
	case c == nil:
		return "its agent has not said anything yet (there is no condition " + conditionType + ")"
	case n.Metadata.Annotations[digestAnnotation] != digest:
		return "its agent has not looked at the configuration yet"
	case c.Status != "True":
		return fmt.Sprintf("%s: %s", c.Reason, c.Message)
	case !c.LastHeartbeatTime.IsZero() && now.Sub(c.LastHeartbeatTime) > silence:
		return fmt.Sprintf("its agent has said nothing since %s", c.LastHeartbeatTime.UTC().Format(time.RFC3339))
	}
	return ""
}

// traces are what an agent left on the Node.
func (n *node) traces() bool {
	if n.condition(conditionType) != nil {
		return true
	}
	for key := range n.Metadata.Annotations {
		if strings.HasPrefix(key, ownAnnotations) {
			return true
		}
	}
	return false
}

// observe tells of a node's agent.
func (n *node) observe(o *environment.ObservedNode) {
	o.Hash = n.Metadata.Annotations[hashAnnotation]
	o.AppliedGeneration, _ = strconv.ParseUint(n.Metadata.Annotations[generationAnnotation], 10, 64)
	o.DesiredGeneration = o.AppliedGeneration
	if text := n.Metadata.Annotations[findingsAnnotation]; text != "" {
		if err := json.Unmarshal([]byte(text), &o.Findings); err != nil {
			o.Findings = []string{text}
		}
	}
}

// digestOf is a configuration as agents tell it.
func digestOf(text string) string {
	if text == "" {
		return "none"
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// nodes are the cluster's in the order of their names; on those of Windows
// there is nothing to masquerade.
func (c *cluster) nodes(ctx context.Context) ([]node, error) {
	all, err := list[node](ctx, c, selection{resource: nodes})
	all = slices.DeleteFunc(all, func(n node) bool { return n.Metadata.Labels["kubernetes.io/os"] == "windows" })
	slices.SortFunc(all, func(a, b node) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) })
	return all, err
}

func digestOfNodes(all []node) string {
	sum := sha256.New()
	for i := range all {
		fmt.Fprintln(sum, all[i].Metadata.Name)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
