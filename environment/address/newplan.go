package address

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// NewPlan works out every range and address that an environment will use. All
// violations are found at once; the plan is only good when there are none.
func NewPlan(r Request) (Plan, []Violation) {
	p := &planner{request: r, plan: Plan{
		Network: r.Network.Name, VPCNative: r.VPCNative, MaxPodsPerNode: r.MaxPodsPerNode, NodePodBits: 24,
	}}
	if p.plan.MaxPodsPerNode == 0 {
		p.plan.MaxPodsPerNode = DefaultMaxPodsPerNode
	}
	if r.VPCNative {
		p.plan.NodePodBits = NodePodBits(p.plan.MaxPodsPerNode)
	}
	if !p.chooseSubnetwork() {
		return p.plan, p.violations
	}
	p.othersUse()
	// What the user wrote comes first, so that what is chosen keeps clear of it.
	given := []claim{
		{kind: Pods, field: fieldPods, text: r.Pods.Text, secondary: r.Pods.SecondaryName, nameField: fieldPodsName, bits: defaultPodBits, largest: 8, smallest: 30},
		{kind: Services, field: fieldServices, text: r.Services.Text, secondary: r.Services.SecondaryName, nameField: fieldServicesName, bits: defaultServiceBits, largest: 8, smallest: 27},
	}
	if w := r.Private; w != nil {
		given = append(given,
			claim{kind: Master, field: fieldMaster, text: w.Master, bits: 23, largest: 23, smallest: 28},
			claim{kind: WebServer, field: fieldWebServer, text: w.WebServer, bits: 24, largest: 24, smallest: 29},
			claim{kind: Database, field: fieldDatabase, text: w.Database, bits: 12, largest: 8, smallest: 24})
	}
	if r.Pods.SecondaryName != "" && r.Pods.SecondaryName == r.Services.SecondaryName {
		p.violate(fieldServicesName, Overlap, map[string]string{"name": r.Services.SecondaryName},
			"The secondary range '%s' is named for both Pods and Services. Name two different secondary ranges", r.Services.SecondaryName)
		return p.plan, p.violations
	}
	for i := range given {
		p.read(&given[i])
	}
	p.compare(given)
	for i := range given {
		if !given[i].done {
			p.choose(&given[i])
		}
	}
	for _, c := range given {
		if c.prefix.IsValid() {
			p.plan.Ranges = append(p.plan.Ranges, Range{c.kind, c.prefix, c.by, c.secondary})
		}
	}
	p.size(given)
	p.addressNodes()
	return p.plan, p.violations
}

// Resize gives a plan another number of nodes: those that stay keep their
// addresses. Its reservations are those of others.
func Resize(old Plan, r Request) (Plan, []Violation) {
	p := &planner{request: r, plan: old}
	p.plan.Ranges, p.plan.Warnings = slices.Clone(old.Ranges), slices.Clone(old.Warnings)
	p.plan.NodeAddresses = slices.Clone(old.NodeAddresses[:min(r.NodeCount, len(old.NodeAddresses))])
	p.subnetwork.Primary = old.Range(Nodes)
	if r.NodeCount > old.MaxNodes {
		p.nodesDoNotFit()
		return old, p.violations
	}
	p.addressNodes()
	return p.plan, p.violations
}

// claim is one range on its way into the plan.
type claim struct {
	kind              Kind
	field, text       string
	nameField         string
	secondary         string
	bits              int // wished for when the server chooses
	largest, smallest int // prefix lengths
	prefix            netip.Prefix
	by                Chooser
	done              bool // nothing is left to choose, also for what is wrong
}

type planner struct {
	request    Request
	plan       Plan
	subnetwork Subnetwork
	violations []Violation
	// taken is what the environment must not overlap, and who has it.
	taken []use
}

// use is a range that is taken.
type use struct {
	Reservation
	others bool // by another environment
}

func (u use) whose() string {
	if u.others {
		return "environment " + u.Owner
	}
	return u.Owner
}

