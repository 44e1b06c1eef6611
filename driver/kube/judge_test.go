package kubedriver

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sordino/clusters"
	"sordino/driver"
	"sordino/environment"
	"sordino/masq/kube"
)

func TestJudge(t *testing.T) {
	const exempt = "nonMasqueradeCIDRs: [203.0.113.0/24]\n"
	pod1, pod2 := netip.MustParseAddr("10.88.1.2"), netip.MustParseAddr("10.88.2.2")
	node1, node2, to := netip.MustParseAddr("10.89.0.11"), netip.MustParseAddr("10.89.0.12"), netip.MustParseAddr("203.0.113.7")
	sent := func(seen1, seen2 netip.Addr) []packet {
		return []packet{
			{driver.Packet{From: pod1, To: to, Node: []netip.Addr{node1}, SeenAs: seen1, Err: "no answer within 5s"}, "n1"},
			{driver.Packet{From: pod2, To: to, Node: []netip.Addr{node2}, SeenAs: seen2, Err: "no answer within 5s"}, "n2"},
		}
	}
	nobody, outside := netip.Addr{}, netip.MustParseAddr("172.30.0.2")
	for name, test := range map[string]struct {
		config        string
		without       bool
		elsewhere     bool // the first Pod is in no Pod range
		seen1, seen2  netip.Addr
		proof, detail string
		err           string
	}{
		"masqueraded":          {seen1: node1, seen2: node2, proof: "10.88.1.2 was seen as 10.89.0.11 by 203.0.113.7; the Pods of 1 other node likewise"},
		"one is not":           {seen1: node1, seen2: pod2, err: "n2: 203.0.113.7 saw 10.88.2.2 as 10.88.2.2, and should have seen 10.89.0.12"},
		"as the other node":    {seen1: node1, seen2: node1, err: "n2: 203.0.113.7 saw 10.88.2.2 as 10.89.0.11, and should have seen 10.89.0.12"},
		"no answer":            {seen1: node1, seen2: nobody, err: "n2: 203.0.113.7 saw nothing of 10.88.2.2 (no answer within 5s), and should have seen 10.89.0.12"},
		"exempt":               {config: exempt, seen1: pod1, seen2: pod2, proof: "10.88.1.2 kept its own address towards 203.0.113.7 (203.0.113.7 is inside 203.0.113.0/24, a non-masquerade range (from ip-masq-agent:1:22)): the masquerade itself is not proven; the Pods of 1 other node likewise"},
		"exempt and masked":    {config: exempt, seen1: pod1, seen2: node2, err: "n2: 203.0.113.7 saw 10.88.2.2 as 10.89.0.12, and should have seen 10.88.2.2"},
		"exempt and no answer": {config: exempt, seen1: pod1, seen2: nobody, detail: "not proven: 10.88.2.2 may keep its own address, and 203.0.113.7 did not answer it (no answer within 5s)"},
		"in no Pod range": {elsewhere: true, seen1: outside, seen2: node2,
			err: "n1: the Pod's address 172.30.0.2 is in no Pod range of the environment (10.88.0.0/16), so it is not masqueraded; widen podRange of the cluster cluster-1 in the clusters file"},
		"in none, no answer": {elsewhere: true, seen1: nobody, seen2: node2, err: "n1: the Pod's address 172.30.0.2 is in no Pod range"},
		"in none, by interface": {config: "outputInterfaces: [eth1]\n", elsewhere: true, seen1: outside, seen2: pod2,
			proof: "172.30.0.2 kept its own address towards 203.0.113.7"},
		// Nodes' interfaces are called as their machines have them, which nobody told.
		"by interface":               {config: "outputInterfaces: [ens5]\n", seen1: node1, seen2: node2, proof: "10.88.1.2 was seen as 10.89.0.11 by 203.0.113.7; the Pods of 1 other node likewise"},
		"not by it":                  {config: "outputInterfaces: [ens5]\n", seen1: pod1, seen2: pod2, proof: "10.88.1.2 kept its own address towards 203.0.113.7 (no non-masquerade range holds 203.0.113.7; only if it leaves by one of [ens5]): the masquerade itself is not proven; the Pods of 1 other node likewise"},
		"by it and not":              {config: "outputInterfaces: [ens5]\n", seen1: node1, seen2: pod2, proof: "10.88.1.2 was seen as 10.89.0.11 by 203.0.113.7, 10.88.2.2 kept its own address towards 203.0.113.7"},
		"by interface, no answer":    {config: "outputInterfaces: [ens5]\n", seen1: node1, seen2: nobody, detail: "not proven: 10.88.2.2 may keep its own address"},
		"by another's":               {config: "outputInterfaces: [ens5]\n", seen1: node1, seen2: node1, err: "n2: 203.0.113.7 saw 10.88.2.2 as 10.89.0.11, and should have seen 10.89.0.12"},
		"in none, without the agent": {without: true, elsewhere: true, seen1: outside, seen2: node2, proof: "172.30.0.2 was seen as 172.30.0.2 by 203.0.113.7 (the agent is not enabled)"},
		"without the agent":          {without: true, seen1: pod1, seen2: node2, proof: "10.88.1.2 was seen as 10.88.1.2 by 203.0.113.7 (the agent is not enabled), 10.88.2.2 was seen as 10.89.0.12"},
		"without it, no answer":      {without: true, seen1: nobody, seen2: nobody, detail: "not proven: 203.0.113.7 did not answer 10.88.1.2 (no answer within 5s)"},
	} {
		e := newEnvironment(test.config)
		e.Spec.Config.NodeConfig.EnableIpMasqAgent = !test.without
		packets := sent(test.seen1, test.seen2)
		if test.elsewhere {
			packets[0].From = outside
		}
		proof, detail, err := judge(e, packets)
		if test.detail == "" {
			test.detail = test.proof
		}
		if !strings.HasPrefix(proof, test.proof) || (proof == "") != (test.proof == "") || !strings.HasPrefix(detail, test.detail) {
			t.Errorf("%s: %q, %q", name, proof, detail)
		}
		if (err == nil) != (test.err == "") || err != nil && !strings.HasPrefix(err.Error(), test.err) {
			t.Errorf("%s: %v, want %q", name, err, test.err)
		}
	}
}

