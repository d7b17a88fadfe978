package station

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/joulegate/joulegate/meter/discharge"
	"github.com/joulegate/joulegate/meter/plan"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
	"github.com/joulegate/joulegate/meter/slot"
)

const (
	publishEach  = 500 * time.Millisecond // at least; every change of a session at once
	readBackEach = time.Second            // between two looks at a relay's output
	trustAfter   = 10                     // ticks after a stall until relays may close again
	flushLimit   = 3 * time.Second        // at the end, for the last records
	strayLimit   = 3 * readBackEach       // an output that has to be open may be anything else for so long
)

// Station is made by New and lives in Run. Its other methods are safe for
// concurrent use.
type Station struct {
	cfg   Config
	pulse pulse

	commands chan func()
	jobs     chan job
	results  chan result
	failures chan error
	sessions atomic.Pointer[[]chain.ID]
	ended    chan struct{} // closed when Run returns
	alarm    chan struct{} // a relay was opened without the loop
	mail     mailbox

	// Owned by the loop.
	now      time.Duration
	wall     time.Time
	chargers []*charger
	meters   []*meterState
	site     *meterState
	tree     *circuit.Tree
	asks     atomic.Pointer[[]circuit.Ask] // what chargers want of a shared feeder
	share    circuit.State
	dim      circuit.DimState
	dimmed   circuit.Limit
	quotes   []chain.Quote // open ones, oldest first
	goals    []wish        // of open quotes, oldest first
	offers   offered       // what neighbours and the supplier ask
	duties   []Duty        // firm promises of vehicles here
	notes    []ledgerNote  // for sessions that are not open yet, oldest first
	queue    []entry
	receipts []receipt
	acks     []func(error)  // callers who wait for the state to be durable
	resumes  []func()       // sessions of the time before the restart
	old      []chain.Record // and its records that may not be in the outbox
	due      time.Duration  // when the queue goes out
	retry    time.Duration  // not before
	busy     bool           // the scribe has a job
	busyAt   time.Duration  // since
	dirty    bool
	diskErr  error
	trust    int // ticks to go until a stall is forgiven
	draining bool
	seq      uint64
	shown    time.Duration
	changed  bool
	since    map[string]time.Time // alarm -> since when
	events   events
	skew     time.Duration // wall clock less monotonic time, at the last look
	offline  bool          // the ledger takes no records
}

// meterState is a meter and its latest reading.
type meterState struct {
	Meter
	cut  *slot.Cutter
	last meter.Reading
	good time.Duration // of the last good reading
	seen bool          // there was a good one
}

// charger is a charging point and its session.
type charger struct {
	Charger
	relay   relay
	limiter *limiter
	meter   *meterState
	st      session.State
	set     setpoint.State
	mode    setpoint.Mode
	limit   meter.MilliAmpere // a person's; 0: none
	why     string            // what keeps it from more
	phases  phases
	plan    planned
	sale    sale

	opening bool // SessionOpen is on its way to disk
	closing bool // SessionStop is
	quote   chain.Quote
	signed  chain.SignedQuote
	seq     uint32
	begin   Register
	last    Register // last good register and when it was read
	stopped string   // reason of the last stop, for people

	stuck    bool // the relay could not be commanded
	cut      *cut
	strays   bool          // its output read closed at the last look
	strayed  time.Duration // it was as commanded last
	pilotErr error
	heatErr  error
	failed   bool          // the wallbox reports a fault
	checked  time.Duration // output read back
	pressed  bool          // the stop button
	test     *relayTest    // nil: none
	wired    [len(wirable)]board.ContactState
	looked   bool // at them
	offer    offers
}

// mailbox holds what other goroutines bring. Of readings and pilots the latest
// per device wins; notes are bounded and the oldest is dropped.
type mailbox struct {
	kick chan struct{}

	mu       sync.Mutex
	readings map[string]meter.Reading
	pilots   map[uint8]pilot
	heats    map[uint8]heat
	notes    []ledgerNote
	facts    []fact
	offers   *offered
	duties   *[]Duty
	ledger   *bool // the latest word on whether it can be reached
}

type ledgerNote struct {
	id   chain.ID
	held bool
	why  string
}

