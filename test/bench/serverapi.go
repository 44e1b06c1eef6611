package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"sordino/access"
	"sordino/agentconfig"
	"sordino/environment"
	"sordino/environment/image"
	"sordino/internal/testserver"
	"sordino/networks"
	"sordino/reconcile"
	"sordino/store"
	"sordino/wire"
)

const (
	createRate = 50 // a second
	createTime = 6 * time.Second
)

// createAccepted asks for environments at a steady rate and measures from the
// moment that a request was due to its answer, which comes when it is durable.
//
// Hundreds of clusters would take the machine for themselves. So these are the
// server's own parts, joined as "serve" joins them, over HTTP on loopback, with
// a driver that makes nothing in as many steps as the lab's: the reconciler
// records each of them while further creates come in.
//
// The baseline is one durable row of the same size written at the same rate to
// an SQLite database on the same disk.
func createAccepted(ctx context.Context, b *bench) (rows []row, err error) {
	bare, err := bareInserts(ctx, filepath.Join(b.dir, "baseline.db"))
	if err != nil {
		return nil, err
	}
	c, end, err := serveHere(filepath.Join(b.dir, "data"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	took, err := steadily(ctx, func(i int) error {
		_, err := c.Ask(ctx, "POST", environments, exampleBody(exampleID(i)))
		return err
	})
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("create accepted, %d a second; an SQLite insert", createRate)
	for _, p := range []struct {
		percent int
		most    time.Duration
	}{{50, 5 * time.Millisecond}, {99, 25 * time.Millisecond}} {
		is, was := percentile(took, p.percent), percentile(bare, p.percent)
		rows = append(rows, row{fmt.Sprintf("%s, p%d", what, p.percent), ms(is), ms(was), ratio(is, was), "<= " + ms(p.most), is <= p.most})
	}
	return rows, nil
}

// steadily calls at a steady rate, also while earlier calls are under way.
func steadily(ctx context.Context, do func(i int) error) ([]time.Duration, error) {
	n := int(createTime.Seconds() * createRate)
	took, errs := make([]time.Duration, n), make([]error, n)
	var calls sync.WaitGroup
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / createRate)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Until(due)):
		}
		calls.Go(func() {
			errs[i] = do(i)
			took[i] = time.Since(due)
		})
	}
	calls.Wait()
	return took, errors.Join(errs...)
}

func bareInserts(ctx context.Context, path string) (_ []time.Duration, err error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=5000&_error_rc=1")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("CREATE TABLE rows (key INTEGER PRIMARY KEY, document TEXT NOT NULL)"); err != nil {
		return nil, err
	}
	document := strings.Repeat("x", 3000)
	return steadily(ctx, func(int) error {
		_, err := db.ExecContext(ctx, "INSERT INTO rows (document) VALUES (?)", document)
		return err
	})
}

// serveHere serves the API in this process.
func serveHere(dir string) (_ *testserver.Client, end func() error, err error) {
	s, err := store.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.DiscardHandler)
	audit, err := access.OpenAudit(filepath.Join(dir, "audit.log"), log)
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	token := uuid.NewString()
	hash := sha256.Sum256([]byte(token))
	callers, err := access.New(access.Options{Token: &hash, Log: log})
	if err != nil {
		return nil, nil, errors.Join(err, audit.Close(), s.Close())
	}
	reconciler := reconcile.New(reconcile.Options{Store: s, Driver: nothing{}, Log: log, Workers: 4})
	w, err := wire.New(wire.Options{
		Environments: environment.NewService(environment.Options{
			Store: s, Networks: networks.Default(), Images: image.Default(), CheckAgentConfig: agentconfig.Check,
			Wake: reconciler.Wake, Now: time.Now, NewID: uuid.NewString,
		}),
		Authorize: callers.Authorize,
		Audit: func(_ context.Context, call wire.Call, outcome wire.Outcome) {
			audit.Record(access.Entry{Time: time.Now().UTC(), Remote: call.Remote, Method: call.Method, Resource: call.Resource, Code: outcome.Code.String()})
		},
		Log: log,
	})
	if err != nil {
		return nil, nil, errors.Join(err, audit.Close(), s.Close())
	}
	url, endHTTP, err := listenAndServe(w.HTTPServer(w))
	if err != nil {
		return nil, nil, errors.Join(err, audit.Close(), s.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { reconciler.Run(ctx) })
	c := testserver.NewClient(url, token)
	return c, func() error {
		c.HTTP.CloseIdleConnections()
		err := endHTTP()
		w.Close()
		stop()
		running.Wait()
		return errors.Join(err, audit.Close(), s.Close())
	}, nil
}

