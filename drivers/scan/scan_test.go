package scan_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/scan"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// oops is an error as a line reports it.
type oops struct{ timeout, down, garbled, resting bool }

func (o oops) Error() string { return fmt.Sprintf("%+v", struct{ oops }{o}) }
func (o oops) Timeout() bool { return o.timeout }
func (o oops) Down() bool    { return o.down }
func (o oops) Garbled() bool { return o.garbled }
func (o oops) Resting() bool { return o.resting }

// refusal is a Modbus exception.
type refusal uint8

func (r refusal) Error() string            { return fmt.Sprintf("exception %d", uint8(r)) }
func (r refusal) Exception() (uint8, bool) { return uint8(r), true }

// bus is a line whose devices are at one setting each.
type bus struct {
	devices map[scan.Setting]map[uint8]profile.Image
	// fail, if set, may answer a read with an error before a device does.
	fail func(s scan.Setting, unit uint8, nth int) error

	thinks time.Duration // every device

	asked  []string // "setting unit", each first probe
	reads  map[string]int
	at     scan.Setting
	opened []scan.Setting
}

func (b *bus) open(_ context.Context, s scan.Setting) (scan.Bus, error) {
	b.at = s
	b.opened = append(b.opened, s)
	return b, nil
}

func (b *bus) Close() error    { return nil }
func (b *bus) Late(uint8) bool { return false }
func (b *bus) Register(u uint8, timeout time.Duration) drivers.Register {
	return register{b, b.at, u, timeout}
}

type register struct {
	b       *bus
	at      scan.Setting
	unit    uint8
	timeout time.Duration
}

func (r register) ReadRegisters(_ context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	if r.b.reads == nil {
		r.b.reads = map[string]int{}
	}
	key := fmt.Sprintf("%s %d", r.at, r.unit)
	if r.b.reads[key]++; r.b.reads[key] == 1 {
		r.b.asked = append(r.b.asked, key)
	}
	if r.b.fail != nil {
		if err := r.b.fail(r.at, r.unit, r.b.reads[key]); err != nil {
			return nil, err
		}
	}
	im, ok := r.b.devices[r.at][r.unit]
	if !ok || r.timeout < r.b.thinks {
		time.Sleep(r.timeout)
		return nil, oops{timeout: true}
	}
	if data, ok := im.Read(fn, addr, count); ok {
		return data, nil
	}
	return nil, refusal(2)
}

func (r register) WriteRegisters(context.Context, uint16, []uint16) error {
	panic("a scan writes nothing")
}

func sdm630(t *testing.T) profile.Image {
	t.Helper()
	p, err := profile.Get("eastron-sdm630")
	if err != nil {
		t.Fatal(err)
	}
	im, err := p.NewImage(0, profile.Identity{})
	if err != nil {
		t.Fatal(err)
	}
	points := []meter.Point{{Quantity: meter.Frequency, Value: 50_000}, {Quantity: meter.Import, Value: 6_000_000}}
	for phase := uint8(1); phase <= 3; phase++ {
		points = append(points, meter.Point{Quantity: meter.Voltage, Phase: phase, Value: 230_000}, meter.Point{Quantity: meter.Import, Phase: phase, Value: 2_000_000})
	}
	if err := p.Encode(points, im); err != nil {
		t.Fatal(err)
	}
	return im
}

func units(from, to int) (u []uint8) {
	for i := from; i <= to; i++ {
		u = append(u, uint8(i))
	}
	return u
}

// run scans in fake time.
func run(t *testing.T, b *bus, cfg scan.Config) (res scan.Result, err error) {
	t.Helper()
	cfg.Open, cfg.Profiles = b.open, profile.All()
	cfg.Probe, cfg.Sweep, cfg.Patient = 150*time.Millisecond, 50*time.Millisecond, 750*time.Millisecond
	synctest.Test(t, func(t *testing.T) { res, err = scan.Run(t.Context(), cfg) })
	return res, err
}

// What is likely comes first: factory units at every setting, then the rest of
// the bus at which something answered. Everything is asked once.
func TestLikelyFirst(t *testing.T) {
	live := scan.Setting{Baud: 19200, Framing: "8E1"}
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{live: {1: sdm630(t), 222: sdm630(t)}}}
	var progress []scan.Progress
	res, err := run(t, b, scan.Config{Settings: settings(), Units: units(1, 247), Full: true, Progress: func(p scan.Progress) { progress = append(progress, p) }})
	if err != nil || !res.Complete || !res.Full || res.Total != 24*247 || res.Probes != res.Total {
		t.Fatalf("%v %+v", err, res)
	}
	if len(res.Answers) != 2 || res.Answers[0].Unit != 1 || res.Answers[1].Unit != 222 || res.Answers[1].Setting != live {
		t.Fatalf("%+v", res.Answers)
	}
	if f := res.Answers[1].Findings; len(f) != 1 || f[0].Profile.ID != "eastron-sdm630" {
		t.Errorf("unit 222 is %+v", f)
	}
	first := slices.Index(b.asked, "19200 8E1 1")
	second := slices.Index(b.asked, "19200 8E1 222")
	other := slices.Index(b.asked, "9600 8N1 222")
	if first > 24*30 || second > other {
		t.Errorf("asked unit 1 as number %d, unit 222 as %d at the live setting and %d elsewhere", first, second, other)
	}
	// Found at one framing, it is not asked at the others of that speed again.
	if slices.Contains(b.asked, "19200 8N2 1") {
		t.Error("unit 1 was asked again")
	}
	if len(progress) < 20*247 || progress[len(progress)-1].Found != 2 {
		t.Errorf("%d times progress", len(progress))
	}
}

