package kubedriver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sordino/driver"
	"sordino/environment"
	"sordino/internal/podexec"
)

// Run runs a command in the worker Pod of a node, of the first when it is
// empty. There is no shell in it.
func (d *Driver) Run(ctx context.Context, e *environment.Environment, node string, command []string, s driver.Streams) (int, error) {
	c, all, err := d.podsToAsk(ctx, e, workerSet)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(all, func(p pod) bool {
		return p.Metadata.DeletionTimestamp == nil && p.Spec.NodeName != "" && (node == "" || p.Spec.NodeName == node)
	})
	switch {
	case i < 0 && node == "":
		return 0, driver.NotThere(e, fmt.Errorf("the %s has no Pods", workerSet))
	case i < 0:
		var have []string
		for _, p := range all {
			have = append(have, p.Spec.NodeName)
		}
		return 0, &environment.Error{Code: environment.NotFound, Reason: "NODE_NOT_FOUND",
			Message: fmt.Sprintf("there is no node %q with a worker Pod; there are: %s", node, strings.Join(have, ", ")), Metadata: map[string]string{"node": node}}
	}
	p := &all[i]
	if !p.ready() {
		return 0, driver.NotThere(e, fmt.Errorf("%s", c.explained(ctx, workerSet, p)))
	}
	status, err := c.run(ctx, p.Metadata.Name, command, s)
	if errors.As(err, new(*podexec.NotStarted)) {
		return 0, driver.NotStarted(p.Spec.NodeName, p.Metadata.Name, fmt.Errorf("%w; in it there is /sordino alone, no shell and no tool: \"/sordino probe ADDRESS:PORT\" asks a service whom it sees", err))
	}
	return status, c.about(err)
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
// configuration, and changes nothing. An empty text is no ConfigMap.
func (d *Driver) PlanAgent(ctx context.Context, e *environment.Environment, text string) ([]driver.NodePlan, error) {
	args := append(driver.PlanArguments(text), "--config-source=file")
	return ask(ctx, d, e, args, text, func(node string, a driver.Answer, err error) driver.NodePlan {
		out := driver.NodePlan{Err: err}
		if err == nil {
			out = a.NodePlan()
		}
		out.Node = node
		return out
	})
}

// ask runs the agent's program on all nodes, and has what each prints read. A
// node that cannot answer does not keep the others from it.
func ask[A any](ctx context.Context, d *Driver, e *environment.Environment, args []string, in string, read func(node string, printed driver.Answer, err error) A) ([]A, error) {
	ctx, cancel := context.WithTimeout(ctx, limit(e))
	defer cancel()
	c, all, err := d.podsToAsk(ctx, e, agentSet)
	if err != nil {
		return nil, err
	}
	machines, err := c.nodes(ctx)
	if err != nil {
		return nil, c.about(err)
	}
	answers := make([]A, len(machines))
	parallel(len(machines), func(i int) {
		name := machines[i].Metadata.Name
		var answer driver.Answer
		at := slices.IndexFunc(all, func(p pod) bool { return p.Spec.NodeName == name && p.Metadata.DeletionTimestamp == nil })
		err := fmt.Errorf("there is no agent on it")
		if at >= 0 {
			answer, err = c.output(ctx, agentSet, all[at].Metadata.Name, append([]string{"/ip-masq-agent"}, args...), in)
		}
		if err != nil && at >= 0 && !all[at].ready() {
			err = fmt.Errorf("%s", c.explained(ctx, agentSet, &all[at]))
		}
		answers[i] = read(name, answer, err)
	})
	return answers, nil
}

// podsToAsk are the Pods of a set on an environment's cluster, if it is its.
func (d *Driver) podsToAsk(ctx context.Context, e *environment.Environment, s set) (*cluster, []pod, error) {
	c, err := d.connect(e.Cluster)
	if err != nil {
		return nil, nil, err
	}
	is, err := c.claimed(ctx)
	if err == nil && (is == nil || is.uuid() != e.UUID) {
		return nil, nil, driver.NotThere(e, fmt.Errorf("%s is not claimed by it", c.Name))
	}
	var all []pod
	if err == nil {
		all, err = c.podsOf(ctx, s)
	}
	if err != nil {
		return nil, nil, driver.NotThere(e, fmt.Errorf("%w; %s", c.about(err), c.Advice()))
	}
	return c, all, nil
}
