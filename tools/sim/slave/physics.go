package slave

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/house"
)

// PhysicsConfig describes one device in its surroundings.
type PhysicsConfig struct {
	Profile *profile.Profile
	Model   uint16 // of a SunSpec profile; 0: the first
	Seed    uint64 // of clouds and kettles
	// Car is what stands at a wallbox, as the state of IEC 61851-1 that it
	// comes to when it is offered current: A nothing, B a car that is full,
	// C one that charges, D one that charges and wants ventilation, E a pilot
	// without supply, F a wallbox out of order. 0 is C.
	Car byte
	// Fixed points stay as they are set.
	Fixed []meter.Point
}

// What the simulated things can do.
const (
	roof        = meter.Watt(7000) // peak of the modules
	carMax      = 16_000           // mA per line
	carRamp     = 8_000            // mA per second
	leastOffer  = 6_000            // mA (IEC 61851-1)
	batteryMax  = 5_000_000        // mW in either direction
	batterySize = 10_000_000       // mWh
	batteryIn   = 950              // permille of what goes in that can be got out
	reserve     = 50               // permille of charge below which nothing is got out
	startCharge = 650              // permille
	startImport = 1_234_567_000    // mWh: the device has been in service for a while
	startExport = 345_678_000
)

// mwhTime is one mWh in mW times µs: energies are integrated without a rest.
const mwhTime = int64(time.Hour / time.Microsecond)

// Physics is a unit whose registers follow a day: the sun on a roof, the load
// of a house, a battery between the two, or a car that takes what it is
// offered. It is safe for concurrent use.
type Physics struct {
	cfg  PhysicsConfig
	unit *Unit

	mu       sync.Mutex
	home     *house.Neighbourhood // nil before the first step
	enabled  bool
	locked   bool
	offer    int64 // mA
	lines    int64 // on which the car charges
	current  int64 // mA that the car draws on each
	master   *Master
	imported int64 // mW·µs
	exported int64
	session  int64
	stored   int64
}

// NewPhysics returns a device at rest.
func NewPhysics(cfg PhysicsConfig) (*Physics, error) {
	if cfg.Car == 0 {
		cfg.Car = 'C'
	}
	if cfg.Car < 'A' || cfg.Car > 'F' {
		return nil, fmt.Errorf("car %q: want A..F, a state of IEC 61851-1", cfg.Car)
	}
	p := &Physics{cfg: cfg, enabled: true, lines: 3, master: NewMaster(cfg.Profile), stored: startCharge * batterySize / 1000 * mwhTime}
	for _, pt := range cfg.Fixed {
		switch pt.Quantity {
		case meter.CurrentLimit:
			p.offer = pt.Value
		case meter.StateOfCharge:
			p.stored = pt.Value * batterySize / 1000 * mwhTime
		}
	}
	var err error
	if p.unit, err = NewUnit(cfg.Profile, UnitConfig{Model: cfg.Model, OnWrite: p.written, OnRequest: p.requested}); err != nil {
		return nil, err
	}
	return p, p.preset()
}

// preset gives commands the values with which the device has been switched on.
func (p *Physics) preset() error {
	values := map[string]int64{"enable": boolInt(p.enabled), "lock": boolInt(p.locked), "standby": 1, "phases": p.lines}
	if w := p.cfg.Profile.Watchdog; w != nil && w.Timeout > 0 {
		values["failsafe_timeout"] = w.Timeout.Milliseconds()
	}
	if w := p.cfg.Profile.Watchdog; w != nil && w.Current > 0 {
		values["failsafe_current"] = w.Current
	}
	for name, v := range values {
		if err := p.unit.Preset(name, v); err != nil {
			return err
		}
	}
	return nil
}

func boolInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Unit returns the device.
func (p *Physics) Unit() *Unit { return p.unit }

// Current is what the car at a wallbox draws on each of its lines, in mA.
func (p *Physics) Current() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

func (p *Physics) requested(fn uint8, addr uint16, values []uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.master.Request(fn, addr, values)
}

// offered is the current that the vehicle is offered now.
func (p *Physics) offered() int64 {
	if !p.master.fallen {
		return p.offer
	}
	if v, set := p.master.values["failsafe_current"]; set {
		return v
	}
	return p.cfg.Profile.Watchdog.Current
}

// written obeys commands.
func (p *Physics) written(addr uint16, values []uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.master.Write(p.unit, addr, values)
	var now []meter.Point
	for i := range p.cfg.Profile.Writes {
		name := p.cfg.Profile.Writes[i].Name
		v, ok := p.unit.Command(name, addr, values)
		if !ok {
			continue
		}
		switch name {
		case "current_limit":
			p.offer = v
			now = p.add(now, meter.CurrentLimit, 0, v)
		case "enable":
			p.enabled = v != 0
		case "lock":
			p.locked = v != 0
		case "phases":
			// Somebody else may be in charge of them.
			if _, ok := p.cfg.Profile.Write("phase_control"); !ok || p.master.values["phase_control"] == 1 {
				p.lines = v
			}
		}
	}
	if p.cfg.Profile.Kind == profile.Wallbox {
		now = p.add(now, meter.Status, 0, p.status())
	}
	return p.unit.Set(now...)
}

