package reconcile_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/tools/txtar"

	"sordino/environment"
	"sordino/reconcile"
	"sordino/store/storetest"
)

var updateGolden = flag.Bool("update", false, "rewrite the stories' outcomes from what the code does now")

// A story is a file of testdata: lines of commands, then the file "outcome",
// which is all that is stored in the end. Times are since the story began; they
// pass only by "advance".
//
//	start | park                       the reconciler; park ends it and waits
//	create|update|config NAME [N]      ask as the service does, N nodes or the config's number
//	delete|restart|check|cancel NAME
//	… perhaps                          it may be refused
//	break STEP: MESSAGE                the driver's step fails until it is healed
//	break STEP@GENERATION: MESSAGE     … only for one generation
//	refuse STEP: MESSAGE               … with an error that stays
//	unreachable STEP                   … fails since the cluster cannot be reached
//	hang STEP                          … never ends by itself
//	panic STEP
//	heal STEP
//	disk full | disk heals             the store takes no writes
//	lose NAME PART                     a part of the cluster goes, and the driver says so
//	lose NAME PART silently
//	debris UUID                        a cluster that is nobody's
//	advance DURATION
//	expect NAME STATE|gone [unseen since DURATION]
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			folder := storetest.MemoryFolder(t)
			var got string
			synctest.Test(t, func(t *testing.T) { got = tell(t, folder, string(archive.Comment)) })
			if *updateGolden {
				archive.Files = []txtar.File{{Name: "outcome", Data: []byte(got)}}
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(archive.Files) != 1 || got != string(archive.Files[0].Data) {
				t.Errorf("the outcome is\n%s", got)
			}
		})
	}
}

// Stories that nobody wrote: whatever comes in whatever order, in the end all
// is settled, and the world is what is stored.
func TestRandomStories(t *testing.T) {
	for range 25 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			script := randomStory(rand.New(rand.NewPCG(seed, 0)))
			folder := storetest.MemoryFolder(t)
			var got string
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the story:\n%s\nits outcome:\n%s", script, got)
				}
			})
			synctest.Test(t, func(t *testing.T) { got = tell(t, folder, script) })
			if strings.Contains(got, " to -\n") {
				t.Error("an operation never ended")
			}
		})
	}
}

func randomStory(random *rand.Rand) string {
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	steps := []string{"make the network", "start the nodes", "start the nodes, done", "configure the agents", "stop the nodes", "remove the network", "observe", "prune", "watch"}
	var lines []string
	parked := true
	for range 30 {
		name := pick("a", "b", "c")
		switch random.IntN(10) {
		case 0, 1, 2, 3:
			verb := pick("create", "create", "update", "update", "config", "restart", "check", "delete", "cancel")
			lines = append(lines, fmt.Sprintf("%s %s %d perhaps", verb, name, 1+random.IntN(4)))
		case 4:
			lines = append(lines, pick("break", "break", "break", "refuse", "hang", "panic", "unreachable")+" "+pick(steps...)+": a fault")
		case 5:
			lines = append(lines, "heal "+pick(steps...))
		case 6:
			lines = append(lines, "disk "+pick("full", "heals", "heals"))
		case 7:
			if parked = !parked; parked {
				lines = append(lines, "park")
			} else {
				lines = append(lines, "start")
			}
		case 8:
			lines = append(lines, "lose "+name+" node-1 perhaps")
		case 9:
			lines = append(lines, "advance "+pick("1ms", "100ms", "1s", "40s", "3m"))
		}
	}
	lines = append(lines, "disk heals")
	for _, step := range steps {
		lines = append(lines, "heal "+step)
	}
	if parked {
		lines = append(lines, "start")
	}
	return strings.Join(append(lines, "advance 15m"), "\n")
}

