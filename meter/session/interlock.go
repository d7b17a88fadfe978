package session

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

func (m *machine) reading(e Reading) {
	if e.At > m.now || (m.heard && e.At <= m.meterAt) {
		return
	}
	m.supply(e)
	// Within a session a register that went back is not one to bill from,
	// however good the poller thinks it is.
	if !e.Good || (m.asked && e.Import < m.Last) {
		return
	}
	if grown := e.Import - m.Last; m.known && m.heard && grown > 0 && !m.Relay && e.Current > WeldAbove {
		m.loose += grown
	}
	m.judgeStuck(e)
	m.Last, m.given, m.known = e.Import, e.Export, true
	m.Current, m.meterAt, m.heard, m.unseen = e.Current, e.At, true, 0
	m.judgeCurrent(e)
	m.judgeLoose()
}

// judgeStuck stops on a register that does not move while current flows. At
// least one phase carries it, at no less than the lowest voltage.
func (m *machine) judgeStuck(e Reading) {
	if !m.Relay || !m.heard || e.Import != m.Last || e.Export != m.given || e.Current < FullBelow {
		m.still = 0
		return
	}
	m.still += int64(min(e.Current, m.Current)) * (e.At - m.meterAt).Milliseconds()
	if wh := meter.WattHour(m.still * minVolt / 3_600_000_000); wh >= StuckEnergy && m.Phase == Charging {
		m.note(3, "meter.stuck", "the register of the session meter stands at %d Wh while at least %d Wh have flowed: what it has not counted is not billed", m.Last.WattHours(), wh)
		m.stop(chain.StopMeter, "the session meter's register is stuck")
	}
}

// judgeCurrent latches what only the session meter can see.
func (m *machine) judgeCurrent(e Reading) {
	settled := e.At > m.movedAt+m.r.settle()
	if m.welding.lasts(!m.Relay && settled && e.Current > WeldAbove, e.At) > WeldAfter {
		m.fault(Weld, fmt.Sprintf("%d mA flow %s after it was told to open", e.Current, (e.At-m.movedAt).Round(time.Second)))
		m.trip()
	}
	if m.overing.lasts(above(e.Current, m.r.MaxCurrent), e.At) >= OverAfter {
		m.fault(OverCurrent, fmt.Sprintf("%d mA flow, the rating is %d mA", e.Current, m.r.MaxCurrent))
	}
	idle := m.Relay && settled && m.Offered >= MinCurrent && !m.ramping && m.Wh() > 0 &&
		(e.Current < FullBelow || m.Vehicle == drivers.StateB && e.Current < MinCurrent)
	if m.fulling.lasts(idle, e.At) >= m.r.FullAfter {
		m.stop(chain.StopFull, "the car takes nothing")
	}
}

// above reports more than 110 % of a rating.
func above(a, rating meter.MilliAmpere) bool { return a > rating+rating/10 }

// judgeLoose reports energy that flows though the circuit is open and nobody
// pays for it: when a Wh is full, at LooseEnergy, and at each doubling.
func (m *machine) judgeLoose() {
	next := 2 * m.told
	if next < LooseEnergy {
		next = LooseEnergy
	}
	if m.asked || m.loose < next {
		return
	}
	m.told = m.loose
	m.note(3, "energy.unauthorised", "%d Wh have flowed without a session since the circuit was opened: they are the site's", m.loose.WattHours())
}

// supply judges the voltages of one reading. A phase is missing when another
// one is there: a meter behind the open contactor, or without supply itself,
// shows none at all, and tells nothing.
func (m *machine) supply(e Reading) {
	volts := e.Volts[:min(max(e.Known, 0), len(e.Volts))]
	bad, back, most := "", len(volts) > 0 || e.Order == Clockwise, meter.MilliVolt(0)
	for i, v := range volts {
		most = max(most, v)
		back = back && v >= PhaseBack
		if v < PhaseLow && bad == "" {
			bad = fmt.Sprintf("phase L%d has %d V", i+1, v/1000)
		}
	}
	dark := m.dark.lasts(m.lost != "" && len(volts) > 0 && most < PhaseDark, e.At)
	switch {
	case e.Order == Reversed && m.r.Phases == 3:
		bad, back = "the phases are in the wrong order", false
	case most < PhaseBack:
		bad = ""
	}
	switch {
	case m.lost == "" && m.losing.lasts(bad != "", e.At) >= PhaseAfter:
		m.lost = bad
		m.note(3, "supply.lost", "%s", bad)
	case m.lost != "" && (back || dark >= PhaseRetry):
		m.note(1, "supply.returned", "no phase is known to be missing any more; before: %s", m.lost)
		m.lost, m.losing = "", held{}
		if m.Phase == Authorised || m.Phase == Suspended {
			m.ask("power returned")
		}
	}
}

