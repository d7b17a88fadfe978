package setpoint

import (
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

var testRules = Rules{MaxCurrent: 16_000, Phases: 3, OnDelay: 60 * time.Second, OffDelay: 180 * time.Second}

func kw(f float64) meter.MilliWatt { return meter.MilliWatt(f * 1e6) }

func TestModesAndLimits(t *testing.T) {
	fused := testRules
	fused.Fuse = 25_000
	for _, c := range []struct {
		name string
		r    Rules
		in   Input
		want meter.MilliAmpere
		why  string
	}{
		{"off", testRules, Input{Mode: Off, Authorised: true}, 0, "switched off"},
		{"now", testRules, Input{Mode: Now}, 16_000, "rating"},
		{"market without energy", testRules, Input{Mode: Market}, 0, "no energy is bought"},
		{"market", testRules, Input{Mode: Market, Authorised: true}, 16_000, "rating"},
		{"a person's limit", testRules, Input{Mode: Now, Limit: 9_000}, 9_000, "person"},
		{"a person cannot raise it", testRules, Input{Mode: Now, Limit: 32_000}, 16_000, "rating"},
		{"fuse has room", fused, Input{Mode: Now, SiteKnown: true, House: 5_000}, 16_000, "rating"},
		{"fuse limits", fused, Input{Mode: Now, SiteKnown: true, House: 15_000}, 10_000, "fuse"},
		{"the car's own draw does not count", fused, Input{Mode: Now, SiteKnown: true, House: 20_000, Draw: 15_000}, 16_000, "rating"},
		{"no room for 6 A", fused, Input{Mode: Now, SiteKnown: true, House: 20_000}, 0, "fuse"},
		{"fuse is blown already", fused, Input{Mode: Now, SiteKnown: true, House: 40_000}, 0, "fuse"},
		{"fuse unknown: the least", fused, Input{Mode: Market, Authorised: true}, 6_000, "fuse"},
		{"surplus without a site meter does not start", testRules, Input{Mode: Surplus}, 0, "site meter"},
	} {
		s, why := Step(c.r, State{}, c.in, 0)
		if s.Limit != c.want || !strings.Contains(why, c.why) {
			t.Errorf("%s: %d mA, %q; want %d, %q", c.name, s.Limit, why, c.want, c.why)
		}
	}
}

func TestSurplusFollowsTheSunWithDelays(t *testing.T) {
	var s State
	now := time.Duration(0)
	// site is what the meter at the connection shows, car included.
	run := func(d time.Duration, site, car meter.MilliWatt) string {
		why := ""
		for end := now + d; now < end; now += time.Second {
			s, why = Step(testRules, s, Input{Mode: Surplus, SiteKnown: true, Site: site, Charger: car}, now)
		}
		return why
	}
	want := func(a meter.MilliAmpere, what string) {
		t.Helper()
		if s.Limit != a {
			t.Fatalf("%s: %d mA, want %d", what, s.Limit, a)
		}
	}
	run(10*time.Minute, kw(-3), 0)
	want(0, "3 kW are too little for three phases")
	run(59*time.Second, kw(-5.52), 0)
	want(0, "5.5 kW must last")
	run(3*time.Second, kw(-5.52), 0)
	want(8_000, "5.52 kW are 8 A on three phases")
	run(10*time.Second, kw(0), kw(5.52))
	want(8_000, "what the car takes is part of the surplus")
	run(10*time.Second, kw(-20), kw(5.52))
	want(16_000, "never more than the rating")
	run(2*time.Minute, kw(2), kw(4.14))
	want(6_000, "a cloud: the least for a while")
	run(30*time.Second, kw(-1), kw(4.14))
	want(7_449, "the sun is back")
	run(179*time.Second, kw(2), kw(4.14))
	want(6_000, "the cloud's time starts anew")
	s, _ = Step(testRules, s, Input{Mode: Surplus}, now)
	want(6_000, "without a site meter the least")
	why := run(184*time.Second, kw(2), kw(4.14))
	want(0, "too long")
	if !strings.Contains(why, "not enough") {
		t.Error(why)
	}
}

// TestNeverBetweenZeroAndSix holds for every input, as do the limits.
func TestNeverBetweenZeroAndSix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rules{
			MaxCurrent: meter.MilliAmpere(rapid.IntRange(6_000, 32_000).Draw(t, "rating")),
			Fuse:       meter.MilliAmpere(rapid.SampledFrom([]int{0, 16_000, 35_000}).Draw(t, "fuse")),
			Phases:     rapid.SampledFrom([]int{1, 3}).Draw(t, "phases"), OnDelay: 10 * time.Second, OffDelay: 20 * time.Second,
		}
		var s State
		now := time.Duration(0)
		for range 100 {
			now += time.Duration(rapid.IntRange(0, 15_000).Draw(t, "ms")) * time.Millisecond
			draw := meter.MilliAmpere(rapid.IntRange(0, 32_000).Draw(t, "draw"))
			in := Input{
				Mode:       Mode(rapid.IntRange(0, 3).Draw(t, "mode")),
				Authorised: rapid.Bool().Draw(t, "authorised"), SiteKnown: rapid.Bool().Draw(t, "site"),
				Site:    meter.MilliWatt(rapid.Int64Range(-30e6, 30e6).Draw(t, "W")),
				House:   draw + meter.MilliAmpere(rapid.IntRange(-5_000, 60_000).Draw(t, "house")),
				Charger: meter.MilliWatt(rapid.Int64Range(-1e6, 22e6).Draw(t, "car")), Draw: draw,
				Limit: meter.MilliAmpere(rapid.SampledFrom([]int{0, 6_000, 10_000}).Draw(t, "person")),
			}
			var why string
			s, why = Step(r, s, in, now)
			switch {
			case s.Limit != 0 && s.Limit < MinCurrent, s.Limit < 0, s.Limit > r.MaxCurrent,
				in.Limit > 0 && s.Limit > in.Limit,
				in.Mode == Off && s.Limit != 0,
				in.Mode == Market && !in.Authorised && s.Limit != 0,
				r.Fuse > 0 && in.SiteKnown && s.Limit > 0 && s.Limit+max(0, in.House-in.Draw) > r.Fuse:
				t.Fatalf("%d mA for %+v under %+v", s.Limit, in, r)
			case why == "":
				t.Fatal("gives no reason")
			}
		}
	})
}

func TestParseMode(t *testing.T) {
	for m := Off; m <= Market; m++ {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%s: %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("turbo"); err == nil {
		t.Error("turbo is a mode")
	}
}
