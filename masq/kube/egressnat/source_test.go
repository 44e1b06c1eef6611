package egressnat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"sordino/internal/kubeapi"
	"sordino/internal/kubetest"
	"sordino/internal/testwait"
	"sordino/masq/agent"
	"sordino/masq/configfile"
)

func shipped(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile("../../../deploy/egressnat/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func policyYAML(name string, cidrs ...string) string {
	return fmt.Sprintf("apiVersion: networking.gke.io/v1\nkind: EgressNATPolicy\nmetadata: {name: %s}\nspec: {action: NoSNAT, destinations: [{cidr: '%s'}]}\n", name, strings.Join(cidrs, "'}, {cidr: '"))
}

func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	testwait.Until(t, 2*time.Minute, 200*time.Millisecond, func() error {
		if err := ask(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

// Agents with the permissions that are shipped, and a real API server.
func TestPolicies(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	account, err := c.KubeconfigFor("system:serviceaccount:kube-system:ip-masq-agent", "system:serviceaccounts", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	config, err := kubeapi.FromKubeconfig(account)
	if err != nil {
		t.Fatal(err)
	}
	var agents []*Policies
	follow := func(n int) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		agents = nil
		for range n {
			client := kubeapi.New(config, "ip-masq-agent/test", slog.New(slog.DiscardHandler))
			p := New(client, configfile.Settings{}, slog.New(slog.DiscardHandler))
			agents = append(agents, p)
			running.Go(func() {
				defer client.Close()
				p.Follow(ctx, func() {})
			})
		}
		return func() {
			cancel()
			running.Wait()
		}
	}
	// A cluster that does not know the kind yet.
	c.Kubectl(t, shipped(t, "rbac.yaml"), "apply", "-f", "-")
	stop := follow(1)
	loads := func(what string, check func(agent.Loaded, error) bool) {
		t.Helper()
		eventually(t, what, func() error {
			for i, p := range agents {
				if loaded, err := p.Load(); !check(loaded, err) {
					return fmt.Errorf("agent %d: %+v, %w", i, loaded, err)
				}
			}
			return nil
		})
	}
	loads("the definition is missing", func(_ agent.Loaded, err error) bool {
		return errors.As(err, new(*agent.Unavailable)) && strings.Contains(err.Error(), "apply deploy/egressnat")
	})
	stop()

	c.Kubectl(t, shipped(t, "crd.yaml"), "apply", "-f", "-")
	c.Kubectl(t, "", "wait", "--for=condition=Established", "--timeout=2m", "crd/egressnatpolicies.networking.gke.io")
	defer follow(3)()
	loads("no policy means the defaults", func(l agent.Loaded, err error) bool {
		return err == nil && len(l.Config.NonMasquerade) == 3 && !l.Config.NonMasqueradeGiven
	})
	eventually(t, "the kind is known", func() error {
		_, err := c.TryKubectl(t.Context(), policyYAML("gke-1", "192.168.0.0/16"), "apply", "-f", "-")
		return err
	})
	c.Kubectl(t, shipped(t, "default.yaml"), "apply", "-f", "-")
	loads("two policies", func(l agent.Loaded, err error) bool {
		return err == nil && len(l.Config.NonMasquerade) == 4 && l.Config.NonMasqueradeGiven && l.From == "2 EgressNATPolicies"
	})
	accepted := func(want string) {
		t.Helper()
		c.Kubectl(t, "", "wait", "--for=condition=Accepted="+want, "--timeout=2m", "egressnatpolicy/default")
	}
	accepted("True")
	out := c.Kubectl(t, "", "get", "egressnatpolicies")
	if !strings.Contains(out, "ACTION") || !strings.Contains(out, "default   NoSNAT   True       Accepted") {
		t.Error(out)
	}

	// One that the definition takes and the agents do not.
	c.Kubectl(t, policyYAML("default", "10.0.0.0/8", "fd00::/8"), "apply", "-f", "-")
	loads("a bad policy", func(_ agent.Loaded, err error) bool {
		var rejected *agent.Rejected
		return errors.As(err, &rejected) && rejected.Reasons[0] == "ipv6-disabled" && len(rejected.Digest) == 64 && strings.Contains(err.Error(), "EgressNATPolicy default, spec.destinations[1].cidr")
	})
	accepted("False")
	var p Policy
	read := func() Policy {
		t.Helper()
		if err := json.Unmarshal([]byte(c.Kubectl(t, "", "get", "egressnatpolicy", "default", "-o", "json")), &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if got := read().Status.Conditions; len(got) != 1 || got[0].ObservedGeneration != p.Metadata.Generation || got[0].Reason != "IPv6Disabled" || !strings.Contains(got[0].Message, "--enable-ipv6") {
		t.Errorf("%+v", p)
	}
	version := p.Metadata.ResourceVersion

	// A label is no reason to judge anew; then mended, and gone.
	c.Kubectl(t, "", "label", "egressnatpolicy", "default", "a=b")
	if read(); p.Metadata.ResourceVersion == version {
		t.Error("the label is not there")
	}
	version = p.Metadata.ResourceVersion
	time.Sleep(spread + time.Second)
	if read(); p.Metadata.ResourceVersion != version {
		t.Errorf("the verdict was written again: %+v", p)
	}
	c.Kubectl(t, policyYAML("default", "10.0.0.0/8"), "apply", "-f", "-")
	accepted("True")
	c.Kubectl(t, "", "delete", "egressnatpolicies", "--all")
	loads("all gone", func(l agent.Loaded, err error) bool {
		return err == nil && len(l.Config.NonMasquerade) == 3 && strings.HasPrefix(l.From, "defaults")
	})

	// What the definition refuses by itself.
	for _, bad := range []string{"10.1.0.0/8", "10.0.0.0", "10.0.0.0/08", "::ffff:10.0.0.0/104", "10.0.0.0/33", ""} {
		if _, err := c.TryKubectl(t.Context(), policyYAML("default", bad), "apply", "--dry-run=server", "-f", "-"); err == nil || !strings.Contains(err.Error(), "spec.destinations[0].cidr") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := c.TryKubectl(t.Context(), strings.ReplaceAll(policyYAML("default", "10.0.0.0/8"), "NoSNAT", "SNAT"), "apply", "--dry-run=server", "-f", "-"); err == nil || !strings.Contains(err.Error(), "spec.action") {
		t.Error(err)
	}
}
