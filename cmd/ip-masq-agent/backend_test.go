package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sordino/internal/netns"
	"sordino/internal/netnstest"
	"sordino/internal/nfnotify"
	"sordino/masq"
)

// hold makes a namespace's kernel hold the default rules with a backend, as a
// run of the agent does.
func hold(t *testing.T, ns *netns.NS, backend string) (removed []string) {
	t.Helper()
	f := newFlags()
	f.backend = backend
	if err := f.resolve(); err != nil {
		t.Fatal(err)
	}
	rules, _, err := masq.Plan(masq.DefaultConfig(false), f.options, masq.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	netnstest.Do(t, ns, func() (err error) {
		var listeners nfnotify.Listeners
		log := slog.New(slog.DiscardHandler)
		b, err := openBackend(t.Context(), f, &listeners, log)
		if err != nil {
			return err
		}
		defer closing(&err, b)
		others, err := openPredecessors(f, b, &listeners, log)
		if err != nil {
			return err
		}
		defer closing(&err, others)
		if _, err := b.Apply(t.Context(), rules, 1); err != nil {
			return err
		}
		removed, _, err = others.Remove(t.Context())
		return err
	})
	return removed
}

// TestTheOtherBackendsRulesGo: what an earlier run left with the other backend
// would go on deciding, whatever the configuration says by then.
func TestTheOtherBackendsRulesGo(t *testing.T) {
	netnstest.Program(t, "iptables")
	ns := netnstest.New(t)
	held := func(want ...string) {
		t.Helper()
		ruleset := netnstest.Run(t, ns, "", netnstest.Program(t, "nft"), "list", "ruleset")
		for _, text := range []string{"table inet " + ownTable + " ", "chain IP-MASQ-AGENT "} {
			if is, wanted := strings.Contains(ruleset, text), strings.Contains(strings.Join(want, " "), text); is != wanted {
				t.Errorf("%q is there: %v\n%s", text, is, ruleset)
			}
		}
	}
	netnstest.Run(t, ns, "", netnstest.Program(t, "iptables-nft"), "-t", "nat", "-N", "KUBE-POSTROUTING") // decides the flavour
	hold(t, ns, "nftables")
	held("table inet " + ownTable + " ")
	if removed := hold(t, ns, "iptables"); len(removed) != 1 || !strings.Contains(removed[0], "table inet "+ownTable) {
		t.Errorf("removed %v", removed)
	}
	held("chain IP-MASQ-AGENT ")
	if removed := hold(t, ns, "nftables"); len(removed) != 1 || !strings.Contains(removed[0], "chain IP-MASQ-AGENT") {
		t.Errorf("removed %v", removed)
	}
	held("table inet " + ownTable + " ")
}

// invoke runs one inside a namespace.
func invoke(t *testing.T, ns *netns.NS, args ...string) (status int, stdout string) {
	t.Helper()
	var out, errs bytes.Buffer
	netnstest.Do(t, ns, func() error {
		status = run(t.Context(), append([]string{args[0], "--state-dir=", "--config=" + t.TempDir() + "/none"}, args[1:]...), strings.NewReader(""), &out, &errs)
		return nil
	})
	t.Logf("%v: exit %d\n%s%s", args, status, &out, &errs)
	return status, out.String()
}

// TestCleanupCanLeaveIPTablesAlone: an agent that takes over from us has a
// chain of the same name.
func TestCleanupCanLeaveIPTablesAlone(t *testing.T) {
	ns := netnstest.New(t)
	hold(t, ns, "nftables")
	iptables := netnstest.Program(t, "iptables-nft")
	netnstest.Run(t, ns, "", iptables, "-t", "nat", "-N", masq.DefaultChain)
	if status, out := invoke(t, ns, "cleanup", "--backend=nftables"); status != exitOK || out != "removed nftables table inet ip-masq-agent\n" {
		t.Errorf("exit %d: %s", status, out)
	}
	netnstest.Run(t, ns, "", iptables, "-t", "nat", "-S", masq.DefaultChain)
	if status, out := invoke(t, ns, "cleanup"); status != exitOK || !strings.Contains(out, "chain IP-MASQ-AGENT (nft)") {
		t.Errorf("exit %d: %s", status, out)
	}
}

// TestPlanListsNoChangesAsAList: null breaks scripts.
func TestPlanListsNoChangesAsAList(t *testing.T) {
	ns := netnstest.New(t)
	hold(t, ns, "nftables")
	status, out := invoke(t, ns, "plan", "--output=json")
	var report struct{ Changes []string }
	if err := json.Unmarshal([]byte(out), &report); err != nil || status != exitOK || report.Changes == nil || len(report.Changes) != 0 {
		t.Errorf("exit %d, %v: %s", status, err, out)
	}
}

// TestExplainKnowsTheOrderInIPTables: our chain has no priority of its own
// there, so what was appended before the jump decides before us.
func TestExplainKnowsTheOrderInIPTables(t *testing.T) {
	const (
		theirs = "-A POSTROUTING -s 192.168.0.0/16 -j MASQUERADE\n"
		jump   = `-A POSTROUTING -m comment --comment "ip-masq-agent: ours" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT` + "\n"
		ours   = "-A IP-MASQ-AGENT -s 192.168.0.0/16 -d 10.0.0.0/8 -j NETMAP --to 192.168.0.0/16\n"
	)
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte("enforceNonMasquerade: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flavour := range []string{"nft", "legacy"} {
		for name, tc := range map[string]struct {
			rules       string
			interfering bool
		}{
			"theirs first": {theirs + jump + ours, true},
			"ours first":   {jump + theirs + ours, false},
		} {
			t.Run(flavour+"/"+name, func(t *testing.T) {
				ns := netnstest.New(t)
				netnstest.Run(t, ns, "*nat\n:IP-MASQ-AGENT - [0:0]\n"+tc.rules+"COMMIT\n", netnstest.Program(t, "iptables-"+flavour+"-restore"), "--noflush")
				status, out := invoke(t, ns, "explain", "--backend=iptables", "--pod-cidrs=192.168.0.0/16", "--config="+config,
					"--src=192.168.1.2", "--dst=10.0.0.1", "--output=json")
				var report struct{ Interfering []struct{ BeforeOurs bool } }
				if err := json.Unmarshal([]byte(out), &report); err != nil || status != exitOK {
					t.Fatalf("exit %d, %v", status, err)
				}
				if len(report.Interfering) > 0 != tc.interfering || tc.interfering && !report.Interfering[0].BeforeOurs {
					t.Errorf("interfering %+v", report.Interfering)
				}
			})
		}
	}
}
