package commission

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/identify"
	"github.com/joulegate/joulegate/meter/poll"
)

// What a meter's line must have shown before it counts, and how much of it may
// go wrong: wiring that loses more than a percent loses readings on a bad day.
const (
	MinReads  = 100
	okErrors  = 10 // per thousand
	maxErrors = 50
)

// oldBackup is when a backup should be made again.
const oldBackup = 30 * 24 * time.Hour

// Input is what a running gateway knows of itself.
type Input struct {
	Made      time.Time
	Installer string
	Gateway   Gateway
	Config    *config.Config
	Board     board.Board // with the installer's own pins
	Computer  []Row       // what the doctor has said; ID without prefix
	Trials    Trials
	Snapshot  board.Snapshot
	// Contradicted is for how long House has been negative without a pause.
	Contradicted time.Duration
	Meters       map[string]Meter   // by id
	Failsafe     map[uint8]Failsafe // of chargers whose wallbox is on a line
	Grid         Grid
	Broker       Broker
	Guard        guard.Status
}

// Meter is what a line and a reader say of a meter.
type Meter struct {
	Identity poll.Identity
	Vendor   string
	Model    string
	Requests uint64 // frames sent
	Answers  uint64 // understood
	Down     bool
	Typical  time.Duration // to an answer
}

// Failsafe is what a wallbox does when the gateway is gone; Err: it did not
// say.
type Failsafe struct {
	Current meter.MilliAmpere
	Timeout time.Duration // 0: it does not watch
	Fixed   bool          // not to be set
	Err     string
}

// Grid is the gateway's place in its microgrid.
type Grid struct {
	Member    bool
	Members   int // active
	Connected int // neighbours
	Height    int64
	BlockTime time.Time
	Halted    string
}

// Broker is where MQTT goes.
type Broker struct {
	Address   string
	Embedded  bool
	Connected bool
}

// Make judges.
func Make(in Input) Report {
	r := Report{Format: Format, Made: in.Made.UTC().Truncate(time.Second), Installer: in.Installer, Gateway: in.Gateway}
	m := &maker{Input: in}
	var computer, kept []Row
	for _, c := range in.Computer {
		switch c.ID {
		case "clock", "watchdog":
			c.ID = "operation." + c.ID
			kept = append(kept, c)
		default:
			c.ID = "computer." + c.ID
			computer = append(computer, c)
		}
	}
	r.Steps = []Step{
		{ID: "computer", Title: "The computer", Rows: computer},
		{ID: "wiring", Title: "Wiring", Rows: m.take(m.wiring)},
		{ID: "meters", Title: "Meters", Rows: m.take(m.meters)},
		{ID: "limits", Title: "Limits", Rows: m.take(m.limits)},
		{ID: "failsafe", Title: "What happens when something is gone", Rows: m.take(m.failsafe)},
		{ID: "operation", Title: "Operation", Rows: append(kept, m.take(m.operation)...)},
	}
	r.finish()
	return r
}

type maker struct {
	Input
	rows []Row
}

// take returns the rows that f says.
func (m *maker) take(f func()) []Row {
	m.rows = nil
	f()
	if m.rows == nil {
		return []Row{}
	}
	return m.rows
}

func (m *maker) say(id, what string, s State, remedy, format string, args ...any) *Row {
	m.rows = append(m.rows, Row{ID: id, What: what, State: s, Seen: fmt.Sprintf(format, args...), Remedy: remedy})
	return &m.rows[len(m.rows)-1]
}

// pin describes how a pin is wired.
func (m *maker) pin(name string) string {
	p, ok := m.Board.Pin(name)
	if !ok {
		return name + " is not a pin of the board"
	}
	words := []string{p.Name}
	if p.Header > 0 {
		words = append(words, fmt.Sprintf("header pin %d", p.Header))
	}
	if p.Backend == board.BackendChip {
		words = append(words, strings.TrimSpace(fmt.Sprintf("%s line %d %s", p.Chip, p.Line, p.Label)))
	}
	active := "active high"
	if p.Polarity == board.ActiveLow {
		active = "active low"
	}
	words = append(words, active, "bias "+string(p.Pull))
	if p.Direction == board.Output {
		rest := "low"
		if p.SafeHigh {
			rest = "high"
		}
		words = append(words, rest+" and open at rest")
	}
	if p.MaxCurrent > 0 {
		words = append(words, "carries "+ampere(p.MaxCurrent))
	}
	return strings.Join(words, ", ")
}

const start = "joulegate commission start; "

