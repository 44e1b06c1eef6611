package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sordino/internal/podexec"
	"sordino/internal/probe"
)

// workerCommand is what a worker Pod on an existing cluster runs.
func workerCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "worker",
		Short: "Idle until SIGTERM: what a worker Pod runs",
		Long: `Idles until SIGTERM. It is what the worker Pods of environments on existing
clusters run, so that a probe can be sent from where a worker is:

  kubectl -n sordino exec POD -- /sordino probe ADDRESS:PORT`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Getpid() == 1 {
				go reap()
			}
			<-c.Context().Done()
			return nil
		},
	}
	c.AddCommand(&cobra.Command{
		Use:    "run -- COMMAND [ARGUMENT...]",
		Short:  "Run a command for \"sordino environments run\"",
		Hidden: true, // standard input is a protocol between the server and this
		Args:   cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			status, err := podexec.Run(c.InOrStdin(), args, c.OutOrStdout(), c.ErrOrStderr())
			var refused *podexec.NotStarted
			if errors.As(err, &refused) {
				podexec.Refuse(c.ErrOrStderr(), refused)
				return exit(127) // as a shell
			}
			if err == nil && status != 0 {
				err = exit(status)
			}
			return err
		},
	})
	return c
}

// reap takes the exit statuses of what commands left behind: a Pod's first
// process gets all orphans.
func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func probeCommand() *cobra.Command {
	var timeout time.Duration
	var udp bool
	c := &cobra.Command{
		Use:   "probe ADDRESS:PORT",
		Short: "Send one packet, and print whom the other side saw",
		Long: `Connects to a probe target and prints the address that it saw: the node's
where the packet was masqueraded, the Pod's own where not. It ends with 1 and the
reason when no answer comes. "sordino probe serve" is a target.`,
		Example: "  sordino probe 203.0.113.10:7000\n  sordino probe 203.0.113.10:7000 --udp --timeout 2s",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			to, err := netip.ParseAddrPort(args[0])
			if err != nil {
				return fmt.Errorf("the target %q: write ADDRESS:PORT, for example 203.0.113.10:%d", args[0], probe.Port)
			}
			protocol := "tcp"
			if udp {
				protocol = "udp"
			}
			ctx, cancel := context.WithTimeoutCause(c.Context(), timeout, fmt.Errorf("no answer within %s", timeout))
			defer cancel()
			seen, err := probe.Ask(ctx, protocol, to)
			if err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return fmt.Errorf("probing %s by %s: %w; the packet, or the answer, is dropped on the way, or nothing listens there", to, protocol, err)
			}
			fmt.Fprintln(c.OutOrStdout(), seen)
			return nil
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	c.Flags().BoolVar(&udp, "udp", false, "by UDP instead of TCP")
	c.AddCommand(probeServeCommand())
	return c
}

func probeServeCommand() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Answer every caller with the address that it is seen with",
		Long: `Answers TCP and UDP with the caller's address. Run it outside of a cluster, where
the services are that accept only node addresses, and name it in the clusters
file: probe: ADDRESS:PORT. It needs no permissions, keeps nothing, and tells
callers nothing but their own address.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := probe.Listen(listen)
			if err != nil {
				return fmt.Errorf("%w; choose another address with --listen", err)
			}
			fmt.Fprintf(c.ErrOrStderr(), "sordino: answering probes at %s\n", o.Address())
			<-c.Context().Done()
			return o.Close()
		},
	}
	c.Flags().StringVar(&listen, "listen", fmt.Sprintf(":%d", probe.Port), "where to listen, TCP and UDP")
	return c
}
