package clusters

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"sordino/environment"
	"sordino/environment/address"
)

// Read implements environment.Clusters.
func (c *Clusters) Read(ctx context.Context, location string) []environment.Cluster {
	var out []environment.Cluster
	for _, r := range ReadAll(ctx, c.At(location)) {
		out = append(out, r.forEnvironment())
	}
	return out
}

// forEnvironment is a reading in the domain's terms.
func (r Reading) forEnvironment() environment.Cluster {
	out := environment.Cluster{Existing: address.Existing{Name: r.Cluster.Name, NodeRange: r.Cluster.NodeRange, Pods: r.Cluster.PodRange}, Unfit: r.Err}
	if r.Err != nil {
		return out
	}
	if found := r.Cluster.Check(r.Facts); len(found) > 0 {
		var errs []error
		for _, contradiction := range found {
			errs = append(errs, contradiction)
		}
		out.Unfit = fmt.Errorf("it is not what the clusters file declares, see \"sordino clusters check\": %w", errors.Join(errs...))
		return out
	}
	out.ClaimedBy = r.Facts.ClaimedBy
	for _, s := range r.Facts.ServiceRanges {
		if s.Addr().Is4() {
			out.Services = append(out.Services, s)
		}
	}
	for _, n := range r.Facts.Nodes {
		out.Nodes = append(out.Nodes, n.Address())
		if n.MaxPods > 0 && (out.MaxPodsPerNode == 0 || n.MaxPods < out.MaxPodsPerNode) {
			out.MaxPodsPerNode = n.MaxPods
		}
		if p := n.PodCIDR(); p.IsValid() {
			out.NodePodBits = max(out.NodePodBits, p.Bits())
		}
	}
	return out
}

// PodCIDR is the node's first IPv4 share of the Pod range; invalid when it has
// none.
func (n Node) PodCIDR() netip.Prefix {
	for _, p := range n.PodCIDRs {
		if p.Addr().Is4() {
			return p
		}
	}
	return netip.Prefix{}
}
