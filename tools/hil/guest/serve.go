package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/tools/hil/wire"
	"golang.org/x/sys/unix"
)

// maxOutput of a command is kept.
const maxOutput = 4 << 20

type guest struct {
	port io.ReadWriter

	writing sync.Mutex
	mu      sync.Mutex
	running map[string]*daemon
}

// daemon is a program that runs until it ends or is told to.
type daemon struct {
	cmd *exec.Cmd
}

func (g *guest) serve() error {
	g.say(wire.Message{Event: wire.Ready})
	in := json.NewDecoder(g.port)
	for {
		var r wire.Request
		if err := in.Decode(&r); err != nil {
			return fmt.Errorf("request: %w", err)
		}
		go func() {
			m, err := g.do(r)
			m.ID = r.ID
			if err != nil {
				m.Error = err.Error()
			}
			g.say(m)
		}()
	}
}

func (g *guest) say(m wire.Message) {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	g.writing.Lock()
	defer g.writing.Unlock()
	_, _ = g.port.Write(append(b, '\n'))
}

func (g *guest) do(r wire.Request) (wire.Message, error) {
	switch r.Op {
	case wire.Run:
		return run(r)
	case wire.Start:
		return wire.Message{}, g.start(r)
	case wire.Signal:
		g.mu.Lock()
		d := g.running[r.Name]
		g.mu.Unlock()
		if d == nil {
			return wire.Message{}, fmt.Errorf("%s does not run", r.Name)
		}
		return wire.Message{}, d.cmd.Process.Signal(syscall.Signal(r.Number))
	case wire.Put:
		if err := os.WriteFile(r.Name, r.Data, os.FileMode(r.Number)); err != nil {
			return wire.Message{}, err
		}
		unix.Sync() // an installer's editor does, too
		return wire.Message{}, nil
	case wire.Get:
		b, err := os.ReadFile(r.Name)
		return wire.Message{Out: b}, err
	case wire.Talk:
		b, err := talk(r)
		return wire.Message{Out: b}, err
	case wire.Address:
		return wire.Message{}, address(r.Name, r.Args[0], int(r.Number))
	case wire.Clock:
		t := unix.NsecToTimespec(r.Number)
		return wire.Message{}, unix.ClockSettime(unix.CLOCK_REALTIME, &t)
	case wire.Fill:
		return wire.Message{}, fill(r.Name)
	case wire.Remove:
		return wire.Message{}, os.Remove(r.Name)
	}
	return wire.Message{}, fmt.Errorf("%s: unknown request", r.Op)
}

// fill writes until there is no space left.
func fill(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		switch _, err := f.Write(block); {
		case errors.Is(err, unix.ENOSPC):
			block = block[:len(block)/2]
		case err != nil:
			return err
		}
	}
	return f.Sync()
}

// talk says something to a socket and returns all that it answers.
func talk(r wire.Request) ([]byte, error) {
	c, err := net.Dial("unix", r.Name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Duration(r.Number))); err != nil {
		return nil, err
	}
	if _, err := c.Write(r.Data); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(c, maxOutput))
}

func run(r wire.Request) (m wire.Message, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.Number))
	defer cancel()
	c := exec.CommandContext(ctx, r.Args[0], r.Args[1:]...)
	c.Env = append(os.Environ(), r.Env...)
	c.Stdin = bytes.NewReader(r.Data)
	var out, errOut limited
	c.Stdout, c.Stderr = &out, &errOut
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		m.Code, err = exit.ExitCode(), nil
	}
	m.Out, m.Err = out.Bytes(), errOut.Bytes()
	return m, err
}

// limited keeps the beginning of what is written.
type limited struct{ bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	if n := maxOutput - l.Len(); n > 0 {
		l.Buffer.Write(b[:min(n, len(b))])
	}
	return len(b), nil
}

// start starts a program as systemd starts a service of Type=notify, and runs
// Data, a command, when it has ended: ExecStopPost.
func (g *guest) start(r wire.Request) error {
	path := "/run/notify-" + r.Name
	_ = os.Remove(path)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	c := exec.Command(r.Args[0], r.Args[1:]...)
	c.Env = append(append(os.Environ(), r.Env...), "NOTIFY_SOCKET="+path)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr // the console, which the host keeps
	if err := c.Start(); err != nil {
		notify.Close()
		return err
	}
	g.mu.Lock()
	g.running[r.Name] = &daemon{c}
	g.mu.Unlock()
	go func() {
		b := make([]byte, 1024)
		for {
			n, err := notify.Read(b)
			if err != nil {
				return
			}
			if !strings.HasPrefix(string(b[:n]), "WATCHDOG=1") {
				g.say(wire.Message{Event: wire.Notify, Name: r.Name, Out: b[:n]})
			}
		}
	}()
	go func() {
		err := c.Wait()
		notify.Close()
		g.mu.Lock()
		delete(g.running, r.Name)
		g.mu.Unlock()
		if len(r.Post) > 0 {
			post := exec.Command(r.Post[0], r.Post[1:]...)
			post.Env = append(os.Environ(), r.Env...)
			post.Stdout, post.Stderr = os.Stdout, os.Stderr
			if err := post.Run(); err != nil {
				fmt.Printf("HIL %s: %v\n", strings.Join(r.Post, " "), err)
			}
		}
		m := wire.Message{Event: wire.Exit, Name: r.Name, Code: c.ProcessState.ExitCode()}
		if err != nil {
			m.Error = err.Error()
		}
		g.say(m)
	}()
	return nil
}
