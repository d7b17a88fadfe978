package station

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/joulegate/joulegate/drivers"
)

// contactEvery is how often the sentry looks at the contacts that open a
// relay. With it, and a thread that runs when it is due, a fault is answered
// within a fifth of what is allowed.
const contactEvery = 10 * time.Millisecond

// Contacts that cut.
const (
	stopContact uint32 = 1 << iota
	earthContact
)

// errCut refuses to close a relay while a contact that opens it is active.
var errCut = errors.New("the emergency stop or an earth fault is active")

// cut is what the sentry has seen of one charger's contacts. Each bit is set
// by the sentry and cleared by the loop, after it has acted upon it: a press
// that is shorter than a tick is not lost, and a relay does not close again
// before the session knows why it opened.
type cut struct{ seen atomic.Uint32 }

// sentry opens relays by itself when a contact says so. It needs nothing of
// the loop, which may be late under load, and decides nothing that the session
// machine would not decide a moment later: the machine learns of it at once.
func (s *Station) sentry(ctx context.Context) {
	var watched []*charger
	for _, c := range s.chargers {
		if c.Relay != nil && (c.EStop != nil || c.Earth != nil) {
			watched = append(watched, c)
		}
	}
	if len(watched) == 0 {
		return
	}
	s.cfg.Contacts(ctx, contactEvery, func() {
		for _, c := range watched {
			s.guardContacts(c)
		}
	})
}

func (s *Station) guardContacts(c *charger) {
	found := uint32(0)
	if active(c.EStop) {
		found |= stopContact
	}
	if active(c.Earth) {
		found |= earthContact
	}
	// Veto first, then open, as the watchdog does.
	if found == 0 || c.cut.seen.Or(found)&found == found {
		return
	}
	if err := c.Relay.Halt(); err != nil {
		s.cfg.Log.Error("relay does not open", "charger", c.ID, "err", err)
	}
	select {
	case s.alarm <- struct{}{}:
	default:
	}
}

// active reads a contact; one that cannot be read counts.
func active(in drivers.Input) bool {
	if in == nil {
		return false
	}
	on, err := in.Active()
	return on || err != nil
}

// everyTick looks on a ticker.
func everyTick(ctx context.Context, every time.Duration, look func()) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			look()
		}
	}
}
