package reflex

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unsafe"

	"github.com/joulegate/joulegate/board"
	"golang.org/x/sys/unix"
	periph "periph.io/x/conn/v3/gpio"
)

// Every is the time between two looks. With it a fault is answered within a
// fifth of what is allowed (50 ms).
const Every = 10 * time.Millisecond

// Opener finds the pin that a board describes.
type Opener interface {
	Open(p board.Pin) (periph.PinIO, error)
}

// Leveler is a pin that can say that it could not be read.
type Leveler interface {
	Level() (periph.Level, error)
}

// ServerConfig is what Serve needs.
type ServerConfig struct {
	Commands, Trips int // SOCK_SEQPACKET, connected to a Client
	Page            *Page
	Pins            Opener
	// Lease is how long the gateway's last verified turn counts, at most ten
	// seconds.
	Lease time.Duration
	Log   *slog.Logger
}

// Refusals of a command that would close a relay.
var (
	errTripped = errors.New("the reflex has opened it since: read why first")
	errContact = errors.New("a contact that opens it is active or cannot be read")
	errLease   = errors.New("the control loop has not been verified lately")
)

type server struct {
	cfg  ServerConfig
	pins []*pin
	// listening: trips are told from now on. Before, nobody closes anything.
	listening bool
	looks     uint64
	out       []byte // of the frame being written
}

// pin is one open pin.
type pin struct {
	io     periph.PinIO
	name   string
	output bool
	safe   periph.Level

	// Of an output.
	closing bool // its last accepted command was not the safe level
	unsafe  bool // it was told to open, and that failed
	trips   uint64
	told    uint64 // trips of which the gateway has been told
	cause   uint8  // of the last trip
	guards  []guard
}

// guard is a contact that opens an output.
type guard struct {
	pin    uint8
	active periph.Level
	on     bool // it was active at the last look
}

// Serve does what the package says until the gateway hangs up; then every
// output is at its safe level. Its thread, and those that it starts, should
// have real-time priority: see Urgent. It returns an error if the socket fails
// or an output does not obey.
func Serve(cfg ServerConfig) error {
	if cfg.Lease <= 0 || cfg.Lease > 10*time.Second {
		return fmt.Errorf("reflex: a lease of %s", cfg.Lease)
	}
	s := &server{cfg: cfg, out: make([]byte, 0, maxFrame)}
	err := s.serve()
	for _, p := range s.pins {
		if p.output {
			err = errors.Join(err, p.open())
		}
	}
	return err
}

func (s *server) serve() error {
	in := make([]byte, maxFrame+1)
	fds := []unix.PollFd{{Fd: int32(s.cfg.Commands), Events: unix.POLLIN}} //nolint:gosec // a file descriptor
	next := now()
	for {
		at := now()
		if at >= next {
			s.look()
			if next += uint64(Every); next <= at {
				next = at + uint64(Every) // what was missed is not made up for
			}
			at = now()
		}
		wait := unix.NsecToTimespec(int64(max(next, at) - at)) //nolint:gosec // at most Every
		ready, err := poll(&fds[0], &wait)
		if err != nil {
			return fmt.Errorf("reflex: poll: %w", err)
		}
		if !ready {
			continue
		}
		n, _, err := unix.Recvfrom(s.cfg.Commands, in, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("reflex: read: %w", err)
		case n == 0:
			return nil
		case n > maxFrame:
			return fmt.Errorf("reflex: %w: %d bytes", errFrame, n)
		default:
			f, err := parseFrame(in[:n])
			if err != nil {
				return fmt.Errorf("reflex: %w", err) // a gateway that talks nonsense is not obeyed
			}
			if err := s.answer(f); err != nil {
				return err
			}
		}
	}
}

// poll is ppoll(2) without Go's scheduler being told: with it, each of these
// short waits hands this thread's processor to another thread and fetches it
// back, which took 2 % of a core. So this thread keeps it, and the collector,
// if it ever runs here, waits for one look.
func poll(fd *unix.PollFd, wait *unix.Timespec) (ready bool, err error) {
	//nolint:gosec // G103: the interface of ppoll(2) is pointers
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(fd)), 1, uintptr(unsafe.Pointer(wait)), 0, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return false, errno
	}
	return errno == 0 && n > 0, nil
}

// answer obeys a request and says how it went.
func (s *server) answer(f frame) error {
	a := frame{kind: msgAnswer, seq: f.seq}
	if err := s.obey(f, &a); err != nil {
		text := err.Error()
		a.text = []byte(text[:min(len(text), maxFrame-headBytes)])
		if len(a.text) == 0 {
			a.text = []byte("failed")
		}
	}
	return s.send(s.cfg.Commands, a)
}

