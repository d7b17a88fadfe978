// Package street puts a simulated neighbourhood where gateways expect a real
// one: behind serial lines and pins.
//
//	            tools/sim/house (physics)
//	   powers, registers │        ▲ relay, offered current
//	                     ▼        │
//	per house:   tools/sim/slave  simpin.Server
//	                 │ RTU frames      │ unix socket
//	               pty               pins.sock
//	                 └───── gateway ────┘
//
// Where a gateway runs in an emulated machine, its serial adapter is a
// connection instead of a pty, and the relay is moved by whoever watches the
// machine's pins (Config.Listen, SetRelay).
//
// Nothing here knows what a gateway does. It draws no conclusion from a
// session or a ledger: a car charges if, and only if, the relay is closed and
// current is offered.
package street

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board/boards"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers/gpio/simpin"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/house"
	"github.com/joulegate/joulegate/tools/sim/slave"
	"golang.org/x/sync/errgroup"
)

// Baud is the speed of every line. Lines are paced: frames take as long as
// on a wire.
const Baud = 19200

// Bidirectional is the profile of wallboxes that take power out of cars.
const Bidirectional = "generic-dc-bidirectional"

// Relay is the pin of the contactor, as the simulated board names it.
const Relay = "RELAY1"

const (
	stepEvery = 50 * time.Millisecond  // physics
	showEvery = 250 * time.Millisecond // registers of the devices
)

// Config describes a street.
type Config struct {
	Dir  string // each house's pty link and pin socket lie in Dir/<name>
	Seed uint64
	// Houses; the first also holds the meter between the street and the
	// public grid.
	Houses []house.HouseConfig
	// Listen, if set, makes the line of a house: RTU frames over connections
	// instead of a pty. Such a house has no pins of its own.
	Listen func(name string) (net.Listener, error)
	Log    *slog.Logger
}

// Device is one Modbus device of a house.
type Device struct {
	ID      string
	Unit    uint8
	Profile string
	Role    chain.Role // zero: not a meter but the charge controller
	Wallbox bool       // a session meter that is the charger as well, and has no relay of the gateway
}

// House is one house as an installer finds it.
type House struct {
	Name    string
	Line    string // serial device, or address of a listener
	Pins    string // socket of the simulated pins; empty without charger
	Phases  int
	Devices []Device
}

// Street is a running neighbourhood. Its methods are safe for concurrent use.
type Street struct {
	cfg    Config
	houses []House
	lines  []line
	buses  []*slave.Bus
	pins   []*simpin.Server
	inputs map[int]*simpin.Server // of houses that have pins
	shown  []shown

	mu      sync.Mutex
	n       *house.Neighbourhood
	masters map[int]*slave.Master // of bidirectional wallboxes, by house
}

// line is where a bus is reached.
type line interface {
	serve(ctx context.Context, bus *slave.Bus) error
	name() string
	close()
}

type ptyLine struct{ *slave.PTY }

func (l ptyLine) serve(ctx context.Context, bus *slave.Bus) error { return bus.ServePTY(ctx, l.PTY) }
func (l ptyLine) name() string                                    { return l.Name() }
func (l ptyLine) close()                                          { l.Close() }

type connLine struct{ net.Listener }

func (l connLine) serve(ctx context.Context, bus *slave.Bus) error {
	return bus.ServeRTUTCP(ctx, l.Listener)
}
func (l connLine) name() string { return l.Addr().String() }
func (l connLine) close()       { l.Listener.Close() }

// shown is a device and what it shows.
type shown struct {
	unit   *slave.Unit
	points func() []meter.Point // called with mu held
	has    map[string]bool      // points that the profile can show
}

// Default returns the configuration of n houses, sunny, of which some have a
// charger.
func Default(dir string, seed uint64, n int) Config {
	names := [...]string{"north", "east", "south", "west"}
	kinds := [...]house.HouseConfig{
		{Phases: 3, PV: 10_000, Charger: true},
		{Phases: 3, Charger: true},
		{Phases: 3, PV: 8_000},
		{Phases: 1, PV: 2_000, Charger: true},
	}
	cfg := Config{Dir: dir, Seed: seed}
	for i := range n {
		h := kinds[i%len(kinds)]
		h.Name = names[i%len(names)]
		if i >= len(names) {
			h.Name += fmt.Sprint(i/len(names) + 1)
		}
		cfg.Houses = append(cfg.Houses, h)
	}
	return cfg
}

