// Package nftables makes a kernel hold a masq.RuleSet, over netlink, with no
// program on the node.
//
// It owns one table, "inet ip-masq-agent", and everything in it. It refuses to
// touch anything else, and it refuses to guess: what it cannot verify in its
// own table it writes anew.
//
// Whatever it changes, one transaction brings into force. Sets that the new
// rules need are there and filled before it, or newer kernels would look into
// empty ones for a moment; see stage.
//
// To debug it, list the table with "nft list table inet ip-masq-agent": every
// rule carries a comment, and the chain "generation" says which generation and
// hash the table was written from. "nft monitor" shows every write.
package nftables
