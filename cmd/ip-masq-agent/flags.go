package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sordino/masq"
	"sordino/masq/agent"
)

// flags are the command line. Upstream's, Azure's and klog's are accepted
// with their meanings, because a drop-in runs with other people's manifests.
type flags struct {
	set *flag.FlagSet

	config, stateDir, httpAddress string
	configSource, configMap       string
	nodeName, kubeconfig          string
	readyFile                     string
	backend, compat, output       string
	chain                         string
	reserved, ipv6, randomFully   bool
	toPorts                       string
	nodes, pods, services         string
	resync                        string
	logFormat                     string
	verbosity                     int

	src, dst, proto string
	dport           uint
	dryRun          bool

	listen, tlsCert, tlsKey, webhook string
	// tried is that --config names a file to try, beside an agent whose
	// configuration comes from elsewhere.
	tried bool

	options        masq.Options
	resyncInterval time.Duration
}

// klogFlags are accepted for the sake of manifests that give them, and do
// nothing: the log goes to standard error. The value tells whether the flag
// is boolean.
var klogFlags = map[string]bool{
	"add_dir_header": true, "alsologtostderr": true, "log_backtrace_at": false, "log_dir": false,
	"log_file": false, "log_file_max_size": false, "logtostderr": true, "one_output": true,
	"skip_headers": true, "skip_log_headers": true, "stderrthreshold": false, "vmodule": false,
	"legacy_stderr_threshold_behavior": true, "log-flush-frequency": false,
}

// iptablesNames are no names for a chain: the agent would empty one of the
// nat table's own, or jump to a verdict.
var iptablesNames = []string{
	"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING", "ACCEPT", "DROP", "QUEUE", "RETURN",
	"MASQUERADE", "SNAT", "DNAT", "NETMAP", "REDIRECT", "MARK", "CONNMARK", "LOG", "NFLOG", "TRACE",
}

var errHelp = flag.ErrHelp

// errVersion is that --version was given, as upstream's agent accepts it.
var errVersion = errors.New("the version is asked for")

func newFlags() *flags {
	f := &flags{set: flag.NewFlagSet("ip-masq-agent", flag.ContinueOnError)}
	f.set.SetOutput(io.Discard)
	s := f.set
	s.StringVar(&f.config, "config", "/etc/config/ip-masq-agent", "config `file`, or a folder whose ip-masq* files are merged")
	s.StringVar(&f.configSource, "config-source", sourceFile, "where the configuration comes from: file, or through the Kubernetes API kube (a ConfigMap) or egress-nat-policy (EgressNATPolicies); the file is then the fallback until the API answers")
	s.StringVar(&f.nodeName, "node-name", "", "kube, egress-nat-policy: this node's `name` in the cluster; without it the variable NODE_NAME")
	s.StringVar(&f.readyFile, "ready-file", "", "`file` that is written when the rules are in the kernel for the first time; empty for none")
	s.StringVar(&f.nodes, "node-cidrs", "", "the cluster's node `ranges`, separated by commas; always exempt")
	s.StringVar(&f.pods, "pod-cidrs", "", "the cluster's Pod `ranges`; always exempt, and the only sources that are masqueraded")
	s.StringVar(&f.services, "service-cidrs", "", "the cluster's Service `ranges`; always exempt")
	s.BoolVar(&f.ipv6, "enable-ipv6", false, "make rules for IPv6 too")
	s.BoolVar(&f.reserved, "nomasq-all-reserved-ranges", false, "exempt the reserved ranges by default too (RFC 5735)")
	s.StringVar(&f.toPorts, "to-ports", "", "source `ports` to use, such as 60000-61000,61001-62000")
	s.BoolVar(&f.randomFully, "random-fully", true, "choose source ports fully at random")
	s.StringVar(&f.backend, "backend", "auto", "auto, nftables or iptables")
	s.StringVar(&f.compat, "compat", "", "upstream: masquerade whatever the source, and exempt only the user's own list")
	s.StringVar(&f.chain, "masq-chain", masq.DefaultChain, "the iptables `chain` (also of the agent that is taken over)")
	s.StringVar(&f.stateDir, "state-dir", "/var/lib/ip-masq-agent", "`folder` for the last good configuration; empty for none")
	s.StringVar(&f.httpAddress, "http-address", "127.0.0.1:9927", "`address` of /metrics, /healthz, /readyz and /status; empty for none")
	s.StringVar(&f.resync, "resync-interval", "", "check the rules this often, whatever the config says (seconds, or a duration such as 30s)")
	s.StringVar(&f.logFormat, "log-format", "text", "text or json")
	s.IntVar(&f.verbosity, "v", 0, "log `level`; 4 and above says what every reconciliation did")
	s.StringVar(&f.output, "output", "text", "what commands print: text or json")
	s.StringVar(&f.src, "src", "", "explain: the flow's source `address`")
	s.StringVar(&f.dst, "dst", "", "explain: the flow's destination `address`")
	s.StringVar(&f.proto, "proto", "", "explain: its `protocol`: tcp, udp, sctp, icmp, …")
	s.UintVar(&f.dport, "dport", 0, "explain: its destination `port`")
	s.BoolVar(&f.dryRun, "dry-run", false, "cleanup: only show what would be removed")
	s.StringVar(&f.configMap, "config-map", "kube-system/ip-masq-agent", "the ConfigMap with the configuration, as `namespace/name`; its key is config")
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "`file` that says how to reach the Kubernetes API (default: the Pod's service account)")
	s.StringVar(&f.listen, "listen", ":9443", "webhook: `address` for the API server")
	s.StringVar(&f.tlsCert, "tls-cert", "", "webhook: `file` with the certificate; read again when it is replaced")
	s.StringVar(&f.tlsKey, "tls-key", "", "webhook: `file` with its key")
	s.StringVar(&f.webhook, "webhook", "kube-system/ip-masq-agent-webhook", "webhook: `namespace/name` of the Secret for a CA of its own; the ValidatingWebhookConfiguration has the same name")
	for name, boolean := range klogFlags {
		if boolean {
			s.Bool(name, false, "")
		} else {
			s.String(name, "", "")
		}
	}
	return f
}