// send writes a frame. The reflex waits for nobody: a gateway that does not
// read while its socket is full is told of trips later (look), and one that
// does not read answers is not obeyed any more.
func (s *server) send(socket int, f frame) error {
	s.out = f.append(s.out[:0])
	err := unix.Sendto(socket, s.out, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	if err != nil {
		return fmt.Errorf("reflex: write: %w", err)
	}
	return nil
}

func (s *server) obey(f frame, a *frame) error {
	switch f.kind {
	case opHello:
		return nil
	case opListen:
		s.listening = true
		return nil
	}
	if f.kind == opOpen {
		n, err := s.openPin(f.text)
		a.pin = n
		return err
	}
	if int(f.pin) >= len(s.pins) {
		return fmt.Errorf("pin %d is not open", f.pin)
	}
	p := s.pins[f.pin]
	switch f.kind {
	case opOut:
		if !p.output {
			return fmt.Errorf("%s is an input", p.name)
		}
		err := s.command(p, periph.Level(f.level), f.trips)
		s.publish(f.pin)
		return err
	case opIn:
		if p.output {
			return fmt.Errorf("%s is an output", p.name)
		}
		err := p.io.In(periph.Pull(f.other), periph.Edge(f.trips&3)) //nolint:gosec // two bits
		s.publish(f.pin)
		return err
	case opGuard:
		if int(f.other) >= len(s.pins) || !p.output || s.pins[f.other].output {
			return fmt.Errorf("%s is not an output that an input can guard", p.name)
		}
		p.guards = append(p.guards, guard{pin: f.other, active: periph.Level(f.level)})
		return nil
	}
	return fmt.Errorf("request %d is unknown", f.kind)
}

func (s *server) openPin(text []byte) (uint8, error) {
	d, err := decodePin(text)
	if err != nil {
		return 0, err
	}
	if len(s.pins) == MaxPins {
		return 0, fmt.Errorf("pin %s: %d pins are open, the most there are", d.Name, MaxPins)
	}
	io, err := s.cfg.Pins.Open(d)
	if err != nil {
		return 0, err
	}
	p := &pin{io: io, name: d.Name, output: d.Direction == board.Output, safe: periph.Level(d.SafeHigh)}
	s.pins = append(s.pins, p)
	n := uint8(len(s.pins) - 1) //nolint:gosec // at most MaxPins
	s.publish(n)
	return n, nil
}

// command drives an output.
func (s *server) command(p *pin, l periph.Level, known uint64) error {
	if l == p.safe {
		return p.open()
	}
	switch {
	case !s.listening || known != p.trips:
		return errTripped
	case s.cfg.Page.since(wordLease) > s.cfg.Lease:
		return errLease
	case s.guarded(p):
		return errContact
	}
	p.closing = true // also if it fails: it may have closed
	if err := p.io.Out(l); err != nil {
		return errors.Join(err, p.open())
	}
	return nil
}

// guarded reports whether a contact forbids to close p, from a look of now.
func (s *server) guarded(p *pin) bool {
	for _, g := range p.guards {
		if l, err := s.pins[g.pin].level(); err != nil || l == g.active {
			return true
		}
	}
	return false
}

// open takes an output to its safe level.
func (p *pin) open() error {
	p.closing = false
	err := p.io.Out(p.safe)
	p.unsafe = err != nil
	return err
}

func (p *pin) level() (periph.Level, error) {
	if l, ok := p.io.(Leveler); ok {
		return l.Level()
	}
	return p.io.Read(), nil
}

// publish puts the level of a pin on the page.
func (s *server) publish(n uint8) {
	word := uint64(0)
	if l, err := s.pins[n].level(); err == nil {
		word = pinKnown
		if l {
			word |= pinHigh
		}
	}
	s.cfg.Page.store(wordPins+int(n), word)
}

// backEvery is how many looks pass between two at the outputs, which nobody
// else can change.
const backEvery = 10

// look reads every contact, opens what has to be open, and tells.
func (s *server) look() {
	for n, p := range s.pins {
		if !p.output || s.looks%backEvery == 0 {
			s.publish(uint8(n)) //nolint:gosec // at most MaxPins
		}
	}
	expired := s.cfg.Page.since(wordLease) > s.cfg.Lease
	for n, p := range s.pins {
		if !p.output {
			continue
		}
		for i := range p.guards {
			g := &p.guards[i]
			word := s.cfg.Page.load(wordPins + int(g.pin))
			on := word&pinKnown == 0 || periph.Level(word&pinHigh != 0) == g.active
			if on && (!g.on || p.closing) {
				s.trip(p, g.pin)
			}
			g.on = on
		}
		if p.closing && expired {
			s.trip(p, noPin)
		}
		if p.unsafe {
			_ = p.open() // until it obeys; the gateway reads it back and says so
		}
		if s.listening && p.told != p.trips &&
			s.send(s.cfg.Trips, frame{kind: msgTrip, pin: uint8(n), other: p.cause, trips: p.trips}) == nil { //nolint:gosec // at most MaxPins
			p.told = p.trips
		}
	}
	s.looks++
	s.cfg.Page.store(wordLook, now())
}

// trip opens an output for the sake of a contact, or of the lease.
func (s *server) trip(p *pin, cause uint8) {
	closed := p.closing
	err := p.open()
	p.trips++
	p.cause = cause
	if err != nil && closed {
		s.cfg.Log.Error("relay does not open", "pin", p.name, "err", err)
	}
}
