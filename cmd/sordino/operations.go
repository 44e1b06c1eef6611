package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"
	composer "google.golang.org/api/composer/v1beta1"

	"sordino/client"
)

// operationMetadata is what an operation tells of itself; the steps are this
// server's own addition to Composer's OperationMetadata.
type operationMetadata struct {
	State         string `json:"state"`
	OperationType string `json:"operationType"`
	Resource      string `json:"resource"`
	CreateTime    string `json:"createTime"`
	EndTime       string `json:"endTime"`
	Steps         []struct {
		Name   string `json:"name"`
		State  string `json:"state"`
		Detail string `json:"detail"`
	} `json:"steps"`
	Plan *plan `json:"plan"`
}

// plan is what validateOnly tells of an environment.
type plan struct {
	Network    string `json:"network"`
	Subnetwork string `json:"subnetwork"`
	Ranges     []struct {
		Kind               string `json:"kind"`
		CIDRBlock          string `json:"cidrBlock"`
		ChosenBy           string `json:"chosenBy"`
		SecondaryRangeName string `json:"secondaryRangeName"`
	} `json:"ranges"`
	NodeAddresses       []string `json:"nodeAddresses"`
	NodePodPrefixLength int      `json:"nodePodPrefixLength"`
	MaxPodsPerNode      int      `json:"maxPodsPerNode"`
	MaxNodes            int      `json:"maxNodes"`
	MaxServices         int      `json:"maxServices"`
	Cluster             string   `json:"cluster"`
	AgentExempts        []string `json:"agentExempts"`
	Warnings            []string `json:"warnings"`
}

func writePlan(w io.Writer, p *plan) {
	if p.Cluster != "" {
		fmt.Fprintf(w, "cluster:    %s, which is there already\n", p.Cluster)
	}
	fmt.Fprintf(w, "network:    %s, subnetwork %s\n", p.Network, p.Subnetwork)
	fmt.Fprintf(w, "nodes:      %s; at most %d\n", strings.Join(p.NodeAddresses, ", "), p.MaxNodes)
	fmt.Fprintf(w, "Pods:       a /%d and at most %d Pods a node\n", p.NodePodPrefixLength, p.MaxPodsPerNode)
	if p.MaxServices > 0 {
		fmt.Fprintf(w, "Services:   at most %d\n", p.MaxServices)
	}
	if len(p.AgentExempts) > 0 {
		fmt.Fprintf(w, "the agent:  never masquerades to %s\n", strings.Join(p.AgentExempts, ", "))
	} else {
		fmt.Fprintln(w, "the agent:  not enabled; Pods are seen with addresses of their own")
	}
	var rows [][]string
	for _, r := range p.Ranges {
		rows = append(rows, []string{r.Kind, r.CIDRBlock, r.ChosenBy, r.SecondaryRangeName})
	}
	table(w, "RANGE\tCIDR\tCHOSEN BY\tSECONDARY RANGE", rows)
	for _, warning := range p.Warnings {
		fmt.Fprintf(w, "note:       %s\n", warning)
	}
}

func metadataOf(op *composer.Operation) (m operationMetadata) {
	_ = json.Unmarshal(op.Metadata, &m) // what cannot be read is shown as empty
	return m
}

