package kubetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// Image is the image that every node has: the program internal/kubetest/pod,
// which is also each Pod's first process.
const Image = "kubetest.test/pod:1"

// buildImage compiles the program and writes an archive with its image.
func buildImage(binary, archive string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "sordino/internal/kubetest/pod")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the program of test Pods: %w\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	return WriteImage(archive, Image, "/pod", program)
}

// WriteImage writes an archive with an image of one static program on an empty
// base, as "ctr images import" and "docker load" read it.
func WriteImage(archive, name, entrypoint string, program []byte) error {
	layer, err := archived(file{entrypoint[1:], 0o755, program})
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"Entrypoint": []string{entrypoint}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	all, err := archived(file{"config.json", 0o644, config}, file{"layer.tar", 0o644, layer}, file{"manifest.json", 0o644, manifest})
	if err != nil {
		return err
	}
	return os.WriteFile(archive, all, 0o644)
}

type file struct {
	name    string
	mode    int64
	content []byte
}

func archived(files ...file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: time.Unix(0, 0)})
		if err == nil {
			_, err = w.Write(f.content)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("writing %s: %w", f.name, err), w.Close())
		}
	}
	return out.Bytes(), w.Close()
}
