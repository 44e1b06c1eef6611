// Package probe sends single packets through a network and tells which source
// address the other side saw.
//
// It owns the service that answers and the packets that ask, in TCP, UDP and
// ICMP and both families; namespaces belong to the caller. It refuses to guess:
// an address is told only if the other side saw it.
//
// To debug it, ask a service by hand: connect to port 7000 by TCP, and it says
// who you are to it.
package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"sordino/internal/netns"
)

// Port is where every observer listens.
const Port = 7000

// Observer stands in one namespace and tells everybody who calls which address
// it sees them with.
type Observer struct {
	closers []interface{ Close() error }
	address net.Addr
	done    sync.WaitGroup
	seen    func(protocol string, from netip.Addr)

	mu    sync.Mutex
	pings map[string]netip.Addr // by token
	news  *sync.Cond
}

// Listen answers TCP and UDP at an address, as an ordinary user may.
func Listen(address string) (*Observer, error) {
	o := newObserver(func(string, netip.Addr) {})
	if err := o.listen(address); err != nil {
		return nil, errors.Join(fmt.Errorf("listening for probes: %w", err), o.Close())
	}
	return o, nil
}

func newObserver(seen func(protocol string, from netip.Addr)) *Observer {
	o := &Observer{pings: map[string]netip.Addr{}, seen: seen}
	o.news = sync.NewCond(&o.mu)
	return o
}

func (o *Observer) listen(address string) error {
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	o.closers, o.address = append(o.closers, tcp), tcp.Addr()
	o.done.Go(func() { o.serveTCP(tcp) })
	udp, err := net.ListenPacket("udp", tcp.Addr().String()) // also where any port will do
	if err != nil {
		return err
	}
	o.closers = append(o.closers, udp)
	o.done.Go(func() { o.serveUDP(udp) })
	return nil
}

// Address is where it listens for TCP and UDP.
func (o *Observer) Address() net.Addr { return o.address }

// Observe listens for TCP, UDP and ICMP of both families.
func Observe(ns *netns.NS) (*Observer, error) {
	return ObserveEach(ns, func(string, netip.Addr) {})
}

// ObserveEach is Observe, and tells of every caller by TCP and UDP.
func ObserveEach(ns *netns.NS, seen func(protocol string, from netip.Addr)) (*Observer, error) {
	o := newObserver(seen)
	var ping4, ping6 *icmp.PacketConn
	err := ns.Do(func() (err error) {
		if err := o.listen(fmt.Sprintf("[::]:%d", Port)); err != nil {
			return err
		}
		if ping4, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0"); err != nil {
			return err
		}
		o.closers = append(o.closers, ping4)
		if ping6, err = icmp.ListenPacket("ip6:ipv6-icmp", "::"); err != nil {
			return err
		}
		o.closers = append(o.closers, ping6)
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening for probes: %w", err), o.Close())
	}
	o.done.Go(func() { o.servePings(ping4, 1) })
	o.done.Go(func() { o.servePings(ping6, 58) })
	return o, nil
}

// Close ends the service and waits until it has ended.
func (o *Observer) Close() error {
	var errs []error
	for _, c := range o.closers {
		errs = append(errs, c.Close())
	}
	o.done.Wait()
	return errors.Join(errs...)
}

func (o *Observer) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, or the caller is gone already
			time.Sleep(10 * time.Millisecond)
			continue
		}
		from := addrOf(c.RemoteAddr())
		o.seen("tcp", from)
		_, _ = fmt.Fprintln(c, from)
		_ = c.Close()
	}
}

func (o *Observer) serveUDP(c net.PacketConn) {
	buffer := make([]byte, 512)
	for {
		_, from, err := c.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		o.seen("udp", addrOf(from))
		_, _ = c.WriteTo([]byte(addrOf(from).String()+"\n"), from)
	}
}

func (o *Observer) servePings(c *icmp.PacketConn, protocol int) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		m, err := icmp.ParseMessage(protocol, buffer[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEcho && m.Type != ipv6.ICMPTypeEchoRequest {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok {
			o.mu.Lock()
			o.pings[string(echo.Data)] = addrOf(from)
			o.mu.Unlock()
			o.news.Broadcast()
		}
	}
}

// pinged waits for an echo request with the token.
func (o *Observer) pinged(ctx context.Context, token string) (netip.Addr, error) {
	defer context.AfterFunc(ctx, o.news.Broadcast)()
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if a, ok := o.pings[token]; ok {
			delete(o.pings, token)
			return a, nil
		}
		if ctx.Err() != nil {
			return netip.Addr{}, ctx.Err()
		}
		o.news.Wait()
	}
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.TCPAddr:
		ip = a.IP
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

// Send sends one probe and returns the address that the other side saw. The
// protocol is "tcp", "udp" or "icmp"; the target is the observer at the address.
func Send(ctx context.Context, from *netns.NS, protocol string, to netip.Addr, target *Observer) (netip.Addr, error) {
	if protocol == "icmp" {
		return ping(ctx, from, to, target)
	}
	var conn net.Conn
	err := from.Do(func() (err error) {
		// The dialer must not hand the work to other threads: an address needs
		// no resolver, and one address no race of families.
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, protocol, netip.AddrPortFrom(to, Port).String())
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	return ask(ctx, conn, protocol)
}

// Ask sends one probe from where this program is by "tcp" or "udp", and returns
// the address that the observer saw.
func Ask(ctx context.Context, protocol string, to netip.AddrPort) (netip.Addr, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, protocol, to.String())
	if err != nil {
		return netip.Addr{}, err
	}
	return ask(ctx, conn, protocol)
}

// ask closes the connection.
func ask(ctx context.Context, conn net.Conn, protocol string) (netip.Addr, error) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if protocol == "udp" {
		if _, err := conn.Write([]byte("who am I?\n")); err != nil {
			return netip.Addr{}, err
		}
	}
	answer := make([]byte, 128)
	n, err := conn.Read(answer)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(string(bytes.TrimSpace(answer[:n])))
}

func ping(ctx context.Context, from *netns.NS, to netip.Addr, target *Observer) (netip.Addr, error) {
	network, listen := "ip4:icmp", "0.0.0.0"
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if to.Is6() {
		network, listen, kind = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest
	}
	var conn *icmp.PacketConn
	err := from.Do(func() (err error) {
		conn, err = icmp.ListenPacket(network, listen)
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails
	token := rand.Text()
	message, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: int(id[0])<<8 | int(id[1]), Seq: 1, Data: []byte(token)}}).Marshal(nil)
	if err != nil {
		return netip.Addr{}, err
	}
	if _, err := conn.WriteTo(message, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return netip.Addr{}, err
	}
	return target.pinged(ctx, token)
}
