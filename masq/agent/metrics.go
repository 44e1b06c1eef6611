package agent

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sordino/masq"
)

// metrics are counted by the loop; everything that the kernel or the status
// knows is read when somebody scrapes.
type metrics struct {
	registry     *prometheus.Registry
	rejects      *prometheus.CounterVec
	findings     *prometheus.GaugeVec
	repairs      prometheus.Counter
	applyErrors  prometheus.Counter
	takenOver    prometheus.Counter
	applySeconds prometheus.Histogram
}

const namespace = "ip_masq_agent"

func newMetrics(a *Agent) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		rejects: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: "config_rejects_total",
			Help: "Configurations that were rejected, by reason; the last good one stayed in force."}, []string{"reason"}),
		findings: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "findings",
			Help: "What the configuration's author should know, by code; see /status for the text."}, []string{"code"}),
		repairs:     counter("drift_repairs_total", "Times that somebody else changed our rules and they were put back."),
		applyErrors: counter("apply_errors_total", "Times that the kernel or iptables-restore refused our rules."),
		takenOver:   counter("leftovers_removed_total", "Chains of other masquerade agents that were taken away."),
		applySeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: "apply_duration_seconds",
			Help:    "How long it took to write changed rules into the kernel.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}}),
	}
	m.registry.MustRegister(m.rejects, m.findings, m.repairs, m.applyErrors, m.takenOver, m.applySeconds, &collector{a})
	return m
}

func (m *metrics) setFindings(findings []masq.Finding) {
	m.findings.Reset()
	for _, f := range findings {
		m.findings.WithLabelValues(string(f.Code)).Inc()
	}
}

var (
	desiredGeneration = describe("desired_generation", "Generation of the rules that should be in the kernel.")
	appliedGeneration = describe("applied_generation", "Generation of the rules that the kernel was last seen to hold.")
	rulesInfo         = describe("rules_info", "Always 1; hashes of the desired and the applied rules, and the backend.", "backend", "desired_hash", "applied_hash")
	ready             = describe("ready", "1 when the kernel holds the desired rules.")
	lastSuccess       = describe("last_success_timestamp_seconds", "When the kernel was last seen to hold the desired rules, in Unix time.")
	packets           = describe("packets_total", "Packets of connections that Pods opened, in the direction from the Pod, by what our rules did.", "family", "action")
	bytes             = describe("bytes_total", "Bytes of the same packets.", "family", "action")
	connections       = describe("connections_total", "Connections that Pods opened, by what our rules did.", "family", "action")
	setRanges         = describe("set_ranges", "Ranges in each set.", "set")
	conntrackEntries  = describe("conntrack_entries", "Connections that the node tracks now, everybody's.")
	conntrackLimit    = describe("conntrack_limit", "Connections that the node can track; beyond it packets are dropped.")
	insertFailed      = describe("conntrack_insert_failed_total", "Connections lost because no free source port was found, or two packets raced for one, everybody's.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
}

// collector reads the kernel and the status at every scrape.
type collector struct{ agent *Agent }

func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{desiredGeneration, appliedGeneration, rulesInfo, ready, lastSuccess,
		packets, bytes, connections, setRanges, conntrackEntries, conntrackLimit, insertFailed} {
		descs <- d
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := c.agent.Status()
	gauge(desiredGeneration, float64(s.Generation))
	gauge(appliedGeneration, float64(s.AppliedGeneration))
	gauge(rulesInfo, 1, s.Backend, s.Hash, s.AppliedHash)
	readyValue := 0.0
	if s.Ready {
		readyValue = 1
	}
	gauge(ready, readyValue)
	if !s.LastSuccess.IsZero() {
		gauge(lastSuccess, float64(s.LastSuccess.UnixMilli())/1000)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if held, err := c.agent.Backend.Held(ctx); err != nil {
		out <- prometheus.NewInvalidMetric(packets, err)
	} else {
		for _, n := range held.Counters {
			family, action := n.Family.String(), string(n.Action)
			count(packets, n.Packets, family, action)
			count(bytes, n.Bytes, family, action)
			count(connections, n.Connections, family, action)
		}
		for set, size := range held.SetSizes {
			gauge(setRanges, float64(size), set)
		}
	}
	if n, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_count"); err == nil {
		gauge(conntrackEntries, n)
	}
	if n, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_max"); err == nil {
		gauge(conntrackLimit, n)
	}
	if n, err := conntrackInsertFailed(); err == nil {
		count(insertFailed, n)
	}
}

func readNumber(path string) (float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
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
