package clusters

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sordino/masq/kube"
)

// The pages' common state goes while they are read: what was read before does
// not count, and nothing is there twice.
func TestListBeginsAgain(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.URL.Path+" "+r.URL.Query().Get("continue"))
		w.Header().Set("Content-Type", "application/json")
		answer := `{"metadata": {}, "items": [{"metadata": {"name": "c"}}]}`
		switch {
		case r.URL.Query().Get("labelSelector") != "a=b":
			t.Errorf("asked %s", r.URL)
		case r.URL.Query().Get("continue") != "":
			if len(asked) == 2 {
				w.WriteHeader(http.StatusGone)
				answer = `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410}`
			}
		default:
			answer = fmt.Sprintf(`{"metadata": {"continue": "next"}, "items": [{"metadata": {"name": "a%d"}}, {"metadata": {"name": "b"}}]}`, len(asked))
		}
		fmt.Fprint(w, answer)
	}))
	defer api.Close()
	client, err := rest.UnversionedRESTClientFor(dynamic.ConfigFor(&rest.Config{Host: api.URL}))
	if err != nil {
		t.Fatal(err)
	}
	all, err := List[kube.Node](t.Context(), client, nodes, "", metav1.ListOptions{LabelSelector: "a=b"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range all {
		names = append(names, n.Metadata.Name)
	}
	if want := []string{"a3", "b", "c"}; !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q", names, want)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"/api/v1/nodes ", "/api/v1/nodes next", "/api/v1/nodes ", "/api/v1/nodes next"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}
