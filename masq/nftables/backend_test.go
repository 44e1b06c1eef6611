package nftables

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables/expr"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/masq"
)

func parse(texts ...string) []masq.Range {
	var out []masq.Range
	for _, t := range texts {
		out = append(out, masq.Range{Prefix: netip.MustParsePrefix(t)})
	}
	return out
}

// documentOptions are the documented example: VMs, Pods and Services.
func documentOptions() masq.Options {
	return masq.Options{
		Chain: masq.DefaultChain, IPv6: true, RandomFully: true,
		Cluster: masq.ClusterRanges{
			Node:    parse("10.0.0.0/8", "fd00:a::/64"),
			Pod:     parse("192.168.0.0/16", "fd00:c0a8::/32"),
			Service: parse("172.20.0.0/16"),
		},
	}
}

func rules(t testing.TB, change func(*masq.Config, *masq.Options)) masq.RuleSet {
	t.Helper()
	c, o := masq.DefaultConfig(false), documentOptions()
	c.NonMasquerade, c.NonMasqueradeGiven = parse("10.0.0.0/8", "192.168.0.0/16"), true
	if change != nil {
		change(&c, &o)
	}
	rs, _, err := masq.Plan(c, o, masq.Facts{Addresses: []masq.NodeAddress{{Interface: "eth1", Prefix: netip.MustParsePrefix("10.9.0.5/24")}}})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func open(t testing.TB, ns *netns.NS, o Options) *Backend {
	t.Helper()
	var b *Backend
	netnstest.Do(t, ns, func() (err error) {
		b, err = New(o)
		return err
	})
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func apply(t testing.TB, b *Backend, rs masq.RuleSet, generation uint64) masq.Change {
	t.Helper()
	change, err := b.Apply(t.Context(), rs, generation)
	if err != nil {
		t.Fatal(err)
	}
	return change
}

func list(t testing.TB, ns *netns.NS) string {
	t.Helper()
	return netnstest.Run(t, ns, "", netnstest.Program(t, "nft"), "list", "ruleset")
}

// inOrder sorts the blocks of a listing: sets that stay come before new ones.
func inOrder(text string) string {
	blocks := strings.Split(strings.TrimRight(text, "\n"), "\n\n")
	slices.Sort(blocks)
	return strings.Join(blocks, "\n\n")
}

func TestApplyTwiceWritesOnce(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns, Options{})
	if c := apply(t, b, rules(t, nil), 7); !c.Wrote || c.Repaired {
		t.Errorf("the first Apply says %+v", c)
	}
	before := list(t, ns)
	if c := apply(t, b, rules(t, nil), 7); c.Wrote {
		t.Errorf("the second Apply wrote %v", c.What)
	}
	// A new process knows nothing but what the kernel holds.
	again := open(t, ns, Options{})
	if d, err := again.Diff(t.Context(), rules(t, nil)); err != nil || len(d) != 0 {
		t.Errorf("a new process sees differences: %v, %v", d, err)
	}
	gen, err := again.generation()
	if err != nil {
		t.Fatal(err)
	}
	if c := apply(t, again, rules(t, nil), 7); c.Wrote {
		t.Errorf("a new process wrote %v", c.What)
	}
	if now, _ := again.generation(); now != gen {
		t.Error("the kernel's generation moved though nothing was to be written")
	}
	if after := list(t, ns); after != before {
		t.Errorf("the table changed:\n%s", after)
	}
	held, err := again.Held(t.Context())
	if err != nil || held.Generation != 7 || held.Hash != rules(t, nil).Hash() || len(held.Counters) != 4 {
		t.Errorf("held %+v, %v", held, err)
	}
}

// TestEveryShape applies each shape of rules over each other and compares what
// nft lists with a fresh application.
func TestEveryShape(t *testing.T) {
	shapes := []struct {
		name   string
		change func(*masq.Config, *masq.Options)
	}{
		{"plain", nil},
		{"longer list", func(c *masq.Config, _ *masq.Options) {
			c.NonMasquerade = append(c.NonMasquerade, parse("1.2.3.0/24", "2001:db8::/32")...)
		}},
		{"everything exempt", func(c *masq.Config, _ *masq.Options) { c.NonMasquerade = parse("0.0.0.0/0", "::/0") }},
		{"upper half", func(c *masq.Config, _ *masq.Options) { c.NonMasquerade = parse("128.0.0.0/1", "8000::/1") }},
		{"IPv4 alone", func(_ *masq.Config, o *masq.Options) { o.IPv6 = false }},
		{"Pods unknown", func(_ *masq.Config, o *masq.Options) { o.Cluster.Pod = nil }},
		{"upstream", func(_ *masq.Config, o *masq.Options) { o.UpstreamCompat = true }},
		{"enforced", func(c *masq.Config, _ *masq.Options) { c.EnforceNonMasquerade = true }},
		{"interfaces", func(c *masq.Config, _ *masq.Options) { c.OutputInterfaces = []string{"eth0", "eth1"} }},
		{"address", func(c *masq.Config, _ *masq.Options) { c.SNATAddress = parse("10.9.0.0/16") }},
		{"ports", func(_ *masq.Config, o *masq.Options) {
			o.Ports = []masq.PortRange{{First: 100, Last: 200}, {First: 300, Last: 500}}
		}},
		{"address and ports, not random", func(c *masq.Config, o *masq.Options) {
			c.SNATAddress = parse("10.9.0.0/16")
			o.Ports, o.RandomFully = []masq.PortRange{{First: 100, Last: 200}}, false
		}},
	}
	fresh := make([]string, len(shapes))
	for i, s := range shapes {
		ns := netnstest.New(t)
		apply(t, open(t, ns, Options{}), rules(t, s.change), 1)
		fresh[i] = list(t, ns)
	}
	ns := netnstest.New(t)
	foreign := "table ip theirs {\n\tchain c {\n\t\tip saddr 1.2.3.4 accept\n\t}\n}\n"
	netnstest.Run(t, ns, foreign, netnstest.Program(t, "nft"), "-f", "-")
	b := open(t, ns, Options{})
	for i := range shapes {
		for j, s := range shapes {
			apply(t, b, rules(t, shapes[i].change), 1)
			apply(t, b, rules(t, s.change), 1)
			if got := list(t, ns); inOrder(got) != inOrder(foreign+fresh[j]) {
				t.Fatalf("%s over %s:\n%s\nwant\n%s", s.name, shapes[i].name, got, foreign+fresh[j])
			}
			if c := apply(t, open(t, ns, Options{}), rules(t, s.change), 1); c.Wrote {
				t.Errorf("%s: a new process would write %v", s.name, c.What)
			}
		}
	}
}

func TestWhatSomebodyChangedIsPutBack(t *testing.T) {
	nft := netnstest.Program(t, "nft")
	for _, damage := range []string{
		"flush ruleset",
		"delete table inet ip-masq-agent",
		"flush chain inet ip-masq-agent decide4",
		"delete element inet ip-masq-agent exempt4 { 10.0.0.0/8 }",
		"add element inet ip-masq-agent exempt4 { 8.8.8.8 }",
		"insert rule inet ip-masq-agent postrouting accept",
		"add chain inet ip-masq-agent extra",
		"add chain inet ip-masq-agent postrouting { policy drop; }",
		"flush chain inet ip-masq-agent generation",
		"add set inet ip-masq-agent exempt4_b { type ipv4_addr; flags interval; elements = { 8.8.8.8 }; }",
		"add map inet ip-masq-agent extra { type ipv4_addr : verdict; elements = { 8.8.8.8 : jump decide4 }; }",
	} {
		t.Run(damage, func(t *testing.T) {
			ns := netnstest.New(t)
			b := open(t, ns, Options{})
			apply(t, b, rules(t, nil), 1)
			before := list(t, ns)
			touched := make(chan struct{}, 100)
			ctx, cancel := context.WithCancel(t.Context())
			watching := make(chan error)
			go func() { watching <- b.Watch(ctx, func() { touched <- struct{}{} }) }()
			defer func() {
				cancel()
				if err := <-watching; err != nil {
					t.Error(err)
				}
			}()
			<-touched // it listens
			// Twice: what the repair wrote must not hide what comes after it.
			for time := range 2 {
				netnstest.Run(t, ns, damage, nft, "-f", "-")
				<-touched
				if c := apply(t, b, rules(t, nil), 1); !c.Wrote || !c.Repaired {
					t.Errorf("time %d: not repaired: %+v", time, c)
				}
				if after := list(t, ns); after != before {
					t.Errorf("time %d: not as before:\n%s", time, after)
				}
			}
		})
	}
}

func TestWatchIgnoresOurOwnWrites(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns, Options{})
	apply(t, b, rules(t, nil), 1)
	touched := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	watching := make(chan error)
	go func() { watching <- b.Watch(ctx, func() { touched <- struct{}{} }) }()
	<-touched // it listens
	for i := range 20 {
		apply(t, b, rules(t, func(c *masq.Config, _ *masq.Options) { c.EnforceNonMasquerade = i%2 == 0 }), 1)
		apply(t, b, rules(t, func(c *masq.Config, _ *masq.Options) { c.NonMasquerade = parse("1.2.3.0/24") }), 1)
	}
	// One more of somebody else's: when it has arrived, all before it have.
	netnstest.Run(t, ns, "add chain inet ip-masq-agent theirs", netnstest.Program(t, "nft"), "-f", "-")
	<-touched
	cancel()
	if err := <-watching; err != nil {
		t.Error(err)
	}
	if n := len(touched); n > 2 {
		t.Errorf("our own writes were reported %d times", n)
	}
}

