package egressnat

import (
	"fmt"
	"strings"
	"time"

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
	ObservedGeneration int64     `json:"observedGeneration"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
}

// Accepted is the type of the one condition: the policy can be used.
const Accepted = "Accepted"

// longestMessage is what the schema allows a condition.
const longestMessage = 32768

// verdict is the condition that a policy deserves, but for its times.
func verdict(p Policy, ipv6 bool) Condition {
	c := Condition{Type: Accepted, ObservedGeneration: p.Metadata.Generation}
	ranges, problems := p.Check(ipv6)
	if len(problems) == 0 {
		c.Status, c.Reason = "True", "Accepted"
		c.Message = fmt.Sprintf("Pods keep their own address towards %d destinations", len(ranges))
		return c
	}
	c.Status, c.Reason = "False", reasons[problems[0].Reason]
	var said []string
	for _, problem := range problems {
		said = append(said, problem.Error())
	}
	c.Message = "no policy has an effect until this is mended, and what held before goes on: " + strings.Join(said, "\n")
	if len(c.Message) > longestMessage {
		c.Message = c.Message[:longestMessage-4] + " …"
	}
	return c
}

// reasons are the conditions' words for those of the metrics.
var reasons = map[string]string{
	configfile.ReasonType:         "ActionUnknown",
	configfile.ReasonCIDR:         "DestinationInvalid",
	configfile.ReasonIPv6Disabled: "IPv6Disabled",
}
