package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Handler serves /metrics, /healthz, /readyz and /status.
//
// /healthz answers 200 while the loop answers, so that a restart mends what a
// restart can mend. /readyz answers 200 while the kernel holds the desired
// generation; a rejected configuration does not make it fail, because the last
// good one is in force.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		a.metrics.write(r.Context(), w)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if err := a.Alive(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := a.Status()
		if !s.Ready {
			reason := s.LastError
			if reason == "" {
				reason = "the first rules are not in the kernel yet"
			}
			http.Error(w, fmt.Sprintf("the kernel does not hold generation %d: %s", s.Generation, reason), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "ok: the kernel holds generation %d (%s)\nconfiguration: %s\n", s.AppliedGeneration, s.AppliedHash, s.ConfigFrom)
		if s.ConfigError != "" {
			fmt.Fprintf(w, "%s: %s\n", s.ConfigReason, s.ConfigError)
		}
		if r := s.Remote; r != nil {
			fmt.Fprintf(w, "API server: %s, last contact %s\n", r.Server, r.LastContact.Format(time.RFC3339))
			for _, p := range r.Problems {
				fmt.Fprintf(w, "API server: %s\n", p)
			}
		}
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(a.Status())
	})
	return mux
}

// Serve answers on the address until the context ends. An address that cannot
// be had is no reason to stop masquerading: it is said, and tried again.
func Serve(ctx context.Context, address string, handler http.Handler, log *slog.Logger) {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(last)
	})()
	for ctx.Err() == nil {
		listener, err := net.Listen("tcp", address)
		if err == nil {
			log.Info("serving metrics and health", "address", listener.Addr().String())
			err = server.Serve(listener)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return
		}
		log.Error("serving metrics and health; masquerading goes on, and it is tried again", "address", address, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(lastRetry):
		}
	}
}
