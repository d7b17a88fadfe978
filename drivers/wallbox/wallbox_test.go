package wallbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gm "github.com/goburrow/modbus"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// device is a wallbox made of its profile's registers.
type device struct {
	mu     sync.Mutex
	p      *profile.Profile
	im     profile.Image
	err    error                               // of all requests
	refuse map[uint16]bool                     // writes to these addresses are refused
	lose   int                                 // so many writes get lost, with an error
	change func(w drivers.Write) drivers.Write // what becomes of a write
	log    []drivers.Write
	reads  int
}

func newDevice(t testing.TB, id string) *device {
	t.Helper()
	p, err := profile.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	im, err := p.NewImage(0, profile.Identity{})
	if err != nil {
		t.Fatal(err)
	}
	d := &device{p: p, im: im, refuse: map[uint16]bool{}}
	d.plug(t, "A")
	return d
}

// plug makes the device say letter.
func (d *device) plug(t testing.TB, letter string) {
	t.Helper()
	code, ok := d.p.StateCode(letter)
	if !ok {
		t.Fatalf("%s has no status for %s", d.p.ID, letter)
	}
	points := []meter.Point{{Quantity: meter.Status, Value: code}}
	if c, ok := d.p.CableCode(letter != "A"); ok {
		points = append(points, meter.Point{Quantity: meter.Cable, Value: c})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.p.Encode(points, d.im); err != nil {
		t.Fatal(err)
	}
}

func (d *device) ReadRegisters(ctx context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(ctx.Err(), d.err); err != nil {
		return nil, err
	}
	d.reads++
	data, ok := d.im.Read(fn, addr, count)
	if !ok {
		return nil, &gm.ModbusError{FunctionCode: byte(fn), ExceptionCode: gm.ExceptionCodeIllegalDataAddress}
	}
	return data, nil
}

func (d *device) WriteRegisters(ctx context.Context, addr uint16, values []uint16) error {
	return d.Write(ctx, drivers.Write{Address: addr, Values: values})
}

func (d *device) Write(ctx context.Context, w drivers.Write) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(ctx.Err(), d.err); err != nil {
		return err
	}
	d.log = append(d.log, w)
	if d.lose > 0 {
		d.lose--
		return errors.New("no answer")
	}
	if d.refuse[w.Address] {
		return &gm.ModbusError{FunctionCode: byte(w.Function), ExceptionCode: gm.ExceptionCodeIllegalDataAddress}
	}
	if d.change != nil {
		w = d.change(w)
	}
	into := drivers.HoldingRegisters
	if w.Function == drivers.WriteCoil {
		into = profile.Coils
	}
	for i, v := range w.Values {
		d.im[profile.Register{Function: into, Address: w.Address + uint16(i)}] = v
	}
	for i := range d.p.Writes {
		c := &d.p.Writes[i]
		if v, ok := c.Decode(w.Address, w.Values, nil); ok && into == drivers.HoldingRegisters {
			c.Reflect(d.im, v)
		}
	}
	return nil
}

// told returns the value that a command was last written with.
func (d *device) told(name string) (int64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.p.Write(name)
	if !ok {
		return 0, false
	}
	var raw []meter.RawBlock
	for _, c := range w.Conditions() {
		data, _ := d.im.Read(c.Function, c.Address, c.Count)
		raw = append(raw, meter.RawBlock{Function: uint8(c.Function), Address: c.Address, Data: data})
	}
	for _, l := range slices.Backward(d.log) {
		if v, ok := w.Decode(l.Address, l.Values, raw); ok && uint8(l.Function) == w.Function {
			return v, true
		}
	}
	return 0, false
}

func (d *device) writes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}

func (d *device) fail(err error) { d.mu.Lock(); d.err = err; d.mu.Unlock() }

