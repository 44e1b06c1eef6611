package rest

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// route is one binding of a method: a verb, a path template and where the body
// goes.
type route struct {
	verb       string // GET, POST, …
	template   string
	segments   []string // literals, "*", and "**" as the last one
	custom     string   // the custom verb behind the last colon
	variables  []variable
	body       string // "", "*" or a field
	bodyField  protoreflect.FieldDescriptor
	method     protoreflect.MethodDescriptor
	fullMethod string

	service *Service
	call    *grpc.MethodDesc
}

// variable is a part of the path that is the value of a field.
type variable struct {
	fields     []protoreflect.FieldDescriptor
	start, end int // of route.segments; end < 0 is to the end
}

// newRoute reads a binding: the grammar is in google/api/http.proto.
func newRoute(rule *annotations.HttpRule, m protoreflect.MethodDescriptor) (*route, error) {
	r := &route{method: m, body: rule.GetBody(), fullMethod: fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())}
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		r.verb, r.template = http.MethodGet, p.Get
	case *annotations.HttpRule_Put:
		r.verb, r.template = http.MethodPut, p.Put
	case *annotations.HttpRule_Post:
		r.verb, r.template = http.MethodPost, p.Post
	case *annotations.HttpRule_Delete:
		r.verb, r.template = http.MethodDelete, p.Delete
	case *annotations.HttpRule_Patch:
		r.verb, r.template = http.MethodPatch, p.Patch
	case *annotations.HttpRule_Custom:
		r.verb, r.template = p.Custom.GetKind(), p.Custom.GetPath()
	default:
		return nil, errors.New("no pattern")
	}
	if rule.GetResponseBody() != "" {
		return nil, errors.New("response_body is not supported")
	}
	if m.IsStreamingClient() || m.IsStreamingServer() {
		return nil, errors.New("streams are not supported")
	}
	rest, ok := strings.CutPrefix(r.template, "/")
	if !ok {
		return nil, fmt.Errorf("%q does not begin with a slash", r.template)
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexAny(rest, "/}") {
		rest, r.custom = rest[:i], rest[i+1:]
	}
	for rest != "" {
		var part string
		if strings.HasPrefix(rest, "{") {
			inner, after, ok := strings.Cut(rest[1:], "}")
			if !ok {
				return nil, fmt.Errorf("%q: a brace is not closed", r.template)
			}
			path, pattern, ok := strings.Cut(inner, "=")
			if !ok {
				pattern = "*"
			}
			fields, err := fieldPath(m.Input(), path)
			if err != nil {
				return nil, err
			}
			v := variable{fields: fields, start: len(r.segments)}
			r.segments = append(r.segments, strings.Split(pattern, "/")...)
			v.end = len(r.segments)
			r.variables = append(r.variables, v)
			rest = after
		} else {
			part, rest, _ = strings.Cut(rest, "/")
			r.segments = append(r.segments, part)
			continue
		}
		if rest, ok = strings.CutPrefix(rest, "/"); !ok && rest != "" {
			return nil, fmt.Errorf("%q: text behind a brace", r.template)
		}
	}
	for i, s := range r.segments {
		if s == "" || s == "**" && i != len(r.segments)-1 || s != "*" && s != "**" && strings.ContainsAny(s, "*{}") {
			return nil, fmt.Errorf("%q: segment %q is not understood", r.template, s)
		}
	}
	if len(r.segments) == 0 || strings.Contains(r.segments[0], "*") {
		return nil, fmt.Errorf("%q does not begin with a version", r.template)
	}
	if r.segments[len(r.segments)-1] == "**" && len(r.variables) > 0 {
		if last := &r.variables[len(r.variables)-1]; last.end == len(r.segments) {
			last.end = -1
		}
	}
	if r.body != "" && r.body != "*" {
		r.bodyField = m.Input().Fields().ByName(protoreflect.Name(r.body))
		if r.bodyField == nil || r.bodyField.Message() == nil || r.bodyField.IsList() || r.bodyField.IsMap() {
			return nil, fmt.Errorf("body: %q is not a message field of %s", r.body, m.Input().FullName())
		}
	}
	return r, nil
}

