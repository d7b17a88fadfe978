// Package session decides when a charger is energised.
//
// It is a pure state machine: Step takes a state, an event and the monotonic
// time, and returns the next state and what has to be done. It has no clock,
// no disk and no pin; package board/station gives it events and carries out
// its actions.
//
//	              Open                Ledger ok
//	     ┌──────┐      ┌──────┐      ┌────────────┐
//	────►│ Idle ├─────►│ Held ├─────►│ Authorised ├──┐ all conditions, then
//	     └──▲───┘      └─┬──┬─┘      └──────┬─────┘  │ RecordBegin, BeginRecorded,
//	        │   refused  │  │ limit         │        │ Close
//	        ◄────────────┘  │               │        ▼
//	        │               │               │   ┌──────────┐  condition lost  ┌───────────┐
//	        │               │   stop, limit │   │ Charging │◄────────────────►│ Suspended │◄── Resume
//	        │               │               │   └────┬─────┘  all conditions  └─────┬─────┘
//	        │               ▼               ▼        ▼ stop, hold used, full, gone   │
//	        │             ┌────────────────────────────┐                             │
//	        │             │ Stopping: 0 A, < 1 A, open ◄─────────────────────────────┘
//	        │             └──────────────┬─────────────┘
//	        │  StopRecorded      ┌───────▼──┐  final register, RecordStop
//	        └────────────────────┤ Metered  │
//	                             └──────────┘
//
// Beside the phase a Fault may be latched: it opens the relay at once, ends
// the session, and refuses the next one until a person clears it.
//
// # Conditions
//
// The relay closes, and stays closed, only while all of these hold:
//
//   - the ledger holds the driver's money, and the begin register is on disk;
//   - the session meter, the site meter and the pilot were heard within
//     Rules.StaleAfter, and the meter's reading is good;
//   - no emergency stop, no latched fault, the contactor obeys;
//   - the control loop ticks;
//   - a vehicle is connected and the setpoint is at least 6 A;
//   - the hold pays for what can still flow before the relay is open.
//
// # How it stops
//
// An ordinary stop offers 0 A, waits until less than 1 A flows, at most
// Rules.StopWait, and then opens, so that the contactor does not cut under
// load. Emergency stop, faults and a stalled loop open at once. When readings
// grow stale the offer falls to 6 A, and Rules.StaleOff later the relay opens.
package session

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Phase is where a session stands, seen from the device.
type Phase uint8

// Phases.
const (
	Idle       Phase = iota // no session
	Held                    // waiting for the ledger to hold the money
	Authorised              // held; waiting for the conditions
	Charging                // relay closed
	Suspended               // begun, relay open
	Stopping                // on the way to the last register
	Metered                 // last register known, not yet on disk
)

var phases = [...]string{Idle: "idle", Held: "held", Authorised: "authorised", Charging: "charging", Suspended: "suspended", Stopping: "stopping", Metered: "metered"}

func (p Phase) String() string {
	if int(p) >= len(phases) {
		return fmt.Sprintf("phase(%d)", uint8(p))
	}
	return phases[p]
}

// Fault is a latched fault. Only a person clears it.
type Fault uint8

// Faults.
const (
	NoFault     Fault = iota
	Weld              // commanded open and current flows, or the contact says closed
	OverCurrent       // more than the charger's rating flows
	Contactor         // commanded closed and the contact says open
)

var faults = [...]string{NoFault: "", Weld: "contactor welded", OverCurrent: "over-current", Contactor: "contactor does not close"}

func (f Fault) String() string { return faults[f] }

