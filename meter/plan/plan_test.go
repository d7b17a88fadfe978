package plan

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

const quarter = int64(900_000)

// brute finds, by trying everything in whole Wh, the least cost of every
// energy up to the goal.
func brute(slots []Slot, g Goal) (reach meter.WattHour, cost chain.Nano) {
	best := map[meter.WattHour]chain.Nano{0: 0}
	for i := range slots {
		// Energy and cost that this slot can add.
		add := map[meter.WattHour]chain.Nano{0: 0}
		for _, t := range slots[i].Tiers {
			if g.MaxPrice > 0 && t.Price > g.MaxPrice {
				continue
			}
			next := map[meter.WattHour]chain.Nano{}
			for e, c := range add {
				for wh := meter.WattHour(0); wh <= min(t.Wh, g.Wh); wh++ {
					sum, total := e+wh, c+chain.Nano(t.Price)*chain.Nano(wh)
					if old, ok := next[sum]; sum <= slots[i].within(g.By) && (!ok || total < old) {
						next[sum] = total
					}
				}
			}
			add = next
		}
		next := map[meter.WattHour]chain.Nano{}
		for e, c := range best {
			for wh, more := range add {
				if old, ok := next[e+wh]; e+wh <= g.Wh && (!ok || c+more < old) {
					next[e+wh] = c + more
				}
			}
		}
		best = next
	}
	for e := range best {
		reach = max(reach, e)
	}
	return reach, best[reach]
}

// TestOptimal compares with trying everything: as much energy as can be had
// at the price by the deadline, and no cheaper way to have it.
func TestOptimal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var slots []Slot
		for i := range rapid.IntRange(0, 4).Draw(t, "slots") {
			s := Slot{Start: int64(i) * quarter, End: int64(i+1) * quarter, Room: meter.WattHour(rapid.IntRange(0, 9).Draw(t, "room"))}
			for range rapid.IntRange(0, 3).Draw(t, "tiers") {
				s.Tiers = append(s.Tiers, Tier{
					Price: chain.NanoPerWh(rapid.IntRange(0, 6).Draw(t, "price")), Wh: rapid.SampledFrom([]meter.WattHour{0, 1, 2, 5, Unlimited}).Draw(t, "wh"),
				})
			}
			slots = append(slots, s)
		}
		g := Goal{
			Wh: meter.WattHour(rapid.IntRange(0, 14).Draw(t, "goal")), MaxPrice: chain.NanoPerWh(rapid.IntRange(0, 5).Draw(t, "max")),
			By: rapid.SampledFrom([]int64{0, quarter, 5 * quarter / 2, 4 * quarter}).Draw(t, "by"),
		}
		p, err := Make(slots, g)
		if err != nil {
			t.Fatal(err)
		}
		reach, cost := brute(slots, g)
		if p.Energy != reach || p.Cost != cost {
			t.Fatalf("%d Wh for %d, best is %d Wh for %d\n%+v", p.Energy, p.Cost, reach, cost, p)
		}
		free, _ := brute(slots, Goal{Wh: g.Wh, By: g.By})
		if p.Short != g.Wh-reach || p.ByPower != g.Wh-free {
			t.Fatalf("short by %d, of it by power %d; want %d and %d", p.Short, p.ByPower, g.Wh-reach, g.Wh-free)
		}
		// What Needs says is enough, and less is not.
		if p.Short > p.ByPower {
			if r, _ := brute(slots, Goal{Wh: g.Wh, By: g.By, MaxPrice: p.Needs}); r != free || p.Needs <= g.MaxPrice {
				t.Fatalf("a price of %d reaches %d, not %d Wh", p.Needs, r, free)
			}
		}
		var sum meter.WattHour
		var paid chain.Nano
		for i, s := range p.Shares {
			sum, paid = sum+s.Wh, paid+s.Cost
			if s.Wh <= 0 || s.Local > s.Wh || s.End <= s.Start || (i > 0 && s.Start < p.Shares[i-1].End) || (g.By > 0 && s.End > g.By) {
				t.Fatalf("shares %+v", p.Shares)
			}
		}
		if sum != p.Energy || paid != p.Cost {
			t.Fatalf("shares sum up to %d Wh for %d: %+v", sum, paid, p)
		}
	})
}

