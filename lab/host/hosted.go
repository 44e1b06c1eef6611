package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sordino/internal/netns"
	"sordino/internal/probe"
	"sordino/lab"
)

// errGone says that a lab was removed while the request waited for it.
var errGone = errors.New("the lab has just been removed")

// hosted is one lab and what runs in it.
type hosted struct {
	host    *Host
	id, dir string
	lab     *lab.Lab
	// ctx ends when the lab is removed.
	ctx  context.Context
	stop context.CancelFunc

	// change is held by what changes the lab or its agents; probing by who
	// reads what the firewalls dropped, which forgets it.
	change, probing sync.Mutex

	// state guards the rest, and is never held for long.
	state     sync.Mutex
	gone      bool
	spec      lab.Spec
	notes     map[string]string
	agents    map[string]*supervised
	observers map[string]*probe.Observer
	commands  sync.WaitGroup
}

func newHosted(h *Host, id, dir string, opened *lab.Lab) *hosted {
	l := &hosted{host: h, id: id, dir: dir, lab: opened, notes: map[string]string{}, agents: map[string]*supervised{}, observers: map[string]*probe.Observer{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// begin takes the right to change the lab.
func (l *hosted) begin() (end func(), err error) {
	l.change.Lock()
	l.state.Lock()
	defer l.state.Unlock()
	if l.gone {
		l.change.Unlock()
		return nil, errGone
	}
	return l.change.Unlock, nil
}

func (l *hosted) apply(ctx context.Context, s lab.Spec) (changes []string, err error) {
	end, err := l.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	if l.ctx.Err() != nil {
		return nil, fmt.Errorf("the lab %s could not be removed whole; remove it again first", l.id)
	}
	// What stands in a namespace goes before the namespace.
	isNode := func(name string) bool {
		return slices.ContainsFunc(s.Nodes, func(n lab.Node) bool { return n.Name == name })
	}
	isOutside := func(name string) bool {
		return slices.ContainsFunc(s.Outside, func(o lab.Service) bool { return o.Name == name })
	}
	var errs []error
	l.state.Lock()
	var surplus []*supervised
	for name, a := range l.agents {
		if !isNode(name) {
			surplus = append(surplus, a)
			delete(l.agents, name)
		}
	}
	for name, o := range l.observers {
		if !isOutside(name) {
			errs = append(errs, o.Close())
			delete(l.observers, name)
		}
	}
	l.state.Unlock()
	for _, a := range surplus {
		errs = append(errs, a.discard())
		changes = append(changes, "agent of "+a.node+" stopped")
	}
	if err := errors.Join(errs...); err != nil {
		return changes, err
	}
	made, err := l.lab.Apply(ctx, s)
	changes = append(changes, made...)
	if len(changes) > 0 {
		l.host.changed(l.id)
	}
	if err != nil {
		return changes, err
	}
	for _, o := range s.Outside {
		if err := l.observe(o.Name); err != nil {
			return changes, err
		}
	}
	l.state.Lock()
	defer l.state.Unlock()
	l.spec = s
	return changes, nil
}

// observe makes an outside service tell everybody who calls how it sees them.
func (l *hosted) observe(name string) error {
	l.state.Lock()
	has := l.observers[name] != nil
	l.state.Unlock()
	if has {
		return nil
	}
	ns, err := l.namespace(name)
	if err != nil {
		return err
	}
	defer ns.Close()
	o, err := probe.Observe(ns)
	if err != nil {
		return fmt.Errorf("starting the service %s: %w", name, err)
	}
	l.state.Lock()
	defer l.state.Unlock()
	l.observers[name] = o
	return nil
}

// namespace opens a namespace of the lab, for one who may change it: nobody
// else takes it away meanwhile. It is the caller's to close.
func (l *hosted) namespace(name string) (*netns.NS, error) {
	l.state.Lock()
	defer l.state.Unlock()
	ns, err := l.lab.Namespace(name)
	if errors.Is(err, fs.ErrNotExist) {
		names, _ := l.lab.Names()
		return nil, missing(fmt.Sprintf("there is no %q in the lab; there are %v", name, names))
	}
	if err != nil {
		return nil, err
	}
	// One that is ours stays open when the lab is removed meanwhile.
	return netns.Open(ns.Path())
}

func (l *hosted) remove() error {
	end, err := l.begin()
	if err != nil {
		return err
	}
	defer end()
	l.state.Lock()
	agents, observers := l.agents, l.observers
	l.agents, l.observers = map[string]*supervised{}, map[string]*probe.Observer{}
	l.state.Unlock()
	l.stop() // ends commands and probes, and kills agents
	var errs []error
	for _, a := range agents {
		errs = append(errs, a.discard())
	}
	for _, o := range observers {
		errs = append(errs, o.Close())
	}
	l.host.children.endAllIn(l.lab)
	l.commands.Wait()
	if err := errors.Join(append(errs, l.lab.Remove(), os.RemoveAll(l.dir))...); err != nil {
		return err // it stays known, to be removed again
	}
	l.state.Lock()
	l.gone = true
	l.state.Unlock()
	l.host.forget(l)
	return nil
}

func (l *hosted) note(notes map[string]string) error {
	l.state.Lock()
	defer l.state.Unlock()
	maps.Copy(l.notes, notes)
	return nil
}

// summary is the status without the agents' own.
func (l *hosted) summary() (Status, error) {
	names, err := l.lab.Names()
	if err != nil {
		return Status{}, err
	}
	l.state.Lock()
	defer l.state.Unlock()
	return Status{ID: l.id, Spec: l.spec, Namespaces: names, Notes: maps.Clone(l.notes)}, nil
}

func (l *hosted) status(ctx context.Context) (Status, error) {
	s, err := l.summary()
	if err != nil {
		return s, err
	}
	l.state.Lock()
	agents := maps.Clone(l.agents)
	l.state.Unlock()
	s.Agents = map[string]AgentStatus{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for node, a := range agents {
		all.Go(func() {
			is := a.status(ctx)
			mu.Lock()
			defer mu.Unlock()
			s.Agents[node] = is
		})
	}
	all.Wait()
	return s, nil
}

func (l *hosted) agent(node string) (*supervised, error) {
	l.state.Lock()
	defer l.state.Unlock()
	if a := l.agents[node]; a != nil {
		return a, nil
	}
	return nil, missing(fmt.Sprintf("there is no agent on %q", node))
}

func (l *hosted) setAgent(node string, want Agent) error {
	end, err := l.begin()
	if err != nil {
		return err
	}
	defer end()
	a, err := l.agent(node)
	if errors.Is(err, ErrMissing) {
		l.state.Lock()
		isNode := slices.ContainsFunc(l.spec.Nodes, func(n lab.Node) bool { return n.Name == node })
		l.state.Unlock()
		if !isNode {
			return missing(fmt.Sprintf("there is no node %q in the lab", node))
		}
		ns, err := l.namespace(node)
		if err != nil {
			return err
		}
		if a, err = newSupervised(l, node, ns, filepath.Join(l.dir, "agents", node)); err != nil {
			return errors.Join(err, ns.Close())
		}
	}
	if err := a.set(want); err != nil {
		return err
	}
	l.state.Lock()
	defer l.state.Unlock()
	l.agents[node] = a
	return nil
}

func (l *hosted) stopAgent(node string) error {
	end, err := l.begin()
	if err != nil {
		return err
	}
	defer end()
	a, err := l.agent(node)
	if errors.Is(err, ErrMissing) {
		return nil
	}
	l.state.Lock()
	delete(l.agents, node)
	l.state.Unlock()
	return a.discard()
}

func (l *hosted) await(ctx context.Context, node string) (AgentStatus, error) {
	a, err := l.agent(node)
	if err != nil {
		return AgentStatus{}, err
	}
	return a.await(ctx)
}

// answerTime is how long a packet's answer is waited for.
const answerTime = 10 * time.Second

// probe sends a packet from each namespace and tells whom the service saw.
func (l *hosted) probe(ctx context.Context, p Probe) ([]Seen, error) {
	l.probing.Lock()
	defer l.probing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	l.state.Lock()
	spec, observer := l.spec, l.observers[p.To]
	l.state.Unlock()
	i := slices.IndexFunc(spec.Outside, func(o lab.Service) bool { return o.Name == p.To })
	if i < 0 || observer == nil {
		return nil, missing(fmt.Sprintf("there is no outside service %q in the lab", p.To))
	}
	if !slices.Contains([]string{"tcp", "udp", "icmp"}, p.Protocol) {
		return nil, fmt.Errorf("the protocol %q: write tcp, udp or icmp", p.Protocol)
	}
	to := spec.Outside[i].Addresses[0]
	seen := make([]Seen, len(p.From))
	namespaces := make([]*netns.NS, len(p.From))
	end, err := l.begin()
	if err != nil {
		return nil, err
	}
	for i, from := range p.From {
		if namespaces[i], err = l.namespace(from); err != nil {
			seen[i].Error = err.Error()
		}
	}
	end()
	if _, err := l.lab.Dropped(p.To); err != nil { // forget earlier ones
		return nil, errors.Join(append(closeAll(namespaces), err)...)
	}
	ends := make([]context.CancelFunc, len(p.From))
	var running sync.WaitGroup
	for i, from := range p.From {
		s := &seen[i]
		s.From, s.Source = from, sourceOf(spec, from, to)
		ns := namespaces[i]
		if ns == nil {
			continue
		}
		var own context.Context
		own, ends[i] = context.WithCancel(ctx)
		running.Go(func() {
			defer ns.Close()
			defer ends[i]()
			as, err := probe.Send(own, ns, p.Protocol, to, observer)
			if s.As = as; err != nil {
				s.Error = err.Error()
			}
		})
	}
	answered := make(chan struct{})
	go func() { running.Wait(); close(answered) }()
	dropped, err := l.awaitDropped(p.To, answered, func(source netip.Addr) {
		for i := range seen {
			if seen[i].Source == source && ends[i] != nil {
				ends[i]() // no answer will come
			}
		}
	})
	if err != nil {
		cancelAll(ends)
	}
	<-answered
	for i := range seen {
		if s := &seen[i]; !s.As.IsValid() && dropped[s.Source] {
			s.Dropped, s.Error = true, ""
		}
	}
	return seen, err
}

func closeAll(namespaces []*netns.NS) (errs []error) {
	for _, ns := range namespaces {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errs
}

func cancelAll(ends []context.CancelFunc) {
	for _, end := range ends {
		if end != nil {
			end()
		}
	}
}

// awaitDropped asks the firewall what it dropped until all is answered.
func (l *hosted) awaitDropped(service string, answered <-chan struct{}, each func(netip.Addr)) (map[netip.Addr]bool, error) {
	all := map[netip.Addr]bool{}
	look := firstLook
	for last := false; ; look = min(2*look, lastLook) {
		dropped, err := l.lab.Dropped(service)
		if err != nil {
			return all, err
		}
		for _, a := range dropped {
			all[a] = true
			each(a)
		}
		if last {
			return all, nil
		}
		select {
		case <-answered:
			last = true
		case <-time.After(look):
		}
	}
}

// sourceOf is a namespace's own address of the target's family.
func sourceOf(s lab.Spec, name string, to netip.Addr) netip.Addr {
	pick := func(addresses []netip.Addr) netip.Addr {
		for _, a := range addresses {
			if a.Is4() == to.Is4() {
				return a
			}
		}
		return netip.Addr{}
	}
	for _, n := range s.Nodes {
		if n.Name == name {
			return pick(n.Addresses)
		}
		for _, p := range n.Pods {
			if p.Name == name {
				return pick(p.Addresses)
			}
		}
	}
	return netip.Addr{}
}
