// Package discharge decides how much energy a bidirectional charger takes out
// of a vehicle. It is pure: Step takes state, measurements, contracts and the
// monotonic time, and returns the power to order.
//
//	   battery of the vehicle
//	┌──────────────────────────┐ full
//	│ tradable: what the owner │
//	│ sells (V2V) or uses (V2H)│
//	├──────────────────────────┤ floor: the owner's, in 1/1000 or in Wh,
//	│ never touched            │ and what the next departure needs
//	└──────────────────────────┘
//
// # Who may
//
// Nobody, unless an installer has signed that grid protection is fitted and
// the network operator has agreed (board.Statement), and the owner has set a
// floor. The most power is the least of statement, configuration, device and
// circuit.
//
// # Contracts
//
// A firm contract promises energy within a slot (package chain/ledger settles
// it: the seller owes (retail - price) for each Wh that is short). Step spreads
// what is left of the slot's contracts over what is left of the slot; what is
// metered beyond the session's export register at the slot's start counts as
// delivered. At the slot's end it reports each shortfall with its cause. When
// the floor is reached, the vehicle goes or the device refuses, it says at once
// that offers of this vehicle have to be withdrawn.
//
// # The house
//
// Between contracts, and below the rest of the power, a vehicle may cover what
// its house draws (V2H), never more: what would flow out into the network
// unsold is not discharged.
package discharge

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// Limits and times.
const (
	MaxContracts = 64
	// minFloor is kept whatever the owner says: an empty traction battery
	// ages, and a car that does not start helps nobody.
	minFloor = 100
	// hysteresis in 1/1000 keeps a vehicle at its floor from being started
	// again by the noise of its own gauge.
	hysteresis = 20
)

// Rules are what owner, installer and device allow.
type Rules struct {
	Allowed  bool           // an installer's statement is valid
	MaxPower meter.Watt     // out of the vehicle, the least of all ratings
	MinPower meter.Watt     // below it the device does not convert; 0: no such limit
	Capacity meter.WattHour // of the vehicle's battery
	Floor    int64          // 1/1000, at least 100
	FloorWh  meter.WattHour // and in Wh
	House    bool           // V2H
	// Efficiency in 1/1000 from the battery to the meter; 0: 900.
	Efficiency int64
	StaleAfter time.Duration // an older state of charge or site reading does not count
}

// Check reports what is wrong with the rules.
func (r *Rules) Check() error {
	switch {
	case r.Floor < minFloor || r.Floor > 1000:
		return fmt.Errorf("discharge: a floor of %d is outside %d..1000", r.Floor, minFloor)
	case r.Capacity <= 0 || r.MaxPower <= 0 || r.FloorWh < 0 || r.FloorWh > r.Capacity || r.MinPower < 0 || r.MinPower > r.MaxPower:
		return fmt.Errorf("discharge: capacity %d Wh, floor %d Wh, power %d..%d W", r.Capacity, r.FloorWh, r.MinPower, r.MaxPower)
	case r.Efficiency < 0 || r.Efficiency > 1000:
		return fmt.Errorf("discharge: an efficiency of %d is outside 0..1000", r.Efficiency)
	}
	return nil
}

// floor in 1/1000, the higher of the owner's two.
func (r *Rules) floor() int64 {
	wh := (int64(r.FloorWh)*1000 + int64(r.Capacity) - 1) / int64(r.Capacity)
	return max(minFloor, r.Floor, wh)
}

// Contract is energy promised to one buyer within the running slot.
type Contract struct {
	ID string
	Wh meter.WattHour
}

// Input is what is known.
type Input struct {
	Ready  bool  // the vehicle is connected, the session is open, interlocks are closed
	SoC    int64 // of the vehicle, 1/1000
	SoCAt  time.Duration
	Export meter.WattHour // the session meter's export register
	// Need is the energy that the next departure needs in the battery, beyond
	// the floor; it cannot be sold.
	Need meter.WattHour
	// Slot is the running slot, its contracts in the order in which they are
	// served, and the time it has left.
	Slot      int64
	Left      time.Duration
	Contracts []Contract
	// Site is the power at the house's connection, import positive, with the
	// vehicle's own; Vehicle is what it gives now (positive out of the car).
	Site    meter.Watt
	SiteAt  time.Duration
	Vehicle meter.Watt
	// Room is the most that circuits and the utility let flow back.
	Room meter.Watt
}

// Shortfall is what one contract of an ended slot is missing.
type Shortfall struct {
	Contract  string
	Slot      int64
	Promised  meter.WattHour
	Delivered meter.WattHour
	Cause     string
}

