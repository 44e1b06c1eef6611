// Package agentconfig connects a user's configuration of the agent with the
// cluster that it is for.
//
// It owns the check of a configuration ([Check]), the ranges that are exempt
// whatever the user writes ([Cluster]) and what is exempt in all
// ([Effective]). It reads configurations with the agent's own code.
//
// It refuses a text that the agent would refuse, with line, column and fix,
// and one whose lists would have the cluster's own traffic masqueraded: with
// intranode visibility even the traffic between two Pods of one node passes
// the masquerade rules. The agent would exempt those ranges all the same, but
// a list that says otherwise is a mistake that somebody should see.
//
// To debug it, give the text to "ip-masq-agent lint": the code is the same.
package agentconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sordino/environment"
	"sordino/environment/address"
	"sordino/masq"
	"sordino/masq/configfile"
)

// field is where violations point to, in our own API.
const field = "agent.config"

// source is what complaints call the user's text.
const source = "config"

// settings are how the agents of an environment are run: with upstream's
// defaults, and for IPv4.
var settings configfile.Settings

// Cluster are a plan's node, Pod and Service ranges as the agent takes them: it
// never masquerades to them, whatever the user writes.
func Cluster(plan address.Plan) masq.ClusterRanges {
	var c masq.ClusterRanges
	for _, in := range plan.InCluster() {
		r := masq.Range{Prefix: in.Prefix, Origin: masq.Origin{Source: "cluster"}}
		switch in.Kind {
		case address.Nodes:
			c.Node = append(c.Node, r)
		case address.Pods:
			c.Pod = append(c.Pod, r)
		case address.Services:
			c.Service = append(c.Service, r)
		}
	}
	return c
}

// Check validates a user's configuration for a cluster with the plan's ranges.
// All violations are found at once.
func Check(text string, plan address.Plan) ([]environment.Violation, error) {
	result, err := configfile.FromSources([]configfile.Source{{Name: source, Text: []byte(text)}}, settings)
	if err != nil {
		problems := configfile.Problems(err)
		if len(problems) == 0 {
			return nil, err
		}
		var violations []environment.Violation
		for _, p := range problems {
			violations = append(violations, invalid(p))
		}
		return violations, nil
	}
	violations := clusterKeys(result.Config, plan)
	missing, err := uncovered(result.Config, plan)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		violations = append(violations, uncoversCluster(result.Config, missing))
	}
	return violations, nil
}

func invalid(p *configfile.Problem) environment.Violation {
	return environment.Violation{Field: field, Reason: "AGENT_CONFIG_INVALID",
		Description: fmt.Sprintf("The agent's configuration is invalid at %s.", strings.TrimSuffix(p.Error(), ".")),
		Metadata: map[string]string{"line": fmt.Sprint(p.Origin.Line), "column": fmt.Sprint(p.Origin.Column),
			"text": p.Text, "problem": p.Reason}}
}

// clusterKeys refuses other ranges of the cluster than it has: the server says
// what they are.
func clusterKeys(c masq.Config, plan address.Plan) []environment.Violation {
	own := Cluster(plan)
	var violations []environment.Violation
	for _, k := range []struct {
		key         string
		given, have []masq.Range
	}{{"nodeCIDRs", c.Cluster.Node, own.Node}, {"podCIDRs", c.Cluster.Pod, own.Pod}, {"serviceCIDRs", c.Cluster.Service, own.Service}} {
		for _, r := range k.given {
			if slices.ContainsFunc(k.have, func(h masq.Range) bool { return h.Prefix == r.Prefix }) {
				continue
			}
			violations = append(violations, environment.Violation{Field: field, Reason: "AGENT_CONFIG_CLUSTER_RANGE",
				Description: fmt.Sprintf("The agent's configuration gives %s %s at %s, and the environment's is %s. The server sets it: leave the key out.", k.key, r.Prefix, r.Origin, prefixes(k.have)),
				Metadata:    map[string]string{"key": k.key, "range": r.Prefix.String(), "clusterRange": prefixes(k.have)}})
		}
	}
	return violations
}

func prefixes(ranges []masq.Range) string {
	var texts []string
	for _, r := range ranges {
		texts = append(texts, r.Prefix.String())
	}
	return strings.Join(texts, ", ")
}

// uncovered are the cluster's ranges that the user's own lists would have
// masqueraded, in part or whole. The defaults are nobody's mistake: what they
// do not hold is added to them.
func uncovered(c masq.Config, plan address.Plan) ([]address.Range, error) {
	if !c.NonMasqueradeGiven && len(c.Masquerade) == 0 {
		return nil, nil
	}
	c.Cluster = masq.ClusterRanges{} // only the lists count here
	c.SNATAddress = nil              // a matter of the node's addresses
	// UpstreamCompat makes what is exempt be exactly what the lists say.
	rules, _, err := masq.Plan(c, masq.Options{Chain: "IP-MASQ", ReservedRanges: settings.ReservedRanges, UpstreamCompat: true}, masq.Facts{})
	if err != nil {
		return nil, fmt.Errorf("planning the agent's configuration: %w", err)
	}
	listed, _ := rules.Of(masq.IPv4)
	var missing []address.Range
	for _, e := range plan.InCluster() {
		last := masq.LastAddr(e.Prefix)
		if !slices.ContainsFunc(listed.Exempt, func(i masq.Interval) bool { return i.Contains(e.Prefix.Addr()) && i.Contains(last) }) {
			missing = append(missing, e)
		}
	}
	return missing, nil
}

func uncoversCluster(c masq.Config, missing []address.Range) environment.Violation {
	var named, ranges []string
	for _, m := range missing {
		named = append(named, fmt.Sprintf("%s range %s", m.Kind, m.Prefix))
		ranges = append(ranges, m.Prefix.String())
	}
	advice := "Add to nonMasqueradeCIDRs: " + strings.Join(ranges, ", ") + "."
	if len(c.Masquerade) > 0 {
		advice = "Take these ranges out of masqueradeCIDRs, or add to nonMasqueradeCIDRs: " + strings.Join(ranges, ", ") + "."
	}
	return environment.Violation{Field: field, Reason: "AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE",
		Description: fmt.Sprintf("The agent's configuration would have traffic inside the cluster masqueraded: it does not cover the %s. Non-masquerade destinations must at least include the cluster's node, Pod and Service ranges, because Cloud Composer uses intranode visibility. %s", strings.Join(named, ", the "), advice),
		Metadata:    map[string]string{"missingRanges": strings.Join(ranges, ", ")}}
}

// Effective are the destinations that see Pod addresses with a configuration:
// the user's and the cluster's own, disjoint and in order.
func Effective(text string, plan address.Plan) ([]netip.Prefix, error) {
	result, err := configfile.FromSources([]configfile.Source{{Name: source, Text: []byte(text)}}, settings)
	if err != nil {
		return nil, err
	}
	config := result.Config
	config.Cluster = Cluster(plan)
	config.SNATAddress = nil // changes no exemption, and is a matter of the node
	rules, _, err := masq.Plan(config, masq.Options{}, masq.Facts{})
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	if family, ok := rules.Of(masq.IPv4); ok {
		for _, i := range family.Exempt {
			out = append(out, i.Prefixes()...)
		}
	}
	return out, nil
}
