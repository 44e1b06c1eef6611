package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/internal/testnet"
	"sordino/internal/testprogram"
	"sordino/masq"
	"sordino/masq/foreign"
)

// nodeOf builds a network and gives its node, where the commands run.
func nodeOf(t *testing.T) *testnet.Net {
	t.Helper()
	netnstest.New(t) // fails or skips where there are no namespaces
	n, err := testnet.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func nft(t *testing.T, ns *netns.NS, input string) {
	t.Helper()
	netnstest.Run(t, ns, input, netnstest.Program(t, "nft"), "-f", "-")
}

// ruleset is everything that the kernel holds, both kinds of iptables included.
func ruleset(t *testing.T, ns *netns.NS) string {
	t.Helper()
	out := netnstest.Run(t, ns, "", "nft", "-a", "list", "ruleset")
	names, _ := netnstest.Try(ns, "", "cat", "/proc/net/ip_tables_names")
	if strings.Contains(names, "nat") { // looking makes the table
		out += netnstest.Run(t, ns, "", "iptables-legacy-save", "-t", "nat")
	}
	return out
}

// apply makes the kernel hold what the command line asks for: what a running
// agent would do.
func apply(t *testing.T, ns *netns.NS, args ...string) {
	t.Helper()
	inv := &invocation{stderr: os.Stderr}
	if err := inv.parse("plan", append([]string{"--state-dir="}, args...)); err != nil {
		t.Fatal(err)
	}
	netnstest.Do(t, ns, func() error {
		b, err := openBackend(t.Context(), inv.flags, nil, inv.log)
		if err != nil {
			return err
		}
		defer b.Close()
		config, _, err := configInForce(inv)
		if err != nil {
			return err
		}
		rules, _, err := masq.Plan(config, inv.flags.options, masq.Facts{})
		if err == nil {
			_, err = b.Apply(t.Context(), rules, 1)
		}
		return err
	})
}

func TestPlanChangesNothing(t *testing.T) {
	type report struct {
		Backend, Hash string
		Changes       []string
		Findings      []masq.Finding
		Warnings      []struct{ Message string }
	}
	for backend, name := range map[string]string{"nftables": "nftables", "iptables": "iptables (nft)"} {
		t.Run(backend, func(t *testing.T) {
			n := nodeOf(t)
			flags := []string{"--backend=" + backend, "--config=" + write(t, "nonMasqueradeCIDRs: [1.0.0.0/8]\nfoo: 1\n"), "--pod-cidrs=192.168.0.0/16"}
			before := ruleset(t, n.Node)
			r := call(t, n.Node, "", append([]string{"plan"}, flags...)...)
			r.expect(t, 2, []string{"changes to reach ", " (" + name + "):\n  ", "warning: ", "foo", "note: nonMasqueradeCIDRs does not fully cover the Pod CIDR range 192.168.0.0/16"}, nil)
			if after := ruleset(t, n.Node); after != before {
				t.Errorf("plan wrote:\n%s", after)
			}
			apply(t, n.Node, flags...)
			before = ruleset(t, n.Node)
			call(t, n.Node, "", append([]string{"plan"}, flags...)...).expect(t, 0, []string{"no changes: the kernel holds "}, nil)
			p := decoded[report](t, call(t, n.Node, "", append([]string{"plan", "--output=json"}, flags...)...))
			if p.Backend != name || len(p.Changes) != 0 || p.Hash == "" || len(p.Findings) == 0 || len(p.Warnings) != 1 {
				t.Errorf("%+v", p)
			}
			r = call(t, n.Node, "", append([]string{"plan", "--output=json"}, append(flags, "--enable-ipv6", "--nomasq-all-reserved-ranges")...)...)
			if p := decoded[report](t, r); r.code != 2 || len(p.Changes) == 0 {
				t.Errorf("exit %d, %+v", r.code, p)
			}
			if after := ruleset(t, n.Node); after != before {
				t.Errorf("plan wrote:\n%s", after)
			}
		})
	}
	n := nodeOf(t)
	bad := write(t, "nonMasqueradeCIDRs:\n- 10.0.0.0/08\n")
	call(t, n.Node, "", "plan", "--config="+bad).expect(t, 1, nil, []string{bad + ":2:3: ", "write 10.0.0.0/8"})
}

func TestExplain(t *testing.T) {
	n := nodeOf(t)
	config := write(t, "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - 198.51.100.0/24\n")
	explain := func(args ...string) result {
		t.Helper()
		return call(t, n.Node, "", append([]string{"explain", "--config=" + config, "--pod-cidrs=192.168.0.0/16,fd00:c0a8::/32", "--enable-ipv6"}, args...)...)
	}
	for _, tc := range []struct {
		src, dst string
		want     []string
	}{
		{"192.168.1.2", "203.0.113.10", []string{"leaving by eth0", "verdict:  masquerade: no non-masquerade range holds 203.0.113.10", "seen as:  10.0.0.11\n", "no foreign rule", "config:   [" + config + "]"}},
		{"192.168.1.2", "198.51.100.7", []string{"verdict:  exempt: ", "decided:  198.51.100.0/24, from " + config + ":3:5", "seen as:  192.168.1.2\n"}},
		{"192.168.1.2", "192.168.2.2", []string{"exempt: ", "a range of the cluster itself (from flag --pod-cidrs)"}},
		{"10.0.0.11", "203.0.113.10", []string{"untouched: ", "not in a Pod range"}},
		{"192.168.1.2", "239.1.2.3", []string{"untouched: ", "multicast"}},
		{"192.168.1.2", "10.0.0.255", []string{"untouched: ", "broadcast address of 10.0.0.0/24 on eth0"}},
		{"fd00:c0a8:1::2", "2001:db8:113::10", []string{"masquerade: ", "seen as:  fd00:a::11\n"}},
		{"::ffff:192.168.1.2", "203.0.113.10", []string{"flow:     192.168.1.2 to 203.0.113.10"}},
	} {
		explain("--src", tc.src, "--dst", tc.dst).expect(t, 0, tc.want, nil)
	}
	explain("--src", "192.168.1.2", "--dst", "::1").expect(t, 1, nil, []string{"of different families"})

	// A config that is rejected now: the last good one is what the node goes by.
	bad := write(t, "- x")
	call(t, n.Node, "", "explain", "--config="+bad, "--src=192.168.1.2", "--dst=1.1.1.1").expect(t, 1, nil, []string{bad + ":1:1"})
	e := decoded[explanation](t, explain("--src=192.168.1.2", "--dst=198.51.100.7", "--proto=TCP", "--dport=443", "--output=json"))
	if e.Verdict.Action != masq.Exempt || e.Verdict.Decided.Origin.Line != 3 || e.Protocol != "tcp" || e.Port != 443 || e.SeenAs.String() != "192.168.1.2" {
		t.Errorf("%+v", e)
	}
}

// A foreign rule that would still rewrite the flow is named, whoever's
// notation it is in.
func TestExplainNamesForeignRules(t *testing.T) {
	legacy, iptablesNFT := netnstest.Program(t, "iptables-legacy"), netnstest.Program(t, "iptables-nft")
	for name, tc := range map[string]struct {
		add     func(*testing.T, *netns.NS)
		dst     string
		flags   []string
		words   []string
		certain bool
		none    bool
	}{
		"nft, certainly": {func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table ip cni { chain post { type nat hook postrouting priority 100; ip saddr 192.168.0.0/16 counter masquerade; }; }")
		}, "198.51.100.7", nil, []string{"would masquerade it: table ip cni chain post handle", "saddr == "}, true, false},
		"nft, perhaps": {func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table ip cni { chain post { type nat hook postrouting priority 100; meta mark 0x4000 masquerade; }; }")
		}, "198.51.100.7", nil, []string{"might masquerade it", "depends on: the packet's mark (kube-proxy"}, false, false},
		"iptables-nft": {func(t *testing.T, ns *netns.NS) {
			netnstest.Run(t, ns, "", iptablesNFT, "-t", "nat", "-A", "POSTROUTING", "-s", "192.168.0.0/16", "!", "-d", "10.0.0.0/8", "-m", "comment", "--comment", "of the CNI", "-j", "MASQUERADE")
		}, "198.51.100.7", nil, []string{"would masquerade it: table ip nat chain POSTROUTING handle", `comment "of the CNI"`}, true, false},
		"iptables-legacy": {func(t *testing.T, ns *netns.NS) {
			netnstest.Run(t, ns, "", legacy, "-t", "nat", "-A", "POSTROUTING", "-s", "192.168.0.0/16", "-o", "eth+", "-j", "SNAT", "--to-source", "10.0.0.11")
		}, "198.51.100.7", nil, []string{"iptables-legacy nat POSTROUTING rule 1", "-o eth+"}, true, false},
		"after ours, which masquerades": {func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table ip cni { chain post { type nat hook postrouting priority 100; masquerade; }; }")
		}, "203.0.113.10", nil, []string{"no foreign rule"}, false, true},
		"before ours, which masquerades": {func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table ip cni { chain post { type nat hook postrouting priority 50; snat to 10.0.0.99; }; }")
		}, "203.0.113.10", nil, []string{"would snat to 10.0.0.99 it"}, true, false},
		"after ours, which enforces": {func(t *testing.T, ns *netns.NS) {
			nft(t, ns, "table ip cni { chain post { type nat hook postrouting priority 100; masquerade; }; }")
		}, "192.0.2.7", []string{"--config=" + write(t, "nonMasqueradeCIDRs: [192.0.2.0/24]\nenforceNonMasquerade: true")}, []string{"exempt", "no foreign rule"}, false, true},
		// Our jump is in POSTROUTING, behind what was there before.
		"iptables, before our jump, though we enforce": {func(t *testing.T, ns *netns.NS) {
			netnstest.Run(t, ns, "", iptablesNFT, "-t", "nat", "-A", "POSTROUTING", "-s", "192.168.0.0/16", "-j", "MASQUERADE")
			apply(t, ns, "--backend=iptables", "--pod-cidrs=192.168.0.0/16")
		}, "192.0.2.7", []string{"--backend=iptables", "--config=" + write(t, "nonMasqueradeCIDRs: [192.0.2.0/24]\nenforceNonMasquerade: true")}, []string{"exempt", "would masquerade it"}, true, false},
		"iptables, after our jump": {func(t *testing.T, ns *netns.NS) {
			apply(t, ns, "--backend=iptables", "--pod-cidrs=192.168.0.0/16")
			netnstest.Run(t, ns, "", iptablesNFT, "-t", "nat", "-A", "POSTROUTING", "-s", "192.168.0.0/16", "-j", "MASQUERADE")
		}, "203.0.113.10", []string{"--backend=iptables"}, []string{"verdict:  masquerade", "no foreign rule"}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := nodeOf(t)
			tc.add(t, n.Node)
			args := append([]string{"explain", "--config=" + write(t, "nonMasqueradeCIDRs: [10.0.0.0/8, 198.51.100.0/24]"), "--pod-cidrs=192.168.0.0/16",
				"--src=192.168.1.2", "--dst=" + tc.dst, "--proto=tcp", "--dport=443"}, tc.flags...)
			call(t, n.Node, "", args...).expect(t, 0, tc.words, nil)
			e := decoded[struct{ Interfering []foreign.Rewrite }](t, call(t, n.Node, "", append(args, "--output=json")...))
			if tc.none != (len(e.Interfering) == 0) || len(e.Interfering) > 0 && e.Interfering[0].Certain != tc.certain {
				t.Errorf("%+v", e.Interfering)
			}
		})
	}
}

