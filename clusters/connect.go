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
		return nil, fmt.Errorf("cluster %s: reading the context %q of %s: %w; mend it, and try it with: kubectl --context %s get nodes", c.Name, c.Context, from, err, c.Context)
	}
	return config, nil
}
