package access

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"sordino/environment"
)

// Guard keeps out what should not reach the API at all.
type Guard struct {
	// Hosts are the names that the server may be called by, besides addresses
	// that are loopback or that it listens on. A web page whose name was
	// pointed at this machine (DNS rebinding) calls it by another.
	Hosts []string
	// Requests is how many may be under way at once; further ones wait for Wait
	// and are then refused.
	Requests int
	Wait     time.Duration
	// Refuse answers in the API's own form.
	Refuse func(w http.ResponseWriter, r *http.Request, err error)
}

func refusal(code environment.Code, reason, format string, args ...any) error {
	return &environment.Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns a handler behind the guard.
func (g Guard) Wrap(next http.Handler) http.Handler {
	under := make(chan struct{}, g.Requests)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.called(r.Host) {
			g.Refuse(w, r, refusal(environment.PermissionDenied, "HOST_NOT_ALLOWED", "this server is not called %q; name it with --host if it should be", r.Host))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && !g.sameOrigin(r, origin) {
			g.Refuse(w, r, refusal(environment.PermissionDenied, "ORIGIN_NOT_ALLOWED", "a page of %q may not call this server", origin))
			return
		}
		select {
		case under <- struct{}{}:
		default:
			timer := time.NewTimer(g.Wait)
			defer timer.Stop()
			select {
			case under <- struct{}{}:
			case <-r.Context().Done():
				return
			case <-timer.C:
				g.Refuse(w, r, refusal(environment.ResourceExhausted, "TOO_MANY_REQUESTS", "%d requests are under way already; try again soon", g.Requests))
				return
			}
		}
		defer func() { <-under }()
		next.ServeHTTP(w, r)
	})
}

// called reports whether the server may be called by a Host header.
func (g Guard) called(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.Trim(name, "[]"), ".")
	if address, err := netip.ParseAddr(name); err == nil && address.IsLoopback() {
		return true
	}
	return strings.EqualFold(name, "localhost") || slices.ContainsFunc(g.Hosts, func(h string) bool { return strings.EqualFold(h, name) })
}

func (g Guard) sameOrigin(r *http.Request, origin string) bool {
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && u.Host == r.Host
}
