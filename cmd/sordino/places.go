package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"sordino/clusters"
	kubedriver "sordino/driver/kube"
	labdriver "sordino/driver/lab"
	"sordino/environment"
	"sordino/internal/count"
	"sordino/reconcile"
	"sordino/wire"
)

// driver is what makes clusters and answers for them.
type driver interface {
	reconcile.Driver
	wire.Clusters
}

// driver returns the driver of the command line, and the existing clusters; nil
// are those of this machine.
func (o *serveOptions) driver(dir string, log *slog.Logger) (driver, *clusters.Clusters, error) {
	if o.clusters == "" {
		binary, err := agentBinary(o.agentBinary)
		if err != nil {
			return nil, nil, err
		}
		return labdriver.New(labdriver.Options{Dir: dir, AgentBinary: binary, Now: time.Now, Log: log}), nil, nil
	}
	existing, err := clusters.Load(o.clusters)
	if err != nil {
		return nil, nil, err
	}
	id, err := serverID(filepath.Join(dir, serverIDName))
	if err != nil {
		return nil, nil, err
	}
	images := kubedriver.Options{Clusters: existing, AgentImage: o.agentImage, SordinoImage: o.sordinoImage, Server: id, Now: time.Now, Log: log}
	if images.AgentImage == "" {
		images.AgentImage = "localhost/ip-masq-agent:" + version
	}
	if images.SordinoImage == "" {
		images.SordinoImage = "localhost/sordino:" + version
	}
	return kubedriver.New(images), existing, nil
}

// serverIDName is the file in the data folder that tells this server's claims of
// clusters from other servers'. It is not in the database: a copy of that in
// another folder is another server.
const serverIDName = "server-id"

// serverID reads the server's identity, or makes one.
func serverID(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text = []byte(uuid.NewString() + "\n")
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
	}
	if err != nil {
		return "", fmt.Errorf("the server's identity: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if _, err := uuid.Parse(id); err != nil {
		return "", fmt.Errorf("the server's identity %s is not a UUID: %w; put the former one back, which claims on clusters bear as sordino.dev/server, or delete the file to get a new one", path, err)
	}
	return id, nil
}

// checkPlaces refuses a data folder with environments that this server would
// take for what they are not: lab for cluster, or the other way round.
func checkPlaces(ctx context.Context, store environment.Store, existing *clusters.Clusters, log *slog.Logger) error {
	var holders, all map[string]environment.Name
	if err := store.View(ctx, func(tx environment.Tx) (err error) {
		if holders, err = tx.ClusterHolders(); err == nil && existing != nil {
			all, err = tx.EnvironmentNames()
		}
		return err
	}); err != nil {
		return err
	}
	if existing == nil {
		if len(holders) > 0 {
			return fmt.Errorf("the data folder has %s on existing clusters (%s): give their file with --clusters, or choose another data folder", count.Of(len(holders), "environment"), strings.Join(slices.Sorted(maps.Keys(holders)), ", "))
		}
		return nil
	}
	if n := len(all) - len(holders); n > 0 {
		return fmt.Errorf("the data folder has %s on this machine: serve without --clusters, or choose another data folder", count.Of(n, "environment"))
	}
	for name, holder := range holders {
		if existing.ByName(name) == nil {
			log.Warn("a cluster with an environment is not declared any more: declare it again under the same name", "cluster", name, "environment", holder.String())
		}
	}
	return nil
}