// listenAndServe serves on loopback until end.
func listenAndServe(s *http.Server) (url string, end func() error, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	return "http://" + listener.Addr().String(), func() error {
		err := s.Close()
		if served := <-served; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}, nil
}

// nothing is a driver that makes nothing and says that all is in place.
type nothing struct{}

func (nothing) Ensure(e *environment.Environment) []reconcile.Step {
	step := func(name string) reconcile.Step {
		return reconcile.Step{Name: name, Do: func(context.Context) (string, error) { return "nothing", nil }}
	}
	return []reconcile.Step{step("build the network"), step("start the agents"), step("prove it with a packet")}
}

func (nothing) Remove(*environment.Environment) []reconcile.Step { return nil }

func (nothing) Observe(_ context.Context, e *environment.Environment) (environment.Observed, error) {
	return environment.Observed{Generation: e.Generation, Nodes: e.Observed.Nodes}, nil
}

func (nothing) Prune(context.Context, map[string]bool) ([]string, error) { return nil, nil }

func (nothing) Watch(ctx context.Context, _ func(string)) error {
	<-ctx.Done()
	return nil
}

// reading measures get and list against the real program with many
// environments stored. The baseline answers the same bytes from memory, out of
// a bare net/http handler on loopback. All pages are measured in the size that
// is the default (50 environments) and in the largest (1,000).
func reading(ctx context.Context, b *bench) (rows []row, err error) {
	dir := filepath.Join(b.dir, "data")
	if err := fill(ctx, dir); err != nil {
		return nil, err
	}
	s, err := startServer(ctx, b, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	var mu sync.Mutex
	same := map[string][]byte{} // the real answers by path and query
	url, end, err := listenAndServe(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		body := same[r.URL.RequestURI()]
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	})})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	bare := testserver.NewClient(url, s.Token)
	defer bare.HTTP.CloseIdleConnections()

	// both times a call to the server and to the baseline.
	both := func(path string) (answer []byte, took, was time.Duration, err error) {
		began := time.Now()
		if answer, err = s.Ask(ctx, "GET", path, ""); err != nil {
			return nil, 0, 0, err
		}
		took = time.Since(began)
		mu.Lock()
		same[path] = answer
		mu.Unlock()
		began = time.Now()
		_, err = bare.Ask(ctx, "GET", path, "")
		return answer, took, time.Since(began), err
	}

	// What a start has to look at takes a few seconds beside the calls; it is
	// measured by itself.
	time.Sleep(5 * time.Second)
	var got, gotBare []time.Duration
	for range 1000 {
		_, took, was, err := both(environments + "/" + exampleID(rand.IntN(stored)))
		if err != nil {
			return nil, err
		}
		got, gotBare = append(got, took), append(gotBare, was)
	}
	add := func(what string, is, was, most time.Duration) {
		rows = append(rows, row{what, ms(is), ms(was), ratio(is, was), "<= " + ms(most), is <= most})
	}
	add("get of 10,000 environments; a bare handler, p99", percentile(got, 99), percentile(gotBare, 99), 5*time.Millisecond)

	for _, size := range []int{50, 1000} {
		var first, firstBare, all, allBare []time.Duration
		for range 5 {
			var sum, sumBare time.Duration
			count, token := 0, ""
			for page := 0; page == 0 || token != ""; page++ {
				path := fmt.Sprintf("%s?pageSize=%d", environments, size)
				if token != "" {
					path += "&pageToken=" + token
				}
				answer, took, was, err := both(path)
				if err != nil {
					return nil, err
				}
				var list struct {
					Environments  []json.RawMessage
					NextPageToken string
				}
				if err := json.Unmarshal(answer, &list); err != nil {
					return nil, err
				}
				if page == 0 {
					first, firstBare = append(first, took), append(firstBare, was)
				}
				count, token = count+len(list.Environments), list.NextPageToken
				sum, sumBare = sum+took, sumBare+was
			}
			if count != stored {
				return nil, fmt.Errorf("all pages hold %d environments, not %d", count, stored)
			}
			all, allBare = append(all, sum), append(allBare, sumBare)
		}
		if size == 50 { // the default
			add("list, the first page (50) of 10,000; a bare handler", percentile(first, 50), percentile(firstBare, 50), 10*time.Millisecond)
		}
		// Who wants all of them asks for the largest pages, as the program's own
		// commands do; the 200 pages of the default size stand beside it.
		add(fmt.Sprintf("list, all pages of %d of 10,000; a bare handler", size), percentile(all, 50), percentile(allBare, 50), 500*time.Millisecond)
		if size == 50 {
			rows[len(rows)-1].target, rows[len(rows)-1].met = "", true
		}
	}
	return rows, nil
}
