package netns

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Listed lists again what a change meanwhile kept the kernel from listing whole.
func Listed[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
