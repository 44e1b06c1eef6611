package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	masqv1 "sordino/api/sordino/masq/v1"
	"sordino/client"
)

func masqCommand(r *remote) *cobra.Command {
	c := &cobra.Command{Use: "masq", Short: "The ip-masq-agents of an environment, or of any Kubernetes cluster: configuration, state, explanations",
		Long: `The ip-masq-agents of an environment, by the server. "status" alone asks a
Kubernetes cluster, with or without environments, and no server: of the flags
about the server, the token and the project it uses none.`}
	r.flags(c)
	for _, sub := range []*cobra.Command{r.describeMasq(), r.setMasq(), r.planMasq(), r.explainMasq()} {
		r.locationFlag(sub)
		sub.ValidArgsFunction = r.completeEnvironments
		c.AddCommand(sub)
	}
	c.AddCommand(r.fleetStatus())
	return c
}

// agentName is the full name of an environment's agent.
func (r *remote) agentName(c *cobra.Command, s *client.Client, environment string) (string, error) {
	name, err := r.environment(c.Context(), s, environment)
	return name + "/masqAgent", err
}

func (r *remote) describeMasq() *cobra.Command {
	c := &cobra.Command{Use: "describe ENVIRONMENT", Short: "Show the configuration, what is exempt by itself, and what every node holds; exit 1 while a node does not hold it", Args: cobra.ExactArgs(1)}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		name, err := r.agentName(c, s, args[0])
		if err != nil {
			return err
		}
		agent, err := s.Masq.GetMasqAgent(c.Context(), &masqv1.GetMasqAgentRequest{Name: name})
		if err != nil {
			return err
		}
		if err := r.print(c.OutOrStdout(), agent, func(w io.Writer) { writeAgent(w, agent) }); err != nil {
			return err
		}
		if !agent.InForce {
			return exit(1)
		}
		return nil
	})
	return c
}

func writeAgent(w io.Writer, a *masqv1.MasqAgent) {
	fmt.Fprintf(w, "generation: %d\n", a.Generation)
	if a.Config == "" {
		fmt.Fprintln(w, "config:     none, so the defaults hold")
	} else {
		fmt.Fprintf(w, "config:\n  %s\n", strings.ReplaceAll(strings.TrimRight(a.Config, "\n"), "\n", "\n  "))
	}
	for _, e := range a.AutomaticExemptions {
		fmt.Fprintf(w, "exempt:     %s, the cluster's %s range\n", e.Cidr, e.Kind)
	}
	fmt.Fprintf(w, "in all:     Pods keep their address towards %s\n", strings.Join(a.EffectiveNonMasqueradeCidrs, ", "))
	if a.Proof != "" {
		fmt.Fprintf(w, "proof:      %s (%s)\n", a.Proof, a.ProofTime.AsTime().Format("2006-01-02 15:04:05 MST"))
	} else {
		fmt.Fprintln(w, "proof:      none by a packet")
	}
	if a.UnseenTime != nil {
		fmt.Fprintf(w, "NOT SEEN:   since %s: %s\n", a.UnseenTime.AsTime().Format("2006-01-02 15:04:05 MST"), a.UnseenCause)
	}
	var rows [][]string
	for _, n := range a.Nodes {
		state := "ready"
		if !n.Ready {
			state = "NOT READY"
		}
		rows = append(rows, []string{n.Name, n.Address, n.PodCidr, state, fmt.Sprint(n.ConfigGeneration), fmt.Sprintf("%d/%d", n.AppliedGeneration, n.DesiredGeneration), n.Hash, n.Error})
	}
	if len(rows) == 0 {
		fmt.Fprintln(w, "nodes:      none was seen at work; \"sordino operations list\" leads to the operation that says why")
	} else {
		table(w, "NODE\tADDRESS\tPODS\tSTATE\tCONFIG\tRULES\tHASH\tERROR", rows)
	}
	said := map[string]bool{}
	for _, n := range a.Nodes {
		for _, f := range n.Findings {
			if !said[f] {
				said[f] = true
				fmt.Fprintf(w, "note:       %s\n", f)
			}
		}
	}
}

// configText reads a configuration from a file, or standard input for "-".
func configText(c *cobra.Command, path string) (string, error) {
	var text []byte
	var err error
	if path == "-" {
		text, err = io.ReadAll(io.LimitReader(c.InOrStdin(), 1<<20))
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fmt.Errorf("reading the agent's configuration: %w", err)
	}
	return string(text), nil
}

