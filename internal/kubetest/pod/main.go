// Command pod is what runs in the Pods of tests: "dial ADDRESS EVERY" opens a
// connection again and again, "ask ADDRESS" once, "serve ADDRESS" answers every
// caller with its address, and without arguments it waits, as the first process of every Pod does.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 0:
		wait()
	case len(args) == 3 && args[0] == "dial":
		err = dial(args[1], args[2])
	case len(args) == 2 && args[0] == "ask":
		fmt.Println(ask(args[1]))
	case len(args) == 2 && args[0] == "serve":
		err = serve(args[1])
	default:
		err = fmt.Errorf("usage: pod [dial ADDRESS:PORT EVERY | ask ADDRESS:PORT | serve ADDRESS:PORT]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// wait ends at a signal, and until then takes the exit statuses of orphans.
func wait() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func dial(address, every string) error {
	interval, err := time.ParseDuration(every)
	if err != nil {
		return err
	}
	// The first process of a PID namespace gets only the signals it asks for.
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	tick := time.NewTicker(interval)
	for said := ""; ; {
		if now := ask(address); now != said {
			fmt.Println(now)
			said = now
		}
		select {
		case <-end:
			return nil
		case <-tick.C:
		}
	}
}

func ask(address string) string {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second)) // never fails on a new connection
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return "seen as " + strings.TrimSpace(string(answer))
}

func serve(address string) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-end
		os.Exit(0)
	}()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintln(conn, conn.RemoteAddr().(*net.TCPAddr).IP)
		conn.Close()
	}
}