func open(t testing.TB, d *device) *Box {
	t.Helper()
	b, err := New(d, d.p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// all returns every wallbox that there is.
func all() (ids []string) {
	for _, p := range profile.All() {
		if p.Kind == profile.Wallbox {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// paused reports whether what d was told keeps a vehicle from charging.
func paused(d *device) bool {
	limit, ok := d.told("current_limit")
	enabled, has := d.told("enable")
	power, ordered := d.told("power_command")
	return ok && limit == 0 || has && enabled == 0 || ordered && power == 0
}

// Every wallbox that has a profile is told 16 A, then less, then nothing, and
// is never told more than was asked for.
func TestEveryWallboxTakesALimit(t *testing.T) {
	for _, id := range all() {
		t.Run(id, func(t *testing.T) {
			d := newDevice(t, id)
			b := open(t, d)
			for _, limit := range []meter.MilliAmpere{16_000, 10_999, 6_000, 32_000} {
				if err := b.SetLimit(t.Context(), limit); err != nil {
					t.Fatalf("%d mA: %v", limit, err)
				}
				if got, ok := d.told("current_limit"); ok && (got > int64(limit) || limit <= 16_000 && got <= int64(limit)-1000) {
					t.Errorf("asked for %d mA, it was told %d", limit, got)
				}
				if got, ok := d.told("power_command"); ok && (got <= 0 || got > int64(limit)*690) {
					t.Errorf("asked for %d mA, it was told %d mW", limit, got)
				}
				if got, ok := d.told("enable"); ok && got != 1 {
					t.Errorf("%d mA on offer and not enabled", limit)
				}
			}
			if err := b.SetLimit(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if !paused(d) {
				t.Error("0 A does not pause it")
			}
			if err := b.SetLimit(t.Context(), 16_000); err != nil {
				t.Fatal(err)
			}
			if err := b.Halt(); err != nil || !paused(d) {
				t.Errorf("halted: paused %t, %v", paused(d), err)
			}
		})
	}
}

func TestLimitsThatDoNotExist(t *testing.T) {
	for _, id := range all() {
		d := newDevice(t, id)
		b := open(t, d)
		for _, a := range []meter.MilliAmpere{-1, 1, 3_000, 5_999, 32_001, 80_000, 1 << 40} {
			if err := b.SetLimit(t.Context(), a); err == nil {
				t.Errorf("%s: %d mA is accepted", id, a)
			}
		}
		if n := d.writes(); n != 0 {
			t.Errorf("%s: a refused limit reached the bus in %d writes", id, n)
		}
	}
}

// Every letter that a profile knows arrives, and no other code does.
func TestEveryWallboxTellsItsState(t *testing.T) {
	for _, id := range all() {
		d := newDevice(t, id)
		b := open(t, d)
		for _, letter := range "ABCDEF" {
			if _, ok := d.p.StateCode(string(letter)); !ok {
				continue
			}
			d.plug(t, string(letter))
			if s, err := b.VehicleState(t.Context()); err != nil || s != drivers.VehicleState(letter) {
				t.Errorf("%s: %c arrives as %s, %v", id, letter, s, err)
			}
			if s, err := b.Status(t.Context()); err != nil || s.Vehicle != drivers.VehicleState(letter) {
				t.Errorf("%s: the status of %c is %+v, %v", id, letter, s, err)
			}
		}
		unknown := int64(120)
		if _, text := d.p.StatusText(unknown); text { // "x"
			unknown = 'x'
		}
		if err := d.p.Encode([]meter.Point{{Quantity: meter.Status, Value: unknown}}, d.im); err != nil {
			t.Fatal(err)
		}
		if s, err := b.VehicleState(t.Context()); err == nil || s != drivers.StateUnknown {
			t.Errorf("%s: status %d is taken for %s", id, unknown, s)
		}
	}
}

func TestHeidelbergSaysWhenItIsHot(t *testing.T) {
	d := newDevice(t, "heidelberg-energy-control")
	if err := d.p.Encode([]meter.Point{{Quantity: meter.Status, Value: 8}, {Quantity: meter.Temperature, Value: 71_500}}, d.im); err != nil {
		t.Fatal(err)
	}
	b := open(t, d)
	if err := b.SetLimit(t.Context(), 12_000); err != nil {
		t.Fatal(err)
	}
	s, err := b.Status(t.Context())
	if err != nil || !s.Derated || s.Vehicle != drivers.StateC || s.Temperature == nil || *s.Temperature != 71_500 || s.Limit == nil || *s.Limit != 12_000 {
		t.Errorf("status %+v, %v", s, err)
	}
}

// The units that differ most, to the register.
func TestRegistersOnTheWire(t *testing.T) {
	for _, c := range []struct {
		id    string
		limit meter.MilliAmpere
		addr  uint16
		want  []uint16
	}{
		{"keba-p30", 13_750, 5004, []uint16{13_750}},
		{"heidelberg-energy-control", 13_777, 261, []uint16{137}},
		{"abl-emh1", 16_000, 0x14, []uint16{266}},
		{"abl-emh1", 0, 0x14, []uint16{1000}},
		{"alfen-eve", 16_000, 1210, []uint16{0x4180, 0}},
		{"abb-terra-ac", 16_000, 0x4100, []uint16{0, 16_000}},
		{"smartevse", 13_999, 0x0201, []uint16{0x0D0D}},
		{"webasto-next", 13_999, 5004, []uint16{13}},
		{"peblar", 13_999, 40000, []uint16{0, 13_999}},
		{"simpleevse", 13_900, 1000, []uint16{13}},
	} {
		d := newDevice(t, c.id)
		if err := open(t, d).SetLimit(t.Context(), c.limit); err != nil {
			t.Fatalf("%s: %v", c.id, err)
		}
		if !slices.ContainsFunc(d.log, func(w drivers.Write) bool { return w.Address == c.addr && slices.Equal(w.Values, c.want) }) {
			t.Errorf("%s at %d mA: %v, want %v at %d", c.id, c.limit, d.log, c.want, c.addr)
		}
	}
}

func TestSimpleEVSEInHundredths(t *testing.T) {
	for _, c := range []struct {
		firmware, config, want uint16
		limit                  meter.MilliAmpere
	}{{17, 0, 13, 13_990}, {17, 0x80, 1399, 13_990}, {18, 0xff, 600, 6_000}, {17, 0x80, 0, 0}, {11, 0x80, 16, 16_000}} {
		d := newDevice(t, "simpleevse")
		d.im[profile.Register{Function: drivers.HoldingRegisters, Address: 1005}] = c.firmware
		d.im[profile.Register{Function: drivers.HoldingRegisters, Address: 2005}] = c.config
		if err := open(t, d).SetLimit(t.Context(), c.limit); err != nil {
			t.Fatal(err)
		}
		if v := d.im[profile.Register{Function: drivers.HoldingRegisters, Address: 1000}]; v != c.want {
			t.Errorf("%d mA with config %#x: %d, want %d", c.limit, c.config, v, c.want)
		}
	}
}

// What is read back decides, and more than was asked for is never accepted.
func TestReadBack(t *testing.T) {
	limited := func(to uint16) func(drivers.Write) drivers.Write {
		return func(w drivers.Write) drivers.Write {
			if w.Address == 261 {
				w.Values = []uint16{to}
			}
			return w
		}
	}
	for _, c := range []struct {
		holds uint16
		ok    bool
	}{{120, true}, {100, true}, {0, true}, {160, false}, {59, false}} {
		d := newDevice(t, "heidelberg-energy-control")
		d.change = limited(c.holds)
		err := open(t, d).SetLimit(t.Context(), 12_000)
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, drivers.ErrNotTaken) {
			t.Errorf("told 12 A, holds %d dA: %v", c.holds, err)
		}
	}
	d := newDevice(t, "heidelberg-energy-control")
	d.change = limited(160)
	if err := open(t, d).SetLimit(t.Context(), 0); !errors.Is(err, drivers.ErrNotTaken) {
		t.Errorf("told 0, holds 16 A: %v", err)
	}
}

func TestFirstWriteMayGetLost(t *testing.T) {
	d := newDevice(t, "abl-emh1")
	d.lose = 1
	if err := open(t, d).SetLimit(t.Context(), 10_000); err != nil {
		t.Fatal(err)
	}
	if v, _ := d.told("current_limit"); v <= 9_000 || v > 10_000 {
		t.Errorf("told %d mA", v)
	}
}

// A P40 has no enable register. It is left out, and current 0 pauses.
func TestOptionalCommandIsRefused(t *testing.T) {
	d := newDevice(t, "keba-p30")
	d.refuse[5014] = true
	b := open(t, d)
	for _, a := range []meter.MilliAmpere{16_000, 0, 10_000} {
		if err := b.SetLimit(t.Context(), a); err != nil {
			t.Fatalf("%d mA: %v", a, err)
		}
		if v, _ := d.told("current_limit"); v != int64(a) {
			t.Errorf("told %d mA, want %d", v, a)
		}
	}
	// Where enable is what pauses, a refusal is a failure.
	d = newDevice(t, "phoenix-charx")
	d.refuse[1300] = true
	if err := open(t, d).SetLimit(t.Context(), 0); err == nil {
		t.Error("a CHARX that refuses enable 0 counts as paused")
	}
}

// A wallbox that was restarted has forgotten what it was told.
func TestARestartedWallboxIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "victron-evcs")
		b := open(t, d)
		must(t, b.SetLimit(t.Context(), 10_000))
		n := d.writes()
		must(t, b.SetLimit(t.Context(), 10_000))
		if d.writes() != n {
			t.Error("an offer that was just confirmed is written again")
		}
		d.im[profile.Register{Function: drivers.HoldingRegisters, Address: 5016}] = 32 // another hand
		time.Sleep(lookAgain)
		must(t, b.SetLimit(t.Context(), 10_000))
		if v := d.im[profile.Register{Function: drivers.HoldingRegisters, Address: 5016}]; v != 10 {
			t.Errorf("%d A stay on offer, 10 were asked for", v)
		}
		// After an error nothing is taken for granted.
		d.fail(errors.New("line cut"))
		if err := b.SetLimit(t.Context(), 16_000); err == nil {
			t.Fatal("no error from a dead line")
		}
		d.fail(nil)
		d.log = nil
		must(t, b.SetLimit(t.Context(), 10_000))
		if mode, ok := d.told("mode"); !ok || mode != 0 {
			t.Error("after a loss the mode is not set again")
		}
	})
}

// Halt does not wait for a request that hangs, and wins against it.
func TestHaltEndsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "phoenix-charx")
		h := &hanging{device: d, at: 1301}
		b, err := New(h, d.p)
		must(t, err)
		done := make(chan error, 1)
		go func() { done <- b.SetLimit(t.Context(), 16_000) }()
		synctest.Wait()
		start := time.Now()
		must(t, b.Halt())
		if took := time.Since(start); took > HaltTimeout {
			t.Errorf("halting took %s", took)
		}
		if err := <-done; err == nil {
			t.Error("the limit that was overtaken counts as set")
		}
		if v, _ := d.told("enable"); v != 0 {
			t.Error("enabled after the halt")
		}
	})
}

