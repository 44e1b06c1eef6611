package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"sordino/internal/nfnotify"
	"sordino/masq"
	"sordino/masq/agent"
	"sordino/masq/foreign"
	"sordino/masq/iptables"
	"sordino/masq/nftables"
)

// ownTable is the nftables table that is ours.
const ownTable = "ip-masq-agent"

// kernel is a backend as the commands need it.
type kernel interface {
	agent.Backend
	Diff(ctx context.Context, rs masq.RuleSet) ([]string, error)
	Remove(ctx context.Context, dryRun bool) ([]string, error)
	Close() error
}

// chosenBackend is a backend and what it must not be robbed of.
type chosenBackend struct {
	kernel
	keep []foreign.Keep
}

// openBackend decides for nftables or iptables, and says why.
//
// nftables needs nothing but the kernel, so auto takes it wherever the kernel
// can do it, also beside components that use iptables of either flavour: all
// NAT hooks share one connection tracking, and the first chain that decides a
// flow wins. iptables is for kernels without NAT in the inet family and for
// people who ask for it.
func openBackend(ctx context.Context, f *flags, listeners *nfnotify.Listeners, log *slog.Logger) (chosenBackend, error) {
	var refused error
	if f.backend != "iptables" {
		b, err := nftables.New(nftables.Options{Table: ownTable, Log: log, Listeners: listeners})
		if err == nil {
			reason := "this kernel has NAT in the inet family"
			if f.backend == "nftables" {
				reason = "--backend=nftables"
			}
			log.Info("using the nftables backend", "reason", reason)
			return chosenBackend{kernel: b}, nil
		}
		if f.backend == "nftables" {
			return chosenBackend{}, err
		}
		refused = err
	}
	b, err := iptables.New(ctx, iptables.Options{Chain: f.chain, Log: log, Listeners: listeners})
	if err != nil {
		return chosenBackend{}, errors.Join(refused, err)
	}
	reason := "--backend=iptables"
	if refused != nil {
		reason = fmt.Sprintf("nftables cannot be used: %v", refused)
	}
	log.Info("using the iptables backend", "reason", reason, "flavour", b.Flavour(), "because", b.Reason)
	return chosenBackend{b, []foreign.Keep{{Flavour: string(b.Flavour()), Chain: f.chain}}}, nil
}
