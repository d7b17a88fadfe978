package identify_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/identify"
	"github.com/joulegate/joulegate/tools/sim/house"
)

const (
	every  = 10 * time.Second
	kettle = 2_000_000 // mW
)

// wired says how a meter's lines are connected: to which line of the house,
// and which way round.
type wired struct {
	line [3]int // 0..2
	sign [3]int64
}

var straight = wired{[3]int{0, 1, 2}, [3]int64{1, 1, 1}}

// see returns what a meter of three lines that is wired so says about a
// house: powers, and currents without sign.
func (w wired) see(points []meter.Point, extra [3]int64) (out []meter.Point) {
	in := meter.Reading{Points: points}
	sum := int64(0)
	for l := range 3 {
		p, _ := in.Value(meter.Power, uint8(w.line[l]+1))
		u, _ := in.Value(meter.Voltage, uint8(l+1))
		p = w.sign[l] * (p + extra[w.line[l]])
		i := max(p, -p) * 1000 / max(u, 1)
		if w.line[l] != l { // another line's current: 120 degrees off
			p = -p / 2
		}
		sum += p
		out = append(out, meter.Point{Quantity: meter.Power, Phase: uint8(l + 1), Value: p},
			meter.Point{Quantity: meter.Current, Phase: uint8(l + 1), Value: i}, meter.Point{Quantity: meter.Voltage, Phase: uint8(l + 1), Value: u})
	}
	return append(out, meter.Point{Quantity: meter.Power, Value: sum})
}

// evening simulates two houses in which people cook. Somebody switches a load
// of load mW on the lines of house 0, a few times; its meter is wired as w says.
func evening(seed uint64, start time.Duration, load [3]int64, w wired, turns int) identify.Record {
	n, err := house.New(house.Config{Seed: seed, Start: start, Houses: []house.HouseConfig{{Phases: 3, PV: 4000}, {Phases: 3}}})
	if err != nil {
		panic(err)
	}
	var r identify.Record
	on := false
	for now := time.Duration(0); now < time.Duration(turns+1)*every; now += time.Second {
		if now > 0 && now%every == 0 {
			on = !on
			if err := r.Turn(identify.Switch{At: now, On: on}); err != nil {
				panic(err)
			}
		}
		n.Step(time.Second)
		var extra [3]int64
		if on {
			extra = load
		}
		at := now + 700*time.Millisecond // between two switches
		r.Add(identify.Sample{Meter: "here", At: at, Points: w.see(n.House(0).Site(), extra)})
		r.Add(identify.Sample{Meter: "next door", At: at, Points: straight.see(n.House(1).Site(), [3]int64{})})
	}
	return r
}

func meters(f []identify.Finding) (names []string) {
	for _, x := range f {
		names = append(names, x.Meter)
	}
	return names
}

var limits = identify.Limits{Load: kettle}

// However people cook and clouds pass: the meter next door is never named, and
// the right one, if it is, on the right line and with the right wiring. At
// noon without cooks it always is.
func TestNeverTheWrongMeter(t *testing.T) {
	found := 0
	for seed := range uint64(60) {
		line := int(seed % 3)
		w := straight
		want := identify.Right
		if seed%2 == 1 {
			w.sign[line], want = -1, identify.Reversed
		}
		var load [3]int64
		load[line] = kettle
		start := []time.Duration{3 * time.Hour, 12 * time.Hour, 19 * time.Hour}[seed%3]
		rep := identify.Decide(evening(seed, start, load, w, 4), limits)
		if slices.Contains(meters(rep.Moved), "next door") {
			t.Fatalf("seed %d: next door moved: %+v", seed, rep)
		}
		for _, f := range rep.Moved {
			found++
			if len(f.Lines) != 1 || int(f.Lines[0].Phase) != line+1 || f.Lines[0].Wiring != want {
				t.Errorf("seed %d: line %d, %v: %+v", seed, line+1, want, f)
			}
			if step := int64(f.Lines[0].Step); max(step, -step) < kettle*9/10 || max(step, -step) > kettle*11/10 {
				t.Errorf("seed %d: step %d", seed, step)
			}
		}
	}
	if found < 45 {
		t.Errorf("found %d of 60", found)
	}
}

// A transformer on another line than its voltage shows half the load,
// backwards.
func TestCrossed(t *testing.T) {
	w := straight
	w.line[0], w.line[1] = 1, 0
	rep := identify.Decide(evening(7, 3*time.Hour, [3]int64{kettle, 0, 0}, w, 4), limits)
	if len(rep.Moved) != 1 || len(rep.Moved[0].Lines) != 1 || rep.Moved[0].Lines[0].Wiring != identify.Crossed || rep.Moved[0].Lines[0].Phase != 2 {
		t.Fatalf("%+v", rep)
	}
}

