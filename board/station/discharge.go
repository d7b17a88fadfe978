package station

import (
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/discharge"
	"github.com/joulegate/joulegate/meter/session"
)

// Discharge is what a charger may take out of vehicles. Its Rules.Allowed is
// not looked at: Permit says it.
type Discharge struct {
	Rules discharge.Rules
	// Permit says why the installer's statement does not count at a time, or
	// nil. It is asked at each turn, because statements expire; it must not
	// block. Nil: nobody has allowed it.
	Permit func(at time.Time) error
}

func (d *Discharge) permitted(at time.Time) error {
	if d.Permit == nil {
		return fmt.Errorf("no installer has signed a statement for it")
	}
	return d.Permit(at)
}

// checkDischarge says what keeps the charger's hardware from it.
func (h *Charger) checkDischarge() error {
	if h.Discharge == nil {
		return nil
	}
	dev, ok := h.Limiter.(drivers.Discharger)
	if !ok {
		return fmt.Errorf("charger %d: its wallbox cannot discharge", h.ID)
	}
	if least, _ := dev.PowerRange(); least > -1000 {
		return fmt.Errorf("charger %d: its wallbox cannot discharge: its power begins at %d mW", h.ID, least)
	}
	if err := h.Discharge.Rules.Check(); err != nil {
		return fmt.Errorf("charger %d: %w", h.ID, err)
	}
	return nil
}

// Duty is energy that a session has promised to one buyer for one slot.
type Duty struct {
	Session  chain.ID
	Contract string
	Slot     chain.Slot
	Wh       meter.WattHour
}

// MaxDuties is how many promises are known at a time; later slots' are left
// out, and come with a later call.
const MaxDuties = 1024

// Duties says what sessions have promised, by slot ascending and each slot's
// in the order in which it is served. It replaces what was said before and
// does not block.
func (s *Station) Duties(all []Duty) {
	all = slices.Clone(all[:min(len(all), MaxDuties)])
	s.mail.put(func() { s.mail.duties = &all })
}

// sale is a session that may sell, and what became of it.
type sale struct {
	state discharge.State
	out   discharge.Output
	short meter.WattHour // promised and not delivered, so far
	told  string         // the last cause on record
}

// sells reports whether the driver has signed that energy may be taken out.
func (c *charger) sells() bool { return c.Discharge != nil && c.quote.SellWh > 0 }

// sold is what the session has given so far.
func (c *charger) sold() meter.WattHour {
	if c.seq == 0 {
		return 0 // no begin register yet
	}
	return max(0, c.last.Export-c.begin.Export)
}

// takeOut decides what is to be taken out of a vehicle now. The session
// machine has the last word.
func (s *Station) takeOut(c *charger) (p session.Setpoint) {
	if !c.sells() || c.st.Phase == session.Idle || c.st.Phase >= session.Stopping {
		return p
	}
	left := c.quote.SellWh - c.sold()
	r, in := c.Discharge.Rules, s.dischargeInput(c)
	err := c.Discharge.permitted(s.wall)
	r.Allowed = err == nil && !s.clockUnset()
	was := c.sale.out
	if at, _, ok := c.sale.state.Begun(); (!ok || at != in.Slot) && len(in.Contracts) > 0 {
		s.dirty = true // a restart must not deliver the slot's energy again
	}
	c.sale.state, c.sale.out = discharge.Step(r, c.sale.state, in, s.now)
	out := &c.sale.out
	switch {
	case err != nil:
		out.Why = "discharging is not allowed: " + err.Error()
	case left <= 0:
		out.Power, out.Why = 0, fmt.Sprintf("the %d Wh that the driver sells are given", c.quote.SellWh)
	case out.Power > 0:
		// What flows until the next reading is acted upon stays within what
		// the driver sells.
		out.Power = min(out.Power, meter.Watt(int64(left)*int64(time.Hour)/int64(max(time.Second, c.Session.Horizon))))
	}
	s.shortfall(c)
	if out.Why != was.Why {
		s.changed = true
	}
	if out.Withdraw && len(in.Contracts) > 0 && out.Why != c.sale.told {
		s.evidence("session.withdraw", 2, c.st.ID.String(), "promises of this vehicle cannot be kept: "+out.Why)
		c.sale.told = out.Why
	}
	// Between two slots' promises, and when one is kept early, the circuit
	// stays closed: contactors and converters wear by switching.
	stay := len(in.Contracts) > 0 && !out.Withdraw && left > 0
	return session.Setpoint{Back: out.Power, Stay: stay, Sells: left > 0}
}

