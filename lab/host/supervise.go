package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"sordino/internal/agentproc"
	"sordino/internal/netns"
	"sordino/internal/projected"
	"sordino/masq/agent"
	"sordino/masq/configfile"
)

// An agent that ends by itself is started again at once, and when it ends soon
// after that, ever later.
const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 30 * time.Second
	longRun      = 10 * time.Second
)

// configFile is the name of the ConfigMap's item in the agent's folder.
const configFile = "ip-masq-agent"

// supervised is the agent of one node. set and discard are for one caller at a
// time.
type supervised struct {
	lab    *hosted
	node   string
	ns     *netns.NS
	dir    string
	volume *projected.Volume

	stop func() // ends the supervision; nil when there is none
	done chan struct{}

	mu       sync.Mutex
	want     Agent
	process  *agentproc.Process
	restarts int
	lastExit string
	lastLog  string
	news     chan struct{} // closed at the next news
}

func newSupervised(l *hosted, node string, ns *netns.NS, dir string) (*supervised, error) {
	volume, err := projected.New(filepath.Join(dir, "config"))
	if err != nil {
		return nil, err
	}
	return &supervised{lab: l, node: node, ns: ns, dir: dir, volume: volume, news: make(chan struct{})}, nil
}

func (a *supervised) stateFlag() string { return "--state-dir=" + filepath.Join(a.dir, "state") }

func (a *supervised) configFlag() string { return "--config=" + a.volume.Path(configFile) }

var folderForm = regexp.MustCompile(regexp.QuoteMeta(filesDir) + `/labs/[^/\s]+/agents/[^/\s]+/config/`)

// WithoutFolders takes the host's folders off the names of configuration files
// in what an agent says.
func WithoutFolders(text string) string { return folderForm.ReplaceAllString(text, "") }

func sameConfig(a, b *string) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

// set makes the agent run as wanted.
func (a *supervised) set(want Agent) error {
	a.mu.Lock()
	before := a.want
	a.mu.Unlock()
	first := a.stop == nil
	if !first && (before.Binary != want.Binary || !slices.Equal(before.Flags, want.Flags)) {
		a.end()
	}
	if first || !sameConfig(before.Config, want.Config) {
		files := map[string][]byte{}
		if want.Config != nil {
			files[configFile] = []byte(*want.Config)
		}
		if err := a.volume.Swap(files); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.want = want
	a.mu.Unlock()
	a.tell()
	if a.stop == nil {
		ctx, stop := context.WithCancel(a.lab.ctx)
		a.stop, a.done = stop, make(chan struct{})
		go a.supervise(ctx)
	}
	return nil
}

// end stops the process and its supervision.
func (a *supervised) end() {
	if a.stop != nil {
		a.stop()
		<-a.done
		a.stop = nil
	}
}

// discard ends everything for good.
func (a *supervised) discard() error {
	a.end()
	return a.ns.Close()
}

// tell wakes those who wait for news.
func (a *supervised) tell() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.news)
	a.news = make(chan struct{})
}