func (m *mailbox) put(f func()) {
	m.mu.Lock()
	f()
	m.mu.Unlock()
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// New loads the state of the last run and prepares the loop. It touches no
// actuator.
func New(cfg Config) (*Station, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	b, err := cfg.Store.Load()
	if err != nil {
		return nil, fmt.Errorf("load station state: %w", err)
	}
	var was saved
	if err := was.parse(b); err != nil {
		return nil, err
	}
	if was.Pending, err = cfg.Outbox.Unsent(was.Pending); err != nil {
		return nil, fmt.Errorf("records of before the start: %w", err)
	}
	s := &Station{
		cfg:      cfg,
		pulse:    pulse{now: cfg.Now, limit: cfg.Watchdog},
		commands: make(chan func(), MaxCommands),
		jobs:     make(chan job, 1),
		results:  make(chan result, 1),
		failures: make(chan error, 1),
		ended:    make(chan struct{}),
		alarm:    make(chan struct{}, 1),
		mail:     mailbox{kick: make(chan struct{}, 1), readings: map[string]meter.Reading{}, pilots: map[uint8]pilot{}, heats: map[uint8]heat{}},
		events:   newEvents(),
		since:    map[string]time.Time{},
		old:      was.Pending,
	}
	for _, m := range cfg.Meters {
		var st slot.State
		for _, v := range was.Meters {
			if v.ID == m.ID {
				st = v.State
			}
		}
		ms := &meterState{Meter: m, cut: slot.New(slot.Meter{ID: m.ID, Role: m.Role, SlotSeconds: cfg.SlotSeconds}, st)}
		s.meters = append(s.meters, ms)
		if m.Role == chain.RoleSite {
			s.site = ms
		}
	}
	for _, h := range cfg.Chargers {
		c := &charger{Charger: h, mode: h.Mode, cut: &cut{}, meter: s.meter(h.Meter)}
		for i, name := range wirable {
			c.wired[i].Name = name
		}
		if h.Limiter != nil {
			c.limiter = newLimiter(h.Limiter, &s.pulse, func(p pilot) { s.mail.put(func() { s.mail.pilots[h.ID] = p }) })
		}
		c.relay = relay{h.Relay, &s.pulse, c.cut}
		s.chargers = append(s.chargers, c)
	}
	var ends []circuit.Charger
	for _, h := range cfg.Chargers {
		if h.Wiring == (circuit.Wiring{}) {
			h.Wiring = circuit.Straight(h.Session.Phases)
		}
		ends = append(ends, circuit.Charger{ID: h.ID, Circuit: h.Circuit, Wiring: h.Wiring, MaxCurrent: h.Session.MaxCurrent})
	}
	if s.tree, err = circuit.New(cfg.Sharing, cfg.Circuits, ends); err != nil {
		return nil, err
	}
	if err := s.restore(was.Chargers); err != nil {
		return nil, err
	}
	return s, nil
}

// restore takes up the sessions of the time before the restart.
func (s *Station) restore(was []savedCharger) error {
	for _, v := range was {
		known := false
		for _, c := range s.chargers {
			if c.ID != v.ID {
				continue
			}
			known = true
			if v.Session.ID != (chain.ID{}) {
				q, err := v.Quote.Open()
				if err != nil {
					return fmt.Errorf("station state: charger %d: %w", v.ID, err)
				}
				c.quote, c.signed, c.seq, c.begin, c.last = q, v.Quote, v.Seq, v.Begin, v.Last
				if b := v.Sale; b != nil {
					c.sale.state = discharge.Resume(b.Slot, b.Base)
				}
				if g := v.Goal; g != nil {
					c.plan = planned{on: true, goal: plan.Goal{Wh: g.Wh, By: g.By, MaxPrice: g.MaxPrice}}
				}
			}
			// Applied by Run, after every actuator was halted.
			s.resumes = append(s.resumes, func() { s.step(c, session.Resume{Saved: v.Session, PowerReturned: s.cfg.PowerReturned}) })
		}
		if !known && v.Session.ID != (chain.ID{}) {
			s.cfg.Log.Warn("a session's charger is no longer configured; the ledger ends the session by its own rule", "charger", v.ID, "session", v.Session.ID)
		}
	}
	return nil
}

func (s *Station) meter(id string) *meterState {
	for _, m := range s.meters {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// Reading takes a reading from a poller. It does not block. Of several
// readings of one device between two ticks the latest wins.
func (s *Station) Reading(r meter.Reading) {
	if s.meter(r.Device) == nil {
		return // not one of ours: the mailbox holds as many as there are meters
	}
	s.mail.put(func() { s.mail.readings[r.Device] = r })
}

// LedgerSession says whether the ledger holds money for a session: after
// SessionOpen was applied, after it was refused, when the session ended there,
// and for each of Sessions after a start. Repeating it is harmless.
func (s *Station) LedgerSession(id chain.ID, held bool, why string) {
	s.mail.put(func() {
		if len(s.mail.notes) == MaxNotes {
			s.mail.notes = s.mail.notes[1:]
		}
		s.mail.notes = append(s.mail.notes, ledgerNote{id, held, why})
	})
}

// LedgerOnline says whether the ledger takes this gateway's records. While it
// does not, a session goes on to the smaller of its hold and the limit for
// times without the ledger. It does not block.
func (s *Station) LedgerOnline(ok bool) { s.mail.put(func() { s.mail.ledger = &ok }) }

// Note puts something on record that happened outside the loop. It does not
// block; of more than MaxNotes between two turns the oldest are dropped.
// Severity is 1 info, 2 warning, 3 alarm. No personal data.
func (s *Station) Note(code string, severity uint8, subject, text string) {
	s.mail.put(func() {
		if len(s.mail.facts) == MaxNotes {
			s.mail.facts = s.mail.facts[1:]
		}
		s.mail.facts = append(s.mail.facts, fact{code, severity, subject, text})
	})
}

// Sessions returns the sessions that are open at this gateway.
func (s *Station) Sessions() []chain.ID {
	if p := s.sessions.Load(); p != nil {
		return *p
	}
	return nil
}

// Alive reports whether the loop runs and ticks. It is what a system watchdog
// is fed from.
func (s *Station) Alive() bool { return s.pulse.alive() && !s.pulse.stalled.Load() }

// Progress counts verified turns of the loop: those in which every contact was
// read, every charger decided about and every command carried out, while the
// loop's own watchdog had nothing to object to and every relay that has to be
// open reads open. Whoever feeds a watchdog or
// drives a heartbeat output does so only when the number has grown since the
// last time. It may be called from any goroutine and never blocks.
func (s *Station) Progress() uint64 { return s.pulse.turns.Load() }

// Run owns the actuators until ctx ends. It returns after they are safe, the
// last records are written and its goroutines have ended. A panic in any of
// them halts the actuators and becomes the returned error.
func (s *Station) Run(ctx context.Context) (err error) {
	defer close(s.ended)
	s.haltRelays()
	// The workers outlive ctx: the last records are written after it ends.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	s.pulse.tick()
	s.pulse.running.Store(true)
	defer func() {
		s.pulse.running.Store(false)
		s.haltRelays() // before waiting for anything
		stop()         // limiter workers halt their devices
		wg.Wait()
	}()
	spawn := func(f func()) {
		wg.Go(func() {
			defer s.rescue(func(e error) {
				select {
				case s.failures <- e:
				default:
				}
			})
			f()
		})
	}
	spawn(func() { s.pulse.watch(work, s.haltRelays) })
	spawn(func() { s.scribe(work) })
	for _, c := range s.chargers {
		if c.limiter != nil {
			spawn(func() { c.limiter.run(work) })
		}
		if c.Thermometer != nil {
			spawn(func() {
				watchHeat(work, c.Thermometer, s.cfg.Now, func(h heat) { s.mail.put(func() { s.mail.heats[c.ID] = h }) })
			})
		}
	}
	defer s.rescue(func(e error) { err = e })
	return s.loop(ctx)
}

// rescue halts the actuators when its goroutine panics.
func (s *Station) rescue(report func(error)) {
	if p := recover(); p != nil {
		s.haltRelays()
		e := fmt.Errorf("station: panic: %v\n%s", p, debug.Stack())
		s.cfg.Log.Error("the control loop failed; every relay is open", "err", e)
		report(e)
	}
}

func (s *Station) haltRelays() {
	var wg sync.WaitGroup
	for _, c := range s.chargers {
		for _, out := range []drivers.Relay{c.Relay, c.Trip} {
			if out == nil {
				continue // a wallbox is halted by its worker: it takes a bus
			}
			wg.Go(func() { // one that hangs must not keep the next one closed
				if err := out.Halt(); err != nil {
					s.cfg.Log.Error("relay does not halt", "charger", c.ID, "err", err)
				}
			})
		}
	}
	wg.Wait()
}

func (s *Station) loop(ctx context.Context) error {
	ticker := time.NewTicker(s.cfg.Tick)
	defer ticker.Stop()
	s.clock()
	for _, resume := range s.resumes {
		resume()
	}
	if len(s.old) > 0 {
		for _, r := range s.old {
			s.enqueue(entry{record: r}, true)
		}
		last := &s.queue[len(s.queue)-1]
		last.done = func() { s.old = nil; s.setDisk(nil) }
		s.setDisk(nil)
	}
	done := ctx.Done()
	var deadline time.Duration
	for {
		select {
		case <-done:
			done, s.draining = nil, true
			for _, c := range s.chargers {
				s.step(c, session.Drain{})
			}
			deadline = s.now + session.FinalWait
		case err := <-s.failures:
			return err
		case f := <-s.commands:
			s.clock()
			f()
		case r := <-s.results:
			s.clock()
			s.written(r)
		case <-s.alarm:
			s.clock()
			for _, c := range s.chargers {
				s.contacts(c)
			}
		case <-s.mail.kick:
			s.clock()
		case <-ticker.C:
			s.tick()
		}
		s.collect()
		s.dispatch()
		s.publish()
		if s.draining && (s.opened() || s.now > deadline) {
			return s.flush()
		}
	}
}

func (s *Station) clock() {
	s.now, s.wall = s.cfg.Now(), s.cfg.Wall()
}

// maxJump is how far the wall clock may move against monotonic time between
// two turns before it counts as a jump.
const maxJump = 2 * time.Second

// clocks puts a jump of the wall clock on record. Nothing but the date of
// records depends on it: slots are the ledger's to judge.
func (s *Station) clocks() {
	skew := time.Duration(s.wall.UnixNano()) - s.now
	if jump := skew - s.skew; s.skew != 0 && (jump > maxJump || jump < -maxJump) {
		s.evidence("clock.jump", 2, "", fmt.Sprintf("the wall clock moved by %s to %s", jump.Round(time.Millisecond), s.wall.UTC().Format(time.RFC3339)))
	}
	s.skew = skew
}

func (s *Station) clockUnset() bool { return s.wall.Before(s.cfg.Founded) }

// tick is the loop's sign of life and does what depends on time alone.
func (s *Station) tick() {
	s.clock()
	s.clocks()
	s.forgive()
	s.hurry()
	for _, c := range s.chargers {
		s.contacts(c)
		s.readBack(c)
	}
	s.allot()
	for _, c := range s.chargers {
		s.step(c, session.Tick{})
		s.recordOffer(c)
	}
	s.repeats()
	if s.pulse.turn(s.obeyed()) && s.cfg.Verified != nil {
		s.cfg.Verified()
	}
}

// obeyed reports whether every output that has to be open can be commanded and
// reads open. For one that does not for strayLimit there is no remedy in this
// program: it stops counting progress, so that a hardware watchdog resets the
// pins.
func (s *Station) obeyed() bool {
	ok := true
	for _, c := range s.chargers {
		if c.st.Relay || !c.stuck && !c.strays {
			c.strayed = s.now
		}
		ok = ok && s.now-c.strayed <= strayLimit
	}
	return ok
}

// forgive lets relays close again when the loop has ticked for a while after
// a stall.
func (s *Station) forgive() {
	if !s.pulse.stalled.Load() {
		return
	}
	if s.trust == 0 {
		s.trust = trustAfter
		s.cfg.Log.Error("the control loop stalled; every relay was opened", "stalls", s.pulse.stalls.Load())
		for _, c := range s.chargers {
			s.step(c, session.Stalled{})
		}
		s.evidence("loop.stalled", 3, "", "the control loop was silent for longer than its watchdog allows")
	}
	if s.trust--; s.trust == 0 {
		s.pulse.stalled.Store(false)
	}
}

// contacts reads what is wired to this board. A contact that cannot be read
// counts as the emergency stop, but the monitor of earth faults as such a fault.
func (s *Station) contacts(c *charger) {
	in := session.Inputs{}
	read := func(dev drivers.Input) bool {
		if dev == nil {
			return false
		}
		on, err := dev.Active()
		in.EStop = in.EStop || err != nil
		return on && err == nil
	}
	seen := c.cut.seen.Load()
	estop, earth := read(c.EStop), false
	in.EStop = in.EStop || estop
	if c.Earth != nil {
		on, err := c.Earth.Active()
		earth = on && err == nil
		in.Earth = on || err != nil
	}
	over := seen
	if in.EStop {
		over &^= uint32(EmergencyStop)
	}
	if in.Earth {
		over &^= uint32(EarthFault)
	}
	in.EStop = in.EStop || seen&uint32(EmergencyStop) != 0
	in.Earth = in.Earth || seen&uint32(EarthFault) != 0
	if c.Feedback != nil {
		in.Feedback = session.ContactOpen
		if read(c.Feedback) {
			in.Feedback = session.ContactClosed
		}
	}
	ready, pressed := read(c.Pilot), read(c.StopButton)
	s.step(c, in)
	c.cut.seen.And(^over) // what the session now knows
	if c.Pilot != nil {
		v := session.Vehicle{State: drivers.StateA, At: s.now}
		if ready {
			v.State = drivers.StateC
		}
		s.step(c, v)
	}
	if pressed && !c.pressed {
		s.step(c, session.Stop{Reason: chain.StopDriver, Cause: "the stop button was pressed"})
	}
	c.pressed = pressed
	s.operated(c, [...]bool{
		estop || seen&uint32(EmergencyStop) != 0, earth || seen&uint32(EarthFault) != 0, in.Feedback == session.ContactClosed, ready, pressed,
	})
	s.watchTest(c, in.Feedback)
}

// wirable are the contacts that a charger may have.
var wirable = [...]string{board.ContactEStop, board.ContactEarth, board.ContactFeedback, board.ContactPilot, board.ContactStop}

// operated notes when contacts change. What reads active at the first look was
// not seen becoming so.
func (s *Station) operated(c *charger, on [len(wirable)]bool) {
	for i, now := range on {
		v := &c.wired[i]
		switch {
		case now == v.Active:
			continue
		case c.looked && now:
			v.Operated = s.wall
		case c.looked:
			v.Released = s.wall
		}
		v.Active, s.changed = now, true
	}
	c.looked = true
}

func (s *Station) readBack(c *charger) {
	if c.Relay == nil || s.now-c.checked < readBackEach {
		return
	}
	c.checked = s.now
	closed, err := c.relay.Closed()
	c.strays = closed && err == nil
	s.step(c, session.Output{Closed: closed, OK: err == nil})
}

// current returns the highest phase current of a reading, measured or, where
// the meter gives none, computed from the power.
func current(r *meter.Reading, phases int) meter.MilliAmpere {
	var most int64
	found := false
	for _, p := range r.Points {
		if p.Quantity == meter.Current {
			most, found = max(most, p.Value, -p.Value), true
		}
	}
	if p, ok := r.Power(); !found && ok {
		most = max(int64(p), -int64(p)) / int64(230*max(1, phases))
	}
	return meter.MilliAmpere(most)
}

// volts returns the voltages of the charger's phases as far as the meter tells
// them. A single phase may be any of the meter's three.
func volts(r *meter.Reading, phases int) (v [3]meter.MilliVolt, known int) {
	if r.Quality == meter.Stale {
		return v, 0
	}
	if phases == 1 {
		for _, p := range r.Points {
			if p.Quantity == meter.Voltage {
				v[0], known = max(v[0], meter.MilliVolt(p.Value)), 1
			}
		}
		return v, known
	}
	for i := range v {
		mv, ok := r.Value(meter.Voltage, uint8(i+1))
		if !ok {
			break
		}
		v[i], known = meter.MilliVolt(mv), i+1
	}
	return v, known
}

// sequence is the order of the phases, if the meter reports it.
func sequence(r *meter.Reading) session.Sequence {
	v, ok := r.Value(meter.PhaseSequence, 0)
	switch {
	case !ok || r.Quality == meter.Stale:
		return session.NotJudged
	case v < 0:
		return session.Reversed
	}
	return session.Clockwise
}

// collect takes what the mailbox holds.
func (s *Station) collect() {
	s.mail.mu.Lock()
	readings, pilots, heats := maps.Clone(s.mail.readings), maps.Clone(s.mail.pilots), maps.Clone(s.mail.heats)
	notes, facts, ledger := s.mail.notes, s.mail.facts, s.mail.ledger
	if o := s.mail.offers; o != nil {
		s.offers, s.mail.offers = *o, nil
	}
	if d := s.mail.duties; d != nil {
		s.duties, s.mail.duties = *d, nil
	}
	clear(s.mail.readings)
	clear(s.mail.pilots)
	clear(s.mail.heats)
	s.mail.notes, s.mail.facts, s.mail.ledger = nil, nil, nil
	s.mail.mu.Unlock()
	for _, f := range facts {
		s.evidence(f.code, f.severity, f.subject, f.text)
	}
	if ledger != nil && s.offline == *ledger {
		s.offline, s.changed = !*ledger, true
		for _, c := range s.chargers {
			s.step(c, session.Online{OK: *ledger})
		}
	}
	for _, m := range s.meters {
		if r, ok := readings[m.ID]; ok {
			s.read(m, r)
		}
	}
	for _, c := range s.chargers {
		if p, ok := pilots[c.ID]; ok {
			s.heard(c, p)
		}
		if h, ok := heats[c.ID]; ok {
			c.heatErr = h.err
			if h.err == nil {
				s.step(c, session.Temperature{Value: h.value, At: h.at})
			}
		}
	}
	for _, n := range notes {
		s.note(n)
	}
}

// heard takes what a limiter worker found out.
func (s *Station) heard(c *charger, p pilot) {
	c.pilotErr = p.err
	if p.phases > 0 {
		c.phases.now = p.phases
	}
	if p.looked {
		s.step(c, session.Vehicle{State: p.state, At: p.at})
	}
	st := p.status
	if st == nil {
		return
	}
	if st.Temperature != nil {
		s.step(c, session.Temperature{Value: session.MilliCelsius(*st.Temperature), At: p.at})
	}
	dev := session.Device{Failed: st.Fault != 0}
	if dev.Failed {
		dev.Text = fmt.Sprintf("fault code %d, status %d", st.Fault, st.Code)
		if !c.failed {
			s.evidence("charger.device_fault", 3, chargerName(c.ID), "the wallbox says: "+dev.Text)
		}
	}
	c.failed = dev.Failed
	s.step(c, dev)
}

func (s *Station) note(n ledgerNote) {
	for _, c := range s.chargers {
		if c.st.Phase != session.Idle && c.st.ID == n.id {
			if !n.held && c.st.Confirmed {
				s.cfg.Log.Info("the ledger ended the session", "session", n.id, "why", n.why)
			}
			if !n.held && !c.st.Confirmed {
				c.stopped = "the ledger holds no money: " + n.why
			}
			s.step(c, session.Ledger{ID: n.id, OK: n.held})
			return
		}
	}
	if len(s.notes) == MaxNotes {
		s.notes = s.notes[1:]
	}
	s.notes = append(s.notes, n)
}

// read takes one reading: first the slot's record, so that a session's
// registers follow each other in the order of the slots, then the session.
func (s *Station) read(m *meterState, r meter.Reading) {
	good := r.Quality == meter.Good
	s.quality(m, r)
	m.last = r
	if good {
		m.good, m.seen = r.Mono, true
	}
	// Backpressure: with a full queue no record is cut. The next one carries
	// all the energy.
	if len(s.queue) < MaxQueue {
		if rec, ok := m.cut.Read(r); ok {
			s.slotEnd(m, rec)
		}
	}
	for _, c := range s.chargers {
		if m == s.site && good {
			s.step(c, session.SiteReading{Current: current(&r, c.Session.Phases), At: r.Mono})
		}
		if m == c.meter {
			reg, ok := r.Import()
			out, two := r.Export()
			ok = ok && (two || !c.sells()) // what cannot be metered is not sold
			if good && ok {
				c.last = Register{reg.WattHours(), r.Wall, meter.Good, out.WattHours()}
			}
			e := session.Reading{Good: good && ok, Import: reg, Export: out, Current: current(&r, c.inUse()), At: r.Mono}
			e.Volts, e.Known = volts(&r, c.inUse())
			e.Order = sequence(&r)
			s.step(c, e)
		}
	}
}

func (s *Station) slotEnd(m *meterState, rec slot.Record) {
	s.enqueue(entry{record: chain.NewRecord(chain.KindMeter, rec.MeterRecord), leaves: &rec.Leaves}, false)
	for _, c := range s.chargers {
		if c.meter != m || c.seq == 0 || c.st.Phase == session.Idle || c.st.Phase == session.Metered || rec.Import < c.st.Last.WattHours() {
			continue
		}
		c.seq++
		s.enqueue(entry{record: sessionMeter(c.st.ID, c.seq, rec.Slot, Register{rec.Import, rec.At, meter.Good, rec.Export}, c.sells())}, false)
	}
	for _, o := range s.meters {
		if o.cut.State().Slot != rec.Slot && o.seen && s.now-o.good < lingerFor*4 {
			return
		}
	}
	s.due = s.now // every meter that answers has its record: no need to linger
}

// step gives the session machine an event and carries out what it asks for.
func (s *Station) step(c *charger, e session.Event) {
	was := c.st
	var acts []session.Action
	c.st, acts = session.Step(c.Session, c.st, e, s.now)
	s.recordCommand(c, was)
	if c.st.Phase != was.Phase || c.st.Relay != was.Relay {
		s.changed = true
		s.cfg.Log.Info("charger", "charger", c.ID, "session", c.st.ID, "state", c.st.Phase.String(), "was", was.Phase.String(), "relay", c.st.Relay, "why", c.st.Why)
		switch {
		case c.st.Phase == was.Phase:
		case c.st.Phase == session.Idle:
			s.close(c)
		case c.st.Phase == session.Stopping:
			s.dirty = true // a stop survives a restart
		}
		s.index()
	}
	if c.st.Fault != was.Fault || c.st.Relay != was.Relay {
		s.dirty = true // faults and the count of closings survive
	}
	for _, a := range acts {
		s.act(c, a)
	}
}

// close forgets an ended session.
func (s *Station) close(c *charger) {
	c.quote, c.signed, c.seq, c.begin, c.closing = chain.Quote{}, chain.SignedQuote{}, 0, Register{}, false
	c.plan, c.sale = planned{}, sale{}
	s.dirty = true
}

func (s *Station) index() {
	var ids []chain.ID
	for _, c := range s.chargers {
		if c.st.Phase >= session.Held {
			ids = append(ids, c.st.ID)
		}
	}
	s.sessions.Store(&ids)
}

func (s *Station) act(c *charger, a session.Action) {
	switch a.Kind {
	case session.TripOn, session.TripOff:
		if err := c.Trip.Set(a.Kind == session.TripOn); err != nil {
			s.cfg.Log.Error("shunt trip does not obey", "charger", c.ID, "err", err)
			s.evidence("charger.trip_stuck", 3, chargerName(c.ID), err.Error())
		}
	case session.OpenRelay:
		if c.Relay == nil {
			return // a wallbox opens when it is offered nothing
		}
		err := c.relay.Set(false) // tried again each time the output is looked at
		if err != nil && !c.stuck {
			s.cfg.Log.Error("relay does not open", "charger", c.ID, "err", err)
			s.evidence("relay.stuck", 3, chargerName(c.ID), err.Error())
		}
		c.stuck = err != nil
		if err == nil {
			c.checked = s.now - readBackEach // look at once whether it obeyed
		}
	case session.CloseRelay:
		if c.Relay == nil {
			return // and closes when it is offered something
		}
		if err := c.relay.Set(true); err != nil {
			s.cfg.Log.Error("relay does not close", "charger", c.ID, "err", err)
			s.step(c, session.Output{OK: false})
		}
	case session.Offer:
		if c.limiter != nil {
			c.limiter.offer(a.Limit, a.Back)
		}
	case session.RecordBegin:
		c.begin, c.seq = c.last, 1
		s.enqueue(entry{
			record: sessionMeter(c.st.ID, 1, s.slotOf(c.begin.At), c.begin, c.sells()),
			done:   func() { s.step(c, session.BeginRecorded{}) },
		}, true)
	case session.RecordStop:
		s.recordStop(c, a)
	case session.Ended:
		s.dirty = true
	case session.Alarm:
		s.cfg.Log.Error("charger fault", "charger", c.ID, "fault", a.Text)
		s.evidence("charger.fault", 3, chargerName(c.ID), a.Text)
	case session.Note:
		if c.test != nil && a.Code == session.TestRefused {
			c.test.refused = a.Text
			return // told to whoever asked
		}
		s.cfg.Log.Info("charger", "charger", c.ID, "code", a.Code, "what", a.Text)
		s.evidence(a.Code, a.Severity, chargerName(c.ID), a.Text)
	case session.AskDelay:
		s.step(c, session.Spread{Delay: s.draw(c.Session.StartSpread)})
	}
}

// draw returns a random time of up to most. Without randomness it is all of
// it: late is safe.
func (s *Station) draw(most time.Duration) time.Duration {
	n, err := rand.Int(s.cfg.Random, big.NewInt(int64(most)+1))
	if err != nil {
		return most
	}
	return time.Duration(n.Int64())
}

// recordStop makes the receipt and then the record that names it.
func (s *Station) recordStop(c *charger, a session.Action) {
	if !a.Begun {
		// Nothing was delivered. The ledger still has to learn that it is
		// over, and it reads a session from its begin register on.
		c.begin, c.seq = c.last, 1
		s.enqueue(entry{record: sessionMeter(c.st.ID, 1, s.slotOf(c.begin.At), c.begin, c.sells())}, true)
	}
	s.endSale(c)
	end := c.last
	if !c.sells() {
		end.Export = 0
	}
	end.Value = a.Register.WattHours()
	r := Receipt{Session: c.st.ID, Quote: c.quote, Meter: c.Meter, Begin: c.begin, End: end, Reason: a.Reason, Connector: c.ID}
	c.stopped = a.Reason.String()
	if a.Text != "" {
		c.stopped += ": " + a.Text
	}
	var hash chain.Hash
	s.receipts = append(s.receipts, receipt{
		make: func() (err error) {
			if hash, err = s.cfg.Receipt(r); err != nil {
				return fmt.Errorf("receipt of session %s: %w", r.Session, err)
			}
			return nil
		},
		done: func() {
			c.seq++
			c.closing = true
			s.enqueue(entry{
				record: chain.NewRecord(chain.KindSessionStop, chain.SessionStop{
					Session: r.Session, Seq: c.seq, Slot: s.slotOf(end.At), Register: end.Value, Quality: meter.Good,
					At: end.At, Reason: r.Reason, Receipt: hash, Export: end.Export,
				}),
				done: func() { s.step(c, session.StopRecorded{}) },
			}, true)
		},
	})
}

// opened reports whether every relay is open and nobody waits.
func (s *Station) opened() bool {
	for _, c := range s.chargers {
		if c.st.Relay {
			return false
		}
	}
	return true
}

// flush writes what is still waiting, for at most flushLimit. What does not
// make it is in the saved state and goes out after the next start.
func (s *Station) flush() error {
	s.haltRelays()
	t := time.NewTimer(flushLimit)
	defer t.Stop()
	s.dirty, s.retry = true, 0
	for s.busy || s.dirty || len(s.queue)+len(s.receipts) > 0 {
		s.clock()
		s.due = s.now
		s.dispatch()
		if !s.busy {
			return fmt.Errorf("last records: %w", s.diskErr) // refused a moment ago
		}
		select {
		case r := <-s.results:
			s.written(r)
			if r.err != nil {
				return fmt.Errorf("last records: %w", r.err)
			}
		case <-t.C:
			return s.leave()
		}
		s.pulse.tick()
	}
	return nil
}

// leave saves what the outbox does not take, as one that still waits for the
// neighbours' word does: it goes out after the next start.
func (s *Station) leave() error {
	state := chain.Marshal(s.save())
	saved := make(chan error, 1)
	go func() { saved <- s.cfg.Store.Save(state) }()
	select {
	case err := <-saved:
		if err != nil {
			return fmt.Errorf("last records: %w", err)
		}
		s.cfg.Log.Info("records wait for the next start", "records", len(s.queue))
		return nil
	case <-time.After(flushLimit):
		return errors.New("last records: the disk does not answer")
	}
}
