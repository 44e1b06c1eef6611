package agent

import (
	"testing"

	"sordino/masq"
)

// The rules are written by another way than they are read.
func TestStateKeepsTheRules(t *testing.T) {
	config := masq.DefaultConfig(true)
	rules, _, err := masq.Plan(config, masq.Options{IPv6: true, Chain: masq.DefaultChain}, masq.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := writeState(dir, state{Generation: 7, Hash: rules.Hash(), Config: &config, Rules: &rules}); err != nil {
		t.Fatal(err)
	}
	s, err := readState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Generation != 7 || s.Rules == nil || s.Rules.Hash() != s.Hash || s.Hash != rules.Hash() || !s.Config.Equal(config) {
		t.Fatalf("read back: %+v", s)
	}
	for i, fr := range rules.Families {
		if !s.Rules.Families[i].Returns.Equal(fr.Returns) || len(fr.Returns.All()) == 0 {
			t.Errorf("%s: read back %v, want %v", fr.Family, s.Rules.Families[i].Returns.All(), fr.Returns.All())
		}
	}
}
