package slave

import (
	"time"

	"github.com/joulegate/joulegate/meter/profile"
)

// Master is what a device knows of whoever commands it: what it was told last,
// for how long that holds, and whether anybody is still there. It is not safe
// for concurrent use.
type Master struct {
	profile *profile.Profile
	elapsed time.Duration
	values  map[string]int64 // of commands
	power   int64            // mW, import positive
	ordered bool             // power is in force
	until   time.Duration
	lasts   time.Duration // an order, 0: for ever
	fed     time.Duration // when the watchdog was
	fallen  bool          // the master is gone
}

// NewMaster returns the master of a device of profile p, which has said
// nothing yet.
func NewMaster(p *profile.Profile) *Master {
	return &Master{profile: p, values: map[string]int64{}}
}

// Request feeds the watchdog, if this is what feeds it. For UnitConfig.OnRequest.
func (m *Master) Request(fn uint8, addr uint16, values []uint16) {
	if w := m.profile.Watchdog; w != nil && w.Feeds(m.profile, fn, addr, values) {
		m.fed, m.fallen = m.elapsed, false
	}
}

// Write takes the commands in a write to u. For UnitConfig.OnWrite.
func (m *Master) Write(u *Unit, addr uint16, values []uint16) {
	for i := range m.profile.Writes {
		name := m.profile.Writes[i].Name
		v, ok := u.Command(name, addr, values)
		if !ok {
			continue
		}
		if name == "command_timeout" {
			m.lasts = time.Duration(v) * time.Millisecond
		}
		m.values[name] = v
	}
	var order string
	order, m.power = m.profile.Ordered(m.values)
	m.ordered, m.until = order != profile.OrderRelease, m.elapsed+m.lasts
}

// Pass lets time go by: orders end, and the device falls back when its
// watchdog was not fed.
func (m *Master) Pass(dt time.Duration) {
	m.elapsed += dt
	if m.ordered && m.lasts > 0 && m.elapsed > m.until {
		m.ordered = false
	}
	if wait := m.patience(); wait > 0 && m.elapsed-m.fed > wait {
		m.fallen = true
	}
}

// Power is what the device is to take in now, in mW, negative to give; ok is
// false while nobody orders anything, or nobody is there any more.
func (m *Master) Power() (milliwatt int64, ok bool) {
	if !m.ordered || m.fallen {
		return 0, false
	}
	return m.power, true
}

// unknownFactory is how many times longer than the interval of a command a
// watchdog waits for it of which neither the factory setting is known nor how
// to change it.
const unknownFactory = 3

// patience is how long the watchdog waits; 0: it is off.
func (m *Master) patience() time.Duration {
	w := m.profile.Watchdog
	if w == nil {
		return 0
	}
	if ms, set := m.values["failsafe_timeout"]; set {
		return time.Duration(ms) * time.Millisecond
	}
	_, adjustable := m.profile.Write("failsafe_timeout")
	if c, ok := m.profile.Write(w.FedBy); ok && w.Timeout == 0 && !adjustable {
		return unknownFactory * c.Every
	}
	return w.Timeout
}