// Thresholds of the charging rules.
const (
	MinCurrent  meter.MilliAmpere = 6_000 // least a vehicle can be offered, IEC 61851-1
	StopBelow   meter.MilliAmpere = 1_000 // the contactor may open without wear
	WeldAbove   meter.MilliAmpere = 500   // flows through an open contactor
	WeldAfter                     = 2 * time.Second
	OverAfter                     = 5 * time.Second // above 110 % of the rating
	AnswerAfter                   = time.Second     // for an auxiliary contact to follow
	FinalWait                     = 5 * time.Second // for a reading taken after the relay opened

	// FullBelow is what a vehicle draws at most when it is full. It is well
	// below 6 A because one that is offered 6 A may take somewhat less.
	FullBelow meter.MilliAmpere = 2_000

	// nominal voltage + 10 % (EN 50160), for the most that can flow
	maxVolt = 253
)

// Rules are the limits of one charger. They do not change while it runs.
type Rules struct {
	MaxCurrent  meter.MilliAmpere // per phase
	Phases      int
	Pilot       bool // the vehicle's state is known from a charge controller
	Site        bool // a site meter must be fresh
	StaleAfter  time.Duration
	StaleOff    time.Duration
	StopWait    time.Duration
	MinOff      time.Duration
	HoldLimit   time.Duration
	StartLimit  time.Duration
	FullAfter   time.Duration
	ResumeLimit time.Duration
	LoopLimit   time.Duration // longer between two steps: the loop was stalled
	Horizon     time.Duration // from a reading until the relay it opens is open
}

// Contact is the state of an optional auxiliary contact.
type Contact uint8

// Contact states. The zero value means that none is fitted.
const (
	NotFitted Contact = iota
	ContactOpen
	ContactClosed
)

// Event is something that happened. Tick is the one that must keep coming.
type Event interface{ event() }

// Events.
type (
	// Open starts a session whose SessionOpen record is on disk.
	Open struct {
		ID    chain.ID
		MaxWh meter.WattHour
	}
	// Resume continues a session after a restart; the relay is open.
	Resume struct{ Saved }
	// Ledger says whether the ledger holds money for the session. OK false
	// means that it refused, or that the session is over there.
	Ledger struct {
		ID chain.ID
		OK bool
	}
	// Reading is what the session meter said at monotonic time At.
	Reading struct {
		Good    bool
		Import  meter.MilliWattHour
		Current meter.MilliAmpere // highest phase
		At      time.Duration
	}
	// SiteReading is a good reading of the house's meter.
	SiteReading struct{ At time.Duration }
	// Vehicle is the pilot's state.
	Vehicle struct {
		State drivers.VehicleState
		At    time.Duration
	}
	// Inputs are the safety contacts. A contact that cannot be read counts as
	// EStop.
	Inputs struct {
		EStop    bool
		Feedback Contact
	}
	// Output is the relay's output read back; OK false: it cannot be driven
	// or read.
	Output struct{ Closed, OK bool }
	// Setpoint is the current to offer: 0 or at least MinCurrent.
	Setpoint struct{ Limit meter.MilliAmpere }
	// Stop asks for an ordinary stop.
	Stop struct{ Reason chain.StopReason }
	// Journal says whether records can be written.
	Journal struct{ OK bool }
	// BeginRecorded says that the begin register is on disk.
	BeginRecorded struct{}
	// StopRecorded says that the last register is on disk.
	StopRecorded struct{}
	// Stalled says that the watchdog opened the relay.
	Stalled struct{}
	// Drain suspends for good: the program ends.
	Drain struct{}
	// ClearFault is a person's word that the fault is repaired.
	ClearFault struct{}
	// Tick is the passing of time.
	Tick struct{}
)

func (Open) event()          {}
func (Resume) event()        {}
func (Ledger) event()        {}
func (Reading) event()       {}
func (SiteReading) event()   {}
func (Vehicle) event()       {}
func (Inputs) event()        {}
func (Output) event()        {}
func (Setpoint) event()      {}
func (Stop) event()          {}
func (Journal) event()       {}
func (BeginRecorded) event() {}
func (StopRecorded) event()  {}
func (Stalled) event()       {}
func (Drain) event()         {}
func (ClearFault) event()    {}
func (Tick) event()          {}

