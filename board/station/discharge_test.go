package station

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/driverstest"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/joulegate/joulegate/meter/discharge"
)

// v2g is a wallbox that discharges, and its car.
type v2g struct {
	*driverstest.Limiter
	mu       sync.Mutex
	power    meter.MilliWatt // of the car, out of it positive
	weak     meter.MilliWatt // it gives no more; 0: what it is told
	battery  int64           // mWh
	capacity int64           // mWh
}

func (v *v2g) PowerRange() (least, most meter.MilliWatt) { return -11_000_000, 11_000_000 }

func (v *v2g) SetPower(ctx context.Context, p meter.MilliWatt) error {
	if err := v.SetLimit(ctx, 0); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.power = -p
	return nil
}

func (v *v2g) SetLimit(ctx context.Context, a meter.MilliAmpere) error {
	v.mu.Lock()
	v.power = 0
	v.mu.Unlock()
	return v.Limiter.SetLimit(ctx, a)
}

func (v *v2g) Halt() error {
	v.mu.Lock()
	v.power = 0
	v.mu.Unlock()
	return v.Limiter.Halt()
}

func (v *v2g) ordered() meter.MilliWatt {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.power
}

// flow moves a tenth of a second of energy out of the battery.
func (v *v2g) flow() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := int64(v.power)
	if v.weak > 0 {
		p = min(p, int64(v.weak))
	}
	v.battery -= p * 10 / 9 / 36_000
	return p
}

func (v *v2g) soc() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.battery * 1000 / v.capacity
}

// seller makes the world's wallbox one that may discharge, down to 40 % of
// 10 kWh. permit is asked.
func (w *world) seller(permit func(time.Time) error) *v2g {
	w.relay = nil
	w.yaml = strings.Replace(w.yaml, "  relay: RELAY1\n", "", 1)
	w.v2g = &v2g{Limiter: w.evse, battery: 8_000_000, capacity: 10_000_000}
	w.tweak = func(c *Config) {
		c.Chargers[0].Session.StartSpread = 0
		c.Chargers[0].Discharge = &Discharge{Permit: permit, Rules: discharge.Rules{
			MaxPower: 10_000, Capacity: 10_000, Floor: 400, StaleAfter: c.Chargers[0].Session.StaleAfter,
		}}
	}
	return w.v2g
}

func allowed(time.Time) error { return nil }

// sell starts a session that sells and does not charge.
func (w *world) sell(wh meter.WattHour) chain.ID {
	w.t.Helper()
	var driver chain.Key
	copy(driver[:], driverKey.Public().(ed25519.PublicKey))
	q, err := w.station.Quote(w.t.Context(), 1, driver, 0, 300_000, false, func(q *chain.Quote) { q.SellWh, q.SellLimit = wh, 100_000 })
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.station.Start(w.t.Context(), signed(q)); err != nil {
		w.t.Fatal(err)
	}
	return q.ID
}

// duties promises wh in each of the n slots that follow.
func (w *world) duties(id chain.ID, n int, wh meter.WattHour) {
	now := chain.SlotAt(time.Now().UnixMilli(), 10)
	var all []Duty
	for i := range n {
		all = append(all, Duty{id, "offer/1", now + 1 + chain.Slot(i), wh})
	}
	w.station.Duties(all)
}

func (w *world) exports(id chain.ID) []meter.WattHour {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]meter.WattHour{}, w.out[id]...)
}

