package deploy_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sordino/deploy"
)

func TestObjects(t *testing.T) {
	objects, err := deploy.Objects(deploy.AgentBase, deploy.Options{
		Image: "registry.example.com/ip-masq-agent@sha256:0123", Arguments: []string{"--enable-ipv6"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var daemonSets int
	for _, o := range objects {
		if o.GetKind() != "DaemonSet" {
			continue
		}
		daemonSets++
		containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		if err != nil || len(containers) != 1 {
			t.Fatal(containers, err)
		}
		container := containers[0].(map[string]any)
		args, _, err := unstructured.NestedStringSlice(container, "args")
		if err != nil {
			t.Fatal(err)
		}
		if container["image"] != "registry.example.com/ip-masq-agent@sha256:0123" || args[0] != "--config-source=kube" || args[len(args)-1] != "--enable-ipv6" {
			t.Errorf("image %v, arguments %q", container["image"], args)
		}
	}
	if daemonSets != 1 {
		t.Errorf("%d DaemonSets", daemonSets)
	}
}
