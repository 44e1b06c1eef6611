package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"sordino/internal/netns"
	"sordino/internal/projected"
	"sordino/masq/agent"
)

// agentAddress is the agent's HTTP address, in its node's namespace.
const agentAddress = "127.0.0.1:9927"

// nodeAgent is the agent of one node: the real program, with its
// configuration in a folder that is laid out as a kubelet does it.
type nodeAgent struct {
	node   string
	ns     *netns.NS
	dir    string
	volume *projected.Volume
	cmd    *exec.Cmd
	log    bytes.Buffer
	exited chan struct{}
}

func newNodeAgent(node string, ns *netns.NS, dir string) (*nodeAgent, error) {
	volume, err := projected.New(filepath.Join(dir, "config"))
	if err != nil {
		return nil, err
	}
	return &nodeAgent{node: node, ns: ns, dir: dir, volume: volume}, nil
}

// configFile is the name of the ConfigMap's item in the agent's folder.
const configFile = "ip-masq-agent"

func (a *nodeAgent) configure(text string) error {
	return a.volume.Swap(map[string][]byte{configFile: []byte(text)})
}

// start runs the program inside the node.
func (a *nodeAgent) start(binary string, flags ...string) error {
	args := append([]string{
		"--config=" + a.volume.Path(configFile), "--state-dir=" + filepath.Join(a.dir, "state"),
		"--http-address=" + agentAddress, "--enable-ipv6",
	}, flags...)
	a.cmd = exec.Command(binary, args...)
	a.log.Reset()
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for the demo
	if err := a.ns.Do(a.cmd.Start); err != nil {
		return fmt.Errorf("starting the agent of %s: %w", a.node, err)
	}
	a.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(a.cmd, a.exited)
	return nil
}

// stop ends the program; its rules stay.
func (a *nodeAgent) stop() error {
	if a.cmd == nil {
		return nil
	}
	err := a.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-a.exited:
	case <-time.After(5 * time.Second):
		err = errors.Join(fmt.Errorf("the agent of %s does not stop", a.node), a.cmd.Process.Kill())
		<-a.exited
	}
	a.cmd = nil
	return err
}

// ready waits until the agent holds the wanted generation or a later one.
func (a *nodeAgent) ready(ctx context.Context, generation uint64) (agent.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := a.status(ctx)
		if err == nil && s.Ready && s.AppliedGeneration >= generation {
			return s, nil
		}
		select {
		case <-a.exited:
			return s, fmt.Errorf("the agent of %s ended:\n%s", a.node, a.log.String())
		case <-ctx.Done():
			return s, fmt.Errorf("the agent of %s does not become ready: %v\n%s", a.node, err, a.log.String())
		case <-tick.C:
		}
	}
}

func (a *nodeAgent) status(ctx context.Context) (s agent.Status, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = a.ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentAddress+"/status", nil)
	if err != nil {
		return s, err
	}
	response, err := client.Do(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&s)
}
