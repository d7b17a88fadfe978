package session

import (
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// State is the machine's state. The zero value is an idle charger whose
// circuit is open.
type State struct {
	Phase     Phase
	ID        chain.ID
	MaxWh     meter.WattHour
	Confirmed bool                // the ledger holds the money
	Begun     bool                // Base is on disk
	Base      meter.MilliWattHour // begin register
	Last      meter.MilliWattHour // last good register
	Current   meter.MilliAmpere   // last good current
	Relay     bool                // commanded: closed, or the wallbox may offer
	Offered   meter.MilliAmpere   // commanded
	Back      meter.Watt          // commanded out of the vehicle; Offered is 0 then
	Tripping  bool                // commanded: the shunt trip's coil
	Vehicle   drivers.VehicleState
	Heat      MilliCelsius // last temperature, if Rules.Temp
	Fault     Fault
	Reason    chain.StopReason // of the stop under way
	Cause     string           // in words: what moved the actuator last, or ends the session
	Why       string           // in words: why it charges or does not
	StartsAt  time.Duration    // monotonic; a start is spread until then

	known    bool // Last has a value
	heard    bool // and it was heard since the start of the program
	resuming bool
	asked    bool // RecordBegin was returned
	estop    bool
	feedback Contact
	device   Device
	unsure   bool // the output cannot be driven or does not obey
	noDisk   bool
	draining bool
	offline  bool
	limit    meter.MilliAmpere
	back     meter.Watt // wanted out of the vehicle
	stay     bool       // 0 W is meant, for a moment
	sells    bool
	given    meter.MilliWattHour // last good export register
	planned  bool                // a plan says when; limit 0 is meant
	spread   string              // cause of a start that waits; empty: none does
	drawing  bool                // AskDelay was returned and not answered

	stepped                    bool
	stepAt                     time.Duration
	phaseAt                    time.Duration // when Phase began
	authAt                     time.Duration // when the session was authorised or resumed
	meterAt, siteAt, vehicleAt time.Duration
	heatAt                     time.Duration
	siteSeen, vehicleSeen      bool
	heatSeen                   bool
	testUntil                  time.Duration
	movedAt                    time.Duration // when the circuit last changed, or the program began
	rampAt                     time.Duration // when 0 A was offered
	ramping                    bool
	unseen                     int64 // mA*ms offered since the last good reading
	still                      int64 // mA*ms that flowed since the register moved last
	mismatchAt                 time.Duration
	mismatching                bool
	welding, overing, fulling  held
	houseOver, heating         held
	losing, dark               held
	lost                       string // which phase is missing or that they are in the wrong order
	overloaded                 bool   // the house's fuse
	tripAt                     time.Duration
	tripped                    bool
	closings                   []time.Duration // within the last hour; never changed in place
	offlineFrom                meter.WattHour  // of the session when the ledger was lost

	ended    meter.MilliWattHour // last register of the session before
	endKnown bool
	loose    meter.MilliWattHour // through the open circuit since then
	told     meter.MilliWattHour // of it
}

// held is a condition that counts when it lasts.
type held struct {
	on bool
	at time.Duration
}

// lasts takes the condition at time at and returns for how long it holds;
// less than zero: it does not.
func (h *held) lasts(cond bool, at time.Duration) time.Duration {
	if !cond {
		*h = held{}
		return -1
	}
	if !h.on {
		*h = held{true, at}
	}
	return at - h.at
}

// Save returns what has to survive a restart. It counts a begin register as
// begun that is still on its way to disk: whoever stores it stores the record
// with it.
func (s *State) Save() Saved {
	v := Saved{Fault: s.Fault, Closings: len(s.closings)}
	if s.Phase >= Held {
		v.ID, v.MaxWh, v.Begun, v.Base, v.Last = s.ID, s.MaxWh, s.asked, s.Base, s.Last
		v.Sells = s.sells
		if s.Phase >= Stopping {
			v.Stopping = s.Reason
		}
	}
	return v
}

// Wh returns the energy of the session so far, as the ledger will count it:
// the difference of two registers in whole Wh.
func (s *State) Wh() meter.WattHour {
	if !s.asked {
		return 0
	}
	return s.Last.WattHours() - s.Base.WattHours()
}

// Offline reports whether the session lives on its limit for times without
// the ledger.
func (s *State) Offline() bool { return s.offline && s.Phase != Idle }

// Step applies one event at monotonic time now, which never decreases.
func Step(r Rules, s State, e Event, now time.Duration) (State, []Action) {
	if s.stepped && now < s.stepAt {
		panic(fmt.Sprintf("session: time went from %s back to %s", s.stepAt, now))
	}
	m := machine{r: r, State: s, now: now, was: s}
	m.live = s.stepped && now-s.stepAt <= r.LoopLimit
	if !s.stepped {
		m.stepped, m.movedAt, m.phaseAt = true, now, now
	}
	m.unseen += int64(s.Offered) * (now - m.stepAt).Milliseconds()
	m.stepAt = now
	m.forget()
	m.apply(e)
	m.watch()
	m.advance()
	m.setOffer()
	return m.State, m.actions()
}

type machine struct {
	r   Rules
	now time.Duration
	State
	was   State
	live  bool
	again bool     // the output has just been seen not to obey
	out   []Action // records, alarms and notes
}

func (m *machine) enter(p Phase) {
	if m.Phase != p {
		m.Phase, m.phaseAt = p, m.now
	}
}

func (m *machine) do(a Action) { m.out = append(m.out, a) }

func (m *machine) note(severity uint8, code, format string, args ...any) {
	m.do(Action{Kind: Note, Severity: severity, Code: code, Text: fmt.Sprintf(format, args...)})
}

func (m *machine) apply(e Event) {
	switch e := e.(type) {
	case Open:
		m.start(e)
	case Resume:
		m.resume(e)
	case Ledger:
		m.ledger(e)
	case Online:
		m.online(e.OK)
	case Reading:
		m.reading(e)
	case SiteReading:
		m.site(e)
	case Vehicle:
		if e.At <= m.now && (!m.vehicleSeen || e.At >= m.vehicleAt) {
			m.Vehicle, m.vehicleAt, m.vehicleSeen = e.State, e.At, true
		}
	case Temperature:
		m.temperature(e)
	case Device:
		m.wallbox(e)
	case Inputs:
		m.estop, m.feedback = e.EStop, e.Feedback
		if e.Earth {
			m.fault(EarthFault, "the earth fault contact")
		}
	case Output:
		m.unsure = !e.OK || e.Closed != m.Relay
		m.again = m.unsure
	case Setpoint:
		m.setpoint(e)
	case Spread:
		m.spreadBy(e.Delay)
	case StartNow:
		m.startNow()
	case Stop:
		m.stopOrder(e)
	case Test:
		m.test(e)
	case Journal:
		m.noDisk = !e.OK
	case BeginRecorded:
		m.Begun = m.Begun || m.asked
	case StopRecorded:
		if m.Phase == Metered {
			m.ended, m.endKnown, m.loose, m.told = m.Last, true, 0, 0
			m.end()
		}
	case Stalled:
		m.open("the control loop stalled")
	case Drain:
		m.draining = true
	case ClearFault:
		m.Fault, m.welding, m.overing, m.heating, m.mismatching = NoFault, held{}, held{}, held{}, false
		m.tripped = false
	case Rebase:
		m.known, m.endKnown, m.loose, m.told = false, false, 0, 0
	case Tick:
	default:
		panic(fmt.Sprintf("session: unknown event %T", e))
	}
}

func (m *machine) start(e Open) {
	if m.Phase == Testing {
		m.open("a session starts")
	}
	switch {
	case m.Phase != Idle:
		m.note(2, "session.start_repeated", "start of session %s, while session %s is %s: no effect", e.ID, m.ID, m.Phase)
	case m.Fault == NoFault && !m.draining:
		m.begin(e.ID, e.MaxWh)
		m.sells = e.Sells
		m.enter(Held)
	}
}

func (m *machine) begin(id chain.ID, max meter.WattHour) {
	m.ID, m.MaxWh = id, max
	m.Confirmed, m.Begun, m.asked, m.resuming = false, false, false, false
	m.Base, m.Reason = 0, 0
	m.fulling, m.ramping = held{}, false
	m.spread, m.drawing, m.StartsAt = "", false, 0
	m.offlineFrom = 0
	m.back, m.stay, m.sells = 0, false, false
	m.authAt = m.now
}

func (m *machine) end() {
	m.begin(chain.ID{}, 0)
	m.enter(Idle)
}

func (m *machine) resume(e Resume) {
	m.Fault |= e.faults()
	for range min(e.Closings, m.r.MaxSwitches) {
		m.closings = append(slices.Clone(m.closings), m.now)
	}
	if m.Phase != Idle || e.ID == (chain.ID{}) {
		return
	}
	m.begin(e.ID, e.MaxWh)
	m.sells = e.Sells
	m.Begun, m.asked, m.Base, m.resuming = e.Begun, e.Begun, e.Base, true
	if e.Begun && (!m.known || e.Last > m.Last) {
		m.Last, m.known = e.Last, true
	}
	switch {
	case e.Stopping != 0:
		m.Reason = e.Stopping
		m.Cause = "it was stopping before the restart"
		m.enter(Stopping)
		m.note(2, "session.resumed", "session %s was stopping (%s) when the program ended; last register %d Wh", e.ID, e.Stopping, e.Last.WattHours())
		return
	case e.Begun:
		m.enter(Suspended)
	default:
		m.enter(Held)
	}
	m.note(2, "session.resumed", "session %s goes on after a restart; begin register %d Wh, last register %d Wh", e.ID, e.Base.WattHours(), e.Last.WattHours())
	if e.PowerReturned {
		m.ask("power returned")
	}
}

func (m *machine) ledger(e Ledger) {
	if m.Phase == Idle || e.ID != m.ID {
		return
	}
	m.Confirmed = e.OK
	switch {
	case e.OK && m.Phase == Held:
		m.authAt = m.now
		m.enter(Authorised)
	case e.OK:
	case m.asked:
		m.stop(chain.StopOperator, "the ledger ended the session")
	case m.Phase < Stopping:
		m.do(Action{Kind: Ended})
		m.end()
	}
}

// online takes whether the ledger can be reached. What is delivered without it
// is limited beside the hold.
func (m *machine) online(ok bool) {
	if m.offline == !ok {
		return
	}
	m.offline, m.offlineFrom = !ok, m.Wh()
	switch {
	case m.Phase == Idle:
	case ok:
		m.note(1, "ledger.reached", "session %s, after %d Wh: the ledger takes records again", m.ID, m.Wh())
	default:
		m.note(2, "ledger.lost", "session %s, after %d Wh: the ledger takes no records; it continues to the hold of %d Wh or %d Wh more", m.ID, m.Wh(), m.MaxWh, m.r.OfflineWh)
	}
}

func (m *machine) setpoint(e Setpoint) {
	was := m.limit
	m.back, m.stay, m.sells = 0, false, e.Sells && m.Phase != Idle
	if m.sells {
		m.back, m.stay = max(0, e.Back), e.Stay
	}
	m.planned = e.Planned && e.Limit < MinCurrent
	if (m.planned || m.gives()) && !m.resuming {
		m.authAt = m.now // the time for a start begins with the plan's
	}
	m.limit = min(e.Limit, m.r.MaxCurrent)
	if m.limit < MinCurrent {
		m.limit = 0
	}
	if e.Edge != "" && was == 0 && m.limit > 0 && !m.Relay && (m.Phase == Authorised || m.Phase == Suspended) {
		m.ask(e.Edge)
	}
}

// ask has the coming start spread.
func (m *machine) ask(cause string) {
	if m.r.StartSpread <= 0 || m.drawing {
		return
	}
	m.spread, m.drawing = cause, true
	m.do(Action{Kind: AskDelay, Text: cause})
}

func (m *machine) spreadBy(d time.Duration) {
	if m.drawing {
		m.drawing, m.StartsAt = false, m.now+min(max(0, d), m.r.StartSpread)
	}
}

func (m *machine) startNow() {
	if m.spread != "" {
		m.note(1, "session.start_now", "a person does not wait for the start spread because %s", m.spread)
	}
	m.spread, m.drawing, m.StartsAt = "", false, m.now
}

// waits reports whether a start is still being spread.
func (m *machine) waits() bool {
	if m.spread != "" && !m.drawing && m.now >= m.StartsAt {
		m.spread = ""
	}
	return m.spread != ""
}

func (m *machine) stopOrder(e Stop) {
	if e.Cause == "" {
		e.Cause = "stopped by the " + e.Reason.String()
	}
	switch {
	case m.Phase == Idle:
	case m.Phase == Testing:
		m.open(e.Cause)
	case m.Phase >= Stopping && e.Reason != m.Reason:
		m.note(2, "session.stop_conflict", "session %s: %s, while it stops because of %s: no effect", m.ID, e.Cause, m.Reason)
	case m.Phase >= Stopping:
		m.note(1, "session.stop_repeated", "session %s: %s, again: no effect", m.ID, e.Cause)
	default:
		m.stop(e.Reason, e.Cause)
	}
}

// stop begins an ordinary stop. The first reason stays.
func (m *machine) stop(why chain.StopReason, cause string) {
	if m.Phase < Held || m.Phase >= Stopping {
		return
	}
	m.Reason, m.Cause = why, cause
	m.enter(Stopping)
}

func (m *machine) close() {
	m.Relay, m.movedAt, m.Cause = true, m.now, "all conditions hold"
	m.closings = append(slices.Clone(m.closings), m.now)
	m.enter(Charging)
	m.Why = "charging"
	if m.back > 0 {
		m.Why = "discharging"
	}
}

func (m *machine) open(cause string) {
	if m.Relay {
		m.Relay, m.movedAt, m.Cause = false, m.now, cause
	}
	m.ramping = false
	switch m.Phase {
	case Charging:
		m.enter(Suspended)
	case Testing:
		m.enter(Idle)
	}
}

// test begins a person's test of the relay, or says why not.
func (m *machine) test(e Test) {
	no := m.testRefusal()
	switch {
	case m.Phase == Testing:
		no = "a test is under way"
	case m.Phase != Idle:
		no = fmt.Sprintf("session %s is %s", m.ID, m.Phase)
	case e.For <= 0:
		no = "it has no duration"
	}
	if no != "" {
		m.note(1, TestRefused, "the relay is not tested: %s", no)
		return
	}
	m.Relay, m.movedAt, m.Cause = true, m.now, "a person tests the relay"
	m.closings = append(slices.Clone(m.closings), m.now)
	m.testUntil = m.now + min(e.For, MaxTest)
	m.enter(Testing)
	m.note(2, "relay.tested", "a person tests the relay for %s", min(e.For, MaxTest))
}

// forget drops closings that are older than an hour.
func (m *machine) forget() {
	if len(m.closings) > 0 && m.now-m.closings[0] > closingsWithin {
		m.closings = m.closings[1:]
	}
}

// reserve is the energy that can still flow at limit before the circuit opens.
func (m *machine) reserve(limit meter.MilliAmpere) meter.WattHour {
	return m.most(int64(limit) * m.r.Horizon.Milliseconds())
}

// most is the energy of a charge in mA*ms on every phase, at the highest
// voltage, rounded up.
func (m *machine) most(charge int64) meter.WattHour {
	return meter.WattHour(charge*maxVolt*int64(m.r.Phases)/3_600_000_000 + 1)
}

// left is what the hold, and the limit for times without the ledger, still pay
// for. While the session meter is overdue, what was offered since its last
// reading counts as taken.
func (m *machine) left() meter.WattHour {
	left := m.MaxWh
	if m.offline && m.r.OfflineWh > 0 {
		left = min(left, m.offlineFrom+m.r.OfflineWh)
	}
	left -= m.Wh()
	if m.unseen > 0 && m.now-m.meterAt > m.r.Horizon-m.r.StopWait {
		left -= m.most(m.unseen)
	}
	return left
}

func (m *machine) advance() {
	m.settleResume()
	m.limits()
	no := m.refusal()
	m.Why = no
	switch m.Phase {
	case Idle:
		m.open("there is no session")
		if m.Fault == NoFault {
			m.Why = "no session"
		}
	case Testing:
		m.Why = "a person tests the relay"
		if no := m.testRefusal(); no != "" {
			m.open(no)
		} else if m.now >= m.testUntil {
			m.open(TestOver)
		}
	case Held:
		if m.now-m.phaseAt > m.r.HoldLimit && !m.resuming {
			m.stop(chain.StopNoEnergy, "the ledger did not confirm the hold in time")
		}
	case Authorised, Suspended:
		switch {
		case no == "":
			m.close()
		case !m.Begun && !m.asked && m.heard && (no == notBegun || m.planned && no == NoCurrent):
			m.asked, m.Base = true, m.Last
			m.afterStop()
			m.do(Action{Kind: RecordBegin, Register: m.Base})
		}
	case Charging:
		m.charging(no)
	}
	if m.Phase == Stopping {
		m.stopping()
	}
	if m.Phase == Metered {
		m.Why = "recording the last register"
	}
}

// afterStop puts on record what was counted since the last session: it is the
// site's, and this session has a base of its own.
func (m *machine) afterStop() {
	if d := m.Base.WattHours() - m.ended.WattHours(); m.endKnown && d > 0 {
		m.note(1, "energy.after_stop", "%d Wh were counted between the end of the last session at %d Wh and the begin of session %s at %d Wh: they are the site's", d, m.ended.WattHours(), m.ID, m.Base.WattHours())
	}
}

// settleResume decides what becomes of a session after a restart.
func (m *machine) settleResume() {
	if !m.resuming || m.Phase >= Stopping || m.Phase == Idle {
		return
	}
	age, _ := m.age()
	switch {
	case m.Confirmed && age <= m.r.StaleAfter && m.connected():
		m.resuming = false
	case m.now-m.authAt > m.r.ResumeLimit:
		m.stop(chain.StopRestart, "after the restart it could not be continued in time")
	}
}

func (m *machine) limits() {
	switch m.Phase {
	case Authorised, Charging, Suspended:
	default:
		return
	}
	age, what := m.age()
	switch {
	case !m.sells && m.left() <= m.reserve(MinCurrent):
		cause := fmt.Sprintf("the hold of %d Wh is used up", m.MaxWh)
		if m.offline && m.r.OfflineWh > 0 && m.offlineFrom+m.r.OfflineWh < m.MaxWh {
			cause = fmt.Sprintf("the %d Wh for times without the ledger are used up", m.r.OfflineWh)
		}
		m.stop(chain.StopHold, cause)
	case m.Wh() == 0 && m.now-max(m.authAt, m.StartsAt) > m.r.StartLimit && !m.waits():
		m.stop(chain.StopNoEnergy, "no energy within "+m.r.StartLimit.String())
	case m.Phase == Suspended && !m.resuming && age > m.r.StaleAfter+m.r.StaleOff+m.r.ResumeLimit:
		m.stop(chain.StopMeter, "no fresh reading from the "+what)
	}
}

// charging keeps the circuit closed or begins to open it.
func (m *machine) charging(no string) {
	age, what := m.age()
	switch {
	case no == "" && !m.ramping && m.gives():
		m.Why = "discharging"
	case no == "" && !m.ramping:
		m.Why = "charging"
	case !m.gives() && age > m.r.StaleAfter && age <= m.r.StaleAfter+m.r.StaleOff && !m.ramping && m.onlyStale():
		m.Why = "6 A: no fresh reading from the " + what
	default:
		m.ramp(no)
	}
}

// onlyStale reports whether charging could go on but for the readings' age.
func (m *machine) onlyStale() bool {
	n := *m
	n.r.StaleAfter = 1 << 62
	return n.refusal() == ""
}

// ramp offers 0 A and opens when the current has gone or the wait is over.
func (m *machine) ramp(cause string) {
	if !m.Relay {
		m.ramping = false
		return
	}
	if !m.ramping {
		m.ramping, m.rampAt, m.Cause = true, m.now, cause
	}
	gone := m.heard && m.meterAt > m.rampAt && m.Current < StopBelow
	if gone || m.now-m.rampAt >= m.r.StopWait {
		m.open(m.Cause) // what began it, whatever came since
	}
}

func (m *machine) stopping() {
	m.Why = "stopping: " + m.Reason.String()
	if m.Relay {
		m.ramp(m.Cause)
	}
	if m.Relay {
		return
	}
	since := max(m.movedAt, m.phaseAt)
	fresh := m.heard && m.meterAt > since && m.Current < StopBelow && m.quiet(since)
	if !fresh && m.now-since < FinalWait+m.r.settle() {
		return
	}
	if !m.known {
		// Neither begun nor metered: there is nothing to state, and the
		// ledger voids the hold by its own start limit.
		m.do(Action{Kind: Ended})
		m.end()
		return
	}
	m.do(Action{Kind: RecordStop, Register: m.Last, Fresh: fresh, Begun: m.asked, Reason: m.Reason, Text: m.Cause})
	if !m.asked {
		m.asked, m.Base = true, m.Last
	}
	if excess := m.Wh() - m.MaxWh; excess > 0 {
		m.note(3, "session.beyond_hold", "session %s took %d Wh, %d more than its hold pays for: the rest is the operator's claim", m.ID, m.Wh(), excess)
	}
	m.enter(Metered)
}

// quiet reports whether a wallbox has let go: the pilot says so as well.
func (m *machine) quiet(since time.Duration) bool {
	if !m.r.Wallbox || !m.r.Pilot {
		return true
	}
	return m.vehicleSeen && m.vehicleAt > since && m.Vehicle != drivers.StateC && m.Vehicle != drivers.StateD
}

// setOffer derives the offer from the state.
func (m *machine) setOffer() {
	offer := min(m.limit, m.derated())
	if age, _ := m.age(); age > m.r.StaleAfter || m.left() <= m.reserve(m.limit) {
		offer = min(offer, MinCurrent)
	}
	m.Back = 0
	switch {
	case !m.Relay || m.ramping || m.Phase == Testing:
		offer = 0
	case m.gives():
		offer = 0
		if m.refusal() == "" { // of stale readings, too: there is no least power to fall back to
			m.Back = m.back
		}
	}
	m.Offered = offer
}

// gives reports whether the vehicle is the source now.
func (m *machine) gives() bool { return m.back > 0 || m.stay && m.Relay }

func (m *machine) actions() []Action {
	var out []Action
	add := func(cond bool, a Action) {
		if cond {
			out = append(out, a)
		}
	}
	add(m.Tripping && !m.was.Tripping, Action{Kind: TripOn})
	add(!m.Tripping && m.was.Tripping, Action{Kind: TripOff})
	add(m.Relay && !m.was.Relay, Action{Kind: CloseRelay})
	add(!m.Relay && (m.was.Relay || !m.was.stepped || m.again), Action{Kind: OpenRelay})
	add(m.Offered != m.was.Offered || m.Back != m.was.Back || !m.was.stepped, Action{Kind: Offer, Limit: m.Offered, Back: m.Back})
	return append(out, m.out...)
}
