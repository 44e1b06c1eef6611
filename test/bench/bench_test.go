package main

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"sordino/internal/testnet"
)

func prefixes(t *testing.T, config string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, text := range regexp.MustCompile(`[0-9a-f.:]+/[0-9]+`).FindAllString(config, -1) {
		out = append(out, netip.MustParsePrefix(text))
	}
	if len(out) == 0 {
		t.Fatalf("no ranges in %q", config)
	}
	return out
}

func TestShapesDifferAndNeverExemptTheService(t *testing.T) {
	for i := 1; i <= 120; i++ { // every shape and every change between two
		text := shape(i)
		if text == shape(i-1) {
			t.Fatalf("swap %d would change nothing", i)
		}
		var in int
		for _, p := range prefixes(t, text) {
			if p.Contains(testnet.Service4) || p.Contains(testnet.Service6) {
				in++
			}
		}
		if want := strings.HasPrefix(text, "masqueradeCIDRs"); want != (in == 2) || !want && in > 0 {
			t.Fatalf("swap %d has the service in %d ranges:\n%s", i, in, text)
		}
	}
}

func TestDestinationsLieBetweenRanges(t *testing.T) {
	ranges := prefixes(t, neighbours(200))
	for i := 1; i < 200; i++ {
		a := between(i)
		if ranges[i-1].Contains(a) || ranges[i].Contains(a) || ranges[i-1].Addr().Compare(a) > 0 || ranges[i].Addr().Compare(a) < 0 {
			t.Errorf("%s is not between %s and %s", a, ranges[i-1], ranges[i])
		}
	}
}

func TestPercentile(t *testing.T) {
	var times []time.Duration
	for i := range 100 {
		times = append(times, time.Duration(100-i))
	}
	if a, b := percentile(times, 50), percentile(times, 99); a != 51 || b != 100 {
		t.Errorf("median %d, p99 %d", a, b)
	}
}
