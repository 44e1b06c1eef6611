package configfile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sordino/masq"
)

// Settings are what the command line decides about decoding.
type Settings struct {
	// ReservedRanges adds the reserved ranges to the defaults.
	ReservedRanges bool
	// IPv6 accepts IPv6 ranges in the lists.
	IPv6 bool
}

// parsed is what one file says; what it does not say is nil.
type parsed struct {
	nonMasquerade, masquerade          *[]masq.Range
	node, pod, service, snat           []masq.Range
	cidrLimit                          *int
	resync                             *time.Duration
	linkLocal, linkLocalIPv6, enforced bool
	interfaces                         []string
	listOrigin                         masq.Origin // of nonMasqueradeCIDRs
}

// reader turns one tree into what it says, collecting every complaint.
type reader struct {
	file     string
	settings Settings
	out      parsed
	warnings []Warning
	problems []error
}

// keys are all that a configuration may hold, in the spelling we print.
var keys = map[string]func(*reader, value){
	"nonMasqueradeCIDRs": func(r *reader, v value) {
		r.out.listOrigin = v.in(r.file)
		list := r.ranges(v, "nonMasqueradeCIDRs", r.settings.IPv6)
		r.out.nonMasquerade = &list
	},
	"masqueradeCIDRs": func(r *reader, v value) {
		if v.kind == null {
			r.warn(v, "masqueradeCIDRs has no value and counts as not given")
			return
		}
		list := r.ranges(v, "masqueradeCIDRs", r.settings.IPv6)
		if v.kind == listKind && len(v.items) == 0 {
			r.problem(v, ReasonType, "masqueradeCIDRs is empty, so nothing would be masqueraded", "list the destinations to masquerade, or leave the key out")
		}
		r.out.masquerade = &list
	},
	"nodeCIDRs":            func(r *reader, v value) { r.out.node = r.ranges(v, "nodeCIDRs", true) },
	"podCIDRs":             func(r *reader, v value) { r.out.pod = r.ranges(v, "podCIDRs", true) },
	"serviceCIDRs":         func(r *reader, v value) { r.out.service = r.ranges(v, "serviceCIDRs", true) },
	"masqLinkLocal":        func(r *reader, v value) { r.out.linkLocal = r.boolean(v, "masqLinkLocal") },
	"masqLinkLocalIPv6":    func(r *reader, v value) { r.out.linkLocalIPv6 = r.boolean(v, "masqLinkLocalIPv6") },
	"enforceNonMasquerade": func(r *reader, v value) { r.out.enforced = r.boolean(v, "enforceNonMasquerade") },
	"cidrLimit":            (*reader).cidrLimit,
	"resyncInterval":       (*reader).resyncInterval,
	"outputInterfaces":     (*reader).outputInterfaces,
	"snatAddress":          (*reader).snatAddress,
}

// listKind is list, where a parameter has that name.
const listKind = list

func (r *reader) read(v value) {
	switch v.kind {
	case null:
		return
	case mapping:
	default:
		r.problem(v, ReasonType, fmt.Sprintf("the configuration is %s, not a mapping of keys", v.kind), "write keys such as nonMasqueradeCIDRs: at the beginning of a line")
		return
	}
	r.manifest(v)
	seen := map[string]int32{}
	last := map[string]value{}
	var order []string
	for key, item := range v.entries() {
		name := knownKey(key.text)
		if name == "" {
			r.warn(key, fmt.Sprintf("unknown key %q is ignored%s", key.text, suggestion(key.text)))
			continue
		}
		if first, twice := seen[name]; twice {
			r.warn(key, fmt.Sprintf("%s is given twice (first at line %d); the last one counts", name, first))
		} else {
			order = append(order, name)
		}
		seen[name], last[name] = key.line, item
	}
	for _, name := range order {
		keys[name](r, last[name])
	}
}

