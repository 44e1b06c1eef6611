package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	workerv1 "sordino/api/sordino/worker/v1"
	"sordino/client"
)

func (r *remote) runInEnvironment() *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "run ENVIRONMENT [--node NODE] -- CMD [ARG…]",
		Short: "Run a command in a worker Pod, with its output and exit status",
		Long: `Runs a command where an environment's Airflow tasks run, with its input, output
and signals, and ends with its exit status; 127 is a command that could not be
started. A second Ctrl-C ends the call, and the command with it.`,
		Example: "  sordino environments run example-environment --location us-central1 -- ping -c1 203.0.113.10",
		Args:    cobra.MinimumNArgs(2),
	}
	c.RunE = r.connect(func(c *cobra.Command, args []string, s *client.Client) error {
		name, err := r.environment(c.Context(), s, args[0])
		if err != nil {
			return err
		}
		return runWorker(c, s, &workerv1.Start{Environment: name, Node: node, Command: args[1:]})
	})
	c.Flags().StringVar(&node, "node", "", "the node whose worker Pod it is (default: the first)")
	r.locationFlag(c)
	return c
}

// runWorker joins a command's streams with this program's.
func runWorker(c *cobra.Command, s *client.Client, start *workerv1.Start) error {
	// Signals are the command's; a second Ctrl-C ends the call.
	ctx, stop := context.WithCancel(context.WithoutCancel(c.Context()))
	defer stop()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	// The server decides by this header, before the first message, who may.
	stream, err := s.Workers.Run(metadata.AppendToOutgoingContext(ctx, "x-goog-request-params", "environment="+url.QueryEscape(start.Environment)))
	if err != nil {
		return err
	}
	var sending sync.Mutex // a stream takes one sender at a time
	send := func(m *workerv1.RunRequest) {
		sending.Lock()
		defer sending.Unlock()
		_ = stream.Send(m) // what went wrong comes with Recv
	}
	send(&workerv1.RunRequest{Message: &workerv1.RunRequest_Start{Start: start}})
	go func() {
		for interrupted := false; ; {
			select {
			case <-ctx.Done():
				return
			case got := <-signals:
				if got == syscall.SIGINT && interrupted {
					stop()
					return
				}
				interrupted = interrupted || got == syscall.SIGINT
				send(&workerv1.RunRequest{Message: &workerv1.RunRequest_Signal{Signal: int32(got.(syscall.Signal))}})
			}
		}
	}()
	go func() {
		buffer := make([]byte, 32<<10)
		for {
			n, err := c.InOrStdin().Read(buffer)
			if n > 0 {
				send(&workerv1.RunRequest{Message: &workerv1.RunRequest_Stdin{Stdin: append([]byte{}, buffer[:n]...)}})
			}
			if err != nil {
				send(&workerv1.RunRequest{Message: &workerv1.RunRequest_Stdin{}})
				return
			}
		}
	}()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the server ended the call without the command's exit status")
		}
		if err != nil {
			for _, d := range status.Convert(err).Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok && info.Reason == "COMMAND_NOT_STARTED" {
					return failure{127, errors.New(status.Convert(err).Message())} // as a shell
				}
			}
			return err
		}
		switch m := m.Message.(type) {
		case *workerv1.RunResponse_Stdout:
			_, err = c.OutOrStdout().Write(m.Stdout)
		case *workerv1.RunResponse_Stderr:
			_, err = c.ErrOrStderr().Write(m.Stderr)
		case *workerv1.RunResponse_End:
			if status := m.End.ExitStatus; status != 0 {
				return exit(status)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("writing the command's output: %w", err)
		}
	}
}
