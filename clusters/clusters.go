// Package clusters holds the Kubernetes clusters that environments are placed
// on: the declared ones of a YAML file, how each is reached, and what it says of
// itself.
//
// It owns the file's format (see [Load]), the connection of a kubeconfig's
// context, and reading a cluster's facts: version, Nodes, Service ranges, and
// which environment has claimed it. It only reads. It refuses a file in which
// two clusters are the same one, or ranges of one cluster overlap, and tells
// every mistake with its line.
//
// To debug it, run "sordino clusters check FILE": it reads every cluster and
// says what does not fit the file.
package clusters

import (
	"net/netip"
	"slices"
)

// What a claim is made of: an environment claims a cluster by this namespace,
// with its UUID as the label's value. Everything that is applied bears the label.
const (
	Namespace        = "sordino"
	EnvironmentLabel = "sordino.dev/environment"
	// FieldManager is who applies it.
	FieldManager = "sordino"
)

// InCluster stands for a kubeconfig: the cluster that the server runs in.
const InCluster = "in-cluster"

// Cluster is one declared cluster.
type Cluster struct {
	// Name is unique in the file. An environment is stored with it: who renames
	// a cluster, takes it away from its environment.
	Name     string
	Location string
	// Kubeconfig is a path, InCluster, or empty: as kubectl finds it.
	Kubeconfig string
	// Context is one of the kubeconfig; empty with InCluster.
	Context string
	// NodeRange is what Nodes' addresses are from, PodRange what their Pod CIDRs
	// are from.
	NodeRange, PodRange netip.Prefix
	// ServiceRange is the Services' range where the cluster has no ServiceCIDR
	// objects; invalid when it is not declared.
	ServiceRange netip.Prefix
	// Probe answers every caller with its address; invalid when there is none.
	Probe netip.AddrPort
}

// Clusters are the declared clusters. They do not change.
type Clusters struct{ list []*Cluster }

// All are the clusters in the file's order.
func (c *Clusters) All() []*Cluster { return slices.Clone(c.list) }

// At are a location's clusters in the file's order, which is the order in which
// they are taken.
func (c *Clusters) At(location string) []*Cluster {
	var at []*Cluster
	for _, cluster := range c.list {
		if cluster.Location == location {
			at = append(at, cluster)
		}
	}
	return at
}

// ByName returns a cluster, or nil.
func (c *Clusters) ByName(name string) *Cluster {
	if i := slices.IndexFunc(c.list, func(cluster *Cluster) bool { return cluster.Name == name }); i >= 0 {
		return c.list[i]
	}
	return nil
}

// Locations are those that have a cluster, in order.
func (c *Clusters) Locations() []string {
	var locations []string
	for _, cluster := range c.list {
		locations = append(locations, cluster.Location)
	}
	slices.Sort(locations)
	return slices.Compact(locations)
}
