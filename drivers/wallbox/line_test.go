package wallbox_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/wallbox"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// background runs serve until the test ends, and waits for it.
func background(t *testing.T, serve func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = serve(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// simulated puts a wallbox with a car behind a real line and drives it: over
// TCP if it has a port, else with RTU frames on a pseudo-terminal.
func simulated(t *testing.T, p *profile.Profile, faults slave.Faults) (*wallbox.Box, *slave.Physics) {
	t.Helper()
	car, err := slave.NewPhysics(slave.PhysicsConfig{Profile: p, Car: 'C'})
	if err != nil {
		t.Fatal(err)
	}
	stop := 1
	if p.Serial.Framing == "8N2" {
		stop = 2
	}
	bus, err := slave.NewBus(slave.Config{Faults: faults, Seed: 1, Baud: p.Serial.Baud, StopBits: stop})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Add(p.Serial.Unit, car.Unit()); err != nil {
		t.Fatal(err)
	}
	cfg := modbus.Config{Timeout: 300 * time.Millisecond}
	if p.Serial.Port != 0 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg.TCP = ln.Addr().String()
		background(t, func(ctx context.Context) error { return bus.ServeTCP(ctx, ln) })
	} else {
		pty, err := slave.OpenPTY(filepath.Join(t.TempDir(), "line"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Device, cfg.Baud = pty.Name(), p.Serial.Baud
		if cfg.Framing = p.Serial.Framing; cfg.Framing == "8E1" {
			cfg.Framing = "8N1" // a pseudo-terminal has no parity
		}
		background(t, func(ctx context.Context) error { return bus.ServePTY(ctx, pty) })
		t.Cleanup(func() { pty.Close() })
	}
	line, err := modbus.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	background(t, line.Run)
	box, err := wallbox.New(line.Device(modbus.DeviceConfig{
		Unit: p.Serial.Unit, Name: p.ID, Class: modbus.Safety, Gap: p.Timing.Gap, MaxBlock: int(p.Timing.MaxBlock),
	}), p)
	if err != nil {
		t.Fatal(err)
	}
	return box, car
}

// pass lets a while pass for the car.
func pass(t *testing.T, car *slave.Physics) {
	t.Helper()
	for i := range 10 {
		if err := car.Step(time.Unix(int64(i), 0), time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually tries f for a while: a line that is just being opened fails.
func eventually(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err = f(ctx)
		if cancel(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// Every wallbox over its line: the car charges when it is offered current, is
// seen to, and stops when it is not.
func TestRoundTrip(t *testing.T) {
	for _, p := range profile.All() {
		if p.Kind != profile.Wallbox {
			continue
		}
		t.Run(p.ID, func(t *testing.T) {
			t.Parallel()
			box, car := simulated(t, p, nil)
			eventually(t, func(ctx context.Context) error { return box.SetLimit(ctx, 10_000) })
			pass(t, car)
			eventually(t, func(ctx context.Context) error { return box.Beat(ctx) })
			s, err := box.Status(t.Context())
			if err != nil || s.Vehicle != drivers.StateC {
				t.Fatalf("offered 10 A: %+v, %v", s, err)
			}
			if s.Limit != nil && (*s.Limit > 10_000 || *s.Limit < 9_000) {
				t.Errorf("offered 10 A, it tells %d mA", *s.Limit)
			}
			eventually(t, func(ctx context.Context) error { return box.SetLimit(ctx, 0) })
			pass(t, car)
			if state, err := box.VehicleState(t.Context()); err != nil || state != drivers.StateB {
				t.Errorf("paused: %s, %v", state, err)
			}
			eventually(t, func(ctx context.Context) error { return box.SetLimit(ctx, 6_000) })
			if err := box.Halt(); err != nil {
				t.Fatal(err)
			}
			pass(t, car)
			if state, err := box.VehicleState(t.Context()); err != nil || state != drivers.StateB {
				t.Errorf("halted: %s, %v", state, err)
			}
		})
	}
}

// Lost, late and broken answers delay a limit. They never raise one, and what
// is reported as set is set.
func TestBadLines(t *testing.T) {
	for id, faults := range map[string][]slave.Fault{
		"keba-p30": {slave.Silence, slave.Exception}, "phoenix-charx": {slave.Exception, slave.WrongUnit}, "heidelberg-energy-control": {slave.CRC, slave.Split},
	} {
		for _, f := range faults {
			t.Run(id+" "+string(f), func(t *testing.T) {
				t.Parallel()
				p, err := profile.Get(id)
				if err != nil {
					t.Fatal(err)
				}
				box, car := simulated(t, p, slave.Faults{f: 0.1})
				for _, limit := range []meter.MilliAmpere{16_000, 8_000, 0} {
					eventually(t, func(ctx context.Context) error { return box.SetLimit(ctx, limit) })
				}
				pass(t, car)
				eventually(t, func(ctx context.Context) error {
					s, err := box.VehicleState(ctx)
					if err == nil && s != drivers.StateB {
						t.Errorf("paused, and the vehicle is in %s", s)
					}
					return err
				})
			})
		}
	}
}

// What the vehicle gives back flows, and ends with the order.
func TestDischargeOverTheLine(t *testing.T) {
	p, err := profile.Get("generic-dc-bidirectional")
	if err != nil {
		t.Fatal(err)
	}
	box, car := simulated(t, p, nil)
	power := func() int64 {
		t.Helper()
		pass(t, car)
		data := make([]meter.RawBlock, 0, 2)
		for a := uint16(4); a < 6; a++ {
			v, _ := car.Unit().Register(drivers.HoldingRegisters, a)
			data = append(data, meter.RawBlock{Function: 3, Address: a, Data: []byte{byte(v >> 8), byte(v)}})
		}
		points, err := p.Decode(data)
		if err != nil || len(points) != 1 {
			t.Fatalf("%v, %v", points, err)
		}
		return points[0].Value
	}
	eventually(t, func(ctx context.Context) error { return box.SetPower(ctx, -3_000_000) })
	if got := power(); got != -3_000_000 {
		t.Errorf("ordered -3 kW, %d mW flow", got)
	}
	eventually(t, func(ctx context.Context) error { return box.SetPower(ctx, 2_000_000) })
	if got := power(); got != 2_000_000 {
		t.Errorf("ordered 2 kW, %d mW flow", got)
	}
	if err := box.Halt(); err != nil {
		t.Fatal(err)
	}
	if got := power(); got != 0 {
		t.Errorf("halted, %d mW flow", got)
	}
}

// A wallbox that watches its master keeps its limit while it is beaten for,
// falls back when the beats end, and takes up where it was when they return.
func TestFallbackWhenTheBeatEnds(t *testing.T) {
	for _, p := range profile.All() {
		if _, current := p.Write("current_limit"); p.Kind != profile.Wallbox || p.Watchdog == nil || !current {
			continue
		}
		t.Run(p.ID, func(t *testing.T) {
			t.Parallel()
			box, car := simulated(t, p, nil)
			now := time.Unix(0, 0)
			step := func(d time.Duration) {
				t.Helper()
				now = now.Add(d)
				if err := car.Step(now, d); err != nil {
					t.Fatal(err)
				}
			}
			step(time.Second)
			eventually(t, func(ctx context.Context) error {
				_, err := box.SetFailsafe(ctx, drivers.FailsafeSetting{Current: 6_000, Timeout: 30 * time.Second})
				if errors.Is(err, drivers.ErrNotFitted) {
					err = nil
				}
				return err
			})
			eventually(t, func(ctx context.Context) error { return box.SetLimit(ctx, 12_000) })
			every := box.BeatEvery()
			if every <= 0 {
				t.Fatal("it has a watchdog and wants no beat")
			}
			drawn := func() int64 {
				t.Helper()
				for range 4 {
					step(time.Second)
				}
				return car.Current()
			}
			for range 6 {
				step(every)
				eventually(t, func(ctx context.Context) error { return box.Beat(ctx) })
			}
			if ma := drawn(); ma < 11_000 || ma > 12_000 {
				t.Errorf("with beats every %s the car draws %d mA", every, ma)
			}
			for range 12 { // nobody beats
				step(10 * time.Second)
			}
			if ma := drawn(); ma > 6_000 {
				t.Errorf("without beats the car draws %d mA", ma)
			}
			eventually(t, func(ctx context.Context) error { return box.Beat(ctx) })
			eventually(t, func(ctx context.Context) error { return box.SetLimit(ctx, 12_000) })
			if ma := drawn(); ma < 11_000 || ma > 12_000 {
				t.Errorf("after the beats returned the car draws %d mA", ma)
			}
		})
	}
}
