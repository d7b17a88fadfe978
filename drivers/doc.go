// Package drivers holds the words for things a gateway can drive: one small
// interface per capability, so that a device says what it can do by what it
// implements.
//
//	Relay     a contactor coil: open or closed
//	Input     a contact: feedback, emergency stop, dimming signal
//	Limiter   a wallbox or EVSE that takes a current limit
//	Register  Modbus registers of one device on one line
//
// Only board/station calls Relay.Set and Limiter.SetLimit. Every actuator has
// Halt, which puts it in its inert state and may be called from any
// goroutine, at any time, more than once.
package drivers

import (
	"context"

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

// Function is a Modbus read function code.
type Function uint8

// Read functions.
const (
	HoldingRegisters Function = 3
	InputRegisters   Function = 4
)

// Register gives access to one device's registers. It is safe for concurrent
// use: the line queues requests and serves the earliest deadline first.
type Register interface {
	// ReadRegisters returns exactly 2*count bytes, big-endian. A value is
	// only ever returned for the request that asked for it.
	ReadRegisters(ctx context.Context, fn Function, addr, count uint16) ([]byte, error)
	// WriteRegisters writes values from addr on. One value uses function 6,
	// several use 16.
	WriteRegisters(ctx context.Context, addr uint16, values []uint16) error
}
