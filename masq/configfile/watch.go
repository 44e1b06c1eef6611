package configfile

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Watch calls changed whenever the configuration at the path may have changed:
// written, replaced, removed, made later, or the ..data symlink of a projected
// ConfigMap swapped. Notifications come first, and every poll interval the
// files are looked at, for file systems that notify nobody. It calls changed
// once when it begins to listen, and ends with the context.
func Watch(ctx context.Context, path string, poll time.Duration, changed func(), log *slog.Logger) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", path, err)
	}
	defer watcher.Close()
	watched := map[string]bool{}
	arm := func() {
		for _, dir := range folders(path) {
			if !watched[dir] && watcher.Add(dir) == nil {
				watched[dir] = true
			}
		}
	}
	arm()
	last := fingerprint(path)
	changed() // whatever happened before somebody listened
	var settle <-chan time.Time
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, open := <-watcher.Events:
			if !open {
				return fmt.Errorf("watching %s: the notifications ended", path)
			}
			if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
				delete(watched, event.Name)
			}
			arm()
			now := fingerprint(path)
			// Two writes can leave the same fingerprint, the clock of files being
			// coarse. Other files of the folder, a log perhaps, do not matter.
			if now == last && !(event.Has(fsnotify.Write) && concerns(path, event.Name)) {
				continue
			}
			last = now
			if emptied(event.Name) {
				settle = time.After(settleTime)
				continue
			}
			changed()
		case <-settle:
			settle = nil
			changed()
		case err := <-watcher.Errors:
			// An overflow, mostly: something changed, and nobody knows what.
			log.Debug("watching the configuration", "error", err)
			changed()
		case <-ticker.C:
			for dir := range watched {
				if _, err := os.Stat(dir); err != nil {
					delete(watched, dir)
				}
			}
			arm()
			if now := fingerprint(path); now != last {
				last = now
				changed()
			}
		}
	}
}

// concerns reports whether the file is the configuration, or one of its folder's.
func concerns(path, file string) bool {
	path, file = filepath.Clean(path), filepath.Clean(file)
	return file == path || filepath.Dir(file) == path && strings.HasPrefix(filepath.Base(file), mergedPrefix)
}

// settleTime is what a writer gets that empties a file before it fills it, as
// a shell does; an empty configuration would mean the defaults.
const settleTime = 100 * time.Millisecond

func emptied(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Size() == 0
}

// folders are what has to be watched to see the path come, go and change: the
// path itself if it is a folder, its parent, and the nearest one that exists.
func folders(path string) []string {
	var out []string
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		out = append(out, path)
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return append(out, dir)
		}
		if dir == filepath.Dir(dir) {
			return out
		}
	}
}

// fingerprint changes when a file behind the path does: by inode, size and
// modification time, through symlinks.
func fingerprint(path string) string {
	var out string
	add := func(file string) {
		if info, err := os.Stat(file); err == nil {
			out += fmt.Sprintf("%s %v %d %d\n", file, inode(info), info.Size(), info.ModTime().UnixNano())
		}
	}
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		add(path)
		return out
	}
	files, _ := filepath.Glob(filepath.Join(path, mergedPrefix+"*"))
	for _, f := range files {
		add(f)
	}
	return out
}