// A load on three lines, one transformer of which is reversed: the total is a
// third, the lines tell.
func TestThreePhaseLoad(t *testing.T) {
	w := straight
	w.sign[2] = -1
	rep := identify.Decide(evening(7, 3*time.Hour, [3]int64{2_000_000, 2_000_000, 2_000_000}, w, 4), identify.Limits{Load: 6_000_000})
	if len(rep.Moved) != 1 || len(rep.Moved[0].Lines) != 3 {
		t.Fatalf("%+v", rep)
	}
	for i, l := range rep.Moved[0].Lines {
		if want := []identify.Wiring{identify.Right, identify.Right, identify.Reversed}[i]; l.Wiring != want {
			t.Errorf("line %d is %v, want %v", l.Phase, l.Wiring, want)
		}
	}
}

// A load that is not switched moves nobody; a single switch proves nothing;
// a meter that has said little is not judged.
func TestNoProof(t *testing.T) {
	r := evening(6, 3*time.Hour, [3]int64{}, straight, 4)
	if rep := identify.Decide(r, limits); len(rep.Moved) != 0 || len(rep.Still) != 2 {
		t.Errorf("nothing was switched: %+v", rep)
	}
	r = evening(6, 3*time.Hour, [3]int64{kettle}, straight, 1)
	if rep := identify.Decide(r, limits); len(rep.Moved) != 0 || len(rep.Unsure) != 2 {
		t.Errorf("one switch: %+v", rep)
	}
	r = evening(6, 3*time.Hour, [3]int64{kettle}, straight, 4)
	r.Add(identify.Sample{Meter: "quiet", At: time.Second, Points: []meter.Point{{Quantity: meter.Power, Value: 1}}})
	if rep := identify.Decide(r, limits); !slices.Equal(rep.Unsure, []string{"quiet"}) || !slices.Equal(meters(rep.Moved), []string{"here"}) {
		t.Errorf("%+v", rep)
	}
	// The meter moves, but by far more than what was switched.
	if rep := identify.Decide(r, identify.Limits{Load: 500_000}); len(rep.Moved) != 0 {
		t.Errorf("a load four times as large: %+v", rep)
	}
}

// A meter that tells its total only.
func TestTotalOnly(t *testing.T) {
	for _, sign := range []int64{1, -1} {
		r := evening(7, 3*time.Hour, [3]int64{kettle}, straight, 4)
		for i := range r.Samples {
			r.Samples[i].Points = slices.DeleteFunc(r.Samples[i].Points, func(p meter.Point) bool { return p.Phase != 0 })
			for j := range r.Samples[i].Points {
				r.Samples[i].Points[j].Value *= sign
			}
		}
		want := map[int64]identify.Wiring{1: identify.Right, -1: identify.Reversed}[sign]
		rep := identify.Decide(r, identify.Limits{})
		if len(rep.Moved) != 1 || len(rep.Moved[0].Lines) != 1 || rep.Moved[0].Lines[0].Phase != 0 || rep.Moved[0].Lines[0].Wiring != want {
			t.Fatalf("%+v", rep)
		}
	}
}

func TestTurn(t *testing.T) {
	var r identify.Record
	if err := r.Turn(identify.Switch{At: 1, On: true}); err != nil {
		t.Fatal(err)
	}
	if err := r.Turn(identify.Switch{At: 2, On: true}); err == nil || !strings.Contains(err.Error(), "switch 2") {
		t.Errorf("on twice: %v", err)
	}
	if err := r.Turn(identify.Switch{At: 0}); err == nil {
		t.Error("time went back")
	}
}

// Whatever meters say, every one of them gets one verdict.
func TestEveryMeterOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r identify.Record
		seen := map[string]bool{}
		for i := range rapid.IntRange(0, 120).Draw(t, "samples") {
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "meter")
			seen[name] = true
			r.Add(identify.Sample{Meter: name, At: time.Duration(i) * time.Second, Points: []meter.Point{{
				Quantity: rapid.SampledFrom([]meter.Quantity{meter.Power, meter.Current, meter.Voltage}).Draw(t, "quantity"),
				Phase:    uint8(rapid.IntRange(0, 3).Draw(t, "phase")), Value: rapid.Int64().Draw(t, "value"),
			}}})
			if rapid.IntRange(0, 9).Draw(t, "switch") == 0 {
				_ = r.Turn(identify.Switch{At: time.Duration(i) * time.Second, On: len(r.Switches)%2 == 0})
			}
		}
		l := identify.Limits{Load: meter.MilliWatt(rapid.Int64Range(0, 10_000_000).Draw(t, "load"))}
		rep := identify.Decide(r, l)
		all := append(append(meters(rep.Moved), rep.Still...), rep.Unsure...)
		slices.Sort(all)
		if len(slices.Compact(all)) != len(seen) || len(all) != len(seen) {
			t.Fatalf("%v of %v", all, seen)
		}
	})
}
