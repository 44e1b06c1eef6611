package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
)

// version is set by the build.
var version = "devel"

// Exit statuses, the same for all commands.
const (
	exitOK      = 0
	exitError   = 1 // it could not be done
	exitChanges = 2 // plan: the kernel would change; any command: wrong usage
)

// invocation is one call of the program.
type invocation struct {
	flags          *flags
	args           []string // what is left after the flags
	arguments      []string // the command line after the command, to be remembered
	stdin          io.Reader
	stdout, stderr io.Writer
	log            *slog.Logger
}

// exit is an error that is only an exit status: everything is said already.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

type command struct {
	name, arguments, summary string
	run                      func(context.Context, *invocation) error
}

var commands = []command{
	{"run", "", "keep the kernel's rules as the configuration says (the default)", runAgent},
	{"lint", "FILE…", "check config files (- is standard input); exit 1 when one would be rejected", lint},
	{"plan", "", "show what would change in this node's kernel; exit 0 nothing, 2 changes", plan},
	{"explain", "--src A --dst B", "say what happens to a flow, which line decided, and which foreign rule interferes", explain},
	{"status", "", "show what the running agent does and what the kernel holds", status},
	{"cleanup", "", "remove everything that is ours from the kernel (--dry-run only shows it; --backend=nftables leaves iptables alone)", cleanup},
	{"webhook", "", "answer the API server's admission reviews: refuse a configuration that lint would reject", webhook},
	{"gate", "--ready-file FILE", "wait until the agent of this node has written its ready file: an init container for Pods that need it", gate},
	{"version", "", "print the version", printVersion},
}

func commandNames() []string {
	return []string{"run", "lint", "plan", "explain", "status", "cleanup", "gate", "webhook", "version", "help"}
}

// run is the whole program; it returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	name := "run"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	if name == "help" {
		printHelp(stdout)
		return exitOK
	}
	for _, c := range commands {
		if c.name != name {
			continue
		}
		inv := &invocation{stdin: stdin, stdout: stdout, stderr: stderr}
		err := inv.parse(name, args)
		if errors.Is(err, errHelp) {
			printHelp(stdout)
			return exitOK
		}
		if errors.Is(err, errVersion) {
			inv.flags = newFlags()
			err, c.run = nil, printVersion
		}
		if err != nil {
			fmt.Fprintf(stderr, "ip-masq-agent %s: %v\n", name, err)
			return exitChanges
		}
		err = c.run(ctx, inv)
		var status exit
		switch {
		case err == nil:
			return exitOK
		case errors.As(err, &status):
			return int(status)
		}
		fmt.Fprintf(stderr, "ip-masq-agent %s: %v\n", name, err)
		return exitError
	}
	fmt.Fprintf(stderr, "ip-masq-agent: there is no command %q; see ip-masq-agent --help\n", name)
	return exitChanges
}

// print writes v as JSON when that is asked for, else lets text write.
func (inv *invocation) print(v any, text func(io.Writer)) error {
	if inv.flags.output == "json" {
		e := json.NewEncoder(inv.stdout)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	text(inv.stdout)
	return nil
}

func printVersion(_ context.Context, inv *invocation) error {
	v := map[string]string{"version": version}
	if info, ok := debug.ReadBuildInfo(); ok {
		v["go"] = info.GoVersion
	}
	return inv.print(v, func(w io.Writer) { fmt.Fprintf(w, "ip-masq-agent %s (%s)\n", version, v["go"]) })
}

func printHelp(w io.Writer) {
	fmt.Fprint(w, `ip-masq-agent gives Pods the address of their node (many to one) for every
destination outside the configured ranges. It is a drop-in for
kubernetes-sigs/ip-masq-agent.

Usage: ip-masq-agent [COMMAND] [FLAGS]

Commands:
`)
	for _, c := range commands {
		fmt.Fprintf(w, "  %-26s %s\n", strings.TrimSpace(c.name+" "+c.arguments), c.summary)
	}
	fmt.Fprint(w, "\nFlags (one or two dashes; unknown ones are warned about and ignored):\n")
	newFlags().printDefaults(w)
	fmt.Fprint(w, `
plan, explain, status and cleanup start from the flags of the agent that last
ran with the same --state-dir, so that they answer for it; flags given to them
stand above those.

Configuration (YAML or JSON, all keys optional):
  nonMasqueradeCIDRs   destinations that see the Pod's address; replaces the defaults
                       10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16
  masqLinkLocal        also masquerade to 169.254.0.0/16 (false)
  masqLinkLocalIPv6    also masquerade to fe80::/10 (false)
  resyncInterval       check the rules at least this often (60s)
  cidrLimit            how many ranges nonMasqueradeCIDRs may hold (64)
  masqueradeCIDRs      masquerade these; the longest prefix of both lists wins, a tie
                       masquerades; without nonMasqueradeCIDRs only these are masqueraded
  nodeCIDRs, podCIDRs, serviceCIDRs
                       the cluster's own ranges, always exempt (also as flags)
  enforceNonMasquerade keep other agents from masquerading exempt traffic (false)
  outputInterfaces     masquerade only what leaves by these interfaces
  snatAddress          the node's own address in this range (or this address) instead of
                       the outgoing interface's

Examples:
  ip-masq-agent lint ip-masq-agent.yaml
  ip-masq-agent plan --config ip-masq-agent.yaml --pod-cidrs 192.168.0.0/16
  ip-masq-agent explain --src 192.168.1.2 --dst 203.0.113.10 --proto tcp --dport 443
`)
}