func TestMakeRefuses(t *testing.T) {
	tier := []Tier{{Price: 1, Wh: 1}}
	for _, slots := range [][]Slot{
		{{Start: 0, End: 10, Tiers: tier}, {Start: 5, End: 15, Tiers: tier}},
		{{Start: 10, End: 10}},
		{{Start: 0, End: 10, Room: -1}},
		{{Start: 0, End: 10, Tiers: []Tier{{Price: -1}}}},
		{{Start: 0, End: 10, Room: MaxWh, Tiers: []Tier{{Price: 1 << 62, Wh: Unlimited}}}},
		make([]Slot, MaxSlots+1),
	} {
		if p, err := Make(slots, Goal{Wh: 10_000}); err == nil {
			t.Errorf("%+v has plan %+v", slots[:min(len(slots), 2)], p)
		}
	}
	if _, err := Make(nil, Goal{Wh: -1}); err == nil {
		t.Error("a negative goal")
	}
}

// night is a tariff that is cheap from slot from to slot to.
func night(n, from, to int) (slots []Slot) {
	for i := range n {
		price := chain.NanoPerWh(300_000)
		if i >= from && i < to {
			price = 180_000
		}
		slots = append(slots, Slot{Start: int64(i) * quarter, End: int64(i+1) * quarter, Tiers: []Tier{{Price: price, Wh: Unlimited}}})
	}
	return slots
}

// world charges as the plan says, with a car that takes what it is offered at
// a power that may be less than promised.
type world struct {
	o     Order
	s     State
	in    Input
	exact int64 // mW*ms charged
	said  []string
}

func (w *world) run(until int64, real meter.Watt) {
	const tick = int64(1000)
	for ; w.in.Now < until; w.in.Now += tick {
		w.in.Done = meter.WattHour(w.exact / 3_600_000_000)
		var out Output
		w.s, out = Step(w.o, w.s, w.in)
		if out.Report != "" {
			w.said = append(w.said, out.Report)
		}
		if out.Current != 0 && out.Current < MinCurrent || out.Why == "" {
			panic(fmt.Sprintf("%+v", out))
		}
		p := min(int64(out.Current)*230*int64(w.o.Phases), int64(real)*1000)
		w.exact += p * tick
	}
}

func TestNightTariff(t *testing.T) {
	const day = 96 * quarter
	w := world{o: Order{Goal: Goal{Wh: 20_000, By: 28 * quarter}, Phases: 3}, in: Input{Power: 11_000, Offers: night(96, 8, 24), Version: 1}}
	w.run(8*quarter, 11_000)
	if w.exact != 0 {
		t.Fatalf("%d mWh before the tariff falls", w.exact/3_600_000)
	}
	w.run(28*quarter, 11_000)
	if got := w.exact / 3_600_000_000; got < 20_000 || got > 20_050 || len(w.said) > 0 {
		t.Fatalf("%d Wh, said %q", got, w.said)
	}
	if w.s.Plan.Energy != 0 {
		t.Errorf("still plans %+v", w.s.Plan)
	}
	_ = day
}

func TestReplansWhenOffersChange(t *testing.T) {
	w := world{o: Order{Goal: Goal{Wh: 4_000, By: 12 * quarter}, Phases: 3}, in: Input{Power: 11_000, Offers: night(12, 8, 12), Version: 1}}
	w.run(2*quarter, 11_000)
	if w.exact != 0 {
		t.Fatal("starts at the dear tariff")
	}
	// A neighbour offers 3 kWh in the running slot.
	offers := night(12, 8, 12)
	offers[2].Tiers = append(offers[2].Tiers, Tier{Price: 120_000, Wh: 2_500, Local: true})
	w.in.Offers, w.in.Version = offers, 2
	w.run(3*quarter, 11_000)
	if got := w.exact / 3_600_000_000; got < 2_480 || got > 2_540 {
		t.Fatalf("took %d Wh of the neighbour's 2500", got)
	}
	w.run(12*quarter, 11_000)
	if got := w.exact / 3_600_000_000; got < 4_000 || got > 4_050 {
		t.Fatalf("%d Wh", got)
	}
}

