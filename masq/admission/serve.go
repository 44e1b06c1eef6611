package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Path is where the API server sends what it wants reviewed.
const Path = "/validate"

// Certificate gives the certificate to serve.
type Certificate interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Serve answers on the listener until the context ends. /healthz and /readyz
// answer over TLS too, so that nobody is ready without a certificate.
func Serve(ctx context.Context, l net.Listener, reviewer http.Handler, certificate Certificate, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("POST "+Path, reviewer)
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("GET /readyz", ok)
	server := &http.Server{
		Handler:           mux,
		TLSConfig:         &tls.Config{GetCertificate: certificate.GetCertificate, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		// Handshakes that fail are everyday: load balancers and probes before
		// the certificate is there.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	// The program is built without HTTP/2; a server that is not told would offer
	// it all the same.
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		// What is being answered is answered: a rolling update loses no verdict.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = server.Shutdown(grace)
	})
	err := server.ServeTLS(l, "", "")
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the webhook on %s: %w", l.Addr(), err)
}
