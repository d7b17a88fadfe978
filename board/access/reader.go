package access

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Desk takes a token that was shown at a charger: it starts a session, or
// ends the one of the same token. The answer is for people. The error of a
// refusal is for people too.
type Desk interface {
	Tap(ctx context.Context, token ed25519.PrivateKey) (answer string, err error)
}

// Config describes one reader. Exactly one of Device and Socket is set.
type Config struct {
	Device string // a serial device, or any file that gives lines
	Socket string // Unix socket, 0600, made by Run
	Book   *Book  // nil: codes only
	Desk   Desk
	Log    *slog.Logger
}

// Reader takes taps. Make it with New and run it.
type Reader struct {
	cfg Config

	mu      sync.Mutex
	last    time.Time   // tap
	unknown []time.Time // of the last lockTime
}

// New checks cfg.
func New(cfg Config) (*Reader, error) {
	if (cfg.Device == "") == (cfg.Socket == "") || cfg.Desk == nil || cfg.Log == nil {
		return nil, errors.New("reader: want a device or a socket, a desk and a logger")
	}
	return &Reader{cfg: cfg}, nil
}

// Run listens until ctx ends and returns when its goroutines have ended. A
// device that is lost is opened again when it is back.
func (r *Reader) Run(ctx context.Context) error {
	if r.cfg.Socket != "" {
		return r.listen(ctx)
	}
	told := false
	for {
		err := r.device(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !told {
			r.cfg.Log.Warn("card reader is gone", "device", r.cfg.Device, "err", err)
		}
		told = true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reopenWait):
		}
	}
}

// device reads lines of a device until it is lost.
func (r *Reader) device(ctx context.Context) error {
	f, err := os.OpenFile(r.cfg.Device, os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	raw(f)
	stop := context.AfterFunc(ctx, func() { f.Close() }) // ends the read
	defer stop()
	return r.lines(ctx, f, io.Discard)
}

// raw stops a terminal from echoing cards back to the reader and from holding
// lines back. What is no terminal needs nothing.
func raw(f *os.File) {
	c, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = c.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil {
			return
		}
		t.Iflag &^= unix.IXON | unix.ISTRIP | unix.INLCR | unix.IGNCR
		t.Iflag |= unix.ICRNL
		t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		_ = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
	})
}

// listen serves the socket.
func (r *Reader) listen(ctx context.Context) error {
	if err := os.Remove(r.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reader %s: %w", r.cfg.Socket, err)
	}
	ln, err := net.Listen("unix", r.cfg.Socket)
	if err != nil {
		return fmt.Errorf("reader: %w", err)
	}
	defer ln.Close()
	if err := os.Chmod(r.cfg.Socket, 0o600); err != nil {
		return fmt.Errorf("reader: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxClients)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("reader %s: %w", r.cfg.Socket, err)
		}
		wg.Go(func() {
			defer func() { <-room }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			_ = r.lines(ctx, c, c) // the client has gone
		})
	}
}

// lines answers each line of in on out until in ends.
func (r *Reader) lines(ctx context.Context, in io.Reader, out io.Writer) error {
	b := bufio.NewReaderSize(in, maxLine)
	for {
		line, long, err := b.ReadLine()
		if err != nil {
			return err
		}
		text := string(line)
		for long { // skip the rest
			text = ""
			if _, long, err = b.ReadLine(); err != nil {
				return err
			}
		}
		if answer := r.tap(ctx, text); answer != "" {
			if _, err := io.WriteString(out, answer+"\n"); err != nil {
				return err
			}
		}
	}
}

// tap handles one line. What it answers and logs never holds the line itself.
func (r *Reader) tap(ctx context.Context, line string) string {
	if strings.TrimSpace(line) == "" {
		return ""
	}
	if why := r.admit(time.Now()); why != "" {
		return "refused " + why
	}
	key, err := r.token(line)
	if err != nil {
		if errors.Is(err, ErrUnknown) || errors.Is(err, ErrRevoked) || errors.Is(err, ErrCode) {
			r.strange(time.Now())
			r.cfg.Log.Info("tap refused", "why", err)
			return "refused " + err.Error()
		}
		r.cfg.Log.Error("cards cannot be read", "err", err)
		return "refused the gateway cannot read its cards"
	}
	ctx, cancel := context.WithTimeout(ctx, tapTimeout)
	defer cancel()
	token := public(key).Short()
	answer, err := r.cfg.Desk.Tap(ctx, key)
	if err != nil {
		r.cfg.Log.Info("tap refused", "token", token, "why", err)
		return "refused " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	r.cfg.Log.Info("tap", "token", token, "answer", answer)
	return "ok " + answer
}

// token finds the key of what was shown.
func (r *Reader) token(line string) (ed25519.PrivateKey, error) {
	if uid, ok := ParseUID(line); ok {
		if r.cfg.Book == nil {
			return nil, ErrUnknown
		}
		return r.cfg.Book.Find(uid)
	}
	return ParseCode(line)
}

// admit says why a tap at this time is not listened to, or nothing.
func (r *Reader) admit(now time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.unknown) >= maxUnknown && now.Sub(r.unknown[len(r.unknown)-1]) < lockTime {
		return "too many unknown cards and codes: wait a minute"
	}
	if !r.last.IsZero() && now.Sub(r.last) < tapPause {
		return "too fast: once a second"
	}
	r.last = now
	return ""
}

// strange remembers a card or code that nobody knows.
func (r *Reader) strange(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	recent := r.unknown[:0]
	for _, t := range r.unknown {
		if now.Sub(t) < lockTime {
			recent = append(recent, t)
		}
	}
	r.unknown = append(recent, now)
}
