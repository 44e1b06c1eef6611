package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sordino/internal/netns"
)

// watch counts packets in a namespace, in the kernel: unlike a capture, which
// loses packets when its reader is slow, a counter sees every one.
type watch struct {
	ns    *netns.NS
	table *nftables.Table
}

// counted is a counter's name, its nft expression, and what then happens to
// the packet.
type counted struct{ name, match, verdict string }

const watchTable = "watch"

// newWatch counts at a hook, before connection tracking, which it leaves off.
// It replaces what an earlier one did in the namespace.
func newWatch(ns *netns.NS, hook string, what []counted) (*watch, error) {
	var script strings.Builder
	fmt.Fprintf(&script, "table inet %[1]s\ndelete table inet %[1]s\ntable inet %[1]s {\n", watchTable)
	for _, c := range what {
		fmt.Fprintf(&script, " counter %s { }\n", c.name)
	}
	fmt.Fprintf(&script, " chain watch {\n  type filter hook %s priority -400\n", hook)
	for _, c := range what {
		fmt.Fprintf(&script, "  %s counter name %s %s\n", c.match, c.name, c.verdict)
	}
	script.WriteString(" }\n}\n")
	if err := load(ns, script.String()); err != nil {
		return nil, err
	}
	return &watch{ns, &nftables.Table{Name: watchTable, Family: nftables.TableFamilyINet}}, nil
}

// load runs the nft program in a namespace.
func load(ns *netns.NS, script string) error {
	cmd := program("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	var said strings.Builder
	cmd.Stderr = &said
	if err := ns.Do(cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nft -f: %w: %s", err, said.String())
	}
	return nil
}

// packets reads the counters.
func (w *watch) packets() (map[string]uint64, error) {
	c, err := nftables.New(nftables.WithNetNSFd(w.ns.FD()))
	if err != nil {
		return nil, err
	}
	objects, err := c.GetNamedObjects(w.table)
	if err != nil {
		return nil, fmt.Errorf("reading counters: %w", err)
	}
	counts := map[string]uint64{}
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if counter, ok := named.Obj.(*expr.Counter); ok {
			counts[named.Name] = counter.Packets
		}
	}
	if len(counts) == 0 {
		return nil, errors.New("reading counters: there are none")
	}
	return counts, nil
}
