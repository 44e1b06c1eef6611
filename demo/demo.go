// Package demo shows the documented example with real packets: a service that
// accepts only the VMs' range, Pods in another one, and what the other side
// sees of each Pod without the agent, with it, and with a list that leaves the
// cluster's own ranges out.
//
// It runs the real agent program on every node of a lab and judges every
// answer against what is expected. It refuses to call anything shown that it
// did not see: a probe that is answered by nobody is reported as such.
//
// To debug it, run "sordino demo --keep" and look around with "sordino lab
// exec".
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"sordino/internal/agentproc"
	"sordino/internal/netns"
	"sordino/internal/probe"
	"sordino/lab"
)

// The two configurations.
const (
	completeList = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 192.168.0.0/16\n- 172.20.0.0/16\n- fd00:a::/64\n- fd00:c0a8::/32\n- fd00:ac14::/112\n"
	carelessList = "nonMasqueradeCIDRs:\n- 198.51.100.0/24\n"
)

// Demo is one run.
type Demo struct {
	Lab *lab.Lab
	// Binary is the agent program.
	Binary string
	// Dir keeps the agents' files.
	Dir string
	Out io.Writer
	// JSON prints one document instead of the table.
	JSON bool

	spec      lab.Spec
	agents    []*nodeAgent
	observers map[string]*probe.Observer
	report    []Phase
}

// Phase is one state of the network and what was seen in it.
type Phase struct {
	Title    string   `json:"title"`
	Reported []string `json:"reported,omitempty"`
	Rows     []Row    `json:"rows"`
}

// Row is one probe, or several with the same outcome.
type Row struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Protocols string `json:"protocols"`
	Saw       string `json:"saw"`
	Expected  string `json:"expected"`
	OK        bool   `json:"ok"`
}

// expectation is what the other side should see of a Pod.
type expectation int

const (
	podAddress expectation = iota
	nodeAddress
	nothing
)

// target is where probes go.
type target struct {
	label     string
	addresses []netip.Addr
	observer  string // the namespace that answers
	outside   bool
	// behind is the node that routes to it, where its agent translates too.
	behind *lab.Node
}

// Run builds the network, goes through the phases and prints them. Failed is
// the number of rows that are not as expected.
func (d *Demo) Run(ctx context.Context) (failed int, err error) {
	d.spec = Network()
	if _, err := d.Lab.Apply(ctx, d.spec); err != nil {
		return 0, err
	}
	if !d.JSON {
		fmt.Fprint(d.Out, picture+"\n")
	}
	if err := d.openObservers(); err != nil {
		return 0, errors.Join(err, d.closeObservers())
	}
	defer func() { err = errors.Join(err, d.closeObservers()) }()
	for _, n := range d.spec.Nodes {
		ns, err := d.Lab.Namespace(n.Name)
		if err != nil {
			return 0, err
		}
		a, err := newNodeAgent(n.Name, ns, filepath.Join(d.Dir, n.Name))
		if err != nil {
			return 0, err
		}
		d.agents = append(d.agents, a)
	}
	told := []string{"--node-cidrs=" + nodeRanges, "--pod-cidrs=" + podRanges, "--service-cidrs=" + serviceRanges}
	phases := []struct {
		title           string
		prepare         func() ([]string, error)
		inside, outside expectation
	}{
		{"1. Without the agent: the firewall knows only the VMs' range", func() ([]string, error) { return nil, nil }, podAddress, nothing},
		{"2. With the agent: only the service outside sees the node", func() ([]string, error) {
			return d.startAgents(ctx, completeList, told)
		}, podAddress, nodeAddress},
		{"3. The caution: a list without the node and Pod ranges, and an agent that is not told them", func() ([]string, error) {
			if err := d.stopAgents(); err != nil {
				return nil, err
			}
			if _, err := d.startAgents(ctx, completeList, nil); err != nil {
				return nil, err
			}
			return d.swapConfig(ctx, carelessList)
		}, nodeAddress, nodeAddress},
		{"4. The same list, and the agent is told the cluster's ranges", func() ([]string, error) {
			if err := d.stopAgents(); err != nil {
				return nil, err
			}
			return d.startAgents(ctx, carelessList, told)
		}, podAddress, nodeAddress},
	}
	for _, p := range phases {
		phase := Phase{Title: p.title}
		if phase.Reported, err = p.prepare(); err != nil {
			return failed, fmt.Errorf("%s: %w", p.title, err)
		}
		if phase.Rows, err = d.probeAll(ctx, p.inside, p.outside); err != nil {
			return failed, fmt.Errorf("%s: %w", p.title, err)
		}
		for _, r := range phase.Rows {
			if !r.OK {
				failed++
			}
		}
		d.report = append(d.report, phase)
		if !d.JSON {
			phase.write(d.Out)
		}
	}
	if d.JSON {
		e := json.NewEncoder(d.Out)
		e.SetIndent("", "  ")
		return failed, e.Encode(map[string]any{"phases": d.report, "failed": failed})
	}
	return failed, nil
}

