package poll_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
)

var limits = poll.Limits{}.WithDefaults()

func outcome(now time.Duration, points ...meter.Point) poll.Outcome {
	o := poll.Outcome{Now: now, Wall: now.Milliseconds(), Points: points, Digits: make([]int64, len(points))}
	for i := range o.Digits {
		o.Digits[i] = 1
	}
	return o
}

func imported(mwh int64) meter.Point { return meter.Point{Quantity: meter.Import, Value: mwh} }
func exported(mwh int64) meter.Point { return meter.Point{Quantity: meter.Export, Value: mwh} }

// The life of a meter, second by second: what it shows, and what may be billed.
func TestGate(t *testing.T) {
	const g, s = meter.Good, meter.Suspect
	type reading struct {
		mwh  int64
		want meter.Quality
		why  string
	}
	for name, script := range map[string][]reading{
		"counts":            {{5000, g, ""}, {5001, g, ""}, {5001, g, ""}, {6000, g, ""}},
		"restart":           {{5000, g, ""}, {5001, g, ""}, {0, s, "restarted"}, {0, s, "restarted"}, {5003, g, ""}},
		"rollback":          {{5000, g, ""}, {5001, g, ""}, {4000, s, "went back from 5001 to 4000"}, {5002, g, ""}},
		"jump":              {{5000, g, ""}, {5001, g, ""}, {9_000_000, s, "jumped"}, {5002, g, ""}},
		"minus one":         {{5000, g, ""}, {-1, s, "negative"}, {5001, g, ""}},
		"wrong first value": {{9_000_000_000, g, ""}, {5000, s, "contradicts"}, {5001, g, ""}, {9_000_000_000, s, "jumped"}},
		"starts as zero":    {{0, s, "all energy registers are 0"}, {9_000_000, s, "contradicts"}, {9_000_001, g, ""}},
		"new meter":         {{0, s, "all energy registers are 0"}, {0, s, "still"}, {3, g, ""}, {0, s, "restarted"}},
	} {
		t.Run(name, func(t *testing.T) {
			var st poll.State
			for i, step := range script {
				var r meter.Reading
				st, r = poll.Step(st, limits, outcome(time.Duration(i)*time.Second, imported(step.mwh)))
				if step.why == "still" {
					step.why = "all energy registers are 0"
				}
				if r.Quality != step.want || !strings.Contains(r.Reason, step.why) {
					t.Fatalf("reading %d of %d mWh is %s (%q), want %s (%q)", i, step.mwh, r.Quality, r.Reason, step.want, step.why)
				}
			}
		})
	}
}

// A house without solar has an export register that never moves, and a meter
// fresh from the factory shows zero for ever; both must become billable.
func TestZeroIsAValue(t *testing.T) {
	_, r := poll.Step(poll.State{}, limits, outcome(0, imported(5000), exported(0)))
	if r.Quality != meter.Good {
		t.Fatalf("export of 0 beside a running import register: %s (%s)", r.Quality, r.Reason)
	}
	var st poll.State
	for now := time.Duration(0); now <= limits.ZeroHold; now += time.Second {
		st, r = poll.Step(st, limits, outcome(now, imported(0), exported(0)))
	}
	if r.Quality != meter.Good {
		t.Fatalf("zero for %s: %s (%s)", limits.ZeroHold, r.Quality, r.Reason)
	}
}

// A register with coarse digits jumps by one of them at any power.
func TestOneDigitIsNoJump(t *testing.T) {
	st, _ := poll.Step(poll.State{}, limits, outcome(0, imported(100_000)))
	o := outcome(time.Second, imported(200_000))
	if _, r := poll.Step(st, limits, o); r.Quality != meter.Suspect {
		t.Fatalf("100 Wh in a second at a digit of 1 mWh: %s", r.Quality)
	}
	o.Digits[0] = 100_000
	if _, r := poll.Step(st, limits, o); r.Quality != meter.Good {
		t.Fatalf("one digit of 100 Wh: %s (%s)", r.Quality, r.Reason)
	}
}

