package count

import "testing"

func TestOf(t *testing.T) {
	for want, got := range map[string]string{
		"0 nodes": Of(0, "node"), "1 node": Of(1, "node"), "2 nodes": Of(2, "node"),
		"1 EgressNATPolicy": Of(1, "EgressNATPolicy"), "3 EgressNATPolicies": Of(3, "EgressNATPolicy"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