// TestSellsWhatWasPromised: a car gives what it has promised, slot by slot, the
// registers of both directions are on record, and nothing flows unpromised.
func TestSellsWhatWasPromised(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		dev := w.seller(allowed)
		end := w.run()
		wait(4 * time.Second)
		id := w.sell(500)
		wait(12 * time.Second)
		if dev.ordered() != 0 {
			t.Fatalf("%d mW without a promise", dev.ordered())
		}
		if c := w.last().Chargers[0]; c.Sale == nil || c.Sale.Why != "nothing is promised" || c.State == "charging" {
			t.Fatalf("waits: %+v, sale %+v", c, c.Sale)
		}
		w.duties(id, 6, 15) // 5.4 kW for a minute
		wait(25 * time.Second)
		c := w.last().Chargers[0]
		if c.PowerW > -4000 || c.State != "charging" || c.Sale.PowerW < 4000 || c.Sale.Why != "delivers what was promised" || c.Sale.Promised != 90 || c.Limit != 0 {
			t.Fatalf("in the middle: %+v, sale %+v", c, c.Sale)
		}
		wait(60 * time.Second)
		if dev.ordered() != 0 {
			t.Errorf("%d mW after the last promise", dev.ordered())
		}
		if c := w.last().Chargers[0]; c.Sale.SoldWh < 86 || c.Sale.SoldWh > 96 {
			t.Errorf("%d Wh given, 90 promised; %+v", c.Sale.SoldWh, c.Sale)
		}
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(20 * time.Second)
		out := w.exports(id)
		if n := len(out); n < 5 || out[n-1]-out[0] < 86 || out[n-1]-out[0] > 96 {
			t.Errorf("export registers on record: %d", out)
		}
		if w.regs[id][len(w.regs[id])-1] != w.regs[id][0] {
			t.Errorf("charged: %d", w.regs[id])
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestAnyLostConditionEndsDischarging takes each condition away in turn.
func TestAnyLostConditionEndsDischarging(t *testing.T) {
	for name, lose := range map[string]struct {
		f      func(w *world, dev *v2g)
		within time.Duration
	}{
		"emergency stop":    {func(w *world, _ *v2g) { w.estop.Put(true, nil) }, time.Second},
		"unplugged":         {func(w *world, _ *v2g) { w.unplugged.Store(true) }, 3 * time.Second},
		"no session meter":  {func(w *world, _ *v2g) { w.mute("car") }, 15 * time.Second},
		"no site meter":     {func(w *world, _ *v2g) { w.mute("house") }, 15 * time.Second},
		"statement expired": {func(w *world, _ *v2g) { w.mu.Lock(); w.refuse = true; w.mu.Unlock() }, time.Second},
		"floor":             {func(_ *world, v *v2g) { v.mu.Lock(); v.battery = 3_990_000; v.mu.Unlock() }, 3 * time.Second},
		"stalled loop": {func(w *world, _ *v2g) {
			w.mu.Lock()
			w.block = sync.OnceFunc(func() { time.Sleep(20 * time.Second) })
			w.mu.Unlock()
		}, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				dev := w.seller(func(time.Time) error {
					w.mu.Lock()
					defer w.mu.Unlock()
					if w.refuse {
						return errors.New("statement: it expired")
					}
					return nil
				})
				end := w.run()
				wait(4 * time.Second)
				w.duties(w.sell(5000), 100, 10)
				wait(30 * time.Second)
				if dev.ordered() < 3_000_000 {
					t.Fatalf("%d mW ordered: %+v", dev.ordered(), w.last().Chargers[0])
				}
				lose.f(w, dev)
				wait(lose.within)
				if dev.ordered() != 0 {
					t.Fatalf("%d mW ordered %s later", dev.ordered(), lose.within)
				}
				// And it stays so while the condition is missing.
				if name != "stalled loop" {
					wait(20 * time.Second)
					if dev.ordered() != 0 {
						t.Fatalf("%d mW ordered again", dev.ordered())
					}
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if dev.ordered() != 0 {
					t.Fatal("the halted station left it discharging")
				}
			})
		})
	}
}