// tell acts a story and returns its outcome.
func tell(t *testing.T, folder, script string) string {
	began := time.Now()
	store := &faulty{Store: storetest.OpenIn(t, folder)}
	w, err := newWorld(filepath.Join(folder, "world"))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	faults := map[string]func(context.Context) error{}
	w.before = func(ctx context.Context, at string, e *environment.Environment) error {
		mu.Lock()
		fault := faults[at]
		if fault == nil && e != nil {
			fault = faults[fmt.Sprintf("%s@%d", at, e.Generation)]
		}
		mu.Unlock()
		if fault != nil {
			return fault(ctx)
		}
		return ctx.Err()
	}
	r := (*reconcile.Reconciler)(nil)
	var stop func()
	park := func() {
		if stop != nil {
			stop()
			stop = nil
		}
	}
	defer park()
	asked := 0
	for number, line := range strings.Split(script, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		fail := func(format string, arguments ...any) {
			t.Helper()
			t.Errorf("line %d: %s: %s", number+1, line, fmt.Sprintf(format, arguments...))
		}
		rest := strings.TrimSpace(strings.TrimPrefix(line, words[0]))
		step, message, _ := strings.Cut(rest, ": ")
		set := func(fault func(context.Context) error) {
			mu.Lock()
			defer mu.Unlock()
			faults[step] = fault
		}
		switch words[0] {
		case "start":
			r = reconcile.New(reconcile.Options{Store: store, Driver: w, Workers: 3, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); r.Run(ctx) }()
			stop = func() { cancel(); <-done }
		case "park":
			park()
		case "create", "update", "config", "delete", "restart", "check", "cancel":
			n := 0
			if len(words) > 2 {
				n, _ = strconv.Atoi(words[2])
			}
			asked++
			err := ask(t.Context(), store, time.Now(), fmt.Sprintf("%d-%s", asked, words[0]), words[0], words[1], n)
			if err != nil && words[len(words)-1] != "perhaps" {
				fail("%v", err)
			}
			if r != nil {
				r.Wake(named(words[1]))
			}
		case "break":
			set(func(context.Context) error { return errors.New(message) })
		case "refuse":
			set(func(context.Context) error {
				return &environment.Error{Code: environment.FailedPrecondition, Reason: "REFUSED", Message: message}
			})
		case "unreachable":
			set(func(context.Context) error { return fmt.Errorf("no route to it: %w", reconcile.ErrUnreachable) })
		case "hang":
			set(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		case "panic":
			set(func(context.Context) error { panic("of the driver") })
		case "heal":
			set(nil)
		case "disk":
			store.set(map[string]error{"full": &environment.Error{Code: environment.Unavailable, Message: "the disk is full"}}[words[1]])
		case "debris":
			if err := os.MkdirAll(w.cluster(words[1]), 0o700); err != nil {
				fail("%v", err)
			}
		case "lose":
			e := stored(t, store, words[1])
			if words[len(words)-1] == "perhaps" {
				if e != nil && os.Remove(w.cluster(e.UUID, words[2])) == nil && w.changed != nil {
					w.changed(e.UUID)
				}
				break
			}
			if err := os.Remove(w.cluster(e.UUID, words[2])); err != nil {
				fail("%v", err)
			}
			if len(words) == 3 {
				w.changed(e.UUID)
			}
		case "advance":
			d, err := time.ParseDuration(words[1])
			if err != nil {
				fail("%v", err)
			}
			time.Sleep(d) // the bubble's time
		case "expect":
			got := "gone"
			if e := stored(t, store, words[1]); e != nil {
				got = e.State.String()
			}
			if e := stored(t, store, words[1]); e != nil && e.Observed.Unseen != nil {
				got += " unseen since " + e.Observed.Unseen.Since.Sub(began).String()
			}
			if got != strings.Join(words[2:], " ") {
				fail("it is %s", got)
			}
		default:
			fail("no such command")
		}
		if err := reconcile.CheckInvariants(t.Context(), store); err != nil {
			fail("%v", err)
		}
		synctest.Wait()
	}
	park()
	judge(t, w, store)
	return outcome(t, store, began)
}

func stored(t *testing.T, store environment.Store, id string) (e *environment.Environment) {
	if err := store.View(context.Background(), func(tx environment.Tx) (err error) {
		e, err = tx.Environment(named(id))
		return err
	}); err != nil && !errors.Is(err, environment.ErrNotFound) {
		t.Error(err)
	}
	return e
}

// outcome is all that is stored, for people.
func outcome(t *testing.T, store environment.Store, began time.Time) string {
	var b strings.Builder
	at := func(moment time.Time) string {
		if moment.IsZero() {
			return "-"
		}
		return moment.Sub(began).Round(time.Millisecond).String()
	}
	if err := store.View(context.Background(), func(tx environment.Tx) error {
		environments, err := tx.Environments(environment.EnvironmentQuery{})
		if err != nil {
			return err
		}
		for _, e := range environments {
			fmt.Fprintf(&b, "%s %v: generation %d, %d nodes, agent %q %d; observed generation %d\n",
				e.Name.ID, e.State, e.Generation, e.Spec.Config.GetNodeCount(), e.Agent.Text, e.Agent.Generation, e.Observed.Generation)
		}
		operations, err := tx.Operations(environment.OperationQuery{})
		slices.Reverse(operations)
		for _, o := range operations {
			fmt.Fprintf(&b, "\n%s %s %v: %s to %s\n", o.Name.ID, o.Target.ID, o.State, at(o.Created), at(o.Ended))
			for _, s := range o.Steps {
				fmt.Fprintf(&b, "\t%s %v: %s to %s: %s\n", s.Name, s.State, at(s.Started), at(s.Ended), s.Detail)
			}
			if o.Error != nil {
				fmt.Fprintf(&b, "\terror %d %s: %s\n", o.Error.Code, o.Error.Reason, o.Error.Message)
			}
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	return b.String()
}
