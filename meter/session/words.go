package session

import (
	"fmt"
	"slices"
	"strings"
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
	Testing                 // no session; a person tests the relay
	Held                    // waiting for the ledger to hold the money
	Authorised              // held; waiting for the conditions
	Charging                // circuit closed
	Suspended               // begun, circuit open
	Stopping                // on the way to the last register
	Metered                 // last register known, not yet on disk
)

// PhaseNames are the words of all phases.
func PhaseNames() []string { return slices.Clone(phases[:]) }

var phases = [...]string{Idle: "idle", Testing: "testing", Held: "held", Authorised: "authorised", Charging: "charging", Suspended: "suspended", Stopping: "stopping", Metered: "metered"}

func (p Phase) String() string {
	if int(p) >= len(phases) {
		return fmt.Sprintf("phase(%d)", uint8(p))
	}
	return phases[p]
}

// Fault is a set of latched faults. Only a person clears it. The bits are part
// of the saved state: append only.
type Fault uint16

// Faults.
const (
	Weld            Fault = 1 << iota // told to open and current flows, or the contact says closed
	OverCurrent                       // more than the charger's rating flows
	Contactor                         // told to close and the contact says open
	OverTemperature                   // hotter than Rules.TempMax
	EarthFault                        // residual current
	DeviceFault                       // one that a wallbox reports and that has no name here: it may be any of the above

	NoFault Fault = 0
)

var faults = [...]string{"contactor welded", "over-current", "contactor does not close", "over-temperature", "earth fault", "fault of the wallbox"}

// Has reports whether any of other is latched.
func (f Fault) Has(other Fault) bool { return f&other != 0 }

// String names the faults, the gravest first; empty for none.
func (f Fault) String() string {
	var words []string
	for i, w := range faults {
		if f.Has(1 << i) {
			words = append(words, w)
		}
	}
	if rest := f >> len(faults); rest != 0 {
		words = append(words, fmt.Sprintf("fault(%#x)", uint16(rest)<<len(faults)))
	}
	return strings.Join(words, ", ")
}

// MilliCelsius is a temperature in 1/1000 degree Celsius.
type MilliCelsius int64

func (t MilliCelsius) String() string { return fmt.Sprintf("%d.%d °C", t/1000, max(t, -t)%1000/100) }

// Thresholds of the charging rules.
const (
	MinCurrent     meter.MilliAmpere = 6_000 // least a vehicle can be offered, IEC 61851-1
	StopBelow      meter.MilliAmpere = 1_000 // the contactor may open without wear
	WeldAbove      meter.MilliAmpere = 500   // flows through an open contactor
	WeldAfter                        = 2 * time.Second
	OverAfter                        = 5 * time.Second // above 110 % of a rating
	AnswerAfter                      = time.Second     // for an auxiliary contact to follow
	FinalWait                        = 5 * time.Second // for a reading taken after the circuit opened
	WallboxObeys                     = 10 * time.Second
	MaxTest                          = 5 * time.Second // that a person's test keeps the relay closed
	TempAfter                        = 2 * time.Second // above TempMax
	PhaseAfter                       = time.Second     // below PhaseLow
	TripPulse                        = time.Second     // length of the shunt trip's pulse
	TripAgain                        = 10 * time.Second
	closingsWithin                   = time.Hour

	// A phase is missing below 70 % of 230 V and back above 80 %. A meter
	// behind the open contactor shows next to nothing: then PhaseRetry.
	PhaseLow   meter.MilliVolt = 161_000
	PhaseBack  meter.MilliVolt = 184_000
	PhaseDark  meter.MilliVolt = 50_000
	PhaseRetry                 = time.Minute

	// FullBelow is what a vehicle draws at most when it is full. It is well
	// below 6 A because one that is offered 6 A may take somewhat less.
	FullBelow meter.MilliAmpere = 2_000

	// LooseEnergy through an open circuit is reported as an unauthorised
	// load, and again each time it has doubled.
	LooseEnergy meter.MilliWattHour = 10_000

	// StuckEnergy must have flowed, on one phase alone, before a register
	// that stands still counts as stuck. Meters step by up to 100 Wh.
	StuckEnergy meter.WattHour = 200

	// nominal voltage +-10 % (EN 50160), for the most and the least that can
	// flow
	maxVolt, minVolt = 253, 207
)

// Words of a test of the relay: the code of its refusal, and the cause of an
// opening that ends it as it should.
const (
	TestRefused = "relay.test_refused"
	TestOver    = "the test of the relay is over"
)

