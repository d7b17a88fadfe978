package boards

import (
	"fmt"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/host/v3/rpi"
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
	const pulled = "{id: x, title: X, source: me, rating: {max_current_ma: 16000, phases: 1, max_chargers: 1}, pins: [{name: R, backend: chip, direction: output, polarity: active_high, pull: up}]}"
	if _, err := Parse([]byte(pulled)); err == nil || !strings.Contains(err.Error(), "pull up closes the relay") {
		t.Errorf("a relay that is pulled closed: %v", err)
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

// TestRaspberryPiHeaders holds lines and header positions against the tables
// of another project, periph.io/x/host. The header is the same on every model
// since the B+.
func TestRaspberryPiHeaders(t *testing.T) {
	header := map[int]gpio.PinIO{
		11: rpi.P1_11, 13: rpi.P1_13, 15: rpi.P1_15, 16: rpi.P1_16, 18: rpi.P1_18, 22: rpi.P1_22, 29: rpi.P1_29, 31: rpi.P1_31,
	}
	checked := 0
	for _, id := range IDs() {
		if !strings.HasPrefix(id, "raspberrypi-") {
			continue
		}
		b, err := Get(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range b.Pins {
			if want := fmt.Sprintf("GPIO%d", p.Line); p.Label != want || header[p.Header] == nil || header[p.Header].Name() != want {
				t.Errorf("%s: %s is line %d, %s, on pin %d, which is %v", id, p.Name, p.Line, p.Label, p.Header, header[p.Header])
			}
			// What the chip does until Linux runs: GPIO 0 to 8 are pulled up
			// and all others down at reset. An output has to leave its relay
			// open from then on.
			if p.Direction == board.Output && p.SafeHigh != (p.Line <= 8) {
				t.Errorf("%s: %s is pulled to where its relay is closed from reset on", id, p.Name)
			}
			checked++
		}
	}
	if checked != 4*8 {
		t.Errorf("%d pins were checked", checked)
	}
}

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		compatible []string
		want       string
	}{
		{[]string{"raspberrypi,model-zero-2-w", "brcm,bcm2837"}, "raspberrypi-zero-2-w"},
		{[]string{"raspberrypi,3-model-b-plus", "brcm,bcm2837"}, "raspberrypi-3"},
		{[]string{"raspberrypi,4-model-b", "brcm,bcm2711"}, "raspberrypi-4"},
		{[]string{"raspberrypi,5-model-b", "brcm,bcm2712"}, "raspberrypi-5"},
		{[]string{"kunbus,revpi-connect", "brcm,bcm2837", "brcm,bcm2836"}, "revpi-connect"},
		{[]string{"kunbus,revpi-connect-se", "raspberrypi,3-model-b"}, "revpi-connect"},
		{[]string{"linux,dummy-virt"}, "qemu-virt"},
		{[]string{"pine64,pine64", "allwinner,sun50i-a64"}, ""},
		{nil, ""},
	} {
		if id, ok := Detect(c.compatible); id != c.want || ok != (c.want != "") {
			t.Errorf("%s is %q, want %q", c.compatible, id, c.want)
		}
	}
	seen := map[string]string{}
	for _, id := range IDs() {
		b, _ := Get(id)
		for _, d := range b.Detect {
			if seen[d] != "" {
				t.Errorf("%s and %s are both %s", seen[d], id, d)
			}
			seen[d] = id
		}
	}
}
