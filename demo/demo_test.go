package demo

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"sordino/internal/netnstest"
	"sordino/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheNetworkCanBeBuilt(t *testing.T) {
	if err := Network().Check(); err != nil {
		t.Error(err)
	}
}

func TestRowsTellWhatWasSeen(t *testing.T) {
	own, node, to := netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("203.0.113.10")
	probe := func(protocol string, want, saw netip.Addr, err error) *single {
		return &single{from: "pod-1a", to: "service", protocol: protocol, own: own, address: to, want: want, saw: saw, err: err}
	}
	none := netip.Addr{}
	late := context.DeadlineExceeded
	const dropped = "nothing: the firewall dropped 192.168.1.2"
	for _, tc := range []struct {
		name    string
		probes  []*single
		dropped []netip.Addr
		want    []Row
	}{
		{"as wanted, joined", []*single{probe("tcp", node, node, nil), probe("udp", node, node, nil), probe("icmp", node, node, nil)}, nil,
			[]Row{{Protocols: "tcp udp icmp", Saw: "10.0.0.11", Expected: "10.0.0.11", OK: true}}},
		{"one protocol differs", []*single{probe("tcp", node, node, nil), probe("udp", node, own, nil), probe("icmp", node, node, nil)}, nil,
			[]Row{{Protocols: "tcp", Saw: "10.0.0.11", Expected: "10.0.0.11", OK: true}, {Protocols: "udp", Saw: "192.168.1.2", Expected: "10.0.0.11"},
				{Protocols: "icmp", Saw: "10.0.0.11", Expected: "10.0.0.11", OK: true}}},
		{"dropped as wanted", []*single{probe("tcp", none, none, late)}, []netip.Addr{own}, []Row{{Protocols: "tcp", Saw: dropped, Expected: dropped, OK: true}}},
		{"dropped, not wanted", []*single{probe("tcp", node, none, late)}, []netip.Addr{own}, []Row{{Protocols: "tcp", Saw: dropped, Expected: "10.0.0.11"}}},
		{"arrived, not wanted", []*single{probe("tcp", none, own, nil)}, nil, []Row{{Protocols: "tcp", Saw: "192.168.1.2", Expected: dropped}}},
		// Silence is not the firewall's word.
		{"lost on the way", []*single{probe("tcp", none, none, late)}, nil, []Row{{Protocols: "tcp", Saw: "nothing (context deadline exceeded)", Expected: dropped}}},
		{"another was dropped", []*single{probe("tcp", none, none, late)}, []netip.Addr{node}, []Row{{Protocols: "tcp", Saw: "nothing (context deadline exceeded)", Expected: dropped}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range tc.want {
				tc.want[i].From, tc.want[i].To = "pod-1a 192.168.1.2", "service 203.0.113.10"
			}
			got := rows(tc.probes, tc.dropped)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			var text bytes.Buffer
			Phase{Title: "title", Rows: got}.write(&text)
			failed := 0
			for _, r := range got {
				if !r.OK {
					failed++
				}
			}
			if n := strings.Count(text.String(), "   NO\n"); n != failed {
				t.Errorf("%d rows say NO, want %d:\n%s", n, failed, text.String())
			}
		})
	}
}

// A run that ends in the middle, here because there is no agent, leaves no
// goroutine, and the lab can be used again.
func TestARunThatFailsLetsGoOfEverything(t *testing.T) {
	netnstest.New(t)
	l, err := lab.Open(filepath.Join(t.TempDir(), "lab"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
	}()
	for range 2 {
		var out bytes.Buffer
		d := &Demo{Lab: l, Binary: "/nowhere/agent", Dir: t.TempDir(), Out: &out}
		failed, err := d.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "2. With the agent") || !strings.Contains(err.Error(), "/nowhere/agent") {
			t.Errorf("error %v", err)
		}
		if failed != 0 || !strings.Contains(out.String(), "1. Without the agent") {
			t.Errorf("%d rows failed without an agent:\n%s", failed, out.String())
		}
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	d := &Demo{Lab: l, Binary: "/nowhere/agent", Dir: t.TempDir(), Out: &out}
	if _, err := d.Run(ctx); !errors.Is(err, context.Canceled) || strings.Contains(out.String(), "1. Without the agent") {
		t.Errorf("cancelled: %v\n%s", err, out.String())
	}
}
