// Package driver is what drivers have in common: how nodes are asked about a
// flow or a candidate, what a command in a worker Pod gets, and the proof, which
// compares whom the other side of a packet saw with what a configuration means.
//
// The drivers are below it, and own the clusters. How they make them is declared
// by package reconcile.
package driver

import (
	"io"
	"net/netip"
	"os"
)

// Flow is what an explanation is asked about. Protocol and Port may be empty.
type Flow struct {
	Source, Destination netip.Addr
	Protocol            string
	Port                uint16
}

// Explanation is what one node does with a flow.
type Explanation struct {
	Node string
	// Action is "masquerade", "exempt" or "untouched", Reason a sentence.
	Action, Reason string
	// Range is what decided, Origin where that is written; empty when nothing
	// holds the destination.
	Range, Origin string
	// SeenAs is the address that the destination sees; invalid when that cannot
	// be said.
	SeenAs netip.Addr
	// Interfering are foreign rules that would still rewrite the source.
	Interfering []string
	// Err is why the node could not say.
	Err error
}

// NodePlan is what a configuration would change on one node.
type NodePlan struct {
	Node string
	// Changes are one difference each, for a person.
	Changes []string
	// Warnings are what the configuration's author should know.
	Warnings []string
	// Err is why the node could not say.
	Err error
}

// Streams are a command's standard streams; nil is /dev/null. Signals are
// passed on to it.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Signals        <-chan os.Signal
}
