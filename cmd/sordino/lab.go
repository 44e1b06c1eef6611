package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sordino/lab/host"
)

// keptLab is the id of the lab that "demo --keep" leaves up.
const keptLab = "demo"

var errNothingUp = errors.New("there is no kept lab; start one with \"sordino demo --keep\"")

// keptDir is the folder of the kept lab's host: the user's own, which nobody
// else can enter.
func keptDir() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("sordino-%d", os.Getuid()))
	} else {
		dir = filepath.Join(dir, "sordino")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of the lab's host: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != os.Getuid() || !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("the folder %s must be this user's, and closed to others", dir)
	}
	return dir, nil
}

// dialLab reaches the host of a folder; empty is the kept lab's.
func dialLab(ctx context.Context, dir string) (*host.Client, error) {
	kept := dir == ""
	if kept {
		var err error
		if dir, err = keptDir(); err != nil {
			return nil, err
		}
	}
	client, err := host.Dial(ctx, dir)
	if errors.Is(err, host.ErrNoHost) {
		if kept {
			return nil, errNothingUp
		}
		return nil, fmt.Errorf("nothing is up in %s: %w", dir, err)
	}
	return client, err
}

func labCommand() *cobra.Command {
	var dir, id string
	c := &cobra.Command{
		Use:   "lab",
		Short: "Look around in networks that are up",
		Long: `Looks around in the network that "sordino demo --keep" left up or, with
--data, in those of the environments of a server with that data folder.`,
	}
	c.PersistentFlags().StringVar(&dir, "data", "", "data folder of a server (default: the lab of \"demo --keep\")")
	execCommand := &cobra.Command{
		Use:     "exec NAME -- CMD [ARG…]",
		Short:   "Run a command in a Pod, a node or a service, with its exit status",
		Example: "  sordino lab exec pod-1a -- ping -c1 203.0.113.10\n  sordino lab exec node-1 -- nft list ruleset",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return labExec(c.Context(), dir, id, args)
		},
	}
	execCommand.Flags().StringVar(&id, "lab", "", "which lab, as status lists them (default: the only one)")
	c.AddCommand(execCommand, &cobra.Command{
		Use: "status", Short: "List what is up", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := dialLab(c.Context(), dir)
			if err != nil {
				return err
			}
			labs, err := client.Labs(c.Context())
			if err != nil {
				return err
			}
			slices.SortFunc(labs, func(a, b host.Status) int { return strings.Compare(a.ID, b.ID) })
			for _, l := range labs {
				if dir != "" {
					fmt.Fprintf(c.OutOrStdout(), "%s %s\n", l.ID, l.Notes["name"])
				}
				for _, n := range l.Namespaces {
					if dir != "" {
						n = "  " + n
					}
					fmt.Fprintln(c.OutOrStdout(), n)
				}
			}
			return nil
		},
	}, &cobra.Command{
		Use: "down", Short: "Take everything down", Args: cobra.NoArgs,
		Long: `Takes every network down with all that runs in it, and the process that holds
them. A server that still runs builds those of its environments again.`,
		RunE: func(c *cobra.Command, _ []string) error {
			where, err := dir, error(nil)
			if where == "" {
				if where, err = keptDir(); err != nil {
					return err
				}
			}
			err = host.Down(c.Context(), where)
			if errors.Is(err, host.ErrNoHost) {
				fmt.Fprintln(c.OutOrStdout(), "nothing is up")
				return nil
			}
			return err
		},
	})
	return c
}

func labExec(ctx context.Context, dir, id string, args []string) error {
	client, err := dialLab(ctx, dir)
	if err != nil {
		return err
	}
	if id == "" {
		labs, err := client.Labs(ctx)
		if err != nil {
			return err
		}
		if len(labs) != 1 {
			return fmt.Errorf("%d labs are up: say which with --lab; \"sordino lab status\" lists them", len(labs))
		}
		id = labs[0].ID
	}
	where, err := os.Getwd()
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
	// What interrupts us interrupts the command, and its end is ours.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	status, err := client.Exec(context.WithoutCancel(ctx), id, args[0], host.Command{Args: append([]string{program}, args[2:]...), Env: os.Environ(), Dir: where,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals})
	switch {
	case errors.Is(err, host.ErrNotStarted):
		return failure{126, err}
	case err == nil && status != 0:
		return exit(status)
	}
	return err
}

// passedOn are the signals that a command in the lab gets.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}

// hostCommand is how a lab's host is started; it is nobody's to type.
func hostCommand() *cobra.Command {
	return &cobra.Command{
		Use: host.Argument, Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return host.Main(c.Context()) },
	}
}
