package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sordino/internal/agentproc"
	"sordino/internal/projected"
	"sordino/internal/testnet"
)

// node is the test network with the real agent on its node.
type node struct {
	*testnet.Net
	bench   *bench
	volume  *projected.Volume
	process *agentproc.Process
	// applied is when the agent said that the kernel holds new rules.
	applied chan time.Time
}

const configName = "ip-masq-agent"

func newNode(b *bench, config string) (*node, error) {
	network, err := testnet.New()
	if err != nil {
		return nil, err
	}
	n := &node{Net: network, bench: b, applied: make(chan time.Time, 1000)}
	if n.volume, err = projected.New(filepath.Join(b.dir, "config")); err != nil {
		return nil, errors.Join(err, network.Close())
	}
	if config != "" {
		err = n.configure(config)
	}
	return n, err
}

func (n *node) configure(text string) error {
	return n.volume.Swap(map[string][]byte{configName: []byte(text)})
}

// start runs the agent, whose state is in the measurement's folder.
func (n *node) start(flags ...string) (err error) {
	n.process, err = agentproc.Start(n.Node, func(line []byte) {
		at := time.Now()
		var entry struct{ Msg string }
		if json.Unmarshal(line, &entry) != nil {
			return
		}
		if entry.Msg == "applied" || strings.HasPrefix(entry.Msg, "somebody changed our rules") {
			n.applied <- at
		}
	}, n.bench.agent, append([]string{
		"--config=" + n.volume.Path(configName), "--state-dir=" + filepath.Join(n.bench.dir, "state"),
		"--pod-cidrs=192.168.0.0/16", "--node-cidrs=10.0.0.0/8", "--log-format=json", "--http-address=" + agentproc.Address,
	}, flags...)...)
	return err
}

// wait returns when the agent next says that the kernel holds new rules.
func (n *node) wait(ctx context.Context) (time.Time, error) {
	select {
	case at := <-n.applied:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	case <-n.process.Exited():
		return time.Time{}, fmt.Errorf("the agent ended:\n%s", n.process.Log())
	case <-time.After(30 * time.Second):
		return time.Time{}, fmt.Errorf("the agent applied nothing:\n%s", n.process.Log())
	}
}

func (n *node) close() error {
	if n.process != nil {
		n.process.Kill()
	}
	return n.Close()
}

// list is a configuration with so many ranges that cannot be merged; the
// variant is one range that differs.
func list(count, variant int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cidrLimit: %d\nnonMasqueradeCIDRs:\n", count)
	for _, r := range ranges(count, variant) {
		fmt.Fprintf(&b, "- %s\n", r)
	}
	return b.String()
}

func ranges(count, variant int) []string {
	out := make([]string, count)
	for i := range count {
		out[i] = fmt.Sprintf("%d.%d.%d.%d/28", 20+i>>19, i>>11&255, i>>3&255, i&7*32)
	}
	if count > 1 {
		// In the middle of what is there, so that nothing joins.
		i := count / 2
		out[i] = fmt.Sprintf("%d.%d.%d.%d/30", 20+i>>19, i>>11&255, i>>3&255, i&7*32+4*(variant%4))
	}
	return out
}

// script is the same list for the nft program, with rules that do the same.
func script(count int) string {
	return "flush ruleset\ntable inet baseline {\n set exempt {\n type ipv4_addr\n flags interval\n elements = { " + strings.Join(ranges(count, 0), ", ") +
		" }\n }\n chain postrouting {\n type nat hook postrouting priority 99\n ip saddr != 192.168.0.0/16 return\n ip daddr @exempt return\n masquerade\n }\n}\n"
}

// nft times the nft program loading a script into the network's node.
func (n *node) nft(text string, times int) ([]time.Duration, error) {
	file := filepath.Join(n.bench.dir, "baseline.nft")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var took []time.Duration
	for range times {
		cmd := program("nft", "-f", file)
		began := time.Now()
		if err := n.Node.Do(cmd.Start); err != nil {
			return nil, err
		}
		if err := cmd.Wait(); err != nil {
			return nil, fmt.Errorf("nft -f: %w", err)
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// percentile of a list of times; 50 is the median.
func percentile(times []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

func ratio(a, b time.Duration) string { return fmt.Sprintf("%.3f", float64(a)/float64(b)) }
