package agent

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	vm "github.com/VictoriaMetrics/metrics"

	"sordino/masq"
)

// metrics are counted by the loop; everything that the kernel or the status
// knows is read when somebody scrapes.
type metrics struct {
	agent        *Agent
	rejects      *vm.Set // a counter a reason
	repairs      vm.Counter
	applyErrors  vm.Counter
	takenOver    vm.Counter
	applySeconds *vm.Set
	apply        *vm.PrometheusHistogram
	findings     atomic.Pointer[map[masq.FindingCode]int]
}

const namespace = "ip_masq_agent_"

func newMetrics(a *Agent) *metrics {
	m := &metrics{agent: a, rejects: vm.NewSet(), applySeconds: vm.NewSet()}
	m.apply = m.applySeconds.NewPrometheusHistogramExt(namespace+"apply_duration_seconds",
		[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5})
	return m
}

func (m *metrics) reject(reason string) {
	m.rejects.GetOrCreateCounter(fmt.Sprintf("%sconfig_rejects_total{reason=%q}", namespace, reason)).Inc()
}

func (m *metrics) setFindings(findings []masq.Finding) {
	n := map[masq.FindingCode]int{}
	for _, f := range findings {
		n[f.Code]++
	}
	m.findings.Store(&n)
}

// series writes the values of one metric.
type series struct {
	w    io.Writer
	name string
}

// value writes one; labels are names and values by turns.
func (s series) value(v any, labels ...string) {
	text := ""
	for i := 0; i < len(labels); i += 2 {
		text += fmt.Sprintf(",%s=%q", labels[i], labels[i+1])
	}
	if text != "" {
		text = "{" + text[1:] + "}"
	}
	fmt.Fprintf(s.w, "%s%s %v\n", s.name, text, v)
}

// reading is what all metrics of one scrape are read from.
type reading struct {
	*metrics
	status Status
	held   masq.Held
	others []Translator
}

// exposed is everything under /metrics; a test holds the documentation to it.
var exposed = []struct {
	name, kind, help string
	write            func(reading, series)
}{
	{"desired_generation", "gauge", "Generation of the rules that should be in the kernel.", func(c reading, s series) { s.value(c.status.Generation) }},
	{"applied_generation", "gauge", "Generation of the rules that the kernel was last seen to hold.", func(c reading, s series) { s.value(c.status.AppliedGeneration) }},
	{"rules_info", "gauge", "Always 1; hashes of the desired and the applied rules, and the backend.", func(c reading, s series) {
		s.value(1, "backend", c.status.Backend, "desired_hash", c.status.Hash, "applied_hash", c.status.AppliedHash)
	}},
	{"ready", "gauge", "1 when the kernel holds the desired rules, else 0.", func(c reading, s series) {
		ready := 0
		if c.status.Ready {
			ready = 1
		}
		s.value(ready)
	}},
	{"last_success_timestamp_seconds", "gauge", "When the kernel was last seen to hold the desired rules, in Unix time.", func(c reading, s series) {
		if !c.status.LastSuccess.IsZero() {
			s.value(strconv.FormatFloat(float64(c.status.LastSuccess.UnixMilli())/1000, 'f', 3, 64))
		}
	}},
	{"apply_duration_seconds", "histogram", "How long it took to write changed rules into the kernel.", func(c reading, s series) { c.applySeconds.WritePrometheus(s.w) }},
	{"apply_errors_total", "counter", "Times that the kernel or iptables-restore refused our rules.", func(c reading, s series) { s.value(c.applyErrors.Get()) }},
	{"config_rejects_total", "counter", "Configurations that were rejected, by reason; the last good one stayed in force.", func(c reading, s series) { c.rejects.WritePrometheus(s.w) }},
	{"config_unavailable", "gauge", "1 while whoever keeps the configuration could not be asked yet, else 0; the last good one is in force.", func(c reading, s series) {
		unavailable := 0
		if c.status.ConfigReason == ConfigUnavailable {
			unavailable = 1
		}
		s.value(unavailable)
	}},
	{"drift_repairs_total", "counter", "Times that somebody else changed our rules and they were put back.", func(c reading, s series) { s.value(c.repairs.Get()) }},
	{"leftovers_removed_total", "counter", "Chains of other masquerade agents that were taken away.", func(c reading, s series) { s.value(c.takenOver.Get()) }},
	{"findings", "gauge", "What the configuration's author should know, by code; /status has the text.", func(c reading, s series) {
		if n := c.findings.Load(); n != nil {
			for _, code := range slices.Sorted(maps.Keys(*n)) {
				s.value((*n)[code], "code", string(code))
			}
		}
	}},
	{"source_info", "gauge", "Always 1; where the configuration comes from.", func(c reading, s series) { s.value(1, "source", c.status.Source) }},
	{"api_last_contact_timestamp_seconds", "gauge", "When the API server last answered or sent something, in Unix time.", func(c reading, s series) {
		if r := c.status.Remote; r != nil && !r.LastContact.IsZero() {
			s.value(strconv.FormatFloat(float64(r.LastContact.UnixMilli())/1000, 'f', 3, 64))
		}
	}},
	{"api_watch_restarts_total", "counter", "Watches of the API server that broke and were begun anew.", remote(func(r Remote) uint64 { return r.WatchRestarts })},
	{"api_report_errors_total", "counter", "Patches and Events that the API server did not take; they are tried again.", remote(func(r Remote) uint64 { return r.ReportErrors })},
	{"packets_total", "counter", "Packets of connections that Pods opened, in the direction from the Pod, by what our rules did.", perFamily(func(n masq.Counter) uint64 { return n.Packets })},
	{"bytes_total", "counter", "Bytes of the same packets.", perFamily(func(n masq.Counter) uint64 { return n.Bytes })},
	{"connections_total", "counter", "Connections that Pods opened, by what our rules did.", perFamily(func(n masq.Counter) uint64 { return n.Connections })},
	{"set_ranges", "gauge", "Ranges in each set.", func(c reading, s series) {
		for _, set := range slices.Sorted(maps.Keys(c.held.SetSizes)) {
			s.value(c.held.SetSizes[set], "set", set)
		}
	}},
	{"foreign_rules", "gauge", "Rules of others that translate sources, by chain; ip-masq-agent explain says whether they meet a flow.", func(c reading, s series) {
		for _, t := range c.others {
			s.value(t.Rules, "table", t.Table, "chain", t.Chain)
		}
	}},
	{"conntrack_entries", "gauge", "Connections that the node tracks now, everybody's.", number("/proc/sys/net/netfilter/nf_conntrack_count")},
	{"conntrack_limit", "gauge", "Connections that the node can track; beyond it packets are dropped.", number("/proc/sys/net/netfilter/nf_conntrack_max")},
	{"conntrack_insert_failed_total", "counter", "Connections lost because no free source port was found, or two packets raced for one, everybody's.", func(_ reading, s series) {
		if n, err := conntrackInsertFailed(); err == nil {
			s.value(n)
		}
	}},
}

