package gpiochip

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/drivers/gpio"
	"golang.org/x/sys/unix"
	periph "periph.io/x/conn/v3/gpio"
)

// relayPin is RELAY1 of a board with an active-low relay module on line 1.
var relayPin = board.Pin{
	Name: "RELAY1", Backend: board.BackendChip, Chip: "pinctrl-bcm2835", Line: 1, Label: "GPIO17",
	Direction: board.Output, Polarity: board.ActiveLow, Pull: board.PullUp, SafeHigh: true,
}

// activeHigh is the same with a driver that a high level energises.
func activeHigh() board.Pin {
	p := relayPin
	p.Polarity, p.Pull, p.SafeHigh = board.ActiveHigh, board.PullDown, false
	return p
}

var stopPin = board.Pin{
	Name: "IN1", Backend: board.BackendChip, Chip: "pinctrl-bcm2835", Line: 2, Label: "GPIO5",
	Direction: board.Input, Polarity: board.ActiveHigh, Pull: board.PullUp, Debounce: 2000,
}

func pi() *fakeChip { return newChip(0, "pinctrl-bcm2835", "ID_SDA", "GPIO17", "GPIO5") }

func expect(t *testing.T, k *fakeKernel, want ...string) {
	t.Helper()
	if !slices.Equal(k.calls, want) {
		t.Errorf("the kernel was asked\n  %s\nwant\n  %s", strings.Join(k.calls, "\n  "), strings.Join(want, "\n  "))
	}
}

// TestNoGlitch: from before it is opened until it is told to close, an output
// shows its safe level and nothing else. A driver that sets direction and
// level apart fails this: the relay would click at every start.
func TestNoGlitch(t *testing.T) {
	for _, c := range []struct {
		pin          board.Pin
		before       string // what the line was: an input with this bias, or left driven by a killed program
		wave, opened string
	}{
		{relayPin, "pulled up", "1", "output pull-up =1"},
		{relayPin, "left at its safe level", "1", "output pull-up =1"},
		{relayPin, "left energised", "01", "output pull-up =1"},
		{activeHigh(), "pulled down", "0", "output pull-down =0"},
		{activeHigh(), "left energised", "10", "output pull-down =0"},
	} {
		t.Run(string(c.pin.Pull)+" "+c.before, func(t *testing.T) {
			chip := pi()
			l := chip.lines[1]
			on := c.pin.Polarity == board.ActiveHigh
			switch c.before {
			case "pulled up":
				l.flags = flagPullUp
			case "left at its safe level":
				l.output, l.level = true, !on
			case "left energised":
				l.output, l.level = true, on
			}
			l.wave = map[bool]string{true: "1", false: "0"}[l.shows()]
			k := newFake(t, chip)
			r, err := gpio.NewRelay(&Chips{k: k}, c.pin)
			if err != nil {
				t.Fatal(err)
			}
			if l.wave != c.wave {
				t.Errorf("the line showed %s while it was opened, want %s", l.wave, c.wave)
			}
			safe := map[bool]string{true: "set 1", false: "set 0"}[c.pin.SafeHigh]
			expect(t, k, "line 1 "+c.opened, safe)
			if err := r.Set(true); err != nil || l.level != on {
				t.Errorf("closed: level high %t, %v", l.level, err)
			}
			if len(l.wave) != len(c.wave)+1 {
				t.Errorf("to close it took %s", l.wave)
			}
			if l.consumer != Consumer {
				t.Errorf("gpioinfo shows %q", l.consumer)
			}
		})
	}
}

// TestReadingAnOutputReads: looking at a relay must not make it an input,
// which would open or, with a pull-up, close it.
func TestReadingAnOutputReads(t *testing.T) {
	chip := pi()
	k := newFake(t, chip)
	c := &Chips{k: k}
	r, err := gpio.NewRelay(c, relayPin)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Set(true); err != nil {
		t.Fatal(err)
	}
	k.calls = nil
	for range 3 {
		if closed, err := r.Closed(); err != nil || !closed {
			t.Errorf("reads %t, %v", closed, err)
		}
	}
	expect(t, k, "get", "get", "get")
	l := chip.lines[1]
	if !l.output || l.shows() || l.wave != "010" {
		t.Errorf("after reading: output %t, %s", l.output, l.wave)
	}
	// Nor may periph's own way to make it an input.
	p := c.pins[0]
	if p.In(periph.PullUp, periph.NoEdge) == nil || !l.output {
		t.Error("an output was made an input")
	}
	if p.Read() != periph.Low || p.Function() != "output" || p.Number() != 1 || p.Pull() != periph.PullUp {
		t.Errorf("%s: %s %s %s", p, p.Read(), p.Function(), p.Pull())
	}
}