func (r *remote) setMasq() *cobra.Command {
	var async, validateOnly, defaults bool
	var requestID, etag string
	c := &cobra.Command{
		Use: "set ENVIRONMENT FILE", Short: "Replace the configuration and roll it out node by node (- is standard input)",
		Long: `Replaces the configuration of an environment's agents: what the ConfigMap
ip-masq-agent holds, in YAML or JSON. It is checked whole for the environment's
ranges, then rolled out node by node. The first node that rejects it ends that:
all nodes get the former one back, and the command ends with 1 and the reason.
"sordino masq plan" shows before what would change.`,
		Example: "  sordino masq set example-environment --location us-central1 ip-masq-agent.yaml\n  sordino masq set example-environment --location us-central1 --defaults",
		Args:    cobra.RangeArgs(1, 2),
	}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		if defaults == (len(args) == 2) {
			return errors.New("name a file, or give --defaults to go back to the defaults")
		}
		name, err := r.agentName(c, s, args[0])
		if err != nil {
			return err
		}
		text := ""
		if !defaults {
			if text, err = configText(c, args[1]); err != nil {
				return err
			}
			if strings.TrimSpace(text) == "" {
				return fmt.Errorf("%s is empty; to go back to the defaults give --defaults", args[1])
			}
		}
		op, err := s.Masq.UpdateMasqAgent(c.Context(), &masqv1.UpdateMasqAgentRequest{
			MasqAgent: &masqv1.MasqAgent{Name: name, Config: text, Etag: etag}, ValidateOnly: validateOnly, RequestId: requestID})
		if err != nil {
			return err
		}
		if validateOnly {
			return r.print(c.OutOrStdout(), op, func(w io.Writer) {
				fmt.Fprintln(w, "Valid: the configuration would be accepted. Nothing was changed.")
			})
		}
		started, err := s.Composer.Projects.Locations.Operations.Get(op.Name).Context(c.Context()).Do()
		if err != nil {
			return err
		}
		return r.finish(c, s, started, async, func(w io.Writer) { fmt.Fprintf(w, "All nodes of %s hold the configuration.\n", args[0]) })
	})
	c.Flags().BoolVar(&async, "async", false, "do not wait for the roll-out")
	c.Flags().BoolVar(&validateOnly, "validate-only", false, "check, change nothing")
	c.Flags().BoolVar(&defaults, "defaults", false, "go back to the defaults")
	c.Flags().StringVar(&requestID, "request-id", "", "make the request idempotent")
	c.Flags().StringVar(&etag, "etag", "", "change it only if it is still the one that was described")
	return c
}

func (r *remote) planMasq() *cobra.Command {
	c := &cobra.Command{Use: "plan ENVIRONMENT FILE", Short: "Show what a configuration would change in every node's kernel; exit 0 nothing, 2 changes", Args: cobra.ExactArgs(2)}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		name, err := r.agentName(c, s, args[0])
		if err != nil {
			return err
		}
		text, err := configText(c, args[1])
		if err != nil {
			return err
		}
		plan, err := s.Masq.PlanMasqAgent(c.Context(), &masqv1.PlanMasqAgentRequest{Name: name, Config: text})
		if err != nil {
			return err
		}
		changes := false
		err = r.print(c.OutOrStdout(), plan, func(w io.Writer) {
			for _, warning := range plan.Warnings {
				fmt.Fprintf(w, "note: %s\n", warning)
			}
			for _, n := range plan.Nodes {
				switch {
				case n.Error != "":
					fmt.Fprintf(w, "%s: %s\n", n.Node, n.Error)
				case len(n.Changes) == 0:
					fmt.Fprintf(w, "%s: no changes\n", n.Node)
				}
				for _, change := range n.Changes {
					fmt.Fprintf(w, "%s: %s\n", n.Node, change)
				}
			}
		})
		for _, n := range plan.Nodes {
			if n.Error != "" && err == nil {
				err = exit(1)
			}
			changes = changes || len(n.Changes) > 0
		}
		if err == nil && changes {
			err = exit(2)
		}
		return err
	})
	return c
}

func (r *remote) explainMasq() *cobra.Command {
	var q masqv1.ExplainFlowRequest
	var allNodes bool
	c := &cobra.Command{
		Use: "explain ENVIRONMENT --src A --dst B", Short: "Say what the nodes do with a flow, which line decided, and which foreign rule interferes", Args: cobra.ExactArgs(1),
		Example: "  sordino masq explain example-environment --location us-central1 --src 10.16.0.2 --dst 203.0.113.10 --proto tcp --dport 443",
	}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) (err error) {
		if q.Name, err = r.agentName(c, s, args[0]); err != nil {
			return err
		}
		answer, err := s.Masq.ExplainFlow(c.Context(), &q)
		if err != nil {
			return err
		}
		return r.print(c.OutOrStdout(), answer, func(w io.Writer) { writeExplanations(w, answer.Nodes, allNodes) })
	})
	c.Flags().StringVar(&q.Source, "src", "", "the Pod's address")
	c.Flags().StringVar(&q.Destination, "dst", "", "the destination's address")
	c.Flags().StringVar(&q.Protocol, "proto", "", "tcp, udp, icmp, …")
	c.Flags().Int32Var(&q.DestinationPort, "dport", 0, "the destination's port")
	c.Flags().BoolVar(&allNodes, "all-nodes", false, "also the nodes that the source is not on")
	for _, f := range []string{"src", "dst"} {
		if err := c.MarkFlagRequired(f); err != nil {
			panic(err) // the flag is defined two lines above
		}
	}
	return c
}

func writeExplanations(w io.Writer, nodes []*masqv1.NodeExplanation, all bool) {
	here := false
	for _, n := range nodes {
		here = here || n.SourceIsHere
	}
	if !here {
		fmt.Fprintln(w, "The source is no Pod of this environment; this is what each node would do with it:")
	}
	for _, n := range nodes {
		if here && !n.SourceIsHere && !all {
			continue
		}
		if n.Error != "" {
			fmt.Fprintf(w, "%s: %s\n", n.Node, n.Error)
			continue
		}
		fmt.Fprintf(w, "%s: %s: %s\n", n.Node, n.Action, n.Reason)
		if n.DecidedCidr != "" {
			fmt.Fprintf(w, "  decided:  %s, from %s\n", n.DecidedCidr, n.DecidedOrigin)
		}
		if n.SeenAs != "" {
			fmt.Fprintf(w, "  seen as:  %s\n", n.SeenAs)
		}
		for _, i := range n.Interfering {
			fmt.Fprintf(w, "  others:   %s\n", i)
		}
	}
}
