package images_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"sordino/deploy/images"
	"sordino/internal/testprogram"
)

var release = images.Release{
	Version: "v1.2.3", Revision: "0123456789abcdef", Source: "https://git.example.com/sordino",
	Created: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC),
}

// small is an image of a program that builds in a moment.
var small = images.Image{
	Name: "small", Title: "small", Description: "a program", User: "65532:65532",
	Programs: []string{"/small"}, Folders: []string{"/var/lib/small", "/tmp"},
	Authorities: true,
}

func compile(t *testing.T, arch string) images.Platform {
	t.Helper()
	out := t.TempDir()
	if err := testprogram.Empty(out, arch, "small"); err != nil {
		t.Fatal(err)
	}
	return images.Platform{Architecture: arch, Binaries: out}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	digest, err := small.Write(dir, release, []images.Platform{compile(t, "arm64"), compile(t, "amd64")})
	if err != nil {
		t.Fatal(err)
	}
	folder, err := layout.ImageIndexFromPath(filepath.Join(dir, "small"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(folder); err != nil {
		t.Error(err)
	}
	index, err := folder.ImageIndex(digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := manifest.Annotations["org.opencontainers.image.revision"]; got != release.Revision {
		t.Errorf("revision %q", got)
	}
	var platforms []string
	for _, d := range manifest.Manifests {
		platforms = append(platforms, d.Platform.String())
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.OS+"/"+config.Architecture != d.Platform.String() || !config.Created.Equal(release.Created) {
			t.Errorf("config %s/%s of %s, created %s", config.OS, config.Architecture, d.Platform, config.Created)
		}
		if got := config.Config; !slices.Equal(got.Entrypoint, []string{"/small"}) || got.User != "65532:65532" ||
			got.Labels["org.opencontainers.image.version"] != "v1.2.3" || got.Labels["org.opencontainers.image.licenses"] != "Apache-2.0" {
			t.Errorf("config %+v", got)
		}
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("platforms %q, want %q", platforms, want)
	}

	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"tmp/ 65532", "var/ 0", "var/lib/ 0", "var/lib/small/ 65532",
		"etc/ 0", "etc/ssl/ 0", "etc/ssl/certs/ 0", "etc/ssl/certs/ca-certificates.crt 0", "small 0",
	}
	if got := files(t, img); !slices.Equal(got, want) {
		t.Errorf("files %q\nwant %q", got, want)
	}
}

func files(t *testing.T, img v1.Image) []string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatal(layers, err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(header.Name, ".crt") {
			text, err := io.ReadAll(r)
			if err != nil || header.Mode != 0o644 || !x509.NewCertPool().AppendCertsFromPEM(text) {
				t.Errorf("no certificates in %s, mode %o (%v)", header.Name, header.Mode, err)
			}
		} else if header.Mode != 0o755 {
			t.Errorf("%s: mode %o", header.Name, header.Mode)
		}
		if header.ModTime.Unix() != 0 {
			t.Errorf("%s: time %s", header.Name, header.ModTime)
		}
		owner := " 0"
		if header.Uid == 65532 && header.Gid == 65532 {
			owner = " 65532"
		}
		names = append(names, header.Name+owner)
	}
}

// TestReproducible makes all images in two folders, as anybody does it, and
// compares every file of them.
func TestReproducible(t *testing.T) {
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(repository)
	if err != nil {
		t.Fatal(err)
	}
	var made []map[string][sha256.Size]byte
	for _, folder := range []string{"here", "else/where"} {
		copied := filepath.Join(t.TempDir(), folder)
		for _, entry := range entries {
			if entry.Name() == ".git" || entry.Name() == "bin" {
				continue
			}
			if err := copyTree(filepath.Join(repository, entry.Name()), filepath.Join(copied, entry.Name())); err != nil {
				t.Fatal(err)
			}
		}
		if text, err := exec.Command("make", "-s", "-C", copied, "images", "VERSION=v1.2.3").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		sums := map[string][sha256.Size]byte{}
		files := os.DirFS(filepath.Join(copied, "bin/images"))
		if err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := fs.ReadFile(files, path)
			sums[path] = sha256.Sum256(content)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		made = append(made, sums)
	}
	for _, image := range []string{"ip-masq-agent", "sordino"} {
		for _, file := range []string{image + ".tar", image + "/index.json", image + ".linux-amd64.spdx.json", image + ".linux-arm64.spdx.json"} {
			if _, there := made[0][file]; !there {
				t.Errorf("there is no %s", file)
			}
		}
	}
	if diff := cmp.Diff(made[0], made[1]); diff != "" {
		t.Errorf("the images differ:\n%s", diff)
	}
}

func copyTree(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, info.Mode())
}

