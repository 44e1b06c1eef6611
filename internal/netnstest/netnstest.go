// Package netnstest gives tests network namespaces of their own, in which they
// may do to the kernel whatever they like.
package netnstest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"sordino/internal/netns"
)

// Required is the variable that makes a machine without namespaces, or
// without a program that a test needs, a failure instead of a skip. "make
// test" sets it.
const Required = "SORDINO_KERNEL_TESTS"

// New makes a namespace for the length of the test.
func New(tb testing.TB) *netns.NS {
	tb.Helper()
	ns, err := netns.New()
	if err != nil {
		missing(tb, "this test needs network namespaces: %v", err)
	}
	tb.Cleanup(func() { ns.Close() })
	return ns
}

// Program returns the path of a program that a test compares with.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(tb, "this test needs the program %s: %v", name, err)
	}
	return path
}

func missing(tb testing.TB, format string, args ...any) {
	tb.Helper()
	if os.Getenv(Required) != "" {
		tb.Fatalf(format, args...)
	}
	tb.Skipf(format, args...)
}

// Do runs fn inside the namespace and fails the test on error.
func Do(tb testing.TB, ns *netns.NS, fn func() error) {
	tb.Helper()
	if err := ns.Do(fn); err != nil {
		tb.Fatal(err)
	}
}

// Run runs a program inside the namespace and returns what it printed.
func Run(tb testing.TB, ns *netns.NS, input string, name string, args ...string) string {
	tb.Helper()
	out, err := Try(ns, input, name, args...)
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run for commands that may fail.
func Try(ns *netns.NS, input string, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		return out.String(), err
	}
	err := cmd.Wait()
	return out.String(), err
}