// hanging hangs in writes at one address, once.
type hanging struct {
	*device
	at   uint16
	done bool
}

func (h *hanging) Write(ctx context.Context, w drivers.Write) error {
	if w.Address == h.at && !h.done {
		h.done = true
		<-ctx.Done()
		return ctx.Err()
	}
	return h.device.Write(ctx, w)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A wallbox that watches its master gets what feeds it, and the limit stays.
func TestBeatFeedsTheWatchdog(t *testing.T) {
	for _, id := range all() {
		d := newDevice(t, id)
		w := d.p.Watchdog
		b := open(t, d)
		must(t, b.SetLimit(t.Context(), 10_000))
		limit, _ := d.told("current_limit")
		if w == nil {
			continue
		}
		d.log, d.reads = nil, 0
		must(t, b.Beat(t.Context()))
		fed := w.FedBy == profile.FedByRequest && d.reads > 0
		for _, l := range d.log {
			fed = fed || w.Feeds(d.p, uint8(l.Function), l.Address, l.Values)
		}
		if !fed {
			t.Errorf("%s: fed by %s, a beat wrote %v and read %d times", id, w.FedBy, d.log, d.reads)
		}
		if now, ok := d.told("current_limit"); ok && now != limit {
			t.Errorf("%s: a beat changed the limit from %d to %d", id, limit, now)
		}
		if w.Timeout > 0 && (b.BeatEvery() <= 0 || b.BeatEvery() > w.Timeout/2) {
			t.Errorf("%s: beats every %s, it waits %s", id, b.BeatEvery(), w.Timeout)
		}
	}
}

// A beat before any limit must not let a vehicle charge.
func TestBeatBeforeAnyLimit(t *testing.T) {
	for _, id := range all() {
		d := newDevice(t, id)
		must(t, open(t, d).Beat(t.Context()))
		if v, ok := d.told("current_limit"); ok && v != 0 {
			t.Errorf("%s: the first beat offers %d mA", id, v)
		}
		if v, ok := d.told("enable"); ok && v != 0 {
			t.Errorf("%s: the first beat enables it", id)
		}
	}
}

func TestFailsafe(t *testing.T) {
	want := drivers.FailsafeSetting{Current: 6_000, Timeout: 30 * time.Second}
	for _, id := range all() {
		d := newDevice(t, id)
		b := open(t, d)
		got, err := b.SetFailsafe(t.Context(), want)
		if errors.Is(err, drivers.ErrNotFitted) {
			if _, err := b.Failsafe(t.Context()); d.p.Watchdog == nil && !errors.Is(err, drivers.ErrNotFitted) {
				t.Errorf("%s: %v", id, err)
			}
			continue
		}
		must(t, err)
		_, current := d.p.Write("failsafe_current")
		_, timeout := d.p.Write("failsafe_timeout")
		if current && got.Current != want.Current || timeout && got.Timeout != want.Timeout {
			t.Errorf("%s: %+v in force, want %+v", id, got, want)
		}
		if timeout && (b.BeatEvery() == 0 || b.BeatEvery() > want.Timeout/2) && d.p.Watchdog != nil {
			t.Errorf("%s: beats every %s with a time-out of %s", id, b.BeatEvery(), want.Timeout)
		}
		if again, err := b.Failsafe(t.Context()); err != nil || again != got {
			t.Errorf("%s: reads back %+v, %v", id, again, err)
		}
	}
	d := newDevice(t, "keba-p30")
	if _, err := open(t, d).SetFailsafe(t.Context(), drivers.FailsafeSetting{Current: 3_000, Timeout: time.Minute}); err == nil || d.writes() > 0 {
		t.Errorf("a failsafe of 3 A: %v", err)
	}
}

func TestPhasesAreSwitchedAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, id := range all() {
			d := newDevice(t, id)
			b := open(t, d)
			counts := b.PhaseCounts()
			if len(counts) < 2 {
				if err := b.SwitchPhases(t.Context(), 1); !errors.Is(err, drivers.ErrNotFitted) {
					t.Errorf("%s cannot switch: %v", id, err)
				}
				continue
			}
			refused := func(why string) {
				t.Helper()
				if err := b.SwitchPhases(t.Context(), 1); err == nil {
					t.Errorf("%s: switched %s", id, why)
				}
			}
			d.plug(t, "B")
			refused("before anything was offered")
			must(t, b.SetLimit(t.Context(), 10_000))
			refused("with a current on offer")
			must(t, b.SetLimit(t.Context(), 0))
			refused("at once after the offer ended")
			time.Sleep(PhasePause)
			d.plug(t, "C")
			refused("while the vehicle charges")
			d.plug(t, "B")
			must(t, b.SwitchPhases(t.Context(), 1))
			if v, _ := d.told("phases"); v != 1 {
				t.Errorf("%s: told %d phases", id, v)
			}
			if n, err := b.Phases(t.Context()); err != nil && !errors.Is(err, drivers.ErrNotFitted) || err == nil && n != 1 {
				t.Errorf("%s: tells %d phases, %v", id, n, err)
			}
		}
	})
}

