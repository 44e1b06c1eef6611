// Package foreign knows the NAT rules on a node that are not ours.
//
// It owns two things: taking over from predecessors, other masquerade agents
// whose chains would go on masquerading what our configuration exempts; and saying which
// foreign rule would still rewrite a flow. It reads the nft tables over
// netlink, and legacy iptables, which the kernel keeps elsewhere, through the
// node's programs.
//
// It refuses to remove anything that it does not recognise by chain name and
// by the comments that those agents write.
//
// To debug it, compare with "nft list ruleset" and "iptables-legacy -t nat -S".
package foreign
