package netns_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"sordino/internal/netns"
)

// Where thousands of addresses are listed while others come and go, one listing
// of twenty is disturbed.
func TestListedIsWhole(t *testing.T) {
	broken := errors.New("broken")
	disturbed := fmt.Errorf("listing: %w", netlink.ErrDumpInterrupted)
	for name, tc := range map[string]struct {
		answers []error // the last one again and again
		asked   int
		want    error
	}{
		"at once":               {[]error{nil}, 1, nil},
		"after some changes":    {[]error{disturbed, disturbed, nil}, 3, nil},
		"never":                 {[]error{disturbed}, 10, netlink.ErrDumpInterrupted},
		"what does not pass":    {[]error{broken, nil}, 1, broken},
		"after a change, never": {[]error{disturbed, broken, nil}, 2, broken},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			got, err := netns.Listed(func() ([]int, error) {
				answer := tc.answers[min(asked, len(tc.answers)-1)]
				asked++
				return []int{asked}, answer
			})
			if asked != tc.asked || !errors.Is(err, tc.want) || len(got) != 1 || got[0] != asked {
				t.Errorf("asked %d times: %v, %v; want %d, %v", asked, got, err, tc.asked, tc.want)
			}
		})
	}
}
