package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"sordino/internal/isolate"
	"sordino/lab"
)

// filesDir is where a host keeps its labs, on its own mount of /run.
const filesDir = "/run/sordino"

// Host holds labs. It is made by New in a process that [Start] started.
type Host struct {
	listener *net.UnixListener
	pid      int
	dir      string
	log      *slog.Logger
	children children

	mu       sync.Mutex
	labs     map[string]*hosted
	watchers map[*watcher]bool
}

// Main is the whole process: it serves until the context ends or somebody
// takes it down.
func Main(ctx context.Context) error {
	h, err := New()
	if err != nil {
		return err
	}
	return h.Serve(ctx)
}

// New takes over what Start handed over, and makes the mounts its own.
func New() (*Host, error) {
	if !isolate.Inside() {
		return nil, errors.New("a lab host is started by those who need one; see \"sordino serve\" and \"sordino demo --keep\"")
	}
	for _, fd := range []int{listenerFD, lockFD} {
		unix.CloseOnExec(fd) // the agents are not to hold them
	}
	if err := os.Unsetenv(isolate.Variable); err != nil {
		return nil, err
	}
	file := os.NewFile(listenerFD, "listener")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("taking over the lab host's socket: %w", err)
	}
	// Before /proc is another, it knows us by the number that others see.
	pid := os.Getpid()
	if name, err := os.Readlink("/proc/self"); err == nil {
		pid, _ = strconv.Atoi(name)
	}
	if err := isolate.Settle(); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	// It is idle nearly always: a small heap costs nothing that anybody notices.
	debug.SetGCPercent(50)
	return &Host{listener: listener.(*net.UnixListener), pid: pid, dir: filesDir,
		log: slog.New(slog.NewTextHandler(os.Stderr, nil)), children: children{known: map[int]bool{}},
		labs: map[string]*hosted{}, watchers: map[*watcher]bool{}}, nil
}

// Serve answers until the context ends or somebody takes the host down, and
// takes all labs away then.
func (h *Host) Serve(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer h.listener.Close()
	defer context.AfterFunc(ctx, func() { h.listener.Close() })()
	var running sync.WaitGroup
	running.Go(func() { h.children.reapOrphans(ctx) })
	running.Go(func() {
		if err := awaitUnlinked(ctx, lockFD); err != nil {
			h.log.Warn("watching the folder; a host whose folder is removed would not notice", "error", err)
		} else if ctx.Err() == nil {
			h.log.Warn("the folder was removed: nobody can reach this host any more")
			stop()
		}
	})
	h.log.Info("serving", "protocol", Protocol, "pid", h.pid)
	var served error
	for {
		conn, err := h.listener.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				served = fmt.Errorf("serving the lab host's socket: %w", err)
				stop()
			}
			break
		}
		running.Go(func() {
			defer conn.Close()
			if h.serve(ctx, conn) {
				stop()
			}
		})
	}
	running.Wait()
	return errors.Join(served, h.removeAll())
}

// awaitUnlinked returns when an open file has no name any more, or the context
// ends.
func awaitUnlinked(ctx context.Context, fd int) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer watcher.Close()
	// By way of the descriptor, because the name may be hidden by our mounts.
	if err := watcher.Add(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
		return err
	}
	for {
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil || stat.Nlink == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
		case err := <-watcher.Errors:
			return err
		}
	}
}

