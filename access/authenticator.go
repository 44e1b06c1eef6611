package access

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"go.yaml.in/yaml/v3"

	"sordino/wire/rest"
)

// Authenticator tells callers by their bearer tokens.
type Authenticator struct {
	options Options
	log     *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	version fileVersion
	known   policy
	broken  string // the last complaint about the file

	oidc        sync.Mutex // guards what follows
	verifier    *oidc.IDTokenVerifier
	issuerAsked time.Time
	issuerError error
}

// Options say whom to know.
type Options struct {
	// File is the policy file, read again when it changes; empty is none.
	File string
	// Token is the hash of the one token that is an admin everywhere: the one
	// that the server makes for its own user. Nil is none.
	Token *[sha256.Size]byte
	// Issuer and Audience turn OIDC on: ID tokens of the issuer for the
	// audience are accepted. Whom they name must be in the policy file.
	Issuer, Audience string
	Now              func() time.Time
	Log              *slog.Logger
}

// policyFile is the policy file as it is written.
type policyFile struct {
	Tokens []struct {
		Name   string        `yaml:"name"`
		SHA256 string        `yaml:"sha256"`
		Grants []policyGrant `yaml:"grants"`
	} `yaml:"tokens"`
	Subjects []struct {
		// Name is the email claim, if the issuer verified it, or the subject claim.
		Name   string        `yaml:"name"`
		Grants []policyGrant `yaml:"grants"`
	} `yaml:"subjects"`
}

type policyGrant struct {
	Project string `yaml:"project"`
	Role    string `yaml:"role"`
}

// policy is the file's content, ready to be looked up.
type policy struct {
	tokens   map[[sha256.Size]byte]Principal
	subjects map[string]Principal
}

// New reads the policy file, which must be good to begin with; later a bad one
// leaves the last good one in force.
func New(o Options) (*Authenticator, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if (o.Issuer == "") != (o.Audience == "") {
		return nil, errors.New("OIDC takes both an issuer and an audience")
	}
	if o.Issuer != "" && o.File == "" {
		return nil, errors.New("OIDC takes a policy file too: it says what the issuer's subjects may do")
	}
	a := &Authenticator{options: o, log: o.Log}
	if o.File == "" {
		return a, nil
	}
	var err error
	a.known, a.version, err = readPolicy(o.File)
	a.looked = o.Now()
	return a, err
}

// fileVersion changes when a file does.
type fileVersion struct {
	modified time.Time
	size     int64
}

func readPolicy(path string) (policy, fileVersion, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return policy{}, fileVersion{}, fmt.Errorf("reading the policy file: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return policy{}, fileVersion{}, fmt.Errorf("reading the policy file: %w", err)
	}
	p, err := parsePolicy(text)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return p, fileVersion{info.ModTime(), info.Size()}, err
}

func parsePolicy(text []byte) (policy, error) {
	var f policyFile
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&f); err != nil && len(strings.TrimSpace(string(text))) > 0 {
		return policy{}, fmt.Errorf("reading the policy: %w", err)
	}
	p := policy{map[[sha256.Size]byte]Principal{}, map[string]Principal{}}
	var errs []error
	for i, t := range f.Tokens {
		where := fmt.Sprintf("tokens[%d] (%q)", i, t.Name)
		var hash [sha256.Size]byte
		if n, err := hex.Decode(hash[:], []byte(t.SHA256)); err != nil || n != len(hash) || len(t.SHA256) != 2*len(hash) {
			errs = append(errs, fmt.Errorf("%s: sha256 must be the 64 hexadecimal digits that \"sordino token\" prints", where))
		}
		if t.Name == "" {
			errs = append(errs, fmt.Errorf("%s: a token needs a name, for the audit log", where))
		}
		if _, twice := p.tokens[hash]; twice {
			errs = append(errs, fmt.Errorf("%s: the same token is there twice", where))
		}
		grants, err := readGrants(where, t.Grants)
		errs = append(errs, err)
		p.tokens[hash] = Principal{t.Name, grants}
	}
	for i, s := range f.Subjects {
		where := fmt.Sprintf("subjects[%d] (%q)", i, s.Name)
		if s.Name == "" {
			errs = append(errs, fmt.Errorf("%s: a subject needs a name: an email address or a subject claim", where))
		}
		if _, twice := p.subjects[s.Name]; twice {
			errs = append(errs, fmt.Errorf("%s: the same subject is there twice", where))
		}
		grants, err := readGrants(where, s.Grants)
		errs = append(errs, err)
		p.subjects[s.Name] = Principal{s.Name, grants}
	}
	return p, errors.Join(errs...)
}

func readGrants(where string, list []policyGrant) (map[string]Role, error) {
	grants := map[string]Role{}
	var errs []error
	for _, g := range list {
		role, err := ParseRole(g.Role)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		}
		if g.Project == "" {
			errs = append(errs, fmt.Errorf("%s: a grant needs a project; \"*\" is all of them", where))
		}
		grants[g.Project] = max(grants[g.Project], role)
	}
	if len(list) == 0 {
		errs = append(errs, fmt.Errorf("%s: grants nothing; write grants: [{project: example-project, role: viewer}]", where))
	}
	return grants, errors.Join(errs...)
}

