package deploy_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"sordino/masq/kube"
)

// The policy lets an agent write what it writes on its Node, and nothing else:
// what stands in the file is what the agent has.
func TestPolicyNames(t *testing.T) {
	text, err := os.ReadFile("node-status/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		form string
		n    int
		want string
	}{
		{`c\.type != "([^"]*)"`, 2, kube.ConditionType},
		{`no condition but (\S+)`, 1, kube.ConditionType},
		{`startsWith\("([^"]*)"\)`, 2, kube.AnnotationPrefix},
		{`no annotation but those that begin with (\S+)`, 1, kube.AnnotationPrefix},
	} {
		found := regexp.MustCompile(test.form).FindAllStringSubmatch(string(text), -1)
		if len(found) != test.n {
			t.Errorf("%s is in the policy %d times, want %d", test.form, len(found), test.n)
		}
		for _, f := range found {
			if f[1] != test.want {
				t.Errorf("the policy has %q, the agent %q", f[0], test.want)
			}
		}
	}
	for _, name := range []string{kube.AnnotationGeneration, kube.AnnotationHash, kube.AnnotationConfig, kube.AnnotationFindings, kube.AnnotationVersion} {
		if !strings.HasPrefix(name, kube.AnnotationPrefix) {
			t.Errorf("the annotation %s does not begin with %s", name, kube.AnnotationPrefix)
		}
	}
}
