// Package agent is the loop of the node agent: it keeps one kernel holding
// what one configuration means.
//
// It owns when things happen: what triggers a reconciliation, what is retried,
// what is remembered across restarts, and what the outside is told (status,
// metrics, health). What the rules are is masq's business, how they get into
// the kernel is the [Backend]'s.
//
// It refuses to leave a node worse than it found it: a configuration that is
// rejected changes nothing, and the rules stay when the agent goes.
//
// To debug it, ask /status on the agent's HTTP address, or run it with -v=4:
// every reconciliation says what triggered it and what it changed.
package agent
