package kubedriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sordino/clusters"
	"sordino/driver"
	"sordino/environment"
	"sordino/internal/count"
)

// atOnce is how many Pods are asked at a time.
const atOnce = 32

// prove sends a packet from every worker to the cluster's probe target, and
// compares whom it saw with what the configuration means. When all is as it
// should be, or there is no target, the generation counts as in place.
func (d *Driver) prove(ctx context.Context, c *cluster, e *environment.Environment) (string, error) {
	// Read first: one that joins now has proven nothing.
	machines, err := c.nodes(ctx)
	if err != nil {
		return "", err
	}
	workers, err := c.podsOf(ctx, workerSet)
	if err != nil {
		return "", err
	}
	proof, detail := "", fmt.Sprintf("not proven: the cluster %s has no probe target; declare one under probe: in the clusters file", c.Name)
	if c.Probe.IsValid() {
		packets, err := c.send(ctx, workerSet, workers, machines)
		if err != nil {
			return "", err
		}
		if proof, detail, err = judge(e, packets); err != nil {
			return "", err
		}
	}
	return detail, c.note(ctx, e.UUID, func(s *state) {
		s.Generation, s.Nodes, s.Proof, s.Checked = e.Generation, digestOfNodes(machines, workers), proof, time.Time{}
		if proof != "" {
			s.Checked = d.Now().UTC().Round(0)
		}
	})
}

// judge compares what the target saw with what the configuration means. The
// proof is what it saw; without one, the detail says why that proves nothing.
func judge(e *environment.Environment, packets []packet) (proof, detail string, err error) {
	var sentences, unproven []string
	var errs []error
	for _, p := range packets {
		switch proven, why, err := p.proves(e); {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", p.on, err))
		case why != "":
			unproven = append(unproven, why)
		default:
			sentences = append(sentences, proven)
		}
	}
	switch {
	case len(errs) > 0:
		return "", "", errors.Join(errs...)
	case len(unproven) > 0:
		return "", "not proven: " + clusters.Some(unproven), nil
	case len(sentences) == 1:
		proof = sentences[0]
	case !e.AgentEnabled(), slices.ContainsFunc(packets, func(p packet) bool { return p.kept() != packets[0].kept() }):
		proof = clusters.Some(sentences)
	default:
		proof = fmt.Sprintf("%s; the Pods of %s likewise", sentences[0], count.Of(len(sentences)-1, "other node"))
	}
	return proof, proof, nil
}

// packet is one from a node.
type packet struct {
	driver.Packet
	on string
}

// kept says that the target saw the Pod's own address.
func (p packet) kept() bool { return p.SeenAs == p.From }

// proves says what a packet proves, or why it proves nothing, or what is wrong.
func (p packet) proves(e *environment.Environment) (proven, unproven string, err error) {
	switch {
	case !e.AgentEnabled() && p.SeenAs.IsValid():
		return fmt.Sprintf("%s was seen as %s by %s (the agent is not enabled)", p.From, p.SeenAs, p.To), "", nil
	case !e.AgentEnabled():
		return "", fmt.Sprintf("%s did not answer %s (%s)", p.To, p.From, p.Err), nil
	case !p.SeenAs.IsValid():
		// Nobody knows who dropped it; it had to arrive if it was masqueraded.
		dropped := p.Packet
		dropped.Dropped = true
		if _, err := dropped.Prove(e); err == nil {
			return "", fmt.Sprintf("%s may keep its own address, and %s did not answer it (%s)", p.From, p.To, p.Err), nil
		}
	}
	proven, err = p.Prove(e)
	return proven, "", err
}

// send has these Pods of a set call the probe target, as far as they are on these
// nodes.
func (c *cluster) send(ctx context.Context, s set, all []pod, machines []node) ([]packet, error) {
	addresses := map[string][]netip.Addr{}
	for i := range machines {
		addresses[machines[i].Metadata.Name] = machines[i].addresses(c.Probe.Addr().Is4())
	}
	packets := make([]packet, 0, len(all))
	var from []*pod
	for i := range all {
		p := &all[i]
		node, known := addresses[p.Spec.NodeName]
		switch {
		case p.Metadata.DeletionTimestamp != nil:
			continue
		case p.Spec.NodeName != "" && !known:
			continue // it joined, or is another system's
		case !p.ready() || !p.address().IsValid():
			return nil, fmt.Errorf("%s", c.explained(ctx, s, p))
		case len(node) == 0:
			return nil, fmt.Errorf("the node %s has no address of the family of the probe target %s", p.Spec.NodeName, c.Probe)
		}
		packets = append(packets, packet{driver.Packet{From: p.address(), To: c.Probe.Addr(), Node: node}, p.Spec.NodeName})
		from = append(from, p)
	}
	if len(packets) == 0 {
		return nil, fmt.Errorf("the %s has no Pod that could send a packet", s)
	}
	errs := make([]error, len(packets))
	parallel(len(packets), func(i int) {
		answer, err := c.output(ctx, s, from[i].Metadata.Name, []string{"/sordino", "probe", c.Probe.String()}, "")
		p := &packets[i]
		switch {
		case err != nil:
			errs[i] = fmt.Errorf("sending a packet from %s: %w", p.on, err)
		case answer.Status == 1:
			p.Err = lastLineOf(answer.Complaint)
		case answer.Status != 0:
			errs[i] = fmt.Errorf("sending a packet from %s: the command ended with status %d: %s", p.on, answer.Status, lastLineOf(answer.Complaint))
		default:
			if p.SeenAs, err = netip.ParseAddr(string(bytes.TrimSpace(answer.Output))); err != nil {
				errs[i] = fmt.Errorf("the probe target %s answers %s with %q, and not with its address", c.Probe, p.on, answer.Output)
			}
		}
	})
	return packets, errors.Join(errs...)
}

// parallel calls do for 0 to n-1, some at a time.
func parallel(n int, do func(i int)) {
	var running sync.WaitGroup
	free := make(chan struct{}, atOnce)
	for i := range n {
		free <- struct{}{}
		running.Go(func() {
			defer func() { <-free }()
			do(i)
		})
	}
	running.Wait()
}
