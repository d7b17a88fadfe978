package house

import (
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

func mustNew(t rapid.TB, cfg Config) *Neighbourhood {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func value(t rapid.TB, pts []meter.Point, q meter.Quantity, phase uint8) int64 {
	t.Helper()
	for _, p := range pts {
		if p.Quantity == q && p.Phase == phase {
			return p.Value
		}
	}
	t.Fatalf("no %s in %v", meter.PointName(q, phase), pts)
	return 0
}

var compact = Car{Name: "compact", Capacity: 40_000, Charge: 20_000, Target: 32_000, MaxCurrent: 16_000, Phases: 3}

// book integrates what a meter shows, independently of it.
type book struct {
	imported, exported *big.Int // mW·µs since the start
	register           [2]int64 // mWh at the start
}

func newBook(t rapid.TB, pts []meter.Point) *book {
	return &book{new(big.Int), new(big.Int), [2]int64{value(t, pts, meter.Import, 0), value(t, pts, meter.Export, 0)}}
}

func (b *book) check(t rapid.TB, what string, pts []meter.Point, us int64) {
	t.Helper()
	p := value(t, pts, meter.Power, 0)
	e := new(big.Int).Mul(big.NewInt(max(p, -p)), big.NewInt(us))
	if p > 0 {
		b.imported.Add(b.imported, e)
	} else {
		b.exported.Add(b.exported, e)
	}
	for i, side := range []*big.Int{b.imported, b.exported} {
		want := b.register[i] + new(big.Int).Div(side, big.NewInt(microPerMilliWattHour)).Int64()
		if got := value(t, pts, []meter.Quantity{meter.Import, meter.Export}[i], 0); got != want {
			t.Fatalf("%s: register %d shows %d mWh, want %d", what, i, got, want)
		}
	}
}

// TestBooks steps random neighbourhoods with random inputs. After every step
// the books balance to the last digit, every register shows the integral of
// the power it showed, and a car that may not draw does not.
func TestBooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			Seed:  rapid.Uint64().Draw(t, "seed"),
			Start: time.Duration(rapid.IntRange(0, 23).Draw(t, "hour")) * time.Hour,
		}
		for i := range rapid.IntRange(1, 5).Draw(t, "houses") {
			cfg.Houses = append(cfg.Houses, HouseConfig{
				Name: fmt.Sprint(i), Phases: rapid.SampledFrom([]int{1, 3}).Draw(t, "phases"),
				PV: meter.Watt(rapid.SampledFrom([]int{0, 3000, 12_000}).Draw(t, "pv")),
			})
			switch h := &cfg.Houses[i]; rapid.IntRange(0, 2).Draw(t, "charger") {
			case 1:
				h.Charger = true
			case 2:
				h.Wallbox = 7000
			}
		}
		n, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var books []*book
		for i := range n.Len() {
			h := n.House(i)
			books = append(books, newBook(t, h.Site()), newBook(t, h.Inverter()), nil)
			if h.HasCharger() {
				books[3*i+2] = newBook(t, h.Session())
			}
		}
		connection := newBook(t, n.Connection())
		coils, offers := make([]bool, n.Len()), make([]meter.MilliAmpere, n.Len())

		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if i := rapid.IntRange(0, n.Len()-1).Draw(t, "house"); n.House(i).HasCharger() {
				switch rapid.IntRange(0, 4).Draw(t, "input") {
				case 0, 1:
					if cfg.Houses[i].Wallbox > 0 {
						n.SetPower(i, meter.MilliWatt(rapid.SampledFrom([]int{-40_000_000, -3_000_000, 0, 2_000_000, 40_000_000}).Draw(t, "power")))
						break
					}
					coils[i] = rapid.Bool().Draw(t, "coil")
					n.SetRelay(i, coils[i])
				case 2:
					limit := meter.MilliAmpere(rapid.SampledFrom([]int{0, 3000, 6000, 13_370, 32_000, 40_000}).Draw(t, "offer"))
					if n.SetCurrentLimit(i, limit) == nil {
						offers[i] = limit
					}
				case 3:
					car := compact
					car.Phases = rapid.IntRange(1, 3).Draw(t, "car phases")
					car.Target = car.Charge + meter.WattHour(rapid.IntRange(0, 5).Draw(t, "wants"))
					car.Reserve = car.Charge - meter.WattHour(rapid.IntRange(0, 5).Draw(t, "gives"))
					car.Power = 5000
					_, taken := n.House(i).Car()
					if err := n.PlugIn(i, car); (err != nil) != taken {
						t.Fatal(err)
					}
				case 4:
					_, taken := n.House(i).Car()
					if _, err := n.Unplug(i); (err == nil) != taken {
						t.Fatal(err)
					}
				}
			}
			us := rapid.Int64Range(1, MaxTick.Microseconds()).Draw(t, "us")
			n.Step(time.Duration(us) * time.Microsecond)

			if err := n.Balance().Check(); err != nil {
				t.Fatal(err)
			}
			var sum, used meter.MilliWatt
			for i := range n.Len() {
				h := n.House(i)
				books[3*i].check(t, "site", h.Site(), us)
				books[3*i+1].check(t, "inverter", h.Inverter(), us)
				if h.HasCharger() {
					books[3*i+2].check(t, "session", h.Session(), us)
					_, there := h.Car()
					if p := h.Charging(); cfg.Houses[i].Wallbox > 0 && (max(p, -p) > 5_000_000 || p != 0 && !there) {
						t.Fatalf("house %d: %d mW at a wallbox of 7 kW, its car bears 5, car %v", i, p, there)
					}
					if cfg.Houses[i].Wallbox == 0 && h.Charging() != 0 && (!coils[i] || offers[i] < MinOffer || !there) {
						t.Fatalf("house %d draws %d mW with coil %v, offer %d mA, car %v", i, h.Charging(), coils[i], offers[i], there)
					}
					for l := range cfg.Houses[i].Phases {
						if amps := value(t, h.Session(), meter.Current, uint8(l+1)); cfg.Houses[i].Wallbox == 0 && amps > int64(offers[i]) {
							t.Fatalf("house %d draws %d mA of %d offered", i, amps, offers[i])
						}
					}
				}
				if h.Net() != h.Load()+h.Charging()-h.Production() {
					t.Fatalf("house %d: %d mW is not %d + %d - %d", i, h.Net(), h.Load(), h.Charging(), h.Production())
				}
				if h.Load() <= 0 || h.Production() < 0 || h.Charging() < 0 && cfg.Houses[i].Wallbox == 0 {
					t.Fatalf("house %d: load %d, production %d, charging %d mW", i, h.Load(), h.Production(), h.Charging())
				}
				sum += h.Net()
				used += h.Load() + max(h.Charging(), -h.Charging()) + h.Production()
			}
			connection.check(t, "connection", n.Connection(), us)
			if loss := n.Power() - sum; loss < 0 || loss > used/10 {
				t.Fatalf("%d mW lost of %d", loss, used)
			}
		}
	})
}

