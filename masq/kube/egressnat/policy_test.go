package egressnat

import (
	"slices"
	"strings"
	"testing"

	"sordino/masq/configfile"
)

func TestMerge(t *testing.T) {
	prefixes := func(s configfile.Settings, policies ...Policy) (given bool, list []string, problems []string) {
		c, wrong := merge(policies, s)
		for _, r := range c.NonMasquerade {
			list = append(list, r.Prefix.String())
		}
		for _, p := range wrong {
			problems = append(problems, p.Error())
		}
		return c.NonMasqueradeGiven, list, problems
	}
	// All count together, whoever manages them.
	given, list, problems := prefixes(configfile.Settings{}, policy("gke-1", "NoSNAT", "192.168.0.0/16"), policy("default", "NoSNAT", "10.0.0.0/8", "172.16.0.0/12"))
	if !given || !slices.Equal(list, []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}) || problems != nil {
		t.Errorf("%v %v %v", given, list, problems)
	}
	// A policy that lists nothing exempts nothing; no policy means the defaults.
	if given, list, _ = prefixes(configfile.Settings{}, policy("default", "NoSNAT")); !given || list != nil {
		t.Errorf("%v %v", given, list)
	}
	if given, list, _ = prefixes(configfile.Settings{}); given || len(list) != 3 {
		t.Errorf("%v %v", given, list)
	}
	if given, list, _ = prefixes(configfile.Settings{ReservedRanges: true}); given || len(list) != 11 {
		t.Errorf("%v %v", given, list)
	}
	// What is wrong is told all at once, with its place.
	_, _, problems = prefixes(configfile.Settings{}, policy("default", "NoSNAT", "10.0.0.0/8", "10.1.0.0/8"), policy("other", "SNAT"))
	if len(problems) != 2 || !strings.HasPrefix(problems[0], "EgressNATPolicy default, spec.destinations[1].cidr: CIDR") || !strings.HasPrefix(problems[1], "EgressNATPolicy other, spec.action: ") {
		t.Errorf("%q", problems)
	}
}

func TestDigest(t *testing.T) {
	a, b := policy("default", "NoSNAT", "10.0.0.0/8"), policy("gke-1", "NoSNAT", "192.168.0.0/16")
	one := Digest([]Policy{a, b})
	if other := Digest([]Policy{b, a}); one != other || len(one) != 64 {
		t.Errorf("%s and %s", one, other)
	}
	b.Metadata.Generation, b.Status.Conditions = 7, []Condition{{Type: Accepted}}
	if Digest([]Policy{a, b}) != one {
		t.Error("another digest for the same policies")
	}
	seen := map[string]bool{one: true}
	for _, other := range [][]Policy{nil, {a}, {b}, {policy("default", "NoSNAT", "10.0.0.0/8", "192.168.0.0/16")}, {a, policy("gke-1", "NoSNAT", "192.168.0.0/17")}, {a, policy("gke-2", "NoSNAT", "192.168.0.0/16")}} {
		if d := Digest(other); seen[d] {
			t.Errorf("the same digest for %+v", other)
		} else {
			seen[d] = true
		}
	}
}
