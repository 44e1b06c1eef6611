package projected

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func files(pairs ...string) map[string][]byte {
	out := map[string][]byte{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = []byte(pairs[i+1])
	}
	return out
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestSwap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "on", "the", "way")
	v, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []map[string][]byte{
		files("a", "1"), files("a", "2"), files("a", "3", "b", "1"), files("b", "2"), files(), files("a", ""),
	} {
		if err := v.Swap(want); err != nil {
			t.Fatal(err)
		}
		var visible []string
		for _, name := range names(t, dir) {
			if !strings.HasPrefix(name, "..") {
				visible = append(visible, name)
			}
		}
		if len(visible) != len(want) {
			t.Errorf("there are %v, want %v", visible, want)
		}
		for name, content := range want {
			if got, err := os.ReadFile(v.Path(name)); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: %q %v, want %q", name, got, err, content)
			}
			// As a kubelet does it: name → ..data/name, ..data → ..2026…
			if link, err := os.Readlink(v.Path(name)); err != nil || link != filepath.Join("..data", name) {
				t.Errorf("%s leads to %q %v", name, link, err)
			}
		}
		// ..data and the one folder that it leads to.
		if hidden := len(names(t, dir)) - len(visible); hidden != 2 {
			t.Errorf("%d hidden entries in %v, want 2", hidden, names(t, dir))
		}
	}
}

func TestReadersSeeAllOfOneVersion(t *testing.T) {
	v, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Swap(files("a", "0", "b", "0")); err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() {
			// A folder that is held is one version, until it is taken away.
			dir, err := filepath.EvalSymlinks(v.Path("..data"))
			if err != nil {
				continue
			}
			a, errA := os.ReadFile(filepath.Join(dir, "a"))
			b, errB := os.ReadFile(filepath.Join(dir, "b"))
			if errA == nil && errB == nil && !bytes.Equal(a, b) {
				t.Errorf("a is %q while b is %q", a, b)
			}
			// The path itself always leads to a whole file.
			if text, err := os.ReadFile(v.Path("a")); err == nil && len(text) == 0 {
				t.Error("an empty file was seen")
			}
		}
	}()
	for n := range 100 {
		text := strings.Repeat("x", n+1)
		if err := v.Swap(files("a", text, "b", text)); err != nil {
			t.Error(err)
		}
	}
	over.Store(true)
	<-done
}

func TestASwapThatWasCutOffIsCleanedUpByTheNext(t *testing.T) {
	dir := t.TempDir()
	v, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Swap(files("a", "1")); err != nil {
		t.Fatal(err)
	}
	// What a killed writer leaves: its folder, and the link that was not renamed.
	if err := os.Mkdir(filepath.Join(dir, "..killed"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..killed", filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	again, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Swap(files("a", "2")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(again.Path("a")); err != nil || string(got) != "2" {
		t.Errorf("%q %v", got, err)
	}
	if left := names(t, dir); slices.Contains(left, "..killed") || slices.Contains(left, "..data_tmp") {
		t.Errorf("left: %v", left)
	}
}

func TestASwapThatFailsLeavesTheOldFiles(t *testing.T) {
	dir := t.TempDir()
	v, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Swap(files("a", "1")); err != nil {
		t.Fatal(err)
	}
	before := names(t, dir)
	for _, name := range []string{"b/c", "", "..data", "..", ".", "../b"} {
		if err := v.Swap(files("a", "2", name, "x")); err == nil || !strings.Contains(err.Error(), "projecting files") {
			t.Errorf("%q: %v", name, err)
		}
		if got, err := os.ReadFile(v.Path("a")); err != nil || string(got) != "1" {
			t.Errorf("after %q a is %q %v", name, got, err)
		}
		if after := names(t, dir); !slices.Equal(before, after) {
			t.Errorf("after %q there are %v, before %v", name, after, before)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := v.Swap(files("a", "2")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its folder: %v", err)
	}
}
