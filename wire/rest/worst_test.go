package rest

import (
	"strings"
	"testing"
	"time"
)

// TestWorstBodies: no body within the limits takes long or much, whatever is
// in it.
func TestWorstBodies(t *testing.T) {
	const size = 1 << 20
	h := things(t, func(o *Options) { o.MaxBody = size + 1024; o.MaxDepth = 64 })
	fill := func(open, one, end string) string {
		return open + strings.Repeat(one, (size-len(open)-len(end))/len(one)) + end
	}
	nested := strings.Repeat(`{"inner":`, 60) + fill(`{"texts":[`, `1,`, `]}`) + strings.Repeat("}", 60)
	full := func(open, one, end string) string { return open + strings.Repeat(one, 9_000) + end }
	for name, body := range map[string]string{
		"unknown fields":    fill(`{`, `"x":1,`, `}`),
		"the same field":    fill(`{`, `"name":"a",`, `}`),
		"wrong elements":    fill(`{"texts":[`, `{},`, `]}`),
		"deep and wrong":    nested,
		"empty objects":     fill(`{"things":[`, `{},`, `]}`),
		"oneofs":            fill(`{`, `"byName":"","byRange":"",`, `}`),
		"comments":          fill(`{`, `/**/`, `}`),
		"a long text":       fill(`{"name":"`, `\u0041`, `"}`),
		"a wrong long text": fill(`{"intValue":"`, `\u0041`, `"}`),
		"a long number":     fill(`{"realValue":1`, `0`, `}`),
		"any":               fill(`{"anyJson":[`, `[[]],`, `[]]}`),
		// Just within the number of values.
		"20,000 unknown fields": full(`{`, `"x":1,"y":2,`, `}`),
		"20,000 wrong elements": full(`{"texts":[`, `{},`, `]}`),
		"20,000 objects":        full(`{"things":[`, `{},`, `]}`),
		"20,000 values":         full(`{"anyJson":[`, `[],`, `0]}`),
		"20,000 entries, wrong": full(`{"labels":{`, `"a":1,"b":2,`, `}}`),
		"20,000 blank oneofs":   full(`{`, `"byName":"","byRange":"",`, `}`),
		"brackets":              fill(``, `[`, ``),
	} {
		begun := time.Now()
		a := send(t, h, "POST", "/v1/projects/p/things", body)
		took := time.Since(begun)
		t.Logf("%s: %d in %v, %d bytes back", name, a.Code, took, a.Body.Len())
		// Hundreds of times what it takes: a machine that is busy passes, and
		// anything quadratic does not.
		if over := strings.Count(body, ",") > 20_000; over && !strings.Contains(a.message(), "more than 20000 values") {
			t.Errorf("%s: %d %.200s", name, a.Code, a.Body)
		}
		if a.Code >= 500 || took > time.Minute || a.Code >= 400 && a.Body.Len() > 200<<10 {
			t.Errorf("%s: %d in %v, %d bytes back", name, a.Code, took, a.Body.Len())
		}
	}
}
