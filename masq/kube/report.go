package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"sordino/internal/kubeapi"
	"sordino/masq/agent"
)

const (
	// Attempts after a failure start at firstRetry and double up to lastRetry.
	firstRetry = 500 * time.Millisecond
	lastRetry  = time.Minute
	// longestMessage bounds a condition's message, and an Event's.
	longestMessage, longestNote = 8192, 1024
	// most bounds the findings on a Node, and the Events that wait.
	most = 20
)

// Reporter tells on the Node what the agent does. It never holds up the loop,
// and what the API server does not take is tried again.
type Reporter struct {
	client  *kubeapi.Client
	node    string
	version string
	log     *slog.Logger
	failed  atomic.Uint64

	wake chan struct{}

	mu      sync.Mutex
	status  *agent.Status // the latest
	pending []*occurrence // Events to send
	onNode  Node          // as last seen
	again   bool          // what was sent is not there any more
	answers bool          // the API server has answered somebody since the last attempt failed
	problem string        // why the last attempt failed
	sent    report        // what the Node was last patched to
	told    map[string]*occurrence
}

// NewReporter makes a reporter; it sends while Run runs.
func NewReporter(client *kubeapi.Client, node, version string, log *slog.Logger) *Reporter {
	return &Reporter{client: client, node: node, version: version, log: log, wake: make(chan struct{}, 1), told: map[string]*occurrence{}}
}

// Observe implements [agent.Observer].
func (r *Reporter) Observe(status agent.Status, events []agent.Event) {
	r.mu.Lock()
	r.status = &status
	for _, e := range events {
		r.enqueue(e, time.Now())
	}
	r.mu.Unlock()
	r.poke()
}

// NodeSeen notices a Node that lost what stood on it: one that was deleted and
// registered again. It also shows that the API server answers: after an hour
// without one nobody waits for the next attempt.
func (r *Reporter) NodeSeen(n Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.problem != "" {
		r.answers = true
		r.poke()
	}
	if r.sent.Annotations != nil && (n.Metadata.UID != r.onNode.Metadata.UID || n.Condition(ConditionType) == nil) {
		r.again = true
		r.poke()
	}
	r.onNode = n
}

// Failures is how many attempts failed, and why the last one did; empty when it
// went well.
func (r *Reporter) Failures() (n uint64, problem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed.Load(), r.problem
}

func (r *Reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run sends until the context ends.
func (r *Reporter) Run(ctx context.Context) {
	// Changes are told at once, but a fight over the rules is told in strides.
	patches := rate.NewLimiter(1, 5)
	events := rate.NewLimiter(rate.Every(10*time.Second), 10)
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	due := time.Time{} // the next heartbeat
	var pause backoff
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		now := time.Now()
		if wait := pause.left(now, r.answering()); wait > 0 {
			timer.Reset(wait)
			continue
		}
		next := due
		err := func() error {
			want, ok := r.want(!now.Before(due))
			if ok {
				if wait := delay(patches, now); wait > 0 {
					next = now.Add(wait)
					return nil
				}
				if err := r.patch(ctx, want); err != nil {
					return err
				}
				due = now.Add(heartbeat - heartbeat/10 + rand.N(heartbeat/5))
				next = due
			}
			for e := r.next(); e != nil; e = r.next() {
				if wait := delay(events, now); wait > 0 {
					next = earlier(next, now.Add(wait))
					return nil
				}
				if err := r.send(ctx, e, now); err != nil {
					return err
				}
			}
			return nil
		}()
		if ctx.Err() != nil {
			return
		}
		r.outcome(err)
		if err != nil {
			next = pause.failed(now, kubeapi.RetryAfter(err))
		} else {
			pause = backoff{}
		}
		if !next.After(now) { // nothing was observed so far; the first status wakes
			next = now.Add(heartbeat)
		}
		timer.Reset(max(time.Until(next), 0))
	}
}

// backoff is when the next attempt is due after one that failed.
type backoff struct {
	retry time.Duration
	// until is when, asked is what the API server asked for.
	until, asked time.Time
}

func (b *backoff) failed(now time.Time, after time.Duration) (next time.Time) {
	b.retry = min(max(2*b.retry, firstRetry), lastRetry)
	b.asked = now.Add(after)
	b.until = now.Add(max(b.retry/2+rand.N(b.retry), after))
	return b.until
}

// left is how long it is to the next attempt. A server that answers others is
// waited for only as long as it asked.
func (b *backoff) left(now time.Time, answers bool) time.Duration {
	if answers {
		return b.asked.Sub(now)
	}
	return b.until.Sub(now)
}