// TestLevelsAreLevels: the kernel's own active-low would turn polarity twice.
func TestLevelsAreLevels(t *testing.T) {
	for _, p := range []board.Pin{relayPin, activeHigh(), stopPin} {
		k := newFake(t, pi())
		if _, err := (&Chips{k: k}).Open(p); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.Join(k.calls, " "), "active-low") {
			t.Errorf("%s: %s", p.Name, k.calls)
		}
	}
}

// TestAfterKill: what a killed program leaves behind depends on the kernel.
// With the bias it is safe where the line is freed; where it persists, the
// next one to open it (a restart, joulegate safe-state) opens the relay with
// its first and only call.
func TestAfterKill(t *testing.T) {
	for _, p := range []board.Pin{relayPin, activeHigh()} {
		for _, persist := range []bool{false, true} {
			chip := pi()
			k := newFake(t, chip)
			k.persist = persist
			r, err := gpio.NewRelay(&Chips{k: k}, p)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Set(true); err != nil {
				t.Fatal(err)
			}
			k.kill()
			l := chip.lines[1]
			if open := l.shows() == p.SafeHigh; open == persist {
				t.Fatalf("the fake is wrong: persist %t, open %t", persist, open)
			}
			k.calls = nil
			if _, err := (&Chips{k: k}).Open(p); err != nil {
				t.Fatal(err)
			}
			if l.shows() != p.SafeHigh || len(k.calls) != 1 {
				t.Errorf("persist %t: open %t after %s", persist, l.shows() == p.SafeHigh, k.calls)
			}
		}
	}
}

// TestCloseIsSafe: an orderly end leaves the safe level behind on every
// kernel, and later use fails instead of reaching another file.
func TestCloseIsSafe(t *testing.T) {
	chip := pi()
	k := newFake(t, chip)
	k.persist = true
	c := &Chips{k: k}
	r, err := gpio.NewRelay(c, relayPin)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Set(true); err != nil {
		t.Fatal(err)
	}
	k.calls = nil
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, k, "set 1", "free")
	if !chip.lines[1].shows() || len(k.files) != 0 {
		t.Errorf("energised %t, %d files left", !chip.lines[1].shows(), len(k.files))
	}
	if r.Set(true) == nil {
		t.Error("a pin that was given back is driven")
	}
	if _, err := r.Closed(); err == nil {
		t.Error("a pin that was given back is read")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestLineIsFoundByName: numbers of chips and offsets differ among kernels.
func TestLineIsFoundByName(t *testing.T) {
	other := newChip(0, "raspberrypi-exp-gpio", "BT_ON", "GPIO17")
	moved := newChip(10, "pinctrl-bcm2835", "ID_SDA", "ID_SCL", "GPIO5", "GPIO17")
	nameless := newChip(4, "pinctrl-bcm2835", "", "", "")
	linked := pi()
	linked.path = "/dev/gpiochip4" // a second name for gpiochip0
	for _, c := range []struct {
		name  string
		chips []*fakeChip
		pin   func(*board.Pin)
		want  string // call, or part of the error
	}{
		{"the name wins over the offset", []*fakeChip{other, moved}, nil, "line 3 output"},
		{"the offset where names differ", []*fakeChip{other, nameless}, nil, "line 1 output"},
		{"a chip with two device files", []*fakeChip{pi(), linked}, nil, "line 1 output"},
		{"a name alone", []*fakeChip{moved}, func(p *board.Pin) { p.Chip, p.Line = "", 0 }, "line 3 output"},
		{"a name alone that two chips have", []*fakeChip{other, moved}, func(p *board.Pin) { p.Chip = "" }, "the name GPIO17 means line 1 (GPIO17) of gpiochip0 [raspberrypi-exp-gpio] and line 3"},
		{"a name alone that nobody has", []*fakeChip{nameless}, func(p *board.Pin) { p.Chip = "" }, "no line is named GPIO17"},
		{"two chips of one label", []*fakeChip{nameless, newChip(5, "pinctrl-bcm2835", "")}, nil, "2 chips are labelled"},
		{"another board", []*fakeChip{newChip(0, "pinctrl-rp1", "GPIO17")}, nil, `no chip is labelled "pinctrl-bcm2835", there is pinctrl-rp1`},
		{"beyond the last", []*fakeChip{nameless}, func(p *board.Pin) { p.Line = 3 }, "has lines 0 to 2, not 3"},
		{"nothing to go by", []*fakeChip{nameless}, func(p *board.Pin) { p.Chip, p.Label = "", "" }, "neither chip nor label"},
		{"no chips", nil, nil, "there is no /dev/gpiochip*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, chip := range c.chips {
				for _, l := range chip.lines {
					l.consumer, l.output = "", false
				}
			}
			p := relayPin
			if c.pin != nil {
				c.pin(&p)
			}
			k := newFake(t, c.chips...)
			_, err := (&Chips{k: k}).Open(p)
			got := strings.Join(k.calls, " ")
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if err == nil && len(k.files) != 1 {
				t.Errorf("%d files are open, want the line's", len(k.files))
			}
		})
	}
}

