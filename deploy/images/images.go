// Package images makes the project's container images from static binaries,
// with no container engine: one layer on an empty base, the same bits whenever
// and wherever the same binaries go in.
//
// It packs; it does not compile: "make images" compiles first. It refuses what
// would not run: a binary that is missing, or one of another platform than its
// image. To see what it made: every image is an OCI layout folder, which
// skopeo, oras and crane read, and "tar tf" lists the archive beside it.
package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// Registry is where the images are from that were never pushed: a node looks
// for them nowhere else than in what was imported, and a name that nobody
// imported leads to no stranger.
const Registry = "localhost"

// Image is what goes into one image.
type Image struct {
	// Name is its repository, without a registry: "ip-masq-agent".
	Name string
	// Title and Description are for people who list a registry.
	Title, Description string
	// Programs are absolute paths in the image. The program runs that is the first.
	Programs []string
	// User is who runs it, as UID:GID; root without one.
	User string
	// Folders are made, empty and the User's: a read-only root gets none later.
	Folders []string
	// Authorities puts Mozilla's list where Go looks for it: for an OIDC issuer.
	Authorities bool
}

// Agent is the image of the node agent.
var Agent = Image{
	Name:        "ip-masq-agent",
	Title:       "ip-masq-agent",
	Description: "Gives Pods the address of their node wherever a Pod's address must not be seen",
	Programs:    []string{"/ip-masq-agent"},
	Folders:     []string{"/etc/config", "/run/ip-masq-agent", "/var/lib/ip-masq-agent"},
}

// Server is the image of the environments server, which has the agent in it
// too: that is what it puts on nodes of its own, and the gate of its workers.
var Server = Image{
	Name:        "sordino",
	Title:       "sordino",
	Description: "Serves the Cloud Composer environments API, with environments whose Pods have their node's address",
	Programs:    []string{"/sordino", "/ip-masq-agent"},
	User:        "65532:65532",
	Folders:     []string{"/etc/sordino", "/tmp", "/var/lib/sordino"},
	Authorities: true,
}

// Release is what the images of one version have in common.
type Release struct {
	Version string
	// Revision is the commit, Source where it can be read. Empty ones are left out.
	Revision, Source string
	// Created is the commit's time, not the clock's: the clock would make
	// every build another image.
	Created time.Time
}

// Platform is what a folder of binaries is for.
type Platform struct {
	Architecture string // as Go and OCI call it: amd64, arm64
	Binaries     string // the folder
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

func (i Image) annotations(r Release) map[string]string {
	a := map[string]string{
		"title": i.Title, "description": i.Description, "licenses": "Apache-2.0",
		"version": r.Version, "revision": r.Revision, "source": r.Source,
	}
	if !r.Created.IsZero() {
		a["created"] = r.Created.UTC().Format(time.RFC3339)
	}
	named := map[string]string{}
	for key, value := range a {
		if value != "" {
			named["org.opencontainers.image."+key] = value
		}
	}
	return named
}

// build makes the image for one platform. Without compression it takes a
// fraction of the time, and more room.
func (i Image) build(r Release, p Platform, compress bool) (v1.Image, error) {
	layer, err := i.layer(p, compress)
	if err != nil {
		return nil, fmt.Errorf("making the image %s for linux/%s: %w", i.Name, p.Architecture, err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: r.Created.UTC()}, CreatedBy: "make images"},
	})
	if err != nil {
		return nil, err
	}
	img, err = mutate.ConfigFile(img, i.config(r, p, img))
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(img, i.annotations(r)).(v1.Image), nil
}

