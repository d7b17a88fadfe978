package station

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
)

var errEnded = errors.New("the control loop has ended")

// command runs f in the loop. f calls reply exactly once, now or later; the
// first reply wins and a caller that has gone is not waited for.
func (s *Station) command(ctx context.Context, f func(reply func(error))) error {
	out := make(chan error, 1)
	reply := func(err error) {
		select {
		case out <- err:
		default:
		}
	}
	select {
	case s.commands <- func() { f(reply) }:
	case <-s.ended:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-out:
		return err
	case <-s.ended:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Station) connector(id uint8) (*charger, error) {
	for _, c := range s.chargers {
		if c.ID == id {
			return c, nil
		}
	}
	return nil, refuse(UnknownCharger, "this gateway has no charger %d%s", id, s.known())
}

// known lists the chargers there are, for whoever named another one.
func (s *Station) known() string {
	if len(s.chargers) == 0 {
		return ": it has none"
	}
	var ids []string
	for _, c := range s.chargers {
		ids = append(ids, fmt.Sprint(c.ID))
	}
	return ": it has " + strings.Join(ids, ", ")
}

// free returns the charger if a session may start there.
func (s *Station) free(id uint8) (*charger, error) {
	c, err := s.connector(id)
	switch {
	case err != nil:
		return nil, err
	case s.clockUnset():
		return nil, refuse(ClockUnset, "the clock says %s, before this microgrid was founded: it is not set, and no price can be dated", s.wall.UTC().Format(time.DateTime))
	case s.draining:
		return nil, refuse(ShuttingDown, "the gateway is shutting down")
	case c.st.Fault != session.NoFault:
		return nil, refuse(Faulted, "charger %d has a latched fault: %s; a person has to repair and clear it: joulegate charger clear %d", id, c.st.Fault, id)
	case active(c.EStop):
		return nil, refuse(Stopped, "charger %d: the emergency stop is pressed, or its wire is cut", id)
	case c.st.Phase == session.Testing:
		return nil, refuse(Busy, "charger %d: a person tests its relay", id)
	case c.opening || c.st.Phase != session.Idle:
		return nil, refuse(Busy, "charger %d has session %s", id, c.quote.ID)
	case c.mode == setpoint.Off:
		return nil, refuse(SwitchedOff, "charger %d is switched off: its mode is off", id)
	}
	return c, nil
}

// Quote offers a price to a driver. What the driver signs is exactly the
// canonical encoding of the returned quote. terms set what else the driver
// has asked for, before the quote is checked.
func (s *Station) Quote(ctx context.Context, connector uint8, driver chain.Key, maxWh meter.WattHour, limit chain.NanoPerWh, redeem bool, terms ...func(*chain.Quote)) (chain.Quote, error) {
	var q chain.Quote
	err := s.command(ctx, func(reply func(error)) {
		var err error
		q, err = s.quote(connector, driver, maxWh, limit, redeem, terms)
		reply(err)
	})
	if err != nil {
		return chain.Quote{}, err
	}
	return q, nil
}

func (s *Station) quote(connector uint8, driver chain.Key, maxWh meter.WattHour, limit chain.NanoPerWh, redeem bool, terms []func(*chain.Quote)) (chain.Quote, error) {
	c, err := s.free(connector)
	if err != nil {
		return chain.Quote{}, err
	}
	if maxWh < 0 || maxWh > MaxWh {
		return chain.Quote{}, refuse(EnergyLimit, "%d Wh is outside 0..%d", maxWh, MaxWh)
	}
	hold, err := chain.Cost(limit, maxWh)
	if err != nil || limit <= 0 {
		return chain.Quote{}, refuse(Unpriced, "%d Wh at %d nano/Wh cannot be priced", maxWh, limit)
	}
	q := chain.Quote{
		Version: chain.Version, Chain: s.cfg.ChainID, Gateway: s.cfg.Device, Connector: connector, Driver: driver,
		Created: s.wall.UnixMilli(), Expires: s.wall.Add(s.cfg.QuoteLife).UnixMilli(),
		MaxWh: maxWh, Cap: limit, Hold: hold, Redeem: redeem,
	}
	if _, err := io.ReadFull(s.cfg.Random, q.ID[:]); err != nil {
		return chain.Quote{}, fmt.Errorf("quote: %w", err)
	}
	for _, set := range terms {
		set(&q)
	}
	switch {
	case maxWh == 0 && q.SellWh == 0:
		return chain.Quote{}, refuse(EnergyLimit, "%d Wh is outside 1..%d", maxWh, MaxWh)
	case q.SellWh > MaxWh:
		return chain.Quote{}, refuse(EnergyLimit, "sells %d Wh, at most %d", q.SellWh, MaxWh)
	case q.SellWh > 0 && c.Discharge == nil:
		return chain.Quote{}, refuse(NoDischarge, "charger %d takes no energy out of vehicles", connector)
	case q.SellWh > 0:
		if err := c.Discharge.permitted(s.wall); err != nil {
			return chain.Quote{}, refuse(NoDischarge, "charger %d takes no energy out of vehicles: %v", connector, err)
		}
	}
	if err := q.Check(); err != nil {
		return chain.Quote{}, refuse(EnergyLimit, "%v", err)
	}
	if len(s.quotes) == MaxQuotes {
		s.quotes = s.quotes[1:]
	}
	s.quotes = append(s.quotes, q)
	return q, nil
}

// Start opens a session for a quote of this gateway that the driver signed.
// It returns when the SessionOpen record is durable; the relay closes later,
// when the ledger holds the money and everything else is as it must be. A
// repeated start of the running session succeeds and changes nothing.
func (s *Station) Start(ctx context.Context, signed chain.SignedQuote) error {
	q, err := signed.Open()
	if err != nil {
		return refuse(NoSignature, "without the driver's signature nothing can be held: %v", err)
	}
	return s.command(ctx, func(reply func(error)) {
		if err := s.start(q, signed, reply); err != nil {
			reply(err)
		}
	})
}

func (s *Station) start(q chain.Quote, signed chain.SignedQuote, reply func(error)) error {
	for _, c := range s.chargers {
		if c.ID == q.Connector && c.quote.ID == q.ID && !c.opening && c.st.Phase != session.Idle {
			s.evidence("session.start_repeated", 1, q.ID.String(), "the running session was started again: no effect")
			reply(nil)
			return nil
		}
	}
	// Only what this gateway offered, to the byte: a driver can sign a price
	// of his own making.
	at := -1
	for i := range s.quotes {
		if s.quotes[i] == q {
			at = i
		}
	}
	switch {
	case at < 0:
		return refuse(QuoteUnknown, "quote %s was not made by this gateway since its start: ask for a new one", q.ID)
	case s.wall.UnixMilli() > q.Expires:
		return refuse(QuoteExpired, "quote %s has expired: ask for a new one", q.ID)
	}
	c, err := s.free(q.Connector)
	if err != nil {
		return err
	}
	s.quotes = append(s.quotes[:at], s.quotes[at+1:]...)
	c.opening, c.quote, c.signed, c.seq = true, q, signed, 0
	s.aim(c)
	s.enqueue(entry{
		record: chain.NewRecord(chain.KindSessionOpen, chain.SessionOpen{Quote: signed}),
		done: func() {
			c.opening = false
			s.step(c, session.Open{ID: q.ID, MaxWh: q.MaxWh, Sells: c.sells()})
			for i, n := range s.notes {
				if n.id == q.ID { // the ledger was faster than our own disk
					s.notes = append(s.notes[:i:i], s.notes[i+1:]...)
					s.note(n)
					break
				}
			}
			reply(nil)
		},
		failed: func(err error) {
			c.opening = false
			s.close(c)
			reply(fmt.Errorf("start session %s: %w", q.ID, err))
		},
	}, true)
	return nil
}

// Stop asks for an ordinary stop, which begins at once. It returns when a
// restart would not forget it; a second one changes nothing.
func (s *Station) Stop(ctx context.Context, id chain.ID, reason chain.StopReason) error {
	return s.command(ctx, func(reply func(error)) {
		for _, c := range s.chargers {
			if c.st.Phase != session.Idle && c.st.ID == id {
				s.stop(c, session.Stop{Reason: reason}, reply)
				return
			}
		}
		reply(refuse(NoSession, "there is no open session %s", id))
	})
}

// StopCharger is Stop for whoever stands before the charger: it needs no
// ledger, no network and no name of a session.
func (s *Station) StopCharger(ctx context.Context, connector uint8, reason chain.StopReason, cause string) error {
	return s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		switch {
		case err != nil:
			reply(err)
		case c.st.Phase == session.Idle:
			reply(refuse(NoSession, "charger %d has no session", connector))
		default:
			s.stop(c, session.Stop{Reason: reason, Cause: cause}, reply)
		}
	})
}