// fieldPath finds the fields of a dotted path, in proto or in JSON spelling.
func fieldPath(d protoreflect.MessageDescriptor, path string) ([]protoreflect.FieldDescriptor, error) {
	var fields []protoreflect.FieldDescriptor
	for name := range strings.SplitSeq(path, ".") {
		if d == nil {
			return nil, fmt.Errorf("%q: %s is not a message", path, fields[len(fields)-1].Name())
		}
		f := fieldByName(d, name)
		if f == nil {
			return nil, fmt.Errorf("%s has no field %q", d.FullName(), name)
		}
		fields = append(fields, f)
		d = nil
		if f.Message() != nil && !f.IsList() && !f.IsMap() {
			d = f.Message()
		}
	}
	return fields, nil
}

// fieldByName finds a field in proto or in JSON spelling.
func fieldByName(d protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if f := d.Fields().ByJSONName(name); f != nil {
		return f
	}
	return d.Fields().ByName(protoreflect.Name(name))
}

// table finds routes. They are kept by their first segment, the version.
type table struct {
	byVersion map[string][]*route
	byMethod  map[string]*route // the first of each method
}

func (t *table) add(r *route) {
	t.byVersion[r.segments[0]] = append(t.byVersion[r.segments[0]], r)
	if t.byMethod[r.fullMethod] == nil {
		t.byMethod[r.fullMethod] = r
	}
}

func (t *table) list() []string {
	var lines []string
	for _, routes := range t.byVersion {
		for _, r := range routes {
			lines = append(lines, fmt.Sprintf("%s %s %s", r.verb, r.template, r.method.FullName()))
		}
	}
	sort.Strings(lines)
	return lines
}

// match is a route and the values of its variables.
type match struct {
	route  *route
	values []string
}

// resource is the name that the call is about: the first variable's value.
func (m match) resource() string {
	if len(m.values) == 0 {
		return ""
	}
	return m.values[0]
}

// ResourceIn is the resource that a gRPC request is about: the field that is in
// the method's REST path, or else the one called name. It is what Call.Resource
// is for a REST request.
func (h *Handler) ResourceIn(fullMethod string, request any) string {
	m, ok := request.(proto.Message)
	if !ok {
		return ""
	}
	path := []protoreflect.Name{"name"}
	if r := h.routes.byMethod[fullMethod]; r != nil && len(r.variables) > 0 {
		path = nil
		for _, f := range r.variables[0].fields {
			path = append(path, f.Name())
		}
	}
	message := m.ProtoReflect()
	for i, name := range path {
		// By name: the message may be another type that is the same on the wire.
		f := message.Descriptor().Fields().ByName(name)
		switch {
		case f == nil || f.IsList() || f.IsMap():
			return ""
		case i == len(path)-1 && f.Kind() == protoreflect.StringKind:
			return message.Get(f).String()
		case f.Message() == nil:
			return ""
		}
		message = message.Get(f).Message()
	}
	return ""
}

// splitPath decodes a path's segments.
func splitPath(escaped string) ([]string, error) {
	segments := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	for i, s := range segments {
		decoded, err := url.PathUnescape(s)
		if err != nil {
			return nil, fmt.Errorf("the path is malformed: %v", err)
		}
		if !utf8.ValidString(decoded) || strings.ContainsFunc(decoded, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, errors.New("the path is malformed: it is not text in UTF-8")
		}
		if strings.Contains(decoded, "/") {
			return nil, errors.New("the path is malformed: %2F stands inside a segment, and no name holds a slash")
		}
		segments[i] = decoded
	}
	return segments, nil
}

