package main

import (
	"context"
	"errors"
	"fmt"
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

// newConnections: UDP datagrams from a Pod, each to another destination, so
// that each is the first packet of a connection. UDP and not TCP, because the
// rules see first packets only: a handshake and a close around each would be
// three quarters of the time, the same on both sides, and hide what the rules
// cost. The destinations are spread among the exempt ranges, between two of
// them each, so that no search of a set ends early; there are so many of them
// that source ports never run out; and the node's connection table is emptied
// before it is large.
func newConnections(ctx context.Context, b *bench) ([]row, error) {
	const many = 10_000
	var rows []row
	for _, of := range []struct {
		backend, target string
		traffic         traffic
	}{
		{"nftables", "≥ 0.95", traffic{networks: 10, rounds: 100, batch: 500}},
		// Every connection passes 10,000 rules one by one.
		{"iptables", "", traffic{networks: 2, rounds: 40, batch: 50}},
	} {
		side := func(count int) side {
			return side{"translated", func(ctx context.Context, l *lane) error {
				if err := l.configure(neighbours(count)); err != nil {
					return err
				}
				if err := l.start("--backend=" + of.backend); err != nil {
					return err
				}
				_, err := l.wait(ctx)
				return err
			}}
		}
		flow := 0
		of.traffic.next = func(to []unix.SockaddrInet4) {
			for i := range to {
				to[i] = unix.SockaddrInet4{Addr: between(flow % many).As4(), Port: 1024 + flow/many}
				flow++
			}
		}
		base, measured, err := compare(ctx, b, of.traffic, side(3), side(many))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", of.backend, err)
		}
		rows = append(rows, row{
			"new connections with " + fmt.Sprint(many) + " CIDRs, " + of.backend + " backend", perSecond(measured),
			"with 3: " + perSecond(base), ratio(base, measured), of.target, float64(base) >= 0.95*float64(measured) || of.target == "",
		})
	}
	return rows, nil
}

// forwarding: datagrams of one established UDP connection, small and without
// any offload, so that what is done for every packet shows most. The baseline
// is a node with one rule that does nothing but turn connection tracking on:
// it does not translate, the agent's does, so the cost of the translation is
// in the ratio too.
func forwarding(ctx context.Context, b *bench) ([]row, error) {
	plain := side{"untranslated", func(_ context.Context, l *lane) error {
		if err := load(l.Node, "table inet plain { chain forward { type filter hook forward priority 0; ct state established accept; }; }"); err != nil {
			return err
		}
		return l.establish()
	}}
	with := side{"translated", func(ctx context.Context, l *lane) error {
		if err := l.configure(list(64, 0)); err != nil {
			return err
		}
		if err := l.start(); err != nil {
			return err
		}
		if _, err := l.wait(ctx); err != nil {
			return err
		}
		return l.establish()
	}}
	base, measured, err := compare(ctx, b, traffic{networks: 10, rounds: 100, batch: 1000, established: true, next: func(to []unix.SockaddrInet4) {
		for i := range to {
			to[i] = service
		}
	}}, plain, with)
	if err != nil {
		return nil, err
	}
	return []row{{
		"forwarding an established flow, packets", perSecond(measured),
		"routing with conntrack: " + perSecond(base), ratio(base, measured), "≥ 0.95", float64(base) >= 0.95*float64(measured),
	}}, nil
}

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
	next        func([]unix.SockaddrInet4)
}

// compare returns the time that a packet takes on each side: of all networks'
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
	packets := time.Duration(t.networks * t.batch)
	return sum[0] / packets, sum[1] / packets, nil
}

// lane is a network whose service counts what reaches it and drops it.
//
// A veth pair hands a packet on within the sending system call: the time of
// the call is the whole way through Pod, node and service, and one processor
// does all of it.
type lane struct {
	*node
	side   side
	watch  *watch
	socket int
	sent   uint64
}

// service is where the packets of the established flow go, and own where
// everything comes from.
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
		{"translated", "ip saddr 10.0.0.11 udp sport != 0", ""},
		{"untranslated", "ip saddr 192.168.0.0/16 udp sport != 0", ""},
		{"arrived", "udp sport != 0", "drop"},
	})
	return l, err
}

func (l *lane) close() error {
	if l.socket >= 0 {
		_ = unix.Close(l.socket) // nothing was written that could be lost
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

// send sends a datagram to every destination and takes the time.
func (l *lane) send(to []unix.SockaddrInet4) (time.Duration, error) {
	began := time.Now()
	for i := range to {
		if err := unix.Sendto(l.socket, payload, 0, &to[i]); err != nil {
			return 0, fmt.Errorf("sending from the Pod: %w", err)
		}
	}
	took := time.Since(began)
	l.sent += uint64(len(to))
	return took, nil
}

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
	if counts["arrived"] != l.sent || counts[l.side.seen] != l.sent {
		return fmt.Errorf("of %d packets, the service saw %v; all should be %s", l.sent, counts, l.side.seen)
	}
	return nil
}

// alternate sends through both lanes in turn and returns the times of the
// batches.
func alternate(ctx context.Context, t traffic, lanes [2]*lane) (took [2][]time.Duration, err error) {
	done := make(chan error, 1)
	go func() {
		// A thread of its own, thrown away afterwards, that others should not
		// push aside. Without the right to that it goes on as it is.
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
		done <- func() error {
			to := make([]unix.SockaddrInet4, t.batch)
			for round := range t.rounds {
				if err := ctx.Err(); err != nil {
					return err
				}
				t.next(to)
				for i := range lanes {
					which := (i + round) % 2
					d, err := lanes[which].send(to)
					if err != nil {
						return err
					}
					took[which] = append(took[which], d)
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

// perSecond is how many of what takes so long fit into a second.
func perSecond(each time.Duration) string {
	return fmt.Sprintf("%.0f/s", float64(time.Second)/float64(each))
}
