package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"sordino/internal/testnet"
	"sordino/masq"
	"sordino/masq/nftables"
)

const (
	swaps = 1000
	// every so many swaps the agent is ended during one of them, by SIGKILL
	// and by SIGTERM in turn: 50 times each.
	endEvery = 10
	// longLived is how many connections of every kind stay open.
	longLived = 4
	// answerTime is how long an answer may take before its connection counts
	// as lost. It is long: what is looked for never comes, and the machine may
	// have other work.
	answerTime = 5 * time.Second
)

// endurance: configurations that differ in every way are swapped, the agent
// is killed in the middle of swaps, and meanwhile connections of every kind
// are opened all the time and others kept talking. None of the configurations
// exempts the service.
//
// The service's kernel counts every packet by the address that it comes from,
// and what the Pod sent is counted where it leaves. That every swap came into
// force is read back from the kernel: the generation goes up by one each time,
// and the hash is the one that belongs to the configuration. Before the agent
// starts, the same traffic has to be seen with the Pod's address by the same
// counters.
func endurance(ctx context.Context, b *bench) (rows []row, err error) {
	n, err := newNode(b, shape(0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.Pod.Do(allowPing); err != nil {
		return nil, err
	}
	services, err := answer(n)
	if err != nil {
		return nil, err
	}
	defer services.close()
	seen, err := newWatch(n.Service, "prerouting", sources())
	if err != nil {
		return nil, err
	}

	// Without the agent every connection must show the Pod.
	for _, k := range kinds {
		err := n.Pod.Do(func() error { return k.once(ctx) })
		if err != nil {
			return nil, fmt.Errorf("before the agent: %s: %w", k.name, err)
		}
	}
	without, err := seen.packets()
	if err != nil {
		return nil, err
	}
	for _, k := range kinds {
		if without["pod_"+k.name] == 0 || without["node_"+k.name] != 0 {
			return nil, fmt.Errorf("before the agent: the service's counters do not see Pods: %v", without)
		}
	}
	services.seen.Store(0)

	kernel, err := holding(n)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	start := func() error {
		return n.start("--enable-ipv6", "--pod-cidrs="+testnet.PodRanges, "--node-cidrs="+testnet.NodeRanges)
	}
	if err := start(); err != nil {
		return nil, err
	}
	if _, err := n.process.Ready(ctx, n.Node, 1); err != nil {
		return nil, err
	}
	// No connection of before is left that could still show the Pod.
	if err := errors.Join(n.forget(), n.Node.Do(shortMemory)); err != nil {
		return nil, err
	}
	if seen, err = newWatch(n.Service, "prerouting", sources()); err != nil {
		return nil, err
	}
	sent, err := newWatch(n.Pod, "postrouting", []counted{{"to4", "ip daddr " + testnet.Service4.String(), ""}, {"to6", "ip6 daddr " + testnet.Service6.String(), ""}})
	if err != nil {
		return nil, err
	}

	load := newLoad(n, b.log)
	began := time.Now()
	if err := load.start(ctx); err != nil {
		return nil, errors.Join(err, load.stop())
	}
	kills, terms, err := n.disturb(ctx, kernel, start)
	took := time.Since(began)
	if err := errors.Join(err, load.stop()); err != nil {
		return nil, err
	}

	at, err := seen.packets()
	if err != nil {
		return nil, err
	}
	left, err := sent.packets()
	if err != nil {
		return nil, err
	}
	var nodes uint64
	for _, k := range kinds {
		// A second of each kind's traffic at the very least.
		if at["node_"+k.name] < swaps {
			return nil, fmt.Errorf("there was too little traffic to see anything: %v", at)
		}
		nodes += at["node_"+k.name]
	}
	pods := at["pod4"] + at["pod6"] + services.seen.Load()
	lost := load.lost.Load()
	missing := int64(left["to4"]+left["to6"]) - int64(nodes+at["pod4"]+at["pod6"])
	fmt.Fprintf(b.log, "endurance: %.0f s; the service counted %v; packets that left the Pod and did not arrive: %d\n", took.Seconds(), at, missing)
	without4 := without["pod4"] + without["pod6"]
	return []row{{
		fmt.Sprintf("%d swaps, %d SIGKILLs, %d SIGTERMs under new traffic", swaps, kills, terms),
		fmt.Sprintf("%d of %d packets with a Pod address; %d of %d new and %d long-lived connections lost", pods, nodes, lost, load.opened.Load(), len(kinds)*longLived),
		fmt.Sprintf("no agent: %d of %d packets", without4, without4), fmt.Sprintf("%.2f", float64(pods)/float64(nodes)),
		"0 packets, 0 connections", pods == 0 && lost == 0 && missing == 0 && kills == 50 && terms == 50,
	}}, nil
}

// disturb swaps configurations and ends agents.
func (n *node) disturb(ctx context.Context, kernel *nftables.Backend, start func() error) (kills, terms int, err error) {
	random := rand.New(rand.NewPCG(1, 2)) // the same moments every time
	first, err := kernel.Held(ctx)
	if err != nil {
		return 0, 0, err
	}
	hashes := map[string]string{shape(0): first.Hash}
	for i := 1; i <= swaps; i++ {
		text := shape(i)
		if err := n.configure(text); err != nil {
			return kills, terms, err
		}
		if i%endEvery == 0 {
			// Anywhere from before it looks to after it has written.
			time.Sleep(time.Duration(random.IntN(8000)) * time.Microsecond)
			if i/endEvery%2 == 0 {
				n.process.Kill()
				kills++
			} else if err := n.process.Stop(); err != nil {
				return kills, terms, err
			} else {
				terms++
			}
			if err := start(); err != nil {
				return kills, terms, err
			}
		}
		held, err := n.holds(ctx, kernel, first.Generation+uint64(i))
		if err != nil {
			return kills, terms, fmt.Errorf("after swap %d: %w", i, err)
		}
		if want, again := hashes[text]; again && want != held.Hash {
			return kills, terms, fmt.Errorf("after swap %d: the kernel holds hash %s; the same configuration had %s before", i, held.Hash, want)
		}
		hashes[text] = held.Hash
	}
	if distinct := len(slices.Compact(slices.Sorted(maps.Values(hashes)))); distinct != len(hashes) {
		return kills, terms, fmt.Errorf("%d configurations made only %d rule sets", len(hashes), distinct)
	}
	return kills, terms, nil
}

// holds waits until the kernel holds exactly this generation.
func (n *node) holds(ctx context.Context, kernel *nftables.Backend, generation uint64) (held masq.Held, err error) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Microsecond) {
		if held, err = kernel.Held(ctx); ctx.Err() != nil {
			return held, ctx.Err()
		}
		// An error is a table that is replaced while it is read.
		if err == nil && held.Generation >= generation {
			break
		}
		select {
		case <-n.process.Exited():
			return held, fmt.Errorf("the agent ended:\n%s", n.process.Log())
		default:
		}
	}
	if err != nil || held.Generation != generation {
		return held, fmt.Errorf("the kernel holds generation %d, should %d: %v\n%s", held.Generation, generation, err, n.process.Log())
	}
	return held, nil
}

