package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func unescape(path string) string {
	if p, err := url.PathUnescape(path); err == nil {
		return p
	}
	return path
}

func TestPaths(t *testing.T) {
	h := things(t)
	for _, c := range []struct {
		method, path string
		code         int
		name         string // of the request, when it was understood
	}{
		{"GET", "/v1/projects/p/things/t", 200, "projects/p/things/t"},
		{"GET", "/prefix/v1/projects/p/things/t", 200, "projects/p/things/t"},
		{"GET", "//v1/projects/p/things/t", 200, "projects/p/things/t"},
		{"GET", "/v1/v1/projects/p/things/t", 200, "projects/p/things/t"},
		{"GET", "/v2/v1/projects/p/things/t", 200, "projects/p/things/t"},
		{"GET", "/projects/p/things/t", 200, "projects/p/things/t"},
		{"GET", "/some/where/projects/p/things/t", 200, "projects/p/things/t"},
		// A thing, and a project, may be called as a version is.
		{"GET", "/v1/projects/p/things/v1", 200, "projects/p/things/v1"},
		{"GET", "/v1/projects/v1/things/v2", 200, "projects/v1/things/v2"},
		{"GET", "/v1/projects/projects/things/t", 200, "projects/projects/things/t"},
		// The colon of a project's domain is no verb.
		{"GET", "/v1/projects/example.com:proj/things/t", 200, "projects/example.com:proj/things/t"},
		{"GET", "/v1/projects/example.com%3Aproj/things/t", 200, "projects/example.com:proj/things/t"},
		{"POST", "/v1/projects/example.com:proj/things", 200, "projects/example.com:proj"},
		{"POST", "/v1/projects/example.com:proj/things/t:run", 200, "projects/example.com:proj/things/t"},
		{"POST", "/v1/projects/p/things/t%3Arun", 200, "projects/p/things/t"},
		{"POST", "/v1/projects/p/things/a:b:run", 200, "projects/p/things/a:b"},
		{"POST", "/v1/projects/p/things/t:unknown", 404, ""},
		{"POST", "/v1/projects/p/things/t:", 404, ""},
		{"GET", "/v2/projects/p/things/a/b/c", 200, ""},
		{"GET", "/v1/projects/p/things/a/b", 404, ""},
		{"GET", "/v1/projects//things/t", 404, ""},
		{"GET", "/v1/projects/p/things/", 404, ""},
		{"GET", "/", 404, ""},
		{"GET", "/v1", 404, ""},
		{"GET", "/v1/projects/p%2Fq/things/t", 400, ""},
		{"GET", "/v1/projects/p/things/%00", 400, ""},
		{"GET", "/v1/projects/p/things/%ff", 400, ""},
		{"DELETE", "/v1/projects/p/things/t", 405, ""},
		{"GET", "/v1/projects/p/things/t:run", 405, ""},
		{"HEAD", "/v1/projects/p/things/t", 200, "projects/p/things/t"},
		{"BREW", "/v1/projects/p/things/t", 405, ""},
	} {
		a := send(t, h, c.method, c.path, "")
		if a.Code != c.code {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, a.Code, c.code, a.Body)
			continue
		}
		if name, _ := a.json["name"].(string); name != c.name {
			t.Errorf("%s %s: the name is %q, want %q", c.method, c.path, name, c.name)
		}
		if c.code == 405 && a.Header().Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
		if e, _ := a.json["error"].(map[string]any); c.code >= 400 && (e["code"] != float64(c.code) || e["status"] == "") {
			t.Errorf("%s %s: %v", c.method, c.path, a.json)
		}
	}
	a := send(t, h, "OPTIONS", "/v1/projects/p/things/t", "")
	if a.Code != 204 || a.Header().Get("Allow") != "GET, HEAD, PATCH" || a.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("OPTIONS: %d %v", a.Code, a.Header())
	}
	if a := send(t, h, "POST", "/v1/projects/p/things/t", "{}", "X-HTTP-Method-Override", "PATCH"); a.Code != 200 {
		t.Errorf("override: %d %s", a.Code, a.Body)
	}
	if a := send(t, h, "GET", "/v1/projects/p/things/a/b", ""); !strings.Contains(a.message(), "v2 has this method") {
		t.Errorf("%s", a.Body)
	}
	if routes := h.Routes(); len(routes) != 6 || !slices.Contains(routes, "POST /v1/{name=projects/*/things/*}:run things.v1.Things.Run") {
		t.Errorf("%q", routes)
	}
}

