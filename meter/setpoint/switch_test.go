package setpoint

import (
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

func TestBatteryAndOthers(t *testing.T) {
	first := testRules
	first.BatteryFirst = 800
	for _, c := range []struct {
		name string
		r    Rules
		in   Input
		want meter.MilliWatt
	}{
		{"what the battery takes can be the car's", testRules, Input{Site: kw(-1), Battery: kw(3), SoC: 300}, kw(4)},
		{"the battery goes first", first, Input{Site: kw(-1), Battery: kw(3), SoC: 300}, kw(1)},
		{"until it has enough", first, Input{Site: kw(-1), Battery: kw(3), SoC: 800}, kw(4)},
		{"what it gives is nobody's surplus", testRules, Input{Site: kw(0), Battery: kw(-2), SoC: 900}, kw(-2)},
		{"nor when it goes first", first, Input{Site: kw(0), Battery: kw(-2), SoC: 300}, kw(-2)},
	} {
		if got := Spare(c.r, c.in, 0); got != c.want {
			t.Errorf("%s: %d mW, want %d", c.name, got, c.want)
		}
	}
	// 9.66 kW less 4.14 kW of another charger are 8 A on three phases.
	r := testRules
	r.OnDelay = 0
	s, _ := Step(r, State{}, Input{Mode: Surplus, SiteKnown: true, Site: kw(-9.66), Others: MinPower(3)}, time.Minute)
	if s.Limit != 8_000 {
		t.Errorf("%d mA beside another charger", s.Limit)
	}
	if s, _ = Step(r, State{}, Input{Mode: Surplus, SiteKnown: true, Site: kw(-2.3), Phases: 1}, time.Minute); s.Limit != 10_000 {
		t.Errorf("%d mA on one phase", s.Limit)
	}
}

func TestPlanOfTheMoment(t *testing.T) {
	for plan, want := range map[meter.MilliAmpere]meter.MilliAmpere{0: 0, 8_000: 8_000, 32_000: 16_000} {
		s, why := Step(testRules, State{}, Input{Mode: Market, Authorised: true, Planned: true, Plan: plan, PlanWhy: "its plan"}, 0)
		if s.Limit != want || (plan < 16_000 && why != "its plan") {
			t.Errorf("plan of %d: %d mA, %q", plan, s.Limit, why)
		}
	}
}

// TestSwitchNeverUnderCurrent drives the change with anything that a charger
// can say: an order comes only after at least SwitchPause in which every fresh
// look showed no current and no vehicle that charges, and never without an
// installer's word.
func TestSwitchNeverUnderCurrent(t *testing.T) {
	orders := 0
	rapid.Check(t, func(t *rapid.T) {
		r := SwitchRules{Allowed: rapid.IntRange(0, 9).Draw(t, "allowed") > 0, Rest: time.Minute}
		var s SwitchState
		now, quietSince, quiet := time.Duration(0), time.Duration(0), false
		in := SwitchInput{Phases: 3, Want: 1}
		held := false
		for range 80 {
			now += time.Duration(rapid.IntRange(100, 4_000).Draw(t, "ms")) * time.Millisecond
			if rapid.IntRange(0, 15).Draw(t, "new wish") == 0 {
				in.Want = rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "want")
			}
			in.Current, in.CurrentAt = 0, now
			in.Charging, in.ChargingAt = !held, now
			if rapid.IntRange(0, 30).Draw(t, "disobeys") == 0 || !held {
				in.Current, in.Charging = 9_000, true
			}
			if in.Current >= SwitchBelow || in.Charging {
				quiet = false
			} else if !quiet {
				quiet, quietSince = true, now
			}
			var order int
			s, held, order, _ = StepSwitch(r, s, in, now)
			if order != 0 {
				orders++
				if !r.Allowed || !quiet || now-quietSince < SwitchPause || !held {
					t.Fatalf("ordered %d phases %s after the last current, allowed %t", order, now-quietSince, r.Allowed)
				}
				if rapid.IntRange(0, 5).Draw(t, "obeys") > 0 {
					in.Phases = order
				}
			}
			if s.Stage == Broken && (s.Target == in.Phases || !held) {
				t.Fatalf("broken with %d phases, told %d, held %t", in.Phases, s.Target, held)
			}
			if s.Stage == Broken {
				s = Repaired(s)
			}
		}
	})
	if orders < 20 {
		t.Errorf("%d orders: the property says little", orders)
	}
}

func TestWantPhases(t *testing.T) {
	r := SwitchRules{Allowed: true, UpDelay: time.Minute, DownLate: 2 * time.Minute}
	var s SwitchState
	want := func(at time.Duration, spare meter.MilliWatt, phases, n int) {
		t.Helper()
		var got int
		if s, got = WantPhases(r, s, spare, phases, at); got != n {
			t.Fatalf("%s: %d phases for %d mW, want %d", at, got, spare, n)
		}
	}
	want(0, kw(2), 3, 3)
	want(119*time.Second, kw(2), 3, 3)
	want(120*time.Second, kw(2), 3, 1)
	want(121*time.Second, kw(4.5), 1, 1) // within the margin
	want(130*time.Second, kw(5), 1, 1)
	want(150*time.Second, kw(2), 1, 1) // a cloud: the time starts anew
	want(160*time.Second, kw(5), 1, 1)
	want(219*time.Second, kw(5), 1, 1)
	want(220*time.Second, kw(5), 1, 3)
}
