package board

import (
	"fmt"

	"github.com/joulegate/joulegate/meter"
)

// Board describes one kind of hardware.
type Board struct {
	ID     string   `yaml:"id"`
	Title  string   `yaml:"title"`
	Source string   `yaml:"source"`           // the document the figures are from
	Detect []string `yaml:"detect,omitempty"` // device-tree compatible strings that identify it
	Pins   []Pin    `yaml:"pins,omitempty"`
	Buses  []Bus    `yaml:"buses,omitempty"`
	Rating Rating   `yaml:"rating"`
	// OwnPins allows configuration to add lines that the installer has wired.
	OwnPins bool     `yaml:"own_pins,omitempty"`
	Notes   []string `yaml:"notes,omitempty"` // what an installer must do so that the safe states hold
}

// Backend says how a pin is reached.
type Backend string

// Back ends.
const (
	BackendSocket Backend = "socket" // a simulated pin over a Unix socket
	BackendChip   Backend = "chip"   // a line of a GPIO character device
)

// Direction of a pin.
type Direction string

// Directions.
const (
	Output Direction = "output"
	Input  Direction = "input"
)

// Polarity says which level means active (an input) or energised (an output).
type Polarity string

// Polarities.
const (
	ActiveHigh Polarity = "active_high"
	ActiveLow  Polarity = "active_low"
)

// Pull is the bias of an input, or of an output whose driver is gone.
type Pull string

// Biases.
const (
	PullNone Pull = "none"
	PullUp   Pull = "up"
	PullDown Pull = "down"
)

// Pin is one line with a meaning.
type Pin struct {
	Name      string    `yaml:"name"` // as configuration refers to it: RELAY1, IN1
	Backend   Backend   `yaml:"backend"`
	Chip      string    `yaml:"chip,omitempty"`   // label of the GPIO chip, for example pinctrl-bcm2835
	Line      int       `yaml:"line,omitempty"`   // offset on the chip
	Label     string    `yaml:"label,omitempty"`  // line name the kernel gives; preferred to the offset
	Header    int       `yaml:"header,omitempty"` // position on the board's header, for people
	Direction Direction `yaml:"direction"`
	Polarity  Polarity  `yaml:"polarity"`
	Pull      Pull      `yaml:"pull"`
	// SafeHigh is the level an undriven output is pulled to. With the
	// polarity it must mean "open": Check refuses a board where it does not.
	SafeHigh bool `yaml:"safe_high,omitempty"`
	// Debounce is how long an input has to be steady, in microseconds, where
	// the chip can tell; 0: every change counts.
	Debounce uint32 `yaml:"debounce_us,omitempty"`
	// MaxCurrent is what the contact behind an output carries per phase;
	// 0 means that only the board's rating limits it.
	MaxCurrent meter.MilliAmpere `yaml:"max_current_ma,omitempty"`
}

// Bus is a serial line of the board.
type Bus struct {
	Name   string `yaml:"name"`   // rs485
	Device string `yaml:"device"` // usual device file
}

// Rating holds the limits of the hardware.
type Rating struct {
	MaxCurrent  meter.MilliAmpere `yaml:"max_current_ma"` // per phase
	Phases      int               `yaml:"phases"`         // 1 or 3
	MaxChargers int               `yaml:"max_chargers"`
}

// Pin returns the pin of that name.
func (b *Board) Pin(name string) (Pin, bool) {
	for _, p := range b.Pins {
		if p.Name == name {
			return p, true
		}
	}
	return Pin{}, false
}

// Check reports the first thing wrong with the description.
func (b *Board) Check() error {
	if b.ID == "" || b.Title == "" {
		return fmt.Errorf("board %q: id and title are required", b.ID)
	}
	if b.Rating.MaxCurrent < 0 || b.Rating.MaxCurrent > 80_000 || (b.Rating.Phases != 1 && b.Rating.Phases != 3) || b.Rating.MaxChargers < 0 {
		return fmt.Errorf("board %s: rating %+v out of range", b.ID, b.Rating)
	}
	seen := map[string]bool{}
	for _, p := range b.Pins {
		if p.Name == "" || seen[p.Name] {
			return fmt.Errorf("board %s: pin name %q is missing or used twice", b.ID, p.Name)
		}
		seen[p.Name] = true
		if p.Backend != BackendSocket && p.Backend != BackendChip {
			return fmt.Errorf("board %s: pin %s: unknown backend %q", b.ID, p.Name, p.Backend)
		}
		if p.Polarity != ActiveHigh && p.Polarity != ActiveLow {
			return fmt.Errorf("board %s: pin %s: unknown polarity %q", b.ID, p.Name, p.Polarity)
		}
		if p.Pull != PullNone && p.Pull != PullUp && p.Pull != PullDown {
			return fmt.Errorf("board %s: pin %s: unknown pull %q", b.ID, p.Name, p.Pull)
		}
		switch p.Direction {
		case Input:
		case Output:
			if p.SafeHigh == (p.Polarity == ActiveHigh) {
				return fmt.Errorf("board %s: pin %s: an undriven output must leave the relay open, safe level high=%t with %s closes it", b.ID, p.Name, p.SafeHigh, p.Polarity)
			}
			if p.Pull == PullUp && !p.SafeHigh || p.Pull == PullDown && p.SafeHigh {
				return fmt.Errorf("board %s: pin %s: pull %s closes the relay when nobody drives it", b.ID, p.Name, p.Pull)
			}
		default:
			return fmt.Errorf("board %s: pin %s: unknown direction %q", b.ID, p.Name, p.Direction)
		}
	}
	return nil
}
