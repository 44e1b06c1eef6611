// Package agent runs the real program on a node that has a Pod and a service,
// and does to it what happens to agents: configurations swapped, rules wiped,
// processes killed, predecessors taken over.
package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"sordino/internal/agentproc"
	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/internal/projected"
	"sordino/internal/testnet"
	"sordino/internal/testprogram"
	"sordino/masq/agent"
)

// binary is the program under test, in a folder that every user may enter.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "ip-masq-agent")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "ip-masq-agent")
		if err := errors.Join(testprogram.Build(dir, testprogram.Agent), os.Chmod(dir, 0o755)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// node is a node with its agent.
type node struct {
	*testing.T
	*testnet.Net
	dir    string
	config *projected.Volume
	flags  []string
	proc   *agentproc.Process
}

const configFile = "ip-masq-agent"

// newNode builds the network; the agent does not run yet.
func newNode(t *testing.T, flags ...string) *node {
	t.Helper()
	netnstest.New(t) // fails or skips where there are no namespaces
	n := &node{T: t, dir: t.TempDir()}
	var err error
	if n.Net, err = testnet.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if n.config, err = projected.New(filepath.Join(n.dir, "config")); err != nil {
		t.Fatal(err)
	}
	n.flags = append([]string{"--config=" + n.config.Path(configFile), "--state-dir=" + n.state(), "--enable-ipv6",
		"--pod-cidrs=" + testnet.PodRanges, "--node-cidrs=" + testnet.NodeRanges}, flags...)
	return n
}

func (n *node) state() string { return filepath.Join(n.dir, "state") }

// configure projects a configuration as a kubelet does.
func (n *node) configure(text string) {
	n.Helper()
	if err := n.config.Swap(map[string][]byte{configFile: []byte(text)}); err != nil {
		n.Fatal(err)
	}
}

// start runs the agent and waits until it is ready.
func (n *node) start() agent.Status {
	n.Helper()
	return n.startAs(binary)
}

func (n *node) startAs(program string, before ...string) agent.Status {
	n.Helper()
	var err error
	if n.proc, err = agentproc.Start(n.Node, nil, program, append(before, n.flags...)...); err != nil {
		n.Fatal(err)
	}
	proc := n.proc
	n.Cleanup(func() { proc.Kill() })
	return n.ready(1)
}

func (n *node) ready(generation uint64) agent.Status {
	n.Helper()
	s, err := n.proc.Ready(n.Context(), n.Node, generation)
	if err != nil {
		n.Fatal(err)
	}
	return s
}

// run runs a program on the node.
func (n *node) run(name string, args ...string) string {
	n.Helper()
	return netnstest.Run(n.T, n.Node, "", netnstest.Program(n.T, name), args...)
}

// command runs the program as a command beside the agent.
func (n *node) command(args ...string) (int, string) {
	n.Helper()
	out, err := netnstest.Try(n.Node, "", binary, append(args, "--state-dir="+n.state())...)
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode(), out
	}
	if err != nil {
		n.Fatal(err)
	}
	return 0, out
}

// until waits for something that the agent does by itself. It is below the
// resync interval, which would hide what was not noticed.
func (n *node) until(what string, done func() bool) {
	n.Helper()
	deadline := time.After(45 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			n.Fatalf("%s does not happen:\n%s\n%s", what, n.proc.Log(), n.run("nft", "list", "ruleset"))
		}
	}
}

// status waits for a status of the agent.
func (n *node) status(what string, is func(agent.Status) bool) agent.Status {
	n.Helper()
	var s agent.Status
	n.until(what, func() bool {
		var err error
		s, err = agentproc.Status(n.Context(), n.Node)
		return err == nil && is(s)
	})
	return s
}

// seen sends one packet from the Pod and returns the source that the service
// sees.
func (n *node) seen(service netip.Addr) netip.Addr {
	n.Helper()
	src := testnet.Pod4
	if service.Is6() {
		src = testnet.Pod6
	}
	return n.seenFrom(n.Pod, netip.AddrPortFrom(src, 0), service).Addr()
}

