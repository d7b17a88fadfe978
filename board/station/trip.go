package station

import (
	"errors"
	"sync/atomic"

	"github.com/joulegate/joulegate/drivers"
)

// Contact is what a relay was opened for without the loop.
type Contact uint32

// Contacts that open a relay.
const (
	EmergencyStop Contact = 1 << iota
	EarthFault
	// LoopLost is none: the loop was not verified for too long.
	LoopLost
)

// errCut refuses to close a relay while a contact that opens it is active.
var errCut = errors.New("the emergency stop or an earth fault is active")

// cut is what has opened one charger's relay without the loop. Each bit is set
// by Tripped and cleared by the loop, after it has acted upon it: a press that
// is shorter than a tick is not lost, and a relay does not close again before
// the session knows why it opened.
type cut struct{ seen atomic.Uint32 }

// Tripped tells that whoever watches the contacts of a charger beside the loop
// has opened its relay, and why. When it returns, the relay cannot be closed
// before the loop has acted upon it. It decides nothing that the session
// machine would not decide a moment later, and never blocks. An unknown
// charger is no charger's fault: nothing happens.
func (s *Station) Tripped(charger uint8, why Contact) {
	for _, c := range s.chargers {
		if c.ID != charger {
			continue
		}
		if why&LoopLost != 0 && !s.pulse.stalled.Swap(true) {
			s.pulse.stalls.Add(1)
		}
		c.cut.seen.Or(uint32(why &^ LoopLost))
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
