package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	composer "google.golang.org/api/composer/v1beta1"
	"google.golang.org/api/googleapi"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sordino/client"
	wirerest "sordino/wire/rest"
)

// remote is what every command that asks a server has in common. Its flags
// have gcloud's names where gcloud has them.
type remote struct {
	server, tokenFile, caFile string
	project, location         string
	format                    string
	logHTTP, quiet            bool
}

func (r *remote) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&r.server, "server", envOr("SORDINO_SERVER", "http://127.0.0.1:8080"), "the server's URL (SORDINO_SERVER)")
	f.StringVar(&r.tokenFile, "token-file", os.Getenv("SORDINO_TOKEN_FILE"), "file with the bearer token (SORDINO_TOKEN_FILE, or the token itself in SORDINO_TOKEN; default: the one of this user's own server)")
	f.StringVar(&r.caFile, "ca-file", os.Getenv("SORDINO_CA_FILE"), "certificates to trust, in PEM form (SORDINO_CA_FILE; default: the machine's)")
	f.StringVar(&r.project, "project", envOr("SORDINO_PROJECT", os.Getenv("CLOUDSDK_CORE_PROJECT")), "the project (SORDINO_PROJECT, CLOUDSDK_CORE_PROJECT)")
	f.StringVar(&r.format, "format", "", "json or yaml; default: a table or lines for a person")
	f.BoolVarP(&r.quiet, "quiet", "q", false, "ask nothing: delete at once")
	f.BoolVar(&r.logHTTP, "log-http", false, "print every request and answer to standard error, without the token")
}

func (r *remote) locationFlag(c *cobra.Command) {
	c.Flags().StringVar(&r.location, "location", os.Getenv("CLOUDSDK_COMPOSER_LOCATION"), "the location, for example us-central1 (CLOUDSDK_COMPOSER_LOCATION); an environment that exists is found without it")
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// dataDir is where a server of this user keeps everything by default.
func dataDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "sordino"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding the folder for the server's data: %w; name one with --data", err)
	}
	return filepath.Join(home, ".local", "state", "sordino"), nil
}

// tokenName is the owner's token in the data folder.
const tokenName = "token"

func (r *remote) token() (string, error) {
	if r.tokenFile == "" {
		if token := os.Getenv("SORDINO_TOKEN"); token != "" {
			return token, nil
		}
		dir, err := dataDir()
		if err != nil {
			return "", err
		}
		r.tokenFile = filepath.Join(dir, tokenName)
	}
	text, err := os.ReadFile(r.tokenFile)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w; start a server with \"sordino serve\", or name a file with --token-file", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// checkFormat checks --format.
func (r *remote) checkFormat() error {
	if r.format != "" && r.format != "json" && r.format != "yaml" {
		return fmt.Errorf("--format %q: write json or yaml", r.format)
	}
	return nil
}

// connect runs a command with a client.
func (r *remote) connect(do func(c *cobra.Command, args []string, s *client.Client) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) (err error) {
		if err := r.checkFormat(); err != nil {
			return err
		}
		token, err := r.token()
		if err != nil {
			return err
		}
		o := client.Options{Server: r.server, Token: token, CAFile: r.caFile}
		if r.logHTTP {
			o.LogHTTP = c.ErrOrStderr()
		}
		s, err := client.New(c.Context(), o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return r.readable(do(c, args, s))
	}
}

// readable turns an answer's error into what a person wants to read: the
// server's own words, and the code and the reason for who scripts. It is the
// same whether the call went over REST or gRPC.
func (r *remote) readable(err error) error {
	var rest *googleapi.Error
	var unreachable *url.Error
	switch {
	case err == nil, errors.As(err, new(exit)), errors.Is(err, client.ErrStillRunning):
		return err
	case errors.As(err, &rest):
		code, message := http.StatusText(rest.Code), rest.Message
		var answer struct {
			Error struct{ Status string } `json:"error"`
		}
		if json.Unmarshal([]byte(rest.Body), &answer) == nil && answer.Error.Status != "" {
			code = answer.Error.Status
		}
		if message == "" { // not the API's: a proxy's, perhaps
			message = strings.TrimSpace(rest.Body)
		}
		var reason string
		var links []string
		for _, d := range rest.Details {
			detail, _ := d.(map[string]any)
			if text, ok := detail["reason"].(string); ok {
				reason = text
			}
			all, _ := detail["links"].([]any)
			for _, l := range all {
				link, _ := l.(map[string]any)
				links = append(links, fmt.Sprintf("%v %v", link["description"], link["url"]))
			}
		}
		return answered(code, message, reason, links)
	case errors.As(err, &unreachable):
		return r.unreachable(unreachable.Err)
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	var reason string
	var links []string
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			reason = d.Reason
		case *errdetails.Help:
			for _, l := range d.Links {
				links = append(links, l.Description+" "+l.Url)
			}
		}
	}
	if s.Code() == codes.Unavailable && reason == "" {
		return r.unreachable(errors.New(s.Message()))
	}
	return answered(wirerest.CodeName(s.Code()), s.Message(), reason, links)
}

