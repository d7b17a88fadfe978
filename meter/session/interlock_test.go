package session

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// notes returns the codes of the notes so far.
func (g *rig) notes() (codes []string) {
	for _, a := range g.acts {
		if a.Kind == Note {
			codes = append(codes, a.Code)
		}
	}
	return codes
}

func (g *rig) noted(code string) string {
	g.t.Helper()
	for _, a := range g.acts {
		if a.Kind == Note && a.Code == code {
			return a.Text
		}
	}
	g.t.Fatalf("no note %s among %v", code, g.notes())
	return ""
}

// latched checks that a fault opened the circuit at once, ended the session,
// stays over a restart and in spite of everything but a person's word.
func (g *rig) latched(f Fault) {
	g.t.Helper()
	if g.s.Fault != f || g.s.Relay || g.s.Offered != 0 {
		g.t.Fatalf("fault %q, relay %t, %d mA; want %q", g.s.Fault, g.s.Relay, g.s.Offered, f)
	}
	g.stopped(chain.StopSafety)
	g.do(StopRecorded{})
	kept := g.s.Save()
	if again, _ := Step(g.r, State{}, Resume{Saved: kept}, 0); again.Fault != f {
		g.t.Fatalf("after a restart %q", again.Fault)
	}
	g.draw = func() meter.MilliAmpere { return 0 }
	g.run(2 * time.Hour)
	g.do(Open{testID, 1000, false})
	if g.s.Phase != Idle || g.s.Fault != f {
		g.t.Fatalf("%q has gone by itself: %s, %q", f, g.s.Phase, g.s.Fault)
	}
	g.do(ClearFault{})
	g.do(Open{testID, 1000, false})
	g.want(Held, false)
}

func TestHeatTakesCurrentThenTheSession(t *testing.T) {
	g := newRig(t)
	g.r.Temp, g.r.DerateFrom, g.r.TempMax = true, 60_000, 80_000
	heat := MilliCelsius(25_000)
	warm := func(d time.Duration) {
		for end := g.now + d; g.now < end; {
			g.do(Temperature{heat, g.now})
			g.run(time.Second)
		}
	}
	warm(11 * time.Second)
	g.do(Setpoint{Limit: 16_000})
	g.do(Open{testID, 20_000, false})
	g.do(Ledger{testID, true})
	warm(3 * time.Second)
	for _, c := range []struct {
		at   MilliCelsius
		want meter.MilliAmpere
	}{{60_000, 16_000}, {60_100, 15_000}, {70_000, 11_000}, {79_900, 6_000}, {80_000, 6_000}, {50_000, 16_000}} {
		heat = c.at
		warm(2 * time.Second)
		if g.s.Offered != c.want {
			t.Fatalf("%s: %d mA, want %d", c.at, g.s.Offered, c.want)
		}
	}
	g.noted("charger.derated")
	heat = 80_100
	g.do(Temperature{heat, g.now})
	g.run(time.Second)
	g.want(Charging, true) // one value may be noise
	warm(4 * time.Second)
	heat = 20_000
	g.latched(OverTemperature)
}

func TestSilentThermometerIsStale(t *testing.T) {
	g := newRig(t)
	g.r.Temp, g.r.DerateFrom, g.r.TempMax = true, 60_000, 80_000
	g.run(11 * time.Second)
	g.do(Setpoint{Limit: 16_000})
	g.do(Open{testID, 20_000, false})
	g.do(Ledger{testID, true})
	g.run(10 * time.Second)
	g.want(Authorised, false)
	if !strings.Contains(g.s.Why, "temperature sensor") {
		t.Fatal(g.s.Why)
	}
}

func TestEarthFaultLatches(t *testing.T) {
	for name, event := range map[string]Event{
		"contact": Inputs{Earth: true},
		"wallbox": Device{Earth: true, Text: "residual current"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t)
			g.charge(10_000)
			g.run(20 * time.Second)
			acts := g.do(event)
			if len(acts) == 0 || acts[0].Kind != OpenRelay {
				t.Fatalf("actions %v", acts)
			}
			g.run(10 * time.Second)
			g.latched(EarthFault)
		})
	}
}