// holding opens the node's kernel to read it beside the agent.
func holding(n *node) (kernel *nftables.Backend, err error) {
	err = n.Node.Do(func() (err error) {
		kernel, err = nftables.New(nftables.Options{})
		return err
	})
	return kernel, err
}

// shape is one of some configurations that have little in common with the one
// before, and none that exempts the service.
func shape(i int) string {
	short := fmt.Sprintf("[10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 198.18.%d.0/24, 'fd00::/8', '2001:db8:%x::/48']", i%40, 1+i%40)
	switch {
	case i%50 == 25: // several sets, filled before they come into force
		return list(12_000, i)
	case i%6 == 1:
		return "nonMasqueradeCIDRs: " + short + "\n"
	case i%6 == 2:
		return fmt.Sprintf("masqueradeCIDRs: [203.0.113.0/24, '2001:db8:113::/48', 198.51.%d.0/24]\n", i%40)
	case i%6 == 3:
		return list(2000, i) + "enforceNonMasquerade: true\n"
	case i%6 == 4:
		return "outputInterfaces: [eth0, eth1]\nnonMasqueradeCIDRs: " + short + "\n"
	case i%6 == 5:
		return "snatAddress: [10.0.0.0/24, 'fd00:a::/64']\nenforceNonMasquerade: true\nnonMasqueradeCIDRs: " + short + "\n"
	}
	return list(64, i)
}

// sources counts packets at the service by kind and source.
func sources() []counted {
	all := []counted{
		{"pod4", "ip saddr 192.168.0.0/16", ""},
		{"pod6", "ip6 saddr fd00:c0a8::/32", ""},
	}
	for _, k := range kinds {
		to := " " + k.family + " daddr " + k.service.String() + " " + k.match
		all = append(all,
			counted{"pod_" + k.name, k.family + " saddr " + k.pod.String() + to, ""},
			counted{"node_" + k.name, k.family + " saddr " + k.node.String() + to, ""})
	}
	return all
}

// kind is a protocol in a family.
type kind struct {
	name, family, match string // for nft
	network             string // for Go
	pod, node, service  netip.Addr
}

