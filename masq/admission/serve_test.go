package admission

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// fixed is one certificate for ever.
type fixed struct{ tls.Certificate }

func (f fixed) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &f.Certificate, nil
}

// A build without HTTP/2 must not offer it: the API server would take the offer.
func TestServeSpeaksHTTP1(t *testing.T) {
	authority, err := newAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issue(authority, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, http.NotFoundHandler(), fixed{*leaf}, slog.New(slog.DiscardHandler))
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("it agrees on %q", got)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	response, err := client.Get("https://" + l.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(response.Body)
	response.Body.Close()
	if string(text) != "ok\n" {
		t.Errorf("%d %s", response.StatusCode, text)
	}
	client.CloseIdleConnections()
	c.Close()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
