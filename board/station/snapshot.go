package station

import (
	"fmt"
	"sort"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/session"
)

// publish hands out a snapshot after a change, and now and then.
func (s *Station) publish() {
	if !s.changed && s.seq > 0 && s.now-s.shown < publishEach {
		return
	}
	s.changed, s.shown = false, s.now
	s.seq++
	s.cfg.Publisher.Publish(s.snapshot())
}

func (s *Station) snapshot() board.Snapshot {
	v := board.Snapshot{Gateway: s.cfg.Name, Seq: s.seq, Time: s.wall, Live: !s.pulse.stalled.Load(), Meters: []board.Meter{}, Chargers: []board.Charger{}}
	for _, m := range s.meters {
		v.Meters = append(v.Meters, m.show())
	}
	for _, c := range s.chargers {
		v.Chargers = append(v.Chargers, s.showCharger(c))
	}
	v.Alarms = s.alarms()
	if d := s.dimmed; d.PerDevice > 0 {
		v.Utility = fmt.Sprintf("at most %d W for each charger: %s", d.PerDevice, d.Why)
	}
	return v
}

func (m *meterState) show() board.Meter {
	v := board.Meter{ID: m.ID, Role: m.Role.String(), Profile: m.last.Profile, Quality: meter.Stale.String()}
	if m.last.Device == "" {
		return v
	}
	v.Time, v.Quality = time.UnixMilli(m.last.Wall), m.last.Quality.String()
	p, _ := m.last.Power()
	i, _ := m.last.Import()
	e, _ := m.last.Export()
	v.PowerW, v.Import, v.Export = p.Watts(), i.WattHours(), e.WattHours()
	v.Points = make(map[string]int64, len(m.last.Points))
	for _, p := range m.last.Points {
		v.Points[p.Name()] = p.Value
	}
	return v
}

func (s *Station) showCharger(c *charger) board.Charger {
	v := board.Charger{
		ID: c.ID, Meter: c.Meter, State: c.st.Phase.String(), Why: c.st.Why, Vehicle: c.st.Vehicle.String(), Mode: c.mode.String(),
		Limit: c.st.Offered, Current: c.st.Current, Relay: c.st.Relay, Fault: c.st.Fault.String(), LastStop: c.stopped,
		MaxLimit: c.Session.MaxCurrent, Phases: c.inUse(), Actuator: c.actuator(), Cause: c.st.Cause, Offline: c.st.Offline(),
	}
	if wait := c.st.StartsAt - s.now; wait > 0 {
		v.StartsIn = int64((wait + time.Second - 1) / time.Second)
	}
	if c.Session.Temp && c.st.Heat != 0 {
		heat := int64(c.st.Heat)
		v.Heat = &heat
	}
	if c.Session.Phases == 3 {
		v.Order = "not judged: the meter does not report it"
	}
	if p, ok := c.meter.last.Power(); ok {
		v.PowerW = p.Watts()
	}
	if c.st.Phase >= session.Held || c.opening {
		v.Session, v.SessionWh, v.MaxWh, v.Cap = c.quote.ID.String(), c.st.Wh(), c.quote.MaxWh, c.quote.Cap
		_, zone := s.wall.Zone()
		v.Plan = c.plan.show(zone / 60)
		v.Sale = s.showSale(c)
	}
	for i, dev := range [len(wirable)]drivers.Input{c.EStop, c.Earth, c.Feedback, c.Pilot, c.StopButton} {
		if dev != nil {
			v.Contacts = append(v.Contacts, c.wired[i])
		}
	}
	switch {
	case c.st.Phase == session.Charging && c.st.Offered < c.Session.MaxCurrent && c.st.Offered > 0:
		v.Why += fmt.Sprintf(", limited by %s", c.why)
	case c.st.Why == session.NoCurrent:
		v.Why = c.why
	}
	if c.st.Vehicle == drivers.StateUnknown && c.Limiter == nil {
		v.Vehicle = "not known without a charge controller"
	}
	return v
}

// alarms lists what is wrong now, oldest first.
func (s *Station) alarms() []board.Alarm {
	out := []board.Alarm{}
	now := map[string]time.Time{}
	add := func(code, subject, text string) {
		key := code + "/" + subject
		since, known := s.since[key]
		if !known {
			since = s.wall
		}
		now[key] = since
		out = append(out, board.Alarm{Code: code, Subject: subject, Text: text, Since: since})
	}
	for _, m := range s.meters {
		stale := max(10*time.Second, 3*m.Interval)
		if !m.seen || s.now-m.good > stale {
			text := "no good reading for more than " + stale.String()
			if m.last.Reason != "" {
				text += ": " + m.last.Reason
			}
			add("meter.stale", m.ID, text)
		}
	}
	for _, c := range s.chargers {
		id := fmt.Sprint(c.ID)
		if c.st.Fault != session.NoFault {
			add("charger.fault", id, c.st.Fault.String())
		}
		if c.pilotErr != nil {
			add("charger.controller", id, c.pilotErr.Error())
		}
		if c.heatErr != nil {
			add("charger.temperature", id, c.heatErr.Error())
		}
	}
	if s.clockUnset() {
		add("clock", "", "the clock says "+s.wall.UTC().Format(time.DateTime)+", before this microgrid was founded: it is not set")
	}
	if s.offline {
		add("ledger.lost", "", "the ledger takes no records of this gateway; they wait on its disk")
	}
	if s.diskErr != nil {
		add("disk", "", s.diskErr.Error())
	}
	if s.pulse.stalled.Load() {
		add("loop.stalled", "", "the control loop stalled")
	}
	s.since = now
	sort.SliceStable(out, func(i, j int) bool { return out[i].Since.Before(out[j].Since) })
	return out
}