// Stop ends the agents; their rules go with the lab.
func (d *Demo) Stop() error { return d.stopAgents() }

func (d *Demo) startAgents(ctx context.Context, config string, flags []string) ([]string, error) {
	for _, a := range d.agents {
		if err := errors.Join(a.configure(config), a.start(d.Binary, flags...)); err != nil {
			return nil, err
		}
	}
	return d.findings(ctx, make([]uint64, len(d.agents)))
}

// swapConfig replaces the configuration under the running agents.
func (d *Demo) swapConfig(ctx context.Context, config string) ([]string, error) {
	wanted := make([]uint64, len(d.agents))
	for i, a := range d.agents {
		s, err := agentproc.Status(ctx, a.ns)
		if err != nil {
			return nil, err
		}
		wanted[i] = s.Generation + 1
		if err := a.configure(config); err != nil {
			return nil, err
		}
	}
	return d.findings(ctx, wanted)
}

// findings waits for the agents and returns what they report.
func (d *Demo) findings(ctx context.Context, wanted []uint64) ([]string, error) {
	var said []string
	for i, a := range d.agents {
		s, err := a.ready(ctx, wanted[i])
		if err != nil {
			return nil, err
		}
		for _, f := range s.Findings {
			if line := fmt.Sprintf("%s: %s", f.Code, f.Message); i == 0 && !slices.Contains(said, line) {
				said = append(said, line)
			}
		}
	}
	return said, nil
}

func (d *Demo) stopAgents() error {
	var errs []error
	for _, a := range d.agents {
		errs = append(errs, a.stop())
	}
	return errors.Join(errs...)
}

