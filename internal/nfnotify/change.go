package nfnotify

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Change is what a notification about a rule, chain or table tells.
type Change struct {
	Family uint8 // unix.NFPROTO_*
	Table  string
	// Chain is empty when it is about the table.
	Chain string
	// New is false when it went.
	New bool
}

// InNAT reports whether it is about one of the tables in which iptables-nft
// keeps its nat rules.
func (c Change) InNAT() bool {
	return c.Table == "nat" && (c.Family == unix.NFPROTO_IPV4 || c.Family == unix.NFPROTO_IPV6)
}

// ChangeOf decodes a notification; ok is false for those about something else.
func ChangeOf(m netlink.Message) (c Change, ok bool) {
	const nfgenmsg = 4
	kind := uint16(m.Header.Type)
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenmsg {
		return c, false
	}
	chain := uint16(0)
	switch kind & 0xff {
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain = unix.NFTA_RULE_CHAIN
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain = unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
	default:
		return c, false
	}
	switch kind & 0xff {
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWTABLE:
		c.New = true
	}
	c.Family = m.Data[0]
	ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsg:])
	if err != nil {
		return c, false
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE: // the same number as NFTA_CHAIN_TABLE and NFTA_TABLE_NAME
			c.Table = ad.String()
		case chain:
			c.Chain = ad.String()
		}
	}
	return c, ad.Err() == nil
}
