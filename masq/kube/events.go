package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"sordino/internal/kubeapi"
	"sordino/masq/agent"
)

// component is the reporting controller of our Events.
const component = "ip-masq-agent"

// sameEvent is how long an Event is counted on instead of made anew.
const sameEvent = 10 * time.Minute

// occurrence is something that happened, once or more often.
type occurrence struct {
	agent.Event
	first, last time.Time
	count       int
	name        string // of the Event in the cluster; empty when there is none
	unsent      bool
}

// enqueue adds to what waits. The same thing again is counted on; when too much
// waits, what is new is only in the log.
func (r *Reporter) enqueue(e agent.Event, now time.Time) {
	e.Message = cut(e.Message, longestNote)
	key := string(e.Reason) + " " + e.Message
	for k, o := range r.told {
		if !o.unsent && now.Sub(o.last) > sameEvent {
			delete(r.told, k)
		}
	}
	o := r.told[key]
	if o == nil {
		if len(r.pending) >= most {
			r.log.Debug("too many Events wait; this one is not sent", "reason", e.Reason, "message", e.Message)
			return
		}
		o = &occurrence{Event: e, first: now}
		r.told[key] = o
	}
	o.last = now
	o.count++
	if !o.unsent {
		o.unsent = true
		r.pending = append(r.pending, o)
	}
}

// next is what waits longest; nil when nothing does.
func (r *Reporter) next() *occurrence {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pending) == 0 {
		return nil
	}
	return r.pending[0]
}

// event is an Event of core v1, which is also what kubectl describe reads.
type event struct {
	Metadata       eventMeta       `json:"metadata"`
	InvolvedObject objectReference `json:"involvedObject"`
	Reason         string          `json:"reason"`
	Message        string          `json:"message"`
	Type           string          `json:"type"`
	Source         eventSource     `json:"source"`
	FirstTimestamp time.Time       `json:"firstTimestamp"`
	LastTimestamp  time.Time       `json:"lastTimestamp"`
	Count          int             `json:"count"`
	Controller     string          `json:"reportingComponent"`
	Instance       string          `json:"reportingInstance"`
}

type eventMeta struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type eventSource struct {
	Component string `json:"component"`
	Host      string `json:"host"`
}

type objectReference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

// Events about a Node, which has no namespace, are in this one.
const eventNamespace = "default"

// send creates or counts on the Event. One that is refused is not sent again.
func (r *Reporter) send(ctx context.Context, o *occurrence, now time.Time) error {
	r.mu.Lock()
	was, uid := *o, r.onNode.Metadata.UID
	r.mu.Unlock()
	kind := "Normal"
	switch was.Reason {
	case agent.ConfigRejected, agent.ConfigUnavailable, agent.ApplyFailed, agent.RulesRepaired:
		kind = "Warning"
	}
	second := func(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
	ref := kubeapi.Events.In(eventNamespace)
	name, err := was.name, error(kubeapi.ErrNotFound)
	if name != "" {
		err = r.client.Patch(ctx, ref.Named(name), kubeapi.MergePatch, map[string]any{"count": was.count, "lastTimestamp": second(was.last)}, nil)
	}
	if errors.Is(err, kubeapi.ErrNotFound) {
		name = fmt.Sprintf("%s.%x%04x", r.node, now.UnixNano(), rand.N(1<<16))
		err = r.client.Create(ctx, ref, event{
			Metadata:       eventMeta{name, eventNamespace},
			InvolvedObject: objectReference{"v1", "Node", r.node, uid},
			Reason:         string(was.Reason), Message: was.Message, Type: kind, Source: eventSource{component, r.node},
			FirstTimestamp: second(was.first), LastTimestamp: second(was.last), Count: was.count,
			Controller: component, Instance: r.node,
		}, nil)
	}
	var refused *kubeapi.StatusError
	final := errors.As(err, &refused) && refused.Code >= 400 && refused.Code < 500 &&
		refused.Code != http.StatusUnauthorized && refused.Code != http.StatusTooManyRequests
	if err != nil && !final {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending = r.pending[1:]; err == nil {
		o.name = name
	}
	// What happened meanwhile waits again.
	if o.unsent = o.count != was.count && err == nil; o.unsent {
		r.pending = append(r.pending, o)
	}
	if final {
		r.failed.Add(1)
		r.log.Warn("an Event was refused and is left out", "reason", was.Reason, "error", err)
	}
	return nil
}
