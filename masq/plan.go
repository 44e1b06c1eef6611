package masq

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// FindingCode names a kind of finding; metrics and scripts match on it.
type FindingCode string

// The findings that Plan can make.
const (
	// PodRangesUnknown: no Pod range was given, so every forwarded source counts.
	PodRangesUnknown FindingCode = "PodRangesUnknown"
	// ClusterRangeNotListed: the user's list alone does not cover a range of
	// the cluster. It is exempt all the same, unless upstream's behaviour was
	// asked for.
	ClusterRangeNotListed FindingCode = "ClusterRangeNotListed"
	// PodsElsewhere: Pods of this node may have other addresses than those that
	// are taken for Pods', or than those that the cluster has set aside for them.
	PodsElsewhere FindingCode = "PodsElsewhere"
	// LocalRouteMasqueraded: the node has Pods behind a route that is not
	// exempt, so traffic between its own Pods is translated.
	LocalRouteMasqueraded FindingCode = "LocalRouteMasqueraded"
)

// Finding is something that the person who wrote the configuration should
// know, though the plan stands.
type Finding struct {
	Code    FindingCode `json:"code"`
	Message string      `json:"message"`
	Origin  Origin      `json:"origin"`
}

// Plan turns a configuration into the rule set that the kernel is to hold. It
// is a pure function: the same input gives the same output, and the order in
// which ranges are listed changes nothing but FamilyRules.Returns.
//
// It fails only when the configuration cannot be kept on this node.
func Plan(cfg Config, opts Options, facts Facts) (RuleSet, []Finding, error) {
	rs := RuleSet{
		Chain:            opts.Chain,
		AnySource:        opts.UpstreamCompat,
		EnforceExempt:    cfg.EnforceNonMasquerade,
		OutputInterfaces: slices.Compact(slices.Sorted(slices.Values(cfg.OutputInterfaces))),
		RandomFully:      opts.RandomFully,
		Ports:            slices.Clone(opts.Ports),
	}
	cluster := ClusterOf(cfg, opts)
	var findings []Finding
	families := []Family{IPv4}
	if opts.IPv6 {
		families = append(families, IPv6)
	}
	for _, family := range families {
		fr := FamilyRules{Family: family}
		if !opts.UpstreamCompat {
			fr.Pods = mergePrefixes(cluster.Pod, family)
		}
		snat, err := snatAddress(cfg.SNATAddress, family, facts)
		if err != nil {
			return RuleSet{}, nil, err
		}
		fr.SNAT = snat

		var always []Interval
		if !opts.UpstreamCompat {
			always = mergePrefixes(cluster.All(), family)
		}
		withRoom := exemptByLists(cfg, family, len(always))
		listed := withRoom[len(always):]
		findings = append(findings, clusterFindings(cfg, opts, family, listed, cluster)...)
		fr.Returns = Returns{lists: lists(cfg, family), family: family}
		if !opts.UpstreamCompat {
			fr.Returns.cluster = notCovered(listed, family, cluster)
		}
		fr.Exempt = union(withRoom, len(always), always)
		if len(cfg.Masquerade) > 0 {
			fr.Returns = Returns{exempt: fr.Exempt}
		}
		rs.Families = append(rs.Families, fr)

		findings = append(findings, localRouteFindings(family, fr, facts)...)
		if !opts.UpstreamCompat {
			findings = append(findings, podsElsewhere(family, cluster, facts)...)
		}
	}
	if len(cluster.Pod) == 0 && !opts.UpstreamCompat {
		message := "the cluster's Pod ranges are not known"
		for i, r := range cluster.ThisNodesPods {
			if i == 0 {
				message += ", but for those of this node:"
			}
			message += fmt.Sprintf(" %s (from %s)", r.Prefix, r.Origin)
		}
		findings = append(findings, Finding{
			Code:    PodRangesUnknown,
			Message: message + ", so every source that is not this node's own address counts as a Pod; give --pod-cidrs (or the key podCIDRs) to translate Pods only",
			Origin:  Origin{Source: "flag --pod-cidrs"},
		})
	}
	return rs, findings, nil
}

// ClusterOf joins the cluster's ranges from flags and from the config.
func ClusterOf(cfg Config, opts Options) ClusterRanges {
	return ClusterRanges{
		Node:    slices.Concat(opts.Cluster.Node, cfg.Cluster.Node),
		Pod:     slices.Concat(opts.Cluster.Pod, cfg.Cluster.Pod),
		Service: slices.Concat(opts.Cluster.Service, cfg.Cluster.Service),

		ThisNodesPods: slices.Concat(opts.Cluster.ThisNodesPods, cfg.Cluster.ThisNodesPods),
	}
}

// masqueradeOnly reports whether only the listed destinations are translated.
func masqueradeOnly(cfg Config) bool {
	return len(cfg.Masquerade) > 0 && !cfg.NonMasqueradeGiven
}

// list is ranges that ask for the same.
type list struct {
	ranges     []Range
	masquerade bool
}

