package gpiochip

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/joulegate/joulegate/board"
	"golang.org/x/sys/unix"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/physic"
)

// Consumer is how this program appears in gpioinfo beside the lines it holds.
const Consumer = "joulegate"

// Chips opens pins of GPIO character devices. It is safe for concurrent use.
type Chips struct {
	k kernel

	mu   sync.Mutex
	pins []*pin
}

// New returns an opener of real pins. It opens nothing yet.
func New() *Chips { return &Chips{k: linux{}} }

// Open asks the kernel for a line. An output shows its safe level from this
// moment on; an input has the bias and debouncing of its description. The
// error of a line that is in use names its holder.
func (c *Chips) Open(p board.Pin) (gpio.PinIO, error) {
	if p.Backend != board.BackendChip {
		return nil, fmt.Errorf("pin %s is not on a GPIO chip but on %s", p.Name, p.Backend)
	}
	found, err := c.chips()
	if err != nil {
		return nil, fmt.Errorf("pin %s: %w", p.Name, err)
	}
	defer c.release(found)
	on, at, err := c.find(found, p)
	if err != nil {
		return nil, fmt.Errorf("pin %s: %w", p.Name, err)
	}
	cfg := configOf(p)
	fd, err := c.request(on, at.Offset, cfg)
	if debounced(err) && cfg.Num_attrs > 0 && p.Direction == board.Input {
		// A chip without interrupts cannot debounce. What remains is that
		// an input is looked at once per tick.
		cfg.Num_attrs, cfg.Attrs = 0, [10]unix.GPIOV2LineConfigAttribute{}
		fd, err = c.request(on, at.Offset, cfg)
	}
	if errors.Is(err, unix.EBUSY) {
		holder := "somebody"
		if now, err := c.line(on, at.Offset); err == nil && now.Consumer != "" {
			holder = fmt.Sprintf("%q", now.Consumer)
		}
		return nil, fmt.Errorf("pin %s: %s is in use by %s: %w", p.Name, at, holder, err)
	}
	if err != nil {
		return nil, fmt.Errorf("pin %s: %s: %w%s", p.Name, at, err, remedy(err))
	}
	out := &pin{k: c.k, d: p, at: at, fd: fd, cfg: cfg, halt: make(chan struct{}, 1)}
	c.mu.Lock()
	c.pins = append(c.pins, out)
	c.mu.Unlock()
	return out, nil
}

// Close takes every output to its safe level and gives all lines back.
func (c *Chips) Close() error {
	c.mu.Lock()
	pins := c.pins
	c.pins = nil
	c.mu.Unlock()
	var errs error
	for _, p := range pins {
		errs = errors.Join(errs, p.close())
	}
	return errs
}

func (c *Chips) request(on chip, offset int, cfg unix.GPIOV2LineConfig) (int, error) {
	r := unix.GPIOV2LineRequest{Num_lines: 1, Config: cfg, Fd: -1}
	r.Offsets[0] = uint32(offset)
	copy(r.Consumer[:len(r.Consumer)-1], Consumer)
	if err := c.k.Ioctl(on.fd, unix.GPIO_V2_GET_LINE_IOCTL, unsafe.Pointer(&r)); err != nil {
		return -1, err
	}
	return int(r.Fd), nil
}

