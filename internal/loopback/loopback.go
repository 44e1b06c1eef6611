// Package loopback tells addresses that only this machine can reach.
package loopback

import (
	"net"
	"net/netip"
)

// Only reports whether an address to listen on or to call, HOST:PORT, can be
// reached from this machine only. A name other than localhost cannot be told.
func Only(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