// ActionKind says what to do.
type ActionKind uint8

// Actions, in the order in which Step returns them.
const (
	OpenRelay   ActionKind = 1 + iota
	CloseRelay             //
	Offer                  // Limit
	RecordBegin            // Register; answer with BeginRecorded
	RecordStop             // Register, Fresh, Reason, Begun; answer with StopRecorded
	Ended                  // the session is over and nothing needs recording
	Alarm                  // Fault
)

var kinds = [...]string{OpenRelay: "open", CloseRelay: "close", Offer: "offer", RecordBegin: "record-begin", RecordStop: "record-stop", Ended: "ended", Alarm: "alarm"}

func (k ActionKind) String() string { return kinds[k] }

// Action is one thing to do.
type Action struct {
	Kind     ActionKind
	Limit    meter.MilliAmpere
	Register meter.MilliWattHour
	Fresh    bool // the register was read after the relay opened
	Begun    bool // RecordBegin came before; otherwise both registers are this one
	Reason   chain.StopReason
	Fault    Fault
}

// Saved is what survives a restart.
type Saved struct {
	ID       chain.ID            `cbor:"1,keyasint"`
	MaxWh    meter.WattHour      `cbor:"2,keyasint"`
	Begun    bool                `cbor:"3,keyasint,omitempty"`
	Base     meter.MilliWattHour `cbor:"4,keyasint,omitempty"`
	Last     meter.MilliWattHour `cbor:"5,keyasint,omitempty"`
	Stopping chain.StopReason    `cbor:"6,keyasint,omitempty"` // a stop was under way
	Fault    Fault               `cbor:"7,keyasint,omitempty"` // latched faults survive; ID may be zero
}

// State is the machine's state. The zero value is an idle charger whose relay
// is open.
type State struct {
	Phase     Phase
	ID        chain.ID
	MaxWh     meter.WattHour
	Confirmed bool                // the ledger holds the money
	Begun     bool                // Base is on disk
	Base      meter.MilliWattHour // begin register
	Last      meter.MilliWattHour // last good register
	Current   meter.MilliAmpere   // last good current
	Relay     bool                // commanded
	Offered   meter.MilliAmpere   // commanded
	Vehicle   drivers.VehicleState
	Fault     Fault
	Reason    chain.StopReason // of the stop under way
	Why       string           // in words: why it charges or does not

	known    bool // Last has a value
	heard    bool // and it was heard since the start of the program
	resuming bool
	asked    bool // RecordBegin was returned
	estop    bool
	feedback Contact
	unsure   bool // the output cannot be driven or does not obey
	noDisk   bool
	draining bool
	limit    meter.MilliAmpere

	stepped                    bool
	stepAt                     time.Duration
	phaseAt                    time.Duration // when Phase began
	authAt                     time.Duration // when the session was authorised or resumed
	meterAt, siteAt, vehicleAt time.Duration
	siteSeen, vehicleSeen      bool
	movedAt                    time.Duration // when the relay last changed, or the program began
	rampAt                     time.Duration // when 0 A was offered
	ramping                    bool
	weldAt, overAt, fullAt     time.Duration
	unseen                     int64 // mA*ms offered since the last good reading
	welding, overing, fulling  bool
	mismatchAt                 time.Duration
	mismatching                bool
}

// Save returns what has to survive a restart. It counts a begin register as
// begun that is still on its way to disk: whoever stores it stores the record
// with it.
func (s *State) Save() Saved {
	v := Saved{Fault: s.Fault}
	if s.Phase != Idle {
		v.ID, v.MaxWh, v.Begun, v.Base, v.Last = s.ID, s.MaxWh, s.asked, s.Base, s.Last
		if s.Phase >= Stopping {
			v.Stopping = s.Reason
		}
	}
	return v
}

