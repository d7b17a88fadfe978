package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

var testRules = Rules{
	MaxCurrent: 16_000, Phases: 3, Pilot: true, Site: true,
	StaleAfter: 10 * time.Second, StaleOff: 20 * time.Second, StopWait: 3 * time.Second, MinOff: 10 * time.Second,
	HoldLimit: 60 * time.Second, StartLimit: 600 * time.Second, FullAfter: 300 * time.Second, ResumeLimit: 120 * time.Second,
	LoopLimit: time.Second, Horizon: 5 * time.Second,
}

const tick = 100 * time.Millisecond

// rig plays the world around one machine: a meter that counts what the car
// draws, a car that draws what it is offered while the relay is closed.
type rig struct {
	t    *testing.T
	r    Rules
	s    State
	now  time.Duration
	reg  meter.MilliWattHour
	acts []Action

	meterOff, siteOff, pilotOff bool
	good                        bool
	vehicle                     drivers.VehicleState
	draw                        func() meter.MilliAmpere
	contact                     func() Contact
	estop                       bool
	went                        map[[2]Phase]bool // transitions
}

func newRig(t *testing.T) *rig {
	g := &rig{t: t, r: testRules, good: true, vehicle: drivers.StateB, reg: 5_000_300, now: time.Hour, went: map[[2]Phase]bool{}}
	g.draw = func() meter.MilliAmpere {
		if g.s.Relay {
			return g.s.Offered
		}
		return 0
	}
	g.contact = func() Contact { return NotFitted }
	return g
}

func (g *rig) do(e Event) []Action {
	var acts []Action
	was := g.s.Phase
	g.s, acts = Step(g.r, g.s, e, g.now)
	checkTransition(g.t, was, g.s.Phase)
	g.went[[2]Phase{was, g.s.Phase}] = true
	g.acts = append(g.acts, acts...)
	for _, a := range acts {
		if a.Kind == RecordBegin {
			g.do(BeginRecorded{})
		}
	}
	return acts
}

// run lets d pass: ticks, and once a second what the devices say.
func (g *rig) run(d time.Duration) {
	for end := g.now + d; g.now < end; {
		g.now += tick
		a := g.draw()
		g.reg += meter.MilliWattHour(int64(a) * 230 * int64(g.r.Phases) * tick.Milliseconds() / 3_600_000)
		if g.now%time.Second == 0 {
			if !g.meterOff {
				g.do(Reading{Good: g.good, Import: g.reg, Current: a, At: g.now})
			}
			if !g.siteOff {
				g.do(SiteReading{At: g.now})
			}
			if !g.pilotOff {
				v := g.vehicle
				if v == drivers.StateB && a > 0 {
					v = drivers.StateC
				}
				g.do(Vehicle{State: v, At: g.now})
			}
		}
		g.do(Inputs{EStop: g.estop, Feedback: g.contact()})
		g.do(Tick{})
	}
}

func (g *rig) want(p Phase, relay bool) {
	g.t.Helper()
	if g.s.Phase != p || g.s.Relay != relay {
		g.t.Fatalf("at %s: %s, relay %t (%s); want %s, relay %t", g.now, g.s.Phase, g.s.Relay, g.s.Why, p, relay)
	}
}

func (g *rig) take(k ActionKind) (Action, bool) {
	for i, a := range g.acts {
		if a.Kind == k {
			g.acts = slices.Delete(g.acts, 0, i+1)
			return a, true
		}
	}
	return Action{}, false
}

func (g *rig) stopped(why chain.StopReason) Action {
	g.t.Helper()
	a, ok := g.take(RecordStop)
	if !ok || a.Reason != why {
		g.t.Fatalf("stop record %+v (%t), want reason %s; %s: %s", a, ok, why, g.s.Phase, g.s.Why)
	}
	return a
}

var testID = chain.ID{1, 2, 3}

