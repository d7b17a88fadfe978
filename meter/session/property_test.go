package session

import (
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

// model knows, independently of the machine, what the conditions are.
type model struct {
	held, begun, estop, disk, drain    bool
	fault                              Fault
	obeys                              bool
	lost, overloaded, failed           bool // supply, house's fuse, wallbox
	spread                             bool // asked for a random time and did not get it
	startsAt                           time.Duration
	closings                           []time.Duration
	heat                               MilliCelsius
	heatAt                             time.Duration
	limit                              meter.MilliAmpere
	back                               meter.Watt // wanted out of the vehicle
	vehicle                            drivers.VehicleState
	meterAt, siteAt, pilotAt, lastStep time.Duration
	openedAt                           time.Duration
}

// TestNothingEnergisesWithoutAllConditions drives the machine with arbitrary
// events and checks at every step that a closed relay has every reason to be.
func TestNothingEnergisesWithoutAllConditions(t *testing.T) {
	closures, discharges, tests := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		r := testRules
		r.Wallbox, r.Trip, r.Temp = rapid.Bool().Draw(t, "wallbox"), rapid.Bool().Draw(t, "trip"), rapid.Bool().Draw(t, "thermometer")
		r.Fuse, r.DerateFrom, r.TempMax = 25_000, 60_000, 80_000
		r.MaxSwitches, r.StartSpread, r.OfflineWh = rapid.IntRange(1, 6).Draw(t, "closings"), 30*time.Second, 2000
		r.FullAfter, r.StartLimit, r.ResumeLimit, r.MinOff = 20*time.Second, 40*time.Second, 15*time.Second, 2*time.Second
		const never = -time.Hour
		now := time.Hour
		m := model{disk: true, obeys: true, heat: 30_000, heatAt: never, meterAt: never, siteAt: never, pilotAt: never, openedAt: now}
		var s State
		reg := meter.MilliWattHour(1_000_000)
		var did []string
		step := func(e Event) {
			gap := now - m.lastStep
			m.lastStep = now
			was := s
			var acts []Action
			s, acts = Step(r, s, e, now)
			checkTransition(t, was.Phase, s.Phase)
			if _, cleared := e.(ClearFault); !cleared && was.Fault&^s.Fault != 0 {
				t.Fatalf("%T cleared %q, left %q", e, was.Fault, s.Fault)
			}
			fresh := now-m.meterAt <= r.StaleAfter && now-m.siteAt <= r.StaleAfter && now-m.pilotAt <= r.StaleAfter && (!r.Temp || now-m.heatAt <= r.StaleAfter)
			lastHour := 0
			for _, at := range m.closings {
				if now-at <= time.Hour {
					lastHour++
				}
			}
			for _, a := range acts {
				did = append(did, a.Kind.String())
				switch a.Kind {
				case OpenRelay:
					if was.Relay {
						m.openedAt = now
					}
				case CloseRelay:
					closures++
					connected := m.vehicle == drivers.StateB || m.vehicle == drivers.StateC || m.vehicle == drivers.StateD
					m.closings = append(m.closings, now)
					if s.Phase == Testing {
						tests++
						if m.estop || m.fault != 0 || s.Fault != 0 || m.lost || m.overloaded || m.failed || !m.disk || m.drain || !m.obeys || !fresh || r.Wallbox ||
							m.vehicle != drivers.StateA || lastHour >= r.MaxSwitches || gap > r.LoopLimit || now-m.openedAt < r.MinOff || s.Current > WeldAbove {
							t.Fatalf("tests the relay on %T at %s: model %+v, fresh %t, gap %s, %d mA", e, now, m, fresh, gap, s.Current)
						}
						continue
					}
					switch {
					case m.lost, m.overloaded, m.failed, m.spread, now < m.startsAt, lastHour >= r.MaxSwitches:
						t.Fatalf("closed on %T at %s: model %+v, %d closings", e, now, m, lastHour)
					}
					if !m.held || !m.begun || m.estop || !m.disk || m.drain || m.fault != 0 || !m.obeys || !fresh || !connected ||
						m.limit < MinCurrent && m.back == 0 || gap > r.LoopLimit || now-m.openedAt < r.MinOff || s.ID == (chain.ID{}) {
						t.Fatalf("closed on %T at %s: model %+v, fresh %t, gap %s", e, now, m, fresh, gap)
					}
				case Alarm:
					m.fault |= a.Fault
				case TripOn:
					if !r.Trip || !s.Fault.Has(Weld) {
						t.Fatalf("shunt trip on %T with faults %q", e, s.Fault)
					}
				case AskDelay:
					m.spread = true
				case RecordStop, Ended:
					m.held, m.begun = false, false
					m.spread, m.startsAt = false, 0
				}
			}
			switch {
			case s.Fault != NoFault, m.estop, m.lost, m.failed, gap > r.LoopLimit && was.Phase != Idle:
				if s.Relay {
					t.Fatalf("relay closed: fault %q, stop %t, gap %s", s.Fault, m.estop, gap)
				}
			case s.Relay && now-min(m.meterAt, m.siteAt, m.pilotAt) > r.StaleAfter+r.StaleOff+r.StopWait+r.LoopLimit:
				t.Fatalf("relay closed on readings of %s, %s, %s at %s", m.meterAt, m.siteAt, m.pilotAt, now)
			case s.Relay && now-min(m.meterAt, m.siteAt, m.pilotAt) > r.StaleAfter && s.Offered > MinCurrent:
				t.Fatalf("offers %d mA on stale readings", s.Offered)
			}
			if s.Offered != 0 && (s.Offered < MinCurrent || s.Offered > r.MaxCurrent || !s.Relay) {
				t.Fatalf("offers %d mA, relay %t", s.Offered, s.Relay)
			}
			if s.Back != 0 {
				discharges++
				connected := m.vehicle == drivers.StateB || m.vehicle == drivers.StateC || m.vehicle == drivers.StateD
				if s.Back != m.back || !s.Relay || s.Offered != 0 || !m.held || !m.begun || m.estop || !m.disk || m.drain || m.fault != 0 || s.Fault != 0 || !m.obeys ||
					!fresh || !connected || m.lost || m.overloaded || m.failed || gap > r.LoopLimit || s.ID == (chain.ID{}) {
					t.Fatalf("discharges with %d W on %T at %s: model %+v, fresh %t, gap %s", s.Back, e, now, m, fresh, gap)
				}
			}
			if s.Phase == Idle && s.Relay {
				t.Fatal("idle with a closed relay")
			}
			if s.Phase == Testing && (s.Offered != 0 || s.Back != 0 || now-s.phaseAt > MaxTest || s.Vehicle != drivers.StateA || s.Current > WeldAbove) {
				t.Fatalf("tests for %s, offers %d mA, %d W, vehicle %s, %d mA flow", now-s.phaseAt, s.Offered, s.Back, m.vehicle, s.Current)
			}
			if s.Tripping && !s.Fault.Has(Weld) && was.Fault.Has(Weld) {
				// cleared in the middle of a pulse, which ends by itself
			} else if s.Tripping && !s.Fault.Has(Weld) && !was.Tripping {
				t.Fatal("trips without a weld")
			}
			if r.Temp && m.heat >= r.DerateFrom+10_000 && s.Offered > 11_000 {
				t.Fatalf("offers %d mA at %s", s.Offered, m.heat)
			}
			for _, a := range acts {
				if a.Kind == RecordBegin && rapid.Bool().Draw(t, "disk is quick") {
					m.begun = true
					s, acts = Step(r, s, BeginRecorded{}, now)
					if len(acts) > 0 && acts[0].Kind == CloseRelay {
						closures++
					}
				}
			}
		}
		id := chain.ID{1}
		heard := func() {
			if now > m.meterAt {
				m.meterAt = now
				reg += meter.MilliWattHour(rapid.IntRange(0, 3000).Draw(t, "mWh"))
				step(Reading{Good: true, Import: reg, Current: meter.MilliAmpere(rapid.SampledFrom([]int{0, 300, 900, 6000, 16000, 20000}).Draw(t, "mA")), At: now})
			}
			m.siteAt = now
			if m.overloaded {
				m.overloaded = false // the house is within its fuse again
			}
			step(SiteReading{Current: 12_000, At: now})
			m.heatAt = now
			step(Temperature{m.heat, now})
			m.pilotAt = now
			step(Vehicle{State: m.vehicle, At: now})
		}
		set := func(edge string) {
			step(Setpoint{Limit: m.limit, Edge: edge, Planned: edge != "" && m.limit == 0, Back: m.back, Stay: rapid.Bool().Draw(t, "stay"), Sells: true})
			if s.Phase == Idle {
				m.back = 0 // without a session nothing is remembered
			}
		}
		m.vehicle, m.limit = drivers.StateB, 16_000
		set("")
		for range rapid.IntRange(100, 600).Draw(t, "events") {
			// Most of the time the world is healthy, or little would happen.
			quiet := rapid.IntRange(0, 9).Draw(t, "world") < 8
			now += time.Duration(rapid.IntRange(300, 950).Draw(t, "ms")) * time.Millisecond
			if quiet {
				heard()
				m.estop, m.obeys = false, true
				step(Inputs{})
				step(Output{Closed: s.Relay, OK: true})
				step(Tick{})
			}
			if quiet && rapid.IntRange(0, 7).Draw(t, "repair") == 0 {
				m.fault, m.failed, m.heat, m.heatAt, m.disk = NoFault, false, 30_000, now, true
				step(Temperature{m.heat, now})
				step(Device{})
				step(ClearFault{})
				step(Journal{true})
				now += time.Millisecond
				m.meterAt, m.lost = now, false
				step(Reading{Good: true, Import: reg, Volts: [3]meter.MilliVolt{230_000, 230_000, 230_000}, Known: 3, At: now})
				if s.Phase == Idle {
					m.held, m.begun = false, false
					id[1]++
					m.back = 0
					step(Open{id, 5000, true})
				}
				m.held, m.limit, m.vehicle, m.pilotAt = s.Phase != Idle, 16_000, drivers.StateB, now
				step(Ledger{s.ID, true})
				set("")
				step(Vehicle{m.vehicle, now})
			}
			switch rapid.IntRange(0, 37).Draw(t, "event") {
			case 23:
				m.heat = MilliCelsius(rapid.SampledFrom([]int{20_000, 30_000, 65_000, 75_000, 90_000}).Draw(t, "heat"))
				m.heatAt = now
				step(Temperature{m.heat, now})
			case 24:
				step(Inputs{Earth: true})
			case 25:
				m.failed = rapid.Bool().Draw(t, "failed")
				step(Device{Failed: m.failed})
			case 26: // a phase is lost: the second of two readings counts
				for i := range 2 {
					now += 1100 * time.Millisecond
					m.meterAt = now
					m.lost = m.lost || i == 1
					step(Reading{Good: true, Import: reg, Volts: [3]meter.MilliVolt{230_000, 0, 230_000}, Known: 3, At: now})
				}
			case 27: // the supply is complete
				now += time.Millisecond
				m.meterAt, m.lost = now, false
				step(Reading{Good: true, Import: reg, Volts: [3]meter.MilliVolt{230_000, 230_000, 230_000}, Known: 3, At: now})
			case 28: // the house's fuse
				for i := range 8 {
					now += 900 * time.Millisecond
					m.siteAt = now
					m.overloaded = m.overloaded || i >= 6 && s.Relay
					step(SiteReading{Current: 30_000, At: now})
				}
			case 29:
				set("a slot begins")
			case 30:
				d := time.Duration(rapid.IntRange(0, 60).Draw(t, "spread")) * time.Second
				if m.spread {
					m.spread, m.startsAt = false, now+min(d, r.StartSpread)
				}
				step(Spread{d})
			case 31:
				m.spread, m.startsAt = false, 0
				step(StartNow{})
			case 35, 36, 37:
				if s.Phase != Idle { // then it is refused
					step(Test{MaxTest})
					step(Stop{chain.StopDriver, ""})
				}
				// A person unplugs, and waits until the session has ended and
				// the relay has rested.
				m.vehicle = drivers.StateA
				for range rapid.IntRange(0, 12).Draw(t, "waits") {
					now += 800 * time.Millisecond
					m.pilotAt, m.meterAt, m.siteAt, m.heatAt, m.obeys = now, now, now, now, true
					step(Vehicle{m.vehicle, now})
					step(Reading{Good: true, Import: reg, At: now})
					step(SiteReading{Current: 12_000, At: now})
					step(Temperature{m.heat, now})
					step(Output{Closed: s.Relay, OK: true})
					step(StopRecorded{})
				}
				now += time.Millisecond
				m.vehicle, m.pilotAt, m.meterAt, m.siteAt, m.heatAt = drivers.StateA, now, now, now, now
				step(Vehicle{m.vehicle, now})
				step(Reading{Good: true, Import: reg, Current: meter.MilliAmpere(rapid.SampledFrom([]int{0, 0, 0, 800}).Draw(t, "flows")), At: now})
				step(Temperature{m.heat, now})
				step(SiteReading{Current: 12_000, At: now})
				m.overloaded = false
				step(Test{time.Duration(rapid.IntRange(-1, 10).Draw(t, "test")) * time.Second})
			case 33, 34:
				m.back = meter.Watt(rapid.SampledFrom([]int{0, 1, 700, 11_000}).Draw(t, "back"))
				if m.back > 0 && rapid.Bool().Draw(t, "discharges only") {
					m.limit = 0
				}
				set("")
			case 32:
				step(Online{rapid.Bool().Draw(t, "online")})
			case 0, 1, 2:
				if s.Phase == Idle {
					m.held, m.begun = false, false
					id[1]++
				}
				if s.Phase == Idle {
					m.back = 0
				}
				step(Open{id, meter.WattHour(rapid.IntRange(1, 4000).Draw(t, "Wh")), true})
			case 3, 4, 5:
				if s.Phase != Idle {
					m.held = true
				}
				step(Ledger{s.ID, true})
			case 6:
				m.held = false
				step(Ledger{s.ID, false})
			case 7, 8, 9:
				m.limit = meter.MilliAmpere(rapid.SampledFrom([]int{0, 3000, 6000, 10000, 16000, 40000}).Draw(t, "limit"))
				set("")
			case 10:
				m.estop = true
				step(Inputs{EStop: true})
			case 11:
				m.vehicle = rapid.SampledFrom([]drivers.VehicleState{drivers.StateA, drivers.StateB, drivers.StateC, drivers.StateD, drivers.StateF, drivers.StateUnknown}).Draw(t, "vehicle")
				m.pilotAt = now
				step(Vehicle{State: m.vehicle, At: now})
			case 12:
				m.disk = rapid.Bool().Draw(t, "disk")
				step(Journal{m.disk})
			case 13:
				m.obeys = false
				step(Output{OK: false})
			case 14:
				step(Stalled{})
			case 15:
				m.fault = NoFault
				step(ClearFault{})
			case 16:
				step(Stop{chain.StopDriver, ""})
			case 17:
				step(StopRecorded{})
			case 18:
				if s.asked {
					m.begun = true
				}
				step(BeginRecorded{})
			case 19:
				step(Reading{Good: false, Import: reg + 5000, Current: 100, At: now})
			case 20:
				now += time.Duration(rapid.IntRange(0, 40).Draw(t, "s")) * time.Second
				step(Tick{})
			case 21:
				if s.Phase == Idle {
					m.held, m.begun = false, true
					step(Resume{Saved{ID: id, MaxWh: 300, Begun: true, Base: reg, Last: reg}, rapid.Bool().Draw(t, "power")})
				}
			case 22:
				if rapid.IntRange(0, 20).Draw(t, "drain") == 0 {
					m.drain = true
					step(Drain{})
				}
			default:
				step(Tick{})
			}
		}
	})
	t.Logf("%d closures, %d of them tests, %d steps of discharging", closures, tests, discharges)
	if closures < 20 || discharges < 20 || tests < 20 {
		t.Fatalf("the relay closed only %d times, %d of them tests, and there were %d steps of discharging: the property says little", closures, tests, discharges)
	}
}

