package store

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A field that is added to the domain's types and holds a pointer has to be in
// clone too: two callers would share it.
func TestCloneKnowsEveryPointer(t *testing.T) {
	var paths []string
	var walk func(path string, of reflect.Type)
	walk = func(path string, of reflect.Type) {
		switch of {
		case reflect.TypeFor[netip.Prefix](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[time.Time]():
			return // values, for all that one can do to them
		}
		switch of.Kind() {
		case reflect.Struct:
			for i := range of.NumField() {
				walk(path+"."+of.Field(i).Name, of.Field(i).Type)
			}
		case reflect.Slice, reflect.Map, reflect.Array, reflect.Pointer:
			paths = append(paths, path)
			walk(path+"[]", of.Elem())
		case reflect.Interface, reflect.Func, reflect.Chan:
			t.Errorf("%s is a %s", path, of)
		}
	}
	walk("", reflect.TypeFor[environmentDocument]())
	slices.Sort(paths)
	want := []string{".Observed.Nodes", ".Observed.Nodes[].Findings", ".Observed.Nodes[].Network", ".Observed.Unseen", ".Plan.NodeAddresses", ".Plan.Ranges", ".Plan.Warnings", ".Spec.Config", ".Spec.Labels", ".Spec.Storage"}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Errorf("clone copies (-), the type has (+):\n%s", diff)
	}
}
