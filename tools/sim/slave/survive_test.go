package slave_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/reader"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// serveOn serves b on a line of that kind and returns how a gateway reaches it.
func serveOn(t *testing.T, b *slave.Bus, kind string) modbus.Config {
	t.Helper()
	cfg := modbus.Config{Baud: 19200, Timeout: 150 * time.Millisecond}
	if kind == "pty" {
		pty := openPTY(t)
		background(t, func(ctx context.Context) error { return b.ServePTY(ctx, pty) })
		cfg.Device = pty.Name()
		return cfg
	}
	ln := listen(t)
	if kind == "tcp" {
		background(t, func(ctx context.Context) error { return b.ServeTCP(ctx, ln) })
		cfg.TCP = ln.Addr().String()
	} else {
		background(t, func(ctx context.Context) error { return b.ServeRTUTCP(ctx, ln) })
		cfg.RTUTCP = ln.Addr().String()
	}
	return cfg
}

// gateway runs a line as the product does.
func gateway(t *testing.T, cfg modbus.Config) *modbus.Line {
	t.Helper()
	l, err := modbus.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	background(t, l.Run)
	return l
}

// The gateway's own line and reader live with every fault on every kind of
// line: readings go on, and not one value is wrong.
func TestFaultsAreSurvived(t *testing.T) {
	everything := append([]meter.Point{
		{Quantity: meter.Voltage, Phase: 2, Value: 231_200},
		{Quantity: meter.Voltage, Phase: 3, Value: 229_300},
		{Quantity: meter.Current, Phase: 2, Value: 1_250},
		{Quantity: meter.Current, Phase: 3, Value: 3_750},
		{Quantity: meter.Power, Phase: 1, Value: -500_500},
		{Quantity: meter.Power, Phase: 2, Value: -500_250},
		{Quantity: meter.Power, Phase: 3, Value: -500_750},
	}, truth...)
	all := []string{"pty", "tcp", "rtutcp"}
	for _, c := range []struct {
		fault slave.Fault
		rate  float64
		told  uint16 // largest block that the profile says, 0: the built-in
		good  int    // readings
		kinds []string
	}{
		{slave.Late, 0.15, 0, 8, all},
		{slave.CRC, 0.15, 0, 8, all},
		{slave.Split, 0.3, 0, 8, all},
		{slave.Exception, 0.15, 0, 8, all},
		{slave.Silence, 0.15, 0, 8, all},
		{slave.Echo, 0.3, 0, 8, all},
		{slave.WrongUnit, 0.15, 0, 8, all},
		{slave.Unplug, 0.1, 0, 8, all},
		{slave.BlockLimit, 10, 10, 8, all},
		{slave.BlockCut, 10, 10, 8, all},
		{slave.BlockLimit, 10, 0, 8, all}, // learned
		{slave.BlockCut, 10, 0, 8, all},
	} {
		fault, want := c.fault, 2
		if c.told > 0 {
			want = 0 // nothing longer is asked
		}
		for _, kind := range c.kinds {
			t.Run(string(fault)+" "+kind, func(t *testing.T) {
				t.Parallel()
				b := bus(t, slave.Config{Faults: slave.Faults{fault: c.rate}, Seed: 7, Late: 200 * time.Millisecond, Away: 300 * time.Millisecond, Baud: 19200},
					map[uint8]*slave.Unit{7: unit(t, "eastron-sdm630", slave.UnitConfig{}, everything...)})
				l := gateway(t, serveOn(t, b, kind))
				p := *unit(t, "eastron-sdm630", slave.UnitConfig{}).Profile()
				if c.told > 0 {
					p.Timing.MaxBlock = c.told
				}
				readings := make(chan meter.Reading, 64)
				r := reader.New(reader.Config{
					Device: "grid", Profile: &p, Unit: 7, Interval: 30 * time.Millisecond,
					Register: l.Device(modbus.DeviceConfig{Unit: 7, MaxBlock: int(p.Timing.MaxBlock)}),
					Deliver: func(r meter.Reading) {
						select {
						case readings <- r:
						default:
						}
					},
				})
				background(t, r.Run)
				limit := time.After(60 * time.Second)
				whole := c.good - 1 // readings with every point
				if fault != slave.BlockLimit && fault != slave.BlockCut {
					whole = 1
				}
				for good := 0; good < c.good || whole > 0 || b.Stats().Faults[fault] < want; {
					select {
					case got := <-readings:
						for _, want := range everything {
							if v, ok := got.Value(want.Quantity, want.Phase); ok && v != want.Value {
								t.Fatalf("%s is %d, want %d", meter.PointName(want.Quantity, want.Phase), v, want.Value)
							}
						}
						lacks := slices.ContainsFunc(everything, func(p meter.Point) bool {
							_, ok := got.Value(p.Quantity, p.Phase)
							return !ok
						})
						if _, ok := got.Import(); ok && got.Quality == meter.Good {
							good++
							if !lacks {
								whole--
							}
						}
					case <-time.After(20 * time.Millisecond): // to look at the faults again
					case <-limit:
						t.Fatalf("%d good readings, %+v, last error %v", good, b.Stats(), r.Err())
					}
				}
			})
		}
	}
}

