package labdriver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"sordino/environment"
	"sordino/lab"
	"sordino/lab/host"
	"sordino/masq"
	"sordino/masq/configfile"
	"sordino/masq/foreign"
)

// Streams are a command's standard streams; nil is /dev/null. Signals are
// passed on to it.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Signals        <-chan os.Signal
}

// Exec runs a command in the worker Pod of a node and returns its exit status;
// of a command that a signal ended, 128 and the signal's number. An empty node
// is the first. The command sees this machine's files, with the rights of the
// lab host; only network, processes and /run are others. It gets no variables
// but PATH and those given.
func (d *Driver) Exec(ctx context.Context, e *environment.Environment, node string, args, env []string, s Streams) (int, error) {
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
	status, err := c.Exec(ctx, e.UUID, worker, host.Command{Args: args, Env: append([]string{"PATH=" + os.Getenv("PATH")}, env...),
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Signals: s.Signals})
	if errors.Is(err, host.ErrNotStarted) {
		return 0, &environment.Error{Code: environment.FailedPrecondition, Reason: "COMMAND_NOT_STARTED",
			Message: fmt.Sprintf("the Pod %s: %v", worker, err), Metadata: map[string]string{"node": node}}
	}
	return status, noCluster(e, err)
}

// noCluster words an error that means that the cluster is not there.
func noCluster(e *environment.Environment, err error) error {
	if errors.Is(err, host.ErrMissing) || errors.Is(err, host.ErrNoHost) {
		return &environment.Error{Code: environment.FailedPrecondition, Reason: "CLUSTER_NOT_THERE",
			Message:  fmt.Sprintf("the cluster of %s cannot be asked: %v; it is there when the environment is RUNNING", e.Name, err),
			Metadata: map[string]string{"environment": e.Name.String()}}
	}
	return err
}

// Flow is what Explain is asked about. Protocol and Port may be empty.
type Flow struct {
	Source, Destination netip.Addr
	Protocol            string
	Port                uint16
}

// Explanation is what one node does with a flow, as its agent's command
// "explain" tells it.
type Explanation struct {
	Node            string            `json:"node"`
	OutputInterface string            `json:"outputInterface,omitempty"`
	Config          string            `json:"config"`
	Verdict         masq.Verdict      `json:"verdict"`
	SeenAs          netip.Addr        `json:"seenAs,omitzero"`
	Interfering     []foreign.Rewrite `json:"interfering,omitempty"`
}

// Explain asks the agent of every node what happens to a flow there.
func (d *Driver) Explain(ctx context.Context, e *environment.Environment, f Flow) ([]Explanation, error) {
	args := []string{"explain", "--output=json", "--src=" + f.Source.String(), "--dst=" + f.Destination.String()}
	if f.Protocol != "" {
		args = append(args, "--proto="+f.Protocol)
	}
	if f.Port != 0 {
		args = append(args, "--dport="+strconv.Itoa(int(f.Port)))
	}
	return ask(ctx, d, e, func(string) ([]string, io.Reader) { return args, nil }, func(x *Explanation, node string) {
		x.Node, x.Config, x.Verdict.Reason = node, readable(x.Config), readable(x.Verdict.Reason)
		if r := x.Verdict.Decided; r != nil {
			r.Origin.Source = readable(r.Origin.Source)
		}
	})
}

// NodePlan is what a configuration would change on one node, as its agent's
// command "plan" tells it.
type NodePlan struct {
	Node     string               `json:"node"`
	Backend  string               `json:"backend"`
	Hash     string               `json:"hash"`
	Changes  []string             `json:"changes"`
	Warnings []configfile.Warning `json:"warnings,omitempty"`
	Findings []masq.Finding       `json:"findings,omitempty"`
}

// noFile is a path at which there is nothing.
const noFile = "/run/sordino/no-configuration"

// stdin is how a candidate reaches the agent's command.
const stdin = "/dev/stdin"

// PlanAgent asks the agent of every node what it would change for another
// configuration, and changes nothing. An empty text is no file.
func (d *Driver) PlanAgent(ctx context.Context, e *environment.Environment, text string) ([]NodePlan, error) {
	args := []string{"plan", "--output=json", "--config=" + stdin}
	if text == "" {
		args[2] = "--config=" + noFile
	}
	return ask(ctx, d, e, func(string) ([]string, io.Reader) { return args, strings.NewReader(text) }, func(p *NodePlan, node string) {
		p.Node = node
		for i := range p.Findings {
			p.Findings[i].Message = readable(p.Findings[i].Message)
		}
	})
}

// ask runs the agent's program on all nodes at once, and decodes what each
// prints.
func ask[T any](ctx context.Context, d *Driver, e *environment.Environment, command func(node string) ([]string, io.Reader), mend func(*T, string)) ([]T, error) {
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return nil, noCluster(e, err)
	}
	is, err := c.Lab(ctx, e.UUID)
	if err != nil {
		return nil, noCluster(e, err)
	}
	answers := make([]T, len(is.Spec.Nodes))
	err = each(is.Spec.Nodes, func(n lab.Node) error {
		i := slices.IndexFunc(is.Spec.Nodes, func(m lab.Node) bool { return m.Name == n.Name })
		args, in := command(n.Name)
		var out, complaint bytes.Buffer
		status, err := c.Exec(ctx, e.UUID, n.Name, host.Command{Args: args, Env: []string{"PATH=" + os.Getenv("PATH")}, Stdin: in, Stdout: &out, Stderr: &complaint, OfAgent: true})
		if err != nil {
			return noCluster(e, err)
		}
		// plan ends with 2 when there are changes, and with 2 and no answer when
		// it was asked wrongly.
		if status != 0 && (status != 2 || out.Len() == 0) {
			return &environment.Error{Code: environment.InvalidArgument, Reason: "AGENT_REFUSES",
				Message: fmt.Sprintf("the agent of %s refuses: %s", n.Name, readable(strings.TrimSpace(complaint.String()))), Metadata: map[string]string{"node": n.Name}}
		}
		if err := json.Unmarshal(out.Bytes(), &answers[i]); err != nil {
			return fmt.Errorf("reading the answer of the agent of %s: %w", n.Name, err)
		}
		mend(&answers[i], n.Name)
		return nil
	})
	return answers, err
}