func TestQuery(t *testing.T) {
	h := things(t)
	const path = "/v1/projects/p/things/t"
	for _, c := range []struct {
		query string
		code  int
		want  string // compact JSON, or in the message
	}{
		{"pageSize=3&page_size=4", 200, `"pageSize":4`},
		{"tags=a&tags=b%2Cc", 200, `"tags":["a","b,c"]`},
		{"color=RED", 200, `"color":"RED"`},
		{"color=1", 200, `"color":"RED"`},
		{"all=true", 200, `"all":true`},
		{"since=2026-11-24T00:00:00Z", 200, `"since":"2026-11-24T00:00:00Z"`},
		{"thing.inner.intValue=7", 200, `"thing":{"inner":{"intValue":7}}`},
		{"extra=yes", 200, `"tags":["extra=yes"]`},
		{"alt=json;enum-encoding=int&color=RED", 200, `"color":1`},
		{"$alt=json;enum-encoding=int&color=RED", 200, `"color":1`},
		{"alt=media&callback=f&key=k&quotaUser=u&access_token=t&oauth_token=t&uploadType=x&upload_protocol=raw&$.xgafv=2&xgafv=1&$key=k&userIp=1&$prettyPrint=0&$userProject=p&$callback=c", 200, ``},
		{"pageSize=many", 400, "Invalid value at 'page_size' (TYPE_INT32), \"many\""},
		{"pageSize=99999999999", 400, "Invalid value"},
		{"color=BLUE", 400, "things.v1.Color"},
		{"since=yesterday", 400, "google.protobuf.Timestamp"},
		{"frobnicate=1&other=2", 400, `Unknown name "frobnicate": Cannot bind query parameter. Field 'frobnicate' could not be found in request message.`},
		{"frobnicate=1&other=2", 400, `Unknown name "other"`},
		{"name=projects/q", 400, `Unknown name "name"`}, // it is in the path
		{"thing=x", 400, `Unknown name "thing"`},
		{"thing.labels=x", 400, `Unknown name`},
		{"pageSize=%zz", 400, "malformed"},
		{"%ff=1", 400, "UTF-8"},
	} {
		a := send(t, h, "GET", path+"?"+c.query, "")
		text := a.message()
		if a.Code == 200 {
			b, _ := json.Marshal(a.json)
			text = string(b)
		}
		if a.Code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s, want %d with %s", c.query, a.Code, text, c.code, c.want)
		}
	}
	// Masks keep every byte between the commas.
	a := send(t, h, "PATCH", path+"?updateMask=config.node_count,labels.a-b,%20config.pypiPackages.zope.interface%20,config.WorkloadsConfig,&updateMask=x.core-dags_are_paused", "{}")
	want := []any{"mask=config.node_count", "mask=labels.a-b", "mask=config.pypiPackages.zope.interface", "mask=config.WorkloadsConfig", "mask=x.core-dags_are_paused"}
	if !reflect.DeepEqual(a.json["tags"], want) {
		t.Errorf("%s", a.Body)
	}
}

