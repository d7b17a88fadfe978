package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

func newSimCmd() *cobra.Command {
	var faults simFaults
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Simulate devices",
	}
	f := cmd.PersistentFlags()
	f.StringArrayVar(&faults.specs, "fault", nil, "misbehave: `KIND:RATE` of late, crc, split, exception, silence, echo, wrong-unit, fc16, unplug and 0..1, or block-limit:N, block-cut:N (registers per read), single-client; may be repeated")
	f.Uint64Var(&faults.seed, "seed", 1, "of the faults and of the weather")
	f.DurationVar(&faults.late, "late", time.Second, "how late a late answer is")
	f.DurationVar(&faults.away, "away", 2*time.Second, "how long an unplugged device is away")
	cmd.AddCommand(newSimMeterCmd(&faults))
	return cmd
}

type simFaults struct {
	specs []string
	seed  uint64
	late  time.Duration
	away  time.Duration
}

func (s *simFaults) parse() (slave.Faults, error) {
	out := slave.Faults{}
	for _, spec := range s.specs {
		for one := range strings.SplitSeq(spec, ",") {
			f, rate, err := slave.ParseFault(one)
			if err != nil {
				return nil, fmt.Errorf("--fault: %w", err)
			}
			out[f] = rate
		}
	}
	return out, nil
}

func newSimMeterCmd(faults *simFaults) *cobra.Command {
	var (
		folder          profilesFlag
		id, listen, pty string
		unit, baud      int
		model           uint16
		paced           bool
		set             []string
	)
	cmd := &cobra.Command{
		Use:   "meter --profile ID (--pty LINK | --listen tcp://HOST:PORT)",
		Short: "Serve a simulated meter, inverter or wallbox",
		Long: `Serve a simulated device until interrupted. It follows the day: a house draws
power, an inverter produces while the sun shines, energy registers count. What
is given with --set stays as it is set.`,
		Example: `  joulegate sim meter --profile eastron-sdm630 --pty /tmp/meter
  joulegate sim meter --profile sunspec-inverter --listen tcp://127.0.0.1:5020 --set power_mw=-2500000
  joulegate sim meter --profile eastron-sdm120 --listen rtutcp://127.0.0.1:5021 --fault late:0.1 --seed 7`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id == "" {
				return usageError{errors.New("--profile is needed: see joulegate meter profiles")}
			}
			library, err := folder.load()
			if err != nil {
				return err
			}
			p, err := library.Get(id)
			if err != nil {
				return usageError{err}
			}
			if (listen == "") == (pty == "") {
				return usageError{errors.New("say where to serve with one of --pty LINK and --listen tcp://HOST:PORT or rtutcp://HOST:PORT")}
			}
			address, err := unitFlag(cmd, unit, p, strings.HasPrefix(listen, "tcp://"))
			if err != nil {
				return usageError{err}
			}
			rates, err := faults.parse()
			if err != nil {
				return usageError{err}
			}
			fixed, err := parsePoints(p, set)
			if err != nil {
				return usageError{err}
			}
			if !cmd.Flags().Changed("baud") {
				baud = p.Serial.Baud
			}
			logger, err := newLogger(cmd)
			if err != nil {
				return err
			}
			bus, err := slave.NewBus(slave.Config{Faults: rates, Seed: faults.seed, Late: faults.late, Away: faults.away, Baud: baud, StopBits: stopBits(p), Parity: p.Serial.Framing == "8E1", Paced: paced, Logger: logger})
			if err != nil {
				return usageError{err}
			}
			w := weather{fixed: fixed, seed: faults.seed}
			if w.unit, err = simUnit(p, model, &w.car); err != nil {
				return usageError{err}
			}
			if err := w.step(time.Now(), 0); err != nil {
				return usageError{err}
			}
			if err := bus.Add(address, w.unit); err != nil {
				return usageError{err}
			}
			return simServe(cmd, bus, &w, address, listen, pty)
		},
	}
	folder.add(cmd)
	f := cmd.Flags()
	f.StringVar(&id, "profile", "", "what to simulate, an `ID` of: joulegate meter profiles")
	f.StringVar(&listen, "listen", "", "serve at tcp://HOST:PORT (Modbus TCP) or rtutcp://HOST:PORT; port 0 takes a free one")
	f.StringVar(&pty, "pty", "", "serve RTU on a new pseudo-terminal and make `LINK` point to it")
	f.IntVar(&unit, "unit", 0, "Modbus unit id, 1..247 (default: as the device leaves the factory)")
	f.IntVar(&baud, "baud", 0, "answer only at this speed; 0: at any (default: as the device leaves the factory)")
	f.BoolVar(&paced, "paced", false, "take as long on the pseudo-terminal as a real wire")
	f.Uint16Var(&model, "model", 0, "SunSpec model (default: the profile's first)")
	f.StringArrayVar(&set, "set", nil, "hold points at `NAME=VALUE`, for example power_mw=1500000; may be repeated")
	return cmd
}