func TestWhatANodeLacks(t *testing.T) {
	now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	with := func(digest, status, reason, message string, ago time.Duration) *node {
		n := &node{}
		n.Metadata.Annotations = map[string]string{kube.AnnotationConfig: digest}
		n.Status.Conditions = []kube.Condition{{Type: kube.ConditionType, Status: status, Reason: reason, Message: message, LastHeartbeatTime: now.Add(-ago)}}
		return n
	}
	for name, test := range map[string]struct {
		n       *node
		lacks   string
		rejects string
	}{
		"in place":         {n: with("d", "True", "RulesInPlace", "generation 1", time.Minute)},
		"nothing said":     {n: &node{}, lacks: "there is no condition IPMasqueradeReady on the Node"},
		"another text":     {n: with("e", "True", "RulesInPlace", "", 0), lacks: "its agent has not looked at the configuration yet"},
		"rejects":          {n: with("d", "False", "ConfigRejected", "ip-masq-agent:1:2: no", 0), lacks: "ip-masq-agent:1:2: no", rejects: "ip-masq-agent:1:2: no"},
		"rejected another": {n: with("e", "False", "ConfigRejected", "no", 0), lacks: "its agent has not looked at the configuration yet"},
		"cannot ask":       {n: with(kube.NoConfig, "False", "ConfigUnavailable", "list configmaps: forbidden", 0), lacks: "ConfigUnavailable: list configmaps: forbidden"},
		"cannot plan":      {n: with("d", "False", "PlanRejected", "no such address", 0), lacks: "no such address", rejects: "no such address"},
		"cannot apply":     {n: with("d", "False", "ApplyFailed", "EPERM", 0), lacks: "ApplyFailed: EPERM"},
		"almost silent":    {n: with("d", "True", "RulesInPlace", "", 15*time.Minute)},
		"silent":           {n: with("d", "True", "RulesInPlace", "", 15*time.Minute+time.Second), lacks: "its agent has said nothing since 2026-11-28T23:44:59Z"},
	} {
		if got := test.n.lacks("d", now); !strings.HasPrefix(got, test.lacks) || (got == "") != (test.lacks == "") {
			t.Errorf("%s: lacks %q", name, got)
		}
		// Without a configuration a digest is that of one that nobody could be
		// asked for.
		if name == "cannot ask" && test.n.rejects(kube.NoConfig, now) != "" {
			t.Errorf("%s: counts as rejected", name)
		}
		if got := test.n.rejects("d", now); got != test.rejects {
			t.Errorf("%s: rejects %q", name, got)
		}
	}
}

// What agents never hear of is no node of the environment.
func TestNodesOutsideThePlan(t *testing.T) {
	e := newEnvironment("")
	for name, test := range map[string]struct{ address, pods, want string }{
		"within":          {"10.89.0.12", "10.88.1.0/24", ""},
		"all of it":       {"10.89.0.12", "10.88.0.0/16", ""},
		"nothing known":   {"", "", ""},
		"another address": {"10.77.0.5", "10.88.1.0/24", "its address 10.77.0.5 is not in the environment's node range 10.89.0.0/24; widen nodeRange of the cluster cluster-1 in the clusters file"},
		"other Pods":      {"10.89.0.12", "10.99.1.0/24", "its Pod CIDR 10.99.1.0/24 is not in the environment's Pod range 10.88.0.0/16; widen podRange of the cluster cluster-1"},
		"more Pods":       {"10.89.0.12", "10.88.0.0/15", "its Pod CIDR 10.88.0.0/15 is not in"},
	} {
		n := &node{}
		if test.address != "" {
			n.Status.Addresses = append(n.Status.Addresses, struct {
				Type    string `json:"type"`
				Address string `json:"address"`
			}{"InternalIP", test.address})
			n.Spec.PodCIDRs = []string{test.pods}
		}
		if got := n.outside(e); !strings.HasPrefix(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Where nobody answers, each round of probes takes its 5 seconds.
func TestTimeForManyNodes(t *testing.T) {
	e := newEnvironment("")
	if got := limit(e); got != waitTime {
		t.Errorf("one node has %v", got)
	}
	e.Observed.Nodes = make([]environment.ObservedNode, 10*atOnce)
	if got := limit(e); got < waitTime+10*5*time.Second {
		t.Errorf("%d nodes have %v", len(e.Observed.Nodes), got)
	}
}

// The containers of a Pod are still called ready when its kubelet is silent.
func TestTroubleOfAPodWhoseNodeIsSilent(t *testing.T) {
	var p pod
	if err := json.Unmarshal([]byte(`{"metadata": {"name": "airflow-worker-1"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running",
		"conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}],
		"containerStatuses": [{"name": "airflow-worker", "ready": true, "state": {"running": {}}}]}}`), &p); err != nil {
		t.Fatal(err)
	}
	c := &cluster{Cluster: &clusters.Cluster{Kubeconfig: "/etc/sordino/kubeconfig", Context: "one"}}
	if got, _ := c.trouble(&p); got != "the Pod airflow-worker-1 on n1 does not count as ready, though its containers do; does its node answer? kubectl --kubeconfig /etc/sordino/kubeconfig --context one get nodes" {
		t.Error(got)
	}
}
