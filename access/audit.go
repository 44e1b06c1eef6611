package access

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Entry is one line of the audit log.
type Entry struct {
	Time time.Time `json:"time"`
	// Caller is empty when they did not prove who they are.
	Caller   string `json:"caller,omitempty"`
	Remote   string `json:"remote,omitempty"`
	Method   string `json:"method"`
	Resource string `json:"resource,omitempty"`
	// Code is the gRPC code's name: "OK", "PERMISSION_DENIED".
	Code   string `json:"code"`
	Reason string `json:"reason,omitempty"`
	// Operation is what the call started.
	Operation string `json:"operation,omitempty"`
}

// Audit appends entries to a file, a JSON object a line. A file that was
// renamed, as logrotate does it, is begun anew.
type Audit struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex
	file *os.File
}

// OpenAudit opens the log, which only the server's user can read.
func OpenAudit(path string, log *slog.Logger) (*Audit, error) {
	a := &Audit{path: path, log: log}
	if err := a.open(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Audit) open() error {
	f, err := os.OpenFile(a.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	a.file = f
	return nil
}

// Record writes an entry. A call is not undone because its line could not be
// written: that is said in the server's own log, with the line.
func (a *Audit) Record(e Entry) {
	line, err := json.Marshal(e)
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err = a.follow(); err == nil {
			_, err = a.file.Write(append(line, '\n'))
		}
	}
	if err != nil {
		a.log.Error("writing the audit log", "error", err, "entry", string(line))
	}
}

// follow opens the file again when its name no longer leads to it.
func (a *Audit) follow() error {
	named, err := os.Stat(a.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	open, openErr := a.file.Stat()
	if err == nil && openErr == nil && os.SameFile(named, open) {
		return nil
	}
	old := a.file
	if err := a.open(); err != nil {
		return err
	}
	return old.Close()
}

// Close ends the log.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.file.Close()
}
