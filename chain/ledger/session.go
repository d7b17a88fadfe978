package ledger

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// remaining is the money that the session still holds.
func (s *SessionView) remaining() chain.Nano {
	if !s.State.Open() {
		return 0
	}
	return s.Hold - s.Captured - s.Disputed
}

func session(st State, id chain.ID) SessionView {
	s, ok := SessionOf(st, id)
	if !ok {
		panic(fmt.Sprintf("ledger: no session %s", id))
	}
	return s
}

func putSession(st State, s *SessionView) { put(st, SessionKey(s.ID), *s) }

// openSessions returns the sessions with money held, ascending by id.
func openSessions(st State) []chain.ID {
	var ids []chain.ID
	st.Iterate([]byte{tabOpen}, func(k, _ []byte) bool {
		ids = append(ids, chain.ID(k[1:]))
		return true
	})
	return ids
}

// sessionOpen holds the driver's money. Repeating it changes nothing.
func (r *run) sessionOpen(st State, m *member, o chain.SessionOpen) error {
	q, err := o.Quote.Open()
	if err != nil {
		return refuse(formCode(err), "%v", err)
	}
	hash := chain.Sum(o.Quote.Quote)
	if s, ok := SessionOf(st, q.ID); ok {
		if s.QuoteHash == hash && s.Gateway == m.Member.Device {
			return nil
		}
		return refuse(CodeTaken, "session %s has another quote", q.ID)
	}
	ck := connectorKey(m.Member.Device, q.Connector)
	switch {
	case q.Chain != r.rules.ChainID:
		return refuse(CodeChain, "quote %s made for %q", q.ID, q.Chain)
	case q.Gateway != m.Member.Device:
		return refuse(CodeNotAllowed, "quote %s is of gateway %s", q.ID, q.Gateway.Short())
	case q.Cap > MaxPrice:
		return refuse(CodeRange, "quote %s: cap %d, at most %d", q.ID, q.Cap, MaxPrice)
	case q.SellLimit > MaxPrice || q.By > r.slot+maxAhead:
		return refuse(CodeRange, "quote %s: sells from %d nano/Wh, leaves in slot %d", q.ID, q.SellLimit, q.By)
	case q.By != 0 && q.By <= r.slot:
		return refuse(CodeExpired, "quote %s: slot %d has begun", q.ID, q.By)
	}
	if q.SellWh > 0 {
		if err := needFeature(st, chain.FeatureV2V); err != nil {
			return err
		}
	}
	opened := r.moment(q.Created)
	p, err := r.purse(st, &q, opened)
	switch {
	case err != nil:
		return err
	case st.Get(ck) != nil:
		return refuse(CodeConnector, "connector %d has an open session", q.Connector)
	case st.Get(quarantineKey(m.Member.Device, q.Connector, "")) != nil:
		return refuse(CodeQuarantine, "the meter of connector %d has jumped and is not released", q.Connector)
	}
	because(st, "held for session", q.ID)
	if err := add(st, p.from, -q.Hold); err != nil {
		return err
	}
	s := &SessionView{
		ID: q.ID, State: SessionHeld, Driver: p.driver, DriverKey: q.Driver, Gateway: q.Gateway, Connector: q.Connector,
		MaxWh: q.MaxWh, Cap: q.Cap, Redeem: q.Redeem, Hold: q.Hold, QuoteHash: hash,
		OpenedHeight: r.height, OpenedMs: opened, LastMs: opened,
		By: q.By, Want: q.Want, SellWh: q.SellWh, SellLimit: q.SellLimit,
	}
	if p.offline {
		s.Purse, s.QuotedMs = p.from, min(q.Created, r.time)
	}
	putSession(st, s)
	put(st, openKey(q.ID), true)
	put(st, ck, q.ID)
	r.event("session.held", q.ID.String(), "%d nano for %d Wh at %s", q.Hold, q.MaxWh, m.Member.Name)
	return nil
}

// reading is what SessionMeter and SessionStop have in common.
type reading struct {
	id       chain.ID
	seq      uint32
	slot     chain.Slot
	register meter.WattHour
	quality  meter.Quality
	at       int64
	export   meter.WattHour
	unsynced bool // slot is the ledger's guess
}

func (r *run) sessionMeter(st State, m *member, b chain.SessionMeter) error {
	s, err := own(st, m, b.Session)
	if err != nil || b.Seq <= s.Seq {
		return err // a repeated record has no effect
	}
	return r.advance(st, m, s, reading{id: b.Session, seq: b.Seq, slot: b.Slot, register: b.Register, quality: b.Quality, at: b.At, export: b.Export})
}

