package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"sordino/clusters"
	"sordino/masq"
)

func clustersCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "clusters",
		Short: "The existing clusters that environments are placed on",
	}
	c.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Read every cluster of a clusters file, and say what does not fit",
		Long: `Reads the clusters file of "sordino serve --clusters" and every cluster in it, as
the server does for a create, and changes nothing. It prints each cluster's
version, nodes and ranges, who has claimed it, whether an agent is installed that
is no environment's, what contradicts the file and what to write instead. It ends
with 1 when the file has a mistake, or a cluster does not answer or is not what
the file says; a cluster that is claimed is none. Whether nodes can pull the
images is only seen when an environment is created.

The probe target of a cluster proves that its Pods are masqueraded only where the
environment's configuration masquerades to it. By default it does not to
10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16: a target in there proves that Pods
keep their own address, and no more.`,
		Example: "  sordino clusters check clusters.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			declared, err := clusters.Load(args[0])
			if err != nil {
				return err
			}
			unfit := 0
			readings := clusters.ReadAll(c.Context(), declared.All())
			for _, r := range readings {
				if !writeReading(c.OutOrStdout(), r) {
					unfit++
				}
			}
			if unfit > 0 {
				return fmt.Errorf("%d of %d clusters cannot take an environment", unfit, len(readings))
			}
			return nil
		},
	})
	return c
}

// writeReading says what a cluster is like, and whether it is as declared.
func writeReading(w io.Writer, r clusters.Reading) bool {
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %-10s%s\n", what, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "%s, at %s\n", r.Cluster.Name, r.Cluster.Location)
	if r.Err != nil {
		line("WRONG", "%v", r.Err)
		return false
	}
	ready := 0
	var nodes []string
	for _, n := range r.Facts.Nodes {
		state := ""
		if n.Ready {
			ready++
		} else {
			state = " NOT READY"
		}
		if len(nodes) < 5 {
			nodes = append(nodes, fmt.Sprintf("%s (%s%s)", n.Name, listed(n.Addresses), state))
		}
	}
	if more := len(r.Facts.Nodes) - len(nodes); more > 0 {
		nodes = append(nodes, fmt.Sprintf("and %d more", more))
	}
	line("version", "%s", r.Facts.Version)
	line("nodes", "%d, %d ready: %s", len(r.Facts.Nodes), ready, strings.Join(nodes, ", "))
	nodeRange, podRange := r.Facts.Suggest()
	line("has", "nodes in %s, Pod CIDRs in %s, Services in %s", orNone(nodeRange), orNone(podRange), listed(r.Facts.ServiceRanges))
	line("declared", "nodeRange %s, podRange %s", r.Cluster.NodeRange, r.Cluster.PodRange)
	if r.Cluster.Probe.IsValid() {
		line("probe", "%s; \"sordino probe\" in a worker Pod asks it", r.Cluster.Probe)
		for _, exempt := range masq.DefaultNonMasquerade(false) {
			if exempt.Prefix.Contains(r.Cluster.Probe.Addr()) {
				line("", "it is in %s, to which Pods keep their own address by default: that does not prove the masquerade", exempt.Prefix)
			}
		}
	} else {
		line("probe", "none: that workers are seen as their nodes will not be proven")
	}
	switch {
	case r.Facts.ClaimedBy != "":
		line("claim", "taken by the environment with UUID %s", r.Facts.ClaimedBy)
	case !r.Facts.Claimed:
		line("claim", "free")
	}
	if r.Facts.ForeignAgent {
		line("agent", "a DaemonSet kube-system/ip-masq-agent is there that is no environment's: one with the agent is refused until it is deleted, or handed over by the label %s=", clusters.EnvironmentLabel)
	}
	found := r.Cluster.Check(r.Facts)
	for _, contradiction := range found {
		line("WRONG", "%v", contradiction)
	}
	return len(found) == 0
}

func listed[T fmt.Stringer](list []T) string {
	if len(list) == 0 {
		return "none"
	}
	var texts []string
	for _, one := range list {
		texts = append(texts, one.String())
	}
	return strings.Join(texts, ", ")
}

func orNone(p netip.Prefix) string {
	if !p.IsValid() {
		return "none"
	}
	return p.String()
}
