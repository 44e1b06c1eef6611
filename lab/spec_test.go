package lab

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCheckNamesWhatCannotBeBuilt(t *testing.T) {
	invalid := netip.Addr{}
	for _, tc := range []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"empty name", func(s *Spec) { s.Nodes[0].Name = "" }, `the name ""`},
		{"name with a slash", func(s *Spec) { s.Nodes[0].Pods[0].Name = "../x" }, `the name "../x"`},
		{"upper case", func(s *Spec) { s.Outside[0].Name = "Service" }, `the name "Service": write lower case`},
		{"long name", func(s *Spec) { s.Outside[0].Name = strings.Repeat("a", 64) }, `at most 63`},
		{"dash last", func(s *Spec) { s.Outside[0].Name = "a-" }, `no dash last`},
		{"the router's name", func(s *Spec) { s.Nodes[0].Name = "vpc" }, `the name "vpc" is the router's`},
		{"node and Pod of one name", func(s *Spec) { s.Nodes[0].Pods[0].Name = "node-2" }, `the name "node-2" is used twice`},
		{"no address", func(s *Spec) { s.Nodes[0].Pods[0].Addresses = nil }, `pod-1 has no address`},
		{"empty address", func(s *Spec) { s.Nodes[0].Addresses[0] = invalid }, `node-1: an address is empty`},
		{"IPv4 in IPv6", func(s *Spec) { s.Outside[0].Addresses = addrs("::ffff:203.0.113.1") }, `service: ::ffff:203.0.113.1 is not a plain address`},
		{"zone", func(s *Spec) { s.Outside[0].Addresses = addrs("2001:db8::1%eth0") }, `2001:db8::1%eth0 is not a plain address`},
		{"the gateway", func(s *Spec) { s.Outside[0].Addresses = addrs("169.254.0.1") }, `169.254.0.1 is not a unicast address that can be routed`},
		{"link-local", func(s *Spec) { s.Outside[0].Addresses = addrs("fe80::1") }, `fe80::1 is not a unicast`},
		{"multicast", func(s *Spec) { s.Outside[0].Addresses = addrs("224.0.0.1") }, `224.0.0.1 is not a unicast`},
		{"loopback", func(s *Spec) { s.Outside[0].Addresses = addrs("127.0.0.1") }, `127.0.0.1 is not a unicast`},
		{"unspecified", func(s *Spec) { s.Outside[0].Addresses = addrs("::") }, `:: is not a unicast`},
		{"used twice", func(s *Spec) { s.Outside[0].Addresses = addrs("10.0.0.1") }, `service: 10.0.0.1 is the address of node-1 already`},
		{"two of a family", func(s *Spec) { s.Outside[0].Addresses = addrs("203.0.113.1", "203.0.113.2") }, `203.0.113.2 is a second address of its family`},
		{"Pod outside its ranges", func(s *Spec) { s.Nodes[0].Pods[0].Addresses = addrs("192.168.9.1") }, `pod-1: 192.168.9.1 is in none of the Pod ranges [192.168.1.0/24 fd00:c0a8:1::/48] of node node-1`},
		{"empty Pod range", func(s *Spec) { s.Nodes[0].PodRanges[0] = netip.Prefix{} }, `node-1: the Pod range invalid Prefix is not a range`},
		{"Pod range with bits", func(s *Spec) { s.Nodes[0].PodRanges[0] = netip.MustParsePrefix("192.168.1.1/24") }, `has bits behind its length: write 192.168.1.0/24`},
		{"two Pod ranges of a family", func(s *Spec) { s.Nodes[0].PodRanges[1] = netip.MustParsePrefix("192.168.7.0/24") }, `192.168.7.0/24 is a second Pod range of its family`},
		{"overlapping Pod ranges", func(s *Spec) { s.Nodes[1].PodRanges[0] = netip.MustParsePrefix("192.168.0.0/16") }, `node-2: the Pod range 192.168.0.0/16 overlaps with 192.168.1.0/24 of node node-1`},
		{"Pod range of another family than the node", func(s *Spec) { s.Nodes[0].Addresses = addrs("10.0.0.1") }, `node-1: the Pod range fd00:c0a8:1::/48 needs an address of its family on the node`},
		{"node in a Pod range", func(s *Spec) { s.Nodes[0].Addresses[0] = netip.MustParseAddr("192.168.2.200") }, `node-1: 192.168.2.200 is in the Pod range 192.168.2.0/24 of node node-2`},
		{"service in a Pod range", func(s *Spec) { s.Outside[0].Addresses = addrs("192.168.2.200") }, `service: 192.168.2.200 is in the Pod range`},
		{"allowed range with bits", func(s *Spec) { s.Outside[0].Allow = prefixes("10.1.2.3/8") }, `service: the allowed range 10.1.2.3/8 has bits behind its length: write 10.0.0.0/8`},
		{"empty allowed range", func(s *Spec) { s.Outside[0].Allow = []netip.Prefix{{}} }, `service: the allowed range invalid Prefix is not a range`},
		{"Service address of nobody", func(s *Spec) { s.Services[0].Pod = netip.MustParseAddr("192.168.1.99") }, `Service address 172.20.0.10: 192.168.1.99 is not the address of a Pod`},
		{"Service address without a Pod", func(s *Spec) { s.Services[0].Pod = invalid }, `is not the address of a Pod`},
		{"Service address of another family", func(s *Spec) { s.Services[0].Pod = s.Services[1].Pod }, `the Pod's address fd00:c0a8:2::2 is of the other family`},
		{"Service address in use", func(s *Spec) { s.Services[0].Address = s.Nodes[0].Addresses[0] }, `Service address 10.0.0.1: 10.0.0.1 is the address of node-1 already`},
		{"Service address twice", func(s *Spec) { s.Services[1] = s.Services[0] }, `172.20.0.10 is the address of Service address 172.20.0.10 already`},
		{"empty Service address", func(s *Spec) { s.Services[0].Address = invalid }, `an address is empty`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := example(2)
			tc.change(&s)
			if err := s.Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestCheckReportsAllAtOnceAndInOrder(t *testing.T) {
	s := example(2)
	s.Nodes[0].Name, s.Outside[0].Name = "A", "B"
	err := s.Check()
	if err == nil {
		t.Fatal("accepted")
	}
	for range 20 {
		if again := s.Check(); again.Error() != err.Error() {
			t.Fatalf("another order:\n%v\n%v", err, again)
		}
	}
	if first, second := strings.Index(err.Error(), `"A"`), strings.Index(err.Error(), `"B"`); first < 0 || second < first {
		t.Error(err)
	}
}

func TestCheckAcceptsWhatCanBeBuilt(t *testing.T) {
	for n := 1; n < 4; n++ {
		if err := example(n).Check(); err != nil {
			t.Error(err)
		}
	}
	if err := (Spec{}).Check(); err != nil {
		t.Error(err)
	}
}

func TestLinkNamesFitTheKernelAndStayApart(t *testing.T) {
	long := strings.Repeat("n", 60)
	seen := map[string]string{}
	// The last two were the same with a sum of the kind that strings often get.
	for _, name := range []string{"lo", "eth0", "all", "default", "sit0", "pod-1", "twelve-bytes", "thirteen-byte", long + "a", long + "b", "a-long-name-ao", "a-long-name-c0"} {
		got := endName(name)
		if len(got) > 15 || !strings.HasPrefix(got, "to-") || got == "to-" {
			t.Errorf("%q gives %q", name, got)
		}
		if other, is := seen[got]; is {
			t.Errorf("%q and %q give the same %q", name, other, got)
		}
		seen[got] = name
	}
}

func TestCheckFindsEqualLinkNames(t *testing.T) {
	// A link's name is in use by the name that it is made of.
	long := "a-name-that-is-too-long"
	s := example(1)
	s.Nodes[0].Pods[0].Name = long
	s.Nodes[0].Pods = append(s.Nodes[0].Pods, Pod{strings.TrimPrefix(endName(long), "to-"), addrs("192.168.1.3")})
	if err := s.Check(); err == nil || !strings.Contains(err.Error(), "give the same link name") || !strings.Contains(err.Error(), long) {
		t.Error(err)
	}
}

// Names that the kernel or the lab itself uses for links.
func TestLinksNamedLikeTheKernelsOwn(t *testing.T) {
	l := newLab(t)
	s := example(1)
	for i, name := range []string{"lo", "eth0", "all", "default", "sit0", "tunl0"} {
		s.Nodes[0].Pods = append(s.Nodes[0].Pods, Pod{name, addrs("192.168.1.1" + string(rune('0'+i)))})
	}
	apply(t, l, s)
	if changes := apply(t, l, s); len(changes) != 0 {
		t.Errorf("the second Apply changed %q", changes)
	}
}
