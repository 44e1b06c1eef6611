package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// reach sends a datagram from one namespace to an address and returns the
// address that the listener in another one sees, invalid for none within the
// time.
func reach(t *testing.T, l *Lab, from string, to netip.Addr, listener string, limit time.Duration) netip.Addr {
	t.Helper()
	var server net.PacketConn
	do(t, l, listener, func() (err error) {
		server, err = net.ListenPacket("udp", "[::]:7000")
		return err
	})
	defer server.Close()
	do(t, l, from, func() error {
		client, err := (&net.Dialer{}).DialContext(context.Background(), "udp", netip.AddrPortFrom(to, 7000).String())
		if err != nil {
			return err
		}
		_, err = client.Write([]byte("x"))
		return errors.Join(err, client.Close())
	})
	if err := server.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	_, source, err := server.ReadFrom(make([]byte, 8))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return netip.Addr{}
	}
	if err != nil {
		t.Fatal(err)
	}
	return source.(*net.UDPAddr).AddrPort().Addr().Unmap()
}

func TestPackets(t *testing.T) {
	l := newLab(t)
	s := example(2)
	apply(t, l, s)
	pod, other, node, service := s.Nodes[0].Pods[0], s.Nodes[1].Pods[0], s.Nodes[0], s.Outside[0]
	check := func(t *testing.T, from string, own, to netip.Addr, listener string) {
		t.Helper()
		if got := reach(t, l, from, to, listener, time.Minute); got != own {
			t.Errorf("%s to %s: %s saw %s, want %s", from, to, listener, got, own)
		}
	}
	dropped := func(t *testing.T, to netip.Addr) {
		t.Helper()
		if got := reach(t, l, pod.Name, to, service.Name, 100*time.Millisecond); got.IsValid() {
			t.Errorf("%s to %s: the firewall let %s in", pod.Name, to, got)
		}
	}
	for i := range 2 {
		check(t, pod.Name, pod.Addresses[i], other.Addresses[i], other.Name)
		check(t, pod.Name, pod.Addresses[i], s.Services[i].Address, other.Name)
		check(t, node.Name, node.Addresses[i], service.Addresses[i], service.Name)
		dropped(t, service.Addresses[i])
	}
	sources, err := l.Dropped(service.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range pod.Addresses {
		if !slices.Contains(sources, a) {
			t.Errorf("the firewall remembers %v, not %s", sources, a)
		}
	}
	if again, err := l.Dropped(service.Name); err != nil || slices.Contains(again, pod.Addresses[0]) {
		t.Errorf("the firewall still remembers %v, error %v", again, err)
	}

	t.Run("after a change", func(t *testing.T) {
		// The Pod moves to the other node, and the firewall lets it in.
		moved := example(2)
		moved.Nodes[0].Pods = nil
		moved.Nodes[1].Pods = append(moved.Nodes[1].Pods, Pod{pod.Name, addrs("192.168.2.8", "fd00:c0a8:2::8")})
		moved.Outside[0].Allow = prefixes("192.168.2.8/32", "fd00:c0a8:2::8/128", "192.168.0.0/16")
		moved.Services[0].Pod, moved.Services[1].Pod = netip.MustParseAddr("192.168.2.8"), netip.MustParseAddr("fd00:c0a8:2::8")
		apply(t, l, moved)
		for i, own := range moved.Nodes[1].Pods[1].Addresses {
			check(t, pod.Name, own, service.Addresses[i], service.Name)
			check(t, node.Name, node.Addresses[i], s.Services[i].Address, pod.Name)
		}
		if got := reach(t, l, node.Name, service.Addresses[0], service.Name, 100*time.Millisecond); got.IsValid() {
			t.Errorf("the firewall let %s in, which it does not allow any more", got)
		}
	})
}

func TestDroppedOfWhatHasNoFirewall(t *testing.T) {
	l := newLab(t)
	apply(t, l, example(1))
	for _, name := range []string{"pod-1", "nobody"} {
		if _, err := l.Dropped(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The firewall is asked while it drops packets of many sources.
func TestDroppedMeanwhile(t *testing.T) {
	l := newLab(t)
	s := example(1)
	apply(t, l, s)
	service := s.Outside[0].Name
	ns, err := l.Namespace(service)
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]bool{}
	sent := make(chan error)
	go func() {
		sent <- ns.Do(func() error {
			for i := range 3000 {
				from := netip.AddrFrom4([4]byte{127, 1, byte(i % 900 / 250), byte(i%250 + 1)})
				client, err := net.DialUDP("udp4", &net.UDPAddr{IP: from.AsSlice()}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
				if err != nil {
					return err
				}
				want[from] = true
				_, err = client.Write([]byte("x"))
				if err := errors.Join(err, client.Close()); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	got := map[netip.Addr]bool{}
	for last := false; ; {
		sources, err := l.Dropped(service)
		if err != nil {
			t.Error(err)
		}
		for _, a := range sources {
			got[a] = true
		}
		if last {
			break
		}
		select {
		case err := <-sent:
			if last = true; err != nil {
				t.Error(err)
			}
		default:
		}
	}
	for a := range want {
		if !got[a] {
			t.Errorf("%s was dropped and is not told of", a)
		}
	}
}
