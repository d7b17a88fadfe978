package board

import (
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Snapshot is the state of one gateway at one moment, for people and for
// other programs. It is a value: nobody changes it after it was published.
type Snapshot struct {
	Gateway  string    `json:"gateway"`
	Seq      uint64    `json:"seq"` // +1 per snapshot since start
	Time     time.Time `json:"time"`
	Live     bool      `json:"live"` // the control loop runs
	Meters   []Meter   `json:"meters"`
	Chargers []Charger `json:"chargers"`
	Alarms   []Alarm   `json:"alarms"`            // what is wrong now, oldest first
	Utility  string    `json:"utility,omitempty"` // a limit of the utility that is in force, in words
}

// Meter is the latest reading of one meter.
type Meter struct {
	ID      string           `json:"id"`
	Role    string           `json:"role"`
	Profile string           `json:"profile"`
	Time    time.Time        `json:"time"` // of the reading; zero: none yet
	Quality string           `json:"quality"`
	PowerW  meter.Watt       `json:"power_w"` // import positive
	Import  meter.WattHour   `json:"import_wh"`
	Export  meter.WattHour   `json:"export_wh"`
	Points  map[string]int64 `json:"points,omitempty"` // every decoded point by name
}

// Charger is the state of one connector.
type Charger struct {
	ID        uint8             `json:"id"`
	Meter     string            `json:"meter"`
	State     string            `json:"state"`   // idle, held, authorised, charging, suspended, stopping, metered
	Why       string            `json:"why"`     // in words: why it charges or why it does not
	Vehicle   string            `json:"vehicle"` // IEC 61851-1 state A..F, or unknown
	Mode      string            `json:"mode"`    // off, now, surplus, market
	Limit     meter.MilliAmpere `json:"limit_ma"`
	Current   meter.MilliAmpere `json:"current_ma"` // highest phase
	PowerW    meter.Watt        `json:"power_w"`
	MaxLimit  meter.MilliAmpere `json:"max_ma"`                      // rating, per phase
	Actuator  string            `json:"actuator"`                    // relay, or wallbox that switches by itself
	Relay     bool              `json:"relay_closed"`                // of a wallbox: it may offer current
	Cause     string            `json:"cause,omitempty"`             // what moved the actuator last
	StartsIn  int64             `json:"starts_in_s,omitempty"`       // a start is spread: seconds to go
	Heat      *int64            `json:"temperature_mdegc,omitempty"` // where a sensor is fitted
	Phases    int               `json:"phases"`                      // in use
	Order     string            `json:"phase_order,omitempty"`       // three-phase: right, wrong or not judged
	Offline   bool              `json:"offline,omitempty"`           // the session lives on the limit for times without the ledger
	Session   string            `json:"session,omitempty"`           // id while one is open
	SessionWh meter.WattHour    `json:"session_wh"`
	MaxWh     meter.WattHour    `json:"max_wh,omitempty"` // what the hold pays for
	Cap       chain.NanoPerWh   `json:"cap_nano_per_wh,omitempty"`
	Fault     string            `json:"fault,omitempty"` // latched: a person must clear it
	LastStop  string            `json:"last_stop,omitempty"`
	Contacts  []ContactState    `json:"contacts,omitempty"`
	Plan      *Plan             `json:"plan,omitempty"` // of a session with a departure
	Sale      *Sale             `json:"sale,omitempty"` // of a session whose vehicle may give energy
}

// Sale is a session whose vehicle may give energy.
type Sale struct {
	PowerW    meter.Watt      `json:"power_w"` // ordered out of the vehicle; what flows is the charger's power_w, below 0
	Why       string          `json:"why"`     // in words: why it gives or does not
	SoC       *int64          `json:"soc_permille,omitempty"`
	Tradable  meter.WattHour  `json:"tradable_wh"` // above the owner's floor, at the meter
	SellWh    meter.WattHour  `json:"sell_wh"`     // most that the driver sells
	SellLimit chain.NanoPerWh `json:"sell_limit_nano_per_wh"`
	SoldWh    meter.WattHour  `json:"sold_wh"`     // given in this session
	Promised  meter.WattHour  `json:"promised_wh"` // firmly, in this slot and those to come
	Short     meter.WattHour  `json:"short_wh"`    // promised and not delivered, in slots that have ended
}

// Plan is when a session with a departure charges.
type Plan struct {
	Wh       meter.WattHour  `json:"wh"`                              // wanted
	By       time.Time       `json:"by,omitzero"`                     // the departure; zero: none
	MaxPrice chain.NanoPerWh `json:"max_price_nano_per_wh,omitempty"` // 0: any
	Planned  meter.WattHour  `json:"planned_wh"`                      // still to be charged by the plan
	Cost     chain.Nano      `json:"cost_nano"`                       // of it, as offered now
	Short    meter.WattHour  `json:"short_wh"`                        // missing at the departure
	Report   string          `json:"report,omitempty"`                // why it is short, in words
	Shares   []PlanShare     `json:"shares"`                          // when, ascending
}

// PlanShare is what a plan charges in one slot.
type PlanShare struct {
	From  time.Time      `json:"from"`
	To    time.Time      `json:"to"`
	Wh    meter.WattHour `json:"wh"`
	Local meter.WattHour `json:"local_wh"` // of Wh, from neighbours
	Cost  chain.Nano     `json:"cost_nano"`
}

// Alarm is one thing that is wrong.
type Alarm struct {
	Code    string    `json:"code"` // for example charger.weld, meter.stale
	Subject string    `json:"subject"`
	Text    string    `json:"text"`
	Since   time.Time `json:"since"`
}

// ContactState is a contact that is wired to this board, and when it was
// operated last.
type ContactState struct {
	Name     string    `json:"name"` // see the words below
	Active   bool      `json:"active"`
	Operated time.Time `json:"operated,omitzero"` // it became active
	Released time.Time `json:"released,omitzero"` // and no more
}

// Contacts of a charger.
const (
	ContactEStop    = "estop"
	ContactEarth    = "earth_fault"
	ContactFeedback = "feedback"
	ContactPilot    = "pilot"
	ContactStop     = "stop_button"
)

// RelayTest is what a person's test of a charger's relay has shown.
type RelayTest struct {
	OK        bool              `json:"ok"`
	ClosedFor time.Duration     `json:"closed_ns"`
	Contact   string            `json:"contact"`         // of the contactor, see the words below
	Current   meter.MilliAmpere `json:"current_ma"`      // nothing is plugged in: 0
	Ended     string            `json:"ended"`           // why it opened again
	Fault     string            `json:"fault,omitempty"` // latched by it
}

// What a contactor's auxiliary contact did.
const (
	ContactNotFitted = "not fitted"
	ContactFollowed  = "followed"
	ContactStayed    = "did not follow"
)
