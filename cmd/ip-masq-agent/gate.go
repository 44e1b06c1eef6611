package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sordino/masq/agent"
)

// readyFile writes a file when the rules are in the kernel for the first time.
type readyFile struct {
	path    string
	written bool
	log     *slog.Logger
}

// Observe implements [agent.Observer].
func (r *readyFile) Observe(s agent.Status, _ []agent.Event) {
	if r.written || !s.Ready {
		return
	}
	err := os.MkdirAll(filepath.Dir(r.path), 0o755)
	if err == nil {
		err = os.WriteFile(r.path, fmt.Appendf(nil, "generation %d, hash %s\n", s.AppliedGeneration, s.AppliedHash), 0o644)
	}
	if r.written = err == nil; err != nil {
		r.log.Error("writing the ready file; Pods that wait for it go on waiting, and it is tried again at the next resync", "error", err)
	}
}

const (
	gateLook = 200 * time.Millisecond
	gateSay  = 10 * time.Second
)

// gate holds an init container until the node masquerades.
func gate(ctx context.Context, inv *invocation) error {
	path := inv.flags.readyFile
	if path == "" {
		return errors.New("name the file that the agent writes: --ready-file FILE")
	}
	began, said := time.Now(), time.Time{}
	look := time.NewTicker(gateLook)
	defer look.Stop()
	for {
		text, err := os.ReadFile(path)
		if err == nil {
			fmt.Fprintf(inv.stdout, "the node masquerades (%q), after %s\n", string(text[:min(len(text), 200)]), time.Since(began).Round(time.Millisecond))
			return nil
		}
		if time.Since(said) >= gateSay {
			said = time.Now()
			fmt.Fprintf(inv.stdout, "waiting for %s since %s: %v; the agent of this node writes it when its rules are in the kernel (kubectl -n kube-system get pods -l k8s-app=ip-masq-agent -o wide)\n",
				path, began.Format(time.TimeOnly), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ended while waiting for %s", path)
		case <-look.C:
		}
	}
}
