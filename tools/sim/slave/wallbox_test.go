package slave_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// station leads a simulated wallbox as a driver does, by its profile alone.
type station struct {
	t   *testing.T
	ph  *slave.Physics
	bus *slave.Bus
	p   *profile.Profile
	now time.Time
}

func newStation(t *testing.T, id string, car byte) *station {
	t.Helper()
	ph := physics(t, id, slave.PhysicsConfig{Car: car})
	s := &station{t: t, ph: ph, bus: bus(t, slave.Config{}, map[uint8]*slave.Unit{1: ph.Unit()}), p: ph.Unit().Profile(), now: midnight}
	s.pass(0)
	for _, c := range s.p.Setup() {
		s.write(c.Write, c.Value)
	}
	return s
}

func (s *station) pass(d time.Duration) {
	s.t.Helper()
	s.now = s.now.Add(d)
	if err := s.ph.Step(s.now, d); err != nil {
		s.t.Fatal(err)
	}
}

// send writes and returns the answer.
func (s *station) send(w *profile.Write, v int64) []byte {
	s.t.Helper()
	c, err := w.Encode(v, []meter.RawBlock{{Function: 3, Address: 2005, Data: []byte{0, 0}}, {Function: 3, Address: 1005, Data: []byte{0, 10}}})
	if err != nil {
		s.t.Fatal(err)
	}
	pdu := binary.BigEndian.AppendUint16([]byte{c.Function}, c.Address)
	if c.Function == 16 {
		pdu = binary.BigEndian.AppendUint16(pdu, uint16(len(c.Values)))
		pdu = append(pdu, byte(2*len(c.Values)))
	}
	for _, x := range c.Values {
		pdu = binary.BigEndian.AppendUint16(pdu, x)
	}
	return s.bus.Handle(1, pdu)
}

func (s *station) write(w *profile.Write, v int64) {
	s.t.Helper()
	if r := s.send(w, v); r[0] >= 0x80 {
		s.t.Fatalf("%s: %s %d: % x", s.p.ID, w.Name, v, r)
	}
}

func (s *station) order(name string, v int64) {
	s.t.Helper()
	if w, ok := s.p.Write(name); ok {
		s.write(w, v)
	}
}

func (s *station) offer(ma int64) {
	s.t.Helper()
	s.order("current_limit", ma)
	s.order("enable", 1)
	s.order("heartbeat", 1)
}

func (s *station) pause() {
	for _, c := range s.p.Pause() {
		s.write(c.Write, c.Value)
	}
}