var kinds = []kind{
	{"tcp4", "ip", "meta l4proto tcp", "tcp4", testnet.Pod4, testnet.Node4, testnet.Service4},
	{"udp4", "ip", "meta l4proto udp", "udp4", testnet.Pod4, testnet.Node4, testnet.Service4},
	{"icmp4", "ip", "icmp type echo-request", "icmp", testnet.Pod4, testnet.Node4, testnet.Service4},
	{"tcp6", "ip6", "meta l4proto tcp", "tcp6", testnet.Pod6, testnet.Node6, testnet.Service6},
	{"udp6", "ip6", "meta l4proto udp", "udp6", testnet.Pod6, testnet.Node6, testnet.Service6},
	{"icmp6", "ip6", "icmpv6 type echo-request", "icmp", testnet.Pod6, testnet.Node6, testnet.Service6},
}

const (
	firstPort = 7000
	ports     = 32
)

// talk is an open connection.
type talk struct {
	conn   net.Conn
	lines  *bufio.Reader
	ping   *icmp.PacketConn
	kind   kind
	number int
	// peer is the address and port that the other side saw.
	peer string
}

// open opens a connection from the calling thread's namespace, which has to
// be the Pod's.
func (k kind) open(ctx context.Context, number int) (*talk, error) {
	t := &talk{kind: k}
	if k.network == "icmp" {
		network, any := "udp4", "0.0.0.0"
		if k.service.Is6() {
			network, any = "udp6", "::"
		}
		var err error
		t.ping, err = icmp.ListenPacket(network, any) // the kernel chooses the identifier
		return t, err
	}
	// One address, and no race of families: the dialer stays on this thread.
	dialer := net.Dialer{Timeout: answerTime, FallbackDelay: -1}
	var err error
	t.conn, err = dialer.DialContext(ctx, k.network, netip.AddrPortFrom(k.service, uint16(firstPort+number%ports)).String())
	if err == nil {
		t.lines = bufio.NewReader(t.conn)
	}
	return t, err
}

func (t *talk) close() {
	if t.conn != nil {
		_ = t.conn.Close()
	}
	if t.ping != nil {
		_ = t.ping.Close()
	}
}

// exchange sends something and waits for the answer to it.
func (t *talk) exchange() error {
	t.number++
	if t.ping != nil {
		return t.echo()
	}
	if err := t.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(t.conn, t.number); err != nil {
		return err
	}
	line, err := t.lines.ReadString('\n')
	if err != nil {
		return err
	}
	var number int
	var peer string
	if _, err := fmt.Sscan(line, &number, &peer); err != nil || number != t.number {
		return fmt.Errorf("sent %d, the answer is %q", t.number, line)
	}
	if t.peer != "" && t.peer != peer {
		return fmt.Errorf("the service saw %s, and %s before", peer, t.peer)
	}
	t.peer = peer
	return nil
}