func (r *run) sessionStop(st State, m *member, b chain.SessionStop) error {
	s, err := own(st, m, b.Session)
	if err != nil {
		return err
	}
	if b.Reason < chain.StopDriver || b.Reason > chain.StopOperator {
		return refuse(CodeMalformed, "stop reason %d", b.Reason)
	}
	if b.Seq <= s.Seq || s.State == SessionExpired {
		if s.State < SessionMetered || b.Register != s.Register || b.Receipt != s.Receipt {
			r.event("session.stop_conflict", s.ID.String(), "%s with register %d; it is %s with %d", b.Reason, b.Register, s.State, s.Register)
		}
		return nil
	}
	ended := s.State >= SessionMetered
	n := reading{id: b.Session, seq: b.Seq, slot: b.Slot, register: b.Register, quality: b.Quality, at: b.At, export: b.Export}
	if n.slot > r.slot && !r.begun(n.slot) {
		// No record follows a stop that could bring its energy with a clock that
		// is right: it is of now, and does not trade.
		n.slot, n.unsynced = r.slot, true
	}
	if err := r.advance(st, m, s, n); err != nil {
		return err
	}
	if s.Receipt == (chain.Hash{}) {
		s.Receipt = b.Receipt
	}
	if ended {
		r.event("session.stop_conflict", s.ID.String(), "%s after the end by %s", b.Reason, s.Reason)
		putSession(st, s)
		return nil
	}
	s.Reason = b.Reason
	r.event("session.metered", s.ID.String(), "%s at register %d Wh", s.Reason, s.Register)
	r.end(st, s)
	return nil
}

// own returns the session if it is at m's charger.
func own(st State, m *member, id chain.ID) (*SessionView, error) {
	s, ok := SessionOf(st, id)
	if !ok || s.Gateway != m.Member.Device {
		return nil, refuse(CodeSession, "no session %s at %s", id, m.Member.Name)
	}
	return &s, nil
}

// advance books the energy up to a reading that follows the last one, and
// stores s.
func (r *run) advance(st State, m *member, s *SessionView, n reading) error {
	if !goodQuality(n.quality) {
		return refuse(CodeMalformed, "quality %d", n.quality)
	}
	if n.seq == s.Seq && n.register == s.Register {
		return refuse(CodeDuplicate, "session %s record %d", s.ID, n.seq)
	}
	if n.seq != s.Seq+1 {
		return refuse(CodeSequence, "session %s record %d, the last is %d", s.ID, n.seq, s.Seq)
	}
	if s.State == SessionExpired {
		return refuse(CodeState, "session %s is %s", s.ID, s.State)
	}
	s.Seq = n.seq
	if s.State >= SessionMetered {
		// What flows after the end is the site's, whose own meter counts it.
		if n.register > s.Register {
			r.event("session.energy_after_end", s.ID.String(), "%d Wh borne by %s", n.register-s.Register, m.Member.Name)
		}
		putSession(st, s)
		return nil
	}
	s.LastMs = max(s.LastMs, r.moment(n.at))
	if s.State == SessionHeld {
		s.State = SessionCharging
		s.Reported = max(min(n.slot, r.slot+2), 0) - 1
		r.event("session.charging", s.ID.String(), "at %s from register %d Wh", m.Member.Name, n.register)
	}
	at := min(n.at, r.time+r.skew())
	if at < s.since()-r.skew() {
		at = r.time // a clock that was never set
	}
	if !s.Based {
		at = max(at, s.RegisterMs)
		if doubt := r.trust(n.quality, n.slot, at, at, 0); doubt != "" || n.register < 0 || n.export < 0 {
			r.event("session.suspect", s.ID.String(), "no begin register: %s", doubt)
		} else {
			s.Based, s.Begin, s.Register, s.RegisterMs = true, n.register, n.register, at
			if s.SellWh > 0 {
				s.ExportBegin, s.Export = n.export, n.export
			}
		}
		putSession(st, s)
		return nil
	}
	if s.Jumped {
		r.event("session.suspect", s.ID.String(), "record %d: its meter has jumped", n.seq)
		putSession(st, s)
		return nil
	}
	delta := n.register - s.Register
	given := meter.WattHour(0)
	if s.SellWh > 0 {
		given = n.export - s.Export
	}
	doubt := r.trust(n.quality, n.slot, s.RegisterMs, at, m.Member.MaxPower, delta, given)
	switch {
	case doubt == "":
	case s.Begin == 0 && s.Register == 0 && delta > 0 && r.trust(n.quality, n.slot, s.RegisterMs, at, 0) == "":
		// Zero after a reboot is a placeholder, not a register.
		r.event("session.rebased", s.ID.String(), "begin register %d Wh", n.register)
		s.Begin, delta = n.register, 0
		if s.SellWh > 0 {
			s.ExportBegin, s.Export, given = n.export, n.export, 0
		}
	case r.jumps(n.quality, n.slot, s.RegisterMs, at, m.Member.MaxPower, delta, given):
		delta, given = r.sessionJump(st, m, s, n, at, delta, given)
		n.register = s.Register + delta
	default:
		r.event("session.suspect", s.ID.String(), "record %d: %s", n.seq, doubt)
		putSession(st, s)
		return nil
	}
	s.Register, s.RegisterMs = n.register, max(at, s.RegisterMs)
	s.Export += given
	follows := !n.unsynced && n.slot >= s.Reported && n.slot <= s.Reported+1
	s.Reported = max(s.Reported, n.slot)

	bill := min(delta, s.MaxWh-s.Wh)
	if excess := delta - bill; excess > 0 {
		s.ExcessWh += excess
		r.event("session.excess", s.ID.String(), "%d Wh beyond the hold, borne by %s", excess, m.Member.Name)
	}
	s.Wh += bill
	switch {
	case bill == 0:
	case follows && n.slot >= r.clock.Next:
		k := loadKey(n.slot, s.ID)
		load, _ := get[meter.WattHour](st, k)
		put(st, k, load+bill)
		s.PendingWh += bill
	default:
		if err := r.sellBySite(st, m, s, n.slot, bill); err != nil {
			return err
		}
	}
	if sold := min(given, s.SellWh-s.Sold); sold > 0 {
		s.Sold += sold
		if follows && n.slot >= r.clock.Next {
			k := saleKey(n.slot, s.ID)
			sale, _ := get[meter.WattHour](st, k)
			put(st, k, sale+sold)
			s.PendingSold += sold
		} else if err := r.buyBySite(st, m, s, n.slot, sold); err != nil {
			return err
		}
	}
	if over := s.Export - s.ExportBegin - s.Sold; given > 0 && over > 0 {
		r.event("session.excess", s.ID.String(), "%d Wh given beyond %d, the site owner's", over, s.SellWh)
	}
	putSession(st, s)
	return nil
}

