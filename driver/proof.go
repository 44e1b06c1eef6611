package driver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sordino/agentconfig"
	"sordino/environment"
	"sordino/masq"
	"sordino/masq/configfile"
)

// Packet is one that a worker Pod sent to a destination outside of the cluster.
type Packet struct {
	From, To netip.Addr
	// Node are the addresses of the Pod's node; the first is the one that it
	// sends with.
	Node []netip.Addr
	// Uplink is the node's interface that it leaves by; empty is not known.
	Uplink string
	// SeenAs is whom the destination saw; invalid when it saw nobody, and then
	// Dropped says that its firewall is why, and Err what the sender met.
	SeenAs  netip.Addr
	Dropped bool
	Err     string
}

// Prove compares whom the destination saw with what an environment's
// configuration means, worked out with the agent's own code. The sentence says
// what was seen; the error is why it is not what should have been. A packet
// that keeps its own address may be dropped: that is what firewalls are for. What
// it cannot say is that others are masqueraded, and so the sentence says that.
func (p Packet) Prove(e *environment.Environment) (sentence string, err error) {
	want, why, err := p.expected(e)
	if err != nil {
		return "", err
	}
	// The first of what is wanted is what an error names.
	keeps := slices.Contains(want, p.From)
	unproven := ""
	if e.AgentEnabled() {
		unproven = ": the masquerade itself is not proven"
	}
	switch {
	case p.SeenAs == p.From && keeps:
		return fmt.Sprintf("%s kept its own address towards %s (%s)%s", p.From, p.To, why, unproven), nil
	case p.SeenAs.IsValid() && slices.Contains(want, p.SeenAs):
		return fmt.Sprintf("%s was seen as %s by %s", p.From, p.SeenAs, p.To), nil
	case p.Dropped && keeps:
		return fmt.Sprintf("%s kept its own address towards %s (%s), whose firewall dropped it%s", p.From, p.To, why, unproven), nil
	}
	var saw string
	switch {
	case p.SeenAs.IsValid():
		saw = fmt.Sprintf("saw %s as %s", p.From, p.SeenAs)
	case p.Dropped:
		saw = fmt.Sprintf("dropped %s at its firewall", p.From)
	default:
		saw = fmt.Sprintf("saw nothing of %s (%s)", p.From, p.Err)
	}
	return "", fmt.Errorf("%s %s, and should have seen %s (%s)", p.To, saw, want[0], why)
}

// expected are the addresses one of which the destination should see, and the
// reason.
func (p Packet) expected(e *environment.Environment) ([]netip.Addr, string, error) {
	if !e.AgentEnabled() {
		return []netip.Addr{p.From}, "the agent is not enabled", nil
	}
	var sources []configfile.Source
	if e.Agent.Text != "" {
		sources = []configfile.Source{{Name: "ip-masq-agent", Text: []byte(e.Agent.Text)}}
	}
	result, err := configfile.FromSources(sources, configfile.Settings{})
	if err != nil {
		return nil, "", fmt.Errorf("reading the agent's configuration: %w", err)
	}
	options := masq.Options{Chain: masq.DefaultChain, RandomFully: true, Cluster: agentconfig.Cluster(e.Plan)}
	if len(result.Config.OutputInterfaces) == 0 {
		if err := inPodRange(e, p.From, masq.ClusterOf(result.Config, options).Pod); err != nil {
			return nil, "", err
		}
	}
	var facts masq.Facts
	for _, a := range p.Node {
		facts.Addresses = append(facts.Addresses, masq.NodeAddress{Interface: p.Uplink, Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	verdict, err := masq.Explain(result.Config, options, facts, masq.Flow{Src: p.From, Dst: p.To, Protocol: "tcp", OutputInterface: p.Uplink})
	if err != nil {
		return nil, "", fmt.Errorf("working out what the agent's configuration means: %w", err)
	}
	if verdict.Action != masq.Masquerade {
		return []netip.Addr{p.From}, verdict.Reason, nil
	}
	want := p.Node
	if verdict.To.IsValid() {
		want = []netip.Addr{verdict.To}
	}
	if len(result.Config.OutputInterfaces) > 0 && p.Uplink == "" {
		// Both are right, each by another interface; the reason says so.
		want = append(slices.Clone(want), p.From)
	}
	return want, verdict.Reason, nil
}

// inPodRange refuses a Pod that the agent takes for none: that it keeps its own
// address is not what anybody asked for.
func inPodRange(e *environment.Environment, pod netip.Addr, pods []masq.Range) error {
	var ranges []string
	for _, r := range pods {
		if r.Prefix.Contains(pod) {
			return nil
		}
		ranges = append(ranges, r.Prefix.String())
	}
	if len(ranges) == 0 {
		return nil // every source counts as a Pod
	}
	return fmt.Errorf("the Pod's address %s is in no Pod range of the environment (%s), so it is not masqueraded%s", pod, strings.Join(ranges, ", "), Widen(e, "podRange"))
}

// Widen is what to do when an existing cluster has addresses that its
// declaration, and so the environment's plan, does not hold.
func Widen(e *environment.Environment, key string) string {
	if e.Cluster == "" {
		return ""
	}
	return fmt.Sprintf("; widen %s of the cluster %s in the clusters file, and make the environment again", key, e.Cluster)
}
