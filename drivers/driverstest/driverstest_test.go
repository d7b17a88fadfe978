package driverstest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// What was recorded from a device is played back as it was, errors included,
// and nothing else is.
func TestRecordAndPlayback(t *testing.T) {
	ctx := context.Background()
	dev := &Register{}
	dev.Put(drivers.InputRegisters, 52, 0x4366, 0x3333)
	dev.Put(drivers.HoldingRegisters, 1000, 6)
	var tape bytes.Buffer
	rec := NewRecorder(dev, &tape)
	script := func(r drivers.Register) (data []byte, write, missing error) {
		data, err := r.ReadRegisters(ctx, drivers.InputRegisters, 52, 2)
		if err != nil {
			t.Fatal(err)
		}
		write = r.WriteRegisters(ctx, 1000, []uint16{16})
		_, missing = r.ReadRegisters(ctx, drivers.HoldingRegisters, 1, 1)
		return data, write, missing
	}
	data, write, missing := script(rec)
	if v, _ := dev.Value(1000); v != 16 || write != nil || missing == nil {
		t.Fatalf("recording: register %d, write %v, missing %v", v, write, missing)
	}
	play, err := NewPlayback(&tape)
	if err != nil {
		t.Fatal(err)
	}
	again, write, missing2 := script(play)
	if !slices.Equal(again, data) || write != nil || missing2 == nil || !strings.Contains(missing2.Error(), missing.Error()) {
		t.Errorf("played back % x, %v, %v; recorded % x, %v, %v", again, write, missing2, data, nil, missing)
	}
	if n := play.Left(); n != 0 {
		t.Errorf("%d operations left", n)
	}
	if _, err := play.ReadRegisters(ctx, drivers.InputRegisters, 52, 2); err == nil {
		t.Error("an operation after the end was answered")
	}
}

func TestPlaybackRefusesAnotherOperation(t *testing.T) {
	play, err := NewPlayback(strings.NewReader(`{"fn":4,"addr":52,"count":2,"data":"43663333"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := play.ReadRegisters(context.Background(), drivers.InputRegisters, 54, 2); err == nil {
		t.Error("another register was answered")
	}
	if _, err := NewPlayback(strings.NewReader("{")); err == nil {
		t.Error("a broken fixture was accepted")
	}
}

func TestFakesFailAndHalt(t *testing.T) {
	ctx, boom := context.Background(), errors.New("boom")
	r := &Relay{}
	r.Set(true)
	r.Fail(boom)
	if err := r.Set(false); !errors.Is(err, boom) {
		t.Error(err)
	}
	r.Halt()
	r.Fail(nil)
	if closed, err := r.Closed(); closed || err != nil {
		t.Errorf("after Halt: closed %v, %v", closed, err)
	}
	r.Weld(true)
	if closed, _ := r.Closed(); !closed {
		t.Error("a welded contact reads open")
	}
	l := &Limiter{}
	for _, bad := range []int64{1, 5999, 32001, -6000} {
		if l.SetLimit(ctx, 0) != nil || l.SetLimit(ctx, 16000) != nil {
			t.Fatal("a lawful limit was refused")
		}
		if l.SetLimit(ctx, meter.MilliAmpere(bad)) == nil {
			t.Errorf("%d mA accepted", bad)
		}
	}
	l.Plug(drivers.StateC)
	if s, err := l.VehicleState(ctx); s != drivers.StateC || err != nil {
		t.Errorf("state %v, %v", s, err)
	}
	if l.Halt(); l.Limit() != 0 {
		t.Errorf("after Halt: %d mA", l.Limit())
	}
	dev := &Register{}
	dev.Put(drivers.HoldingRegisters, 1, 5)
	if err := dev.WriteRegisters(ctx, 1, []uint16{7, 8}); err == nil {
		t.Error("wrote past the end")
	}
	if v, _ := dev.Value(1); v != 5 {
		t.Errorf("half a write: %d", v)
	}
}

// The fake keeps the function of every write, and can be deaf.
func TestRegisterWrites(t *testing.T) {
	ctx := context.Background()
	dev := &Register{}
	dev.Put(drivers.HoldingRegisters, 261, 60)
	dev.Put(Coils, 400, drivers.CoilOff)
	var tape bytes.Buffer
	script := func(w drivers.Writer) error {
		return errors.Join(
			w.Write(ctx, drivers.Write{Function: drivers.WriteMultiple, Address: 261, Values: []uint16{160}}),
			w.Write(ctx, drivers.Write{Function: drivers.WriteCoil, Address: 400, Values: []uint16{drivers.CoilOn}, Verify: true}),
			w.WriteRegisters(ctx, 261, []uint16{80}))
	}
	if err := script(NewRecorder(dev, &tape)); err != nil {
		t.Fatal(err)
	}
	var used []drivers.Function
	for _, w := range dev.Log() {
		used = append(used, w.Function)
	}
	if !slices.Equal(used, []drivers.Function{drivers.WriteMultiple, drivers.WriteCoil, drivers.WriteSingle}) {
		t.Errorf("functions %v", used)
	}
	if v, _ := dev.ValueOf(Coils, 400); v != drivers.CoilOn {
		t.Errorf("coil %#x", v)
	}
	play, err := NewPlayback(&tape)
	if err != nil {
		t.Fatal(err)
	}
	if err := script(play); err != nil || play.Left() != 0 {
		t.Errorf("played back: %v, %d left", err, play.Left())
	}
	if dev.Write(ctx, drivers.Write{Function: drivers.WriteSingle, Address: 261, Values: []uint16{1, 2}}) == nil {
		t.Error("two values with function 6")
	}
	dev.Ignore(true)
	w := drivers.Write{Address: 261, Values: []uint16{100}}
	if err := dev.Write(ctx, w); err != nil {
		t.Errorf("a deaf device confirms: %v", err)
	}
	if w.Verify = true; !errors.Is(dev.Write(ctx, w), drivers.ErrNotTaken) {
		t.Error("a deaf device is believed")
	}
	if v, _ := dev.Value(261); v != 80 {
		t.Errorf("register %d", v)
	}
}
