// Package egressnat takes the agent's configuration from EgressNATPolicy
// objects (networking.gke.io/v1), as GKE Autopilot and Composer 2's clusters
// have them.
//
// It owns the objects' meaning: towards the destinations of all policies together
// Pods keep their own address, whoever manages a policy; towards everything
// else, but for the cluster's own ranges, they get the node's. It owns the
// condition "Accepted" of every policy, too.
//
// It refuses half a configuration: one policy that cannot be used keeps all of
// them from taking effect, and what held before goes on. A cluster that does not
// know the kind is not one without policies: there the last good configuration
// goes on, or the file's.
//
// To debug it: kubectl get egressnatpolicies -o wide, and the agent's /status.
package egressnat
