package reflex

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Files that Start gives to the process, by number.
const (
	commandsFile = 3
	tripsFile    = 4
	pageFile     = 5
)

// Process is a running reflex as its gateway sees it.
type Process struct {
	*Client
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of the process; after ended
}

// Start starts a command that calls ServeStarted.
func Start(cmd *exec.Cmd) (_ *Process, err error) {
	var mine, theirs [2]*os.File
	defer func() {
		for i := range theirs {
			err = errors.Join(err, theirs[i].Close())
		}
	}()
	for i := range mine {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("reflex: socket: %w", err)
		}
		mine[i], theirs[i] = os.NewFile(uintptr(fds[0]), "reflex"), os.NewFile(uintptr(fds[1]), "reflex")
	}
	trips, err := net.FileConn(mine[1])
	if err != nil {
		return nil, fmt.Errorf("reflex: %w", err)
	}
	commands, err := unix.FcntlInt(mine[0].Fd(), unix.F_DUPFD_CLOEXEC, 0) // blocking, and nobody else's
	if err != nil {
		return nil, fmt.Errorf("reflex: %w", err)
	}
	if err := errors.Join(mine[0].Close(), mine[1].Close()); err != nil {
		return nil, err
	}
	page, file, err := NewPage()
	if err != nil {
		return nil, fmt.Errorf("reflex: %w", err)
	}
	defer file.Close()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1") // nobody there has to be interrupted
	cmd.ExtraFiles = []*os.File{theirs[0], theirs[1], file}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("reflex: %w", err)
	}
	p := &Process{cmd: cmd, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	p.Client, err = NewClient(commands, trips, page)
	return p, err
}

// ServeStarted is Serve for a process that Start has started.
func ServeStarted(cfg ServerConfig) error {
	f := os.NewFile(pageFile, "page")
	page, err := MapPage(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("reflex: %w: this is started by a gateway, not by hand", err)
	}
	cfg.Commands, cfg.Trips, cfg.Page = commandsFile, tripsFile, page
	return Serve(cfg)
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err says how it ended; it waits until it has.
func (p *Process) Err() error {
	<-p.ended
	return p.err
}

// Close hangs up and waits until the process has opened everything and ended.
func (p *Process) Close() error {
	return errors.Join(p.Client.Close(), p.Err())
}
