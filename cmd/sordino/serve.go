package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"sordino/access"
	"sordino/agentconfig"
	"sordino/environment"
	"sordino/environment/image"
	"sordino/internal/loopback"
	"sordino/networks"
	"sordino/reconcile"
	"sordino/store"
	"sordino/wire"
	"sordino/wire/rest"
)

// serveOptions are the command line of "serve".
type serveOptions struct {
	where
	keyFile, networks, policy string
	issuer, audience          string
	hosts                     []string
	plaintext                 bool
	agentBinary               string
	clusters                  string
	agentImage, sordinoImage  string
	logFormat                 string
	verbose                   bool
	workers                   int
	// changeWithin is reconcile's limit; tests do not wait for its default.
	changeWithin time.Duration
}

func serveCommand() *cobra.Command {
	var o serveOptions
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve the environments API, and keep what it accepted",
		Long: `Serves the Cloud Composer environments API (REST at /v1, /v1beta1 and /v1alpha2
under any prefix, and gRPC, on one port), and makes its environments on this
machine: nodes, worker Pods and services from network namespaces, with the real
ip-masq-agent on every node. Works as root and as an ordinary user.

With --clusters it places its environments on existing Kubernetes clusters
instead, one on each, and serves the locations of that file.

What was accepted survives any end of this program. Environments stay up when
it ends, and the next start takes them over; "sordino lab down" takes those of
this machine down, and the next start builds them again.

  sordino serve &
  eval "$(sordino env gcloud)"
  gcloud composer environments create example-environment --location us-central1 \
      --image-version composer-1.20.12-airflow-1.10.15 --enable-ip-alias --enable-ip-masq-agent`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			s, err := newServer(c.Context(), o, c.ErrOrStderr())
			if err != nil {
				return err
			}
			klog.SetSlogLogger(s.log) // what the Kubernetes client has to say
			return s.run(c.Context())
		},
	}
	o.where.flags(c)
	f := c.Flags()
	f.StringVar(&o.keyFile, "tls-key", "", "the certificate's key; both files are read again when they change")
	f.StringVar(&o.networks, "networks", "", "the file that declares networks, subnetworks and secondary ranges (default: a network \"default\" in every project)")
	f.StringVar(&o.policy, "policy", "", "the file of tokens and subjects and what they may do; read again when it changes")
	f.StringVar(&o.issuer, "oidc-issuer", "", "accept ID tokens of this OIDC issuer")
	f.StringVar(&o.audience, "oidc-audience", "", "the audience that they must be for")
	f.StringSliceVar(&o.hosts, "host", nil, "a name that the server is called by, besides localhost and --listen")
	f.BoolVar(&o.plaintext, "plaintext-tokens-on-the-network", false, "listen elsewhere than on loopback without TLS: everybody on the way can read the tokens")
	f.StringVar(&o.agentBinary, "agent-binary", "", "the ip-masq-agent program (default: beside this one)")
	f.StringVar(&o.clusters, "clusters", "", "the file of existing clusters to place environments on, instead of making them on this machine; \"sordino clusters check\" tries it")
	f.StringVar(&o.agentImage, "agent-image", "", "with --clusters: the agent's image (default: localhost/ip-masq-agent of this version)")
	f.StringVar(&o.sordinoImage, "sordino-image", "", "with --clusters: the image of worker Pods (default: localhost/sordino of this version)")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say what is done step by step")
	f.IntVar(&o.workers, "workers", 4, "how many environments are worked on at once")
	return c
}

// server is one run of "serve".
type server struct {
	o          serveOptions
	log        *slog.Logger
	store      *store.Store
	audit      *access.Audit
	reconciler *reconcile.Reconciler
	wire       *wire.Server
	http       *http.Server
	listener   net.Listener
}

