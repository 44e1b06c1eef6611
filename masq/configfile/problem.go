package configfile

import (
	"errors"
	"fmt"

	"sordino/masq"
)

// Problem is a reason to reject a configuration.
type Problem struct {
	Origin masq.Origin `json:"origin"`
	// Text is the offending text.
	Text    string `json:"text,omitempty"`
	Message string `json:"message"`
	// Fix says what to write instead.
	Fix string `json:"fix,omitempty"`
	// Reason is a short stable word for metrics.
	Reason string `json:"reason"`
}

// The values of Problem.Reason.
const (
	ReasonSyntax       = "syntax"
	ReasonType         = "type"
	ReasonCIDR         = "cidr"
	ReasonCIDRLimit    = "cidr-limit"
	ReasonIPv6Disabled = "ipv6-disabled"
	ReasonConflict     = "conflict"
	ReasonUnreadable   = "unreadable"
)

func (p *Problem) Error() string {
	s := fmt.Sprintf("%s: %s", p.Origin, p.Message)
	if p.Fix != "" {
		s += "; " + p.Fix
	}
	return s
}

// Warning is something odd that does not keep a configuration from being used.
type Warning struct {
	Origin  masq.Origin `json:"origin"`
	Text    string      `json:"text,omitempty"`
	Message string      `json:"message"`
}

func (w Warning) String() string { return fmt.Sprintf("%s: %s", w.Origin, w.Message) }

// Problems returns every Problem inside an error.
func Problems(err error) []*Problem {
	var p *Problem
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*Problem
		for _, e := range joined.Unwrap() {
			all = append(all, Problems(e)...)
		}
		return all
	}
	if errors.As(err, &p) {
		return []*Problem{p}
	}
	return nil
}