func (n *node) seenFrom(from *netns.NS, src netip.AddrPort, dst netip.Addr) netip.AddrPort {
	n.Helper()
	var server, client net.PacketConn
	netnstest.Do(n.T, n.Service, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	defer server.Close()
	netnstest.Do(n.T, from, func() (err error) {
		client, err = net.ListenPacket("udp", src.String())
		return err
	})
	defer client.Close()
	if _, err := client.WriteTo([]byte("x"), server.LocalAddr()); err != nil {
		n.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		n.Fatal(err)
	}
	_, peer, err := server.ReadFrom(make([]byte, 8))
	if err != nil {
		n.Fatal(err)
	}
	return peer.(*net.UDPAddr).AddrPort()
}

// metric is a sample of the agent's metrics page, which must parse.
func (n *node) metric(name string, labels ...string) float64 {
	n.Helper()
	body, err := agentproc.Get(n.Context(), n.Node, "/metrics")
	if err != nil {
		n.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		n.Fatalf("%v in\n%s", err, body)
	}
	for _, m := range families["ip_masq_agent_"+name].GetMetric() {
		has := map[string]string{}
		for _, l := range m.Label {
			has[l.GetName()] = l.GetValue()
		}
		matches := true
		for i := 0; i < len(labels); i += 2 {
			matches = matches && has[labels[i]] == labels[i+1]
		}
		if !matches {
			continue
		}
		switch {
		case m.Gauge != nil:
			return m.Gauge.GetValue()
		case m.Counter != nil:
			return m.Counter.GetValue()
		case m.Histogram != nil:
			return float64(m.Histogram.GetSampleCount())
		}
	}
	n.Fatalf("no %s %v in\n%s", name, labels, body)
	return 0
}

func (n *node) list() string {
	n.Helper()
	return n.run("nft", "-a", "list", "table", "inet", "ip-masq-agent")
}

func TestConfigIsFollowed(t *testing.T) {
	n := newNode(t)
	s := n.start() // without a file
	if !strings.HasPrefix(s.ConfigFrom, "defaults") || n.seen(testnet.Service4) != testnet.Node4 || n.seen(testnet.Service6) != testnet.Node6 {
		t.Fatalf("%+v", s)
	}
	const exempt = "nonMasqueradeCIDRs:\n- 203.0.113.0/24\n- 2001:db8::/32\n"
	for i := range 5 {
		n.configure(exempt)
		n.ready(uint64(2*i + 2))
		if a, b := n.seen(testnet.Service4), n.seen(testnet.Service6); a != testnet.Pod4 || b != testnet.Pod6 {
			t.Fatalf("exempt, but seen as %s and %s", a, b)
		}
		n.configure("nonMasqueradeCIDRs: []\n")
		n.ready(uint64(2*i + 3))
		if a := n.seen(testnet.Service4); a != testnet.Node4 {
			t.Fatalf("not exempt, but seen as %s", a)
		}
	}
	// A file that is rejected changes nothing, and is counted by its reasons.
	before := n.list()
	n.configure("nonMasqueradeCIDRs:\n- 10.0.0.0/08\n-\nresyncInterval: 60\n")
	s = n.status("the reject", func(s agent.Status) bool { return s.ConfigError != "" })
	if !s.Ready || !strings.Contains(s.ConfigError, configFile+":2:3: ") || !strings.Contains(s.ConfigError, configFile+":4:17: ") {
		t.Errorf("%+v", s)
	}
	for _, reason := range []string{"cidr", "type"} {
		if got := n.metric("config_rejects_total", "reason", reason); got != 1 {
			t.Errorf("%v rejects for %s", got, reason)
		}
	}
	if after := n.list(); counters.ReplaceAllString(after, "") != counters.ReplaceAllString(before, "") {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if n.seen(testnet.Service4) != testnet.Node4 {
		t.Error("the last good rules are gone")
	}
	n.configure(exempt)
	n.status("the mended file", func(s agent.Status) bool { return s.ConfigError == "" && s.AppliedGeneration > 11 })
	if n.seen(testnet.Service4) != testnet.Pod4 {
		t.Error("the mended file has no effect")
	}
	// The ConfigMap is deleted: the kubelet takes the file away.
	if err := n.config.Swap(nil); err != nil {
		t.Fatal(err)
	}
	n.status("the removal", func(s agent.Status) bool { return strings.HasPrefix(s.ConfigFrom, "defaults") && s.Ready })
	if n.seen(testnet.Service4) != testnet.Node4 {
		t.Error("the defaults have no effect")
	}
}

var counters = regexp.MustCompile(`packets \d+ bytes \d+`)

func TestDriftIsRepaired(t *testing.T) {
	rule := func(chain string) func(*node) {
		return func(n *node) {
			for line := range strings.Lines(n.run("nft", "-a", "list", "chain", "inet", "ip-masq-agent", chain)) {
				if _, handle, ok := strings.Cut(strings.TrimSpace(line), " # handle "); ok && !strings.Contains(line, "chain ") {
					n.run("nft", "delete", "rule", "inet", "ip-masq-agent", chain, "handle", handle)
					return
				}
			}
			n.Fatalf("chain %s has no rule", chain)
		}
	}
	n := newNode(t)
	n.configure("nonMasqueradeCIDRs: [198.51.100.0/24]")
	n.start()
	held := func() string { return handles.ReplaceAllString(counters.ReplaceAllString(n.list(), ""), "") }
	want := held()
	if !strings.Contains(want, "198.51.100.0/24") {
		t.Fatal(want)
	}
	repairs := 0.0
	for name, damage := range map[string]func(*node){
		"nft flush ruleset": func(n *node) { n.run("nft", "flush", "ruleset") },
		"the table deleted": func(n *node) { n.run("nft", "delete", "table", "inet", "ip-masq-agent") },
		"the table emptied": func(n *node) { n.run("nft", "flush", "table", "inet", "ip-masq-agent") },
		"a rule deleted":    func(n *node) { rule(natChain(n))(n) },
		"a rule added": func(n *node) {
			n.run("nft", "insert", "rule", "inet", "ip-masq-agent", natChain(n), "accept")
		},
		"an element deleted": func(n *node) {
			n.run("nft", "delete", "element", "inet", "ip-masq-agent", exemptSet(n), "{ 198.51.100.0/24 }")
		},
		"a chain added": func(n *node) { n.run("nft", "add", "chain", "inet", "ip-masq-agent", "stranger") },
	} {
		damage(n)
		n.until("the repair after "+name, func() bool {
			out, err := netnstest.Try(n.Node, "", "nft", "-a", "list", "table", "inet", "ip-masq-agent")
			return err == nil && handles.ReplaceAllString(counters.ReplaceAllString(out, ""), "") == want
		})
		if n.seen(testnet.Service4) != testnet.Node4 {
			t.Errorf("after %s the service sees the Pod", name)
		}
		n.until("the count of "+name, func() bool { return n.metric("drift_repairs_total") > repairs })
		repairs = n.metric("drift_repairs_total")
	}
	if s := n.ready(1); s.Generation != 1 {
		t.Errorf("repairs are no new generation: %+v", s)
	}
	// What somebody does elsewhere costs no write.
	n.run("nft", "add", "table", "inet", "stranger")
	n.run("nft", "add", "chain", "inet", "stranger", "x")
	n.run("nft", "delete", "table", "inet", "stranger")
	if got := n.metric("drift_repairs_total"); got != repairs {
		t.Errorf("%v repairs for a change of somebody else's", got-repairs)
	}
}

var handles = regexp.MustCompile(` # handle \d+| handle \d+`)

// natChain is the name of our NAT chain, as the kernel lists it.
func natChain(n *node) string {
	name := ""
	for line := range strings.Lines(n.list()) {
		if after, ok := strings.CutPrefix(strings.TrimSpace(line), "chain "); ok {
			name = strings.Fields(after)[0]
		}
		if strings.Contains(line, "type nat hook postrouting") {
			return name
		}
	}
	n.Fatal("there is no NAT chain")
	return ""
}

func exemptSet(n *node) string {
	name := ""
	for line := range strings.Lines(n.list()) {
		if after, ok := strings.CutPrefix(strings.TrimSpace(line), "set "); ok {
			name = strings.Fields(after)[0]
		}
		if strings.Contains(line, "198.51.100.0/24") {
			return name
		}
	}
	n.Fatal("there is no set with the range")
	return ""
}

// The chain of the iptables backend, in the flavour that announces changes.
func TestDriftOfIPTablesRulesIsRepaired(t *testing.T) {
	netnstest.Program(t, "iptables-nft")
	n := newNode(t, "--backend=iptables")
	n.run("iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT") // the node's flavour
	n.start()
	save := func() string {
		var kept []string
		for line := range strings.Lines(n.run("iptables-nft-save", "-t", "nat")) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "")
	}
	want := save()
	for name, damage := range map[string][]string{
		"the jump deleted":  {"iptables-nft", "-t", "nat", "-D", "POSTROUTING", "1"},
		"a rule deleted":    {"iptables-nft", "-t", "nat", "-D", "IP-MASQ-AGENT", "2"},
		"a rule added":      {"iptables-nft", "-t", "nat", "-I", "IP-MASQ-AGENT", "-j", "RETURN"},
		"the chain emptied": {"iptables-nft", "-t", "nat", "-F", "IP-MASQ-AGENT"},
		"the table emptied": {"iptables-nft", "-t", "nat", "-F"},
		"nft flush ruleset": {"nft", "flush", "ruleset"},
	} {
		n.run(damage[0], damage[1:]...)
		n.until("the repair after "+name, func() bool { return save() == want })
		if n.seen(testnet.Service4) != testnet.Node4 {
			t.Errorf("after %s the service sees the Pod", name)
		}
	}
}

// Rules stay however the agent ends, and the next one takes them as they are.
func TestRestart(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			n := newNode(t, "--backend="+backend)
			n.configure("nonMasqueradeCIDRs: [198.51.100.0/24]")
			first := n.start()
			rules := func() string { return counters.ReplaceAllString(n.run("nft", "-a", "list", "ruleset"), "") }
			want := rules()
			for name, end := range map[string]func(){
				"SIGTERM": func() {
					if err := n.proc.Stop(); err != nil {
						t.Fatal(err)
					}
					if !strings.Contains(n.proc.Log(), "the rules stay in the kernel") {
						t.Errorf("it says:\n%s", n.proc.Log())
					}
				},
				"SIGKILL": func() { n.proc.Kill() },
			} {
				end()
				if after := rules(); after != want {
					t.Fatalf("%s left:\n%s", name, after)
				}
				if n.seen(testnet.Service4) != testnet.Node4 || n.seen(testnet.Service6) != testnet.Node6 {
					t.Errorf("after %s the service sees the Pod", name)
				}
				s := n.start()
				if after := rules(); after != want || s.Hash != first.Hash || s.Generation != first.Generation {
					t.Errorf("the restart after %s changed:\n%s\n%+v", name, after, s)
				}
				if strings.Contains(n.proc.Log(), "msg=applied") || strings.Contains(n.proc.Log(), "repaired") {
					t.Errorf("the restart after %s wrote:\n%s", name, n.proc.Log())
				}
			}
		})
	}
}

