package agentconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"sordino/environment/address"
	"sordino/masq"
)

// plan is the defining page's example: nodes in 10.0.0.0/8, Pods elsewhere.
var plan = address.Plan{VPCNative: true, Ranges: []address.Range{
	{Kind: address.Nodes, Prefix: netip.MustParsePrefix("10.128.0.0/20"), By: address.Named},
	{Kind: address.Pods, Prefix: netip.MustParsePrefix("192.168.0.0/16"), By: address.Given},
	{Kind: address.Services, Prefix: netip.MustParsePrefix("172.16.0.0/20"), By: address.Chosen},
	{Kind: address.Master, Prefix: netip.MustParsePrefix("172.31.20.0/28"), By: address.Chosen},
}}

func TestCheck(t *testing.T) {
	const intro = "The agent's configuration would have traffic inside the cluster masqueraded: it does not cover the "
	const because = ". Non-masquerade destinations must at least include the cluster's node, Pod and Service ranges, because Cloud Composer uses intranode visibility. "
	for text, want := range map[string]string{
		"": "", "{}": "", "resyncInterval: 30s\n": "", "# nothing\n": "",
		"nonMasqueradeCIDRs: [10.0.0.0/8, 192.168.0.0/16, 172.16.0.0/12]\n": "",
		// Two halves cover a range as well as one.
		"nonMasqueradeCIDRs: [10.128.0.0/20, 192.168.0.0/17, 192.168.128.0/17, 172.16.0.0/20]\n": "",
		"nonMasqueradeCIDRs: [10.0.0.0/8]\n": "AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE " + intro + "Pod range 192.168.0.0/16, the Service range 172.16.0.0/20" + because +
			"Add to nonMasqueradeCIDRs: 192.168.0.0/16, 172.16.0.0/20.",
		"nonMasqueradeCIDRs: []\n": "AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE " + intro + "node range 10.128.0.0/20, the Pod range 192.168.0.0/16, the Service range 172.16.0.0/20" + because +
			"Add to nonMasqueradeCIDRs: 10.128.0.0/20, 192.168.0.0/16, 172.16.0.0/20.",
		// Half of a range is not the range.
		"nonMasqueradeCIDRs: [10.0.0.0/8, 192.168.0.0/17, 172.16.0.0/12]\n": "AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE " + intro + "Pod range 192.168.0.0/16" + because +
			"Add to nonMasqueradeCIDRs: 192.168.0.0/16.",
		"masqueradeCIDRs: [192.168.7.0/24]\n": "AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE " + intro + "Pod range 192.168.0.0/16" + because +
			"Take these ranges out of masqueradeCIDRs, or add to nonMasqueradeCIDRs: 192.168.0.0/16.",
		"masqueradeCIDRs: [203.0.113.0/24]\n": "",
		"podCIDRs: [192.168.0.0/16]\n":        "",
		"podCIDRs: [10.4.0.0/14]\n": "AGENT_CONFIG_CLUSTER_RANGE The agent's configuration gives podCIDRs 10.4.0.0/14 at config:1:12, and the environment's is 192.168.0.0/16. " +
			"The server sets it: leave the key out.",
	} {
		violations, err := Check(text, plan)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		var got []string
		for _, v := range violations {
			got = append(got, v.Reason+" "+v.Description)
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("%q:\ngot  %s\nwant %s", text, strings.Join(got, "\n"), want)
		}
	}
}

func TestCheckNamesThePlace(t *testing.T) {
	violations, err := Check("nonMasqueradeCIDRs:\n- 10.0.0.1/8\n-\nresyncInterval: 60\n", plan)
	if err != nil {
		t.Fatal(err)
	}
	if len(violations) != 3 {
		t.Fatalf("%d violations: %v", len(violations), violations)
	}
	first := violations[0]
	if first.Reason != "AGENT_CONFIG_INVALID" || first.Metadata["line"] != "2" || first.Metadata["column"] != "3" ||
		!strings.HasPrefix(first.Description, "The agent's configuration is invalid at config:2:3: ") || !strings.Contains(first.Description, "10.0.0.0/8") {
		t.Errorf("got %+v", first)
	}
}

func TestEffective(t *testing.T) {
	for text, want := range map[string]string{
		"": "[10.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.168.0.0/16]",
		"nonMasqueradeCIDRs: [10.0.0.0/8, 192.168.0.0/16, 172.16.0.0/12, 203.0.113.0/24]\nmasqLinkLocal: true": "[10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 203.0.113.0/24]",
		"nonMasqueradeCIDRs: []": "[10.128.0.0/20 169.254.0.0/16 172.16.0.0/20 192.168.0.0/16]",
	} {
		got, err := Effective(text, plan)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v %v, want %s", text, got, err, want)
		}
	}
	if _, err := Effective("nonMasqueradeCIDRs: [x]", plan); err == nil {
		t.Error("a text that is invalid has effective ranges")
	}
}

// The cluster's ranges are exempt, whatever the user's configuration that
// passed the check.
func TestTheClusterIsExempt(t *testing.T) {
	texts := []string{"", "{}", "null", "---\n", "# c", `{"nonMasqueradeCIDRs": ["10.0.0.0/8","192.168.0.0/16","172.16.0.0/12"]}`,
		"nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - 192.168.0.0/16\n  - 172.16.0.0/12\nmasqLinkLocal: true", "cidrLimit: 100\n---\na: b\n", "a: &x [10.0.0.0/8]\n"}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom(texts).Draw(t, "text")
		pods := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(rapid.IntRange(11, 126).Draw(t, "octet")), 0, 0, 0}), 16)
		p := address.Plan{VPCNative: true, Ranges: []address.Range{plan.Ranges[0], {Kind: address.Pods, Prefix: pods}, plan.Ranges[2]}}
		if violations, err := Check(text, p); err != nil || len(violations) > 0 {
			return // a list that does not hold these Pods
		}
		effective, err := Effective(text, p)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		for _, e := range p.InCluster() {
			if !slices.ContainsFunc(effective, func(r netip.Prefix) bool { return r.Contains(e.Prefix.Addr()) && r.Contains(masq.LastAddr(e.Prefix)) }) {
				t.Fatalf("%s %s is masqueraded with %q: %v", e.Kind, e.Prefix, text, effective)
			}
		}
	})
}

func FuzzCheck(f *testing.F) {
	f.Add("nonMasqueradeCIDRs: [10.0.0.0/8]")
	f.Add("{a: &b c, <<: *b}")
	f.Fuzz(func(t *testing.T, text string) {
		violations, err := Check(text, plan)
		if err != nil || len(violations) > 0 {
			return
		}
		if _, err := Effective(text, plan); err != nil {
			t.Errorf("%q passes the check, and is refused: %v", text, err)
		}
	})
}
