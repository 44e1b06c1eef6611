package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"sordino/internal/kubeapi"
	"sordino/masq/agent"
	"sordino/masq/configfile"
)

// ConfigKey is the one key of the ConfigMap that counts, as upstream's manifest
// mounts it.
const ConfigKey = "config"

// configMap is a ConfigMap, with the fields that matter here.
type configMap struct {
	Data       map[string]string `json:"data"`
	BinaryData map[string]string `json:"binaryData"`
}

// ConfigMap is a configuration in the key "config" of a ConfigMap. Without the
// ConfigMap, or without the key, the defaults hold, as upstream has it.
type ConfigMap struct {
	client *kubeapi.Client
	ref    kubeapi.Ref
	loader configfile.Loader
	log    *slog.Logger
	mirror Mirror[configMap]
}

// NewConfigMap makes the content from one ConfigMap.
func NewConfigMap(client *kubeapi.Client, namespace, name string, settings configfile.Settings, log *slog.Logger) *ConfigMap {
	return &ConfigMap{client: client, ref: kubeapi.ConfigMaps.In(namespace).Named(name), loader: configfile.Loader{Settings: settings}, log: log}
}

// Follow implements Content.
func (c *ConfigMap) Follow(ctx context.Context, changed func()) {
	c.mirror.Follow(ctx, c.client, c.ref, c.log, changed)
}

// Load implements Content.
func (c *ConfigMap) Load() (agent.Loaded, error) {
	all, known, lost := c.mirror.Last()
	if !known {
		if lost == nil {
			lost = c.mirror.unsettled()
		}
		return agent.Loaded{}, &agent.Unavailable{Err: lost}
	}
	name := fmt.Sprintf("ConfigMap %s/%s", c.ref.Namespace, c.ref.Name)
	loaded := agent.Loaded{From: name}
	var sources []configfile.Source
	if len(all) == 0 {
		loaded.From = "defaults (there is no " + name + ")"
	} else if text, ok := all[0].Data[ConfigKey]; ok {
		sources = []configfile.Source{{Name: name + ", " + ConfigKey, Text: []byte(text)}}
	} else {
		loaded.From = fmt.Sprintf("defaults (%s has no key %q)", name, ConfigKey)
		loaded.Warnings = append(loaded.Warnings, noKey(name, all[0]))
	}
	result, err := c.loader.FromSources(sources)
	if err != nil {
		return agent.Loaded{}, Rejected(err, result.Digest)
	}
	loaded.Config, loaded.Digest = result.Config, result.Digest
	for _, w := range result.Warnings {
		loaded.Warnings = append(loaded.Warnings, w.String())
	}
	if refusal(lost) {
		loaded.Warnings = append(loaded.Warnings, lost.Error())
	}
	return loaded, nil
}

// noKey names the silent breaker: a ConfigMap in which nothing counts.
func noKey(name string, c configMap) string {
	text := fmt.Sprintf("%s has no key %q, so nothing of it takes effect", name, ConfigKey)
	if keys := slices.Sorted(maps.Keys(c.Data)); len(keys) > 0 {
		text += fmt.Sprintf("; it has %q", keys)
	}
	if keys := slices.Sorted(maps.Keys(c.BinaryData)); len(keys) > 0 {
		text += fmt.Sprintf("; it has %q as binary data, which does not count", keys)
	}
	return text + fmt.Sprintf(`; write the settings as the text of the key: data: {%s: "…"}`, ConfigKey)
}

// Problems implements Content.
func (c *ConfigMap) Problems() []string {
	if _, _, err := c.mirror.Last(); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// Rejected makes the error of an agent's source from configfile's.
func Rejected(err error, digest string) *agent.Rejected {
	rejected := &agent.Rejected{Err: err, Digest: digest}
	for _, p := range configfile.Problems(err) {
		rejected.Reasons = append(rejected.Reasons, p.Reason)
	}
	return rejected
}
