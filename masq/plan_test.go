package masq

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func ranges(source string, texts ...string) []Range {
	var out []Range
	for i, t := range texts {
		out = append(out, Range{netip.MustParsePrefix(t), Origin{Source: source, Line: i + 1, Column: 3}})
	}
	return out
}

func given(texts ...string) Config {
	c := DefaultConfig(false)
	c.NonMasquerade, c.NonMasqueradeGiven = ranges("config", texts...), true
	return c
}

func texts(list []Interval) string {
	var out []string
	for _, iv := range list {
		out = append(out, iv.String())
	}
	return strings.Join(out, " ")
}

func TestExemptRanges(t *testing.T) {
	cluster := ClusterRanges{Node: ranges("flag", "10.0.0.0/8"), Pod: ranges("flag", "192.168.0.0/16", "fd00:c0a8::/32")}
	inverse := func(c Config, list ...string) Config {
		c.Masquerade = ranges("config", list...)
		return c
	}
	for _, tc := range []struct {
		name   string
		config Config
		opts   Options
		v4, v6 string
	}{
		{"defaults", DefaultConfig(false), Options{}, "10.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.168.0.0/16", ""},
		{"reserved", DefaultConfig(true), Options{}, "10.0.0.0/8 100.64.0.0/10 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4", ""},
		{"an empty list exempts link-local alone", given(), Options{IPv6: true}, "169.254.0.0/16", "fe80::/10"},
		{"overlaps and neighbours merge", given("10.0.0.0/9", "10.128.0.0/9", "10.1.2.0/24"), Options{}, "10.0.0.0/8 169.254.0.0/16", ""},
		{"everything", given("0.0.0.0/0"), Options{}, "0.0.0.0/0", ""},
		{"the cluster is exempt whatever the list says", given("1.2.3.0/24"), Options{Cluster: cluster, IPv6: true},
			"1.2.3.0/24 10.0.0.0/8 169.254.0.0/16 192.168.0.0/16", "fd00:c0a8::/32 fe80::/10"},
		{"but not in upstream's way", given("1.2.3.0/24"), Options{Cluster: cluster, UpstreamCompat: true}, "1.2.3.0/24 169.254.0.0/16", ""},
		{"the longest prefix wins", inverse(given("10.0.0.0/8", "10.1.2.0/24"), "10.1.0.0/16"), Options{},
			"10.0.0.0/16 10.1.2.0/24 10.2.0.0-10.255.255.255 169.254.0.0/16", ""},
		{"a tie masquerades", inverse(given("10.0.0.0/8"), "10.0.0.0/8"), Options{}, "169.254.0.0/16", ""},
		{"only these", inverse(DefaultConfig(false), "203.0.113.0/24"), Options{IPv6: true},
			"0.0.0.0-203.0.112.255 203.0.114.0-255.255.255.255", "::/0"},
		{"only these, to the last address", inverse(DefaultConfig(false), "128.0.0.0/1"), Options{}, "0.0.0.0/1 169.254.0.0/16", ""},
		{"the cluster stands above the inverse list", inverse(given(), "0.0.0.0/0", "192.168.1.0/24"), Options{Cluster: cluster},
			"10.0.0.0/8 169.254.0.0/16 192.168.0.0/16", ""},
		{"one address of link-local", inverse(given(), "169.254.169.254/32"), Options{}, "169.254.0.0-169.254.169.253 169.254.169.255-169.254.255.255", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rs, _, err := Plan(tc.config, tc.opts, Facts{})
			if err != nil {
				t.Fatal(err)
			}
			if got := texts(rs.Families[0].Exempt); got != tc.v4 {
				t.Errorf("IPv4: got  %s\n      want %s", got, tc.v4)
			}
			v6, _ := rs.Of(IPv6)
			if got := texts(v6.Exempt); got != tc.v6 {
				t.Errorf("IPv6: got %s\n     want %s", got, tc.v6)
			}
		})
	}
}

