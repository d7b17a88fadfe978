package reflex

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/joulegate/joulegate/board"
	"golang.org/x/sys/unix"
)

// MaxPins is how many pins can be open; more are refused.
const MaxPins = 64

// Requests of a gateway.
const (
	opOpen   = iota + 1 // text: the pin's description; answers its number
	opOut               // pin, level, trips known
	opIn                // pin, bias and edge
	opGuard             // pin is an output, other an input whose level opens it
	opListen            // the gateway is ready to be told of trips
	opHello             // nothing but an answer
)

// Messages of the reflex.
const (
	msgAnswer = iota + 1
	msgTrip   // pin was opened for the sake of other; trips is how often by now
)

// noPin stands for the lease where a contact is expected.
const noPin = 0xff

// frame is one message: a fixed head, and a text where the table above says
// so. Sockets keep frames apart (SOCK_SEQPACKET). Requests and their answers
// have a socket of their own: whoever waits for an answer waits in the kernel,
// and not in the queues of a busy scheduler.
type frame struct {
	kind  uint8
	pin   uint8
	other uint8
	level bool
	seq   uint32 // of a request, repeated in its answer
	trips uint64
	text  []byte // an answer's text is an error
}

const (
	headBytes = 16
	maxFrame  = 1024
)

var errFrame = errors.New("not a frame")

func (f frame) append(b []byte) []byte {
	level := byte(0)
	if f.level {
		level = 1
	}
	b = append(b, f.kind, f.pin, f.other, level)
	b = binary.LittleEndian.AppendUint32(b, f.seq)
	b = binary.LittleEndian.AppendUint64(b, f.trips)
	return append(b, f.text...)
}

// parseFrame understands exactly what append writes. The text is part of b.
func parseFrame(b []byte) (frame, error) {
	if len(b) < headBytes || len(b) > maxFrame || b[3] > 1 {
		return frame{}, errFrame
	}
	return frame{
		kind: b[0], pin: b[1], other: b[2], level: b[3] == 1,
		seq: binary.LittleEndian.Uint32(b[4:]), trips: binary.LittleEndian.Uint64(b[8:]), text: b[headBytes:],
	}, nil
}

func encodePin(p board.Pin) ([]byte, error) {
	b, err := json.Marshal(p)
	if err == nil && len(b) > maxFrame-headBytes {
		err = fmt.Errorf("pin %.40s: its description has %d bytes", p.Name, len(b))
	}
	return b, err
}

func decodePin(b []byte) (p board.Pin, err error) {
	err = json.Unmarshal(b, &p)
	if err == nil && (p.Name == "" || p.Direction != board.Input && p.Direction != board.Output) {
		err = fmt.Errorf("pin %q is neither input nor output", p.Name)
	}
	return p, err
}

// Page is the memory that gateway and reflex share: words that each of them
// only reads or only writes.
type Page struct {
	words []uint64
	mem   []byte
}

// Words of a page.
const (
	wordLease = iota // gateway: CLOCK_MONOTONIC of its last verified turn, ns
	wordLook         // reflex: CLOCK_MONOTONIC of its last look, ns
	wordPins         // reflex: state of each pin
)

// State of a pin.
const (
	pinHigh = 1 << iota
	pinKnown
)

const pageBytes = (wordPins + MaxPins) * 8

// NewPage makes a page and the file by which another process maps it.
func NewPage() (*Page, *os.File, error) {
	fd, err := unix.MemfdCreate("joulegate-pins", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("shared memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "joulegate-pins")
	if err := f.Truncate(pageBytes); err != nil {
		f.Close()
		return nil, nil, err
	}
	p, err := MapPage(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return p, f, nil
}

// MapPage maps the page that a file is. The file may be closed afterwards.
func MapPage(f *os.File) (*Page, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != pageBytes {
		return nil, fmt.Errorf("shared memory has %d bytes, want %d", st.Size(), pageBytes)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map shared memory: %w", err)
	}
	return &Page{unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8), mem}, nil //nolint:gosec // G103: a mapping is aligned to pages
}

// Close unmaps the page. Nobody may use it any more.
func (p *Page) Close() error {
	p.words = nil
	return unix.Munmap(p.mem)
}

func (p *Page) load(word int) uint64     { return atomic.LoadUint64(&p.words[word]) }
func (p *Page) store(word int, v uint64) { atomic.StoreUint64(&p.words[word], v) }

// since is how long ago the time in a word was; a time in the future is
// nothing that anybody has written.
func (p *Page) since(word int) time.Duration {
	asked := now() // before the look: whoever is put aside in between must not find it old
	at := p.load(word)
	switch {
	case at == 0 || at > asked && at > now():
		return 1<<63 - 1
	case at > asked:
		return 0
	}
	return time.Duration(asked - at) //nolint:gosec // less than the machine's uptime
}

// now is CLOCK_MONOTONIC in ns: all processes have the same, and steps of the
// wall clock do not matter. Go's monotonic clock is the same one with another
// zero, and asking it is no system call, in which a busy program may lose its
// turn.
func now() uint64 { return uint64(started + time.Since(startedAt)) } //nolint:gosec // since boot

var started, startedAt = func() (time.Duration, time.Time) {
	var ts unix.Timespec
	for {
		t := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic("reflex: CLOCK_MONOTONIC: " + err.Error()) // every Linux has it
		}
		if time.Since(t) < time.Millisecond { // not put aside in between
			return time.Duration(ts.Nano()), t
		}
	}
}()