func TestColdStartWithABadFile(t *testing.T) {
	n := newNode(t)
	n.configure("nonMasqueradeCIDRs: [10.0.0.0/08]")
	s := n.start()
	if !strings.Contains(s.ConfigFrom, "defaults") || !strings.Contains(s.ConfigError, "write 10.0.0.0/8") || n.seen(testnet.Service4) != testnet.Node4 {
		t.Fatalf("%+v", s)
	}
	n.configure("nonMasqueradeCIDRs: [203.0.113.0/24]")
	n.ready(2)
	n.proc.Kill()
	n.run("nft", "flush", "ruleset") // the node was rebooted
	n.configure("nonMasqueradeCIDRs: [10.0.0.0/08]")
	if s = n.start(); !strings.Contains(s.ConfigFrom, "last good") || n.seen(testnet.Service4) != testnet.Pod4 {
		t.Fatalf("%+v", s)
	}
	code, out := n.command("explain", "--src=192.168.1.2", "--dst=203.0.113.10")
	if code != 0 || !strings.Contains(out, "verdict:  exempt") || !strings.Contains(out, "last good configuration, saved ") {
		t.Errorf("%d\n%s", code, out)
	}
}

func TestAFolderIsMerged(t *testing.T) {
	n := newNode(t)
	n.flags[0] = "--config=" + filepath.Join(n.dir, "config")
	swap := func(second string) {
		t.Helper()
		files := map[string][]byte{"ip-masq-agent": []byte("nonMasqueradeCIDRs: [198.51.100.0/24]\n"), "other": []byte("- x")}
		if second != "" {
			files["ip-masq-agent-reconciled"] = []byte(second)
		}
		if err := n.config.Swap(files); err != nil {
			t.Fatal(err)
		}
	}
	swap("nonMasqueradeCIDRs: [203.0.113.0/24]\n")
	if s := n.start(); len(s.Files) != 2 || n.seen(testnet.Service4) != testnet.Pod4 {
		t.Fatalf("%+v", s)
	}
	if _, out := n.command("explain", "--src=192.168.1.2", "--dst=203.0.113.10"); !strings.Contains(out, "ip-masq-agent-reconciled:1:22") {
		t.Errorf("it does not say where the range is from:\n%s", out)
	}
	swap("")
	if s := n.ready(2); len(s.Files) != 1 || n.seen(testnet.Service4) != testnet.Node4 {
		t.Fatalf("%+v", s)
	}
}

