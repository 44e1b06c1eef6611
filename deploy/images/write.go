package images

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// tagAnnotation is where a layout has an image's tag; nameAnnotation is
	// where containerd looks for the whole name.
	tagAnnotation  = "org.opencontainers.image.ref.name"
	nameAnnotation = "io.containerd.image.name"

	sbomType = "application/spdx+json"
)

var tagSyntax = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// Write makes the image for all platforms below dir:
//
//	NAME/                  the OCI layout, with an SBOM as each platform's referrer
//	NAME.tar               the image alone, to import on nodes, as localhost/NAME:VERSION and :latest
//	NAME.linux-ARCH.spdx.json  the SBOMs
//
// It returns the digest that the image has in a registry.
func (i Image) Write(dir string, r Release, platforms []Platform) (v1.Hash, error) {
	if !tagSyntax.MatchString(r.Version) {
		return v1.Hash{}, fmt.Errorf("the version %q cannot be an image's tag: letters, digits, dots, dashes and underscores only", r.Version)
	}
	platforms = slices.SortedFunc(slices.Values(platforms), func(a, b Platform) int { return cmp.Compare(a.Architecture, b.Architecture) })
	index, all, err := i.index(r, platforms)
	if err != nil {
		return v1.Hash{}, err
	}
	folder, err := newLayout(filepath.Join(dir, i.Name))
	if err != nil {
		return v1.Hash{}, err
	}
	if err := folder.AppendIndex(index, layout.WithAnnotations(map[string]string{tagAnnotation: r.Version})); err != nil {
		return v1.Hash{}, err
	}
	for n, img := range all {
		p := platforms[n]
		document, err := i.sbom(r, p, img)
		if err != nil {
			return v1.Hash{}, err
		}
		if err := os.WriteFile(filepath.Join(dir, i.Name+".linux-"+p.Architecture+".spdx.json"), document, 0o644); err != nil {
			return v1.Hash{}, err
		}
		referrer, err := referrer(img, document)
		if err != nil {
			return v1.Hash{}, err
		}
		if err := folder.AppendImage(referrer); err != nil {
			return v1.Hash{}, err
		}
	}
	if err := writeTar(filepath.Join(dir, i.Name+".tar"), func(folder layout.Path) error {
		for _, tag := range []string{r.Version, "latest"} {
			if err := folder.AppendIndex(index, named(i.Name, tag)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}

// WriteTar makes one archive of images for one platform, as localhost/NAME:TAG,
// to import with "ctr images import". Nothing is compressed: it is for tests
// and for nodes beside this machine.
func WriteTar(file, tag string, p Platform, images ...Image) error {
	return writeTar(file, func(folder layout.Path) error {
		for _, i := range images {
			img, err := i.build(Release{Version: tag}, p, false)
			if err != nil {
				return err
			}
			if err := folder.AppendImage(img, named(i.Name, tag)); err != nil {
				return err
			}
		}
		return nil
	})
}

func named(image, tag string) layout.Option {
	return layout.WithAnnotations(map[string]string{
		tagAnnotation: tag, nameAnnotation: Registry + "/" + image + ":" + tag,
	})
}

func newLayout(dir string) (layout.Path, error) {
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return layout.Write(dir, empty.Index)
}

// referrer is the SBOM as an artifact whose subject is the image: registries
// list it by the image's digest.
func referrer(subject v1.Image, document []byte) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), sbomType)
	img, err := mutate.AppendLayers(img, static.NewLayer(document, sbomType))
	if err != nil {
		return nil, err
	}
	descriptor, err := partial.Descriptor(subject)
	if err != nil {
		return nil, err
	}
	return mutate.Subject(img, v1.Descriptor{
		MediaType: descriptor.MediaType, Digest: descriptor.Digest, Size: descriptor.Size,
	}).(v1.Image), nil
}

// writeTar makes an archive of a layout, in place of one that was there.
func writeTar(file string, fill func(layout.Path) error) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".images-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	folder, err := newLayout(filepath.Join(dir, "layout"))
	if err != nil {
		return err
	}
	if err := fill(folder); err != nil {
		return err
	}
	part := filepath.Join(dir, "tar")
	out, err := os.Create(part)
	if err != nil {
		return err
	}
	err = archive(out, string(folder))
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return os.Rename(part, file)
}

func archive(out io.Writer, dir string) error {
	w := tar.NewWriter(out)
	// WalkDir goes in lexical order: the same archive every time.
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}
		if entry.IsDir() {
			return w.WriteHeader(header)
		}
		content, err := os.Open(file)
		if err != nil {
			return err
		}
		defer content.Close()
		info, err := content.Stat()
		if err != nil {
			return err
		}
		header.Typeflag, header.Name, header.Mode, header.Size = tar.TypeReg, name, 0o644, info.Size()
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = io.Copy(w, content)
		return err
	})
	return errors.Join(err, w.Close())
}

// Push brings the layout that Write made below dir to registry (which may have
// a path, as in registry.example.com/team), with the credentials that docker
// has for it, and returns the reference with the digest. The tag goes last:
// who finds it finds everything else.
func Push(ctx context.Context, dir, image, registry string) (string, error) {
	folder, err := layout.FromPath(filepath.Join(dir, image))
	if err != nil {
		return "", fmt.Errorf("reading the layout of %s: %w; make it first", image, err)
	}
	repository, err := name.NewRepository(registry + "/" + image)
	if err != nil {
		return "", fmt.Errorf("the registry %q: %w", registry, err)
	}
	all, err := folder.ImageIndex()
	if err != nil {
		return "", err
	}
	manifest, err := all.IndexManifest()
	if err != nil {
		return "", err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	for _, d := range manifest.Manifests {
		if d.MediaType != types.OCIManifestSchema1 {
			continue
		}
		referrer, err := all.Image(d.Digest)
		if err != nil {
			return "", err
		}
		if err := remote.Write(repository.Digest(d.Digest.String()), referrer, options...); err != nil {
			return "", fmt.Errorf("pushing the SBOM of %s: %w", repository, err)
		}
	}
	var reference string
	for _, d := range manifest.Manifests {
		if tag := d.Annotations[tagAnnotation]; tag != "" {
			index, err := all.ImageIndex(d.Digest)
			if err != nil {
				return "", err
			}
			if err := remote.WriteIndex(repository.Tag(tag), index, options...); err != nil {
				return "", fmt.Errorf("pushing %s: %w", repository.Tag(tag), err)
			}
			reference = repository.Tag(tag).String() + "@" + d.Digest.String()
		}
	}
	return reference, nil
}
