package discharge

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

func rules() Rules {
	return Rules{Allowed: true, MaxPower: 7_000, Capacity: 60_000, Floor: 400, StaleAfter: 10 * time.Second}
}

func TestCheck(t *testing.T) {
	good := rules()
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func(*Rules){
		func(r *Rules) { r.Floor = 99 }, func(r *Rules) { r.Floor = 1001 }, func(r *Rules) { r.Capacity = 0 },
		func(r *Rules) { r.FloorWh = 60_001 }, func(r *Rules) { r.MaxPower = 0 }, func(r *Rules) { r.MinPower = 8_000 },
	} {
		r := rules()
		if f(&r); r.Check() == nil {
			t.Errorf("%+v is accepted", r)
		}
	}
}

func TestTradable(t *testing.T) {
	r := rules()
	for _, c := range []struct {
		soc     int64
		floorWh meter.WattHour
		need    meter.WattHour
		want    meter.WattHour
	}{
		{800, 0, 0, 21_600},      // 24 kWh above 40 %, at 90 %
		{800, 36_000, 0, 10_800}, // the floor in Wh is the higher one
		{800, 0, 20_000, 3_600},  // the departure needs 20 kWh of it
		{400, 0, 0, 0},           // at the floor
		{100, 0, 0, 0},           // below it
		{800, 0, 60_000, 0},      // all is needed
	} {
		r.FloorWh = c.floorWh
		if got := Tradable(r, c.soc, c.need); got != c.want {
			t.Errorf("%+v: %d Wh", c, got)
		}
	}
}

// TestReasons tells each thing that keeps a vehicle from giving.
func TestReasons(t *testing.T) {
	ok := Input{Ready: true, SoC: 800, Slot: 1, Left: 15 * time.Minute, Contracts: []Contract{{"a", 1_000}}, Room: 100_000}
	for _, c := range []struct {
		name  string
		f     func(*Rules, *Input)
		power meter.Watt
		why   string
		gone  bool
	}{
		{"delivers", func(*Rules, *Input) {}, 4_000, "promised", false},
		{"not allowed", func(r *Rules, _ *Input) { r.Allowed = false }, 0, "no installer", true},
		{"no vehicle", func(_ *Rules, in *Input) { in.Ready = false }, 0, "no vehicle", true},
		{"unknown charge", func(_ *Rules, in *Input) { in.SoCAt = -time.Minute }, 0, "not known", true},
		{"floor", func(_ *Rules, in *Input) { in.SoC = 400 }, 0, "floor", true},
		{"departure", func(_ *Rules, in *Input) { in.Need = 24_000 }, 0, "floor", true},
		{"power", func(_ *Rules, in *Input) { in.Contracts[0].Wh = 5_000 }, 7_000, "as much as it may", false},
		{"circuit", func(_ *Rules, in *Input) { in.Room = 2_000 }, 2_000, "as much as it may", false},
		{"nothing sold", func(_ *Rules, in *Input) { in.Contracts = nil }, 0, "nothing is promised", false},
		{"house", func(r *Rules, in *Input) { r.House, in.Contracts, in.Site = true, nil, 1_500 }, 1_500, "covers the house", false},
		{"house and contract", func(r *Rules, in *Input) { r.House, in.Site, in.Vehicle = true, -3_000, 4_500 }, 5_500, "promised", false},
		{"sunny house", func(r *Rules, in *Input) { r.House, in.Contracts, in.Site = true, nil, -1_500 }, 0, "nothing is promised", false},
		{"small house", func(r *Rules, in *Input) { r.House, r.MinPower, in.Contracts, in.Site = true, 2_000, nil, 300 }, 0, "too little", false},
		{"small contract", func(r *Rules, in *Input) { r.MinPower, in.Contracts[0].Wh = 2_000, 100 }, 2_000, "promised", false},
	} {
		r, in := rules(), ok
		in.Contracts = append([]Contract{}, ok.Contracts...)
		c.f(&r, &in)
		_, out := Step(r, State{}, in, 0)
		if out.Power != c.power || !strings.Contains(out.Why, c.why) || out.Withdraw != c.gone {
			t.Errorf("%s: %+v", c.name, out)
		}
	}
}

// ev is a simulated vehicle at a bidirectional charger.
type ev struct {
	charge int64 // mW*ms
	cap    int64
	out    int64 // exported, mW*ms
}

const perWh = int64(3_600_000_000) // mW*ms

func (e *ev) soc() int64             { return e.charge * 1000 / e.cap }
func (e *ev) export() meter.WattHour { return meter.WattHour(e.out / perWh) }

func (e *ev) step(p meter.Watt, ms int64) {
	d := int64(p) * 1000 * ms
	e.out += d
	e.charge -= d * 10 / 9
}