func (m *maker) wiring() {
	if len(m.Config.Chargers) == 0 {
		m.say("wiring", "chargers", Skip, "", "none is configured: this gateway meters and switches nothing")
	}
	for i := range m.Config.Chargers {
		m.charger(&m.Config.Chargers[i])
	}
	if p := m.Config.Dimming.Pin; p != "" {
		m.say("wiring.dimming", "control box of the utility", OK, "", "%s", m.pin(p))
	}
	if p := m.Config.Button; p != "" {
		m.say("wiring.button", "commissioning button", OK, "", "%s", m.pin(p))
	}
	if p := m.Config.Watchdog.Heartbeat; p != "" {
		m.say("wiring.heartbeat", "heartbeat of the relay driver", OK, "", "%s", m.pin(p))
	}
}

func (m *maker) charger(h *config.Charger) {
	id, who := fmt.Sprintf("charger.%d", h.ID), fmt.Sprintf("charger %d: ", h.ID)
	var now *board.Charger
	for i := range m.Snapshot.Chargers {
		if m.Snapshot.Chargers[i].ID == h.ID {
			now = &m.Snapshot.Chargers[i]
		}
	}
	if h.Relay == "" {
		m.say(id+".relay", who+"relay", Skip, "", "its wallbox switches by itself")
	} else {
		test := fmt.Sprintf("%sjoulegate relay test %d", start, h.ID)
		t, tried := m.Trials.Relays[fmt.Sprint(h.ID)]
		switch v := t.Result; {
		case !tried:
			m.say(id+".relay", who+"relay", NotDone, test, "%s", m.pin(h.Relay))
		case t.Wires != RelayWires(&m.Board, h):
			m.say(id+".relay", who+"relay", NotDone, test, "it was tested before it was wired like this: %s", m.pin(h.Relay))
		case !v.OK:
			m.say(id+".relay", who+"relay", Fail, "find the cause, joulegate charger clear "+fmt.Sprint(h.ID)+", and test again: "+test,
				"%s: closed for %s, contact %s, %s; %s", h.Relay, v.ClosedFor.Round(time.Millisecond), v.Contact, v.Ended, v.Fault).At = t.At
		default:
			m.say(id+".relay", who+"relay", OK, "", "%s: closed for %s and opened again, nothing drew current", m.pin(h.Relay), v.ClosedFor.Round(time.Millisecond)).At = t.At
		}
		switch {
		case h.Feedback == "":
			m.say(id+".feedback", who+"auxiliary contact", Note, fmt.Sprintf("wire the contactor's auxiliary contact and name its pin under chargers[%d].feedback", m.index(h)),
				"none is wired: a welded contactor is only noticed by the current behind it")
		case !tried || t.Wires != RelayWires(&m.Board, h):
			m.say(id+".feedback", who+"auxiliary contact", NotDone, test, "%s", m.pin(h.Feedback))
		case t.Result.Contact != board.ContactFollowed:
			m.say(id+".feedback", who+"auxiliary contact", Fail, "check the contact's wires and its polarity; then "+test, "%s: it %s the relay", m.pin(h.Feedback), t.Result.Contact).At = t.At
		default:
			m.say(id+".feedback", who+"auxiliary contact", OK, "", "%s: it closed and opened with the relay", m.pin(h.Feedback)).At = t.At
		}
		if h.EStop == "" {
			m.say(id+".estop", who+"emergency stop", Note, fmt.Sprintf("where one is required, wire it as a normally closed contact and name its pin under chargers[%d].estop", m.index(h)), "none is wired to this gateway")
		}
	}
	for _, c := range contactsOf(h) {
		m.contact(h, c, now)
	}
	switch {
	case now == nil:
		m.say(id+".interlocks", who+"interlocks", Fail, "joulegate charger ls", "the control loop has not said anything about it")
	case now.Fault != "":
		m.say(id+".interlocks", who+"interlocks", Fail, fmt.Sprintf("after the repair: joulegate charger clear %d", h.ID), "a fault is latched: %s", now.Fault)
	default:
		if a := m.alarm("charger.controller", fmt.Sprint(h.ID)); a != "" {
			m.say(id+".interlocks", who+"interlocks", Fail, "check the line to the wallbox: joulegate bus scan --line "+h.EVSE.Line, "%s", a)
			break
		}
		m.say(id+".interlocks", who+"interlocks", OK, "", "no fault is latched; vehicle: %s; %s", now.Vehicle, now.State)
	}
	if now != nil && h.Phases == 3 && now.Order == "wrong" {
		m.say(id+".order", who+"order of the phases", Fail, "exchange two of the three lines at the charger's supply", "L1 L3 L2")
	}
}