func (p *planner) violate(field, reason string, metadata map[string]string, format string, args ...any) {
	p.violations = append(p.violations, Violation{field, reason, fmt.Sprintf(format, args...), metadata})
}

func (p *planner) chooseSubnetwork() bool {
	r := p.request
	var here []Subnetwork
	var names []string
	for _, s := range r.Network.Subnetworks {
		if s.Region == r.Region {
			here, names = append(here, s), append(names, s.Name)
		}
	}
	i := slices.IndexFunc(here, func(s Subnetwork) bool {
		if r.Subnetwork != "" {
			return s.Name == r.Subnetwork
		}
		return len(here) == 1 || strings.HasSuffix(s.Name, "/subnetworks/default")
	})
	switch {
	case i >= 0:
		p.subnetwork = here[i]
		p.plan.Subnetwork = here[i].Name
		p.plan.Ranges = []Range{{Kind: Nodes, Prefix: here[i].Primary, By: Named}}
		return true
	case len(here) == 0:
		p.violate(fieldSubnetwork, SubnetNotFound, map[string]string{"network": r.Network.Name, "region": r.Region},
			"The network '%s' has no subnetwork in region '%s'. Declare one, or choose another network or location", r.Network.Name, r.Region)
	case r.Subnetwork == "":
		p.violate(fieldSubnetwork, SubnetNotFound, map[string]string{"network": r.Network.Name, "region": r.Region},
			"The network '%s' has several subnetworks in region '%s'. Name one of: %s", r.Network.Name, r.Region, strings.Join(names, ", "))
	default:
		p.violate(fieldSubnetwork, SubnetNotFound, map[string]string{"subnetwork": r.Subnetwork, "network": r.Network.Name, "region": r.Region},
			"The subnetwork '%s' was not found in network '%s' and region '%s'. There are: %s", r.Subnetwork, r.Network.Name, r.Region, strings.Join(names, ", "))
	}
	return false
}

// othersUse collects everything that is in use on the network.
func (p *planner) othersUse() {
	for _, s := range p.request.Network.Subnetworks {
		p.taken = append(p.taken, use{Reservation: Reservation{s.Primary, Nodes, "subnetwork " + s.Name}})
		for _, sec := range s.Secondary {
			if s.Name == p.subnetwork.Name && (sec.Name == p.request.Pods.SecondaryName || sec.Name == p.request.Services.SecondaryName) {
				continue // compared as what it is for
			}
			p.taken = append(p.taken, use{Reservation: Reservation{sec.Prefix, Pods, fmt.Sprintf("secondary range %s of %s", sec.Name, s.Name)}})
		}
	}
	for _, peer := range p.request.Network.Peers {
		peer.Kind = Peer
		p.taken = append(p.taken, use{Reservation: peer})
	}
	for _, other := range p.request.Reservations {
		if other.Owner != p.request.Owner && other.Kind != Nodes {
			p.taken = append(p.taken, use{other, true})
		}
	}
}

// read turns what the user wrote into a range, if that is a range.
func (p *planner) read(c *claim) {
	switch {
	case c.secondary != "":
		c.done = true
		for _, s := range p.subnetwork.Secondary {
			if s.Name == c.secondary {
				c.prefix, c.by = s.Prefix, Named
				c.field = c.nameField
				return
			}
		}
		var names []string
		for _, s := range p.subnetwork.Secondary {
			names = append(names, s.Name)
		}
		have := "it has none"
		if len(names) > 0 {
			have = "it has: " + strings.Join(names, ", ")
		}
		p.violate(c.nameField, SecondaryNotFound, map[string]string{"name": c.secondary, "subnetwork": p.subnetwork.Name},
			"The secondary range '%s' was not found in subnetwork '%s'; %s", c.secondary, p.subnetwork.Name, have)
	case c.text == "":
		return
	case c.text[0] == '/':
		bits, err := strconv.Atoi(c.text[1:])
		if err != nil || bits < 0 || bits > 32 {
			c.done = true
			p.malformed(c)
			return
		}
		c.bits = bits
		c.done = !p.sized(c, bits)
	default:
		c.done = true
		prefix, err := netip.ParsePrefix(c.text)
		if err != nil || !prefix.Addr().Is4() {
			p.malformed(c)
			return
		}
		if prefix.Masked() != prefix {
			p.violate(c.field, NotAligned, map[string]string{"range": c.text, "suggestion": prefix.Masked().String()},
				"The %s range %s is not aligned to its size. Write %s", c.kind, c.text, prefix.Masked())
			return
		}
		if p.allowed(c, prefix) && p.sized(c, prefix.Bits()) {
			c.prefix, c.by = prefix, Given
		}
	}
}

