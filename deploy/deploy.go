// Package deploy has the manifests that people apply with "kubectl apply -k",
// for programs that apply the same objects themselves: one place for both.
//
// It owns the objects of the bases beside it, and refuses a base that needs
// more of kustomize than a list of resources: what a program applies is what
// is in the files, but for the image and the arguments. To see what it gives:
// kubectl kustomize deploy/agent.
package deploy

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"path"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	syaml "sigs.k8s.io/yaml"
)

//go:embed agent cleanup node-status
var files embed.FS

// The bases.
const (
	// AgentBase is the agent on every node, without a ConfigMap.
	AgentBase = "agent"
	// CleanupBase takes the agent's rules away on every node.
	CleanupBase = "cleanup"
)

// agentImage stands in the manifests for the image that is set.
const agentImage = "localhost/ip-masq-agent:latest"

// Options are what differs from the files.
type Options struct {
	// Image is the agent's; the imported one without it.
	Image string
	// Arguments are further ones of the agent.
	Arguments []string
}

// Objects are those of a base, in the order in which they are applied.
func Objects(base string, o Options) ([]*unstructured.Unstructured, error) {
	objects, err := read(base)
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		for _, field := range []string{"initContainers", "containers"} {
			if err := setContainers(object, o, "spec", "template", "spec", field); err != nil {
				return nil, fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
			}
		}
	}
	return objects, nil
}

func setContainers(object *unstructured.Unstructured, o Options, at ...string) error {
	containers, found, err := unstructured.NestedSlice(object.Object, at...)
	if err != nil || !found {
		return err
	}
	for _, c := range containers {
		container, ok := c.(map[string]any)
		if !ok {
			return fmt.Errorf("a container is %T", c)
		}
		if o.Image != "" && container["image"] == agentImage {
			container["image"] = o.Image
		}
		if container["name"] == "ip-masq-agent" && len(o.Arguments) > 0 {
			args, _, err := unstructured.NestedStringSlice(container, "args")
			if err != nil {
				return err
			}
			if err := unstructured.SetNestedStringSlice(container, append(args, o.Arguments...), "args"); err != nil {
				return err
			}
		}
	}
	return unstructured.SetNestedSlice(object.Object, containers, at...)
}

func read(base string) ([]*unstructured.Unstructured, error) {
	text, err := files.ReadFile(path.Join(base, "kustomization.yaml"))
	if err != nil {
		return nil, err
	}
	var kustomization struct {
		APIVersion, Kind string
		Resources        []string
	}
	if err := syaml.UnmarshalStrict(text, &kustomization); err != nil {
		return nil, fmt.Errorf("%s needs kustomize: %w", base, err)
	}
	var objects []*unstructured.Unstructured
	for _, resource := range kustomization.Resources {
		if path.Ext(resource) != ".yaml" {
			more, err := read(path.Join(base, resource))
			if err != nil {
				return nil, err
			}
			objects = append(objects, more...)
			continue
		}
		text, err := files.ReadFile(path.Join(base, resource))
		if err != nil {
			return nil, err
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), len(text))
		for {
			object := &unstructured.Unstructured{}
			if err := decoder.Decode(object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("%s/%s: %w", base, resource, err)
			}
			if len(object.Object) > 0 {
				objects = append(objects, object)
			}
		}
	}
	return objects, nil
}