func TestReturnsKeepTheFilesOrder(t *testing.T) {
	c := given("192.168.0.0/16", "10.0.0.0/8", "10.0.0.0/8")
	rs, _, err := Plan(c, Options{Cluster: ClusterRanges{Pod: ranges("flag", "172.20.0.0/16", "10.4.0.0/14")}}, Facts{})
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix
	want := []Return{{p("169.254.0.0/16"), false}, {p("192.168.0.0/16"), false}, {p("10.0.0.0/8"), false}, {p("10.0.0.0/8"), false}, {p("172.20.0.0/16"), true}}
	if diff := cmp.Diff(want, rs.Families[0].Returns.All(), comparePrefixes); diff != "" {
		t.Error(diff)
	}
}

// What a cluster has set aside for a node's Pods exempts, and limits nothing.
func TestThisNodesPods(t *testing.T) {
	aside := ranges("Node n1, spec.podCIDRs", "10.88.1.0/24")
	config := given("1.2.3.0/24")
	config.Cluster.ThisNodesPods = aside
	for _, tc := range []struct {
		name, route, pods string
		src, dst          string
		want              Action
		finding           string // of PodsElsewhere, empty for none
	}{
		{"a Pod of the range", "10.88.1.7/32", "", "10.88.1.7", "203.0.113.10", Masquerade, ""},
		{"between Pods of the range", "10.88.1.7/32", "", "10.88.1.7", "10.88.1.8", Exempt, ""},
		{"a Pod with another address", "10.99.0.4/32", "", "10.99.0.4", "203.0.113.10", Masquerade, "this node routes to 10.99.0.4/32 dev veth1, outside of the Pod ranges that are set aside for it (Node n1, spec.podCIDRs:1:3)"},
		{"given ranges decide", "10.88.1.7/32", "10.88.0.0/16", "10.99.0.4", "203.0.113.10", Untouched, ""},
		{"given ranges without it", "10.99.0.4/32", "10.99.0.0/16", "10.88.1.7", "203.0.113.10", Untouched, "the Pod ranges that were given (from flag --pod-cidrs:1:3) do not hold 10.88.1.0/24 (from Node n1, spec.podCIDRs:1:3)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts := Options{}
			if tc.pods != "" {
				opts.Cluster.Pod = ranges("flag --pod-cidrs", tc.pods)
			}
			facts := Facts{LocalRoutes: []LocalRoute{{netip.MustParsePrefix(tc.route), "veth1"}}}
			v, err := Explain(config, opts, facts, Flow{Src: netip.MustParseAddr(tc.src), Dst: netip.MustParseAddr(tc.dst)})
			if err != nil || v.Action != tc.want {
				t.Errorf("%+v, %v", v, err)
			}
			_, findings, err := Plan(config, opts, facts)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			for _, f := range findings {
				if f.Code == PodsElsewhere {
					got += f.Message
				}
			}
			if tc.finding == "" && got != "" || !strings.Contains(got, tc.finding) {
				t.Errorf("found %q, want %q", got, tc.finding)
			}
		})
	}
}

func TestFindings(t *testing.T) {
	cluster := ClusterRanges{Node: ranges("flag", "10.0.0.0/8"), Pod: ranges("flag", "192.168.0.0/16")}
	route := LocalRoute{netip.MustParsePrefix("192.168.1.2/32"), "veth1"}
	for _, tc := range []struct {
		name   string
		config Config
		opts   Options
		want   []FindingCode
	}{
		{"covered", DefaultConfig(false), Options{Cluster: cluster}, nil},
		{"not listed", given("1.2.3.0/24"), Options{Cluster: cluster}, []FindingCode{ClusterRangeNotListed, ClusterRangeNotListed}},
		{"nothing known", given("1.2.3.0/24"), Options{}, []FindingCode{LocalRouteMasqueraded, PodRangesUnknown}},
		{"upstream's way", given("1.2.3.0/24"), Options{Cluster: cluster, UpstreamCompat: true}, []FindingCode{ClusterRangeNotListed, ClusterRangeNotListed, LocalRouteMasqueraded}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, findings, err := Plan(tc.config, tc.opts, Facts{LocalRoutes: []LocalRoute{route}})
			if err != nil {
				t.Fatal(err)
			}
			var got []FindingCode
			for _, f := range findings {
				got = append(got, f.Code)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s\n%v", diff, findings)
			}
		})
	}
}

