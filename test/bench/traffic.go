package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"sordino/internal/testnet"
)

// newConnections: UDP datagrams from a Pod, each with another destination, so
// that each is the first packet of a connection. UDP and not TCP, because the
// rules see first packets only: a handshake and a close around each would be
// three quarters of the time, the same on both sides, and hide what the rules
// cost. The destinations are a hundred addresses, spread among the exempt
// ranges and each between two of them, so that no search ends early, with so
// many ports each that source ports never run out; and the node's connection
// table is emptied before it is large.
func newConnections(ctx context.Context, b *bench) ([]row, error) {
	const many, destinations = 10_000, 100
	var rows []row
	for _, of := range []struct {
		backend, target string
		traffic         traffic
	}{
		{"nftables", "≥ 0.95", traffic{networks: 16, rounds: 100, batch: 500}},
		// Every connection passes 10,000 rules one by one.
		{"iptables", "", traffic{networks: 2, rounds: 40, batch: 50}},
	} {
		side := func(count int) side {
			return side{"translated", func(ctx context.Context, l *lane) error {
				return l.agent(ctx, neighbours(count), "--backend="+of.backend)
			}}
		}
		of.traffic.send = func(l *lane, round int) error {
			for i := range of.traffic.batch {
				flow := round*of.traffic.batch + i
				at := unix.SockaddrInet4{Addr: between(flow % destinations * (many / destinations)).As4(), Port: 1024 + flow/destinations}
				if err := l.datagram(&at); err != nil {
					return err
				}
			}
			return nil
		}
		base, measured, err := compare(ctx, b, of.traffic, side(3), side(many))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", of.backend, err)
		}
		rows = append(rows, row{
			fmt.Sprintf("new connections with %d CIDRs, %s backend", many, of.backend), perSecond(measured, of.traffic.batch),
			"with 3: " + perSecond(base, of.traffic.batch), ratio(base, measured), of.target, reaches(base, measured) || of.target == "",
		})
	}
	return rows, nil
}

// forwarding: the throughput of one established TCP connection, with the
// segmentation offload that Pods have by default. The baseline is a node with one
// rule that does nothing but turn connection tracking on: it does not
// translate, the agent's does, so the cost of the translation is in the ratio.
//
// For information, the same with small datagrams that share nothing with each
// other: the most that the rules and the translation can cost a packet, on a
// path that has no hardware on it.
func forwarding(ctx context.Context, b *bench) ([]row, error) {
	sides := func(prepare func(*lane) error) (plain, with side) {
		plain = side{"untranslated", func(_ context.Context, l *lane) error {
			if err := load(l.Node, "table inet plain { chain forward { type filter hook forward priority 0; ct state established accept; }; }"); err != nil {
				return err
			}
			return prepare(l)
		}}
		with = side{"translated", func(ctx context.Context, l *lane) error {
			if err := l.agent(ctx, list(64, 0)); err != nil {
				return err
			}
			return prepare(l)
		}}
		return plain, with
	}
	const pieces = 50
	plain, with := sides((*lane).connect)
	bytes := traffic{networks: 8, rounds: 100, established: true, send: func(l *lane, _ int) error { return l.transfer(pieces) }}
	base, measured, err := compare(ctx, b, bytes, plain, with)
	if err != nil {
		return nil, err
	}
	rows := []row{{
		"forwarding an established flow, TCP throughput", gigabits(pieces*len(outgoing), measured),
		"routing with conntrack: " + gigabits(pieces*len(outgoing), base), ratio(base, measured), "≥ 0.95", reaches(base, measured),
	}}
	plain, with = sides((*lane).establish)
	packets := traffic{networks: 8, rounds: 100, batch: 1000, established: true}
	packets.send = func(l *lane, _ int) error {
		for range packets.batch {
			if err := l.datagram(&service); err != nil {
				return err
			}
		}
		return nil
	}
	if base, measured, err = compare(ctx, b, packets, plain, with); err != nil {
		return nil, err
	}
	return append(rows, row{
		"forwarding an established flow, 64-byte datagrams", perSecond(measured, packets.batch),
		"routing with conntrack: " + perSecond(base, packets.batch), ratio(base, measured), "", true,
	}), nil
}

