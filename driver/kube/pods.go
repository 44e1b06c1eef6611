package kubedriver

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sordino/clusters"
)

// pod is what is read of a Pod.
type pod struct {
	Metadata struct {
		Name              string     `json:"name"`
		DeletionTimestamp *time.Time `json:"deletionTimestamp"`
		OwnerReferences   []struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
		Affinity struct {
			NodeAffinity struct {
				Required struct {
					Terms []struct {
						MatchFields []struct {
							Key    string   `json:"key"`
							Values []string `json:"values"`
						} `json:"matchFields"`
					} `json:"nodeSelectorTerms"`
				} `json:"requiredDuringSchedulingIgnoredDuringExecution"`
			} `json:"nodeAffinity"`
		} `json:"affinity"`
	} `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		Reason     string `json:"reason"`
		Message    string `json:"message"`
		PodIP      string `json:"podIP"`
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"conditions"`
		InitContainerStatuses []containerStatus `json:"initContainerStatuses"`
		ContainerStatuses     []containerStatus `json:"containerStatuses"`
	} `json:"status"`
}

type containerStatus struct {
	Name         string `json:"name"`
	Ready        bool   `json:"ready"`
	RestartCount int    `json:"restartCount"`
	State        struct {
		Waiting *struct {
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"waiting"`
		Running    *struct{}   `json:"running"`
		Terminated *terminated `json:"terminated"`
	} `json:"state"`
	LastState struct {
		Terminated *terminated `json:"terminated"`
	} `json:"lastState"`
}

type terminated struct {
	ExitCode int    `json:"exitCode"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`
}

func (p *pod) ready() bool {
	if p.Metadata.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (p *pod) address() netip.Addr {
	a, _ := netip.ParseAddr(p.Status.PodIP)
	return a
}

// node is where the Pod is, or is to be: DaemonSets say it by an affinity.
func (p *pod) node() string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.Required.Terms {
		for _, f := range term.MatchFields {
			if f.Key == "metadata.name" && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// daemonSet is what is read of a DaemonSet.
type daemonSet struct {
	Metadata struct {
		Generation int64             `json:"generation"`
		Labels     map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		Selector struct {
			MatchLabels map[string]string `json:"matchLabels"`
		} `json:"selector"`
	} `json:"spec"`
	Status struct {
		ObservedGeneration     int64 `json:"observedGeneration"`
		DesiredNumberScheduled int   `json:"desiredNumberScheduled"`
		UpdatedNumberScheduled int   `json:"updatedNumberScheduled"`
		NumberReady            int   `json:"numberReady"`
	} `json:"status"`
}

// set names a DaemonSet and its Pods.
type set struct{ namespace, name, selector, container string }

func (s set) String() string { return "DaemonSet " + s.namespace + "/" + s.name }

// watched is what the state of a set depends on.
func (s set) watched() []selection {
	return []selection{
		{resource: daemonSets, namespace: s.namespace, field: "metadata.name=" + s.name},
		{resource: pods, namespace: s.namespace, labels: s.selector},
	}
}

func (c *cluster) podsOf(ctx context.Context, s set) ([]pod, error) {
	all, err := list[pod](ctx, c, selection{resource: pods, namespace: s.namespace, labels: s.selector})
	slices.SortFunc(all, func(a, b pod) int {
		return strings.Compare(a.node()+"\x00"+a.Metadata.Name, b.node()+"\x00"+b.Metadata.Name)
	})
	return all, err
}

// progress says why a DaemonSet's Pods are not all there, of its newest template
// and ready. The number is how many nodes it is to be on.
func (c *cluster) progress(ctx context.Context, s set) (int, error) {
	d, err := get[daemonSet](ctx, c, daemonSets, s.namespace, s.name)
	switch {
	case err != nil:
		return 0, err
	case d == nil:
		return 0, fmt.Errorf("the %s is gone", s)
	case d.Status.ObservedGeneration != d.Metadata.Generation:
		return 0, fmt.Errorf("the %s is not looked at yet by the cluster's controller manager", s)
	}
	want := d.Status.DesiredNumberScheduled
	switch {
	case want == 0:
		return 0, fmt.Errorf("the %s is to run on no node; look at the nodes' taints and labels", s)
	case d.Status.NumberReady == want && d.Status.UpdatedNumberScheduled == want:
		return want, nil
	}
	return want, fmt.Errorf("the %s is ready on %d of %d nodes, with its newest template on %d", s, d.Status.NumberReady, want, d.Status.UpdatedNumberScheduled)
}

// rolledOut is a DaemonSet's progress, and what keeps the Pods.
func (c *cluster) rolledOut(ctx context.Context, s set) (int, error) {
	want, behind := c.progress(ctx, s)
	if behind == nil || want == 0 {
		return want, behind
	}
	all, err := c.podsOf(ctx, s)
	if err != nil {
		return 0, err
	}
	var why []string
	for i := range all {
		trouble, log := c.trouble(&all[i])
		if trouble == "" {
			continue
		}
		if len(why) < clusters.Named { // the others are only counted
			trouble += c.endOf(ctx, s, &all[i], log)
		}
		why = append(why, trouble)
	}
	if len(all) < want {
		if told := c.refused(ctx, s); told != "" {
			why = append(why, told)
		}
	}
	if len(why) > 0 {
		behind = fmt.Errorf("%w: %s", behind, clusters.Some(why))
	}
	if slices.ContainsFunc(all, func(p pod) bool { return p.unpulled() }) {
		behind = fmt.Errorf("%w; import the image on the nodes, or start the server with --agent-image and --sordino-image that they can pull", behind)
	}
	return 0, behind
}

// podLog is a container's log; without a container there is none that helps.
type podLog struct {
	container string
	previous  bool
}

// trouble is why a Pod is not ready, and the log that may say more; empty when
// it is.
func (c *cluster) trouble(p *pod) (string, podLog) {
	if p.ready() {
		return "", podLog{}
	}
	var log podLog
	about := func(format string, args ...any) (string, podLog) {
		where := ""
		if n := p.node(); n != "" {
			where = " on " + n
		}
		return fmt.Sprintf("the Pod %s%s ", p.Metadata.Name, where) + fmt.Sprintf(format, args...), log
	}
	if p.Metadata.DeletionTimestamp != nil {
		return about("is being deleted")
	}
	if p.Status.Phase == "Failed" {
		return about("failed: %s", strings.TrimSpace(p.Status.Reason+" "+p.Status.Message))
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == "PodScheduled" && condition.Status != "True" && condition.Message != "" {
			return about("cannot be scheduled: %s", condition.Message)
		}
	}
	for _, container := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		last := container.LastState.Terminated
		switch state := container.State; {
		case state.Terminated != nil && state.Terminated.ExitCode == 0, container.Ready:
			continue
		case state.Waiting != nil && last != nil:
			log = podLog{container.Name, true}
			return about("restarts its container %s (%s): it ended with status %d", container.Name, state.Waiting.Reason, last.ExitCode)
		case state.Waiting != nil:
			return about("waits: container %s: %s", container.Name, strings.TrimSpace(state.Waiting.Reason+" "+state.Waiting.Message))
		case state.Terminated != nil:
			log = podLog{container.Name, false}
			return about("has a container %s that ended with status %d (%s)", container.Name, state.Terminated.ExitCode, state.Terminated.Reason)
		case container.Name == gateContainer:
			return about("is held back until its node masquerades")
		default:
			log = podLog{container.Name, false}
			return about("is not ready yet: container %s runs", container.Name)
		}
	}
	if p.Status.Phase == "Running" { // so it is where the kubelet is silent, too
		return about("does not count as ready, though its containers do; does its node answer? %s get nodes", c.Kubectl())
	}
	return about("is %s", strings.ToLower(p.Status.Phase))
}

// unpulled says that the Pod waits for an image that its node does not get.
func (p *pod) unpulled() bool {
	return slices.ContainsFunc(slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses), func(c containerStatus) bool {
		w := c.State.Waiting
		return w != nil && slices.Contains([]string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}, w.Reason)
	})
}

// explained is a Pod's trouble with the end of the log that says more.
func (c *cluster) explained(ctx context.Context, s set, p *pod) string {
	trouble, log := c.trouble(p)
	return trouble + c.endOf(ctx, s, p, log)
}

// logTime bounds reading a log: the kubelet that has it may be what is amiss.
const logTime = 2 * time.Second

// endOf is the end of a container's log, or why it cannot be read.
func (c *cluster) endOf(ctx context.Context, s set, p *pod, log podLog) string {
	if log.container == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, logTime)
	defer cancel()
	text, err := c.raw.Get().AbsPath("/api/v1/namespaces/"+s.namespace+"/pods/"+p.Metadata.Name+"/log").
		Param("container", log.container).Param("tailLines", "1").Param("previous", fmt.Sprint(log.previous)).Do(ctx).Raw()
	if err != nil {
		return "; its log cannot be read: " + err.Error()
	}
	return "; the end of its log: " + lastLineOf(text)
}

// lastLineOf is the end of what a program printed.
func lastLineOf(text []byte) string {
	text = bytes.TrimSpace(text)
	text = text[bytes.LastIndexByte(text, '\n')+1:]
	if len(text) == 0 {
		return "nothing was printed"
	}
	const most = 500
	return string(text[:min(len(text), most)])
}

// event is what is read of an Event.
type event struct {
	Reason        string    `json:"reason"`
	Message       string    `json:"message"`
	LastTimestamp time.Time `json:"lastTimestamp"`
}

// refused is why the cluster makes no Pods for a set, as far as it says so.
func (c *cluster) refused(ctx context.Context, s set) string {
	all, err := list[event](ctx, c, selection{resource: events, namespace: s.namespace,
		field: "type=Warning,involvedObject.kind=DaemonSet,involvedObject.name=" + s.name})
	if err != nil || len(all) == 0 {
		return ""
	}
	last := slices.MaxFunc(all, func(a, b event) int { return a.LastTimestamp.Compare(b.LastTimestamp) })
	return last.Reason + ": " + last.Message
}

// gone waits until a set's Pods are gone, which outlive it for some time.
func (c *cluster) gone(ctx context.Context, s set) error {
	return c.until(ctx, s.watched(), func(ctx context.Context) error {
		all, err := c.podsOf(ctx, s)
		if err != nil {
			return err
		}
		var left []string
		for _, p := range all {
			if slices.ContainsFunc(p.Metadata.OwnerReferences, func(o struct {
				Kind string `json:"kind"`
				Name string `json:"name"`
			}) bool {
				return o.Kind == "DaemonSet" && o.Name == s.name
			}) {
				left = append(left, fmt.Sprintf("%s on %s", p.Metadata.Name, p.node()))
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("there are still Pods of the %s: %s; on a node that does not answer they stay until it is back, or its Node is deleted", s, clusters.Some(left))
		}
		return nil
	})
}