func (m *maker) index(h *config.Charger) int {
	return slices.IndexFunc(m.Config.Chargers, func(o config.Charger) bool { return o.ID == h.ID })
}

func (m *maker) alarm(code, subject string) string {
	for _, a := range m.Snapshot.Alarms {
		if a.Code == code && a.Subject == subject {
			return a.Text
		}
	}
	return ""
}

// contact judges one that a person has to have operated.
func (m *maker) contact(h *config.Charger, c contact, now *board.Charger) {
	id, what := fmt.Sprintf("charger.%d.%s", h.ID, c.name), fmt.Sprintf("charger %d: %s", h.ID, c.what)
	if now != nil {
		if i := slices.IndexFunc(now.Contacts, func(v board.ContactState) bool { return v.Name == c.name && v.Active }); i >= 0 && c.name != board.ContactPilot {
			m.say(id, what, Fail, "release it; if it is released, its wires or its polarity are wrong", "%s: active now", m.pin(c.pin))
			return
		}
	}
	t, tried := m.Trials.Contacts[ContactKey(h.ID, c.name)]
	do := start + "operate the " + c.what + " and release it; joulegate commission status shows that it was seen"
	switch {
	case tried && t.Wires == ContactWires(&m.Board, h, c.name):
		m.say(id, what, OK, "", "%s: seen operated for %s and released", m.pin(c.pin), t.Released.Sub(t.Active).Round(10*time.Millisecond)).At = t.Active
	case !c.must:
		m.say(id, what, Note, do, "%s: not seen operated", m.pin(c.pin))
	case tried:
		m.say(id, what, NotDone, do, "it was tried before it was wired like this: %s", m.pin(c.pin))
	default:
		m.say(id, what, NotDone, do, "%s", m.pin(c.pin))
	}
}

func (m *maker) meters() {
	for i := range m.Config.Meters {
		m.meter(&m.Config.Meters[i])
	}
	if len(m.Config.Meters) == 0 {
		m.say("meters", "meters", Fail, "joulegate bus scan finds them", "none is configured")
		return
	}
	m.balance()
}

func (m *maker) meter(c *config.Meter) {
	id, who := "meter."+c.ID, c.ID+" ("+c.Role+"): "
	line := c.Line
	for _, l := range m.Config.Lines {
		if l.ID != c.Line {
			continue
		}
		if line = cmp.Or(l.TCP, l.RTUTCP); l.Device != "" {
			line = fmt.Sprintf("%s %d %s", l.Device, l.Baud, l.Framing)
		}
	}
	facts, shown := m.Meters[c.ID], board.Meter{Quality: "stale"}
	for _, s := range m.Snapshot.Meters {
		if s.ID == c.ID {
			shown = s
		}
	}
	// Who it is.
	m.identity(c, id+".identity", who+"identity", fmt.Sprintf("unit %d on %s (%s)", c.Unit, c.Line, line), facts)

	// What it says now.
	if q := shown.Quality; q != meter.Good.String() {
		why := m.alarm("meter.stale", c.ID)
		m.say(id+".reading", who+"reading", Fail, "joulegate bus scan --line "+c.Line+"; check supply, A and B, address, speed and framing", "quality %s %s", q, why)
	} else {
		s := fmt.Sprintf("%d W, imported %s, exported %s", shown.PowerW, kwh(shown.Import), kwh(shown.Export))
		for phase := uint8(1); phase <= 3; phase++ {
			if v, ok := shown.Points[meter.PointName(meter.Voltage, phase)]; ok {
				s += fmt.Sprintf(", L%d %d.%d V", phase, v/1000, v%1000/100)
			}
		}
		m.say(id+".reading", who+"reading", OK, "", "%s", s)
	}

	// Which way round.
	do := "switch a known load behind it: joulegate meter identify --load 2000W"
	if c.Role == chain.RoleProduction.String() {
		do = "wait for it to produce, or joulegate meter identify while it is switched off and on"
	}
	d, tried := m.Trials.Directions[c.ID]
	switch {
	case !tried || d.Wires != MeterWires(c):
		m.say(id+".direction", who+"direction", NotDone, do, "whether its transformers are the right way round is not known")
	default:
		s, how, remedy := OK, []string{}, ""
		for _, l := range d.Lines {
			name := "total"
			if l.Phase > 0 {
				name = fmt.Sprintf("L%d", l.Phase)
			}
			how = append(how, fmt.Sprintf("%s %+d W, %s", name, l.StepW, l.Wiring))
			if l.Wiring != identify.Right {
				s, remedy = Fail, "correct the transformers of the lines that are not right (all of them reversed: meters[].invert); then "+do
			}
		}
		m.say(id+".direction", who+"direction", s, remedy, "%s: %s", d.How, strings.Join(how, "; ")).At = d.At
	}
	if v, ok := shown.Points[meter.PointName(meter.PhaseSequence, 0)]; ok {
		s, remedy, order := OK, "", "L1 L2 L3"
		if v < 0 {
			s, remedy, order = Fail, "exchange two of its three lines, with their transformers", "L1 L3 L2"
		}
		m.say(id+".order", who+"order of the phases", s, remedy, "the meter says %s", order)
	}

	// How well it is heard.
	lost := uint64(0)
	if facts.Requests > facts.Answers {
		lost = facts.Requests - facts.Answers
	}
	seen := fmt.Sprintf("%d of %d reads failed, typically answered within %s", lost, facts.Requests, facts.Typical.Round(time.Millisecond))
	wires := "check termination (120 Ohm at both ends), shield, cable length, and that no other master talks"
	switch {
	case facts.Down:
		m.say(id+".errors", who+"line", Fail, wires, "it does not answer; %s", seen)
	case facts.Requests < MinReads:
		m.say(id+".errors", who+"line", NotDone, fmt.Sprintf("wait until it was read %d times", MinReads), "%s", seen)
	case lost*1000 > maxErrors*facts.Requests:
		m.say(id+".errors", who+"line", Fail, wires, "%s", seen)
	case lost*1000 > okErrors*facts.Requests:
		m.say(id+".errors", who+"line", Note, wires, "%s", seen)
	default:
		m.say(id+".errors", who+"line", OK, "", "%s", seen)
	}
}