// A device with a port of its own answers at every unit: it is one device.
func TestAnyUnit(t *testing.T) {
	im := sdm630(t)
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{{}: {}}}
	for u := 1; u <= 247; u++ {
		b.devices[scan.Setting{}][uint8(u)] = im
	}
	res, err := run(t, b, scan.Config{Units: units(1, 247)})
	if err != nil || !res.Complete || len(res.Answers) != 1 || !res.Answers[0].AnyUnit || res.Answers[0].Unit != 1 || len(res.Answers[0].Findings) != 1 {
		t.Fatalf("%v %+v", err, res)
	}
}

// Gateways hang up, or answer in the name of absent units.
func TestGateway(t *testing.T) {
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{{}: {9: sdm630(t)}}}
	b.fail = func(_ scan.Setting, unit uint8, nth int) error {
		switch {
		case unit == 9:
			return nil
		case unit%2 == 0:
			return refusal(11)
		case unit == 5:
			return oops{down: true}
		}
		return oops{timeout: true}
	}
	res, err := run(t, b, scan.Config{Units: units(1, 20)})
	if err != nil || len(res.Answers) != 1 || res.Answers[0].Unit != 9 {
		t.Fatalf("%v %+v", err, res)
	}
}

// A line that is gone ends the scan; what was found stays.
func TestLineLost(t *testing.T) {
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{{}: {1: sdm630(t)}}}
	b.fail = func(_ scan.Setting, unit uint8, _ int) error {
		if unit >= 10 && unit < 100 {
			return oops{down: true}
		}
		return nil
	}
	res, err := run(t, b, scan.Config{Units: units(1, 60)})
	if !errors.Is(err, oops{down: true}) || res.Complete || len(res.Answers) != 1 || res.Probes >= res.Total {
		t.Fatalf("%v %+v", err, res)
	}
}

// A device that falls silent half-way is reported as found, and as cut short.
func TestFallsSilent(t *testing.T) {
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{{}: {3: sdm630(t)}}}
	b.fail = func(_ scan.Setting, unit uint8, nth int) error {
		if unit == 3 && nth > 8 {
			return oops{timeout: true}
		}
		return nil
	}
	res, err := run(t, b, scan.Config{Units: units(1, 6)})
	if err != nil || len(res.Answers) != 1 || !res.Answers[0].Cut {
		t.Fatalf("%v %+v", err, res)
	}
}

// A disturbance is no device; what is garbled twice is one.
func TestGarbled(t *testing.T) {
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{{}: {}}}
	b.fail = func(_ scan.Setting, unit uint8, nth int) error {
		if unit == 2 && nth == 1 || unit == 4 {
			return oops{garbled: true}
		}
		return nil
	}
	res, err := run(t, b, scan.Config{Units: units(1, 6)})
	if err != nil || len(res.Answers) != 1 || res.Answers[0].Unit != 4 || !res.Answers[0].Garbled {
		t.Fatalf("%v %+v", err, res)
	}
}

func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{{}: {1: sdm630(t)}}}
		res, err := scan.Run(ctx, scan.Config{
			Open: b.open, Profiles: profile.All(), Units: units(1, 247), Probe: time.Second, Sweep: time.Second, Patient: time.Second,
			Progress: func(p scan.Progress) {
				if p.Unit == 100 {
					cancel()
				}
			},
		})
		if err != nil || res.Complete || len(res.Answers) != 1 || !strings.HasPrefix(res.Answers[0].Findings[0].Profile.ID, "eastron") {
			t.Fatalf("%v %+v", err, res)
		}
	})
}