// supply lets d pass with voltages.
func (g *rig) supply(d time.Duration, volts [3]meter.MilliVolt, order Sequence) {
	g.meterOff = true
	for end := g.now + d; g.now < end; {
		g.run(time.Second)
		g.do(Reading{Good: true, Import: g.reg, Current: g.draw(), Volts: volts, Known: 3, Order: order, At: g.now})
	}
	g.meterOff = false
}

func TestLostPhaseOpensAndReturnsSpread(t *testing.T) {
	good := [3]meter.MilliVolt{230_000, 231_000, 229_000}
	for name, c := range map[string]struct {
		volts [3]meter.MilliVolt
		order Sequence
		why   string
	}{
		"one phase gone": {[3]meter.MilliVolt{230_000, 0, 230_000}, NotJudged, "phase L2 has 0 V"},
		"below 70 %":     {[3]meter.MilliVolt{230_000, 235_000, 160_000}, NotJudged, "phase L3 has 160 V"},
		"lost neutral":   {[3]meter.MilliVolt{120_000, 300_000, 260_000}, NotJudged, "phase L1 has 120 V"},
		"wrong order":    {good, Reversed, "wrong order"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t)
			g.r.StartSpread = 600 * time.Second
			g.charge(10_000)
			g.supply(10*time.Second, good, Clockwise)
			g.want(Charging, true)
			g.supply(time.Second, c.volts, c.order)
			g.want(Charging, true)
			g.supply(time.Second, c.volts, c.order)
			g.want(Suspended, false)
			if !strings.Contains(g.s.Why, c.why) {
				t.Fatal(g.s.Why)
			}
			g.noted("supply.lost")
			g.supply(time.Minute, c.volts, c.order)
			g.supply(5*time.Second, good, Clockwise)
			g.noted("supply.returned")
			if _, asked := g.take(AskDelay); !asked {
				t.Fatal("the start is not spread")
			}
			g.do(Spread{Delay: 40 * time.Second})
			g.supply(30*time.Second, good, Clockwise)
			g.want(Suspended, false)
			if !strings.Contains(g.s.Why, "starts in") {
				t.Fatal(g.s.Why)
			}
			g.supply(15*time.Second, good, Clockwise)
			g.want(Charging, true)
		})
	}
	t.Run("a meter behind the contactor is tried again", func(t *testing.T) {
		g := newRig(t)
		g.charge(10_000)
		g.supply(3*time.Second, [3]meter.MilliVolt{230_000, 0, 230_000}, NotJudged)
		g.want(Suspended, false)
		g.supply(50*time.Second, [3]meter.MilliVolt{0, 3_000, 0}, NotJudged)
		g.want(Suspended, false)
		g.supply(20*time.Second, [3]meter.MilliVolt{0, 3_000, 0}, NotJudged)
		g.want(Charging, true)
	})
	t.Run("70 % is enough, and one phase is any of three", func(t *testing.T) {
		g := newRig(t)
		g.charge(10_000)
		g.supply(30*time.Second, [3]meter.MilliVolt{162_000, 230_000, 230_000}, NotJudged)
		g.want(Charging, true)
	})
}

func TestHouseFuseOverloadedOpensOrdinarily(t *testing.T) {
	g := newRig(t)
	g.r.Fuse, g.siteOff = 25_000, true
	house := meter.MilliAmpere(10_000)
	pass := func(d time.Duration) {
		for end := g.now + d; g.now < end; {
			g.do(SiteReading{Current: house, At: g.now})
			g.run(time.Second)
		}
	}
	pass(11 * time.Second)
	g.do(Setpoint{Limit: 16_000})
	g.do(Open{testID, 10_000, false})
	g.do(Ledger{testID, true})
	pass(20 * time.Second)
	g.want(Charging, true)
	house = 27_000
	pass(30 * time.Second)
	g.want(Charging, true) // within 110 %
	house = 28_000
	pass(5 * time.Second)
	g.want(Charging, true)
	pass(5 * time.Second)
	g.want(Suspended, false)
	if g.s.Fault != NoFault || !strings.Contains(g.s.Why, "house's fuse") {
		t.Fatalf("%q, %s", g.s.Fault, g.s.Why)
	}
	g.noted("house.over_current")
	pass(time.Minute)
	g.want(Suspended, false)
	house = 12_000
	pass(5 * time.Second)
	g.want(Charging, true)
}