func (s *Station) stop(c *charger, e session.Stop, reply func(error)) {
	s.step(c, e)
	s.dirty = true
	s.acks = append(s.acks, reply)
}

// StartNow is a person's word that a start shall not be spread.
func (s *Station) StartNow(ctx context.Context, connector uint8) error {
	return s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		switch {
		case err != nil:
		case c.st.Phase == session.Idle:
			err = refuse(NoHold, "charger %d has no session: a start needs a hold, and that needs a signed quote", connector)
		case c.st.Fault != session.NoFault:
			err = refuse(Faulted, "charger %d has a latched fault: %s", connector, c.st.Fault)
		default:
			s.step(c, session.StartNow{})
		}
		reply(err)
	})
}

// SetLimit lowers what a charger offers. 0 takes a person's limit away.
func (s *Station) SetLimit(ctx context.Context, connector uint8, limit meter.MilliAmpere) error {
	return s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		switch {
		case err != nil:
		case limit != 0 && limit < session.MinCurrent:
			err = refuse(BelowMinimum, "%d mA: a vehicle can be offered 0 or at least %d mA (IEC 61851-1)", limit, session.MinCurrent)
		case limit > c.Session.MaxCurrent:
			err = refuse(AboveRating, "%d mA: charger %d is rated %d mA", limit, connector, c.Session.MaxCurrent)
		default:
			c.limit, s.changed = limit, true
		}
		reply(err)
	})
}

