package iptables

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"sordino/masq"
	"sordino/masq/xtables"
)

// The comments are upstream's, which people grep for.
const (
	jumpComment    = "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom %s chain"
	exemptComment  = "ip-masq-agent: local traffic is not subject to MASQUERADE"
	clusterComment = "ip-masq-agent: a range of the cluster is not subject to MASQUERADE"
	lastComment    = "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)"
	castComment    = "ip-masq-agent: broadcast, multicast and anycast are not subject to MASQUERADE"
	markComment    = "ip-masq-agent: kube-proxy masquerades this itself"
)

func (b *Backend) jump() string {
	return fmt.Sprintf("-A POSTROUTING -m comment --comment %s -m addrtype ! --dst-type LOCAL -j %s", strconv.Quote(fmt.Sprintf(jumpComment, b.chain)), b.chain)
}

// chainRules are the rules of our chain in the form that -S prints. With none
// of our own options they are exactly upstream's.
func chainRules(rs masq.RuleSet, fr masq.FamilyRules) ([]string, error) {
	var out []string
	add := func(match, comment, target string) {
		rule := "-A " + rs.Chain
		if match != "" {
			rule += " " + match
		}
		out = append(out, fmt.Sprintf("%s -m comment --comment %s %s", rule, strconv.Quote(comment), target))
	}
	pods := podMatches(rs, fr)
	if len(fr.Pods) > 0 && !rs.AnySource {
		casts := []string{"BROADCAST", "ANYCAST", "MULTICAST"}
		if fr.Family == masq.IPv6 {
			casts = casts[1:] // there is no broadcast in IPv6, and ip6tables refuses the word
		}
		for _, t := range casts {
			out = append(out, fmt.Sprintf("-A %s -m comment --comment %s -m addrtype --dst-type %s -j RETURN", rs.Chain, strconv.Quote(castComment), t))
		}
	}
	if rs.EnforceExempt {
		if len(fr.Pods) == 0 {
			return nil, errors.New("enforceNonMasquerade on the iptables backend needs the Pod ranges: give --pod-cidrs, or use --backend=nftables")
		}
		out = append(out, fmt.Sprintf("-A %s -m comment --comment %s -m mark --mark 0x4000/0x4000 -j RETURN", rs.Chain, strconv.Quote(markComment)))
	}
	for _, r := range fr.Returns.All() {
		comment := exemptComment
		if r.Cluster {
			comment = clusterComment
		}
		if rs.EnforceExempt {
			// NETMAP after routing maps a source range onto another; onto itself
			// it binds the flow to its own address.
			for _, iv := range fr.Pods {
				for _, pod := range iv.Prefixes() {
					add(join("-s "+pod.String(), destination(r)), comment, "-j NETMAP --to "+pod.String())
				}
			}
		}
		add(destination(r), comment, "-j RETURN")
	}
	interfaces := []string{""}
	if len(rs.OutputInterfaces) > 0 {
		interfaces = nil
		for _, i := range rs.OutputInterfaces {
			interfaces = append(interfaces, "-o "+i)
		}
	}
	target := "-j MASQUERADE"
	if fr.SNAT.IsValid() {
		target = "-j SNAT --to-source " + fr.SNAT.String()
	}
	random := ""
	if rs.RandomFully {
		random = " --random-fully"
	}
	for _, pod := range pods {
		for _, i := range interfaces {
			match := join(pod, i)
			for _, proto := range []string{"tcp", "udp", "sctp"} {
				remaining := 0
				for _, p := range rs.Ports {
					remaining += p.Size()
				}
				for n, p := range rs.Ports {
					statistic := ""
					if n < len(rs.Ports)-1 {
						statistic = "-m statistic --mode random --probability " + probability(p.Size(), remaining) + " "
					}
					remaining -= p.Size()
					withPorts := target + " --to-ports " + p.String()
					if fr.SNAT.IsValid() {
						withPorts = snatPorts(fr, p)
					}
					add(join(match, "-p "+proto), lastComment, statistic+withPorts+random)
				}
			}
			add(match, lastComment, target+random)
		}
	}
	return out, nil
}

func podMatches(rs masq.RuleSet, fr masq.FamilyRules) []string {
	var out []string
	if !rs.AnySource {
		for _, iv := range fr.Pods {
			for _, p := range iv.Prefixes() {
				out = append(out, "-s "+p.String())
			}
		}
	}
	if len(out) == 0 {
		return []string{""}
	}
	return out
}

func snatPorts(fr masq.FamilyRules, p masq.PortRange) string {
	address := fr.SNAT.String()
	if fr.Family == masq.IPv6 {
		address = "[" + address + "]"
	}
	return fmt.Sprintf("-j SNAT --to-source %s:%s", address, p)
}

// destination is empty for everything: -S does not print 0.0.0.0/0.
func destination(r masq.Return) string {
	if r.Prefix.Bits() == 0 {
		return ""
	}
	return "-d " + r.Prefix.String()
}

func join(matches ...string) string {
	return strings.Join(slices.DeleteFunc(matches, func(m string) bool { return m == "" }), " ")
}

// probability is the share as iptables prints it back: it keeps a fraction of
// 2^31 and shows eleven digits.
func probability(size, of int) string {
	fraction := math.Round(float64(size) / float64(of) * (1 << 31))
	return strconv.FormatFloat(fraction/(1<<31), 'f', 11, 64)
}

// sameRule compares by words, and numbers by value.
func sameRule(a, b string) bool {
	return slices.EqualFunc(xtables.Fields(a), xtables.Fields(b), func(x, y string) bool {
		if x == y {
			return true
		}
		fx, errX := strconv.ParseFloat(x, 64)
		fy, errY := strconv.ParseFloat(y, 64)
		return errX == nil && errY == nil && math.Abs(fx-fy) < 1e-8
	})
}