// site watches the house's fuse. What the allocation of current does about it
// is faster; this is for when it fails.
func (m *machine) site(e SiteReading) {
	if e.At > m.now || m.siteSeen && e.At < m.siteAt {
		return
	}
	m.siteAt, m.siteSeen = e.At, true
	if m.r.Fuse == 0 {
		return
	}
	switch lasts := m.houseOver.lasts(above(e.Current, m.r.Fuse), e.At); {
	case lasts >= OverAfter && !m.overloaded && m.Relay:
		m.overloaded = true
		m.note(2, "house.over_current", "the house draws %d mA, its fuse is %d mA", e.Current, m.r.Fuse)
	case e.Current <= m.r.Fuse:
		m.overloaded = false
	}
}

func (m *machine) temperature(e Temperature) {
	if e.At > m.now || m.heatSeen && e.At < m.heatAt {
		return
	}
	was := m.derated()
	m.Heat, m.heatAt, m.heatSeen = e.Value, e.At, true
	if m.heating.lasts(m.r.TempMax > 0 && e.Value > m.r.TempMax, e.At) >= TempAfter {
		m.fault(OverTemperature, fmt.Sprintf("%s, at most %s", e.Value, m.r.TempMax))
	}
	if now := m.derated(); m.Relay && (now < m.r.MaxCurrent) != (was < m.r.MaxCurrent) {
		m.note(2, "charger.derated", "%s: at most %d mA", e.Value, now)
	}
}

// derated is what the temperature allows, in whole amperes so that a tenth of
// a degree does not move the offer.
func (m *machine) derated() meter.MilliAmpere {
	from, top := m.r.DerateFrom, m.r.TempMax
	if !m.heatSeen || top <= 0 || m.Heat <= from {
		return m.r.MaxCurrent
	}
	if m.Heat >= top {
		return MinCurrent
	}
	room := int64(m.r.MaxCurrent-MinCurrent) * int64(top-m.Heat) / int64(top-from)
	return MinCurrent + meter.MilliAmpere(room/1000*1000)
}

// wallbox takes what a wallbox says about itself.
func (m *machine) wallbox(e Device) {
	m.device = e
	if e.Earth {
		m.fault(EarthFault, "the wallbox says: "+e.Text)
	}
	if e.Hot {
		m.fault(OverTemperature, "the wallbox says: "+e.Text)
	}
	if e.Welded {
		m.fault(Weld, "the wallbox says: "+e.Text)
		m.trip()
	}
	if e.Failed {
		m.fault(DeviceFault, "the wallbox says: "+e.Text)
	}
}

// fault latches f. The alarm is raised when it was not latched before.
func (m *machine) fault(f Fault, text string) {
	if m.Fault.Has(f) {
		return
	}
	m.Fault |= f
	m.do(Action{Kind: Alarm, Fault: f, Text: f.String() + ": " + text})
}

// trip pulses the shunt trip, and again while the weld is still seen.
func (m *machine) trip() {
	if !m.r.Trip || m.Tripping || m.tripped && m.now-m.tripAt < TripAgain {
		return
	}
	m.Tripping, m.tripped, m.tripAt = true, true, m.now
	m.note(3, "charger.tripped", "shunt trip: %s", m.Fault)
}

// watch handles what may not wait for an ordinary stop.
func (m *machine) watch() {
	if m.Tripping && m.now-m.tripAt >= TripPulse {
		m.Tripping = false
	}
	differs := (m.feedback == ContactOpen && m.Relay) || (m.feedback == ContactClosed && !m.Relay)
	if !differs {
		m.mismatching = false
	} else if since := max(m.movedAt, m.mismatchAt); !m.mismatching {
		m.mismatching, m.mismatchAt = true, m.now
	} else if m.Relay && m.now-since > AnswerAfter {
		m.fault(Contactor, "its feedback contact stays open")
	} else if !m.Relay && m.now-since > WeldAfter {
		m.fault(Weld, "its feedback contact stays closed")
		m.trip()
	}
	pilot := m.r.Pilot && m.vehicleSeen
	switch {
	case m.device.Failed && m.Relay:
		m.cut("the wallbox has a fault: " + m.device.Text)
	case m.Fault != NoFault:
		m.cut(m.Fault.String())
	case m.estop:
		m.cut("emergency stop is pressed")
	case pilot && m.Relay && (m.Vehicle == drivers.StateE || m.Vehicle == drivers.StateF):
		m.cut("the charge controller is in state " + m.Vehicle.String())
	case m.lost != "":
		m.open(m.lost)
	case m.unsure:
		m.open("the output does not obey")
	case !m.live && m.was.stepped:
		m.open("the control loop stalled")
	case pilot && m.Vehicle == drivers.StateA && m.asked:
		m.open("the vehicle was unplugged")
		m.stop(chain.StopUnplugged, "the vehicle was unplugged")
	}
}

