package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// MinCurrent is the least a vehicle can be offered, IEC 61851-1.
const MinCurrent meter.MilliAmpere = 6_000

const (
	volt = 230 // nominal, line to neutral

	// replanEach is how old a plan may grow: energy that did not flow as
	// planned moves to other slots.
	replanEach = int64(time.Minute / time.Millisecond)
	// margin in 1/100 of the power is kept back when slots are chosen, so that
	// a car or a fuse that gives a little less does not cost the deadline. It
	// is used where the goal is out of reach without it.
	margin = 5
	// worthTelling is the change of a shortfall that is reported again.
	worthTelling meter.WattHour = 100
)

// Order is a session's goal, from its first energy on.
type Order struct {
	Goal
	Phases int // that the charger uses
	// Zone is how many minutes people's clocks are ahead of UTC; for words
	// only.
	Zone int
}

// Input is what is known at the moment of a step.
type Input struct {
	Now int64 // Unix ms; it plans, it never guards
	// Done is the session's energy so far.
	Done meter.WattHour
	// Power is the most that charger, fuses and utility let through now.
	Power meter.Watt
	// Offers are the slots' tiers from now on; Room is filled in from Power.
	// Version changes whenever they do.
	Offers  []Slot
	Version uint64
}

// State is a plan under way. The zero value has none yet.
type State struct {
	Plan    Plan
	version uint64
	power   meter.Watt
	made    int64
	slot    int64          // start of the running slot
	before  meter.WattHour // session's energy at its start
	told    bool
	short   meter.WattHour
	err     string
}

// Output is what to do now.
type Output struct {
	Current   meter.MilliAmpere // per phase: 0 or MinCurrent and more
	Why       string
	Replanned bool
	// Report is one line for people, when the shortfall is new or another;
	// "": nothing new.
	Report string
}

// Step makes a new plan where the old one no longer fits, and returns the
// current of this moment.
//
// The current slot's share counts from the moment of the plan: a new plan is
// made of what is still to be charged and of the time that is left.
func Step(o Order, s State, in Input) (State, Output) {
	var out Output
	left := max(0, o.Wh-in.Done)
	if start := running(in); start != s.slot || s.made == 0 {
		s.slot, s.before = start, in.Done
	}
	if s.made == 0 || in.Version != s.version || in.Power != s.power || in.Now-s.made >= replanEach || in.Now < s.made || s.ended(in.Now) {
		s.make(o, in, left)
		out.Replanned = true
		out.Report = s.report(o)
	}
	switch {
	case left == 0:
		out.Why = "the energy is charged"
		return s, out
	case s.err != "":
		// Without a plan the deadline goes first.
		out.Current, out.Why = most(in.Power, o.Phases), "no plan: "+s.err
		return s, out
	case o.By > 0 && in.Now >= o.By:
		out.Why = "the departure is over"
		return s, out
	}
	at, ok := s.Plan.At(in.Now)
	if !ok {
		next, more := s.Plan.Next(in.Now)
		switch {
		case more:
			out.Why = "the plan charges from " + clock(next.Start, o.Zone)
		case s.Plan.Short > 0:
			out.Why = "nothing more is offered at the driver's price"
		default:
			out.Why = "nothing is planned"
		}
		return s, out
	}
	// Spread what the share has left over the time it has left.
	w := meter.Watt((int64(at.Wh)*3_600_000 + (at.End - s.from(at)) - 1) / max(1, at.End-s.from(at)))
	if w*100 >= in.Power*(100-margin)-100 {
		w = max(w, in.Power) // a full slot: the margin is for surprises
	}
	i := meter.MilliAmpere((int64(w)*1000 + int64(volt*o.Phases) - 1) / int64(volt*o.Phases))
	out.Current, out.Why = max(i, MinCurrent), "its plan"
	return s, out
}

func (s *State) from(at Share) int64 { return max(at.Start, s.made) }