func (g *rig) charge(max meter.WattHour) {
	g.t.Helper()
	g.run(11 * time.Second) // the relay rests after the start of the program
	g.do(Setpoint{Limit: 16_000})
	g.do(Open{testID, max, false})
	g.want(Held, false)
	g.do(Ledger{testID, true})
	g.run(time.Second)
	g.want(Charging, true)
}

// test begins a person's test of the relay.
func (g *rig) test() {
	g.t.Helper()
	g.vehicle = drivers.StateA
	g.run(11 * time.Second)
	g.do(Test{For: MaxTest})
	g.want(Testing, true)
}

// A person's test closes the relay for its time and no longer, and ends at
// whatever would end charging.
func TestRelayTest(t *testing.T) {
	g := newRig(t)
	g.test()
	g.run(MaxTest - time.Second)
	g.want(Testing, true)
	g.run(time.Second + tick)
	g.want(Idle, false)
	g.do(Test{For: time.Second})
	g.want(Idle, false) // it rests after switching
	g.run(testRules.MinOff)
	g.do(Test{For: time.Hour})
	g.run(MaxTest + tick)
	g.want(Idle, false)

	for name, disturb := range map[string]func(g *rig){
		"emergency stop": func(g *rig) { g.estop = true },
		"vehicle":        func(g *rig) { g.vehicle = drivers.StateB },
		"current":        func(g *rig) { g.draw = func() meter.MilliAmpere { return 600 } },
		"stop":           func(g *rig) { g.do(Stop{Reason: chain.StopOperator}) },
		"stall":          func(g *rig) { g.do(Stalled{}) },
		"shutdown":       func(g *rig) { g.do(Drain{}) },
		"no disk":        func(g *rig) { g.do(Journal{false}) },
		"earth fault":    func(g *rig) { g.do(Inputs{Earth: true}) },
	} {
		t.Run("ends at "+name, func(t *testing.T) {
			g := newRig(t)
			g.test()
			disturb(g)
			g.run(1200 * time.Millisecond)
			g.want(Idle, false)
		})
		t.Run("refused at "+name, func(t *testing.T) {
			if name == "stop" || name == "stall" { // of a moment
				return
			}
			g := newRig(t)
			g.vehicle = drivers.StateA
			g.run(11 * time.Second)
			disturb(g)
			g.run(1200 * time.Millisecond)
			g.do(Test{For: MaxTest})
			g.want(Idle, false)
		})
	}

	// Contacts that do not follow are what it is for.
	g = newRig(t)
	g.contact = func() Contact { return ContactOpen }
	g.test()
	g.run(2 * time.Second)
	g.want(Idle, false)
	if !g.s.Fault.Has(Contactor) {
		t.Errorf("a contact that stays open: fault %q", g.s.Fault)
	}
	g = newRig(t)
	g.contact = func() Contact {
		if g.went[[2]Phase{Idle, Testing}] {
			return ContactClosed
		}
		return ContactOpen
	}
	g.test()
	g.run(MaxTest + WeldAfter + time.Second)
	if !g.s.Fault.Has(Weld) {
		t.Errorf("a contact that stays closed: fault %q", g.s.Fault)
	}
}

func TestOrdinarySession(t *testing.T) {
	g := newRig(t)
	g.charge(10_000)
	begin := g.s.Base
	g.run(60 * time.Second)
	if g.s.Offered != 16_000 {
		t.Fatalf("offers %d mA", g.s.Offered)
	}
	g.acts = nil
	g.do(Stop{Reason: chain.StopDriver})
	g.want(Stopping, true)
	if g.s.Offered != 0 {
		t.Fatal("an ordinary stop offers 0 A first")
	}
	g.run(1100 * time.Millisecond) // one reading below 1 A
	if g.s.Relay {
		t.Fatal("below 1 A the contactor opens")
	}
	g.run(2 * time.Second)
	a := g.stopped(chain.StopDriver)
	if !a.Fresh || a.Register != g.reg || a.Register <= begin {
		t.Fatalf("final register %+v, the meter says %d", a, g.reg)
	}
	g.want(Metered, false)
	g.do(StopRecorded{})
	g.want(Idle, false)
	g.run(time.Minute)
	if _, again := g.take(CloseRelay); again {
		t.Fatal("closed without a session")
	}
}