func (t *talk) echo() error {
	var request icmp.Type = ipv4.ICMPTypeEcho
	var reply icmp.Type = ipv4.ICMPTypeEchoReply
	protocol := 1
	if t.kind.service.Is6() {
		request, reply, protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	message, err := (&icmp.Message{Type: request, Body: &icmp.Echo{Seq: t.number & 0xffff, Data: []byte("are you there?")}}).Marshal(nil)
	if err != nil {
		return err
	}
	if err := t.ping.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if _, err := t.ping.WriteTo(message, &net.UDPAddr{IP: t.kind.service.AsSlice()}); err != nil {
		return err
	}
	buffer := make([]byte, 256)
	n, _, err := t.ping.ReadFrom(buffer)
	if err != nil {
		return err
	}
	m, err := icmp.ParseMessage(protocol, buffer[:n])
	if err != nil {
		return err
	}
	if e, ok := m.Body.(*icmp.Echo); !ok || m.Type != reply || e.Seq != t.number&0xffff {
		return fmt.Errorf("sent echo %d, the answer is %v %v", t.number, m.Type, m.Body)
	}
	return nil
}

// once is a connection that has one thing to say.
func (k kind) once(ctx context.Context) error { return k.onceTo(ctx, 0) }

func (k kind) onceTo(ctx context.Context, number int) error {
	t, err := k.open(ctx, number)
	if err != nil {
		return err
	}
	defer t.close()
	return t.exchange()
}

// allowPing lets the Pod's processes open ICMP sockets that own an identifier.
func allowPing() error {
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
}

// shortMemory makes the node forget ended connections soon, so that its
// table does not fill up.
func shortMemory() error {
	var errs []error
	for _, key := range []string{"tcp_timeout_time_wait", "udp_timeout", "icmp_timeout", "icmpv6_timeout"} {
		errs = append(errs, os.WriteFile(filepath.Join("/proc/sys/net/netfilter", "nf_conntrack_"+key), []byte("12"), 0))
	}
	return errors.Join(errs...)
}

// podLoad is everything that the Pod says while the agent is disturbed.
type podLoad struct {
	node         *node
	log          io.Writer
	opened, lost atomic.Uint64
	cancel       context.CancelFunc
	workers      sync.WaitGroup

	mu        sync.Mutex
	exchanges []int // of every long-lived connection
	said      int
}

func newLoad(n *node, log io.Writer) *podLoad { return &podLoad{node: n, log: log} }

// start returns when every long-lived connection is open.
func (p *podLoad) start(ctx context.Context) error {
	ctx, p.cancel = context.WithCancel(ctx)
	for _, k := range kinds {
		for i := range longLived {
			var t *talk
			err := p.node.Pod.Do(func() (err error) {
				t, err = k.open(ctx, i)
				return err
			})
			if err == nil {
				err = t.exchange()
			}
			if err != nil {
				return fmt.Errorf("opening a long-lived %s connection: %w", k.name, err)
			}
			p.workers.Go(func() { p.keep(ctx, t) })
		}
		p.workers.Go(func() { p.renew(ctx, k) })
	}
	return nil
}

// keep exchanges data over one connection until the end.
func (p *podLoad) keep(ctx context.Context, t *talk) {
	defer t.close()
	for ctx.Err() == nil {
		if err := t.exchange(); err != nil {
			p.lose(t.kind, "long-lived", err)
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	p.mu.Lock()
	p.exchanges = append(p.exchanges, t.number)
	p.mu.Unlock()
}

// renew opens one connection after the other.
func (p *podLoad) renew(ctx context.Context, k kind) {
	err := p.node.Pod.Do(func() error {
		for number := 0; ctx.Err() == nil; number++ {
			p.opened.Add(1)
			// Not ended with the context: what has begun is finished.
			if err := k.onceTo(context.WithoutCancel(ctx), number); err != nil {
				p.lose(k, "new", err)
			}
			time.Sleep(500 * time.Microsecond)
		}
		return nil
	})
	if err != nil {
		p.lose(k, "new", err)
	}
}

func (p *podLoad) lose(k kind, which string, err error) {
	p.lost.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said++; p.said <= 10 {
		fmt.Fprintf(p.log, "lost a %s %s connection: %v\n", which, k.name, err)
	}
}

// stop ends the traffic, and makes sure that it went on all the time.
func (p *podLoad) stop() error {
	p.cancel()
	p.workers.Wait()
	for _, n := range p.exchanges {
		if n < swaps {
			return fmt.Errorf("a long-lived connection exchanged data %d times only", n)
		}
	}
	return nil
}

// services answer at the service and look at who is asking.
type services struct {
	closers []io.Closer
	workers sync.WaitGroup
	// seen counts who asked with an address that is not the node's.
	seen atomic.Uint64
}

func answer(n *node) (*services, error) {
	s := &services{}
	err := n.Service.Do(func() error {
		for _, address := range []netip.Addr{testnet.Service4, testnet.Service6} {
			for i := range ports {
				at := netip.AddrPortFrom(address, uint16(firstPort+i)).String()
				listener, err := net.Listen("tcp", at)
				if err != nil {
					return err
				}
				s.closers = append(s.closers, listener)
				s.workers.Go(func() { s.accept(listener) })
				conn, err := net.ListenPacket("udp", at)
				if err != nil {
					return err
				}
				s.closers = append(s.closers, conn)
				s.workers.Go(func() { s.datagrams(conn) })
			}
		}
		return nil
	})
	if err != nil {
		s.close()
	}
	return s, err
}

func (s *services) close() {
	for _, c := range s.closers {
		_ = c.Close()
	}
	s.workers.Wait()
}

func (s *services) look(peer net.Addr) {
	a, err := netip.ParseAddrPort(peer.String())
	if err != nil || a.Addr() != testnet.Node4 && a.Addr() != testnet.Node6 {
		s.seen.Add(1)
	}
}

func (s *services) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.look(c.RemoteAddr())
		// Ends with its client, whose connections all end before the network.
		go func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				if _, err := fmt.Fprintln(c, lines.Text(), c.RemoteAddr()); err != nil {
					return
				}
			}
		}()
	}
}

func (s *services) datagrams(c net.PacketConn) {
	buffer := make([]byte, 256)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		s.look(from)
		_, _ = fmt.Fprintln(writerTo{c, from}, strings.TrimSpace(string(buffer[:n])), from)
	}
}

// writerTo writes datagrams to one peer.
type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(p []byte) (int, error) { return w.WriteTo(p, w.to) }
