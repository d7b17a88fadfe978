// Package wallbox drives charge controllers over Modbus: it offers a current
// to the vehicle and reads the state of the control pilot.
//
// The controller keeps what belongs to it: the pilot signal, the residual
// current device and the contactor's logic. A gateway only lowers what the
// controller may offer.
//
//	SetLimit(16 A) ──► register, in the controller's own unit ──► pilot duty cycle
//	VehicleState() ◄── A no vehicle, B connected, C charging, ... (IEC 61851-1)
//
// IEC 61851-1 knows no current between 0 and 6 A, so a limit is 0 or at least
// 6 A; anything else is refused before it reaches the bus.
package wallbox

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Current limits of IEC 61851-1 as offered by these controllers.
const (
	MinCurrent meter.MilliAmpere = 6_000
	MaxCurrent meter.MilliAmpere = 32_000
)

// SimpleEVSE registers (SimpleEVSE-DIN and openWB EVSE manuals; the openWB
// and evcc projects use the same). All are holding registers.
const (
	evseCurrent  = 1000 // A to offer, 0 is off; 0.01 A with highResolution
	evseStatus   = 1002 // 1..5
	evseFirmware = 1005
	evseConfig   = 2005 // bits

	highResolution         = 1 << 7 // in evseConfig
	highResolutionFirmware = 17     // first that knows the bit
)

// HaltTimeout bounds Halt: one bus time-out.
const HaltTimeout = time.Second

// SimpleEVSE is a drivers.Limiter. It is safe for concurrent use.
type SimpleEVSE struct {
	reg drivers.Register

	mu   sync.Mutex
	unit meter.MilliAmpere // of evseCurrent; 0: not known yet
}

var _ drivers.Limiter = (*SimpleEVSE)(nil)

// NewSimpleEVSE drives the controller behind reg. It does not touch the bus.
func NewSimpleEVSE(reg drivers.Register) *SimpleEVSE { return &SimpleEVSE{reg: reg} }

// CheckLimit returns an error unless limit is 0 or 6..32 A.
func CheckLimit(limit meter.MilliAmpere) error {
	if limit != 0 && (limit < MinCurrent || limit > MaxCurrent) {
		return fmt.Errorf("%d mA: a vehicle can be offered 0 or %d..%d mA (IEC 61851-1)", limit, MinCurrent, MaxCurrent)
	}
	return nil
}

// SetLimit offers limit, rounded down to what the controller can express.
func (e *SimpleEVSE) SetLimit(ctx context.Context, limit meter.MilliAmpere) error {
	if err := CheckLimit(limit); err != nil {
		return err
	}
	var value uint16
	if limit > 0 { // 0 needs no unit and must not wait for one
		unit, err := e.resolution(ctx)
		if err != nil {
			return err
		}
		value = uint16(limit / unit)
	}
	if err := e.reg.WriteRegisters(ctx, evseCurrent, []uint16{value}); err != nil {
		e.forget()
		return fmt.Errorf("simpleevse: offer %d mA: %w", limit, err)
	}
	return nil
}

// resolution asks the controller once, and again after an error: it may have
// been replaced, and a factor of 100 is not to be guessed.
func (e *SimpleEVSE) resolution(ctx context.Context) (meter.MilliAmpere, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.unit != 0 {
		return e.unit, nil
	}
	fw, err := e.read(ctx, evseFirmware)
	if err != nil {
		return 0, err
	}
	unit := meter.MilliAmpere(1000)
	if fw >= highResolutionFirmware {
		bits, err := e.read(ctx, evseConfig)
		if err != nil {
			return 0, err
		}
		if bits&highResolution != 0 {
			unit = 10
		}
	}
	e.unit = unit
	return unit, nil
}

func (e *SimpleEVSE) forget() {
	e.mu.Lock()
	e.unit = 0
	e.mu.Unlock()
}

func (e *SimpleEVSE) read(ctx context.Context, addr uint16) (uint16, error) {
	b, err := e.reg.ReadRegisters(ctx, drivers.HoldingRegisters, addr, 1)
	if err != nil {
		return 0, fmt.Errorf("simpleevse: register %d: %w", addr, err)
	}
	if len(b) != 2 {
		return 0, fmt.Errorf("simpleevse: register %d: %d bytes, want 2", addr, len(b))
	}
	return binary.BigEndian.Uint16(b), nil
}

// VehicleState reads the pilot's state. Code 5 is the controller's own fault.
func (e *SimpleEVSE) VehicleState(ctx context.Context) (drivers.VehicleState, error) {
	v, err := e.read(ctx, evseStatus)
	if err != nil {
		e.forget()
		return drivers.StateUnknown, err
	}
	if v < 1 || v > 5 {
		return drivers.StateUnknown, fmt.Errorf("simpleevse: status %d is none of 1..5", v)
	}
	return [...]drivers.VehicleState{drivers.StateA, drivers.StateB, drivers.StateC, drivers.StateD, drivers.StateF}[v-1], nil
}

// Halt offers 0 A.
func (e *SimpleEVSE) Halt() error {
	ctx, cancel := context.WithTimeout(context.Background(), HaltTimeout)
	defer cancel()
	return e.SetLimit(ctx, 0)
}
