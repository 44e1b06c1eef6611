package configfile

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sordino/masq"
)

// Source is one text of a configuration and the name that complaints give it.
type Source struct {
	Name string
	Text []byte
}

// Result is a configuration that can be used.
type Result struct {
	Config   masq.Config
	Warnings []Warning
	// Files are those that were read; none means the defaults.
	Files []string
	// Digest is the SHA-256 of the files' texts in their order, in hexadecimal,
	// as "cat FILES | sha256sum" prints it; empty when there is no file. It is
	// also set when the texts are rejected.
	Digest string
}

// mergedPrefix is what the files of a folder have to begin with to count.
const mergedPrefix = "ip-masq"

// maxSize bounds a file: 100,000 ranges take two megabytes.
const maxSize = 64 << 20

// Load reads the configuration at the path: a file, or a folder whose files
// named ip-masq* are merged in the order of their names. What does not exist
// gives the defaults. The error joins all Problems.
func Load(path string, s Settings) (Result, error) {
	sources, err := readSources(path)
	if err != nil {
		return Result{}, unreadable(path, err)
	}
	return FromSources(sources, s)
}

func unreadable(path string, err error) *Problem {
	return &Problem{Origin: masq.Origin{Source: path, Line: 1, Column: 1}, Message: fmt.Sprintf("reading the configuration: %v", err),
		Fix: "make it readable for the agent", Reason: ReasonUnreadable}
}

func readSources(path string) ([]Source, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	files := []string{path}
	if info.IsDir() {
		files = nil
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, e := range entries { // sorted by name
			file := filepath.Join(path, e.Name())
			// Stat follows the symlinks of a projected ConfigMap.
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && strings.HasPrefix(e.Name(), mergedPrefix) {
				files = append(files, file)
			}
		}
	}
	var sources []Source
	for _, file := range files {
		info, err := os.Stat(file)
		if err == nil && info.Size() > maxSize {
			err = fmt.Errorf("%s has %d bytes; at most %d are read", file, info.Size(), maxSize)
		}
		if err != nil {
			return nil, err
		}
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since: a later look sees the rest
		}
		if err != nil {
			return nil, err
		}
		sources = append(sources, Source{file, text})
	}
	return sources, nil
}

// FromSources decodes and merges texts. None gives the defaults.
func FromSources(sources []Source, s Settings) (Result, error) {
	result, _, err := fromSources(sources, s)
	return result, err
}

// fromSources also reports whether every text was plain; see scanPlain.
func fromSources(sources []Source, s Settings) (result Result, plain bool, err error) {
	result.Digest, plain = digest(sources), true
	var files []parsed
	var problems []error
	for _, source := range sources {
		r := &reader{file: source.Name, settings: s}
		tree, simple, warnings, err := parseTree(source.Name, source.Text)
		plain = plain && simple
		if err != nil {
			problems = append(problems, err)
		} else {
			r.read(tree)
		}
		result.Warnings = slices.Concat(result.Warnings, warnings, r.warnings)
		result.Files = append(result.Files, source.Name)
		problems = append(problems, r.problems...)
		files = append(files, r.out)
	}
	config, err := mergeInto(files, s)
	result.Config = config
	if err := errors.Join(append(problems, err)...); err != nil {
		return Result{Warnings: result.Warnings, Files: result.Files, Digest: result.Digest}, plain, err
	}
	return result, plain, nil
}

func digest(sources []Source) string {
	var texts [][]byte
	for _, s := range sources {
		texts = append(texts, s.Text)
	}
	return Digest(texts...)
}

// Digest is what [Result.Digest] is for a configuration of these texts.
func Digest(texts ...[]byte) string {
	if len(texts) == 0 {
		return ""
	}
	sum := sha256.New()
	for _, text := range texts {
		sum.Write(text)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