// state is the state of the pilot.
func (p *Physics) state() byte {
	power, _ := p.master.Power()
	charges := p.enabled && !p.locked && (p.offered() >= leastOffer || power != 0)
	if (p.cfg.Car == 'C' || p.cfg.Car == 'D') && !charges {
		return 'B'
	}
	return p.cfg.Car
}

// status is how the device says its state. One that knows no D says C, and
// one that tells no faults apart says the other.
func (p *Physics) status() int64 {
	state := p.state()
	letters := string(state) + map[byte]string{'D': "C", 'E': "F", 'F': "E"}[state]
	for _, l := range letters {
		if code, ok := p.cfg.Profile.StateCode(string(l)); ok {
			return code
		}
	}
	return 0 // what has no name is starting up or idle
}

// add appends a point that the device has and that is not fixed.
func (p *Physics) add(list []meter.Point, q meter.Quantity, phase uint8, v int64) []meter.Point {
	fixed := slices.ContainsFunc(p.cfg.Fixed, func(f meter.Point) bool { return f.Quantity == q && f.Phase == phase })
	if fixed || !p.unit.Has(q, phase) {
		return list
	}
	return append(list, meter.Point{Quantity: q, Phase: phase, Value: v})
}

// Step lets dt pass until now, whose time of day counts, and sets all points
// that the device has.
func (p *Physics) Step(now time.Time, dt time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.home == nil {
		midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
		start := min(max(now.Sub(midnight), 1), 24*time.Hour-1) // a day that ends summer time has 25 hours
		var err error
		h := house.HouseConfig{Name: "home", Phases: 3, PV: roof}
		if p.byPower() {
			w, _ := p.cfg.Profile.Write("power_command")
			h.Wallbox = meter.Watt(w.Max / 1000)
		}
		if p.home, err = house.New(house.Config{Seed: p.cfg.Seed, Start: start, Houses: []house.HouseConfig{h}}); err != nil {
			return err
		}
		if p.byPower() && p.cfg.Car != 'A' {
			if err := p.home.PlugIn(0, p.vehicle()); err != nil {
				return err
			}
		}
		p.home.Step(time.Microsecond) // powers flow from the first tick on
	}
	p.master.Pass(dt)
	if p.byPower() {
		order, _ := p.master.Power()
		if s := p.state(); s != 'C' && s != 'D' {
			order = 0
		}
		p.home.SetPower(0, meter.MilliWatt(order))
	}
	p.home.Step(dt)
	home, us := p.home.House(0), dt.Microseconds()
	sun, load := int64(home.Production()), int64(home.Load())
	battery := p.battery(sun-load, us)

	kind := p.cfg.Profile.Kind
	var power int64
	switch kind {
	case profile.Inverter:
		power = -sun
	case profile.Wallbox:
		p.drive(dt)
	case profile.Battery:
		power = battery
	case profile.Meter:
		power = load
		if p.unit.Has(meter.BatteryPower, 0) { // it is at the grid, and the roof and the battery are behind it
			power += battery - sun
		}
	}
	voltage := [4]int64{}
	for _, pt := range home.Site() {
		if pt.Quantity == meter.Voltage && pt.Phase > 0 {
			voltage[pt.Phase] = pt.Value
		}
	}
	// The lines on which power flows.
	lines := int64(0)
	for l := uint8(1); l <= 3; l++ {
		if p.unit.Has(meter.Voltage, l) || p.unit.Has(meter.Current, l) || p.unit.Has(meter.Power, l) {
			lines++
		}
	}
	if lines == 0 {
		lines = 3
	}
	active := lines
	if kind == profile.Wallbox {
		active = min(lines, p.lines)
		for l := range active {
			power += p.current * voltage[l+1] / 1000
		}
		if p.byPower() {
			power = int64(home.Charging())
		}
	}
	if i := slices.IndexFunc(p.cfg.Fixed, func(f meter.Point) bool { return f.Quantity == meter.Power && f.Phase == 0 }); i >= 0 {
		power = p.cfg.Fixed[i].Value
	}
	p.imported += max(power, 0) * us
	p.exported += max(-power, 0) * us
	p.session += max(power, 0) * us
	imported, exported := startImport+p.imported/mwhTime, startExport+p.exported/mwhTime

	var points []meter.Point
	set := func(q meter.Quantity, phase uint8, v int64) { points = p.add(points, q, phase, v) }
	for l := uint8(1); l <= 3; l++ {
		share := power / active
		if int64(l) > active {
			share = 0
		}
		set(meter.Voltage, l, voltage[l])
		set(meter.Import, l, imported/lines)
		set(meter.Export, l, exported/lines)
		p.flow(set, l, share, voltage[l])
	}
	p.flow(set, 0, power, voltage[1])
	set(meter.Frequency, 0, 50_000+(voltage[1]-230_000)/100)
	set(meter.Import, 0, imported)
	set(meter.Export, 0, exported)
	set(meter.Energy, 0, imported+exported)
	set(meter.SessionEnergy, 0, p.session/mwhTime)
	set(meter.BatteryPower, 0, battery)
	set(meter.StateOfCharge, 0, p.charge())
	set(meter.Temperature, 0, 25_000+max(power, -power)/1000)
	set(meter.Firmware, 0, 10)
	switch kind {
	case profile.Wallbox:
		set(meter.Status, 0, p.status())
		code, _ := p.cfg.Profile.CableCode(p.cfg.Car != 'A')
		set(meter.Cable, 0, code)
		if p.limitInUse() {
			set(meter.CurrentLimit, 0, p.offered())
		}
	case profile.Inverter:
		set(meter.Status, 0, sunspecInverter(sun))
	case profile.Battery:
		set(meter.Status, 0, sunspecBattery(p.cfg.Model, battery, p.charge()))
	}
	return p.unit.Set(append(points, p.cfg.Fixed...)...)
}

