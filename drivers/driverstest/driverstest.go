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

// Coils is the table that drivers.WriteCoil writes, for Register.Put.
const Coils drivers.Function = 1

// Register is a device made of values. Reading or writing an address that no
// value was put at fails.
type Register struct {
	mu     sync.Mutex
	err    error
	deaf   bool
	log    []drivers.Write
	values map[drivers.Function]map[uint16]uint16
}

// Put stores values from addr on in one of the tables.
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
	return r.ValueOf(drivers.HoldingRegisters, addr)
}

// ValueOf returns what is in a table at addr, and whether there is anything.
func (r *Register) ValueOf(fn drivers.Function, addr uint16) (uint16, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.values[fn][addr]
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

// WriteRegisters implements drivers.Register.
func (r *Register) WriteRegisters(ctx context.Context, addr uint16, values []uint16) error {
	return r.Write(ctx, drivers.Write{Address: addr, Values: values})
}

// Write implements drivers.Writer. Either all values are written or none.
func (r *Register) Write(ctx context.Context, w drivers.Write) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.ready(ctx); err != nil {
		return err
	}
	if w.Function == 0 {
		w.Function = drivers.WriteMultiple
		if len(w.Values) == 1 {
			w.Function = drivers.WriteSingle
		}
	}
	fn := drivers.HoldingRegisters
	switch w.Function {
	case drivers.WriteMultiple:
	case drivers.WriteCoil:
		fn = Coils
		fallthrough
	default:
		if len(w.Values) != 1 {
			return fmt.Errorf("%d values with function %d: want 1", len(w.Values), w.Function)
		}
	}
	table := r.values[fn]
	for i := range w.Values {
		if _, ok := table[w.Address+uint16(i)]; !ok {
			return fmt.Errorf("write function %d register %d: illegal address", w.Function, int(w.Address)+i)
		}
	}
	w.Values = slices.Clone(w.Values)
	r.log = append(r.log, w)
	if r.deaf {
		if w.Verify {
			return fmt.Errorf("write %v at %d: %w", w.Values, w.Address, drivers.ErrNotTaken)
		}
		return nil
	}
	for i, v := range w.Values {
		table[w.Address+uint16(i)] = v
	}
	return nil
}

// Ignore makes the device confirm writes and not take them.
func (r *Register) Ignore(on bool) { r.mu.Lock(); r.deaf = on; r.mu.Unlock() }

// Log returns every write that was confirmed, in order, with the function it
// used.
func (r *Register) Log() []drivers.Write {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

func (r *Register) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.err
}
