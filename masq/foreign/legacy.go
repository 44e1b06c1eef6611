package foreign

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sordino/masq"
	"sordino/masq/xtables"
)

// legacyEvaluator evaluates legacy iptables' rules, from their text.
type legacyEvaluator struct {
	ctx      context.Context
	programs *xtables.Programs
	flow     masq.Flow
	family   masq.Family
	local    map[netip.Addr]uint32
}

func (l *legacyEvaluator) rules(chain string) ([]rule, error) {
	lines, _, err := l.programs.List(l.ctx, l.family, chain)
	if err != nil {
		return nil, err
	}
	var out []rule
	for i, line := range lines {
		r := l.rule(xtables.Fields(line))
		r.where = fmt.Sprintf("iptables-legacy nat %s rule %d", chain, i+1)
		r.text = line
		out = append(out, r)
	}
	return out, nil
}

// rule reads the options one by one; what it does not know makes the match
// uncertain, never certain.
func (l *legacyEvaluator) rule(fields []string) rule {
	r := rule{match: yes}
	invert := false
	test := func(is bool) {
		if is == invert {
			r.match = no
		}
	}
	unsure := func(what string) {
		r.match = and(r.match, maybe)
		r.unknown = append(r.unknown, what)
	}
	for i := 0; i < len(fields); i++ {
		option, argument := fields[i], ""
		if i+1 < len(fields) {
			argument = fields[i+1]
		}
		took := 1
		switch option {
		case "-A", "-m", "--comment", "-c":
			if option == "-c" {
				took = 2
			}
		case "!":
			invert = true
			continue
		case "-s", "-d":
			p, err := netip.ParsePrefix(argument)
			a := l.flow.Src
			if option == "-d" {
				a = l.flow.Dst
			}
			if err != nil {
				unsure(option + " " + argument)
			} else {
				test(p.Contains(a))
			}
		case "-p":
			if l.flow.Protocol == "" {
				unsure("the protocol")
			} else {
				test(strings.TrimPrefix(argument, "ipv6-") == strings.TrimSuffix(l.flow.Protocol, "v6") || argument == l.flow.Protocol)
			}
		case "-o":
			if l.flow.OutputInterface == "" {
				unsure("the outgoing interface")
			} else if prefix, wild := strings.CutSuffix(argument, "+"); wild {
				test(strings.HasPrefix(l.flow.OutputInterface, prefix))
			} else {
				test(argument == l.flow.OutputInterface)
			}
		case "--dport":
			first, last, isRange := strings.Cut(argument, ":")
			if !isRange {
				last = first
			}
			a, errA := strconv.Atoi(first)
			b, errB := strconv.Atoi(last)
			if l.flow.DstPort == 0 || errA != nil || errB != nil {
				unsure("the destination port")
			} else {
				test(int(l.flow.DstPort) >= a && int(l.flow.DstPort) <= b)
			}
		case "--src-type", "--dst-type":
			a := l.flow.Src
			if option == "--dst-type" {
				a = l.flow.Dst
			}
			test(strings.Contains(","+argument+",", ","+typeNames[addressType(a, l.local)]+","))
		case "--mark":
			unsure(markUnknown)
		case "-j", "-g":
			l.target(&r, option, argument)
			return r // what follows are the target's own options
		default:
			unsure("iptables option " + option)
			if strings.HasPrefix(argument, "-") || argument == "!" {
				took = 0
			}
		}
		invert = false
		i += took
	}
	return r
}

var typeNames = map[uint32]string{unix.RTN_LOCAL: "LOCAL", unix.RTN_MULTICAST: "MULTICAST", unix.RTN_BROADCAST: "BROADCAST", unix.RTN_UNICAST: "UNICAST", unix.RTN_ANYCAST: "ANYCAST"}

func (l *legacyEvaluator) target(r *rule, option, name string) {
	switch name {
	case "MASQUERADE":
		r.verdict, r.effect = translate, "masquerade"
	case "SNAT", "NETMAP":
		r.verdict, r.effect = translate, "translate (iptables "+name+")"
	case "RETURN":
		r.verdict = leave
	case "ACCEPT", "DROP":
		r.verdict = finish
	case "LOG", "MARK", "CONNMARK", "TRACE", "NFLOG":
	default:
		r.verdict, r.target = jump, name
		if option == "-g" {
			r.verdict = gotoChain
		}
	}
}
