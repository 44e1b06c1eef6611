package rest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// parameter is one query parameter. They are kept in the order they were sent.
type parameter struct{ name, value string }

func parseQuery(raw string) ([]parameter, error) {
	var query []parameter
	for raw != "" {
		var part string
		part, raw, _ = strings.Cut(raw, "&")
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		name, err := url.QueryUnescape(name)
		if err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return query, fmt.Errorf("the query is malformed: %v", err)
		}
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return query, errors.New("the query is malformed: it is not text in UTF-8")
		}
		query = append(query, parameter{name, value})
	}
	return query, nil
}

// The system parameters of Google's APIs. Any method takes them; those that
// shape the answer are obeyed, the others ignored. Each can be written with a
// dollar sign too.
var systemParameters = []string{
	"alt", "prettyPrint", "pp", "fields", "callback", "key", "quotaUser", "userIp", "userProject",
	"access_token", "oauth_token", "bearer_token", "uploadType", "upload_protocol", "xgafv", "trace", "httpMethod", "outputDefaults", "unique", "apiVersion", "req", "ct", "outputFormat",
}

func systemParameter(name string) bool {
	name, _ = strings.CutPrefix(name, "$")
	name, _ = strings.CutPrefix(name, ".") // $.xgafv
	return slices.Contains(systemParameters, name)
}

// params is what system parameters ask for.
type params struct {
	pretty       bool
	enumNumbers  bool // alt=json;enum-encoding=int
	legacyErrors bool // $.xgafv=1
	fields       *selection
	fieldsErr    error
}

func (p *params) read(query []parameter) {
	p.pretty = true
	for _, q := range query {
		name, _ := strings.CutPrefix(q.name, "$")
		switch name {
		case "prettyPrint", "pp":
			if on, err := strconv.ParseBool(q.value); err == nil {
				p.pretty = on
			}
		case "alt":
			p.enumNumbers = strings.Contains(q.value, "enum-encoding=int")
		case ".xgafv", "xgafv":
			p.legacyErrors = q.value == "1"
		case "fields":
			if q.value != "" && q.value != "*" {
				p.fields, p.fieldsErr = parseSelection(q.value)
			}
		}
	}
}

// shape writes JSON as it was asked for. protojson puts spaces in at random so
// that nobody relies on them; here everybody gets the same bytes. All lines but
// the first begin with the prefix.
func (p params) shape(body []byte, prefix string) []byte {
	var b bytes.Buffer
	if p.pretty {
		if json.Indent(&b, body, prefix, "  ") == nil {
			return append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
		}
	} else if json.Compact(&b, body) == nil {
		return b.Bytes()
	}
	return body
}

// bindQuery sets the request's field that a parameter names; it is false when
// there is none. Fields of the body and of the path are not parameters.
func bindQuery(m protoreflect.Message, r *route, p parameter) (known bool, _ error) {
	if r.body == "*" {
		return false, nil
	}
	fields, err := fieldPath(m.Descriptor(), p.name)
	if err != nil || fields[0] == r.bodyField {
		return false, nil
	}
	for _, v := range r.variables {
		if slices.Equal(v.fields, fields) {
			return false, nil
		}
	}
	f := fields[len(fields)-1]
	if f.IsMap() {
		return false, nil
	}
	for _, parent := range fields[:len(fields)-1] {
		m = m.Mutable(parent).Message()
	}
	if f.Message() != nil {
		if f.IsList() {
			return false, nil
		}
		target := m.Mutable(f).Message()
		if f.Message().FullName() == fieldMask {
			addMask(target, p.value)
			return true, nil
		}
		if !wellKnown(f.Message()) {
			return false, nil
		}
		text, _ := json.Marshal(p.value)
		if err := protojson.Unmarshal(text, target.Interface()); err != nil {
			return true, invalidValue(p.name, f, strconv.Quote(clip(p.value)))
		}
		return true, nil
	}
	v, err := parseScalar(f, p.value)
	if err != nil {
		return true, err
	}
	if f.IsList() {
		m.Mutable(f).List().Append(v)
	} else {
		m.Set(f, v)
	}
	return true, nil
}

