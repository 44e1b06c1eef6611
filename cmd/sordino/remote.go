package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/api/googleapi"
	"google.golang.org/grpc/status"

	"sordino/client"
)

// remote is what every command that asks a server has in common. Its flags
// have gcloud's names where gcloud has them.
type remote struct {
	server, tokenFile, caFile string
	project, location         string
	format                    string
	logHTTP                   bool
}

func (r *remote) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&r.server, "server", envOr("SORDINO_SERVER", "http://127.0.0.1:8080"), "the server's URL (SORDINO_SERVER)")
	f.StringVar(&r.tokenFile, "token-file", os.Getenv("SORDINO_TOKEN_FILE"), "file with the bearer token (SORDINO_TOKEN_FILE, or the token itself in SORDINO_TOKEN; default: the one of this user's own server)")
	f.StringVar(&r.caFile, "ca-file", os.Getenv("SORDINO_CA_FILE"), "certificates to trust, in PEM form (SORDINO_CA_FILE; default: the machine's)")
	f.StringVar(&r.project, "project", envOr("SORDINO_PROJECT", os.Getenv("CLOUDSDK_CORE_PROJECT")), "the project (SORDINO_PROJECT, CLOUDSDK_CORE_PROJECT)")
	f.StringVar(&r.format, "format", "", "json or yaml; default: a table or lines for a person")
	f.BoolVar(&r.logHTTP, "log-http", false, "print every request and answer to standard error, without the token")
}

func (r *remote) locationFlag(c *cobra.Command) {
	c.Flags().StringVar(&r.location, "location", os.Getenv("CLOUDSDK_COMPOSER_LOCATION"), "the location, for example us-central1 (CLOUDSDK_COMPOSER_LOCATION)")
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

// connect runs a command with a client.
func (r *remote) connect(do func(c *cobra.Command, args []string, s *client.Client) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) (err error) {
		if r.format != "" && r.format != "json" && r.format != "yaml" {
			return fmt.Errorf("--format %q: write json or yaml", r.format)
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
		return readable(do(c, args, s))
	}
}

// readable turns an answer's error into what a person wants to read: the
// server's own words, and the code for who scripts.
func readable(err error) error {
	var rest *googleapi.Error
	if errors.As(err, &rest) {
		message := rest.Message
		if message == "" {
			message = strings.TrimSpace(rest.Body)
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%s", message)
		for _, d := range rest.Details {
			detail, _ := d.(map[string]any)
			if info, ok := detail["reason"].(string); ok {
				fmt.Fprintf(&b, "\n  reason: %s", info)
			}
			links, _ := detail["links"].([]any)
			for _, l := range links {
				link, _ := l.(map[string]any)
				fmt.Fprintf(&b, "\n  see: %v %v", link["description"], link["url"])
			}
		}
		return fmt.Errorf("%d: %s", rest.Code, b.String())
	}
	if s, ok := status.FromError(err); ok && err != nil && !errors.As(err, new(exit)) {
		return fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
	return err
}

func (r *remote) parent() (string, error) {
	if r.project == "" {
		return "", errors.New("which project? give --project, or set SORDINO_PROJECT")
	}
	if r.location == "" {
		return "", errors.New("which location? give --location, for example us-central1")
	}
	return "projects/" + r.project + "/locations/" + r.location, nil
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
