package slave

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Fault is one way to misbehave.
type Fault string

// Faults. Modbus TCP has neither checksum nor echo: there CRC breaks the
// transaction number and Echo does nothing.
const (
	Late      Fault = "late"       // the answer comes after Config.Late, perhaps into another request
	CRC       Fault = "crc"        // one bit of the answer is wrong
	Split     Fault = "split"      // the answer comes in two pieces with a pause between
	Exception Fault = "exception"  // device busy
	Silence   Fault = "silence"    // no answer
	Echo      Fault = "echo"       // the request comes back first, as on a badly wired adapter
	WrongUnit Fault = "wrong-unit" // the answer carries another unit's address
)

var allFaults = []Fault{Late, CRC, Split, Exception, Silence, Echo, WrongUnit}

// Faults maps faults to their rate, 0..1. At most one happens to an answer.
type Faults map[Fault]float64

// ParseFault reads "late:0.1", the form of the command line.
func ParseFault(s string) (Fault, float64, error) {
	name, rate, ok := strings.Cut(s, ":")
	f := Fault(name)
	r, err := strconv.ParseFloat(rate, 64)
	if !ok || err != nil || !slices.Contains(allFaults, f) || !(r >= 0 && r <= 1) {
		return "", 0, fmt.Errorf("fault %q: want KIND:RATE with a rate of 0..1 and a kind of %v", s, allFaults)
	}
	return f, r, nil
}

// Config describes a bus.
type Config struct {
	Faults Faults
	Seed   uint64        // of the faults: equal seeds and requests give equal faults
	Late   time.Duration // how late a late answer is, default 1 s
	// Turnaround is how long a device thinks, default 0.
	Turnaround time.Duration
	// Baud and StopBits are what the bus runs at; default 9600, 1. ServePTY
	// answers only masters that have set the same. Baud 0 answers any.
	Baud     int
	StopBits int
	Parity   bool // lengthens paced characters; cannot be seen on a pty
	// Paced makes ServePTY take as long as a real wire would.
	Paced  bool
	Logger *slog.Logger // default: none
}

// splitPause is the pause inside a split answer: long enough that a reader
// sees two pieces, shorter than any time-out.
const splitPause = 20 * time.Millisecond

// Bus answers for its units. It is safe for concurrent use.
type Bus struct {
	cfg Config

	mu    sync.Mutex
	rng   *rand.Rand
	units map[uint8]*Unit
	stats Stats
}

// Stats counts what a bus has done.
type Stats struct {
	Requests int           // well-formed and for one of the units
	Faults   map[Fault]int // injected
	Ignored  int           // garbage, and requests for nobody here
	Mismatch int           // requests at another speed
}

// NewBus returns a bus without units.
func NewBus(cfg Config) (*Bus, error) {
	sum := 0.0
	for f, r := range cfg.Faults {
		if !slices.Contains(allFaults, f) || !(r >= 0 && r <= 1) {
			return nil, fmt.Errorf("fault %s:%g: want a rate of 0..1 and a kind of %v", f, r, allFaults)
		}
		sum += r
	}
	if sum > 1 {
		return nil, fmt.Errorf("fault rates add up to %g: an answer has at most one fault", sum)
	}
	if cfg.Late == 0 {
		cfg.Late = time.Second
	}
	if cfg.StopBits == 0 {
		cfg.StopBits = 1
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Bus{
		cfg:   cfg,
		rng:   rand.New(rand.NewPCG(cfg.Seed, 0)), //nolint:gosec // reproducible faults, not secrets
		units: map[uint8]*Unit{},
		stats: Stats{Faults: map[Fault]int{}},
	}, nil
}

// Add puts a unit at an address, 1..247, or 255 for a device without units
// (Modbus messaging on TCP/IP 1.0b, 4.4.2.3).
func (b *Bus) Add(address uint8, u *Unit) error {
	if (address < 1 || address > 247) && address != 255 {
		return fmt.Errorf("unit %d: want 1..247 or 255", address)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.units[address] != nil {
		return fmt.Errorf("unit %d is taken", address)
	}
	b.units[address] = u
	return nil
}

// Remove takes a unit off the bus: it falls silent.
func (b *Bus) Remove(address uint8) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.units, address)
}

// Stats returns what has happened so far.
func (b *Bus) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Faults = maps.Clone(s.Faults)
	return s
}

// Handle answers one request PDU to unit without faults; nil is silence.
func (b *Bus) Handle(unit uint8, pdu []byte) []byte {
	b.mu.Lock()
	u := b.units[unit]
	if u == nil {
		b.stats.Ignored++
	} else {
		b.stats.Requests++
	}
	b.mu.Unlock()
	if u == nil {
		return nil
	}
	return u.handle(pdu)
}

// draw decides which fault, if any, the next answer has.
func (b *Bus) draw() Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.rng.Float64()
	for _, f := range allFaults { // in fixed order: maps are not reproducible
		if r := b.cfg.Faults[f]; x < r {
			b.stats.Faults[f]++
			return f
		} else {
			x -= r
		}
	}
	return ""
}

// frame wraps an answer for the line.
type frame func(unit uint8, pdu []byte) []byte

// line sends the answers of one connection. Late answers are written by other
// goroutines, hence the lock.
type line struct {
	bus  *Bus
	w    io.Writer
	wrap frame
	echo bool // this line can echo
	// garble breaks one bit, chosen by a random number, in a way that the
	// master can notice.
	garble func(out []byte, random int)

	mu sync.Mutex
	wg sync.WaitGroup // late answers
}

func (l *line) send(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A master that has gone is noticed by the reading side.
	_, _ = l.w.Write(b)
}

// answer handles one request and sends what comes of it, after hold.
func (l *line) answer(unit uint8, pdu, request []byte, hold func(answer int)) {
	reply := l.bus.Handle(unit, pdu)
	if reply == nil {
		return
	}
	fault := l.bus.draw()
	if fault != "" {
		l.bus.cfg.Logger.Debug("fault injected", "fault", string(fault), "unit", unit)
	}
	switch fault {
	case Silence:
		return
	case Exception:
		reply = refuse(pdu[0], deviceBusy)
	case WrongUnit:
		unit = unit%247 + 1
	}
	out := l.wrap(unit, reply)
	if fault == CRC {
		l.bus.mu.Lock()
		random := l.bus.rng.Int()
		l.bus.mu.Unlock()
		l.garble(out, random)
	}
	hold(len(out))
	switch {
	case fault == Late:
		l.wg.Add(1)
		time.AfterFunc(l.bus.cfg.Late, func() {
			defer l.wg.Done()
			l.send(out)
		})
	case fault == Echo && l.echo:
		l.send(append(slices.Clone(request), out...))
	case fault == Split:
		cut := len(out) / 2
		l.send(out[:cut])
		time.Sleep(splitPause)
		l.send(out[cut:])
	default:
		l.send(out)
	}
}

func flip(b []byte, random int) {
	bit := random % (8 * len(b))
	b[bit/8] ^= 1 << (bit % 8)
}
