package testwait

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	said string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestUntil(t *testing.T) {
	for name, one := range map[string]struct {
		right     time.Duration // from when on there is no error
		took      time.Duration
		questions int
		said      string
	}{
		"at once":       {0, 0, 1, ""},
		"after a while": {25 * time.Millisecond, 30 * time.Millisecond, 4, ""},
		"never":         {time.Hour, 95 * time.Millisecond, 10, "still after 95ms: wrong 10"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, began, questions := &recorder{}, time.Now(), 0
				var waiting sync.WaitGroup
				waiting.Go(func() {
					Until(r, 95*time.Millisecond, 10*time.Millisecond, func() error {
						if questions++; time.Since(began) >= one.right {
							return nil
						}
						return fmt.Errorf("wrong %d", questions)
					})
				})
				waiting.Wait()
				if took := time.Since(began); took != one.took || questions != one.questions || r.said != one.said {
					t.Errorf("it took %v and %d questions, and says %q; want %+v", took, questions, r.said, one)
				}
			})
		})
	}
}

// A question that takes longer than there is time is the last one.
func TestUntilSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, questions := &recorder{}, 0
		var waiting sync.WaitGroup
		waiting.Go(func() {
			Until(r, time.Second, time.Millisecond, func() error {
				questions++
				time.Sleep(time.Minute)
				return errors.New("wrong")
			})
		})
		waiting.Wait()
		if questions != 1 || r.said == "" {
			t.Errorf("%d questions, and %q", questions, r.said)
		}
	})
}

func TestLog(t *testing.T) {
	var l Log
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 100 {
				fmt.Fprintln(&l, "line")
				_ = l.String()
			}
		})
	}
	writers.Wait()
	if got := strings.Count(l.String(), "line\n"); got != 400 {
		t.Errorf("%d lines of 400", got)
	}
}
