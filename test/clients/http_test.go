package clients

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"

	"sordino/internal/testserver"
)

const environmentsPath = "/v1/" + location + "/environments"

// TestDocumentBody sends the document's request as curl would, byte for byte,
// and makes the agent's work visible in what comes of it.
func TestDocumentBody(t *testing.T) {
	t.Parallel()
	s := start(t)

	// First what would come of it, and nothing is stored.
	planned := s.must("POST", environmentsPath+"?validateOnly=true", documentBody)
	if planned.json["done"] != true || planned.json["name"] != nil && planned.json["name"] != "" {
		t.Fatalf("%s", planned.body)
	}
	exempt, _ := planned.at("metadata", "plan", "agentExempts").([]any)
	if !slices.Equal(exempt, []any{"10.128.0.0/20", "10.16.0.0/14", "10.20.0.0/20"}) {
		t.Errorf("the agent would exempt %v: %s", exempt, planned.body)
	}
	if list := s.must("GET", environmentsPath, ""); list.json["environments"] != nil {
		t.Fatalf("validateOnly stored something: %s", list.body)
	}

	// The same id again is the same request; with another content it is not.
	first := s.must("POST", environmentsPath+"?requestId=a-b-c", documentBody)
	again := s.must("POST", environmentsPath+"?requestId=a-b-c", documentBody)
	if name := first.json["name"]; name == nil || again.json["name"] != name {
		t.Fatalf("%s\n%s", first.body, again.body)
	}
	if other := s.do("POST", environmentsPath+"?requestId=a-b-c", strings.Replace(documentBody, "1.10.15", "2.4.3", 1)); other.StatusCode/100 != 4 {
		t.Fatalf("%s: %s", other.Status, other.body)
	}
	s.settle(location)
	operation := s.must("GET", "/v1/"+first.json["name"].(string), "")
	if operation.json["done"] != true || operation.at("metadata", "state") != "SUCCEEDED" || operation.at("response", "name") != example {
		t.Fatalf("%s", operation.body)
	}
	if steps, _ := operation.at("metadata", "steps").([]any); len(steps) < 3 {
		t.Errorf("the steps are not told: %s", operation.body)
	}

	// System parameters.
	get := "/v1/" + example
	for query, check := range map[string]func(answer) bool{
		"":                   func(a answer) bool { return bytes.Contains(a.body, []byte("\n  ")) && a.at("state") == "RUNNING" },
		"alt=json&$alt=json": func(a answer) bool { return a.at("state") == "RUNNING" },
		"prettyPrint=false":  func(a answer) bool { return !bytes.Contains(bytes.TrimSpace(a.body), []byte("\n")) },
		"$prettyPrint=false": func(a answer) bool { return !bytes.Contains(bytes.TrimSpace(a.body), []byte("\n")) },
		"fields=state,config/nodeCount": func(a answer) bool {
			return len(a.json) == 2 && a.at("config", "nodeCount") == 3.0 && a.at("config", "nodeConfig") == nil
		},
		"$alt=json;enum-encoding=int":                              func(a answer) bool { return a.at("state") == 2.0 },
		"key=x&quotaUser=y&access_token=z&callback=w&uploadType=u": func(a answer) bool { return a.at("state") == "RUNNING" },
	} {
		if a := s.must("GET", get+"?"+query, ""); !check(a) {
			t.Errorf("?%s: %s", query, a.body)
		}
	}
	if a := s.do("GET", get+"?pretty=1", ""); a.StatusCode != 400 || !strings.Contains(a.at("error", "message").(string), `"pretty"`) {
		t.Errorf("an unknown parameter: %s: %s", a.Status, a.body)
	}
	legacy := s.do("GET", get+"-missing?$.xgafv=1", "")
	if errs, _ := legacy.at("error", "errors").([]any); legacy.StatusCode != 404 || len(errs) != 1 {
		t.Errorf("%s", legacy.body)
	}

	// A prefix, and the version put twice.
	for _, path := range []string{"/composer/v1beta1/v1beta1/" + example, "/v1/v1beta1/" + example, "/v1alpha2/" + example} {
		if a := s.must("GET", path, ""); a.at("name") != example {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

// TestHTTPVersions sends a request by HTTP/1.1 and by HTTP/2 without TLS, on the
// port that gRPC has too.
func TestHTTPVersions(t *testing.T) {
	t.Parallel()
	s := start(t)
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(h2c.CloseIdleConnections)
	for major, client := range map[int]*http.Client{1: s.HTTP, 2: {Transport: h2c}} {
		response, body, err := (&testserver.Client{URL: s.URL, Token: s.Token, HTTP: client}).Do(t.Context(), "GET", environmentsPath, "")
		if err != nil || response.StatusCode != 200 || response.ProtoMajor != major {
			t.Errorf("HTTP/%d: %v, %s, %v", major, response, body, err)
		}
	}
}

// TestNobodyGetsIn: without a token nothing is told, not even what exists.
func TestNobodyGetsIn(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, header := range map[string][]string{
		"no token": {"Authorization", ""}, "a wrong token": {"Authorization", "Bearer wrong"},
	} {
		for _, path := range []string{environmentsPath, environmentsPath + "/missing", "/v1/" + location + "/imageVersions"} {
			if a := s.do("GET", path, "", header...); a.StatusCode != 401 || a.at("error", "status") != "UNAUTHENTICATED" {
				t.Errorf("%s: %s: %s %s", name, path, a.Status, a.body)
			}
		}
	}
	// A page in a browser that has our name resolve to loopback.
	if a := s.do("GET", environmentsPath, "", "Origin", "http://attacker.example"); a.StatusCode != 403 {
		t.Errorf("a foreign origin: %s %s", a.Status, a.body)
	}
}
