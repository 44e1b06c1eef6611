// Package kube is the agent in a cluster: its configuration comes from the
// Kubernetes API, and what it does is told there.
//
// It owns following the cluster ([Source]: the configuration as a [Content], the
// agent's own Node and the ServiceCIDRs as ranges) and what stands on the Node
// ([Reporter]: condition, annotations, Events). A ConfigMap is one Content;
// EgressNATPolicies, in masq/kube/egressnat, are another.
//
// It refuses to change a rule because the API server is away: what was seen
// last counts until something else is seen. It never writes to anything but its
// own Node's status, and Events about it.
//
// What the cluster says of this node's Pods only exempts; see
// [masq.ClusterRanges]. Which sources are Pods is for a person to say.
//
// To debug it, ask the agent's /status: "remote" has what does not work, and
// "configFrom" what the rules are made from. With --v=4 every request is logged.
package kube
