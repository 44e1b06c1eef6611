package kube

import "testing"

func TestWhichNodesCount(t *testing.T) {
	for os, want := range map[string]bool{"linux": true, "windows": false, "freebsd": false, "": true} {
		var n Node
		if os != "" {
			n.Metadata.Labels = map[string]string{"kubernetes.io/os": os}
		}
		if n.Counts() != want {
			t.Errorf("a Node of the system %q counts: %t", os, !want)
		}
	}
}
