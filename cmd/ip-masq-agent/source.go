package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"sordino/internal/kubeapi"
	"sordino/masq"
	"sordino/masq/agent"
	"sordino/masq/configfile"
	"sordino/masq/kube"
	"sordino/masq/kube/egressnat"
)

// The values of --config-source.
const (
	sourceFile      = "file"
	sourceKube      = "kube"
	sourceEgressNAT = "egress-nat-policy"
)

// opened is a source and what goes with it.
type opened struct {
	source    agent.Source
	observers []agent.Observer
	remote    func() agent.Remote
	// arguments say what the environment said, for commands that run elsewhere.
	arguments []string
	// beside runs while the agent does.
	beside []func(context.Context)
}

func openSource(f *flags, log *slog.Logger) (opened, error) {
	file := &fileSource{path: f.config, loader: configfile.Loader{Settings: f.settings()}, log: log}
	if f.configSource == sourceFile {
		return opened{source: collected{file}}, nil
	}
	client, node, err := openAPI(f, log)
	if err != nil {
		return opened{}, err
	}
	var content kube.Content = egressnat.New(client, f.settings(), log)
	if f.configSource == sourceKube {
		namespace, name, err := namespacedName("config-map", f.configMap)
		if err != nil {
			return opened{}, err
		}
		content = kube.NewConfigMap(client, namespace, name, f.settings(), log)
	}
	reporter := kube.NewReporter(client, node, version, log)
	source := kube.NewSource(kube.Options{Client: client, Node: node, Fallback: file, Log: log, NodeSeen: reporter.NodeSeen}, content)
	return opened{
		source:    collected{source},
		observers: []agent.Observer{reporter},
		remote: func() agent.Remote {
			h := client.Health()
			r := agent.Remote{Server: client.Server(), LastContact: h.LastContact, WatchRestarts: h.WatchRestarts, Problems: source.Problems()}
			problem := ""
			if r.ReportErrors, problem = reporter.Failures(); problem != "" {
				r.Problems = append(r.Problems, problem)
			}
			return r
		},
		arguments: []string{"--node-name=" + node},
		beside:    []func(context.Context){reporter.Run},
	}, nil
}

// openAPI reaches the Kubernetes API as the flags say, and tells this node's
// name there.
func openAPI(f *flags, log *slog.Logger) (client *kubeapi.Client, node string, err error) {
	node = cmp.Or(f.nodeName, os.Getenv(nodeNameVariable))
	if node == "" {
		return nil, "", fmt.Errorf("--config-source=%s needs the node's name: give --node-name, or the variable %s from the Pod's spec.nodeName", f.configSource, nodeNameVariable)
	}
	config, err := f.apiServer()
	if err != nil {
		return nil, "", fmt.Errorf("--config-source=%s: %w", f.configSource, err)
	}
	return kubeapi.New(config, "ip-masq-agent/"+version, log), node, nil
}

// nodeNameVariable is what a Pod's manifest sets to its node's name.
const nodeNameVariable = "NODE_NAME"

// pollInterval is how often the config is looked at when no file notification
// arrives, as on file systems that have none.
const pollInterval = 10 * time.Second

// fileSource is the agent's configuration in files.
type fileSource struct {
	path   string
	loader configfile.Loader
	log    *slog.Logger
}

func (f *flags) settings() configfile.Settings {
	return configfile.Settings{ReservedRanges: f.reserved, IPv6: f.ipv6}
}

func (s *fileSource) Load() (agent.Loaded, error) {
	result, err := s.loader.Load(s.path)
	if err != nil {
		return agent.Loaded{}, kube.Rejected(err, result.Digest)
	}
	loaded := agent.Loaded{Config: result.Config, From: "files", Files: result.Files, Digest: result.Digest}
	if len(result.Files) == 0 {
		loaded.From = "defaults (there is no file)"
	}
	for _, w := range result.Warnings {
		loaded.Warnings = append(loaded.Warnings, w.String())
	}
	return loaded, nil
}

func (s *fileSource) Watch(ctx context.Context, changed func()) error {
	return configfile.Watch(ctx, s.path, pollInterval, changed, s.log)
}

// collected tunes the garbage collection to the configuration that was loaded.
type collected struct{ agent.Source }

func (s collected) Load() (agent.Loaded, error) {
	loaded, err := s.Source.Load()
	if err == nil {
		collectFor(loaded.Config)
	}
	return loaded, err
}

// A small heap is collected within a millisecond, and collecting it often keeps
// it small. A long list loads a third faster with more room.
const (
	shortListGC, longListGC = 20, 50 // percent
	longList                = 1000   // ranges
)

func collectFor(c masq.Config) {
	percent := shortListGC
	if len(c.NonMasquerade)+len(c.Masquerade) > longList {
		percent = longListGC
	}
	debug.SetGCPercent(percent)
}