func (p *planner) malformed(c *claim) {
	forms := "a range such as 10.4.0.0/14"
	if c.kind == Pods || c.kind == Services {
		forms = "a range such as 10.4.0.0/14, a size such as /14, or nothing for the default"
	}
	hint := ""
	if a, err := netip.ParseAddr(c.text); err == nil {
		hint = fmt.Sprintf(" (did you mean %s/%d?)", a, c.bits)
		if a.Is6() {
			hint = " (IPv6 ranges are not supported)"
		}
	}
	p.violate(c.field, Malformed, map[string]string{"range": c.text}, "The %s range '%s' is not an IPv4 range. Write %s%s", c.kind, c.text, forms, hint)
}

// sized checks the limits of a kind.
func (p *planner) sized(c *claim, bits int) bool {
	metadata := map[string]string{"range": c.text, "actualMask": fmt.Sprintf("/%d", bits)}
	switch {
	case bits > c.smallest:
		metadata["requiredMask"] = fmt.Sprintf("/%d", c.smallest)
		p.violate(c.field, TooSmall, metadata, "The %s range %s is too small: it must be at least a /%d", c.kind, c.text, c.smallest)
		return false
	case bits < c.largest:
		metadata["requiredMask"] = fmt.Sprintf("/%d", c.largest)
		p.violate(c.field, TooLarge, metadata, "The %s range %s is too large: it must be at most a /%d", c.kind, c.text, c.largest)
		return false
	}
	return true
}

// kindName is what Composer calls a range in its errors.
func kindName(k Kind) string {
	switch k {
	case Pods:
		return "Cluster CIDR range"
	case Services:
		return "Services CIDR range"
	case Master:
		return "GKE master CIDR block"
	case WebServer:
		return "Web server CIDR block"
	case Database:
		return "Cloud SQL CIDR block"
	}
	return string(k) + " range"
}

// allowed checks the address space.
func (p *planner) allowed(c *claim, prefix netip.Prefix) bool {
	for _, n := range never {
		if n.prefix.Overlaps(prefix) {
			p.violate(c.field, NotAllowed, map[string]string{"range": prefix.String(), "reserved": n.prefix.String()},
				"%s %s is not within allowed ranges. It contains addresses of %s, %s", kindName(c.kind), prefix, n.prefix, n.why)
			return false
		}
	}
	if prefix.Overlaps(dockerBridge) {
		p.violate(c.field, Reserved, map[string]string{"range": prefix.String(), "reserved": dockerBridge.String()},
			"The IP range %s is reserved for the Docker bridge network. %s must not overlap with it, and %s does", dockerBridge, kindName(c.kind), prefix)
		return false
	}
	if within(allowed, prefix) {
		return true
	}
	metadata := map[string]string{"range": prefix.String()}
	switch pupi := c.kind == Pods || c.kind == Services; {
	case pupi && p.request.PUPI && p.request.Private != nil:
		return true
	case pupi:
		p.violate(c.field, NotAllowed, metadata,
			"%s %s is not within allowed ranges. Take one from %s, or make a private environment with enablePrivatelyUsedPublicIps", kindName(c.kind), prefix, list(allowed))
	default:
		p.violate(c.field, NotAllowed, metadata,
			"%s %s is not within allowed ranges. Take one from %s; privately used public addresses are for Pods and Services only", kindName(c.kind), prefix, list(allowed))
	}
	return false
}