func (d *Demo) openObservers() error {
	d.observers = map[string]*probe.Observer{}
	for _, name := range []string{outside, "pod-1b", "pod-2a", "pod-2b", "node-2"} {
		ns, err := d.Lab.Namespace(name)
		if err != nil {
			return err
		}
		if d.observers[name], err = probe.Observe(ns); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (d *Demo) closeObservers() error {
	var errs []error
	for _, o := range d.observers {
		if o != nil {
			errs = append(errs, o.Close())
		}
	}
	return errors.Join(errs...)
}

// How long a probe waits: long for an answer that should come, short for one
// that a firewall should swallow.
const (
	answerTime  = 3 * time.Second
	silenceTime = 250 * time.Millisecond
)

// single is one probe and its outcome.
type single struct {
	from, to, protocol string
	target             target
	source             *netns.NS
	address            netip.Addr
	want               netip.Addr // invalid: nothing is to arrive
	own                netip.Addr // of the source
	saw                netip.Addr
	err                error
}

func (d *Demo) probeAll(ctx context.Context, inside, outward expectation) ([]Row, error) {
	if _, err := d.Lab.Dropped(outside); err != nil { // forget earlier phases
		return nil, err
	}
	probes, err := d.probes(inside, outward)
	if err != nil {
		return nil, err
	}
	var running sync.WaitGroup
	for _, p := range probes {
		running.Go(func() {
			limit := answerTime
			if !p.want.IsValid() {
				limit = silenceTime
			}
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			p.saw, p.err = probe.Send(ctx, p.source, p.protocol, p.address, d.observers[p.target.observer])
		})
	}
	running.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dropped, err := d.Lab.Dropped(outside)
	if err != nil {
		return nil, err
	}
	return rows(probes, dropped), nil
}

// probes lists every probe of a phase.
func (d *Demo) probes(inside, outward expectation) ([]*single, error) {
	node, virtual := d.spec.Nodes, []netip.Addr{}
	for _, v := range d.spec.Services {
		virtual = append(virtual, v.Address)
	}
	service := target{"outside service", d.spec.Outside[0].Addresses, outside, true, nil}
	fromPod := []target{
		service,
		{"pod-1b, same node", node[0].Pods[1].Addresses, "pod-1b", false, nil},
		// Not knowing what a Pod is, the agent of node-2 translates what
		// arrives from node-1 once more.
		{"pod-2a, other node", node[1].Pods[0].Addresses, "pod-2a", false, &node[1]},
		{"node-2", node[1].Addresses, "node-2", false, nil},
		{"Service of pod-2b", virtual, "pod-2b", false, &node[1]},
	}
	var out []*single
	// nodeOwn are the addresses that "the node's address" means: those of the
	// last node on the way whose agent translates.
	add := func(from string, own, nodeOwn []netip.Addr, t target, e expectation) error {
		ns, err := d.Lab.Namespace(from)
		if err != nil {
			return err
		}
		for i, address := range t.addresses {
			for _, protocol := range []string{"tcp", "udp", "icmp"} {
				s := &single{from: from, to: t.label, protocol: protocol, target: t, source: ns, address: address, own: own[i]}
				switch e {
				case podAddress:
					s.want = own[i]
				case nodeAddress:
					s.want = nodeOwn[i]
					if t.behind != nil {
						s.want = t.behind.Addresses[i]
					}
				}
				out = append(out, s)
			}
		}
		return nil
	}
	var errs []error
	pod := node[0].Pods[0]
	for _, t := range fromPod {
		e := inside
		if t.outside {
			e = outward
		}
		errs = append(errs, add(pod.Name, pod.Addresses, node[0].Addresses, t, e))
	}
	far := node[2].Pods[0]
	errs = append(errs, add(far.Name, far.Addresses, node[2].Addresses, service, outward))
	// A node's own traffic is never rewritten.
	errs = append(errs, add(node[0].Name, node[0].Addresses, node[0].Addresses, service, podAddress))
	return out, errors.Join(errs...)
}

// rows joins the protocols that saw the same.
func rows(probes []*single, dropped []netip.Addr) []Row {
	var out []Row
	for _, p := range probes {
		r := Row{From: fmt.Sprintf("%s %s", p.from, p.own), To: fmt.Sprintf("%s %s", p.to, p.address), Protocols: p.protocol}
		switch {
		case p.saw.IsValid():
			r.Saw = p.saw.String()
		case slices.Contains(dropped, p.own):
			r.Saw = "nothing: the firewall dropped " + p.own.String()
		default:
			r.Saw = fmt.Sprintf("nothing (%v)", p.err)
		}
		r.Expected = "nothing: the firewall dropped " + p.own.String()
		if p.want.IsValid() {
			r.Expected = p.want.String()
		}
		r.OK = r.Saw == r.Expected
		if n := len(out); n > 0 && out[n-1].From == r.From && out[n-1].To == r.To && out[n-1].Saw == r.Saw && out[n-1].OK == r.OK {
			out[n-1].Protocols += " " + p.protocol
			continue
		}
		out = append(out, r)
	}
	return out
}

func (p Phase) write(w io.Writer) {
	fmt.Fprintf(w, "%s\n", p.Title)
	for _, line := range p.Reported {
		fmt.Fprintf(w, "   the agent reports %s\n", line)
	}
	header := Row{From: "from", To: "to", Protocols: "by", Saw: "the other side saw", Expected: "expected"}
	var widths [5]int
	cells := func(r Row) [5]string { return [5]string{r.From, r.To, r.Protocols, r.Saw, r.Expected} }
	for _, r := range append([]Row{header}, p.Rows...) {
		for i, c := range cells(r) {
			widths[i] = max(widths[i], len(c))
		}
	}
	line := func(r Row, verdict string) {
		var b strings.Builder
		for i, c := range cells(r) {
			fmt.Fprintf(&b, "   %-*s", widths[i], c)
		}
		fmt.Fprintf(w, "%s   %s\n", b.String(), verdict)
	}
	line(header, "ok")
	for _, r := range p.Rows {
		verdict := "yes"
		if !r.OK {
			verdict = "NO"
		}
		line(r, verdict)
	}
	fmt.Fprintln(w)
}
