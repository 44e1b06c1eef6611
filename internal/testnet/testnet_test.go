package testnet

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"sordino/internal/netnstest"
)

func TestThePodReachesTheService(t *testing.T) {
	netnstest.New(t) // fails or skips where namespaces cannot be had
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, tc := range []struct{ pod, service netip.Addr }{{Pod4, Service4}, {Pod6, Service6}} {
		var server, client net.PacketConn
		netnstest.Do(t, n.Service, func() (err error) {
			server, err = net.ListenPacket("udp", netip.AddrPortFrom(tc.service, 9).String())
			return err
		})
		defer server.Close()
		netnstest.Do(t, n.Pod, func() (err error) {
			client, err = net.ListenPacket("udp", netip.AddrPortFrom(tc.pod, 0).String())
			return err
		})
		defer client.Close()
		if _, err := client.WriteTo([]byte("x"), server.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		_, from, err := server.ReadFrom(make([]byte, 9))
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != client.LocalAddr().String() {
			t.Errorf("without an agent the service saw %s, want the Pod's %s", from, client.LocalAddr())
		}
	}
}