func TestSession(t *testing.T) {
	n := mustNew(t, Default(1, 2))
	h := n.House(1)
	state := func(want drivers.VehicleState) {
		t.Helper()
		if got := h.VehicleState(); got != want {
			t.Fatalf("state %v, want %v", got, want)
		}
		if got := value(t, h.EVSE(), meter.Status, 0); got != int64(want-'A')+1 {
			t.Fatalf("register says %d in state %v", got, want)
		}
	}
	run := func(d time.Duration) {
		for range d / (50 * time.Millisecond) {
			n.Step(50 * time.Millisecond)
		}
	}
	idle := func(why string) {
		t.Helper()
		before := value(t, h.Session(), meter.Import, 0)
		run(5 * time.Second)
		if after := value(t, h.Session(), meter.Import, 0); h.Charging() != 0 || after != before {
			t.Fatalf("%s: %d mW, register %d to %d", why, h.Charging(), before, after)
		}
	}

	state(drivers.StateA)
	idle("no car")
	car := compact
	car.Target = car.Charge + 100
	if err := n.PlugIn(1, car); err != nil {
		t.Fatal(err)
	}
	state(drivers.StateB)
	if err := n.SetCurrentLimit(1, 16_000); err != nil {
		t.Fatal(err)
	}
	state(drivers.StateC)
	idle("relay open")
	n.SetRelay(1, true)
	if h.Contactor() {
		t.Fatal("the contact is faster than the coil")
	}
	run(5 * time.Second)
	if !h.Contactor() {
		t.Fatal("the contact stays open")
	}
	if p := h.Charging(); p < 10_500_000 || p > 11_500_000 { // 3 x 16 A x 230 V
		t.Fatalf("%d mW at 16 A", p)
	}

	if err := n.SetCurrentLimit(1, 6_000); err != nil {
		t.Fatal(err)
	}
	n.Step(50 * time.Millisecond)
	if amps := value(t, h.Session(), meter.Current, 1); amps > 6_000 || amps < 5_990 {
		t.Fatalf("%d mA at 6 A", amps)
	}
	if err := n.SetCurrentLimit(1, 0); err != nil {
		t.Fatal(err)
	}
	idle("nothing offered")
	if err := n.SetCurrentLimit(1, 32_000); err != nil {
		t.Fatal(err)
	}
	run(5 * time.Second)
	if amps := value(t, h.Session(), meter.Current, 1); amps > 16_000 || amps < 15_990 {
		t.Fatalf("%d mA of a car that takes 16 A", amps)
	}
	n.SetRelay(1, false)
	if h.Contactor() {
		t.Fatal("the contact stays closed")
	}
	idle("relay opened")

	n.SetRelay(1, true)
	run(time.Minute)
	state(drivers.StateB) // full
	idle("full")
	left, err := n.Unplug(1)
	if err != nil || left.Charge != car.Target {
		t.Fatalf("%+v, %v", left, err)
	}
	state(drivers.StateA)
	if err := n.Balance().Check(); err != nil {
		t.Fatal(err)
	}
}