// lists are what decides by longest prefix: link-local, the non-masquerade
// list and the masquerade list. They hold ranges of both families.
func lists(cfg Config, family Family) []list {
	var out []list
	if exemptLinkLocal(cfg, family) {
		out = append(out, list{ranges: []Range{{family.LinkLocal(), Origin{Source: "link-local"}}}})
	}
	if !masqueradeOnly(cfg) {
		out = append(out, list{ranges: cfg.NonMasquerade})
	}
	return append(out, list{cfg.Masquerade, true})
}

func exemptLinkLocal(cfg Config, family Family) bool {
	if family == IPv4 {
		return !cfg.MasqLinkLocal
	}
	return !cfg.MasqLinkLocalIPv6
}

// entry is a listed range in numbers. Unlike a netip.Prefix it has no pointer
// for the collector to follow, and compares in a tenth of the time.
type entry struct {
	first      number
	bits       int16
	masquerade bool
}

// compare puts the outer one first where entries nest. The later one of a tie
// is the inner one, and masquerades.
func (e entry) compare(f entry) int {
	switch {
	case e.first != f.first:
		return e.first.compare(f.first)
	case e.bits != f.bits:
		return int(e.bits - f.bits)
	case e.masquerade == f.masquerade:
		return 0
	case f.masquerade:
		return -1
	}
	return 1
}

// entries are the list's ranges of the family in order. Long lists are written
// by programs, in order mostly.
func (l list) entries(family Family) []entry {
	out := make([]entry, 0, len(l.ranges))
	sorted := true
	for i := range l.ranges {
		p := l.ranges[i].Prefix
		if a := p.Addr(); FamilyOf(a) == family {
			e := entry{numberOf(a), int16(p.Bits()), l.masquerade}
			sorted = sorted && (len(out) == 0 || out[len(out)-1].compare(e) <= 0)
			out = append(out, e)
		}
	}
	if !sorted {
		slices.SortFunc(out, entry.compare)
	}
	return out
}

// takeLeast takes the least entry off the ordered lists, and those behind it
// in its list that come before the other lists' entries.
func takeLeast(queues [][]entry) []entry {
	least := 0
	for i, q := range queues {
		if len(q) > 0 && (len(queues[least]) == 0 || q[0].compare(queues[least][0]) < 0) {
			least = i
		}
	}
	run := queues[least]
	for i, q := range queues {
		if i != least && len(q) > 0 {
			n, _ := slices.BinarySearchFunc(run, q[0], entry.compare)
			run = run[:max(n, 1)]
		}
	}
	queues[least] = queues[least][len(run):]
	return run
}

// exemptByLists applies "the longest prefix wins, a tie masquerades" to the
// whole address space at once: prefixes nest or are disjoint, so one sweep in
// address order with a stack of the open ones sees each address's longest.
//
// The result begins with room for so many intervals more; see union.
func exemptByLists(cfg Config, family Family, room int) []Interval {
	var queues [][]entry
	most := 1 // an interval ends or begins with an entry
	for _, l := range lists(cfg, family) {
		queues = append(queues, l.entries(family))
		most += len(queues[len(queues)-1])
	}
	type open struct {
		last   number
		exempt bool
	}
	stack := []open{{number{}.withHostBits(family.Bits()), masqueradeOnly(cfg)}}
	exempt := make([]Interval, room, room+most)
	cursor, joined, ended := number{}, number{}, false
	// emit gives [cursor, last] the verdict of the innermost open prefix.
	emit := func(last number) {
		if stack[len(stack)-1].exempt && cursor.compare(last) <= 0 {
			if n := len(exempt); n > room && joined == cursor {
				exempt[n-1].Last = last.addr(family)
			} else {
				exempt = append(exempt, Interval{cursor.addr(family), last.addr(family)})
			}
			joined = last.next()
		}
		cursor = last.next()
		ended = last == stack[0].last
	}
	for run := takeLeast(queues); len(run) > 0; run = takeLeast(queues) {
		for _, e := range run {
			for stack[len(stack)-1].last.compare(e.first) < 0 {
				emit(stack[len(stack)-1].last)
				stack = stack[:len(stack)-1]
			}
			if cursor.compare(e.first) < 0 {
				emit(e.first.prev())
			}
			stack = append(stack, open{e.first.withHostBits(family.Bits() - int(e.bits)), !e.masquerade})
		}
	}
	for ; len(stack) > 0 && !ended; stack = stack[:len(stack)-1] {
		emit(stack[len(stack)-1].last)
	}
	return exempt
}

// notCovered returns the cluster's ranges that a merged list does not hold
// wholly, in order.
func notCovered(listed []Interval, family Family, cluster ClusterRanges) []netip.Prefix {
	var missing []netip.Prefix
	for _, r := range cluster.All() {
		if FamilyOf(r.Prefix.Addr()) == family && !covers(listed, r.Prefix) {
			missing = append(missing, r.Prefix)
		}
	}
	slices.SortFunc(missing, netip.Prefix.Compare)
	return slices.Compact(missing)
}

