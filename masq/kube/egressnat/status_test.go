package egressnat

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sordino/internal/kubeapi"
)

func policy(name, action string, cidrs ...string) Policy {
	p := Policy{Metadata: Metadata{Name: name, Generation: 1}, Spec: Spec{Action: action}}
	for _, c := range cidrs {
		p.Spec.Destinations = append(p.Spec.Destinations, Destination{c})
	}
	return p
}

func TestDue(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p := policy("default", "NoSNAT", "10.0.0.0/8")
	p.Metadata.Generation = 4
	want := verdict(p, false)
	if want.Status != "True" || want.ObservedGeneration != 4 {
		t.Fatalf("%+v", want)
	}
	for name, tc := range map[string]struct {
		have []Condition
		from time.Time
		ok   bool
	}{
		"none":                  {nil, time.Time{}, true},
		"another's":             {[]Condition{{Type: "Ready", Status: "False", ObservedGeneration: 4}}, time.Time{}, true},
		"stands":                {[]Condition{{Type: Accepted, Status: "True", ObservedGeneration: 4, LastTransitionTime: at}}, time.Time{}, false},
		"older generation":      {[]Condition{{Type: Accepted, Status: "True", ObservedGeneration: 3, LastTransitionTime: at}}, time.Time{}, true},
		"newer than ours":       {[]Condition{{Type: Accepted, Status: "False", ObservedGeneration: 5, LastTransitionTime: at}}, time.Time{}, false},
		"others see it another": {[]Condition{{Type: Accepted, Status: "False", ObservedGeneration: 4, LastTransitionTime: at}}, at.Add(truce), true},
	} {
		p.Status.Conditions = tc.have
		if from, ok := due(p, want); ok != tc.ok || ok && !from.Equal(tc.from) {
			t.Errorf("%s: %v %v", name, from, ok)
		}
	}
}

func TestConditionsOfOthersStay(t *testing.T) {
	at, now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2026, 2, 2, 3, 4, 5, 9, time.UTC)
	others := []Condition{{Type: "Ready"}, {Type: Accepted, Status: "True", LastTransitionTime: at}}
	got := with(others, Condition{Type: Accepted, Status: "True"}, now)
	if len(got) != 2 || got[0].Type != "Ready" || !got[1].LastTransitionTime.Equal(at) {
		t.Errorf("%+v", got)
	}
	got = with(others, Condition{Type: Accepted, Status: "False"}, now)
	if len(got) != 2 || !got[1].LastTransitionTime.Equal(now.Truncate(time.Second)) {
		t.Errorf("%+v", got)
	}
}

// store is one policy as an API server keeps it, with the delay of a watch.
type store struct {
	mu                    sync.Mutex
	policy                Policy
	reads, writes, losses int
	watchers              []chan []Policy
	delay                 time.Duration
}

func (s *store) Get(_ context.Context, ref kubeapi.Ref, into any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ref.Name != s.policy.Metadata.Name {
		return kubeapi.ErrNotFound
	}
	s.reads++
	text, _ := json.Marshal(s.policy)
	return json.Unmarshal(text, into)
}

func (s *store) Patch(_ context.Context, ref kubeapi.Ref, kind kubeapi.PatchKind, patch, _ any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, _ := json.Marshal(patch)
	var p Policy
	if err := json.Unmarshal(text, &p); err != nil || kind != kubeapi.MergePatch || ref.Subresource != "status" {
		return fmt.Errorf("%s %s: %w", kind, ref, err)
	}
	if p.Metadata.ResourceVersion != s.policy.Metadata.ResourceVersion {
		s.losses++
		return fmt.Errorf("patching: %w", kubeapi.ErrConflict)
	}
	s.writes++
	s.policy.Status = p.Status
	s.changed()
	return nil
}

