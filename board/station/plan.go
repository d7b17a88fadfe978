package station

import (
	"context"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/plan"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
)

// planEach is the time between two looks at a plan.
const planEach = time.Second

// planned is a session's goal and what became of it. Its zero value has none.
type planned struct {
	on    bool
	goal  plan.Goal
	state plan.State
	out   plan.Output
	at    time.Duration // of the last step
	ever  bool
	waits bool   // the plan means 0 A
	edge  string // what made it rise from 0, if others rise with it
	told  string // the shortfall as reported last
}

// wish is the goal of a quote that nobody has accepted yet.
type wish struct {
	id   chain.ID
	goal plan.Goal
}

// offered is what can be bought in the slots to come.
type offered struct {
	slots   []plan.Slot
	version uint64
}

// Departure is a goal of every day, for sessions that name none.
type Departure struct {
	Minute   int // of the day, on the gateway's clock
	Wh       meter.WattHour
	MaxPrice chain.NanoPerWh
}

// Offers says what can be bought in the slots to come, ascending, by whom it
// may be charged at each price. Version changes when they do. It does not
// block; the slots must not be changed afterwards.
func (s *Station) Offers(slots []plan.Slot, version uint64) {
	s.mail.put(func() { s.mail.offers = &offered{slots, version} })
}

// Plan says when a session of that goal would charge at a charger, if nothing
// changed. It promises nothing.
func (s *Station) Plan(ctx context.Context, connector uint8, g plan.Goal) (p plan.Plan, err error) {
	err = s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		if err == nil {
			slots := make([]plan.Slot, 0, len(s.offers.slots))
			now := s.wall.UnixMilli()
			for _, v := range s.offers.slots {
				if v.End > now {
					v.Start = max(v.Start, now)
					v.Room = min(plan.MaxWh, plan.Room(s.most(c), v.End-v.Start))
					slots = append(slots, v)
				}
			}
			p, err = plan.Make(slots, g)
		}
		reply(err)
	})
	return p, err
}

// SetGoal says by when a quote's or a session's energy is wanted, and at which
// price at most. It counts in mode market. A goal of 0 Wh takes it away.
func (s *Station) SetGoal(ctx context.Context, id chain.ID, g plan.Goal) error {
	return s.command(ctx, func(reply func(error)) {
		if g.Wh < 0 || g.Wh > MaxWh || g.MaxPrice < 0 {
			reply(refuse(EnergyLimit, "%d Wh at %d nano/Wh: want up to %d Wh and no negative price", g.Wh, g.MaxPrice, MaxWh))
			return
		}
		for _, c := range s.chargers {
			if c.st.Phase != session.Idle && c.st.ID == id {
				g.Wh = min(g.Wh, c.quote.MaxWh)
				c.plan = planned{on: g.Wh > 0, goal: g}
				s.dirty, s.changed = true, true
				s.acks = append(s.acks, reply)
				return
			}
		}
		for _, q := range s.quotes {
			if q.ID == id {
				if len(s.goals) == MaxQuotes {
					s.goals = s.goals[1:]
				}
				g.Wh = min(g.Wh, q.MaxWh)
				s.goals = append(s.goals, wish{id, g})
				reply(nil)
				return
			}
		}
		reply(refuse(NoSession, "there is no open session or quote %s", id))
	})
}

// aim gives a session that opens its goal.
func (s *Station) aim(c *charger) {
	c.plan = planned{}
	for i, w := range s.goals {
		if w.id == c.quote.ID {
			s.goals = append(s.goals[:i:i], s.goals[i+1:]...)
			c.plan = planned{on: w.goal.Wh > 0, goal: w.goal}
			return
		}
	}
	if d := c.Departure; d.Wh > 0 {
		y, m, day := s.wall.Date()
		by := time.Date(y, m, day, 0, d.Minute, 0, 0, s.wall.Location())
		if !by.After(s.wall) {
			by = time.Date(y, m, day+1, 0, d.Minute, 0, 0, s.wall.Location())
		}
		c.plan = planned{on: true, goal: plan.Goal{Wh: min(d.Wh, c.quote.MaxWh), By: by.UnixMilli(), MaxPrice: d.MaxPrice}}
	}
}

// most is the power that a charger can have at best: what others take of its
// circuits shows in the energy of the last minute, and the plan follows it.
func (s *Station) most(c *charger) meter.Watt {
	a := c.Session.MaxCurrent
	if c.limit > 0 {
		a = min(a, c.limit)
	}
	for i := s.tree.Circuit(c.Circuit); i >= 0; i = s.tree.Circuit(s.cfg.Circuits[i].Parent) {
		if r := s.cfg.Circuits[i]; r.Rating > 0 {
			a = min(a, r.Rating-r.Reserve)
		}
	}
	w := meter.Watt(int64(a) * 230 * int64(c.inUse()) / 1000)
	if d := s.dimmed.PerDevice; d > 0 {
		w = min(w, d)
	}
	return w
}

// follow puts the plan's current of this moment into the setpoint.
func (s *Station) follow(c *charger, in *setpoint.Input) {
	p := &c.plan
	p.edge = ""
	if !p.on || c.mode != setpoint.Market || c.st.Phase == session.Idle {
		p.waits = false
		return
	}
	if !p.ever || s.now-p.at >= planEach {
		was, ever := p.out.Current, p.ever
		p.at, p.ever = s.now, true
		_, zone := s.wall.Zone()
		p.state, p.out = plan.Step(plan.Order{Goal: p.goal, Phases: c.inUse(), Zone: zone / 60}, p.state, plan.Input{
			Now: s.wall.UnixMilli(), Done: c.st.Wh(), Power: s.most(c), Offers: s.offers.slots, Version: s.offers.version,
		})
		if p.out.Report != "" && p.out.Report != p.told {
			p.told, s.changed = p.out.Report, true
			s.evidence("session.plan", 2, c.st.ID.String(), p.out.Report)
		}
		if ever && was == 0 && p.out.Current > 0 {
			p.edge = "a slot's edge or a change of offers"
		}
	}
	in.Planned, in.Plan, in.PlanWhy = true, p.out.Current, p.out.Why
	p.waits = p.out.Current == 0
}

func (p *planned) show(zone int) *board.Plan {
	if !p.on {
		return nil
	}
	v := p.state.Plan
	v.Goal = p.goal // the plan's own is what was left when it was made
	return ShowPlan(v, zone)
}

// ShowPlan tells people about a plan; their clocks are zone minutes ahead of
// UTC.
func ShowPlan(p plan.Plan, zone int) *board.Plan {
	v := &board.Plan{Wh: p.Wh, MaxPrice: p.MaxPrice, Planned: p.Energy, Cost: p.Cost, Short: p.Short, Report: p.Report(zone), Shares: []board.PlanShare{}}
	if p.By > 0 {
		v.By = time.UnixMilli(p.By)
	}
	for _, h := range p.Shares {
		v.Shares = append(v.Shares, board.PlanShare{From: time.UnixMilli(h.Start), To: time.UnixMilli(h.End), Wh: h.Wh, Local: h.Local, Cost: h.Cost})
	}
	return v
}
