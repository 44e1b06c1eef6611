package admission

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// Files serves a certificate from two files, and reads them again when they
// were replaced, as cert-manager and a projected Secret do.
type Files struct {
	Cert, Key string
	Log       *slog.Logger

	mu    sync.Mutex
	stamp string // of the files that were last read
	last  *tls.Certificate
}

// GetCertificate is for tls.Config. While the new files do not make a pair, the
// last good one is served: files are not replaced both at once.
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamp := fileStamp(f.Cert) + fileStamp(f.Key)
	if stamp == f.stamp && f.last != nil {
		return f.last, nil
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		err = fmt.Errorf("reading the certificate: %w", err)
		if f.last == nil {
			return nil, err
		}
		f.Log.Warn("the replaced certificate cannot be used; the last one stays", "error", err)
		return f.last, nil
	}
	f.stamp, f.last = stamp, &pair
	return f.last, nil
}

func fileStamp(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return "- "
	}
	return fmt.Sprintf("%d %d ", info.Size(), info.ModTime().UnixNano())
}
