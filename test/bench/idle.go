package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"

	"sordino/internal/agentproc"
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
	heard := make(chan []netlink.Message, 100)
	listening := make(chan struct{})
	failed := make(chan error, 1)
	var deaf atomic.Bool
	listenCtx, stop := context.WithCancel(ctx)
	var listeners nfnotify.Listeners
	go func() {
		failed <- listeners.Listen(listenCtx, n.Node, func(m []netlink.Message) { heard <- m }, func() { close(listening) }, func() { deaf.Store(true) })
	}()
	defer func() {
		stop()
		err = errors.Join(err, <-failed)
	}()
	select {
	case <-listening:
	case err := <-failed:
		failed <- nil
		return nil, err
	}

	const watched = 12
	before := resyncs(n)
	writes, memory := 0, 0.0
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for seconds := 0; seconds < watched; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case m := <-heard:
			writes += len(m)
		case <-tick.C:
			seconds++
			for _, page := range []string{"/metrics", "/readyz"} {
				if _, err := agentproc.Get(ctx, n.Node, page); err != nil {
					return nil, err
				}
			}
			now, err := residentMiB(n.process.PID())
			if err != nil {
				return nil, err
			}
			memory = max(memory, now)
		}
	}
	looked := resyncs(n) - before
	if looked < watched/2 {
		return nil, fmt.Errorf("the agent looked at its rules only %d times in %d s:\n%s", looked, watched, n.process.Log())
	}
	if deaf.Load() {
		return nil, errors.New("notifications were lost")
	}
	// A change is heard: so was the silence.
	if err := n.configure(list(64, 1)); err != nil {
		return nil, err
	}
	select {
	case <-heard:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(10 * time.Second):
		return nil, errors.New("a change of the rules was not heard, so nothing can be said about writes")
	}

	file, err := os.Stat(b.agent)
	if err != nil {
		return nil, err
	}
	binary := float64(file.Size()) / 1e6
	return []row{
		{fmt.Sprintf("idle, 64 CIDRs: kernel writes in %d resyncs", looked), fmt.Sprint(writes), "", "", "0", writes == 0},
		{"idle, 64 CIDRs: resident memory", fmt.Sprintf("%.1f MiB", memory), fmt.Sprintf("upstream, quoted: %.1f MiB", upstreamMemory),
			fmt.Sprintf("%.2f", memory/upstreamMemory), "≤ 12 MiB", memory <= 12},
		{"size of the binary", fmt.Sprintf("%.1f MB", binary), fmt.Sprintf("upstream, quoted: %.1f MB", upstreamBinary),
			fmt.Sprintf("%.2f", binary/upstreamBinary), "≤ 15 MB", binary <= 15},
	}, nil
}

// resyncs counts how often the agent said that a resync found all in order.
func resyncs(n *node) int {
	count := 0
	for line := range strings.Lines(n.process.Log()) {
		var entry struct{ Msg, Cause string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Cause == "resync" && strings.HasPrefix(entry.Msg, "the kernel holds the rules already") {
			count++
		}
	}
	return count
}

// residentMiB is a process's resident memory as ps shows it.
func residentMiB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kB float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kB); n == 1 {
			return kB / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