func TestStatusWithoutAnAgent(t *testing.T) {
	n := nodeOf(t)
	down := "--http-address=127.0.0.1:1"
	call(t, n.Node, "", "status", down).expect(t, 1, []string{"agent:    does not answer: asking the agent at 127.0.0.1:1", "kernel:   holds no rules of ours (nftables)"}, nil)
	apply(t, n.Node, "--config=none")
	call(t, n.Node, "", "status", down).expect(t, 1, []string{"kernel:   holds generation 1 (", "traffic:  IPv4 masquerade"}, nil)
	r := call(t, n.Node, "", "status", "--output=json", "--http-address=")
	s := decoded[statusReport](t, r)
	if r.code != 1 || s.Agent != nil || !strings.Contains(s.AgentError, "no --http-address") || s.Kernel.Hash == "" || s.Backend != "nftables" {
		t.Errorf("%+v", s)
	}
}

const foreignRules = `table ip nat {
	chain KUBE-POSTROUTING { meta mark and 0x4000 == 0 return; masquerade; }
	chain POSTROUTING { type nat hook postrouting priority 100; jump KUBE-POSTROUTING; }
}
table inet firewall { chain in { type filter hook input priority 0; ct state established accept; }; }`

func TestCleanup(t *testing.T) {
	netnstest.Program(t, "iptables-legacy")
	n := nodeOf(t)
	call(t, n.Node, "", "cleanup").expect(t, 0, []string{"there is nothing of ours on this node"}, nil)
	nft(t, n.Node, foreignRules)
	legacyRules := func() string {
		return netnstest.Run(t, n.Node, "", "iptables-legacy", "-t", "nat", "-S")
	}
	netnstest.Run(t, n.Node, "", "iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-s", "172.17.0.0/16", "-j", "MASQUERADE")
	before, beforeLegacy := netnstest.Run(t, n.Node, "", "nft", "-a", "list", "ruleset"), legacyRules()
	apply(t, n.Node, "--config=none", "--backend=nftables", "--enable-ipv6")
	apply(t, n.Node, "--config=none", "--backend=iptables")
	const legacyChain = `*nat
:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
COMMIT
`
	netnstest.Run(t, n.Node, legacyChain, "iptables-legacy-restore", "--noflush")

	full := ruleset(t, n.Node)
	what := []string{"nftables table inet ip-masq-agent", "IPv4 chain IP-MASQ-AGENT (nft) and its jumps", "IPv4 chain IP-MASQ-AGENT (legacy) and its jumps"}
	would := []string{}
	did := []string{}
	for _, w := range what {
		would, did = append(would, "would remove "+w), append(did, "removed "+w)
	}
	call(t, n.Node, "", "cleanup", "--dry-run").expect(t, 0, would, nil)
	if now := ruleset(t, n.Node); counterless(now) != counterless(full) {
		t.Errorf("--dry-run changed:\n%s", now)
	}
	r := call(t, n.Node, "", "cleanup")
	r.expect(t, 0, did, nil)
	if r.stderr != "" {
		t.Errorf("it warns though others use connection tracking: %s", r.stderr)
	}
	if after := netnstest.Run(t, n.Node, "", "nft", "-a", "list", "ruleset"); counterless(after) != counterless(before) {
		t.Errorf("foreign rules before:\n%s\nand after:\n%s", before, after)
	}
	if after := legacyRules(); after != beforeLegacy {
		t.Errorf("legacy rules before:\n%s\nand after:\n%s", beforeLegacy, after)
	}
	report := decoded[struct {
		DryRun  bool
		Removed []string
	}](t, call(t, n.Node, "", "cleanup", "--output=json"))
	if report.DryRun || report.Removed == nil || len(report.Removed) != 0 {
		t.Errorf("%+v", report)
	}
}

