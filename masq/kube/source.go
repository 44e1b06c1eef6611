package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sordino/internal/kubeapi"
	"sordino/masq"
	"sordino/masq/agent"
)

// Content is what a configuration is made from in a cluster.
type Content interface {
	// Follow keeps up with the cluster until the context ends, and calls changed
	// whenever Load may give something else.
	Follow(ctx context.Context, changed func())
	// Load makes the configuration from what was seen last. It is an
	// *agent.Unavailable error that nothing was seen yet, and an *agent.Rejected
	// one that it cannot be used.
	Load() (agent.Loaded, error)
	// Problems are what does not work at present, for a person.
	Problems() []string
}

// Options are what a Source needs beside its content.
type Options struct {
	Client *kubeapi.Client
	// Node is the name of this node's object.
	Node string
	// Fallback is where the configuration comes from while the API server has
	// never answered and there is no last good one.
	Fallback agent.Source
	Log      *slog.Logger
	// NodeSeen, when not nil, is called with every state of the Node.
	NodeSeen func(Node)
}

// Source is an agent's source in a cluster: a content, and the ranges that the
// cluster itself tells.
type Source struct {
	Options
	content  Content
	node     Mirror[Node]
	services Mirror[serviceCIDR]

	seen []Node // the Node, also when it is gone

	begin    sync.Once
	deadline time.Time     // until which the first Load waits
	progress chan struct{} // something new is known
}

// firstAnswer is how long the start waits for the API server. The rules of an
// earlier run are in the kernel meanwhile.
const firstAnswer = 2 * time.Second

// NewSource makes a source; nothing is asked before its Watch runs.
func NewSource(o Options, content Content) *Source {
	return &Source{Options: o, content: content, progress: make(chan struct{}, 1)}
}

// serviceCIDR is a ServiceCIDR, with the field that matters.
type serviceCIDR struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		CIDRs []string `json:"cidrs"`
	} `json:"spec"`
}

// Watch follows the cluster until the context ends.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	news := func() {
		select {
		case s.progress <- struct{}{}:
		default:
		}
		changed()
	}
	var followers sync.WaitGroup
	followers.Go(func() { s.content.Follow(ctx, news) })
	last := ""
	followers.Go(func() {
		s.node.Follow(ctx, s.Client, kubeapi.Nodes.Named(s.Options.Node), s.Log, func() {
			all, _, err := s.node.Last()
			if s.NodeSeen != nil && len(all) > 0 {
				s.NodeSeen(all[0])
			}
			// A Node's heartbeats, ours among them, change no rule.
			now := fmt.Sprintln("node", len(all), err)
			for _, n := range all {
				now += fmt.Sprintln(n.Metadata.Name, n.Spec.PodCIDR, n.Spec.PodCIDRs, n.Status.Addresses)
			}
			if now != last {
				last = now
				news()
			}
		})
	})
	followers.Go(func() { s.services.Follow(ctx, s.Client, kubeapi.ServiceCIDRs, s.Log, news) })
	followers.Wait()
	return nil
}

// Load makes the configuration from what was seen last.
func (s *Source) Load() (agent.Loaded, error) {
	s.await()
	loaded, err := s.content.Load()
	if unavailable := (*agent.Unavailable)(nil); errors.As(err, &unavailable) {
		why := advised(unavailable.Err)
		fallback, fileErr := s.Fallback.Load()
		if fileErr != nil {
			return loaded, &agent.Unavailable{Err: errors.Join(why, fileErr)}
		}
		s.addRanges(&fallback) // what is known of the cluster counts whoever configures
		return loaded, &agent.Unavailable{Err: why, Fallback: &fallback}
	}
	if err != nil {
		return loaded, err
	}
	s.addRanges(&loaded)
	for _, m := range []interface{ unsettled() error }{&s.node, &s.services} {
		if err := m.unsettled(); err != nil {
			return agent.Loaded{}, &agent.Unavailable{Err: advised(err), Fallback: &loaded}
		}
	}
	return loaded, nil
}

// advised adds what to do when the API server did not answer; one that refuses
// says so itself.
func advised(err error) error {
	if errors.As(err, new(*kubeapi.StatusError)) {
		return err
	}
	return fmt.Errorf("%w; see that this node reaches the API server", err)
}

// await gives the API server its time to answer for the first time.
func (s *Source) await() {
	s.begin.Do(func() { s.deadline = time.Now().Add(firstAnswer) })
	for time.Now().Before(s.deadline) && !s.complete() {
		select {
		case <-s.progress:
		case <-time.After(time.Until(s.deadline)):
		}
	}
}

func (s *Source) complete() bool {
	_, err := s.content.Load()
	return !errors.As(err, new(*agent.Unavailable)) && s.node.unsettled() == nil && s.services.unsettled() == nil
}

// addRanges adds what the cluster itself tells to the configuration's ranges.
func (s *Source) addRanges(loaded *agent.Loaded) {
	warn := func(format string, args ...any) {
		loaded.Warnings = append(loaded.Warnings, fmt.Sprintf(format, args...))
	}
	parse := func(list *[]masq.Range, from string, texts ...string) {
		for _, text := range texts {
			p, err := parseRange(text)
			if err != nil {
				warn("%s: %v; it is left out", from, err)
				continue
			}
			// The configuration's own list is remembered elsewhere.
			*list = append(slices.Clip(*list), masq.Range{Prefix: p, Origin: masq.Origin{Source: from}})
		}
	}
	cluster := &loaded.Config.Cluster

	nodes, known, err := s.node.Last()
	switch {
	case len(nodes) > 0:
		s.seen = nodes
	case known && s.seen != nil:
		warn("Node %s is gone from the cluster; its ranges count until it is back", s.Options.Node)
	case known:
		warn("there is no Node %s in the cluster, so its ranges are not known; check --node-name", s.Options.Node)
	}
	if err != nil && refusal(err) {
		warn("%v", err)
	}
	for _, n := range s.seen {
		name := "Node " + n.Metadata.Name
		pods := n.Spec.PodCIDRs
		if len(pods) == 0 && n.Spec.PodCIDR != "" {
			pods = []string{n.Spec.PodCIDR}
		}
		parse(&cluster.ThisNodesPods, name+", spec.podCIDRs", pods...)
		for _, a := range n.Status.Addresses {
			if a.Type == "InternalIP" {
				parse(&cluster.Node, name+", status.addresses", a.Address)
			}
		}
	}

	services, _, err := s.services.Last()
	// An API server older than ServiceCIDR objects does not have them.
	if errors.Is(err, kubeapi.ErrForbidden) {
		warn("%v", err)
	}
	for _, c := range services {
		parse(&cluster.Service, "ServiceCIDR "+c.Metadata.Name+", spec.cidrs", c.Spec.CIDRs...)
	}
}

// parseRange reads a range, or an address as the range of it alone.
func parseRange(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is neither a range nor an address", text)
	}
	return p.Masked(), nil
}

// Problems are what does not work at present, for a person.
func (s *Source) Problems() []string {
	problems := s.content.Problems()
	_, _, node := s.node.Last()
	_, _, services := s.services.Last()
	if errors.Is(services, kubeapi.ErrNotFound) {
		services = nil
	}
	for _, err := range []error{node, services} {
		if err != nil {
			problems = append(problems, err.Error())
		}
	}
	return problems
}
