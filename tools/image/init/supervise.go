package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const program = "/bin/joulegate"

// Times of the gateway. When it hangs its reflex opens the relays after a
// second, and the hardware watchdog resets the board; here it is only started
// again, and a gateway that executes itself anew with other settings must have
// the time for it on the slowest board.
const (
	watchdog   = time.Minute // without a sign of life it is ended
	abortTime  = 3 * time.Second
	stopTime   = 30 * time.Second
	startTime  = 10 * time.Minute // until its control loop works
	firstPause = 2 * time.Second
	lastPause  = 30 * time.Second
	steady     = time.Minute // after which a crash is a new one
	// A slot on trial whose gateway is not at work by then has failed.
	trialTime = 5 * time.Minute
)

// capabilities of the gateway: those of its unit, with what a guard that
// reacts and a name server need.
var capabilities = []uintptr{unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}

// limits are what processes may take; children inherit them. Nobody gains
// privileges by executing a file.
func limits() error {
	all := func(l uint64) *unix.Rlimit { return &unix.Rlimit{Cur: l, Max: l} }
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	var err error
	if errno != 0 {
		err = errno
	}
	return errors.Join(err, unix.Setrlimit(unix.RLIMIT_RTPRIO, all(10)), unix.Setrlimit(unix.RLIMIT_MEMLOCK, all(unix.RLIM_INFINITY)), unix.Setrlimit(unix.RLIMIT_NOFILE, all(1<<16)))
}

// children are processes that were started, and orphans, whom nobody else
// waits for.
type children struct {
	mu      sync.Mutex
	running map[int]chan syscall.WaitStatus
	born    chan struct{}
}

func newChildren() *children {
	return &children{running: map[int]chan syscall.WaitStatus{}, born: make(chan struct{}, 1)}
}

// start starts a program as a user; the channel tells its end.
func (c *children) start(args []string, env []string, files []uintptr, sys *syscall.SysProcAttr) (int, <-chan syscall.WaitStatus, error) {
	done := make(chan syscall.WaitStatus, 1)
	c.mu.Lock() // or it could have ended before it is known
	defer c.mu.Unlock()
	pid, err := syscall.ForkExec(args[0], args, &syscall.ProcAttr{Dir: "/", Env: env, Files: files, Sys: sys})
	if err != nil {
		return 0, nil, fmt.Errorf("%s: %w", args[0], err)
	}
	c.running[pid] = done
	select {
	case c.born <- struct{}{}:
	default:
	}
	return pid, done, nil
}

// reap waits for whoever ends, for ever.
func (c *children) reap() {
	for {
		var st syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &st, 0, nil)
		if errors.Is(err, syscall.ECHILD) {
			<-c.born
			continue
		}
		if err != nil {
			continue
		}
		c.mu.Lock()
		if done, ok := c.running[pid]; ok {
			done <- st
			delete(c.running, pid)
		}
		c.mu.Unlock()
	}
}

