package labdriver

import (
	"fmt"
	"math/big"
	"net/netip"

	"sordino/environment"
	"sordino/environment/address"
	"sordino/lab"
)

// outside is the name of the service outside the cluster whose firewall lets
// only the node range in, and that tells callers how it sees them.
const outside = "probe-service"

// outsideAddresses are documentation ranges (RFC 5737): the first that is not
// in a range of the environment is the outside service's.
var outsideAddresses = []netip.Addr{
	netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("192.0.2.10"),
}

func nodeName(i int) string   { return fmt.Sprintf("node-%d", i+1) }
func workerName(i int) string { return fmt.Sprintf("airflow-worker-%d", i+1) }

// Worker is the name of a node's worker Pod.
func Worker(node string) (string, error) {
	var i int
	if n, err := fmt.Sscanf(node, "node-%d", &i); n != 1 || err != nil || i < 1 || nodeName(i-1) != node {
		return "", &environment.Error{Code: environment.NotFound, Reason: "NODE_NOT_FOUND",
			Message: fmt.Sprintf("there is no node %q; nodes are named node-1, node-2 and so on", node), Metadata: map[string]string{"node": node}}
	}
	return workerName(i - 1), nil
}

// Spec is the cluster that a plan describes, as a lab: the i-th node has the
// i-th block of the Pod range, and one worker Pod.
func Spec(p address.Plan) (lab.Spec, error) {
	var s lab.Spec
	refuse := func(format string, args ...any) (lab.Spec, error) {
		return lab.Spec{}, &environment.Error{Code: environment.FailedPrecondition, Reason: "PLAN_CANNOT_BE_BUILT", Message: fmt.Sprintf(format, args...)}
	}
	nodes, pods := p.Range(address.Nodes), p.Range(address.Pods)
	if !nodes.IsValid() || !pods.IsValid() || len(p.NodeAddresses) == 0 {
		return refuse("the environment's plan has no node range, no Pod range or no nodes")
	}
	for i, a := range p.NodeAddresses {
		block := p.NodePods(i)
		if !block.IsValid() {
			return refuse("the Pod range %s has no /%d for the node %s, number %d", pods, p.NodePodBits, a, i+1)
		}
		s.Nodes = append(s.Nodes, lab.Node{
			Name: nodeName(i), Addresses: []netip.Addr{a}, PodRanges: []netip.Prefix{block},
			Pods: []lab.Pod{{Name: workerName(i), Addresses: []netip.Addr{at(block, 2)}}},
		})
	}
	service, ok := outsideOf(p)
	if !ok {
		return refuse("the environment's ranges hold every address that the service outside could have: %v", outsideAddresses)
	}
	s.Outside = []lab.Service{{Name: outside, Addresses: []netip.Addr{service}, Allow: []netip.Prefix{nodes}}}
	if services := p.Range(address.Services); services.IsValid() {
		// One Service of the cluster, which the first worker is behind.
		s.Services = []lab.Virtual{{Address: at(services, 2), Pod: s.Nodes[0].Pods[0].Addresses[0]}}
	}
	return s, nil
}

// outsideOf is the address of the service outside.
func outsideOf(p address.Plan) (netip.Addr, bool) {
	for _, a := range outsideAddresses {
		inside := false
		for _, r := range p.Ranges {
			inside = inside || r.Prefix.Contains(a)
		}
		if !inside {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// at is the address of a number in a range, or its first one when it is too
// small for that.
func at(p netip.Prefix, n int64) netip.Addr {
	if a := plus(p.Masked().Addr(), big.NewInt(n)); p.Contains(a) {
		return a
	}
	return p.Masked().Addr()
}

func plus(a netip.Addr, n *big.Int) netip.Addr {
	sum := new(big.Int).Add(new(big.Int).SetBytes(a.AsSlice()), n)
	out := make([]byte, a.BitLen()/8)
	result, _ := netip.AddrFromSlice(sum.FillBytes(out))
	return result
}
