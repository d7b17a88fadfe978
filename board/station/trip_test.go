package station

import (
	"errors"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// TestTripDoesNotNeedTheLoop: the loop hangs in a contact while the relay is
// opened beside it. It stays open, and the session learns why.
func TestTripDoesNotNeedTheLoop(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var until time.Time
		w.tweak = func(c *Config) {
			c.Chargers[0].Feedback = contact(func() (bool, error) {
				w.mu.Lock()
				d := time.Until(until)
				w.mu.Unlock()
				time.Sleep(d)
				return w.relay.Closed()
			})
		}
		end := w.run()
		wait(4 * time.Second)
		id := w.start(5000)
		wait(20 * time.Second)
		if !w.closed() {
			t.Fatal("not charging")
		}
		w.mu.Lock()
		until = time.Now().Add(500 * time.Millisecond) // shorter than the watchdog's patience
		w.mu.Unlock()
		wait(50 * time.Millisecond)
		w.trip(EmergencyStop) // and let go before the loop is back
		wait(5 * time.Second)
		if w.closed() {
			t.Fatal("closed again after a stop")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if s := w.stops[id]; len(s) != 1 || s[0].Reason != chain.StopSafety {
			t.Errorf("the session that the button ended: %+v", s)
		}
	})
}

// trip is the watch beside the loop: it opens the relay and tells.
func (w *world) trip(why Contact) {
	_ = w.relay.Halt()
	w.station.Tripped(1, why)
}

// contact is an input that a test computes.
type contact func() (bool, error)

func (c contact) Active() (bool, error) { return c() }

// TestShortPressIsNotLost: a press that begins and ends between two ticks
// stops like any other, and leaves the next car alone.
func TestShortPressIsNotLost(t *testing.T) {
	for name, why := range map[string]Contact{"emergency stop": EmergencyStop, "loop lost": LoopLost, "earth fault": EarthFault} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.tweak = func(c *Config) { c.Tick = 200 * time.Millisecond }
				end := w.run()
				wait(4 * time.Second)
				id := w.start(5000)
				wait(20 * time.Second)
				if !w.closed() {
					t.Fatal("not charging")
				}
				w.trip(why)
				wait(time.Millisecond)
				if w.closed() {
					t.Fatal("the relay is closed after a press")
				}
				wait(500 * time.Millisecond)
				if w.closed() {
					t.Fatal("closed again at once")
				}
				wait(20 * time.Second)
				if why == LoopLost {
					// The session is not to blame; it goes on when the loop is trusted again.
					if err := end(); err != nil {
						t.Fatal(err)
					}
					return
				}
				if w.closed() {
					t.Fatal("closed again")
				}
				if s := w.stops[id]; len(s) != 1 || s[0].Reason != chain.StopSafety {
					t.Errorf("%+v", s)
				}
				if why == EarthFault {
					if err := w.station.ClearFault(t.Context(), 1); err != nil {
						t.Fatal(err)
					}
				}
				next := w.start(5000)
				wait(30 * time.Second)
				if !w.closed() {
					t.Fatalf("the next session does not charge: %s", w.last().Chargers[0].Why)
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if len(w.stops[next]) != 0 {
					t.Errorf("%+v", w.stops[next])
				}
			})
		})
	}
}

// TestClockJump: the wall clock belongs to records and quotes. A step of years
// in either direction neither opens nor closes a relay, nor delays a stop.
func TestClockJump(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var jump time.Duration
		w.tweak = func(c *Config) {
			c.Wall = func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return time.Now().Add(jump) }
		}
		end := w.run()
		wait(4 * time.Second)
		w.start(50_000)
		wait(20 * time.Second)
		for _, d := range []time.Duration{10 * 365 * 24 * time.Hour, -40 * 365 * 24 * time.Hour, 3 * time.Second, 0} {
			w.mu.Lock()
			jump = d
			w.mu.Unlock()
			for range 40 {
				wait(100 * time.Millisecond)
				if !w.closed() {
					t.Fatalf("a step of %s opened the relay: %s", d, w.last().Chargers[0].Why)
				}
			}
		}
		w.mu.Lock()
		jump = -time.Hour
		w.mu.Unlock()
		w.estop.Put(true, nil)
		wait(100 * time.Millisecond)
		if w.closed() {
			t.Fatal("closed after a stop")
		}
		var r *Refusal
		wait(20 * time.Second)
		if _, err := w.station.Quote(t.Context(), 1, chain.Key{7}, 1000, 1, false); !errors.As(err, &r) || r.Code != Stopped && r.Code != ClockUnset {
			t.Errorf("a price while the button is pressed: %v", err)
		}
		wait(time.Minute)
		if w.closed() || len(w.relay.Log()) == 0 {
			t.Fatal("closed again")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}
