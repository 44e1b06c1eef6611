package main

import (
	"context"
	"fmt"
	"io"

	"sordino/masq"
	"sordino/masq/agent"
	"sordino/masq/configfile"
	"sordino/masq/node"
)

func plan(ctx context.Context, inv *invocation) (err error) {
	result, err := configfile.Load(inv.flags.config, inv.flags.settings())
	if err != nil {
		return err
	}
	here, err := node.Open()
	if err != nil {
		return err
	}
	defer closing(&err, here)
	facts, err := here.Facts()
	if err != nil {
		return err
	}
	rules, findings, err := masq.Plan(result.Config, inv.flags.options, facts)
	if err != nil {
		return err
	}
	backend, err := openBackend(ctx, inv.flags, nil, inv.log)
	if err != nil {
		return err
	}
	defer closing(&err, backend)
	changes, err := backend.Diff(ctx, rules)
	if err != nil {
		return err
	}
	if changes == nil {
		changes = []string{} // a list for those who read JSON
	}
	report := struct {
		Backend  string               `json:"backend"`
		Hash     string               `json:"hash"`
		Changes  []string             `json:"changes"`
		Warnings []configfile.Warning `json:"warnings,omitempty"`
		Findings []masq.Finding       `json:"findings,omitempty"`
	}{backend.Name(), rules.Hash(), changes, result.Warnings, findings}
	err = inv.print(report, func(w io.Writer) {
		for _, warning := range report.Warnings {
			fmt.Fprintf(w, "warning: %s\n", warning)
		}
		for _, f := range findings {
			fmt.Fprintf(w, "note: %s\n", f.Message)
		}
		if len(changes) == 0 {
			fmt.Fprintf(w, "no changes: the kernel holds %s already (%s)\n", rules.Hash(), backend.Name())
			return
		}
		fmt.Fprintf(w, "%d changes to reach %s (%s):\n", len(changes), rules.Hash(), backend.Name())
		for _, c := range changes {
			fmt.Fprintf(w, "  %s\n", c)
		}
	})
	if err == nil && len(changes) > 0 {
		return exit(exitChanges)
	}
	return err
}

// configInForce is the configuration that the agent of this node goes by: the
// file's, or the last good one when the file's is rejected.
func configInForce(inv *invocation) (masq.Config, string, error) {
	result, err := configfile.Load(inv.flags.config, inv.flags.settings())
	if err == nil {
		if len(result.Files) == 0 {
			return result.Config, fmt.Sprintf("defaults (%s does not exist)", inv.flags.config), nil
		}
		return result.Config, fmt.Sprint(result.Files), nil
	}
	if inv.flags.stateDir == "" {
		return masq.Config{}, "", err
	}
	last, saved, stateErr := agent.LastGood(inv.flags.stateDir)
	if stateErr != nil || last == nil {
		return masq.Config{}, "", err
	}
	return *last, fmt.Sprintf("last good configuration, saved %s, because the present one is rejected: %v", saved.Format("2006-01-02 15:04:05 MST"), err), nil
}
