package kubedriver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/retry"

	"sordino/clusters"
	"sordino/environment"
)

// apply makes objects of an environment what they should be, in their order,
// and tells what somebody else had changed of them, or taken away when they were
// there before.
//
// An object is the environment's when it bears its label. One that was there
// before without it is somebody else's, and nothing at all is applied: the
// error names each, who has set what of it, and what to do. An empty label
// hands an object over.
func (c *cluster) apply(ctx context.Context, uuid string, objects []*unstructured.Unstructured, before bool) (told []string, err error) {
	missing, err := c.foreign(ctx, uuid, objects)
	if err != nil {
		return nil, err
	}
	told, err = c.applyOurs(ctx, objects)
	if before {
		told = append(missing, told...)
	}
	return told, err
}

// applyOurs applies objects that were looked at by foreign.
func (c *cluster) applyOurs(ctx context.Context, objects []*unstructured.Unstructured) (told []string, err error) {
	for _, o := range objects {
		change, err := c.applyOne(ctx, o)
		if apierrors.IsInvalid(err) {
			return told, c.refuse("CLUSTER_REJECTS_OBJECT", "it does not take the %s: %v", nameOf(o), err)
		}
		if err != nil {
			return told, fmt.Errorf("applying %s: %w", nameOf(o), err)
		}
		if change != "" {
			told = append(told, change)
		}
	}
	return told, nil
}

// foreign refuses to go on when one of the objects is there and not the
// environment's, and tells which are not there. The objects get its label.
func (c *cluster) foreign(ctx context.Context, uuid string, objects []*unstructured.Unstructured) (missing []string, err error) {
	var foreign []*unstructured.Unstructured
	var why []string
	for _, o := range objects {
		label(o, uuid)
		is, theirs, err := c.look(ctx, o)
		switch {
		case err != nil:
			return nil, err
		case is == nil:
			missing = append(missing, nameOf(o)+" was missing, and is there again")
		case theirs != "":
			foreign, why = append(foreign, o), append(why, theirs)
		}
	}
	if len(foreign) > 0 {
		return nil, c.conflict(foreign, why)
	}
	return missing, nil
}

// look reads what is there of an object that bears its label, and says whose it
// is when it is not the environment's.
func (c *cluster) look(ctx context.Context, o *unstructured.Unstructured) (is *unstructured.Unstructured, theirs string, err error) {
	is, err = c.find(ctx, o)
	if err != nil || is == nil || ours(is, o.GetLabels()[clusters.EnvironmentLabel]) {
		return is, "", err
	}
	set, err := c.conflicts(ctx, o, is)
	return is, fmt.Sprintf("%s: %s", nameOf(o), whose(is, set)), err
}

func label(o *unstructured.Unstructured, uuid string) {
	labels := o.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[clusters.EnvironmentLabel] = uuid
	o.SetLabels(labels)
}

// ours reports whether an object is an environment's, or handed over to it.
func ours(o *unstructured.Unstructured, uuid string) bool {
	value, labelled := o.GetLabels()[clusters.EnvironmentLabel]
	return labelled && (value == uuid || value == "")
}

func (c *cluster) find(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	is, err := c.of(o).Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", nameOf(o), err)
	}
	return is, nil
}

// applyOne applies an object of ours. Others' fields that are not in it are
// taken off as well, but for labels and annotations: a node selector can
// disable a DaemonSet as well as another image.
func (c *cluster) applyOne(ctx context.Context, o *unstructured.Unstructured) (told string, err error) {
	// A status was written meanwhile, or somebody has made the object.
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		change, err := c.applyTo(ctx, o)
		if change != "" {
			told = change
		}
		return err
	})
	return told, err
}

