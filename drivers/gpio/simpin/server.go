package simpin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board"
)

// ServerConfig describes the simulated hardware.
type ServerConfig struct {
	Path string      // of the socket; a stale file is replaced
	Pins []board.Pin // as the board describes them

	// OnChange, if set, is told of every change of an output's level, in
	// order. It must return soon and must not wait for the server.
	OnChange func(pin string, high bool)
}

// Server holds the pins' levels. It is safe for concurrent use.
type Server struct {
	cfg ServerConfig
	ln  net.Listener

	order sync.Mutex // serialises output changes with their callback; taken before mu
	mu    sync.Mutex
	pins  map[string]*serverPin
	conn  net.Conn // the one client
	done  chan struct{}
}

type serverPin struct {
	board.Pin
	high bool
}

// Listen opens the socket. Outputs start at their safe level, inputs at the
// level that means inactive.
func Listen(cfg ServerConfig) (*Server, error) {
	s := &Server{cfg: cfg, pins: map[string]*serverPin{}}
	for _, p := range cfg.Pins {
		sp := &serverPin{Pin: p, high: p.SafeHigh}
		if p.Direction == board.Input {
			sp.high = p.Polarity == board.ActiveLow
		}
		s.pins[p.Name] = sp
	}
	if err := os.Remove(cfg.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pins: %w", err)
	}
	ln, err := net.Listen("unix", cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("pins: listen on %s: %w", cfg.Path, err)
	}
	s.ln = ln
	return s, nil
}

// Run serves until ctx ends. It returns when every connection has ended and
// the outputs are safe.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.ln.Close()
		s.drop(nil)
	})
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := s.ln.Accept()
		if err != nil {
			s.drop(nil)
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("pins: %w", err)
		}
		done := s.adopt(c)
		if ctx.Err() != nil {
			s.drop(nil)
		}
		wg.Go(func() {
			defer close(done)
			s.serve(c)
			s.drop(c)
		})
	}
}

// adopt makes c the one client after the old one is gone and safe.
func (s *Server) adopt(c net.Conn) (done chan struct{}) {
	s.mu.Lock()
	old := s.done
	s.mu.Unlock()
	s.drop(nil)
	if old != nil {
		<-old
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn, s.done = c, make(chan struct{})
	return s.done
}

// drop ends client c (nil: whichever there is) and takes its outputs to their
// safe level.
func (s *Server) drop(c net.Conn) {
	s.order.Lock()
	defer s.order.Unlock()
	s.mu.Lock()
	if s.conn == nil || (c != nil && c != s.conn) {
		s.mu.Unlock()
		return
	}
	s.conn.Close()
	s.conn = nil
	var changed []*serverPin
	for _, d := range s.cfg.Pins {
		if p := s.pins[d.Name]; p.Direction == board.Output && p.high != p.SafeHigh {
			p.high = p.SafeHigh
			changed = append(changed, p)
		}
	}
	s.mu.Unlock()
	for _, p := range changed {
		s.tell(p.Name, p.SafeHigh)
	}
}

func (s *Server) tell(pin string, high bool) {
	if s.cfg.OnChange != nil {
		s.cfg.OnChange(pin, high)
	}
}

func (s *Server) serve(c net.Conn) {
	s.mu.Lock()
	for _, d := range s.cfg.Pins {
		if p := s.pins[d.Name]; p.Direction == board.Input {
			s.send(c, "in "+p.Name+" "+bit(p.high))
		}
	}
	s.send(c, "ready")
	s.mu.Unlock()
	in := bufio.NewScanner(c)
	in.Buffer(make([]byte, MaxLine), MaxLine)
	for in.Scan() {
		reply := s.handle(c, strings.Fields(in.Text()))
		s.mu.Lock()
		s.send(c, reply)
		s.mu.Unlock()
	}
}

// send is called with mu held, so that lines do not mix. A client that does
// not read loses its connection rather than stopping the physics.
func (s *Server) send(c net.Conn, line string) {
	c.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		c.Close()
	}
}

func (s *Server) handle(c net.Conn, f []string) string {
	switch {
	case len(f) == 2 && f[0] == "get":
		high, err := s.Level(f[1])
		if err != nil {
			return "err " + err.Error()
		}
		return "ok " + f[1] + " " + bit(high)
	case len(f) == 3 && f[0] == "out" && (f[2] == "0" || f[2] == "1"):
		if err := s.out(c, f[1], f[2] == "1"); err != nil {
			return "err " + err.Error()
		}
		return "ok " + f[1] + " " + f[2]
	}
	return "err not a request"
}

func (s *Server) out(c net.Conn, name string, high bool) error {
	s.order.Lock()
	defer s.order.Unlock()
	s.mu.Lock()
	p := s.pins[name]
	switch {
	case s.conn != c:
		s.mu.Unlock()
		return errors.New("another client drives the board")
	case p == nil || p.Direction != board.Output:
		s.mu.Unlock()
		return fmt.Errorf("no output %q", name)
	}
	changed := p.high != high
	p.high = high
	s.mu.Unlock()
	if changed {
		s.tell(name, high)
	}
	return nil
}

// Level returns the level of a pin.
func (s *Server) Level(name string) (high bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[name]
	if p == nil {
		return false, fmt.Errorf("no pin %q", name)
	}
	return p.high, nil
}

// SetInput drives an input from outside.
func (s *Server) SetInput(name string, high bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[name]
	if p == nil || p.Direction != board.Input {
		return fmt.Errorf("no input %q", name)
	}
	p.high = high
	if s.conn != nil {
		s.send(s.conn, "in "+name+" "+bit(high))
	}
	return nil
}

func bit(high bool) string {
	if high {
		return "1"
	}
	return "0"
}