// recheck is how often the policy file is looked at.
const recheck = time.Second

// policy returns the policy in force.
func (a *Authenticator) policy() policy {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.options.Now()
	if a.options.File == "" || now.Sub(a.looked) < recheck {
		return a.known
	}
	a.looked = now
	info, err := os.Stat(a.options.File)
	if err == nil && (fileVersion{info.ModTime(), info.Size()}) == a.version {
		return a.known
	}
	p, version, err := readPolicy(a.options.File)
	if err != nil {
		if a.broken != err.Error() {
			a.broken = err.Error()
			a.log.Error("the policy file was not taken over; the last good one stays in force", "error", err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			a.version = version
		}
		return a.known
	}
	a.known, a.version, a.broken = p, version, ""
	a.log.Info("the policy file was read again", "tokens", len(p.tokens), "subjects", len(p.subjects))
	return a.known
}

// Authenticate tells who sends an Authorization header.
func (a *Authenticator) Authenticate(ctx context.Context, authorization string) (Principal, error) {
	scheme, token, _ := strings.Cut(strings.TrimSpace(authorization), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return Principal{}, unauthenticated("CREDENTIALS_MISSING", "Request is missing required authentication credential. Send the header \"Authorization: Bearer TOKEN\"; \"sordino env\" prints what clients need.")
	}
	// Tokens have 256 random bits: their hash needs no salt, and looking it up
	// tells nothing to somebody who measures time.
	hash := sha256.Sum256([]byte(token))
	if a.options.Token != nil && hash == *a.options.Token {
		return Principal{"owner", map[string]Role{AllProjects: Admin}}, nil
	}
	known := a.policy()
	if p, ok := known.tokens[hash]; ok {
		return p, nil
	}
	if a.options.Issuer != "" && strings.Count(token, ".") == 2 {
		return a.authenticateOIDC(ctx, token, known)
	}
	return Principal{}, unauthenticated("ACCESS_TOKEN_INVALID", "Request had invalid authentication credentials: this server does not know the token.")
}

// callerKey is the context's key of who calls.
type callerKey struct{}

// Authorize decides who may make a call, as the API's server wants to know it.
// The context that it returns, also with a refusal, has the [Caller].
func (a *Authenticator) Authorize(ctx context.Context, call rest.Call) (context.Context, error) {
	caller, err := a.Authenticate(ctx, call.Header.Get("Authorization"))
	if err != nil {
		return ctx, err
	}
	return context.WithValue(ctx, callerKey{}, caller.Name), caller.Authorize(call.Method, call.Project, call.Resource)
}

// Caller is the name of who makes the call; empty when they did not prove it.
func Caller(ctx context.Context) string {
	name, _ := ctx.Value(callerKey{}).(string)
	return name
}

func (a *Authenticator) authenticateOIDC(ctx context.Context, raw string, known policy) (Principal, error) {
	verifier, err := a.oidcVerifier()
	if err != nil {
		a.log.Error("asking the OIDC issuer for its keys", "issuer", a.options.Issuer, "error", err)
		return Principal{}, unauthenticated("OIDC_ISSUER_UNREACHABLE", "The OIDC issuer %s cannot be asked for its keys now; tokens from it are refused until it can.", a.options.Issuer)
	}
	token, err := verifier.Verify(ctx, raw)
	if err != nil {
		return Principal{}, unauthenticated("ACCESS_TOKEN_INVALID", "Request had invalid authentication credentials: %v.", err)
	}
	var claims struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
	}
	if err := token.Claims(&claims); err != nil {
		return Principal{}, unauthenticated("ACCESS_TOKEN_INVALID", "Request had invalid authentication credentials: its claims cannot be read: %v.", err)
	}
	if p, ok := known.subjects[claims.Email]; ok && claims.Verified && claims.Email != "" {
		return p, nil
	}
	if p, ok := known.subjects[token.Subject]; ok {
		return p, nil
	}
	// They have proven who they are; they may do nothing.
	return Principal{Name: token.Subject}, nil
}

// A dead issuer is not asked for every request.
const (
	issuerTimeout = 5 * time.Second
	issuerPause   = 10 * time.Second
)

func (a *Authenticator) oidcVerifier() (*oidc.IDTokenVerifier, error) {
	a.oidc.Lock()
	defer a.oidc.Unlock()
	now := a.options.Now()
	if a.verifier != nil || a.issuerError != nil && now.Sub(a.issuerAsked) < issuerPause {
		return a.verifier, a.issuerError
	}
	// The provider keeps this context for later look-ups of keys.
	ctx := oidc.ClientContext(context.Background(), &http.Client{Timeout: issuerTimeout})
	provider, err := oidc.NewProvider(ctx, a.options.Issuer)
	a.issuerAsked, a.issuerError = now, err
	if err != nil {
		return nil, err
	}
	a.verifier = provider.Verifier(&oidc.Config{ClientID: a.options.Audience, Now: a.options.Now})
	return a.verifier, nil
}
