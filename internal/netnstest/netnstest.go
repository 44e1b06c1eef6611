// Package netnstest gives tests network namespaces of their own, in which they
// may do to the kernel whatever they like.
package netnstest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
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

// lastPort is where a free port was looked for last, from a random beginning:
// in other processes of the same network others are tried.
var lastPort atomic.Uint32

func init() { lastPort.Store(rand.Uint32()) }

// FreePorts are ports of 127.0.0.1 that nobody listens on, for programs that are
// to have the same one from start to start; a test that runs beside this one is
// given others. The kernel gives none of them to a connection meanwhile, as it
// does with those that it finds for a listener: a client that asks a server that
// is away may even be connected to itself.
func FreePorts(n int) ([]int, error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return nil, err
	}
	const first = 10_000
	var above int
	if _, err := fmt.Sscan(string(text), &above); err != nil || above < first+1000 {
		return nil, fmt.Errorf("finding a free port: the machine's connections have the ports %q, and %d to %d should be left", text, first, first+1000)
	}
	var ports []int
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+int(lastPort.Add(1)%uint32(above-first))))
		if err != nil {
			continue
		}
		defer l.Close()
		if ports = append(ports, l.Addr().(*net.TCPAddr).Port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("finding %d free ports: there are %d", n, len(ports))
}

// FreeAddress is 127.0.0.1 with one of the [FreePorts].
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	ports, err := FreePorts(1)
	if err != nil {
		tb.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
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
