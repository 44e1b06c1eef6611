package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
)

// result is one call of the program.
type result struct {
	code           int
	stdout, stderr string
}

// call runs the program in this process, in the namespace when there is one.
func call(t *testing.T, ns *netns.NS, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	r := result{}
	if len(args) > 0 && slices.Contains([]string{"run", "plan", "explain", "status", "cleanup"}, args[0]) {
		// Never this machine's own; what the test gives comes later and wins.
		args = slices.Insert(slices.Clone(args), 1, "--state-dir=")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	do := func() error {
		r.code = run(ctx, args, strings.NewReader(stdin), &stdout, &stderr)
		return nil
	}
	if ns == nil {
		_ = do()
	} else {
		netnstest.Do(t, ns, do)
	}
	r.stdout, r.stderr = stdout.String(), stderr.String()
	return r
}

// expect fails the test unless all of the texts were printed.
func (r result) expect(t *testing.T, code int, stdout, stderr []string) {
	t.Helper()
	missing := func(printed string, wanted []string) bool {
		for _, w := range wanted {
			if !strings.Contains(printed, w) {
				t.Errorf("%q is not said", w)
				return true
			}
		}
		return false
	}
	if missing(r.stdout, stdout) || missing(r.stderr, stderr) || r.code != code {
		t.Fatalf("exit %d, want %d\nstdout:\n%s\nstderr:\n%s", r.code, code, r.stdout, r.stderr)
	}
}

// decoded reads what a command printed as JSON.
func decoded[T any](t *testing.T, r result) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("%v in %s\n%s", err, r.stdout, r.stderr)
	}
	return v
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// parsed is what a command line means to the running agent.
func parsed(t *testing.T, args ...string) (*flags, string, error) {
	t.Helper()
	var stderr bytes.Buffer
	inv := &invocation{stderr: &stderr}
	err := inv.parse("run", args)
	return inv.flags, stderr.String(), err
}

func TestOtherPeoplesCommandLines(t *testing.T) {
	for _, tc := range []struct {
		name, args string
		check      func(*flags) bool
		warned     []string // each once
	}{
		{"none, as upstream's manifest", "", func(f *flags) bool {
			return f.options.Chain == "IP-MASQ-AGENT" && f.options.RandomFully && !f.options.IPv6 && !f.options.ReservedRanges && f.config == "/etc/config/ip-masq-agent"
		}, nil},
		{"GKE", "--masq-chain=IP-MASQ --nomasq-all-reserved-ranges", func(f *flags) bool {
			return f.options.Chain == "IP-MASQ" && f.options.ReservedRanges && f.settings().ReservedRanges
		}, nil},
		{"AKS", "--v=2 --resync-interval=60", func(f *flags) bool { return f.verbosity == 2 && f.resyncInterval.String() == "1m0s" }, nil},
		{"one dash", "-masq-chain=X -enable-ipv6 -random-fully=false -to-ports=60000-61000,5", func(f *flags) bool {
			return f.options.Chain == "X" && f.options.IPv6 && !f.options.RandomFully && len(f.options.Ports) == 2 && f.options.Ports[1].First == 5
		}, nil},
		{"values apart", "--masq-chain X -v 5 --resync-interval 30s", func(f *flags) bool {
			return f.options.Chain == "X" && f.verbosity == 5 && f.resyncInterval.Seconds() == 30
		}, nil},
		{"klog", "--logtostderr=true -alsologtostderr --stderrthreshold=2 --vmodule=a=1,b=2 -log_dir /tmp --log_backtrace_at x:1 --log-flush-frequency=5s --enable-ipv6", func(f *flags) bool { return f.options.IPv6 }, nil},
		{"klog with a number as a switch", "-v=0 --skip_headers=1 --one_output=false", func(f *flags) bool { return f.verbosity == 0 }, nil},
		{"unknown", "--frobnicate --frobnicate=yes --level high --enable-ipv6", func(f *flags) bool { return f.options.IPv6 }, []string{"--frobnicate", "--frobnicate=yes", "--level", "high"}},
		{"unknown, twice the same", "--what --what", func(f *flags) bool { return true }, []string{"--what"}},
		{"after two dashes", "--enable-ipv6 -- --masq-chain=X", func(f *flags) bool { return f.options.IPv6 && f.options.Chain == "IP-MASQ-AGENT" }, []string{"--masq-chain=X"}},
		{"ranges", "--pod-cidrs=192.168.0.0/16,fd00::/8 --node-cidrs= --service-cidrs 10.9.0.0/16", func(f *flags) bool {
			return len(f.options.Cluster.Pod) == 2 && len(f.options.Cluster.Node) == 0 && f.options.Cluster.Service[0].Prefix.String() == "10.9.0.0/16"
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, said, err := parsed(t, strings.Fields(tc.args)...)
			if err != nil || !tc.check(f) {
				t.Fatalf("%v: %+v", err, f)
			}
			if n := strings.Count(said, "level=WARN"); n != len(tc.warned) {
				t.Errorf("%d warnings, want %d:\n%s", n, len(tc.warned), said)
			}
			for _, w := range tc.warned {
				if strings.Count(said, "argument="+w+"\n") != 1 && strings.Count(said, "argument=\""+w+"\"\n") != 1 {
					t.Errorf("%q is not warned of once:\n%s", w, said)
				}
			}
		})
	}
}