func TestTransitions(t *testing.T) {
	type step func(g *rig)
	open := func(g *rig) {
		g.run(11 * time.Second)
		g.do(Setpoint{Limit: 16_000})
		g.do(Open{testID, 10_000, false})
	}
	auth := func(g *rig) { g.vehicle = drivers.StateA; open(g); g.do(Ledger{testID, true}); g.run(tick) }
	charge := func(g *rig) { g.charge(10_000); g.run(30 * time.Second) }
	suspend := func(g *rig) { charge(g); g.do(Setpoint{Limit: 0}); g.run(4 * time.Second) }
	wait := func(d time.Duration) step { return func(g *rig) { g.run(d) } }
	event := func(e Event) step { return func(g *rig) { g.do(e) } }
	for _, c := range []struct {
		name  string
		steps []step
		phase Phase
		relay bool
		why   string // within Why
	}{
		{"idle stays idle", []step{wait(time.Minute)}, Idle, false, "no session"},
		{"open waits for the ledger", []step{open, wait(30 * time.Second)}, Held, false, "has not confirmed"},
		{"refused ends", []step{open, event(Ledger{testID, false})}, Idle, false, ""},
		{"another session's confirmation counts nothing", []step{open, event(Ledger{chain.ID{9}, true}), wait(time.Second)}, Held, false, ""},
		{"no confirmation in time ends", []step{open, wait(70 * time.Second)}, Metered, false, ""},
		{"authorised waits for a vehicle", []step{auth, wait(30 * time.Second)}, Authorised, false, "waiting for a vehicle"},
		{"vehicle comes", []step{auth, func(g *rig) { g.vehicle = drivers.StateB }, wait(2 * time.Second)}, Charging, true, "charging"},
		{"no vehicle within the limit ends", []step{auth, wait(611 * time.Second)}, Metered, false, ""},
		{"no current: suspended", []step{suspend}, Suspended, false, "no current"},
		{"current returns: rests first", []step{suspend, event(Setpoint{Limit: 8_000}), wait(2 * time.Second)}, Suspended, false, "rests"},
		{"current returns", []step{suspend, event(Setpoint{Limit: 8_000}), wait(12 * time.Second)}, Charging, true, "charging"},
		{"3 A are none", []step{suspend, event(Setpoint{Limit: 3_000}), wait(12 * time.Second)}, Suspended, false, "no current"},
		{"stop while suspended", []step{suspend, event(Stop{Reason: chain.StopDriver}), wait(3 * time.Second)}, Metered, false, ""},
		{"unplugged while suspended", []step{suspend, func(g *rig) { g.vehicle = drivers.StateA }, wait(4 * time.Second)}, Metered, false, ""},
		{"unplugged while charging", []step{charge, func(g *rig) { g.vehicle = drivers.StateA }, wait(4 * time.Second)}, Metered, false, ""},
		{"charge controller's fault", []step{charge, func(g *rig) { g.vehicle = drivers.StateF }, wait(1100 * time.Millisecond)}, Stopping, false, "safety"},
		{"records cannot be written", []step{charge, event(Journal{false}), wait(4 * time.Second)}, Suspended, false, "records cannot"},
		{"records can be written again", []step{charge, event(Journal{false}), wait(4 * time.Second), event(Journal{true}), wait(11 * time.Second)}, Charging, true, ""},
		{"shut down", []step{charge, event(Drain{}), wait(4 * time.Second)}, Suspended, false, "shutting down"},
		{"nothing starts while shutting down", []step{wait(11 * time.Second), event(Drain{}), open}, Idle, false, ""},
		{"the ledger ends it", []step{charge, event(Ledger{testID, false}), wait(4 * time.Second)}, Metered, false, ""},
		{"watchdog opened it", []step{charge, event(Stalled{})}, Suspended, false, ""},
		{"after a stall it rests and resumes", []step{charge, event(Stalled{}), wait(12 * time.Second)}, Charging, true, ""},
		{"output lost", []step{charge, event(Output{Closed: false, OK: true})}, Suspended, false, "does not obey"},
		{"output unreadable", []step{charge, event(Output{OK: false})}, Suspended, false, ""},
		{"emergency stop", []step{charge, func(g *rig) { g.estop = true }, wait(tick)}, Stopping, false, "safety"},
		{"emergency stop while held", []step{open, func(g *rig) { g.estop = true }, wait(tick)}, Stopping, false, "safety"},
		{"second open changes nothing", []step{charge, event(Open{chain.ID{7}, 5, false}), wait(time.Second)}, Charging, true, ""},
		{"stop without a session", []step{wait(time.Second), event(Stop{Reason: chain.StopDriver})}, Idle, false, ""},
		{"stop record without a stop", []step{charge, event(StopRecorded{})}, Charging, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t)
			for _, f := range c.steps {
				f(g)
			}
			g.want(c.phase, c.relay)
			if g.s.Relay != (g.s.Phase == Charging || g.s.Phase == Stopping) && g.s.Relay {
				t.Errorf("relay closed while %s", g.s.Phase)
			}
			if !strings.Contains(g.s.Why, c.why) {
				t.Errorf("says %q, want %q in it", g.s.Why, c.why)
			}
			if c.phase == Metered {
				if _, ok := g.take(RecordStop); !ok {
					t.Error("no stop record")
				}
			}
		})
	}
}

