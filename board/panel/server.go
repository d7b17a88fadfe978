package panel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Limits of the server. Beyond them a request is refused with a reason.
const (
	MaxBody     = 64 << 10 // bytes of a request's body
	MaxWatchers = 32       // live streams at once
	MaxConns    = 128      // TCP connections at once; further ones wait
	maxHeader   = 16 << 10
)

// Times of the server.
const (
	headerTimeout  = 5 * time.Second
	bodyTimeout    = 15 * time.Second
	requestTimeout = 60 * time.Second // the longest honest request waits for a block
	idleTimeout    = 60 * time.Second
	writeTimeout   = 10 * time.Second // for one write to a client that does not read
	keepAlive      = 15 * time.Second // comment on an idle stream
	goodbye        = 3 * time.Second  // for open requests at shutdown
)

// Config describes the panel.
type Config struct {
	Backend Backend
	// Settings changes the configuration, on the control socket and, with a
	// SettingsKey, on the page for those who have signed in; nil: no such paths.
	Settings    Settings
	SettingsKey []byte   // KeyBytes random bytes that outlive the process; empty: the page has no settings
	Listen      string   // TCP host:port; port 0 takes any free one; empty: no TCP door
	Hosts       []string // host names by which browsers may reach it, besides addresses and localhost
	Socket      string   // path of the control socket; empty: none
	Log         *slog.Logger
	Metrics     prometheus.Gatherer // served at /metrics; nil: no such page
	Verifier    string              // file of the page that checks bundles, served at /verify; empty: none
}

// Server holds both doors from New on and serves in Run.
type Server struct {
	cfg      Config
	log      *slog.Logger
	tcp      net.Listener // nil: none
	control  net.Listener // nil: none
	watchers chan struct{}
	working  sync.Mutex // see alone
	page     pages
	codes    codes // to give the guard orders
	signIns  codes // to change settings
}

// New takes the address and the socket.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Log, watchers: make(chan struct{}, MaxWatchers)}
	var err error
	if s.page, err = loadPages(); err != nil {
		return nil, err
	}
	if cfg.Listen != "" {
		ln, err := net.Listen("tcp", cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("panel: %w", err)
		}
		s.tcp = limit(ln, MaxConns)
	}
	if cfg.Socket != "" {
		if s.control, err = listenControl(cfg.Socket); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// Addr returns the TCP address, or "" without one.
func (s *Server) Addr() string {
	if s.tcp == nil {
		return ""
	}
	return s.tcp.Addr().String()
}

// Close gives back what New took, when Run is not going to be called.
func (s *Server) Close() {
	if s.tcp != nil {
		s.tcp.Close()
	}
	if s.control != nil {
		s.control.Close()
		os.Remove(s.cfg.Socket)
	}
}

// Run serves until ctx ends and returns when no request is left.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	defer s.Close()
	door := func(ln net.Listener, h http.Handler) {
		if ln == nil {
			return
		}
		srv := &http.Server{
			Handler:           h,
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       bodyTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
			BaseContext:       func(net.Listener) context.Context { return ctx },
		}
		g.Go(func() error {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("panel on %s: %w", ln.Addr(), err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
			defer cancel()
			if srv.Shutdown(last) != nil {
				srv.Close()
			}
			return nil
		})
	}
	door(s.tcp, s.Handler(false))
	door(s.control, s.Handler(true))
	if s.tcp != nil {
		s.log.Info("panel serves", "address", s.Addr())
	}
	g.Go(func() error { <-ctx.Done(); return nil })
	return g.Wait()
}

// listenControl makes the socket appear at path with mode 0600 and nothing
// weaker in between.
func listenControl(path string) (net.Listener, error) {
	if len(path) > 100 {
		return nil, fmt.Errorf("control socket %s: the path has %d bytes, at most 100: choose a shorter state folder", path, len(path))
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket %s: another gateway serves it", path)
	} else if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("control socket %s: there is something else of that name", path)
	}
	tmp := filepath.Join(filepath.Dir(path), ".control."+fmt.Sprint(os.Getpid()))
	os.Remove(tmp)
	ln, err := net.Listen("unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // it is going to have another name
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		ln.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return ln, nil
}

// limit bounds the connections of a listener: the next one is accepted when
// an earlier one has closed.
func limit(ln net.Listener, n int) net.Listener {
	return &limited{Listener: ln, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &counted{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	defer c.release()
	return c.Conn.Close()
}
