// Package projected lays files out as a kubelet projects a ConfigMap into a
// Pod: every file is a symlink into "..data", which is a symlink to a folder
// that is replaced whole, so that readers see all of the old or all of the new.
package projected

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const current = "..data"

// Volume is one such folder. It is for one writer at a time.
type Volume struct{ dir string }

// New makes the folder if it is not there.
func New(dir string) (*Volume, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a projected volume: %w", err)
	}
	return &Volume{dir}, nil
}

// Path is where a file of the volume is read.
func (v *Volume) Path(name string) string { return filepath.Join(v.dir, name) }

// Swap makes the volume hold exactly these files, all at once.
func (v *Volume) Swap(files map[string][]byte) error {
	for name := range files {
		if name == "" || name == "." || strings.HasPrefix(name, "..") || strings.ContainsRune(name, filepath.Separator) {
			return fmt.Errorf("projecting files: %q cannot be a file's name here: write one without / and without .. in front", name)
		}
	}
	fresh, err := os.MkdirTemp(v.dir, "..")
	if err != nil {
		return fmt.Errorf("projecting files: %w", err)
	}
	if err := v.swap(filepath.Base(fresh), files); err != nil {
		return errors.Join(fmt.Errorf("projecting files: %w", err), os.RemoveAll(fresh))
	}
	return nil
}

func (v *Volume) swap(fresh string, files map[string][]byte) error {
	if err := os.Chmod(filepath.Join(v.dir, fresh), 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(v.dir, fresh, name), content, 0o644); err != nil {
			return err
		}
	}
	// A symlink cannot be overwritten, but another can be renamed over it.
	next := filepath.Join(v.dir, current+"_tmp")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(fresh, next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(v.dir, current)); err != nil {
		return err
	}
	for name := range files {
		if err := os.Symlink(filepath.Join(current, name), v.Path(name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// What is not of this version goes: files, the version before, and what a
	// writer left that was killed.
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, keep := files[e.Name()]; keep || e.Name() == current || e.Name() == fresh {
			continue
		}
		if err := os.RemoveAll(v.Path(e.Name())); err != nil {
			return err
		}
	}
	return nil
}