func TestShapes(t *testing.T) {
	h := things(t)
	const path = "/v1/projects/p/things/t"
	if got, want := send(t, h, "GET", path+"?pageSize=1", "").Body.String(), "{\n  \"name\": \"projects/p/things/t\",\n  \"pageSize\": 1\n}\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := send(t, h, "GET", path+"?prettyPrint=false", "").Body.String(), `{"name":"projects/p/things/t"}`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	a := send(t, h, "GET", path+"?nope=1&$.xgafv=1&prettyPrint=false", "")
	e := a.json["error"].(map[string]any)
	if legacy, _ := e["errors"].([]any); len(legacy) != 1 || legacy[0].(map[string]any)["reason"] != "badRequest" || strings.Contains(a.Body.String(), "\n") {
		t.Errorf("%s", a.Body)
	}
	if a := send(t, h, "GET", path+"?nope=1", ""); a.json["error"].(map[string]any)["errors"] != nil || a.Header().Get("Content-Type") != "application/json; charset=UTF-8" {
		t.Errorf("%s", a.Body)
	}
	body := `{"name":"n","inner":{"intValue":1,"boolValue":true},"things":[{"name":"a","intValue":1},{"name":"b"}],"labels":{"k":"v","l":"w"}}`
	for _, c := range []struct{ fields, want string }{
		{"name", `{"name":"projects/p"}`},
		{"thing(name)", `{"thing":{"name":"n"}}`},
		{"thing/inner/int_value", `{"thing":{"inner":{"intValue":1}}}`},
		{"thing.things.name", `{"thing":{"things":[{"name":"a"},{"name":"b"}]}}`},
		{"thing(things(name),inner/boolValue),name", `{"name":"projects/p","thing":{"inner":{"boolValue":true},"things":[{"name":"a"},{"name":"b"}]}}`},
		{"thing/labels/k", `{"thing":{"labels":{"k":"v"}}}`},
		{"*/name", `{"thing":{"name":"n"}}`},
		{"thing/inner,thing/inner/intValue", `{"thing":{"inner":{"boolValue":true,"intValue":1}}}`},
		{"pageSize", `{}`},
		{"thing(", ""}, {"thing(name", ""}, {"thing)", ""}, {"a,,b", ""}, {"nope", ""}, {"thing/nope", ""}, {"name/nope", ""}, {strings.Repeat("thing(", 40), ""}, {strings.Repeat("a", 9000), ""},
	} {
		a := send(t, h, "POST", "/v1/projects/p/things?prettyPrint=false&fields="+url.QueryEscape(c.fields), body)
		b, _ := json.Marshal(a.json)
		if c.want == "" {
			if a.Code != 400 || a.reason() != "FIELDS_MALFORMED" {
				t.Errorf("fields=%.60s: %d %s", c.fields, a.Code, a.Body)
			}
		} else if a.Code != 200 || c.fields != "*/name" && string(b) != c.want {
			t.Errorf("fields=%s: %d %s, want %s", c.fields, a.Code, b, c.want)
		}
	}
}