func TestErrorsNameTheRemedy(t *testing.T) {
	chip := pi()
	chip.lines[1].consumer = "fan"
	k := newFake(t, chip)
	_, err := (&Chips{k: k}).Open(relayPin)
	if err == nil || !strings.Contains(err.Error(), `in use by "fan"`) || !strings.Contains(err.Error(), "line 1 (GPIO17) of gpiochip0 [pinctrl-bcm2835]") {
		t.Errorf("a line in use: %v", err)
	}
	k.deny = unix.EACCES
	if _, err = (&Chips{k: k}).Open(relayPin); err == nil || !strings.Contains(err.Error(), "group") {
		t.Errorf("no permission: %v", err)
	}
	if _, err = New().Open(board.Pin{Name: "X", Backend: board.BackendSocket}); err == nil {
		t.Error("a simulated pin on a chip")
	}
}

// TestInput: one request says everything; what NewInput asks for again is not
// asked of the kernel again.
func TestInput(t *testing.T) {
	chip := pi()
	k := newFake(t, chip)
	c := &Chips{k: k}
	in, err := gpio.NewInput(c, stopPin)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, k, "line 2 input pull-up debounce=2000us")
	if on, err := in.Active(); err != nil || !on {
		t.Errorf("an open contact under a pull-up reads %t, %v", on, err)
	}
	if p := c.pins[0]; p.Out(periph.High) == nil || p.PWM(0, 0) == nil {
		t.Error("an input is driven")
	}
	// Another bias is one SET_CONFIG, and never leaves input.
	if err := c.pins[0].In(periph.Float, periph.NoEdge); err != nil {
		t.Fatal(err)
	}
	expect(t, k, "line 2 input pull-up debounce=2000us", "get", "config input bias-off debounce=2000us")
}

func TestInputWithoutInterruptsIsNotDebounced(t *testing.T) {
	k := newFake(t, pi())
	k.noIRQ = true
	c := &Chips{k: k}
	if _, err := c.Open(stopPin); err != nil {
		t.Fatal(err)
	}
	expect(t, k, "line 2 input pull-up debounce=2000us", "line 2 input pull-up")
	if err := c.pins[0].In(periph.PullUp, periph.BothEdges); err == nil {
		t.Error("edges without interrupts")
	}
}

func TestEdges(t *testing.T) {
	chip := pi()
	k := newFake(t, chip)
	c := &Chips{k: k}
	p, err := c.Open(stopPin)
	if err != nil {
		t.Fatal(err)
	}
	if p.WaitForEdge(-1) {
		t.Error("an edge that was not asked for")
	}
	if err := p.In(periph.Float, periph.RisingEdge); err != nil {
		t.Fatal(err)
	}
	if p.WaitForEdge(time.Millisecond) {
		t.Error("an edge on a quiet line")
	}
	seen := make(chan bool)
	go func() { seen <- p.WaitForEdge(-1) }()
	k.put(chip.lines[2], true)
	if !<-seen {
		t.Error("a rise was not seen")
	}
	k.put(chip.lines[2], false)
	if p.WaitForEdge(0) {
		t.Error("a fall counts as a rise")
	}
	go func() { seen <- p.WaitForEdge(-1) }()
	p.Halt()
	if <-seen {
		t.Error("Halt is an edge")
	}
	go func() { seen <- p.WaitForEdge(-1) }()
	if err := c.Close(); err != nil || <-seen {
		t.Error(err)
	}
}

func TestLinesChangesNothing(t *testing.T) {
	chip := pi()
	chip.lines[0].consumer = "i2c"
	k := newFake(t, chip)
	lines, err := (&Chips{k: k}).Lines()
	if err != nil || len(lines) != 3 || len(k.calls) != 0 || len(k.files) != 0 {
		t.Fatalf("%v %v, calls %s, %d files", lines, err, k.calls, len(k.files))
	}
	if l := lines[0]; !l.Used || l.Consumer != "i2c" || l.Name != "ID_SDA" || lines[1].Used {
		t.Errorf("%+v", lines)
	}
}

