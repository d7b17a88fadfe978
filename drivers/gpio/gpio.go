// Package gpio turns pins into relays and inputs.
//
// A pin has a level; a relay is open or closed; an input is active or not.
// The board's description says how one becomes the other, and this package is
// the only place where it does:
//
//	drivers.Relay.Set(closed) ──► polarity ──► periph gpio.PinIO.Out(level)
//	drivers.Input.Active()    ◄── polarity ◄── periph gpio.PinIO.Read()
//
// Where pins come from is an Opener: simpin for pins over a Unix socket, a
// GPIO character device for real ones. A pin that can fail to be read also
// implements Leveler, because periph's Read cannot say so, and a stop button
// that cannot be read must count as pressed.
package gpio

import (
	"fmt"
	"sync"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/drivers"
	periph "periph.io/x/conn/v3/gpio"
)

// Opener finds the pin that a board describes.
type Opener interface {
	Open(p board.Pin) (periph.PinIO, error)
}

// Leveler is a pin that can say that it could not be read.
type Leveler interface {
	Level() (periph.Level, error)
}

func level(p periph.PinIO) (periph.Level, error) {
	if l, ok := p.(Leveler); ok {
		return l.Level()
	}
	return p.Read(), nil
}

// Relay is a contactor coil on an output pin. It is safe for concurrent use.
type Relay struct {
	name string
	pin  periph.PinIO
	on   periph.Level

	mu sync.Mutex // orders writes; never held while reading back
}

var _ drivers.Relay = (*Relay)(nil)

// NewRelay makes the pin an output and opens the relay.
func NewRelay(o Opener, d board.Pin) (*Relay, error) {
	if d.Direction != board.Output {
		return nil, fmt.Errorf("relay %s: the board has it as %s", d.Name, d.Direction)
	}
	p, err := o.Open(d)
	if err != nil {
		return nil, fmt.Errorf("relay %s: %w", d.Name, err)
	}
	r := &Relay{name: d.Name, pin: p, on: periph.Level(d.Polarity == board.ActiveHigh)}
	if err := r.Halt(); err != nil {
		return nil, err
	}
	return r, nil
}

// Set closes (energises) or opens the contact.
func (r *Relay) Set(closed bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.on
	if !closed {
		l = !l
	}
	if err := r.pin.Out(l); err != nil {
		return fmt.Errorf("relay %s: %w", r.name, err)
	}
	return nil
}

// Closed reads the output back.
func (r *Relay) Closed() (bool, error) {
	l, err := level(r.pin)
	if err != nil {
		return false, fmt.Errorf("relay %s: %w", r.name, err)
	}
	return l == r.on, nil
}

// Halt opens the contact.
func (r *Relay) Halt() error { return r.Set(false) }

// Input is a digital contact on an input pin. It is safe for concurrent use.
type Input struct {
	name   string
	pin    periph.PinIO
	active periph.Level
}

var _ drivers.Input = (*Input)(nil)

// NewInput makes the pin an input with the bias the board asks for.
func NewInput(o Opener, d board.Pin) (*Input, error) {
	if d.Direction != board.Input {
		return nil, fmt.Errorf("input %s: the board has it as %s", d.Name, d.Direction)
	}
	p, err := o.Open(d)
	if err != nil {
		return nil, fmt.Errorf("input %s: %w", d.Name, err)
	}
	if err := p.In(pulls[d.Pull], periph.NoEdge); err != nil {
		return nil, fmt.Errorf("input %s: %w", d.Name, err)
	}
	return &Input{name: d.Name, pin: p, active: periph.Level(d.Polarity == board.ActiveHigh)}, nil
}

var pulls = map[board.Pull]periph.Pull{board.PullNone: periph.Float, board.PullUp: periph.PullUp, board.PullDown: periph.PullDown}

// Active reports whether the contact is in its active state.
func (i *Input) Active() (bool, error) {
	l, err := level(i.pin)
	if err != nil {
		return false, fmt.Errorf("input %s: %w", i.name, err)
	}
	return l == i.active, nil
}