// A register that stood still for a night has no credit for it.
func TestStillRegisterHasNoCredit(t *testing.T) {
	var st poll.State
	var r meter.Reading
	now := time.Duration(0)
	for ; now < 8*time.Hour; now += time.Minute {
		st, r = poll.Step(st, limits, outcome(now, imported(5000)))
	}
	if _, r = poll.Step(st, limits, outcome(now, imported(100_000_000))); r.Quality != meter.Suspect {
		t.Fatalf("100 kWh in a minute: %s", r.Quality)
	}
	// But if nobody looked all night, the night's energy is plausible.
	if _, r = poll.Step(st, limits, outcome(now+8*time.Hour, imported(100_000_000))); r.Quality != meter.Good {
		t.Fatalf("100 kWh in 8 h: %s (%s)", r.Quality, r.Reason)
	}
}

func TestMomentaryValues(t *testing.T) {
	for _, c := range []struct {
		p  meter.Point
		ok bool
	}{
		{meter.Point{Quantity: meter.Voltage, Phase: 1, Value: 230_000}, true},
		{meter.Point{Quantity: meter.Voltage, Phase: 1, Value: 0}, true},
		{meter.Point{Quantity: meter.Voltage, Phase: 1, Value: 23_000}, false},
		{meter.Point{Quantity: meter.Frequency, Value: 50_000}, true},
		{meter.Point{Quantity: meter.Frequency, Value: 500_000}, false},
		{meter.Point{Quantity: meter.Power, Value: -44_000_000}, true},
		{meter.Point{Quantity: meter.Power, Value: 44_000_001}, false},
	} {
		_, r := poll.Step(poll.State{}, limits, outcome(0, c.p))
		if (r.Quality == meter.Good) != c.ok {
			t.Errorf("%s = %d: %s (%s)", c.p.Name(), c.p.Value, r.Quality, r.Reason)
		}
	}
}

// A register that was there and is not any more (NaN) makes the reading
// suspect and keeps its base.
func TestMissingRegister(t *testing.T) {
	st, _ := poll.Step(poll.State{}, limits, outcome(0, imported(5000), exported(7)))
	st, r := poll.Step(st, limits, outcome(time.Second, imported(5001)))
	if r.Quality != meter.Suspect || !strings.Contains(r.Reason, "export_mwh is not a number") {
		t.Fatalf("%s (%s)", r.Quality, r.Reason)
	}
	if _, r = poll.Step(st, limits, outcome(2*time.Second, imported(5001), exported(7))); r.Quality != meter.Good {
		t.Fatalf("after it came back: %s (%s)", r.Quality, r.Reason)
	}
}

// A true meter with faults thrown in: every true reading is good, every false
// one suspect, and the base is always the last true count.
func TestFaultsNeverBecomeBase(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var st poll.State
		var r meter.Reading
		now := time.Duration(0)
		count := rapid.Int64Range(1_000_000, 1_000_000_000).Draw(t, "start")
		for range 2 {
			st, r = poll.Step(st, limits, outcome(now, imported(count)))
			now += time.Second
		}
		lastTrue := now - time.Second
		for range rapid.IntRange(1, 60).Draw(t, "readings") {
			dt := time.Duration(rapid.IntRange(1, 120_000).Draw(t, "ms")) * time.Millisecond
			now += dt
			most := int64(limits.MaxPower) * (now - lastTrue).Milliseconds() / 3_600_000
			lag := int64(limits.MaxPower) / 60 // registers may be brought up to date once a minute
			fault := rapid.SampledFrom([]string{"", "", "", "zero", "back", "jump", "minus", "nan", "volt"}).Draw(t, "fault")
			o := outcome(now)
			switch fault {
			case "":
				count += rapid.Int64Range(0, most).Draw(t, "mWh")
				lastTrue = now
				o = outcome(now, imported(count))
			case "zero":
				o = outcome(now, imported(0))
			case "back":
				o = outcome(now, imported(count-rapid.Int64Range(1, count-1).Draw(t, "by")))
			case "jump":
				o = outcome(now, imported(count+most+lag+rapid.Int64Range(1_000_000, 1<<60).Draw(t, "by")))
			case "minus":
				o = outcome(now, imported(-1))
			case "volt":
				o = outcome(now, imported(count), meter.Point{Quantity: meter.Voltage, Phase: 2, Value: 1})
			}
			page := st.Page
			st, r = poll.Step(st, limits, o)
			if want := fault == ""; want != (r.Quality == meter.Good) {
				t.Fatalf("fault %q: %s (%s)", fault, r.Quality, r.Reason)
			}
			if r.Page != page+1 {
				t.Fatalf("page %d after %d", r.Page, page)
			}
			if got := int64(st.Registers[0].Value); got != count {
				t.Fatalf("fault %q: base is %d, the meter counted %d", fault, got, count)
			}
		}
	})
}

