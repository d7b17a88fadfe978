package wallbox

import (
	"context"
	"errors"
	"testing"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/driverstest"
	"github.com/joulegate/joulegate/meter"
)

func evse(firmware, config uint16) (*SimpleEVSE, *driverstest.Register) {
	r := &driverstest.Register{}
	r.Put(drivers.HoldingRegisters, 1000, 99)
	r.Put(drivers.HoldingRegisters, 1002, 2)
	r.Put(drivers.HoldingRegisters, 1005, firmware)
	r.Put(drivers.HoldingRegisters, 2005, config)
	return NewSimpleEVSE(r), r
}

func TestSetLimitInTheControllersOwnUnit(t *testing.T) {
	for _, c := range []struct {
		firmware, config uint16
		limit            meter.MilliAmpere
		want             uint16
	}{
		{11, 0, 16_000, 16},
		{11, 0x80, 16_000, 16}, // the bit means nothing before firmware 17
		{17, 0, 13_900, 13},    // rounded down, never up
		{17, 0x80, 13_990, 1399},
		{18, 0xff, 6_000, 600},
		{18, 0, 32_000, 32},
		{17, 0x80, 0, 0},
	} {
		e, r := evse(c.firmware, c.config)
		if err := e.SetLimit(t.Context(), c.limit); err != nil {
			t.Fatal(err)
		}
		if v, _ := r.Value(1000); v != c.want {
			t.Errorf("firmware %d, config %#x, %d mA: wrote %d, want %d", c.firmware, c.config, c.limit, v, c.want)
		}
	}
}

func TestLimitsThatDoNotExist(t *testing.T) {
	e, r := evse(17, 0)
	for _, a := range []meter.MilliAmpere{-1, 1, 3_000, 5_999, 32_001, 80_000, 1 << 40} {
		if err := e.SetLimit(t.Context(), a); err == nil {
			t.Errorf("%d mA is accepted", a)
		}
	}
	if v, _ := r.Value(1000); v != 99 {
		t.Errorf("a refused limit reached the bus: %d", v)
	}
}

func TestResolutionIsAskedAgainAfterAnError(t *testing.T) {
	e, r := evse(17, 0)
	if err := e.SetLimit(t.Context(), 10_000); err != nil {
		t.Fatal(err)
	}
	r.Fail(errors.New("line cut"))
	if err := e.SetLimit(t.Context(), 10_000); err == nil {
		t.Fatal("no error from a dead line")
	}
	r.Fail(nil)
	r.Put(drivers.HoldingRegisters, 2005, 0x80) // another controller
	if err := e.SetLimit(t.Context(), 10_000); err != nil {
		t.Fatal(err)
	}
	if v, _ := r.Value(1000); v != 1000 {
		t.Errorf("wrote %d to a controller that counts in 10 mA", v)
	}
}

func TestVehicleState(t *testing.T) {
	e, r := evse(17, 0)
	for code, want := range map[uint16]drivers.VehicleState{1: drivers.StateA, 2: drivers.StateB, 3: drivers.StateC, 4: drivers.StateD, 5: drivers.StateF} {
		r.Put(drivers.HoldingRegisters, 1002, code)
		if s, err := e.VehicleState(t.Context()); err != nil || s != want {
			t.Errorf("status %d: %s, %v; want %s", code, s, err, want)
		}
	}
	for _, code := range []uint16{0, 6, 0xffff} {
		r.Put(drivers.HoldingRegisters, 1002, code)
		if s, err := e.VehicleState(t.Context()); err == nil || s != drivers.StateUnknown {
			t.Errorf("status %d: %s, %v", code, s, err)
		}
	}
}

func TestHaltOffersNothing(t *testing.T) {
	e, r := evse(17, 0)
	if err := e.Halt(); err != nil {
		t.Fatal(err)
	}
	if v, _ := r.Value(1000); v != 0 {
		t.Errorf("halted at %d A", v)
	}
}

// short answers with too few bytes, whatever is asked.
type short struct{ drivers.Register }

func (short) ReadRegisters(context.Context, drivers.Function, uint16, uint16) ([]byte, error) {
	return []byte{1}, nil
}

func TestShortReply(t *testing.T) {
	e := NewSimpleEVSE(short{})
	if _, err := e.VehicleState(t.Context()); err == nil {
		t.Error("one byte is a register")
	}
}
