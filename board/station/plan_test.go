package station

import (
	"crypto/ed25519"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/plan"
)

// tariff offers n slots of five minutes from now on, at one price each.
func tariff(now time.Time, prices ...chain.NanoPerWh) (slots []plan.Slot) {
	at := now.UnixMilli()
	for _, p := range prices {
		end := at + (5 * time.Minute).Milliseconds()
		slots = append(slots, plan.Slot{Start: at, End: end, Tiers: []plan.Tier{{Price: p, Wh: plan.Unlimited}}})
		at = end
	}
	return slots
}

// TestPlanChargesWhenItIsCheap: a car that leaves in twenty minutes waits for
// the cheap slots, longer than a session without a plan may wait for energy,
// and has what it wants by then.
func TestPlanChargesWhenItIsCheap(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.tweak = func(c *Config) { c.Chargers[0].Session.StartSpread = 0 }
		end := w.run()
		wait(4 * time.Second)
		begin := time.Now()
		w.station.Offers(tariff(begin, 300_000, 300_000, 180_000, 180_000), 1)
		id := w.start(5000)
		goal := plan.Goal{Wh: 900, By: begin.Add(20 * time.Minute).UnixMilli()}
		if err := w.station.SetGoal(t.Context(), id, goal); err != nil {
			t.Fatal(err)
		}
		wait(2 * time.Second)
		base := w.car()
		wait(9 * time.Minute)
		c := w.last().Chargers[0]
		if c.State == "charging" || c.Session != id.String() || w.car()-base > 20 || !strings.Contains(c.Why, "the plan charges from") {
			t.Fatalf("before the tariff falls: %+v", c)
		}
		if c.Plan == nil || c.Plan.Wh != 900 || c.Plan.Short != 0 || len(c.Plan.Shares) == 0 || !c.Plan.Shares[0].From.Equal(begin.Add(10*time.Minute)) {
			t.Fatalf("plan %+v", c.Plan)
		}
		w.mu.Lock()
		begun := w.seqs[id]
		w.mu.Unlock()
		if begun == 0 {
			t.Error("no begin register on record: the ledger would void the session")
		}

		// The gateway restarts: the plan survives.
		if err := end(); err != nil {
			t.Fatal(err)
		}
		end = w.run()
		wait(4 * time.Second)
		w.station.LedgerSession(id, true, "")
		w.station.Offers(tariff(begin, 300_000, 300_000, 180_000, 180_000), 1)
		wait(2 * time.Minute)
		if c := w.last().Chargers[0]; c.State != "charging" || c.Plan == nil {
			t.Fatalf("in the cheap slot: %+v", c)
		}
		wait(9 * time.Minute)
		if got := w.last().Chargers[0].SessionWh; got < 900 || got > 960 {
			t.Errorf("%d Wh at the departure, wanted 900", got)
		}
		if c := w.last().Chargers[0]; c.State == "charging" {
			t.Errorf("goes on: %+v", c)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPlanReportsWhatIsMissing says a shortfall at once and puts it on record.
func TestPlanReportsWhatIsMissing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.tweak = func(c *Config) { c.Chargers[0].Session.StartSpread = 0 }
		end := w.run()
		wait(4 * time.Second)
		begin := time.Now()
		w.station.Offers(tariff(begin, 300_000, 180_000), 1)
		// 16 A on three phases are 11 kW: 920 Wh in five minutes.
		p, err := w.station.Plan(t.Context(), 1, plan.Goal{Wh: 3_000, By: begin.Add(10 * time.Minute).UnixMilli(), MaxPrice: 200_000})
		if err != nil || p.Energy < 900 || p.Energy > 920 || p.ByPower == 0 || p.Needs != 300_000 {
			t.Fatalf("%+v, %v", p, err)
		}
		id := w.start(3000)
		if err := w.station.SetGoal(t.Context(), id, plan.Goal{Wh: 3_000, By: begin.Add(10 * time.Minute).UnixMilli(), MaxPrice: 200_000}); err != nil {
			t.Fatal(err)
		}
		wait(3 * time.Second)
		c := w.last().Chargers[0]
		if c.Plan == nil || c.Plan.Short < 2_000 || !strings.Contains(c.Plan.Report, "short at") {
			t.Fatalf("%+v", c.Plan)
		}
		wait(3 * time.Second)
		if e := w.events("session.plan"); len(e) != 1 || e[0].Subject != id.String() || !strings.Contains(e[0].Text, "short at") {
			t.Fatalf("events %+v", e)
		}
		if err := w.station.SetGoal(t.Context(), chain.ID{9}, plan.Goal{Wh: 1}); err == nil {
			t.Error("a goal for nobody")
		}
		if err := w.station.SetGoal(t.Context(), id, plan.Goal{Wh: MaxWh + 1}); err == nil {
			t.Error("a goal beyond reason")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDepartureOfEveryDay gives a session without a goal the configured one,
// and one that names its own the other.
func TestDepartureOfEveryDay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.yaml = strings.Replace(w.yaml, "  estop: IN1\n", "  estop: IN1\n  departure: {by: \"07:00\", wh: 4000, max_price_nano_per_wh: 250000}\n", 1)
		end := w.run()
		wait(4 * time.Second)
		w.station.Offers(tariff(time.Now(), 300_000), 1)
		w.start(10_000)
		wait(2 * time.Second)
		c := w.last().Chargers[0]
		if c.Plan == nil || c.Plan.Wh != 4_000 || c.Plan.MaxPrice != 250_000 || c.Plan.By.Format("15:04") != "07:00" || !c.Plan.By.After(time.Now()) || c.Plan.By.After(time.Now().Add(24*time.Hour)) {
			t.Fatalf("%+v", c.Plan)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
	bubble(t, func(t *testing.T, w *world) {
		w.yaml = strings.Replace(w.yaml, "  estop: IN1\n", "  estop: IN1\n  departure: {by: \"07:00\", wh: 4000}\n", 1)
		end := w.run()
		wait(4 * time.Second)
		q, err := w.station.Quote(t.Context(), 1, chain.Key(driverKey.Public().(ed25519.PublicKey)), 5_000, 300_000, false)
		if err == nil {
			err = w.station.SetGoal(t.Context(), q.ID, plan.Goal{Wh: 9_000, By: time.Now().Add(time.Hour).UnixMilli()})
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := w.station.Start(t.Context(), signed(q)); err != nil {
			t.Fatal(err)
		}
		wait(2 * time.Second)
		if c := w.last().Chargers[0]; c.Plan == nil || c.Plan.Wh != meter.WattHour(5_000) {
			t.Fatalf("the hold limits the goal: %+v", c.Plan)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFeederLease: with a lease its limits hold, without one the share.
func TestFeederLease(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.yaml = strings.Replace(w.yaml, "pins: ", "feeder: {share_ma: 7000, leader: south, lease: 30s}\npins: ", 1)
		var leased atomic.Bool
		w.tweak = func(c *Config) {
			c.Lease = func(ids []uint8, _ time.Duration) ([]meter.MilliAmpere, bool) {
				if !leased.Load() {
					return nil, false
				}
				return []meter.MilliAmpere{13_000}, len(ids) == 1 && ids[0] == 1
			}
		}
		end := w.run()
		wait(4 * time.Second)
		w.start(5000)
		wait(4 * time.Second)
		if got := w.evse.Limit(); got != 7_000 {
			t.Fatalf("%d mA without a lease, the share is 7000", got)
		}
		leased.Store(true)
		wait(10 * time.Second)
		if got := w.evse.Limit(); got != 13_000 {
			t.Fatalf("%d mA with a lease of 13000", got)
		}
		if a := w.station.Asks(); len(a) != 1 || a[0].ID != 1 || a[0].Want != 16_000 || a[0].Draw[0] != 13_000 {
			t.Fatalf("asks %+v", a)
		}
		leased.Store(false)
		wait(time.Second)
		if got := w.evse.Limit(); got != 7_000 {
			t.Fatalf("%d mA after the lease", got)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}
