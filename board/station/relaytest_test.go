package station

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter/session"
)

// auxiliary is the contactor's own contact.
type auxiliary struct {
	relay drivers.Relay
	stays atomic.Bool
}

func (a *auxiliary) Active() (bool, error) {
	if a.stays.Load() {
		return false, nil
	}
	return a.relay.Closed()
}

// TestRelayTest: a person's test moves the relay and says what the contacts
// did; with a vehicle or a session there is none.
func TestRelayTest(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		f := withEverything(w)
		f.pilot.Put(false, nil)
		aux := &auxiliary{}
		tweak := w.tweak
		w.tweak = func(c *Config) {
			tweak(c)
			aux.relay = c.Chargers[0].Relay
			c.Chargers[0].Feedback = aux
		}
		w.draw = func(int64) int64 { return 0 }
		end := w.run()
		wait(6 * time.Second)

		test := func(d time.Duration) (board.RelayTest, error) { return w.station.TestRelay(t.Context(), 1, d) }
		moved := make(chan bool, 1)
		go func() {
			wait(500 * time.Millisecond)
			moved <- w.closed()
		}()
		v, err := test(2 * time.Second)
		if err != nil || !v.OK || v.Contact != board.ContactFollowed || v.Ended != session.TestOver || v.ClosedFor < 1900*time.Millisecond || v.ClosedFor > 2300*time.Millisecond {
			t.Errorf("%+v, %v", v, err)
		}
		if !<-moved || w.closed() {
			t.Error("the relay did not close, or did not open again")
		}
		if s := w.last().Chargers[0]; s.State != "idle" || s.Session != "" {
			t.Errorf("after the test: %+v", s)
		}

		var r *Refusal
		if _, err := w.station.TestRelay(t.Context(), 9, time.Second); !errors.As(err, &r) || r.Code != UnknownCharger {
			t.Errorf("charger 9: %v", err)
		}
		f.pilot.Put(true, nil)
		wait(4 * time.Second)
		if _, err := test(time.Second); !errors.As(err, &r) || r.Code != NotNow {
			t.Errorf("with a vehicle: %v", err)
		}
		f.pilot.Put(false, nil)
		aux.stays.Store(true)
		wait(4 * time.Second)
		if v, err := test(3 * time.Second); err != nil || v.OK || v.Contact != board.ContactStayed || v.Fault == "" {
			t.Errorf("a contact that does not follow: %+v, %v", v, err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}