// A node with several addresses, and a way out that is not to be translated.
func TestSNATAddressAndOutputInterfaces(t *testing.T) {
	n := newNode(t)
	netnstest.Run(t, n.Service, "", netnstest.Program(t, "ip"), "route", "add", "10.7.0.0/16", "via", "10.0.0.11")
	n.configure("snatAddress: 10.7.0.0/16\n")
	if s := n.start(); !strings.Contains(s.PlanError, "10.7.0.0/16") || n.seen(testnet.Service4) != testnet.Node4 {
		t.Fatalf("without the address: %+v", s)
	}
	n.run("ip", "addr", "add", "10.7.0.9/32", "dev", "lo")
	n.status("the address", func(s agent.Status) bool { return s.PlanError == "" && s.AppliedHash == s.Hash && s.Ready })
	if got := n.seen(testnet.Service4); got.String() != "10.7.0.9" {
		t.Errorf("seen as %s", got)
	}
	code, out := n.command("explain", "--src=192.168.1.2", "--dst=203.0.113.10")
	if code != 0 || !strings.Contains(out, "seen as:  10.7.0.9") {
		t.Errorf("%d\n%s", code, out)
	}
	n.configure("outputInterfaces: [eth7]\n")
	n.status("the interfaces", func(s agent.Status) bool { return s.AppliedGeneration >= 3 && s.Ready })
	if got := n.seen(testnet.Service4); got != testnet.Pod4 {
		t.Errorf("leaving by another interface, seen as %s", got)
	}
	n.configure("outputInterfaces: [eth0]\n")
	n.status("the interfaces", func(s agent.Status) bool { return s.AppliedGeneration >= 4 && s.Ready })
	if got := n.seen(testnet.Service4); got != testnet.Node4 {
		t.Errorf("leaving by the interface, seen as %s", got)
	}
}