func TestDischarge(t *testing.T) {
	d := newDevice(t, "generic-dc-bidirectional")
	b := open(t, d)
	least, most := b.PowerRange()
	if least != -11_000_000 || most != 11_000_000 {
		t.Fatalf("%d..%d mW", least, most)
	}
	for _, power := range []meter.MilliWatt{-7_000_500, 3_000_000, -11_000_000, 0} {
		must(t, b.SetPower(t.Context(), power))
		v, _ := d.told("power_command")
		on, _ := d.told("enable")
		if v != int64(power/1000*1000) || (on == 1) != (power != 0) {
			t.Errorf("%d mW: told %d, enabled %d", power, v, on)
		}
	}
	must(t, b.SetPower(t.Context(), -5_000_000))
	d.log = nil
	must(t, b.Beat(t.Context()))
	if v, ok := d.told("power_command"); !ok || v != -5_000_000 {
		t.Errorf("a beat repeats %d mW", v)
	}
	must(t, b.Halt())
	if v, _ := d.told("power_command"); v != 0 {
		t.Errorf("halted at %d mW", v)
	}
	if err := b.SetPower(t.Context(), -12_000_000); err == nil {
		t.Error("12 kW of an 11 kW device")
	}
	if least, most := open(t, newDevice(t, "keba-p30")).PowerRange(); least != 0 || most != 0 {
		t.Errorf("a KEBA takes %d..%d mW", least, most)
	}
}

