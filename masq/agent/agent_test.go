package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sordino/masq"
)

// scripted stands for everything around the loop: a source, a kernel, other
// agents and a node, each of which the test turns to its purpose.
type scripted struct {
	mu        sync.Mutex
	config    masq.Config
	configErr error
	facts     masq.Facts
	applyErr  error
	kernel    string // the hash that the kernel holds
	writes    []uint64
	calls     int
	changed   map[string]func()
}

func newScripted() *scripted {
	return &scripted{config: masq.DefaultConfig(false), changed: map[string]func(){}}
}

func (s *scripted) Load() (Loaded, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.configErr != nil {
		return Loaded{}, s.configErr
	}
	return Loaded{Config: s.config, Files: []string{"config"}}, nil
}

func (s *scripted) Name() string { return "scripted" }

func (s *scripted) Apply(_ context.Context, rs masq.RuleSet, generation uint64) (masq.Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.applyErr != nil {
		return masq.Change{}, s.applyErr
	}
	change := masq.Change{Wrote: s.kernel != rs.Hash(), Repaired: s.kernel == "flushed"}
	if change.Wrote {
		s.writes = append(s.writes, generation)
	}
	s.kernel = rs.Hash()
	return change, nil
}

func (s *scripted) Held(context.Context) (masq.Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var generation uint64
	if len(s.writes) > 0 {
		generation = s.writes[len(s.writes)-1]
	}
	return masq.Held{Generation: generation, Hash: s.kernel, Counters: []masq.Counter{{Family: masq.IPv4, Action: masq.Masquerade, Packets: 7, Bytes: 700, Connections: 2}}}, nil
}

// watched hands the loop's callback to the test under a name.
type watched struct {
	*scripted
	name string
}

func (w watched) Watch(ctx context.Context, changed func()) error {
	w.mu.Lock()
	w.changed[w.name] = changed
	w.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (w watched) Facts() (masq.Facts, error) { return w.facts, nil }

func (w watched) Remove(context.Context) ([]string, []string, error) { return nil, nil, nil }

func (w watched) Translators(context.Context) ([]Translator, error) {
	return []Translator{{"ip nat", "CNI-*", 3}}, nil
}

func (s *scripted) poke(name string) {
	s.mu.Lock()
	f := s.changed[name]
	s.mu.Unlock()
	f()
	synctest.Wait()
}

func (s *scripted) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *scripted) settings(stateDir string) Settings {
	return Settings{
		Options: masq.Options{Chain: masq.DefaultChain},
		Source:  watched{s, "source"}, Backend: watched{s, "kernel"}, Predecessors: watched{s, "others"}, Node: watched{s, "node"},
		StateDir: stateDir, Arguments: []string{"--v=2"}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// start runs an agent until the test's bubble is done with it.
func start(t *testing.T, s Settings) (*Agent, func()) {
	ctx, cancel := context.WithCancel(t.Context())
	a := New(s)
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	synctest.Wait()
	return a, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func list(prefixes ...string) masq.Config {
	c := masq.DefaultConfig(false)
	c.NonMasquerade, c.NonMasqueradeGiven = nil, true
	for _, p := range prefixes {
		c.NonMasquerade = append(c.NonMasquerade, masq.Range{Prefix: netip.MustParsePrefix(p), Origin: masq.Origin{Source: "config", Line: 1, Column: 1}})
	}
	return c
}

func TestAppliesOnceAndFollowsTheConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		a, stop := start(t, s.settings(""))
		defer stop()
		time.Sleep(10 * time.Minute) // ten resyncs
		synctest.Wait()
		if len(s.writes) != 1 || s.calls < 10 {
			t.Fatalf("writes %v in %d calls, want one write and a call a resync", s.writes, s.calls)
		}
		s.set(func() { s.config = list("10.0.0.0/8") })
		s.poke("source")
		st := a.Status()
		if len(s.writes) != 2 || st.AppliedGeneration != 2 || st.AppliedHash != s.kernel || !st.Ready {
			t.Fatalf("after a change: writes %v, status %+v", s.writes, st)
		}
		s.poke("source")
		if len(s.writes) != 2 {
			t.Fatal("an unchanged config was written again")
		}
	})
}

func TestARejectedConfigChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		a, stop := start(t, s.settings(""))
		defer stop()
		before := a.Status()
		s.set(func() { s.configErr = &Rejected{[]string{"cidr"}, errors.New("config:3:5: bad"), "d2"} })
		s.poke("source")
		st := a.Status()
		if st.ConfigDigest != "d2" {
			t.Errorf("the rejected text's digest is not told: %q", st.ConfigDigest)
		}
		if st.ConfigError != "config:3:5: bad" || st.Hash != before.Hash || !st.Ready || len(s.writes) != 1 {
			t.Fatalf("status %+v, writes %v", st, s.writes)
		}
		if body := scrape(t, a); !strings.Contains(body, `ip_masq_agent_config_rejects_total{reason="cidr"} 1`) {
			t.Errorf("the reject is not counted:\n%s", body)
		}
		s.set(func() { s.configErr = nil })
		s.poke("source")
		if st := a.Status(); st.ConfigError != "" {
			t.Errorf("still in error after the file was mended: %q", st.ConfigError)
		}
	})
}

func TestColdStartWithABadFile(t *testing.T) {
	dir := t.TempDir()
	bad := &Rejected{[]string{"syntax"}, errors.New("config:1:1: bad"), "d1"}
	t.Run("no earlier run: the defaults", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newScripted()
			s.configErr = bad
			a, stop := start(t, s.settings(dir))
			defer stop()
			want, _, _ := masq.Plan(masq.DefaultConfig(false), masq.Options{Chain: masq.DefaultChain}, masq.Facts{})
			if st := a.Status(); s.kernel != want.Hash() || !strings.HasPrefix(st.ConfigFrom, "defaults (the configuration is rejected") {
				t.Fatalf("the kernel holds %s, status %+v", s.kernel, st)
			}
		})
		if c, err := LastGood(dir); c != nil || err != nil {
			t.Fatalf("a fallback was saved as if it were good: %v, %v", c, err)
		}
	})
	var hash string
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		s.config = list("1.2.3.0/24")
		_, stop := start(t, s.settings(dir))
		stop()
		hash = s.kernel
	})
	t.Run("after an earlier run: its configuration and generation", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newScripted()
			s.configErr, s.kernel = bad, hash
			settings := s.settings(dir)
			settings.Arguments = []string{"--v=3"}
			a, stop := start(t, settings)
			defer stop()
			if st := a.Status(); s.kernel != hash || len(s.writes) != 0 || st.Generation != 1 || !strings.HasPrefix(st.ConfigFrom, "last good") {
				t.Fatalf("writes %v, status %+v", s.writes, st)
			}
		})
		// The other commands answer for the agent that runs, whatever its file.
		if args, err := SavedArguments(dir); err != nil || len(args) != 1 || args[0] != "--v=3" {
			t.Errorf("saved arguments %v, %v", args, err)
		}
		if c, err := LastGood(dir); err != nil || c == nil || !c.Config.Equal(list("1.2.3.0/24")) {
			t.Errorf("the last good configuration is %v, %v", c, err)
		}
	})
	t.Run("a damaged state file is no obstacle", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			s := newScripted()
			a, stop := start(t, s.settings(dir))
			defer stop()
			if !a.Status().Ready {
				t.Fatalf("%+v", a.Status())
			}
		})
		if _, err := readState(dir); err != nil {
			t.Errorf("the damaged file was not replaced: %v", err)
		}
	})
}

