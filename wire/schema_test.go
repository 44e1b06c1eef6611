package wire

import "testing"

func TestSchemas(t *testing.T) {
	all, _, err := schemas()
	if err != nil {
		t.Fatal(err)
	}
	for v, s := range all {
		t.Log(v, s.environments.Methods().Len(), s.imageVersions.Methods().Len(), s.environments.Methods().ByName("RestartWebServer").Output().FullName())
	}
}
