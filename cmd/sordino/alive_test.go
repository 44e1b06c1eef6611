package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"sordino/access"
)

// TestAlive asks as a kubelet does: by the Pod's address and without a token.
func TestAlive(t *testing.T) {
	guard := access.Guard{Refuse: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusForbidden) }}
	handler := alive(guard.Wrap(http.NotFoundHandler()))
	for path, want := range map[string]int{"/healthz": http.StatusOK, "/healthz/x": http.StatusForbidden, "/v1/projects": http.StatusForbidden} {
		request := httptest.NewRequest(http.MethodGet, "https://10.88.1.2:8443"+path, nil)
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != want {
			t.Errorf("%s: %d, want %d", path, answer.Code, want)
		}
	}
}