// A source that cannot be asked changes nothing that is in force; a start goes
// by the last good configuration, then by the fallback, then by the defaults.
func TestUnavailableSource(t *testing.T) {
	dir := t.TempDir()
	hash := func(c masq.Config) string {
		rules, _, _ := masq.Plan(c, masq.Options{Chain: masq.DefaultChain}, masq.Facts{})
		return rules.Hash()
	}
	away := &Unavailable{Err: errors.New("no answer"), Fallback: &Loaded{Config: list("2.0.0.0/8"), From: "a file"}}
	run := func(name, stateDir string, err error, want masq.Config, from string) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScripted()
				s.configErr = err
				a, stop := start(t, s.settings(stateDir))
				defer stop()
				if st := a.Status(); s.kernel != hash(want) || !strings.HasPrefix(st.ConfigFrom, from) || st.ConfigError != "no answer" || st.ConfigReason != ConfigUnavailable || !st.Ready {
					t.Errorf("the kernel holds %s, status %+v", s.kernel, st)
				}
				if body := scrape(t, a); !strings.Contains(body, "ip_masq_agent_config_unavailable 1") || strings.Contains(body, "config_rejects_total{") {
					t.Errorf("metrics of what was never rejected:\n%s", body)
				}
				ready := httptest.NewRecorder()
				a.Handler().ServeHTTP(ready, httptest.NewRequest("GET", "/readyz", nil))
				if ready.Code != 200 || !strings.Contains(ready.Body.String(), "\nConfigUnavailable: no answer\n") {
					t.Errorf("/readyz: %d %s", ready.Code, ready.Body)
				}
				s.set(func() { s.configErr, s.config = nil, list("3.0.0.0/8") })
				s.poke("source")
				if st, body := a.Status(), scrape(t, a); st.ConfigReason != "" || !strings.Contains(body, "ip_masq_agent_config_unavailable 0") {
					t.Errorf("known, and still: %+v\n%s", st, body)
				}
				s.set(func() { s.configErr = err })
				s.poke("source")
				if st := a.Status(); s.kernel != hash(list("3.0.0.0/8")) || st.ConfigError != "no answer" {
					t.Errorf("when it is away again the kernel holds %s, status %+v", s.kernel, st)
				}
			})
		})
	}
	run("the fallback", "", away, list("2.0.0.0/8"), "a file, until the configuration is known")
	run("neither", "", &Unavailable{Err: errors.New("no answer")}, masq.DefaultConfig(false), "defaults (")
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		s.configErr = away
		_, stop := start(t, s.settings(dir))
		stop()
		if last, err := LastGood(dir); last != nil || err != nil {
			t.Errorf("a fallback was saved as if it were good: %+v, %v", last, err)
		}
		s.configErr, s.config = nil, list("1.0.0.0/8")
		_, stop = start(t, s.settings(dir))
		stop()
	})
	run("the last good one", dir, away, list("1.0.0.0/8"), "last good configuration, saved ")
}

// observed keeps what an observer is told.
type observed struct {
	mu     sync.Mutex
	events []string
	last   Status
}

func (o *observed) Observe(s Status, events []Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = s
	for _, e := range events {
		o.events = append(o.events, string(e.Reason)+" "+e.Message)
	}
}

func TestObserversAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, o := newScripted(), &observed{}
		settings := s.settings("")
		settings.Observers = []Observer{o}
		_, stop := start(t, settings)
		defer stop()
		expect := func(what string, want ...string) {
			t.Helper()
			o.mu.Lock()
			defer o.mu.Unlock()
			if len(o.events) != len(want) {
				t.Fatalf("%s: told %q, want %q", what, o.events, want)
			}
			for i, w := range want {
				if !strings.HasPrefix(o.events[i], w) {
					t.Errorf("%s: told %q, want %q", what, o.events[i], w)
				}
			}
			o.events = nil
		}
		expect("the start", "ConfigApplied generation 1 (")
		s.set(func() { s.configErr = &Rejected{Err: errors.New("config:1:1: bad")} })
		s.poke("source")
		s.poke("source")
		expect("one rejected text", "ConfigRejected config:1:1: bad")
		s.set(func() { s.configErr = &Unavailable{Err: errors.New("no answer")} })
		s.poke("source")
		s.poke("source")
		expect("nobody to ask", "ConfigUnavailable no answer")
		s.set(func() { s.configErr, s.kernel = nil, "flushed" })
		s.poke("kernel")
		expect("a repair", "RulesRepaired somebody changed our rules: ")
		s.set(func() { s.kernel, s.applyErr = "", errors.New("no room") })
		s.poke("kernel")
		time.Sleep(time.Minute) // many attempts
		synctest.Wait()
		expect("a kernel that refuses", "ApplyFailed generation 1: no room")
		o.mu.Lock()
		last := o.last
		o.mu.Unlock()
		if last.Ready || last.LastError != "no room" {
			t.Errorf("the last status: %+v", last)
		}
		s.set(func() { s.applyErr = nil })
		time.Sleep(time.Minute)
		synctest.Wait()
		expect("it is well again", "ConfigApplied generation 1 (")
	})
}