func clusterFindings(cfg Config, opts Options, family Family, listed []Interval, cluster ClusterRanges) []Finding {
	var out []Finding
	check := func(kind string, ranges []Range) {
		for _, r := range ranges {
			if FamilyOf(r.Prefix.Addr()) != family || covers(listed, r.Prefix) {
				continue
			}
			outcome := "it is exempt all the same, as a range of the cluster"
			if opts.UpstreamCompat {
				outcome = "with --compat=upstream it is masqueraded, which breaks traffic inside the cluster"
			}
			advice := "add it to the list"
			if masqueradeOnly(cfg) {
				advice = "take it out of masqueradeCIDRs"
			}
			out = append(out, Finding{
				Code: ClusterRangeNotListed,
				Message: fmt.Sprintf("nonMasqueradeCIDRs does not fully cover the %s CIDR range %s (from %s): %s; %s",
					kind, r.Prefix, r.Origin, outcome, advice),
				Origin: r.Origin,
			})
		}
	}
	check("node", cluster.Node)
	check("Pod", cluster.Pod)
	check("Pod", cluster.ThisNodesPods)
	check("Service", cluster.Service)
	return out
}

func localRouteFindings(family Family, fr FamilyRules, facts Facts) []Finding {
	exposed := routesOutside(family, fr.Exempt, facts)
	if exposed == "" {
		return nil
	}
	return []Finding{{
		Code: LocalRouteMasqueraded,
		Message: fmt.Sprintf("nonMasqueradeCIDRs does not fully cover the Pod CIDR ranges: this node routes to %s and none of it is exempt, so traffic between its Pods gets the node's address; add the cluster's node and Pod ranges to the list, or give --node-cidrs and --pod-cidrs",
			exposed),
		Origin: Origin{Source: "node routes"},
	}}
}

// routesOutside names the local routes to anything outside of the ranges; empty
// when there are none.
func routesOutside(family Family, ranges []Interval, facts Facts) string {
	var outside []string
	for _, route := range facts.LocalRoutes {
		if FamilyOf(route.Prefix.Addr()) == family && !covers(ranges, route.Prefix) {
			outside = append(outside, fmt.Sprintf("%s dev %s", route.Prefix, route.Interface))
		}
	}
	const show = 4
	more := ""
	if len(outside) > show {
		more = fmt.Sprintf(" and %d more", len(outside)-show)
		outside = outside[:show]
	}
	return strings.Join(outside, ", ") + more
}

// podsElsewhere compares what the cluster has set aside for this node's Pods
// with what was given, and with what the node routes to.
func podsElsewhere(family Family, cluster ClusterRanges, facts Facts) []Finding {
	aside := mergePrefixes(cluster.ThisNodesPods, family)
	if len(aside) == 0 {
		return nil
	}
	given := mergePrefixes(cluster.Pod, family)
	if len(given) == 0 {
		outside := routesOutside(family, aside, facts)
		if outside == "" {
			return nil
		}
		return []Finding{{
			Code: PodsElsewhere,
			Message: fmt.Sprintf("this node routes to %s, outside of the Pod ranges that are set aside for it (%s): if these are Pods, the CNI gives them other addresses, and those of other nodes are not known to be Pods; give the CNI's ranges as --pod-cidrs (or the key podCIDRs)",
				outside, cluster.ThisNodesPods[0].Origin),
			Origin: Origin{Source: "node routes"},
		}}
	}
	var out []Finding
	for _, r := range cluster.ThisNodesPods {
		if FamilyOf(r.Prefix.Addr()) == family && !covers(given, r.Prefix) {
			out = append(out, Finding{
				Code: PodsElsewhere,
				Message: fmt.Sprintf("the Pod ranges that were given (from %s) do not hold %s (from %s): Pods with addresses in it would not be masqueraded; add it, unless the CNI gives Pods other addresses",
					cluster.Pod[0].Origin, r.Prefix, r.Origin),
				Origin: r.Origin,
			})
		}
	}
	return out
}

// snatAddress picks the node's own address inside the wished-for prefix: the
// lowest one, so that the choice does not move.
func snatAddress(wanted []Range, family Family, facts Facts) (netip.Addr, error) {
	var chosen netip.Addr
	for _, w := range wanted {
		if FamilyOf(w.Prefix.Addr()) != family {
			continue
		}
		var have []string
		for _, a := range facts.Addresses {
			addr := a.Prefix.Addr()
			if FamilyOf(addr) != family {
				continue
			}
			have = append(have, addr.String())
			if w.Prefix.Contains(addr) && (!chosen.IsValid() || addr.Less(chosen)) {
				chosen = addr
			}
		}
		if !chosen.IsValid() {
			slices.Sort(have)
			return netip.Addr{}, &SNATAddressError{Wanted: w, Have: have}
		}
	}
	return chosen, nil
}

// SNATAddressError says that the node has no address inside the configured
// snatAddress.
type SNATAddressError struct {
	Wanted Range
	Have   []string
}

func (e *SNATAddressError) Error() string {
	return fmt.Sprintf("%s: snatAddress %s: this node has no address in it; it has %s. Write one of them, or a range that holds one on every node",
		e.Wanted.Origin, e.Wanted.Prefix, strings.Join(e.Have, ", "))
}
