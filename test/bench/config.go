package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/nftables"
)

// configSwap: from the beginning of the swap of the projected volume to the
// agent's word that the kernel holds the new rules. The baseline is what a
// script would do: the nft program loading the same list.
func configSwap(ctx context.Context, b *bench) (rows []row, err error) {
	n, err := newNode(b, list(64, 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.start(); err != nil {
		return nil, err
	}
	if _, err := n.wait(ctx); err != nil {
		return nil, err
	}
	var took []time.Duration
	for i := range 300 {
		began := time.Now()
		if err := n.configure(list(64, i+1)); err != nil {
			return nil, err
		}
		at, err := n.wait(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, at.Sub(began))
	}
	n.process.Kill()
	base, err := n.nft(script(64), 50)
	if err != nil {
		return nil, err
	}
	median, worst := percentile(took, 50), percentile(took, 99)
	return []row{{
		"config file swapped → kernel holds it, 64 CIDRs, median and p99",
		ms(median) + ", " + ms(worst), "nft -f " + ms(percentile(base, 50)), ratio(median, percentile(base, 50)),
		"≤ 10 ms, ≤ 50 ms", median <= 10*time.Millisecond && worst <= 50*time.Millisecond,
	}}, nil
}

// drift: from the moment in which the kernel has flushed every table to the
// agent's word that its own is back.
func drift(ctx context.Context, b *bench) (rows []row, err error) {
	n, err := newNode(b, list(64, 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.start(); err != nil {
		return nil, err
	}
	if _, err := n.wait(ctx); err != nil {
		return nil, err
	}
	var took []time.Duration
	for range 100 {
		// The agent spaces the repairs of somebody who does this all the time.
		time.Sleep(25 * time.Millisecond)
		began := time.Now()
		if err := n.Node.Do(flushRuleset); err != nil {
			return nil, err
		}
		at, err := n.wait(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, at.Sub(began))
	}
	n.process.Kill()
	base, err := n.nft(script(64), 50)
	if err != nil {
		return nil, err
	}
	median := percentile(took, 50)
	return []row{{"nft flush ruleset by somebody → rules back, median", ms(median), "nft -f " + ms(percentile(base, 50)),
		ratio(median, percentile(base, 50)), "≤ 20 ms", median <= 20*time.Millisecond}}, nil
}

func flushRuleset() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.FlushRuleset()
	return c.Flush()
}

const manyRanges = 100_000

// firstLoad: from the start of the agent's process, with an empty state
// folder and an empty kernel, to its word that the kernel holds 100,000 ranges.
func firstLoad(ctx context.Context, b *bench) (rows []row, err error) {
	n, err := newNode(b, list(manyRanges, 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	var took, base []time.Duration
	for range 5 {
		once, err := n.nft(script(manyRanges), 1)
		if err != nil {
			return nil, err
		}
		base = append(base, once...)
		if err := errors.Join(n.Node.Do(flushRuleset), os.RemoveAll(filepath.Join(b.dir, "state"))); err != nil {
			return nil, err
		}
		// The kernel frees the flushed sets in its own time.
		time.Sleep(time.Second)
		began := time.Now()
		if err := n.start(); err != nil {
			return nil, err
		}
		at, err := n.wait(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, at.Sub(began))
		if err := n.process.Stop(); err != nil {
			return nil, err
		}
		if err := n.Node.Do(flushRuleset); err != nil {
			return nil, err
		}
		time.Sleep(time.Second)
	}
	median, nft := percentile(took, 50), percentile(base, 50)
	return []row{{fmt.Sprintf("first load of %d CIDRs, from exec to held", manyRanges), ms(median), "nft -f " + ms(nft), ratio(median, nft),
		"≤ 0.70", float64(median) <= 0.7*float64(nft)}}, nil
}

// oneChanged: as configSwap, with 100,000 ranges of which one differs.
func oneChanged(ctx context.Context, b *bench) (rows []row, err error) {
	n, err := newNode(b, list(manyRanges, 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.start(); err != nil {
		return nil, err
	}
	if _, err := n.wait(ctx); err != nil {
		return nil, err
	}
	var took []time.Duration
	for i := range 20 {
		text := list(manyRanges, i+1)
		// Long enough for the state of the last round to be saved.
		time.Sleep(700 * time.Millisecond)
		began := time.Now()
		if err := n.configure(text); err != nil {
			return nil, err
		}
		at, err := n.wait(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, at.Sub(began))
	}
	n.process.Kill()
	base, err := n.nft(script(manyRanges), 3)
	if err != nil {
		return nil, err
	}
	median, nft := percentile(took, 50), percentile(base, 50)
	return []row{{fmt.Sprintf("one CIDR changed among %d, file swapped → held, median", manyRanges), ms(median), "nft -f, all of it " + ms(nft), ratio(median, nft),
		"≤ 20 ms", median <= 20*time.Millisecond}}, nil
}
