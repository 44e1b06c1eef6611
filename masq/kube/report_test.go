package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sordino/internal/kubeapi"
	"sordino/internal/kubetest"
	"sordino/internal/testwait"
	"sordino/masq"
	"sordino/masq/agent"
)

// told is a Node as others see it.
type told struct {
	Metadata struct {
		Annotations map[string]string
		Labels      map[string]string
	}
	Status struct{ Conditions []Condition }
}

func (n told) condition() (Condition, bool) {
	for _, c := range n.Status.Conditions {
		if c.Type == ConditionType {
			return c, true
		}
	}
	return Condition{}, false
}

// reports runs a reporter until the test ends.
func reports(t *testing.T, client *kubeapi.Client, name string) *Reporter {
	r := NewReporter(client, name, "v1.2.3", quiet())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func TestReporter(t *testing.T) {
	k := kubetest.Start(t, kubetest.Options{})
	k.Kubectl(t, node, "create", "-f", "-")
	k.Kubectl(t, "", "patch", "node", "n1", "--subresource=status", "-p", `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","message":"x"}]}}`)
	// No more than a node needs: see deploy/agent.
	k.Kubectl(t, "", "create", "clusterrole", "agent", "--verb=patch", "--resource=nodes/status")
	k.Kubectl(t, "", "create", "clusterrolebinding", "agent", "--clusterrole=agent", "--user=agent")
	k.Kubectl(t, "", "create", "role", "-n", "default", "agent", "--verb=create,patch", "--resource=events")
	k.Kubectl(t, "", "create", "rolebinding", "-n", "default", "agent", "--role=agent", "--user=agent")
	kubeconfig, err := k.KubeconfigFor("agent")
	if err != nil {
		t.Fatal(err)
	}
	admin := connect(t, k.Kubeconfig())
	until := func(what string, ok func(told) bool) (n told) {
		t.Helper()
		testwait.Until(t, 2*time.Minute, 5*time.Millisecond, func() error {
			n = told{}
			if err := admin.Get(t.Context(), kubeapi.Nodes.Named("n1"), &n); err != nil || !ok(n) {
				return fmt.Errorf("not %s: %+v, %v", what, n, err)
			}
			return nil
		})
		return n
	}
	reason := func(status, reason string) func(told) bool {
		return func(n told) bool {
			c, ok := n.condition()
			return ok && c.Status == status && c.Reason == reason
		}
	}

	r := reports(t, connect(t, kubeconfig), "n1")
	good := agent.Status{Ready: true, AppliedGeneration: 7, AppliedHash: "abc", ConfigFrom: "ConfigMap a/b", ConfigDigest: "d1",
		Findings: []masq.Finding{{Code: masq.PodRangesUnknown, Message: "first"}}, Warnings: []string{"second"}}
	began := time.Now()
	r.Observe(good, []agent.Event{{Reason: agent.ConfigApplied, Message: "generation 7"}})
	n := until("true", reason("True", "RulesInPlace"))
	t.Logf("told after %v", time.Since(began))
	for name, want := range map[string]string{
		"sordino.dev/masq-generation": "7", "sordino.dev/masq-hash": "abc", "sordino.dev/masq-config": "d1",
		"sordino.dev/masq-findings": `["first","second"]`, "sordino.dev/masq-version": "v1.2.3",
	} {
		if got := n.Metadata.Annotations[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	c, _ := n.condition()
	if !strings.Contains(c.Message, "generation 7 (abc)") || len(n.Status.Conditions) != 2 || time.Since(c.LastHeartbeatTime) > time.Minute {
		t.Errorf("%+v", n.Status.Conditions)
	}
	rejected := good
	rejected.ConfigReason = agent.ConfigRejected
	rejected.ConfigError, rejected.ConfigDigest, rejected.Findings, rejected.Warnings = "ConfigMap a/b, config:2:3: bad", "", nil, nil
	r.Observe(rejected, []agent.Event{{Reason: agent.ConfigRejected, Message: rejected.ConfigError}})
	n = until("false", reason("False", "ConfigRejected"))
	if _, there := n.Metadata.Annotations["sordino.dev/masq-findings"]; there || n.Metadata.Annotations["sordino.dev/masq-config"] != "none" {
		t.Errorf("%q", n.Metadata.Annotations)
	}
	c, _ = n.condition()
	if c.Message != rejected.ConfigError {
		t.Errorf("%+v", c)
	}
	since := c.LastTransitionTime
	time.Sleep(time.Until(since.Add(1100 * time.Millisecond))) // times on a Node are whole seconds
	failed := rejected
	failed.LastError = "no room"
	r.Observe(failed, []agent.Event{{Reason: agent.ApplyFailed, Message: "no room"}})
	until("failed", reason("False", "ApplyFailed"))
	planned := good
	planned.PlanError = "no address"
	r.Observe(planned, nil)
	n = until("not planned", reason("False", "PlanRejected"))
	if c, _ := n.condition(); !c.LastTransitionTime.Equal(since) || !c.LastHeartbeatTime.After(since) {
		t.Errorf("still false, since %v: %+v", since, c)
	}

	// The same thing again is one Event that counts; kubectl shows them all.
	for range 5 {
		r.Observe(good, []agent.Event{{Reason: agent.RulesRepaired, Message: "table gone"}})
	}
	testwait.Until(t, 2*time.Minute, 300*time.Millisecond, func() error {
		if count := k.Kubectl(t, "", "get", "events", "-n", "default", "-o", `jsonpath={.items[?(@.reason=="RulesRepaired")].count}`); count != "5" {
			return fmt.Errorf("the Events RulesRepaired count %q, not 5", count)
		}
		described := k.Kubectl(t, "", "describe", "node", "n1")
		for _, want := range []string{"Normal   ConfigApplied", "Warning  ConfigRejected", "Warning  ApplyFailed", "Warning  RulesRepaired", "(x5 over", "ip-masq-agent", "IPMasqueradeReady"} {
			if !strings.Contains(described, want) {
				return fmt.Errorf("%q is not in kubectl describe node:\n%s", want, described)
			}
		}
		return nil
	})
	until("true again", reason("True", "RulesInPlace"))

	// A Node that was registered anew gets it all again.
	k.Kubectl(t, "", "delete", "node", "n1")
	k.Kubectl(t, node, "create", "-f", "-")
	var fresh Node
	if err := admin.Get(t.Context(), kubeapi.Nodes.Named("n1"), &fresh); err != nil {
		t.Fatal(err)
	}
	r.NodeSeen(fresh)
	until("told anew", func(n told) bool {
		return reason("True", "RulesInPlace")(n) && n.Metadata.Annotations["sordino.dev/masq-generation"] == "7"
	})

	// The API server goes; what happened meanwhile is told when it is back.
	k.StopAPI()
	r.Observe(rejected, nil)
	testwait.Until(t, 2*time.Minute, 10*time.Millisecond, func() error {
		if n, problem := r.Failures(); n == 0 || problem == "" {
			return fmt.Errorf("losing the API server is not noticed: %d, %q", n, problem)
		}
		return nil
	})
	if err := k.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	until("told late", reason("False", "ConfigRejected"))

	k.Kubectl(t, "", "annotate", "node", "n1", "another=kept")
	if err := Withdraw(t.Context(), connect(t, kubeconfig), "n1"); err != nil {
		t.Fatal(err)
	}
	n = until("withdrawn", func(n told) bool { _, there := n.condition(); return !there })
	if len(n.Metadata.Annotations) != 1 || n.Metadata.Annotations["another"] != "kept" {
		t.Errorf("left: %q", n.Metadata.Annotations)
	}
	if err := Withdraw(t.Context(), connect(t, kubeconfig), "unknown"); err != nil {
		t.Errorf("a Node that is gone: %v", err)
	}
}

func TestReasons(t *testing.T) {
	const from = "defaults (x)"
	for _, test := range []struct {
		s                       agent.Status
		status, reason, message string
	}{
		{agent.Status{Ready: true, AppliedGeneration: 2, AppliedHash: "h"}, "True", RulesInPlace, "the kernel holds generation 2 (h), from " + from},
		{agent.Status{Ready: true, ConfigError: "config:1:1: bad", ConfigReason: agent.ConfigRejected}, "False", ConfigRejected, "config:1:1: bad"},
		{agent.Status{Ready: true, ConfigError: "no answer", ConfigReason: agent.ConfigUnavailable}, "False", ConfigUnavailable, "no answer; in force until it is known: " + from},
		{agent.Status{Ready: true, ConfigError: "no answer", ConfigReason: agent.ConfigUnavailable, PlanError: "no address"}, "False", PlanRejected, "no address"},
		{agent.Status{ConfigError: "no answer", ConfigReason: agent.ConfigUnavailable, LastError: "EPERM"}, "False", ApplyFailed, "EPERM"},
	} {
		test.s.ConfigFrom = from
		if c := reportOf(test.s, "v").Condition; c.Status != test.status || c.Reason != test.reason || c.Message != test.message {
			t.Errorf("%+v: %+v", test, c)
		}
	}
}

// What is too long for a Node is cut.
func TestReportIsBounded(t *testing.T) {
	s := agent.Status{Ready: true, ConfigReason: agent.ConfigRejected, ConfigError: strings.Repeat("é", longestMessage)}
	for i := range 3 * most {
		s.Warnings = append(s.Warnings, strings.Repeat(fmt.Sprint(i%10), 2*longestNote))
	}
	r := reportOf(s, "v")
	if n := len(r.Condition.Message); n > longestMessage || n < longestMessage-4 || !strings.HasSuffix(r.Condition.Message, "é…") {
		t.Errorf("the message has %d bytes", n)
	}
	var findings []string
	if err := json.Unmarshal([]byte(r.Annotations[AnnotationFindings].(string)), &findings); err != nil || len(findings) != most+1 || !strings.HasPrefix(findings[most], "and 40 more") {
		t.Errorf("%d findings, %v", len(findings), err)
	}
}

// What the API server asked for is kept; our own pause ends when it is seen to
// answer.
func TestBackoff(t *testing.T) {
	now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	var b backoff
	if left := b.left(now, false); left > 0 {
		t.Errorf("before anything failed it waits for %v", left)
	}
	longest := firstRetry
	for range 12 {
		b.failed(now, 0)
		if left := b.left(now, false); left < longest/2 || left >= longest*3/2 {
			t.Errorf("it waits for %v, not %v or so", left, longest)
		}
		if left := b.left(now, true); left > 0 {
			t.Errorf("with a server that answers it waits for %v", left)
		}
		longest = min(2*longest, lastRetry)
	}
	b.failed(now, 3*time.Minute)
	for _, answers := range []bool{false, true} {
		if left := b.left(now.Add(time.Minute), answers); left != 2*time.Minute {
			t.Errorf("asked for 3 minutes, after one: %v", left)
		}
	}

	// The Node is seen after a failure: that wakes, and once.
	r := NewReporter(nil, "n1", "v1.2.3", quiet())
	r.NodeSeen(Node{})
	if r.answering() {
		t.Error("without a failure there is nothing to wake for")
	}
	r.outcome(errors.New("no route"))
	r.NodeSeen(Node{})
	if !r.answering() || len(r.wake) != 1 {
		t.Error("it is not woken")
	}
	r.outcome(errors.New("no route"))
	if r.answering() {
		t.Error("what was seen before the failure counts after it")
	}
}

// Without a status there is nothing to tell, and nothing to do until there is.
func TestReporterWithoutStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { NewReporter(nil, "n1", "v1.2.3", quiet()).Run(ctx) })
		time.Sleep(3 * heartbeat) // never ends while the reporter is busy
		cancel()
		running.Wait()
	})
}
