package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"sordino/masq"
	"sordino/masq/agent"
)

// statusReport joins what the running agent says and what the kernel holds.
type statusReport struct {
	// Agent is nil when none answers; AgentError says why.
	Agent      *agent.Status `json:"agent,omitempty"`
	AgentError string        `json:"agentError,omitempty"`
	Backend    string        `json:"backend"`
	Kernel     masq.Held     `json:"kernel"`
}

func status(ctx context.Context, inv *invocation) (err error) {
	var report statusReport
	if s, err := askAgent(ctx, inv.flags.httpAddress); err != nil {
		report.AgentError = err.Error()
	} else {
		report.Agent = s
	}
	backend, err := openBackend(ctx, inv.flags, nil, inv.log)
	if err != nil {
		return err
	}
	defer closing(&err, backend)
	report.Backend = backend.Name()
	if report.Kernel, err = backend.Held(ctx); err != nil {
		return err
	}
	if err := inv.print(report, func(w io.Writer) { report.write(w) }); err != nil {
		return err
	}
	if report.Agent == nil || !report.Agent.Ready {
		return exit(exitError)
	}
	return nil
}

func askAgent(ctx context.Context, address string) (*agent.Status, error) {
	if address == "" {
		return nil, fmt.Errorf("the agent has no --http-address to ask")
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("--http-address %q: %w", address, err)
	}
	if host == "" || net.ParseIP(host).IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/status", nil)
	if err != nil {
		return nil, err
	}
	// Never through a proxy: this is the same machine.
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking the agent at %s: %w", address, err)
	}
	defer response.Body.Close()
	var s agent.Status
	if err := json.NewDecoder(io.LimitReader(response.Body, 4<<20)).Decode(&s); err != nil || response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking the agent at %s: what answers (%s) is not ip-masq-agent", address, response.Status)
	}
	return &s, nil
}

func (r statusReport) write(w io.Writer) {
	if s := r.Agent; s == nil {
		fmt.Fprintf(w, "agent:    does not answer: %s\n", r.AgentError)
	} else {
		word := "ready"
		if !s.Ready {
			word = "NOT READY"
		}
		fmt.Fprintf(w, "agent:    %s, desired generation %d (%s), applied %d (%s)\n", word, s.Generation, s.Hash, s.AppliedGeneration, s.AppliedHash)
		fmt.Fprintf(w, "config:   %s %s\n", s.ConfigFrom, strings.Join(s.Files, " "))
		if remote := s.Remote; remote != nil {
			fmt.Fprintf(w, "API:      %s, last contact %s, %d watches restarted, %d reports failed\n",
				remote.Server, remote.LastContact.Format(time.RFC3339), remote.WatchRestarts, remote.ReportErrors)
			for _, p := range remote.Problems {
				fmt.Fprintf(w, "warning:  %s\n", p)
			}
		}
		if !s.LastSuccess.IsZero() {
			fmt.Fprintf(w, "verified: %s\n", s.LastSuccess.Format(time.RFC3339))
		}
		if s.ConfigError != "" {
			fmt.Fprintf(w, "error:    %s: %s\n", s.ConfigReason, s.ConfigError)
		}
		for _, problem := range []string{s.PlanError, s.LastError, s.StateError} {
			if problem != "" {
				fmt.Fprintf(w, "error:    %s\n", problem)
			}
		}
		for _, warning := range s.Warnings {
			fmt.Fprintf(w, "warning:  %s\n", warning)
		}
		for _, f := range s.Findings {
			fmt.Fprintf(w, "note:     %s\n", f.Message)
		}
		for _, u := range s.Unreadable {
			fmt.Fprintf(w, "warning:  %s\n", u)
		}
	}
	switch {
	case r.Kernel.Hash != "":
		fmt.Fprintf(w, "kernel:   holds generation %d (%s) by %s\n", r.Kernel.Generation, r.Kernel.Hash, r.Backend)
	case len(r.Kernel.Counters) > 0:
		fmt.Fprintf(w, "kernel:   holds rules of ours by %s\n", r.Backend)
	default:
		fmt.Fprintf(w, "kernel:   holds no rules of ours (%s)\n", r.Backend)
	}
	for _, c := range r.Kernel.Counters {
		fmt.Fprintf(w, "traffic:  %s %-10s %d connections, %d packets, %d bytes\n", c.Family, c.Action, c.Connections, c.Packets, c.Bytes)
	}
}
