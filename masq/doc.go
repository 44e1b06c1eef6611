// Package masq is the node agent's domain: what a configuration means and
// which rule set follows from it.
//
// It owns [Config] (what the user and the command line ask for), [Facts]
// (what the node is), [Plan] (a pure function from both to a [RuleSet]) and
// [Explain] (why one flow is translated or left alone). It imports nothing
// else of this module and does no input or output: files are read by
// configfile, kernels are changed by nftables and iptables, and the loop that
// joins them is agent.
//
// It refuses to plan what it could not keep: an snatAddress that the node
// does not have, for example, is an error and not a guess.
//
// To debug a plan, print RuleSet.Canonical: it is readable text, the same for
// the same meaning, and its hash is what the kernel's table is marked with.
package masq
