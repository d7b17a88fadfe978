package slave_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

func physics(t testing.TB, id string, cfg slave.PhysicsConfig) *slave.Physics {
	t.Helper()
	p, err := profile.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Profile = p
	ph, err := slave.NewPhysics(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return ph
}

// shown reads the device as a gateway does: all blocks of the profile.
func shown(t testing.TB, u *slave.Unit) map[string]int64 {
	t.Helper()
	b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: u})
	var raw []meter.RawBlock
	p := u.Profile()
	for _, k := range p.Blocks(0) {
		reply := b.Handle(1, []byte{byte(k.Function), byte(k.Address >> 8), byte(k.Address), byte(k.Count >> 8), byte(k.Count)})
		if reply[0] != byte(k.Function) {
			t.Fatalf("%s: registers %d+%d: % x", p.ID, k.Address, k.Count, reply)
		}
		raw = append(raw, meter.RawBlock{Function: uint8(k.Function), Address: k.Address, Data: reply[2:]})
	}
	points, err := p.Decode(raw)
	if err != nil {
		t.Fatalf("%s: %v", p.ID, err)
	}
	out := map[string]int64{}
	for _, pt := range points {
		out[meter.PointName(pt.Quantity, pt.Phase)] = pt.Value
	}
	return out
}

var midnight = time.Date(2026, 6, 21, 0, 0, 0, 0, time.UTC)

// Every profile can show what happens at night, in the sun and in between.
func TestEveryProfileLives(t *testing.T) {
	for _, p := range profile.All() {
		for _, car := range "ABCDEF" {
			if p.Kind != profile.Wallbox && car != 'C' {
				continue
			}
			for _, h := range []time.Duration{0, 9 * time.Hour, 12 * time.Hour, 23 * time.Hour} {
				ph := physics(t, p.ID, slave.PhysicsConfig{Car: byte(car), Seed: 3})
				for _, dt := range []time.Duration{0, 1500 * time.Millisecond} {
					if err := ph.Step(midnight.Add(h+dt), dt); err != nil {
						t.Fatalf("%s, car %c, %v: %v", p.ID, car, h, err)
					}
				}
			}
		}
	}
}

// The sun rises, stands high and sets, and the energy register counts it.
func TestSunOnAnInverter(t *testing.T) {
	ph := physics(t, "huawei-sun2000", slave.PhysicsConfig{Seed: 1})
	var at [25]map[string]int64
	if err := ph.Step(midnight, 0); err != nil {
		t.Fatal(err)
	}
	at[0] = shown(t, ph.Unit())
	for m := range 24 * 60 {
		if err := ph.Step(midnight.Add(time.Duration(m+1)*time.Minute), time.Minute); err != nil {
			t.Fatal(err)
		}
		if m%60 == 59 {
			at[m/60+1] = shown(t, ph.Unit())
		}
	}
	if at[3]["power_mw"] != 0 || at[12]["power_mw"] > -1_500_000 || at[22]["power_mw"] != 0 {
		t.Errorf("power at 3, 12, 22 h: %d %d %d mW", at[3]["power_mw"], at[12]["power_mw"], at[22]["power_mw"])
	}
	if made := at[24]["export_mwh"] - at[0]["export_mwh"]; made < 15_000_000 || made > 65_000_000 {
		t.Errorf("a day of %d mWh on a roof of 7 kW", made)
	}
	// The battery fills by day and is used by night.
	night, noon, evening, late := at[4]["state_of_charge_permille"], at[14]["state_of_charge_permille"], at[19]["state_of_charge_permille"], at[24]["state_of_charge_permille"]
	if night >= 650 || noon <= night || late >= evening {
		t.Errorf("charge at 4, 14, 19, 24 h: %d %d %d %d permille", night, noon, evening, late)
	}
}