func remote(of func(Remote) uint64) func(reading, series) {
	return func(c reading, s series) {
		if c.status.Remote != nil {
			s.value(of(*c.status.Remote))
		}
	}
}

func perFamily(of func(masq.Counter) uint64) func(reading, series) {
	return func(c reading, s series) {
		for _, n := range c.held.Counters {
			s.value(of(n), "family", n.Family.String(), "action", string(n.Action))
		}
	}
}

func number(path string) func(reading, series) {
	return func(_ reading, s series) {
		if text, err := os.ReadFile(path); err == nil {
			if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
				s.value(n)
			}
		}
	}
}

// write prints all metrics in Prometheus' text format. What the kernel does
// not tell is left out, and said.
func (m *metrics) write(ctx context.Context, w io.Writer) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c := reading{metrics: m, status: m.agent.Status()}
	var err error
	if c.held, err = m.agent.Backend.Held(ctx); err != nil && ctx.Err() == nil {
		m.agent.Log.Warn("a scrape went without the kernel's counters", "error", err)
	}
	if c.others, err = m.agent.Predecessors.Translators(ctx); err != nil && ctx.Err() == nil {
		m.agent.Log.Warn("a scrape went without others' rules", "error", err)
	}
	for _, e := range exposed {
		fmt.Fprintf(w, "# HELP %[1]s%[2]s %[3]s\n# TYPE %[1]s%[2]s %[4]s\n", namespace, e.name, e.help, e.kind)
		e.write(c, series{w, namespace + e.name})
	}
	vm.WriteProcessMetrics(w)
}

// conntrackInsertFailed sums the column of that name, hexadecimal and a line
// a processor. The file is of the reading thread's network namespace.
func conntrackInsertFailed() (uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	if err != nil {
		return 0, err
	}
	header, rows, _ := strings.Cut(string(text), "\n")
	column := -1
	for i, name := range strings.Fields(header) {
		if name == "insert_failed" {
			column = i
		}
	}
	var sum uint64
	for row := range strings.Lines(rows) {
		if fields := strings.Fields(row); column >= 0 && column < len(fields) {
			n, err := strconv.ParseUint(fields[column], 16, 64)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}