// Wh returns the energy of the session so far, as the ledger will count it:
// the difference of two registers in whole Wh.
func (s *State) Wh() meter.WattHour {
	if !s.asked {
		return 0
	}
	return s.Last.WattHours() - s.Base.WattHours()
}

// Step applies one event at monotonic time now, which never decreases.
func Step(r Rules, s State, e Event, now time.Duration) (State, []Action) {
	if s.stepped && now < s.stepAt {
		panic(fmt.Sprintf("session: time went from %s back to %s", s.stepAt, now))
	}
	m := machine{r: r, State: s, now: now, was: s}
	m.live = s.stepped && now-s.stepAt <= r.LoopLimit
	if !s.stepped {
		m.stepped, m.movedAt, m.phaseAt = true, now, now
	}
	m.unseen += int64(s.Offered) * (now - m.stepAt).Milliseconds()
	m.stepAt = now
	m.apply(e)
	m.watch()
	m.advance()
	m.setOffer()
	return m.State, m.actions()
}

type machine struct {
	r   Rules
	now time.Duration
	State
	was   State
	live  bool
	again bool     // the output has just been seen not to obey
	out   []Action // records and alarms
}

func (m *machine) enter(p Phase) {
	if m.Phase != p {
		m.Phase, m.phaseAt = p, m.now
	}
}

func (m *machine) do(a Action) { m.out = append(m.out, a) }

func (m *machine) apply(e Event) {
	switch e := e.(type) {
	case Open:
		if m.Phase == Idle && m.Fault == NoFault && !m.draining {
			m.begin(e.ID, e.MaxWh)
			m.enter(Held)
		}
	case Resume:
		m.resume(e.Saved)
	case Ledger:
		m.ledger(e)
	case Reading:
		m.reading(e)
	case SiteReading:
		if e.At <= m.now {
			m.siteAt, m.siteSeen = max(m.siteAt, e.At), true
		}
	case Vehicle:
		if e.At <= m.now && (!m.vehicleSeen || e.At >= m.vehicleAt) {
			m.Vehicle, m.vehicleAt, m.vehicleSeen = e.State, e.At, true
		}
	case Inputs:
		m.estop, m.feedback = e.EStop, e.Feedback
	case Output:
		m.unsure = !e.OK || e.Closed != m.Relay
		m.again = m.unsure
	case Setpoint:
		m.limit = min(e.Limit, m.r.MaxCurrent)
		if m.limit < MinCurrent {
			m.limit = 0
		}
	case Stop:
		m.stop(e.Reason)
	case Journal:
		m.noDisk = !e.OK
	case BeginRecorded:
		m.Begun = m.Begun || m.asked
	case StopRecorded:
		if m.Phase == Metered {
			m.end()
		}
	case Stalled:
		m.open()
	case Drain:
		m.draining = true
	case ClearFault:
		m.Fault, m.welding, m.overing, m.mismatching = NoFault, false, false, false
	case Tick:
	default:
		panic(fmt.Sprintf("session: unknown event %T", e))
	}
}

func (m *machine) begin(id chain.ID, max meter.WattHour) {
	m.ID, m.MaxWh = id, max
	m.Confirmed, m.Begun, m.asked, m.resuming = false, false, false, false
	m.Base, m.Reason = 0, 0
	m.fulling, m.ramping = false, false
	m.authAt = m.now
}

func (m *machine) end() {
	m.begin(chain.ID{}, 0)
	m.enter(Idle)
}

func (m *machine) resume(v Saved) {
	m.Fault = max(m.Fault, v.Fault)
	if m.Phase != Idle || v.ID == (chain.ID{}) {
		return
	}
	m.begin(v.ID, v.MaxWh)
	m.Begun, m.asked, m.Base, m.resuming = v.Begun, v.Begun, v.Base, true
	if v.Begun && (!m.known || v.Last > m.Last) {
		m.Last, m.known = v.Last, true
	}
	switch {
	case v.Stopping != 0:
		m.Reason = v.Stopping
		m.enter(Stopping)
	case v.Begun:
		m.enter(Suspended)
	default:
		m.enter(Held)
	}
}