func TestJSON(t *testing.T) {
	h := things(t)
	for _, c := range []struct {
		body string
		code int
		want string
	}{
		// Accepted.
		{``, 200, `{"name":"projects/p"}`},
		{`{}`, 200, `{"name":"projects/p","thing":{}}`},
		{"\xef\xbb\xbf// a comment\n{\"name\": \"n\", /* one */ \"texts\": [\"a\", \"b\",],}\n// the end", 200, `{"name":"projects/p","thing":{"name":"n","texts":["a","b"]}}`},
		{`{"int_value": 3, "bigValue": "9007199254740993", "unsignedValue": 4294967295, "huge_value": 18446744073709551615}`, 200, `{"name":"projects/p","thing":{"bigValue":"9007199254740993","hugeValue":"18446744073709551615","intValue":3,"unsignedValue":4294967295}}`},
		{`{"intValue": 3.0}`, 200, `{"name":"projects/p","thing":{"intValue":3}}`},
		{`{"intValue": "3"}`, 200, `{"name":"projects/p","thing":{"intValue":3}}`},
		{`{"intValue": 3e2}`, 200, `{"name":"projects/p","thing":{"intValue":300}}`},
		{`{"name": null, "inner": null, "texts": null, "labels": null}`, 200, `{"name":"projects/p","thing":{}}`},
		{`{"inner": {}, "labels": {}, "texts": []}`, 200, `{"name":"projects/p","thing":{"inner":{}}}`},
		{`{"color": "RED"}`, 200, `{"name":"projects/p","thing":{"color":"RED"}}`},
		{`{"color": 1}`, 200, `{"name":"projects/p","thing":{"color":"RED"}}`},
		{`{"bytesValue": "_-8"}`, 200, `{"name":"projects/p","thing":{"bytesValue":"/+8="}}`},
		{`{"time": "2026-11-24T01:00:00+01:00", "duration": "1.5s", "maybe": 0, "anyJson": {"a": [1, null]}}`, 200, `{"name":"projects/p","thing":{"anyJson":{"a":[1,null]},"duration":"1.500s","maybe":0,"time":"2026-11-24T00:00:00Z"}}`},
		{`{"anyJson": null}`, 200, `{"name":"projects/p","thing":{"anyJson":null}}`},
		{`{"labels": {"a.b": "c", "": "empty"}}`, 200, `{"name":"projects/p","thing":{"labels":{"":"empty","a.b":"c"}}}`},
		{`{"mask": "a,b_c.d-e,fG"}`, 200, `{"name":"projects/p","tags":["mask=a","mask=b_c.d-e","mask=fG"],"thing":{}}`},
		// One member of a oneof is "".
		{`{"byName": "", "byRange": "10.0.0.0/8"}`, 200, `{"name":"projects/p","thing":{"byRange":"10.0.0.0/8"}}`},
		{`{"byName": "n", "byRange": ""}`, 200, `{"name":"projects/p","thing":{"byName":"n"}}`},
		{`{"byName": null, "byRange": "r"}`, 200, `{"name":"projects/p","thing":{"byRange":"r"}}`},
		{`{"byName": "", "byRange": ""}`, 200, `{"name":"projects/p","thing":{"byName":""}}`},
		// Refused, with the place.
		{`{"byName": "n", "byRange": "r"}`, 400, `Invalid value at 'thing' (oneof), oneof field 'way' is already set by 'byName'. Cannot set 'byRange'`},
		{`{"nope": 1}`, 400, `Invalid JSON payload received. Unknown name "nope" at 'thing': Cannot find field.`},
		{`{"inner": {"x": 1, "y": 2}}`, 400, "Invalid JSON payload received. Unknown name \"x\" at 'thing.inner': Cannot find field.\nInvalid JSON payload received. Unknown name \"y\" at 'thing.inner': Cannot find field."},
		{`{"things": [{}, {"x": 1}]}`, 400, `Unknown name "x" at 'thing.things[1]'`},
		{`{"boolValue": "true"}`, 400, `Invalid value at 'thing.bool_value' (TYPE_BOOL), "true"`},
		{`{"intValue": 3.5}`, 400, `Invalid value at 'thing.int_value' (TYPE_INT32), 3.5`},
		{`{"intValue": 2147483648}`, 400, `Invalid value at 'thing.int_value' (TYPE_INT32), 2147483648`},
		{`{"intValue": true}`, 400, `Invalid value at 'thing.int_value' (TYPE_INT32), true`},
		{`{"bigValue": 1e30}`, 400, `Invalid value at 'thing.big_value' (TYPE_INT64), 1e30`},
		{`{"unsignedValue": -1}`, 400, `Invalid value at 'thing.unsigned_value' (TYPE_UINT32), -1`},
		{`{"name": 3}`, 400, `Invalid value at 'thing.name' (TYPE_STRING), 3`},
		{`{"name": {"a": 1}}`, 400, `Invalid value at 'thing.name' (TYPE_STRING), Starting an object on a scalar field`},
		{`{"name": ["a"]}`, 400, `Proto field is not repeating, cannot start list.`},
		{`{"inner": "x"}`, 400, `Invalid value at 'thing.inner' (type.googleapis.com/things.v1.Thing), "x"`},
		{`{"texts": "x"}`, 400, `write a list`},
		{`{"texts": ["x", null]}`, 400, `'thing.texts[1]'`},
		{`{"things": [null]}`, 400, `'thing.things[0]'`},
		{`{"labels": []}`, 400, `write an object`},
		{`{"labels": {"a": 1}}`, 400, `'thing.labels["a"]'`},
		{`{"color": "BLUE"}`, 400, `Invalid value at 'thing.color' (type.googleapis.com/things.v1.Color), "BLUE"`},
		{`{"time": "noon"}`, 400, `Invalid value at 'thing.time' (type.googleapis.com/google.protobuf.Timestamp), "noon"`},
		{`{"name": "a", "name": "b"}`, 400, `Name "name" at 'thing' stands there twice`},
		{`{"intValue": 1, "int_value": 1}`, 400, `Name "int_value" at 'thing' stands there twice`},
		{`{"labels": {"a": "1", "a": "2"}}`, 400, `Name "a" at 'thing.labels' stands there twice`},
		{`[]`, 400, `Invalid value at 'thing'`},
		{`"x"`, 400, `Invalid value at 'thing'`},
		{`{`, 400, `Invalid JSON payload received: `},
		{`{"name": }`, 400, `Invalid JSON payload received: line 1, column`},
		{`{} {}`, 400, `Invalid JSON payload received: `},
		{`name=n`, 400, `Invalid JSON payload received: `},
		{"{\"name\": \"\xff\"}", 400, `not text in UTF-8`},
		{strings.Repeat(`{"inner":`, 30) + "1" + strings.Repeat("}", 30), 400, `nested deeper than 20 levels`},
		{strings.Repeat(`[`, 4000), 400, `nested deeper than 20 levels`},
		{`{"name": "` + strings.Repeat("{", 100) + `"}`, 200, ``},
		{"{\"name\": \"n\" // " + strings.Repeat("{", 100) + "\n}", 200, ``},
		{`{"name": "` + strings.Repeat("x", 5000) + `"}`, 400, `larger than 4096 bytes`},
	} {
		a := send(t, h, "POST", "/v1/projects/p/things", c.body)
		text := a.message()
		if a.Code == 200 {
			b, _ := json.Marshal(a.json)
			text = string(b)
			if c.want != "" && text != c.want {
				t.Errorf("%.80s: %s, want %s", c.body, text, c.want)
			}
		}
		if a.Code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%.80s: %d %s, want %d with %s", c.body, a.Code, text, c.code, c.want)
		}
		if a.Code == 400 && a.reason() == "" {
			t.Errorf("%.80s: no ErrorInfo: %s", c.body, a.Body)
		}
	}
	// Each fault is a field violation of its own.
	a := send(t, h, "POST", "/v1/projects/p/things", `{"nope": 1, "inner": {"intValue": "x"}}`)
	var fields []string
	for _, d := range a.json["error"].(map[string]any)["details"].([]any) {
		violations, _ := d.(map[string]any)["fieldViolations"].([]any)
		for _, v := range violations {
			fields = append(fields, v.(map[string]any)["field"].(string))
		}
	}
	if !slices.Equal(fields, []string{"thing", "thing.inner.int_value"}) {
		t.Errorf("%q: %s", fields, a.Body)
	}
	// A path's value wins over the body's.
	if a := send(t, h, "POST", "/v1/projects/p/things/t:run", `{"name": "projects/evil/things/t"}`); a.json["name"] != "projects/p/things/t" {
		t.Errorf("%s", a.Body)
	}
	// A method that takes no body.
	if a := send(t, h, "GET", "/v1/projects/p/things/t", `{"name": "x"}`); a.reason() != "BODY_NOT_TAKEN" {
		t.Errorf("%d %s", a.Code, a.Body)
	}
	if a := send(t, h, "GET", "/v1/projects/p/things/t", `{}`); a.Code != 200 {
		t.Errorf("%d %s", a.Code, a.Body)
	}
}

