package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/boards"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/drivers/gpio"
	"github.com/joulegate/joulegate/drivers/gpio/gpiochip"
	"github.com/joulegate/joulegate/drivers/gpio/simpin"
	periph "periph.io/x/conn/v3/gpio"
	"periph.io/x/host/v3/distro"
)

// pins are the pins of a board, and a way to reach them.
type pins struct {
	board board.Board
	gpio.Opener
	close func() error // gives all pins back, outputs at their safe level
}

// openPins reaches pins from this process. A running gateway has its reflex
// for that.
func openPins(cfg config.Config) (*pins, error) {
	b, err := cfg.Hardware()
	if err != nil {
		return nil, err
	}
	d := &directPins{chips: gpiochip.New()}
	if cfg.Pins.Socket != "" {
		if d.sim, err = simpin.Dial(cfg.Pins.Socket); err != nil {
			return nil, fmt.Errorf("pins %s: %w", cfg.Pins.Socket, err)
		}
	}
	return &pins{b, d, d.close}, nil
}

// directPins opens each pin the way its description says.
type directPins struct {
	sim   *simpin.Client // nil: none
	chips *gpiochip.Chips
}

// Open implements gpio.Opener.
func (p *directPins) Open(d board.Pin) (periph.PinIO, error) {
	switch d.Backend {
	case board.BackendChip:
		return p.chips.Open(d)
	case board.BackendSocket:
		if p.sim != nil {
			return p.sim.Open(d)
		}
		return nil, errors.New("pins.socket is not configured")
	}
	return nil, fmt.Errorf("pin %s: unknown back end %q", d.Name, d.Backend)
}

func (p *directPins) close() error {
	err := p.chips.Close()
	if p.sim != nil {
		err = errors.Join(err, p.sim.Close())
	}
	return err
}

// openPin opens a pin of the board by its name.
func openPin[T any](p *pins, name string, open func(gpio.Opener, board.Pin) (T, error)) (v T, err error) {
	d, ok := p.board.Pin(name)
	if !ok {
		return v, fmt.Errorf("board %s has no pin %s", p.board.ID, name)
	}
	return open(p, d)
}

// detectedBoard returns the board that this computer is, if it says so.
func detectedBoard() (id string, ok bool) { return boards.Detect(distro.DTCompatible()) }

// warnBoard tells when the configured board is not the one that the device
// tree names: its pins would be somewhere else.
func warnBoard(id string, log *slog.Logger) {
	if found, ok := detectedBoard(); ok && found != id && id != "generic" && id != "gpiochip" && id != "simulated" {
		log.Warn("the configured board is not the one this computer says it is", "board", id, "detected", found)
	}
}