const store = `version: 1
id: acme-store
vendor: ACME
model: Store
kind: battery
serial: {port: 502, unit: 1}
function: 3
points:
  - {quantity: battery_power, address: 1, type: s32}
  - {quantity: state_of_charge, address: 3, type: u16}
writes:
  - {name: power_command, address: 10, type: s32, function: 16, min: -5000000, max: 5000000}
orders:
  charge: [{write: power_command}]
  discharge: [{write: power_command}]
  release: [{write: power_command, value: 0}]
detect:
  - {quantity: battery_power, min: -5000000, max: 5000000}
  - {quantity: state_of_charge, min: 0, max: 1000}
sources:
  - {name: "list 1.2", confidence: B}
`

// What goes into the battery is what its charge gains, less the loss, and it
// stops when it is full and at its reserve.
func TestBatteryCharge(t *testing.T) {
	acme, err := profile.Parse("acme-store.yaml", []byte(store))
	if err != nil {
		t.Fatal(err)
	}
	ph, err := slave.NewPhysics(slave.PhysicsConfig{Profile: acme, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	w, ok := ph.Unit().Profile().Write("power_command")
	if !ok {
		t.Fatal("no power_command")
	}
	b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: ph.Unit()})
	now := midnight.Add(12 * time.Hour)
	order := func(mw int64) {
		c, err := w.Encode(mw, nil)
		if err != nil {
			t.Fatal(err)
		}
		pdu := []byte{16, byte(c.Address >> 8), byte(c.Address), 0, byte(len(c.Values)), byte(2 * len(c.Values))}
		for _, v := range c.Values {
			pdu = append(pdu, byte(v>>8), byte(v))
		}
		if r := b.Handle(1, pdu); r[0] != 16 {
			t.Fatalf("%d mW: % x", mw, r)
		}
	}
	run := func(d time.Duration) map[string]int64 {
		for range d / time.Minute {
			now = now.Add(time.Minute)
			if err := ph.Step(now, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		return shown(t, ph.Unit())
	}
	order(2_000_000)
	v := run(time.Hour)
	if got := v["state_of_charge_permille"]; v["battery_power_mw"] != 2_000_000 || got < 830 || got > 840 { // 65 % + 2 kWh x 0.95 of 10 kWh
		t.Errorf("after an hour of 2 kW: %v", v)
	}
	if v = run(2 * time.Hour); v["battery_power_mw"] != 0 || v["state_of_charge_permille"] != 1000 {
		t.Errorf("full: %v", v)
	}
	order(-4_000_000)
	if v = run(time.Hour); v["battery_power_mw"] != -4_000_000 || v["state_of_charge_permille"] != 600 {
		t.Errorf("after an hour of -4 kW: %v", v)
	}
	if v = run(2 * time.Hour); v["battery_power_mw"] != 0 || v["state_of_charge_permille"] > 50 {
		t.Errorf("empty: %v", v)
	}
}

// A wallbox takes commands, and its car follows: state, current and energy.
func TestCarFollows(t *testing.T) {
	ph := physics(t, "abl-emh1", slave.PhysicsConfig{})
	b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: ph.Unit()})
	now := midnight
	for i, step := range []struct {
		addr, value byte
		high        byte
		status      uint16
		ma          int64 // per line, after three seconds
	}{
		{0x14, 0x0A, 0x01, 0xC2, 16_000}, // duty 266: 15.96 A, shown in tenths
		{0x14, 0xE8, 0x03, 0xB1, 0},      // off
		{0x14, 100, 0, 0xC2, 6000},
		{0x05, 0xE0, 0xE0, 0xB1, 0}, // disabled
		{0x05, 0xA1, 0xA1, 0xC2, 6000},
	} {
		if got := b.Handle(1, []byte{16, 0, step.addr, 0, 1, 2, step.high, step.value}); got[0] != 16 {
			t.Fatalf("step %d: the write is answered % x", i, got)
		}
		if status, _ := ph.Unit().Register(3, 4); status != step.status {
			t.Errorf("step %d: status %#x at once, want %#x", i, status, step.status)
		}
		now = now.Add(3 * time.Second)
		if err := ph.Step(now, 3*time.Second); err != nil {
			t.Fatal(err)
		}
		v := shown(t, ph.Unit())
		if v["status_code"] != int64(step.status) || v["current_l1_ma"]/100*100 > step.ma || v["current_l1_ma"] < step.ma-100 {
			t.Errorf("step %d: %v, want status %#x and %d mA", i, v, step.status, step.ma)
		}
	}
}