func TestSBOM(t *testing.T) {
	binaries, dir := t.TempDir(), t.TempDir()
	if err := testprogram.Build(binaries, testprogram.Agent); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Agent.Write(dir, release, []images.Platform{{Architecture: runtime.GOARCH, Binaries: binaries}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "ip-masq-agent.linux-"+runtime.GOARCH+".spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		SPDXVersion string
		Packages    []struct {
			Name, SPDXID, VersionInfo, LicenseConcluded string
		}
		Relationships []struct{ SPDXElementID, RelationshipType, RelatedSPDXElement string }
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	licences, ids := map[string]string{}, map[string]bool{"SPDXRef-DOCUMENT": true}
	for _, p := range document.Packages {
		if ids[p.SPDXID] || p.VersionInfo == "" {
			t.Errorf("package %+v", p)
		}
		ids[p.SPDXID] = true
		licences[p.Name] = p.LicenseConcluded
	}
	for name, want := range map[string]string{
		"stdlib": "BSD-3-Clause", "github.com/google/nftables": "Apache-2.0",
		"go.yaml.in/yaml/v3": "Apache-2.0 AND MIT", "golang.org/x/sys": "BSD-3-Clause",
	} {
		if licences[name] != want {
			t.Errorf("the licence of %s is %q, want %q", name, licences[name], want)
		}
	}
	for name, licence := range licences {
		if licence == "NOASSERTION" {
			t.Errorf("the licence of %s is not known", name)
		}
	}
	for _, r := range document.Relationships {
		if !ids[r.SPDXElementID] || !ids[r.RelatedSPDXElement] {
			t.Errorf("relationship of something that is not listed: %+v", r)
		}
	}
}

// TestPush pushes with docker's credentials to a registry that wants them.
func TestPush(t *testing.T) {
	dir := t.TempDir()
	digest, err := small.Write(dir, release, []images.Platform{compile(t, "amd64")})
	if err != nil {
		t.Fatal(err)
	}
	behind := registry.New(registry.WithReferrersSupport(true))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "us" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		behind.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")

	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := images.Push(t.Context(), dir, "small", host+"/team"); err == nil {
		t.Fatal("pushed without credentials")
	}
	config, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"username": "us", "password": "secret"}}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), string(config))
	for range 2 { // the second time everything is there
		reference, err := images.Push(t.Context(), dir, "small", host+"/team")
		if err != nil {
			t.Fatal(err)
		}
		if want := host + "/team/small:v1.2.3@" + digest.String(); reference != want {
			t.Errorf("pushed %s, want %s", reference, want)
		}
	}

	repository, err := name.NewRepository(host + "/team/small")
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(basic{})
	index, err := remote.Index(repository.Tag("v1.2.3"), auth)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := index.Digest(); err != nil || got != digest {
		t.Errorf("the tag is %s, want %s (%v)", got, digest, err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	referrers, err := remote.Referrers(repository.Digest(manifest.Manifests[0].Digest.String()), auth)
	if err != nil {
		t.Fatal(err)
	}
	artifacts, err := referrers.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(artifacts.Manifests) != 1 || artifacts.Manifests[0].ArtifactType != "application/spdx+json" {
		t.Fatalf("referrers %+v", artifacts.Manifests)
	}
	sbom, err := remote.Image(repository.Digest(artifacts.Manifests[0].Digest.String()), auth)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := sbom.Layers()
	if err != nil {
		t.Fatal(err)
	}
	content, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	got, err := io.ReadAll(content)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(dir, "small.linux-amd64.spdx.json"))
	if err != nil || string(got) != string(want) {
		t.Errorf("the SBOM in the registry is another than the one beside the image (%v)", err)
	}
}

type basic struct{}

func (basic) Authorization() (*authn.AuthConfig, error) {
	return &authn.AuthConfig{Username: "us", Password: "secret"}, nil
}

func TestWriteTar(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nodes.tar")
	if err := images.WriteTar(file, "test", compile(t, "amd64"), small); err != nil {
		t.Fatal(err)
	}
	content, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if err != nil {
			t.Fatal("no index.json: ", err)
		}
		if header.Name != "index.json" {
			continue
		}
		var index v1.IndexManifest
		if err := json.NewDecoder(r).Decode(&index); err != nil {
			t.Fatal(err)
		}
		if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "localhost/small:test" {
			t.Errorf("index %+v", index)
		}
		return
	}
}

func TestRefused(t *testing.T) {
	amd64 := compile(t, "amd64")
	script := images.Platform{Architecture: "amd64", Binaries: t.TempDir()}
	write(t, filepath.Join(script.Binaries, "small"), "#!/bin/sh\n")
	dynamic := dynamicProgram(t)
	for want, attempt := range map[string]func() error{
		"is not a Linux program": func() error { return images.WriteTar(filepath.Join(t.TempDir(), "t"), "t", script, small) },
		"build it with GOARCH=arm64": func() error {
			return images.WriteTar(filepath.Join(t.TempDir(), "t"), "t", images.Platform{Architecture: "arm64", Binaries: amd64.Binaries}, small)
		},
		"build it first": func() error {
			return images.WriteTar(filepath.Join(t.TempDir(), "t"), "t", images.Platform{Architecture: "amd64", Binaries: t.TempDir()}, small)
		},
		"is not static": func() error { return images.WriteTar(filepath.Join(t.TempDir(), "t"), "t", dynamic, small) },
		"cannot be an image's tag": func() error {
			_, err := small.Write(t.TempDir(), images.Release{Version: "v1+dirty"}, []images.Platform{amd64})
			return err
		},
		"make it first": func() error {
			_, err := images.Push(context.Background(), t.TempDir(), "small", "127.0.0.1:1")
			return err
		},
	} {
		if err := attempt(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// dynamic is a program that needs libraries: this machine's shell.
func dynamicProgram(t *testing.T) images.Platform {
	t.Helper()
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "small"), string(content))
	return images.Platform{Architecture: runtime.GOARCH, Binaries: dir}
}