// identity says what is at a meter's address.
func (m *maker) identity(c *config.Meter, id, what, where string, facts Meter) {
	name := cmp.Or(strings.TrimSpace(facts.Identity.Manufacturer+" "+facts.Identity.Model), strings.TrimSpace(facts.Vendor+" "+facts.Model))
	if s := facts.Identity.Serial; s != "" {
		name += ", serial number " + s
	} else if a := facts.Identity.Hardware; a != "" {
		name += ", hardware address " + a
	}
	do := fmt.Sprintf("%sjoulegate bus scan --line %s", start, c.Line)
	t, tried := m.Trials.Scans[c.Line]
	if !tried || t.Wires != LineWires(m.Config, c.Line) {
		m.say(id, what, NotDone, do, "%s as %s: %s", where, c.Profile, name)
		return
	}
	i := slices.IndexFunc(t.Found, func(f Found) bool { return f.Unit == c.Unit })
	if i < 0 {
		m.say(id, what, Fail, "check its address; then "+do, "%s: nothing answered there when the line was scanned", where).At = t.At
		return
	}
	f := t.Found[i]
	switch {
	case f.Profile == c.Profile:
		m.say(id, what, OK, "", "%s is %s: %s", where, c.Profile, name).At = t.At
	case f.Profile != "":
		m.say(id, what, Fail, "set its profile to "+f.Profile+", or change its address", "%s is configured as %s, and says to be %s", where, c.Profile, f.Profile).At = t.At
	case slices.Contains(f.Fits, c.Profile):
		m.say(id, what, OK, "", "%s is %s by its label; its registers fit %s as well: %s", where, c.Profile, others(f.Fits, c.Profile), name).At = t.At
	default:
		m.say(id, what, Fail, "look at its label, and choose the profile: joulegate meter profiles", "%s does not look like %s", where, c.Profile).At = t.At
	}
}

// others names a few of those that are not v.
func others(all []string, v string) string {
	const few = 4
	rest := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == v })
	if len(rest) > few {
		return strings.Join(rest[:few], ", ") + fmt.Sprintf(" and %d more", len(rest)-few)
	}
	return strings.Join(rest, ", ")
}

// Settled is how long meters must contradict each other before it counts: they
// are read one after the other, and a vehicle's current rises in a second.
const Settled = 10 * time.Second

