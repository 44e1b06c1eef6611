package testnet

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"sordino/internal/netnstest"
	"sordino/internal/testwait"
)

// Connection opens a TCP connection from the Pod to the service, and returns a
// function that uses it once.
func (n *Net) Connection(t testing.TB) (talk func(when string)) {
	t.Helper()
	var listener net.Listener
	netnstest.Do(t, n.Service, func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(Service4.String(), "0"))
		return err
	})
	defer listener.Close()
	var client net.Conn
	netnstest.Do(t, n.Pod, func() (err error) {
		client, err = net.DialTimeout("tcp", listener.Addr().String(), time.Minute)
		return err
	})
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return func(when string) {
		t.Helper()
		if _, err := client.Write([]byte("ping")); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		server.SetReadDeadline(time.Now().Add(time.Minute))
		if k, err := server.Read(make([]byte, 8)); err != nil || k != 4 {
			t.Fatalf("%s: the connection broke: %v", when, err)
		}
	}
}

// Stream sends first packets of ever new connections from the Pod to the service
// until it is stopped.
func (n *Net) Stream(t testing.TB) (stop func()) {
	t.Helper()
	var conn net.PacketConn
	netnstest.Do(t, n.Pod, func() (err error) {
		conn, err = net.ListenPacket("udp", net.JoinHostPort(Pod4.String(), "0"))
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for port := 1; ctx.Err() == nil; port = port%65535 + 1 {
			if _, err := conn.WriteTo([]byte("x"), &net.UDPAddr{IP: Service4.AsSlice(), Port: port}); err == nil {
				sent.Add(1)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		conn.Close()
	})
	// A busy machine may leave it standing: it runs before the change, and after.
	runs := func() {
		t.Helper()
		before := sent.Load()
		testwait.Until(t, time.Minute, time.Millisecond, func() error {
			if more := sent.Load() - before; more < 100 {
				return fmt.Errorf("only %d connections were opened", more)
			}
			return nil
		})
	}
	runs()
	return func() {
		t.Helper()
		runs()
		cancel()
		<-done
	}
}
