// Package setpoint decides how much current a charger may offer. It is pure:
// Step takes the state, the measurements and the monotonic time.
//
//	            ┌ off      0 A
//	mode ───────┤ now      all that the limits allow
//	            ├ market   all that the limits allow, while energy is authorised
//	            │          and, for a car with a departure, when its plan says so
//	            └ surplus  what would otherwise flow to the network
//	                │
//	                ▼  with delays, so that a cloud does not switch a contactor
//	limits: charger's rating, house fuse less what the house draws
//	                │
//	                ▼
//	          0 A or 6..32 A (IEC 61851-1 has nothing between)
//
// Import is positive. A house that exports 4.1 kW while the car takes 2 kW has
// a surplus of 6.1 kW: on one phase 26 A, on three 8 A.
//
// # The house's battery
//
// What a battery takes can be the car's instead, and what it gives must not
// be: otherwise the car empties the battery at night. Rules.BatteryFirst lets
// the battery fill up to a state of charge before the car gets a share.
//
// # Several chargers
//
// Chargers in surplus mode see what is left after the minimum of those that
// are on (Input.Others); package circuit shares what is above the minimum.
//
// # One phase or three
//
// Switch (StepSwitch) changes the number of phases where an installer has
// allowed it: 1.4 kW of sun are nothing on three phases and 6 A on one. It
// never switches under current: stop, see that nothing flows and the vehicle
// is not charging, wait, switch, read back.
package setpoint

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// MinCurrent is the least a vehicle can be offered.
const MinCurrent meter.MilliAmpere = 6_000

// nominal line-to-neutral voltage, IEC 60038
const volt = 230

// Mode of a charger.
type Mode uint8

// Modes. The zero value is off.
const (
	Off Mode = iota
	Now
	Surplus
	Market
)

var modes = [...]string{Off: "off", Now: "now", Surplus: "surplus", Market: "market"}

func (m Mode) String() string { return modes[m] }

// ParseMode is the inverse of Mode.String.
func ParseMode(s string) (Mode, error) {
	for i, n := range modes {
		if n == s {
			return Mode(i), nil
		}
	}
	return 0, fmt.Errorf("unknown mode %q (off, now, surplus, market)", s)
}

// Rules are the limits of one charger.
type Rules struct {
	MaxCurrent meter.MilliAmpere // per phase, of the charger
	Fuse       meter.MilliAmpere // per phase, of the house; 0: not watched
	Phases     int               // 1 or 3
	// BatteryFirst is the state of charge in 1/1000 up to which the house's
	// battery goes before the car; 0: the car goes first.
	BatteryFirst int64
	OnDelay      time.Duration // surplus must last so long
	OffDelay     time.Duration // and may be missing so long
}

// Input is what is known at the moment of a step.
type Input struct {
	Mode       Mode
	Authorised bool // energy for this session is bought
	// SiteKnown says whether Site, House and Charger can be relied on.
	SiteKnown bool
	Site      meter.MilliWatt   // at the house's connection, charger included
	House     meter.MilliAmpere // highest phase there, charger included
	Charger   meter.MilliWatt   // of this charger
	Draw      meter.MilliAmpere // highest phase of this charger
	// Limit is a person's own limit; 0: none.
	Limit meter.MilliAmpere
	// Phases in use, where they can be switched; 0: Rules.Phases.
	Phases int
	// Battery is the power of the house's battery, charging positive, and SoC
	// its state of charge in 1/1000 (unknown: 0).
	Battery meter.MilliWatt
	SoC     int64
	// Others is the least power of other chargers that are on by surplus.
	Others meter.MilliWatt
	// Planned tells that this session has a plan; then Plan is the current of
	// this moment and PlanWhy its reason.
	Planned bool
	Plan    meter.MilliAmpere
	PlanWhy string
}

// Spare is the power that would flow to the network, or into a battery that
// goes after the car, if no charger were on: charger is what all chargers in
// surplus mode draw.
func Spare(r Rules, in Input, charger meter.MilliWatt) meter.MilliWatt {
	spare := max(0, charger) - in.Site
	if in.Battery < 0 || in.SoC >= r.BatteryFirst {
		spare += in.Battery
	}
	return spare
}

// MinPower is what a charger takes at least on that many phases.
func MinPower(phases int) meter.MilliWatt {
	return meter.MilliWatt(int64(MinCurrent) * volt * int64(phases))
}

func (in *Input) phases(r Rules) int {
	if in.Phases > 0 {
		return in.Phases
	}
	return r.Phases
}

// State remembers since when surplus is there or missing.
type State struct {
	Limit meter.MilliAmpere // what was decided last
	since time.Duration
	timed bool
}

// Step returns the current to offer, 0 or MinCurrent and more, and in words
// why it is not more.
func Step(r Rules, s State, in Input, now time.Duration) (State, string) {
	allowed, why := ceiling(r, in)
	want := allowed
	switch in.Mode {
	case Off:
		return State{}, "charging is switched off"
	case Market:
		if !in.Authorised {
			return State{}, "no energy is bought yet"
		}
		if in.Planned && in.Plan < want {
			want, why = in.Plan, in.PlanWhy
		}
	case Surplus:
		want, why = s.surplus(r, in, allowed, why, now)
	case Now:
	default:
		panic(fmt.Sprintf("setpoint: mode %d", in.Mode))
	}
	if want < MinCurrent {
		want = 0
	}
	s.Limit = want
	return s, why
}

// ceiling is what rating, person and fuse allow. Without a site meter a
// watched fuse allows the least that keeps a vehicle charging: the session's
// own rule for stale meters ends it soon.
func ceiling(r Rules, in Input) (meter.MilliAmpere, string) {
	limit, why := r.MaxCurrent, "the charger's rating"
	if in.Limit > 0 && in.Limit < limit {
		limit, why = in.Limit, "the limit set by a person"
	}
	if r.Fuse > 0 {
		room := MinCurrent
		if in.SiteKnown {
			room = r.Fuse - max(0, in.House-in.Draw)
		}
		if room < limit {
			limit, why = max(0, room), "the house's fuse"
		}
	}
	return limit, why
}

func (s *State) surplus(r Rules, in Input, allowed meter.MilliAmpere, why string, now time.Duration) (meter.MilliAmpere, string) {
	if !in.SiteKnown {
		// The session's rule for stale readings ends it: 6 A, then off.
		s.timed = false
		if s.Limit >= MinCurrent {
			return min(allowed, MinCurrent), "no reading from the site meter"
		}
		return 0, "no reading from the site meter"
	}
	spare := Spare(r, in, in.Charger) - in.Others
	want := meter.MilliAmpere(int64(spare) / int64(volt*in.phases(r)))
	if want > allowed {
		want = allowed
	} else {
		why = "the surplus"
	}
	if allowed < MinCurrent {
		s.timed = false
		return 0, why
	}
	on := s.Limit >= MinCurrent
	enough := want >= MinCurrent
	if on == enough {
		s.timed = false
		if !on {
			return 0, "not enough surplus"
		}
		return want, why
	}
	if !s.timed {
		s.timed, s.since = true, now
	}
	if on { // missing: keep the least for a while
		if now-s.since < r.OffDelay {
			return MinCurrent, "the surplus is short"
		}
		s.timed = false
		return 0, "not enough surplus"
	}
	if now-s.since < r.OnDelay {
		return 0, "waiting for the surplus to last"
	}
	s.timed = false
	return want, why
}