func TestStuckRegisterEndsTheSession(t *testing.T) {
	g := newRig(t)
	g.charge(100_000)
	g.run(20 * time.Second)
	was := g.s.Last
	pass := func(d time.Duration, register func() meter.MilliWattHour) {
		g.meterOff = true
		for end := g.now + d; g.now < end; {
			g.run(time.Second)
			g.do(Reading{Good: true, Import: register(), Current: g.draw(), At: g.now})
		}
	}
	// A meter that steps by 100 Wh stands still most of the time.
	pass(10*time.Minute, func() meter.MilliWattHour { return was + (g.reg-was)/100_000*100_000 })
	g.want(Charging, true)
	was = g.s.Last
	pass(3*time.Minute, func() meter.MilliWattHour { return was })
	g.want(Charging, true)
	pass(2*time.Minute, func() meter.MilliWattHour { return was })
	g.noted("meter.stuck")
	if a := g.stopped(chain.StopMeter); a.Register != was {
		t.Fatalf("ends at %d, stood at %d", a.Register, was)
	}
}

func TestShuntTripIsPulsedWhileTheWeldIsSeen(t *testing.T) {
	g := newRig(t)
	g.r.Trip = true
	g.charge(10_000)
	broken := true
	g.draw = func() meter.MilliAmpere {
		if broken {
			return 9_000
		}
		return 0
	}
	g.do(Stop{Reason: chain.StopDriver})
	g.run(8 * time.Second)
	if _, on := g.take(TripOn); !on || g.s.Fault != Weld {
		t.Fatalf("fault %q, no trip", g.s.Fault)
	}
	g.noted("charger.tripped")
	g.run(2 * time.Second)
	if _, off := g.take(TripOff); !off || g.s.Tripping {
		t.Fatal("the coil stays energised")
	}
	g.run(20 * time.Second)
	if _, again := g.take(TripOn); !again {
		t.Fatal("current still flows and it does not try again")
	}
	broken = false
	g.run(15 * time.Second)
	g.acts = nil
	g.run(time.Minute)
	if _, again := g.take(TripOn); again {
		t.Fatal("trips though nothing flows")
	}
}

// A contactor that welds when it cuts an over-current is found.
func TestWeldBehindAnotherFault(t *testing.T) {
	g := newRig(t)
	g.r.Trip = true
	g.charge(10_000)
	g.draw = func() meter.MilliAmpere { return 20_000 }
	g.run(20 * time.Second)
	if g.s.Fault != Weld|OverCurrent {
		t.Fatalf("faults %q", g.s.Fault)
	}
	if _, on := g.take(TripOn); !on {
		t.Fatal("not tripped")
	}
	if s := g.s.Fault.String(); s != "contactor welded, over-current" {
		t.Error(s)
	}
}

func TestClosingsPerHourAreLimited(t *testing.T) {
	g := newRig(t)
	g.r.MaxSwitches = 3
	g.charge(100_000)
	cycle := func() {
		g.do(Setpoint{Limit: 0})
		g.run(20 * time.Second)
		g.want(Suspended, false)
		g.do(Setpoint{Limit: 16_000})
		g.run(10 * time.Second)
	}
	cycle()
	cycle()
	g.want(Charging, true)
	cycle()
	g.want(Suspended, false)
	if !strings.Contains(g.s.Why, "3 times within an hour") {
		t.Fatal(g.s.Why)
	}
	kept := g.s.Save()
	g.run(59 * time.Minute)
	g.want(Charging, true)
	// A restart does not forget them: they count from then on.
	s, _ := Step(g.r, State{}, Resume{Saved: kept}, 0)
	if len(s.closings) != 3 {
		t.Fatalf("%d closings after a restart", len(s.closings))
	}
}

