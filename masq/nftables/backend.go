package nftables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sordino/internal/netns"
	"sordino/internal/nfnotify"
	"sordino/masq"
)

// DefaultTable is the name of the table that is ours.
const DefaultTable = "ip-masq-agent"

// sendBuffer is asked for so that 100,000 ranges fit into one transaction.
// Only root of the initial user namespace gets it; elsewhere see stage.
const sendBuffer = 64 << 20

// loudest is how many ranges a transaction may change while the process
// listens; see package nfnotify for what each of them costs.
const loudest = 4096

// Options are what a Backend can be given; the zero value works.
type Options struct {
	// Table is the table's name, DefaultTable when empty.
	Table string
	Log   *slog.Logger
	// Listeners are told to be quiet while a large set is written: those of the
	// process that listen to the same namespace.
	Listeners *nfnotify.Listeners
	// SendBuffer stands in for the kernel's answer to the wish for a larger
	// buffer when it is not zero, in bytes.
	SendBuffer int
}

// Backend is one network namespace's table. Its methods may be called from
// any goroutine.
type Backend struct {
	table *nftables.Table
	log   *slog.Logger
	ns    *netns.NS
	// listeners hear nothing while a large set is written.
	listeners *nfnotify.Listeners

	mu     sync.Mutex // guards conn and sender, and what follows
	conn   *nftables.Conn
	held   *layout // what the kernel holds, nil when that is not known
	hash   string  // of the held rule set
	gen    uint32  // the kernel's ruleset generation when held was true
	batch  int     // bytes that fit into one transaction
	sender *netlink.Conn
	port   atomic.Uint32 // of sender, to know our own notifications
}

// New opens the kernel of the calling thread's network namespace.
func New(o Options) (*Backend, error) {
	if o.Table == "" {
		o.Table = DefaultTable
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Listeners == nil {
		o.Listeners = &nfnotify.Listeners{}
	}
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	b := &Backend{
		table: &nftables.Table{Name: o.Table, Family: nftables.TableFamilyINet},
		log:   o.Log, ns: ns, listeners: o.Listeners, batch: o.SendBuffer,
	}
	// The lasting connection is made here and now, on this thread.
	b.conn, err = nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening nftables netlink: %w", absent(err)), ns.Close())
	}
	if _, err := b.conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		return nil, errors.Join(fmt.Errorf("asking the kernel for its nftables: %w (it takes CAP_NET_ADMIN, and a kernel with NF_TABLES; on one without, use --backend=iptables)", absent(err)), b.Close())
	}
	return b, nil
}

// ErrAbsent is that the kernel has no nftables, and so holds no rules in it.
var ErrAbsent = errors.New("this kernel has no NF_TABLES")

// absent names the answers of a kernel without netfilter's netlink, and of one
// that has it and no nftables; a lack of rights comes before either.
func absent(err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return err
}

