package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sordino/demo"
	"sordino/internal/count"
	"sordino/internal/isolate"
	"sordino/lab"
	"sordino/lab/host"
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
			if isolate.Inside() {
				return demoInside(c.Context(), o, c.OutOrStdout())
			}
			binary, err := agentBinary(o.binary)
			if err != nil {
				return err
			}
			args := []string{"demo", "--agent-binary", binary, "--output", o.output}
			if o.keep {
				return keepDemo(c.Context(), append(args, "--keep"), c.OutOrStdout(), c.ErrOrStderr())
			}
			return isolate.Run(c.Context(), args, c.OutOrStdout(), c.ErrOrStderr())
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

// demoInside runs in namespaces of its own.
func demoInside(ctx context.Context, o demoOptions, out io.Writer) (err error) {
	if o.keep {
		return demoKept(ctx, o, out)
	}
	if err := isolate.Settle(); err != nil {
		return err
	}
	l, err := lab.Open(labDir)
	if err != nil {
		return err
	}
	d := o.demo(l, agentsDir, out)
	defer func() { err = errors.Join(err, d.Stop(), l.Remove()) }()
	return runDemo(ctx, d, o)
}

func (o demoOptions) demo(l *lab.Lab, dir string, out io.Writer) *demo.Demo {
	return &demo.Demo{Lab: l, Binary: o.binary, Dir: dir, Out: out, JSON: o.output == "json"}
}

func runDemo(ctx context.Context, d *demo.Demo, o demoOptions) error {
	failed, err := d.Run(ctx)
	if err != nil {
		return err
	}
	switch {
	case o.output == "json": // says so itself
	case failed > 0:
		fmt.Fprintf(d.Out, "Not as expected: %s.\n", count.Of(failed, "row"))
	default:
		fmt.Fprintln(d.Out, "Every row is as expected.")
	}
	if failed > 0 {
		return exit(1)
	}
	return nil
}

// demoKept runs the demo in the process that holds its network afterwards.
func demoKept(ctx context.Context, o demoOptions, out io.Writer) (err error) {
	h, err := host.New()
	if err != nil {
		return err
	}
	l, err := lab.Open(h.Dir("demo"))
	if err != nil {
		return err
	}
	d := o.demo(l, h.Dir("agents"), out)
	defer func() { err = errors.Join(err, d.Stop(), l.Remove()) }()
	var status exit
	if err := runDemo(ctx, d, o); err != nil && !errors.As(err, &status) {
		return err
	}
	if err := h.Add(keptLab, l, demo.Network(), map[string]string{noteStatus: strconv.Itoa(int(status))}); err != nil {
		return err
	}
	// Letting go of the output tells who waits for it that the lab is up.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("telling that the lab is up: %w", err)
		}
	}
	return h.Serve(ctx)
}

// keepDemo runs the demo in a host that stays, and returns when it is through.
func keepDemo(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	dir, err := keptDir()
	if err != nil {
		return err
	}
	// One kept lab a user: a new one takes the place of the old.
	if err := host.Down(ctx, dir); err != nil && !errors.Is(err, host.ErrNoHost) {
		return err
	}
	output, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer output.Close()
	complaints, ok := stderr.(*os.File)
	if !ok {
		complaints = writer
	}
	process, err := host.Start(dir, args, writer, complaints)
	if err := errors.Join(err, writer.Close()); err != nil {
		return err
	}
	shown := make(chan error, 1)
	go func() {
		_, err := io.Copy(stdout, output)
		shown <- err
	}()
	stop := context.AfterFunc(ctx, func() { _ = process.Kill() }) // all else goes with it
	err = <-shown
	if !stop() {
		return errors.Join(exit(interrupted), tidy(ctx, dir))
	}
	labs, labsErr := keptLabs(ctx, dir)
	if labsErr != nil || err != nil {
		// It said why, if the demo could not be shown.
		_ = process.Kill()
		return errors.Join(exit(1), err, tidy(ctx, dir))
	}
	self := filepath.Base(os.Args[0])
	fmt.Fprintf(stdout, "\nThe network stays up. Enter a Pod, a node or the service:\n  %[1]s lab exec pod-1a -- CMD\nSee what there is, and take it down:\n  %[1]s lab status\n  %[1]s lab down\n", self)
	if status, _ := strconv.Atoi(labs[0].Notes[noteStatus]); status != 0 {
		return exit(status)
	}
	return nil
}

// noteStatus is the kept lab's note of the demo's exit status.
const noteStatus = "status"

func keptLabs(ctx context.Context, dir string) ([]host.Status, error) {
	client, err := host.Dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	labs, err := client.Labs(ctx)
	if err == nil && len(labs) == 0 {
		err = errors.New("the lab did not stay up")
	}
	return labs, err
}

// tidy removes the files of a host that was killed or has ended.
func tidy(ctx context.Context, dir string) error {
	if err := host.Down(context.WithoutCancel(ctx), dir); !errors.Is(err, host.ErrNoHost) {
		return err
	}
	return nil
}