func (m *machine) ledger(e Ledger) {
	if m.Phase == Idle || e.ID != m.ID {
		return
	}
	m.Confirmed = e.OK
	switch {
	case e.OK && m.Phase == Held:
		m.authAt = m.now
		m.enter(Authorised)
	case e.OK:
	case m.asked:
		m.stop(chain.StopOperator)
	default:
		m.do(Action{Kind: Ended})
		m.end()
	}
}

func (m *machine) reading(e Reading) {
	if e.At > m.now || (m.heard && e.At <= m.meterAt) {
		return
	}
	// Within a session a register that went back is not one to bill from,
	// however good the poller thinks it is.
	if !e.Good || (m.asked && e.Import < m.Last) {
		return
	}
	m.Last, m.known = e.Import, true
	m.Current, m.meterAt, m.heard, m.unseen = e.Current, e.At, true, 0
	m.judgeCurrent(e)
}

// judgeCurrent latches what only the session meter can see.
func (m *machine) judgeCurrent(e Reading) {
	settled := e.At > m.movedAt
	hold := func(on *bool, at *time.Duration, cond bool, after time.Duration, strict bool) bool {
		if !cond {
			*on = false
			return false
		}
		if !*on {
			*on, *at = true, e.At
		}
		return e.At-*at > after || (!strict && e.At-*at == after)
	}
	if hold(&m.welding, &m.weldAt, !m.Relay && settled && e.Current > WeldAbove, WeldAfter, true) {
		m.fault(Weld)
	}
	if hold(&m.overing, &m.overAt, e.Current > m.r.MaxCurrent+m.r.MaxCurrent/10, OverAfter, false) {
		m.fault(OverCurrent)
	}
	idle := m.Relay && settled && m.Offered >= MinCurrent && !m.ramping && m.Wh() > 0 &&
		(e.Current < FullBelow || m.Vehicle == drivers.StateB && e.Current < MinCurrent)
	if hold(&m.fulling, &m.fullAt, idle, m.r.FullAfter, false) {
		m.stop(chain.StopFull)
	}
}

func (m *machine) fault(f Fault) {
	if m.Fault == NoFault {
		m.Fault = f
		m.do(Action{Kind: Alarm, Fault: f})
	}
}

// stop begins an ordinary stop. The first reason stays.
func (m *machine) stop(why chain.StopReason) {
	if m.Phase == Idle || m.Phase >= Stopping {
		return
	}
	m.Reason = why
	m.enter(Stopping)
}

func (m *machine) open() {
	if m.Relay {
		m.Relay, m.movedAt = false, m.now
	}
	m.ramping = false
	if m.Phase == Charging {
		m.enter(Suspended)
	}
}

// watch handles what may not wait for an ordinary stop.
func (m *machine) watch() {
	differs := (m.feedback == ContactOpen && m.Relay) || (m.feedback == ContactClosed && !m.Relay)
	if !differs {
		m.mismatching = false
	} else if since := max(m.movedAt, m.mismatchAt); !m.mismatching {
		m.mismatching, m.mismatchAt = true, m.now
	} else if m.Relay && m.now-since > AnswerAfter {
		m.fault(Contactor)
	} else if !m.Relay && m.now-since > WeldAfter {
		m.fault(Weld)
	}
	switch {
	case m.Fault != NoFault, m.estop:
		m.open()
		m.stop(chain.StopSafety)
	case m.r.Pilot && m.vehicleSeen && m.Relay && (m.Vehicle == drivers.StateE || m.Vehicle == drivers.StateF):
		m.open()
		m.stop(chain.StopSafety)
	case m.unsure, !m.live && m.was.stepped:
		m.open()
	case m.r.Pilot && m.vehicleSeen && m.Vehicle == drivers.StateA && m.asked:
		m.open()
		m.stop(chain.StopUnplugged)
	}
}

