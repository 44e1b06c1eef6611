package wire

import (
	"fmt"
	"testing"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"

	"sordino/environment"
)

// A list is put together from elements that may have been written before. With
// the parameter fields it is written whole, and both have to be the same.
func TestListIsTheSameInOnePieceAndInMany(t *testing.T) {
	s := serve(t)
	same := func(when string) {
		t.Helper()
		for _, path := range []string{"v1/projects/example-project/locations/us-central1/environments", "v1beta1/projects/example-project/locations/us-central1/environments",
			"v1beta1/projects/example-project/locations/us-central1/environments?alt=json;enum-encoding=int",
			"v1/projects/example-project/locations/us-central1/environments?prettyPrint=false", "v1/projects/example-project/locations/us-central1/environments?pageSize=2",
			"v1/projects/example-project/locations/us-central1/imageVersions", "v1alpha2/projects/example-project/locations/us-central1/imageVersions"} {
			separator := "?"
			if path[len(path)-1] != 's' {
				separator = "&"
			}
			for range 2 {
				code, many := s.raw("/" + path)
				wholeCode, one := s.raw("/" + path + separator + "fields=environments,nextPageToken")
				if path[len(path)-8:] == "Versions" {
					wholeCode, one = s.raw("/" + path + separator + "fields=imageVersions,nextPageToken")
				}
				if code != "200" || wholeCode != "200" || many != one {
					t.Errorf("%s: %s: %s in many pieces:\n%s\n%s in one:\n%s", when, path, code, many, wholeCode, one)
				}
			}
		}
	}
	add := func(i int) *environment.Environment {
		e := &environment.Environment{Name: environment.Name{Location: environment.Location{Project: "example-project", ID: "us-central1"}, ID: fmt.Sprintf("e-%d", i)},
			UUID: fmt.Sprintf("uuid-%d", i), State: environment.Running, Plan: plan(), Spec: environment.Spec{NetworkingType: "PRIVATE", Labels: map[string]string{"empty": "", "braces": "{}"},
				Config: &servicepb.EnvironmentConfig{PrivateEnvironmentConfig: &servicepb.PrivateEnvironmentConfig{EnablePrivateEnvironment: true}}}}
		s.memory.mu.Lock()
		defer s.memory.mu.Unlock()
		s.environments[e.Name.String()] = e
		return e
	}
	same("none")
	first := add(0)
	same("one")
	for i := range 5 {
		add(i + 1)
	}
	same("six")
	s.memory.mu.Lock()
	first.State = environment.Errored
	s.memory.mu.Unlock()
	same("changed")
}
