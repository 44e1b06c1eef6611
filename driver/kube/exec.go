package kubedriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	"sordino/driver"
	"sordino/internal/podexec"
)

// run runs a command for somebody in a Pod of the workers and returns its exit
// status. It ends when the context does.
func (c *cluster) run(ctx context.Context, pod string, command []string, s driver.Streams) (int, error) {
	frames, stderr := podexec.NewFrames(s.Stdin, s.Signals), &podexec.Stderr{To: s.Stderr}
	defer frames.Close()
	status, err := c.exec(ctx, workerSet.namespace, pod, workerSet.container, podexec.Command(command),
		driver.Streams{Stdin: frames, Stdout: s.Stdout, Stderr: stderr})
	if err == nil && status != 0 && stderr.Refused() != nil {
		return 0, stderr.Refused()
	}
	return status, err
}

// exec runs a command in a container of a Pod and returns its exit status. It
// knows no signals, and a command goes on when the call has ended.
func (c *cluster) exec(ctx context.Context, namespace, pod, container string, command []string, s driver.Streams) (int, error) {
	request := c.raw.Get().AbsPath("/api/v1/namespaces/"+namespace+"/pods/"+pod+"/exec").Param("container", container)
	for _, word := range command {
		request = request.Param("command", word)
	}
	for name, used := range map[string]bool{"stdin": s.Stdin != nil, "stdout": true, "stderr": true} {
		if used {
			request = request.Param(name, "true")
		}
	}
	// WebSockets since Kubernetes 1.30, SPDY before and through proxies that
	// know no WebSockets.
	first, err := remotecommand.NewWebSocketExecutor(c.config, "GET", request.URL().String())
	if err != nil {
		return 0, err
	}
	second, err := remotecommand.NewSPDYExecutor(c.config, "POST", request.URL())
	if err != nil {
		return 0, err
	}
	executor, err := remotecommand.NewFallbackExecutor(first, second, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return 0, err
	}
	stdout, stderr := s.Stdout, s.Stderr
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: s.Stdin, Stdout: stdout, Stderr: stderr})
	var status exec.CodeExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &status):
		return status.Code, nil
	case strings.Contains(err.Error(), "executable file not found"), strings.Contains(err.Error(), "exec failed"):
		return 0, &podexec.NotStarted{Err: err}
	}
	return 0, fmt.Errorf("running %s in the Pod %s: %w", command[0], pod, err)
}

// output runs a command to its end and returns what it printed.
func (c *cluster) output(ctx context.Context, s set, pod string, command []string, in string) (driver.Answer, error) {
	var out, complaint bytes.Buffer
	streams := driver.Streams{Stdout: &out, Stderr: &complaint}
	if in != "" {
		streams.Stdin = strings.NewReader(in)
	}
	status, err := c.exec(ctx, s.namespace, pod, s.container, command, streams)
	return driver.Answer{Status: status, Output: out.Bytes(), Complaint: complaint.Bytes(), Readable: driver.Readable}, err
}