// reaches reports whether what is measured is at least 0.95 times as fast.
func reaches(base, measured time.Duration) bool { return float64(base) >= 0.95*float64(measured) }

// side is one of two that are compared.
type side struct {
	// seen is the counter that every packet has to be in.
	seen string
	// prepare brings the rules into the network's node.
	prepare func(context.Context, *lane) error
}

// traffic is what both sides have to bear.
type traffic struct {
	// networks is how often the comparison is made, each time in two new
	// networks: how fast one is depends on where its memory lies too.
	networks int
	// rounds is how often the two take turns, and batch how many packets each
	// sends then.
	rounds, batch int
	// established says that no connection may be forgotten.
	established bool
	// send is one turn, which is timed.
	send func(l *lane, round int) error
}

// compare returns the time that a turn takes on each side: of all networks'
// medians the mean. The sides take turns every few milliseconds, so that
// whatever else the machine does meets both.
func compare(ctx context.Context, b *bench, t traffic, base, measured side) (baseTime, measuredTime time.Duration, err error) {
	sides := [2]side{base, measured}
	var sum [2]time.Duration
	for n := range t.networks {
		err := func() (err error) {
			var lanes [2]*lane
			for i := range lanes {
				// The one that is made first is not always the same.
				which := (i + n) % 2
				l, err := newLane(ctx, b.sub(fmt.Sprint("network", n, which)), sides[which])
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, l.close()) }()
				lanes[which] = l
			}
			took, err := alternate(ctx, t, lanes)
			if err != nil {
				return err
			}
			for i, l := range lanes {
				if err := l.verify(); err != nil {
					return err
				}
				sum[i] += percentile(took[i], 50)
			}
			return nil
		}()
		if err != nil {
			return 0, 0, err
		}
	}
	return sum[0] / time.Duration(t.networks), sum[1] / time.Duration(t.networks), nil
}

// lane is a network whose service counts what reaches it, and drops datagrams.
//
// A veth pair hands a packet on within the sending system call: the time of
// the call is the whole way through Pod, node and service, and one processor
// does all of it.
type lane struct {
	*node
	side   side
	watch  *watch
	socket int
	sent   uint64 // datagrams
	// client and server are the two ends of the TCP connection.
	client, server net.Conn
}

// service is where the datagrams of the established flow go, and own where all
// datagrams come from.
var (
	service = unix.SockaddrInet4{Addr: testnet.Service4.As4(), Port: 5000}
	own     = unix.SockaddrInet4{Addr: testnet.Pod4.As4(), Port: 40000}
)

func newLane(ctx context.Context, b *bench, s side) (_ *lane, err error) {
	n, err := newNode(b, "")
	if err != nil {
		return nil, err
	}
	l := &lane{node: n, side: s, socket: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	err = n.Pod.Do(func() (err error) {
		if l.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(l.socket, &own)
	})
	if err != nil {
		return nil, fmt.Errorf("opening a socket in the Pod: %w", err)
	}
	if err := s.prepare(ctx, l); err != nil {
		return nil, err
	}
	l.watch, err = newWatch(n.Service, "prerouting", []counted{
		{"translated", "ip saddr " + testnet.Node4.String(), ""},
		{"untranslated", "ip saddr " + testnet.Pod4.String(), ""},
		{"datagrams", "ip protocol udp", "drop"},
	})
	return l, err
}

func (l *lane) close() error {
	if l.socket >= 0 {
		_ = unix.Close(l.socket) // nothing was written that could be lost
	}
	for _, c := range []net.Conn{l.client, l.server} {
		if c != nil {
			_ = c.Close()
		}
	}
	return l.node.close()
}

// establish sends a datagram to the service and waits for the answer.
func (l *lane) establish() error {
	var server net.PacketConn
	err := l.Service.Do(func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(testnet.Service4, uint16(service.Port)).String())
		return err
	})
	if err != nil {
		return err
	}
	defer server.Close()
	if err := unix.Sendto(l.socket, payload, 0, &service); err != nil {
		return err
	}
	if err := server.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	buffer := make([]byte, len(payload))
	_, peer, err := server.ReadFrom(buffer)
	if err != nil {
		return err
	}
	if _, err := server.WriteTo(buffer, peer); err != nil {
		return err
	}
	_, err = unix.Read(l.socket, buffer)
	return err
}

