package station

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/driverstest"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
)

const wallboxConfig = `
version: 1
name: north
board: simulated
lines: [{id: rs485, tcp: "127.0.0.1:502"}]
meters:
- {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
- {id: car, line: rs485, unit: 2, profile: eastron-sdm630, role: charger}
chargers:
- id: 1
  meter: car
  estop: IN1
  evse: {line: rs485, unit: 10, profile: simpleevse}
site: {fuse_ma: 25000}
dimming: {pin: IN2}
pins: {socket: /run/pins}
timing: {min_off: 2s, hold_limit: 20s, start_limit: 600s, full_after: 30s, resume_limit: 20s, on_delay: 20s, off_delay: 60s}
`

// box is a wallbox with everything.
type box struct {
	driverstest.Limiter
	mu     sync.Mutex
	beats  int
	looks  int
	phases int
	orders []int
	fault  int64
}

func (b *box) BeatEvery() time.Duration { return 2 * time.Second }

func (b *box) Beat(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.beats++
	return nil
}

func (b *box) VehicleState(ctx context.Context) (drivers.VehicleState, error) {
	b.mu.Lock()
	b.looks++
	b.mu.Unlock()
	return b.Limiter.VehicleState(ctx)
}

func (b *box) Status(ctx context.Context) (drivers.Status, error) {
	v, err := b.VehicleState(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	return drivers.Status{Vehicle: v, Fault: b.fault}, err
}

func (b *box) PhaseCounts() []int { return []int{1, 3} }

func (b *box) Phases(context.Context) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.phases, nil
}

func (b *box) SwitchPhases(_ context.Context, n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.phases = n
	b.orders = append(b.orders, n)
	return nil
}

func (b *box) talk() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.beats + b.looks
}

// withBox makes a world whose charger is a wallbox without a relay of ours.
func withBox(w *world) (*box, *driverstest.Input) {
	b, contact := &box{phases: 3}, &driverstest.Input{}
	w.yaml, w.relay, w.evse = wallboxConfig, nil, &b.Limiter
	w.tweak = func(c *Config) { c.Chargers[0].Limiter, c.Chargers[0].Switch.Allowed, c.DimContact = b, true, contact }
	return b, contact
}

