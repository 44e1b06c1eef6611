package clusters

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// PageSize is how many objects come with one call. Nodes are large: the images
// they hold are listed in them.
const PageSize = 250

// List reads a collection in pages; an empty namespace is the whole cluster. Of
// the options the selectors count. Only what T has a place for is kept: what is
// read of a Node is a hundredth of it.
func List[T any](ctx context.Context, client rest.Interface, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) ([]T, error) {
	var all []T
	next := ""
	for {
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []T `json:"items"`
		}
		request := client.Get().AbsPath(pathOf(r, namespace)...).Param("limit", strconv.Itoa(PageSize))
		for name, value := range map[string]string{"continue": next, "labelSelector": o.LabelSelector, "fieldSelector": o.FieldSelector} {
			if value != "" {
				request.Param(name, value)
			}
		}
		if err := Get(ctx, request, &page); err != nil {
			if next != "" && apierrors.IsResourceExpired(err) {
				// The pages' common state is gone: begin again.
				all, next = nil, ""
				continue
			}
			return nil, fmt.Errorf("listing %s: %w", r.Resource, err)
		}
		all = append(all, page.Items...)
		if next = page.Metadata.Continue; next == "" {
			return all, nil
		}
	}
}

// pathOf is where a resource is.
func pathOf(r schema.GroupVersionResource, namespace string) []string {
	path := []string{"/apis", r.Group, r.Version}
	if r.Group == "" {
		path = []string{"/api", r.Version}
	}
	if namespace != "" {
		path = append(path, "namespaces", namespace)
	}
	return append(path, r.Resource)
}

// Get reads an answer in JSON.
func Get(ctx context.Context, request *rest.Request, into any) error {
	var code int
	result := request.SetHeader("Accept", "application/json").Do(ctx).StatusCode(&code)
	// Unlike Raw's, this error has what the API server says of it.
	if err := result.Error(); err != nil {
		return err
	}
	text, err := result.Raw()
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("the API server answers %d", code)
	}
	return json.Unmarshal(text, into)
}