// SwapMeter begins a new segment of a meter's registers, after a person has
// confirmed that another device counts there now. What was counted between
// the last record of the old one and the first reading of the new one is in
// no register and is not booked.
func (s *Station) SwapMeter(ctx context.Context, id string) error {
	return s.command(ctx, func(reply func(error)) {
		m := s.meter(id)
		if m == nil {
			reply(refuse(UnknownMeter, "this gateway has no meter %q", id))
			return
		}
		for _, c := range s.chargers {
			if c.meter == m && c.st.Phase != session.Idle {
				reply(refuse(InSession, "charger %d has a session: stop it first", c.ID))
				return
			}
		}
		m.cut.Swap()
		for _, c := range s.chargers {
			if c.meter == m {
				s.step(c, session.Rebase{})
			}
		}
		s.dirty, s.changed = true, true
		s.evidence("meter.confirmed", 2, id, "a person confirmed that another device counts here, or that its registers begin anew: a new segment begins")
		reply(nil)
	})
}

// SetMode changes what a charger charges with.
func (s *Station) SetMode(ctx context.Context, connector uint8, mode setpoint.Mode) error {
	return s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		if err == nil {
			c.mode, s.changed = mode, true
		}
		reply(err)
	})
}

// ClearFault takes a person's word that a latched fault is repaired. It comes
// back at once when it is not.
func (s *Station) ClearFault(ctx context.Context, connector uint8) error {
	return s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		switch {
		case err != nil:
		case c.phases.state.Stage == setpoint.Broken:
			s.evidence("charger.fault_cleared", 2, chargerName(connector), "a person cleared: the phases did not switch; "+c.st.Fault.String())
			c.phases.state = setpoint.Repaired(c.phases.state)
			s.step(c, session.ClearFault{})
		case c.st.Fault == session.NoFault:
			err = refuse(NoFault, "charger %d has no fault", connector)
		default:
			s.evidence("charger.fault_cleared", 2, chargerName(connector), "a person cleared: "+c.st.Fault.String())
			s.changed = true
			s.step(c, session.ClearFault{})
		}
		reply(err)
	})
}

// Charger describes one charger as it is now, after every command before.
func (s *Station) Charger(ctx context.Context, connector uint8) (v board.Charger, err error) {
	err = s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		if err == nil {
			v = s.showCharger(c)
		}
		reply(err)
	})
	return v, err
}