// buyBySite settles what a car gave outside the local market: the site's own
// meter has paid the owner for it, or charged him less, so he owes the driver
// the feed-in price as far as his balance goes.
func (r *run) buyBySite(st State, m *member, s *SessionView, slot chain.Slot, wh meter.WattHour) error {
	because(st, "energy given by session", s.ID)
	_, feedIn := r.prices(st, slot)
	if err := r.lateCar(st, m, slot, s.ID, 0, wh); err != nil {
		return err
	}
	if !pay(st, m.owner(), s.Driver, feedIn, wh) {
		r.event("session.sold_unpaid", s.ID.String(), "slot %d: %s owes for %d Wh at %d nano/Wh", slot, m.Member.Name, wh, feedIn)
		return nil
	}
	amount := chain.Nano(feedIn) * chain.Nano(wh) // pay has checked the product
	s.Earned += amount
	r.accrue(st, m, slot, Accrual{BoughtWh: wh, Bought: amount})
	r.accrueTo(st, s.Driver, s.Gateway, slot, Accrual{SoldWh: wh, Sold: amount})
	r.event("session.late", s.ID.String(), "slot %d: %d Wh given, at %d nano/Wh", slot, wh, feedIn)
	return nil
}

// sellBySite bills a session's energy outside the local market: the driver
// pays the grid's price or the cap. The site's own meter has charged, or will
// charge, the owner for the same energy, or missed it as the owner's surplus;
// hence the owner gets the feed-in price, and more where netLate finds that
// it came from the grid.
func (r *run) sellBySite(st State, m *member, s *SessionView, slot chain.Slot, wh meter.WattHour) error {
	retail, feedIn := r.prices(st, slot)
	price := min(retail, s.Cap)
	// Neither overflows: cap * MaxWh is the hold.
	owner, amount := chain.Nano(min(feedIn, price))*chain.Nano(wh), chain.Nano(price)*chain.Nano(wh)
	r.event("session.late", s.ID.String(), "slot %d: %d Wh at %d nano/Wh", slot, wh, price)
	if err := capture(st, s, m.owner(), owner); err != nil {
		return err
	}
	r.accrue(st, m, slot, Accrual{SoldWh: wh, Sold: owner})
	if err := capture(st, s, chain.AccountGrid, amount-owner); err != nil {
		return err
	}
	r.netLate(st, m, slot, 0, wh)
	return r.lateCar(st, m, slot, s.ID, wh, 0)
}

