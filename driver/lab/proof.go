package labdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"sordino/agentconfig"
	"sordino/environment"
	"sordino/lab"
	"sordino/lab/host"
	"sordino/masq"
	"sordino/masq/configfile"
)

// prove sends a packet from every worker to the service outside, and compares
// whom it saw with what the configuration means. When all is as it should be
// the generation counts as in place.
func (d *Driver) prove(ctx context.Context, e *environment.Environment) (string, error) {
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return "", err
	}
	spec, err := Spec(e.Plan)
	if err != nil {
		return "", err
	}
	to := spec.Outside[0].Addresses[0]
	var from []string
	for _, n := range spec.Nodes {
		from = append(from, n.Pods[0].Name)
	}
	seen, err := c.Probe(ctx, e.UUID, host.Probe{From: from, To: outside, Protocol: "tcp"})
	if err != nil {
		return "", fmt.Errorf("sending a packet: %w", err)
	}
	var proof string
	var errs []error
	for i, n := range spec.Nodes {
		want, why, err := expected(e, n, to)
		if err != nil {
			return "", err
		}
		sentence, ok := judge(seen[i], want, spec.Outside[0], why)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s", n.Name, sentence))
		} else if proof == "" {
			proof = sentence
		}
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	if others := len(spec.Nodes) - 1; others > 0 {
		proof += fmt.Sprintf("; the Pods of %s likewise", count(others, "other node"))
	}
	text, err := json.Marshal(state{Generation: e.Generation, Proof: proof, Checked: d.Now().UTC()})
	if err != nil {
		return "", err
	}
	return proof, c.Note(ctx, e.UUID, map[string]string{noteState: string(text)})
}

// expected is the address that the service outside should see of a node's
// worker, worked out with the agent's own code, and the reason.
func expected(e *environment.Environment, n lab.Node, to netip.Addr) (netip.Addr, string, error) {
	pod, node := n.Pods[0].Addresses[0], n.Addresses[0]
	if !e.AgentEnabled() {
		return pod, "the agent is not enabled", nil
	}
	var sources []configfile.Source
	if e.Agent.Text != "" {
		sources = []configfile.Source{{Name: "ip-masq-agent", Text: []byte(e.Agent.Text)}}
	}
	result, err := configfile.FromSources(sources, configfile.Settings{})
	if err != nil {
		return netip.Addr{}, "", fmt.Errorf("reading the agent's configuration: %w", err)
	}
	options := masq.Options{Chain: masq.DefaultChain, RandomFully: true, Cluster: agentconfig.Cluster(e.Plan)}
	const uplink = "eth0"
	facts := masq.Facts{Addresses: []masq.NodeAddress{{Interface: uplink, Prefix: netip.PrefixFrom(node, node.BitLen())}}}
	verdict, err := masq.Explain(result.Config, options, facts, masq.Flow{Src: pod, Dst: to, Protocol: "tcp", OutputInterface: uplink})
	if err != nil {
		return netip.Addr{}, "", fmt.Errorf("working out what the agent's configuration means: %w", err)
	}
	switch {
	case verdict.Action != masq.Masquerade:
		return pod, verdict.Reason, nil
	case verdict.To.IsValid():
		return verdict.To, verdict.Reason, nil
	}
	return node, verdict.Reason, nil
}

// judge says what was seen, and whether it is what was to be.
func judge(s host.Seen, want netip.Addr, service lab.Service, why string) (sentence string, ok bool) {
	to := service.Addresses[0]
	allowed := false
	for _, p := range service.Allow {
		allowed = allowed || p.Contains(want)
	}
	if s.As == want {
		sentence = fmt.Sprintf("%s was seen as %s by %s", s.Source, s.As, to)
		if want == s.Source {
			sentence = fmt.Sprintf("%s kept its own address towards %s (%s)", s.Source, to, why)
		}
		return sentence, true
	}
	if s.Dropped && want == s.Source && !allowed {
		return fmt.Sprintf("%s kept its own address towards %s (%s), whose firewall dropped it", s.Source, to, why), true
	}
	var saw strings.Builder
	switch {
	case s.As.IsValid():
		fmt.Fprintf(&saw, "saw %s as %s", s.Source, s.As)
	case s.Dropped:
		fmt.Fprintf(&saw, "dropped %s at its firewall", s.Source)
	default:
		fmt.Fprintf(&saw, "saw nothing of %s (%s)", s.Source, s.Error)
	}
	return fmt.Sprintf("%s %s, and should have seen %s (%s)", to, saw.String(), want, why), false
}
