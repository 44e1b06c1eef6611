package main

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	composer "google.golang.org/api/composer/v1beta1"
	"google.golang.org/api/googleapi"

	"sordino/client"
)

func environmentsCommand(r *remote) *cobra.Command {
	c := &cobra.Command{Use: "environments", Short: "Create, look at, change and delete environments"}
	r.flags(c)
	for _, sub := range []*cobra.Command{r.describeEnvironment(), r.updateEnvironment(), r.deleteEnvironment(), r.runInEnvironment()} {
		sub.ValidArgsFunction = r.completeEnvironments
		c.AddCommand(sub)
	}
	c.AddCommand(r.createEnvironment(), r.listEnvironments())
	return c
}

func (r *remote) createEnvironment() *cobra.Command {
	var f environmentFlags
	var async, validateOnly bool
	var requestID string
	c := &cobra.Command{
		Use:   "create ENVIRONMENT",
		Short: "Create an environment; the flags are gcloud's",
		Long: `Creates an environment and waits until it is RUNNING: its nodes and Pods are
there, and where the agent is enabled a packet was seen to come from a node's
address. What is not given is chosen by the server; --validate-only shows what.

To start with, this is all that it takes on the machine of the server:
  eval "$(sordino env sordino)"
  sordino environments create example-environment --enable-ip-alias --enable-ip-masq-agent`,
		Example: `  sordino environments create example-environment --location us-central1 \
      --image-version composer-1.20.12-airflow-1.10.15 --enable-ip-alias --enable-ip-masq-agent
  sordino environments create small --location us-central1 --validate-only`,
		Args: cobra.ExactArgs(1),
	}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		parent, err := r.parent()
		if err != nil {
			return err
		}
		environment, err := f.environment(c.Flags())
		if err != nil {
			return err
		}
		environment.Name = parent + "/environments/" + args[0]
		op, err := s.Composer.Projects.Locations.Environments.Create(parent, environment).Context(c.Context()).Do(extensions(validateOnly, requestID)...)
		if err != nil {
			return err
		}
		return r.finish(c, s, op, async, func(w io.Writer) { fmt.Fprintf(w, "Created environment %s.\n", args[0]) })
	})
	f.create(c.Flags())
	r.changeFlags(c, &async, &validateOnly, &requestID)
	return c
}

// changeFlags are those of every command that changes something.
func (r *remote) changeFlags(c *cobra.Command, async, validateOnly *bool, requestID *string) {
	r.locationFlag(c)
	c.Flags().BoolVar(async, "async", false, "do not wait for the operation to end")
	c.Flags().BoolVar(validateOnly, "validate-only", false, "check and plan, change nothing")
	c.Flags().StringVar(requestID, "request-id", "", "make the request idempotent: the same id again returns the same operation")
}

// extensions are the query parameters that Composer's own API does not have.
func extensions(validateOnly bool, requestID string) (options []googleapi.CallOption) {
	if validateOnly {
		options = append(options, googleapi.QueryParameter("validateOnly", "true"))
	}
	if requestID != "" {
		options = append(options, googleapi.QueryParameter("requestId", requestID))
	}
	return options
}

func (r *remote) describeEnvironment() *cobra.Command {
	c := &cobra.Command{Use: "describe ENVIRONMENT", Short: "Show an environment", Args: cobra.ExactArgs(1)}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		name, err := r.environment(c.Context(), s, args[0])
		if err != nil {
			return err
		}
		e, err := s.Composer.Projects.Locations.Environments.Get(name).Context(c.Context()).Do()
		if err != nil {
			return err
		}
		if r.format == "" {
			r.format = "yaml" // as gcloud does
		}
		return r.print(c.OutOrStdout(), e, nil)
	})
	r.locationFlag(c)
	return c
}

