package station

import (
	"context"
	"fmt"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
)

// allot decides what each charger may offer. Its mode says what it could use,
// the circuits and the utility what it gets of it:
//
//	mode, plan, surplus ─► setpoint ─want─► circuit ─grant─► session ─offer─►
//	                                           ▲
//	                          fuses, other chargers, dimming
func (s *Station) allot() {
	s.hearUtility()
	in := circuit.Input{Meters: make([]circuit.Reading, len(s.cfg.Circuits)), Dim: s.dimmed}
	for i, id := range s.cfg.CircuitMeters {
		if m := s.meter(id); m != nil && m.seen && m.last.Quality == meter.Good {
			var known bool
			in.Meters[i].Current, known = circuit.Currents(&m.last, 3)
			in.Meters[i].Good, in.Meters[i].At = known, m.last.Mono
		}
	}
	sun := s.sunshine()
	in.Pool = meter.Watt(sun.spare / 1000)
	for _, c := range s.chargers {
		in.Demands = append(in.Demands, s.demand(c, sun))
	}
	s.lease(&in)
	var grants []circuit.Grant
	s.share, grants = circuit.Step(s.tree, s.share, in, s.now)
	for i, c := range s.chargers {
		if grants[i].Why != "" {
			c.why = grants[i].Why
		}
		p := session.Setpoint{Limit: grants[i].Limit, Planned: c.plan.waits, Edge: c.plan.edge}
		if v := s.takeOut(c); v.Back > 0 || v.Stay || v.Sells && c.quote.MaxWh == 0 {
			p = v
			p.Planned = v.Back == 0
			c.why = c.sale.out.Why
		} else {
			p.Sells = v.Sells
		}
		s.step(c, p)
	}
}

// lease puts what the leader of a shared feeder allows into the demands, and
// remembers what to ask it for.
func (s *Station) lease(in *circuit.Input) {
	if s.cfg.Lease == nil {
		return
	}
	ids := make([]uint8, len(s.chargers))
	asks := make([]circuit.Ask, len(s.chargers))
	for i, c := range s.chargers {
		d := in.Demands[i]
		ids[i] = c.ID
		asks[i] = circuit.Ask{ID: c.ID, Want: d.Want, Phases: d.Phases, Draw: d.Draw, Age: max(0, s.now-d.DrawAt)}
	}
	s.asks.Store(&asks)
	caps, leased := s.cfg.Lease(ids, s.now)
	in.Leased = make([]bool, len(s.cfg.Circuits))
	if k := s.tree.Circuit(config.FeederCircuit); k >= 0 {
		in.Leased[k] = leased
	}
	for i := range caps {
		in.Demands[i].Cap = caps[i]
	}
}

// Asks returns what the chargers want of a shared feeder, and do draw. It may
// be called from any goroutine.
func (s *Station) Asks() []circuit.Ask {
	if p := s.asks.Load(); p != nil {
		return *p
	}
	return nil
}

// sunshine is what the chargers in surplus mode share.
type sunshine struct {
	in    setpoint.Input // what is the same for all of them
	spare meter.MilliWatt
	drawn meter.MilliWatt // by all of them
	least meter.MilliWatt // of those that are on
}

func (s *Station) sunshine() sunshine {
	var v sunshine
	m := s.site
	if m == nil || !m.seen || s.now-m.good > s.cfg.Sharing.StaleAfter {
		return v
	}
	v.in.SiteKnown = true
	v.in.Site, _ = m.last.Power()
	if o := s.meter(s.cfg.Battery); o != nil && o.last.Quality == meter.Good && s.now-o.good <= s.cfg.Sharing.StaleAfter {
		p, _ := o.last.Value(meter.BatteryPower, 0)
		v.in.Battery = meter.MilliWatt(p)
		v.in.SoC, _ = o.last.Value(meter.StateOfCharge, 0)
	}
	rules := setpoint.Rules{}
	for _, c := range s.chargers {
		if c.mode != setpoint.Surplus {
			continue
		}
		rules = c.Setpoint
		p, _ := c.meter.last.Power()
		v.drawn += max(0, p)
		if c.set.Limit > 0 {
			v.least += setpoint.MinPower(c.inUse())
		}
	}
	v.spare = setpoint.Spare(rules, v.in, v.drawn)
	return v
}

// inUse is the number of phases the charger uses now.
func (c *charger) inUse() int {
	if n := c.phases.now; n > 0 {
		return n
	}
	return c.Session.Phases
}