// Each state of IEC 61851-1 that a wallbox can show is shown, and current
// flows in C and D only.
func TestCarStates(t *testing.T) {
	for _, id := range []string{"simpleevse", "heidelberg-energy-control", "phoenix-charx", "alfen-eve", "keba-p30", "victron-evcs"} {
		for _, car := range "ABCDEF" {
			t.Run(fmt.Sprintf("%s %c", id, car), func(t *testing.T) {
				ph := physics(t, id, slave.PhysicsConfig{Car: byte(car)})
				p := ph.Unit().Profile()
				w, _ := p.Write("current_limit")
				alt := []meter.RawBlock{{Function: 3, Address: 2005, Data: []byte{0, 0}}, {Function: 3, Address: 1005, Data: []byte{0, 10}}}
				c, err := w.Encode(16_000, alt)
				if err != nil {
					t.Fatal(err)
				}
				b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: ph.Unit()})
				pdu := []byte{16, byte(c.Address >> 8), byte(c.Address), 0, byte(len(c.Values)), byte(2 * len(c.Values))}
				for _, x := range c.Values {
					pdu = append(pdu, byte(x>>8), byte(x))
				}
				if r := b.Handle(1, pdu); r[0] != 16 {
					t.Fatalf("the write is answered % x", r)
				}
				if err := ph.Step(midnight, 5*time.Second); err != nil {
					t.Fatal(err)
				}
				v := shown(t, ph.Unit())
				want, ok := p.StateCode(string(car))
				if got := v["status_code"]; ok && got != want {
					t.Errorf("status %d, want %d", got, want)
				}
				charges := car == 'C' || car == 'D'
				for _, name := range []string{"power_mw", "current_l1_ma"} {
					if got, has := v[name]; has && (got > 0) != charges {
						t.Errorf("%s is %d in state %c", name, got, car)
					}
				}
			})
		}
	}
}

// A hybrid inverter's battery does what it is ordered in the words of its
// profile, until it is released or the order runs out.
func TestBatteryOrders(t *testing.T) {
	for id, discharges := range map[string]bool{"sungrow-sh": false, "goodwe-et": false, "foxess-h3": true} {
		ph := physics(t, id, slave.PhysicsConfig{Seed: 1})
		p := ph.Unit().Profile()
		b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: ph.Unit()})
		now := midnight
		send := func(c profile.Command) {
			t.Helper()
			pdu := []byte{c.Function, byte(c.Address >> 8), byte(c.Address)}
			if c.Function == 16 {
				pdu = append(pdu, 0, byte(len(c.Values)), byte(2*len(c.Values)))
			}
			for _, v := range c.Values {
				pdu = append(pdu, byte(v>>8), byte(v))
			}
			if r := b.Handle(1, pdu); r[0] != c.Function {
				t.Fatalf("%s: % x is answered % x", id, pdu, r)
			}
		}
		order := func(name string, mw int64) int64 {
			t.Helper()
			writes, err := p.Order(name, mw)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range writes {
				send(c)
			}
			now = now.Add(time.Minute)
			if err := ph.Step(now, time.Minute); err != nil {
				t.Fatal(err)
			}
			return shown(t, ph.Unit())["battery_power_mw"]
		}
		if got := order("charge", 2_000_000); got != 2_000_000 {
			t.Errorf("%s: charges with %d mW", id, got)
		}
		if got := order("release", 0); got >= 0 {
			t.Errorf("%s: at night, released, %d mW", id, got)
		}
		if !discharges {
			continue
		}
		if got := order("discharge", 3_000_000); got != -3_000_000 {
			t.Errorf("%s: discharges with %d mW", id, got)
		}
		w, _ := p.Write("command_timeout")
		c, err := w.Encode(30_000, nil)
		if err != nil {
			t.Fatal(err)
		}
		send(c)
		if got := order("discharge", 3_000_000); got == -3_000_000 {
			t.Errorf("%s: goes on after the order has run out", id)
		}
	}
}