func TestCountersGoOnOverAReplacement(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns, Options{})
	apply(t, b, rules(t, nil), 1)
	b.mu.Lock()
	known, err := b.read()
	if err == nil {
		known.counters["masqueraded4"] = &expr.Counter{Packets: 5, Bytes: 500}
		known.counters["masqueraded4_first"] = &expr.Counter{Packets: 2, Bytes: 120}
		err = b.writeTable(layOut(rules(t, nil), rules(t, nil).Hash(), 1, ""), known)
	}
	b.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	apply(t, b, rules(t, func(c *masq.Config, _ *masq.Options) { c.EnforceNonMasquerade = true }), 2)
	held, err := b.Held(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := held.Counters[0]; c.Packets != 7 || c.Bytes != 620 || c.Connections != 2 {
		t.Errorf("the counters started anew: %+v", c)
	}
}

func TestLargeSetsThroughASmallBuffer(t *testing.T) {
	many := func(n int) masq.RuleSet {
		return rules(t, func(c *masq.Config, _ *masq.Options) {
			for i := range n {
				c.NonMasquerade = append(c.NonMasquerade, masq.Range{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 7), byte(i << 1), 0}), 24)})
			}
		})
	}
	ns := netnstest.New(t)
	b := open(t, ns, Options{SendBuffer: 150_000})
	for _, n := range []int{6000, 10, 7000, 7001, 0} {
		if c := apply(t, b, many(n), uint64(n)); !c.Wrote {
			t.Fatalf("%d ranges: nothing written", n)
		}
		b.mu.Lock()
		known, err := b.read()
		b.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if d := compare(known.layout, layOut(many(n), many(n).Hash(), uint64(n), known.suffix())); !d.empty() {
			t.Fatalf("%d ranges: the kernel holds something else: %v", n, d.describe())
		}
	}
}