// ended tells whether a share of the plan was over at ms but not when the
// plan was made: the next one begins with what was really charged.
func (s *State) ended(ms int64) bool {
	for _, h := range s.Plan.Shares {
		if h.End <= ms && h.End > s.made {
			return true
		}
	}
	return false
}

// running returns the start of the slot of this moment.
func running(in Input) int64 {
	for _, v := range in.Offers {
		if in.Now >= v.Start && in.Now < v.End {
			return v.Start
		}
	}
	return 0
}

func (s *State) make(o Order, in Input, left meter.WattHour) {
	s.made, s.version, s.power, s.err = in.Now, in.Version, in.Power, ""
	g := o.Goal
	g.Wh = left
	var slots []Slot
	for _, v := range in.Offers {
		if v.End <= in.Now {
			continue
		}
		if v.Start <= in.Now {
			v.Start, v.Tiers = in.Now, less(v.Tiers, in.Done-s.before)
		}
		slots = append(slots, v)
	}
	for _, keep := range []meter.Watt{100 - margin, 100} {
		for i := range slots {
			slots[i].Room = min(MaxWh, Room(in.Power*keep/100, slots[i].End-slots[i].Start))
		}
		var err error
		if s.Plan, err = Make(slots, g); err != nil {
			s.err = err.Error()
			return
		}
		if s.Plan.Short == 0 {
			return
		}
	}
}

// less takes from tiers, the cheapest first, what has been charged of them.
func less(tiers []Tier, done meter.WattHour) []Tier {
	out := slices.Clone(tiers)
	slices.SortStableFunc(out, func(a, b Tier) int { return cmp.Compare(a.Price, b.Price) })
	for i := range out {
		if t := &out[i]; t.Wh != Unlimited {
			taken := min(t.Wh, max(0, done))
			t.Wh -= taken
			done -= taken
		}
	}
	return out
}

// report says a shortfall once, and again when it changes.
func (s *State) report(o Order) string {
	p := &s.Plan
	switch d := p.Short - s.short; {
	case s.err != "":
		return ""
	case p.Short == 0 && s.told:
		s.told, s.short = false, 0
		return fmt.Sprintf("%s will be charged by %s after all", kWh(o.Wh), clock(o.By, o.Zone))
	case p.Short == 0 || (s.told && d < worthTelling && -d < worthTelling):
		return ""
	}
	s.told, s.short = true, p.Short
	return p.Report(o.Zone)
}

// Report says what is missing at the deadline and why, or nothing. Clocks are
// zone minutes ahead of UTC.
func (p *Plan) Report(zone int) string {
	if p.Short == 0 {
		return ""
	}
	line := kWh(p.Short) + " short"
	if p.By > 0 {
		line += " at " + clock(p.By, zone)
	}
	switch {
	case p.ByPower == p.Short:
		return line + ": the time does not suffice at the power there is"
	case p.ByPower == 0:
		return line + ": nothing more is offered at the driver's price of " + price(p.MaxPrice) + "; it would take " + price(p.Needs)
	}
	return line + ": " + kWh(p.ByPower) + " for lack of power, the rest would take a price of " + price(p.Needs)
}

// most is the current of a power, or nothing below the minimum.
func most(p meter.Watt, phases int) meter.MilliAmpere {
	i := meter.MilliAmpere(int64(p) * 1000 / int64(volt*phases))
	if i < MinCurrent {
		return 0
	}
	return i
}

// clock writes a time of day of somebody whose clock is zone minutes ahead.
func clock(ms int64, zone int) string {
	return time.UnixMilli(ms).UTC().Add(time.Duration(zone) * time.Minute).Format("15:04")
}

func kWh(e meter.WattHour) string {
	if e < 1000 { // a tenth would show nothing of a small one
		return fmt.Sprintf("0.%03d kWh", e)
	}
	return fmt.Sprintf("%d.%d kWh", e/1000, e%1000/100)
}

func price(p chain.NanoPerWh) string {
	return fmt.Sprintf("%d.%04d per kWh", p/1_000_000, p%1_000_000/100)
}