// limitInUse reports whether the device shows the current that it offers and
// not only the one that was written.
func (p *Physics) limitInUse() bool {
	w, ok := p.cfg.Profile.Write("current_limit")
	i := slices.IndexFunc(p.cfg.Profile.Points, func(pt profile.Point) bool { return pt.Quantity == meter.CurrentLimit })
	return ok && i >= 0 && !slices.Contains(w.Registers(), profile.Register{Function: p.cfg.Profile.Points[i].Function, Address: p.cfg.Profile.Points[i].Address})
}

// flow sets what a power at a voltage shows.
func (p *Physics) flow(set func(meter.Quantity, uint8, int64), phase uint8, power, voltage int64) {
	set(meter.Power, phase, power)
	set(meter.ApparentPower, phase, max(power, -power))
	set(meter.ReactivePower, phase, 0)
	set(meter.PowerFactor, phase, 1000)
	set(meter.Current, phase, max(power, -power)*1000/max(voltage, 1))
}

// drive moves the car's current: up slowly, down at once.
func (p *Physics) drive(dt time.Duration) {
	if state := p.state(); state != 'C' && state != 'D' {
		p.current = 0
		return
	}
	p.current = min(p.current+int64(carRamp*dt/time.Second), p.offered(), carMax)
}

// battery lets surplus (mW) flow for us microseconds, or what is ordered, as
// far as the battery can. It returns its power, charging positive.
func (p *Physics) battery(surplus, us int64) int64 {
	power := surplus
	if order, ok := p.master.Power(); ok {
		power = order
	}
	power = min(max(power, -batteryMax), batteryMax)
	if c := p.charge(); power > 0 && c >= 1000 || power < 0 && c <= reserve {
		return 0
	}
	flow := power * us
	if flow > 0 {
		flow = flow / 1000 * batteryIn
	}
	p.stored = min(max(p.stored+flow, 0), batterySize*mwhTime)
	return power
}

// byPower reports whether the device is a wallbox that is told a power, and
// takes it out of a vehicle as well.
func (p *Physics) byPower() bool {
	return p.cfg.Profile.Kind == profile.Wallbox && len(p.cfg.Profile.Orders) > 0
}

// vehicle is what stands at such a wallbox.
func (p *Physics) vehicle() house.Car {
	const size = meter.WattHour(batterySize / 1000)
	return house.Car{
		Name: "car", Capacity: size, Charge: meter.WattHour(p.stored / mwhTime / 1000), Target: size, Reserve: size * reserve / 1000,
		MaxCurrent: carMax, Phases: 3, Power: meter.Watt(batteryMax / 1000),
	}
}

// charge is the battery's state in permille, the vehicle's where it has one.
func (p *Physics) charge() int64 {
	if p.home != nil && p.byPower() {
		return p.home.House(0).StateOfCharge()
	}
	return p.stored / mwhTime * 1000 / batterySize
}

// Operating states of SunSpec models 101..113 (St).
func sunspecInverter(power int64) int64 {
	if power > 0 {
		return 4 // follows the maximum power point
	}
	return 2 // sleeps
}

// Charge states of SunSpec models 124 and 802 (ChaSt); model 713 (Sta) has 0
// for all is well.
func sunspecBattery(model uint16, power, charge int64) int64 {
	switch {
	case model == 713:
		return 0
	case charge <= reserve && power == 0:
		return 2 // empty
	case power < 0:
		return 3 // discharges
	case power > 0:
		return 4 // charges
	case charge >= 1000:
		return 5 // full
	}
	return 6 // holds
}
