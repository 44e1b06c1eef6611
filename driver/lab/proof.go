package labdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"sordino/driver"
	"sordino/environment"
	"sordino/internal/count"
	"sordino/lab/host"
)

// prove sends a packet from every worker to the service outside, and compares
// whom it saw with what the configuration means. When all is as it should be
// the generation counts as in place.
func (d *Driver) prove(ctx context.Context, e *environment.Environment) (string, error) {
	c, err := host.Dial(ctx, d.Dir)
	if err != nil {
		return "", err
	}
	spec, err := Spec(e.Plan)
	if err != nil {
		return "", err
	}
	to := spec.Outside[0].Addresses[0]
	const uplink = "eth0" // of every node of a lab
	var from []string
	for _, n := range spec.Nodes {
		from = append(from, n.Pods[0].Name)
	}
	seen, err := c.Probe(ctx, e.UUID, host.Probe{From: from, To: outside, Protocol: "tcp"})
	if err != nil {
		return "", fmt.Errorf("sending a packet: %w", err)
	}
	var proof string
	var errs []error
	for i, n := range spec.Nodes {
		saw := seen[i]
		sentence, err := driver.Packet{From: n.Pods[0].Addresses[0], To: to, Node: n.Addresses, Uplink: uplink,
			SeenAs: saw.As, Dropped: saw.Dropped, Err: saw.Error}.Prove(e)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.Name, err))
		} else if proof == "" {
			proof = sentence
		}
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	if others := len(spec.Nodes) - 1; others > 0 {
		proof += fmt.Sprintf("; the Pods of %s likewise", count.Of(others, "other node"))
	}
	text, err := json.Marshal(state{Generation: e.Generation, Proof: proof, Checked: d.Now().UTC()})
	if err != nil {
		return "", err
	}
	return proof, c.Note(ctx, e.UUID, map[string]string{noteState: string(text)})
}