// TestWallbox: a car gives what is ordered, a tenth more leaves its battery, it
// ends at its reserve, takes it in again, and goes when its driver does.
func TestWallbox(t *testing.T) {
	n := mustNew(t, Config{Seed: 1, EternalDay: true, Houses: []HouseConfig{{Phases: 3, Wallbox: 7000}}})
	h := n.House(0)
	run := func(d time.Duration) {
		for range d / (50 * time.Millisecond) {
			n.Step(50 * time.Millisecond)
		}
	}
	wallbox := func(q meter.Quantity) int64 { return value(t, h.Wallbox(), q, 0) }
	n.SetPower(0, -5_000_000)
	run(time.Second)
	if wallbox(meter.Power) != 0 || h.VehicleState() != drivers.StateA {
		t.Fatal("power flows without a car")
	}
	car := Car{Name: "v2g", Capacity: 10_000, Charge: 5_000, Target: 10_000, Reserve: 4_900, MaxCurrent: 16_000, Phases: 3, Power: 6_000, Stay: 10 * time.Minute}
	if err := n.PlugIn(0, car); err != nil {
		t.Fatal(err)
	}
	was, site := wallbox(meter.Export), value(t, h.Site(), meter.Export, 0)
	run(36 * time.Second) // 50 Wh, less the second in which it rises
	if got := wallbox(meter.Export) - was; got < 48_500 || got > 50_000 {
		t.Errorf("%d mWh given in 36 s at 5 kW", got)
	}
	if got := value(t, h.Site(), meter.Export, 0) - site; got < 40_000 || got > 50_000 {
		t.Errorf("%d mWh left the house", got)
	}
	if now, _ := h.Car(); now.Charge != 4_945 && now.Charge != 4_946 || wallbox(meter.StateOfCharge) != 494 || h.VehicleState() != drivers.StateC {
		t.Errorf("the car has %d Wh, shows %d permille, state %v", now.Charge, wallbox(meter.StateOfCharge), h.VehicleState())
	}
	n.SetPower(0, -50_000_000)
	run(5 * time.Second)
	if got := wallbox(meter.Power); got != -6_000_000 {
		t.Errorf("%d mW, the car bears 6 kW", got)
	}
	run(5 * time.Minute)
	if now, _ := h.Car(); now.Charge != car.Reserve || h.Charging() != 0 || h.VehicleState() != drivers.StateB {
		t.Errorf("%d Wh, %d mW at the reserve", now.Charge, h.Charging())
	}
	n.SetPower(0, 3_600_000)
	run(100 * time.Second)
	if now, _ := h.Car(); now.Charge < car.Reserve+88 || now.Charge > car.Reserve+90 {
		t.Errorf("%d Wh after 100 Wh were put in", now.Charge)
	}
	run(5 * time.Minute)
	if _, there := h.Car(); there || h.Charging() != 0 {
		t.Error("it stays longer than its driver")
	}
	if err := n.Balance().Check(); err != nil {
		t.Fatal(err)
	}
}

func TestDeterministic(t *testing.T) {
	run := func(seed uint64) []any {
		n := mustNew(t, Default(seed, 4))
		n.SetRelay(1, true)
		if err := n.SetCurrentLimit(1, 32_000); err != nil {
			t.Fatal(err)
		}
		if err := n.PlugIn(1, compact); err != nil {
			t.Fatal(err)
		}
		var seen []any
		for i := range 500 {
			n.Step(time.Duration(i)*997*time.Microsecond + 1)
			seen = append(seen, n.Connection(), n.House(0).Site(), n.House(1).Session(), n.House(2).Inverter())
		}
		return append(seen, n.Balance(), n.Elapsed())
	}
	a, b, c := run(1), run(1), run(2)
	if !reflect.DeepEqual(a, b) {
		t.Error("equal runs differ")
	}
	if reflect.DeepEqual(a[:len(a)-1], c[:len(c)-1]) {
		t.Error("the seed makes no difference")
	}
}

