package server_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"sordino/internal/testserver"
)

var (
	seed    = flag.Uint64("seed", 0, "of the random moments; 0 is another one each time")
	moments = flag.Int("moments", 6, "how many random moments the server is killed at")
)

// change is something that is asked for again and again.
type change struct {
	name string
	ask  func(w *world, n int) (operation string)
}

// The configurations alternate, so that each is a change.
var configs = []string{
	"nonMasqueradeCIDRs: [10.0.0.0/8, 198.51.100.0/24]",
	"nonMasqueradeCIDRs: [10.0.0.0/8, 203.0.113.0/24]",
}

var changes = []change{
	{"create", func(w *world, n int) string { return w.create(fmt.Sprintf("e%d", n), withAgent) }},
	{"change the node count", func(w *world, n int) string {
		return w.Accepted("PATCH", environments+"/e0?updateMask=config.nodeCount", fmt.Sprintf(`{"config": {"nodeCount": %d}}`, 4-n%2))
	}},
	{"configure the agent", func(w *world, n int) string {
		return w.Accepted("PATCH", "/v1/"+location+"/environments/e0/masqAgent", fmt.Sprintf(`{"config": %q}`, configs[n%2]))
	}},
	{"delete", func(w *world, n int) string {
		return w.Accepted("DELETE", environments+"/e"+fmt.Sprint(n), "")
	}},
}

// The server is killed after every step of everything that it does. The next
// start goes on, and everything that lives is taken over as it is.
func TestKilledAtEveryStep(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	var there []string
	for _, c := range changes {
		for boundary, last := 0, false; !last; boundary++ {
			n := boundary
			if c.name == "delete" {
				if n >= len(there) {
					break
				}
				// As they were made, and those that are not needed for a boundary too.
				last = n == len(there)-1
			}
			op := c.ask(w, n)
			var at testserver.Operation
			w.eventually(func() (err error) {
				if at, err = w.Operation(t.Context(), op); err == nil && at.Succeeded() < boundary && !at.Done {
					err = fmt.Errorf("%s: %d of %d steps", op, at.Succeeded(), len(at.Metadata.Steps))
				}
				return err
			})
			w.Kill()
			what := fmt.Sprintf("%s, killed after %d of %d steps", c.name, at.Succeeded(), len(at.Metadata.Steps))
			t.Log(what)
			switch {
			case c.name == "create":
				there = append(there, fmt.Sprintf("e%d", n))
				last = at.Done
			case c.name != "delete":
				last = at.Done
			}
			left := there
			if c.name == "delete" {
				left = there[n+1:]
			}
			w.recovers(what, op, left)
		}
	}
	w.settled()
	w.stop()
	w.stored()
}

// recovers starts the server that was killed again.
func (w *world) recovers(what, op string, left []string) {
	w.t.Helper()
	w.stored()
	agents := w.agents()
	w.Restart()
	w.Succeeds(op)
	w.settled(left...)
	now := w.agents()
	labs := w.labs()
	for agent, pid := range agents {
		id := agent[:len("00000000-0000-0000-0000-000000000000")]
		if l, there := labs[id]; !there || len(l.Agents) < 4 && agent[len(id)+1:] == "node-4" {
			continue // it was to go
		}
		if now[agent] != pid {
			w.t.Errorf("%s: the agent of %s was process %d, and is %d", what, agent, pid, now[agent])
		}
	}
	if w.t.Failed() {
		w.t.Fatal(what)
	}
}

// The server is killed at any moment, also while it starts.
func TestKilledAtRandomMoments(t *testing.T) {
	from := *seed
	if from == 0 {
		from = uint64(time.Now().UnixNano())
	}
	t.Logf("again with -seed=%d", from)
	random := rand.New(rand.NewPCG(from, 0))
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.Succeeds(w.create("e0", withAgent))
	there := map[string]bool{"e0": true}
	var counts, configured int
	for n := 1; n <= *moments; n++ {
		var asked []string
		id := fmt.Sprintf("e%d", n)
		asked = append(asked, w.create(id, []string{"", withAgent}[random.IntN(2)]))
		there[id] = true
		if old := fmt.Sprintf("e%d", n-2); n > 2 && there[old] {
			asked = append(asked, w.Accepted("DELETE", environments+"/"+old, ""))
			delete(there, old)
		}
		if random.IntN(2) == 0 {
			asked = append(asked, changes[1].ask(w, counts))
			counts++
		} else {
			asked = append(asked, changes[2].ask(w, configured))
			configured++
		}
		<-time.After(time.Duration(random.Int64N(int64(800 * time.Millisecond)))) // a moment as good as any
		w.Kill()
		w.stored()
		for random.IntN(3) == 0 {
			w.Restart()
			<-time.After(time.Duration(random.Int64N(int64(200 * time.Millisecond))))
			w.Kill()
			w.stored()
		}
		w.Restart()
		for _, op := range asked {
			w.Succeeds(op)
		}
		var want []string
		for id := range there {
			want = append(want, id)
		}
		w.settled(want...)
		if t.Failed() {
			t.FailNow()
		}
	}
	if m := w.masq("e0"); !m.InForce {
		t.Errorf("%+v", m)
	}
}
