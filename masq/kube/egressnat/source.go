package egressnat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"sordino/internal/count"
	"sordino/internal/kubeapi"
	"sordino/masq/agent"
	"sordino/masq/configfile"
	"sordino/masq/kube"
)

// Policies are the configuration in all policies of a cluster: a
// [kube.Content].
type Policies struct {
	client   *kubeapi.Client
	settings configfile.Settings
	log      *slog.Logger
	mirror   kube.Mirror[Policy]
}

// New makes the content.
func New(client *kubeapi.Client, settings configfile.Settings, log *slog.Logger) *Policies {
	return &Policies{client: client, settings: settings, log: log}
}

// Follow implements [kube.Content]. It also keeps the policies' conditions.
func (p *Policies) Follow(ctx context.Context, changed func()) {
	seen := make(chan []Policy, 1)
	var reporting sync.WaitGroup
	defer reporting.Wait()
	reporting.Go(func() { (&reporter{p.client, p.settings.IPv6, p.log}).run(ctx, seen) })
	last := ""
	p.mirror.Follow(ctx, p.client, policies, p.log, func() {
		all, known, _ := p.mirror.Last()
		if known {
			select { // the reporter wants the newest only
			case <-seen:
			default:
			}
			seen <- all
		}
		// Conditions, which one of a thousand agents writes, change no rule.
		now := fmt.Sprint(known, Digest(all))
		if now != last {
			last = now
			changed()
		}
	})
}

// Load implements [kube.Content].
func (p *Policies) Load() (agent.Loaded, error) {
	all, known, err := p.mirror.Last()
	if !known {
		switch {
		case errors.Is(err, kubeapi.ErrNotFound):
			err = fmt.Errorf("%w; the cluster does not know the kind %s: apply deploy/egressnat", err, Kind)
		case err == nil:
			err = errors.New("the API server has not told of the policies yet")
		}
		return agent.Loaded{}, &agent.Unavailable{Err: err}
	}
	loaded := agent.Loaded{From: count.Of(len(all), Kind), Digest: Digest(all)}
	if len(all) == 0 {
		loaded.From = "defaults (there is no EgressNATPolicy)"
	}
	config, problems := merge(all, p.settings)
	if len(problems) > 0 {
		var errs []error
		for _, problem := range problems {
			errs = append(errs, problem)
		}
		return agent.Loaded{}, kube.Rejected(errors.Join(errs...), loaded.Digest)
	}
	loaded.Config = config
	return loaded, nil
}

// Problems implements [kube.Content].
func (p *Policies) Problems() []string {
	if _, _, err := p.mirror.Last(); err != nil {
		return []string{err.Error()}
	}
	return nil
}
