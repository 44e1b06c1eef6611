package reconcile_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sordino/environment"
	"sordino/reconcile"
	"sordino/store"
	"sordino/store/storetest"
)

// The test's binary is also the program that is killed: a store and a
// reconciler on a world in a folder, and a client that asks what the script
// says, each line until it is accepted.
const (
	childFolder = "SORDINO_RECONCILE_CHILD"
	childScript = "SORDINO_RECONCILE_SCRIPT"
	// childKill is at which moment the program kills itself; 0 is never.
	childKill = "SORDINO_RECONCILE_KILL"
)

// boundaries is asked where every moment is tried.
const boundaries = `create a 2
update a 3
create b 1
cancel b
restart a
delete a`

var everyMoment = flag.Bool("every-moment", false, "kill at every moment, not at some of them")

func child(folder string) {
	moment, err := strconv.ParseInt(os.Getenv(childKill), 10, 64)
	if err != nil {
		panic(err)
	}
	live(folder, os.Getenv(childScript), moment)
}

// live runs a script to its end: all was accepted and nothing is unfinished.
func live(folder, script string, moment int64) {
	var moments atomic.Int64
	passed := func() {
		if moments.Add(1) == moment {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until it arrives
		}
	}
	s, err := store.Open(folder)
	if err != nil {
		panic(err)
	}
	w, err := newWorld(filepath.Join(folder, "world"))
	if err != nil {
		panic(err)
	}
	w.before = func(ctx context.Context, _ string, _ *environment.Environment) error {
		passed()
		return ctx.Err()
	}
	w.wanted = func(uuid string) (wanted bool) {
		_ = s.View(context.Background(), func(tx environment.Tx) error {
			list, err := tx.Environments(environment.EnvironmentQuery{})
			for _, e := range list {
				wanted = wanted || e.UUID == uuid
			}
			return err
		})
		return wanted
	}
	// wrote says that something may be otherwise than at the last look.
	wrote := make(chan struct{}, 1)
	killing := &faulty{Store: s, around: func(at string) {
		passed()
		select {
		case wrote <- struct{}{}:
		default:
		}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	r := reconcile.New(reconcile.Options{Store: killing, Driver: w, Workers: 3, Log: slog.New(slog.DiscardHandler)})
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	for i, line := range strings.Split(script, "\n") {
		words := strings.Fields(line)
		n := 0
		if len(words) > 2 {
			n, _ = strconv.Atoi(words[2])
		}
		id := fmt.Sprintf("%d-%s", i+1, words[0])
		for {
			passed()
			err := ask(ctx, s, time.Now(), id, words[0], words[1], n)
			if err == nil {
				passed()
				r.Wake(named(words[1]))
				break
			}
			if !errors.Is(err, errRefused) {
				panic(err)
			}
			if words[0] == "cancel" {
				break // too late
			}
			<-wrote
		}
		// What the client was told is on disk; the parent looks for it.
		accepted, err := os.OpenFile(filepath.Join(folder, "accepted"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(accepted, id)
		if err := errors.Join(accepted.Close()); err != nil {
			panic(err)
		}
	}
	for unfinished(s) {
		<-wrote
	}
	cancel()
	running.Wait()
	if err := s.Close(); err != nil {
		panic(err)
	}
}

func unfinished(s environment.Store) bool {
	var list []*environment.Operation
	if err := s.View(context.Background(), func(tx environment.Tx) (err error) {
		list, err = tx.Operations(environment.OperationQuery{Unfinished: true})
		return err
	}); err != nil {
		panic(err)
	}
	return len(list) > 0
}

// program is a run of the child.
func program(t *testing.T, folder, script string, moment int64) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childFolder+"="+folder, childScript+"="+script, childKill+"="+strconv.FormatInt(moment, 10))
	cmd.Stderr = t.Output()
	return cmd
}

// killed reports whether a run ended by SIGKILL; any other failure is the test's.
func killed(t *testing.T, err error) bool {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// check looks at what a run left: also at a moment at which it was killed.
func check(t *testing.T, folder string, ended bool) {
	t.Helper()
	s, err := store.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := newWorld(filepath.Join(folder, "world"))
	if err != nil {
		t.Fatal(err)
	}
	if ended {
		judge(t, w, s)
		if unfinished(s) {
			t.Error("an operation never ended")
		}
	} else if err := reconcile.CheckInvariants(t.Context(), s); err != nil {
		t.Error(err)
	}
	accepted, err := os.ReadFile(filepath.Join(folder, "accepted"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := s.View(t.Context(), func(tx environment.Tx) error {
		for _, id := range strings.Fields(string(accepted)) {
			if strings.HasSuffix(id, "-cancel") {
				continue
			}
			o, err := tx.Operation(environment.OperationName{Location: place, ID: id})
			if err != nil {
				t.Errorf("%s was accepted: %v", id, err)
			} else if o.Error != nil && o.Error.Code != environment.Cancelled {
				t.Errorf("%s failed: %v", id, o.Error)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// The process is killed before and after steps and writes, at some of these
// moments in each run of the test, then started again.
func TestKilledAtBoundaries(t *testing.T) {
	t.Parallel()
	kills := 0
	for moment := int64(1); ; moment++ {
		if !*everyMoment {
			moment += rand.Int64N(9)
		}
		folder := storetest.MemoryFolder(t)
		if !killed(t, program(t, folder, boundaries, moment).Run()) {
			if moment < 100 {
				t.Errorf("there were fewer than %d moments to be killed at", moment)
			}
			t.Logf("killed at %d moments", kills)
			check(t, folder, true)
			return
		}
		kills++
		check(t, folder, false)
		live(folder, boundaries, 0)
		check(t, folder, true)
		if t.Failed() {
			t.Fatalf("killed at moment %d", moment)
		}
	}
}

// The process is killed again and again at random moments, from outside.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 2 {
		folder := storetest.MemoryFolder(t)
		script := randomScript(random, 25)
		for kills := 0; ; kills++ {
			cmd := program(t, folder, script, 0)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Each may live longer than the one before, so that it comes to an end
			// on a slow machine too.
			kill := time.AfterFunc(time.Duration(random.IntN(80*(kills+1)))*time.Millisecond, func() { _ = cmd.Process.Kill() })
			again := killed(t, cmd.Wait())
			kill.Stop()
			check(t, folder, !again)
			if t.Failed() {
				t.Fatalf("seed %d, script:\n%s", seed, script)
			}
			if !again {
				t.Logf("killed %d times", kills)
				break
			}
		}
	}
}

// randomScript asks for what can be accepted, one line after the other, of
// three environments.
func randomScript(random *rand.Rand, length int) string {
	var lines []string
	exists := map[string]bool{}
	for range length {
		name := string(rune('a' + random.IntN(3)))
		verb := "create"
		if exists[name] {
			verb = []string{"update", "update", "config", "restart", "check", "delete"}[random.IntN(6)]
		}
		exists[name] = verb != "delete"
		lines = append(lines, fmt.Sprintf("%s %s %d", verb, name, 1+random.IntN(4)))
		if verb == "update" && random.IntN(3) == 0 {
			lines = append(lines, "cancel "+name)
		}
	}
	return strings.Join(lines, "\n")
}
