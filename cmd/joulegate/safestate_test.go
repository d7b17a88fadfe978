package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/boards"
	"github.com/joulegate/joulegate/drivers/gpio/simpin"
	"periph.io/x/conn/v3/gpio"
)

const safeConfig = `version: 1
name: north
board: simulated
lines: [{id: bus, tcp: 127.0.0.1:502}]
meters:
- {id: house, line: bus, unit: 1, profile: eastron-sdm630, role: site}
- {id: car, line: bus, unit: 2, profile: eastron-sdm630, role: charger}
chargers: [{id: 1, meter: car, relay: RELAY2}]
pins: {socket: SOCKET}
`

// TestSafeState opens what another program has left closed, without a state
// folder, and says what became of each output.
func TestSafeState(t *testing.T) {
	dir, err := os.MkdirTemp("", "jg-safe-") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket, file := filepath.Join(dir, "pins"), filepath.Join(dir, "joulegate.yaml")
	b, err := boards.Get("simulated")
	if err != nil {
		t.Fatal(err)
	}
	type change struct {
		pin  string
		high bool
	}
	changes := make(chan change, 16)
	srv, err := simpin.Listen(simpin.ServerConfig{Path: socket, Pins: b.Pins, OnChange: func(pin string, high bool) { changes <- change{pin, high} }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	if err := os.WriteFile(file, []byte(strings.Replace(safeConfig, "SOCKET", socket, 1)), 0o600); err != nil {
		t.Fatal(err)
	}

	// A gateway that hangs: it holds the pins, and the relay is closed.
	hung, err := simpin.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	d, _ := b.Pin("RELAY2")
	pin, err := hung.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := pin.Out(gpio.High); err != nil {
		t.Fatal(err)
	}
	if c := <-changes; c != (change{"RELAY2", true}) {
		t.Fatal(c)
	}

	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"safe-state", "--config", file, "--state", "/nowhere", "--json"}, nil, &out, &errOut); code != 0 {
		t.Fatalf("exit %d: %s%s", code, out.String(), errOut.String())
	}
	if c := <-changes; c != (change{"RELAY2", false}) {
		t.Fatal(c)
	}
	var got struct {
		OK      bool         `json:"ok"`
		Board   string       `json:"board"`
		Outputs []safeOutput `json:"outputs"`
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if !got.OK || got.Board != "simulated" || len(got.Outputs) != 3 {
		t.Errorf("%+v", got)
	}
	for _, o := range got.Outputs {
		if o.State != "safe" || o.Used != (o.Pin == "RELAY2") {
			t.Errorf("%+v", o)
		}
	}

	for name, args := range map[string][]string{
		"no configuration and no board":    {"safe-state", "--config", filepath.Join(dir, "none.yaml")},
		"a broken configuration, no board": {"safe-state", "--config", socket + ".yaml"},
	} {
		_ = os.WriteFile(socket+".yaml", []byte("version: 9\n"), 0o600)
		errOut.Reset()
		if code := run(t.Context(), args, nil, &out, &errOut); code != 1 || !strings.Contains(errOut.String(), "nor does this computer say which board it is") {
			t.Errorf("%s: exit %d, %s", name, code, errOut.String())
		}
	}
	cancel()
	<-ended
	ended <- nil
	errOut.Reset()
	if code := run(t.Context(), []string{"safe-state", "--config", file}, nil, &out, &errOut); code != 1 || !strings.Contains(errOut.String(), socket) {
		t.Errorf("pins that are gone: exit %d, %s", code, errOut.String())
	}
}

// TestRealPinsNeedTheBoard: a gateway configured for hardware that is not
// there says what is missing instead of charging with nothing in its hand.
func TestRealPinsNeedTheBoard(t *testing.T) {
	if _, err := os.Stat("/dev/gpiochip0"); err == nil {
		return // this machine has GPIO: another test's business
	}
	file := filepath.Join(t.TempDir(), "joulegate.yaml")
	text := strings.Replace(strings.Replace(safeConfig, "simulated", "raspberrypi-4", 1), "pins: {socket: SOCKET}\n", "", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"safe-state", "--config", file}, nil, &out, &errOut); code != 1 || !strings.Contains(out.String(), "no /dev/gpiochip*") {
		t.Errorf("exit %d: %s%s", code, out.String(), errOut.String())
	}
	out.Reset()
	if code := run(t.Context(), []string{"board", "show", "--config", file}, nil, &out, &errOut); code != 0 || !strings.Contains(out.String(), "P1_11") || !strings.Contains(out.String(), "persist_gpio_outputs=0") {
		t.Errorf("exit %d: %s%s", code, out.String(), errOut.String())
	}
	out.Reset()
	if code := run(t.Context(), []string{"board", "ls", "--json"}, nil, &out, &errOut); code != 0 || !strings.Contains(out.String(), `"revpi-connect"`) {
		t.Errorf("exit %d: %s%s", code, out.String(), errOut.String())
	}
}