// Rules are the limits of one charger. They do not change while it runs. A
// zero means that the thing is not fitted or not limited, unless said
// otherwise.
type Rules struct {
	MaxCurrent meter.MilliAmpere // per phase
	Phases     int               // 1 or 3
	Wallbox    bool              // no contactor of ours: the wallbox's limit is the actuator
	Pilot      bool              // the vehicle's state is known from a charge controller
	Site       bool              // a site meter must be fresh
	Temp       bool              // a temperature must be fresh
	Trip       bool              // a shunt trip is fitted
	Fuse       meter.MilliAmpere // of the house, per phase

	DerateFrom MilliCelsius // hotter: less current, down to 6 A at TempMax
	TempMax    MilliCelsius // hotter: OverTemperature

	StaleAfter  time.Duration // never zero
	StaleOff    time.Duration
	StopWait    time.Duration
	MinOff      time.Duration
	MaxSwitches int // closings within an hour
	HoldLimit   time.Duration
	StartLimit  time.Duration
	FullAfter   time.Duration
	ResumeLimit time.Duration
	StartSpread time.Duration  // most that a start waits
	OfflineWh   meter.WattHour // of one session while the ledger cannot be reached
	LoopLimit   time.Duration  // longer between two steps: the loop was stalled
	Horizon     time.Duration  // from a reading until the circuit it opens is open
}

// settle is how long the actuator may take to obey.
func (r *Rules) settle() time.Duration {
	if r.Wallbox {
		return WallboxObeys
	}
	return 0
}

// Contact is the state of an optional auxiliary contact.
type Contact uint8

// Contact states. The zero value means that none is fitted.
const (
	NotFitted Contact = iota
	ContactOpen
	ContactClosed
)

// Sequence is the order of the phases, if the meter reports it.
type Sequence uint8

// Sequences.
const (
	NotJudged Sequence = iota
	Clockwise          // L1 L2 L3
	Reversed           // L1 L3 L2
)

// Event is something that happened. Tick is the one that must keep coming.
type Event interface{ event() }

// Events.
type (
	// Open starts a session whose SessionOpen record is on disk.
	Open struct {
		ID    chain.ID
		MaxWh meter.WattHour
		Sells bool // the vehicle may give energy: a used hold alone does not end it
	}
	// Resume continues a session after a restart; the circuit is open.
	Resume struct {
		Saved
		PowerReturned bool // the board has just got power, as its neighbours may have
	}
	// Ledger says whether the ledger holds money for the session. OK false
	// means that it refused, or that the session is over there.
	Ledger struct {
		ID chain.ID
		OK bool
	}
	// Online says whether the ledger takes this gateway's records.
	Online struct{ OK bool }
	// Reading is what the session meter said at monotonic time At.
	Reading struct {
		Good    bool
		Import  meter.MilliWattHour
		Export  meter.MilliWattHour // 0: not metered
		Current meter.MilliAmpere   // highest phase
		// Volts of L1..L3 as far as the meter tells, judged even in a reading
		// that is not good; Known is the number of leading entries.
		Volts [3]meter.MilliVolt
		Known int
		Order Sequence
		At    time.Duration
	}
	// SiteReading is a good reading of the house's meter.
	SiteReading struct {
		Current meter.MilliAmpere // highest phase, charger included
		At      time.Duration
	}
	// Vehicle is the pilot's state.
	Vehicle struct {
		State drivers.VehicleState
		At    time.Duration
	}
	// Temperature is the hottest that a sensor of the charger says.
	Temperature struct {
		Value MilliCelsius
		At    time.Duration
	}
	// Device is what a wallbox says about itself.
	Device struct {
		Earth, Hot, Welded bool
		Failed             bool   // any other fault: it latches too, because nobody here knows what it is
		Text               string // in its own words
	}
	// Inputs are the safety contacts. A contact that cannot be read counts as
	// EStop.
	Inputs struct {
		EStop    bool
		Earth    bool
		Feedback Contact
	}
	// Output is the actuator read back; OK false: it cannot be driven or
	// read.
	Output struct{ Closed, OK bool }
	// Setpoint is the current to offer: 0 or at least MinCurrent. Edge names
	// the clock that others follow as well, if it made the limit rise from 0:
	// a slot's edge, a change of tariff.
	// Planned tells that 0 is meant: a plan charges later, and the session
	// waits for it with its begin register on record.
	// Back is the power to take out of the vehicle; while it is not 0, nothing
	// is offered. It needs every condition that charging needs, but no hold.
	// Stay keeps a closed circuit closed while Back is 0 for a moment.
	// Sells tells whether the session may still give energy.
	Setpoint struct {
		Limit   meter.MilliAmpere
		Edge    string
		Planned bool
		Back    meter.Watt
		Stay    bool
		Sells   bool
	}
	// Spread answers AskDelay: the start waits so long.
	Spread struct{ Delay time.Duration }
	// StartNow is a person's word not to wait.
	StartNow struct{}
	// Stop asks for an ordinary stop. Cause says in words who or what.
	Stop struct {
		Reason chain.StopReason
		Cause  string
	}
	// Test closes the circuit of an idle charger for a moment, at most MaxTest,
	// so that a person sees that relay and contacts are wired as they are
	// configured. It stands for the authorisation that a session has from the
	// ledger: whoever sends it has made sure that a person is there. A
	// wallbox is not tested, no current is offered, and it ends when something
	// draws current.
	Test struct{ For time.Duration }
	// Journal says whether records can be written.
	Journal struct{ OK bool }
	// BeginRecorded says that the begin register is on disk.
	BeginRecorded struct{}
	// StopRecorded says that the last register is on disk.
	StopRecorded struct{}
	// Stalled says that the watchdog opened the circuit.
	Stalled struct{}
	// Drain suspends for good: the program ends.
	Drain struct{}
	// ClearFault is a person's word that the faults are repaired.
	ClearFault struct{}
	// Rebase says that the meter's registers begin anew: it was exchanged.
	Rebase struct{}
	// Tick is the passing of time.
	Tick struct{}
)