// supervise runs the gateway, again and again, until ctx ends. Whenever it
// has ended its relays are opened by another process.
func supervise(ctx context.Context, kids *children, log *logger, ends chan<- order) {
	ready := make(chan struct{}, 1)
	if onTrial() {
		go func() {
			select {
			case <-ready:
			case <-ctx.Done():
			case <-time.After(trialTime):
				log.printf("init: this slot's gateway is not at work after %s: back to the other one", trialTime)
				ends <- order{restart: true}
			}
		}()
	}
	for pause := firstPause; ctx.Err() == nil; {
		log.problem(adopt("/var/lib/joulegate/joulegate.yaml", "/etc/joulegate/joulegate.yaml"))
		start := time.Now()
		err := runGateway(ctx, kids, log, func() {
			select {
			case ready <- struct{}{}:
			default:
			}
		})
		log.printf("init: the gateway has ended: %v", err)
		log.problem(safeState(kids, log))
		if time.Since(start) > steady {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// adopt makes the configuration that 'joulegate restore' has left in the state
// folder the gateway's, if it has none.
func adopt(restored, config string) error {
	if _, err := os.Stat(config); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := os.ReadFile(restored)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	part := config + ".new"
	if err := os.WriteFile(part, b, 0o644); err != nil {
		return err
	}
	return errors.Join(os.Chown(part, gatewayID, gatewayID), os.Rename(part, config))
}

// safeState opens every relay.
func safeState(kids *children, log *logger) error {
	out, err := copyLines(log)
	if err != nil {
		return err
	}
	defer out.Close()
	_, done, err := kids.start([]string{program, "safe-state"}, environ(), []uintptr{nothing().Fd(), out.Fd(), out.Fd()}, asGateway())
	if err != nil {
		return err
	}
	if st := <-done; st.ExitStatus() != 0 {
		return fmt.Errorf("safe-state: %w", told(st))
	}
	return nil
}

// nothing is the input of whoever reads none.
var nothing = sync.OnceValue(func() *os.File {
	f, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		panic(err) // the initramfs has one
	}
	return f
})

func environ(more ...string) []string {
	return append([]string{"PATH=/bin:/sbin:/usr/bin", "HOME=/var/lib/joulegate", "USER=joulegate", "LOGNAME=joulegate"}, more...)
}

func asGateway() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: gatewayID, Gid: gatewayID}, AmbientCaps: capabilities, Setsid: true}
}

// copyLines returns a file whose lines go to the log.
func copyLines(log *logger) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer r.Close()
		const longest = 16 << 10 // a longer line is cut into several
		for lines := bufio.NewReaderSize(r, longest); ; {
			b, _, err := lines.ReadLine()
			if err != nil {
				return
			}
			log.line(append([]byte(nil), b...))
		}
	}()
	return w, nil
}

const notifySocket = "/run/joulegate-notify"

// runGateway runs the gateway once, as systemd runs a service of Type=notify
// with a watchdog. ready is called when its control loop works.
func runGateway(ctx context.Context, kids *children, log *logger, ready func()) error {
	_ = os.Remove(notifySocket)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySocket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	if err := os.Chown(notifySocket, gatewayID, gatewayID); err != nil {
		return err
	}
	out, err := copyLines(log)
	if err != nil {
		return err
	}
	defer out.Close()
	pid, done, err := kids.start([]string{program, "run"},
		environ("NOTIFY_SOCKET="+notifySocket, fmt.Sprintf("WATCHDOG_USEC=%d", watchdog.Microseconds())),
		[]uintptr{nothing().Fd(), out.Fd(), out.Fd()}, asGateway())
	if err != nil {
		return err
	}
	// The last but one to be taken when memory runs out.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-800"), 0)

	signs := make(chan string, 8)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := notify.Read(b)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(b[:n])) {
				select {
				case signs <- strings.TrimSpace(line):
				case <-time.After(time.Second): // it was asked to end, or it talks too much
				}
			}
		}
	}()
	silence := time.NewTimer(startTime)
	defer silence.Stop()
	kill := func(sig syscall.Signal, after time.Duration) syscall.WaitStatus {
		_ = syscall.Kill(pid, sig)
		select {
		case st := <-done:
			return st
		case <-time.After(after):
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return <-done
		}
	}
	for atWork := false; ; {
		select {
		case st := <-done:
			return told(st)
		case <-ctx.Done():
			return told(kill(syscall.SIGTERM, stopTime))
		case <-silence.C:
			log.printf("init: no sign of life of the gateway")
			return told(kill(syscall.SIGABRT, abortTime))
		case s := <-signs:
			switch {
			case s == "READY=1" && !atWork:
				atWork = true
				ready()
				log.printf("init: the gateway is at work")
				silence.Reset(watchdog)
			case (s == "WATCHDOG=1" || s == "READY=1") && atWork: // ready again: it has started anew by itself
				silence.Reset(watchdog)
			}
		}
	}
}

// told says how a process has ended.
func told(st syscall.WaitStatus) error {
	if st.Signaled() {
		return fmt.Errorf("by signal %s", st.Signal())
	}
	return fmt.Errorf("exit code %d", st.ExitStatus())
}
