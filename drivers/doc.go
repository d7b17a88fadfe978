// Package drivers holds the words for things a gateway can drive: one small
// interface per capability, so that a device says what it can do by what it
// implements.
//
//	Relay     a contactor coil: open or closed
//	Input     a contact: feedback, emergency stop, dimming signal
//	Limiter   a wallbox or EVSE that takes a current limit
//	Register  Modbus registers of one device on one line
//	Writer    a Register that is told which function a write uses
//
// A Limiter may be more than that. One program drives wallboxes of many
// makes, so the value itself says whether its model has the capability:
//
//	Statused       tells state, fault, temperature and the limit in force
//	Heartbeat      falls back by itself when it hears nothing (BeatEvery > 0)
//	Failsafe       to what it falls back, and after which silence
//	PhaseSwitcher  charges on one or three phases (two PhaseCounts)
//	Discharger     takes energy out of the vehicle (a PowerRange below 0)
//
// Only board/station calls Relay.Set and Limiter.SetLimit. Every actuator has
// Halt, which puts it in its inert state and may be called from any
// goroutine, at any time, more than once.
package drivers

import (
	"context"
	"errors"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// Relay is a contactor coil.
type Relay interface {
	// Set closes (energises) or opens the contact. It returns after the
	// output has changed, or an error and an unknown state.
	Set(closed bool) error
	// Closed reads the output back from the hardware.
	Closed() (bool, error)
	// Halt opens the contact.
	Halt() error
}

// Input is a digital contact.
type Input interface {
	// Active reports whether the contact is in its active state, with the
	// board's polarity already applied.
	Active() (bool, error)
}

// Limiter offers a charging current to a vehicle.
type Limiter interface {
	// SetLimit offers limit per phase: 0 or 6..32 A (IEC 61851-1 has nothing
	// between). It returns an error when the device refuses or is silent.
	SetLimit(ctx context.Context, limit meter.MilliAmpere) error
	// VehicleState returns the IEC 61851-1 state.
	VehicleState(ctx context.Context) (VehicleState, error)
	// Halt offers 0 A. It does not wait longer than one bus time-out.
	Halt() error
}

// ErrNotFitted is returned by a capability that this model does not have.
var ErrNotFitted = errors.New("the device has no such register")

// Heartbeat is a limiter whose device falls back to its failsafe current when
// its master falls silent. The driver has no goroutine of its own: whoever
// holds the control loop beats, so that the heartbeat ends with the loop.
type Heartbeat interface {
	// BeatEvery is the longest pause between two beats; 0: the device keeps
	// no watch and Beat does nothing. It may change after SetFailsafe.
	BeatEvery() time.Duration
	// Beat says that the master is there. It changes neither limit nor state.
	Beat(ctx context.Context) error
}

// FailsafeSetting is what a wallbox does when its master is gone.
type FailsafeSetting struct {
	Current meter.MilliAmpere // per phase: 0 or 6..32 A
	Timeout time.Duration     // silence after which it counts as gone
}

// Failsafe is a device whose fallback can be read and, at commissioning, set.
// Both return ErrNotFitted for a model without the registers.
type Failsafe interface {
	Failsafe(ctx context.Context) (FailsafeSetting, error)
	// SetFailsafe writes the setting and reads it back. A Current or Timeout
	// that the model does not let be set keeps its value; the setting in
	// force is returned.
	SetFailsafe(ctx context.Context, want FailsafeSetting) (FailsafeSetting, error)
}

// PhaseSwitcher is a device that charges on one or three phases.
type PhaseSwitcher interface {
	// PhaseCounts returns the numbers of phases that it can be switched to,
	// ascending; fewer than two: it cannot be switched.
	PhaseCounts() []int
	// Phases returns the number in force.
	Phases(ctx context.Context) (int, error)
	// SwitchPhases changes it. It refuses while the vehicle charges, while a
	// current is on offer, and for 10 s after the offer ended.
	SwitchPhases(ctx context.Context, phases int) error
}

// Discharger is a device that charges and discharges a vehicle by power.
type Discharger interface {
	// PowerRange returns the least and the most power at the connection,
	// import positive: least is below 0 if it can discharge.
	PowerRange() (least, most meter.MilliWatt)
	// SetPower orders a power at the connection, import (charging) positive,
	// rounded towards 0 to what the device can express. It ends by itself
	// when it is not repeated within BeatEvery.
	SetPower(ctx context.Context, power meter.MilliWatt) error
}

// Statused is a device that tells more than the vehicle's state.
type Statused interface {
	Status(ctx context.Context) (Status, error)
}

// Status is what a wallbox says about itself, all at one look.
type Status struct {
	Vehicle     VehicleState
	Code        int64              // the device's own status code
	Fault       int64              // the device's own fault code; 0: none
	Derated     bool               // it offers less than asked, because of heat
	Temperature *int64             // 1/1000 degree Celsius; nil: not measured
	Limit       *meter.MilliAmpere // in force per phase; nil: not told
}

// VehicleState is the state of the control pilot, IEC 61851-1 annex A.
type VehicleState byte

// Vehicle states. The zero value is unknown.
const (
	StateUnknown VehicleState = 0
	StateA       VehicleState = 'A' // no vehicle
	StateB       VehicleState = 'B' // vehicle connected, not ready
	StateC       VehicleState = 'C' // vehicle ready, charging
	StateD       VehicleState = 'D' // as C, ventilation required
	StateE       VehicleState = 'E' // pilot shorted or no supply
	StateF       VehicleState = 'F' // EVSE fault
)

func (s VehicleState) String() string {
	if s == StateUnknown {
		return "unknown"
	}
	return string(rune(s))
}

// Function is a Modbus function code (Modbus Application Protocol V1.1b3, 6).
type Function uint8

// Read functions.
const (
	HoldingRegisters Function = 3
	InputRegisters   Function = 4
)

// Write functions.
const (
	WriteCoil       Function = 5  // one bit: its value is CoilOn or CoilOff
	WriteSingle     Function = 6  // one register
	WriteMultiple   Function = 16 // registers in a row, also a single one
	CoilOn, CoilOff          = uint16(0xFF00), uint16(0)
)

// Register gives access to one device's registers. It is safe for concurrent
// use: the line queues requests and serves the earliest deadline first.
type Register interface {
	// ReadRegisters returns exactly 2*count bytes, big-endian. A value is
	// only ever returned for the request that asked for it.
	ReadRegisters(ctx context.Context, fn Function, addr, count uint16) ([]byte, error)
	// WriteRegisters writes values from addr on. One value uses function 6,
	// several use 16. A Writer can be told.
	WriteRegisters(ctx context.Context, addr uint16, values []uint16) error
}

// Write is one write, as it goes on the wire.
type Write struct {
	Function Function // WriteCoil, WriteSingle or WriteMultiple; 0: by the number of values
	Address  uint16
	// Values are at most 123 with WriteMultiple, else one. A number of several
	// registers is in the device's own order of words.
	Values []uint16
	// Verify reads the same registers back, also when no confirmation came.
	// Not for registers that only take commands.
	Verify bool
}

// ErrNotTaken says that a device holds another value than was written to it.
var ErrNotTaken = errors.New("the device holds another value")

// Writer is a Register for devices that insist on a function. It is safe for
// concurrent use.
type Writer interface {
	Register
	// Write returns nil when the device has confirmed w, and with Verify only
	// when it holds w's values. Some devices damage their confirmations: then
	// what the registers hold decides, whether Verify is set or not. The error
	// is ErrNotTaken if they hold something else. After any other error it is
	// not known whether the device has taken the write.
	Write(ctx context.Context, w Write) error
}
