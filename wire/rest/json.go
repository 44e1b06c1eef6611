package rest

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fault is one thing wrong with a request, and where.
type fault struct{ field, description string }

// faults are all of them, but not more than a person would read.
type faults []fault

const mostFaults = 100

func (f *faults) add(field, description string) {
	if len(*f) < mostFaults {
		*f = append(*f, fault{field, description})
	}
}

func (f faults) message() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].description
	}
	return strings.Join(lines, "\n")
}

func (f faults) violations() []*errdetails.BadRequest_FieldViolation {
	var v []*errdetails.BadRequest_FieldViolation
	for _, one := range f {
		v = append(v, violation(one.field, one.description))
	}
	return v
}

// trimBody takes a byte order mark and white space off.
func trimBody(b []byte) []byte {
	return bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")))
}

// decodeJSON reads a body into the message that target returns; target is
// called once the body is known to be JSON. Comments and trailing commas are
// accepted, names in proto and in JSON spelling. The error is of the syntax;
// the faults are everything else that is wrong. path is the place of the
// message in the request: "environment".
func decodeJSON(b []byte, maxDepth, maxValues int, path string, target func() protoreflect.Message) (faults, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("it is not text in UTF-8")
	}
	// Before the parser, which would use the stack for each level and many times
	// the text's own memory for each value.
	switch depth, values := extent(b); {
	case depth > maxDepth:
		return nil, fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	case values > maxValues:
		return nil, fmt.Errorf("it holds more than %d values", maxValues)
	}
	// A comment in the last line needs its end.
	v, err := hujson.Parse(append(b[:len(b):len(b)], '\n'))
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "hujson: "))
	}
	d := decoder{}
	d.message(path, target(), v)
	return d.faults, nil
}

// extent is how deep objects and lists are nested, and about how many values
// there are: every object, list and comma counts as one.
func extent(b []byte) (depth, values int) {
	level := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			level++
			values++
			depth = max(depth, level)
		case '}', ']':
			level--
		case ',':
			values++
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '/':
			end := -1
			if bytes.HasPrefix(b[i:], []byte("//")) {
				end = bytes.IndexByte(b[i:], '\n')
			} else if bytes.HasPrefix(b[i:], []byte("/*")) {
				if end = bytes.Index(b[i+2:], []byte("*/")); end >= 0 {
					end += 3
				}
			} else {
				continue
			}
			if end < 0 {
				return depth, values
			}
			i += end
		}
	}
	return depth, values
}

type decoder struct{ faults faults }

func (d *decoder) invalid(path string, f protoreflect.FieldDescriptor, v hujson.Value) {
	d.faults.add(path, invalidValue(path, f, clip(string(minimal(v)))).Error())
}

// minimal is a value as it was written, without comments.
func minimal(v hujson.Value) []byte {
	c := v.Clone()
	c.Minimize()
	return c.Pack()
}

// invalidValue words what Google's own front end says.
func invalidValue(path string, f protoreflect.FieldDescriptor, value string) error {
	return description(fmt.Sprintf("Invalid value at '%s' (%s), %s", path, typeName(f), value))
}

// description is an error in the words that Google's own front end uses.
type description string

func (d description) Error() string { return string(d) }

func typeName(f protoreflect.FieldDescriptor) string {
	if f.Message() != nil {
		return "type.googleapis.com/" + string(f.Message().FullName())
	}
	if f.Enum() != nil {
		return "type.googleapis.com/" + string(f.Enum().FullName())
	}
	return "TYPE_" + strings.ToUpper(f.Kind().String())
}