// debounced reports whether a request was refused for what debouncing needs.
func debounced(err error) bool {
	return errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

// configOf is all that a line is asked to be, in one piece: direction, bias
// and, for an output, the level that leaves its relay open.
func configOf(p board.Pin) unix.GPIOV2LineConfig {
	var c unix.GPIOV2LineConfig
	switch p.Direction {
	case board.Output:
		c.Flags = flagOutput | outputBias(p)
		c.Num_attrs = 1
		c.Attrs[0] = unix.GPIOV2LineConfigAttribute{Attr: unix.GPIOV2LineAttribute{Id: unix.GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES, Flags: bit(p.SafeHigh)}, Mask: 1}
	default:
		c.Flags = flagInput | inputBias[pulls[p.Pull]]
		if p.Debounce > 0 {
			c.Num_attrs = 1
			c.Attrs[0] = unix.GPIOV2LineConfigAttribute{Attr: unix.GPIOV2LineAttribute{Id: unix.GPIO_V2_LINE_ATTR_ID_DEBOUNCE, Flags: uint64(p.Debounce)}, Mask: 1}
		}
	}
	return c
}

// outputBias pulls a line towards its safe level once nobody drives it.
func outputBias(p board.Pin) uint64 {
	switch p.Pull {
	case board.PullUp:
		return flagPullUp
	case board.PullDown:
		return flagPullDown
	}
	return 0
}

var (
	pulls     = map[board.Pull]gpio.Pull{board.PullNone: gpio.Float, board.PullUp: gpio.PullUp, board.PullDown: gpio.PullDown}
	inputBias = map[gpio.Pull]uint64{gpio.Float: flagBiasDisabled, gpio.PullUp: flagPullUp, gpio.PullDown: flagPullDown}
	edges     = map[gpio.Edge]uint64{gpio.NoEdge: 0, gpio.RisingEdge: flagRising, gpio.FallingEdge: flagFalling, gpio.BothEdges: flagRising | flagFalling}
)

func bit(high bool) uint64 {
	if high {
		return 1
	}
	return 0
}

// pin is one line as periph sees it.
type pin struct {
	k    kernel
	d    board.Pin
	at   Line
	halt chan struct{} // ends a WaitForEdge

	mu  sync.RWMutex // fd is used with it held, so that it is not another's
	fd  int          // -1: given back
	cfg unix.GPIOV2LineConfig
}

var _ gpio.PinIO = (*pin)(nil)

func (p *pin) String() string                        { return p.d.Name + ": " + p.at.String() }
func (p *pin) Name() string                          { return p.d.Name }
func (p *pin) Number() int                           { return p.at.Offset }
func (p *pin) Function() string                      { return string(p.d.Direction) }
func (p *pin) DefaultPull() gpio.Pull                { return gpio.PullNoChange }
func (p *pin) errClosed() error                      { return fmt.Errorf("%s was given back", p) }
func (p *pin) safe() gpio.Level                      { return gpio.Level(p.d.SafeHigh) }
func (p *pin) wrong(what string) error               { return fmt.Errorf("%s is an %s: %s", p, p.d.Direction, what) }
func (p *pin) failed(err error) error                { return fmt.Errorf("%s: %w", p, err) }
func (p *pin) isOutput() bool                        { return p.d.Direction == board.Output }
func (p *pin) PWM(gpio.Duty, physic.Frequency) error { return p.wrong("no PWM") }

// Pull returns the bias that the line was asked to have.
func (p *pin) Pull() gpio.Pull {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for pull, flag := range inputBias {
		if p.cfg.Flags&flag != 0 {
			return pull
		}
	}
	return gpio.PullNoChange
}

// Halt takes an output to its safe level and ends a wait for an edge.
func (p *pin) Halt() error {
	if p.isOutput() {
		return p.Out(p.safe())
	}
	select {
	case p.halt <- struct{}{}:
	default:
	}
	return nil
}

// Out drives the line.
func (p *pin) Out(l gpio.Level) error {
	if !p.isOutput() {
		return p.wrong("it is not driven")
	}
	v := unix.GPIOV2LineValues{Bits: bit(bool(l)), Mask: 1}
	return p.ioctl(unix.GPIO_V2_LINE_SET_VALUES_IOCTL, unsafe.Pointer(&v))
}

// Level returns the level on the line, of an output too, or why it cannot be
// known.
func (p *pin) Level() (gpio.Level, error) {
	v := unix.GPIOV2LineValues{Mask: 1}
	if err := p.ioctl(unix.GPIO_V2_LINE_GET_VALUES_IOCTL, unsafe.Pointer(&v)); err != nil {
		return p.safe(), err
	}
	return v.Bits&1 != 0, nil
}

// Read returns the level; a line that cannot be read reads as its safe level.
func (p *pin) Read() gpio.Level {
	l, _ := p.Level() // Level is for those who want to know
	return l
}

func (p *pin) ioctl(request uint, arg unsafe.Pointer) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.fd < 0 {
		return p.errClosed()
	}
	if err := p.k.Ioctl(p.fd, request, arg); err != nil {
		return p.failed(err)
	}
	return nil
}

// In sets the bias and the edges to wait for. An output stays an output: to
// look at it is no reason to stop driving a relay.
func (p *pin) In(pull gpio.Pull, edge gpio.Edge) error {
	if p.isOutput() {
		return p.wrong("it is not made an input")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return p.errClosed()
	}
	cfg := p.cfg
	if pull != gpio.PullNoChange {
		cfg.Flags = cfg.Flags&^(flagPullUp|flagPullDown|flagBiasDisabled) | inputBias[pull]
	}
	cfg.Flags = cfg.Flags&^(flagRising|flagFalling) | edges[edge]
	if cfg == p.cfg {
		return nil
	}
	if err := p.k.Ioctl(p.fd, setConfig, unsafe.Pointer(&cfg)); err != nil {
		return p.failed(err)
	}
	p.cfg = cfg
	return nil
}

// edgeWait bounds one wait in the kernel, so that Halt is heard.
const edgeWait = 50 * time.Millisecond

// eventSize is sizeof(struct gpio_v2_line_event).
const eventSize = int(unsafe.Sizeof(unix.GPIOV2LineEvent{}))

// WaitForEdge waits for an edge that In asked for, at most timeout; a negative
// one waits until Halt. All edges that are waiting count as one.
func (p *pin) WaitForEdge(timeout time.Duration) bool {
	var waited time.Duration
	for timeout < 0 || waited <= timeout {
		d := edgeWait
		if timeout >= 0 {
			d = min(d, timeout-waited)
		}
		edge, ok := p.wait(d)
		if edge || !ok {
			return edge
		}
		if waited += d; d == 0 {
			return false
		}
	}
	return false
}

func (p *pin) wait(d time.Duration) (edge, ok bool) {
	select {
	case <-p.halt:
		return false, false
	default:
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.fd < 0 || p.cfg.Flags&(flagRising|flagFalling) == 0 {
		return false, false
	}
	readable, err := p.k.Poll(p.fd, d)
	if err != nil || !readable {
		return false, err == nil
	}
	var b [16 * eventSize]byte
	n, err := p.k.Read(p.fd, b[:])
	return err == nil && n >= eventSize, err == nil
}

func (p *pin) close() error {
	err := p.Halt() // a wait ends too, so that the lock is free
	p.mu.Lock()
	defer p.mu.Unlock()
	err = errors.Join(err, p.k.Close(p.fd))
	p.fd = -1
	return err
}