func TestRemoveTakesOnlyOurs(t *testing.T) {
	ns := netnstest.New(t)
	nft := netnstest.Program(t, "nft")
	netnstest.Run(t, ns, "add table inet theirs; add table ip nat", nft, "-f", "-")
	before := list(t, ns)
	b := open(t, ns, Options{})
	apply(t, b, rules(t, nil), 1)
	if what, err := b.Remove(t.Context(), true); err != nil || len(what) != 1 || list(t, ns) == before {
		t.Errorf("a dry run: %v, %v", what, err)
	}
	if what, err := b.Remove(t.Context(), false); err != nil || len(what) != 1 || list(t, ns) != before {
		t.Errorf("removed %v, %v; left\n%s", what, err, list(t, ns))
	}
	if what, err := b.Remove(t.Context(), false); err != nil || len(what) != 0 {
		t.Errorf("removed again: %v, %v", what, err)
	}
}

// TestNFTReadsInterfaceNames: the kernel does not care for the byte order that
// a set claims, but who lists it does.
func TestNFTReadsInterfaceNames(t *testing.T) {
	ns := netnstest.New(t)
	apply(t, open(t, ns, Options{}), rules(t, func(c *masq.Config, _ *masq.Options) { c.OutputInterfaces = []string{"eth0"} }), 1)
	if got := list(t, ns); !strings.Contains(got, `elements = { "eth0" }`) {
		t.Errorf("nft lists\n%s", got)
	}
}