// match finds the route of a request. Anything may stand before the version,
// other versions too: clients put their own in front of an endpoint that ends
// in one. So it is looked for from the end; an environment may be called "v1",
// so the search goes on when nothing is served below it. When no route has the
// verb, allowed are those that the path does take.
func (t *table) match(verb, escaped, defaultVersion string) (_ match, allowed []string, _ error) {
	segments, err := splitPath(escaped)
	if err != nil {
		return match{}, nil, err
	}
	for i := len(segments) - 1; i >= 0; i-- {
		routes := t.byVersion[segments[i]]
		if routes == nil {
			continue
		}
		if m, verbs := find(routes, verb, segments[i:]); m.route != nil || verbs != nil {
			return m, verbs, nil
		}
	}
	// Some clients ask an endpoint without a version for one without.
	if i := slices.Index(segments, "projects"); i >= 0 && !slices.ContainsFunc(segments[:i], func(s string) bool { return t.byVersion[s] != nil }) {
		m, verbs := find(t.byVersion[defaultVersion], verb, append([]string{defaultVersion}, segments[i:]...))
		return m, verbs, nil
	}
	return match{}, nil, nil
}

// elsewhere is a version that has the method which another version lacks.
func (t *table) elsewhere(verb, escaped string) string {
	segments, err := splitPath(escaped)
	if err != nil {
		return ""
	}
	i := slices.Index(segments, "projects")
	if i < 0 {
		return ""
	}
	versions := make([]string, 0, len(t.byVersion))
	for v := range t.byVersion {
		versions = append(versions, v)
	}
	sort.Strings(versions)
	for _, v := range versions {
		if m, _ := find(t.byVersion[v], verb, append([]string{v}, segments[i:]...)); m.route != nil {
			return v
		}
	}
	return ""
}

func find(routes []*route, verb string, segments []string) (match, []string) {
	if verb == http.MethodHead {
		verb = http.MethodGet
	}
	var verbs []string
	last := segments[len(segments)-1]
	// A custom verb is behind the last colon of the last segment only: a project
	// may be called example.com:name.
	if i := strings.LastIndexByte(last, ':'); i >= 0 {
		if last[i+1:] == "" {
			return match{}, nil
		}
		custom := slices.Clone(segments)
		custom[len(custom)-1] = last[:i]
		if m := matching(routes, verb, custom, last[i+1:], &verbs); m.route != nil || verbs != nil {
			return m, verbs
		}
		// Below a colon only a project's own name can stand, and a verb that
		// nobody knows is not the name of anything.
		if len(segments) > 3 {
			return match{}, nil
		}
	}
	m := matching(routes, verb, segments, "", &verbs)
	return m, verbs
}

func matching(routes []*route, verb string, segments []string, custom string, verbs *[]string) match {
	for _, r := range routes {
		if r.custom != custom || !r.matches(segments) {
			continue
		}
		if r.verb != verb {
			for _, v := range []string{r.verb, map[string]string{http.MethodGet: http.MethodHead}[r.verb]} {
				if v != "" && !slices.Contains(*verbs, v) {
					*verbs = append(*verbs, v)
				}
			}
			continue
		}
		*verbs = nil
		m := match{route: r}
		for _, v := range r.variables {
			end := v.end
			if end < 0 {
				end = len(segments)
			}
			m.values = append(m.values, strings.Join(segments[v.start:end], "/"))
		}
		return m
	}
	return match{}
}

func (r *route) matches(segments []string) bool {
	for i, s := range r.segments {
		if s == "**" {
			return true
		}
		if i >= len(segments) || s != segments[i] && (s != "*" || segments[i] == "") {
			return false
		}
	}
	return len(segments) == len(r.segments)
}

// setPath sets a field by a path variable's value.
func setPath(m protoreflect.Message, fields []protoreflect.FieldDescriptor, value string) error {
	for _, f := range fields[:len(fields)-1] {
		m = m.Mutable(f).Message()
	}
	f := fields[len(fields)-1]
	v, err := parseScalar(f, value)
	if err != nil {
		return err
	}
	m.Set(f, v)
	return nil
}
