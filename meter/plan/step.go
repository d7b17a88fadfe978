package plan

import (
	"fmt"
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
	// worthTelling is the change of a shortfall that is reported again.
	worthTelling meter.WattHour = 100
)

// Order is a session's goal, from its first energy on.
type Order struct {
	Goal
	Phases int // that the charger uses
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
			out.Why = "the plan charges from " + clock(next.Start)
		case s.Plan.Short > 0:
			out.Why = "nothing more is offered at the driver's price"
		default:
			out.Why = "nothing is planned"
		}
		return s, out
	}
	// Spread what the share has left over the time it has left.
	w := meter.Watt((int64(at.Wh)*3_600_000 + (at.End - s.from(at)) - 1) / max(1, at.End-s.from(at)))
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

func (s *State) make(o Order, in Input, left meter.WattHour) {
	slots := make([]Slot, 0, len(in.Offers))
	for _, v := range in.Offers {
		if v.End <= in.Now {
			continue
		}
		v.Start = max(v.Start, in.Now)
		v.Room = min(MaxWh, Room(in.Power, v.End-v.Start))
		slots = append(slots, v)
	}
	g := o.Goal
	g.Wh = left
	p, err := Make(slots, g)
	s.err = ""
	if err != nil {
		s.err = err.Error()
	}
	s.Plan, s.made, s.version, s.power = p, in.Now, in.Version, in.Power
}

// report says a shortfall once, and again when it changes.
func (s *State) report(o Order) string {
	p := &s.Plan
	switch d := p.Short - s.short; {
	case s.err != "":
		return ""
	case p.Short == 0 && s.told:
		s.told, s.short = false, 0
		return fmt.Sprintf("%s will be charged by %s after all", kWh(o.Wh), clock(o.By))
	case p.Short == 0 || (s.told && d < worthTelling && -d < worthTelling):
		return ""
	}
	s.told, s.short = true, p.Short
	return p.Report()
}

// Report says what is missing at the deadline and why, or nothing.
func (p *Plan) Report() string {
	if p.Short == 0 {
		return ""
	}
	line := kWh(p.Short) + " short"
	if p.By > 0 {
		line += " at " + clock(p.By)
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

// clock writes a time of day in UTC: a core package knows no zone. People's
// own clocks are the page's and the command line's.
func clock(ms int64) string { return time.UnixMilli(ms).UTC().Format("15:04") + " UTC" }

func kWh(e meter.WattHour) string {
	return fmt.Sprintf("%d.%d kWh", e/1000, e%1000/100)
}

func price(p chain.NanoPerWh) string {
	return fmt.Sprintf("%d.%04d per kWh", p/1_000_000, p%1_000_000/100)
}
