package reflex

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board"
	"golang.org/x/sys/unix"
	periph "periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/physic"
)

// Timeout bounds one request. One that takes longer ends the connection, and
// with it every output. It is shorter than the control loop's default
// watchdog.
const Timeout = 900 * time.Millisecond

// startLimit bounds the first request: the process may have to be read from an
// SD card.
const startLimit = 30 * time.Second

// lookLimit is how old the reflex's last look may be for its levels to count.
const lookLimit = 500 * time.Millisecond

// ErrGone is returned when the reflex has ended or does not answer.
var ErrGone = errors.New("the reflex process is gone")

// Trip is an output that the reflex has opened by itself.
type Trip struct {
	Output  string
	Contact string // name of the input; empty: the lease had ended
}

// Client is the gateway's side. It opens pins for package drivers/gpio. It is
// safe for concurrent use.
type Client struct {
	trips net.Conn
	page  *Page
	gone  chan struct{} // closed when the reader of trips has ended

	req      sync.Mutex // one request at a time
	commands int        // -1: closed
	seq      uint32

	mu    sync.Mutex
	pins  []*clientPin
	names map[string]uint8
	trip  func(Trip)
}

// NewClient takes over two sockets, connected to a Serve with the same page, a
// blocking one for commands and one for trips, and waits until that one is
// there.
func NewClient(commands int, trips net.Conn, page *Page) (*Client, error) {
	c := &Client{trips: trips, commands: commands, page: page, gone: make(chan struct{}), names: map[string]uint8{}}
	go c.read()
	err := c.patience(startLimit)
	if err == nil {
		_, err = c.do(frame{kind: opHello})
	}
	if err == nil {
		err = c.patience(Timeout)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reflex: %w", err), c.Close())
	}
	return c, nil
}