// manifest notices the mistakes that make a configuration silently have no
// effect: upstream ignores the unknown keys and uses its defaults.
func (r *reader) manifest(v value) {
	has := func(name string) (value, bool) {
		for key := range v.entries() {
			if key.text == name {
				return key, true
			}
		}
		return value{}, false
	}
	if key, ok := has("apiVersion"); ok {
		r.warn(key, "this is a whole Kubernetes manifest, so none of it takes effect; the file must hold only the text under data.config")
	} else if key, ok := has("config"); ok {
		r.warn(key, `the settings stand under a key "config", so none of them takes effect; that key belongs to the ConfigMap, move its text to the top`)
	}
}

func knownKey(text string) string {
	if _, ok := keys[text]; ok {
		return text
	}
	for k := range keys {
		if strings.EqualFold(k, text) {
			return k
		}
	}
	return ""
}

// suggestion names the known key that is at most three edits away.
func suggestion(unknown string) string {
	best, distance := "", 4
	for _, k := range slices.Sorted(func(yield func(string) bool) {
		for k := range keys {
			if !yield(k) {
				return
			}
		}
	}) {
		if d := edits(strings.ToLower(unknown), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "; is " + best + " meant?"
}

// edits is the Levenshtein distance, cut short for texts that are far too long.
func edits(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func (r *reader) warn(v value, message string) {
	r.warnings = append(r.warnings, Warning{v.in(r.file), v.text, message})
}

func (r *reader) problem(v value, reason, message, fix string) {
	r.problems = append(r.problems, &Problem{v.in(r.file), v.text, message, fix, reason})
}

func (r *reader) ranges(v value, key string, ipv6 bool) []masq.Range {
	switch v.kind {
	case null:
		return nil
	case list:
	default:
		r.problem(v, ReasonType, fmt.Sprintf("%s is %s, not a list", key, v.kind), "write each range on a line of its own, beginning with \"- \"")
		return nil
	}
	out := make([]masq.Range, 0, len(v.items))
	for _, item := range v.items {
		switch {
		case item.kind == null || item.kind == text && strings.TrimSpace(item.text) == "":
			r.problem(item, ReasonCIDR, fmt.Sprintf("%s has an empty item", key), "remove the line, or write a range such as 10.0.0.0/8 there")
		case item.kind != text:
			r.problem(item, ReasonType, fmt.Sprintf("%s has an item that is %s: %q", key, item.kind, item.text), "write a range such as 10.0.0.0/8")
		default:
			if p, ok := r.prefix(item, ipv6); ok {
				out = append(out, masq.Range{Prefix: p, Origin: item.in(r.file)})
			}
		}
	}
	return out
}

func (r *reader) prefix(item value, ipv6 bool) (netip.Prefix, bool) {
	p, problem := ParsePrefix(item.text, ipv6)
	if problem == nil {
		return p, true
	}
	problem.Origin = item.in(r.file)
	r.problems = append(r.problems, problem)
	return p, false
}

// ParsePrefix reads one range as a list's items are read, for configurations
// that are not files. The Problem has no origin yet.
func ParsePrefix(text string, ipv6 bool) (netip.Prefix, *Problem) {
	problem := func(reason, message, fix string) (netip.Prefix, *Problem) {
		return netip.Prefix{}, &Problem{Text: text, Message: message, Fix: fix, Reason: reason}
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		fix := "write a range such as 10.0.0.0/8"
		if a, addrErr := netip.ParseAddr(text); addrErr == nil {
			fix = fmt.Sprintf("write %s for this one address", netip.PrefixFrom(a, a.BitLen()))
		} else if address, bits, ok := strings.Cut(text, "/"); ok && strings.HasPrefix(bits, "0") {
			if n, err := strconv.Atoi(bits); err == nil {
				fix = fmt.Sprintf("write %s/%d, without the leading zero", address, n)
			}
		}
		return problem(ReasonCIDR, fmt.Sprintf("CIDR %q could not be parsed, %v", text, err), fix)
	}
	if p.Addr().Is4In6() {
		fix := "write the IPv4 range"
		if p.Bits() >= 96 {
			fix = fmt.Sprintf("write %s", netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked())
		}
		return problem(ReasonCIDR, fmt.Sprintf("CIDR %q could not be parsed, it is an IPv4 range in IPv6 form, which no rule can hold", text), fix)
	}
	if p.Masked() != p {
		return problem(ReasonCIDR, fmt.Sprintf("CIDR %q is not aligned to a CIDR block, ip: %q network: %q", text, p.Addr(), p.Masked()),
			fmt.Sprintf("write %s, or %s for this one address", p.Masked(), netip.PrefixFrom(p.Addr(), p.Addr().BitLen())))
	}
	if p.Addr().Is6() && !ipv6 {
		return problem(ReasonIPv6Disabled, fmt.Sprintf("ipv6 is not enabled, but ipv6 cidr %s provided. Enable ipv6 using --enable-ipv6 agent flag", text), "give the flag, or remove the range")
	}
	return p, nil
}

func (r *reader) boolean(v value, key string) bool {
	switch v.kind {
	case null:
		return false
	case boolean:
		isTrue, _ := truth(v.text)
		return isTrue
	}
	r.problem(v, ReasonType, fmt.Sprintf("%s is %s (%q), not a boolean", key, v.kind, v.text), "write true or false, without quotes")
	return false
}

func (r *reader) cidrLimit(v value) {
	if v.kind == null {
		return
	}
	n, err := strconv.ParseInt(v.text, 0, 32)
	if v.kind != number || err != nil || n < 0 {
		r.problem(v, ReasonType, fmt.Sprintf("cidrLimit is %q, not a whole number", v.text), "write a number such as 64, without quotes")
		return
	}
	limit := int(n)
	r.out.cidrLimit = &limit
}

func (r *reader) resyncInterval(v value) {
	if v.kind == null {
		return
	}
	d, err := time.ParseDuration(v.text)
	if v.kind != text || err != nil {
		r.problem(v, ReasonType, fmt.Sprintf("resyncInterval is %q, not a duration", v.text), "write a number with a unit, such as 60s or 2m")
		return
	}
	if d < time.Second {
		r.warn(v, fmt.Sprintf("resyncInterval %s is too short and counts as 1s; changes of the file and of the rules are noticed at once anyway", v.text))
		d = time.Second
	}
	r.out.resync = &d
}

// texts reads a text or a list of texts.
func (r *reader) texts(v value, key string) []value {
	switch v.kind {
	case null:
		return nil
	case text:
		return []value{v}
	case list:
		for _, item := range v.items {
			if item.kind != text {
				r.problem(item, ReasonType, fmt.Sprintf("%s has an item that is %s", key, item.kind), "write a text")
				return nil
			}
		}
		return v.items
	}
	r.problem(v, ReasonType, fmt.Sprintf("%s is %s, not a text or a list of texts", key, v.kind), "")
	return nil
}

func (r *reader) outputInterfaces(v value) {
	for _, item := range r.texts(v, "outputInterfaces") {
		const longest = 15 // IFNAMSIZ without its final zero
		if item.text == "" || len(item.text) > longest || strings.ContainsAny(item.text, "/ \t\n*+") || item.text == "." || item.text == ".." {
			r.problem(item, ReasonType, fmt.Sprintf("outputInterfaces: %q is not an interface name", item.text), "write a name of 1 to 15 characters as \"ip link\" prints it; patterns are not possible")
			continue
		}
		r.out.interfaces = append(r.out.interfaces, item.text)
	}
}

func (r *reader) snatAddress(v value) {
	for _, item := range r.texts(v, "snatAddress") {
		p, ok := netip.Prefix{}, false
		if a, err := netip.ParseAddr(item.text); err == nil && a.Zone() == "" {
			a = a.Unmap()
			p, ok = netip.PrefixFrom(a, a.BitLen()), true
		} else if p, ok = r.prefix(item, true); !ok {
			continue
		}
		if p.Addr().Is6() && !r.settings.IPv6 {
			r.problem(item, ReasonIPv6Disabled, fmt.Sprintf("ipv6 is not enabled, but ipv6 cidr %s provided. Enable ipv6 using --enable-ipv6 agent flag", item.text), "give the flag, or remove the address")
			continue
		}
		r.out.snat = append(r.out.snat, masq.Range{Prefix: p, Origin: item.in(r.file)})
	}
}

// mergeInto joins what several files say, as Azure's v2 agent does: the union
// of lists, the OR of booleans.
func mergeInto(files []parsed, s Settings) (masq.Config, error) {
	c := masq.DefaultConfig(s.ReservedRanges)
	var problems []error
	var resync, limit = time.Duration(0), -1
	var listOrigin masq.Origin
	for _, f := range files {
		if f.nonMasquerade != nil {
			if !c.NonMasqueradeGiven {
				c.NonMasquerade, c.NonMasqueradeGiven, listOrigin = nil, true, f.listOrigin
			}
			c.NonMasquerade = joined(c.NonMasquerade, *f.nonMasquerade)
		}
		if f.masquerade != nil {
			c.Masquerade = joined(c.Masquerade, *f.masquerade)
		}
		c.Cluster.Node = append(c.Cluster.Node, f.node...)
		c.Cluster.Pod = append(c.Cluster.Pod, f.pod...)
		c.Cluster.Service = append(c.Cluster.Service, f.service...)
		c.MasqLinkLocal = c.MasqLinkLocal || f.linkLocal
		c.MasqLinkLocalIPv6 = c.MasqLinkLocalIPv6 || f.linkLocalIPv6
		c.EnforceNonMasquerade = c.EnforceNonMasquerade || f.enforced
		for _, i := range f.interfaces {
			if !slices.Contains(c.OutputInterfaces, i) {
				c.OutputInterfaces = append(c.OutputInterfaces, i)
			}
		}
		for _, a := range f.snat {
			if i := slices.IndexFunc(c.SNATAddress, func(b masq.Range) bool {
				return masq.FamilyOf(a.Prefix.Addr()) == masq.FamilyOf(b.Prefix.Addr())
			}); i < 0 {
				c.SNATAddress = append(c.SNATAddress, a)
			} else if other := c.SNATAddress[i]; other.Prefix != a.Prefix {
				problems = append(problems, &Problem{a.Origin, a.Prefix.String(),
					fmt.Sprintf("snatAddress %s: there is another one of the family, %s at %s", a.Prefix, other.Prefix, other.Origin), "keep one of them", ReasonConflict})
			}
		}
		if f.resync != nil && (resync == 0 || *f.resync < resync) {
			resync = *f.resync
		}
		if f.cidrLimit != nil {
			limit = max(limit, *f.cidrLimit)
		}
	}
	if resync > 0 {
		c.ResyncInterval = resync
	}
	if limit >= 0 {
		c.CIDRLimit = limit
	}
	if n := len(c.NonMasquerade); c.NonMasqueradeGiven && n > c.CIDRLimit {
		problems = append(problems, limitProblem(listOrigin, "nonMasqueradeCIDRs", c.CIDRLimit, n))
	}
	if n := len(c.Masquerade); n > c.CIDRLimit {
		problems = append(problems, limitProblem(c.Masquerade[0].Origin, "masqueradeCIDRs", c.CIDRLimit, n))
	}
	return c, errors.Join(problems...)
}

// joined does not copy what may be long.
func joined(a, b []masq.Range) []masq.Range {
	if len(a) == 0 {
		return b
	}
	return append(a, b...)
}

func limitProblem(at masq.Origin, key string, limit, n int) *Problem {
	return &Problem{at, key, fmt.Sprintf("%s: the daemon can only accept up to %d CIDRs (excluding link-local), but got %d CIDRs (excluding link local)", key, limit, n),
		fmt.Sprintf("join ranges, or set cidrLimit: %d", n), ReasonCIDRLimit}
}