// A wrong value of a flag that is ours means that somebody wants something
// that cannot be guessed.
func TestWrongValuesAreSaid(t *testing.T) {
	for args, want := range map[string]string{
		"--backend=nft":                     `--backend "nft": write one of: auto nftables iptables`,
		"--compat=azure":                    `--compat "azure": write one of: upstream`,
		"--output=yaml":                     `--output "yaml": write one of: text json`,
		"--log-format=xml":                  `--log-format "xml": write one of: text json`,
		"--pod-cidrs=10.0.0.1/8":            `--pod-cidrs: "10.0.0.1/8" is not aligned; write 10.0.0.0/8`,
		"--node-cidrs=10.0.0.0":             `--node-cidrs: "10.0.0.0" is not a range`,
		"--service-cidrs=::ffff:10.0.0.0/8": `is IPv4 in IPv6 form`,
		"--to-ports=0":                      `--to-ports: "0" is not a range of ports`,
		"--to-ports=5-4":                    `lowest first`,
		"--to-ports=1-70000":                `within 1 to 65535`,
		"--resync-interval=0":               `--resync-interval "0": write seconds, or a duration`,
		"--resync-interval=10ms":            `of at least a second`,
		"--v=many":                          `invalid value "many" for flag -v`,
		"--enable-ipv6=perhaps":             `invalid boolean value "perhaps"`,
		"--masq-chain=":                     `write an iptables chain name`,
		"--masq-chain=a-name-of-more-than-28-characters": `of 1 to 28 characters`,
		// The agent would empty the chain for its own rules.
		"--masq-chain=POSTROUTING": `--masq-chain "POSTROUTING": this is one of iptables' own names`,
		"--masq-chain=RETURN":      `this is one of iptables' own names`,
		"--masq-chain=MASQUERADE":  `this is one of iptables' own names`,
		"--config":                 `flag needs an argument: -config`,
	} {
		r := call(t, nil, "", "run", args)
		r.expect(t, 2, nil, []string{"ip-masq-agent run: ", want})
	}
	r := call(t, nil, "", "run", "--backend=x", "--compat=y")
	r.expect(t, 2, nil, []string{`--backend "x"`, `--compat "y"`})
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}, {"plan", "--help"}, {"--frobnicate", "-help"}} {
		r := call(t, nil, "", args...)
		r.expect(t, 0, []string{"Usage: ip-masq-agent", "lint FILE…", "--pod-cidrs ranges", "nonMasqueradeCIDRs", "Examples:", "(127.0.0.1:9927)"}, nil)
		for _, klog := range []string{"--vmodule", "--logtostderr"} {
			if strings.Contains(r.stdout, klog) {
				t.Errorf("%v tells of %s, which does nothing", args, klog)
			}
		}
	}
	for _, args := range [][]string{{"version"}, {"--version"}, {"-version=true"}} {
		call(t, nil, "", args...).expect(t, 0, []string{"ip-masq-agent devel (go1."}, nil)
	}
	v := decoded[map[string]string](t, call(t, nil, "", "version", "--output=json"))
	if v["version"] != "devel" || !strings.HasPrefix(v["go"], "go1.") {
		t.Errorf("%v", v)
	}
}

func TestWrongCommands(t *testing.T) {
	call(t, nil, "", "frobnicate").expect(t, 2, nil, []string{`there is no command "frobnicate"; see ip-masq-agent --help`})
	call(t, nil, "", "plan", "now").expect(t, 2, nil, []string{`unexpected argument "now"`})
	// A command behind flags would otherwise start an agent on the node.
	call(t, nil, "", "--output=json", "plan").expect(t, 2, nil, []string{"the command comes first: ip-masq-agent plan"})
	call(t, nil, "", "explain", "--src", "192.168.1.2").expect(t, 1, nil, []string{"--src ADDRESS --dst ADDRESS"})
	call(t, nil, "", "explain", "--src", "pod", "--dst", "1.2.3.4").expect(t, 1, nil, []string{`--src "pod" is not an address; write it like 192.168.1.2`})
	call(t, nil, "", "explain", "--src", "1.2.3.4", "--dst", "1.2.3.5", "--dport", "70000").expect(t, 1, nil, []string{"--dport 70000: ports end at 65535"})
	call(t, nil, "", "lint").expect(t, 1, nil, []string{"name the config files to check, or - for standard input"})
	// An unknown flag is no reason to stop for the other commands either.
	call(t, nil, "", "lint", "--frobnicate", write(t, "")).expect(t, 0, []string{"valid"}, []string{"unknown flag", "--frobnicate"})
}