func (a *supervised) supervise(ctx context.Context) {
	defer close(a.done)
	backoff := firstBackoff
	for ctx.Err() == nil {
		began := time.Now()
		p, err := a.start()
		if err == nil {
			select {
			case <-p.Exited():
			case <-ctx.Done():
				a.finish(p)
				return
			}
			a.lab.host.children.ended(p.PID())
			err = fmt.Errorf("it ended by itself: %s", p.Ended())
		}
		a.mu.Lock()
		a.restarts++
		a.lastExit = err.Error()
		if a.process = nil; p != nil {
			a.lastLog = p.Log()
		}
		a.mu.Unlock()
		a.lab.host.log.Warn("an agent ended", "lab", a.lab.id, "node", a.node, "how", err, "again in", backoff)
		a.tell()
		a.lab.host.changed(a.lab.id)
		if time.Since(began) > longRun {
			backoff = firstBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

func (a *supervised) start() (*agentproc.Process, error) {
	a.mu.Lock()
	want := a.want
	a.mu.Unlock()
	args := append(slices.Clone(want.Flags), a.configFlag(), a.stateFlag(), "--http-address="+agentproc.Address)
	var p *agentproc.Process
	err := a.lab.host.children.start(func() (pid int, err error) {
		if p, err = agentproc.Start(a.ns, a.heard, want.Binary, args...); err != nil {
			return 0, err
		}
		return p.PID(), nil
	})
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.process = p
	a.mu.Unlock()
	a.tell()
	return p, nil
}

// heard is called with every line of the agent's log: it says what it did.
func (a *supervised) heard([]byte) {
	a.tell()
	a.lab.host.changed(a.lab.id)
}

// finish ends the process: at once when its node goes with it, else as a
// kubelet does.
func (a *supervised) finish(p *agentproc.Process) {
	if a.lab.ctx.Err() != nil {
		p.Kill()
	} else if err := p.Stop(); err != nil {
		a.lab.host.log.Warn("stopping an agent", "lab", a.lab.id, "node", a.node, "error", err)
	}
	a.lab.host.children.ended(p.PID())
	a.mu.Lock()
	defer a.mu.Unlock()
	a.process = nil
}

// statusTime is how long an agent may take to answer.
const statusTime = 10 * time.Second

func (a *supervised) status(ctx context.Context) AgentStatus {
	a.mu.Lock()
	p := a.process
	s := AgentStatus{Agent: a.want, Restarts: a.restarts, LastExit: a.lastExit, Log: a.lastLog}
	a.mu.Unlock()
	if p == nil {
		return s
	}
	s.PID = p.PID()
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	if is, err := agentproc.Status(ctx, a.ns); err == nil {
		s.Status = &is
		s.Arrived, s.Settled = settled(is, s.Agent.Config)
	}
	if s.Log = ""; !s.Settled {
		s.Log = p.Log()
	}
	return s
}

// settled reports whether the agent has looked at the text, and whether it has
// done with it.
func settled(is agent.Status, text *string) (arrived, done bool) {
	var want string
	if text != nil {
		want = configfile.Digest([]byte(*text))
	}
	arrived = is.Hash != "" && is.ConfigDigest == want
	inForce := is.Ready && is.AppliedGeneration == is.Generation && is.AppliedHash == is.Hash
	return arrived, arrived && (inForce || is.ConfigError != "" || is.PlanError != "")
}

// Looks at an agent that is not settled: soon after it said something, and
// else ever less often.
const (
	firstLook = 2 * time.Millisecond
	lastLook  = 250 * time.Millisecond
)

// maxEnds is how often an agent may end while somebody waits for it.
const maxEnds = 3

func (a *supervised) await(ctx context.Context) (AgentStatus, error) {
	a.mu.Lock()
	limit := a.restarts + maxEnds
	a.mu.Unlock()
	look := firstLook
	for {
		a.mu.Lock()
		news, running := a.news, a.process != nil
		a.mu.Unlock()
		if running {
			if s := a.status(ctx); s.Settled {
				return s, nil
			}
		}
		a.mu.Lock()
		ends, exit, log := a.restarts, a.lastExit, a.lastLog
		a.mu.Unlock()
		if ends >= limit {
			return AgentStatus{}, fmt.Errorf("the agent of %s does not stay up: %s\n%s", a.node, exit, log)
		}
		select {
		case <-ctx.Done():
			return AgentStatus{}, ctx.Err()
		case <-a.lab.ctx.Done():
			return AgentStatus{}, errors.New("the lab was removed meanwhile")
		case <-news:
			// What it did shows in its status a moment after it was logged.
			look = firstLook
			if running {
				if err := sleep(ctx, firstLook); err != nil {
					return AgentStatus{}, err
				}
			}
		case <-time.After(look):
			look = min(2*look, lastLook)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