func list(prefixes []netip.Prefix) string {
	var texts []string
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}

// compare finds the overlaps of what was given: with each other, and with what
// is in use.
func (p *planner) compare(claims []claim) {
	for i, c := range claims {
		if !c.prefix.IsValid() {
			continue
		}
		for _, t := range p.taken {
			if t.Prefix.Overlaps(c.prefix) {
				p.overlap(c, t.Prefix, fmt.Sprintf("the %s range %s of %s", t.Kind, t.Prefix, t.whose()))
			}
		}
		for _, d := range claims[:i] {
			if d.prefix.IsValid() && d.prefix.Overlaps(c.prefix) {
				p.overlap(c, d.prefix, fmt.Sprintf("this environment's own %s range %s", d.kind, d.prefix))
				p.violate(d.field, Overlap, map[string]string{"rangeA": d.prefix.String(), "rangeB": c.prefix.String()},
					"The %s range %s overlaps with this environment's own %s range %s", d.kind, d.prefix, c.kind, c.prefix)
			}
		}
	}
	for _, c := range claims {
		if c.prefix.IsValid() {
			p.taken = append(p.taken, use{Reservation: Reservation{c.prefix, c.kind, "this environment"}})
		}
	}
}

func (p *planner) overlap(c claim, with netip.Prefix, whose string) {
	free := ""
	metadata := map[string]string{"rangeA": c.prefix.String(), "rangeB": with.String()}
	if s, ok := p.free(c.prefix.Bits(), c); ok {
		free, metadata["suggestion"] = fmt.Sprintf(". Free would be %s", s), s.String()
	}
	p.violate(c.field, Overlap, metadata, "The %s range %s overlaps with %s%s", c.kind, c.prefix, whose, free)
}

// free finds a block of a size for a kind that touches nothing.
func (p *planner) free(bits int, c claim) (netip.Prefix, bool) {
	taken := []netip.Prefix{dockerBridge}
	for _, t := range p.taken {
		taken = append(taken, t.Prefix)
	}
	return firstFree(poolsOf(c.kind), bits, taken)
}

// choose takes the documented default, or the first free block.
func (p *planner) choose(c *claim) {
	if c.kind == Master || c.kind == WebServer || c.kind == Database {
		c.prefix, c.by = privateDefault(c.kind, p.request.Region), Chosen
		i := slices.IndexFunc(p.taken, func(t use) bool { return t.Prefix.Overlaps(c.prefix) })
		if i < 0 {
			p.taken = append(p.taken, use{Reservation: Reservation{c.prefix, c.kind, "this environment"}})
			return
		}
		if t := p.taken[i]; c.kind == Database && !t.others {
			p.defaultDatabaseTaken(c, t)
			return
		}
	}
	bits := c.bits
	prefix, ok := p.free(bits, *c)
	if c.kind == Database {
		for ; !ok && bits < c.smallest; prefix, ok = p.free(bits, *c) {
			bits++
		}
	}
	if !ok {
		c.prefix = netip.Prefix{}
		p.violate(c.field, Exhausted, map[string]string{"mask": fmt.Sprintf("/%d", c.bits), "network": p.request.Network.Name},
			"The network '%s' has no free /%d left for the %s range. Ask for a smaller one, or give a range", p.request.Network.Name, c.bits, c.kind)
		return
	}
	c.prefix, c.by = prefix, Chosen
	p.taken = append(p.taken, use{Reservation: Reservation{prefix, c.kind, "this environment"}})
}