// A kernel without nftables holds nothing of ours; one that does not say, may.
func TestCleanupWithoutNftables(t *testing.T) {
	dir, err := testprogram.Built()
	if err != nil {
		t.Fatal(err)
	}
	for errno, want := range map[unix.Errno]string{
		unix.EPROTONOSUPPORT: "there is nothing of ours on this node\n", unix.EPERM: "operation not permitted",
	} {
		var out []byte
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends
			if err = withoutNetfilter(errno); err == nil {
				cmd := exec.Command(filepath.Join(dir, "ip-masq-agent"), "cleanup", "--state-dir=")
				cmd.Env = []string{"PATH="} // as in the image, there is no iptables
				out, err = cmd.CombinedOutput()
			}
		}()
		<-done
		if !strings.Contains(string(out), want) || (err == nil) != (errno == unix.EPROTONOSUPPORT) {
			t.Errorf("%v: %v\n%s", errno, err, out)
		}
	}
}

// withoutNetfilter has the kernel refuse netfilter's netlink sockets to this
// thread and to what it starts.
func withoutNetfilter(errno unix.Errno) error {
	const number, domain, protocol = 0, 16, 32 // in the kernel's struct seccomp_data
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	unless := func(is uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: is}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	filter := []unix.SockFilter{
		load(number), unless(unix.SYS_SOCKET, 5),
		load(domain), unless(unix.AF_NETLINK, 3),
		load(protocol), unless(unix.NETLINK_NETFILTER, 1),
		answer(unix.SECCOMP_RET_ERRNO | uint32(errno)),
		answer(unix.SECCOMP_RET_ALLOW),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	runtime.KeepAlive(filter)
	return err
}

// counterless takes out the numbers that traffic changes.
func counterless(rules string) string {
	var out []string
	for line := range strings.Lines(rules) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") { // remarks with the time, and counters
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "")
}