// A generation means one rule set, also when the agent was killed after it
// wrote and before it saved its state.
func TestKilledBetweenWritingAndSaving(t *testing.T) {
	for name, tc := range map[string]struct {
		dir, next string
		want      uint64
	}{
		"the same configuration":             {t.TempDir(), "10.0.0.0/8", 2},
		"another one":                        {t.TempDir(), "11.0.0.0/8", 3},
		"the same, and there is no state":    {"", "10.0.0.0/8", 2},
		"another one, and there is no state": {"", "11.0.0.0/8", 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScripted()
				_, stop := start(t, s.settings(tc.dir))
				stop()
				// What the killed agent leaves: the kernel is one ahead.
				rs, _, err := masq.Plan(list("10.0.0.0/8"), masq.Options{Chain: masq.DefaultChain}, masq.Facts{})
				if err != nil {
					t.Fatal(err)
				}
				s.kernel, s.writes = rs.Hash(), append(s.writes, 2)
				s.config = list(tc.next)
				a, stop := start(t, s.settings(tc.dir))
				defer stop()
				if got := a.Status().AppliedGeneration; got != tc.want {
					t.Errorf("generation %d, want %d", got, tc.want)
				}
			})
		})
	}
}

func TestSNATAddressThatTheNodeLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		s.config = list("10.0.0.0/8")
		s.config.SNATAddress = []masq.Range{{Prefix: netip.MustParsePrefix("10.7.0.0/16")}}
		a, stop := start(t, s.settings(""))
		defer stop()
		without, _, _ := masq.Plan(list("10.0.0.0/8"), masq.Options{Chain: masq.DefaultChain}, masq.Facts{})
		if st := a.Status(); s.kernel != without.Hash() || !strings.Contains(st.PlanError, "10.7.0.0/16") {
			t.Fatalf("a cold start without the address leaves Pods untranslated or says nothing: %+v", st)
		}
		s.set(func() {
			s.facts.Addresses = []masq.NodeAddress{{Interface: "eth1", Prefix: netip.MustParsePrefix("10.7.0.5/16")}}
		})
		s.poke("node")
		if st := a.Status(); st.PlanError != "" || s.kernel == without.Hash() {
			t.Fatalf("the address came, and nothing followed: %+v", st)
		}
	})
}

func TestDriftIsRepairedAndPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		a, stop := start(t, s.settings(""))
		defer stop()
		began := time.Now()
		for range 100 {
			s.set(func() { s.kernel = "flushed" })
			s.poke("kernel")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s.kernel == "flushed" {
			t.Fatal("not repaired")
		}
		if body := scrape(t, a); strings.Contains(body, "ip_masq_agent_drift_repairs_total 0") {
			t.Error("the repairs are not counted")
		}
		if n := len(s.writes); n < 21 || n > 101 {
			t.Errorf("%d writes in %v", n, time.Since(began))
		}
	})
}

func TestAFailedApplyIsRetriedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		s.applyErr = errors.New("the kernel said no")
		a, stop := start(t, s.settings(""))
		defer stop()
		if code, body := get(t, a, "/readyz"); code != 503 || !strings.Contains(body, "the kernel said no") {
			t.Errorf("readyz: %d %s", code, body)
		}
		if code, _ := get(t, a, "/healthz"); code != 200 {
			t.Error("a refusing kernel makes the agent unhealthy")
		}
		s.set(func() { s.applyErr = nil })
		time.Sleep(firstRetry)
		synctest.Wait()
		if code, body := get(t, a, "/readyz"); code != 200 || !strings.Contains(body, s.kernel) {
			t.Errorf("readyz after the retry: %d %s", code, body)
		}
	})
}

func TestABlockedLoopIsNotAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(newScripted().settings("")) // never run
		if code, _ := get(t, a, "/healthz"); code != 503 {
			t.Error("healthz answers for a loop that does not")
		}
	})
}

func scrape(t *testing.T, a *Agent) string {
	t.Helper()
	_, body := get(t, a, "/metrics")
	return body
}

func get(t *testing.T, a *Agent, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	a.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}
