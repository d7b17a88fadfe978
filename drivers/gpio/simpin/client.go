package simpin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/physic"
)

// Timeout bounds one request. A request that takes longer ends the
// connection, and with it every output: silence must not leave a relay closed.
// It is shorter than the control loop's default watchdog.
const Timeout = 900 * time.Millisecond

// redialEvery spaces attempts to get a lost connection back.
const redialEvery = 200 * time.Millisecond

// ErrLost is returned while there is no connection to the pins.
var ErrLost = errors.New("no connection to the simulated pins")

// Client is the gateway's side. A lost connection is dialled again by the
// next use of a pin; outputs are at their safe level by then, and read back
// so. It is safe for concurrent use.
type Client struct {
	path string

	req sync.Mutex // one request at a time; taken before mu

	mu      sync.Mutex
	link    *link
	closed  bool
	redial  time.Time // not before
	lastErr error
}

// link is one connection.
type link struct {
	conn    net.Conn
	replies chan string
	ready   chan struct{} // every input is known
	gone    chan struct{} // the reader has ended

	mu     sync.Mutex
	inputs map[string]bool
}

// Dial connects to a Server.
func Dial(path string) (*Client, error) {
	c := &Client{path: path}
	if _, err := c.connected(); err != nil {
		return nil, err
	}
	return c, nil
}

// Close ends the connection; the server takes the outputs to their safe level.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	l := c.link
	c.mu.Unlock()
	if l == nil {
		return nil
	}
	err := l.conn.Close()
	<-l.gone
	return err
}

func (c *Client) connected() (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	if c.link != nil {
		select {
		case <-c.link.gone:
			c.link, c.lastErr = nil, ErrLost
		default:
			return c.link, nil
		}
	}
	now := time.Now()
	if now.Before(c.redial) {
		return nil, c.lastErr
	}
	c.redial = now.Add(redialEvery)
	l, err := dial(c.path)
	if err != nil {
		c.lastErr = fmt.Errorf("%w: %w", ErrLost, err)
		return nil, c.lastErr
	}
	c.link = l
	return l, nil
}

func dial(path string) (*link, error) {
	conn, err := net.DialTimeout("unix", path, Timeout)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, replies: make(chan string, 1), ready: make(chan struct{}), gone: make(chan struct{}), inputs: map[string]bool{}}
	go l.read()
	t := time.NewTimer(Timeout)
	defer t.Stop()
	select {
	case <-l.ready:
		return l, nil
	case <-l.gone:
		err = io.ErrUnexpectedEOF
	case <-t.C:
		err = errors.New("the server does not say it is ready")
	}
	conn.Close()
	<-l.gone
	return nil, err
}

func (l *link) read() {
	defer close(l.gone)
	defer l.conn.Close()
	in := bufio.NewScanner(l.conn)
	in.Buffer(make([]byte, MaxLine), MaxLine)
	isReady := false
	for in.Scan() {
		line := in.Text()
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "in":
			l.mu.Lock()
			l.inputs[f[1]] = f[2] == "1"
			l.mu.Unlock()
		case line == "ready" && !isReady:
			isReady = true
			close(l.ready)
		default:
			select {
			case l.replies <- line:
			default:
				return // a reply nobody asked for: the two sides disagree
			}
		}
	}
}

// do sends a request and returns the level of the reply.
func (c *Client) do(request string) (bool, error) {
	c.req.Lock()
	defer c.req.Unlock()
	l, err := c.connected()
	if err != nil {
		return false, err
	}
	l.conn.SetWriteDeadline(time.Now().Add(Timeout))
	if _, err := io.WriteString(l.conn, request+"\n"); err != nil {
		l.conn.Close()
		return false, fmt.Errorf("%w: %w", ErrLost, err)
	}
	t := time.NewTimer(Timeout)
	defer t.Stop()
	select {
	case reply := <-l.replies:
		f := strings.Fields(reply)
		if text, isErr := strings.CutPrefix(reply, "err "); isErr {
			return false, errors.New(text)
		}
		if want := strings.Fields(request); len(f) != 3 || f[0] != "ok" || f[1] != want[1] {
			l.conn.Close()
			return false, fmt.Errorf("reply %q to %q", reply, request)
		}
		return f[2] == "1", nil
	case <-l.gone:
		return false, ErrLost
	case <-t.C:
		// The reply may still come and must not answer the next request.
		l.conn.Close()
		return false, fmt.Errorf("%w: no reply to %q within %s", ErrLost, request, Timeout)
	}
}

func (c *Client) input(name string) (bool, error) {
	l, err := c.connected()
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	high, ok := l.inputs[name]
	if !ok {
		return false, fmt.Errorf("no input %q", name)
	}
	return high, nil
}

// Open implements the opener of package drivers/gpio.
func (c *Client) Open(p board.Pin) (gpio.PinIO, error) {
	if p.Backend != board.BackendSocket {
		return nil, fmt.Errorf("pin %s is not on a socket but on %s", p.Name, p.Backend)
	}
	if p.Direction == board.Input {
		if _, err := c.input(p.Name); err != nil {
			return nil, err
		}
	} else if _, err := c.do("get " + p.Name); err != nil {
		return nil, err
	}
	return &pin{c: c, d: p}, nil
}

// pin is one line as periph sees it.
type pin struct {
	c *Client
	d board.Pin
}

var _ gpio.PinIO = (*pin)(nil)

func (p *pin) String() string   { return p.d.Name }
func (p *pin) Name() string     { return p.d.Name }
func (p *pin) Number() int      { return -1 }
func (p *pin) Function() string { return string(p.d.Direction) }

// Halt takes an output to its safe level.
func (p *pin) Halt() error {
	if p.d.Direction == board.Output {
		return p.Out(gpio.Level(p.d.SafeHigh))
	}
	return nil
}

func (p *pin) In(_ gpio.Pull, edge gpio.Edge) error {
	if p.d.Direction != board.Input || edge != gpio.NoEdge {
		return fmt.Errorf("%s is an %s without edge detection", p.d.Name, p.d.Direction)
	}
	return nil
}

// Level returns the pin's level or why it cannot be known.
func (p *pin) Level() (gpio.Level, error) {
	if p.d.Direction == board.Input {
		h, err := p.c.input(p.d.Name)
		return gpio.Level(h), err
	}
	h, err := p.c.do("get " + p.d.Name)
	return gpio.Level(h), err
}

// Read returns the level; an unreadable pin reads as its safe level.
func (p *pin) Read() gpio.Level {
	l, err := p.Level()
	if err != nil {
		return gpio.Level(p.d.SafeHigh)
	}
	return l
}

func (p *pin) WaitForEdge(time.Duration) bool { return false }
func (p *pin) Pull() gpio.Pull                { return gpio.PullNoChange }
func (p *pin) DefaultPull() gpio.Pull         { return gpio.PullNoChange }

func (p *pin) Out(l gpio.Level) error {
	if p.d.Direction != board.Output {
		return fmt.Errorf("%s is an input", p.d.Name)
	}
	_, err := p.c.do("out " + p.d.Name + " " + bit(bool(l)))
	return err
}

func (p *pin) PWM(gpio.Duty, physic.Frequency) error {
	return fmt.Errorf("%s has no PWM", p.d.Name)
}
