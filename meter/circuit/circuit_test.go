package circuit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

func wiring(t *testing.T, s string) Wiring {
	t.Helper()
	w, err := ParseWiring(s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func tree(t *testing.T, r Rules, circuits []Circuit, chargers ...Charger) *Tree {
	t.Helper()
	tr, err := New(r, circuits, chargers)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// settle steps once a second for d, with unchanging input and draws that
// follow the grants.
func settle(t *Tree, s State, in Input, from, d time.Duration) (State, []Grant) {
	var g []Grant
	for now := from; now <= from+d; now += time.Second {
		for i := range in.Meters {
			in.Meters[i].At = now
		}
		for i := range in.Demands {
			in.Demands[i].DrawAt = now
		}
		s, g = Step(t, s, in, now)
	}
	return s, g
}

func want(a meter.MilliAmpere) Demand { return Demand{Want: a, Cap: -1} }

func limits(g []Grant) (out []meter.MilliAmpere) {
	for _, v := range g {
		out = append(out, v.Limit)
	}
	return out
}

func TestShares(t *testing.T) {
	three := Straight(3)
	for _, c := range []struct {
		name     string
		circuits []Circuit
		chargers []Charger
		in       Input
		want     []meter.MilliAmpere
		why      string // of the first charger
	}{
		{
			"alone it gets what it wants",
			[]Circuit{{ID: "house", Rating: 35_000}},
			[]Charger{{1, "house", three, 16_000}},
			Input{Demands: []Demand{want(16_000)}},
			[]meter.MilliAmpere{16_000},
			"",
		},
		{
			"two share a fuse equally",
			[]Circuit{{ID: "house", Rating: 20_000}},
			[]Charger{{1, "house", three, 16_000}, {2, "house", three, 16_000}},
			Input{Demands: []Demand{want(16_000), want(16_000)}},
			[]meter.MilliAmpere{10_000, 10_000},
			"fuse of circuit house on L1",
		},
		{
			"who wants little leaves the rest to others",
			[]Circuit{{ID: "house", Rating: 24_000}},
			[]Charger{{1, "house", three, 16_000}, {2, "house", three, 16_000}},
			Input{Demands: []Demand{want(16_000), want(7_000)}},
			[]meter.MilliAmpere{16_000, 7_000},
			"",
		},
		{
			"single phases that are rotated do not meet",
			[]Circuit{{ID: "house", Rating: 20_000}},
			[]Charger{{1, "house", Wiring{1}, 20_000}, {2, "house", Wiring{2}, 20_000}, {3, "house", Wiring{3}, 20_000}},
			Input{Demands: []Demand{want(20_000), want(20_000), want(20_000)}},
			[]meter.MilliAmpere{20_000, 20_000, 20_000},
			"",
		},
		{
			"the feeder above binds",
			[]Circuit{{ID: "feeder", Rating: 25_000}, {ID: "a", Parent: "feeder", Rating: 16_000}, {ID: "b", Parent: "feeder", Rating: 32_000}},
			[]Charger{{1, "a", three, 16_000}, {2, "b", three, 32_000}},
			Input{Demands: []Demand{want(16_000), want(32_000)}},
			[]meter.MilliAmpere{12_500, 12_500},
			"fuse of circuit feeder",
		},
		{
			"one bound below leaves the feeder to the other",
			[]Circuit{{ID: "feeder", Rating: 25_000}, {ID: "a", Parent: "feeder", Rating: 8_000}, {ID: "b", Parent: "feeder", Rating: 32_000}},
			[]Charger{{1, "a", three, 16_000}, {2, "b", three, 32_000}},
			Input{Demands: []Demand{want(16_000), want(32_000)}},
			[]meter.MilliAmpere{8_000, 17_000},
			"fuse of circuit a",
		},
		{
			"a phase that the house uses limits only who is wired to it",
			[]Circuit{{ID: "house", Rating: 25_000, Metered: true}},
			[]Charger{{1, "house", Wiring{2}, 16_000}, {2, "house", Wiring{3}, 16_000}},
			Input{Meters: []Reading{{Good: true, Current: Phases{0, 15_000, 0}}}, Demands: []Demand{want(16_000), want(16_000)}},
			[]meter.MilliAmpere{10_000, 16_000},
			"fuse of circuit house on L2",
		},
		{
			"export gives no extra room",
			[]Circuit{{ID: "house", Rating: 16_000, Metered: true}},
			[]Charger{{1, "house", three, 32_000}},
			Input{Meters: []Reading{{Good: true, Current: All(-20_000)}}, Demands: []Demand{want(32_000)}},
			[]meter.MilliAmpere{16_000},
			"fuse",
		},
		{
			"room for one of two only",
			[]Circuit{{ID: "house", Rating: 11_000}},
			[]Charger{{1, "house", three, 16_000}, {2, "house", three, 16_000}},
			Input{Demands: []Demand{want(16_000), want(16_000)}},
			[]meter.MilliAmpere{11_000, 0},
			"fuse",
		},
		{
			"a reserve for what nobody measures",
			[]Circuit{{ID: "house", Rating: 25_000, Reserve: 10_000}},
			[]Charger{{1, "house", three, 32_000}},
			Input{Demands: []Demand{want(32_000)}},
			[]meter.MilliAmpere{15_000},
			"fuse",
		},
		{
			"4.2 kW are 18.2 A on one phase and 6 A on three",
			[]Circuit{{ID: "house", Rating: 63_000}},
			[]Charger{{1, "house", Wiring{1}, 32_000}, {2, "house", three, 32_000}},
			Input{Demands: []Demand{want(32_000), want(32_000)}, Dim: Limit{PerDevice: 4_200}},
			[]meter.MilliAmpere{18_200, 6_000},
			"utility",
		},
		{
			"at a higher voltage 4.2 kW are less, but 6 A stay 6 A",
			[]Circuit{{ID: "house", Rating: 63_000}},
			[]Charger{{1, "house", Wiring{1}, 32_000}, {2, "house", three, 32_000}},
			Input{Demands: []Demand{{Want: 32_000, Cap: -1, Voltage: 240_000}, {Want: 32_000, Cap: -1, Voltage: 240_000}}, Dim: Limit{PerDevice: 4_200}},
			[]meter.MilliAmpere{17_500, 6_000},
			"utility",
		},
		{
			"switched to one phase, 4.2 kW are 18 A there",
			[]Circuit{{ID: "house", Rating: 63_000}},
			[]Charger{{1, "house", three, 32_000}},
			Input{Demands: []Demand{{Want: 32_000, Cap: -1, Phases: 1}}, Dim: Limit{PerDevice: 4_200}},
			[]meter.MilliAmpere{18_200},
			"utility",
		},
		{
			"a total for all devices",
			[]Circuit{{ID: "house", Rating: 63_000}},
			[]Charger{{1, "house", Wiring{1}, 32_000}, {2, "house", Wiring{2}, 32_000}},
			Input{Demands: []Demand{want(32_000), want(32_000)}, Dim: Limit{PerDevice: 4_200, Total: 6_900}},
			[]meter.MilliAmpere{15_000, 15_000},
			"utility's limit for all",
		},
		{
			"a power limit of a circuit",
			[]Circuit{{ID: "house", Rating: 63_000, Power: 11_040}},
			[]Charger{{1, "house", three, 32_000}},
			Input{Demands: []Demand{want(32_000)}},
			[]meter.MilliAmpere{16_000},
			"power limit of circuit house",
		},
		{
			"surplus is shared above the minimum",
			[]Circuit{{ID: "house", Rating: 63_000}},
			[]Charger{{1, "house", three, 16_000}, {2, "house", three, 16_000}, {3, "house", three, 16_000}},
			Input{Demands: []Demand{{Want: 16_000, Cap: -1, Surplus: true}, {Want: 16_000, Cap: -1, Surplus: true}, want(16_000)}, Pool: 11_040},
			[]meter.MilliAmpere{8_000, 8_000, 16_000},
			"surplus",
		},
		{
			"a short surplus leaves the minimum",
			[]Circuit{{ID: "house", Rating: 63_000}},
			[]Charger{{1, "house", three, 16_000}},
			Input{Demands: []Demand{{Want: 16_000, Cap: -1, Surplus: true}}, Pool: 1_000},
			[]meter.MilliAmpere{6_000},
			"surplus",
		},
		{
			"a lease of a feeder",
			[]Circuit{{ID: "feeder", Rating: 6_000}},
			[]Charger{{1, "feeder", three, 16_000}, {2, "feeder", three, 16_000}},
			Input{Demands: []Demand{{Want: 16_000, Cap: 12_000}, {Want: 16_000, Cap: 0}}, Leased: []bool{true}},
			[]meter.MilliAmpere{12_000, 0},
			"feeder's share",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.in.Meters == nil {
				c.in.Meters = make([]Reading, len(c.circuits))
			}
			_, g := settle(tree(t, DefaultRules(), c.circuits, c.chargers...), State{}, c.in, 0, 30*time.Second)
			if got := limits(g); !slices.Equal(got, c.want) {
				t.Errorf("%d, want %d (%+v)", got, c.want, g)
			}
			if !strings.Contains(g[0].Why, c.why) || (c.why == "" && g[0].Why != "") {
				t.Errorf("why %q, want %q", g[0].Why, c.why)
			}
		})
	}
}

// TestTurns lets four cars take turns where two have room, and each gets its
// part of the time.
func TestTurns(t *testing.T) {
	r := DefaultRules()
	tr := tree(t, r, []Circuit{{ID: "house", Rating: 13_000}}, Charger{1, "house", Straight(3), 16_000}, Charger{2, "house", Straight(3), 16_000},
		Charger{3, "house", Straight(3), 16_000}, Charger{4, "house", Straight(3), 16_000})
	in := Input{Meters: make([]Reading, 1), Demands: []Demand{want(16_000), want(16_000), want(16_000), want(0)}}
	var s State
	var g []Grant
	served := make([]time.Duration, 4)
	const day = 24 * time.Hour
	starts := make([]int, 4)
	was := make([]meter.MilliAmpere, 4)
	for now := time.Duration(0); now < day; now += time.Second {
		if now == day/2 {
			in.Demands[3] = want(16_000) // the fourth comes at noon
		}
		s, g = Step(tr, s, in, now)
		var sum meter.MilliAmpere
		for i := range g {
			sum += g[i].Limit
			if g[i].Limit > 0 {
				served[i] += time.Second
				if was[i] == 0 {
					starts[i]++
				}
			}
			was[i] = g[i].Limit
		}
		if sum > 13_000 {
			t.Fatalf("%s: %d mA in sum", now, sum)
		}
	}
	// Two thirds of the first half, and half of the second.
	share := day/2*2/3 + day/2/2
	for i := range 3 {
		if d := served[i] - share; d < -2*r.Turn || d > 2*r.Turn {
			t.Errorf("charger %d was served for %s, a fair share is %s", i+1, served[i], share)
		}
	}
	if d := served[3] - day/2/2; d < -2*r.Turn || d > 2*r.Turn {
		t.Errorf("the one that came at noon was served for %s, a fair share is %s", served[3], day/4)
	}
	for i, n := range starts {
		if n > 100 {
			t.Errorf("charger %d was started %d times", i+1, n)
		}
	}
}

func TestStaleMeterGivesTheLeastAndStartsNobody(t *testing.T) {
	tr := tree(t, DefaultRules(), []Circuit{{ID: "house", Rating: 35_000, Metered: true}}, Charger{1, "house", Straight(3), 16_000}, Charger{2, "house", Straight(3), 16_000})
	in := Input{Meters: []Reading{{Good: true}}, Demands: []Demand{want(16_000), want(0)}}
	s, g := settle(tr, State{}, in, 0, 10*time.Second)
	if g[0].Limit != 16_000 {
		t.Fatalf("%+v", g)
	}
	in.Meters[0] = Reading{Good: true, At: 10 * time.Second}
	in.Demands[1] = want(16_000)
	s, g = Step(tr, s, in, 21*time.Second)
	if g[0].Limit != 6_000 || g[1].Limit != 0 || !strings.Contains(g[0].Why, "no reading") {
		t.Fatalf("after 11 s of silence: %+v", g)
	}
	in.Meters[0] = Reading{Good: false, At: 22 * time.Second}
	if _, g = Step(tr, s, in, 22*time.Second); g[0].Limit != 6_000 {
		t.Fatalf("a suspect reading: %+v", g)
	}
}

func TestNewRefuses(t *testing.T) {
	three := Straight(3)
	for _, c := range []struct {
		want     string
		circuits []Circuit
		chargers []Charger
	}{
		{"used twice", []Circuit{{ID: "a"}, {ID: "a"}}, nil},
		{"no circuit \"b\"", []Circuit{{ID: "a", Parent: "b"}}, nil},
		{"ring", []Circuit{{ID: "a", Parent: "b"}, {ID: "b", Parent: "a"}}, []Charger{{1, "a", three, 16_000}}},
		{"negative", []Circuit{{ID: "a", Rating: -1}}, nil},
		{"no circuit \"x\"", nil, []Charger{{1, "x", three, 16_000}}},
		{"twice", []Circuit{{ID: "a"}}, []Charger{{1, "a", three, 16_000}, {1, "a", three, 16_000}}},
		{"at least 6000", []Circuit{{ID: "a"}}, []Charger{{1, "a", three, 5_000}}},
		{"no phase", []Circuit{{ID: "a"}}, []Charger{{1, "a", Wiring{}, 16_000}}},
	} {
		if _, err := New(DefaultRules(), c.circuits, c.chargers); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	for _, s := range []string{"", "L4", "L1 L1 L2", "L1 L2", "L1, L2, L3"} {
		if w, err := ParseWiring(s); err == nil {
			t.Errorf("%q is wiring %v", s, w)
		}
	}
	if w := wiring(t, "L2 L3 L1"); w.Spread(Phases{1, 2, 3}) != (Phases{3, 1, 2}) {
		t.Errorf("rotated: %v", w.Spread(Phases{1, 2, 3}))
	}
}

func TestCurrents(t *testing.T) {
	p := func(q meter.Quantity, ph uint8, v int64) meter.Point {
		return meter.Point{Quantity: q, Phase: ph, Value: v}
	}
	for _, c := range []struct {
		name   string
		points []meter.Point
		phases int
		want   Phases
		known  bool
	}{
		{"phase currents", []meter.Point{p(meter.Current, 1, 5_000), p(meter.Current, 2, 6_000), p(meter.Current, 3, 7_000)}, 3, Phases{5_000, 6_000, 7_000}, true},
		{"unsigned current of an exporting phase", []meter.Point{p(meter.Current, 1, 5_000), p(meter.Power, 1, -1_150_000)}, 3, Phases{-5_000}, true},
		{"phase powers", []meter.Point{p(meter.Power, 2, 2_300_000)}, 3, Phases{0, 10_000, 0}, true},
		{"total current of one phase", []meter.Point{p(meter.Current, 0, 9_000)}, 1, Phases{9_000}, true},
		{"total power", []meter.Point{p(meter.Power, 0, 6_900_000)}, 3, All(10_000), true},
		{"nothing", nil, 3, Phases{}, false},
	} {
		got, known := Currents(&meter.Reading{Points: c.points}, c.phases)
		if got != c.want || known != c.known {
			t.Errorf("%s: %v %t", c.name, got, known)
		}
	}
}

// house is a simulated connection: base loads that step, cars that are slow to
// obey, meters that are late.
type house struct {
	rng     *rand.Rand
	tr      *Tree
	base    Phases
	cars    []car
	mains   sampled
	session []sampled
}

type car struct {
	offers []offer // newest last
	draw   meter.MilliAmpere
	takes  meter.MilliAmpere // most that it takes now
	lag    time.Duration     // until it obeys a lower offer
	phases int
}

type offer struct {
	at    time.Duration
	limit meter.MilliAmpere
}

type sampled struct {
	every, late time.Duration
	next        time.Duration
	queue       []Reading // on their way
	last        Reading
}

func (m *sampled) step(now time.Duration, current Phases) {
	if now >= m.next {
		m.next += m.every
		m.queue = append(m.queue, Reading{Good: true, Current: current, At: now})
	}
	for len(m.queue) > 0 && now-m.queue[0].At >= m.late {
		m.last, m.queue = m.queue[0], m.queue[1:]
	}
}

// step moves a car by dt: it follows a lower offer lag after it was made, and
// a higher one with 8 A/s (what cars do at most).
func (c *car) step(now, dt time.Duration) {
	may := meter.MilliAmpere(0)
	if len(c.offers) > 0 {
		may = c.offers[len(c.offers)-1].limit
	}
	for i := len(c.offers) - 1; i >= 0; i-- { // offers of the last lag
		if i+1 < len(c.offers) && now-c.offers[i+1].at >= c.lag {
			c.offers = c.offers[i+1:]
			break
		}
		may = max(may, c.offers[i].limit)
	}
	goal := min(may, c.takes)
	if c.draw < goal {
		c.draw = min(goal, c.draw+meter.MilliAmpere(8*dt.Milliseconds()))
	} else {
		c.draw = goal
	}
}

// TestLoadSteps holds the promise on limits against load steps: what chargers
// draw never exceeds what was free at some moment of the last
//
//	interval + age of the reading + tick + Turnaround
//
// per phase and circuit. With base loads at rest for that long no rating is
// exceeded at all.
func TestLoadSteps(t *testing.T) {
	const tick = 100 * time.Millisecond
	var worst struct {
		over   meter.MilliAmpere
		for_   time.Duration
		charge int64 // mA*ms above a rating in one stretch
	}
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 5))
		r := DefaultRules()
		every, late := time.Duration(200+rng.IntN(1800))*time.Millisecond, time.Duration(rng.IntN(500))*time.Millisecond
		circuits := []Circuit{{ID: "house", Rating: 35_000, Metered: true}, {ID: "garage", Parent: "house", Rating: 25_000}}
		chargers := []Charger{{1, "garage", Straight(3), 16_000}, {2, "garage", Wiring{2, 3, 1}, 16_000}, {3, "house", Wiring{3}, 20_000}}
		tr := tree(t, r, circuits, chargers...)
		h := house{rng: rng, tr: tr, mains: sampled{every: every, late: late}}
		for range chargers {
			h.cars = append(h.cars, car{lag: time.Duration(rng.IntN(5000)) * time.Millisecond, phases: 3})
			h.session = append(h.session, sampled{every: every, late: late, next: time.Duration(rng.Int64N(int64(every)))})
		}
		h.cars[2].phases = 1
		window := every + late + 2*tick + r.Turnaround
		var bases []Phases // one per tick, newest last
		var s State
		var over time.Duration
		var area int64
		for now := time.Duration(0); now < 20*time.Minute; now += tick {
			if rng.IntN(150) == 0 { // about four steps a minute, sun included
				h.base[rng.IntN(3)] = meter.MilliAmpere(rng.IntN(45_000) - 10_000)
			}
			if rng.IntN(300) == 0 {
				h.cars[rng.IntN(3)].takes = []meter.MilliAmpere{0, 6_000, 10_000, 16_000, 32_000}[rng.IntN(5)]
			}
			in := Input{Meters: []Reading{h.mains.last, {}}, Demands: make([]Demand, 3)}
			for i := range h.cars {
				m := h.session[i].last
				in.Demands[i] = Demand{Want: 32_000, Draw: m.Current, DrawAt: m.At, DrawKnown: m.Good, Cap: -1}
			}
			var g []Grant
			s, g = Step(tr, s, in, now)
			var total, garage Phases
			var currents []Phases
			for i := range h.cars {
				c := &h.cars[i]
				if n := len(c.offers); n == 0 || c.offers[n-1].limit != g[i].Limit {
					c.offers = append(c.offers, offer{now, g[i].Limit})
				}
				c.step(now, tick)
				at := Phases{}
				for l := range c.phases {
					at[l] = c.draw
				}
				currents = append(currents, at)
				on := chargers[i].Wiring.Spread(at)
				total = total.Add(on)
				if i < 2 {
					garage = garage.Add(on)
				}
			}
			bases = append(bases, h.base)
			if n := int(window / tick); len(bases) > n {
				bases = bases[1:]
			}
			site := total.Add(h.base)
			exceeds := false
			for l := range 3 {
				least := h.base[l]
				for _, b := range bases {
					least = min(least, b[l])
				}
				if free := max(0, 35_000-max(0, least)); total[l] > free {
					t.Fatalf("seed %d, %s: chargers draw %d mA on L%d, %d were free at best in the last %s (base %d, grants %v)", seed, now, total[l], l+1, free, window, h.base[l], g)
				}
				if garage[l] > 25_000 {
					t.Fatalf("seed %d, %s: %d mA on L%d of the garage, which has no load of its own", seed, now, garage[l], l+1)
				}
				// Excess that chargers cause.
				if x := min(site[l]-35_000, total[l]); x > 0 {
					exceeds = true
					worst.over = max(worst.over, x)
					area += int64(x) * tick.Milliseconds()
				}
			}
			if !exceeds {
				over, area = 0, 0
			} else {
				over += tick
				worst.for_, worst.charge = max(worst.for_, over), max(worst.charge, area)
			}
			h.mains.step(now, site)
			for i := range h.session {
				h.session[i].step(now, currents[i])
			}
		}
	}
	t.Logf("worst excess caused by chargers: %.1f A, for %s in a row, %.1f As", float64(worst.over)/1e3, worst.for_, float64(worst.charge)/1e6)
}

