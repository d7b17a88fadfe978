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
// Only board/station calls Relay.Set and Limiter.SetLimit. Every actuator has
// Halt, which puts it in its inert state and may be called from any
// goroutine, at any time, more than once.
package drivers

import (
	"context"
	"errors"

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
