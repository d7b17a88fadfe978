package setpoint

import (
	"time"

	"github.com/joulegate/joulegate/meter"
)

// SwitchRules say when a charger changes between one and three phases.
// Allowed is the word of an installer: not every vehicle, contactor and
// network operator bears it.
type SwitchRules struct {
	Allowed  bool
	UpDelay  time.Duration // three phases must be worth it for so long
	DownLate time.Duration // and one phase for so long
	Rest     time.Duration // least time between two changes
}

// Times of the change itself.
const (
	// SwitchPause is the least time without current before the contactors of
	// the phases move; vehicles have been damaged by less.
	SwitchPause = 10 * time.Second
	// SwitchTimeout ends an attempt: the device does not say what it does.
	SwitchTimeout = time.Minute
	// SwitchBelow is the current that counts as none.
	SwitchBelow meter.MilliAmpere = 1_000
	// upMargin is how much more than the least of three phases must be there,
	// so that the next cloud does not undo the change.
	upMargin meter.MilliWatt = 500_000
)

// SwitchStage is a step of a change.
type SwitchStage uint8

// Stages. The zero value: no change is under way.
const (
	Steady    SwitchStage = iota
	Stopping              // 0 A is offered; current may still flow
	Pausing               // nothing flows; the pause runs
	Switching             // ordered; waiting to read it back
	Broken                // the device did not do as it was told; a person must look
)

func (s SwitchStage) String() string {
	return [...]string{"steady", "stopping", "pausing", "switching", "broken"}[s]
}

// SwitchInput is what is known.
type SwitchInput struct {
	Want       int               // phases that are wanted: 1 or 3; 0: as they are
	Phases     int               // read back from the device; 0: unknown
	Current    meter.MilliAmpere // highest phase
	CurrentAt  time.Duration     // when it was read
	Charging   bool              // the vehicle is in state C or D, or its state is unknown
	ChargingAt time.Duration     // when that was seen
}

// SwitchState is a change under way. The zero value is a charger that has not
// been switched yet.
type SwitchState struct {
	Stage   SwitchStage
	Target  int
	at      time.Duration // when the stage began
	begun   time.Duration // when the change began
	changed time.Duration // end of the last change
	ever    bool
	wantT   time.Duration
	want    int
}

// WantPhases turns a surplus into a wish, with the delays of the rules.
func WantPhases(r SwitchRules, s SwitchState, spare meter.MilliWatt, phases int, now time.Duration) (SwitchState, int) {
	want := phases
	switch {
	case phases == 3 && spare < MinPower(3):
		want = 1
	case phases == 1 && spare >= MinPower(3)+upMargin:
		want = 3
	}
	if want == phases || want != s.want {
		s.want, s.wantT = want, now
	}
	delay := r.DownLate
	if want == 3 {
		delay = r.UpDelay
	}
	if want == phases || now-s.wantT < delay {
		return s, phases
	}
	return s, want
}

// StepSwitch moves a change on. While hold is true nothing may be offered;
// order is the number of phases to command now, or 0.
//
//	Steady ─want─► Stopping ─< 1 A, not C─► Pausing ─10 s─► Switching ─read back─► Steady
//	                  └──────── time-out ───────┴──────────────┴──► Broken
func StepSwitch(r SwitchRules, s SwitchState, in SwitchInput, now time.Duration) (_ SwitchState, hold bool, order int, why string) {
	enter := func(st SwitchStage) { s.Stage, s.at = st, now }
	quiet := in.Current < SwitchBelow && in.CurrentAt > s.begun && !in.Charging && in.ChargingAt > s.begun
	switch s.Stage {
	case Steady:
		if !r.Allowed || in.Phases == 0 || (in.Want != 1 && in.Want != 3) || in.Want == in.Phases || (s.ever && now-s.changed < r.Rest) {
			return s, false, 0, ""
		}
		s.Target, s.begun = in.Want, now
		enter(Stopping)
	case Stopping:
		if quiet {
			enter(Pausing)
		}
	case Pausing:
		switch {
		case !quiet: // somebody started it again
			enter(Stopping)
		case now-s.at >= SwitchPause:
			enter(Switching)
			return s, true, s.Target, "switching phases"
		}
	case Switching:
		if in.Phases == s.Target {
			s.Stage, s.ever, s.changed = Steady, true, now
			return s, false, 0, ""
		}
	case Broken:
		return s, true, 0, "the phases did not switch: a person has to look"
	}
	if now-s.begun > SwitchTimeout {
		if s.Stage == Switching {
			enter(Broken)
		} else { // it never stopped: leave it as it is
			s.Stage, s.ever, s.changed = Steady, true, now
			return s, false, 0, ""
		}
	}
	return s, true, 0, "pausing to switch phases"
}

// Repaired takes a person's word that a broken switch is in order.
func Repaired(s SwitchState) SwitchState { return SwitchState{changed: s.changed, ever: s.ever} }