// Output is what to do.
type Output struct {
	Power    meter.Watt // out of the vehicle; 0: none
	Why      string
	Tradable meter.WattHour // at the meter, above floor and need
	// Withdraw says that no more can be promised; Cause is why.
	Withdraw bool
	Cause    string
	Short    []Shortfall
}

// State is what Step remembers. The zero value is the start.
type State struct {
	slot      int64
	begun     bool
	base      meter.WattHour // export register at the slot's start
	last      meter.WattHour
	contracts []Contract
	atFloor   bool
	cause     string // the latest that kept it from delivering in this slot
}

// Begun returns the running slot and the export register at its begin, for
// Resume after a restart; ok is false before the first Step.
func (s *State) Begun() (slot int64, base meter.WattHour, ok bool) { return s.slot, s.base, s.begun }

// Resume is the state that goes on with a slot of the time before a restart:
// what was delivered in it is not delivered again.
func Resume(slot int64, base meter.WattHour) State {
	return State{slot: slot, base: base, last: base, begun: true}
}

// Tradable is the energy above floor and need, at the meter.
func Tradable(r Rules, soc int64, need meter.WattHour) meter.WattHour {
	above := int64(r.Capacity)*(soc-r.floor())/1000 - int64(max(0, need))
	eff := r.Efficiency
	if eff == 0 {
		eff = 900
	}
	return meter.WattHour(max(0, above*eff/1000))
}

// Step decides at monotonic time now.
func Step(r Rules, s State, in Input, now time.Duration) (State, Output) {
	var out Output
	if len(in.Contracts) > MaxContracts {
		in.Contracts = in.Contracts[:MaxContracts] // the ledger allows no more for one vehicle
	}
	if s.begun && in.Slot != s.slot {
		out.Short = s.close()
	}
	if !s.begun || in.Slot != s.slot {
		s.slot, s.base, s.begun, s.cause = in.Slot, in.Export, true, ""
	}
	s.last, s.contracts = max(in.Export, s.base), in.Contracts

	stop := func(cause string) (State, Output) {
		s.cause = cause
		out.Why, out.Withdraw, out.Cause = cause, true, cause
		return s, out
	}
	known := in.SoCAt <= now && now-in.SoCAt <= r.StaleAfter
	switch {
	case !r.Allowed:
		return stop("no installer has allowed discharging")
	case !in.Ready:
		return stop("no vehicle is ready")
	case !known:
		return stop("the vehicle's state of charge is not known")
	}
	out.Tradable = Tradable(r, in.SoC, in.Need)
	switch {
	case out.Tradable == 0:
		s.atFloor = true
	case in.SoC >= r.floor()+hysteresis:
		s.atFloor = false
	}
	if s.atFloor {
		return stop("the owner's floor is reached")
	}

	var promised meter.WattHour
	for _, c := range in.Contracts {
		promised += c.Wh
	}
	most := min(r.MaxPower, max(0, in.Room))
	owed := max(0, promised-(s.last-s.base))
	firm := meter.Watt(0)
	if owed > 0 && in.Left > 0 {
		// Rounded up, so that the last Wh is not left over.
		firm = meter.Watt((int64(owed)*int64(time.Hour) + int64(in.Left) - 1) / int64(in.Left))
	}
	want, why := firm, "delivers what was promised"
	if r.House && in.SiteAt <= now && now-in.SiteAt <= r.StaleAfter {
		// What the house would draw without the vehicle, on top of what is
		// sold: sold energy flows out.
		if own := max(0, in.Site+in.Vehicle); own > 0 {
			want += own
			if firm == 0 {
				why = "covers the house"
			}
		}
	}
	if want > most {
		want, why = most, "as much as it may"
		if most < firm {
			s.cause = "the power is limited"
		}
	}
	switch {
	case want == 0:
		out.Why = "nothing is promised"
	case want < r.MinPower && firm == 0:
		want, out.Why = 0, "too little for the converter"
	case want < r.MinPower:
		want, out.Why = r.MinPower, why // early rather than short
	default:
		out.Why = why
	}
	if want > most { // MinPower above what is left of it
		want, out.Why = 0, "too little for the converter"
	}
	out.Power = want
	return s, out
}

// close accounts the ended slot: contracts are served in their order.
func (s *State) close() (short []Shortfall) {
	left := s.last - s.base
	for _, c := range s.contracts {
		given := min(left, c.Wh)
		left -= given
		if given < c.Wh {
			cause := s.cause
			if cause == "" {
				cause = "less was metered than ordered"
			}
			short = append(short, Shortfall{c.ID, s.slot, c.Wh, given, cause})
		}
	}
	return short
}