// changed gives the policy another version and tells the watchers of it.
func (s *store) changed() {
	s.policy.Metadata.ResourceVersion += "'"
	p := s.policy
	p.Status.Conditions = slices.Clone(p.Status.Conditions)
	watchers := slices.Clone(s.watchers)
	time.AfterFunc(s.delay, func() {
		for _, w := range watchers {
			w <- []Policy{p}
		}
	})
}

func (s *store) start(ctx context.Context, n int, ipv6 bool) {
	for range n {
		w := make(chan []Policy, 100)
		s.mu.Lock() // those before may write already
		s.watchers = append(s.watchers, w)
		w <- []Policy{s.policy}
		s.mu.Unlock()
		go (&reporter{s, ipv6, slog.New(slog.DiscardHandler)}).run(ctx, w)
	}
}

// Two hundred agents come to the same verdict; one writes it, a few look. More
// than 255 goroutines in a bubble crash the race detector, one run in ten
// (golang/go issue 78156).
func TestManyAgentsWriteOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{policy: policy("default", "NoSNAT", "10.0.0.0/8"), delay: 100 * time.Millisecond}
		ctx, stop := context.WithCancel(t.Context())
		s.start(ctx, 200, false)
		for round := 1; round <= 5; round++ {
			time.Sleep(spread + time.Second)
			synctest.Wait()
			s.mu.Lock()
			if s.writes != round || s.policy.Status.Conditions[0].ObservedGeneration != int64(round) {
				t.Errorf("%d writes for %d generations: %+v", s.writes, round, s.policy.Status)
			}
			s.policy.Metadata.Generation++
			s.changed()
			s.mu.Unlock()
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		// Within the watch's delay a fiftieth of them begin.
		t.Logf("%d writes, %d reads, %d conflicts for 6 generations", s.writes, s.reads, s.losses)
		if s.writes != 6 || s.reads > 6*20 {
			t.Errorf("%d writes, %d reads, %d conflicts", s.writes, s.reads, s.losses)
		}
		stop()
		synctest.Wait()
	})
}

// Agents with other flags do not write against each other all the time.
func TestAgentsThatDisagreeKeepATruce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{policy: policy("default", "NoSNAT", "fd00::/8"), delay: 10 * time.Millisecond}
		ctx, stop := context.WithCancel(t.Context())
		s.start(ctx, 10, true)
		s.start(ctx, 10, false)
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.writes < 2 || s.writes > 7 {
			t.Errorf("%d writes in an hour", s.writes)
		}
		stop()
		synctest.Wait()
	})
}

func TestVerdicts(t *testing.T) {
	for _, tc := range []struct {
		p              Policy
		status, reason string
		says           []string
	}{
		{policy("default", "NoSNAT", "10.0.0.0/8", "172.16.0.0/12"), "True", "Accepted", []string{"towards 2 destinations"}},
		{policy("default", "SNAT"), "False", "ActionUnknown", []string{"spec.action", "write NoSNAT", "what held before goes on"}},
		{policy("default", "NoSNAT", "10.0.0.0/8", "10.1.0.0/8"), "False", "DestinationInvalid", []string{"spec.destinations[1].cidr", "write 10.0.0.0/8"}},
		{policy("default", "NoSNAT", "fd00::/8"), "False", "IPv6Disabled", []string{"--enable-ipv6"}},
	} {
		got := verdict(tc.p, false)
		for _, want := range tc.says {
			if !strings.Contains(got.Message, want) {
				t.Errorf("%q is not in %q", want, got.Message)
			}
		}
		if got.Status != tc.status || got.Reason != tc.reason {
			t.Errorf("%+v", got)
		}
	}
	// Whatever is in a policy, the API server takes the condition.
	var many []string
	for range 1000 {
		many = append(many, strings.Repeat("ö", 100))
	}
	if got := verdict(policy("default", "NoSNAT", many...), false); len(got.Message) > longestMessage {
		t.Errorf("%d bytes", len(got.Message))
	}
}
