package agent

import (
	"fmt"
	"strings"
	"testing"

	"sordino/internal/agentproc"
	"sordino/internal/netnstest"
	"sordino/masq/xtables"
)

// The rules of the agents that are taken over, as each of them writes them;
// %s is the beginning of its comments.
const predecessor = `*nat
:%[1]s - [0:0]
-A POSTROUTING -m comment --comment "%[3]s%[2]s: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom %[1]s chain%[3]s" -m addrtype ! --dst-type LOCAL -j %[1]s
-A %[1]s -d 169.254.0.0/16 -m comment --comment "%[2]s: local traffic is not subject to MASQUERADE" -j RETURN
-A %[1]s -d 10.0.0.0/8 -m comment --comment "%[2]s: local traffic is not subject to MASQUERADE" -j RETURN
-A %[1]s -m comment --comment "%[2]s: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
COMMIT
`

// kubeProxy is what stays beside the agents.
const kubeProxy = `*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
COMMIT
`

// Taking over a node under traffic: not one packet reaches the service with a
// Pod's address, and a connection from before goes on.
func TestTakeOver(t *testing.T) {
	for name, p := range map[string]struct {
		rules, chain string
		flags        []string
	}{
		"upstream":     {fmt.Sprintf(predecessor, "IP-MASQ-AGENT", "ip-masq-agent", ""), "IP-MASQ-AGENT", nil},
		"GKE":          {fmt.Sprintf(predecessor, "IP-MASQ", "ip-masq", ""), "IP-MASQ", []string{"--masq-chain=IP-MASQ", "--nomasq-all-reserved-ranges"}},
		"GKE's beside": {fmt.Sprintf(predecessor, "IP-MASQ", "ip-masq", ""), "IP-MASQ", nil},
		"Azure":        {fmt.Sprintf(predecessor, "IP-MASQ-AGENT", "ip-masq-agent", `\"`), "IP-MASQ-AGENT", []string{"--v=2", "--resync-interval=60"}},
	} {
		for _, flavour := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
			for _, backend := range []string{"nftables", "iptables"} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, flavour, backend), func(t *testing.T) {
					n := newNode(t, append([]string{"--backend=" + backend}, p.flags...)...)
					// 203.0.113.0/24 is a reserved range, which GKE's flag would exempt.
					n.configure("nonMasqueradeCIDRs: [10.0.0.0/8]")
					program := netnstest.Program(t, "iptables-"+string(flavour)+"-restore")
					netnstest.Run(t, n.Node, kubeProxy, program, "--noflush")
					netnstest.Run(t, n.Node, p.rules, program, "--noflush")
					netnstest.Run(t, n.Service, `table ip watch {
						counter pods { }
						counter nodes { }
						chain in { type filter hook input priority 0; ip saddr 192.168.0.0/16 counter name pods; ip saddr 10.0.0.0/8 counter name nodes; }
					}`, netnstest.Program(t, "nft"), "-f", "-")
					talk, stop := n.Connection(n.T), n.Stream(n.T)
					talk("before")

					n.start()
					list := func() string { return n.run("iptables-"+string(flavour), "-t", "nat", "-S") }
					kept := backend == "iptables" && strings.Contains(strings.Join(n.flags, " "), "--masq-chain="+p.chain) == (p.chain != "IP-MASQ-AGENT")
					if s, err := agentproc.Status(t.Context(), n.Node); err != nil || !kept == strings.Contains(list(), p.chain+"\n") || len(s.Unreadable) > 0 {
						t.Errorf("%v, %v; left:\n%s\n%s", s.Unreadable, err, list(), n.proc.Log())
					}
					talk("after the take-over")
					stop()
					n.proc.Kill()
					talk("after the agent's end")
					if left := list(); strings.Count(left, "KUBE-POSTROUTING") != 4 || strings.Count(left, "-j "+p.chain+"\n") > 1 {
						t.Errorf("left:\n%s", left)
					}
					if out := netnstest.Run(t, n.Service, "", "nft", "list", "counters"); !strings.Contains(out, "counter pods {\n\t\tpackets 0 bytes 0") {
						t.Errorf("the service saw the Pod's address:\n%s", out)
					}
				})
			}
		}
	}
}
