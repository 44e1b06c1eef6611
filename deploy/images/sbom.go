package images

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/licensecheck"
	"golang.org/x/mod/module"
)

// The parts of SPDX 2.3 that a list of modules takes.
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		DataLicense   string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		Name             string         `json:"name"`
		ID               string         `json:"SPDXID"`
		Version          string         `json:"versionInfo,omitempty"`
		DownloadLocation string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		LicenseConcluded string         `json:"licenseConcluded"`
		LicenseDeclared  string         `json:"licenseDeclared"`
		Copyright        string         `json:"copyrightText"`
		Purpose          string         `json:"primaryPackagePurpose,omitempty"`
		ExternalRefs     []spdxExternal `json:"externalRefs,omitempty"`
	}
	spdxExternal struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const unknown = "NOASSERTION"

// sbom lists what the image's programs were made of, as they themselves say.
func (i Image) sbom(r Release, p Platform, img v1.Image) ([]byte, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	const root = "SPDXRef-image"
	document := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT",
		Name: i.Name + " " + r.Version + " linux/" + p.Architecture,
		// A name that only this image has; nothing is served there.
		Namespace: "https://sordino.dev/spdx/" + i.Name + "/" + digest.String(),
		Creation:  spdxCreation{Created: r.Created.UTC().Format(time.RFC3339), Creators: []string{"Tool: sordino-images"}},
		Packages: []spdxPackage{{
			Name: i.Name, ID: root, Version: r.Version, Purpose: "CONTAINER", DownloadLocation: unknown,
			LicenseConcluded: "Apache-2.0", LicenseDeclared: "Apache-2.0", Copyright: unknown,
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", root}},
	}
	listed := map[string]bool{}
	for _, name := range slices.Sorted(slices.Values(i.Programs)) {
		file := filepath.Join(p.Binaries, path.Base(name))
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading what %s is made of: %w", file, err)
		}
		program := spdxPackage{
			Name: path.Base(name), ID: spdxID("program", path.Base(name)), Version: r.Version, Purpose: "APPLICATION", DownloadLocation: unknown,
			LicenseConcluded: "Apache-2.0", LicenseDeclared: "Apache-2.0", Copyright: unknown,
		}
		document.Packages = append(document.Packages, program)
		document.Relationships = append(document.Relationships, spdxRelationship{root, "CONTAINS", program.ID})
		modules := []spdxPackage{{
			Name: "stdlib", ID: spdxID("module", "stdlib", info.GoVersion), Version: strings.TrimPrefix(info.GoVersion, "go"),
			DownloadLocation: "https://go.dev/dl/", LicenseConcluded: "BSD-3-Clause", LicenseDeclared: "BSD-3-Clause", Copyright: unknown,
			ExternalRefs: purl("stdlib", strings.TrimPrefix(info.GoVersion, "go")),
		}}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			licence, err := licenceOf(m.Path, m.Version)
			if err != nil {
				return nil, err
			}
			modules = append(modules, spdxPackage{
				Name: m.Path, ID: spdxID("module", m.Path, m.Version), Version: m.Version,
				DownloadLocation: unknown, LicenseConcluded: licence, LicenseDeclared: licence, Copyright: unknown,
				ExternalRefs: purl(m.Path, m.Version),
			})
		}
		for _, m := range modules {
			if !listed[m.ID] {
				listed[m.ID] = true
				document.Packages = append(document.Packages, m)
			}
			document.Relationships = append(document.Relationships, spdxRelationship{program.ID, "DEPENDS_ON", m.ID})
		}
	}
	if i.Authorities {
		version := ""
		if own, ok := debug.ReadBuildInfo(); ok {
			for _, m := range own.Deps {
				if m.Path == authoritiesModule {
					version = m.Version
				}
			}
		}
		certificates := spdxPackage{
			Name: "ca-certificates", ID: spdxID("file", "ca-certificates"), Version: version, Purpose: "FILE", DownloadLocation: unknown,
			LicenseConcluded: "MPL-2.0", LicenseDeclared: "MPL-2.0", Copyright: unknown, ExternalRefs: purl(authoritiesModule, version),
		}
		document.Packages = append(document.Packages, certificates)
		document.Relationships = append(document.Relationships, spdxRelationship{root, "CONTAINS", certificates.ID})
	}
	text, err := json.MarshalIndent(document, "", "  ")
	return append(text, '\n'), err
}

func purl(module, version string) []spdxExternal {
	return []spdxExternal{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(module) + "@" + version}}
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func spdxID(parts ...string) string {
	return "SPDXRef-" + notInID.ReplaceAllString(strings.Join(parts, "-"), "-")
}

var moduleCache = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	return string(bytes.TrimSpace(out)), err
})

// licenceOf reads a module's licence files where the build has just read the
// module. What is not there, or not known for sure, is not asserted.
func licenceOf(modulePath, version string) (string, error) {
	cache, err := moduleCache()
	if err != nil {
		return "", fmt.Errorf("asking go where its modules are: %w", err)
	}
	escaped, err := module.EscapePath(modulePath)
	if err != nil {
		return "", err
	}
	escapedVersion, err := module.EscapeVersion(version)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, filepath.FromSlash(escaped)+"@"+escapedVersion)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return unknown, nil
	}
	if err != nil {
		return "", err
	}
	found := map[string]bool{}
	for _, e := range entries {
		upper := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(upper, "LICENSE") && !strings.HasPrefix(upper, "LICENCE") && !strings.HasPrefix(upper, "COPYING") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		coverage := licensecheck.Scan(text)
		if coverage.Percent < 50 {
			continue
		}
		for _, m := range coverage.Match {
			if !m.IsURL {
				found[m.ID] = true
			}
		}
	}
	if len(found) == 0 {
		return unknown, nil
	}
	var ids []string
	for id := range found {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return strings.Join(ids, " AND "), nil
}
