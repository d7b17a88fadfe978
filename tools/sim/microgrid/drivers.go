package microgrid

import (
	"encoding/binary"
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// payer is who pays for sessions by the car's card.
func (w *Walk) payer(c *car) *person {
	switch {
	case c.home >= 0:
		return w.Homes[c.home].Owner
	case c.i%3 == 1:
		return w.Cars[c.i-1].Driver
	}
	return c.Driver
}

// pays is who has paid for a session.
func (w *Walk) pays(s *charging) *person {
	if s.Quote.Driver == s.by.Driver.key {
		return s.by.Driver
	}
	return w.payer(s.by)
}

// issue gives a car a new card, with the mandate of who pays.
func (w *Walk) issue(c *car) item {
	p, card := w.payer(c), newPerson(fmt.Sprintf("card %d of %s", c.Cards, c.Driver.Name))
	c.Cards++
	return w.tx(p, chain.TxMandate, chain.Mandate{
		Token: card.key, Kind: c.kind(), PerTap: 1e11, PerDay: 1e12, Cap: 1e6, Expires: start + 400*86_400_000,
		Consent: chain.Sign(card.priv, chain.DomainMandate, chain.ConsentBytes(chainID, p.key)),
	}, func() { c.Card = card })
}

// setApart moves a part of the payer's money into his reserve at a gateway
// with a charger: at home, or at one of a few that depend on the car.
func (w *Walk) setApart(c *car, part chain.Nano) []item {
	p, h := w.payer(c), w.haunt(c)
	if h == nil || h.Gone || w.used[p.key] {
		return nil
	}
	have, _ := balanceOf(w.st, p.account())
	return []item{w.tx(p, chain.TxOffline, chain.Offline{Gateway: h.key, Amount: have / part}, nil)}
}

// haunt picks one of the few houses where a car is often.
func (w *Walk) haunt(c *car) *home {
	if c.home >= 0 && w.chance(0.6) {
		return w.Homes[c.home]
	}
	n := (c.i*31 + w.rnd.IntN(4)*17) % len(w.Homes)
	for range 3 {
		if h := w.Homes[n]; h.charger {
			return h
		}
		n = (n + 1) % len(w.Homes)
	}
	return nil
}

// destination is the house to which a car comes.
func (w *Walk) destination(c *car) *home {
	if w.chance(0.5) {
		return pick(w, w.Homes)
	}
	h := w.haunt(c)
	for range 8 { // things go wrong where one is
		if h != nil && (h.cut() || w.cfg.Faults == 0) {
			break
		}
		h = w.haunt(c)
	}
	return h
}

// arrivals opens sessions.
func (w *Walk) arrivals() (items []item) {
	for _, c := range w.Cars {
		if c.at != nil {
			continue
		}
		if c.Rest--; c.Rest > 0 {
			continue
		}
		h := w.destination(c)
		if h == nil || !h.charger || h.Gone {
			continue
		}
		byCard := c.Card != nil && (h.cut() || c.home >= 0 || w.chance(0.5))
		p := c.Driver
		if byCard {
			p = w.payer(c)
		}
		limit := retail + chain.NanoPerWh(w.rnd.IntN(150_000))
		have, _ := balanceOf(w.st, p.account())
		if h.cut() {
			if !byCard || w.occupied(h) {
				continue
			}
			have = w.limit(p, h)
			if have < chain.Nano(limit)*500 && w.chance(0.2) {
				w.fault("offline beyond the limit")
				have = 1e9
			}
		}
		most := meter.WattHour(have / chain.Nano(limit))
		if most < 500 {
			if !h.cut() && !w.used[w.Operator.key] {
				items = append(items, w.mint(p.account(), chain.Nano(10+w.rnd.IntN(40))*1e9))
			}
			continue
		}
		c.Rest = 4 + w.rnd.IntN(60)
		items = append(items, w.arrive(c, h, byCard, limit, most)...)
	}
	return items
}

// occupied tells whether a car is at the house's charger.
func (w *Walk) occupied(h *home) bool {
	for _, c := range w.Cars {
		if c.at != nil && c.at.home == h {
			return true
		}
	}
	return false
}

// limit is what a gateway without the ledger lets a payer spend: what was set
// apart for it and not asked back, less what it has let others charge since.
func (w *Walk) limit(p *person, h *home) chain.Nano {
	r := ledger.ReserveOf(w.st, p.account(), h.key)
	left := r.Amount - r.Leaving
	for _, s := range w.Unheard {
		if s.home == h && w.payer(s.by) == p {
			left -= s.Quote.Hold
		}
	}
	return left
}

func (w *Walk) arrive(c *car, h *home, byCard bool, limit chain.NanoPerWh, most meter.WattHour) []item {
	w.IDs++
	var id chain.ID
	binary.BigEndian.PutUint64(id[:], w.rnd.Uint64())
	binary.BigEndian.PutUint64(id[8:], w.IDs)
	made := w.clock(h)
	q := chain.Quote{
		Version: chain.Version, Chain: chainID, ID: id, Gateway: h.key, Connector: 1, Driver: c.Driver.key, Created: made, Expires: made + 300_000,
		MaxWh: min(most, meter.WattHour(500+w.rnd.IntN(20_000))), Cap: limit, Redeem: w.chance(0.5),
	}
	if w.chance(0.2) {
		w.fault("energy by departure")
		q.By, q.Want = w.Current+2+chain.Slot(w.rnd.IntN(30)), q.MaxWh/2
	}
	power := int64(3000 + w.rnd.IntN(8000))
	atHome := c.home >= 0 && w.Homes[c.home] == h
	if w.chance(0.1) || atHome && w.chance(0.3) || !byCard && w.chance(0.2) {
		w.fault("v2v session")
		power = -power
		q.MaxWh, q.By, q.Want, q.SellWh, q.SellLimit = min(most, 200), 0, 0, meter.WattHour(500+w.rnd.IntN(5000)), feedIn+chain.NanoPerWh(w.rnd.IntN(40_000))
	}
	q.Hold = chain.Nano(q.Cap) * chain.Nano(q.MaxWh)
	by := c.Driver
	switch {
	case c.Lost != nil && w.wrong():
		w.fault("lost card used")
		by = c.Lost
	case byCard:
		by = c.Card
	}
	q.Driver = by.key
	raw := chain.Marshal(q)
	rec := chain.NewRecord(chain.KindSessionOpen, chain.SessionOpen{Quote: chain.SignedQuote{Quote: raw, Sig: chain.Sign(by.priv, chain.DomainQuote, raw)}})
	s := &charging{
		home: h, by: c, ID: id, Quote: q, Reg: meter.WattHour(1000 + w.rnd.IntN(1e6)), Out: meter.WattHour(1000 + w.rnd.IntN(1000)),
		Power: power, Ends: w.Now + int64(1+w.rnd.IntN(30))*300_000, Clean: h.Skew == 0, Opened: w.Now,
	}
	w.Caps[id] = q.Cap
	if h.cut() {
		w.fault("session without the ledger")
		s.Clean = false
		c.at, w.Unheard[id] = s, s
		return w.submit(h, nil, rec)
	}
	items := w.submit(h, func(r ledger.TxResult) {
		if r.Code == ledger.CodeOK && len(r.Refused) == 0 {
			c.at, w.Open[id] = s, s
			w.Count.Sessions++
		}
	}, rec)
	if w.wrong() {
		w.fault("duplicate start")
		items = append(items, w.submit(h, nil, rec)...)
	}
	return items
}

// settled hears what became of a session that had begun without the ledger.
// Only what its driver has, or has set apart for this gateway, may pay for it.
func (w *Walk) settled(s *charging, held bool) (f findings) {
	delete(w.Unheard, s.ID)
	if !held {
		w.fault("session without the ledger refused")
		if s.by.at == s {
			s.by.at = nil
		}
		return nil
	}
	w.fault("session without the ledger settled")
	w.Open[s.ID] = s
	w.Count.Sessions++
	v, _ := ledger.SessionOf(w.st, s.ID)
	switch payer := w.payer(s.by).account(); {
	case v.Driver != payer:
		f.add("session %s is charged to %s, its card is paid by %s", s.ID, v.Driver, payer)
	case v.Purse == ledger.ReserveAccount(payer, s.home.key):
		w.fault("reserve pays")
	case v.Purse != chain.Account{}:
		f.add("session %s at %s is paid from %s", s.ID, s.home.name, v.Purse)
	}
	return f
}