// Upstream's way translates what the node itself sends, ours does not.
func TestTheNodesOwnTraffic(t *testing.T) {
	for flags, same := range map[string]bool{"": true, "--pod-cidrs=": true, "--compat=upstream --to-ports=40000-40010": false} {
		n := newNode(t, strings.Fields(flags)...)
		n.start()
		src := netip.AddrPortFrom(testnet.Node4, 4321)
		got := n.seenFrom(n.Node, src, testnet.Service4)
		if (got == src) != same || got.Addr() != testnet.Node4 {
			t.Errorf("%s: the node's %s is seen as %s", flags, src, got)
		}
		n.proc.Kill()
	}
}

// The agent needs CAP_NET_ADMIN and nothing else, and no root.
func TestCapNetAdminAlone(t *testing.T) {
	n := newNode(t)
	uid := 65534
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil {
		t.Fatal(err)
	} else if f := strings.Fields(string(ids)); len(f) == 3 && f[2] == "1" {
		uid = 0 // an ordinary user's namespace knows no other; its root is nobody outside
	}
	// A folder of the user's own, and nothing else that it could write to.
	home, err := os.MkdirTemp(filepath.Dir(binary), "home")
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(home, "state")
	config := filepath.Join(home, "config")
	if err := errors.Join(os.Chmod(home, 0o755), os.Mkdir(state, 0o700), os.Chown(state, uid, uid), os.WriteFile(config, []byte("nonMasqueradeCIDRs: [198.51.100.0/24]"), 0o644)); err != nil {
		t.Fatal(err)
	}
	n.flags = append(n.flags, "--state-dir="+state, "--config="+config)
	id := strconv.Itoa(uid)
	s := n.startAs(netnstest.Program(t, "setpriv"), "--reuid="+id, "--regid="+id, "--clear-groups", "--no-new-privs",
		"--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin", binary)
	if s.Backend != "nftables" || s.StateError != "" || n.seen(testnet.Service4) != testnet.Node4 || n.seen(testnet.Service6) != testnet.Node6 {
		t.Fatalf("%+v\n%s", s, n.proc.Log())
	}
	caps, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.proc.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000001000\n", "CapPrm:\t0000000000001000\n", "Uid:\t" + id + "\t"} {
		if !bytes.Contains(caps, []byte(want)) {
			t.Fatalf("the agent runs with other privileges:\n%s", caps)
		}
	}
	// Everything that it does later works too.
	n.run("nft", "delete", "table", "inet", "ip-masq-agent")
	n.until("the repair", func() bool { return n.metric("drift_repairs_total") == 1 })
	if err := os.WriteFile(config, []byte("nonMasqueradeCIDRs: [203.0.113.0/24]"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.ready(2)
	if n.seen(testnet.Service4) != testnet.Pod4 {
		t.Error("the new configuration has no effect")
	}
	n.run("ip", "addr", "add", "10.7.0.9/32", "dev", "lo")
	file := filepath.Join(state, "state.json")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if log := n.proc.Log(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "ended early") {
		t.Errorf("it complains:\n%s", log)
	}
	if err := n.proc.Stop(); err != nil {
		t.Error(err)
	}
}

func TestPages(t *testing.T) {
	n := newNode(t)
	n.configure("nonMasqueradeCIDRs: [198.51.100.0/24]")
	s := n.start()
	n.seen(testnet.Service4)
	n.seen(testnet.Service6)
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok: the kernel holds generation 1 (" + s.Hash + ")\nconfiguration: files\n"} {
		if body, err := agentproc.Get(n.Context(), n.Node, path); err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
	for _, m := range []struct {
		name   string
		labels []string
		is     func(float64) bool
	}{
		{"desired_generation", nil, func(v float64) bool { return v == 1 }},
		{"applied_generation", nil, func(v float64) bool { return v == 1 }},
		{"rules_info", []string{"backend", "nftables", "desired_hash", s.Hash, "applied_hash", s.Hash}, func(v float64) bool { return v == 1 }},
		{"ready", nil, func(v float64) bool { return v == 1 }},
		{"last_success_timestamp_seconds", nil, func(v float64) bool { return time.Since(time.Unix(int64(v), 0)) < time.Minute }},
		{"apply_duration_seconds", nil, func(v float64) bool { return v == 1 }},
		{"apply_errors_total", nil, func(v float64) bool { return v == 0 }},
		{"drift_repairs_total", nil, func(v float64) bool { return v == 0 }},
		{"leftovers_removed_total", nil, func(v float64) bool { return v == 0 }},
		{"packets_total", []string{"family", "IPv4", "action", "masquerade"}, func(v float64) bool { return v == 1 }},
		{"packets_total", []string{"family", "IPv6", "action", "masquerade"}, func(v float64) bool { return v == 1 }},
		{"packets_total", []string{"family", "IPv4", "action", "exempt"}, func(v float64) bool { return v == 0 }},
		{"bytes_total", []string{"family", "IPv4", "action", "masquerade"}, func(v float64) bool { return v == 29 }},
		{"connections_total", []string{"family", "IPv4", "action", "masquerade"}, func(v float64) bool { return v == 1 }},
		{"set_ranges", []string{"set", "exempt4"}, func(v float64) bool { return v >= 3 }},
	} {
		if got := n.metric(m.name, m.labels...); !m.is(got) {
			t.Errorf("%s %v is %v", m.name, m.labels, got)
		}
	}
	// The status command tells the same, with an exit status.
	code, out := n.command("status")
	for _, want := range []string{"agent:    ready, desired generation 1 (" + s.Hash + "), applied 1", "kernel:   holds generation 1 (" + s.Hash + ") by nftables", "traffic:  IPv4 masquerade 1 connections, 1 packets, 29 bytes"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d, want %q in\n%s", code, want, out)
		}
	}
	code, out = n.command("status", "--output=json")
	var report struct{ Agent agent.Status }
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 || report.Agent.Hash != s.Hash {
		t.Errorf("exit %d, %v in\n%s", code, err, out)
	}
	// plan answers for the agent that runs, by its saved flags.
	if code, out := n.command("plan"); code != 0 || !strings.Contains(out, "no changes") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, out := n.command("cleanup", "--dry-run"); code != 0 || !strings.Contains(out, "an agent runs here and answers at 127.0.0.1:9927") {
		t.Errorf("exit %d\n%s", code, out)
	}
	n.proc.Kill()
	if code, out := n.command("cleanup", "--dry-run"); code != 0 || strings.Contains(out, "an agent runs") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, out := n.command("status"); code != 1 || !strings.Contains(out, "does not answer") || !strings.Contains(out, "holds generation 1") {
		t.Errorf("exit %d\n%s", code, out)
	}
	n.run("nft", "flush", "ruleset")
	if code, out := n.command("plan"); code != 2 {
		t.Errorf("exit %d\n%s", code, out)
	}
}