func TestStartsAreSpread(t *testing.T) {
	begin := func(t *testing.T) *rig {
		g := newRig(t)
		g.r.StartSpread = 600 * time.Second
		g.charge(10_000)
		return g
	}
	t.Run("a person's start is not", func(t *testing.T) {
		g := begin(t)
		if _, asked := g.take(AskDelay); asked {
			t.Fatal("asked")
		}
	})
	t.Run("after power returned", func(t *testing.T) {
		before := begin(t)
		before.run(time.Minute)
		g := newRig(t)
		g.r.StartSpread, g.reg = 600*time.Second, before.reg
		g.do(Resume{Saved: before.s.Save(), PowerReturned: true})
		g.do(Setpoint{Limit: 16_000})
		if _, asked := g.take(AskDelay); !asked {
			t.Fatal("does not ask")
		}
		g.do(Ledger{testID, true})
		g.run(5 * time.Second)
		if !strings.Contains(g.s.Why, "power returned") && g.s.Relay {
			t.Fatalf("starts before the random time is known: %s", g.s.Why)
		}
		g.do(Spread{Delay: time.Hour}) // more than the most is the most
		g.run(595 * time.Second)
		g.want(Suspended, false)
		g.run(10 * time.Second)
		g.want(Charging, true)
	})
	t.Run("after a mere restart it is not", func(t *testing.T) {
		before := begin(t)
		before.run(time.Minute)
		g := newRig(t)
		g.r.StartSpread, g.reg = 600*time.Second, before.reg
		g.do(Resume{Saved: before.s.Save()})
		g.do(Setpoint{Limit: 16_000})
		g.do(Ledger{testID, true})
		g.run(15 * time.Second)
		g.want(Charging, true)
	})
	t.Run("at a slot's edge, and a person need not wait", func(t *testing.T) {
		g := begin(t)
		g.do(Setpoint{Limit: 0})
		g.run(20 * time.Second)
		g.do(Setpoint{Limit: 16_000, Edge: "a slot begins"})
		g.do(Spread{Delay: 300 * time.Second})
		g.run(100 * time.Second)
		g.want(Suspended, false)
		if !strings.Contains(g.s.Why, "starts in 3m20s: a slot begins") {
			t.Fatal(g.s.Why)
		}
		g.do(StartNow{})
		g.run(time.Second)
		g.want(Charging, true)
		g.noted("session.start_now")
	})
	t.Run("the wait is no lack of energy", func(t *testing.T) {
		g := newRig(t)
		g.r.StartSpread, g.r.StartLimit = 600*time.Second, 60*time.Second
		g.run(11 * time.Second)
		g.do(Open{testID, 10_000, false})
		g.do(Ledger{testID, true})
		g.do(Setpoint{Limit: 16_000, Edge: "the tariff changed"})
		g.do(Spread{Delay: 500 * time.Second})
		g.run(480 * time.Second)
		g.want(Authorised, false)
		g.run(30 * time.Second)
		g.want(Charging, true)
	})
}

func TestWithoutTheLedgerTheSmallerLimitHolds(t *testing.T) {
	for _, c := range []struct {
		name         string
		hold, limit  meter.WattHour
		back         bool
		least, most  meter.WattHour
		causeHas     string
		stillCharges bool
	}{
		{"offline limit", 10_000, 200, false, 170, 250, "200 Wh for times without the ledger", false},
		{"hold", 300, 5_000, false, 260, 300, "hold of 300 Wh", false},
		{"it comes back", 10_000, 200, true, 300, 10_000, "", true},
		{"no limit", 10_000, 0, false, 300, 10_000, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t)
			g.r.OfflineWh = c.limit
			g.charge(c.hold)
			g.do(Online{false})
			if !g.s.Offline() {
				t.Fatal("does not know")
			}
			g.run(30 * time.Second)
			if c.back {
				g.do(Online{true})
			}
			g.run(120 * time.Second)
			if c.stillCharges {
				g.want(Charging, true)
			} else if a := g.stopped(chain.StopHold); !strings.Contains(a.Text, c.causeHas) {
				t.Fatalf("cause %q", a.Text)
			}
			if wh := g.s.Wh(); wh < c.least || wh > c.most {
				t.Fatalf("%d Wh, want %d..%d", wh, c.least, c.most)
			}
		})
	}
}

