package station

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
)

// TestAbnormalSessions goes through the abnormal transactions that a device
// can see. Each leads to its state, and to a record that says why.
func TestAbnormalSessions(t *testing.T) {
	// charge brings a session under way.
	charge := func(w *world, hold meter.WattHour) chain.ID {
		wait(4 * time.Second)
		id := w.start(hold)
		wait(30 * time.Second)
		if c := w.last().Chargers[0]; c.State != "charging" {
			w.t.Fatalf("not charging: %+v", c)
		}
		return id
	}
	// stopped checks the one stop record of a session.
	stopped := func(w *world, id chain.ID, why chain.StopReason) chain.SessionStop {
		w.t.Helper()
		w.mu.Lock()
		defer w.mu.Unlock()
		if s := w.stops[id]; len(s) != 1 || s[0].Reason != why {
			w.t.Fatalf("stops %+v, want one because of %s; %+v", s, why, w.shots[len(w.shots)-1].Chargers[0])
		}
		return w.stops[id][0]
	}
	// recorded checks that an event with these words is on record, signed by
	// way of the same block chain as everything else.
	recorded := func(w *world, code string, words ...string) {
		w.t.Helper()
		all := w.events(code)
		for _, e := range all {
			ok := e.Detail == chain.Sum([]byte(e.Text)) && e.Severity >= 1 && e.Severity <= 3 && strings.HasSuffix(e.Text, "[config 0badc0de, joulegate test]")
			for _, word := range words {
				ok = ok && strings.Contains(e.Text, word)
			}
			if ok {
				return
			}
		}
		w.t.Fatalf("no record %s with %q among %+v", code, words, all)
	}
	base := func(w *world) meter.WattHour {
		w.mu.Lock()
		defer w.mu.Unlock()
		return meter.MilliWattHour(w.reg["car"]).WattHours()
	}
	poller := func(w *world) { w.poll, w.serial = &poll.State{}, "4711" }

	for _, c := range []struct {
		name  string
		setup func(w *world)
		run   func(w *world)
	}{
		{"cable pulled", nil, func(w *world) {
			id := charge(w, 5000)
			w.unplugged.Store(true)
			wait(15 * time.Second)
			if s := stopped(w, id, chain.StopUnplugged); s.Register != w.car() {
				w.t.Errorf("closed on %d, the meter says %d", s.Register, w.car())
			}
			recorded(w, "charger.opened", "the vehicle was unplugged", id.String())
		}},
		{"phases exchanged", nil, func(w *world) {
			charge(w, 5000)
			w.mu.Lock()
			w.reversed = true
			w.mu.Unlock()
			wait(10 * time.Second)
			if c := w.last().Chargers[0]; w.closed() || !strings.Contains(c.Why, "wrong order") {
				w.t.Errorf("%+v", c)
			}
			recorded(w, "supply.lost", "wrong order")
		}},
		{"power lost", nil, func(w *world) {
			id := charge(w, 5000)
			w.mu.Lock()
			w.killAt = w.writes + 1 // the next write does not land
			w.mu.Unlock()
			<-w.killed
			_ = w.end() // what it could not write is lost
			counted := w.car()
			wait(time.Minute)
			w.mu.Lock()
			w.dead, w.killAt, w.killed = false, 0, make(chan struct{})
			w.mu.Unlock()
			w.unplugged.Store(true) // the driver did not wait
			w.run()
			wait(40 * time.Second)
			if s := stopped(w, id, chain.StopUnplugged); s.Register != counted {
				w.t.Errorf("closed on %d, the last energy was at %d", s.Register, counted)
			}
			recorded(w, "session.resumed", "goes on after a restart", id.String())
		}},
		{"begin register 0 after a reboot", func(w *world) {
			poller(w)
			first := time.Now().Add(8 * time.Second)
			w.shown = func(reg int64) int64 {
				if time.Now().Before(first) {
					return 0 // not loaded from its memory yet
				}
				return reg
			}
		}, func(w *world) {
			wait(4 * time.Second)
			id := w.start(5000)
			wait(50 * time.Second)
			w.mu.Lock()
			begin := w.regs[id][0]
			w.mu.Unlock()
			if begin < 5000 || w.last().Chargers[0].SessionWh > 200 {
				w.t.Errorf("begins at %d Wh, bills %d Wh", begin, w.last().Chargers[0].SessionWh)
			}
			recorded(w, "meter.suspect", "are 0")
		}},
		{"register went back", poller, func(w *world) {
			id := charge(w, 5000)
			was := base(w)
			w.mu.Lock()
			w.shown = func(reg int64) int64 { return reg - 3_000_000 }
			w.mu.Unlock()
			wait(90 * time.Second)
			if s := stopped(w, id, chain.StopMeter); s.Register < was-4 || s.Register > was+10 {
				w.t.Errorf("closed on %d, the last good register was %d", s.Register, was)
			}
			recorded(w, "meter.suspect", "went back")
		}},
		{"register jumped", poller, func(w *world) {
			id := charge(w, 5000)
			was := base(w)
			w.mu.Lock()
			w.shown = func(reg int64) int64 { return reg + 910_000_000 }
			w.mu.Unlock()
			wait(90 * time.Second)
			if s := stopped(w, id, chain.StopMeter); s.Register < was-4 || s.Register > was+10 {
				w.t.Errorf("closed on %d, the last good register was %d", s.Register, was)
			}
			recorded(w, "meter.suspect", "jumped")
		}},
		{"register stuck while power flows", poller, func(w *world) {
			id := charge(w, 5000)
			was := w.car()
			w.mu.Lock()
			stuck := w.reg["car"]
			w.shown = func(int64) int64 { return stuck }
			w.mu.Unlock()
			wait(5 * time.Minute)
			if s := stopped(w, id, chain.StopMeter); s.Register > was+4 {
				w.t.Errorf("closed on %d, nothing above %d was counted", s.Register, was)
			}
			recorded(w, "meter.stuck", "not billed")
		}},
		{"meter swapped", poller, func(w *world) {
			id := charge(w, 5000)
			was := base(w)
			w.mu.Lock()
			w.serial = "0815"
			w.reg["car"] = 77_000_000
			w.mu.Unlock()
			wait(90 * time.Second)
			if s := stopped(w, id, chain.StopMeter); s.Register < was-4 || s.Register > was+10 {
				w.t.Errorf("closed on %d, the old meter ended at %d", s.Register, was)
			}
			recorded(w, "meter.suspect", "0815")
			if err := w.station.SwapMeter(w.t.Context(), "car"); err != nil {
				w.t.Fatal(err)
			}
			w.mu.Lock()
			*w.poll = poll.Rebase(*w.poll)
			w.mu.Unlock()
			wait(15 * time.Second)
			recorded(w, "meter.confirmed", "new segment")
			w.mu.Lock()
			defer w.mu.Unlock()
			if m := w.meters["car"]; m.Segment != 1 || m.Import < 77_000 {
				w.t.Errorf("%+v", m)
			}
		}},
		{"energy after the stop", nil, func(w *world) {
			id := charge(w, 5000)
			if err := w.station.Stop(w.t.Context(), id, chain.StopDriver); err != nil {
				w.t.Fatal(err)
			}
			wait(10 * time.Second)
			end := stopped(w, id, chain.StopDriver).Register
			w.mu.Lock()
			w.reg["car"] += 9_000
			w.mu.Unlock()
			next := w.start(5000)
			wait(10 * time.Second)
			w.mu.Lock()
			first := w.regs[next][0]
			w.mu.Unlock()
			if first < end+9 {
				w.t.Errorf("the next session begins at %d, the last ended at %d and 9 Wh came after", first, end)
			}
			recorded(w, "energy.after_stop", "9 Wh", next.String())
		}},
		{"second and conflicting stop", nil, func(w *world) {
			id := charge(w, 5000)
			for _, why := range []chain.StopReason{chain.StopDriver, chain.StopDriver, chain.StopOperator} {
				if err := w.station.Stop(w.t.Context(), id, why); err != nil {
					w.t.Errorf("not acknowledged: %v", err)
				}
			}
			wait(10 * time.Second)
			stopped(w, id, chain.StopDriver)
			recorded(w, "session.stop_repeated", id.String())
			recorded(w, "session.stop_conflict", id.String(), "operator")
		}},
		{"duplicate start", nil, func(w *world) {
			id := charge(w, 5000)
			if err := w.station.Start(w.t.Context(), w.signed); err != nil {
				w.t.Errorf("a repeated start: %v", err)
			}
			wait(2 * time.Second)
			opens := 0
			w.mu.Lock()
			for _, r := range w.records {
				if r.Kind == chain.KindSessionOpen {
					opens++
				}
			}
			w.mu.Unlock()
			if c := w.last().Chargers[0]; opens != 1 || c.Session != id.String() {
				t.Errorf("%d sessions opened; %+v", opens, c)
			}
			recorded(w, "session.start_repeated", "no effect")
		}},
		{"the ledger is lost mid-session", func(w *world) {
			w.tweak = func(c *Config) { c.Chargers[0].Session.OfflineWh = 400 }
		}, func(w *world) {
			id := charge(w, 5000)
			from := w.car()
			w.station.LedgerOnline(false)
			wait(90 * time.Second)
			if !w.closed() || !w.last().Chargers[0].Offline {
				w.t.Fatalf("does not go on: %+v", w.last().Chargers[0])
			}
			wait(3 * time.Minute)
			if s := stopped(w, id, chain.StopHold); s.Register > from+401 || s.Register < from+300 {
				w.t.Errorf("delivered %d Wh without the ledger, 400 are allowed", s.Register-from)
			}
			recorded(w, "ledger.lost", id.String())
			recorded(w, "charger.opened", "400 Wh for times without the ledger")
			w.station.LedgerOnline(true)
		}},
		{"clock jumps", func(w *world) {
			w.tweak = func(c *Config) {
				c.Founded = time.Now().Add(-time.Hour)
				c.Wall = func() time.Time {
					w.mu.Lock()
					defer w.mu.Unlock()
					return time.Now().Add(w.skew)
				}
			}
		}, func(w *world) {
			id := charge(w, 5000)
			w.mu.Lock()
			w.skew = -30 * 365 * 24 * time.Hour // 1970
			w.mu.Unlock()
			wait(20 * time.Second)
			if !w.closed() {
				w.t.Errorf("wall-clock time drives safety: %s", w.last().Chargers[0].Why)
			}
			recorded(w, "clock.jump", "1970-")
			w.mu.Lock()
			w.skew = 0
			w.mu.Unlock()
			if err := w.station.Stop(w.t.Context(), id, chain.StopDriver); err != nil {
				w.t.Fatal(err)
			}
			wait(10 * time.Second)
			stopped(w, id, chain.StopDriver)
			w.mu.Lock()
			w.skew = -30 * 365 * 24 * time.Hour
			w.mu.Unlock()
			wait(time.Second)
			var r *Refusal
			if _, err := w.station.Quote(w.t.Context(), 1, chain.Key{7}, 1000, 1, false); !errors.As(err, &r) || r.Code != ClockUnset {
				w.t.Errorf("quoted in 1970: %v", err)
			}
			if a := w.last().Alarms; len(a) == 0 || a[len(a)-1].Code != "clock" {
				w.t.Errorf("alarms %+v", a)
			}
		}},
		{"payment without energy", func(w *world) { w.draw = func(int64) int64 { return 0 } }, func(w *world) {
			wait(4 * time.Second)
			id := w.start(5000)
			wait(80 * time.Second)
			s := stopped(w, id, chain.StopNoEnergy)
			w.mu.Lock()
			first := w.regs[id][0]
			w.mu.Unlock()
			if s.Register != first {
				w.t.Errorf("from %d to %d", first, s.Register)
			}
			recorded(w, "charger.opened", "no energy within")
		}},
		{"delivery beyond the hold", nil, func(w *world) {
			id := charge(w, 300)
			w.mu.Lock()
			w.reg["car"] += 500_000 // its register was late
			w.mu.Unlock()
			wait(15 * time.Second)
			if s := stopped(w, id, chain.StopHold); s.Register != w.car() {
				w.t.Errorf("closed on %d, the meter says %d", s.Register, w.car())
			}
			recorded(w, "session.beyond_hold", "operator's claim")
		}},
		{"energy without payment", func(w *world) {
			withBox(w)
			tweak := w.tweak
			w.tweak = func(c *Config) { tweak(c); c.By = "config 0badc0de, joulegate test" }
			w.draw = func(int64) int64 { return 9_000 } // started by the wallbox's own key switch
		}, func(w *world) {
			wait(2 * time.Minute)
			recorded(w, "energy.unauthorised", "without a session")
			if c := w.last().Chargers[0]; c.Fault == "" {
				w.t.Errorf("nobody is alarmed: %+v", c)
			}
			recorded(w, "charger.fault", "contactor welded")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				if c.setup != nil {
					c.setup(w)
				}
				w.run()
				c.run(w)
				if err := w.end(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// A fault that comes and goes is on record, and does not fill the disk.
func TestRepeatedEventsAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		for range 1200 {
			w.mu.Lock()
			if w.doubt == "" {
				w.doubt = "power_mw = 99 is outside"
			} else {
				w.doubt = ""
			}
			w.mu.Unlock()
			wait(time.Second)
		}
		all := w.events("meter.suspect")
		if len(all) < 3 || len(all) > 7 {
			t.Fatalf("600 doubts in 20 minutes made %d records", len(all))
		}
		counted := false
		for _, e := range all {
			counted = counted || strings.Contains(e.Text, "times within")
		}
		if !counted {
			t.Errorf("nobody counted: %+v", all)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}