func stopBits(p *profile.Profile) int {
	if p.Serial.Framing == "8N2" {
		return 2
	}
	return 1
}

// parsePoints reads name=value pairs, named as in readings.
func parsePoints(p *profile.Profile, specs []string) ([]meter.Point, error) {
	var out []meter.Point
	for _, spec := range specs {
		for one := range strings.SplitSeq(spec, ",") {
			name, text, ok := strings.Cut(one, "=")
			v, err := strconv.ParseInt(text, 10, 64)
			if !ok || err != nil {
				return nil, fmt.Errorf("--set %q: want NAME=INTEGER, for example power_mw=1500000", one)
			}
			pt, err := parsePointName(name)
			if err != nil {
				return nil, fmt.Errorf("--set %q: %w", one, err)
			}
			if !p.Has(pt.Quantity, pt.Phase) {
				return nil, fmt.Errorf("--set %q: profile %s has no such point", one, p.ID)
			}
			pt.Value = v
			out = append(out, pt)
		}
	}
	return out, nil
}

// parsePointName is the inverse of meter.PointName.
func parsePointName(name string) (meter.Point, error) {
	for q := meter.Power; q.Valid(); q++ {
		for phase := range uint8(4) {
			if meter.PointName(q, phase) == name {
				return meter.Point{Quantity: q, Phase: phase}, nil
			}
		}
	}
	return meter.Point{}, fmt.Errorf("no point is called %q: names are like power_mw, voltage_l1_mv", name)
}

// car is what a simulated wallbox offers to a vehicle, which takes it.
type car struct{ limit atomic.Int64 } // mA, 0: paused

// simUnit makes a unit. A wallbox offers what it is told to, and a car takes
// it.
func simUnit(p *profile.Profile, model uint16, c *car) (*slave.Unit, error) {
	var u *slave.Unit
	u, err := slave.NewUnit(p, slave.UnitConfig{Model: model, OnWrite: func(addr uint16, values []uint16) error {
		ma, ok := u.Command("current_limit", addr, values)
		if !ok {
			return nil
		}
		c.limit.Store(ma)
		letter := "B" // connected
		if ma >= 6000 {
			letter = "C" // charging
		}
		var now []meter.Point
		if status, ok := p.StateCode(letter); ok {
			now = append(now, meter.Point{Quantity: meter.Status, Value: status})
		}
		if u.Has(meter.CurrentLimit, 0) {
			now = append(now, meter.Point{Quantity: meter.CurrentLimit, Value: ma})
		}
		return u.Set(now...)
	}})
	return u, err
}

// simServe serves until the command is interrupted.
func simServe(cmd *cobra.Command, bus *slave.Bus, w *weather, unit uint8, listen, pty string) error {
	var (
		serve func(context.Context) error
		where string
	)
	if pty != "" {
		t, err := slave.OpenPTY(pty)
		if err != nil {
			return fmt.Errorf("pseudo-terminal %s: %w", pty, err)
		}
		defer func() { _ = t.Close() }()
		serve = func(ctx context.Context) error { return bus.ServePTY(ctx, t) }
		where = t.Name()
	} else {
		scheme, addr, _ := strings.Cut(listen, "://")
		if scheme != "tcp" && scheme != "rtutcp" || addr == "" {
			return usageError{fmt.Errorf("--listen %q: want tcp://HOST:PORT or rtutcp://HOST:PORT", listen)}
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", listen, err)
		}
		serve = func(ctx context.Context) error { return bus.ServeTCP(ctx, ln) }
		if scheme == "rtutcp" {
			serve = func(ctx context.Context) error { return bus.ServeRTUTCP(ctx, ln) }
		}
		where = scheme + "://" + ln.Addr().String()
	}
	err := emit(cmd, map[string]any{"profile": w.unit.Profile().ID, "unit": unit, "at": where}, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%s unit %d at %s, until interrupted\n", w.unit.Profile().ID, unit, where)
		return err
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(cmd.Context())
	g.Go(func() error { return serve(ctx) })
	g.Go(func() error { return w.run(ctx) })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// weather moves a simulated device through the day.
type weather struct {
	unit  *slave.Unit
	fixed []meter.Point
	seed  uint64
	car   car

	imported, exported float64 // mWh since the start
}

// Registers of a device that has been in service for a while, mWh.
const (
	simImport = 1_234_567_000
	simExport = 345_678_000
)

func (w *weather) run(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			if err := w.step(now, now.Sub(last)); err != nil {
				return err
			}
			last = now
		}
	}
}