// TestLayout holds the structures against the kernel's header: a wrong size
// is a request that the kernel refuses, a wrong offset one that it obeys.
func TestLayout(t *testing.T) {
	var (
		r unix.GPIOV2LineRequest
		a unix.GPIOV2LineConfigAttribute
		i unix.GPIOV2LineInfo
		e unix.GPIOV2LineEvent
	)
	got := []uintptr{
		unsafe.Sizeof(unix.GPIOChipInfo{}), unsafe.Sizeof(unix.GPIOV2LineValues{}), unsafe.Sizeof(unix.GPIOV2LineConfig{}),
		unsafe.Sizeof(r), unsafe.Offsetof(r.Config), unsafe.Offsetof(r.Num_lines), unsafe.Offsetof(r.Fd),
		unsafe.Sizeof(a), unsafe.Offsetof(a.Attr.Flags), unsafe.Offsetof(a.Mask),
		unsafe.Sizeof(i), unsafe.Offsetof(i.Consumer), unsafe.Offsetof(i.Flags),
		unsafe.Sizeof(e), unsafe.Offsetof(e.Id),
	}
	// The sizes are part of the request numbers: _IOWR(0xB4, n, type).
	want := []uintptr{68, 16, 272, 592, 288, 560, 588, 24, 8, 16, 256, 32, 72, 48, 8}
	if !slices.Equal(got, want) {
		t.Errorf("have %d, linux/gpio.h has %d", got, want)
	}
	for request, size := range map[uint]uintptr{unix.GPIO_V2_GET_LINE_IOCTL: 592, setConfig: 272, unix.GPIO_V2_LINE_GET_VALUES_IOCTL: 16, unix.GPIO_V2_GET_LINEINFO_IOCTL: 256} {
		if uintptr(request>>16&0x3fff) != size {
			t.Errorf("request %#x says %d bytes, want %d", request, request>>16&0x3fff, size)
		}
	}
	const header = "/usr/include/linux/gpio.h"
	cc, err := exec.LookPath("cc")
	if _, missing := os.Stat(header); missing != nil || err != nil {
		return // the figures above were taken from it
	}
	src := filepath.Join(t.TempDir(), "gpio.c")
	program := `#include <linux/gpio.h>
#include <stddef.h>
#include <sys/ioctl.h>
#define IS(x, n) _Static_assert((x) == (n), #x)
IS(sizeof(struct gpiochip_info), 68); IS(sizeof(struct gpio_v2_line_values), 16);
IS(sizeof(struct gpio_v2_line_config), 272); IS(sizeof(struct gpio_v2_line_request), 592);
IS(offsetof(struct gpio_v2_line_request, config), 288); IS(offsetof(struct gpio_v2_line_request, num_lines), 560);
IS(offsetof(struct gpio_v2_line_request, fd), 588); IS(sizeof(struct gpio_v2_line_config_attribute), 24);
IS(offsetof(struct gpio_v2_line_config_attribute, attr.flags), 8); IS(offsetof(struct gpio_v2_line_config_attribute, attr.debounce_period_us), 8);
IS(offsetof(struct gpio_v2_line_config_attribute, mask), 16); IS(sizeof(struct gpio_v2_line_info), 256);
IS(offsetof(struct gpio_v2_line_info, consumer), 32); IS(offsetof(struct gpio_v2_line_info, flags), 72);
IS(sizeof(struct gpio_v2_line_event), 48); IS(offsetof(struct gpio_v2_line_event, id), 8);
IS(GPIO_V2_LINE_SET_CONFIG_IOCTL, 0xc110b40d); IS(GPIO_V2_GET_LINE_IOCTL, 0xc250b407);
IS(GPIO_V2_LINE_FLAG_USED, 1); IS(GPIO_V2_LINE_FLAG_ACTIVE_LOW, 2); IS(GPIO_V2_LINE_FLAG_INPUT, 4); IS(GPIO_V2_LINE_FLAG_OUTPUT, 8);
IS(GPIO_V2_LINE_FLAG_EDGE_RISING, 16); IS(GPIO_V2_LINE_FLAG_EDGE_FALLING, 32); IS(GPIO_V2_LINE_FLAG_BIAS_PULL_UP, 256);
IS(GPIO_V2_LINE_FLAG_BIAS_PULL_DOWN, 512); IS(GPIO_V2_LINE_FLAG_BIAS_DISABLED, 1024);
`
	if err := os.WriteFile(src, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-fsyntax-only", src).CombinedOutput(); err != nil {
		t.Errorf("%s: %s", header, out)
	}
}
