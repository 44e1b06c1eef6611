package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"sordino/masq"
)

// stateFile is the one file in the state folder.
const stateFile = "state.json"

// state is what survives the agent: enough to start from when the
// configuration is broken, and to go on counting generations.
type state struct {
	Saved      time.Time     `json:"saved"`
	Generation uint64        `json:"generation"`
	Hash       string        `json:"hash"`
	Arguments  []string      `json:"arguments"`
	From       string        `json:"from,omitempty"`
	Config     *masq.Config  `json:"config,omitempty"`
	Rules      *masq.RuleSet `json:"rules,omitempty"`
}

// SavedArguments returns the command line of the agent that last used the
// state folder; none when there was no such agent.
func SavedArguments(dir string) ([]string, error) {
	s, err := readState(dir)
	return s.Arguments, err
}

func readState(dir string) (state, error) {
	var s state
	text, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return state{}, fmt.Errorf("reading the state of an earlier run: %w", err)
	}
	return s, nil
}

// restore takes up the state and the generation of an earlier run.
func (a *Agent) restore(ctx context.Context) {
	if a.StateDir != "" {
		s, err := readState(a.StateDir)
		if err != nil {
			a.Log.Warn("the last good configuration is not available; delete the file if this goes on", "error", err)
		}
		a.saved, a.generation, a.restored = s, s.Generation, s.Hash
	}
	// Whoever was killed after writing and before saving left the kernel ahead.
	// When it cannot be read, the first apply says so.
	if held, err := a.Backend.Held(ctx); err == nil && held.Generation > a.generation {
		a.generation, a.restored = held.Generation, held.Hash
	}
}

// save remembers what was applied. The rules are in the kernel already, so a
// state folder that cannot be written costs a warning and nothing else.
func (a *Agent) save(log *slog.Logger, status *Status) {
	if a.StateDir == "" {
		return
	}
	config, rules := a.config, a.rules
	s := state{time.Now().UTC(), a.generation, a.hash, a.Arguments, status.ConfigFrom, &config, &rules}
	if status.ConfigError != "" || status.PlanError != "" {
		// The last good one stays, but the other commands answer for the
		// agent that runs now.
		s = a.saved
		s.Arguments = a.Arguments
	}
	if s.Hash == a.saved.Hash && s.Generation == a.saved.Generation && s.From == a.saved.From && slices.Equal(s.Arguments, a.saved.Arguments) &&
		(s.Config == a.saved.Config || a.saved.Config != nil && a.saved.Config.Equal(*s.Config)) {
		return
	}
	err := writeState(a.StateDir, s)
	// A long list leaves megabytes of garbage. Now nobody waits, as opposed to
	// the midst of the next change.
	runtime.GC()
	// Remembered even when it could not be written: one warning is enough.
	a.saved = s
	status.StateError = ""
	if err != nil {
		status.StateError = err.Error()
		log.Warn("saving the last good configuration; a restart with a broken file would start from the defaults", "error", err)
	}
}

// laidOut is a rule set as its JSON is, with the rules laid out beforehand:
// encoding/json parses again whatever a MarshalJSON gives, and the list may be
// long.
type laidOut struct {
	masq.RuleSet
	Families []laidOutFamily
}

type laidOutFamily struct {
	masq.FamilyRules
	Returns []masq.Return
}

func layOut(rules *masq.RuleSet) *laidOut {
	if rules == nil {
		return nil
	}
	l := laidOut{RuleSet: *rules}
	for _, fr := range rules.Families {
		l.Families = append(l.Families, laidOutFamily{fr, fr.Returns.All()})
	}
	return &l
}

func writeState(dir string, s state) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, stateFile+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed
	err = json.NewEncoder(f).Encode(struct {
		state
		Rules *laidOut `json:"rules,omitempty"`
	}{s, layOut(s.Rules)})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, stateFile)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Last is the configuration that an agent last had in force.
type Last struct {
	Config masq.Config
	From   string // what it was made from
	Saved  time.Time
}

// LastGood returns the configuration that the agent with this state folder
// last had in force; nil when there is none.
func LastGood(dir string) (*Last, error) {
	s, err := readState(dir)
	if err != nil || s.Config == nil {
		return nil, err
	}
	return &Last{*s.Config, s.From, s.Saved}, nil
}