func (Open) event()          {}
func (Resume) event()        {}
func (Ledger) event()        {}
func (Online) event()        {}
func (Reading) event()       {}
func (SiteReading) event()   {}
func (Vehicle) event()       {}
func (Temperature) event()   {}
func (Device) event()        {}
func (Inputs) event()        {}
func (Output) event()        {}
func (Setpoint) event()      {}
func (Spread) event()        {}
func (StartNow) event()      {}
func (Stop) event()          {}
func (Test) event()          {}
func (Journal) event()       {}
func (BeginRecorded) event() {}
func (StopRecorded) event()  {}
func (Stalled) event()       {}
func (Drain) event()         {}
func (ClearFault) event()    {}
func (Rebase) event()        {}
func (Tick) event()          {}

// ActionKind says what to do.
type ActionKind uint8

// Actions, in the order in which Step returns them.
const (
	TripOn      ActionKind = 1 + iota // energise the shunt trip
	TripOff                           //
	OpenRelay                         //
	CloseRelay                        //
	Offer                             // Limit; or Back, and then Limit is 0
	RecordBegin                       // Register; answer with BeginRecorded
	RecordStop                        // Register, Fresh, Reason, Begun; answer with StopRecorded
	Ended                             // the session is over and nothing needs recording
	Alarm                             // Fault, the one that was latched now; Text
	AskDelay                          // answer with Spread: random, up to Rules.StartSpread
	Note                              // Code, Severity, Text: something worth a record
)

var kinds = [...]string{TripOn: "trip-on", TripOff: "trip-off", OpenRelay: "open", CloseRelay: "close", Offer: "offer", RecordBegin: "record-begin", RecordStop: "record-stop", Ended: "ended", Alarm: "alarm", AskDelay: "ask-delay", Note: "note"}

func (k ActionKind) String() string { return kinds[k] }

// Action is one thing to do.
type Action struct {
	Kind     ActionKind
	Limit    meter.MilliAmpere
	Back     meter.Watt
	Register meter.MilliWattHour
	Fresh    bool // the register was read after the circuit opened
	Begun    bool // RecordBegin came before; otherwise both registers are this one
	Reason   chain.StopReason
	Fault    Fault
	Code     string
	Severity uint8 // 1 info, 2 warning, 3 alarm
	Text     string
}

// Saved is what survives a restart.
type Saved struct {
	ID       chain.ID            `cbor:"1,keyasint"`
	MaxWh    meter.WattHour      `cbor:"2,keyasint"`
	Begun    bool                `cbor:"3,keyasint,omitempty"`
	Base     meter.MilliWattHour `cbor:"4,keyasint,omitempty"`
	Last     meter.MilliWattHour `cbor:"5,keyasint,omitempty"`
	Stopping chain.StopReason    `cbor:"6,keyasint,omitempty"` // a stop was under way
	// Single is the one latched fault of an older version: 1 Weld,
	// 2 OverCurrent, 3 Contactor. It is read, not written.
	Single uint8 `cbor:"7,keyasint,omitempty"`
	Fault  Fault `cbor:"8,keyasint,omitempty"` // latched faults survive; ID may be zero
	// Closings within the last hour. After a restart they count as if they
	// had all happened at the start: monotonic time does not survive, and the
	// wall clock is not asked.
	Closings int  `cbor:"9,keyasint,omitempty"`
	Sells    bool `cbor:"10,keyasint,omitempty"`
}

// faults returns what was latched, whichever version saved it.
func (v *Saved) faults() Fault {
	f := v.Fault
	if v.Single > 0 {
		f |= 1 << (v.Single - 1)
	}
	return f
}