func TestStaleReadingsGiveSixAmpereThenOff(t *testing.T) {
	for name, silence := range map[string]func(*rig){
		"session meter": func(g *rig) { g.meterOff = true },
		"site meter":    func(g *rig) { g.siteOff = true },
		"controller":    func(g *rig) { g.pilotOff = true },
		"suspect meter": func(g *rig) { g.good = false },
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t)
			g.charge(10_000)
			g.run(20 * time.Second)
			silence(g)
			g.run(9 * time.Second)
			if g.s.Offered != 16_000 {
				t.Fatalf("%d mA before the limit", g.s.Offered)
			}
			g.run(3 * time.Second)
			g.want(Charging, true)
			if g.s.Offered != 6_000 {
				t.Fatalf("offers %d mA on stale readings", g.s.Offered)
			}
			g.run(17 * time.Second)
			g.want(Charging, true)
			g.run(6 * time.Second) // 0 A, at most 3 s, open
			g.want(Suspended, false)
			g.run(testRules.ResumeLimit + 20*time.Second)
			g.stopped(chain.StopMeter)
		})
	}
}

func TestLoopSilentForTooLongOpens(t *testing.T) {
	g := newRig(t)
	g.charge(10_000)
	g.now += testRules.LoopLimit + tick
	acts := g.do(Tick{})
	g.want(Suspended, false)
	if len(acts) == 0 || acts[0].Kind != OpenRelay {
		t.Fatalf("actions %v", acts)
	}
}

func TestHoldIsNeverExceeded(t *testing.T) {
	for _, max := range []meter.WattHour{8, 20, 50, 333} {
		g := newRig(t)
		g.run(11 * time.Second)
		g.do(Setpoint{Limit: 16_000})
		g.do(Open{testID, max, false})
		g.do(Ledger{testID, true})
		base := g.reg
		g.run(30 * time.Minute)
		a := g.stopped(chain.StopHold)
		if wh := a.Register.WattHours() - base.WattHours(); wh > max || wh < max-testRules.reserveWh() {
			t.Errorf("hold of %d Wh: delivered %d", max, wh)
		}
	}
}

func TestSilentMeterDoesNotOverrunTheHold(t *testing.T) {
	for silentAt := time.Second; silentAt < 60*time.Second; silentAt += 3 * time.Second {
		g := newRig(t)
		base := g.reg
		g.charge(170)
		g.run(silentAt)
		g.meterOff = true
		g.run(3 * time.Minute)
		if wh := g.reg.WattHours() - base.WattHours(); wh > 170 || g.s.Relay {
			t.Errorf("silent after %s: %d Wh of 170 delivered, relay %t", silentAt, wh, g.s.Relay)
		}
	}
}

