package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

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
			// Found here, because the caller's PATH counts. Statuses are a shell's.
			program, err := exec.LookPath(args[1])
			if err == nil {
				program, err = filepath.Abs(program)
			}
			if err != nil {
				return failure{127, fmt.Errorf("finding the command: %w", err)}
			}
			answer, err := ask(c.Context(), request{Op: "exec", Pod: args[0], Cmd: append([]string{program}, args[2:]...), Env: os.Environ(), Dir: dir},
				[]*os.File{os.Stdin, os.Stdout, os.Stderr})
			if err != nil && answer.Exit != 0 {
				return failure{exit(answer.Exit), err}
			}
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
			} else if err != nil {
				return err
			}
			path, err := socketPath()
			if err != nil {
				return err
			}
			return removeSocket(path)
		},
	})
	return c
}