func TestSNATAddress(t *testing.T) {
	facts := Facts{Addresses: []NodeAddress{
		{"eth0", netip.MustParsePrefix("10.0.0.11/24")}, {"eth1", netip.MustParsePrefix("10.1.0.12/24")}, {"eth1", netip.MustParsePrefix("10.1.0.7/24")},
	}}
	c := given()
	c.SNATAddress = ranges("config", "10.1.0.0/16")
	rs, _, err := Plan(c, Options{IPv6: true}, facts)
	if err != nil {
		t.Fatal(err)
	}
	if got := rs.Families[0].SNAT; got != netip.MustParseAddr("10.1.0.7") {
		t.Errorf("chose %v, want the lowest address in the range", got)
	}
	if rs.Families[1].SNAT.IsValid() {
		t.Error("IPv6 got an address though none was asked for")
	}
	c.SNATAddress = ranges("config", "10.9.0.0/16")
	_, _, err = Plan(c, Options{}, facts)
	var want *SNATAddressError
	if !errors.As(err, &want) || !strings.Contains(err.Error(), "config:1:3: snatAddress 10.9.0.0/16") || !strings.Contains(err.Error(), "10.0.0.11, 10.1.0.12, 10.1.0.7") {
		t.Errorf("got %v", err)
	}
}

func TestExplain(t *testing.T) {
	facts := Facts{Addresses: []NodeAddress{{"eth0", netip.MustParsePrefix("10.0.0.11/24")}}}
	cluster := ClusterRanges{Pod: ranges("flag", "192.168.0.0/16")}
	c := given("172.16.0.0/12")
	c.OutputInterfaces = []string{"eth0"}
	for _, tc := range []struct {
		src, dst, out string
		opts          Options
		action        Action
		reason        string
	}{
		{"192.168.1.2", "203.0.113.10", "eth0", Options{Cluster: cluster}, Masquerade, "no non-masquerade range holds 203.0.113.10"},
		{"192.168.1.2", "203.0.113.10", "eth1", Options{Cluster: cluster}, Untouched, "leaves by eth1"},
		{"192.168.1.2", "172.16.5.5", "eth0", Options{Cluster: cluster}, Exempt, "config:1:3"},
		{"192.168.1.2", "192.168.2.2", "eth0", Options{Cluster: cluster}, Exempt, "always exempt"},
		{"192.168.1.2", "192.168.2.2", "eth0", Options{Cluster: cluster, UpstreamCompat: true}, Masquerade, "no non-masquerade range"},
		{"10.0.0.11", "203.0.113.10", "eth0", Options{Cluster: cluster}, Untouched, "not in a Pod range"},
		{"10.0.0.11", "203.0.113.10", "eth0", Options{}, Untouched, "address of this node itself"},
		{"10.0.0.11", "203.0.113.10", "eth0", Options{UpstreamCompat: true}, Masquerade, ""},
		{"192.168.1.2", "10.0.0.11", "", Options{Cluster: cluster}, Untouched, "address of this node"},
		{"192.168.1.2", "239.1.1.1", "eth0", Options{Cluster: cluster}, Untouched, "multicast"},
		{"192.168.1.2", "10.0.0.255", "eth0", Options{Cluster: cluster}, Untouched, "broadcast"},
		{"192.168.1.2", "169.254.169.254", "eth0", Options{Cluster: cluster}, Exempt, "link-local"},
		{"fd00::1", "2001:db8::1", "eth0", Options{Cluster: cluster}, Untouched, "IPv6 is not enabled"},
	} {
		v, err := Explain(c, tc.opts, facts, Flow{Src: netip.MustParseAddr(tc.src), Dst: netip.MustParseAddr(tc.dst), OutputInterface: tc.out})
		if err != nil {
			t.Fatal(err)
		}
		if v.Action != tc.action || !strings.Contains(v.Reason, tc.reason) {
			t.Errorf("%s to %s by %s: got %s, %q; want %s, %q", tc.src, tc.dst, tc.out, v.Action, v.Reason, tc.action, tc.reason)
		}
	}
	if _, err := Explain(c, Options{}, facts, Flow{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("::1")}); err == nil {
		t.Error("two families in one flow are accepted")
	}
}

