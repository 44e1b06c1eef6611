package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"sordino/internal/count"
	"sordino/masq"
	"sordino/masq/agent"
	"sordino/masq/configfile"
	"sordino/masq/node"
)

func plan(ctx context.Context, inv *invocation) (err error) {
	config, warnings, err := planned(inv)
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
	rules, findings, err := masq.Plan(config, inv.flags.options, facts)
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
	}{backend.Name(), rules.Hash(), changes, warnings, findings}
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
		fmt.Fprintf(w, "%s to reach %s (%s):\n", count.Of(len(changes), "change"), rules.Hash(), backend.Name())
		for _, c := range changes {
			fmt.Fprintf(w, "  %s\n", c)
		}
	})
	if err == nil && len(changes) > 0 {
		return exit(exitChanges)
	}
	return err
}

// planned is the configuration to plan with: the file's, or the last one that
// the agent of this node has seen elsewhere.
func planned(inv *invocation) (masq.Config, []configfile.Warning, error) {
	if inv.flags.configSource != sourceFile {
		config, _, err := lastInForce(inv)
		return config, nil, err
	}
	result, err := configfile.Load(inv.flags.config, inv.flags.settings())
	if err == nil && inv.flags.tried {
		addClusterRanges(inv, &result.Config)
	}
	return result.Config, result.Warnings, err
}

// configInForce is the configuration that the agent of this node goes by: the
// file's, or the last good one when the file's is rejected.
func configInForce(inv *invocation) (masq.Config, string, error) {
	if inv.flags.configSource != sourceFile {
		return lastInForce(inv)
	}
	result, err := configfile.Load(inv.flags.config, inv.flags.settings())
	if err == nil {
		if inv.flags.tried {
			addClusterRanges(inv, &result.Config)
		}
		if len(result.Files) == 0 {
			return result.Config, fmt.Sprintf("defaults (%s does not exist)", inv.flags.config), nil
		}
		return result.Config, fmt.Sprint(result.Files), nil
	}
	if inv.flags.stateDir == "" || inv.flags.tried {
		return masq.Config{}, "", err
	}
	last, stateErr := agent.LastGood(inv.flags.stateDir)
	if stateErr != nil || last == nil {
		return masq.Config{}, "", err
	}
	return last.Config, fmt.Sprintf("last good configuration, saved %s, because the present one is rejected: %v", last.Saved.Format(savedLayout), err), nil
}

const savedLayout = "2006-01-02 15:04:05 MST"

// lastInForce is what the agent of this node last had in force, when its
// configuration is in no file that could be read.
func lastInForce(inv *invocation) (masq.Config, string, error) {
	last, err := agent.LastGood(inv.flags.stateDir)
	if inv.flags.stateDir == "" || err == nil && last == nil {
		err = errors.New("no agent has put a configuration into force yet")
	}
	if err != nil {
		return masq.Config{}, "", fmt.Errorf("with --config-source=%s the configuration is what the agent of this node keeps in --state-dir=%q: %w; give --config FILE to ask about a file", inv.flags.configSource, inv.flags.stateDir, err)
	}
	return last.Config, fmt.Sprintf("%s, saved %s", last.From, last.Saved.Format(savedLayout)), nil
}

// addClusterRanges adds the ranges that the agent of this node knows from its
// cluster to those of a file that is tried.
func addClusterRanges(inv *invocation, config *masq.Config) {
	last, err := agent.LastGood(inv.flags.stateDir)
	if err != nil || last == nil {
		return
	}
	add := func(to *[]masq.Range, from []masq.Range) {
		for _, r := range from {
			if r.Origin.Line == 0 { // not from a text
				*to = append(*to, r)
			}
		}
	}
	add(&config.Cluster.Node, last.Config.Cluster.Node)
	add(&config.Cluster.Pod, last.Config.Cluster.Pod)
	add(&config.Cluster.Service, last.Config.Cluster.Service)
	add(&config.Cluster.ThisNodesPods, last.Config.Cluster.ThisNodesPods)
}