// power is what flows at a time of day, in mW, import positive.
func (w *weather) power(now time.Time) int64 {
	if i := slices.IndexFunc(w.fixed, func(p meter.Point) bool { return p.Quantity == meter.Power && p.Phase == 0 }); i >= 0 {
		return w.fixed[i].Value
	}
	t := float64(now.UnixMilli())/1000 + float64(w.seed%100_000)
	hour := float64(now.Hour()) + float64(now.Minute())/60
	switch w.unit.Profile().Kind {
	case profile.Inverter: // a 6 kW roof under passing clouds
		sun := max(0, math.Sin((hour-6)/12*math.Pi))
		clouds := 0.85 + 0.15*math.Sin(t/17)*math.Sin(t/41)
		return -int64(6_000_000 * sun * clouds)
	case profile.Wallbox: // a car on three lines that takes what is offered
		return w.car.limit.Load() * 230 * 3
	case profile.Battery: // charges and discharges with 2 kW
		return int64(2_000_000 * math.Sin(t/97))
	case profile.Meter: // a house with a refrigerator and somebody at home
		house := 350_000 + 250_000*(1+math.Sin(t/29)) + 60_000*(1+math.Sin(t/5))
		if math.Sin(t/211) > 0.7 {
			house += 1_800_000 // a kettle
		}
		return int64(house)
	}
	return 0
}

// step lets dt pass and sets all points that the device has.
func (w *weather) step(now time.Time, dt time.Duration) error {
	p := w.unit.Profile()
	power := w.power(now)
	energy := math.Abs(float64(power)) * dt.Hours()
	if power > 0 {
		w.imported += energy
	} else {
		w.exported += energy
	}
	phases := int64(0)
	for phase := range uint8(3) {
		if w.unit.Has(meter.Voltage, phase+1) || w.unit.Has(meter.Current, phase+1) || w.unit.Has(meter.Power, phase+1) {
			phases++
		}
	}
	swing := math.Sin(float64(now.UnixMilli()) / 7000)
	voltage := 230_000 + int64(1500*swing)
	var points []meter.Point
	set := func(q meter.Quantity, phase uint8, v int64) {
		held := slices.ContainsFunc(w.fixed, func(f meter.Point) bool { return f.Quantity == q && f.Phase == phase })
		if w.unit.Has(q, phase) && !held {
			points = append(points, meter.Point{Quantity: q, Phase: phase, Value: v})
		}
	}
	for phase := range uint8(4) {
		share := int64(1) // of the total
		if phase > 0 {
			share = max(phases, 1)
			set(meter.Voltage, phase, voltage+int64(phase)*100)
			set(meter.Import, phase, (simImport+int64(w.imported))/share)
			set(meter.Export, phase, (simExport+int64(w.exported))/share)
		}
		set(meter.Power, phase, power/share)
		set(meter.ApparentPower, phase, max(power, -power)/share)
		set(meter.ReactivePower, phase, 0)
		set(meter.PowerFactor, phase, 1000)
		set(meter.Current, phase, max(power, -power)*1000/voltage/share)
	}
	set(meter.Frequency, 0, 50_000+int64(15*swing))
	set(meter.Import, 0, simImport+int64(w.imported))
	set(meter.Export, 0, simExport+int64(w.exported))
	set(meter.Energy, 0, simImport+simExport+int64(w.imported+w.exported))
	set(meter.BatteryPower, 0, int64(800_000*swing))
	set(meter.StateOfCharge, 0, 650)
	set(meter.Temperature, 0, 31_000)
	set(meter.SessionEnergy, 0, int64(w.imported)%200_000_000)
	switch status, ok := p.StateCode("A"); {
	case dt > 0: // what a command has changed stays
	case p.Kind == profile.Inverter:
		set(meter.Status, 0, 4) // producing
	case ok:
		set(meter.Status, 0, status)
	default:
		set(meter.Status, 0, 1)
	}
	set(meter.Firmware, 0, 10)
	return w.unit.Set(append(points, w.fixed...)...)
}