const fieldMask = protoreflect.FullName("google.protobuf.FieldMask")

// addMask adds a mask's paths as they were written. protojson would refuse
// snake case, and turn a map's keys into it.
func addMask(mask protoreflect.Message, text string) {
	f := mask.Descriptor().Fields().ByName("paths")
	paths := mask.Mutable(f).List()
	for path := range strings.SplitSeq(text, ",") {
		if path = strings.TrimSpace(path); path != "" {
			paths.Append(protoreflect.ValueOfString(path))
		}
	}
	if paths.Len() == 0 {
		mask.Clear(f)
	}
}

// parseScalar reads a scalar from the text of a path, of a parameter or of a
// string in JSON.
func parseScalar(f protoreflect.FieldDescriptor, text string) (v protoreflect.Value, err error) {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text), nil
	case protoreflect.BoolKind:
		switch text {
		case "true", "1":
			return protoreflect.ValueOfBool(true), nil
		case "false", "0":
			return protoreflect.ValueOfBool(false), nil
		}
		return v, invalidValue(string(f.Name()), f, strconv.Quote(clip(text)))
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByName(protoreflect.Name(text)); e != nil {
			return protoreflect.ValueOfEnum(e.Number()), nil
		}
		if n, err := strconv.ParseInt(text, 10, 32); err == nil {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)), nil
		}
		return v, invalidValue(string(f.Name()), f, strconv.Quote(clip(text)))
	case protoreflect.BytesKind:
		b, err := base64.StdEncoding.WithPadding(base64.NoPadding).DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "=")))
		if err != nil {
			return v, invalidValue(string(f.Name()), f, strconv.Quote(clip(text)))
		}
		return protoreflect.ValueOfBytes(b), nil
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return v, invalidValue(string(f.Name()), f, strconv.Quote(clip(text)))
	}
	if v, ok := parseNumber(f.Kind(), text); ok {
		return v, nil
	}
	return v, invalidValue(string(f.Name()), f, strconv.Quote(clip(text)))
}

// parseNumber reads a number as protobuf's JSON has them: 3, 3.0 and 3e0 are
// the same integer.
func parseNumber(k protoreflect.Kind, text string) (v protoreflect.Value, ok bool) {
	whole := func(bits int) (int64, bool) {
		if n, err := strconv.ParseInt(text, 10, bits); err == nil {
			return n, true
		}
		f, err := strconv.ParseFloat(text, 64)
		// 2^53: beyond, a float does not tell integers apart.
		if err != nil || f != float64(int64(f)) || f > 1<<53 || f < -1<<53 || bits == 32 && f != float64(int32(f)) {
			return 0, false
		}
		return int64(f), true
	}
	switch k {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		n, ok := whole(32)
		return protoreflect.ValueOfInt32(int32(n)), ok
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		n, ok := whole(64)
		return protoreflect.ValueOfInt64(n), ok
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		if n, err := strconv.ParseUint(text, 10, 32); err == nil {
			return protoreflect.ValueOfUint32(uint32(n)), true
		}
		n, ok := whole(64)
		return protoreflect.ValueOfUint32(uint32(n)), ok && n >= 0 && n <= 1<<32-1
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			return protoreflect.ValueOfUint64(n), true
		}
		n, ok := whole(64)
		return protoreflect.ValueOfUint64(uint64(n)), ok && n >= 0
	case protoreflect.FloatKind:
		f, err := strconv.ParseFloat(text, 32)
		return protoreflect.ValueOfFloat32(float32(f)), err == nil
	case protoreflect.DoubleKind:
		f, err := strconv.ParseFloat(text, 64)
		return protoreflect.ValueOfFloat64(f), err == nil
	}
	return v, false
}