func (f *flags) printDefaults(w io.Writer) {
	f.set.VisitAll(func(fl *flag.Flag) {
		if _, klog := klogFlags[fl.Name]; klog {
			return
		}
		value, usage := flag.UnquoteUsage(fl)
		if fl.DefValue != "" && fl.DefValue != "false" && fl.DefValue != "0" {
			usage += " (" + fl.DefValue + ")"
		}
		fmt.Fprintf(w, "  --%-28s %s\n", strings.TrimSpace(fl.Name+" "+value), usage)
	})
}

// parse reads the command line. The commands other than run and lint start
// from the arguments of the agent that last ran with the same state folder.
func (inv *invocation) parse(command string, args []string) error {
	inv.flags = newFlags()
	rest, unknown, err := inv.flags.take(args)
	if err != nil {
		return err
	}
	if command == "plan" || command == "explain" || command == "status" || command == "cleanup" {
		// Unreadable state is told of by status; here it only means no saved flags.
		dir := inv.flags.stateDir
		if saved, err := agent.SavedArguments(dir); err == nil && dir != "" {
			inv.flags = newFlags()
			if _, _, err := inv.flags.take(append(slices.Clone(saved), args...)); err != nil {
				return fmt.Errorf("reading the flags of the agent that ran with --state-dir=%s (--state-dir= goes without them): %w", dir, err)
			}
			inv.flags.tryFile(args)
		}
	}
	if err := inv.flags.resolve(); err != nil {
		return err
	}
	inv.log = inv.flags.logger(inv.stderr, command)
	if len(rest) > 0 && command != "lint" {
		if command != "run" {
			return fmt.Errorf("unexpected argument %q; flags begin with --", rest[0])
		}
		if len(unknown) == 0 && slices.Contains(commandNames(), rest[0]) {
			return fmt.Errorf("the command comes first: ip-masq-agent %s, and then the flags", rest[0])
		}
		unknown = append(unknown, rest...)
	}
	inv.args, inv.arguments = rest, args
	slices.Sort(unknown)
	for _, u := range slices.Compact(unknown) {
		inv.log.Warn("unknown flag or argument ignored; see --help for those that are known", "argument", u)
	}
	return nil
}

// tryFile makes a command answer for the file that it was given, also when the
// agent that runs has its configuration from elsewhere.
func (f *flags) tryFile(args []string) {
	own := newFlags()
	if _, _, err := own.take(args); err != nil {
		return
	}
	given := map[string]bool{}
	own.set.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	if given["config"] && !given["config-source"] && f.configSource != sourceFile {
		f.configSource, f.tried = sourceFile, true
	}
}