// genPrefix draws from a small space, so that prefixes nest, touch and tie.
func genPrefix(family Family) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		low := rapid.Uint8().Draw(t, "low")
		if family == IPv6 {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: low}), rapid.SampledFrom([]int{0, 7, 120, 121, 124, 126, 127, 128}).Draw(t, "bits")).Masked()
		}
		high := rapid.SampledFrom([]byte{0, 10, 169, 255}).Draw(t, "high")
		second := rapid.SampledFrom([]byte{0, 254}).Draw(t, "second")
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{high, second, 0, low}), rapid.SampledFrom([]int{0, 1, 8, 15, 16, 24, 25, 28, 30, 31, 32}).Draw(t, "bits")).Masked()
	})
}

func genRanges(t *rapid.T, label string, most int) []Range {
	var list []Range
	for i, p := range rapid.SliceOfN(rapid.OneOf(genPrefix(IPv4), genPrefix(IPv6)), 0, most).Draw(t, label) {
		list = append(list, Range{p, Origin{Source: label, Line: i + 1, Column: 1}})
	}
	return list
}

func genConfig(t *rapid.T) (Config, Options) {
	c := DefaultConfig(false)
	if rapid.Bool().Draw(t, "list given") {
		c.NonMasquerade, c.NonMasqueradeGiven = genRanges(t, "nonMasqueradeCIDRs", 8), true
	}
	if rapid.Bool().Draw(t, "inverse given") {
		c.Masquerade = genRanges(t, "masqueradeCIDRs", 8)
	}
	c.MasqLinkLocal = rapid.Bool().Draw(t, "masqLinkLocal")
	o := Options{IPv6: true, UpstreamCompat: rapid.Bool().Draw(t, "compat")}
	o.Cluster.Node = genRanges(t, "node-cidrs", 2)
	o.Cluster.Pod = genRanges(t, "pod-cidrs", 2)
	return c, o
}

// exemptOracle answers for one address by looking at every entry.
func exemptOracle(c Config, o Options, a netip.Addr) bool {
	if !o.UpstreamCompat && slices.ContainsFunc(ClusterOf(c, o).All(), func(r Range) bool { return r.Prefix.Contains(a) }) {
		return true
	}
	best, exempt := -1, len(c.Masquerade) > 0 && !c.NonMasqueradeGiven
	consider := func(p netip.Prefix, isExempt bool) {
		if p.Contains(a) && (p.Bits() > best || p.Bits() == best && !isExempt) {
			best, exempt = p.Bits(), isExempt
		}
	}
	if a.Is4() && !c.MasqLinkLocal || a.Is6() && !c.MasqLinkLocalIPv6 {
		consider(FamilyOf(a).LinkLocal(), true)
	}
	if c.NonMasqueradeGiven || len(c.Masquerade) == 0 {
		for _, r := range c.NonMasquerade {
			consider(r.Prefix, true)
		}
	}
	for _, r := range c.Masquerade {
		consider(r.Prefix, false)
	}
	return exempt
}