func TestShortfallIsReportedAtOnce(t *testing.T) {
	by := int64(7 * 3600_000)
	w := world{o: Order{Goal: Goal{Wh: 80_200, By: by}, Phases: 3}, in: Input{Power: 11_000, Offers: night(28, 0, 28), Version: 1}}
	w.run(1_000, 11_000)
	if len(w.said) != 1 || w.said[0] != "3.2 kWh short at 07:00: the time does not suffice at the power there is" {
		t.Fatalf("%q", w.said)
	}
	w.run(by/2, 11_000)
	if len(w.said) != 1 {
		t.Errorf("said again: %q", w.said)
	}
	// The utility dims to 4.2 kW: told again, at once.
	w.in.Power = 4_200
	w.run(w.in.Now+1_000, 4_200)
	if len(w.said) != 2 || !strings.Contains(w.said[1], "short at 07:00") {
		t.Errorf("%q", w.said)
	}

	w = world{o: Order{Goal: Goal{Wh: 20_000, By: by, MaxPrice: 200_000}, Phases: 3}, in: Input{Power: 11_000, Offers: night(28, 0, 4), Version: 1}}
	w.run(1_000, 11_000)
	if len(w.said) != 1 || w.said[0] != "9.0 kWh short at 07:00: nothing more is offered at the driver's price of 0.2000 per kWh; it would take 0.3000 per kWh" {
		t.Fatalf("%q", w.said)
	}
	w.in.Offers, w.in.Version = night(28, 0, 20), 2
	w.run(2_000, 11_000)
	if len(w.said) != 2 || !strings.Contains(w.said[1], "after all") {
		t.Fatalf("%q", w.said)
	}
}

// TestDeadlineIsKept: with random prices, offers that change, and a car that
// is slower than promised for a while, the goal is reached whenever the time
// after that suffices.
func TestDeadlineIsKept(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 3))
		const n = 12
		offers := func() []Slot {
			s := night(n, 0, 0)
			for i := range s {
				s[i].Tiers[0].Price = chain.NanoPerWh(100_000 + rng.IntN(300_000))
				if rng.IntN(2) == 0 {
					s[i].Tiers = append(s[i].Tiers, Tier{Price: chain.NanoPerWh(rng.IntN(200_000)), Wh: meter.WattHour(rng.IntN(3_000)), Local: true})
				}
			}
			return s
		}
		power := meter.Watt(4_200 + rng.IntN(7_000))
		by := int64(n) * quarter
		w := world{o: Order{Goal: Goal{By: by}, Phases: 3}, in: Input{Power: power, Offers: offers(), Version: 1}}
		// With the planner's margin and the rounding of a minute's plans there is
		// time for it.
		w.o.Wh = Room(power, by) * 88 / 100
		for i := range int64(n) {
			if rng.IntN(2) == 0 {
				w.in.Offers = offers()
				w.in.Version++
			}
			real := power
			if i == 3 { // it takes only half for half a slot: room of a twentieth
				w.run(i*quarter+quarter/2, power/2)
			}
			w.run((i+1)*quarter, real)
		}
		if got := meter.WattHour(w.exact / 3_600_000_000); got < w.o.Wh-5 {
			t.Errorf("seed %d: %d of %d Wh, said %q", seed, got, w.o.Wh, w.said)
		}
	}
}

func BenchmarkMake(b *testing.B) {
	slots := night(MaxSlots, 100, 200)
	for i := range slots {
		slots[i].Room = 2_750
		for k := range 8 {
			slots[i].Tiers = append(slots[i].Tiers, Tier{Price: chain.NanoPerWh(100_000 + 1000*((i*7+k*13)%100)), Wh: 300, Local: true})
		}
	}
	for b.Loop() {
		if _, err := Make(slots, Goal{Wh: 60_000, By: slots[len(slots)-1].End}); err != nil {
			b.Fatal(err)
		}
	}
}