// age is how old the oldest thing is that charging relies on.
func (m *machine) age() (time.Duration, string) {
	old, what := time.Duration(-1), ""
	look := func(need, seen bool, at time.Duration, name string) {
		if !need {
			return
		}
		a := m.now - at
		if !seen {
			a = m.now - m.phaseAt + m.r.StaleAfter + m.r.StaleOff + 1
		}
		if a > old {
			old, what = a, name
		}
	}
	look(true, m.heard, m.meterAt, "session meter")
	look(m.r.Site, m.siteSeen, m.siteAt, "site meter")
	look(m.r.Pilot, m.vehicleSeen, m.vehicleAt, "charge controller")
	return old, what
}

// reserve is the energy that can still flow at limit before the relay opens.
func (m *machine) reserve(limit meter.MilliAmpere) meter.WattHour {
	return m.most(int64(limit) * m.r.Horizon.Milliseconds())
}

// most is the energy of a charge in mA*ms on every phase, at the highest
// voltage, rounded up.
func (m *machine) most(charge int64) meter.WattHour {
	return meter.WattHour(charge*maxVolt*int64(m.r.Phases)/3_600_000_000 + 1)
}

// left is what the hold still pays for. While the session meter is overdue,
// what was offered since its last reading counts as taken.
func (m *machine) left() meter.WattHour {
	left := m.MaxWh - m.Wh()
	if m.unseen > 0 && m.now-m.meterAt > m.r.Horizon-m.r.StopWait {
		left -= m.most(m.unseen)
	}
	return left
}

// refusal says why the relay must not be closed now; empty means it may be.
func (m *machine) refusal() string {
	age, what := m.age()
	switch {
	case m.Fault != NoFault:
		return m.Fault.String()
	case m.estop:
		return "emergency stop is pressed"
	case m.unsure:
		return "the relay's output does not obey"
	case !m.live:
		return "the control loop stalled"
	case m.draining:
		return "the gateway is shutting down"
	case !m.Confirmed:
		return "the ledger has not confirmed the hold"
	case age > m.r.StaleAfter:
		return "no fresh reading from the " + what
	case m.noDisk:
		return "records cannot be written"
	case m.r.Pilot && m.Vehicle != drivers.StateB && m.Vehicle != drivers.StateC && m.Vehicle != drivers.StateD:
		return "waiting for a vehicle"
	case m.feedback == ContactClosed && !m.Relay:
		return "the contactor has not opened"
	case m.left() <= m.reserve(MinCurrent):
		return "the hold is used up"
	case m.limit < MinCurrent:
		return "no current is available"
	case !m.Relay && m.now-m.movedAt < m.r.MinOff:
		return "the relay rests after switching"
	case !m.Begun:
		return "the begin register is being recorded"
	}
	return ""
}

func (m *machine) advance() {
	m.settleResume()
	m.limits()
	no := m.refusal()
	m.Why = no
	switch m.Phase {
	case Idle:
		m.open()
		if m.Fault == NoFault {
			m.Why = "no session"
		}
	case Held:
		if m.now-m.phaseAt > m.r.HoldLimit && !m.resuming {
			m.stop(chain.StopNoEnergy)
		}
	case Authorised, Suspended:
		switch {
		case no == "":
			m.Relay, m.movedAt = true, m.now
			m.enter(Charging)
			m.Why = "charging"
		case !m.Begun && !m.asked && m.heard && no == "the begin register is being recorded":
			m.asked, m.Base = true, m.Last
			m.do(Action{Kind: RecordBegin, Register: m.Base})
		}
	case Charging:
		m.charging(no)
	}
	if m.Phase == Stopping {
		m.stopping()
	}
	if m.Phase == Metered {
		m.Why = "recording the last register"
	}
}

