package host

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"sordino/lab"
	"sordino/masq/agent"
)

// Protocol is the version of what client and host say to each other, and of
// what the host does. Raise it when either changes so that a host that runs
// already cannot serve: it is replaced then, and its labs are built again.
// "hello" and "down" must stay as they are for ever.
const Protocol = 1

// One connection carries one request: a line of JSON, with the command's
// standard streams as descriptors where it is "exec", and a line of JSON back.
// A connection that is closed before the answer cancels the request.

// The requests.
const (
	opHello  = "hello"
	opDown   = "down"
	opLabs   = "labs"
	opLab    = "lab"
	opApply  = "apply"
	opRemove = "remove"
	opNote   = "note"
	opAgent  = "agent"
	opStop   = "stop agent"
	opAwait  = "await agent"
	opProbe  = "probe"
	opExec   = "exec" // one byte from the client is a signal's number
	opWatch  = "watch"
)

type request struct {
	Protocol int               `json:"protocol"`
	Op       string            `json:"op"`
	Lab      string            `json:"lab,omitempty"`
	Name     string            `json:"name,omitempty"` // a node or another namespace
	Spec     *lab.Spec         `json:"spec,omitempty"`
	Notes    map[string]string `json:"notes,omitempty"`
	Agent    *Agent            `json:"agent,omitempty"`
	Probe    *Probe            `json:"probe,omitempty"`
	Command  *command          `json:"command,omitempty"`
}

type command struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	// OfAgent means the agent program of the node, with the node's state folder.
	OfAgent bool `json:"ofAgent,omitempty"`
}

type response struct {
	Error string `json:"error,omitempty"`
	// Missing tells an error that is a lab, a node or a namespace that is not there.
	Missing bool `json:"missing,omitempty"`
	// NotStarted tells an error that is a command that could not be started.
	NotStarted bool            `json:"notStarted,omitempty"`
	Result     json.RawMessage `json:"result,omitempty"`
}

// Hello is what a host says of itself.
type Hello struct {
	Protocol int `json:"protocol"`
	// PID is the host's number where it was started.
	PID int `json:"pid"`
}

// Agent is an agent that is to run on a node.
type Agent struct {
	// Binary is the program, an absolute path.
	Binary string `json:"binary"`
	// Flags are its flags but for --config, --state-dir and --http-address,
	// which are the host's business.
	Flags []string `json:"flags"`
	// Config is the configuration file's text; nil is no file.
	Config *string `json:"config"`
	// Notes are the caller's own, and come back with the status.
	Notes map[string]string `json:"notes,omitempty"`
}

// Status is a lab as it is.
type Status struct {
	ID         string            `json:"id"`
	Spec       lab.Spec          `json:"spec"`
	Namespaces []string          `json:"namespaces"`
	Notes      map[string]string `json:"notes,omitempty"`
	// Agents are by node.
	Agents map[string]AgentStatus `json:"agents,omitempty"`
}

// AgentStatus is what is known of one agent.
type AgentStatus struct {
	Agent Agent `json:"agent"`
	// PID is the process's number among the host's; 0 when it does not run.
	PID int `json:"pid"`
	// Restarts counts how often it ended by itself; LastExit says how it last did.
	Restarts int    `json:"restarts"`
	LastExit string `json:"lastExit,omitempty"`
	// Status is the agent's own; nil when it does not answer.
	Status *agent.Status `json:"status,omitempty"`
	// Arrived is true when the agent has looked at the configuration that it was
	// given last; Settled when it holds the rules of it besides, or rejects it.
	Arrived bool `json:"arrived"`
	Settled bool `json:"settled"`
	// Log is the end of its log, when it does not run or is not settled.
	Log string `json:"log,omitempty"`
}

// Probe asks for packets from namespaces to an outside service.
type Probe struct {
	From     []string `json:"from"`
	To       string   `json:"to"`
	Protocol string   `json:"protocol"` // "tcp", "udp" or "icmp"
}

// Seen is the outcome of one packet.
type Seen struct {
	From string `json:"from"`
	// Source is the sender's own address, As the one that the service saw;
	// invalid when it saw none.
	Source netip.Addr `json:"source"`
	As     netip.Addr `json:"as,omitzero"`
	// Dropped tells that the service's firewall dropped the sender's own address.
	Dropped bool   `json:"dropped,omitempty"`
	Error   string `json:"error,omitempty"`
}

// maxRequest bounds a request. A configuration of 100,000 ranges takes two
// megabytes.
const maxRequest = 16 << 20

// receive reads one request and the descriptors that come with it, which are
// the caller's to close also when there is an error.
func receive(conn *net.UnixConn) (r request, files []*os.File, err error) {
	buffer, oob := make([]byte, 32<<10), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buffer, oob)
	if err != nil {
		return r, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return r, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return r, files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "stream"))
		}
	}
	limited := io.LimitReader(conn, maxRequest)
	line, err := bufio.NewReader(io.MultiReader(bytes.NewReader(buffer[:n]), limited)).ReadBytes('\n')
	if err != nil {
		return r, files, fmt.Errorf("reading a request of at most %d bytes: %w", maxRequest, err)
	}
	return r, files, json.Unmarshal(line, &r)
}

// send writes one request and descriptors.
func send(conn *net.UnixConn, r request, files []*os.File) error {
	r.Protocol = Protocol
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	text = append(text, '\n')
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(text, rights, nil)
	if err == nil && n < len(text) { // more than the socket's buffer holds
		_, err = conn.Write(text[n:])
	}
	return err
}

// peer checks that the other end is of this user. Users that a user namespace
// does not know all look like one, which is never us.
func peer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var credentials *unix.Ucred
	var refused error
	err = raw.Control(func(fd uintptr) {
		credentials, refused = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, refused); err != nil {
		return fmt.Errorf("asking who is on the other end of the lab host's socket: %w", err)
	}
	if int(credentials.Uid) != os.Getuid() {
		return fmt.Errorf("the other end of the lab host's socket is user %d, not %d", credentials.Uid, os.Getuid())
	}
	return nil
}
