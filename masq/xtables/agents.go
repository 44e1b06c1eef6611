package xtables

import (
	"slices"
	"strings"
)

// Agent is a masquerade agent that writes its rules with iptables.
type Agent struct {
	// Chain is where it has them.
	Chain string
	Name  string
	// Comment begins the comment of each of its rules.
	Comment string
}

// Agents are the masquerade agents that are known. Azure's and other forks of
// upstream's look like it.
var Agents = []Agent{
	{Chain: "IP-MASQ-AGENT", Name: "ip-masq-agent", Comment: "ip-masq-agent:"},
	{Chain: "IP-MASQ", Name: "GKE's ip-masq-agent", Comment: "ip-masq:"},
}

// AgentOf is the agent that a chain is of. A chain of another name is one that
// upstream's agent was told to use.
func AgentOf(chain string) Agent {
	for _, a := range Agents {
		if a.Chain == chain {
			return a
		}
	}
	return Agent{Chain: chain, Name: Agents[0].Name, Comment: Agents[0].Comment}
}

// IsAgentJump reports whether a split rule of POSTROUTING is a masquerade
// agent's jump to the chain.
func IsAgentJump(fields []string, chain string) bool {
	return Option(fields, "-j", "-g") == chain && IsAgentComment(Option(fields, "--comment"))
}

// IsAgentComment reports whether a comment is one that a masquerade agent
// writes, into whichever chain. Older agents put quotes inside the comment.
func IsAgentComment(comment string) bool {
	comment = strings.TrimLeft(comment, `"\`)
	return slices.ContainsFunc(Agents, func(a Agent) bool { return strings.HasPrefix(comment, a.Comment) })
}
