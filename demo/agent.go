package demo

import (
	"context"
	"fmt"
	"path/filepath"

	"sordino/internal/agentproc"
	"sordino/internal/netns"
	"sordino/internal/projected"
	"sordino/masq/agent"
)

// nodeAgent is the agent of one node: the real program, with its
// configuration in a folder that is laid out as a kubelet does it.
type nodeAgent struct {
	node    string
	ns      *netns.NS
	dir     string
	volume  *projected.Volume
	process *agentproc.Process
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
func (a *nodeAgent) start(binary string, flags ...string) (err error) {
	a.process, err = agentproc.Start(a.ns, nil, binary, append([]string{
		"--config=" + a.volume.Path(configFile), "--state-dir=" + filepath.Join(a.dir, "state"),
		"--http-address=" + agentproc.Address, "--enable-ipv6",
	}, flags...)...)
	if err != nil {
		return fmt.Errorf("starting the agent of %s: %w", a.node, err)
	}
	return nil
}

// stop ends the program; its rules stay.
func (a *nodeAgent) stop() error {
	if a.process == nil {
		return nil
	}
	err := a.process.Stop()
	a.process = nil
	if err != nil {
		return fmt.Errorf("stopping the agent of %s: %w", a.node, err)
	}
	return nil
}

// ready waits until the agent holds the wanted generation or a later one.
func (a *nodeAgent) ready(ctx context.Context, generation uint64) (agent.Status, error) {
	s, err := a.process.Ready(ctx, a.ns, generation)
	if err != nil {
		return s, fmt.Errorf("%s: %w", a.node, err)
	}
	return s, nil
}
