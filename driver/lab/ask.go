package labdriver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"sordino/driver"
	"sordino/environment"
	"sordino/lab/host"
	"sordino/masq"
	"sordino/masq/configfile"
	"sordino/masq/foreign"
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

// explanation is what an agent's command "explain" prints.
type explanation struct {
	Verdict     masq.Verdict      `json:"verdict"`
	SeenAs      netip.Addr        `json:"seenAs"`
	Interfering []foreign.Rewrite `json:"interfering"`
}

// Explain asks the agent of every node what happens to a flow there.
func (d *Driver) Explain(ctx context.Context, e *environment.Environment, f driver.Flow) ([]driver.Explanation, error) {
	args := []string{"explain", "--output=json", "--src=" + f.Source.String(), "--dst=" + f.Destination.String()}
	if f.Protocol != "" {
		args = append(args, "--proto="+f.Protocol)
	}
	if f.Port != 0 {
		args = append(args, "--dport="+strconv.Itoa(int(f.Port)))
	}
	return ask(ctx, d, e, args, "", func(node string, x explanation, err error) driver.Explanation {
		out := driver.Explanation{Node: node, Action: string(x.Verdict.Action), Reason: readable(x.Verdict.Reason), SeenAs: x.SeenAs, Err: err}
		if r := x.Verdict.Decided; r != nil {
			out.Range, out.Origin = r.Prefix.String(), readable(r.Origin.String())
		}
		for _, r := range x.Interfering {
			word := "would"
			if !r.Certain {
				word = "might"
			}
			out.Interfering = append(out.Interfering, fmt.Sprintf("%s %s it: %s: %s", word, r.Effect, r.Where, r.Rule))
		}
		return out
	})
}

// nodePlan is what an agent's command "plan" prints.
type nodePlan struct {
	Changes  []string             `json:"changes"`
	Warnings []configfile.Warning `json:"warnings"`
	Findings []masq.Finding       `json:"findings"`
}

// noFile is a path at which there is nothing.
const noFile = "/run/sordino/no-configuration"

// stdin is how a candidate reaches the agent's command.
const stdin = "/dev/stdin"

// PlanAgent asks the agent of every node what it would change for another
// configuration, and changes nothing. An empty text is no file.
func (d *Driver) PlanAgent(ctx context.Context, e *environment.Environment, text string) ([]driver.NodePlan, error) {
	config := stdin
	if text == "" {
		config = noFile
	}
	return ask(ctx, d, e, []string{"plan", "--output=json", "--config=" + config}, text, func(node string, p nodePlan, err error) driver.NodePlan {
		out := driver.NodePlan{Node: node, Changes: p.Changes, Err: err}
		for _, w := range p.Warnings {
			out.Warnings = append(out.Warnings, readable(w.String()))
		}
		for _, f := range p.Findings {
			out.Warnings = append(out.Warnings, readable(f.Message))
		}
		return out
	})
}

// ask runs the agent's program on all nodes at once, and decodes what each
// prints. A node that cannot answer does not keep the others from it.
func ask[T, A any](ctx context.Context, d *Driver, e *environment.Environment, args []string, in string, answer func(node string, printed T, err error) A) ([]A, error) {
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
			var printed T
			err := print(ctx, c, e, n.Name, args, in, &printed)
			answers[i] = answer(n.Name, printed, err)
		})
	}
	running.Wait()
	return answers, nil
}

func print(ctx context.Context, c *host.Client, e *environment.Environment, node string, args []string, in string, printed any) error {
	var out, complaint bytes.Buffer
	status, err := c.Exec(ctx, e.UUID, node, host.Command{Args: args, Env: []string{"PATH=" + os.Getenv("PATH")}, Stdin: strings.NewReader(in), Stdout: &out, Stderr: &complaint, OfAgent: true})
	if err != nil {
		return noCluster(e, err)
	}
	// plan ends with 2 when there are changes, and with 2 and no answer when it
	// was asked wrongly.
	if status != 0 && (status != 2 || out.Len() == 0) {
		return fmt.Errorf("the agent refuses: %s", readable(strings.TrimSpace(complaint.String())))
	}
	if err := json.Unmarshal(out.Bytes(), printed); err != nil {
		return fmt.Errorf("reading the agent's answer: %w", err)
	}
	return nil
}
