package testprogram

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuilt(t *testing.T) {
	top := t.TempDir()
	inside := filepath.Join(top, "some", "package")
	for _, dir := range []string{inside, filepath.Join(top, "bin")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(inside)
	if dir, err := Built(); err == nil || !strings.Contains(err.Error(), "no go.mod") {
		t.Errorf("outside the repository: %s, %v", dir, err)
	}
	for _, file := range []string{"go.mod", "bin/ip-masq-agent"} {
		if err := os.WriteFile(filepath.Join(top, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if dir, err := Built(); err == nil || !strings.Contains(err.Error(), "make build") {
			t.Errorf("not built: %s, %v", dir, err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "bin", "sordino"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if dir, err := Built(); err != nil || dir != filepath.Join(top, "bin") {
		t.Errorf("built: %s, %v", dir, err)
	}
}
