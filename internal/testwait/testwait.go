// Package testwait has tests wait for what goes on beside them, in another
// process or goroutine: Until asks again and again, and Log is what the other
// side writes, to be read meanwhile.
//
// It refuses to know what is waited for, and how long that may take: every test
// says both, and a pause that the one who is asked can bear. Where time can be
// a bubble's, testing/synctest is better than waiting.
//
// To debug a test that waited in vain: it ends with the last error that Until
// was given, so have ask say what it saw, and the Log if there is one.
package testwait

import (
	"bytes"
	"sync"
	"testing"
	"time"
)

// Until asks until there is no error, with a pause after every answer. When
// there still is one after so long, the test has failed and ends.
func Until(tb testing.TB, within, pause time.Duration, ask func() error) {
	tb.Helper()
	deadline := time.After(within)
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			tb.Fatalf("still after %v: %v", within, err)
		case <-time.After(pause):
		}
	}
}

// Log is what a server or a program writes, to be read while it does. The zero
// value is empty.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