// patience sets how long a request may take.
func (c *Client) patience(d time.Duration) error {
	limit := unix.NsecToTimeval(int64(d))
	return errors.Join(
		unix.SetsockoptTimeval(c.commands, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(c.commands, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
}

// Close hangs up; the reflex opens everything. The page stays mapped: pins may
// still be asked, and say that they are not known.
func (c *Client) Close() error {
	c.req.Lock()
	err := c.hangUp()
	c.req.Unlock()
	<-c.gone
	return err
}

// hangUp ends both connections; req is held.
func (c *Client) hangUp() error {
	if c.commands < 0 {
		return nil
	}
	err := errors.Join(unix.Close(c.commands), c.trips.Close())
	c.commands = -1
	return err
}

// Gone is closed when the reflex has ended, or was ended by Close.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Beat renews the lease: the control loop has just been verified. It takes
// some nanoseconds and never blocks.
func (c *Client) Beat() { c.page.store(wordLease, now()) }

// Listen calls f for each trip, from one goroutine; only when it has returned
// can that output be closed again. Before Listen nothing can be closed at all.
func (c *Client) Listen(f func(Trip)) error {
	c.mu.Lock()
	c.trip = f
	c.mu.Unlock()
	_, err := c.do(frame{kind: opListen})
	return err
}

// Guard makes the contact open the output, both open pins. active is the level
// at which it does.
func (c *Client) Guard(output, contact string, active periph.Level) error {
	c.mu.Lock()
	o, okO := c.names[output]
	i, okI := c.names[contact]
	c.mu.Unlock()
	if !okO || !okI {
		return fmt.Errorf("guard of %s by %s: both must be open pins", output, contact)
	}
	_, err := c.do(frame{kind: opGuard, pin: o, other: i, level: bool(active)})
	return err
}

// Open implements the opener of package drivers/gpio.
func (c *Client) Open(d board.Pin) (periph.PinIO, error) {
	text, err := encodePin(d)
	if err != nil {
		return nil, err
	}
	a, err := c.do(frame{kind: opOpen, text: text})
	if err != nil {
		return nil, err
	}
	p := &clientPin{c: c, d: d, n: a.pin}
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(a.pin) != len(c.pins) {
		return nil, fmt.Errorf("pin %s: number %d after %d pins", d.Name, a.pin, len(c.pins))
	}
	c.pins = append(c.pins, p)
	c.names[d.Name] = a.pin
	return p, nil
}

// do sends a request and waits for its answer. A reflex that does not answer
// cannot be trusted any more.
func (c *Client) do(f frame) (frame, error) {
	c.req.Lock()
	defer c.req.Unlock()
	if c.commands < 0 {
		return frame{}, ErrGone
	}
	c.seq++
	f.seq = c.seq
	a, err := c.exchange(f)
	if err != nil {
		return frame{}, errors.Join(ErrGone, err, c.hangUp())
	}
	if len(a.text) > 0 {
		return a, errors.New(string(a.text))
	}
	return a, nil
}

func (c *Client) exchange(f frame) (frame, error) {
	if err := unix.Sendto(c.commands, f.append(nil), unix.MSG_NOSIGNAL, nil); err != nil {
		return frame{}, err
	}
	b := make([]byte, maxFrame+1)
	for {
		n, _, err := unix.Recvfrom(c.commands, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return frame{}, err
		}
		a, err := parseFrame(b[:n])
		if err == nil && (a.kind != msgAnswer || a.seq != f.seq) {
			err = errFrame
		}
		return a, err
	}
}

// read hears of trips until the reflex ends or talks nonsense.
func (c *Client) read() {
	defer close(c.gone)
	b := make([]byte, maxFrame+1)
	for {
		n, err := c.trips.Read(b)
		if err != nil || n == 0 {
			return
		}
		f, err := parseFrame(b[:n])
		if err != nil || f.kind != msgTrip || !c.tripped(f) {
			return
		}
	}
}

// tripped tells of a trip; it returns false for one that cannot be.
func (c *Client) tripped(f frame) bool {
	c.mu.Lock()
	tell := c.trip
	ok := int(f.pin) < len(c.pins) && (f.other == noPin || int(f.other) < len(c.pins)) && tell != nil
	var t Trip
	if ok {
		t.Output = c.pins[f.pin].d.Name
		if f.other != noPin {
			t.Contact = c.pins[f.other].d.Name
		}
	}
	c.mu.Unlock()
	if !ok {
		return false
	}
	tell(t)
	c.mu.Lock()
	c.pins[f.pin].trips = f.trips
	c.mu.Unlock()
	return true
}

// clientPin is one line as periph sees it.
type clientPin struct {
	c     *Client
	d     board.Pin
	n     uint8
	trips uint64 // that were told; guarded by Client.mu
}

var _ periph.PinIO = (*clientPin)(nil)

func (p *clientPin) String() string   { return p.d.Name }
func (p *clientPin) Name() string     { return p.d.Name }
func (p *clientPin) Number() int      { return -1 }
func (p *clientPin) Function() string { return string(p.d.Direction) }

// Halt takes an output to its safe level.
func (p *clientPin) Halt() error {
	if p.d.Direction == board.Output {
		return p.Out(periph.Level(p.d.SafeHigh))
	}
	return nil
}

func (p *clientPin) In(pull periph.Pull, edge periph.Edge) error {
	_, err := p.c.do(frame{kind: opIn, pin: p.n, other: uint8(pull), trips: uint64(edge)}) //nolint:gosec // an enumeration
	return err
}

// Level returns the level at the reflex's last look, or why it is not known.
func (p *clientPin) Level() (periph.Level, error) {
	if age := p.c.page.since(wordLook); age > lookLimit {
		return periph.Low, fmt.Errorf("%s: %w: it has not looked for %s", p.d.Name, ErrGone, min(age, time.Hour).Round(time.Millisecond))
	}
	word := p.c.page.load(wordPins + int(p.n))
	if word&pinKnown == 0 {
		return periph.Low, fmt.Errorf("%s cannot be read", p.d.Name)
	}
	return periph.Level(word&pinHigh != 0), nil
}

// Read returns the level; an unreadable pin reads as its safe level.
func (p *clientPin) Read() periph.Level {
	l, err := p.Level()
	if err != nil {
		return periph.Level(p.d.SafeHigh)
	}
	return l
}

// Out drives an output. The reflex refuses to close what it has opened and
// not yet told.
func (p *clientPin) Out(l periph.Level) error {
	p.c.mu.Lock()
	trips := p.trips
	p.c.mu.Unlock()
	_, err := p.c.do(frame{kind: opOut, pin: p.n, level: bool(l), trips: trips})
	return err
}

func (p *clientPin) WaitForEdge(time.Duration) bool { return false }
func (p *clientPin) Pull() periph.Pull              { return periph.PullNoChange }
func (p *clientPin) DefaultPull() periph.Pull       { return periph.PullNoChange }

func (p *clientPin) PWM(periph.Duty, physic.Frequency) error {
	return fmt.Errorf("%s has no PWM", p.d.Name)
}
