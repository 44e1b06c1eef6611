// Package nfnotify listens to what the kernel announces about nftables
// changes, and can stop listening for a while.
//
// Stopping matters because of what it costs to be listened to: while anybody
// in the namespace listens, the kernel allocates one buffer of several
// kilobytes for every element of a transaction, so that loading 100,000 ranges
// takes a gigabyte and seconds instead of a third of one. To see it, run
// "nft monitor" beside "nft -f" with a large set.
package nfnotify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
)

// Listeners are those of one process in one network namespace. The zero value
// is ready.
type Listeners struct {
	mu    sync.Mutex
	conns map[*netlink.Conn]bool
}

// Dial opens a netfilter socket in the namespace. The library's own way to do
// that always calls setns, which takes CAP_SYS_ADMIN.
func Dial(ns *netns.NS) (conn *netlink.Conn, err error) {
	err = ns.Do(func() error {
		conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	return conn, err
}

// Listen hands notifications to heard until the context ends. It calls
// listening when it begins, and lost whenever notifications were or may have
// been missed: somebody was Quiet, or they came faster than they were read.
func (l *Listeners) Listen(ctx context.Context, ns *netns.NS, heard func([]netlink.Message), listening, lost func()) error {
	conn, err := Dial(ns)
	if err != nil {
		return fmt.Errorf("opening netfilter netlink: %w", err)
	}
	defer conn.Close()
	// Other components write large rule sets; what does not fit is lost.
	_ = conn.SetReadBuffer(1 << 20)
	if err := l.add(conn); err != nil {
		return fmt.Errorf("subscribing to nftables notifications: %w", err)
	}
	defer l.remove(conn)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	listening()
	for {
		messages, err := conn.Receive()
		var timeout interface{ Timeout() bool }
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &timeout) && timeout.Timeout():
			if err := conn.SetReadDeadline(time.Time{}); err != nil {
				return fmt.Errorf("reading nftables notifications: %w", err)
			}
			lost()
		case errors.Is(err, syscall.ENOBUFS):
			lost()
		case err != nil:
			return fmt.Errorf("reading nftables notifications: %w", err)
		default:
			heard(messages)
		}
	}
}

// Quiet runs write while none of the listeners listens, and lets them know
// that they were deaf.
func (l *Listeners) Quiet(write func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		_ = conn.LeaveGroup(unix.NFNLGRP_NFTABLES) // fails only when it is closed
	}
	err := write()
	for conn := range l.conns {
		// A listener that cannot join again must not stay deaf.
		if joinErr := conn.JoinGroup(unix.NFNLGRP_NFTABLES); joinErr != nil {
			_ = conn.Close()
		}
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	}
	return err
}

func (l *Listeners) add(conn *netlink.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = map[*netlink.Conn]bool{}
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return err
	}
	l.conns[conn] = true
	return nil
}

func (l *Listeners) remove(conn *netlink.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}
