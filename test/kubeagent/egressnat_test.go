package kubeagent

import (
	"strings"
	"testing"
	"time"

	"sordino/internal/kubetest"
)

// policy is the manifest of an EgressNATPolicy.
func policy(destinations ...string) string {
	return "{apiVersion: networking.gke.io/v1, kind: EgressNATPolicy, metadata: {name: default}, spec: {action: NoSNAT, destinations: [{cidr: '" +
		strings.Join(destinations, "'}, {cidr: '") + "'}]}}"
}

// EgressNATPolicies instead of the ConfigMap, as GKE Autopilot and Composer 2
// have them: the change of the source lets nothing out, and what the policies
// say then is what the service sees.
func TestEgressNATPolicy(t *testing.T) {
	c := shared(t)
	agents(t, masked)
	apply := func(manifest string) {
		t.Helper()
		// A kind is known a moment after its definition.
		eventually(t, func() error {
			_, err := c.TryKubectl(t.Context(), manifest, "apply", "-f", "-")
			return err
		})
	}
	exempt := []string{kubetest.PodRange.String(), kubetest.NodeRange.String()}
	c.Kubectl(t, "", "apply", "-k", "../../deploy/egressnat")
	defer c.Kubectl(t, "", "delete", "-k", "../../deploy/egressnat")
	apply(policy(exempt...))
	since := time.Now()
	c.Kubectl(t, "", "apply", "-k", "../../deploy/agent-egressnat")
	deployed.agents = false // those of deploy/agent are not
	defer agents(t, masked)
	rollout(t, "kube-system", "ip-masq-agent")
	c.Kubectl(t, "", "wait", "--for=condition=Accepted", "egressnatpolicy/default", "--timeout=2m")
	during(t, asNode)
	only(t, asNode, since)

	// On the fourth node the CNI masquerades by itself.
	ours := c.Nodes[:3]
	apply(policy(append(exempt, kubetest.ServiceAddress.String()+"/32")...))
	seen(t, asPod, time.Now(), ours...)

	// One that cannot be used keeps what held before.
	apply(policy(append(exempt, "2001:db8::/32")...))
	c.Kubectl(t, "", "wait", "--for=condition=Accepted=False", "egressnatpolicy/default", "--timeout=2m")
	c.Kubectl(t, "", "wait", "--for=condition=IPMasqueradeReady=False", "node", "--all", "--timeout=2m")
	seen(t, asPod, time.Now(), ours...)

	apply(policy(exempt...))
	seen(t, asNode, time.Now(), ours...)
}