func (i Image) config(r Release, p Platform, img v1.Image) *v1.ConfigFile {
	config, err := img.ConfigFile()
	if err != nil { // it was made in memory two lines ago
		panic(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", p.Architecture
	config.Created = v1.Time{Time: r.Created.UTC()}
	config.Config = v1.Config{
		Entrypoint: i.Programs[:1], User: i.User, WorkingDir: "/",
		Env: []string{"PATH=/"}, Labels: i.annotations(r),
	}
	return config
}

// layer is everything that is in the image.
func (i Image) layer(p Platform, compress bool) (v1.Layer, error) {
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	var uid, gid int
	if i.User != "" {
		if _, err := fmt.Sscanf(i.User, "%d:%d", &uid, &gid); err != nil {
			return nil, fmt.Errorf("the user %q is not UID:GID", i.User)
		}
	}
	made := map[string]bool{"/": true}
	var folder func(name string, uid, gid int) error
	folder = func(name string, uid, gid int) error {
		if made[name] {
			return nil
		}
		made[name] = true
		if err := folder(path.Dir(name), 0, 0); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeDir, Name: strings.TrimPrefix(name, "/") + "/", Mode: 0o755,
			Uid: uid, Gid: gid, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		})
	}
	for _, name := range slices.Sorted(slices.Values(i.Folders)) {
		if err := folder(name, uid, gid); err != nil {
			return nil, err
		}
	}
	if i.Authorities {
		if err := folder(path.Dir(authoritiesFile), 0, 0); err != nil {
			return nil, err
		}
		if err := addFile(w, authoritiesFile, 0o644, authorities()); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(slices.Values(i.Programs)) {
		if err := addProgram(w, name, p); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if !compress {
		return static.NewLayer(files.Bytes(), types.OCIUncompressedLayer), nil
	}
	return compressed(files.Bytes())
}

func addProgram(w *tar.Writer, name string, p Platform) error {
	file := filepath.Join(p.Binaries, path.Base(name))
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%w; build it first", err)
	}
	program, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("%s is not a Linux program: %w", file, err)
	}
	if want, known := machines[p.Architecture]; !known || program.Machine != want {
		return fmt.Errorf("%s is for %s, not for %s: build it with GOARCH=%s", file, program.Machine, p.Architecture, p.Architecture)
	}
	if slices.ContainsFunc(program.Progs, func(h *elf.Prog) bool { return h.Type == elf.PT_INTERP }) {
		return fmt.Errorf("%s is not static, and there are no libraries in the image: build it with CGO_ENABLED=0", file)
	}
	return addFile(w, name, 0o755, content)
}

func addFile(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: mode,
		Size: int64(len(content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

const (
	authoritiesFile   = "/etc/ssl/certs/ca-certificates.crt"
	authoritiesModule = "golang.org/x/crypto/x509roots/fallback"
)

// authorities are those of a module, not of the machine that builds: the same
// everywhere. An authority that is trusted with conditions is left out, because
// a file of certificates cannot say them.
func authorities() []byte {
	var file bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			// Writing to a buffer does not go wrong.
			_ = pem.Encode(&file, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
		}
	}
	return file.Bytes()
}

// compressed is a layer of which everything is known at once: the library's own
// would compress anew for each question.
func compressed(files []byte) (v1.Layer, error) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(files); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	diffID, _, err := v1.SHA256(bytes.NewReader(files))
	if err != nil {
		return nil, err
	}
	return &gzipLayer{Layer: static.NewLayer(packed.Bytes(), types.OCILayer), files: files, diffID: diffID}, nil
}

type gzipLayer struct {
	v1.Layer
	files  []byte
	diffID v1.Hash
}

func (l *gzipLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func (l *gzipLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.files)), nil
}

// index is the image for all its platforms, and each of them.
func (i Image) index(r Release, platforms []Platform) (v1.ImageIndex, []v1.Image, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var all []v1.Image
	for _, p := range platforms {
		img, err := i.build(r, p, true)
		if err != nil {
			return nil, nil, err
		}
		descriptor, err := partial.Descriptor(img)
		if err != nil {
			return nil, nil, err
		}
		descriptor.Platform = &v1.Platform{OS: "linux", Architecture: p.Architecture}
		descriptor.Annotations = nil
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: *descriptor})
		all = append(all, img)
	}
	return mutate.Annotations(index, i.annotations(r)).(v1.ImageIndex), all, nil
}