func TestWallboxAsActuator(t *testing.T) {
	wallbox := func(t *testing.T) *rig {
		g := newRig(t)
		g.r.Wallbox = true
		g.charge(10_000)
		g.run(20 * time.Second)
		return g
	}
	t.Run("may take its time to stop", func(t *testing.T) {
		g := wallbox(t)
		late := g.now + 11*time.Second
		g.draw = func() meter.MilliAmpere {
			if g.now < late {
				return 8_000
			}
			return 0
		}
		g.do(Stop{Reason: chain.StopDriver})
		g.run(9 * time.Second)
		g.want(Stopping, false)
		g.run(5 * time.Second)
		if a := g.stopped(chain.StopDriver); !a.Fresh || a.Register != g.reg || g.s.Fault != NoFault {
			t.Fatalf("%+v, fault %q", a, g.s.Fault)
		}
	})
	t.Run("that delivers on is welded", func(t *testing.T) {
		g := wallbox(t)
		g.draw = func() meter.MilliAmpere { return 8_000 }
		g.do(Stop{Reason: chain.StopDriver})
		g.run(30 * time.Second)
		if g.s.Fault != Weld {
			t.Fatalf("fault %q", g.s.Fault)
		}
	})
	t.Run("is not asked again while it still delivers", func(t *testing.T) {
		g := wallbox(t)
		g.r.MinOff = 0
		g.draw = func() meter.MilliAmpere { return 8_000 }
		g.do(Setpoint{Limit: 0})
		g.run(5 * time.Second)
		g.do(Setpoint{Limit: 16_000})
		g.run(2 * time.Second)
		g.want(Suspended, false)
		if !strings.Contains(g.s.Why, "has not stopped") {
			t.Fatal(g.s.Why)
		}
	})
	t.Run("with a fault of its own", func(t *testing.T) {
		g := wallbox(t)
		g.do(Device{Failed: true, Text: "code 5"})
		g.run(time.Second)
		if g.s.Relay || !strings.Contains(g.s.Cause, "code 5") {
			t.Fatalf("relay %t, cause %q", g.s.Relay, g.s.Cause)
		}
		// It may have been any fault, so it goes on only when a person says so.
		g.do(Device{})
		g.run(time.Minute)
		if g.s.Relay || g.s.Fault != DeviceFault {
			t.Fatalf("gone by itself: relay %t, fault %q", g.s.Relay, g.s.Fault)
		}
		g.do(ClearFault{})
		if g.s.Fault != NoFault {
			t.Errorf("cleared: %q", g.s.Fault)
		}
	})
	t.Run("that says it is hot or welded latches", func(t *testing.T) {
		g := wallbox(t)
		g.do(Device{Hot: true, Welded: true})
		if g.s.Fault != OverTemperature|Weld {
			t.Fatalf("fault %q", g.s.Fault)
		}
	})
}