func operationsCommand(r *remote) *cobra.Command {
	c := &cobra.Command{Use: "operations", Short: "What is under way, and what has ended in the last 30 days"}
	r.flags(c)
	list := &cobra.Command{Use: "list", Short: "List the operations of a location, the newest first", Args: cobra.NoArgs,
		RunE: r.connect(func(c *cobra.Command, _ []string, s *client.Client) error {
			parent, err := r.parent()
			if err != nil {
				return err
			}
			all := []*composer.Operation{}
			err = s.Composer.Projects.Locations.Operations.List(parent).Pages(c.Context(), func(p *composer.ListOperationsResponse) error {
				all = append(all, p.Operations...)
				return nil
			})
			if err != nil {
				return err
			}
			return r.print(c.OutOrStdout(), all, func(w io.Writer) {
				var rows [][]string
				for _, op := range all {
					m := metadataOf(op)
					rows = append(rows, []string{path.Base(op.Name), m.OperationType, path.Base(m.Resource), m.State, moment(m.CreateTime), moment(m.EndTime)})
				}
				table(w, "OPERATION\tTYPE\tENVIRONMENT\tSTATE\tSTARTED\tENDED", rows)
			})
		})}
	describe := &cobra.Command{Use: "describe OPERATION", Short: "Show one operation and its steps", Args: cobra.ExactArgs(1),
		RunE: r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
			name, err := r.name("operations", args[0])
			if err != nil {
				return err
			}
			op, err := s.Composer.Projects.Locations.Operations.Get(name).Context(c.Context()).Do()
			if err != nil {
				return err
			}
			return r.print(c.OutOrStdout(), op, func(w io.Writer) { describeOperation(w, op) })
		})}
	wait := &cobra.Command{Use: "wait OPERATION", Short: "Wait until an operation has ended; exit 1 when it failed", Args: cobra.ExactArgs(1),
		RunE: r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
			name, err := r.name("operations", args[0])
			if err != nil {
				return err
			}
			op, err := s.Composer.Projects.Locations.Operations.Get(name).Context(c.Context()).Do()
			if err != nil {
				return err
			}
			op, err = s.Wait(c.Context(), op, progress(c.ErrOrStderr()))
			return errors.Join(err, r.print(c.OutOrStdout(), op, func(w io.Writer) { describeOperation(w, op) }))
		})}
	remove := &cobra.Command{Use: "delete OPERATION", Short: "Forget an operation that has ended", Args: cobra.ExactArgs(1),
		RunE: r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
			name, err := r.name("operations", args[0])
			if err != nil {
				return err
			}
			_, err = s.Composer.Projects.Locations.Operations.Delete(name).Context(c.Context()).Do()
			return err
		})}
	for _, sub := range []*cobra.Command{list, describe, wait, remove} {
		r.locationFlag(sub)
		c.AddCommand(sub)
	}
	return c
}

func describeOperation(w io.Writer, op *composer.Operation) {
	m := metadataOf(op)
	fmt.Fprintf(w, "operation:   %s\ntype:        %s\nenvironment: %s\nstate:       %s\nstarted:     %s\n", op.Name, m.OperationType, m.Resource, m.State, moment(m.CreateTime))
	if m.EndTime != "" {
		fmt.Fprintf(w, "ended:       %s\n", moment(m.EndTime))
	}
	for _, s := range m.Steps {
		fmt.Fprintf(w, "step:        %-9s %s", strings.ToLower(s.State), s.Name)
		if s.Detail != "" {
			fmt.Fprintf(w, ": %s", s.Detail)
		}
		fmt.Fprintln(w)
	}
	if op.Error != nil {
		fmt.Fprintf(w, "error:       %s\n", op.Error.Message)
	}
}

// progress prints each step once as it begins and ends.
func progress(w io.Writer) client.Waiting {
	begun := time.Now()
	said := map[string]bool{}
	return func(op *composer.Operation) {
		for i, s := range metadataOf(op).Steps {
			key := fmt.Sprint(i, s.State, s.Detail)
			if s.State == "PENDING" || said[key] {
				continue
			}
			said[key] = true
			line := fmt.Sprintf("%6.1fs  %-9s %s", time.Since(begun).Seconds(), strings.ToLower(s.State), s.Name)
			if s.Detail != "" {
				line += ": " + s.Detail
			}
			fmt.Fprintln(w, line)
		}
	}
}

// finish waits for an operation unless it is not wished for, and prints it.
func (r *remote) finish(c *cobra.Command, s *client.Client, op *composer.Operation, async bool, ended func(io.Writer)) error {
	if op.Name == "" { // only validated
		return r.print(c.OutOrStdout(), op, func(w io.Writer) {
			m := metadataOf(op)
			fmt.Fprintf(w, "Valid: the %s of %s would be accepted. Nothing was changed.\n", strings.ToLower(m.OperationType), m.Resource)
			if m.Plan != nil {
				writePlan(w, m.Plan)
			}
		})
	}
	if async {
		return r.print(c.OutOrStdout(), op, func(w io.Writer) { describeOperation(w, op) })
	}
	fmt.Fprintf(c.ErrOrStderr(), "operation %s\n", op.Name)
	op, err := s.Wait(c.Context(), op, progress(c.ErrOrStderr()))
	if err != nil {
		return err
	}
	return r.print(c.OutOrStdout(), op, ended)
}
