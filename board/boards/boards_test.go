package boards

import (
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board"
)

func TestBoardsAreSafe(t *testing.T) {
	for _, id := range IDs() {
		b, err := Get(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Check(); err != nil {
			t.Error(err)
		}
	}
	const unsafe = "{id: x, title: X, source: me, rating: {max_current_ma: 16000, phases: 1, max_chargers: 1}, pins: [{name: R, backend: chip, direction: output, polarity: active_low, pull: down}]}"
	if _, err := Parse([]byte(unsafe)); err == nil || !strings.Contains(err.Error(), "leave the relay open") {
		t.Errorf("a relay that closes when nobody drives it: %v", err)
	}
	pi := board.Board{ID: "pi", Title: "Pi", Rating: board.Rating{MaxCurrent: 16_000, Phases: 3, MaxChargers: 1}, Pins: []board.Pin{{
		Name: "RELAY1", Backend: board.BackendChip, Chip: "pinctrl-bcm2835", Line: 17, Label: "GPIO17", Header: 11, Direction: board.Output, Polarity: board.ActiveLow, Pull: board.PullUp, SafeHigh: true,
	}}}
	if err := pi.Check(); err != nil {
		t.Error(err)
	}
}

func TestUnknownBoardNamesTheKnownOnes(t *testing.T) {
	if _, err := Get("toaster"); err == nil || !strings.Contains(err.Error(), "generic, gpiochip, qemu-virt, raspberrypi-3") {
		t.Error(err)
	}
}

func TestUnknownKeyInABoardIsAnError(t *testing.T) {
	if _, err := Parse([]byte("{id: x, title: X, rating: {phases: 1, max_amps: 16}}")); err == nil || !strings.Contains(err.Error(), "max_amps") {
		t.Error(err)
	}
}
