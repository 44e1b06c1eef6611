package wire

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"

	masqv1 "sordino/api/sordino/masq/v1"
	"sordino/driver"
	"sordino/environment"
	"sordino/environment/address"
)

// AgentEnvironments is what the agents' service asks of the domain;
// *environment.Service is one.
type AgentEnvironments interface {
	Get(context.Context, environment.Name) (*environment.Environment, error)
	// AgentEnvironment is Get for an environment that has the agent.
	AgentEnvironment(context.Context, environment.Name) (*environment.Environment, error)
	UpdateAgentConfig(context.Context, environment.AgentConfigRequest) (*environment.Operation, error)
}

// Clusters answer for an environment's nodes.
type Clusters interface {
	Explain(ctx context.Context, e *environment.Environment, f driver.Flow) ([]driver.Explanation, error)
	PlanAgent(ctx context.Context, e *environment.Environment, text string) ([]driver.NodePlan, error)
	// Run runs a command in the worker Pod of a node, of the first when it is
	// empty, and returns its exit status.
	Run(ctx context.Context, e *environment.Environment, node string, command []string, s driver.Streams) (int, error)
}

// Agents are the services of our own.
type Agents struct {
	Environments AgentEnvironments
	Clusters     Clusters
	// Effective are the destinations that see Pod addresses with a
	// configuration, disjoint and in order.
	Effective func(text string, plan address.Plan) ([]netip.Prefix, error)
}

// services are what a Server registers.
func (a Agents) services(c *composer) []Service {
	return []Service{
		{Descriptor: masqv1.File_sordino_masq_v1_masq_agent_proto.Services().ByName("MasqAgents"), Methods: &masqv1.MasqAgents_ServiceDesc,
			Implementation: &masqAgents{Agents: a, composer: c}, ValidateOnly: []string{"UpdateMasqAgent"}},
		workersService(a),
	}
}

type masqAgents struct {
	masqv1.UnimplementedMasqAgentsServer
	Agents
	composer *composer
}

// agentSuffix ends an agent's name, after its environment's.
const agentSuffix = "/masqAgent"

// environment returns the environment of an agent's name, which must have one.
func (m *masqAgents) environment(ctx context.Context, name string) (*environment.Environment, error) {
	of, ok := strings.CutSuffix(name, agentSuffix)
	if !ok {
		return nil, missing("name", "AGENT_NAME_MALFORMED",
			fmt.Sprintf("the agent's name %q is malformed; write it like projects/PROJECT/locations/LOCATION/environments/ENVIRONMENT%s", name, agentSuffix))
	}
	parsed, err := environment.ParseName(of)
	if err != nil {
		return nil, err
	}
	return m.Environments.AgentEnvironment(ctx, parsed)
}

func (m *masqAgents) GetMasqAgent(ctx context.Context, r *masqv1.GetMasqAgentRequest) (*masqv1.MasqAgent, error) {
	e, err := m.environment(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	effective, err := m.effective(e.Agent.Text, e.Plan)
	if err != nil {
		return nil, err
	}
	out := &masqv1.MasqAgent{
		Name: e.Name.String() + agentSuffix, Config: e.Agent.Text, Generation: e.Agent.Generation, Etag: strconv.FormatInt(e.Agent.Generation, 10),
		EffectiveNonMasqueradeCidrs: effective, Proof: e.Observed.Proof,
		InForce: e.State == environment.Running && e.Missing(e.Observed) == nil,
	}
	if out.Proof != "" {
		out.ProofTime = timestamp(e.Observed.Checked)
	}
	if u := e.Observed.Unseen; u != nil {
		out.UnseenTime, out.UnseenCause = timestamp(u.Since), u.Cause
	}
	for _, r := range e.Plan.InCluster() {
		out.AutomaticExemptions = append(out.AutomaticExemptions, &masqv1.Exemption{Cidr: r.Prefix.String(), Kind: string(r.Kind)})
	}
	for i, n := range e.Observed.Nodes {
		node := &masqv1.Node{Name: n.Name, Ready: n.Ready, ConfigGeneration: n.ConfigGeneration, DesiredGeneration: n.DesiredGeneration,
			AppliedGeneration: n.AppliedGeneration, Hash: n.Hash, Error: n.Error, Findings: n.Findings}
		if address, pods := e.NodeNetwork(i); address.IsValid() {
			node.Address = address.String()
			if pods.IsValid() {
				node.PodCidr = pods.String()
			}
		}
		out.Nodes = append(out.Nodes, node)
	}
	return out, nil
}

func (m *masqAgents) effective(text string, plan address.Plan) ([]string, error) {
	prefixes, err := m.Effective(text, plan)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.String()
	}
	return out, nil
}

