package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"sordino/internal/count"
	"sordino/masq"
	"sordino/masq/foreign"
	"sordino/masq/iptables"
	"sordino/masq/kube"
	"sordino/masq/nftables"
)

// cleanup removes what either backend may have left. Nothing of anybody
// else's is touched. With --backend=nftables the chain stays that bears the
// name of ours and may be another agent's, which takes over from us.
func cleanup(ctx context.Context, inv *invocation) (err error) {
	f := inv.flags
	warning, err := unhookWarning(ctx, inv)
	if err != nil {
		return err
	}
	if s, err := askAgent(ctx, f.httpAddress); err == nil && s.Ready {
		warning = join(warning, fmt.Sprintf("an agent runs here and answers at %s: it puts its rules back at once; stop it first", f.httpAddress))
	}
	if warning != "" {
		inv.log.Warn(warning)
	}
	removed := []string{}
	remove := func(b kernel) error {
		what, err := b.Remove(ctx, f.dryRun)
		removed = append(removed, what...)
		return errors.Join(err, b.Close())
	}
	var errs []error
	switch b, err := nftables.New(nftables.Options{Table: ownTable, Log: inv.log}); {
	case errors.Is(err, nftables.ErrAbsent): // nothing is in it
	case err != nil:
		errs = append(errs, err)
	default:
		errs = append(errs, remove(b))
	}
	flavours := iptables.Flavours(ctx)
	if f.backend == "nftables" {
		flavours = nil
	}
	for _, flavour := range flavours {
		b, err := iptables.New(ctx, iptables.Options{Flavour: flavour, Chain: f.chain, Log: inv.log})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, remove(b))
	}
	if f.configSource != sourceFile {
		what, err := withdraw(ctx, inv)
		removed = append(removed, what...)
		errs = append(errs, err)
	}
	if f.readyFile != "" && !f.dryRun {
		if err := os.Remove(f.readyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	report := struct {
		DryRun  bool     `json:"dryRun"`
		Removed []string `json:"removed"`
		Warning string   `json:"warning,omitempty"`
	}{f.dryRun, removed, warning}
	return errors.Join(inv.print(report, func(w io.Writer) {
		word := "removed"
		if f.dryRun {
			word = "would remove"
		}
		for _, r := range removed {
			fmt.Fprintf(w, "%s %s\n", word, r)
		}
		if len(removed) == 0 {
			fmt.Fprintln(w, "there is nothing of ours on this node")
		}
	}), errors.Join(errs...))
}

// withdraw takes what the agent told about this node off its Node.
func withdraw(ctx context.Context, inv *invocation) ([]string, error) {
	client, node, err := openAPI(inv.flags, inv.log)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	what := fmt.Sprintf("the condition %s and our annotations of the Node %s", kube.ConditionType, node)
	if inv.flags.dryRun {
		return []string{what}, nil
	}
	if err := kube.Withdraw(ctx, client, node); err != nil {
		return nil, fmt.Errorf("taking away %s: %w", what, err)
	}
	return []string{what}, nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// unhookWarning tells when removing our table would take connection tracking
// off this node's packets while translated flows are alive: their next packet
// would then leave with the Pod's address.
func unhookWarning(ctx context.Context, inv *invocation) (warning string, err error) {
	own, err := nftables.New(nftables.Options{Table: ownTable, Log: inv.log})
	if err != nil {
		return "", nil // no nftables, so no table of ours that could be the last
	}
	defer closing(&err, own)
	held, err := own.Held(ctx)
	if err != nil || held.Hash == "" {
		return "", err
	}
	node, err := foreign.Open(foreign.Options{Log: inv.log, OwnTable: ownTable, Chains: []string{inv.flags.chain}})
	if err != nil {
		return "", err
	}
	defer closing(&err, node)
	flows := 0
	for _, family := range []masq.Family{masq.IPv4, masq.IPv6} {
		users, err := node.ConntrackUsers(ctx, family)
		if err != nil {
			return "", err
		}
		if len(users) > 0 {
			continue
		}
		n, err := node.TranslatedFlows(ctx, family)
		if err != nil {
			return "", err
		}
		flows += n
	}
	if flows == 0 {
		return "", nil
	}
	return fmt.Sprintf("removing our table breaks %s: nothing else on this node uses connection tracking", count.Of(flows, "translated connection")), nil
}
