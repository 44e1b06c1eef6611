package nftables

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/nfnotify"
)

// The library encodes, and we send: it would ask for an answer to every
// message, and it cannot write ports and flags of a masquerade expression
// together, without which the kernel ignores the ports.

// encoder collects a transaction.
type encoder struct {
	*nftables.Conn
	batch []netlink.Message
	// portFlags are those of masquerade expressions with ports.
	portFlags uint32
}

// errEncoded ends the library's Flush when it has handed its messages over. It
// is one of the errors that end it at once.
var errEncoded = fmt.Errorf("encoded: %w", syscall.ENOBUFS)

func newEncoder(randomFully bool) (*encoder, error) {
	const specified, random = 1 << 1, 1 << 4 // NF_NAT_RANGE_PROTO_…
	e := &encoder{portFlags: specified}
	if randomFully {
		e.portFlags |= random
	}
	var err error
	e.Conn, err = nftables.New(nftables.WithTestDial(func(messages []netlink.Message) ([]netlink.Message, error) {
		e.batch = messages
		return nil, errEncoded
	}))
	return e, err
}

// take returns the transaction collected so far, its begin and end included.
func (e *encoder) take() ([]netlink.Message, error) {
	e.batch = nil
	if err := e.Conn.Flush(); err != nil && e.batch == nil {
		return nil, err
	}
	for i, m := range e.batch {
		if m.Header.Type == netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE) {
			data, err := withMasqueradeFlags(m.Data, e.portFlags)
			if err != nil {
				return nil, err
			}
			e.batch[i].Data = data
		}
	}
	return e.batch, nil
}

// send carries out a transaction. Errors come for the messages that fail; the
// last one is acknowledged in any case.
func (b *Backend) send(e *encoder) error {
	batch, err := e.take()
	if err != nil || len(batch) == 0 {
		return err
	}
	sender, err := b.socket()
	if err != nil {
		return err
	}
	last := len(batch) - 2 // before the end
	for i := range batch {
		h := &batch[i].Header
		h.Length, h.Sequence, h.PID = 0, uint32(i+1), 0
		h.Flags &^= netlink.Acknowledge | netlink.Echo
		if i == last {
			h.Flags |= netlink.Acknowledge
		}
	}
	err = func() error {
		if _, err := sender.SendMessages(batch); err != nil {
			return err
		}
		for {
			replies, err := sender.Receive()
			if err != nil {
				return err
			}
			for _, r := range replies {
				if r.Header.Sequence == uint32(last+1) {
					return nil
				}
			}
		}
	}()
	if err != nil {
		// Answers may be left; a fresh socket has none.
		b.sender = nil
		return errors.Join(err, sender.Close())
	}
	return nil
}

// socket returns the socket that all our changes go through, so that their
// notifications can be told from others' by its port.
func (b *Backend) socket() (*netlink.Conn, error) {
	if b.sender != nil {
		return b.sender, nil
	}
	sender, err := nfnotify.Dial(b.ns)
	if err != nil {
		return nil, fmt.Errorf("opening netfilter netlink: %w", err)
	}
	if err := b.prepare(sender); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing the netlink socket: %w", err), sender.Close())
	}
	b.sender = sender
	return sender, nil
}

// withMasqueradeFlags adds to every masquerade expression with ports the flags
// that make the kernel regard them.
func withMasqueradeFlags(rule []byte, flags uint32) ([]byte, error) {
	const header = 4 // nfgenmsg
	attributes, err := netlink.UnmarshalAttributes(rule[header:])
	if err != nil {
		return nil, err
	}
	for i, a := range attributes {
		if a.Type&^unix.NLA_F_NESTED != unix.NFTA_RULE_EXPRESSIONS {
			continue
		}
		list, err := netlink.UnmarshalAttributes(a.Data)
		if err != nil {
			return nil, err
		}
		for j := range list {
			if list[j].Data, err = flagged(list[j].Data, flags); err != nil {
				return nil, err
			}
			list[j].Length = 0 // to be worked out anew
		}
		if attributes[i].Data, err = netlink.MarshalAttributes(list); err != nil {
			return nil, err
		}
		attributes[i].Length = 0
	}
	data, err := netlink.MarshalAttributes(attributes)
	return append(append([]byte{}, rule[:header]...), data...), err
}

// flagged handles one expression: a name and its data.
func flagged(expression []byte, flags uint32) ([]byte, error) {
	parts, err := netlink.UnmarshalAttributes(expression)
	if err != nil || len(parts) != 2 || string(parts[0].Data) != "masq\x00" {
		return expression, err
	}
	inner, err := netlink.UnmarshalAttributes(parts[1].Data)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(inner, func(a netlink.Attribute) bool { return a.Type == unix.NFTA_MASQ_REG_PROTO_MIN }) {
		return expression, nil
	}
	inner = append(inner, netlink.Attribute{Type: unix.NFTA_MASQ_FLAGS, Data: binaryutil.BigEndian.PutUint32(flags)})
	if parts[1].Data, err = netlink.MarshalAttributes(inner); err != nil {
		return nil, err
	}
	parts[1].Length = 0
	return netlink.MarshalAttributes(parts)
}
