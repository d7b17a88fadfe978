package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
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
		car             string
		unit, baud      int
		model           uint16
		paced           bool
		set             []string
	)
	cmd := &cobra.Command{
		Use:   "meter --profile ID (--pty LINK | --listen tcp://HOST:PORT)",
		Short: "Serve a simulated meter, inverter or wallbox",
		Long: `Serve a simulated device until interrupted. It follows the day: a house draws
power, an inverter produces while the sun shines, a battery takes the surplus
and gives it back, a car takes the current that the wallbox is told to offer,
energy registers count. What is given with --set stays as it is set.`,
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
			if len(car) != 1 {
				return usageError{fmt.Errorf("--car %q: want one letter, A..F", car)}
			}
			device, err := slave.NewPhysics(slave.PhysicsConfig{Profile: p, Model: model, Seed: faults.seed, Car: car[0], Fixed: fixed})
			if err != nil {
				return usageError{err}
			}
			if err := device.Step(time.Now(), 0); err != nil {
				return usageError{err}
			}
			if err := bus.Add(address, device.Unit()); err != nil {
				return usageError{err}
			}
			return simServe(cmd, bus, device, address, listen, pty)
		},
	}
	folder.add(cmd)
	f := cmd.Flags()
	f.StringVar(&id, "profile", "", "what to simulate, an `ID` of: joulegate meter profiles")
	f.StringVar(&listen, "listen", "", "serve at tcp://HOST:PORT (Modbus TCP) or rtutcp://HOST:PORT; port 0 takes a free one")
	f.StringVar(&pty, "pty", "", "serve RTU on a new pseudo-terminal and make `LINK` point to it")
	f.IntVar(&unit, "unit", 0, "Modbus unit id, 1..247 (default: as the device leaves the factory)")
	f.IntVar(&baud, "baud", 0, "answer only at this speed; 0: at any (default: as the device leaves the factory)")
	f.StringVar(&car, "car", "C", "what stands at a wallbox, a `STATE` of IEC 61851-1: A nothing, B a full car, C one that charges, D one that wants ventilation too, E a pilot without supply, F a wallbox out of order")
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

// simServe serves until the command is interrupted.
func simServe(cmd *cobra.Command, bus *slave.Bus, device *slave.Physics, unit uint8, listen, pty string) error {
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
	err := emit(cmd, map[string]any{"profile": device.Unit().Profile().ID, "unit": unit, "at": where}, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%s unit %d at %s, until interrupted\n", device.Unit().Profile().ID, unit, where)
		return err
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(cmd.Context())
	g.Go(func() error { return serve(ctx) })
	g.Go(func() error { return follow(ctx, device) })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// follow moves a simulated device through the day.
func follow(ctx context.Context, p *slave.Physics) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			if err := p.Step(now, now.Sub(last)); err != nil {
				return err
			}
			last = now
		}
	}
}