// defaultDatabaseTaken explains what many meet: VMs in 10.0.0.0/8 and a
// private environment whose database is to be in 10.0.0.0/12 by default.
func (p *planner) defaultDatabaseTaken(c *claim, t use) {
	metadata := map[string]string{"rangeA": c.prefix.String(), "rangeB": t.Prefix.String()}
	advice := "Give cloudSqlIpv4CidrBlock a free range of at least a /24"
	for bits := 12; bits <= c.smallest; bits++ {
		if free, ok := p.free(bits, *c); ok {
			advice = fmt.Sprintf("Give cloudSqlIpv4CidrBlock a free range, for example %s", free)
			metadata["suggestion"] = free.String()
			break
		}
	}
	p.violate(c.field, Overlap, metadata,
		"The Cloud SQL range was left to its default, %s, which overlaps with the %s range %s of %s. %s", c.prefix, t.Kind, t.Prefix, t.whose(), advice)
	c.prefix = netip.Prefix{}
}

// size checks that the nodes fit, and says what there is room for.
func (p *planner) size(claims []claim) {
	pods, services := claims[0].prefix, claims[1].prefix
	p.plan.MaxNodes = addressesIn(p.subnetwork.Primary) - primaryReserved
	if pods.IsValid() {
		fit := 0
		if pods.Bits() <= p.plan.NodePodBits {
			fit = 1 << (p.plan.NodePodBits - pods.Bits())
		}
		p.plan.MaxNodes = min(p.plan.MaxNodes, fit)
		if pods.Bits() > 23 {
			p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf("the Pod range %s is smaller than a /23, the least that is recommended", pods))
		}
		if p.request.NodeCount > fit {
			required := p.plan.NodePodBits
			for 1<<(p.plan.NodePodBits-required) < p.request.NodeCount {
				required--
			}
			field := claims[0].field
			p.violate(field, TooSmall, map[string]string{"range": pods.String(), "actualMask": fmt.Sprintf("/%d", pods.Bits()), "requiredMask": fmt.Sprintf("/%d", required), "maxNodes": strconv.Itoa(fit)},
				"The Pod range %s has room for %d nodes with %d Pods each (a /%d a node), and %d are asked for. It must be at least a /%d",
				pods, fit, p.plan.MaxPodsPerNode, p.plan.NodePodBits, p.request.NodeCount, required)
		}
	}
	if services.IsValid() {
		p.plan.MaxServices = addressesIn(services)
	}
}

func (p *planner) nodesDoNotFit() {
	p.violate(fieldNodeCount, TooSmall, map[string]string{"nodeCount": strconv.Itoa(p.request.NodeCount), "maxNodes": strconv.Itoa(p.plan.MaxNodes)},
		"The environment's ranges have room for %d nodes, and %d are asked for. The ranges of an existing environment cannot be changed: create a new one with a larger Pod range or subnetwork", p.plan.MaxNodes, p.request.NodeCount)
}

// addressNodes gives the nodes that have none the first free addresses of the
// primary range.
func (p *planner) addressNodes() {
	used := map[netip.Addr]bool{}
	for _, t := range p.request.Reservations {
		if t.Kind == Nodes && t.Owner != p.request.Owner && t.Prefix.IsSingleIP() {
			used[t.Prefix.Addr()] = true
		}
	}
	for _, a := range p.plan.NodeAddresses {
		used[a] = true
	}
	first, end := span(p.subnetwork.Primary)
	free := 0
	for n := first + 2; n < end-2 && len(p.plan.NodeAddresses) < p.request.NodeCount; n++ {
		if a := addrOf(n); !used[a] {
			p.plan.NodeAddresses = append(p.plan.NodeAddresses, a)
			free++
		}
	}
	if missing := p.request.NodeCount - len(p.plan.NodeAddresses); missing > 0 {
		p.violate(fieldNodeCount, Exhausted, map[string]string{"subnetwork": p.plan.Subnetwork, "range": p.subnetwork.Primary.String(), "nodeCount": strconv.Itoa(p.request.NodeCount)},
			"The subnetwork %s (%s) has %d free addresses, and %d more nodes are asked for (four addresses of a subnetwork are reserved). Use a larger subnetwork", p.plan.Subnetwork, p.subnetwork.Primary, free, free+missing)
	}
}