func TestPlanAgreesWithTheOracleAndWithExplain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, o := genConfig(t)
		rs, _, err := Plan(c, o, Facts{})
		if err != nil {
			t.Fatal(err)
		}
		family := rapid.SampledFrom([]Family{IPv4, IPv6}).Draw(t, "family")
		p := genPrefix(family).Draw(t, "destination")
		for _, a := range []netip.Addr{p.Addr(), LastAddr(p)} {
			fr, _ := rs.Of(family)
			_, got := find(fr.Exempt, a)
			if want := exemptOracle(c, o, a); got != want {
				t.Fatalf("%s: exempt is %t, the oracle says %t; rules:\n%s", a, got, want, rs.Canonical())
			}
			src := netip.MustParseAddr("192.0.2.1")
			if family == IPv6 {
				src = netip.MustParseAddr("2001:db8::1")
			}
			v, err := Explain(c, o, Facts{}, Flow{Src: src, Dst: a})
			if err != nil {
				t.Fatal(err)
			}
			if v.Action != Untouched && (v.Action == Exempt) != got {
				t.Fatalf("%s: Explain says %s (%s), the rules say exempt=%t", a, v.Action, v.Reason, got)
			}
		}
	})
}

func TestPlanDoesNotCareForOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, o := genConfig(t)
		first, _, err := Plan(c, o, Facts{})
		if err != nil {
			t.Fatal(err)
		}
		again, _, _ := Plan(c, o, Facts{})
		if diff := cmp.Diff(first, again, compareAddrs, comparePrefixes, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal("the same input gave another plan: ", diff)
		}
		c.NonMasquerade = rapid.Permutation(c.NonMasquerade).Draw(t, "shuffled")
		if len(c.Masquerade) > 0 {
			c.Masquerade = rapid.Permutation(c.Masquerade).Draw(t, "shuffled inverse")
		}
		o.Cluster.Node = rapid.Permutation(o.Cluster.Node).Draw(t, "shuffled nodes")
		shuffled, _, _ := Plan(c, o, Facts{})
		if diff := cmp.Diff(string(first.Canonical()), string(shuffled.Canonical())); diff != "" {
			t.Fatal(diff)
		}
		if first.Hash() != shuffled.Hash() {
			t.Fatal("equal text, other hash")
		}
	})
}

func TestIntervalPrefixesAreExactAndFew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint32().Draw(t, "a"), rapid.Uint32().Draw(t, "b")
		if a > b {
			a, b = b, a
		}
		iv := Interval{addr4(a), addr4(b)}
		prefixes := iv.Prefixes()
		next := iv.First
		for _, p := range prefixes {
			if p.Addr() != next || p != p.Masked() {
				t.Fatalf("%s splits into %v", iv, prefixes)
			}
			next = LastAddr(p).Next()
		}
		if LastAddr(prefixes[len(prefixes)-1]) != iv.Last {
			t.Fatalf("%s splits into %v", iv, prefixes)
		}
		if len(prefixes) > 62 {
			t.Fatalf("%d prefixes for %s", len(prefixes), iv)
		}
		if p, one := iv.Prefix(); one != (len(prefixes) == 1) || one && p != prefixes[0] {
			t.Fatalf("%s is one prefix: %t %v, but splits into %v", iv, one, p, prefixes)
		}
	})
}

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// parsePrefixes takes what is a prefix of a list as a configuration would.
func parsePrefixes(list string) (out []Range) {
	for text := range strings.SplitSeq(list, ",") {
		if p, err := netip.ParsePrefix(text); err == nil && p == p.Masked() && !p.Addr().Is4In6() {
			out = append(out, Range{Prefix: p, Origin: Origin{Source: "fuzz", Line: 1, Column: 1}})
		}
	}
	return out
}