func (r Rules) reserveWh() meter.WattHour {
	m := machine{r: r}
	return m.reserve(MinCurrent) + 2
}

func TestFullCarEnds(t *testing.T) {
	g := newRig(t)
	g.charge(10_000)
	g.run(time.Minute)
	g.draw = func() meter.MilliAmpere { return 300 }
	g.run(testRules.FullAfter - 10*time.Second)
	g.want(Charging, true)
	g.run(20 * time.Second)
	g.stopped(chain.StopFull)
}

func TestCarThatTakesAlmostSixAmpereIsNotFull(t *testing.T) {
	g := newRig(t)
	g.charge(10_000)
	g.do(Setpoint{Limit: 6_000})
	g.draw = func() meter.MilliAmpere { return 5_400 }
	g.run(2 * testRules.FullAfter)
	g.want(Charging, true)
}

func TestNoEnergyEnds(t *testing.T) {
	g := newRig(t)
	g.draw = func() meter.MilliAmpere { return 0 }
	g.charge(10_000)
	g.run(testRules.StartLimit + 20*time.Second)
	a := g.stopped(chain.StopNoEnergy)
	if a.Register.WattHours() != g.s.Base.WattHours() {
		t.Fatalf("register moved: %+v", a)
	}
}

func TestWeldLatches(t *testing.T) {
	g := newRig(t)
	g.charge(10_000)
	g.draw = func() meter.MilliAmpere { return 9_000 } // whatever the relay does
	g.do(Stop{Reason: chain.StopDriver})
	g.run(3100 * time.Millisecond)
	if g.s.Relay {
		t.Fatal("waits longer than 3 s")
	}
	g.run(1500 * time.Millisecond)
	if g.s.Fault != NoFault {
		t.Fatal("a fault before 2 s")
	}
	g.run(3 * time.Second)
	if g.s.Fault != Weld {
		t.Fatalf("fault %q", g.s.Fault)
	}
	g.run(10 * time.Second)
	g.stopped(chain.StopDriver)
	g.do(StopRecorded{})
	g.draw = func() meter.MilliAmpere { return 0 }
	g.run(time.Hour)
	g.do(Open{testID, 1000, false})
	if g.s.Phase != Idle || g.s.Fault != Weld {
		t.Fatal("a weld clears by itself")
	}
	g.do(ClearFault{})
	g.do(Open{testID, 1000, false})
	g.want(Held, false)
}

func TestAuxiliaryContact(t *testing.T) {
	t.Run("stays closed", func(t *testing.T) {
		g := newRig(t)
		g.contact = func() Contact { return ContactClosed }
		g.run(time.Second)
		if g.s.Fault != NoFault {
			t.Fatal("too early")
		}
		g.run(2 * time.Second)
		if g.s.Fault != Weld {
			t.Fatalf("fault %q", g.s.Fault)
		}
	})
	t.Run("does not close", func(t *testing.T) {
		g := newRig(t)
		g.contact = func() Contact { return ContactOpen }
		g.charge(1000)
		g.run(2 * time.Second)
		if g.s.Fault != Contactor || g.s.Relay {
			t.Fatalf("fault %q, relay %t", g.s.Fault, g.s.Relay)
		}
	})
	t.Run("follows", func(t *testing.T) {
		g := newRig(t)
		g.contact = func() Contact {
			if g.s.Relay {
				return ContactClosed
			}
			return ContactOpen
		}
		g.charge(1000)
		g.run(10 * time.Second)
		g.want(Charging, true)
	})
}

func TestOverCurrentLatches(t *testing.T) {
	g := newRig(t)
	g.charge(10_000)
	g.draw = func() meter.MilliAmpere {
		if g.s.Relay {
			return 18_500
		}
		return 0
	}
	g.run(4 * time.Second)
	g.want(Charging, true)
	g.run(4 * time.Second)
	if g.s.Fault != OverCurrent || g.s.Relay {
		t.Fatalf("fault %q, relay %t", g.s.Fault, g.s.Relay)
	}
	if a, ok := g.take(Alarm); !ok || a.Fault != OverCurrent {
		t.Fatal("no alarm")
	}
}