func TestFit(t *testing.T) {
	for _, id := range []string{"eastron-sdm630", "growatt-sph"} {
		p, err := profile.Get(id)
		must(t, err)
		if Fit(p) == nil {
			t.Errorf("%s fits as a wallbox", id)
		}
	}
}

// short answers with too few bytes, whatever is asked.
type short struct{ drivers.Writer }

func (short) ReadRegisters(context.Context, drivers.Function, uint16, uint16) ([]byte, error) {
	return []byte{1}, nil
}

func TestShortReply(t *testing.T) {
	for _, id := range all() {
		p, err := profile.Get(id)
		must(t, err)
		b, err := New(short{}, p)
		must(t, err)
		if _, err := b.VehicleState(t.Context()); err == nil {
			t.Errorf("%s: one byte is a register", id)
		}
	}
}

// Whatever a device answers, the driver neither panics nor makes up a state.
func FuzzAnyRegisters(f *testing.F) {
	ids := all()
	for i := range ids {
		f.Add(uint8(i), []byte{0, 1, 0xff, 0xff, 0, 0, 0x80, 0, 0x7f, 0xc0}, uint16(16_000))
	}
	f.Fuzz(func(t *testing.T, which uint8, raw []byte, limit uint16) {
		id := ids[int(which)%len(ids)]
		d := newDevice(t, id)
		r := &noise{device: d, raw: raw}
		b, err := New(r, d.p)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if s, err := b.VehicleState(t.Context()); (err == nil) != (s >= drivers.StateA && s <= drivers.StateF) {
				t.Fatalf("%s: state %d, %v", id, s, err)
			}
			if s, err := b.Status(t.Context()); err == nil && s.Vehicle == drivers.StateUnknown {
				t.Fatalf("%s: %+v", id, s)
			}
			_, _ = b.Failsafe(t.Context())
			_, _ = b.Phases(t.Context())
			_ = b.Beat(t.Context())
			_ = b.SetLimit(t.Context(), meter.MilliAmpere(limit))
			_ = b.SwitchPhases(t.Context(), 1)
			if w, _ := d.p.Write("current_limit"); w != nil && w.Alt != nil {
				continue // noise decided about its scale
			}
			if v, ok := d.told("current_limit"); ok && (v > int64(limit) || v != 0 && v < int64(MinCurrent)-60) {
				t.Fatalf("%s: asked for %d mA, told %d", id, limit, v)
			}
		}
		_ = b.Halt()
	})
}

// noise answers reads with bytes of the fuzzer, as often as it has them.
type noise struct {
	*device
	raw []byte
	at  int
}

func (n *noise) ReadRegisters(_ context.Context, _ drivers.Function, _, count uint16) ([]byte, error) {
	if len(n.raw) == 0 {
		return nil, errors.New("silent")
	}
	out := make([]byte, 2*int(count))
	for i := range out {
		out[i] = n.raw[n.at%len(n.raw)]
		n.at++
	}
	return out, nil
}

func ExampleBox() {
	p, _ := profile.Get("heidelberg-energy-control")
	im, _ := p.NewImage(0, profile.Identity{})
	box, err := New(&device{p: p, im: im}, p)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	fmt.Println(box.SetLimit(ctx, 13_777)) // 13.7 A is what it can express
	data, _ := im.Read(drivers.HoldingRegisters, 261, 1)
	fmt.Println(binary.BigEndian.Uint16(data))
	fmt.Println(box.SetLimit(ctx, 3_000))
	// Output:
	// <nil>
	// 137
	// 3000 mA: a vehicle can be offered 0 or 6000..32000 mA (IEC 61851-1)
}