// TestRestartWhileDischarging: whether the program ends in order or is killed,
// nothing flows while it is away, and nothing by itself afterwards: not before
// the ledger has spoken again and the meters are fresh. Then it goes on with
// the slot's promise, and what it gave before is not given again.
func TestRestartWhileDischarging(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		dev := w.seller(allowed)
		end := w.run()
		wait(4 * time.Second)
		id := w.sell(5000)
		w.duties(id, 100, 10)
		wait(34 * time.Second)
		if dev.ordered() < 3_000_000 {
			t.Fatalf("%d mW ordered: %+v", dev.ordered(), w.last().Chargers[0])
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if dev.ordered() != 0 {
			t.Fatalf("%d mW while nobody is there", dev.ordered())
		}
		// Nobody has told the new program of promises yet.
		end = w.run()
		wait(10 * time.Second)
		if dev.ordered() != 0 {
			t.Fatalf("%d mW by itself after a restart", dev.ordered())
		}
		if c := w.last().Chargers[0]; c.Session != id.String() || c.Sale == nil || c.Sale.SoldWh < 15 {
			t.Fatalf("after a restart: %+v, sale %+v", c, c.Sale)
		}
		before := w.last().Chargers[0].Sale.SoldWh
		w.duties(id, 4, 10)
		wait(60 * time.Second)
		if got := w.last().Chargers[0].Sale.SoldWh - before; got < 36 || got > 46 {
			t.Errorf("%d Wh given after the restart, 40 promised", got)
		}
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(20 * time.Second)
		if out := w.exports(id); len(w.stops[id]) != 1 || w.stops[id][0].Export != out[len(out)-1] {
			t.Errorf("stop %+v after %d", w.stops[id], out)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestExportKeepsToCircuitAndUtility: what flows out of a car is bounded by
// the circuit's rating and by the utility's order, as what flows in is.
func TestExportKeepsToCircuitAndUtility(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		dev := w.seller(allowed)
		end := w.run()
		wait(4 * time.Second)
		w.duties(w.sell(5000), 100, 100) // 36 kW, far more than the charger bears
		wait(40 * time.Second)
		most := meter.MilliWatt(16_000 * 230 * 3)
		if p := dev.ordered(); p > min(most, 10_000_000) || p < 5_000_000 {
			t.Fatalf("%d mW ordered, the charger bears %d", p, most)
		}
		if err := w.station.Dim(t.Context(), circuit.Message, 4_200, time.Minute); err != nil {
			t.Fatal(err)
		}
		wait(3 * time.Second)
		if p := dev.ordered(); p > 4_200_000 || p < 4_000_000 {
			t.Errorf("%d mW ordered, the utility allows 4.2 kW", p)
		}
		wait(70 * time.Second)
		if p := dev.ordered(); p < 5_000_000 {
			t.Errorf("%d mW ordered after the utility's order ended", p)
		}
		if err := w.station.SetLimit(t.Context(), 1, 6_000); err != nil {
			t.Fatal(err)
		}
		wait(3 * time.Second)
		if p := dev.ordered(); p > 6*230*3*1000 || p == 0 {
			t.Errorf("%d mW ordered, a person allows 6 A", p)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func (w *world) mute(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent[id] = true
}

// TestShortfallIsOnRecord: a converter that gives less than was promised is
// told of, for each slot.
func TestShortfallIsOnRecord(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		dev := w.seller(allowed)
		dev.weak = 1_000_000
		end := w.run()
		wait(4 * time.Second)
		id := w.sell(5000)
		w.duties(id, 2, 20)
		wait(45 * time.Second)
		c := w.last().Chargers[0]
		if c.Sale == nil || c.Sale.Short < 20 || c.Sale.Short > 38 {
			t.Fatalf("%+v", c.Sale)
		}
		wait(2 * time.Minute)
		if e := w.events("session.shortfall"); len(e) == 0 || e[0].Subject != id.String() || !strings.Contains(e[0].Text, "of 20 Wh delivered") {
			t.Errorf("events %+v", e)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNoMoreThanTheDriverSells stops at what the driver has signed.
func TestNoMoreThanTheDriverSells(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		dev := w.seller(allowed)
		end := w.run()
		wait(4 * time.Second)
		id := w.sell(30)
		w.duties(id, 30, 10)
		wait(3 * time.Minute)
		out := w.exports(id)
		if n := len(out); n < 2 || out[n-1]-out[0] > 30 || out[n-1]-out[0] < 25 {
			t.Errorf("export registers %d for 30 Wh", out)
		}
		if dev.ordered() != 0 && w.last().Chargers[0].Sale.SoldWh >= 30 {
			t.Errorf("still %d mW", dev.ordered())
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDischargingIsOffUnlessAllowed refuses the quote, and the hardware that
// cannot.
func TestDischargingIsOffUnlessAllowed(t *testing.T) {
	sells := func(w *world) error {
		_, err := w.station.Quote(w.t.Context(), 1, chain.Key{9}, 0, 300_000, false, func(q *chain.Quote) { q.SellWh = 100 })
		return err
	}
	refused := func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		var r *Refusal
		if err := sells(w); !errors.As(err, &r) || r.Code != NoDischarge {
			t.Errorf("sells: %v", err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("not configured", func(t *testing.T) { bubble(t, refused) })
	t.Run("nobody vouches", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) { w.seller(nil); refused(t, w) })
	})
	t.Run("wallbox cannot", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			w.seller(allowed)
			w.v2g = nil
			if _, err := New(w.config()); err == nil || !strings.Contains(err.Error(), "cannot discharge") {
				t.Errorf("%v", err)
			}
		})
	})
}

var _ drivers.Discharger = (*v2g)(nil)