// cut opens under load and ends the session.
func (m *machine) cut(cause string) {
	m.open(cause)
	m.stop(chain.StopSafety, cause)
}

func (m *machine) connected() bool {
	return !m.r.Pilot || m.Vehicle == drivers.StateB || m.Vehicle == drivers.StateC || m.Vehicle == drivers.StateD
}

// age is how old the oldest thing is that charging relies on.
func (m *machine) age() (time.Duration, string) {
	old, what := time.Duration(-1), ""
	look := func(need, seen bool, at time.Duration, name string) {
		if !need {
			return
		}
		a := m.now - at
		if !seen {
			a = m.now - m.phaseAt + m.r.StaleAfter + m.r.StaleOff + 1
		}
		if a > old {
			old, what = a, name
		}
	}
	look(true, m.heard, m.meterAt, "session meter")
	look(m.r.Site, m.siteSeen, m.siteAt, "site meter")
	look(m.r.Pilot, m.vehicleSeen, m.vehicleAt, "charge controller")
	look(m.r.Temp, m.heatSeen, m.heatAt, "temperature sensor")
	return old, what
}

const (
	notBegun = "the begin register is being recorded"
	// NoCurrent is the refusal while the setpoint is 0; who made it knows why.
	NoCurrent = "no current is available"
)

// refusal says why the circuit must not be closed now; empty means it may be.
func (m *machine) refusal() string {
	if no := m.broken(); no != "" {
		return no
	}
	if !m.Confirmed {
		return "the ledger has not confirmed the hold"
	}
	if no := m.blind(); no != "" {
		return no
	}
	switch {
	case !m.connected():
		return "waiting for a vehicle"
	case m.feedback == ContactClosed && !m.Relay:
		return notOpened
	case m.r.Wallbox && !m.Relay && m.Current >= StopBelow:
		return "the wallbox has not stopped yet"
	case !m.gives() && m.left() <= m.reserve(MinCurrent):
		return "the hold is used up"
	case m.overloaded:
		return overloaded
	case !m.gives() && m.limit < MinCurrent:
		return NoCurrent
	}
	if no := m.rests(); no != "" {
		return no
	}
	switch {
	case !m.Relay && m.waits():
		return m.spreadWords()
	case !m.Begun:
		return notBegun
	}
	return ""
}

const (
	notOpened  = "the contactor has not opened"
	overloaded = "the house's fuse is overloaded"
)

// testRefusal says why the relay must not be tested now. The test needs what
// charging needs, but for the hold, a vehicle and a current; none of the
// latter two may be there.
func (m *machine) testRefusal() string {
	if no := m.broken(); no != "" {
		return no
	}
	if no := m.blind(); no != "" {
		return no
	}
	switch {
	case m.r.Wallbox:
		return "a wallbox that switches by itself is not tested"
	case m.r.Pilot && m.Vehicle != drivers.StateA:
		return "a vehicle is connected, or nobody can tell: state " + m.Vehicle.String()
	case m.Current > WeldAbove:
		return fmt.Sprintf("%d mA flow: something is plugged in", m.Current)
	case m.feedback == ContactClosed && !m.Relay:
		return notOpened
	case m.overloaded:
		return overloaded
	}
	return m.rests()
}

// broken says what forbids a closed circuit whoever wants it.
func (m *machine) broken() string {
	switch {
	case m.Fault != NoFault:
		return m.Fault.String()
	case m.estop:
		return "emergency stop is pressed"
	case m.lost != "":
		return m.lost
	case m.device.Failed:
		return "the wallbox has a fault: " + m.device.Text
	case m.unsure:
		return "the relay's output does not obey"
	case !m.live:
		return "the control loop stalled"
	case m.draining:
		return "the gateway is shutting down"
	}
	return ""
}

// blind says what cannot be seen or written down.
func (m *machine) blind() string {
	age, what := m.age()
	switch {
	case age > m.r.StaleAfter:
		return "no fresh reading from the " + what
	case m.noDisk:
		return "records cannot be written"
	}
	return ""
}

// rests says why the contactor is spared.
func (m *machine) rests() string {
	switch {
	case !m.Relay && m.now-m.movedAt < m.r.MinOff:
		return "the relay rests after switching"
	case !m.Relay && m.r.MaxSwitches > 0 && len(m.closings) >= m.r.MaxSwitches:
		return fmt.Sprintf("switched on %d times within an hour, the most that spares the contactor", len(m.closings))
	}
	return ""
}

// spreadWords says how long a start still waits.
func (m *machine) spreadWords() string {
	if m.drawing {
		return "a start is spread: " + m.spread
	}
	return fmt.Sprintf("starts in %s: %s, and not all chargers may start at once", (m.StartsAt - m.now).Round(time.Second), m.spread)
}
