package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync"
	"syscall"

	"google.golang.org/grpc"

	workerv1 "sordino/api/sordino/worker/v1"
	"sordino/driver"
	"sordino/environment"
)

func workersService(a Agents) Service {
	return Service{Descriptor: workerv1.File_sordino_worker_v1_worker_proto.Services().ByName("Workers"), Methods: &workerv1.Workers_ServiceDesc, Implementation: &workers{Agents: a}}
}

type workers struct {
	workerv1.UnimplementedWorkersServer
	Agents
}

// Run joins a call's messages with a command's streams. The command ends with
// the call, whichever way that ends.
func (w *workers) Run(stream grpc.BidiStreamingServer[workerv1.RunRequest, workerv1.RunResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	switch {
	case start == nil:
		return missing("start", "START_MISSING", "the first message must be start")
	case len(start.GetCommand()) == 0 || start.GetCommand()[0] == "":
		return missing("start.command", "COMMAND_MISSING", "the command is empty; write a program and its arguments")
	}
	name, err := environment.ParseName(start.GetEnvironment())
	if err != nil {
		return err
	}
	// What was authorized is what the header names.
	if streamResource(stream.Context()) != name.String() {
		return missing("start.environment", "ROUTING_HEADER_MISSING",
			fmt.Sprintf("the call needs the header %s: environment=%s, as start.environment says", routingHeader, url.QueryEscape(name.String())))
	}
	e, err := w.Environments.Get(stream.Context(), name)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(stream.Context())
	defer stop()
	in, feed := io.Pipe()
	defer in.Close()
	signals := make(chan os.Signal, 8)
	// Recv ends at the latest when the handler returns and its context with it.
	go receive(stream, feed, signals, stop)
	var sending sync.Mutex
	status, err := w.Clusters.Run(ctx, e, start.GetNode(), start.GetCommand(), driver.Streams{
		Stdin: in, Signals: signals,
		Stdout: sender(func(b []byte) error {
			sending.Lock()
			defer sending.Unlock()
			return stream.Send(&workerv1.RunResponse{Message: &workerv1.RunResponse_Stdout{Stdout: b}})
		}),
		Stderr: sender(func(b []byte) error {
			sending.Lock()
			defer sending.Unlock()
			return stream.Send(&workerv1.RunResponse{Message: &workerv1.RunResponse_Stderr{Stderr: b}})
		}),
	})
	if err != nil {
		return err
	}
	return stream.Send(&workerv1.RunResponse{Message: &workerv1.RunResponse_End{End: &workerv1.End{ExitStatus: int32(status)}}})
}

func receive(stream grpc.BidiStreamingServer[workerv1.RunRequest, workerv1.RunResponse], feed *io.PipeWriter, signals chan<- os.Signal, stop func()) {
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			_ = feed.Close() // nothing more comes: the same as an empty piece
			return
		case err != nil:
			_ = feed.CloseWithError(err)
			stop()
			return
		}
		switch m := m.Message.(type) {
		case *workerv1.RunRequest_Stdin:
			if len(m.Stdin) == 0 {
				_ = feed.Close()
				continue
			}
			_, _ = feed.Write(m.Stdin) // a command that no longer reads is no error
		case *workerv1.RunRequest_Signal:
			if m.Signal < 1 || m.Signal > 64 {
				_ = feed.CloseWithError(fmt.Errorf("signal %d is none", m.Signal))
				stop()
				return
			}
			select {
			case signals <- syscall.Signal(m.Signal):
			default: // eight wait already: the command does not take any
			}
		}
	}
}

// sender is a writer that sends.
type sender func([]byte) error

func (s sender) Write(b []byte) (int, error) {
	if err := s(b); err != nil {
		return 0, err
	}
	return len(b), nil
}
