package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"sordino/masq/configfile"
)

// lintReport is what lint says of one file.
type lintReport struct {
	File     string                `json:"file"`
	Valid    bool                  `json:"valid"`
	Problems []*configfile.Problem `json:"problems,omitempty"`
	Warnings []configfile.Warning  `json:"warnings,omitempty"`
	// Error is a file that cannot be read.
	Error  string `json:"error,omitempty"`
	ranges int
}

func lint(_ context.Context, inv *invocation) error {
	if len(inv.args) == 0 {
		return errors.New("name the config files to check, or - for standard input")
	}
	var reports []lintReport
	valid := true
	for _, name := range inv.args {
		r := lintFile(inv, name)
		valid = valid && r.Valid
		reports = append(reports, r)
	}
	err := inv.print(reports, func(w io.Writer) {
		for _, r := range reports {
			for _, p := range r.Problems {
				fmt.Fprintf(w, "%v\n", p)
			}
			if r.Error != "" {
				fmt.Fprintf(w, "%s: %s\n", r.File, r.Error)
			}
			for _, warning := range r.Warnings {
				fmt.Fprintf(w, "warning: %s\n", warning)
			}
			if r.Valid {
				fmt.Fprintf(w, "%s: valid, %d non-masquerade ranges\n", r.File, r.ranges)
			}
		}
	})
	if err == nil && !valid {
		return exit(exitError)
	}
	return err
}

func lintFile(inv *invocation, name string) lintReport {
	report := lintReport{File: name}
	var result configfile.Result
	var err error
	if name == "-" {
		report.File = "standard input"
		var text []byte
		if text, err = io.ReadAll(inv.stdin); err == nil {
			result, err = configfile.FromSources([]configfile.Source{{Name: report.File, Text: text}}, inv.flags.settings())
		}
	} else if _, err = os.Stat(name); err == nil { // a missing file means the defaults to the agent, but not here
		result, err = configfile.Load(name, inv.flags.settings())
	}
	report.Valid, report.Warnings = err == nil, result.Warnings
	report.ranges = len(result.Config.NonMasquerade)
	if err != nil {
		if report.Problems = configfile.Problems(err); len(report.Problems) == 0 {
			report.Error = err.Error()
		}
	}
	return report
}
