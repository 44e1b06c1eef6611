package exitstatus

import (
	"errors"
	"io/fs"
	"os/exec"
	"testing"
)

func TestOf(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 128 + 15, "kill -KILL $$": 128 + 9} {
		if got, err := Of(exec.Command("sh", "-c", script).Run()); got != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", script, got, err, want)
		}
	}
	if _, err := Of(exec.Command("/nowhere").Run()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what did not start: %v", err)
	}
}
