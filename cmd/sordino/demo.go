package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sordino/demo"
	"sordino/lab"
)

// Where everything is, in the mount namespace of the inner process.
const (
	labDir    = "/run/sordino/lab"
	agentsDir = "/run/sordino/agents"
)

type demoOptions struct {
	keep   bool
	binary string
	output string
}

func demoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the documented example with real packets",
		Long: `Builds the documented example from network namespaces: three nodes in
10.0.0.0/8 with Pods in 192.168.0.0/16, and a service whose firewall lets only
10.0.0.0/8 in. Probes it by TCP, UDP and ICMP, in IPv4 and IPv6, without the
agent, with it, and with a list that leaves the cluster's own ranges out.

Exits with 0 only if every probe saw what it should. Works as root and as an
ordinary user, and leaves nothing behind, however it ends.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.output != "text" && o.output != "json" {
				return fmt.Errorf("--output %q: write text or json", o.output)
			}
			if inside() {
				return demoInside(c.Context(), o, c.OutOrStdout())
			}
			binary, err := agentBinary(o.binary)
			if err != nil {
				return err
			}
			args := []string{"demo", "--agent-binary", binary, "--output", o.output}
			if o.keep {
				return startHolder(c.Context(), append(args, "--keep"), c.OutOrStdout(), c.ErrOrStderr())
			}
			return runInside(c.Context(), args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().BoolVar(&o.keep, "keep", false, "leave the network up, to be looked at with \"sordino lab\"")
	c.Flags().StringVar(&o.binary, "agent-binary", "", "the ip-masq-agent program (default: beside this one)")
	c.Flags().StringVar(&o.output, "output", "text", "text or json")
	return c
}

func agentBinary(path string) (string, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), "ip-masq-agent")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := exec.LookPath(path); err != nil {
		return "", fmt.Errorf("finding the agent program: %w; build it with \"make build\", or name it with --agent-binary", err)
	}
	return path, nil
}

func demoInside(ctx context.Context, o demoOptions, out io.Writer) (err error) {
	if o.keep {
		unix.CloseOnExec(listenerFD) // the agents are not to hold it
	}
	if err := settle(); err != nil {
		return err
	}
	l, err := lab.Open(labDir)
	if err != nil {
		return err
	}
	d := &demo.Demo{Lab: l, Binary: o.binary, Dir: agentsDir, Out: out, JSON: o.output == "json"}
	end := sync.OnceValue(func() error { return errors.Join(d.Stop(), l.Remove()) })
	defer func() { err = errors.Join(err, end()) }()
	failed, err := d.Run(ctx)
	if err != nil {
		return err
	}
	switch {
	case o.output == "json": // says so itself
	case failed > 0:
		fmt.Fprintf(out, "%d rows are not as expected.\n", failed)
	default:
		fmt.Fprintln(out, "Every row is as expected.")
	}
	status := 0
	if failed > 0 {
		status = 1
		err = exit(status)
	}
	if o.keep {
		return errors.Join(err, hold(ctx, l, status, end))
	}
	return err
}
