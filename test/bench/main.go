// Bench measures the agent's and the server's speed and size against baselines of the same
// run, prints a table, and writes it to a file. It needs network namespaces
// of its own: run it with "make bench".
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
)

// row is one line of the table.
type row struct {
	what, measured, baseline, ratio, target string
	met                                     bool
}

// measurement fills some rows.
type measurement struct {
	name string
	run  func(context.Context, *bench) ([]row, error)
}

var measurements = []measurement{
	{"swap", configSwap}, {"drift", drift}, {"load", firstLoad}, {"change", oneChanged},
	{"connections", newConnections}, {"forwarding", forwarding}, {"endurance", endurance}, {"idle", idle},
	{"create", createAccepted}, {"reading", reading}, {"startup", startup}, {"lab-three-nodes", threeNodes}, {"lab-twenty", twentyAtOnce},
	{"kubernetes", kubernetes}, {"fleet", fleet},
}

// bench is what all measurements share.
type bench struct {
	agent  string // the agent program
	server string // the program sordino
	dir    string // a folder for one measurement
	log    io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	out := flags.String("o", "", "write the table to this `file` too")
	agent := flags.String("agent", "bin/ip-masq-agent", "the agent `program`")
	server := flags.String("server", "bin/sordino", "the `program` sordino")
	only := flags.String("run", ".", "run the measurements whose names match this `pattern`: "+names())
	if err := flags.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if *out != "" && *only != "." {
		return errors.New("-o writes the whole table; leave -run out")
	}
	b := &bench{log: stderr}
	if b.agent, err = filepath.Abs(*agent); err != nil {
		return err
	}
	if b.server, err = filepath.Abs(*server); err != nil {
		return err
	}
	var rows []row
	missed := 0
	for _, m := range measurements {
		if !pattern.MatchString(m.name) {
			continue
		}
		fmt.Fprintf(stderr, "measuring %s\n", m.name)
		if b.dir, err = os.MkdirTemp("", "sordino-bench-"); err != nil {
			return err
		}
		got, err := m.run(ctx, b)
		if removeErr := os.RemoveAll(b.dir); err == nil {
			err = removeErr
		}
		if err != nil {
			return fmt.Errorf("measuring %s: %w", m.name, err)
		}
		for _, r := range got {
			if !r.met {
				missed++
			}
		}
		rows = append(rows, got...)
	}
	table := render(rows)
	fmt.Fprint(stdout, table)
	if *out != "" {
		if err := os.WriteFile(*out, []byte(document(table)), 0o644); err != nil {
			return err
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d figures are not what they should be", missed)
	}
	return nil
}

func names() string {
	var all []string
	for _, m := range measurements {
		all = append(all, m.name)
	}
	return strings.Join(all, ", ")
}

func render(rows []row) string {
	cells := [][]string{{"what", "measured", "baseline", "ratio", "to reach", ""}}
	for _, r := range rows {
		verdict := "missed"
		switch {
		case r.target == "":
			verdict = ""
		case r.met:
			verdict = "ok"
		}
		cells = append(cells, []string{r.what, r.measured, r.baseline, r.ratio, r.target, verdict})
	}
	widths := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			widths[i] = max(widths[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for n, line := range cells {
		for i, c := range line {
			fmt.Fprintf(&b, "| %-*s ", widths[i], c)
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range widths {
				fmt.Fprintf(&b, "|%s", strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

func document(table string) string {
	return fmt.Sprintf(`# Benchmarks

"make bench" measures these and writes this file. Every baseline is measured
in the same run on the same machine, unless it is said to be quoted, so the
ratios are what can be compared; run it on a machine that does nothing else:
the times are this machine's: %s, %d processors, Linux %s.

%s
How each is measured stands beside its code in `+"`test/bench`"+`. "bench -run NAME"
measures one of them: %s.
`, processor(), runtime.NumCPU(), kernel(), table, names())
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	var name syscall.Utsname
	if err := syscall.Uname(&name); err != nil {
		return "unknown"
	}
	var b bytes.Buffer
	for _, c := range name.Release {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	version, _, _ := strings.Cut(b.String(), "-")
	return version
}

// sub is the bench with a folder of its own in the measurement's.
func (b *bench) sub(name string) *bench {
	s := *b
	s.dir = filepath.Join(b.dir, name)
	return &s
}

// program runs a program to its end.
func program(name string, args ...string) *exec.Cmd { return exec.Command(name, args...) }