// A chain that is named by --masq-chain but that no masquerade agent wrote is
// somebody else's.
func TestNobodyElsesChainIsTouched(t *testing.T) {
	n := nodeOf(t)
	netnstest.Run(t, n.Node, "*nat\n:DOCKER - [0:0]\n-A POSTROUTING -j DOCKER\n-A DOCKER -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n", netnstest.Program(t, "iptables-nft-restore"), "--noflush")
	before := ruleset(t, n.Node)
	call(t, n.Node, "", "cleanup", "--masq-chain=DOCKER").expect(t, 0, []string{"nothing of ours"}, nil)
	call(t, n.Node, "", "plan", "--masq-chain=DOCKER", "--backend=iptables", "--config=none").expect(t, 1, nil, []string{"chain DOCKER", "no masquerade agent wrote", "--masq-chain"})
	if after := ruleset(t, n.Node); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// With nothing else that uses connection tracking, taking our table away
// leaves live connections with the Pod's address.
func TestCleanupWarnsOfLiveConnections(t *testing.T) {
	n := nodeOf(t)
	apply(t, n.Node, "--config=none", "--pod-cidrs="+testnet.PodRanges)
	r := call(t, n.Node, "", "cleanup", "--dry-run")
	if r.stderr != "" {
		t.Errorf("it warns with no connection alive: %s", r.stderr)
	}
	netnstest.Do(t, n.Pod, func() error { return send("192.168.1.2:0", "203.0.113.10:9") })
	const warning = "removing our table breaks 1 translated connection: nothing else on this node uses connection tracking"
	call(t, n.Node, "", "cleanup", "--dry-run").expect(t, 0, []string{"would remove"}, []string{warning})
	type report struct{ Warning string }
	if r := decoded[report](t, call(t, n.Node, "", "cleanup", "--dry-run", "--output=json")); r.Warning != warning {
		t.Errorf("%+v", r)
	}
	// What is of IPv6 alone does not keep IPv4's connections tracked.
	nft(t, n.Node, "table ip6 nat { chain POSTROUTING { type nat hook postrouting priority 100; }; }")
	call(t, n.Node, "", "cleanup", "--dry-run").expect(t, 0, nil, []string{warning})
	nft(t, n.Node, "table inet firewall { chain f { type filter hook forward priority 0; ct state invalid drop; }; }")
	r = call(t, n.Node, "", "cleanup")
	r.expect(t, 0, []string{"removed"}, nil)
	if r.stderr != "" {
		t.Errorf("it warns though a firewall uses connection tracking: %s", r.stderr)
	}
}

// The other commands answer for the agent that runs, with its flags.
func TestCommandsStartFromTheAgentsFlags(t *testing.T) {
	n := nodeOf(t)
	dir := t.TempDir()
	state := func(arguments string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "state.json"), fmt.Appendf(nil, `{"arguments":[%s]}`, arguments), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := write(t, "nonMasqueradeCIDRs: [203.0.113.0/24]")
	state(fmt.Sprintf("%q,%q,%q", "--config="+config, "--pod-cidrs=192.168.0.0/16", "--no-such-flag"))
	explain := []string{"explain", "--state-dir=" + dir, "--src=192.168.1.2", "--dst=203.0.113.10"}
	call(t, n.Node, "", explain...).expect(t, 0, []string{"exempt", config + ":1:22"}, nil)
	// What is given now stands above.
	call(t, n.Node, "", append(explain, "--config="+write(t, ""))...).expect(t, 0, []string{"verdict:  masquerade"}, nil)
	state(`"--v=x"`)
	call(t, n.Node, "", explain...).expect(t, 2, nil, []string{"the flags of the agent that ran with --state-dir=" + dir, "-v"})
}

// send sends one packet.
func send(from, to string) error {
	local, err := net.ResolveUDPAddr("udp", from)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{LocalAddr: local}).Dial("udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("x"))
	return err
}
