package egressnat

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"sordino/masq"
	"sordino/masq/configfile"
)

// Group, Version, Resource and Kind name the API.
const (
	Group    = "networking.gke.io"
	Version  = "v1"
	Resource = "egressnatpolicies"
	Kind     = "EgressNATPolicy"
)

// noSNAT is the only action there is.
const noSNAT = "NoSNAT"

// Policy is an EgressNATPolicy, with the fields that matter here.
type Policy struct {
	Metadata Metadata `json:"metadata"`
	Spec     Spec     `json:"spec"`
	Status   Status   `json:"status"`
}

// Metadata is what identifies a state of the object.
type Metadata struct {
	Name            string `json:"name"`
	Generation      int64  `json:"generation"`
	ResourceVersion string `json:"resourceVersion"`
}

// Spec says to which destinations Pods keep their own address.
type Spec struct {
	Action       string        `json:"action"`
	Destinations []Destination `json:"destinations"`
}

// Destination is one range.
type Destination struct {
	CIDR string `json:"cidr"`
}

// Check returns a policy's ranges, or everything that is wrong with it. It
// depends on nothing but the policy and the flag --enable-ipv6, so that all
// agents of a cluster say the same.
func (p Policy) Check(ipv6 bool) ([]masq.Range, []*configfile.Problem) {
	var problems []*configfile.Problem
	origin := func(field string) masq.Origin {
		return masq.Origin{Source: fmt.Sprintf("%s %s, %s", Kind, p.Metadata.Name, field)}
	}
	if p.Spec.Action != noSNAT {
		problems = append(problems, &configfile.Problem{Origin: origin("spec.action"), Text: p.Spec.Action, Reason: configfile.ReasonType,
			Message: fmt.Sprintf("%q is not an action", p.Spec.Action), Fix: "write NoSNAT, the only one there is"})
	}
	ranges := make([]masq.Range, 0, len(p.Spec.Destinations))
	for i, d := range p.Spec.Destinations {
		at := origin(fmt.Sprintf("spec.destinations[%d].cidr", i))
		prefix, problem := configfile.ParsePrefix(d.CIDR, ipv6)
		if problem != nil {
			problem.Origin = at
			problems = append(problems, problem)
			continue
		}
		ranges = append(ranges, masq.Range{Prefix: prefix, Origin: at})
	}
	return ranges, problems
}

// Digest tells one state of all policies from others: the SHA-256, in
// hexadecimal, of their names, actions and ranges in the order of the names.
// No policy at all is a state as well, and not the same as no configuration.
func Digest(policies []Policy) string {
	sum := sha256.New()
	for _, p := range sorted(policies) {
		fmt.Fprintf(sum, "%s %q\n", p.Metadata.Name, p.Spec.Action)
		for _, d := range p.Spec.Destinations {
			fmt.Fprintf(sum, "- %q\n", d.CIDR)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func sorted(policies []Policy) []Policy {
	return slices.SortedFunc(slices.Values(policies), func(a, b Policy) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) })
}

// merge makes one configuration of all policies. One that cannot be used
// spoils the whole, as a wrong line spoils a file: the last good one stays.
//
// Without any policy the defaults hold, which is what the policy "default"
// says where GKE makes one.
func merge(policies []Policy, s configfile.Settings) (masq.Config, []*configfile.Problem) {
	c := masq.DefaultConfig(s.ReservedRanges)
	if len(policies) == 0 {
		return c, nil
	}
	c.NonMasquerade, c.NonMasqueradeGiven = nil, true
	var problems []*configfile.Problem
	for _, p := range sorted(policies) {
		ranges, wrong := p.Check(s.IPv6)
		c.NonMasquerade = append(c.NonMasquerade, ranges...)
		problems = append(problems, wrong...)
	}
	return c, problems
}
