package gpio

import (
	"errors"
	"testing"

	"github.com/joulegate/joulegate/board"
	periph "periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpiotest"
)

// bench opens pins that a test holds in its hand.
type bench map[string]periph.PinIO

func (b bench) Open(p board.Pin) (periph.PinIO, error) {
	if pin, ok := b[p.Name]; ok {
		return pin, nil
	}
	return nil, errors.New("no such pin")
}

// broken is a pin that cannot be read.
type broken struct{ *gpiotest.Pin }

func (broken) Level() (periph.Level, error) { return periph.Low, errors.New("wire cut") }

func TestPolarity(t *testing.T) {
	for _, c := range []struct {
		polarity board.Polarity
		on       periph.Level
	}{{board.ActiveHigh, periph.High}, {board.ActiveLow, periph.Low}} {
		out := &gpiotest.Pin{N: "R", L: c.on}
		in := &gpiotest.Pin{N: "I", L: c.on}
		b := bench{"R": out, "I": in}
		r, err := NewRelay(b, board.Pin{Name: "R", Direction: board.Output, Polarity: c.polarity})
		if err != nil {
			t.Fatal(err)
		}
		if out.L == c.on {
			t.Errorf("%s: a new relay is energised", c.polarity)
		}
		for _, closed := range []bool{true, false, true} {
			if err := r.Set(closed); err != nil {
				t.Fatal(err)
			}
			if back, err := r.Closed(); err != nil || back != closed || (out.L == c.on) != closed {
				t.Errorf("%s: set %t, reads %t, level %s, %v", c.polarity, closed, back, out.L, err)
			}
		}
		if err := r.Halt(); err != nil || out.L == c.on {
			t.Errorf("%s: halted and energised, %v", c.polarity, err)
		}
		i, err := NewInput(b, board.Pin{Name: "I", Direction: board.Input, Polarity: c.polarity, Pull: board.PullUp})
		if err != nil {
			t.Fatal(err)
		}
		in.L = c.on
		if a, err := i.Active(); err != nil || !a {
			t.Errorf("%s: active contact reads %t, %v", c.polarity, a, err)
		}
		in.L = !c.on
		if a, err := i.Active(); err != nil || a {
			t.Errorf("%s: inactive contact reads %t, %v", c.polarity, a, err)
		}
	}
}

func TestWrongPinsAreRefused(t *testing.T) {
	b := bench{"X": &gpiotest.Pin{N: "X"}}
	if _, err := NewRelay(b, board.Pin{Name: "X", Direction: board.Input}); err == nil {
		t.Error("an input is a relay")
	}
	if _, err := NewInput(b, board.Pin{Name: "X", Direction: board.Output}); err == nil {
		t.Error("an output is an input")
	}
	if _, err := NewRelay(b, board.Pin{Name: "Y", Direction: board.Output}); err == nil {
		t.Error("a pin that is not there opens")
	}
}

func TestAPinThatCannotBeReadSaysSo(t *testing.T) {
	b := bench{"I": broken{&gpiotest.Pin{N: "I"}}, "R": broken{&gpiotest.Pin{N: "R"}}}
	i, err := NewInput(b, board.Pin{Name: "I", Direction: board.Input, Polarity: board.ActiveHigh})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Active(); err == nil {
		t.Error("input")
	}
	r, err := NewRelay(b, board.Pin{Name: "R", Direction: board.Output, Polarity: board.ActiveHigh})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Closed(); err == nil {
		t.Error("relay")
	}
}
