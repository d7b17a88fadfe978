package modbus

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"
)

// Limits of the line. Each says what happens when it is reached.
const (
	// MaxQueue bounds the requests that wait for the line. When it is full,
	// the least urgent of all of them, the newcomer included, fails with
	// ErrQueueFull.
	MaxQueue = 256
	// MaxRead is the largest register count of one read (Modbus Application
	// Protocol V1.1b3, 6.3 and 6.4). More is an error.
	MaxRead = 125
	// MaxWrite is the largest register count of one write (V1.1b3, 6.12).
	// More is an error.
	MaxWrite = 123
	// DefaultTimeout is the time a slave has for its answer, on top of the
	// time the frames spend on the wire.
	DefaultTimeout = 500 * time.Millisecond

	reopenEvery = 200 * time.Millisecond // pause between attempts to open a lost line
)

// Config describes one line. Exactly one of Device, TCP and RTUTCP is set.
type Config struct {
	Device string // serial device, for example /dev/ttyUSB0: Modbus RTU
	TCP    string // host:port: Modbus TCP
	RTUTCP string // host:port: RTU frames through a serial-to-Ethernet bridge

	Baud    int           // bit/s, any rate the adapter can do; 0 means 9600. Device only
	Framing string        // "8N1", "8E1" or "8N2"; "" means 8N1. Device only
	Absent  bool          // an adapter that is not plugged in yet is waited for, and is no error of New. Device only
	Timeout time.Duration // answer time of slaves that set none, 1 ms..60 s; 0 means DefaultTimeout

	Logger *slog.Logger // nil discards
	// Rand is the source of back-off jitter; nil seeds one from the runtime.
	Rand *rand.Rand
	// Trace, if set, sees every chunk of bytes on the owner goroutine. It
	// must neither block nor keep Data.
	Trace func(Trace)
}

// Trace is a chunk of bytes as it was written or read.
type Trace struct {
	At   time.Time
	Sent bool // false: received
	Data []byte
}

// Framing of characters on a serial line.
type framing struct {
	parity bool // even
	stop2  bool
}

// bits is the length of one character with start, parity and stop bits.
func (f framing) bits() int {
	n := 10
	if f.parity {
		n++
	}
	if f.stop2 {
		n++
	}
	return n
}

func parseFraming(s string) (framing, error) {
	switch s {
	case "", "8N1":
		return framing{}, nil
	case "8E1":
		return framing{parity: true}, nil
	case "8N2":
		return framing{stop2: true}, nil
	}
	return framing{}, fmt.Errorf("framing %q: want 8N1, 8E1 or 8N2", s)
}

// Name is the line's address in errors and logs.
func (c *Config) Name() string {
	switch {
	case c.Device != "":
		return c.Device
	case c.TCP != "":
		return "tcp://" + c.TCP
	default:
		return "rtutcp://" + c.RTUTCP
	}
}

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	n := 0
	for _, s := range []string{c.Device, c.TCP, c.RTUTCP} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("modbus line: set exactly one of device, tcp and rtutcp, not %d", n)
	}
	for _, addr := range []string{c.TCP, c.RTUTCP} {
		if addr == "" {
			continue
		}
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
			return fmt.Errorf("modbus line %s: want host:port, for example 192.0.2.7:502", c.Name())
		}
	}
	if _, err := parseFraming(c.Framing); err != nil {
		return fmt.Errorf("modbus line %s: %w", c.Name(), err)
	}
	if c.Baud != 0 && (c.Baud < 300 || c.Baud > 4_000_000) {
		return fmt.Errorf("modbus line %s: baud %d: want 300..4000000", c.Name(), c.Baud)
	}
	if c.Timeout != 0 && (c.Timeout < time.Millisecond || c.Timeout > time.Minute) {
		return fmt.Errorf("modbus line %s: timeout %v: want 1ms..1m", c.Name(), c.Timeout)
	}
	return nil
}

// Class ranks requests. A waiting request of a higher class always goes
// first; within a class the earliest deadline does.
type Class uint8

// Classes, most urgent first. The zero value stands for Slow.
const (
	Safety Class = 1 + iota // limits and stops of actuators
	Fast                    // what the control loop regulates on
	Slow                    // everything else that is polled
	Scan                    // looking for devices
)

func (c Class) String() string {
	switch c {
	case Safety:
		return "safety"
	case Fast:
		return "fast"
	case 0, Slow:
		return "slow"
	case Scan:
		return "scan"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// DeviceConfig describes one slave and how it likes to be asked.
type DeviceConfig struct {
	Unit  uint8  // 1..247; over TCP also 0 and 255
	Name  string // the device's id, for errors
	Class Class  // of all requests through this handle

	Gap            time.Duration // least pause between two requests to this unit
	SlaveChangeGap time.Duration // least silence when the line turns to this unit from another
	ConnectDelay   time.Duration // least pause after the line was opened
	Timeout        time.Duration // 0 takes the line's
	MaxBlock       int           // registers per read, 1..125; 0 means 125
}

// Validate reports the first thing wrong with c on a line that is TCP or not.
func (c *DeviceConfig) Validate(tcp bool) error {
	switch {
	case c.Unit >= 1 && c.Unit <= 247:
	case tcp && (c.Unit == 0 || c.Unit == 255):
	case tcp:
		return fmt.Errorf("modbus device %q: unit %d: want 0..247 or 255", c.Name, c.Unit)
	default:
		return fmt.Errorf("modbus device %q: unit %d: want 1..247", c.Name, c.Unit)
	}
	if c.Class > Scan {
		return fmt.Errorf("modbus device %q: unknown %v", c.Name, c.Class)
	}
	if c.MaxBlock < 0 || c.MaxBlock > MaxRead {
		return fmt.Errorf("modbus device %q: largest block %d: want 1..%d registers", c.Name, c.MaxBlock, MaxRead)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"gap", c.Gap}, {"slave change gap", c.SlaveChangeGap}, {"connect delay", c.ConnectDelay}, {"timeout", c.Timeout}} {
		if d.d < 0 || d.d > time.Minute {
			return fmt.Errorf("modbus device %q: %s %v: want 0..1m", c.Name, d.name, d.d)
		}
	}
	return nil
}
