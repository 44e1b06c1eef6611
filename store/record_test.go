package store

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sordino/environment"
)

// A document that is full, field by field, has the names that stored ones have:
// a field that is renamed would be empty in every row from before. A new field
// is a new line in the file.
func TestStoredNames(t *testing.T) {
	var names []string
	var walk func(path string, of any)
	walk = func(path string, of any) {
		switch of := of.(type) {
		case map[string]any:
			for key, value := range of {
				walk(path+"."+key, value)
			}
		case []any:
			walk(path+"[]", of[0])
		default:
			names = append(names, path)
		}
	}
	for name, document := range map[string]any{"environment": new(environmentDocument), "operation": new(operationDocument)} {
		fill(reflect.ValueOf(document).Elem())
		data, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		var parsed any
		if err := json.Unmarshal(data, &parsed); err != nil {
			t.Fatal(err)
		}
		walk(name, parsed)
	}
	slices.Sort(names)
	want, err := os.ReadFile("testdata/fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Fields(string(want)), names); diff != "" {
		t.Errorf("stored rows have (-), this program writes (+):\n%s", diff)
	}
}

// fill sets every field to something that is not its zero value.
func fill(v reflect.Value) {
	switch v.Interface().(type) {
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.MustParsePrefix("10.0.0.0/8")))
		return
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("10.0.0.1")))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1, 0).UTC()))
		return
	case environment.State, environment.OperationState, environment.OperationType:
		v.SetInt(1)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				fill(f)
			} else { // an embedded record
				fill(reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem())
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), reflect.ValueOf("value"))
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint64, reflect.Uint8:
		v.SetUint(1)
	}
}