// Whatever arrives: confirmed bases never go back, and good readings are never
// below them.
func TestBasesOnlyGrow(t *testing.T) {
	value := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-2, 2_000_000))
	rapid.Check(t, func(t *rapid.T) {
		var st poll.State
		now := time.Duration(0)
		for range rapid.IntRange(1, 40).Draw(t, "readings") {
			now += time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "dt"))
			var points []meter.Point
			for phase := range uint8(4) {
				for _, q := range []meter.Quantity{meter.Import, meter.Export, meter.Energy, meter.Voltage} {
					if rapid.Bool().Draw(t, "has") {
						points = append(points, meter.Point{Quantity: q, Phase: phase, Value: value.Draw(t, "value")})
					}
				}
			}
			before := st
			var r meter.Reading
			st, r = poll.Step(st, limits, outcome(now, points...))
			if len(st.Registers) > poll.MaxRegisters {
				t.Fatalf("%d registers", len(st.Registers))
			}
			for _, b := range before.Registers {
				if !b.Confirmed {
					continue
				}
				for _, a := range st.Registers {
					if a.Quantity == b.Quantity && a.Phase == b.Phase && (a.Value < b.Value || !a.Confirmed) {
						t.Fatalf("base went from %+v to %+v", b, a)
					}
				}
				if v, ok := r.Value(b.Quantity, b.Phase); ok && r.Quality == meter.Good && v < int64(b.Value) {
					t.Fatalf("good reading %d below base %+v", v, b)
				}
			}
		}
	})
}

func TestStale(t *testing.T) {
	st, first := poll.Step(poll.State{}, limits, outcome(5*time.Second, imported(5000)))
	if _, _, stale := poll.Age(st, limits, 14*time.Second, 0, 0); stale {
		t.Fatal("stale after 9 s")
	}
	st, r, stale := poll.Age(st, limits, 15*time.Second, 0, 99)
	if !stale || r.Quality != meter.Stale || r.Page != first.Page+1 || r.Mono != first.Mono || r.Wall != first.Wall {
		t.Fatalf("stale=%v %+v", stale, r)
	}
	if v, ok := r.Import(); !ok || v != 5000 {
		t.Fatalf("the last values are gone: %+v", r.Points)
	}
	if _, r = poll.Step(st, limits, outcome(16*time.Second, imported(5001))); r.Quality != meter.Good {
		t.Fatalf("after silence: %s (%s)", r.Quality, r.Reason)
	}
	if _, r, stale = poll.Age(poll.State{}, limits, 11*time.Second, time.Second, 99); !stale || len(r.Points) != 0 || r.Wall != 99 {
		t.Fatalf("a device that never answered: stale=%v %+v", stale, r)
	}
}

func TestBackoff(t *testing.T) {
	var st poll.State
	now := time.Hour
	for i, want := range []int{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		st = poll.Fail(st, now)
		if got := st.RetryAt - now; got != time.Duration(want)*time.Second {
			t.Fatalf("failure %d: pause %s, want %d s", i+1, got, want)
		}
	}
	if st, _ = poll.Step(st, limits, outcome(now)); st.Failures != 0 || st.RetryAt != 0 {
		t.Fatalf("an answer did not end the back-off: %+v", st)
	}
}

func TestShrink(t *testing.T) {
	n, tries := uint16(125), 0
	for ok := true; ok; tries++ {
		n, ok = poll.Shrink(n)
	}
	if n != poll.SmallestBlock || tries > 8 {
		t.Fatalf("ended at %d after %d tries", n, tries)
	}
}

func BenchmarkStep(b *testing.B) {
	var st poll.State
	var r meter.Reading
	points := []meter.Point{imported(5000), exported(7), {Quantity: meter.Power, Value: 1}, {Quantity: meter.Voltage, Phase: 1, Value: 230_000}}
	for i := range b.N {
		st, r = poll.Step(st, limits, outcome(time.Duration(i)*time.Second, points...))
	}
	if r.Quality != meter.Good {
		b.Fatal(r.Reason)
	}
}