// TestEveryBegunSessionIsRecordedOnce checks that whatever happens, a session
// that began ends with exactly one last register, not below its first.
func TestEveryBegunSessionIsRecordedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := testRules
		now, reg := time.Hour, meter.MilliWattHour(7_000_000)
		var s State
		begins, stops := 0, 0
		var base meter.MilliWattHour
		step := func(e Event) {
			var acts []Action
			s, acts = Step(r, s, e, now)
			for _, a := range acts {
				switch a.Kind {
				case RecordBegin:
					begins++
					base = a.Register
				case RecordStop:
					stops++
					if !a.Begun {
						begins++
						base = a.Register
					}
					if a.Register < base {
						t.Fatalf("ends at %d, began at %d", a.Register, base)
					}
				}
			}
		}
		step(Tick{})
		now += 11 * time.Second
		step(Setpoint{Limit: 16_000})
		step(Open{chain.ID{1}, 500, false})
		step(Ledger{chain.ID{1}, true})
		for range rapid.IntRange(1, 60).Draw(t, "seconds") {
			now += time.Second
			if rapid.IntRange(0, 9).Draw(t, "meter") > 0 {
				reg += 3000
				step(Reading{Good: true, Import: reg, At: now})
			}
			step(SiteReading{At: now})
			step(Vehicle{State: drivers.StateC, At: now})
			if rapid.Bool().Draw(t, "recorded") {
				step(BeginRecorded{})
			}
			if rapid.IntRange(0, 30).Draw(t, "stop") == 0 {
				step(Stop{Reason: chain.StopDriver})
			}
			step(Inputs{EStop: rapid.IntRange(0, 60).Draw(t, "estop") == 0})
		}
		step(Stop{Reason: chain.StopOperator})
		for range 20 {
			now += time.Second
			step(Tick{})
		}
		if stops != 1 && !(stops == 0 && begins == 0) {
			t.Fatalf("%d begin and %d stop records; %s", begins, stops, s.Phase)
		}
		if begins != stops {
			t.Fatalf("%d begin and %d stop records", begins, stops)
		}
	})
}