func TestWallboxWithoutARelay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b, _ := withBox(w)
		end := w.run()
		wait(4 * time.Second)
		if b.Limit() != 0 {
			t.Fatal("offers without a session")
		}
		id := w.start(5000)
		wait(10 * time.Second)
		c := w.last().Chargers[0]
		if b.Limit() != 16_000 || c.State != "charging" || c.Actuator != "wallbox" {
			t.Fatalf("%d mA: %+v", b.Limit(), c)
		}
		wait(20 * time.Second)
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(10 * time.Second)
		if s := w.stops[id]; b.Limit() != 0 || len(s) != 1 || s[0].Register != w.car() {
			t.Fatalf("%d mA, stop %+v, meter %d", b.Limit(), s, w.car())
		}
		b.mu.Lock()
		beats := b.beats
		b.mu.Unlock()
		if beats < 15 {
			t.Errorf("%d beats in 44 s, one each 2 s is the least", beats)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// A wallbox that goes on although it was told 0 A has welded, and one with a
// fault of its own charges nobody.
func TestWallboxThatDoesNotStop(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		withBox(w)
		stuck := false
		w.draw = func(offered int64) int64 {
			if stuck {
				return 10_000
			}
			return offered
		}
		end := w.run()
		wait(4 * time.Second)
		id := w.start(5000)
		wait(20 * time.Second)
		stuck = true
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(8 * time.Second)
		if f := w.last().Chargers[0].Fault; f != "" {
			t.Fatalf("%q while a wallbox may still be stopping", f)
		}
		wait(20 * time.Second)
		if f := w.last().Chargers[0].Fault; f != session.Weld.String() {
			t.Fatalf("fault %q", f)
		}
		if len(w.events("charger.fault")) != 1 {
			t.Error("the weld is not on record")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWallboxFaultEndsTheSession(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b, _ := withBox(w)
		end := w.run()
		wait(4 * time.Second)
		id := w.start(5000)
		wait(20 * time.Second)
		b.mu.Lock()
		b.fault = 17
		b.mu.Unlock()
		wait(20 * time.Second)
		if s := w.stops[id]; len(s) != 1 || s[0].Reason != chain.StopSafety || b.Limit() != 0 {
			t.Fatalf("%+v, %d mA", s, b.Limit())
		}
		if e := w.events("charger.device_fault"); len(e) != 1 || !strings.Contains(e[0].Text, "fault code 17") {
			t.Errorf("%+v", e)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// When the loop stalls the wallbox hears 0 A and then nothing, so that its own
// failsafe works as well.
func TestHeartbeatEndsWithTheLoop(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b, _ := withBox(w)
		end := w.run()
		wait(4 * time.Second)
		w.start(5000)
		wait(20 * time.Second)
		until := time.Now().Add(20 * time.Second) // whoever reads the button hangs until then
		w.mu.Lock()
		w.block = func() { time.Sleep(time.Until(until)) }
		w.mu.Unlock()
		wait(3500 * time.Millisecond)
		if b.Limit() != 0 {
			t.Fatalf("the loop hangs and %d mA are offered", b.Limit())
		}
		was := b.talk()
		wait(10 * time.Second)
		if n := b.talk(); n != was {
			t.Fatalf("the loop hangs and the wallbox was talked to %d times", n-was)
		}
		wait(30 * time.Second)
		if b.talk() == was || b.Limit() == 0 {
			t.Fatalf("does not go on: %s", w.last().Chargers[0].Why)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestHouseFuseAndUtilityLimitTheCharger(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b, contact := withBox(w)
		end := w.run()
		wait(4 * time.Second)
		w.start(20_000)
		wait(20 * time.Second)
		w.mu.Lock()
		w.house = 9_660_000 // 14 A of 25 A on each phase
		w.mu.Unlock()
		wait(20 * time.Second)
		c := w.last().Chargers[0]
		if l := b.Limit(); l < 10_000 || l > 11_000 || !strings.Contains(c.Why, "fuse of circuit site") {
			t.Fatalf("%d mA with 14 A in the house and a fuse of 25 A: %s", l, c.Why)
		}
		w.mu.Lock()
		w.house = 500_000
		w.mu.Unlock()
		wait(20 * time.Second)
		if b.Limit() != 16_000 {
			t.Fatalf("%d mA with an empty house: %s", b.Limit(), w.last().Chargers[0].Why)
		}
		contact.Put(true, nil)
		wait(10 * time.Second)
		if l := b.Limit(); l > 6_100 || l < 6_000 {
			t.Fatalf("%d mA on three phases, 4200 W are 6.1 A", l)
		}
		if s := w.last(); !strings.Contains(s.Utility, "4200 W") || !strings.Contains(s.Chargers[0].Why, "utility") {
			t.Errorf("utility %q, why %q", s.Utility, s.Chargers[0].Why)
		}
		contact.Put(false, nil)
		if err := w.station.Dim(t.Context(), circuit.Message, 8_280, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		wait(20 * time.Second)
		if l := b.Limit(); l > 12_000 || l < 11_900 {
			t.Fatalf("%d mA under an order of 8280 W", l)
		}
		wait(30 * time.Second)
		if b.Limit() != 16_000 || len(w.events("utility.dimmed")) == 0 || len(w.events("utility.released")) == 0 {
			t.Fatalf("%d mA after the order: %s", b.Limit(), w.last().Chargers[0].Why)
		}
		contact.Put(false, errors.New("wire cut"))
		wait(10 * time.Second)
		if l := b.Limit(); l > 6_100 {
			t.Fatalf("%d mA though the utility's contact cannot be read", l)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// 2 kW of sun are nothing on three phases and 8 A on one.
func TestPhasesFollowTheSun(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b, _ := withBox(w)
		end := w.run()
		wait(4 * time.Second)
		if err := w.station.SetMode(t.Context(), 1, setpoint.Surplus); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.house, w.reg["house"] = -2_000_000, 50_000_000
		w.mu.Unlock()
		w.start(20_000)
		wait(3 * time.Minute)
		b.mu.Lock()
		orders := slices.Clone(b.orders)
		b.mu.Unlock()
		if !slices.Equal(orders, []int{1}) || w.last().Chargers[0].Phases != 1 {
			t.Fatalf("phases ordered: %v; %+v", orders, w.last().Chargers[0])
		}
		// The physics of this test knows three phases only, so the car takes
		// three times as much; what counts is what it is offered.
		if !slices.ContainsFunc(b.Log(), func(a meter.MilliAmpere) bool { return a > 8_000 && a < 9_000 }) {
			t.Fatalf("offers %v on one phase with 2 kW of sun: %s", b.Log(), w.last().Chargers[0].Why)
		}
		if len(w.events("charger.phases")) != 1 {
			t.Error("the switch is not on record")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkTurn is one turn of the loop with two chargers, which happens forty
// times a second for as long as the gateway lives.
func BenchmarkTurn(b *testing.B) {
	w := &world{
		relay: &driverstest.Relay{}, evse: &driverstest.Limiter{}, estop: &driverstest.Input{}, yaml: twoChargers,
		silent: map[string]bool{}, reg: map[string]int64{}, held: map[chain.ID]bool{},
	}
	w.tweak = func(c *Config) {
		c.Chargers[1].Relay, c.Chargers[1].Limiter = &driverstest.Relay{}, &driverstest.Limiter{}
		c.Log = slog.New(slog.DiscardHandler)
	}
	s, err := New(w.config())
	if err != nil {
		b.Fatal(err)
	}
	now := time.Duration(0)
	s.cfg.Now = func() time.Duration { now += s.cfg.Tick; return now }
	s.clock()
	b.ReportAllocs()
	for b.Loop() {
		s.tick()
	}
}

const twoChargers = `
version: 1
name: north
board: simulated
lines: [{id: rs485, tcp: "127.0.0.1:502"}]
meters:
- {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
- {id: car, line: rs485, unit: 2, profile: eastron-sdm630, role: charger}
- {id: van, line: rs485, unit: 3, profile: eastron-sdm630, role: charger}
chargers:
- {id: 1, meter: car, relay: RELAY1, estop: IN1, circuit: garage, evse: {line: rs485, unit: 10, profile: simpleevse}}
- {id: 2, meter: van, relay: RELAY2, circuit: garage, wiring: L2 L3 L1, evse: {line: rs485, unit: 11, profile: simpleevse}}
circuits: [{id: garage, rating_ma: 20000}]
site: {fuse_ma: 35000}
pins: {socket: /run/pins}
timing: {min_off: 2s, hold_limit: 20s, start_limit: 600s, full_after: 30s, resume_limit: 20s}
`

// Two cars on one cable of 20 A get 10 A each, and one alone its 16 A.
func TestTwoChargersShareACable(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.yaml = twoChargers
		other, relay := &driverstest.Limiter{}, &driverstest.Relay{}
		other.Plug(drivers.StateB)
		w.tweak = func(c *Config) { c.Chargers[1].Relay, c.Chargers[1].Limiter = relay, other }
		end := w.run()
		wait(4 * time.Second)
		w.start(20_000)
		van := 0
		speak := func() { // the van's meter
			van++
			taken := int64(0)
			if closed, _ := relay.Closed(); closed {
				taken = int64(other.Limit())
			}
			w.mu.Lock()
			w.reg["van"] += taken * 690 / 3600
			r := meter.Reading{
				Device: "van", Page: uint64(van), Wall: time.Now().UnixMilli(), Quality: meter.Good, Mono: time.Since(w.boot),
				Points: []meter.Point{{Quantity: meter.Power, Value: taken * 690}, {Quantity: meter.Import, Value: w.reg["van"]}, {Quantity: meter.Export}, {Quantity: meter.Current, Phase: 1, Value: taken}},
			}
			w.mu.Unlock()
			w.station.Reading(r)
		}
		pass := func(seconds int) {
			for range seconds {
				speak()
				wait(time.Second)
			}
		}
		pass(20)
		if w.evse.Limit() != 16_000 {
			t.Fatalf("alone: %d mA", w.evse.Limit())
		}
		w.connector = 2
		second := w.start(20_000)
		pass(40)
		if a, b := w.evse.Limit(), other.Limit(); a != 10_000 || b != 10_000 {
			t.Fatalf("%d and %d mA on a cable of 20 A: %s; %s", a, b, w.last().Chargers[0].Why, w.last().Chargers[1].Why)
		}
		if err := w.station.Stop(t.Context(), second, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		pass(30)
		if w.evse.Limit() != 16_000 || other.Limit() != 0 {
			t.Fatalf("alone again: %d and %d mA: %s", w.evse.Limit(), other.Limit(), w.last().Chargers[0].Why)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}
