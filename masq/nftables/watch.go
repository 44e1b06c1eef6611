package nftables

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls touched when somebody else changes or removes our table, and once
// when it begins to listen, until the context ends. The kernel stamps every
// notification with the port of the socket that asked for the change, so our
// own writes are known.
func (b *Backend) Watch(ctx context.Context, touched func()) error {
	name := append([]byte(b.table.Name), 0)
	heard := func(messages []netlink.Message) {
		for _, m := range messages {
			if m.Header.PID != b.port.Load() && concerns(m, name) {
				touched()
				return
			}
		}
	}
	return b.listeners.Listen(ctx, b.ns, heard, touched, touched)
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