// applyTo applies an object to what it finds, and to nothing else: the error is
// a conflict when that is not there any more at the end.
func (c *cluster) applyTo(ctx context.Context, o *unstructured.Unstructured) (told string, err error) {
	is, why, err := c.look(ctx, o)
	switch {
	case err != nil:
		return "", err
	case why != "":
		return "", c.conflict([]*unstructured.Unstructured{o}, []string{why})
	case is != nil && is.GetLabels()[clusters.EnvironmentLabel] == "":
		if is, err = c.update(ctx, o, is, nil); err != nil {
			return "", err
		}
		told = nameOf(o) + " was handed over"
	}
	now, err := c.serverSideApply(ctx, o, is, metav1.ApplyOptions{})
	if set := conflictsIn(err); len(set) > 0 {
		told = fmt.Sprintf("%s was changed, and is as it should be again: %s", nameOf(o), strings.Join(set, ", "))
		now, err = c.serverSideApply(ctx, o, is, metav1.ApplyOptions{Force: true})
	}
	if err != nil {
		return told, err
	}
	differs, err := c.drift(ctx, o, now)
	if err != nil || differs == "" {
		return told, err
	}
	_, err = c.update(ctx, o, now, nil)
	return fmt.Sprintf("%s was changed, and is as it should be again: %s", nameOf(o), differs), err
}

// noRevision is one that no object is at: what is applied at it can be made, and
// changes nothing that is there.
const noRevision = "1"

// serverSideApply applies an object at the revision that was read; nil is that
// there was none.
func (c *cluster) serverSideApply(ctx context.Context, o, is *unstructured.Unstructured, options metav1.ApplyOptions) (*unstructured.Unstructured, error) {
	want := o.DeepCopy()
	want.SetResourceVersion(noRevision)
	if is != nil {
		want.SetResourceVersion(is.GetResourceVersion())
	}
	options.FieldManager = clusters.FieldManager
	return c.of(o).Apply(ctx, o.GetName(), want, options)
}

// conflicts are the fields that others have set otherwise.
func (c *cluster) conflicts(ctx context.Context, o, is *unstructured.Unstructured) ([]string, error) {
	_, err := c.serverSideApply(ctx, o, is, metav1.ApplyOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
		return conflictsIn(err), nil
	}
	return nil, fmt.Errorf("comparing %s: %w", nameOf(o), err)
}

// conflictsIn are the managers and fields of a conflict.
func conflictsIn(err error) []string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	fields := map[string][]string{}
	var managers []string
	for _, cause := range status.Status().Details.Causes {
		if cause.Type != metav1.CauseTypeFieldManagerConflict {
			continue
		}
		// conflict with "kubectl-edit" using apps/v1
		manager := cause.Message
		if parts := strings.Split(cause.Message, `"`); len(parts) > 2 {
			manager = parts[1]
		}
		if fields[manager] == nil {
			managers = append(managers, manager)
		}
		fields[manager] = append(fields[manager], cause.Field)
	}
	var out []string
	for _, manager := range managers {
		out = append(out, fmt.Sprintf("%s has set %s", manager, clusters.Some(fields[manager])))
	}
	return out
}

// whose says who manages an object, and what of it is in the way.
func whose(o *unstructured.Unstructured, set []string) string {
	if by := o.GetLabels()[clusters.EnvironmentLabel]; by != "" {
		return "it is of the environment " + by
	}
	if len(set) > 0 {
		return strings.Join(set, "; ")
	}
	var managers []string
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "" && !slices.Contains(managers, m.Manager) {
			managers = append(managers, m.Manager)
		}
	}
	if len(managers) == 0 {
		return "somebody made it"
	}
	return "made by " + strings.Join(managers, ", ")
}

func (c *cluster) conflict(foreign []*unstructured.Unstructured, why []string) error {
	var remedy strings.Builder
	e := c.refuse("CLUSTER_OBJECT_CONFLICT", "what is to be applied is there already, and is not this environment's; nothing is overwritten:\n\t%s", strings.Join(why, "\n\t"))
	for i, o := range foreign {
		namespace := ""
		if o.GetNamespace() != "" {
			namespace = "-n " + o.GetNamespace() + " "
		}
		fmt.Fprintf(&remedy, "\n\t%s %slabel %s %s %s=", c.Kubectl(), namespace, strings.ToLower(o.GetKind()), o.GetName(), clusters.EnvironmentLabel)
		e.Preconditions = append(e.Preconditions, environment.Precondition{Type: "OBJECT", Subject: nameOf(o), Description: why[i]})
	}
	e.Message += "\ndelete them, or hand them over, and then ask again:" + remedy.String()
	return e
}

