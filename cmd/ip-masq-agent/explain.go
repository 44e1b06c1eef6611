package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"sordino/masq"
	"sordino/masq/foreign"
	"sordino/masq/node"
)

// explanation is what explain prints.
type explanation struct {
	Source      netip.Addr   `json:"src"`
	Destination netip.Addr   `json:"dst"`
	Protocol    string       `json:"proto,omitempty"`
	Port        uint16       `json:"dport,omitempty"`
	Leaves      string       `json:"outputInterface,omitempty"`
	Config      string       `json:"config"`
	Verdict     masq.Verdict `json:"verdict"`
	// SeenAs is the address that the destination sees, as far as our own
	// rules decide it.
	SeenAs netip.Addr `json:"seenAs,omitzero"`
	// Interfering are foreign rules that would still rewrite the source.
	Interfering []foreign.Rewrite `json:"interfering,omitempty"`
}

func explain(ctx context.Context, inv *invocation) (err error) {
	f := inv.flags
	if f.src == "" || f.dst == "" {
		return errors.New("give the flow's ends: --src ADDRESS --dst ADDRESS")
	}
	e := explanation{Protocol: strings.ToLower(f.proto), Port: uint16(f.dport)}
	if e.Source, err = parseAddr("src", f.src); err != nil {
		return err
	}
	if e.Destination, err = parseAddr("dst", f.dst); err != nil {
		return err
	}
	if f.dport > 65535 {
		return fmt.Errorf("--dport %d: ports end at 65535", f.dport)
	}
	here, err := node.Open()
	if err != nil {
		return err
	}
	defer closing(&err, here)
	facts, err := here.Facts()
	if err != nil {
		return err
	}
	e.Leaves = here.OutputInterface(e.Destination)
	cfg, from, err := configInForce(inv)
	if err != nil {
		return err
	}
	e.Config = from
	flow := masq.Flow{Src: e.Source, Dst: e.Destination, Protocol: e.Protocol, DstPort: e.Port, OutputInterface: e.Leaves}
	if e.Verdict, err = masq.Explain(cfg, f.options, facts, flow); err != nil {
		return err
	}
	e.SeenAs = seenAs(e, facts)

	backend, err := openBackend(ctx, f, nil, inv.log)
	if err != nil {
		return err
	}
	defer closing(&err, backend)
	options := foreign.Options{Log: inv.log, OwnTable: ownTable, Chains: []string{f.chain}}
	if len(backend.keep) > 0 {
		options.OwnChain = backend.keep[0]
	}
	others, err := foreign.Open(options)
	if err != nil {
		return err
	}
	defer closing(&err, others)
	rewrites, err := others.Rewrites(ctx, flow)
	if err != nil {
		return err
	}
	for _, r := range rewrites {
		// The first NAT rule that decides a flow wins: what comes after our
		// own decision does no harm.
		bound := e.Verdict.Action == masq.Masquerade || e.Verdict.Action == masq.Exempt && cfg.EnforceNonMasquerade
		if r.BeforeOurs || !bound {
			e.Interfering = append(e.Interfering, r)
		}
	}
	return inv.print(e, func(w io.Writer) { e.write(w) })
}

func parseAddr(name, text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("--%s %q is not an address; write it like 192.168.1.2", name, text)
	}
	return a.Unmap(), nil
}

// seenAs is the address that the far side gets to see; invalid when the node
// has no route to it and so no outgoing address.
func seenAs(e explanation, facts masq.Facts) netip.Addr {
	if e.Verdict.Action != masq.Masquerade {
		return e.Source
	}
	if e.Verdict.To.IsValid() {
		return e.Verdict.To
	}
	for _, a := range facts.Addresses {
		addr := a.Prefix.Addr()
		if a.Interface == e.Leaves && masq.FamilyOf(addr) == masq.FamilyOf(e.Source) && !addr.IsLinkLocalUnicast() {
			return addr
		}
	}
	return netip.Addr{}
}

func (e explanation) write(w io.Writer) {
	flow := fmt.Sprintf("%s to %s", e.Source, e.Destination)
	if e.Protocol != "" {
		flow += " " + e.Protocol
	}
	if e.Port != 0 {
		flow += fmt.Sprintf(" port %d", e.Port)
	}
	if e.Leaves != "" {
		flow += " leaving by " + e.Leaves
	}
	fmt.Fprintf(w, "flow:     %s\n", flow)
	fmt.Fprintf(w, "verdict:  %s: %s\n", e.Verdict.Action, e.Verdict.Reason)
	if d := e.Verdict.Decided; d != nil {
		fmt.Fprintf(w, "decided:  %s, from %s\n", d.Prefix, d.Origin)
	}
	if e.SeenAs.IsValid() {
		fmt.Fprintf(w, "seen as:  %s\n", e.SeenAs)
	} else {
		fmt.Fprintf(w, "seen as:  the address of the interface it leaves by (this node has no route to it)\n")
	}
	fmt.Fprintf(w, "config:   %s\n", e.Config)
	if len(e.Interfering) == 0 {
		fmt.Fprintf(w, "others:   no foreign rule on this node rewrites it\n")
	}
	for _, r := range e.Interfering {
		word := "would"
		if !r.Certain {
			word = "might"
		}
		fmt.Fprintf(w, "others:   %s %s it: %s\n            %s\n", word, r.Effect, r.Where, r.Rule)
		if len(r.Unknown) > 0 {
			fmt.Fprintf(w, "            depends on: %s\n", strings.Join(r.Unknown, ", "))
		}
	}
}