// sees checks the state of the pilot and the current of the car, in mA, where
// the wallbox shows them.
func (s *station) sees(when string, state drivers.VehicleState, ma int64) {
	s.t.Helper()
	b := s.bus
	var raw []meter.RawBlock
	for _, k := range s.p.Blocks(0) {
		r := b.Handle(1, []byte{byte(k.Function), byte(k.Address >> 8), byte(k.Address), byte(k.Count >> 8), byte(k.Count)})
		if r[0] != byte(k.Function) {
			s.t.Fatalf("%s: registers %d+%d: % x", s.p.ID, k.Address, k.Count, r)
		}
		raw = append(raw, meter.RawBlock{Function: uint8(k.Function), Address: k.Address, Data: r[2:]})
	}
	points, err := s.p.Decode(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	if got, ok := s.p.VehicleState(points); !ok || got != state {
		s.t.Errorf("%s, %s: state %s, want %s", s.p.ID, when, got, state)
	}
	for _, pt := range points {
		want, slack := int64(-1), int64(0)
		switch {
		case pt.Quantity == meter.Current && pt.Phase == 1:
			want, slack = ma, 150
		case pt.Quantity == meter.Power && pt.Phase == 0:
			want, slack = 3*230*ma, 30*ma
		}
		if want >= 0 && (pt.Value < want-slack || pt.Value > want+slack) {
			s.t.Errorf("%s, %s: %s = %d, want %d", s.p.ID, when, pt.Name(), pt.Value, want)
		}
	}
}

func wallboxes(t *testing.T, f func(t *testing.T, p *profile.Profile)) {
	t.Helper()
	for _, p := range profile.All() {
		if _, current := p.Write("current_limit"); current && p.Kind == profile.Wallbox {
			t.Run(p.ID, func(t *testing.T) { f(t, p) })
		}
	}
}

// Every wallbox follows what it is told by its profile: current, pause,
// current again, and it shows all states that it knows.
func TestWallboxRoundTrip(t *testing.T) {
	wallboxes(t, func(t *testing.T, p *profile.Profile) {
		s := newStation(t, p.ID, 'C')
		s.offer(16_000)
		s.pass(3 * time.Second)
		s.sees("16 A offered", drivers.StateC, 16_000)
		s.offer(6_000)
		s.pass(time.Second)
		s.sees("6 A offered", drivers.StateC, 6_000)
		s.pause()
		s.pass(time.Second)
		s.sees("paused", drivers.StateB, 0)
		s.offer(10_000)
		s.pass(3 * time.Second)
		s.sees("10 A after a pause", drivers.StateC, 10_000)

		for _, car := range "ABCDEF" {
			letter := string(car)
			if _, ok := p.StateCode(letter); !ok {
				continue
			}
			s := newStation(t, p.ID, byte(car))
			s.offer(8_000)
			s.pass(3 * time.Second)
			want := int64(0)
			if car == 'C' || car == 'D' {
				want = 8_000
			}
			s.sees("car "+letter, drivers.VehicleState(car), want)
		}
	})
}

// A wallbox whose master has gone falls back to its failsafe current after its
// time-out, not before, and follows again as soon as the master is back.
func TestWallboxFallsBack(t *testing.T) {
	count := 0
	wallboxes(t, func(t *testing.T, p *profile.Profile) {
		if p.Watchdog == nil {
			return
		}
		count++
		s := newStation(t, p.ID, 'C')
		limit := p.Watchdog.Timeout
		if w, ok := p.Write("failsafe_timeout"); ok {
			limit = 30 * time.Second
			s.write(w, limit.Milliseconds())
		} else if w, ok := p.Write(p.Watchdog.FedBy); ok && limit == 0 {
			limit = 3 * w.Every
		}
		want, state := int64(0), drivers.StateB
		if w, ok := p.Write("failsafe_current"); ok {
			want, state = 7_000, drivers.StateC
			s.write(w, want)
		}
		feed := func() { s.offer(16_000) }
		for range 5 { // as long as it is fed
			feed()
			s.pass(limit / 2)
		}
		s.sees("fed", drivers.StateC, 16_000)
		feed()
		s.pass(limit)
		s.sees("at the limit", drivers.StateC, 16_000)
		feed()
		s.pass(limit + time.Second)
		s.sees("abandoned", state, want)
		feed()
		s.pass(3 * time.Second)
		s.sees("fed again", drivers.StateC, 16_000)
	})
	if count < 9 {
		t.Errorf("%d wallboxes with a watchdog", count)
	}
}

// Where phases can be switched, the car charges on one line or on three, if
// the wallbox has been told who switches them.
func TestWallboxPhases(t *testing.T) {
	count := 0
	wallboxes(t, func(t *testing.T, p *profile.Profile) {
		w, ok := p.Write("phases")
		if !ok {
			return
		}
		count++
		s := newStation(t, p.ID, 'C')
		s.order("phase_control", 1)
		for _, lines := range []int64{1, 3} {
			s.pause()
			s.write(w, lines)
			s.offer(6_000)
			s.pass(3 * time.Second)
			v := shown(t, s.ph.Unit())
			if got, has := v["current_l2_ma"]; has && (got > 0) != (lines == 3) {
				t.Errorf("%s: %d mA on line 2 of %d", p.ID, got, lines)
			}
			if got, has := v["power_mw"]; has && (got < lines*6*220_000 || got > lines*6*240_000) {
				t.Errorf("%s: %d mW on %d lines", p.ID, got, lines)
			}
			if b, ok := w.ReadBlock(); ok {
				r := s.bus.Handle(1, []byte{byte(b.Function), byte(b.Address >> 8), byte(b.Address), 0, byte(b.Count)})
				if got, ok := w.DecodeRead([]meter.RawBlock{{Function: uint8(b.Function), Address: b.Address, Data: r[2:]}}); !ok || got != lines {
					t.Errorf("%s: says that it charges on %d lines, %v", p.ID, got, ok)
				}
			}
		}
	})
	if count < 5 {
		t.Errorf("%d wallboxes switch phases", count)
	}
	s := newStation(t, "keba-p30", 'C')
	s.order("phases", 1)
	s.offer(6_000)
	s.pass(3 * time.Second)
	s.sees("phases switched by nobody", drivers.StateC, 6_000)
}

// A current between 0 and 6 A, or 0 where a wallbox takes none, is refused.
func TestWallboxRefuses(t *testing.T) {
	for id, pdu := range map[string][]byte{
		"victron-evcs": {6, 0x13, 0x98, 0, 0},       // 5016 := 0 A
		"keba-p30":     {6, 0x13, 0x8C, 0x0B, 0xB8}, // 5004 := 3000 mA
		"simpleevse":   {6, 0x03, 0xE8, 0, 90},      // 1000 := 90 A
	} {
		ph := physics(t, id, slave.PhysicsConfig{})
		b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: ph.Unit()})
		if r := b.Handle(1, pdu); r[0] != 0x86 || r[1] != 3 {
			t.Errorf("%s: % x", id, r)
		}
	}
}