// intent is what of an object somebody wants: all that the cluster does not
// write by itself. Of labels and annotations that is what ours has, too: others
// may be written with every change.
func intent(o, ours *unstructured.Unstructured) map[string]any {
	out := maps.Clone(o.Object)
	for _, field := range []string{"apiVersion", "kind", "status"} {
		delete(out, field)
	}
	metadata := map[string]any{}
	for _, field := range []string{"labels", "annotations"} {
		all, _, _ := unstructured.NestedMap(o.Object, "metadata", field)
		own, _, _ := unstructured.NestedMap(ours.Object, "metadata", field)
		maps.DeleteFunc(all, func(key string, _ any) bool { _, has := own[key]; return !has })
		metadata[field] = all
	}
	out["metadata"] = metadata
	return out
}

// drift says in what an object is not what it would be if it were replaced by
// ours; empty when in nothing. It changes nothing.
func (c *cluster) drift(ctx context.Context, o, is *unstructured.Unstructured) (string, error) {
	would, err := c.update(ctx, o, is, []string{metav1.DryRunAll})
	if err != nil {
		return "", err
	}
	return clusters.Some(differences("", intent(is, o), intent(would, o))), nil
}

// update replaces the object at the revision that was read, and keeps of others
// labels and annotations, and what they wait for before it may go.
func (c *cluster) update(ctx context.Context, o, is *unstructured.Unstructured, dryRun []string) (*unstructured.Unstructured, error) {
	want := o.DeepCopy()
	want.SetResourceVersion(is.GetResourceVersion())
	keep(want, is, "metadata", "labels")
	keep(want, is, "metadata", "annotations")
	want.SetFinalizers(is.GetFinalizers())
	want.SetOwnerReferences(is.GetOwnerReferences())
	if _, has, _ := unstructured.NestedMap(want.Object, "spec", "template"); has {
		keep(want, is, "spec", "template", "metadata", "annotations") // "kubectl rollout restart" is no drift
	}
	if want.GetKind() == "ServiceAccount" {
		for _, theirs := range []string{"secrets", "imagePullSecrets"} {
			if value, ok := is.Object[theirs]; ok {
				want.Object[theirs] = value
			}
		}
	}
	return c.of(o).Update(ctx, want, metav1.UpdateOptions{FieldManager: clusters.FieldManager, DryRun: dryRun})
}

// keep adds what of a map is others'.
func keep(want, is *unstructured.Unstructured, path ...string) {
	all, _, _ := unstructured.NestedStringMap(is.Object, path...)
	own, _, _ := unstructured.NestedStringMap(want.Object, path...)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, own)
	if len(all) > 0 {
		_ = unstructured.SetNestedStringMap(want.Object, all, path...) // fails where the path is no map, which own was read from
	}
}

// differences are the paths at which two values differ.
func differences(path string, a, b any) []string {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	x, isMap := a.(map[string]any)
	y, isMapToo := b.(map[string]any)
	if !isMap || !isMapToo {
		v, isList := a.([]any)
		w, isListToo := b.([]any)
		if !isList || !isListToo || len(v) != len(w) {
			return []string{path}
		}
		var out []string
		for i := range v {
			out = append(out, differences(fmt.Sprintf("%s[%d]", path, i), v[i], w[i])...)
		}
		return out
	}
	var keys []string
	for key := range x {
		keys = append(keys, key)
	}
	for key := range y {
		if _, both := x[key]; !both {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	var out []string
	for _, key := range keys {
		out = append(out, differences(path+"."+key, x[key], y[key])...)
	}
	return out
}

// remove deletes an object that is the environment's; one of somebody else, and
// one that is not there, are none of ours.
func (c *cluster) remove(ctx context.Context, uuid string, o *unstructured.Unstructured) (removed bool, err error) {
	// A status was written meanwhile, or it is somebody else's now.
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		is, err := c.find(ctx, o)
		if err != nil || is == nil || is.GetLabels()[clusters.EnvironmentLabel] != uuid {
			return err
		}
		id, version, background := is.GetUID(), is.GetResourceVersion(), metav1.DeletePropagationBackground
		err = c.of(o).Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &id, ResourceVersion: &version}})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("deleting %s: %w", nameOf(o), err)
		}
		removed = true
		return nil
	})
	return removed, err
}
