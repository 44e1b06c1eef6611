package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sordino/clusters"
	"sordino/clusters/fleet"
	"sordino/internal/count"
	"sordino/masq/kube"
)

// watchInterval is how often --watch looks.
const watchInterval = 2 * time.Second

// fleetStatus asks a cluster and no server, so that it also serves those who
// have only the agent.
func (r *remote) fleetStatus() *cobra.Command {
	var cluster clusters.Cluster
	var configMap string
	var watch bool
	c := &cobra.Command{
		Use: "status", Short: "Show which node of a Kubernetes cluster holds which rules, and which one refused them and why; exit 1 while not all are ready and current", Args: cobra.NoArgs,
		Long: `Shows the agents of a Kubernetes cluster, a line a node, as they tell of
themselves on their Nodes. It asks the cluster of a kubeconfig and needs no
server: --server, --token-file, --ca-file and --project are the other commands'
and mean nothing here. A node is

  ready     the kernel holds what the configuration means
  rejected  the agent refused the configuration, or can make no rules of it on
            this node; what held before goes on
  failed    the kernel does not hold what is desired, or the agent cannot ask
            what that is
  silent    nobody keeps its condition up: no condition, no heartbeat for ` + fmt.Sprint(kube.SilentAfter.Minutes()) + `
            minutes, or no agent's Pod on it

and its configuration is "current", or "behind" when the agent has not seen the
ConfigMap (or the EgressNATPolicies) as it is now. A note says what takes effect
otherwise than its author may think: a key that nobody knows, say.`,
		Example: "  sordino masq status --context cluster-1\n  sordino masq status --context cluster-1 --watch",
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := r.checkFormat(); err != nil {
			return err
		}
		namespace, name, ok := strings.Cut(configMap, "/")
		if !ok || namespace == "" || name == "" {
			return fmt.Errorf("--config-map %q: write it as NAMESPACE/NAME", configMap)
		}
		if cluster.Name = cluster.Context; cluster.Name == "" {
			cluster.Name = "of the current context"
		}
		config, err := cluster.RESTConfig()
		if err != nil {
			return err
		}
		reader, err := fleet.NewReader(config, namespace, name)
		if err != nil {
			return err
		}
		read := func() (fleet.Fleet, error) {
			f, err := reader.Read(c.Context())
			if err != nil {
				err = fmt.Errorf("cluster %s at %s: %w; %s", cluster.Name, config.Host, err, cluster.Advice())
			}
			return f, err
		}
		print := func(f fleet.Fleet) error {
			return r.print(c.OutOrStdout(), f, func(w io.Writer) { writeFleet(w, f, cluster.Kubectl()) })
		}
		if watch {
			return watchFleet(c.Context(), c.ErrOrStderr(), read, print)
		}
		f, err := read()
		if err != nil {
			return err
		}
		if err := print(f); err != nil {
			return err
		}
		if !f.InForce {
			return exit(1)
		}
		return nil
	}
	f := c.Flags()
	f.StringVar(&cluster.Context, "context", "", "the kubeconfig's context (default: its current one)")
	f.StringVar(&cluster.Kubeconfig, "kubeconfig", "", "the kubeconfig (default: as kubectl finds it)")
	f.StringVar(&configMap, "config-map", "kube-system/ip-masq-agent", "the ConfigMap that the agents read, whose namespace they are in")
	f.BoolVarP(&watch, "watch", "w", false, "print again whenever something changed, until Ctrl-C")
	return c
}

// watchFleet prints what changed. A cluster that does not answer for a while is
// told of and asked again.
func watchFleet(ctx context.Context, stderr io.Writer, read func() (fleet.Fleet, error), print func(fleet.Fleet) error) error {
	var last fleet.Fleet
	var lastErr string
	for {
		f, err := read()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			if err.Error() != lastErr {
				lastErr = err.Error()
				fmt.Fprintln(stderr, "sordino:", err)
			}
		case !reflect.DeepEqual(f, last):
			if err := print(f); err != nil {
				return err
			}
			last, lastErr = f, ""
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchInterval):
		}
	}
}

func writeFleet(w io.Writer, f fleet.Fleet, kubectl string) {
	var rows [][]string
	for _, n := range f.Nodes {
		config := "-"
		switch {
		case n.Config == "":
		case n.Current:
			config = short(n.Config) + " current"
		default:
			config = short(n.Config) + " behind"
		}
		rows = append(rows, []string{n.Name, dash(n.Address), string(n.State), dash(n.Generation), dash(short(n.Hash)), config, dash(n.Version), firstLine(n.Reason)})
	}
	table(w, "NODE\tADDRESS\tSTATE\tGENERATION\tHASH\tCONFIG\tAGENT\tREASON", rows)
	counts := []string{}
	for _, s := range []kube.AgentState{kube.AgentReady, kube.AgentRejected, kube.AgentFailed, kube.AgentSilent} {
		if f.Counts[s] > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", f.Counts[s], s))
		}
	}
	if f.Behind > 0 {
		counts = append(counts, fmt.Sprintf("%d not current", f.Behind))
	}
	var sources []string
	for _, s := range f.Sources {
		if s.Error != "" {
			sources = append(sources, fmt.Sprintf("%s are not known: %s", s.Name, s.Error))
			continue
		}
		sources = append(sources, fmt.Sprintf("%s is %s", s.Name, short(s.Digest)))
	}
	fmt.Fprintf(w, "%s: %s. %s.\n", count.Of(len(f.Nodes), "node"), cmp.Or(strings.Join(counts, ", "), "nobody runs the agent"), strings.Join(sources, ", "))
	if len(f.Nodes) > 0 && !slices.ContainsFunc(f.Nodes, func(n fleet.Node) bool { return n.State != kube.AgentSilent || n.Config != "" }) {
		fmt.Fprintf(w, "No agent has ever told anything here: %s apply -k deploy/agent installs it.\n", kubectl)
	}
	writeNotes(w, f.Nodes)
}

// writeNotes tells what the agents found, what most of them say first. Some
// findings name their node's own ranges: of those of a thousand nodes a few do.
func writeNotes(w io.Writer, nodes []fleet.Node) {
	on := map[string][]string{}
	for _, n := range nodes {
		for _, text := range n.Findings {
			on[text] = append(on[text], n.Name)
		}
	}
	notes := slices.SortedFunc(maps.Keys(on), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(on[b]), len(on[a])), cmp.Compare(on[a][0], on[b][0]), cmp.Compare(a, b))
	})
	const most = 5
	for _, text := range notes[:min(len(notes), most)] {
		fmt.Fprintf(w, "note: %s (%s)\n", firstLine(text), clusters.Some(on[text]))
	}
	if more := len(notes) - most; more > 0 {
		fmt.Fprintf(w, "and %s; --format json has all of them\n", count.Of(more, "more note"))
	}
}

// short is as much of a digest as a person compares.
func short(digest string) string { return digest[:min(len(digest), 12)] }

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// firstLine leaves a table a table.
func firstLine(text string) string {
	line, _, more := strings.Cut(text, "\n")
	if more {
		line += " …"
	}
	return line
}
