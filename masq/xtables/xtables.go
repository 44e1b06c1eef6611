// Package xtables runs the node's iptables programs of either flavour.
//
// It owns how they are found and called: always for one chain, never for a
// whole table, always waiting for the xtables lock, inside the namespace it
// was opened in. It refuses to read more, because the tools load everything
// they print, and a node can have 50,000 service rules.
package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"sordino/internal/netns"
	"sordino/masq"
)

// Flavour tells the two kinds of iptables apart: the kernel keeps their rules
// in different places, and each program sees its own only.
type Flavour string

// The flavours.
const (
	Legacy Flavour = "legacy"
	NFT    Flavour = "nft"
)

// lockSeconds is how long a program waits for the xtables lock.
const lockSeconds = "10"

// Programs are the programs of one flavour.
type Programs struct {
	Flavour Flavour
	paths   map[string]string // "iptables", "iptables-restore", "ip6tables", …
	version string
	ns      *netns.NS
}

// Find looks for both flavours on the PATH, to be run in the given namespace.
// Programs that only have their plain name belong to the flavour that they
// say they are of.
func Find(ctx context.Context, ns *netns.NS) map[Flavour]*Programs {
	found := map[Flavour]*Programs{}
	for _, flavour := range []Flavour{Legacy, NFT} {
		if p := find(ctx, ns, flavour, "-"+string(flavour)); p != nil {
			found[flavour] = p
		}
	}
	if flavour, ok := Default(ctx); ok && found[flavour] == nil {
		if p := find(ctx, ns, flavour, ""); p != nil {
			found[flavour] = p
		}
	}
	return found
}

func find(ctx context.Context, ns *netns.NS, flavour Flavour, suffix string) *Programs {
	p := &Programs{Flavour: flavour, paths: map[string]string{}, ns: ns}
	for _, family := range []string{"iptables", "ip6tables"} {
		tool, err := exec.LookPath(family + suffix)
		restore, restoreErr := exec.LookPath(family + suffix + "-restore")
		if err == nil && restoreErr == nil {
			p.paths[family], p.paths[family+"-restore"] = tool, restore
		}
	}
	if p.paths["iptables"] == "" {
		return nil
	}
	p.version, _ = versionOf(ctx, p.paths["iptables"])
	return p
}

// Default is the flavour of the program called iptables.
func Default(ctx context.Context) (Flavour, bool) {
	path, err := exec.LookPath("iptables")
	if err != nil {
		return "", false
	}
	text, err := versionOf(ctx, path)
	if err != nil {
		return "", false
	}
	if strings.Contains(text, "nf_tables") {
		return NFT, true
	}
	return Legacy, true
}

// versionOf is a text like "iptables v1.8.9 (nf_tables)".
func versionOf(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	return strings.TrimSpace(string(out)), err
}

// RandomFully reports whether MASQUERADE knows --random-fully, since 1.6.2.
func (p *Programs) RandomFully() bool {
	var major, minor, patch int
	_, version, _ := strings.Cut(p.version, " v")
	_, _ = fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch)
	return major > 1 || major == 1 && (minor > 6 || minor == 6 && patch >= 2)
}

// Has reports whether there are programs for the family.
func (p *Programs) Has(family masq.Family) bool { return p.paths[program(family)] != "" }

func program(family masq.Family) string {
	if family == masq.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// List returns the rules of one chain of the nat table as "-S" prints them,
// without the line that declares the chain. exists is false when there is no
// such chain.
func (p *Programs) List(ctx context.Context, family masq.Family, chain string) (rules []string, exists bool, err error) {
	if p.Flavour == Legacy {
		if inUse, err := LegacyInUse(p.ns, family); err != nil || !inUse {
			return nil, false, err // asking would load the table, and hook it
		}
	}
	out, err := p.run(ctx, program(family), "", "-w", lockSeconds, "-t", "nat", "-S", chain)
	var failed *exec.ExitError
	if errors.As(err, &failed) && slices.ContainsFunc(absent, func(text string) bool { return strings.Contains(err.Error(), text) }) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("listing chain %s: %w", chain, err)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "-A ") {
			rules = append(rules, strings.TrimRight(line, "\n"))
		}
	}
	return rules, true, nil
}

// absent are the ways in which the programs say that there is no such chain;
// the last is what the nft flavour says of a table that is not there either.
var absent = []string{"No chain", "does not exist", "is incompatible"}

// LegacyInUse reports whether the kernel has a legacy nat table of the family
// in the namespace. Legacy programs make one as soon as they are asked. The
// kernel tells root alone: for others the error is fs.ErrPermission.
func LegacyInUse(ns *netns.NS, family masq.Family) (bool, error) {
	file := "ip_tables_names"
	if family == masq.IPv6 {
		file = "ip6_tables_names"
	}
	var names []byte
	err := ns.Do(func() (err error) {
		names, err = os.ReadFile("/proc/thread-self/net/" + file)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // nobody has loaded legacy iptables
	}
	return slices.Contains(strings.Fields(string(names)), "nat"), err
}

// Counters is List with "-c packets bytes" in each rule.
func (p *Programs) Counters(ctx context.Context, family masq.Family, chain string) (string, error) {
	return p.run(ctx, program(family), "", "-w", lockSeconds, "-t", "nat", "-v", "-S", chain)
}

// Restore applies commands to the nat table in one transaction, leaving what
// they do not name alone.
func (p *Programs) Restore(ctx context.Context, family masq.Family, commands []string) error {
	input := "*nat\n" + strings.Join(commands, "\n") + "\nCOMMIT\n"
	_, err := p.run(ctx, program(family)+"-restore", input, "-w", lockSeconds, "--noflush")
	return err
}

func (p *Programs) run(ctx context.Context, name, input string, args ...string) (string, error) {
	path := p.paths[name]
	if path == "" {
		return "", fmt.Errorf("there is no %s program of the %s flavour on this node; install it or use --backend=nftables", name, p.Flavour)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := p.ns.Do(cmd.Start); err != nil {
		return "", fmt.Errorf("running %s: %w", path, err)
	}
	if err := cmd.Wait(); err != nil {
		message := strings.TrimSpace(stderr.String())
		if strings.Contains(message, "lock") {
			message += " (somebody else holds the xtables lock)"
		}
		return "", fmt.Errorf("running %s: %w: %s", path, err, message)
	}
	return stdout.String(), nil
}

// Fields splits a rule as a shell would, with the quotes that -S prints.
func Fields(rule string) []string {
	var out []string
	var word strings.Builder
	inWord, quoted := false, false
	for i := 0; i < len(rule); i++ {
		c := rule[i]
		switch {
		case c == '\\' && quoted && i+1 < len(rule):
			i++
			word.WriteByte(rule[i])
		case c == '"':
			quoted, inWord = !quoted, true
		case c == ' ' && !quoted:
			if inWord {
				out = append(out, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		out = append(out, word.String())
	}
	return out
}

// Option returns the word after the first of the names in a split rule.
func Option(fields []string, names ...string) string {
	for i, f := range fields[:max(len(fields)-1, 0)] {
		for _, n := range names {
			if f == n {
				return fields[i+1]
			}
		}
	}
	return ""
}