// TestContractsAreDeliveredAndShortfallsMeasured sells more, slot by slot,
// than the vehicle has, and unplugs it in the middle of one: what was metered
// and what is reported as short add up to what was promised, to the Wh, and
// the owner's floor is never touched.
func TestContractsAreDeliveredAndShortfallsMeasured(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 9))
		r := rules()
		r.Floor = int64(200 + rng.IntN(500))
		e := ev{cap: int64(r.Capacity) * perWh, charge: int64(r.Capacity) * perWh * int64(rng.IntN(700)+300) / 1000}
		floor := e.cap * r.floor() / 1000
		lowest := min(floor, e.charge)
		var s State
		var promised, short meter.WattHour
		var causes []string
		const slotMs, tick = int64(900_000), int64(1_000)
		unplug := int64(rng.IntN(12)) * slotMs / 2
		var now int64
		step := func(contracts []Contract, ready bool) Output {
			slot := now / slotMs
			var out Output
			s, out = Step(r, s, Input{
				Ready: ready, SoC: e.soc(), SoCAt: time.Duration(now) * time.Millisecond, Export: e.export(), Slot: slot,
				Left: time.Duration((slot+1)*slotMs-now) * time.Millisecond, Contracts: contracts, Room: 50_000,
			}, time.Duration(now)*time.Millisecond)
			for _, f := range out.Short {
				short += f.Promised - f.Delivered
				causes = append(causes, f.Cause)
			}
			return out
		}
		for range 10 {
			contracts := []Contract{{"a", meter.WattHour(rng.IntN(1_200))}, {"b", meter.WattHour(rng.IntN(900))}}
			promised += contracts[0].Wh + contracts[1].Wh
			for end := now + slotMs; now < end; now += tick {
				out := step(contracts, now < unplug || unplug == 0)
				if out.Power < 0 || out.Power > r.MaxPower {
					t.Fatalf("seed %d: %d W", seed, out.Power)
				}
				e.step(out.Power, tick)
				if e.charge < lowest-int64(r.MaxPower)*1000*tick*2 {
					t.Fatalf("seed %d: the battery is at %d, the floor at %d permille", seed, e.soc(), r.floor())
				}
			}
		}
		step(nil, true)
		if got := promised - short; got < e.export()-20 || got > e.export() {
			t.Errorf("seed %d: %d Wh promised, %d short, but %d were metered", seed, promised, short, e.export())
		}
		if short > 0 && len(causes) == 0 {
			t.Errorf("seed %d: a shortfall without a cause", seed)
		}
	}
}

// TestNeverBelowTheFloor holds for every input.
func TestNeverBelowTheFloor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rules()
		r.Allowed, r.House = rapid.Bool().Draw(t, "allowed"), rapid.Bool().Draw(t, "house")
		r.Floor, r.FloorWh = rapid.Int64Range(100, 1000).Draw(t, "floor"), meter.WattHour(rapid.Int64Range(0, 60_000).Draw(t, "floor Wh"))
		r.MinPower = meter.Watt(rapid.Int64Range(0, 3_000).Draw(t, "least"))
		var s State
		now := time.Duration(0)
		export := meter.WattHour(0)
		for range 30 {
			now += time.Duration(rapid.Int64Range(0, 60_000).Draw(t, "ms")) * time.Millisecond
			export += meter.WattHour(rapid.Int64Range(0, 50).Draw(t, "Wh"))
			in := Input{
				Ready: rapid.Bool().Draw(t, "ready"), SoC: rapid.Int64Range(0, 1000).Draw(t, "soc"), SoCAt: now - time.Duration(rapid.IntRange(0, 20).Draw(t, "age"))*time.Second,
				Export: export, Need: meter.WattHour(rapid.Int64Range(0, 30_000).Draw(t, "need")), Slot: int64(now / (15 * time.Minute)),
				Left:      15*time.Minute - now%(15*time.Minute),
				Contracts: []Contract{{"a", meter.WattHour(rapid.Int64Range(0, 5_000).Draw(t, "sold"))}},
				Site:      meter.Watt(rapid.Int64Range(-10_000, 10_000).Draw(t, "site")), SiteAt: now, Room: meter.Watt(rapid.Int64Range(0, 10_000).Draw(t, "room")),
			}
			var out Output
			s, out = Step(r, s, in, now)
			switch {
			case out.Why == "":
				t.Fatal("no reason")
			case out.Power == 0:
			case !r.Allowed || !in.Ready || in.SoC <= r.floor() || now-in.SoCAt > r.StaleAfter || int64(r.Capacity)*(in.SoC-r.floor())/1000 <= int64(in.Need):
				t.Fatalf("%d W for %+v under %+v", out.Power, in, r)
			case out.Power > r.MaxPower || out.Power > in.Room || out.Power < 0:
				t.Fatalf("%d W, at most %d and %d", out.Power, r.MaxPower, in.Room)
			}
		}
	})
}

// TestResumeDoesNotDeliverAgain: after a restart within a slot only what is
// left of its contract is ordered.
func TestResumeDoesNotDeliverAgain(t *testing.T) {
	r := Rules{Allowed: true, MaxPower: 10_000, Capacity: 60_000, Floor: 400, StaleAfter: time.Minute}
	in := Input{Ready: true, SoC: 800, Export: 1_000, Slot: 7, Left: time.Hour, Contracts: []Contract{{"a", 900}}, Room: 10_000}
	s, _ := Step(r, State{}, in, 0)
	slot, base, ok := s.Begun()
	if !ok || slot != 7 || base != 1_000 {
		t.Fatal(slot, base, ok)
	}
	in.Export = 1_600
	if _, out := Step(r, Resume(slot, base), in, 0); out.Power != 300 {
		t.Errorf("%d W for the last 300 Wh of an hour", out.Power)
	}
}