// House is what the house takes beside its chargers, its sun and its battery,
// by a snapshot, and how exact that is. Not known unless every meter of it is
// good.
func House(s board.Snapshot) (house, slack meter.Watt, known bool) {
	gross, sites := meter.Watt(0), 0
	for _, m := range s.Meters {
		switch m.Role {
		case chain.RoleSite.String():
			house += m.PowerW
			sites++
		case chain.RoleProduction.String(), chain.RoleCharger.String(), chain.RoleStorage.String():
			house -= m.PowerW
		default:
			continue
		}
		if m.Quality != meter.Good.String() {
			return 0, 0, false
		}
		gross = max(gross, m.PowerW, -m.PowerW)
	}
	return house, 200 + gross/10, sites == 1
}

// balance compares the meters with each other: what the house takes cannot be
// negative.
func (m *maker) balance() {
	house, _, known := House(m.Snapshot)
	switch {
	case !known:
		m.say("meters.balance", "meters against each other", Skip, "", "no reading of the house connection to compare with")
	case m.Contradicted >= Settled:
		m.say("meters.balance", "meters against each other", Fail, "find the meter that is reversed, or on another line: joulegate meter identify --load 2000W", "for %s now the house would take less than nothing beside chargers, sun and battery: %d W", m.Contradicted.Round(time.Second), house)
	default:
		m.say("meters.balance", "meters against each other", OK, "", "the house takes %d W beside chargers, sun and battery", max(house, 0))
	}
}

func (m *maker) limits() {
	c := m.Config
	switch fuse := c.Site.Fuse; {
	case fuse > 0:
		m.say("limits.fuse", "main fuse", OK, "", "%s per phase", ampere(fuse))
	case len(c.Chargers) > 0:
		m.say("limits.fuse", "main fuse", Note, "set site.fuse_ma to the main fuse, unless something else guards it", "not watched: chargers do not keep the house below it")
	default:
		m.say("limits.fuse", "main fuse", Skip, "", "not watched, and no charger")
	}
	for _, k := range c.Circuits {
		m.say("limits.circuit."+k.ID, "circuit "+k.ID, OK, "", "%s per phase below %s, %s kept free", ampere(k.Rating), k.Parent, ampere(k.Reserve))
	}
	if c.Feeder.Shared() {
		m.say("limits.feeder", "shared feeder", OK, "", "%s per phase are this gateway's share", ampere(c.Feeder.Share))
	}
	rating := m.Board.Rating
	for i := range c.Chargers {
		h := &c.Chargers[i]
		top := rating.MaxCurrent
		if p, ok := m.Board.Pin(h.Relay); ok && p.MaxCurrent > 0 {
			top = min(top, p.MaxCurrent)
		}
		id, what := fmt.Sprintf("limits.charger.%d", h.ID), fmt.Sprintf("charger %d", h.ID)
		seen := fmt.Sprintf("%d phases, %s to %s each, behind %s; the board carries %s", h.Phases, ampere(config.MinCurrent), ampere(h.MaxCurrent), h.Circuit, ampere(top))
		if h.Relay == "" {
			seen = fmt.Sprintf("%d phases, %s to %s each, behind %s; switched by the wallbox", h.Phases, ampere(config.MinCurrent), ampere(h.MaxCurrent), h.Circuit)
		}
		if h.Relay != "" && h.MaxCurrent > top || h.MaxCurrent < config.MinCurrent { // Validate refuses it
			m.say(id, what, Fail, "lower max_current_ma", "%s", seen)
			continue
		}
		m.say(id, what, OK, "", "%s", seen)
	}
	if d := c.Dimming; d.On() {
		m.say("limits.dimming", "orders of the utility", OK, "", "a charger keeps %d W, however low the order", d.PerDevice)
	}
}