// FuzzPlan holds the intervals of a plan to looking at every entry, at the
// address and at both edges of the interval that holds it, or of the gap.
func FuzzPlan(f *testing.F) {
	for _, s := range [][4]string{
		{"10.0.0.0/8,10.1.2.0/24", "10.1.0.0/16", "192.168.0.0/16", "10.1.2.3"},
		{"0.0.0.0/0", "", "", "255.255.255.255"},
		{"", "0.0.0.0/0,255.255.255.255/32", "10.0.0.0/8", "0.0.0.0"},
		{"128.0.0.0/1,0.0.0.0/1", "128.0.0.0/1", "", "127.255.255.255"},
		{"::/0", "8000::/1,::/128", "fd00::/8", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"", "fe80::/64", "", "fe80::1"},
		{"169.254.0.0/16", "169.254.169.254/32", "", "169.254.169.254"},
	} {
		f.Add(s[0], s[1], s[2], s[3], true, false)
		f.Add(s[0], s[1], s[2], s[3], false, true)
	}
	f.Fuzz(func(t *testing.T, exempt, masquerade, cluster, destination string, given, upstream bool) {
		a, err := netip.ParseAddr(destination)
		if err != nil || a.Is4In6() || a.Zone() != "" {
			return
		}
		c := DefaultConfig(false)
		if given {
			c.NonMasquerade, c.NonMasqueradeGiven = parsePrefixes(exempt), true
		}
		c.Masquerade = parsePrefixes(masquerade)
		o := Options{IPv6: true, UpstreamCompat: upstream, Cluster: ClusterRanges{Pod: parsePrefixes(cluster)}}
		rs, _, err := Plan(c, o, Facts{})
		if err != nil {
			t.Fatal(err)
		}
		fr, _ := rs.Of(FamilyOf(a))
		check := func(a netip.Addr) {
			t.Helper()
			if _, got := find(fr.Exempt, a); got != exemptOracle(c, o, a) {
				t.Errorf("%s: exempt is %t, the oracle says %t; rules:\n%s", a, got, !got, rs.Canonical())
			}
		}
		check(a)
		for i, iv := range fr.Exempt {
			if i > 0 && !fr.Exempt[i-1].Last.Next().Less(iv.First) {
				t.Errorf("%s and %s are not apart", fr.Exempt[i-1], iv)
			}
			for _, edge := range []netip.Addr{iv.First, iv.Last, iv.First.Prev(), iv.Last.Next()} {
				if edge.IsValid() {
					check(edge)
				}
			}
		}
	})
}

func TestUnionIsMergeOfBoth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		intervals := func(label string) []Interval {
			var out []Interval
			for _, r := range genRanges(t, label, 12) {
				if FamilyOf(r.Prefix.Addr()) == IPv4 {
					out = append(out, intervalOf(r.Prefix))
				}
			}
			return merge(out)
		}
		a, b := intervals("a"), intervals("b")
		want := texts(merge(slices.Concat(a, b)))
		room := make([]Interval, len(b))
		if got := texts(union(append(room, a...), len(b), b)); got != want {
			t.Fatalf("%s and %s: got %s, want %s", texts(a), texts(b), got, want)
		}
	})
}

func TestHashIsOfCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, o := genConfig(t)
		rs, _, err := Plan(c, o, Facts{})
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(rs.Canonical())
		if want := hex.EncodeToString(sum[:8]); rs.Hash() != want {
			t.Fatalf("got %s, want %s", rs.Hash(), want)
		}
	})
}

func TestReturnsSurviveJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, o := genConfig(t)
		rs, _, err := Plan(c, o, Facts{})
		if err != nil {
			t.Fatal(err)
		}
		for _, fr := range rs.Families {
			text, err := json.Marshal(fr.Returns)
			if err != nil {
				t.Fatal(err)
			}
			var list []Return
			var back Returns
			if err := errors.Join(json.Unmarshal(text, &list), json.Unmarshal(text, &back)); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(list, fr.Returns.All()) || !back.Equal(fr.Returns) {
				t.Fatalf("%s was written for %v", text, fr.Returns.All())
			}
		}
	})
}
