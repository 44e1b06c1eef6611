package labdriver

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"sordino/driver"
	"sordino/environment"
	"sordino/lab/host"
)

// Run runs a command in the worker Pod of a node and returns its exit status;
// of a command that a signal ended, 128 and the signal's number. An empty node
// is the first. The command sees this machine's files, with the rights of the
// lab host; only network, processes and /run are others. It gets no variable
// but PATH.
func (d *Driver) Run(ctx context.Context, e *environment.Environment, node string, command []string, s driver.Streams) (int, error) {
	if node == "" {
		node = nodeName(0)
	}
	worker, err := Worker(node)
	if err != nil {
		return 0, err
	}
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return 0, noCluster(e, err)
	}
	status, err := c.Exec(ctx, e.UUID, worker, host.Command{Args: command, Env: []string{"PATH=" + os.Getenv("PATH")},
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Signals: s.Signals})
	if errors.Is(err, host.ErrNotStarted) {
		return 0, driver.NotStarted(node, worker, err)
	}
	return status, noCluster(e, err)
}

// noCluster words an error that means that the cluster is not there.
func noCluster(e *environment.Environment, err error) error {
	if errors.Is(err, host.ErrMissing) || errors.Is(err, host.ErrNoHost) {
		return driver.NotThere(e, err)
	}
	return err
}

// Explain asks the agent of every node what happens to a flow there.
func (d *Driver) Explain(ctx context.Context, e *environment.Environment, f driver.Flow) ([]driver.Explanation, error) {
	return ask(ctx, d, e, driver.ExplainArguments(f), "", func(node string, a driver.Answer, err error) driver.Explanation {
		out := driver.Explanation{Err: err}
		if err == nil {
			out = a.Explanation()
		}
		out.Node = node
		return out
	})
}

// PlanAgent asks the agent of every node what it would change for another
// configuration, and changes nothing. An empty text is no file.
func (d *Driver) PlanAgent(ctx context.Context, e *environment.Environment, text string) ([]driver.NodePlan, error) {
	return ask(ctx, d, e, driver.PlanArguments(text), text, func(node string, a driver.Answer, err error) driver.NodePlan {
		out := driver.NodePlan{Err: err}
		if err == nil {
			out = a.NodePlan()
		}
		out.Node = node
		return out
	})
}

// ask runs the agent's program on all nodes at once, and has what each prints
// read. A node that cannot answer does not keep the others from it.
func ask[A any](ctx context.Context, d *Driver, e *environment.Environment, args []string, in string, read func(node string, printed driver.Answer, err error) A) ([]A, error) {
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return nil, noCluster(e, err)
	}
	is, err := c.Lab(ctx, e.UUID)
	if err != nil {
		return nil, noCluster(e, err)
	}
	answers := make([]A, len(is.Spec.Nodes))
	var running sync.WaitGroup
	for i, n := range is.Spec.Nodes {
		running.Go(func() {
			var out, complaint bytes.Buffer
			status, err := c.Exec(ctx, e.UUID, n.Name, host.Command{Args: args, Env: []string{"PATH=" + os.Getenv("PATH")},
				Stdin: strings.NewReader(in), Stdout: &out, Stderr: &complaint, OfAgent: true})
			answers[i] = read(n.Name, driver.Answer{Status: status, Output: out.Bytes(), Complaint: complaint.Bytes(), Readable: readable}, noCluster(e, err))
		})
	}
	running.Wait()
	return answers, nil
}