func TestRegisterThatWentBackIsNotBilled(t *testing.T) {
	g := newRig(t)
	g.charge(10_000)
	g.run(30 * time.Second)
	was := g.s.Last
	g.reg = 0
	g.run(3 * time.Second)
	if g.s.Last != was {
		t.Fatalf("register went from %d to %d", was, g.s.Last)
	}
	g.run(5 * time.Minute)
	if a := g.stopped(chain.StopMeter); a.Register < was {
		t.Fatalf("ends at %d, the last good register was %d", a.Register, was)
	}
}

func TestResume(t *testing.T) {
	before := newRig(t)
	before.charge(10_000)
	before.run(time.Minute)
	kept := before.s.Save()
	restart := func(t *testing.T) *rig {
		g := newRig(t)
		g.reg = before.reg
		g.do(Resume{Saved: kept})
		g.do(Setpoint{Limit: 16_000})
		g.want(Suspended, false)
		return g
	}
	t.Run("goes on with the register", func(t *testing.T) {
		g := restart(t)
		g.run(5 * time.Second)
		g.do(Ledger{testID, true})
		g.run(4 * time.Second)
		g.want(Suspended, false) // rests
		g.run(4 * time.Second)
		g.want(Charging, true)
		if g.s.Base != before.s.Base || g.s.Wh() < before.s.Wh() {
			t.Fatalf("base %d, %d Wh; before %d, %d Wh", g.s.Base, g.s.Wh(), before.s.Base, before.s.Wh())
		}
	})
	t.Run("never without the ledger's word", func(t *testing.T) {
		g := restart(t)
		g.run(testRules.ResumeLimit + 10*time.Second)
		if _, closed := g.take(CloseRelay); closed {
			t.Fatal("closed")
		}
	})
	t.Run("without the ledger's word it ends", func(t *testing.T) {
		g := restart(t)
		g.run(testRules.ResumeLimit + 10*time.Second)
		if a := g.stopped(chain.StopRestart); a.Register != before.reg || !a.Begun {
			t.Fatalf("%+v, the meter says %d", a, before.reg)
		}
	})
	t.Run("without a meter it ends on the last register", func(t *testing.T) {
		g := restart(t)
		g.meterOff = true
		g.do(Ledger{testID, true})
		g.run(testRules.ResumeLimit + 10*time.Second)
		if a := g.stopped(chain.StopRestart); a.Register != kept.Last || a.Fresh {
			t.Fatalf("%+v, saved %d", a, kept.Last)
		}
	})
	t.Run("the car has gone", func(t *testing.T) {
		g := restart(t)
		g.vehicle = drivers.StateA
		g.do(Ledger{testID, true})
		g.run(10 * time.Second)
		g.stopped(chain.StopUnplugged)
	})
	t.Run("a stop that was under way is finished", func(t *testing.T) {
		stop := kept
		stop.Stopping = chain.StopDriver
		g := newRig(t)
		g.reg = before.reg
		g.do(Resume{Saved: stop})
		g.run(10 * time.Second)
		g.stopped(chain.StopDriver)
	})
	t.Run("a fault stays latched", func(t *testing.T) {
		g := newRig(t)
		g.do(Resume{Saved: Saved{Fault: Weld}})
		g.do(Open{testID, 100, false})
		g.want(Idle, false)
	})
}

func TestTimeThatGoesBackPanics(t *testing.T) {
	defer func() {
		if p := fmt.Sprint(recover()); !strings.Contains(p, "1h0m0s") || !strings.Contains(p, "59m0s") {
			t.Fatalf("panic %q does not name both times", p)
		}
	}()
	s, _ := Step(testRules, State{}, Tick{}, time.Hour)
	Step(testRules, s, Tick{}, 59*time.Minute)
}