// TestBright: whatever the seed, a demonstration of two minutes has several
// kW to sell and something to watch.
func TestBright(t *testing.T) {
	for seed := range uint64(50) {
		n := mustNew(t, Default(seed, 4))
		var surplus meter.MilliWatt
		var volts, watts []int64
		const steps = 1200
		for range steps {
			n.Step(100 * time.Millisecond)
			surplus -= min(n.House(0).Net(), 0) + min(n.House(2).Net(), 0)
			volts = append(volts, value(t, n.House(0).Site(), meter.Voltage, 1))
			watts = append(watts, int64(n.House(0).Production()))
		}
		if surplus /= steps; surplus < 6_000_000 {
			t.Errorf("seed %d: %d mW to sell", seed, surplus)
		}
		if lo, hi := slices.Min(volts), slices.Max(volts); lo < 226_000 || hi > 235_000 || lo == hi {
			t.Errorf("seed %d: %d..%d mV", seed, lo, hi)
		}
		if hi := slices.Max(watts); hi > 9_000_000 || hi < 3_000_000 {
			t.Errorf("seed %d: at most %d mW from 10 kW of modules", seed, hi)
		}
	}
}

func TestNight(t *testing.T) {
	cfg := Default(1, 1)
	cfg.EternalDay, cfg.Start = false, 18*time.Hour
	n := mustNew(t, cfg)
	n.Step(time.Second)
	evening := n.House(0).Production()
	n.Step(2 * time.Hour)
	if p := n.House(0).Production(); evening == 0 || p != 0 {
		t.Errorf("%d mW at 18:00, %d at 20:00", evening, p)
	}
	if got := value(t, n.House(0).Inverter(), meter.Status, 0); got != 2 {
		t.Errorf("status %d at night", got)
	}
	if err := n.Balance().Check(); err != nil {
		t.Error(err)
	}
}

// TestFitsProfiles: what a simulated meter shows fills every point of the
// profile that reads it, and survives its registers.
func TestFitsProfiles(t *testing.T) {
	cfg := Default(3, 2)
	cfg.Houses[1].Phases = 1
	n := mustNew(t, cfg)
	n.Step(time.Second)
	for id, pts := range map[string][]meter.Point{
		"eastron-sdm630":   n.House(0).Site(),
		"eastron-sdm120":   n.House(1).Session(),
		"sunspec-inverter": n.House(0).Inverter(),
		"sunspec-meter":    n.Connection(),
		"simpleevse":       n.House(0).EVSE(),
	} {
		p, err := profile.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		im, err := p.NewImage(0, profile.Identity{})
		if err != nil {
			t.Fatal(err)
		}
		shown := slices.DeleteFunc(slices.Clone(pts), func(pt meter.Point) bool { return !p.HasIn(im, pt.Quantity, pt.Phase) })
		if err := p.Encode(shown, im); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		for _, pt := range p.Points {
			if !slices.ContainsFunc(pts, func(o meter.Point) bool { return o.Quantity == pt.Quantity && o.Phase == pt.Phase }) {
				t.Errorf("%s reads %s and nothing shows it", id, meter.PointName(pt.Quantity, pt.Phase))
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	one := func(h HouseConfig) Config { return Config{Houses: []HouseConfig{h}} }
	for want, cfg := range map[string]Config{
		"0 houses":    {},
		"time of day": {Houses: make([]HouseConfig, 1), Start: 25 * time.Hour},
		"2 phases":    one(HouseConfig{Phases: 2}),
		"PV of -1 W":  one(HouseConfig{PV: -1}),
		"wallbox":     one(HouseConfig{Wallbox: 7000, Charger: true}),
		"cables":      one(HouseConfig{ServiceMilliOhm: 501}),
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	n := mustNew(t, Default(1, 1))
	for want, edit := range map[string]func(*Car){
		"do not fit":   func(c *Car) { c.Charge = c.Capacity + 1 },
		"gives":        func(c *Car) { c.Reserve = c.Capacity + 1 },
		"4 phases":     func(c *Car) { c.Phases = 4 },
		"at most 0 mA": func(c *Car) { c.MaxCurrent = 0 },
	} {
		car := compact
		edit(&car)
		if err := n.PlugIn(0, car); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	if err := n.SetCurrentLimit(0, 5_999); err == nil {
		t.Error("offers 5.999 A")
	}
}