func (m *maker) failsafe() {
	c := m.Config
	for i := range c.Chargers {
		h := &c.Chargers[i]
		id, what := fmt.Sprintf("failsafe.charger.%d", h.ID), fmt.Sprintf("charger %d, gateway gone", h.ID)
		if h.Relay != "" {
			m.say(id+".relay", what, OK, "", "the relay opens %s after the control loop was last verified", c.Timing.Watchdog)
		}
		if !h.EVSE.Fitted() {
			continue
		}
		f := m.Failsafe[h.ID]
		set := fmt.Sprintf("joulegate charger failsafe %d --set 0A --timeout 30s", h.ID)
		switch {
		case f.Err != "" && h.Relay != "":
			m.say(id+".wallbox", what, OK, "", "its charge controller has no such setting; the relay opens: %s", f.Err)
		case f.Err != "":
			m.say(id+".wallbox", what, Fail, "check the line, and again: "+set, "it could not be read back: %s", f.Err)
		case f.Timeout == 0 && h.Relay != "":
			m.say(id+".wallbox", what, Note, set, "its charge controller does not watch the gateway; the relay opens")
		case f.Timeout == 0 && f.Fixed:
			m.say(id+".wallbox", what, Fail, "fit a contactor that this gateway switches, or another wallbox", "the wallbox does not watch the gateway, and cannot be told to")
		case f.Timeout == 0:
			m.say(id+".wallbox", what, Fail, set, "the wallbox does not watch the gateway: it would go on as it was told last")
		default:
			m.say(id+".wallbox", what, OK, "", "read back: it falls to %s after %s without the gateway", ampere(f.Current), f.Timeout)
		}
	}
	m.say("failsafe.meter", "meter silent", OK, "", "6 A after %s, off after another %s", c.Timing.StaleAfter, c.Timing.StaleOff)
	if d := c.Dimming; d.On() {
		m.say("failsafe.dimming", "the utility's line silent", OK, "", "%s after it was last heard chargers are dimmed for %s", d.Silence, d.Failsafe)
	}
}

func (m *maker) operation() {
	g := m.Grid
	switch {
	case g.Halted != "":
		m.say("operation.grid", "microgrid", Fail, "joulegate ledger status", "the ledger has halted: %s", g.Halted)
	case !g.Member:
		m.say("operation.grid", "microgrid", Fail, "joulegate grid join TOKEN", "this gateway is no member of %s", m.Gateway.Chain)
	case g.Height == 0:
		m.say("operation.grid", "microgrid", Fail, "joulegate peer ls: is the network there, are neighbours' addresses right?", "member of %s, and has no block of its ledger", m.Gateway.Chain)
	case g.Members > 1 && g.Connected == 0:
		m.say("operation.grid", "microgrid", Fail, "joulegate peer ls; check network and firewall (TCP 4470)", "member of %s, and connected to none of %d neighbours", m.Gateway.Chain, g.Members-1)
	default:
		m.say("operation.grid", "microgrid", OK, "", "member of %s, %d of %d neighbours connected, block %d", m.Gateway.Chain, g.Connected, g.Members-1, g.Height)
	}
	switch b := m.Broker; {
	case !b.Connected:
		m.say("operation.broker", "MQTT broker", Fail, "check mqtt.broker, user, password and network; joulegate works on without", "%s is not connected", b.Address)
	case b.Embedded:
		m.say("operation.broker", "MQTT broker", OK, "", "the embedded one serves at %s", b.Address)
	default:
		m.say("operation.broker", "MQTT broker", OK, "", "%s is connected", b.Address)
	}
	m.guarded()
	const again = "joulegate backup FILE, and keep it elsewhere"
	switch at := m.Trials.Backup; {
	case at.IsZero():
		m.say("operation.backup", "backup", NotDone, again, "keys and settings of this gateway are nowhere else")
	case m.Made.Sub(at) > oldBackup:
		m.say("operation.backup", "backup", Note, again, "the last one is %d days old", int(m.Made.Sub(at).Hours())/24).At = at
	default:
		m.say("operation.backup", "backup", OK, "", "made").At = at
	}
}

func (m *maker) guarded() {
	s := m.Guard
	if s.Mode == "off" || s.Mode == "" {
		m.say("operation.guard", "guard", Note, "guard: {mode: observe} watches this gateway, and changes nothing", "switched off")
		return
	}
	var sees, blind []string
	for _, c := range s.Coverage {
		if c.Level == guard.None {
			blind = append(blind, strings.TrimSuffix(c.Sensor.String()+": "+c.Reason, ": "))
		} else {
			sees = append(sees, c.Sensor.String()+" "+c.Level)
		}
	}
	seen := s.Mode + ": " + cmp.Or(strings.Join(sees, ", "), "no sensor sees anything")
	if len(blind) > 0 {
		m.say("operation.guard", "guard", Note, "joulegate guard status", "%s; blind: %s", seen, strings.Join(blind, "; "))
		return
	}
	m.say("operation.guard", "guard", OK, "", "%s", seen)
}

func ampere(a meter.MilliAmpere) string {
	if a%1000 == 0 {
		return fmt.Sprintf("%d A", a/1000)
	}
	return fmt.Sprintf("%d.%d A", a/1000, a%1000/100)
}

func kwh(e meter.WattHour) string {
	sign := ""
	if e < 0 {
		sign, e = "-", -e
	}
	return fmt.Sprintf("%s%d.%03d kWh", sign, e/1000, e%1000)
}