// payload is a small datagram's.
var payload = make([]byte, 64)

func (l *lane) datagram(to *unix.SockaddrInet4) error {
	if err := unix.Sendto(l.socket, payload, 0, to); err != nil {
		return fmt.Errorf("sending from the Pod: %w", err)
	}
	l.sent++
	return nil
}

// agent starts the agent and waits for its rules.
func (l *lane) agent(ctx context.Context, config string, flags ...string) error {
	if err := l.configure(config); err != nil {
		return err
	}
	if err := l.start(flags...); err != nil {
		return err
	}
	_, err := l.wait(ctx)
	return err
}

// connect opens the TCP connection.
func (l *lane) connect() error {
	var listener net.Listener
	err := l.Service.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(testnet.Service4, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	err = l.Pod.Do(func() (err error) {
		l.client, err = net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
		return err
	})
	if err != nil {
		return err
	}
	l.server, err = listener.Accept()
	return err
}

// transfer sends so much over the TCP connection, and takes every piece out at
// the other end before the next, so that one thread does it all.
func (l *lane) transfer(pieces int) error {
	for range pieces {
		if _, err := l.client.Write(outgoing); err != nil {
			return err
		}
		if _, err := io.ReadFull(l.server, incoming); err != nil {
			return err
		}
	}
	return nil
}

// outgoing is a piece of data, and incoming where it is read into: what fills
// the largest packet that segmentation offload makes of 1,448-byte segments,
// as those of a long transfer are.
var outgoing, incoming = make([]byte, 44*1448), make([]byte, 44*1448)

// forget empties the node's connection table.
func (n *node) forget() error {
	c, err := conntrack.Dial(&netlink.Config{NetNS: n.Node.FD()})
	if err != nil {
		return err
	}
	return errors.Join(c.Flush(), c.Close())
}

// verify makes sure that everything that was sent arrived, and with the
// address that it should have.
func (l *lane) verify() error {
	counts, err := l.watch.packets()
	if err != nil {
		return err
	}
	seen, all := counts[l.side.seen], counts["translated"]+counts["untranslated"]
	if seen == 0 || seen != all || counts["datagrams"] != l.sent {
		return fmt.Errorf("of %d datagrams, the service saw %v; all packets should be %s", l.sent, counts, l.side.seen)
	}
	return nil
}

// alternate sends through both lanes in turn and returns the times of the
// batches.
func alternate(ctx context.Context, t traffic, lanes [2]*lane) (took [2][]time.Duration, err error) {
	done := make(chan error, 1)
	go func() {
		// A thread of its own, thrown away afterwards, that nothing pushes aside;
		// a nice value would only count within the session. Without the right to
		// it the work goes on as it is.
		runtime.LockOSThread()
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		done <- func() error {
			for round := range t.rounds {
				if err := ctx.Err(); err != nil {
					return err
				}
				for i := range lanes {
					which := (i + round) % 2
					began := time.Now()
					if err := t.send(lanes[which], round); err != nil {
						return err
					}
					took[which] = append(took[which], time.Since(began))
				}
				if !t.established && round%25 == 24 {
					if err := errors.Join(lanes[0].forget(), lanes[1].forget()); err != nil {
						return err
					}
				}
			}
			return nil
		}()
	}()
	err = <-done
	return took, err
}

// neighbours is a configuration with so many ranges in a row, with gaps
// between them.
func neighbours(count int) string {
	var text strings.Builder
	fmt.Fprintf(&text, "cidrLimit: %d\nnonMasqueradeCIDRs:\n", count)
	for i := range count {
		fmt.Fprintf(&text, "- %s/30\n", neighbour(8*i+4))
	}
	return text.String()
}

// between is an address in one of the gaps.
func between(i int) netip.Addr { return neighbour(8*i + 1) }

func neighbour(offset int) netip.Addr {
	n := 203<<24 + offset
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// perSecond is how many a second there are when so many take so long.
func perSecond(took time.Duration, count int) string {
	return fmt.Sprintf("%.0f/s", float64(count)/took.Seconds())
}

func gigabits(bytes int, took time.Duration) string {
	return fmt.Sprintf("%.1f Gbit/s", float64(8*bytes)/1e9/took.Seconds())
}