func (s *Station) dischargeInput(c *charger) discharge.Input {
	r := &c.meter.last
	now := s.slotOf(s.wall.UnixMilli())
	in := discharge.Input{
		Ready:  c.wants() && c.st.Confirmed && r.Quality == meter.Good,
		SoCAt:  r.Mono,
		Export: c.last.Export,
		Slot:   int64(now),
		Left:   time.Duration(now.End(s.cfg.SlotSeconds)-s.wall.UnixMilli()) * time.Millisecond,
		Room:   s.most(c),
	}
	soc, known := r.Value(meter.StateOfCharge, 0)
	if in.SoC = soc; !known {
		in.SoCAt = s.now + 1 // never known
	}
	if ahead := c.meter.Interval + s.cfg.Tick; in.Left > 2*ahead {
		in.Left -= ahead // what is ordered now is metered a reading later
	}
	if c.plan.on {
		in.Need = max(0, c.plan.goal.Wh-c.st.Wh())
	}
	if p, ok := r.Power(); ok {
		in.Vehicle = max(0, -p.Watts())
	}
	in.SiteAt = s.now + 1
	if m := s.site; m != nil && m.seen && m.last.Quality == meter.Good {
		p, ok := m.last.Power()
		if in.Site = p.Watts(); ok {
			in.SiteAt = m.last.Mono
		}
	}
	for _, d := range s.duties {
		if d.Session == c.st.ID && d.Slot == now {
			in.Contracts = append(in.Contracts, discharge.Contract{ID: d.Contract, Wh: d.Wh})
		}
	}
	return in
}

// shortfall puts on record what an ended slot's contracts are missing.
func (s *Station) shortfall(c *charger) {
	for _, v := range c.sale.out.Short {
		c.sale.short += v.Promised - v.Delivered
		s.changed = true
		s.evidence("session.shortfall", 2, c.st.ID.String(), fmt.Sprintf("contract %s, slot %d: %d of %d Wh delivered: %s", v.Contract, v.Slot, v.Delivered, v.Promised, v.Cause))
	}
}

// endSale accounts the running slot of a session that ends: nothing more
// comes from this vehicle.
func (s *Station) endSale(c *charger) {
	if !c.sells() {
		return
	}
	in := s.dischargeInput(c)
	in.Ready = false
	c.sale.state, c.sale.out = discharge.Step(c.Discharge.Rules, c.sale.state, in, s.now)
	s.shortfall(c) // of a slot that has just ended
	in.Slot++
	c.sale.state, c.sale.out = discharge.Step(c.Discharge.Rules, c.sale.state, in, s.now)
	s.shortfall(c)
}

func (s *Station) showSale(c *charger) *board.Sale {
	if !c.sells() || c.st.Phase == session.Idle {
		return nil
	}
	v := &board.Sale{
		PowerW: c.st.Back, Why: c.sale.out.Why, SellWh: c.quote.SellWh, SellLimit: c.quote.SellLimit,
		SoldWh: c.sold(), Tradable: c.sale.out.Tradable, Short: c.sale.short,
	}
	for _, d := range s.duties {
		if d.Session == c.st.ID {
			v.Promised += d.Wh
		}
	}
	if soc, ok := c.meter.last.Value(meter.StateOfCharge, 0); ok {
		v.SoC = &soc
	}
	if c.sale.out.Power > 0 && c.st.Back == 0 && c.st.Why != "" {
		v.Why = c.st.Why // what the session machine waits for
	}
	return v
}