func (m *masqAgents) UpdateMasqAgent(ctx context.Context, r *masqv1.UpdateMasqAgentRequest) (*longrunningpb.Operation, error) {
	e, err := m.environment(ctx, r.GetMasqAgent().GetName())
	if err != nil {
		return nil, err
	}
	// By the message's own fields, or as with Composer's methods.
	options, err := callOptions(ctx)
	if err != nil {
		return nil, err
	}
	options.ValidateOnly = options.ValidateOnly || r.GetValidateOnly()
	if r.GetRequestId() != "" {
		options.RequestID = r.GetRequestId()
	}
	request := environment.AgentConfigRequest{Name: e.Name, Text: r.GetMasqAgent().GetConfig(), CallOptions: options}
	if etag := r.GetMasqAgent().GetEtag(); etag != "" {
		if request.Generation, err = strconv.ParseInt(etag, 10, 64); err != nil || request.Generation < 0 {
			return nil, missing("masq_agent.etag", "ETAG_MALFORMED", fmt.Sprintf("the etag %q is not one that this server gave", etag))
		}
	}
	o, err := m.Environments.UpdateAgentConfig(ctx, request)
	return m.composer.operation(ctx, o, err)
}

func (m *masqAgents) PlanMasqAgent(ctx context.Context, r *masqv1.PlanMasqAgentRequest) (*masqv1.PlanMasqAgentResponse, error) {
	e, err := m.environment(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	// A configuration that would be refused is refused here in the same words.
	if _, err := m.Environments.UpdateAgentConfig(ctx, environment.AgentConfigRequest{Name: e.Name, Text: r.GetConfig(),
		CallOptions: environment.CallOptions{ValidateOnly: true}}); err != nil {
		var refusal *environment.Error
		if errors.As(err, &refusal) { // here the text is a field of the request itself
			here := *refusal
			here.Violations = slices.Clone(refusal.Violations)
			for i := range here.Violations {
				here.Violations[i].Field = strings.TrimPrefix(here.Violations[i].Field, "agent")
			}
			err = &here
		}
		return nil, err
	}
	out := &masqv1.PlanMasqAgentResponse{}
	if out.EffectiveNonMasqueradeCidrs, err = m.effective(r.GetConfig(), e.Plan); err != nil {
		return nil, err
	}
	nodes, err := m.Clusters.PlanAgent(ctx, e, r.GetConfig())
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		out.Nodes = append(out.Nodes, &masqv1.NodePlan{Node: n.Node, Changes: n.Changes, Error: text(n.Err)})
		for _, w := range n.Warnings {
			if !slices.Contains(out.Warnings, w) {
				out.Warnings = append(out.Warnings, w)
			}
		}
	}
	return out, nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (m *masqAgents) ExplainFlow(ctx context.Context, r *masqv1.ExplainFlowRequest) (*masqv1.ExplainFlowResponse, error) {
	e, err := m.environment(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	var violations []environment.Violation
	parse := func(field, value string) netip.Addr {
		a, err := netip.ParseAddr(value)
		if err != nil || a.Zone() != "" {
			violations = append(violations, environment.Violation{Field: field, Reason: "ADDRESS_MALFORMED",
				Description: fmt.Sprintf("The %s '%s' is not an address. Write it like 192.168.1.2", field, value), Metadata: map[string]string{"address": value}})
		}
		return a.Unmap()
	}
	flow := driver.Flow{Source: parse("source", r.GetSource()), Destination: parse("destination", r.GetDestination()),
		Protocol: strings.ToLower(r.GetProtocol()), Port: uint16(r.GetDestinationPort())}
	if p := r.GetDestinationPort(); p < 0 || p > 65535 {
		violations = append(violations, environment.Violation{Field: "destination_port", Reason: "PORT_OUT_OF_RANGE",
			Description: fmt.Sprintf("The destination port %d is not one. Write 0 for any, or 1 to 65535", p), Metadata: map[string]string{"port": strconv.Itoa(int(p))}})
	}
	if len(violations) == 0 && flow.Source.Is4() != flow.Destination.Is4() {
		violations = append(violations, environment.Violation{Field: "destination", Reason: "ADDRESS_FAMILIES_DIFFER",
			Description: fmt.Sprintf("The source %s and the destination %s are of different families", flow.Source, flow.Destination)})
	}
	if err := environment.Refuse(violations); err != nil {
		return nil, err
	}
	answers, err := m.Clusters.Explain(ctx, e, flow)
	if err != nil {
		return nil, err
	}
	out := &masqv1.ExplainFlowResponse{}
	for _, a := range answers {
		n := &masqv1.NodeExplanation{Node: a.Node, Action: a.Action, Reason: a.Reason, DecidedCidr: a.Range, DecidedOrigin: a.Origin,
			Interfering: a.Interfering, Error: text(a.Err)}
		if a.SeenAs.IsValid() {
			n.SeenAs = a.SeenAs.String()
		}
		for i, o := range e.Observed.Nodes {
			if o.Name == a.Node {
				_, pods := e.NodeNetwork(i)
				n.SourceIsHere = pods.Contains(flow.Source)
			}
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}
