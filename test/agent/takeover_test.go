package agent

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sordino/internal/agentproc"
	"sordino/internal/netnstest"
	"sordino/internal/testnet"
	"sordino/internal/testwait"
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
					talk, stop := n.connection(), n.stream()
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

// connection opens a TCP connection and returns a function that uses it once.
func (n *node) connection() func(when string) {
	n.Helper()
	var listener net.Listener
	netnstest.Do(n.T, n.Service, func() (err error) {
		listener, err = net.Listen("tcp", "203.0.113.10:0")
		return err
	})
	defer listener.Close()
	var client net.Conn
	netnstest.Do(n.T, n.Pod, func() (err error) {
		client, err = net.DialTimeout("tcp", listener.Addr().String(), time.Minute)
		return err
	})
	server, err := listener.Accept()
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { client.Close(); server.Close() })
	return func(when string) {
		n.Helper()
		if _, err := client.Write([]byte("ping")); err != nil {
			n.Fatalf("%s: %v", when, err)
		}
		server.SetReadDeadline(time.Now().Add(time.Minute))
		if k, err := server.Read(make([]byte, 8)); err != nil || k != 4 {
			n.Fatalf("%s: the connection broke: %v", when, err)
		}
	}
}

// stream sends first packets of ever new connections until it is stopped.
func (n *node) stream() (stop func()) {
	n.Helper()
	var conn net.PacketConn
	netnstest.Do(n.T, n.Pod, func() (err error) {
		conn, err = net.ListenPacket("udp", "192.168.1.2:0")
		return err
	})
	ctx, cancel := context.WithCancel(n.Context())
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for port := 1; ctx.Err() == nil; port = port%65535 + 1 {
			if _, err := conn.WriteTo([]byte("x"), &net.UDPAddr{IP: testnet.Service4.AsSlice(), Port: port}); err == nil {
				sent.Add(1)
			}
		}
	}()
	n.Cleanup(func() {
		cancel()
		<-done
		conn.Close()
	})
	// A busy machine may leave it standing: it runs before the change, and after.
	runs := func() {
		n.Helper()
		before := sent.Load()
		testwait.Until(n, time.Minute, time.Millisecond, func() error {
			if more := sent.Load() - before; more < 100 {
				return fmt.Errorf("only %d connections were opened", more)
			}
			return nil
		})
	}
	runs()
	return func() {
		n.Helper()
		runs()
		cancel()
		<-done
	}
}