func answered(code, message, reason string, links []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", code, message)
	if reason != "" {
		fmt.Fprintf(&b, "\n  reason: %s", reason)
	}
	for _, l := range links {
		fmt.Fprintf(&b, "\n  see: %s", l)
	}
	return errors.New(b.String())
}

func (r *remote) unreachable(err error) error {
	return fmt.Errorf("the server %s cannot be reached: %w; is \"sordino serve\" running there? name another with --server", r.server, err)
}

func (r *remote) parent() (string, error) { return r.parentAt(r.location) }

func (r *remote) parentAt(location string) (string, error) {
	if r.project == "" {
		return "", errors.New("which project? give --project, or set SORDINO_PROJECT; \"sordino env sordino\" prints what to set")
	}
	if location == "" {
		return "", errors.New("which location? give --location, for example us-central1, or set CLOUDSDK_COMPOSER_LOCATION")
	}
	return "projects/" + r.project + "/locations/" + location, nil
}

// name is a resource's full name, from a short or a full one.
func (r *remote) name(collection, text string) (string, error) {
	if strings.HasPrefix(text, "projects/") {
		return text, nil
	}
	parent, err := r.parent()
	if err != nil {
		return "", err
	}
	return parent + "/" + collection + "/" + text, nil
}

// environment is an environment's full name. Without a location it is looked
// for in all of them.
func (r *remote) environment(ctx context.Context, s *client.Client, text string) (string, error) {
	if strings.HasPrefix(text, "projects/") || r.location != "" || r.project == "" {
		return r.name("environments", text)
	}
	var found []string
	all, err := r.environmentsAt(ctx, s, "-")
	for _, e := range all {
		if strings.HasSuffix(e.Name, "/environments/"+text) {
			found = append(found, e.Name)
		}
	}
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", fmt.Errorf("no location of the project %s has an environment %s; \"sordino environments list\" shows those that there are", r.project, text)
	case len(found) > 1:
		return "", fmt.Errorf("which location? there are %s; give --location", strings.Join(found, " and "))
	}
	return found[0], nil
}

// environmentsAt are a location's environments; "-" is all locations.
func (r *remote) environmentsAt(ctx context.Context, s *client.Client, location string) (all []*composer.Environment, err error) {
	parent, err := r.parentAt(location)
	if err != nil {
		return nil, err
	}
	err = s.Composer.Projects.Locations.Environments.List(parent).PageSize(1000).Pages(ctx, func(p *composer.ListEnvironmentsResponse) error {
		all = append(all, p.Environments...)
		return nil
	})
	return all, err
}

// completeEnvironments offers the names of environments to a shell.
func (r *remote) completeEnvironments(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && !strings.HasPrefix(c.Use, "delete") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	location := r.location
	if location == "" {
		location = "-"
	}
	var names []string
	ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
	defer cancel()
	err := r.connect(func(_ *cobra.Command, _ []string, s *client.Client) error {
		answer, err := s.Composer.Projects.Locations.Environments.List("projects/" + r.project + "/locations/" + location).PageSize(1000).Context(ctx).Do()
		if err != nil {
			return err
		}
		for _, e := range answer.Environments {
			names = append(names, path.Base(e.Name)+"\t"+e.State)
		}
		return nil
	})(c, nil)
	if err != nil {
		cobra.CompErrorln(err.Error()) // only seen when completion is debugged
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeWithin is how long somebody who pressed Tab waits for the server.
const completeWithin = 2 * time.Second
