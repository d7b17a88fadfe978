package house

import (
	"errors"
	"fmt"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Limits and constants of the simulation.
const (
	MaxHouses = 1000
	// MaxTick is the longest time over which powers are constant.
	MaxTick = 100 * time.Millisecond
	// ContactorDelay is from coil to contact.
	ContactorDelay = 20 * time.Millisecond

	// MinOffer and MaxOffer bound what a pilot signal can say (IEC 61851-1).
	MinOffer meter.MilliAmpere = 6_000
	MaxOffer meter.MilliAmpere = 32_000

	nominal   = 230_000   // mV
	wander    = 1_500     // mV, of the source
	frequency = 50_000    // mHz
	wind      = 4_000_000 // µs that a cloud needs from house to house
	carDelay  = 1_000_000 // µs
	carRamp   = 8         // mA/ms

	wallboxRamp = 5_000     // mW/ms
	carYield    = 900       // permille of the energy reaches the battery
	feeder      = int64(20) // default, mΩ per phase
	service     = int64(60) // default, mΩ per phase
	maxPower    = meter.Watt(1_000_000)
	day         = 24 * time.Hour
)

// Config describes a neighbourhood.
type Config struct {
	Seed   uint64
	Houses []HouseConfig
	// Start is the time of day of the first step; 0 means noon.
	Start time.Duration
	// EternalDay stops the sun, not the clouds, at Start: for demonstrations
	// that run into the night.
	EternalDay bool
	// FeederMilliOhm is the resistance per phase between the connection meter
	// and the houses; 0 means 20.
	FeederMilliOhm int64
}

// HouseConfig describes one house. The zero value is a single-phase flat.
type HouseConfig struct {
	Name    string
	Phases  int        // 1 or 3; 0 means 1
	PV      meter.Watt // peak of the modules; 0: none
	Charger bool       // with contactor and session meter
	Wallbox meter.Watt // instead: a bidirectional DC wallbox of that power; 0: none
	Battery BatteryConfig
	Heat    meter.Watt // of a heat pump that never rests
	// ServiceMilliOhm is the resistance per phase of the cable to the feeder;
	// 0 means 60.
	ServiceMilliOhm int64
}

// Default returns a bright neighbourhood of n houses. Of every four the first
// and third have far more sun than they need, the second and fourth a charger
// and little or no sun; the first has a charger as well.
func Default(seed uint64, n int) Config {
	kinds := [...]HouseConfig{
		{Phases: 3, PV: 10_000, Charger: true},
		{Phases: 3, Charger: true},
		{Phases: 3, PV: 8_000},
		{Phases: 3, PV: 2_000, Charger: true},
	}
	cfg := Config{Seed: seed, EternalDay: true}
	for i := range n {
		h := kinds[i%len(kinds)]
		h.Name = fmt.Sprintf("house%d", i+1)
		cfg.Houses = append(cfg.Houses, h)
	}
	return cfg
}

// Car is a vehicle.
type Car struct {
	Name       string
	Capacity   meter.WattHour
	Charge     meter.WattHour // in the battery
	Target     meter.WattHour // at which it stops, <= Capacity
	MaxCurrent meter.MilliAmpere
	Phases     int // 1..3; a single-phase outlet gives one
	// At a bidirectional wallbox: the most power in and out, and the charge at
	// which the car's own electronics give no more. Power 0: it gives and
	// takes nothing there.
	Power   meter.Watt
	Reserve meter.WattHour
	// Stay is how long it stands before its driver pulls the cable by himself;
	// 0: until Unplug.
	Stay time.Duration
}

func (c Car) check() error {
	switch {
	case c.Charge < 0 || c.Charge > c.Capacity || c.Target > c.Capacity || c.Target < 0:
		return fmt.Errorf("car %q: charge %d and target %d Wh do not fit a battery of %d Wh", c.Name, c.Charge, c.Target, c.Capacity)
	case c.Phases < 1 || c.Phases > 3:
		return fmt.Errorf("car %q: %d phases", c.Name, c.Phases)
	case c.MaxCurrent < MinOffer || c.MaxCurrent > 80_000:
		return fmt.Errorf("car %q: at most %d mA is outside %d..80000", c.Name, c.MaxCurrent, MinOffer)
	case c.Power < 0 || c.Power > maxPower || c.Reserve < 0 || c.Reserve > c.Capacity || c.Stay < 0:
		return fmt.Errorf("car %q: gives and takes %d W down to %d of %d Wh, stays %s", c.Name, c.Power, c.Reserve, c.Capacity, c.Stay)
	}
	return nil
}

// plugged is a car at a charger.
type plugged struct {
	Car
	stored  Energy            // above Car.Charge
	ready   int64             // µs for which it could have drawn
	stood   int64             // µs since it came
	current meter.MilliAmpere // per phase
}

func (c *plugged) charge() meter.WattHour { return c.Charge + c.stored.MilliWattHours.WattHours() }

func (c *plugged) full() bool { return c.charge() >= c.Target }

// charger is an EVSE with its contactor and session meter, or a bidirectional
// wallbox, which has both inside.
type charger struct {
	rating  meter.Watt      // of a bidirectional wallbox; 0: an EVSE
	order   meter.MilliWatt // into the car; negative: out of it
	power   meter.MilliWatt // that flows
	offer   meter.MilliAmpere
	coil    bool
	settled int64 // µs since the coil was energised
	car     *plugged
	meter   counter
}

func (c *charger) contact() bool { return c.coil && c.settled >= ContactorDelay.Microseconds() }

func (c *charger) state() drivers.VehicleState {
	switch {
	case c.car == nil:
		return drivers.StateA
	case c.rating > 0 && c.possible() != 0:
		return drivers.StateC
	case c.offer >= MinOffer && !c.car.full():
		return drivers.StateC
	}
	return drivers.StateB
}

// draw returns what the car takes in a tick of us.
func (c *charger) draw(us int64, phaseCount int, voltage [3]meter.MilliVolt) (p phases) {
	if c.coil {
		c.settled += us
	}
	car := c.car
	if car == nil {
		return p
	}
	if !c.contact() || c.state() != drivers.StateC {
		car.ready, car.current = 0, 0
		return p
	}
	if car.ready += us; car.ready > carDelay {
		car.current = min(car.current+meter.MilliAmpere(carRamp*us/1000), c.offer, car.MaxCurrent)
	}
	for l := range min(car.Phases, phaseCount) {
		p[l] = meter.MilliWatt(int64(car.current) * int64(voltage[l]) / 1000)
	}
	car.stored.integrate(p.total()*carYield/1000, us)
	return p
}

// possible is what wallbox and car make of the order.
func (c *charger) possible() meter.MilliWatt {
	most := meter.MilliWatt(min(c.rating, c.car.Power)) * 1000
	p := clamp(int64(c.order), -int64(most), int64(most))
	if p > 0 && c.car.full() || p < 0 && c.car.charge() <= c.car.Reserve {
		return 0
	}
	return meter.MilliWatt(p)
}

// convert returns what a bidirectional wallbox takes in a tick of us, negative
// what it gives. Its power rises slowly and falls at once. A tenth is lost in
// either direction.
func (c *charger) convert(us int64) meter.MilliWatt {
	if c.car == nil {
		c.power = 0
		return 0
	}
	want, step := c.possible(), meter.MilliWatt(wallboxRamp*us/1000)
	switch {
	case want > 0:
		c.power = min(want, max(0, c.power)+step)
		c.car.stored.integrate(c.power*carYield/1000, us)
	case want < 0:
		c.power = max(want, min(0, c.power)-step)
		c.car.stored.integrate(c.power*1000/carYield, us)
	default:
		c.power = 0
	}
	return c.power
}

// leave lets the driver pull the cable when his time has come.
func (c *charger) leave(us int64) {
	if c.car == nil || c.car.Stay == 0 {
		return
	}
	if c.car.stood += us; c.car.stood >= c.car.Stay.Microseconds() {
		c.car = nil
	}
}

// House is one house of a neighbourhood.
type House struct {
	cfg      HouseConfig
	index    int64
	standby  int64 // mW
	fridge   int64 // µs, period
	voltage  [3]meter.MilliVolt
	current  [3]meter.MilliAmpere // through the service cable, import positive
	load, pv phases               // pv <= 0
	site     counter
	inverter counter
	charger  *charger
	battery  *battery
}

// Neighbourhood is houses on one feeder. It is not safe for concurrent use.
type Neighbourhood struct {
	cfg        Config
	houses     []*House
	now        int64         // µs since the start
	carry      time.Duration // less than 1 µs
	connection counter
	source     [3]meter.MilliVolt
	current    [3]meter.MilliAmpere // through the feeder
	balance    Balance
}

// New returns a neighbourhood at rest: all meters show random registers, no
// power flows before the first Step.
func New(cfg Config) (*Neighbourhood, error) {
	if len(cfg.Houses) == 0 || len(cfg.Houses) > MaxHouses {
		return nil, fmt.Errorf("%d houses, want 1..%d", len(cfg.Houses), MaxHouses)
	}
	if cfg.Start < 0 || cfg.Start >= day {
		return nil, fmt.Errorf("start %v is not a time of day", cfg.Start)
	}
	if cfg.Start == 0 {
		cfg.Start = day / 2
	}
	if cfg.FeederMilliOhm == 0 {
		cfg.FeederMilliOhm = feeder
	}
	n := &Neighbourhood{cfg: cfg, source: [3]meter.MilliVolt{nominal, nominal, nominal}}
	for i, h := range cfg.Houses {
		if h.Phases == 0 {
			h.Phases = 1
		}
		if h.ServiceMilliOhm == 0 {
			h.ServiceMilliOhm = service
		}
		switch {
		case h.Phases != 1 && h.Phases != 3:
			return nil, fmt.Errorf("house %q: %d phases, want 1 or 3", h.Name, h.Phases)
		case h.Wallbox < 0 || h.Wallbox > maxPower || h.Wallbox > 0 && h.Charger:
			return nil, fmt.Errorf("house %q: a wallbox of %d W, want 0..%d and no other charger", h.Name, h.Wallbox, maxPower)
		case h.Heat < 0 || h.Heat > maxPower:
			return nil, fmt.Errorf("house %q: a heat pump of %d W, want 0..%d", h.Name, h.Heat, maxPower)
		case h.PV < 0 || h.PV > maxPower:
			return nil, fmt.Errorf("house %q: PV of %d W, want 0..%d", h.Name, h.PV, maxPower)
		case h.ServiceMilliOhm < 0 || h.ServiceMilliOhm > 500 || cfg.FeederMilliOhm < 0 || cfg.FeederMilliOhm > 500:
			return nil, fmt.Errorf("house %q: cables of %d and %d mΩ, want up to 500", h.Name, h.ServiceMilliOhm, cfg.FeederMilliOhm)
		}
		house := &House{
			cfg: h, index: int64(i), voltage: n.source,
			standby: between(cfg.Seed, streamStandby, int64(i), 80_000, 200_000),
			fridge:  between(cfg.Seed, streamFridge, int64(i), 20*minute, 28*minute),
		}
		house.site.start(cfg.Seed, 3*int64(i), h.Phases, true, true)
		house.inverter.start(cfg.Seed, 3*int64(i)+1, h.Phases, false, true)
		if h.Charger {
			house.charger = &charger{}
			house.charger.meter.start(cfg.Seed, 3*int64(i)+2, h.Phases, true, false)
		}
		if h.Wallbox > 0 {
			house.charger = &charger{rating: h.Wallbox}
			house.charger.meter.start(cfg.Seed, 3*int64(i)+2, h.Phases, true, true)
		}
		if h.Battery != (BatteryConfig{}) {
			if err := h.Battery.check(); err != nil {
				return nil, fmt.Errorf("house %q: %w", h.Name, err)
			}
			house.battery = &battery{BatteryConfig: h.Battery}
		}
		n.houses = append(n.houses, house)
	}
	n.connection.start(cfg.Seed, -1, 3, true, true)
	return n, nil
}

// start gives the meter a history of some ten kWh: little enough that devices
// with single-precision registers still show every tenth of a Wh.
func (c *counter) start(seed uint64, index int64, n int, imports, exports bool) {
	draw := func(k int64) meter.MilliWattHour {
		return meter.MilliWattHour(between(seed, streamRegister, 2*index+k, 10_000_000, 90_000_000))
	}
	if imports {
		c.imported.MilliWattHours = draw(0)
	}
	if exports {
		c.exported.MilliWattHours = draw(1)
	}
	for l := range n {
		c.importedBy[l].MilliWattHours = c.imported.MilliWattHours / meter.MilliWattHour(n)
		c.exportedBy[l].MilliWattHours = c.exported.MilliWattHours / meter.MilliWattHour(n)
	}
}

// Step advances the neighbourhood by dt >= 0.
func (n *Neighbourhood) Step(dt time.Duration) {
	if dt < 0 {
		panic(fmt.Sprintf("house: step of %v", dt))
	}
	dt += n.carry
	n.carry = dt % time.Microsecond
	for left := dt.Microseconds(); left > 0; {
		us := min(left, MaxTick.Microseconds())
		n.tick(us)
		left -= us
	}
}

// tick holds all powers for us microseconds.
func (n *Neighbourhood) tick(us int64) {
	for l := range n.source {
		n.source[l] = nominal + meter.MilliVolt(wander*(smooth(n.cfg.Seed, streamSource, n.now, 20*second)-500)/500)
	}
	var onFeeder phases
	var service meter.MilliWatt
	for _, h := range n.houses {
		for l := range h.cfg.Phases {
			at := h.feederPhase(l)
			h.voltage[l] = n.source[at] - drop(n.current[at], n.cfg.FeederMilliOhm) - drop(h.current[l], h.cfg.ServiceMilliOhm)
		}
		h.load = n.loadOf(h)
		h.pv = h.spread(-n.sunOn(h))
		var charging phases
		if c := h.charger; c != nil {
			c.leave(us)
			if c.rating > 0 {
				charging = h.spread(c.convert(us))
			} else {
				charging = c.draw(us, h.cfg.Phases, h.voltage)
			}
			c.meter.measure(charging, us)
			count(&n.balance.Consumed, &n.balance.Produced, charging.total(), us)
		}
		var net phases
		for l := range net {
			net[l] = h.load[l] + h.pv[l] + charging[l]
		}
		if b := h.battery; b != nil {
			stored := h.spread(b.follow(net.total(), us))
			for l := range net {
				net[l] += stored[l]
			}
			count(&n.balance.Consumed, &n.balance.Produced, stored.total(), us)
		}
		h.site.measure(net, us)
		h.inverter.measure(h.pv, us)
		n.balance.Produced.integrate(-h.pv.total(), us)
		n.balance.Consumed.integrate(h.load.total(), us)
		for l := range h.cfg.Phases {
			h.current[l] = ampere(net[l], h.voltage[l])
			loss := heat(h.current[l], h.cfg.ServiceMilliOhm)
			service += loss
			onFeeder[h.feederPhase(l)] += net[l] + loss
		}
	}
	loss := service
	for l := range onFeeder {
		n.current[l] = ampere(onFeeder[l], n.source[l])
		heat := heat(n.current[l], n.cfg.FeederMilliOhm)
		onFeeder[l] += heat
		loss += heat
	}
	n.connection.measure(onFeeder, us)
	n.balance.Loss.integrate(loss, us)
	count(&n.balance.GridImport, &n.balance.GridExport, onFeeder.total(), us)
	n.now += us
}

// drop is I·R in mV.
func drop(i meter.MilliAmpere, milliOhm int64) meter.MilliVolt {
	return meter.MilliVolt(int64(i) * milliOhm / 1000)
}

// heat is I²·R in mW.
func heat(i meter.MilliAmpere, milliOhm int64) meter.MilliWatt {
	return meter.MilliWatt(int64(i) * int64(i) / 1000 * milliOhm / 1000)
}

const (
	second = int64(time.Second / time.Microsecond)
	minute = 60 * second
	hour   = 60 * minute
)

// feederPhase is the feeder's phase on the house's terminal l: electricians
// rotate them from house to house.
func (h *House) feederPhase(l int) int { return (l + int(h.index)) % 3 }

// spread divides p over the house's phases.
func (h *House) spread(p meter.MilliWatt) (out phases) {
	out[0] = p
	if h.cfg.Phases == 3 {
		out[1], out[2] = p/3, p/3
		out[0] -= out[1] + out[2]
	}
	return out
}

// sunOn returns what the house's inverter delivers.
func (n *Neighbourhood) sunOn(h *House) meter.MilliWatt {
	if h.cfg.PV == 0 {
		return 0
	}
	start := n.cfg.Start.Microseconds()
	clock := start
	if !n.cfg.EternalDay {
		_, clock = floorDiv(start+n.now, day.Microseconds())
	}
	fromNoon := (clock - 12*hour) / second // seconds
	const half = 7 * 3600
	elevation := max(0, 1000-1000*fromNoon*fromNoon/(half*half)) // permille of noon

	at := n.now - h.index*wind
	cover := (2*smooth(n.cfg.Seed, streamCloud, at, 45*second) + smooth(n.cfg.Seed, streamCloud, at+hour, 11*second)) / 3
	cover = ease(clamp((cover-620)*5, 0, 1000)) // most of the time blue, edges a few seconds wide
	light := 1000 - cover*2/3
	return meter.MilliWatt(int64(h.cfg.PV) * 900 * elevation / 1000 * light / 1000)
}

// loadOf returns what the house uses apart from the charger.
func (n *Neighbourhood) loadOf(h *House) (out phases) {
	seed, t := n.cfg.Seed, n.now
	base := h.standby
	base += base * (smooth(seed, streamFlicker+100*h.index, t, 2*second) - 500) / 5000 // +-10 %
	if _, at := floorDiv(t+h.index*7*minute, h.fridge); at < h.fridge*2/5 {
		base += 95_000
	}

	// Once in a window of four minutes perhaps somebody cooks: a kettle or,
	// on a thermostat, a hob.
	const window = 4 * minute
	i, at := floorDiv(t, window)
	draw := func(k, lo, hi int64) int64 { return between(seed, streamCooking+100*(h.index+1), 8*i+k, lo, hi) }
	var cooking int64
	if draw(0, 0, 100) < 40 {
		start, length := draw(1, 0, window/2), draw(2, minute, window/2)
		on := at >= start && at < start+length
		if hob := draw(3, 0, 2) == 0; hob && (at-start)%(15*second) >= 9*second {
			on = false
		}
		if on {
			cooking = draw(4, 1_200_000, 2_400_000)
		}
	}
	out = h.spread(meter.MilliWatt(base) + meter.MilliWatt(h.cfg.Heat)*1000)
	out[int(i)%h.cfg.Phases] += meter.MilliWatt(cooking)
	return out
}

// Len returns the number of houses.
func (n *Neighbourhood) Len() int { return len(n.houses) }

// Elapsed returns the time stepped so far.
func (n *Neighbourhood) Elapsed() time.Duration {
	return time.Duration(n.now)*time.Microsecond + n.carry
}

// House returns house i, 0 <= i < Len. It stays valid and shows the state
// after the latest Step.
func (n *Neighbourhood) House(i int) *House { return n.houses[i] }

// Connection returns what the meter between the neighbourhood and the public
// grid shows.
func (n *Neighbourhood) Connection() []meter.Point {
	return n.connection.points(3, n.source, frequency)
}

// Power returns the neighbourhood's import from the public grid.
func (n *Neighbourhood) Power() meter.MilliWatt { return n.connection.power.total() }

// Balance returns the exact books since the start.
func (n *Neighbourhood) Balance() Balance { return n.balance }

// outlet returns the charger of house i. Driving one that does not exist is
// a mistake in the caller.
func (n *Neighbourhood) outlet(i int) *charger {
	c := n.houses[i].charger
	if c == nil {
		panic(fmt.Sprintf("house: house %d (%s) has no charger", i, n.houses[i].cfg.Name))
	}
	return c
}

// SetRelay energises the coil of house i's contactor or not. Opening
// interrupts the current at once.
func (n *Neighbourhood) SetRelay(i int, closed bool) {
	c := n.outlet(i)
	c.coil = closed
	if !closed {
		c.settled = 0
		if c.car != nil {
			c.car.ready, c.car.current = 0, 0
		}
	}
}

// SetCurrentLimit makes house i's charger offer limit per phase. Like the
// device it refuses what the pilot cannot say.
func (n *Neighbourhood) SetCurrentLimit(i int, limit meter.MilliAmpere) error {
	if limit != 0 && (limit < MinOffer || limit > MaxOffer) {
		return fmt.Errorf("offer of %d mA is neither 0 nor %d..%d", limit, MinOffer, MaxOffer)
	}
	n.outlet(i).offer = limit
	return nil
}

// SetPower orders a power into the car at house i's bidirectional wallbox, or,
// negative, out of it.
func (n *Neighbourhood) SetPower(i int, p meter.MilliWatt) {
	c := n.outlet(i)
	if c.rating == 0 {
		panic(fmt.Sprintf("house: house %d (%s) has no bidirectional wallbox", i, n.houses[i].cfg.Name))
	}
	c.order = p
}

// PlugIn connects a car to house i's charger.
func (n *Neighbourhood) PlugIn(i int, car Car) error {
	if err := car.check(); err != nil {
		return err
	}
	c := n.outlet(i)
	if c.car != nil {
		return fmt.Errorf("car %q: house %d is taken by %q", car.Name, i, c.car.Name)
	}
	c.car = &plugged{Car: car}
	return nil
}

// Unplug disconnects the car at house i and returns it as it leaves.
func (n *Neighbourhood) Unplug(i int) (Car, error) {
	c := n.outlet(i)
	if c.car == nil {
		return Car{}, errors.New("no car is plugged in")
	}
	car := c.car.Car
	car.Charge = c.car.charge()
	c.car = nil
	return car, nil
}

// Name returns the name in the configuration.
func (h *House) Name() string { return h.cfg.Name }

// HasPV tells whether the house has an inverter.
func (h *House) HasPV() bool { return h.cfg.PV > 0 }

// HasCharger tells whether the house has a charger.
func (h *House) HasCharger() bool { return h.charger != nil }

// Load is what the house uses apart from the charger. Like the other powers it
// is that of the latest tick.
func (h *House) Load() meter.MilliWatt { return h.load.total() }

// Production is what the inverter delivers; not negative.
func (h *House) Production() meter.MilliWatt { return -h.pv.total() }

// Charging is what the car draws; negative: it gives.
func (h *House) Charging() meter.MilliWatt {
	if h.charger == nil {
		return 0
	}
	return h.charger.meter.power.total()
}

// Net is Load + Charging - Production, what the site meter shows.
func (h *House) Net() meter.MilliWatt { return h.site.power.total() }

// Site returns what the meter at the house's connection shows.
func (h *House) Site() []meter.Point { return h.site.points(h.cfg.Phases, h.voltage, frequency) }

// Inverter returns what the inverter shows: production is negative power and
// counts in the export register. Status is SunSpec's: 4 producing, 2 asleep.
func (h *House) Inverter() []meter.Point {
	status := int64(2)
	if h.pv.total() < 0 {
		status = 4
	}
	return append(h.inverter.points(h.cfg.Phases, h.voltage, frequency), meter.Point{Quantity: meter.Status, Value: status})
}

// Session returns what the charger's session meter shows.
func (h *House) Session() []meter.Point {
	return h.charger.meter.points(h.cfg.Phases, h.voltage, frequency)
}

// Wallbox returns what a bidirectional wallbox shows: what its meter counts,
// the state of charge of the car, and as status 0, 1, 2 the states A, B, C.
func (h *House) Wallbox() []meter.Point {
	return append(h.Session(),
		meter.Point{Quantity: meter.Status, Value: int64(h.VehicleState() - drivers.StateA)},
		meter.Point{Quantity: meter.Fault},
		meter.Point{Quantity: meter.Temperature, Value: 25_000 + max(int64(h.charger.power), -int64(h.charger.power))/1000},
		meter.Point{Quantity: meter.StateOfCharge, Value: h.StateOfCharge()},
	)
}

// StateOfCharge is that of the car, in 1/1000; 0 without one.
func (h *House) StateOfCharge() int64 {
	car, ok := h.Car()
	if !ok || car.Capacity == 0 {
		return 0
	}
	return int64(car.Charge) * 1000 / int64(car.Capacity)
}

// EVSE returns what the charge controller shows: the current it offers, and
// as status 1, 2, 3 for the pilot states A, B, C. Its firmware is older than
// 17, so that it counts whole amperes.
func (h *House) EVSE() []meter.Point {
	return []meter.Point{
		{Quantity: meter.CurrentLimit, Value: int64(h.charger.offer)},
		{Quantity: meter.Status, Value: int64(h.VehicleState()-drivers.StateA) + 1},
		{Quantity: meter.Firmware, Value: 16},
	}
}

// VehicleState returns the pilot's state.
func (h *House) VehicleState() drivers.VehicleState { return h.charger.state() }

// Contactor tells whether the contact is closed: its auxiliary contact.
func (h *House) Contactor() bool { return h.charger.contact() }

// Car returns the car that is plugged in, with what it has in its battery.
func (h *House) Car() (Car, bool) {
	if h.charger == nil || h.charger.car == nil {
		return Car{}, false
	}
	car := h.charger.car.Car
	car.Charge = h.charger.car.charge()
	return car, true
}