// demand is what a charger could use and does use.
func (s *Station) demand(c *charger, sun sunshine) circuit.Demand {
	d := circuit.Demand{Cap: -1, Phases: c.phases.now}
	in := sun.in
	in.Mode, in.Authorised, in.Limit, in.Phases = c.mode, c.st.Confirmed, c.limit, c.inUse()
	in.Charger, _ = c.meter.last.Power()
	in.Draw = c.st.Current
	if c.mode == setpoint.Surplus {
		d.Surplus = true
		in.Charger = sun.drawn
		in.Others = sun.least
		if c.set.Limit > 0 {
			in.Others -= setpoint.MinPower(c.inUse())
		}
	}
	s.follow(c, &in)
	c.set, c.why = setpoint.Step(c.Setpoint, c.set, in, s.now)
	if c.wants() {
		d.Want = c.set.Limit
	}
	if hold, why := s.switchPhases(c, sun); hold {
		d.Want, c.why = 0, why
	}
	if r := &c.meter.last; r.Quality == meter.Good {
		d.Draw, d.DrawKnown = circuit.Currents(r, c.Session.Phases)
		d.DrawAt = r.Mono
		v, known := volts(r, c.Session.Phases)
		for _, mv := range v[:known] {
			d.Voltage = max(d.Voltage, mv)
		}
	}
	return d
}

// wants reports whether a share of the circuit would be used.
func (c *charger) wants() bool {
	switch c.st.Phase {
	case session.Authorised, session.Charging, session.Suspended:
	default:
		return false
	}
	return c.st.Fault == session.NoFault && (!c.Session.Pilot || c.st.Vehicle != drivers.StateA)
}

// phases is a charger's change between one and three phases.
type phases struct {
	now   int // read back; 0: not known, or it cannot be switched
	state setpoint.SwitchState
}

// switchPhases moves a change of phases on. While hold is true nothing may be
// offered.
func (s *Station) switchPhases(c *charger, sun sunshine) (hold bool, why string) {
	if !c.Switch.Allowed || c.limiter == nil || c.phases.now == 0 {
		return false, ""
	}
	p := &c.phases
	in := setpoint.SwitchInput{
		Phases: p.now, Current: c.st.Current, CurrentAt: c.meter.good, ChargingAt: c.limiter.seenAt(),
		Charging: c.st.Vehicle != drivers.StateA && c.st.Vehicle != drivers.StateB,
	}
	in.Want = c.Session.Phases // sun apart, as many as there are
	if c.mode == setpoint.Surplus {
		in.Want = p.now
		if sun.in.SiteKnown && c.wants() {
			mine := sun.spare - sun.least
			if c.set.Limit > 0 {
				mine += setpoint.MinPower(c.inUse())
			}
			p.state, in.Want = setpoint.WantPhases(c.Switch, p.state, mine, p.now, s.now)
		}
	}
	was := p.state.Stage
	var order int
	p.state, hold, order, why = setpoint.StepSwitch(c.Switch, p.state, in, s.now)
	if order > 0 {
		c.limiter.switchTo(order)
		s.evidence("charger.phases", 1, chargerName(c.ID), fmt.Sprintf("told to switch from %d to %d phases", p.now, order))
	}
	if p.state.Stage == setpoint.Broken && was != setpoint.Broken {
		s.evidence("charger.phases_stuck", 3, chargerName(c.ID), fmt.Sprintf("told to switch to %d phases, %d are in use", p.state.Target, p.now))
	}
	return hold, why
}

// hearUtility looks at the contact of the utility and keeps its orders.
func (s *Station) hearUtility() {
	if dev := s.cfg.DimContact; dev != nil {
		on, err := dev.Active()
		e := circuit.DimEvent{Source: circuit.Contact, Lost: err != nil}
		if on && err == nil {
			e.Limit = s.cfg.Dim.PerDevice
		}
		s.dim = circuit.HearDim(s.dim, e, s.now)
	}
	was := s.dimmed
	s.dim, s.dimmed = circuit.StepDim(s.cfg.Dim, s.dim, s.now)
	switch {
	case s.dimmed == was:
	case s.dimmed.PerDevice == 0:
		s.changed = true
		s.evidence("utility.released", 1, "", "no limit of the utility is in force; before: "+was.Why)
	default:
		s.changed = true
		s.evidence("utility.dimmed", 2, "", fmt.Sprintf("at most %d W for each charger, %d W for all (0: no limit): %s", s.dimmed.PerDevice, s.dimmed.Total, s.dimmed.Why))
	}
}

// Dim takes an order of the utility: at most limit for each charger, 0 for
// none, for so long or, with 0, until the next order. It only lowers.
func (s *Station) Dim(ctx context.Context, from circuit.Source, limit meter.Watt, d time.Duration) error {
	return s.command(ctx, func(reply func(error)) {
		if limit < 0 || d < 0 {
			reply(refuse(Negative, "%d W for %s: neither may be negative", limit, d))
			return
		}
		s.dim = circuit.HearDim(s.dim, circuit.DimEvent{Source: from, Limit: limit, For: d}, s.now)
		reply(nil)
	})
}
