// Package testprogram is where tests get the two programs from: the ones that
// "make build" left in bin, or ones that it builds for the test.
//
// It owns no flags of the compiler. What a test runs is built by the Makefile,
// as what people run is; so it refuses a machine without make.
//
// To debug a test that runs an old program: Built never builds. "make build"
// does, and "make test" begins with it.
package testprogram

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// The targets of the Makefile.
const (
	Both  = "build"
	Agent = "build-agent"
)

// Build builds programs into a folder. Their version is "devel".
func Build(dir, target string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	return run(target, "BIN="+dir, "VERSION=devel")
}

func run(target string, variables ...string) error {
	top, err := root()
	if err != nil {
		return err
	}
	out, err := exec.Command("make", append([]string{"-s", "-C", top, target}, variables...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("building programs for the tests: make %s: %w\n%s", target, err, out)
	}
	return nil
}

// Images builds both programs, and packs them as "make images" does: a folder
// gets the images' archives for two platforms, NAME.tar, and the one that is
// returned has the programs. Those of the other platform than this machine's do
// nothing, since real ones take minutes to build.
func Images(dir string) (programs string, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	for _, arch := range []string{"amd64", "arm64"} {
		of := filepath.Join(dir, "linux-"+arch)
		if err := os.Mkdir(of, 0o755); err != nil {
			return "", err
		}
		if arch == runtime.GOARCH {
			programs = of
			err = Build(of, Both)
		} else {
			err = Empty(of, arch, "ip-masq-agent", "sordino")
		}
		if err != nil {
			return "", err
		}
	}
	return programs, run("pack", "IMAGES="+dir, "VERSION=devel")
}

// Empty builds programs that do nothing for linux/arch into a folder: what is
// packed for another machine than this one, in a moment.
func Empty(dir, arch string, names ...string) error {
	source, err := os.MkdirTemp("", "sordino-empty-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(source)
	for name, text := range map[string]string{"go.mod": "module empty\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() {}\n"} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, name := range names {
		command := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, name), ".")
		command.Dir = source
		command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("building a program that does nothing: %w\n%s", err, out)
		}
	}
	return nil
}

// Built is the folder with both programs.
func Built() (string, error) {
	top, err := root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(top, "bin")
	for _, name := range []string{"ip-masq-agent", "sordino"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("these tests run the built programs: %w; \"make build\" makes them", err)
		}
	}
	return dir, nil
}

// root is the repository: a test's working folder is its package's.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", errors.New("no go.mod in a folder above the working one: run this inside the repository")
		}
		dir = filepath.Dir(dir)
	}
}
