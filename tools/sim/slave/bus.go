package slave

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/joulegate/joulegate/meter/profile"
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
	// FC16 confirms a write of several registers with 18 bytes instead of 4,
	// as some inverters do (Sofar G3).
	FC16 Fault = "fc16"
	// Unplug takes the device away before it has answered, and brings it back
	// after Config.Away: a pseudo-terminal is closed and made anew behind its
	// link, connections are reset.
	Unplug Fault = "unplug"
)

// Habits are there all the time; they have no rate.
const (
	// BlockLimit refuses reads of more registers than this number with
	// exception 2.
	BlockLimit Fault = "block-limit"
	// BlockCut answers reads of more registers than this number with only so
	// many.
	BlockCut Fault = "block-cut"
	// SingleClient admits one connection at a time and resets a second one.
	// It does nothing on a serial line.
	SingleClient Fault = "single-client"
)

// maxBlockHabit is the largest BlockLimit and BlockCut: one register more is
// the most that can be asked for.
const maxBlockHabit = profile.MaxBlock - 1

// allFaults are those with a rate, in the order in which they are drawn.
var allFaults = []Fault{Late, CRC, Split, Exception, Silence, Echo, WrongUnit, FC16, Unplug}

// Faults maps faults to their rate, 0..1; at most one happens to an answer.
// BlockLimit and BlockCut have a number of registers, 1..124, SingleClient 1.
type Faults map[Fault]float64

// ParseFault reads "late:0.1", "block-limit:10" or "single-client", the forms
// of the command line.
func ParseFault(s string) (Fault, float64, error) {
	name, number, given := strings.Cut(s, ":")
	f := Fault(name)
	if f == SingleClient && !given {
		return f, 1, nil
	}
	r, err := strconv.ParseFloat(number, 64)
	if err != nil {
		r = math.NaN()
	}
	if err := f.check(r); err != nil {
		return "", 0, fmt.Errorf("fault %q: %w", s, err)
	}
	return f, r, nil
}

// check reports what is wrong with f at a rate or number of r.
func (f Fault) check(r float64) error {
	switch {
	case f == SingleClient:
		if r != 1 {
			return fmt.Errorf("%s is without a rate", f)
		}
	case f == BlockLimit || f == BlockCut:
		if !(r >= 1 && r <= maxBlockHabit && r == math.Trunc(r)) {
			return fmt.Errorf("%s:N wants a number of registers, 1..%d", f, maxBlockHabit)
		}
	case !slices.Contains(allFaults, f):
		return fmt.Errorf("want KIND:RATE with a kind of %v, or %s:N, %s:N, %s", allFaults, BlockLimit, BlockCut, SingleClient)
	case !(r >= 0 && r <= 1):
		return fmt.Errorf("%s:RATE wants a rate of 0..1", f)
	}
	return nil
}

// Config describes a bus.
type Config struct {
	Faults Faults
	Seed   uint64        // of the faults: equal seeds and requests give equal faults
	Late   time.Duration // how late a late answer is, default 1 s
	Away   time.Duration // how long an unplugged device is away, default 2 s
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
	gone  chan struct{} // closed when somebody pulls the plug
	away  time.Time     // until when nobody is there
}

// Stats counts what a bus has done.
type Stats struct {
	Requests int           // well-formed and for one of the units
	Faults   map[Fault]int // injected
	Ignored  int           // garbage, and requests for nobody here
	Mismatch int           // requests at another speed
	Refused  int           // connections: a second one, or to a device that is away
}

// check refuses what cannot be drawn.
func (fs Faults) check() error {
	sum := 0.0
	for f, r := range fs {
		if err := f.check(r); err != nil {
			return fmt.Errorf("fault %s:%g: %w", f, r, err)
		}
		if slices.Contains(allFaults, f) {
			sum += r
		}
	}
	if sum > 1 {
		return fmt.Errorf("fault rates add up to %g: an answer has at most one fault", sum)
	}
	return nil
}

// NewBus returns a bus without units.
func NewBus(cfg Config) (*Bus, error) {
	if err := cfg.Faults.check(); err != nil {
		return nil, err
	}
	if cfg.Late == 0 {
		cfg.Late = time.Second
	}
	if cfg.Away == 0 {
		cfg.Away = 2 * time.Second
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
		gone:  make(chan struct{}),
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

// SetFaults replaces what goes wrong from now on, but for Unplug and
// SingleClient, which a bus has from the start or never.
func (b *Bus) SetFaults(f Faults) error {
	if err := f.check(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f = maps.Clone(f)
	for _, fixed := range []Fault{Unplug, SingleClient} {
		delete(f, fixed)
		if r, ok := b.cfg.Faults[fixed]; ok {
			if f == nil {
				f = Faults{}
			}
			f[fixed] = r
		}
	}
	b.cfg.Faults = f
	return nil
}

// draw decides which fault, if any, the answer to a request of function fn has.
func (b *Bus) draw(fn byte) Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.rng.Float64()
	for _, f := range allFaults { // in fixed order: maps are not reproducible
		if f == FC16 && fn != fnWriteMultiple {
			continue
		}
		if r := b.cfg.Faults[f]; x < r {
			b.stats.Faults[f]++
			return f
		} else {
			x -= r
		}
	}
	return ""
}

// habit changes the answer to a read of more registers than the device takes.
func (b *Bus) habit(pdu, reply []byte) []byte {
	if len(reply) < 2 || reply[0] != fnReadHolding && reply[0] != fnReadInput {
		return reply
	}
	b.mu.Lock()
	faults := b.cfg.Faults // replaced as a whole, never changed
	b.mu.Unlock()
	f, count := BlockLimit, int(reply[1])/2
	most := int(faults[f])
	if cut := int(faults[BlockCut]); most == 0 || count <= most {
		f, most = BlockCut, cut
	}
	if most == 0 || count <= most {
		return reply
	}
	b.count(func(s *Stats) { s.Faults[f]++ })
	if f == BlockLimit {
		return refuse(pdu[0], illegalAddress)
	}
	return append([]byte{reply[0], byte(2 * most)}, reply[2:2+2*most]...)
}

// unplug takes the bus away.
func (b *Bus) unplug() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = time.Now().Add(b.cfg.Away)
	close(b.gone)
	b.gone = make(chan struct{})
}

// plug tells how long the bus is away, and what is closed when it goes.
func (b *Bus) plug() (away time.Duration, gone <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(time.Until(b.away), 0), b.gone
}

// errUnplugged ends a line whose bus was taken away.
var errUnplugged = errors.New("unplugged")

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

// answer handles one request and sends what comes of it, after hold. Its error
// is errUnplugged.
func (l *line) answer(unit uint8, pdu, request []byte, hold func(answer int)) error {
	reply := l.bus.Handle(unit, pdu)
	if reply == nil {
		return nil
	}
	reply = l.bus.habit(pdu, reply)
	fault := l.bus.draw(pdu[0])
	if fault != "" {
		l.bus.cfg.Logger.Debug("fault injected", "fault", string(fault), "unit", unit)
	}
	switch fault {
	case Unplug:
		l.bus.unplug()
		return errUnplugged
	case Silence:
		return nil
	case FC16:
		reply = append(reply, make([]byte, 18-4)...)
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
	return nil
}

func flip(b []byte, random int) {
	bit := random % (8 * len(b))
	b[bit/8] ^= 1 << (bit % 8)
}
