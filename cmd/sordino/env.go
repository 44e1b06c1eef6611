package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sordino/access"
)

// where is what "serve" and the commands that speak of a server on this machine
// have in common.
type where struct {
	data, listen, certFile, url string
}

func (w *where) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&w.data, "data", "", "the folder of the server's data (default $XDG_STATE_HOME/sordino, or ~/.local/state/sordino)")
	f.StringVar(&w.listen, "listen", "127.0.0.1:8080", "the address that the server listens on")
	f.StringVar(&w.certFile, "tls-cert", "", "the server's certificate, if it has one")
}

func (w *where) dir() (string, error) {
	if w.data != "" {
		return filepath.Abs(w.data)
	}
	return dataDir()
}

// address is the URL that clients on this machine use.
func (w *where) address() (string, error) {
	if w.url != "" {
		return strings.TrimSuffix(w.url, "/"), nil
	}
	host, port, err := net.SplitHostPort(w.listen)
	if err != nil {
		return "", fmt.Errorf("--listen %q: write ADDRESS:PORT: %w", w.listen, err)
	}
	if port == "0" {
		return "", fmt.Errorf("--listen %q: which port the server got cannot be known; give its URL with --url", w.listen)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http"
	if w.certFile != "" {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

// cert is the certificate's path for clients, wherever they are run.
func (w *where) cert() string {
	if path, err := filepath.Abs(w.certFile); err == nil {
		return path
	}
	return w.certFile
}

func envCommand() *cobra.Command {
	var w where
	var project, location string
	c := &cobra.Command{
		Use:   "env",
		Short: "Print what clients need to be pointed at this machine's server, token included",
		Long: `Prints shell commands that point a client at this machine's server:

  eval "$(sordino env gcloud)"
  eval "$(sordino env terraform)"

Give the same --data, --listen and --tls-cert as to "sordino serve".`,
	}
	w.flags(c)
	c.PersistentFlags().StringVar(&w.url, "url", "", "the server's URL, when it is not at --listen")
	c.PersistentFlags().StringVar(&project, "project", "example-project", "the project that the clients use when none is named")
	c.PersistentFlags().StringVar(&location, "location", "us-central1", "the location that the clients use when none is named")
	print := func(name, short string, write func(out io.Writer, url, token, tokenFile string)) {
		c.AddCommand(&cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			dir, err := w.dir()
			if err != nil {
				return err
			}
			url, err := w.address()
			if err != nil {
				return err
			}
			tokenFile := filepath.Join(dir, tokenName)
			// A server that just starts may not have made it yet.
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return fmt.Errorf("making the data folder: %w", err)
			}
			token, err := access.OwnerToken(tokenFile)
			if err != nil {
				return err
			}
			write(c.OutOrStdout(), url, token, tokenFile)
			return nil
		}})
	}
	print("gcloud", "Environment variables for gcloud", func(out io.Writer, url, _, tokenFile string) {
		settings := [][2]string{
			{"CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPOSER", url + "/"},
			{"CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", tokenFile},
			{"CLOUDSDK_CORE_PROJECT", project},
			{"CLOUDSDK_COMPOSER_LOCATION", location},
			// No other server is asked for anything.
			{"CLOUDSDK_CORE_CHECK_GCE_METADATA", "false"},
			{"CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "true"},
			{"CLOUDSDK_METRICS_ENVIRONMENT", "offline"},
			{"CLOUDSDK_SURVEY_DISABLE_PROMPTS", "true"},
			{"CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "true"},
		}
		if w.certFile != "" {
			settings = append(settings, [2]string{"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", w.cert()})
		}
		export(out, settings)
		fmt.Fprintln(out, `export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"`)
	})
	print("terraform", "Environment variables for Terraform's google and google-beta providers", func(out io.Writer, url, token, _ string) {
		export(out, [][2]string{
			{"GOOGLE_COMPOSER_CUSTOM_ENDPOINT", url + "/v1beta1/"},
			{"GOOGLE_OAUTH_ACCESS_TOKEN", token},
			{"GOOGLE_PROJECT", project},
			{"GOOGLE_REGION", location},
		})
		fmt.Fprintf(out, `export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
# The providers (7.2 and newer) ask Google who the token belongs to, unless:
#   provider "google-beta" {
#     universe_domain = "composer.invalid"
#     poll_interval   = "1s" # 7.19 and newer
#   }
`)
		if w.certFile != "" {
			fmt.Fprintf(out, "# They trust the certificates that this machine trusts: add %s to those,\n# or name a file with all of them in SSL_CERT_FILE.\n", w.cert())
		}
	})
	print("sordino", "Environment variables for this program's own commands", func(out io.Writer, url, _, tokenFile string) {
		settings := [][2]string{{"SORDINO_SERVER", url}, {"SORDINO_TOKEN_FILE", tokenFile}, {"SORDINO_PROJECT", project}, {"CLOUDSDK_COMPOSER_LOCATION", location}}
		if w.certFile != "" {
			settings = append(settings, [2]string{"SORDINO_CA_FILE", w.cert()})
		}
		export(out, settings)
	})
	return c
}

func export(out io.Writer, settings [][2]string) {
	for _, s := range settings {
		fmt.Fprintf(out, "export %s='%s'\n", s[0], strings.ReplaceAll(s[1], "'", `'\''`))
	}
}

func tokenCommand() *cobra.Command {
	var name, project, role string
	c := &cobra.Command{
		Use: "token", Short: "Make a token, and print the entry for the policy file that lets it in", Args: cobra.NoArgs,
		Long: `Makes a bearer token and prints it, once, to standard output. To standard error
goes the entry for the policy file ("sordino serve --policy"), which holds only
the token's hash.`,
		Example: "  sordino token --name ci --project example-project --role editor 2>>policy-entry.yaml >token",
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := access.ParseRole(role); err != nil {
				return fmt.Errorf("--role: %w", err)
			}
			token, hash := access.NewToken()
			fmt.Fprintln(c.OutOrStdout(), token)
			fmt.Fprintf(c.ErrOrStderr(), "tokens:\n- name: %q\n  sha256: %x\n  grants:\n  - {project: %q, role: %s}\n", name, [sha256.Size]byte(hash), project, role)
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "who has it, for the audit log")
	c.Flags().StringVar(&project, "project", "", "the project that it is for; * is all of them")
	c.Flags().StringVar(&role, "role", "viewer", "viewer, editor or admin")
	for _, f := range []string{"name", "project"} {
		if err := c.MarkFlagRequired(f); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return c
}
