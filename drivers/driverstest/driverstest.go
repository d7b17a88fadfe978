// Package driverstest has a fake for each capability of package drivers, and
// a recorder that turns a real device into a fixture.
//
//	relay := &driverstest.Relay{}
//	station := newStation(relay)
//	...
//	if got := relay.Log(); !slices.Equal(got, []bool{true, false}) { ... }
//
// All fakes are safe for concurrent use. Fail makes every later call fail.
package driverstest

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Relay remembers how it was set. The zero value is open.
type Relay struct {
	mu     sync.Mutex
	err    error
	closed bool
	welded bool
	log    []bool
}

// Set implements drivers.Relay.
func (r *Relay) Set(closed bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.closed = closed
	r.log = append(r.log, closed)
	return nil
}

// Closed implements drivers.Relay.
func (r *Relay) Closed() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed || r.welded, r.err
}

// Halt implements drivers.Relay. It opens the contact even if Fail is in
// force, as a real output does when its driver is reset.
func (r *Relay) Halt() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = false
	r.log = append(r.log, false)
	return r.err
}

// Fail makes all calls fail with err; nil ends it.
func (r *Relay) Fail(err error) { r.mu.Lock(); r.err = err; r.mu.Unlock() }

// Weld makes the contact read back as closed whatever it is told.
func (r *Relay) Weld(on bool) { r.mu.Lock(); r.welded = on; r.mu.Unlock() }

// Log returns every state that was commanded, in order.
func (r *Relay) Log() []bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// Input is a contact that a test moves. The zero value is inactive.
type Input struct {
	mu     sync.Mutex
	active bool
	err    error
}

// Active implements drivers.Input.
func (i *Input) Active() (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.active, i.err
}

// Put sets what Active returns.
func (i *Input) Put(active bool, err error) {
	i.mu.Lock()
	i.active, i.err = active, err
	i.mu.Unlock()
}

// Limiter is an EVSE. The zero value offers nothing and knows no vehicle
// state.
type Limiter struct {
	mu    sync.Mutex
	err   error
	limit meter.MilliAmpere
	state drivers.VehicleState
	log   []meter.MilliAmpere
}

// SetLimit implements drivers.Limiter. Like a real EVSE it refuses what IEC
// 61851-1 does not have.
func (l *Limiter) SetLimit(ctx context.Context, limit meter.MilliAmpere) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case l.err != nil:
		return l.err
	case limit != 0 && (limit < 6000 || limit > 32000):
		return fmt.Errorf("limit %d mA: want 0 or 6000..32000", limit)
	}
	l.limit = limit
	l.log = append(l.log, limit)
	return nil
}

// VehicleState implements drivers.Limiter.
func (l *Limiter) VehicleState(ctx context.Context) (drivers.VehicleState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return drivers.StateUnknown, ctx.Err()
	}
	if l.err != nil {
		return drivers.StateUnknown, l.err
	}
	return l.state, nil
}

// Halt implements drivers.Limiter.
func (l *Limiter) Halt() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.limit = 0
	l.log = append(l.log, 0)
	return nil
}

// Fail makes all calls fail with err; nil ends it.
func (l *Limiter) Fail(err error) { l.mu.Lock(); l.err = err; l.mu.Unlock() }

// Plug sets the vehicle state.
func (l *Limiter) Plug(s drivers.VehicleState) { l.mu.Lock(); l.state = s; l.mu.Unlock() }

// Limit returns the current on offer.
func (l *Limiter) Limit() meter.MilliAmpere {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limit
}

// Log returns every limit that was accepted, in order.
func (l *Limiter) Log() []meter.MilliAmpere {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.log)
}

// Register is a device made of values. Reading or writing an address that no
// value was put at fails.
type Register struct {
	mu     sync.Mutex
	err    error
	values map[drivers.Function]map[uint16]uint16
}

// Put stores values from addr on in one of the two tables.
func (r *Register) Put(fn drivers.Function, addr uint16, values ...uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.values == nil {
		r.values = make(map[drivers.Function]map[uint16]uint16)
	}
	if r.values[fn] == nil {
		r.values[fn] = make(map[uint16]uint16)
	}
	for i, v := range values {
		r.values[fn][addr+uint16(i)] = v
	}
}

// Value returns a holding register, and whether there is one.
func (r *Register) Value(addr uint16) (uint16, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.values[drivers.HoldingRegisters][addr]
	return v, ok
}

// Fail makes all calls fail with err; nil ends it.
func (r *Register) Fail(err error) { r.mu.Lock(); r.err = err; r.mu.Unlock() }

// ReadRegisters implements drivers.Register.
func (r *Register) ReadRegisters(ctx context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.ready(ctx); err != nil {
		return nil, err
	}
	out := make([]byte, 0, 2*int(count))
	for i := range int(count) {
		v, ok := r.values[fn][addr+uint16(i)]
		if !ok {
			return nil, fmt.Errorf("read function %d register %d: illegal address", fn, int(addr)+i)
		}
		out = binary.BigEndian.AppendUint16(out, v)
	}
	return out, nil
}

// WriteRegisters implements drivers.Register. Either all values are written or
// none.
func (r *Register) WriteRegisters(ctx context.Context, addr uint16, values []uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.ready(ctx); err != nil {
		return err
	}
	table := r.values[drivers.HoldingRegisters]
	for i := range values {
		if _, ok := table[addr+uint16(i)]; !ok {
			return fmt.Errorf("write register %d: illegal address", int(addr)+i)
		}
	}
	for i, v := range values {
		table[addr+uint16(i)] = v
	}
	return nil
}

func (r *Register) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.err
}