func at(path string) string {
	if path == "" {
		return ""
	}
	return " at '" + path + "'"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// message reads an object. A field that is null is one that is not there.
func (d *decoder) message(path string, m protoreflect.Message, v hujson.Value) {
	object, ok := v.Value.(*hujson.Object)
	if !ok {
		if isNull(v) {
			return
		}
		d.faults.add(path, fmt.Sprintf("Invalid value%s (type.googleapis.com/%s), %s", at(path), m.Descriptor().FullName(), clip(string(minimal(v)))))
		return
	}
	seen := map[protoreflect.FieldNumber]bool{}
	empty := blankMembers(m.Descriptor(), object)
	for i, member := range object.Members {
		name := member.Name.Value.(hujson.Literal).String()
		f := fieldByName(m.Descriptor(), name)
		if f == nil {
			d.faults.add(path, fmt.Sprintf("Invalid JSON payload received. Unknown name %q%s: Cannot find field.", clip(name), at(path)))
			continue
		}
		if seen[f.Number()] {
			d.faults.add(path, fmt.Sprintf("Invalid JSON payload received. Name %q%s stands there twice.", clip(name), at(path)))
			continue
		}
		seen[f.Number()] = true
		if isNull(member.Value) && !takesNull(f) || empty[i] {
			continue
		}
		if one := f.ContainingOneof(); one != nil && !one.IsSynthetic() {
			if other := m.WhichOneof(one); other != nil {
				d.faults.add(path, fmt.Sprintf("Invalid value%s (oneof), oneof field '%s' is already set by '%s'. Cannot set '%s': write one of them.", at(path), one.Name(), other.JSONName(), f.JSONName()))
				continue
			}
		}
		d.field(join(path, string(f.Name())), m, f, member.Value)
	}
}

// blankMembers are the members of a oneof that are "" while another one of it
// has a value: clients that fill in every field send them.
func blankMembers(d protoreflect.MessageDescriptor, object *hujson.Object) map[int]bool {
	if d.Oneofs().Len() == 0 {
		return nil
	}
	var blank map[int]bool
	members := map[protoreflect.FullName][]int{}
	for i, member := range object.Members {
		f := fieldByName(d, member.Name.Value.(hujson.Literal).String())
		if f == nil || f.ContainingOneof() == nil || f.ContainingOneof().IsSynthetic() || isNull(member.Value) {
			continue
		}
		one := f.ContainingOneof().FullName()
		members[one] = append(members[one], i)
	}
	for _, of := range members {
		for n, i := range of {
			literal, ok := object.Members[i].Value.Value.(hujson.Literal)
			// When all are blank the first is kept.
			if ok && string(literal) == `""` && len(of) > 1 && !(n == 0 && allBlank(object, of)) {
				if blank == nil {
					blank = map[int]bool{}
				}
				blank[i] = true
			}
		}
	}
	return blank
}

func allBlank(object *hujson.Object, members []int) bool {
	for _, i := range members {
		if literal, ok := object.Members[i].Value.Value.(hujson.Literal); !ok || string(literal) != `""` {
			return false
		}
	}
	return true
}

func isNull(v hujson.Value) bool {
	literal, ok := v.Value.(hujson.Literal)
	return ok && literal.Kind() == 'n'
}

// takesNull tells of google.protobuf.Value, for which null is a value.
func takesNull(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && f.Message().FullName() == "google.protobuf.Value"
}

func (d *decoder) field(path string, m protoreflect.Message, f protoreflect.FieldDescriptor, v hujson.Value) {
	switch {
	case f.IsMap():
		d.mapField(path, m, f, v)
	case f.IsList():
		array, ok := v.Value.(*hujson.Array)
		if !ok {
			d.faults.add(path, fmt.Sprintf("Invalid value at '%s', %s: write a list.", path, clip(string(minimal(v)))))
			return
		}
		list := m.Mutable(f).List()
		for i, element := range array.Elements {
			place := fmt.Sprintf("%s[%d]", path, i)
			if value, ok := d.value(place, f, list.NewElement, element); ok {
				list.Append(value)
			}
		}
	default:
		if value, ok := d.value(path, f, func() protoreflect.Value { return m.NewField(f) }, v); ok {
			m.Set(f, value)
		}
	}
}

func (d *decoder) mapField(path string, m protoreflect.Message, f protoreflect.FieldDescriptor, v hujson.Value) {
	object, ok := v.Value.(*hujson.Object)
	if !ok {
		d.faults.add(path, fmt.Sprintf("Invalid value at '%s', %s: write an object.", path, clip(string(minimal(v)))))
		return
	}
	// An empty map is not told from none in protobuf, and so not here.
	if len(object.Members) == 0 {
		return
	}
	entries := m.Mutable(f).Map()
	for _, member := range object.Members {
		name := member.Name.Value.(hujson.Literal).String()
		place := fmt.Sprintf("%s[%s]", path, strconv.Quote(clip(name)))
		key, err := parseScalar(f.MapKey(), name)
		if err != nil {
			d.faults.add(place, err.Error())
			continue
		}
		if entries.Has(key.MapKey()) {
			d.faults.add(path, fmt.Sprintf("Invalid JSON payload received. Name %q%s stands there twice.", clip(name), at(path)))
			continue
		}
		if value, ok := d.value(place, f.MapValue(), entries.NewValue, member.Value); ok {
			entries.Set(key.MapKey(), value)
		}
	}
}

// value reads one value that is not a list or map.
func (d *decoder) value(path string, f protoreflect.FieldDescriptor, empty func() protoreflect.Value, v hujson.Value) (protoreflect.Value, bool) {
	if f.Message() != nil {
		value := empty()
		if !wellKnown(f.Message()) {
			if isNull(v) {
				d.invalid(path, f, v)
				return value, false
			}
			d.message(path, value.Message(), v)
			return value, true
		}
		if literal, ok := v.Value.(hujson.Literal); ok && f.Message().FullName() == fieldMask && literal.Kind() == '"' {
			addMask(value.Message(), literal.String())
			return value, true
		}
		standard := v.Clone()
		standard.Standardize()
		if err := protojson.Unmarshal(standard.Pack(), value.Message().Interface()); err != nil {
			d.invalid(path, f, v)
			return value, false
		}
		return value, true
	}
	literal, ok := v.Value.(hujson.Literal)
	if !ok {
		what := "Starting an object on a scalar field"
		if _, list := v.Value.(*hujson.Array); list {
			what = "Proto field is not repeating, cannot start list."
		}
		d.faults.add(path, invalidValue(path, f, what).Error())
		return protoreflect.Value{}, false
	}
	switch kind := literal.Kind(); {
	case f.Kind() == protoreflect.BoolKind:
		if kind == 't' || kind == 'f' {
			return protoreflect.ValueOfBool(kind == 't'), true
		}
	case f.Kind() == protoreflect.StringKind, f.Kind() == protoreflect.BytesKind:
		if kind == '"' {
			if value, err := parseScalar(f, literal.String()); err == nil {
				return value, true
			}
		}
	case f.Kind() == protoreflect.EnumKind:
		if kind == '"' || kind == '0' {
			if value, err := parseScalar(f, text(literal)); err == nil {
				return value, true
			}
		}
	case kind == '"' || kind == '0':
		if value, ok := parseNumber(f.Kind(), text(literal)); ok {
			return value, true
		}
	}
	d.invalid(path, f, v)
	return protoreflect.Value{}, false
}

// text is what a string holds, and a number as it was written.
func text(l hujson.Literal) string {
	if l.Kind() == '"' {
		return l.String()
	}
	return string(l)
}

// wellKnown tells of the messages that have a JSON form of their own, which
// protojson reads.
func wellKnown(d protoreflect.MessageDescriptor) bool {
	switch d.FullName() {
	case "google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.Struct", "google.protobuf.Value",
		"google.protobuf.ListValue", "google.protobuf.Any", fieldMask,
		"google.protobuf.BoolValue", "google.protobuf.StringValue", "google.protobuf.BytesValue", "google.protobuf.FloatValue", "google.protobuf.DoubleValue",
		"google.protobuf.Int32Value", "google.protobuf.Int64Value", "google.protobuf.UInt32Value", "google.protobuf.UInt64Value":
		return true
	}
	return false
}
