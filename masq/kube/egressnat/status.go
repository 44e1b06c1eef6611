package egressnat

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"sordino/internal/count"
	"sordino/internal/kubeapi"
	"sordino/masq/configfile"
)

// Status is what the agents say of a policy.
type Status struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Condition is a metav1.Condition.
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	ObservedGeneration int64     `json:"observedGeneration,omitempty"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
}

// Accepted is the type of our condition: the policy can be used.
const Accepted = "Accepted"

// longestMessage is what a condition may hold.
const longestMessage = 32768

// verdict is the condition that a policy deserves, but for its time.
func verdict(p Policy, ipv6 bool) Condition {
	c := Condition{Type: Accepted, ObservedGeneration: p.Metadata.Generation}
	ranges, problems := p.Check(ipv6)
	if len(problems) == 0 {
		c.Status, c.Reason = "True", "Accepted"
		c.Message = "Pods keep their own address towards " + count.Of(len(ranges), "destination")
		return c
	}
	c.Status, c.Reason = "False", reasons[problems[0].Reason]
	var said []string
	for _, problem := range problems {
		said = append(said, problem.Error())
	}
	c.Message = "no change of any policy has an effect until this is mended; what held before goes on: " + strings.Join(said, "\n")
	if len(c.Message) > longestMessage {
		c.Message = strings.ToValidUTF8(c.Message[:longestMessage-4], "") + " …"
	}
	return c
}

// reasons are the conditions' words for those of the metrics.
var reasons = map[string]string{
	configfile.ReasonType:         "ActionUnknown",
	configfile.ReasonCIDR:         "DestinationInvalid",
	configfile.ReasonIPv6Disabled: "IPv6Disabled",
}

// All agents come to the same verdict, and one of them has to write it. Each
// waits for a random part of spread, looks whether it stands already, and
// writes only if not: of a thousand agents a few read, and one writes.
const (
	spread = 5 * time.Second
	// truce is how long another verdict on the same generation stands: agents
	// with other flags, as in the midst of a rolling update, must not write
	// against each other for ever.
	truce = 10 * time.Minute
)

// due reports whether the verdict has to be written, and from when on.
func due(p Policy, want Condition) (from time.Time, ok bool) {
	for _, have := range p.Status.Conditions {
		switch {
		case have.Type != want.Type:
			continue
		case have.ObservedGeneration < want.ObservedGeneration:
			return time.Time{}, true
		case have.ObservedGeneration == want.ObservedGeneration && have.Status != want.Status:
			return have.LastTransitionTime.Add(truce), true
		}
		return time.Time{}, false
	}
	return time.Time{}, true
}

// with returns the conditions with the verdict in its place.
func with(conditions []Condition, verdict Condition, now time.Time) []Condition {
	verdict.LastTransitionTime = now.UTC().Truncate(time.Second)
	var out []Condition
	for _, c := range conditions {
		if c.Type != verdict.Type {
			out = append(out, c)
		} else if c.Status == verdict.Status {
			verdict.LastTransitionTime = c.LastTransitionTime
		}
	}
	return append(out, verdict)
}

// API is what is asked of the Kubernetes API about one policy.
type API interface {
	Get(ctx context.Context, ref kubeapi.Ref, into any) error
	Patch(ctx context.Context, ref kubeapi.Ref, kind kubeapi.PatchKind, patch, into any) error
}

// policies are all of them.
var policies = kubeapi.Ref{Group: Group, Version: Version, Resource: Resource}

// reporter keeps the policies' conditions as they should be.
type reporter struct {
	api  API
	ipv6 bool
	log  *slog.Logger
}

// run looks at every set of policies that arrives, until the context ends.
func (r *reporter) run(ctx context.Context, changed <-chan []Policy) {
	var seen []Policy
	at := map[string]time.Time{} // when the named policy's verdict is to be written
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case seen = <-changed:
		case <-timer.C:
			for name, when := range at {
				if time.Now().Before(when) {
					continue
				}
				delete(at, name)
				if err := r.write(ctx, name); err != nil && ctx.Err() == nil {
					r.log.Warn("writing a policy's condition; it is tried again", "policy", name, "error", err)
				}
			}
		}
		next := time.Duration(0)
		planned := at
		at = map[string]time.Time{}
		for _, p := range seen {
			from, ok := due(p, verdict(p, r.ipv6))
			if !ok {
				continue
			}
			if now := time.Now(); from.Before(now) {
				from = now
			}
			when, waiting := planned[p.Metadata.Name]
			if !waiting || when.After(from.Add(spread)) {
				when = from.Add(rand.N(spread))
			}
			at[p.Metadata.Name] = when
			if wait := max(time.Until(when), time.Millisecond); next == 0 || wait < next {
				next = wait
			}
		}
		timer.Stop()
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// write writes a verdict unless it stands by now.
func (r *reporter) write(ctx context.Context, name string) error {
	var p Policy
	if err := r.api.Get(ctx, policies.Named(name), &p); errors.Is(err, kubeapi.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	want, now := verdict(p, r.ipv6), time.Now()
	if from, ok := due(p, want); !ok || now.Before(from) {
		return nil
	}
	// Only as long as nobody has changed it: others come to the same verdict in
	// the same second.
	err := r.api.Patch(ctx, policies.Named(name).Sub("status"), kubeapi.MergePatch, map[string]any{
		"metadata": map[string]any{"resourceVersion": p.Metadata.ResourceVersion},
		"status":   Status{with(p.Status.Conditions, want, now)},
	}, nil)
	if errors.Is(err, kubeapi.ErrConflict) {
		return nil // whatever was changed, we are told of it
	}
	return err
}