// capture moves held money to an account. The caller stores s.
func capture(st State, s *SessionView, to chain.Account, amount chain.Nano) error {
	if amount < 0 || amount > s.remaining() {
		return fmt.Errorf("session %s: capture of %d from a hold with %d left", s.ID, amount, s.remaining())
	}
	s.Captured += amount
	because(st, "energy of session", s.ID)
	return add(st, to, amount)
}

// end stops a session at its last trusted register and frees the connector.
// It settles when all its energy is cleared.
func (r *run) end(st State, s *SessionView) {
	s.State = SessionMetered
	st.Delete(connectorKey(s.Gateway, s.Connector))
	c := countersOf(st, s.Gateway)
	c.SessionSlot = max(c.SessionSlot, s.Reported, r.slot)
	put(st, key(tabCounters, s.Gateway[:]), c)
	putSession(st, s)
}

// endByRule is end without its gateway's word.
func (r *run) endByRule(st State, s *SessionView, reason chain.StopReason) {
	s.ByRule, s.Reason = true, reason
	r.event("session.ended_by_rule", s.ID.String(), "%s at register %d Wh", reason, s.Register)
	r.end(st, s)
}

// timers ends what block time has overtaken.
func (r *run) timers(st State) error {
	start := r.rules.StartSeconds * 1000
	silent := max(SilentSlots*r.rules.SlotSeconds*1000, start)
	for _, id := range openSessions(st) {
		s := session(st, id)
		switch {
		case s.State == SessionHeld && r.time-s.OpenedMs > start:
			s.Reason = chain.StopNoEnergy
			r.end(st, &s)
			if err := r.close(st, &s, SessionExpired); err != nil {
				return err
			}
		case s.State == SessionCharging && r.time-s.LastMs > silent:
			r.endByRule(st, &s, chain.StopRestart)
		}
	}
	return nil
}

// settleMetered settles the sessions whose energy has all been cleared.
func (r *run) settleMetered(st State) error {
	for _, id := range openSessions(st) {
		s := session(st, id)
		if s.State != SessionMetered || s.PendingWh != 0 || s.PendingSold != 0 {
			continue
		}
		if err := r.settle(st, &s); err != nil {
			return err
		}
	}
	return nil
}

// settle redeems and earns credit on a session's bill, releases the rest of
// the hold and closes it, all in one block.
func (r *run) settle(st State, s *SessionView) error {
	bill := s.Captured
	because(st, "discount credit of session", s.ID)
	var spent []spentLot
	// Who pays by card or code has told the ledger once what he wishes.
	if s.Redeem || (chain.AccountOf(s.DriverKey) != s.Driver && ProfileOf(st, s.Driver).Redeem) {
		s.CreditRedeemed = min(credits(st, s.Driver), chain.PPM(bill, r.rules.RedeemPPM))
		var err error
		if spent, err = r.redeem(st, s.Driver, s.CreditRedeemed); err != nil {
			return err
		}
	}
	r.billed(st, s, spent)
	s.Paid = bill - s.CreditRedeemed
	s.CreditEarned = min(chain.PPM(s.Paid, r.rules.EarnPPM), balance(st, chain.AccountPromotion))
	if s.CreditEarned > 0 {
		if err := r.earn(st, s.Driver, s.CreditEarned, s.ID); err != nil {
			return err
		}
	}
	if s.ByRule {
		return r.close(st, s, SessionInterrupted)
	}
	return r.close(st, s, SessionClosed)
}

// close releases what is left of the hold and ends the session for good.
func (r *run) close(st State, s *SessionView, final SessionState) error {
	s.Released = s.Hold - s.Captured - s.Disputed
	because(st, "released by session", s.ID)
	if err := add(st, s.purse(st), s.Released); err != nil {
		return err
	}
	r.settled(st, s)
	s.State, s.ClosedHeight, s.ClosedMs = final, r.height, r.time
	st.Delete(openKey(s.ID))
	put(st, closedKey(r.time, s.ID), true)
	putSession(st, s)
	r.event("session."+final.String(), s.ID.String(), "%d Wh, paid %d, released %d, credit earned %d, redeemed %d nano",
		s.Wh, s.Paid, s.Released, s.CreditEarned, s.CreditRedeemed)
	return nil
}
