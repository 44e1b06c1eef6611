package clusters

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// RESTConfig is how a client reaches the cluster. The kubeconfig is read anew,
// so that credentials may be replaced while the server runs. Calls are bounded
// by their contexts only: a limit here would cut watches off.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	config, err := c.load()
	if err != nil {
		return nil, err
	}
	config.UserAgent = "sordino"
	// The default, 5 a second, is for controllers of a whole cluster's objects;
	// here are few, and somebody waits for them.
	config.QPS, config.Burst = 50, 100
	config.WarningHandler = rest.NoWarnings{}
	if config.ExecProvider != nil {
		config.ExecProvider.StdinUnavailable = true
		config.ExecProvider.StdinUnavailableMessage = "sordino has no terminal to ask at"
	}
	return config, nil
}

func (c *Cluster) load() (*rest.Config, error) {
	if c.Kubeconfig == InCluster {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("cluster %s: connecting as a Pod of it: %w; run the server there with a service account, or give a kubeconfig", c.Name, err)
		}
		return config, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	from := "the kubeconfig that kubectl uses"
	if c.Kubeconfig != "" {
		rules.ExplicitPath = c.Kubeconfig
		from = c.Kubeconfig
	}
	raw, err := rules.Load()
	var config *rest.Config
	if err == nil {
		// Not the deferred loading, which takes the server's own cluster where
		// there is no kubeconfig.
		config, err = clientcmd.NewNonInteractiveClientConfig(*raw, c.Context, &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	}
	if err != nil {
		context := "the current context"
		if c.Context != "" {
			context = fmt.Sprintf("the context %q", c.Context)
		}
		return nil, fmt.Errorf("cluster %s: reading %s of %s: %w; mend it, and %s", c.Name, context, from, err, c.Advice())
	}
	return config, nil
}

// Advice is how a person tries the connection, with what we have tried it with.
func (c *Cluster) Advice() string {
	if c.Kubeconfig == InCluster {
		return "look at the server's service account and network"
	}
	return "try it with: " + c.Kubectl() + " get nodes"
}

// Kubectl is the beginning of a command for the cluster, for a person to copy.
func (c *Cluster) Kubectl() string {
	command := "kubectl"
	if c.Kubeconfig != "" && c.Kubeconfig != InCluster {
		command += " --kubeconfig " + c.Kubeconfig
	}
	if c.Context != "" {
		command += " --context " + c.Context
	}
	return command
}