func (r *remote) listEnvironments() *cobra.Command {
	var locations []string
	c := &cobra.Command{Use: "list", Short: "List environments", Args: cobra.NoArgs}
	c.RunE = r.connect(func(c *cobra.Command, _ []string, s *client.Client) error {
		if len(locations) == 0 {
			locations = []string{"-"}
		}
		all := []*composer.Environment{}
		for _, location := range locations {
			found, err := r.environmentsAt(c.Context(), s, location)
			if err != nil {
				return err
			}
			all = append(all, found...)
		}
		if len(all) == 0 && !slices.Contains(locations, "-") {
			// The API lists nothing where nothing can be, too: it may be mistyped.
			elsewhere, err := r.environmentsAt(c.Context(), s, "-")
			if err != nil {
				return err
			}
			var at []string
			for _, e := range elsewhere {
				at = append(at, strings.Split(e.Name, "/")[3])
			}
			if slices.Sort(at); len(at) > 0 {
				fmt.Fprintf(c.ErrOrStderr(), "note: no environment is in %s; project %s has some in %s\n", strings.Join(locations, ", "), r.project, strings.Join(slices.Compact(at), ", "))
			}
		}
		return r.print(c.OutOrStdout(), all, func(w io.Writer) {
			var rows [][]string
			for _, e := range all {
				agent := "no"
				if e.Config != nil && e.Config.NodeConfig != nil && e.Config.NodeConfig.EnableIpMasqAgent {
					agent = "yes"
				}
				rows = append(rows, []string{path.Base(e.Name), strings.Split(e.Name, "/")[3], e.State, agent, moment(e.CreateTime)})
			}
			table(w, "NAME\tLOCATION\tSTATE\tMASQ AGENT\tCREATED", rows)
		})
	})
	c.Flags().StringSliceVar(&locations, "locations", nil, "only these locations (default: all)")
	return c
}

func (r *remote) updateEnvironment() *cobra.Command {
	var f updateFlags
	var async, validateOnly bool
	var requestID string
	c := &cobra.Command{Use: "update ENVIRONMENT", Short: "Change one thing of an environment; the flags are gcloud's", Args: cobra.ExactArgs(1)}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		name, err := r.environment(c.Context(), s, args[0])
		if err != nil {
			return err
		}
		old, err := s.Composer.Projects.Locations.Environments.Get(name).Context(c.Context()).Do()
		if err != nil {
			return err
		}
		patch, mask, err := f.patch(c.Flags(), old)
		if err != nil {
			return err
		}
		op, err := s.Composer.Projects.Locations.Environments.Patch(name, patch).UpdateMask(strings.Join(mask, ",")).Context(c.Context()).Do(extensions(validateOnly, requestID)...)
		if err != nil {
			return err
		}
		return r.finish(c, s, op, async, func(w io.Writer) { fmt.Fprintf(w, "Updated environment %s.\n", args[0]) })
	})
	f.define(c.Flags())
	r.changeFlags(c, &async, &validateOnly, &requestID)
	return c
}

func (r *remote) deleteEnvironment() *cobra.Command {
	var async bool
	c := &cobra.Command{Use: "delete ENVIRONMENT…", Short: "Delete environments", Args: cobra.MinimumNArgs(1)}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		var names []string
		for _, a := range args {
			name, err := r.environment(c.Context(), s, a)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		if !r.quiet {
			fmt.Fprintf(c.ErrOrStderr(), "Deletes %s.\nContinue? (y/N) ", strings.Join(names, ", "))
			var answer string
			if _, err := fmt.Fscanln(c.InOrStdin(), &answer); err != nil || !strings.EqualFold(answer, "y") && !strings.EqualFold(answer, "yes") {
				return errors.New("nothing was deleted; answer y, or give --quiet")
			}
		}
		var started []*composer.Operation
		var errs []error
		for _, name := range names {
			op, err := s.Composer.Projects.Locations.Environments.Delete(name).Context(c.Context()).Do()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, r.readable(err)))
				continue
			}
			started = append(started, op)
		}
		for _, op := range started {
			errs = append(errs, r.finish(c, s, op, async, func(w io.Writer) {
				fmt.Fprintf(w, "Deleted environment %s.\n", path.Base(metadataOf(op).Resource))
			}))
		}
		return errors.Join(errs...)
	})
	c.Flags().BoolVar(&async, "async", false, "do not wait for the operations to end")
	r.locationFlag(c)
	return c
}