// New makes lines and pins. Nothing moves before Run.
func New(cfg Config) (_ *Street, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Street{cfg: cfg, masters: map[int]*slave.Master{}, inputs: map[int]*simpin.Server{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.n, err = house.New(house.Config{Seed: cfg.Seed, Houses: cfg.Houses, Start: 12 * time.Hour, EternalDay: true}); err != nil {
		return nil, err
	}
	for i, h := range cfg.Houses {
		if err := s.build(i, h); err != nil {
			return nil, fmt.Errorf("house %s: %w", h.Name, err)
		}
	}
	return s, nil
}

func (s *Street) build(i int, h house.HouseConfig) error {
	dir := filepath.Join(s.cfg.Dir, h.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	bus, err := slave.NewBus(slave.Config{Seed: s.cfg.Seed + uint64(i), Baud: Baud, Paced: true, Turnaround: 5 * time.Millisecond})
	if err != nil {
		return err
	}
	l, err := s.open(h.Name, dir)
	if err != nil {
		return err
	}
	s.buses, s.lines = append(s.buses, bus), append(s.lines, l)
	home := s.n.House(i)
	out := House{Name: h.Name, Line: l.name(), Phases: max(h.Phases, 1)}
	add := func(id string, unit uint8, prof string, role chain.Role, points func() []meter.Point, write func(u *slave.Unit, addr uint16, v []uint16) error) error {
		p, err := profile.Get(prof)
		if err != nil {
			return err
		}
		var u *slave.Unit
		cfg := slave.UnitConfig{}
		if m := s.masters[i]; m != nil && role == chain.RoleCharger {
			cfg.OnRequest = func(fn uint8, addr uint16, v []uint16) {
				s.mu.Lock()
				defer s.mu.Unlock()
				m.Request(fn, addr, v)
			}
		}
		if write != nil {
			cfg.OnWrite = func(addr uint16, v []uint16) error { return write(u, addr, v) }
		}
		if u, err = slave.NewUnit(p, cfg); err != nil {
			return err
		}
		d := shown{unit: u, points: points, has: map[string]bool{}}
		for _, pt := range points() {
			d.has[pt.Name()] = u.Set(pt) == nil
		}
		s.shown = append(s.shown, d)
		out.Devices = append(out.Devices, Device{ID: id, Unit: unit, Profile: prof, Role: role, Wallbox: role == chain.RoleCharger && h.Wallbox > 0})
		return bus.Add(unit, u)
	}
	site, session := "eastron-sdm630", "eastron-sdm630"
	if h.PV > 0 && !h.Charger && h.Phases == 3 {
		site = "sunspec-meter" // not everybody buys the same
	}
	if h.Phases < 3 {
		session = "eastron-sdm120"
	}
	err = add("house", 1, site, chain.RoleSite, home.Site, nil)
	if h.PV > 0 && err == nil {
		err = add("sun", 2, "sunspec-inverter", chain.RoleProduction, home.Inverter, nil)
	}
	if h.Charger && err == nil {
		err = add("car", 3, session, chain.RoleCharger, home.Session, nil)
	}
	if h.Charger && err == nil {
		err = add("evse", 4, "simpleevse", 0, home.EVSE, func(u *slave.Unit, addr uint16, v []uint16) error {
			limit, ok := u.Command("current_limit", addr, v)
			if !ok {
				return nil
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.n.SetCurrentLimit(i, meter.MilliAmpere(limit))
		})
	}
	if h.Wallbox > 0 && err == nil {
		var p *profile.Profile
		if p, err = profile.Get(Bidirectional); err == nil {
			m := slave.NewMaster(p)
			s.masters[i] = m
			err = add("car", 3, Bidirectional, chain.RoleCharger, home.Wallbox, func(u *slave.Unit, addr uint16, v []uint16) error {
				s.mu.Lock()
				defer s.mu.Unlock()
				m.Write(u, addr, v)
				return nil
			})
		}
	}
	if i == 0 && err == nil {
		err = add("grid", 10, "eastron-sdm630", chain.RoleConnection, s.n.Connection, nil)
	}
	if err != nil {
		return err
	}
	if (h.Charger || h.Wallbox > 0) && s.cfg.Listen == nil { // a board has its pins, wired or not
		b, err := boards.Get("simulated")
		if err != nil {
			return err
		}
		out.Pins = filepath.Join(dir, "pins.sock")
		srv, err := simpin.Listen(simpin.ServerConfig{Path: out.Pins, Pins: b.Pins, OnChange: func(pin string, high bool) {
			if pin == Relay && h.Charger {
				s.SetRelay(i, high)
			}
		}})
		if err != nil {
			return err
		}
		s.pins, s.inputs[i] = append(s.pins, srv), srv
	}
	s.houses = append(s.houses, out)
	return nil
}

// open makes the line of a house.
func (s *Street) open(name, dir string) (line, error) {
	if s.cfg.Listen != nil {
		ln, err := s.cfg.Listen(name)
		return connLine{ln}, err
	}
	pty, err := slave.OpenPTY(filepath.Join(dir, "line"))
	return ptyLine{pty}, err
}

// Houses describes what was built.
func (s *Street) Houses() []House { return s.houses }

// Run moves the street in real time until ctx ends.
func (s *Street) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range s.buses {
		g.Go(func() error { return s.lines[i].serve(ctx, s.buses[i]) })
	}
	for _, p := range s.pins {
		g.Go(func() error { return p.Run(ctx) })
	}
	g.Go(func() error {
		tick := time.NewTicker(stepEvery)
		defer tick.Stop()
		last, showed := time.Now(), time.Time{}
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				now := time.Now() // the tick's own time is an estimate and may go back
				s.step(now.Sub(last))
				last = now
				if now.Sub(showed) >= showEvery {
					showed = now
					if err := s.show(); err != nil {
						return err
					}
				}
			}
		}
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// step lets dt pass. Wallboxes do what they were told, while somebody is there
// who tells them.
func (s *Street) step(dt time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range s.masters {
		m.Pass(dt)
		p, _ := m.Power()
		s.n.SetPower(i, meter.MilliWatt(p))
	}
	s.n.Step(dt)
}

// show puts what is measured into the devices' registers, all of one moment.
func (s *Street) show() error {
	s.mu.Lock()
	values := make([][]meter.Point, len(s.shown))
	for i, d := range s.shown {
		for _, p := range d.points() {
			if d.has[p.Name()] {
				values[i] = append(values[i], p)
			}
		}
	}
	s.mu.Unlock()
	for i, d := range s.shown {
		if err := d.unit.Set(values[i]...); err != nil {
			return fmt.Errorf("device %d: %w", i, err)
		}
	}
	return nil
}

// Close unplugs lines and pins, when Run has ended or is not going to run.
func (s *Street) Close() {
	for _, l := range s.lines {
		l.close()
	}
}

// PlugIn connects a car to the charger of house i.
func (s *Street) PlugIn(i int, car house.Car) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n.PlugIn(i, car)
}

// Unplug disconnects it.
func (s *Street) Unplug(i int) (house.Car, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n.Unplug(i)
}

// SetRelay energises the coil of the contactor of house i, or not.
func (s *Street) SetRelay(i int, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n.SetRelay(i, closed)
}

// SetInput sets the level of an input pin of house i, as somebody does who
// presses a button.
func (s *Street) SetInput(i int, pin string, high bool) error { return s.inputs[i].SetInput(pin, high) }

// SetFaults makes the line of house i misbehave from now on.
func (s *Street) SetFaults(i int, f slave.Faults) error { return s.buses[i].SetFaults(f) }

// Stats returns what has happened on the line of house i.
func (s *Street) Stats(i int) slave.Stats { return s.buses[i].Stats() }

// Silence makes every device on the line of house i stop answering.
func (s *Street) Silence(i int) {
	for _, d := range s.houses[i].Devices {
		s.buses[i].Remove(d.Unit)
	}
}

// State is what a passer-by could see of a house.
type State struct {
	Production, Load, Charging, Net meter.MilliWatt
	Relay                           bool
	Car                             string // name; empty: none
	Charge                          meter.WattHour
}

// State returns what house i does now.
func (s *Street) State(i int) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.n.House(i)
	car, _ := h.Car()
	return State{h.Production(), h.Load(), h.Charging(), h.Net(), h.HasCharger() && h.Contactor(), car.Name, car.Charge}
}

// Balance returns the exact books of the physics, which no gateway sees.
func (s *Street) Balance() house.Balance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n.Balance()
}