// take parses the known flags and hands back the unknown ones, instead of
// giving up: an unknown flag once made every agent of a fleet crash-loop.
func (f *flags) take(args []string) (rest, unknown []string, err error) {
	var known []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			rest = append(rest, arg)
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if name == "help" || name == "h" {
			return nil, nil, errHelp
		}
		if name == "version" {
			return nil, nil, errVersion
		}
		fl := f.set.Lookup(name)
		switch {
		case fl == nil:
			unknown = append(unknown, arg)
			continue
		case !hasValue && !isBool(fl) && i+1 < len(args):
			known = append(known, arg, args[i+1])
			i++
		default:
			known = append(known, arg)
		}
	}
	return rest, unknown, f.set.Parse(known)
}

func isBool(fl *flag.Flag) bool {
	b, ok := fl.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// resolve checks the values and turns them into what the domain wants.
func (f *flags) resolve() error {
	var errs []error
	oneOf := func(name, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			errs = append(errs, fmt.Errorf("--%s %q: write one of: %s", name, value, strings.TrimSpace(strings.Join(allowed, " "))))
		}
	}
	oneOf("config-source", f.configSource, sourceFile, sourceKube, sourceEgressNAT)
	oneOf("backend", f.backend, "auto", "nftables", "iptables")
	oneOf("compat", f.compat, "", "upstream")
	oneOf("output", f.output, "text", "json")
	oneOf("log-format", f.logFormat, "text", "json")

	f.options = masq.Options{
		Chain: f.chain, ReservedRanges: f.reserved, IPv6: f.ipv6, RandomFully: f.randomFully,
		UpstreamCompat: f.compat == "upstream",
	}
	if slices.Contains(iptablesNames, f.chain) {
		errs = append(errs, fmt.Errorf("--masq-chain %q: this is one of iptables' own names; write a name for a chain that is ours alone, such as %s", f.chain, masq.DefaultChain))
	}
	if f.chain == "" || len(f.chain) > 28 || strings.ContainsAny(f.chain, " \t\n!\"'") || f.chain[0] == '-' {
		errs = append(errs, fmt.Errorf("--masq-chain %q: write an iptables chain name of 1 to 28 characters without blanks or quotes", f.chain))
	}
	ranges := func(name, list string) []masq.Range {
		parsed, err := parseRanges(name, list)
		errs = append(errs, err)
		return parsed
	}
	f.options.Cluster = masq.ClusterRanges{
		Node: ranges("node-cidrs", f.nodes), Pod: ranges("pod-cidrs", f.pods), Service: ranges("service-cidrs", f.services),
	}
	var err error
	f.options.Ports, err = parsePorts(f.toPorts)
	errs = append(errs, err)
	f.resyncInterval, err = parseResync(f.resync)
	errs = append(errs, err)
	return errors.Join(errs...)
}

func parseRanges(name, list string) ([]masq.Range, error) {
	var ranges []masq.Range
	for text := range strings.SplitSeq(list, ",") {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, fmt.Errorf("--%s: %q is not a range; write it like 10.0.0.0/8", name, text)
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("--%s: %q is IPv4 in IPv6 form; write the IPv4 range", name, text)
		case p.Masked() != p:
			return nil, fmt.Errorf("--%s: %q is not aligned; write %s", name, text, p.Masked())
		}
		ranges = append(ranges, masq.Range{Prefix: p, Origin: masq.Origin{Source: "flag --" + name}})
	}
	return ranges, nil
}

func parsePorts(list string) ([]masq.PortRange, error) {
	var ports []masq.PortRange
	for text := range strings.SplitSeq(list, ",") {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		firstText, lastText, isRange := strings.Cut(text, "-")
		if !isRange {
			lastText = firstText
		}
		first, err1 := strconv.ParseUint(firstText, 10, 16)
		last, err2 := strconv.ParseUint(lastText, 10, 16)
		if err1 != nil || err2 != nil || first == 0 || first > last {
			return nil, fmt.Errorf("--to-ports: %q is not a range of ports; write it like 60000-61000, lowest first, within 1 to 65535", text)
		}
		ports = append(ports, masq.PortRange{First: uint16(first), Last: uint16(last)})
	}
	return ports, nil
}

func parseResync(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	if seconds, err := strconv.Atoi(text); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= time.Second {
		return d, nil
	}
	return 0, fmt.Errorf("--resync-interval %q: write seconds, or a duration such as 30s, of at least a second", text)
}

// logger tells the running agent's doings; of the other commands, which print
// their answer, only what is wrong.
func (f *flags) logger(w io.Writer, command string) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelWarn}
	switch {
	case f.verbosity >= 4:
		options.Level = slog.LevelDebug
	case command == "run", command == "webhook":
		options.Level = slog.LevelInfo
	}
	if f.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