func TestContentType(t *testing.T) {
	h := things(t)
	for kind, code := range map[string]int{
		"":                                  200,
		"application/json":                  200,
		"application/json; charset=UTF-8":   200,
		"application/merge-patch+json":      200,
		"application/json; charset=utf-16":  400,
		"application/x-www-form-urlencoded": 400, // what curl and a browser's form send
		"text/plain":                        400, // what a browser sends across origins
		"multipart/form-data; boundary=x":   400,
		"nonsense;;":                        400,
	} {
		var header []string
		if kind != "" {
			header = []string{"Content-Type", kind}
		}
		if a := send(t, h, "POST", "/v1/projects/p/things", `{}`, header...); a.Code != code {
			t.Errorf("%q: %d, want %d: %s", kind, a.Code, code, a.Body)
		}
	}
	if a := send(t, h, "POST", "/v1/projects/p/things", `{}`, "Content-Encoding", "gzip"); a.reason() != "CONTENT_ENCODING_UNSUPPORTED" {
		t.Errorf("%d %s", a.Code, a.Body)
	}
}

// TestOrder: who may call is asked before anything of the request is looked
// at, and the outcome is told.
func TestOrder(t *testing.T) {
	var calls []Call
	var ends []error
	deny := true
	h := things(t, func(o *Options) {
		o.Begin = func(ctx context.Context, c Call) (context.Context, func(any, error), error) {
			calls = append(calls, c)
			if deny {
				return ctx, nil, status.Error(codes.Unauthenticated, "who are you?")
			}
			return ctx, func(_ any, err error) { ends = append(ends, err) }, nil
		}
	})
	read := false
	r := httptest.NewRequest("POST", "/v1/projects/p/things?unknown=1", readerFunc(func([]byte) (int, error) { read = true; return 0, fmt.Errorf("read") }))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 401 || read || w.Header().Get("WWW-Authenticate") == "" {
		t.Fatalf("%d %s; read: %v", w.Code, w.Body, read)
	}
	if c := calls[0]; c.Method != "/things.v1.Things/Create" || c.Name() != "Create" || c.Resource != "projects/p" || c.Project != "p" || c.Remote == "" {
		t.Fatalf("%+v", c)
	}
	deny = false
	if a := send(t, h, "POST", "/v1/projects/p/things/t:fail", `{}`); a.Code != 400 || status.Code(ends[0]) != codes.FailedPrecondition {
		t.Fatalf("%d %v", a.Code, ends)
	}
	if a := send(t, h, "GET", "/v1/projects/p/things/t", ``); a.Code != 200 || ends[1] != nil {
		t.Fatalf("%d %v", a.Code, ends)
	}
	// A panic is an end too, and its text stays here.
	if a := send(t, h, "POST", "/v1/projects/p/things/panic:fail", `{}`); a.Code != 500 || strings.Contains(a.Body.String(), "secret") || ends[2] == nil {
		t.Fatalf("%d %s %v", a.Code, a.Body, ends)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestCodes(t *testing.T) {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		if HTTPStatus(code) == 500 && code != codes.Unknown && code != codes.Internal && code != codes.DataLoss {
			t.Errorf("%v has no HTTP status", code)
		}
	}
	for code, want := range map[codes.Code]string{codes.Canceled: "CANCELLED", codes.InvalidArgument: "INVALID_ARGUMENT", codes.OK: "OK", codes.DeadlineExceeded: "DEADLINE_EXCEEDED"} {
		w := httptest.NewRecorder()
		WriteError(w, status.New(code, "m"))
		if !strings.Contains(w.Body.String(), `"status": "`+want+`"`) {
			t.Errorf("%s", w.Body)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v1/projects/p/things/t", "/v1/v1/projects/p/things/t:run", "/projects/example.com:p/things/%41", "//", "/v1/%2f/:", "/v2/projects/p/things/**"} {
		f.Add("GET", s)
	}
	h := things(f)
	f.Fuzz(func(t *testing.T, method, path string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Method = method
		r.URL = &url.URL{Path: path}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w.Code == http.StatusOK {
			var answer struct{ Name, Thing any }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil && method != http.MethodHead {
				t.Fatal(err)
			}
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{"alt=json&pageSize=3", "updateMask=a,b.c-d&fields=thing(name)", "since=1&tags=%ff", "fields=a(b(c)),*/d&$.xgafv=1", "thing.inner.inner.name=x"} {
		f.Add(s)
	}
	h := things(f)
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/v1/projects/p/things/t", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"name":"n","texts":["a",],}`, "// c\n{}", `{"inner":{"inner":{"labels":{"a":"b"}}}}`, `{"byName":"","byRange":"x"}`, `{"anyJson":{"a":[1,2,{}]},"time":"2026-11-24T00:00:00Z","mask":"a,b"}`, `{"color":7,"realValue":1e400,"bytesValue":"AA=="}`, `{"a":/*`} {
		f.Add(s)
	}
	h := things(f)
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/v1/projects/p/things", strings.NewReader(body))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w.Code != http.StatusOK {
			return
		}
		// What was understood is understood in the same way when it is sent back.
		var first struct {
			Thing json.RawMessage `json:"thing"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &first); err != nil {
			t.Fatal(err)
		}
		if len(first.Thing) == 0 || len(first.Thing) > 1<<12 {
			return
		}
		again := httptest.NewRecorder()
		h.ServeHTTP(again, httptest.NewRequest("POST", "/v1/projects/p/things", strings.NewReader(string(first.Thing))))
		second := first
		if err := json.Unmarshal(again.Body.Bytes(), &second); err != nil || string(first.Thing) != string(second.Thing) {
			t.Fatalf("%q gives\n%s\nand that gives %d\n%s", body, w.Body, again.Code, again.Body)
		}
	})
}