// Some inverters confirm a write with nonsense. Whether it was taken is read
// back, on every kind of line; a device that ignored it is not believed.
func TestMalformedConfirmation(t *testing.T) {
	bits := math.Float32bits(13.5)
	limit := drivers.Write{Function: drivers.WriteMultiple, Address: 1210, Values: []uint16{uint16(bits >> 16), uint16(bits)}}
	for _, kind := range []string{"pty", "tcp", "rtutcp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			u := unit(t, "alfen-eve", slave.UnitConfig{}, truth[0])
			b := bus(t, slave.Config{Faults: slave.Faults{slave.FC16: 1}, Baud: 19200}, map[uint8]*slave.Unit{1: u})
			dev := gateway(t, serveOn(t, b, kind)).Device(modbus.DeviceConfig{Unit: 1})
			if err := dev.Write(t.Context(), limit); err != nil {
				t.Error(err)
			}
			for addr, want := range map[uint16]float32{1210: 13.5, 306: 230.1} {
				if got := eventually(t, dev, addr); got != want {
					t.Errorf("register %d is %g, want %g", addr, got, want)
				}
			}
			if b.Stats().Faults[slave.FC16] != 1 {
				t.Errorf("%+v", b.Stats())
			}
		})
	}
}

// The commands of profiles reach the devices with the function, the words and
// the scale that these want: a coil, one register with function 16, a number
// of two registers.
func TestCommandsOfProfiles(t *testing.T) {
	for _, c := range []struct {
		profile, name string
		value         int64
	}{
		{"phoenix-em-cp-pp-eth", "enable", 1},
		{"phoenix-em-cp-pp-eth", "enable", 0},
		{"phoenix-em-cp-pp-eth", "current_limit", 13_000},
		{"phoenix-charx", "current_limit", 16_000},
		{"heidelberg-energy-control", "current_limit", 13_500},
		{"abl-emh1", "current_limit", 16_020},
		{"abl-emh1", "enable", 1},
		{"alfen-eve", "current_limit", 13_500},
		{"abb-terra-ac", "current_limit", 12_345},
		{"peblar", "current_limit", 31_999},
	} {
		for _, kind := range []string{"pty", "tcp"} {
			t.Run(fmt.Sprintf("%s %s %d %s", c.profile, c.name, c.value, kind), func(t *testing.T) {
				t.Parallel()
				var u *slave.Unit
				got := make(chan int64, 8)
				u = unit(t, c.profile, slave.UnitConfig{OnWrite: func(addr uint16, values []uint16) error {
					if v, ok := u.Command(c.name, addr, values); ok {
						got <- v
					}
					return nil
				}})
				b := bus(t, slave.Config{Baud: 19200}, map[uint8]*slave.Unit{1: u})
				dev := gateway(t, serveOn(t, b, kind)).Device(modbus.DeviceConfig{Unit: 1})
				w, ok := u.Profile().Write(c.name)
				if !ok {
					t.Fatal("the profile has no such command")
				}
				cmd, err := w.Encode(c.value, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := dev.Write(t.Context(), drivers.Write{Function: drivers.Function(cmd.Function), Address: cmd.Address, Values: cmd.Values, Verify: true}); err != nil {
					t.Fatal(err)
				}
				if v := <-got; v != c.value || len(got) > 0 {
					t.Errorf("the device was told %d and %d more, want %d", v, len(got), c.value)
				}
			})
		}
	}
}

// A meter that takes the place of another one on a real line, with the same
// address and the same counts, is not believed until a person says so.
func TestExchangedMeter(t *testing.T) {
	for _, kind := range []string{"pty", "tcp", "rtutcp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			meterOf := func(serial string) *slave.Unit {
				return unit(t, "eastron-sdm630", slave.UnitConfig{Identity: profile.Identity{Serial: serial}}, truth...)
			}
			b := bus(t, slave.Config{Baud: 19200}, map[uint8]*slave.Unit{7: meterOf("1001")})
			l := gateway(t, serveOn(t, b, kind))
			readings := make(chan meter.Reading, 256)
			r := reader.New(reader.Config{
				Device: "grid", Profile: meterOf("").Profile(), Unit: 7, Interval: 30 * time.Millisecond,
				Register: l.Device(modbus.DeviceConfig{Unit: 7, Class: modbus.Fast}),
				Slow:     l.Device(modbus.DeviceConfig{Unit: 7, Class: modbus.Slow}),
				Deliver: func(r meter.Reading) {
					select {
					case readings <- r:
					default:
					}
				},
			})
			background(t, r.Run)
			wait := func(want meter.Quality) meter.Reading {
				t.Helper()
				for limit := time.After(60 * time.Second); ; {
					select {
					case got := <-readings:
						if got.Quality == want {
							return got
						}
					case <-limit:
						t.Fatalf("no %s reading, last error %v", want, r.Err())
					}
				}
			}
			wait(meter.Good)
			b.Remove(7)
			if err := b.Add(7, meterOf("1002")); err != nil {
				t.Fatal(err)
			}
			if got := wait(meter.Suspect); !strings.Contains(got.Reason, `serial number is "1002", was "1001"`) {
				t.Fatal(got.Reason)
			}
			r.Rebase()
			wait(meter.Good)
			if id := r.State().Pinned; id.Serial != "1002" {
				t.Errorf("pinned to %+v", id)
			}
		})
	}
}

