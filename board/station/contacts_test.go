package station

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers/driverstest"
	"github.com/joulegate/joulegate/meter/session"
)

const relayConfig = `
version: 1
name: north
board: simulated
lines: [{id: rs485, tcp: "127.0.0.1:502"}]
meters:
- {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
- {id: car, line: rs485, unit: 2, profile: eastron-sdm630, role: charger}
chargers:
- {id: 1, meter: car, relay: RELAY1, trip: RELAY2, estop: IN1, pilot: IN2, earth_fault: IN3, stop_button: IN4, temp_sensor: /sys/class/hwmon/hwmon0/temp1_input, derate_from_c: 50, max_temp_c: 70}
pins: {socket: /run/pins}
timing: {min_off: 2s, hold_limit: 20s, start_limit: 60s, full_after: 30s, resume_limit: 20s}
`

// sensor is a thermometer; at 0 its wire is cut.
type sensor struct{ atomic.Int64 }

func (s *sensor) Temperature(context.Context) (session.MilliCelsius, error) {
	if v := s.Load(); v != 0 {
		return session.MilliCelsius(v), nil
	}
	return 0, errors.New("no such file")
}

// fitted is a charger with a contactor and everything that can be wired to it.
type fitted struct {
	pilot, earth, button driverstest.Input
	trip                 driverstest.Relay
	heat                 sensor
	loose                atomic.Bool // 9 A flow, whatever the contactor does
}

func withEverything(w *world) *fitted {
	f := &fitted{}
	w.yaml = relayConfig
	f.heat.Store(30_000)
	f.pilot.Put(true, nil)
	w.draw = func(int64) int64 {
		if closed, _ := w.relay.Closed(); closed || f.loose.Load() {
			return 9_000
		}
		return 0
	}
	w.tweak = func(c *Config) {
		h := &c.Chargers[0]
		h.Limiter = nil
		h.Pilot, h.Earth, h.StopButton, h.Trip, h.Thermometer = &f.pilot, &f.earth, &f.button, &f.trip, &f.heat
	}
	return f
}

func TestWhatIsWiredToARelayCharger(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(f *fitted)
		why   chain.StopReason
		cause string
		fault session.Fault
	}{
		"stop button":   {func(f *fitted) { f.button.Put(true, nil) }, chain.StopDriver, "stop button", 0},
		"unplugged":     {func(f *fitted) { f.pilot.Put(false, nil) }, chain.StopUnplugged, "unplugged", 0},
		"earth fault":   {func(f *fitted) { f.earth.Put(true, nil) }, chain.StopSafety, "earth fault", session.EarthFault},
		"too hot":       {func(f *fitted) { f.heat.Store(71_000) }, chain.StopSafety, "over-temperature", session.OverTemperature},
		"monitor's cut": {func(f *fitted) { f.earth.Put(false, errors.New("wire cut")) }, chain.StopSafety, "earth fault", session.EarthFault},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				f := withEverything(w)
				end := w.run()
				wait(4 * time.Second)
				id := w.start(5000)
				wait(20 * time.Second)
				if !w.closed() {
					t.Fatalf("not charging: %s", w.last().Chargers[0].Why)
				}
				c.do(f)
				wait(15 * time.Second)
				shot := w.last().Chargers[0]
				if s := w.stops[id]; w.closed() || len(s) != 1 || s[0].Reason != c.why || s[0].Register != w.car() {
					t.Fatalf("%+v; %+v", s, shot)
				}
				if !strings.Contains(shot.LastStop, c.cause) || shot.Fault != c.fault.String() {
					t.Errorf("stopped by %q, fault %q", shot.LastStop, shot.Fault)
				}
				if e := w.events("charger.opened"); len(e) != 1 || !strings.Contains(e[0].Text, c.cause) || !strings.Contains(e[0].Text, " °C") {
					t.Errorf("records %+v", e)
				}
				if c.fault != 0 {
					f.earth.Put(false, nil)
					f.heat.Store(30_000)
					wait(time.Minute)
					var r *Refusal
					if _, err := w.station.Quote(t.Context(), 1, chain.Key{7}, 1000, 1, false); !errors.As(err, &r) || r.Code != Faulted {
						t.Errorf("the fault has gone and a price is offered: %v", err)
					}
					if err := w.station.ClearFault(t.Context(), 1); err != nil {
						t.Fatal(err)
					}
					if _, err := w.station.Quote(t.Context(), 1, chain.Key{7}, 1000, 1, false); err != nil {
						t.Errorf("cleared and repaired: %v", err)
					}
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestWeldTripsAndSurvivesARestart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		f := withEverything(w)
		end := w.run()
		wait(4 * time.Second)
		id := w.start(5000)
		wait(20 * time.Second)
		f.loose.Store(true)
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(6500 * time.Millisecond)
		if on, _ := f.trip.Closed(); !on {
			t.Fatalf("not tripped: %+v", w.last().Chargers[0])
		}
		f.loose.Store(false) // the shunt trip has opened the line
		wait(5 * time.Second)
		if on, _ := f.trip.Closed(); on {
			t.Fatal("the trip's coil stays energised")
		}
		if len(w.events("charger.tripped")) != 1 || len(w.events("charger.fault")) != 1 {
			t.Error("the trip is not on record")
		}
		wait(10 * time.Second)
		if err := end(); err != nil {
			t.Fatal(err)
		}
		end = w.run()
		wait(4 * time.Second)
		if c := w.last().Chargers[0]; c.Fault != session.Weld.String() {
			t.Fatalf("after a restart: %+v", c)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestThermometerThatFailsIsStale(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		f := withEverything(w)
		end := w.run()
		wait(4 * time.Second)
		w.start(5000)
		wait(20 * time.Second)
		f.heat.Store(0)
		wait(40 * time.Second)
		if c := w.last().Chargers[0]; w.closed() || !strings.Contains(c.Why, "temperature sensor") {
			t.Fatalf("%+v", c)
		}
		found := false
		for _, a := range w.last().Alarms {
			found = found || a.Code == "charger.temperature"
		}
		if !found {
			t.Errorf("alarms %+v", w.last().Alarms)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}