// answering reports whether NodeSeen has noticed that the API server answers.
func (r *Reporter) answering() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answers
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// delay takes from the limiter, or tells how long to wait before asking again.
func delay(l *rate.Limiter, now time.Time) time.Duration {
	if l.AllowN(now, 1) {
		return 0
	}
	reservation := l.ReserveN(now, 1)
	defer reservation.CancelAt(now)
	return max(reservation.DelayFrom(now), 10*time.Millisecond)
}

func (r *Reporter) outcome(err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
		r.failed.Add(1)
	}
	r.mu.Lock()
	before := r.problem
	r.problem, r.answers = problem, false
	r.mu.Unlock()
	switch {
	case problem == before:
	case err != nil:
		r.log.Warn("telling the cluster what this node does; masquerading goes on, and it is tried again", "error", err)
	default:
		r.log.Info("the cluster is told again what this node does")
	}
}

// report is what stands on the Node, but for its times.
type report struct {
	Annotations map[string]any // nil as a value takes one away
	Condition   Condition
}

// want is what the Node should be patched to; false when there is no need.
func (r *Reporter) want(due bool) (report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == nil {
		return report{}, false
	}
	want := reportOf(*r.status, r.version)
	return want, due || r.again || !reflect.DeepEqual(want, r.sent)
}

func reportOf(s agent.Status, version string) report {
	c := Condition{Type: ConditionType, Status: "False"}
	switch {
	case s.LastError != "" || !s.Ready:
		c.Reason, c.Message = ApplyFailed, cmp.Or(s.LastError, "the rules are not in the kernel yet")
	case s.PlanError != "":
		c.Reason, c.Message = PlanRejected, s.PlanError
	case s.ConfigReason == agent.ConfigUnavailable:
		c.Reason, c.Message = ConfigUnavailable, s.ConfigError+"; in force until it is known: "+s.ConfigFrom
	case s.ConfigError != "":
		c.Reason, c.Message = ConfigRejected, s.ConfigError
	default:
		c.Status, c.Reason = "True", RulesInPlace
		c.Message = fmt.Sprintf("the kernel holds generation %d (%s), from %s", s.AppliedGeneration, s.AppliedHash, s.ConfigFrom)
	}
	c.Message = cut(c.Message, longestMessage)
	annotations := map[string]any{
		AnnotationGeneration: strconv.FormatUint(s.AppliedGeneration, 10),
		AnnotationHash:       s.AppliedHash,
		AnnotationConfig:     cmp.Or(s.ConfigDigest, NoConfig),
		AnnotationVersion:    version,
		AnnotationFindings:   nil,
	}
	var findings []string
	for _, f := range s.Findings {
		findings = append(findings, cut(f.Message, longestNote))
	}
	for _, w := range s.Warnings {
		findings = append(findings, cut(w, longestNote))
	}
	if n := len(findings) - most; n > 0 {
		findings = append(findings[:most], fmt.Sprintf("and %d more; ask the agent's /status", n))
	}
	if len(findings) > 0 {
		text, _ := json.Marshal(findings) // strings always can be
		annotations[AnnotationFindings] = string(text)
	}
	return report{annotations, c}
}

// cut shortens a text to so many bytes.
func cut(text string, longest int) string {
	if len(text) <= longest {
		return text
	}
	end := longest - len("…")
	for end > 0 && text[end]&0xc0 == 0x80 {
		end--
	}
	return text[:end] + "…"
}

func (r *Reporter) patch(ctx context.Context, want report) error {
	now := time.Now().UTC().Truncate(time.Second)
	r.mu.Lock()
	r.again = false
	c := want.Condition
	c.LastHeartbeatTime, c.LastTransitionTime = now, now
	if old := r.onNode.Condition(c.Type); old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	r.mu.Unlock()
	// One patch of the status carries both: the agent may change nothing else.
	patch := map[string]any{
		"metadata": map[string]any{"annotations": want.Annotations},
		"status":   map[string]any{"conditions": []Condition{c}},
	}
	var n Node
	err := r.client.Patch(ctx, kubeapi.Nodes.Named(r.node).Sub("status"), kubeapi.StrategicMerge, patch, &n)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.again = true
		return err
	}
	r.sent, r.onNode = want, n
	return nil
}

// Withdraw takes condition and annotations off a Node.
func Withdraw(ctx context.Context, client *kubeapi.Client, node string) error {
	annotations := map[string]any{}
	for name := range reportOf(agent.Status{}, "").Annotations {
		annotations[name] = nil
	}
	patch := map[string]any{
		"metadata": map[string]any{"annotations": annotations},
		"status":   map[string]any{"conditions": []map[string]string{{"type": ConditionType, "$patch": "delete"}}},
	}
	err := client.Patch(ctx, kubeapi.Nodes.Named(node).Sub("status"), kubeapi.StrategicMerge, patch, nil)
	if errors.Is(err, kubeapi.ErrNotFound) {
		return nil // a Node that is gone bears nothing
	}
	return err
}
