package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"sordino/internal/kubeapi"
	"sordino/masq/admission"
)

func webhook(ctx context.Context, inv *invocation) error {
	f := inv.flags
	namespace, name, err := namespacedName("config-map", f.configMap)
	if err != nil {
		return err
	}
	certificate, keep, err := webhookCertificate(inv)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listening for the API server: %w", err)
	}
	inv.log.Info("the webhook listens", "version", version, "address", listener.Addr().String(), "config-map", f.configMap, "enable-ipv6", f.ipv6)
	var keeping sync.WaitGroup
	defer keeping.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	keeping.Go(func() { keep(ctx) })
	reviewer := &admission.Reviewer{Settings: f.settings(), Namespace: namespace, Name: name, Log: inv.log}
	return admission.Serve(ctx, listener, reviewer, certificate, inv.log)
}

// webhookCertificate is that of the files, or one of a CA of our own, which
// somebody has to keep in the cluster.
func webhookCertificate(inv *invocation) (certificate admission.Certificate, keep func(context.Context), err error) {
	f := inv.flags
	if (f.tlsCert == "") != (f.tlsKey == "") {
		return nil, nil, errors.New("--tls-cert and --tls-key belong together: give both, or none for a certificate of the webhook's own")
	}
	if f.tlsCert != "" {
		files := &admission.Files{Cert: f.tlsCert, Key: f.tlsKey, Log: inv.log}
		if _, err := files.GetCertificate(nil); err != nil {
			return nil, nil, err
		}
		return files, func(context.Context) {}, nil
	}
	namespace, name, err := namespacedName("webhook", f.webhook)
	if err != nil {
		return nil, nil, err
	}
	config, err := f.apiServer()
	if err != nil {
		return nil, nil, err
	}
	own := &admission.SelfSigned{API: kubeapi.New(config, "ip-masq-agent-webhook/"+version, inv.log), Namespace: namespace, Name: name, Log: inv.log}
	return own, own.Run, nil
}

// apiServer is the one of the kubeconfig, or of the Pod that this runs in.
func (f *flags) apiServer() (kubeapi.Config, error) {
	if f.kubeconfig != "" {
		return kubeapi.FromKubeconfig(f.kubeconfig)
	}
	return kubeapi.InCluster()
}

// namespacedName takes NAMESPACE/NAME apart.
func namespacedName(flag, text string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("--%s %q: write it as NAMESPACE/NAME, such as kube-system/ip-masq-agent", flag, text)
	}
	return namespace, name, nil
}