// Parts of one device do not contend, and siblings do.
func TestBest(t *testing.T) {
	for name, c := range map[string]struct {
		found []string
		want  string // empty: nobody can tell
	}{
		"parts":    {[]string{"goodwe-et", "goodwe-et-meter"}, "goodwe-et"},
		"siblings": {[]string{"deye-sg04lp3", "deye-sg01hp3"}, ""},
		"traps":    {[]string{"carlogavazzi-em24", "carlogavazzi-em340"}, ""},
		"vague":    {[]string{"solax-x3", "growatt-sph"}, ""},
		"alone":    {[]string{"solax-x3"}, "solax-x3"},
		"nobody":   {nil, ""},
	} {
		var a scan.Answer
		for _, id := range c.found {
			p, err := profile.Get(id)
			if err != nil {
				t.Fatal(err)
			}
			a.Findings = append(a.Findings, profile.Finding{Profile: p})
		}
		best, ok := a.Best()
		if ok != (c.want != "") || ok && best.Profile.ID != c.want {
			t.Errorf("%s: %v %+v", name, ok, best)
		}
	}
}

func settings() []scan.Setting { return scan.Settings(profile.All()) }

// Once something has answered, a bus is asked at that setting only: the scan
// ends soon, says that it did not try all, and knows how long it will take.
func TestQuick(t *testing.T) {
	live := scan.Setting{Baud: 19200, Framing: "8E1"}
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{live: {1: sdm630(t), 222: sdm630(t)}, {Baud: 9600, Framing: "8N1"}: {99: sdm630(t)}}}
	var last scan.Progress
	res, err := run(t, b, scan.Config{Settings: settings(), Units: units(1, 247), Progress: func(p scan.Progress) { last = p }})
	if err != nil || !res.Complete || res.Full || len(res.Answers) != 2 || res.Answers[1].Unit != 222 {
		t.Fatalf("%v %+v", err, res)
	}
	if res.Probes > 247+4*40 || last.Remaining > time.Second {
		t.Errorf("%d probes, at last %s remaining", res.Probes, last.Remaining)
	}
}

// A device at a setting and a unit that none leaves the factory with is found
// in the end. A full scan of a silent bus takes what was said at its start.
func TestUnlikely(t *testing.T) {
	at := scan.Setting{Baud: 2400, Framing: "8N2"}
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{at: {211: sdm630(t)}}}
	var first, last scan.Progress
	res, err := run(t, b, scan.Config{Settings: settings(), Units: units(1, 247), Full: true, Progress: func(p scan.Progress) {
		if first.Total == 0 {
			first = p
		}
		last = p
	}})
	if err != nil || len(res.Answers) != 1 || res.Answers[0].Unit != 211 || res.Answers[0].Setting != at {
		t.Fatalf("%v %+v", err, res)
	}
	if first.Remaining < 5*time.Minute || first.Remaining > 15*time.Minute || last.Remaining > time.Second {
		t.Errorf("%s remaining at the start, %s at the end", first.Remaining, last.Remaining)
	}
}

// The answer of a device that thinks long collides with the request to the
// next one; what comes of that is not understood, and both are asked again.
func TestCollision(t *testing.T) {
	live := scan.Setting{Baud: 9600, Framing: "8N1"}
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{live: {41: sdm630(t)}}, thinks: 60 * time.Millisecond}
	b.fail = func(s scan.Setting, unit uint8, nth int) error {
		if s == live && unit == 42 && nth == 1 {
			return oops{garbled: true}
		}
		return nil
	}
	res, err := run(t, b, scan.Config{Settings: []scan.Setting{live}, Units: units(40, 60)})
	if err != nil || len(res.Answers) != 1 || res.Answers[0].Unit != 41 || !res.Answers[0].Slow || res.Answers[0].Garbled {
		t.Fatalf("%v %+v", err, res)
	}
}

// Bytes that are no answer, whomever one asks, are somebody else's: the setting
// is left early and named. Those of one unit are a device with another framing.
func TestGarbledSettings(t *testing.T) {
	noisy, near, right := scan.Setting{Baud: 9600, Framing: "8N1"}, scan.Setting{Baud: 19200, Framing: "8N1"}, scan.Setting{Baud: 19200, Framing: "8E1"}
	b := &bus{devices: map[scan.Setting]map[uint8]profile.Image{right: {77: sdm630(t)}}}
	b.fail = func(s scan.Setting, unit uint8, _ int) error {
		if s == noisy || s == near && unit == 77 {
			return oops{garbled: true}
		}
		return nil
	}
	res, err := run(t, b, scan.Config{Settings: []scan.Setting{noisy, near, right}, Units: units(70, 140), Full: true})
	if err != nil || len(res.Answers) != 1 || res.Answers[0].Setting != right || res.Answers[0].Unit != 77 {
		t.Fatalf("%v %+v", err, res)
	}
	if len(res.Noisy) != 1 || res.Noisy[0] != noisy {
		t.Errorf("noisy: %v", res.Noisy)
	}
	if n := slices.Index(b.asked, "19200 8E1 77"); n != slices.Index(b.asked, "19200 8N1 77")+1 {
		t.Errorf("the other framing was tried as number %d", n)
	}
}