// settleResume decides what becomes of a session after a restart.
func (m *machine) settleResume() {
	if !m.resuming || m.Phase >= Stopping || m.Phase == Idle {
		return
	}
	age, _ := m.age()
	connected := !m.r.Pilot || m.Vehicle == drivers.StateB || m.Vehicle == drivers.StateC || m.Vehicle == drivers.StateD
	switch {
	case m.Confirmed && age <= m.r.StaleAfter && connected:
		m.resuming = false
	case m.now-m.authAt > m.r.ResumeLimit:
		m.stop(chain.StopRestart)
	}
}

func (m *machine) limits() {
	switch m.Phase {
	case Authorised, Charging, Suspended:
	default:
		return
	}
	age, _ := m.age()
	switch {
	case m.left() <= m.reserve(MinCurrent):
		m.stop(chain.StopHold)
	case m.Wh() == 0 && m.now-m.authAt > m.r.StartLimit:
		m.stop(chain.StopNoEnergy)
	case m.Phase == Suspended && !m.resuming && age > m.r.StaleAfter+m.r.StaleOff+m.r.ResumeLimit:
		m.stop(chain.StopMeter)
	}
}

// charging keeps the relay closed or begins to open it.
func (m *machine) charging(no string) {
	age, what := m.age()
	switch {
	case no == "" && !m.ramping:
		m.Why = "charging"
	case age > m.r.StaleAfter && age <= m.r.StaleAfter+m.r.StaleOff && !m.ramping && m.onlyStale():
		m.Why = "6 A: no fresh reading from the " + what
	default:
		m.ramp()
	}
}

// onlyStale reports whether charging could go on but for the readings' age.
func (m *machine) onlyStale() bool {
	n := *m
	n.r.StaleAfter = 1 << 62
	return n.refusal() == ""
}

// ramp offers 0 A and opens when the current has gone or the wait is over.
func (m *machine) ramp() {
	if !m.Relay {
		m.ramping = false
		return
	}
	if !m.ramping {
		m.ramping, m.rampAt = true, m.now
	}
	gone := m.heard && m.meterAt > m.rampAt && m.Current < StopBelow
	if gone || m.now-m.rampAt >= m.r.StopWait {
		m.open()
	}
}

func (m *machine) stopping() {
	m.Why = "stopping: " + m.Reason.String()
	if m.Relay {
		m.ramp()
	}
	if m.Relay {
		return
	}
	fresh := m.heard && m.meterAt > max(m.movedAt, m.phaseAt) && m.Current < StopBelow
	if !fresh && m.now-max(m.movedAt, m.phaseAt) < FinalWait {
		return
	}
	if !m.known {
		// Neither begun nor metered: there is nothing to state, and the
		// ledger voids the hold by its own start limit.
		m.do(Action{Kind: Ended})
		m.end()
		return
	}
	m.do(Action{Kind: RecordStop, Register: m.Last, Fresh: fresh, Begun: m.asked, Reason: m.Reason})
	if !m.asked {
		m.asked, m.Base = true, m.Last
	}
	m.enter(Metered)
}

// setOffer derives the offer from the state.
func (m *machine) setOffer() {
	offer := m.limit
	if age, _ := m.age(); age > m.r.StaleAfter || m.left() <= m.reserve(m.limit) {
		offer = min(offer, MinCurrent)
	}
	if !m.Relay || m.ramping {
		offer = 0
	}
	m.Offered = offer
}

func (m *machine) actions() []Action {
	var out []Action
	switch {
	case m.Relay && !m.was.Relay:
		out = append(out, Action{Kind: CloseRelay})
	case !m.Relay && (m.was.Relay || !m.was.stepped || m.again):
		out = append(out, Action{Kind: OpenRelay})
	}
	if m.Offered != m.was.Offered || !m.was.stepped {
		out = append(out, Action{Kind: Offer, Limit: m.Offered})
	}
	return append(out, m.out...)
}
