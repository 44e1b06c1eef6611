package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sordino/client"
	"sordino/internal/isolate"
)

// version is set by the build.
var version = "devel"

// exit is an error that is only an exit status: everything is said already.
type exit = isolate.Exit

// failure is an error with an exit status of its own.
type failure struct {
	status exit
	err    error
}

func (f failure) Error() string { return f.err.Error() }

func (f failure) Unwrap() []error { return []error{f.status, f.err} }

// interrupted is the exit status after Ctrl-C or SIGTERM.
const interrupted = isolate.Interrupted

// run is the whole program; it returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "sordino",
		Short:         "Environments whose Pods reach services that accept only node addresses",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	var r remote
	root.AddCommand(serveCommand(), envCommand(), tokenCommand(), backupCommand(), environmentsCommand(&r), operationsCommand(&r), imageVersionsCommand(&r), masqCommand(&r),
		demoCommand(), labCommand(), hostCommand(), clustersCommand(), workerCommand(), probeCommand(), &cobra.Command{
			Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			Run: func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), "sordino", version) },
		})
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see: %s --help", err, c.CommandPath())
	})
	explainArguments(root)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var status exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
	case ctx.Err() != nil && errors.Is(err, client.ErrStillRunning):
		fmt.Fprintf(stderr, "sordino: interrupted: %v\n", err)
		return interrupted
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "sordino: interrupted")
		return interrupted
	default:
		status = 1
	}
	if err.Error() != status.Error() {
		fmt.Fprintln(stderr, "sordino:", err)
	}
	return int(status)
}

// explainArguments has commands say how they are written when their arguments
// are not what they take.
func explainArguments(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return fmt.Errorf("%w; write it as: %s", err, c.UseLine())
			}
			return nil
		}
	}
	for _, below := range c.Commands() {
		explainArguments(below)
	}
}
