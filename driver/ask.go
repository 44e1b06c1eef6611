package driver

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sordino/environment"
	"sordino/masq"
	"sordino/masq/configfile"
	"sordino/masq/foreign"
)

// NoFile is a path at which there is nothing.
const NoFile = "/run/sordino/no-configuration"

// stdin is how a candidate reaches the agent's command.
const stdin = "/dev/stdin"

// Readable names a candidate as the ConfigMap names it: a file has none.
func Readable(text string) string { return strings.ReplaceAll(text, stdin, "ip-masq-agent") }

// ExplainArguments are those of the agent's program that explain a flow.
func ExplainArguments(f Flow) []string {
	args := []string{"explain", "--output=json", "--src=" + f.Source.String(), "--dst=" + f.Destination.String()}
	if f.Protocol != "" {
		args = append(args, "--proto="+f.Protocol)
	}
	if f.Port != 0 {
		args = append(args, "--dport="+strconv.Itoa(int(f.Port)))
	}
	return args
}

// PlanArguments are those of the agent's program that plan a candidate, which
// is its standard input. An empty text is no file.
func PlanArguments(text string) []string {
	config := stdin
	if text == "" {
		config = NoFile
	}
	return []string{"plan", "--output=json", "--config=" + config}
}

// Answer is what the agent's program printed.
type Answer struct {
	Status            int
	Output, Complaint []byte
	// Readable words what names files for those who know only the ConfigMap.
	Readable func(string) string
}

// decode reads the answer.
func (a Answer) decode(into any) error {
	// plan ends with 2 when there are changes, and with 2 and no answer when it
	// was asked wrongly.
	if a.Status != 0 && (a.Status != 2 || len(a.Output) == 0) {
		return fmt.Errorf("the agent refuses: %s", a.Readable(strings.TrimSpace(string(a.Complaint))))
	}
	if err := json.Unmarshal(a.Output, into); err != nil {
		return fmt.Errorf("reading the agent's answer: %w", err)
	}
	return nil
}

// Explanation reads the answer to [ExplainArguments].
func (a Answer) Explanation() Explanation {
	var x struct {
		Verdict     masq.Verdict      `json:"verdict"`
		SeenAs      netip.Addr        `json:"seenAs"`
		Interfering []foreign.Rewrite `json:"interfering"`
	}
	if err := a.decode(&x); err != nil {
		return Explanation{Err: err}
	}
	out := Explanation{Action: string(x.Verdict.Action), Reason: a.Readable(x.Verdict.Reason), SeenAs: x.SeenAs}
	if r := x.Verdict.Decided; r != nil {
		out.Range, out.Origin = r.Prefix.String(), a.Readable(r.Origin.String())
	}
	for _, r := range x.Interfering {
		word := "would"
		if !r.Certain {
			word = "might"
		}
		out.Interfering = append(out.Interfering, fmt.Sprintf("%s %s it: %s: %s", word, r.Effect, r.Where, r.Rule))
	}
	return out
}

// NodePlan reads the answer to [PlanArguments].
func (a Answer) NodePlan() NodePlan {
	var p struct {
		Changes  []string             `json:"changes"`
		Warnings []configfile.Warning `json:"warnings"`
		Findings []masq.Finding       `json:"findings"`
	}
	if err := a.decode(&p); err != nil {
		return NodePlan{Err: err}
	}
	out := NodePlan{Changes: p.Changes}
	for _, w := range p.Warnings {
		out.Warnings = append(out.Warnings, a.Readable(w.String()))
	}
	for _, f := range p.Findings {
		out.Warnings = append(out.Warnings, a.Readable(f.Message))
	}
	return out
}

// NotThere is the refusal of a question to a cluster that is not there.
func NotThere(e *environment.Environment, cause error) error {
	next := "it is there when the environment is RUNNING"
	if e.State == environment.Running {
		next = "\"sordino masq describe\" shows since when"
	}
	return &environment.Error{Code: environment.FailedPrecondition, Reason: "CLUSTER_NOT_THERE",
		Message:  fmt.Sprintf("the cluster of %s cannot be asked: %v; %s", e.Name, cause, next),
		Metadata: map[string]string{"environment": e.Name.String()}}
}

// NotStarted is the refusal of a command that a worker Pod cannot start.
func NotStarted(node, pod string, cause error) error {
	return &environment.Error{Code: environment.FailedPrecondition, Reason: "COMMAND_NOT_STARTED",
		Message: fmt.Sprintf("the Pod %s: %v", pod, cause), Metadata: map[string]string{"node": node}}
}

// ConfigRejected ends an operation whose configuration an agent does not take.
func ConfigRejected(node, reason string) error {
	return &environment.Error{Code: environment.FailedPrecondition, Reason: "AGENT_CONFIG_REJECTED",
		Message:  fmt.Sprintf("%s rejects the agent's configuration, and keeps the last good one: %s", node, reason),
		Metadata: map[string]string{"node": node, "reason": reason}}
}
