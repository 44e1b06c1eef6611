package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// startup starts the real program with many environments stored, and reads
// them all once, so that its memory is what they cost. See fill for what is
// stored. The baseline is the same program with none.
func startup(ctx context.Context, b *bench) ([]row, error) {
	full, empty := filepath.Join(b.dir, "full"), filepath.Join(b.dir, "empty")
	if err := fill(ctx, full); err != nil {
		return nil, err
	}
	measure := func(dir string) (ready time.Duration, memory int64, err error) {
		var all []time.Duration
		for range 5 {
			s, err := startServer(ctx, b, dir)
			if err != nil {
				return 0, 0, err
			}
			all = append(all, s.ready)
			for token := "-"; token != "" && err == nil; {
				token, err = page(ctx, s.Client, strings.TrimPrefix(token, "-"))
			}
			var most int64
			if err == nil {
				most, err = s.memory()
			}
			memory = max(memory, most)
			if err := errors.Join(err, s.Close()); err != nil {
				return 0, 0, err
			}
		}
		return percentile(all, 50), memory, nil
	}
	was, wasMemory, err := measure(empty)
	if err != nil {
		return nil, err
	}
	is, isMemory, err := measure(full)
	if err != nil {
		return nil, err
	}
	const most = 150 << 20
	return []row{
		{"start with 10,000 environments until ready; with none", ms(is), ms(was), ratio(is, was), "<= 1000.0 ms", is <= time.Second},
		{"memory with 10,000 environments, all listed; with none", mib(isMemory), mib(wasMemory), fmt.Sprintf("%.2f", float64(isMemory)/float64(wasMemory)), "<= 150.0 MiB", isMemory <= most},
	}, nil
}

// threeNodes creates an environment of three nodes with the agent in the lab,
// several times, each after the one before is gone. The lab host is up by
// then: it outlives the server. The baseline is the ip program making as many
// namespaces and links.
func threeNodes(ctx context.Context, b *bench) (rows []row, err error) {
	s, err := startServer(ctx, b, filepath.Join(b.dir, "data"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var took, bare []time.Duration
	for i := range 6 {
		id := exampleID(i)
		began := time.Now()
		if err := create(ctx, s.Client, exampleBody(id)); err != nil {
			return nil, err
		}
		if i > 0 { // the first one may have waited for the host
			took = append(took, time.Since(began))
		}
		if err := remove(ctx, s.Client, id); err != nil {
			return nil, err
		}
		was, err := bareNamespaces(b, 1)
		if err != nil {
			return nil, err
		}
		bare = append(bare, was)
	}
	is, was := percentile(took, 50), percentile(bare, 50)
	return []row{{"an environment of 3 nodes, create to RUNNING; ip netns, ip link", ms(is), ms(was), ratio(is, was), "<= 1000.0 ms", is <= time.Second}}, nil
}

// twentyAtOnce creates 20 environments of three nodes at the same time. The
// baseline is the ip program making as many namespaces and links, one after
// the other.
func twentyAtOnce(ctx context.Context, b *bench) (rows []row, err error) {
	const many, most = 20, 15 * time.Second
	s, err := startServer(ctx, b, filepath.Join(b.dir, "data"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	errs := make([]error, many)
	var all sync.WaitGroup
	began := time.Now()
	for i := range many {
		all.Go(func() { errs[i] = create(ctx, s.Client, exampleBody(exampleID(i))) })
	}
	all.Wait()
	is := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	was, err := bareNamespaces(b, many)
	if err != nil {
		return nil, err
	}
	return []row{{"20 environments of 3 nodes at once, all RUNNING; ip netns, ip link", ms(is), ms(was), ratio(is, was), "<= " + ms(most), is <= most}}, nil
}

// bareNamespaces times the ip program making the namespaces and links of
// environments of three nodes, where nobody else sees them. They go with the
// shell.
func bareNamespaces(b *bench, environments int) (time.Duration, error) {
	var script strings.Builder
	script.WriteString("set -e\nmount -t tmpfs none /run\nread go\n")
	for i := range environments {
		join := func(upper, lower string) {
			fmt.Fprintf(&script, "ip -n %s-%d link add to-%s type veth peer name eth0 netns %s-%d\n", upper, i, lower, lower, i)
		}
		for _, name := range []string{"router", "probe", "node-1", "node-2", "node-3", "pod-1", "pod-2", "pod-3"} {
			fmt.Fprintf(&script, "ip netns add %s-%d\n", name, i)
		}
		join("router", "probe")
		for n := 1; n <= 3; n++ {
			join("router", fmt.Sprintf("node-%d", n))
			join(fmt.Sprintf("node-%d", n), fmt.Sprintf("pod-%d", n))
		}
	}
	script.WriteString("echo done\nread end\n")
	file := filepath.Join(b.dir, "baseline.sh")
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		return 0, err
	}
	cmd := program("unshare", "--net", "--mount", "sh", file)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = in.Write([]byte("go\n"))
	_, readErr := out.Read(make([]byte, 16))
	took := time.Since(began)
	_, endErr := in.Write([]byte("end\n"))
	if err := errors.Join(err, readErr, endErr, cmd.Wait()); err != nil {
		return 0, fmt.Errorf("making namespaces with ip: %w\n%s", err, complaint.String())
	}
	return took, nil
}
