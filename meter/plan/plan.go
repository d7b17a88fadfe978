package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Limits.
const (
	MaxSlots = 8 * 96 // eight days of quarter hours
	MaxTiers = 64     // per slot
	MaxWh    = meter.WattHour(200_000)
)

// Unlimited as a tier's energy means that only the slot's room limits it.
const Unlimited = meter.WattHour(math.MaxInt64)

// Tier is energy at one price within a slot.
type Tier struct {
	Price chain.NanoPerWh
	Wh    meter.WattHour
	Local bool // a neighbour's, not the supplier's
}

// Slot is a stretch of time with its offers.
type Slot struct {
	Start, End int64          // Unix ms
	Room       meter.WattHour // most that can be charged in it
	Tiers      []Tier         // in any order
}

// Goal is what the driver wants.
type Goal struct {
	Wh       meter.WattHour
	By       int64           // Unix ms; 0: no deadline but the last slot's end
	MaxPrice chain.NanoPerWh // of any Wh; 0: any price
}

// Share is what a plan charges in one slot.
type Share struct {
	Start, End int64
	Wh         meter.WattHour
	Local      meter.WattHour // of Wh, from neighbours
	Cost       chain.Nano
}

// Plan is the outcome.
type Plan struct {
	Goal
	Shares []Share        // ascending, only those with energy
	Energy meter.WattHour // in sum
	Cost   chain.Nano     // in sum
	// Short is what is missing at the deadline. ByPower of it could not be
	// charged at any price; the rest is dearer than the driver's price.
	Short   meter.WattHour
	ByPower meter.WattHour
	// Needs is the price at which the goal would be reached as far as power
	// allows; it exceeds MaxPrice if the price is to blame.
	Needs chain.NanoPerWh
}

// Make solves a problem. Slots must be ascending and not overlap; those after
// the deadline do not count, and one that the deadline cuts counts in part.
func Make(slots []Slot, g Goal) (Plan, error) {
	if g.Wh < 0 || g.Wh > MaxWh || g.MaxPrice < 0 || len(slots) > MaxSlots {
		return Plan{}, fmt.Errorf("plan: %d Wh at %d nano/Wh in %d slots: want 0..%d Wh, a price of 0 or more, at most %d slots", g.Wh, g.MaxPrice, len(slots), MaxWh, MaxSlots)
	}
	type choice struct {
		slot int
		tier Tier
	}
	var choices []choice
	room := make([]meter.WattHour, len(slots))
	last := int64(math.MinInt64)
	for i, s := range slots {
		if s.Start < last || s.End <= s.Start || s.Room < 0 || s.Room > MaxWh || len(s.Tiers) > MaxTiers {
			return Plan{}, fmt.Errorf("plan: slot %d from %d to %d with room for %d Wh and %d tiers", i, s.Start, s.End, s.Room, len(s.Tiers))
		}
		last = s.End
		room[i] = s.within(g.By)
		for _, t := range s.Tiers {
			if t.Wh < 0 || t.Price < 0 {
				return Plan{}, fmt.Errorf("plan: slot %d: a tier of %d Wh at %d nano/Wh", i, t.Wh, t.Price)
			}
			choices = append(choices, choice{i, t})
		}
	}
	// Own and neighbours' energy before the supplier's at the same price.
	slices.SortStableFunc(choices, func(a, b choice) int {
		switch {
		case a.tier.Price != b.tier.Price:
			return cmp.Compare(a.tier.Price, b.tier.Price)
		case a.slot != b.slot:
			return a.slot - b.slot
		case a.tier.Local != b.tier.Local && a.tier.Local:
			return -1
		case a.tier.Local != b.tier.Local:
			return 1
		}
		return 0
	})
	p := Plan{Goal: g}
	shares := make([]Share, len(slots))
	reach := meter.WattHour(0) // at any price
	for _, c := range choices {
		wh := min(c.tier.Wh, room[c.slot], g.Wh-reach)
		if wh <= 0 {
			continue
		}
		room[c.slot] -= wh
		reach += wh
		p.Needs = c.tier.Price
		if g.MaxPrice > 0 && c.tier.Price > g.MaxPrice {
			continue
		}
		cost, err := chain.Cost(c.tier.Price, wh)
		s := &shares[c.slot]
		if err == nil {
			s.Cost, err = chain.AddNano(s.Cost, cost)
		}
		if err == nil {
			p.Cost, err = chain.AddNano(p.Cost, cost)
		}
		if err != nil {
			return Plan{}, fmt.Errorf("plan: %d Wh at %d nano/Wh: %w", wh, c.tier.Price, err)
		}
		s.Wh += wh
		if c.tier.Local {
			s.Local += wh
		}
		p.Energy += wh
	}
	for i, s := range shares {
		if s.Wh > 0 {
			s.Start, s.End = slots[i].Start, slots[i].End
			if g.By > 0 {
				s.End = min(s.End, g.By)
			}
			p.Shares = append(p.Shares, s)
		}
	}
	p.Short, p.ByPower = g.Wh-p.Energy, g.Wh-reach
	return p, nil
}

// within is the part of a slot's room before the deadline.
func (s *Slot) within(by int64) meter.WattHour {
	switch {
	case by == 0 || s.End <= by:
		return s.Room
	case s.Start >= by:
		return 0
	}
	return meter.WattHour(int64(s.Room) * (by - s.Start) / (s.End - s.Start)) // < 2e5 Wh * 8 days in ms
}

// At returns the share that time ms falls into.
func (p *Plan) At(ms int64) (Share, bool) {
	for _, s := range p.Shares {
		if ms >= s.Start && ms < s.End {
			return s, true
		}
	}
	return Share{}, false
}

// Next returns the first share that begins after time ms.
func (p *Plan) Next(ms int64) (Share, bool) {
	for _, s := range p.Shares {
		if s.Start > ms {
			return s, true
		}
	}
	return Share{}, false
}

// Room is the energy of a power over some milliseconds, rounded down.
func Room(p meter.Watt, ms int64) meter.WattHour {
	if p <= 0 || ms <= 0 {
		return 0
	}
	return meter.WattHour(int64(p) * ms / 3_600_000)
}