// eventually reads a floating point number as soon as the line has recovered.
func eventually(t *testing.T, dev drivers.Register, addr uint16) float32 {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		data, err := dev.ReadRegisters(t.Context(), drivers.HoldingRegisters, addr, 2)
		if err == nil {
			return math.Float32frombits(binary.BigEndian.Uint32(data))
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A device for one client resets a second one, and takes it when the first has
// gone.
func TestSingleClient(t *testing.T) {
	f, rate, err := slave.ParseFault("single-client")
	if err != nil {
		t.Fatal(err)
	}
	b := bus(t, slave.Config{Faults: slave.Faults{f: rate}}, map[uint8]*slave.Unit{1: unit(t, "alfen-eve", slave.UnitConfig{}, truth[0])})
	cfg := serveOn(t, b, "tcp")
	first, err := net.Dial("tcp", cfg.TCP)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	ask(t, first)
	dev := gateway(t, cfg).Device(modbus.DeviceConfig{Unit: 1})
	if data, err := dev.ReadRegisters(t.Context(), drivers.HoldingRegisters, 306, 2); err == nil {
		t.Fatalf("the second client is served: % x", data)
	}
	if b.Stats().Refused == 0 {
		t.Errorf("%+v", b.Stats())
	}
	ask(t, first) // who is undisturbed
	_ = first.Close()
	if got := eventually(t, dev, 306); got != 230.1 {
		t.Errorf("%g V", got)
	}
	// Now the gateway is the first.
	second, err := net.Dial("tcp", cfg.TCP)
	if err == nil {
		defer func() { _ = second.Close() }()
		_ = second.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := second.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("the second client gets %d bytes, %v", n, err)
		}
	}
	if got := eventually(t, dev, 306); got != 230.1 {
		t.Errorf("%g V", got)
	}
}

// ask reads register 306 over Modbus TCP.
func ask(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte{0, 1, 0, 0, 0, 6, 1, 3, 1, 0x32, 0, 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 13)); err != nil {
		t.Fatal(err)
	}
}

func TestParseFault(t *testing.T) {
	for text, want := range map[string]float64{"late:0.1": 0.1, "block-limit:10": 10, "block-cut:1": 1, "single-client": 1, "unplug:0": 0, "fc16:1": 1} {
		if f, r, err := slave.ParseFault(text); err != nil || r != want || !strings.HasPrefix(text, string(f)) {
			t.Errorf("%s: %s %g, %v", text, f, r, err)
		}
	}
	for _, text := range []string{"block-limit", "block-limit:0", "block-limit:125", "block-limit:1.5", "block-cut:-1", "single-client:0.5", "unplug:2", "fc16"} {
		if f, r, err := slave.ParseFault(text); err == nil {
			t.Errorf("%s is %s %g", text, f, r)
		}
	}
	b, err := slave.NewBus(slave.Config{Faults: slave.Faults{slave.Unplug: 1}})
	if err != nil {
		t.Fatal(err)
	}
	pty, err := slave.OpenPTY("")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pty.Close() }()
	if err := b.ServePTY(t.Context(), pty); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a terminal without a link can be unplugged: %v", err)
	}
}
