package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func labCommand() *cobra.Command {
	c := &cobra.Command{Use: "lab", Short: "Look around in a network that \"demo --keep\" left up"}
	c.AddCommand(&cobra.Command{
		Use:     "exec NAME -- CMD [ARG…]",
		Short:   "Run a command in a Pod, a node or a service, with its exit status",
		Example: "  sordino lab exec pod-1a -- ping -c1 203.0.113.10\n  sordino lab exec node-1 -- nft list ruleset",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			answer, err := ask(c.Context(), request{Op: "exec", Pod: args[0], Cmd: args[1:], Env: os.Environ(), Dir: dir},
				[]*os.File{os.Stdin, os.Stdout, os.Stderr})
			if err != nil {
				return err
			}
			if answer.Exit != 0 {
				return exit(answer.Exit)
			}
			return nil
		},
	}, &cobra.Command{
		Use: "status", Short: "List what is up", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			answer, err := ask(c.Context(), request{Op: "status"}, nil)
			if err != nil {
				return err
			}
			for _, n := range answer.Names {
				fmt.Fprintln(c.OutOrStdout(), n)
			}
			return nil
		},
	}, &cobra.Command{
		Use: "down", Short: "Take the network down", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := ask(c.Context(), request{Op: "down"}, nil)
			if errors.Is(err, errNoLab) {
				fmt.Fprintln(c.OutOrStdout(), "nothing is up")
				return nil
			}
			return err
		},
	})
	return c
}