func newServer(ctx context.Context, o serveOptions, stderr io.Writer) (_ *server, err error) {
	s := &server{o: o}
	if s.log, err = o.logger(stderr); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	dir, err := o.dir()
	if err != nil {
		return nil, err
	}
	declared := networks.Default()
	if o.networks != "" {
		if declared, err = networks.Load(o.networks); err != nil {
			return nil, err
		}
	}
	driver, existing, err := o.driver(dir, s.log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.store, err = store.Open(dir); err != nil {
		return nil, err
	}
	if err := checkPlaces(ctx, s.store, existing, s.log); err != nil {
		return nil, err
	}
	if s.audit, err = access.OpenAudit(filepath.Join(dir, "audit.log"), s.log); err != nil {
		return nil, err
	}
	token, err := access.OwnerToken(filepath.Join(dir, tokenName))
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256([]byte(token))
	callers, err := access.New(access.Options{File: o.policy, Token: &hash, Issuer: o.issuer, Audience: o.audience, Log: s.log})
	if err != nil {
		return nil, err
	}
	work := reconcile.Options{Store: s.store, Driver: driver, Log: s.log, Workers: o.workers, ChangeWithin: o.changeWithin}
	service := environment.Options{
		Store: s.store, Networks: declared, Images: image.Default(), CheckAgentConfig: agentconfig.Check,
		Now: time.Now, NewID: uuid.NewString,
	}
	if existing != nil {
		service.Clusters, service.Networks = existing, declared.OnClusters()
		if work.ChangeWithin == 0 {
			work.ChangeWithin = changeOnClusters
		}
	}
	s.reconciler = reconcile.New(work)
	service.Wake = s.reconciler.Wake
	environments := environment.NewService(service)
	s.wire, err = wire.New(wire.Options{
		Environments: environments,
		Agents:       &wire.Agents{Environments: environments, Clusters: driver, Effective: agentconfig.Effective},
		Authorize:    callers.Authorize,
		Audit:        record(s.audit),
		Log:          s.log,
	})
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return nil, fmt.Errorf("--listen %q: write ADDRESS:PORT: %w", o.listen, err)
	}
	guard := access.Guard{Hosts: append([]string{host}, o.hosts...), Requests: maxRequests, Wait: time.Second, Refuse: wire.Refuse}
	s.http = s.wire.HTTPServer(alive(guard.Wrap(s.wire)))
	if s.listener, err = net.Listen("tcp", o.listen); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", o.listen, err)
	}
	if o.certFile != "" {
		certificate, err := access.LoadCertificate(o.certFile, o.keyFile, time.Now, s.log)
		if err != nil {
			return nil, errors.Join(err, s.listener.Close())
		}
		s.http.TLSConfig = certificate.Config()
	}
	return s, nil
}

// alive answers /healthz to whoever asks, by whatever name: a kubelet has no
// token. It says that the server answers, and nothing else.
func alive(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "ok\n")
	})
}

// changeOnClusters is how long a create or an update may take on an existing
// cluster, where nodes may have to pull images first.
const changeOnClusters = 5 * time.Minute

// maxRequests is how many requests are served at once; more wait for a second.
const maxRequests = 256

func (o *serveOptions) check() error {
	switch {
	case (o.certFile == "") != (o.keyFile == ""):
		return errors.New("TLS takes both --tls-cert and --tls-key")
	case o.certFile == "" && !loopback.Only(o.listen) && !o.plaintext:
		return fmt.Errorf("--listen %s can be reached from other machines: give --tls-cert and --tls-key, or say --plaintext-tokens-on-the-network", o.listen)
	case o.clusters != "" && o.agentBinary != "":
		return errors.New("--agent-binary is for clusters on this machine, and --clusters for existing ones: give --agent-image instead")
	case o.clusters == "" && (o.agentImage != "" || o.sordinoImage != ""):
		return errors.New("--agent-image and --sordino-image are for existing clusters: name them with --clusters")
	case o.workers < 1:
		return fmt.Errorf("--workers %d: write at least 1", o.workers)
	}
	return nil
}

func (o *serveOptions) logger(w io.Writer) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if o.verbose {
		options.Level = slog.LevelDebug
	}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q: write text or json", o.logFormat)
}

// record writes calls that change something, or were refused, to the audit log.
func record(audit *access.Audit) func(context.Context, wire.Call, wire.Outcome) {
	return func(ctx context.Context, call wire.Call, o wire.Outcome) {
		if o.Code == codes.OK && access.PermissionOf(call.Method).Role <= access.Viewer {
			return
		}
		resource := call.Resource
		if strings.HasPrefix(o.Target, resource) {
			resource = o.Target // a create is called for the parent
		}
		audit.Record(access.Entry{Time: time.Now().UTC(), Caller: access.Caller(ctx), Remote: call.Remote, Method: call.Method, Resource: resource,
			Code: rest.CodeName(o.Code), Reason: o.Reason, Operation: o.Operation})
	}
}

// run serves until the context ends. What is under way then is given some
// time; environments stay up.
func (s *server) run(ctx context.Context) (err error) {
	// A server is idle nearly always: less memory is worth some more collecting.
	debug.SetGCPercent(35)
	defer func() { err = errors.Join(err, s.close()) }()
	working, stopWorking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorking()
	var running sync.WaitGroup
	defer running.Wait()
	defer stopWorking()
	running.Go(func() { s.reconciler.Run(working) })
	served := make(chan error, 1)
	running.Go(func() {
		if s.http.TLSConfig != nil {
			served <- s.http.ServeTLS(s.listener, "", "")
		} else {
			served <- s.http.Serve(s.listener)
		}
	})
	s.wire.SetServing(true)
	s.log.Info("serving", "address", s.listener.Addr().String(), "data", filepath.Dir(s.store.Path()), "version", version)
	select {
	case err := <-served:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	s.log.Info("stopping; what is under way is parked, and environments stay up")
	s.wire.SetServing(false)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := s.http.Shutdown(last); err != nil {
		s.log.Warn("some calls did not end in time, and are cut off", "error", err)
	}
	s.wire.Close()
	return s.http.Close()
}

func (s *server) close() error {
	var errs []error
	if s.audit != nil {
		errs = append(errs, s.audit.Close())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}
