package nftables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// notificationGroup is NFNLGRP_NFTABLES.
const notificationGroup = 7

// Watch calls touched when somebody else changes or removes our table, and once
// when it begins to listen, until the context ends. The kernel stamps every notification with the port of the
// socket that asked for the change, so our own writes are known.
func (b *Backend) Watch(ctx context.Context, touched func()) error {
	conn, err := b.raw()
	if err != nil {
		return err
	}
	defer conn.Close()
	// Other components write large rule sets; what does not fit is lost, and
	// ENOBUFS says so.
	_ = conn.SetReadBuffer(1 << 20)
	if err := conn.JoinGroup(notificationGroup); err != nil {
		return fmt.Errorf("subscribing to nftables notifications: %w", err)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := b.missed(); err != nil {
		return err
	}
	touched()
	name := append([]byte(b.table.Name), 0)
	for {
		messages, err := conn.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, syscall.ENOBUFS) {
			b.intact.Store(false)
			touched()
			continue
		}
		if err != nil {
			return fmt.Errorf("reading nftables notifications: %w", err)
		}
		for _, m := range messages {
			if m.Header.PID != b.port.Load() && concerns(m, name) {
				b.intact.Store(false)
				touched()
				break
			}
		}
	}
}

// missed notices whether somebody wrote before we listened.
func (b *Backend) missed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	gen, err := b.generation()
	if err == nil && gen != b.gen {
		b.intact.Store(false)
	}
	return err
}

// concerns reports whether a notification is about our table. Its name is the
// first attribute of every message but those about generations.
func concerns(m netlink.Message, name []byte) bool {
	const family, attribute = 4, 4 // bytes of nfgenmsg and of an attribute's header
	if m.Header.Type == netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN) || len(m.Data) < family+attribute {
		return false
	}
	if m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	length := int(binary.NativeEndian.Uint16(m.Data[family:]))
	if length < attribute || family+length > len(m.Data) {
		return false
	}
	return bytes.Equal(m.Data[family+attribute:family+length], name)
}