func (h *Host) removeAll() error {
	h.mu.Lock()
	var ids []string
	for id := range h.labs {
		ids = append(ids, id)
	}
	h.mu.Unlock()
	var all sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		all.Go(func() { _, errs[i] = h.remove(id) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// askTime is how long a request may take to arrive.
const askTime = 10 * time.Second

// serve answers one request, and reports whether it was the last one.
func (h *Host) serve(ctx context.Context, conn *net.UnixConn) (last bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := request{}, peer(conn)
	if err == nil {
		_ = conn.SetReadDeadline(time.Now().Add(askTime))
		var files []*os.File
		r, files, err = receive(conn)
		_ = conn.SetReadDeadline(time.Time{})
		defer func() {
			for _, f := range files {
				_ = f.Close()
			}
		}()
		if err == nil && r.Op == opExec {
			signals := make(chan byte)
			go listenTo(ctx, conn, signals, cancel)
			var status int
			status, err = h.exec(ctx, r, files, signals)
			h.answer(conn, status, err)
			return false
		}
	}
	if err != nil {
		h.answer(conn, nil, err)
		return false
	}
	go listenTo(ctx, conn, nil, cancel)
	if r.Op == opWatch {
		h.watch(ctx, conn)
		return false
	}
	result, err := h.do(ctx, r)
	h.answer(conn, result, err)
	return r.Op == opDown
}

// listenTo passes signals on, and cancels when the client goes away.
func listenTo(ctx context.Context, conn net.Conn, signals chan<- byte, cancel func()) {
	one := make([]byte, 1)
	for {
		if _, err := conn.Read(one); err != nil {
			cancel()
			return
		}
		if signals == nil {
			continue
		}
		select {
		case signals <- one[0]:
		case <-ctx.Done():
			return
		}
	}
}

func (h *Host) answer(conn net.Conn, result any, err error) {
	var a response
	if err == nil {
		a.Result, err = json.Marshal(result)
	}
	if err != nil {
		a.Error, a.Missing, a.NotStarted = err.Error(), errors.Is(err, ErrMissing), errors.Is(err, ErrNotStarted)
		if a.Missing {
			var m missing
			if errors.As(err, &m) {
				a.Error = string(m)
			}
		}
	}
	_ = json.NewEncoder(conn).Encode(a) // who has gone needs no answer
}

// missing is an ErrMissing that says what.
type missing string

func (m missing) Error() string        { return string(m) }
func (m missing) Is(target error) bool { return target == ErrMissing }

func (h *Host) do(ctx context.Context, r request) (any, error) {
	switch r.Op {
	case opHello:
		return Hello{Protocol, h.pid}, nil
	case opDown:
		h.log.Info("taken down")
		return nil, h.removeAll()
	}
	if r.Protocol != Protocol {
		return nil, fmt.Errorf("this lab host speaks version %d of its protocol, not %d", Protocol, r.Protocol)
	}
	switch r.Op {
	case opLabs:
		return h.list()
	case opRemove:
		removed, err := h.remove(r.Lab)
		return removed, err
	case opApply:
		if r.Spec != nil {
			return h.apply(ctx, r.Lab, *r.Spec)
		}
	}
	l, err := h.find(r.Lab)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Op == opLab:
		return l.status(ctx)
	case r.Op == opNote:
		return nil, l.note(r.Notes)
	case r.Op == opAgent && r.Agent != nil:
		return nil, l.setAgent(r.Name, *r.Agent)
	case r.Op == opStop:
		return nil, l.stopAgent(r.Name)
	case r.Op == opAwait:
		return l.await(ctx, r.Name)
	case r.Op == opProbe && r.Probe != nil:
		return l.probe(ctx, *r.Probe)
	}
	return nil, fmt.Errorf("the lab host does not know the request %q", r.Op)
}

var idForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,62}[a-z0-9])?$`)

func (h *Host) find(id string) (*hosted, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.labs[id]; l != nil {
		return l, nil
	}
	return nil, missing(fmt.Sprintf("there is no lab %q", id))
}

// Add makes a lab known that the caller has built itself, under an id.
func (h *Host) Add(id string, l *lab.Lab, s lab.Spec, notes map[string]string) error {
	added, err := h.findOrMake(id, func(string) (*lab.Lab, error) { return l, nil })
	if err != nil {
		return err
	}
	added.state.Lock()
	defer added.state.Unlock()
	added.spec = s
	maps.Copy(added.notes, notes)
	return nil
}

// Dir is a folder of the host's own, which goes with it.
func (h *Host) Dir(name string) string { return filepath.Join(h.dir, name) }

func (h *Host) findOrMake(id string, open func(dir string) (*lab.Lab, error)) (*hosted, error) {
	if !idForm.MatchString(id) {
		return nil, fmt.Errorf("the lab's id %q: write 1 to 64 lower case letters, digits and dashes", id)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.labs[id]; l != nil {
		return l, nil
	}
	dir := filepath.Join(h.dir, "labs", id)
	opened, err := open(filepath.Join(dir, "lab"))
	if err != nil {
		return nil, err
	}
	l := newHosted(h, id, dir, opened)
	h.labs[id] = l
	return l, nil
}

func (h *Host) apply(ctx context.Context, id string, s lab.Spec) ([]string, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	for {
		l, err := h.findOrMake(id, lab.Open)
		if err != nil {
			return nil, err
		}
		changes, err := l.apply(ctx, s)
		if !errors.Is(err, errGone) { // one that is just being removed: then a new one
			return changes, err
		}
	}
}

func (h *Host) remove(id string) (bool, error) {
	l, err := h.find(id)
	if errors.Is(err, ErrMissing) {
		return false, nil
	}
	if err := l.remove(); err != nil {
		if errors.Is(err, errGone) {
			return false, nil
		}
		return false, err
	}
	h.changed(id)
	return true, nil
}

func (h *Host) forget(l *hosted) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.labs, l.id)
}

func (h *Host) list() ([]Status, error) {
	h.mu.Lock()
	labs := make([]*hosted, 0, len(h.labs))
	for _, l := range h.labs {
		labs = append(labs, l)
	}
	h.mu.Unlock()
	all := []Status{}
	for _, l := range labs {
		s, err := l.summary()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// watcher is one client that wants to hear of changes: which labs it has not
// heard of yet. However slow it is, that is bounded by the number of labs.
type watcher struct {
	pending map[string]bool
	wake    chan struct{}
}

// changed tells the watchers that something may have changed in a lab.
func (h *Host) changed(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.pending[id] = true
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (h *Host) watch(ctx context.Context, conn net.Conn) {
	w := &watcher{pending: map[string]bool{}, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	h.watchers[w] = true
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, w)
	}()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	out := json.NewEncoder(conn)
	if out.Encode(response{}) != nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		h.mu.Lock()
		pending := w.pending
		w.pending = map[string]bool{}
		h.mu.Unlock()
		for id := range pending {
			text, _ := json.Marshal(id) // a string
			if out.Encode(response{Result: text}) != nil {
				return
			}
		}
	}
}
