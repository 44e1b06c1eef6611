package wire

import (
	"strings"
	"testing"
)

func TestDocumentBody(t *testing.T) {
	s := serve(t)
	a := s.do("POST", location+"/environments", documentBody)
	if a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	name, _ := a.at("name").(string)
	if !strings.HasPrefix(name, parent+"/operations/") || a.at("done") != nil {
		t.Fatalf("%s", a.body)
	}
	t.Logf("%s", a.body)
	for range 2 {
		a = s.do("GET", "/v1/"+name+"?alt=json", "")
	}
	t.Logf("%s", a.body)
	a = s.do("GET", "/v1/"+example, "")
	t.Logf("%s", a.body)
}