// prepare sizes the socket's buffers and learns its port.
func (b *Backend) prepare(c *netlink.Conn) error {
	if b.batch == 0 {
		_ = c.SetWriteBuffer(sendBuffer)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = raw.Control(func(fd uintptr) {
		size, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
		if err != nil {
			opErr = err
			return
		}
		if b.batch == 0 {
			// The kernel doubles the number for its own needs, and a message
			// has to leave room for the socket buffer's bookkeeping.
			b.batch = size/2 - 4096
		}
		name, err := unix.Getsockname(int(fd))
		if err != nil {
			opErr = err
			return
		}
		if nl, ok := name.(*unix.SockaddrNetlink); ok {
			b.port.Store(nl.Pid)
		}
	})
	return errors.Join(err, opErr)
}

// Name is what status and metrics call this backend.
func (b *Backend) Name() string { return "nftables" }

// Close ends the connection; the table stays.
func (b *Backend) Close() error {
	errs := []error{b.conn.CloseLasting(), b.ns.Close()}
	if b.sender != nil {
		errs = append(errs, b.sender.Close())
	}
	return errors.Join(errs...)
}

// Apply makes the kernel hold the rule set and writes nothing when it does
// already. One transaction brings the new rules into force; sets that are new
// are filled in others before it. Whatever else is in our table goes.
func (b *Backend) Apply(ctx context.Context, rs masq.RuleSet, generation uint64) (masq.Change, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return masq.Change{}, err
	}
	hash := rs.Hash()
	gen, err := b.generation()
	if err != nil {
		return masq.Change{}, err
	}
	if b.held != nil && gen == b.gen && hash == b.hash {
		return masq.Change{}, nil
	}
	before := b.held
	known, err := b.verify(gen)
	if err != nil {
		return masq.Change{}, err
	}
	want := layOut(rs, hash, generation, known.suffix())
	d := compare(known.layout, want)
	if d.empty() {
		b.hold(&want, hash, gen)
		return masq.Change{}, nil
	}
	change := masq.Change{Wrote: true, What: d.describe()}
	// A repair is when the kernel no longer holds what we wrote.
	change.Repaired = before != nil && !compare(known.layout, *before).empty()
	if !known.found {
		change.What = []string{"table inet " + b.table.Name + " written"}
	}
	b.held = nil // not known until the write is through
	// What is loud is written while nobody listens.
	apart := func(loud bool, write func() error) error {
		if loud {
			return b.listeners.Quiet(write)
		}
		return write()
	}
	if d.onlyElements() {
		err = apart(d.ranges() > loudest, func() error { return b.writeElements(want, d) })
		if err == nil {
			b.hold(&want, hash, gen+1)
			return change, nil
		}
		b.log.Debug("the kernel refused the difference; writing the table whole", "error", err)
	}
	if known.found && known.counters == nil {
		if known.counters, err = b.readCounters(); err != nil {
			return masq.Change{}, err
		}
	}
	if _, err := b.socket(); err != nil { // learns what fits
		return masq.Change{}, err
	}
	var transactions uint32
	write := func() (err error) {
		if !known.canStay(want) || d.bytes() > b.batch {
			want = layOut(rs, hash, generation, known.otherSuffix())
			d = compare(known.layout, want)
		}
		transactions, err = b.stage(want, known, d)
		if err == nil || !known.found {
			return err
		}
		b.log.Debug("the kernel refused to change the table; writing it whole", "error", err)
		transactions++
		return b.writeTable(want, known)
	}
	err = apart(want.ranges() > loudest, write)
	if err != nil {
		return masq.Change{}, fmt.Errorf("writing table inet %s: %w", b.table.Name, explainErrno(err))
	}
	b.hold(&want, hash, gen+transactions)
	// A transaction that changes nothing does not count in the kernel. With a
	// generation that is still to come, somebody's next change would pass for
	// ours.
	if now, err := b.generation(); err != nil || int32(now-b.gen) < 0 {
		b.held = nil
	}
	return change, nil
}

// hold remembers what the kernel was made to hold at a ruleset generation. If
// somebody wrote in between, the kernel's generation is a later one, and the
// next Apply looks again.
func (b *Backend) hold(l *layout, hash string, gen uint32) {
	b.held, b.hash, b.gen = l, hash, gen
}

// Diff says what Apply would change, and changes nothing.
func (b *Backend) Diff(ctx context.Context, rs masq.RuleSet) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	known, err := b.read()
	if err != nil {
		return nil, err
	}
	// The generation is the running agent's to count: it is no difference.
	want := layOut(rs, known.hash, known.generation, known.suffix())
	return compare(known.layout, want).describe(), nil
}

// Remove deletes our table. Established flows keep their translation as long
// as something else on the node uses connection tracking.
func (b *Backend) Remove(ctx context.Context, dryRun bool) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	exists, err := b.exists()
	if err != nil || !exists {
		return nil, err
	}
	removed := []string{"nftables table inet " + b.table.Name}
	if dryRun {
		return removed, nil
	}
	b.held = nil
	e, err := newEncoder(false)
	if err != nil {
		return nil, err
	}
	e.DelTable(b.table)
	if err := b.send(e); err != nil {
		return nil, fmt.Errorf("deleting table inet %s: %w", b.table.Name, explainErrno(err))
	}
	return removed, nil
}

func (b *Backend) exists() (bool, error) {
	tables, err := b.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("listing the inet tables: %w", explainErrno(err))
	}
	for _, t := range tables {
		if t.Name == b.table.Name {
			return true, nil
		}
	}
	return false, nil
}

// explainErrno adds what to do to the kernel's terse answers.
func explainErrno(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the agent needs CAP_NET_ADMIN", err)
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w: the kernel lacks a feature that the rules need (NAT in the inet family, fib, masquerade, numgen); use --backend=iptables", err)
	}
	return err
}