// A wallbox that is told a power puts it into the vehicle or takes it out, as
// far as both bear it, counts it in the register of its direction, and ends it
// when it is released, when the vehicle is empty and when its master is gone.
func TestBidirectionalWallbox(t *testing.T) {
	s := newStation(t, "generic-dc-bidirectional", 'C')
	order := func(name string, mw int64) {
		t.Helper()
		all, err := s.p.Order(name, mw)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			pdu := binary.BigEndian.AppendUint16([]byte{c.Function}, c.Address)
			if c.Function == 16 {
				pdu = binary.BigEndian.AppendUint16(pdu, uint16(len(c.Values)))
				pdu = append(pdu, byte(2*len(c.Values)))
			}
			for _, v := range c.Values {
				pdu = binary.BigEndian.AppendUint16(pdu, v)
			}
			if r := s.bus.Handle(1, pdu); r[0] >= 0x80 {
				t.Fatalf("%s %d mW: % x", name, mw, r)
			}
		}
	}
	is := func(when, what string, least, most int64) {
		t.Helper()
		if v := shown(t, s.ph.Unit())[what]; v < least || v > most {
			t.Errorf("%s: %s is %d, want %d..%d", when, what, v, least, most)
		}
	}
	at := func(what string) int64 { return shown(t, s.ph.Unit())[what] }

	order(profile.OrderDischarge, 3_600_000)
	s.pass(2 * time.Second)
	is("out", "power_mw", -3_600_000, -3_600_000)
	is("out", "status_code", 2, 2)
	exported, charge := at("export_mwh"), at("state_of_charge_permille")
	for range 100 { // 100 s at 3.6 kW are 100 Wh
		order(profile.OrderDischarge, 3_600_000)
		s.pass(time.Second)
	}
	is("100 s out", "export_mwh", exported+100_000, exported+100_000)
	is("100 s out", "state_of_charge_permille", charge-12, charge-11) // 111 of 10,000 Wh
	imported := at("import_mwh")
	order(profile.OrderCharge, 9_000_000)
	s.pass(3 * time.Second)
	is("in", "power_mw", 5_000_000, 5_000_000) // what the vehicle bears
	is("in", "export_mwh", exported+100_000, exported+100_000)
	if at("import_mwh") <= imported {
		t.Error("nothing was counted on the way in")
	}
	order(profile.OrderRelease, 0)
	s.pass(100 * time.Millisecond)
	is("released", "power_mw", 0, 0)
	is("released", "status_code", 1, 1)

	order(profile.OrderDischarge, 3_600_000)
	s.pass(s.p.Watchdog.Timeout)
	is("at the watchdog's limit", "power_mw", -3_600_000, -3_600_000)
	s.pass(time.Second)
	is("abandoned", "power_mw", 0, 0)
	is("abandoned", "status_code", 1, 1)
	order(profile.OrderDischarge, 3_600_000)
	s.pass(2 * time.Second)
	is("heard again", "power_mw", -3_600_000, -3_600_000)

	for range 3 * 3600 {
		order(profile.OrderDischarge, 5_000_000)
		s.pass(time.Second)
	}
	is("empty", "power_mw", 0, 0)
	is("empty", "state_of_charge_permille", 49, 50)

	for _, car := range []byte{'A', 'B'} {
		s = newStation(t, "generic-dc-bidirectional", car)
		order(profile.OrderDischarge, 3_600_000)
		s.pass(2 * time.Second)
		is(string(car), "power_mw", 0, 0)
		is(string(car), "status_code", int64(car-'A'), int64(car-'A'))
	}
}
