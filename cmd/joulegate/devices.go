package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/gpio"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/reader"
	"github.com/joulegate/joulegate/drivers/wallbox"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/meter/session"
	"golang.org/x/sync/errgroup"
)

// devices is everything outside the box: lines with their meters, and pins.
type devices struct {
	lines    map[string]*modbus.Line
	readers  []*reader.Reader
	profiles map[string]*profile.Profile // by device id
	boxes    map[uint8]*wallbox.Box      // by charger
	library  *profile.Library            // nil: the built-in profiles
	pins     *pins
	reflex   *reflexes
}

// openDevices opens lines and pins. An error names the device and closes what
// was opened.
func openDevices(cfg config.Config, log *slog.Logger) (_ *devices, err error) {
	d := &devices{lines: map[string]*modbus.Line{}, profiles: map[string]*profile.Profile{}, boxes: map[uint8]*wallbox.Box{}}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if cfg.Profiles != "" {
		if d.library, err = profile.Load(os.DirFS(cfg.Profiles)); err != nil {
			return nil, fmt.Errorf("profiles %s: %w", cfg.Profiles, err)
		}
	}
	for _, l := range cfg.Lines {
		d.lines[l.ID], err = modbus.New(modbus.Config{
			Device: l.Device, TCP: l.TCP, RTUTCP: l.RTUTCP, Baud: l.Baud, Framing: l.Framing, Timeout: l.Timeout.D(),
			Absent: true, // the ledger and the page do not wait for somebody with a cable
			Logger: log.With("line", l.ID),
		})
		if err != nil {
			return nil, fmt.Errorf("line %s: %w", l.ID, err)
		}
	}
	hardware, err := cfg.Hardware()
	if err != nil {
		return nil, err
	}
	d.reflex = newReflexes(cfg, log.With("part", "reflex"))
	d.pins = &pins{hardware, d.reflex, d.reflex.close}
	warnBoard(cfg.Board, log)
	return d, nil
}

// close gives lines and pins back.
func (d *devices) close() {
	if d.pins != nil {
		_ = d.pins.close() // the station has read back that its relays are open
	}
}

// register returns the registers of one device on a line.
func (d *devices) register(line string, unit uint8, name string, p *profile.Profile, class modbus.Class) drivers.Writer {
	return d.lines[line].Device(modbusDevice(p, unit, name, class))
}

// addMeters makes a reader for each meter. resume says where a meter's page
// and energy registers stood before a restart.
func (d *devices) addMeters(cfg config.Config, origin time.Time, resume func(id string) poll.State, deliver func(meter.Reading), log *slog.Logger) error {
	for _, m := range cfg.Meters {
		p, err := d.library.Get(m.Profile)
		if err != nil {
			return fmt.Errorf("meter %s: %w", m.ID, err)
		}
		if m.Invert {
			p = p.Swapped()
		}
		d.profiles[m.ID] = p
		d.readers = append(d.readers, reader.New(reader.Config{
			Device: m.ID, Profile: p, Unit: m.Unit, Interval: m.Interval.D(), Origin: origin,
			Register: d.register(m.Line, m.Unit, m.ID, p, modbus.Fast),
			Slow:     d.register(m.Line, m.Unit, m.ID, p, modbus.Slow),
			Where:    whereIs(d.lines[m.Line]),
			Limits:   poll.Limits{MaxPower: meter.MilliWatt(m.MaxPower) * 1000, StaleAfter: cfg.Timing.StaleAfter.D()},
			State:    resume(m.ID), Deliver: deliver, Logger: log,
		}))
	}
	return nil
}

// whereIs says where the device at the other end of a network line is.
func whereIs(l *modbus.Line) func() poll.Identity {
	return func() (id poll.Identity) {
		id.Address, id.Hardware = l.Peer()
		return id
	}
}

// addChargers gives the station's chargers their hardware.
func (d *devices) addChargers(cfg config.Config, chargers []station.Charger) error {
	for i, h := range cfg.Chargers {
		c := &chargers[i]
		for _, out := range []struct {
			what, pin string
			to        *drivers.Relay
		}{{"relay", h.Relay, &c.Relay}, {"shunt trip", h.Trip, &c.Trip}} {
			if out.pin == "" {
				continue
			}
			relay, err := openPin(d.pins, out.pin, gpio.NewRelay)
			if err != nil {
				return fmt.Errorf("charger %d: %s: %w", h.ID, out.what, err)
			}
			*out.to = relay
		}
		for _, in := range []struct {
			what, pin string
			to        *drivers.Input
		}{
			{"emergency stop", h.EStop, &c.EStop},
			{"feedback", h.Feedback, &c.Feedback},
			{"pilot", h.Pilot, &c.Pilot},
			{"earth fault", h.EarthFault, &c.Earth},
			{"stop button", h.StopButton, &c.StopButton},
		} {
			if in.pin == "" {
				continue
			}
			contact, err := openPin(d.pins, in.pin, inputPin)
			if err != nil {
				return fmt.Errorf("charger %d: %s: %w", h.ID, in.what, err)
			}
			*in.to = contact
		}
		if h.TempSensor != "" {
			c.Thermometer = sensorFile(h.TempSensor)
		}
		if h.EVSE.Fitted() {
			p, err := d.library.Get(h.EVSE.Profile)
			if err != nil {
				return fmt.Errorf("charger %d: %w", h.ID, err)
			}
			box, err := wallbox.New(d.register(h.EVSE.Line, h.EVSE.Unit, fmt.Sprintf("charger %d", h.ID), p, modbus.Safety), p)
			if err != nil {
				return fmt.Errorf("charger %d: %w", h.ID, err)
			}
			c.Limiter, d.boxes[h.ID] = box, box
		}
	}
	return nil
}

// inputPin opens a pin as what the station reads.
func inputPin(o gpio.Opener, p board.Pin) (drivers.Input, error) { return gpio.NewInput(o, p) }

// sensorFile is a temperature as Linux shows sensors: hwmon's temp1_input, a
// thermal zone's temp, a 1-Wire sensor's temperature.
type sensorFile string

// Temperature implements station.Thermometer.
func (f sensorFile) Temperature(context.Context) (session.MilliCelsius, error) {
	b, err := os.ReadFile(string(f))
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || v < -100_000 || v > 1_000_000 {
		return 0, fmt.Errorf("%s: %q is no temperature in 1/1000 degree Celsius", string(f), short(b))
	}
	return session.MilliCelsius(v), nil
}

func short(b []byte) string { return string(b[:min(len(b), 32)]) }

// run polls until ctx ends.
func (d *devices) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range d.lines {
		g.Go(func() error { return quiet(ctx, l.Run(ctx)) })
	}
	for _, r := range d.readers {
		g.Go(func() error { return quiet(ctx, r.Run(ctx)) })
	}
	return g.Wait()
}

// quiet drops the error of a Run that ended because it was told to.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err()) || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// serial returns a number that tells this device from others of its kind, as
// far as the configuration knows it.
func serial(cfg config.Config, self chain.Key, id string) string {
	for _, m := range cfg.Meters {
		if m.ID == id {
			return fmt.Sprintf("%s-%s-%d", self.Short(), m.Line, m.Unit)
		}
	}
	return self.Short() + "-" + id
}