// TestGrantsNeverExceedRatings holds for every input: what is granted fits
// every fuse and every order with the base load of the moment, and what is
// still being drawn from before is counted with it whenever a limit rises.
func TestGrantsNeverExceedRatings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		circuits := []Circuit{
			{ID: "root", Rating: meter.MilliAmpere(rapid.IntRange(6_000, 60_000).Draw(t, "root"))},
			{ID: "a", Parent: "root", Rating: meter.MilliAmpere(rapid.IntRange(0, 40_000).Draw(t, "a"))},
			{ID: "b", Parent: "a", Power: meter.Watt(rapid.IntRange(0, 20_000).Draw(t, "b"))},
		}
		n := rapid.IntRange(1, 6).Draw(t, "chargers")
		var chargers []Charger
		for i := range n {
			chargers = append(chargers, Charger{
				uint8(i + 1), rapid.SampledFrom([]string{"root", "a", "b"}).Draw(t, "at"),
				rapid.SampledFrom([]Wiring{{1}, {2}, {3}, {1, 2, 3}, {2, 3, 1}, {3, 1, 2}}).Draw(t, "wiring"),
				meter.MilliAmpere(rapid.IntRange(6_000, 32_000).Draw(t, "rating")),
			})
		}
		tr, err := New(DefaultRules(), circuits, chargers)
		if err != nil {
			t.Fatal(err)
		}
		var s State
		now := time.Duration(0)
		was := make([]Grant, n)
		for range 60 {
			now += time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond
			in := Input{Meters: make([]Reading, 3), Dim: Limit{
				PerDevice: meter.Watt(rapid.SampledFrom([]int{0, 4_200, 8_000}).Draw(t, "dim")), Total: meter.Watt(rapid.SampledFrom([]int{0, 9_000}).Draw(t, "total")),
			}}
			for range n {
				in.Demands = append(in.Demands, Demand{Want: meter.MilliAmpere(rapid.IntRange(0, 32_000).Draw(t, "want")), Cap: -1})
			}
			var g []Grant
			s, g = Step(tr, s, in, now)
			committed := make([]meter.MilliAmpere, n)
			rose := false
			for i := range g {
				committed[i] = s.loads[i].limit
				if now-s.loads[i].loweredT < tr.rules.Turnaround {
					committed[i] = max(committed[i], s.loads[i].before)
				}
				rose = rose || g[i].Limit > was[i].Limit
				if g[i].Limit != 0 && (g[i].Limit < MinCurrent || g[i].Limit > chargers[i].MaxCurrent || g[i].Limit > in.Demands[i].Want) {
					t.Fatalf("grant %+v of %+v for %+v", g[i], chargers[i], in.Demands[i])
				}
				if want := in.Demands[i].Want; want >= MinCurrent && g[i].Limit < min(want, chargers[i].MaxCurrent)-step && g[i].Why == "" {
					t.Fatalf("charger %d gets %d of %d mA and nobody says why", i+1, g[i].Limit, in.Demands[i].Want)
				}
			}
			check := func(c int, what string, of func(i int) meter.MilliAmpere) {
				for l := uint8(1); l <= 3; l++ {
					var sum, watts meter.MilliAmpere
					for i, h := range chargers {
						if !slices.Contains(tr.above[i], c) {
							continue
						}
						watts += of(i) * meter.MilliAmpere(h.Wiring.Count())
						if slices.Contains(h.Wiring[:], l) {
							sum += of(i)
						}
					}
					if q := circuits[c]; (q.Rating > 0 && sum > q.Rating) || (q.Power > 0 && int64(watts)*230 > int64(q.Power)*1000) {
						t.Fatalf("%s: %s %d mA on L%d of %+v: %v", now, what, sum, l, q, g)
					}
				}
			}
			for c := range circuits {
				check(c, "granted", func(i int) meter.MilliAmpere { return g[i].Limit })
				if rose {
					check(c, "committed", func(i int) meter.MilliAmpere { return committed[i] })
				}
			}
			was = g
		}
	})
}

func BenchmarkStep(b *testing.B) {
	var chargers []Charger
	in := Input{Meters: make([]Reading, 2)}
	for i := range 8 {
		chargers = append(chargers, Charger{uint8(i + 1), "garage", Wiring{1, 2, 3}, 32_000})
		in.Demands = append(in.Demands, want(32_000))
	}
	tr, err := New(DefaultRules(), []Circuit{{ID: "house", Rating: 63_000, Metered: true}, {ID: "garage", Parent: "house", Rating: 50_000}}, chargers)
	if err != nil {
		b.Fatal(err)
	}
	var s State
	now := time.Duration(0)
	for b.Loop() {
		now += 25 * time.Millisecond
		in.Meters[0] = Reading{Good: true, At: now}
		s, _ = Step(tr, s, in, now)
	}
	_ = fmt.Sprint(s.at)
}