func TestWhatIsNoted(t *testing.T) {
	t.Run("second and conflicting stops", func(t *testing.T) {
		g := newRig(t)
		g.charge(10_000)
		g.do(Stop{Reason: chain.StopDriver})
		g.do(Stop{Reason: chain.StopDriver})
		g.do(Stop{Reason: chain.StopOperator})
		g.noted("session.stop_repeated")
		g.noted("session.stop_conflict")
		g.run(10 * time.Second)
		g.stopped(chain.StopDriver) // the first reason stays
	})
	t.Run("second start", func(t *testing.T) {
		g := newRig(t)
		g.charge(10_000)
		g.do(Open{chain.ID{9}, 77, false})
		g.noted("session.start_repeated")
		if g.s.ID != testID || g.s.MaxWh != 10_000 {
			t.Fatalf("session %s with %d Wh", g.s.ID, g.s.MaxWh)
		}
	})
	t.Run("energy after the stop is not the next session's", func(t *testing.T) {
		g := newRig(t)
		g.charge(10_000)
		g.run(20 * time.Second)
		g.do(Stop{Reason: chain.StopDriver})
		g.run(10 * time.Second)
		g.do(StopRecorded{})
		g.reg += 7_000 // a socket behind the same meter
		g.run(time.Minute)
		second := chain.ID{8}
		g.do(Open{second, 5_000, false})
		g.do(Ledger{second, true})
		g.run(3 * time.Second)
		g.want(Charging, true)
		if text := g.noted("energy.after_stop"); !strings.Contains(text, "7 Wh") {
			t.Fatal(text)
		}
		if g.s.Base.WattHours() < g.reg.WattHours()-20 || g.s.Wh() > 20 {
			t.Fatalf("base %d, meter %d, %d Wh", g.s.Base, g.reg, g.s.Wh())
		}
	})
	t.Run("load without a session", func(t *testing.T) {
		g := newRig(t)
		g.r.Wallbox = true // its own button started it
		g.draw = func() meter.MilliAmpere { return 7_000 }
		g.run(5 * time.Minute)
		n := 0
		for _, code := range g.notes() {
			if code == "energy.unauthorised" {
				n++
			}
		}
		if n < 2 || n > 8 {
			t.Fatalf("400 Wh without a session noted %d times", n)
		}
	})
	t.Run("standby of the electronics is no load", func(t *testing.T) {
		g := newRig(t)
		g.draw = func() meter.MilliAmpere { return 60 }
		g.run(3 * time.Hour)
		if codes := g.notes(); slices.Contains(codes, "energy.unauthorised") {
			t.Fatal(codes)
		}
	})
	t.Run("delivery beyond the hold", func(t *testing.T) {
		g := newRig(t)
		g.charge(100)
		g.run(5 * time.Second)
		g.do(Stop{Reason: chain.StopDriver})
		g.reg += 500_000 // counted at once at the end
		g.run(10 * time.Second)
		if text := g.noted("session.beyond_hold"); !strings.Contains(text, "operator's claim") {
			t.Fatal(text)
		}
	})
	t.Run("an exchanged meter has no past", func(t *testing.T) {
		g := newRig(t)
		g.charge(10_000)
		g.do(Stop{Reason: chain.StopDriver})
		g.run(10 * time.Second)
		g.do(StopRecorded{})
		g.do(Rebase{})
		g.reg = 900_000_000
		g.run(10 * time.Second)
		g.do(Open{chain.ID{8}, 5_000, false})
		g.do(Ledger{chain.ID{8}, true})
		g.run(5 * time.Second)
		g.want(Charging, true)
		if slices.Contains(g.notes(), "energy.after_stop") {
			t.Fatal("the old meter's register was compared with the new one's")
		}
	})
}

func TestFaultOfAnOlderVersionStaysLatched(t *testing.T) {
	for single, want := range map[uint8]Fault{1: Weld, 2: OverCurrent, 3: Contactor} {
		s, _ := Step(testRules, State{}, Resume{Saved: Saved{Single: single}}, 0)
		if s.Fault != want {
			t.Errorf("%d: %q, want %q", single, s.Fault, want)
		}
	}
}

func TestPilotFaultCuts(t *testing.T) {
	for _, v := range []drivers.VehicleState{drivers.StateE, drivers.StateF} {
		g := newRig(t)
		g.charge(10_000)
		acts := g.do(Vehicle{v, g.now})
		if len(acts) == 0 || acts[0].Kind != OpenRelay || g.s.Reason != chain.StopSafety {
			t.Fatalf("state %s: %v", v, acts)
		}
	}
}
