package microgrid

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

const readingsPerBlock = 500

// Slot lives through one slot of fifteen minutes: people act, cars come, the
// meters are read, and at every turn something may go wrong.
func (w *Walk) Slot() error {
	b, e := w.begin(w.slot), w.end(w.slot)
	for _, turn := range []struct {
		at   int64
		make func() []item
	}{
		{b + 80_000, w.arrivals},
		{b + 140_000, w.begins},
		{b + 450_000, w.departures},
		{e + 5_000, nil},
		{e + 66_000, w.business},
	} {
		w.now = max(w.now, turn.at-1000)
		w.used = map[chain.Key]bool{}
		if turn.make != nil {
			items := append(w.flush(), turn.make()...)
			items = append(items, w.hostile()...)
			if err := w.block(items); err != nil {
				return err
			}
			continue
		}
		items := append(w.flush(), w.readings()...)
		for len(items) > 0 {
			n := min(len(items), readingsPerBlock)
			if err := w.block(items[:n]); err != nil {
				return err
			}
			items = items[n:]
		}
	}
	w.slot++
	w.stats.Slots++
	return nil
}

// submit hands a home's block to the ledger, or keeps it while the gateway is
// cut off. A neighbour may hand it in as well.
func (w *Walk) submit(h *home, done func(ledger.TxResult), records ...chain.Record) []item {
	w.stats.Records += len(records)
	raw := h.sign(w.now, records...)
	if h.away > 0 || len(h.queue) > 0 || h.flushed == w.height+1 {
		h.queue = append(h.queue, raw)
		return nil
	}
	items := []item{{raw, done}}
	if w.chance(w.cfg.Faults / 4) {
		w.fault("block repeated")
		items = append(items, w.plain(raw))
	}
	return items
}

// flush hands in what gateways that are back have kept, a block of each at a
// time, so that the books see every reading.
func (w *Walk) flush() (items []item) {
	for _, h := range w.homes {
		if h.away == 0 && len(h.queue) > 0 {
			items = append(items, w.plain(h.queue[0]))
			h.queue, h.flushed = h.queue[1:], w.height+1
			w.spoil(h)
		}
	}
	return items
}

// wrong decides whether something goes wrong for one home or session now.
func (w *Walk) wrong() bool { return w.cfg.Faults > 0 && w.chance(w.cfg.Faults) }

// arrivals opens sessions.
func (w *Walk) arrivals() (items []item) {
	for _, c := range w.cars {
		if c.at != nil {
			continue
		}
		if c.rest--; c.rest > 0 {
			continue
		}
		h := pick(w, w.homes)
		if !h.charger || h.gone || h.away > 0 || len(h.queue) > 0 {
			continue
		}
		c.rest = 4 + w.rnd.IntN(60)
		have, _ := balanceOf(w.st, c.account())
		limit := retail + chain.NanoPerWh(w.rnd.IntN(150_000))
		most := meter.WattHour(have / chain.Nano(limit))
		if most < 1000 {
			if !w.used[w.op.key] {
				items = append(items, w.mint(c.account(), chain.Nano(10+w.rnd.IntN(40))*1e9))
			}
			continue
		}
		w.ids++
		var id chain.ID
		binary.BigEndian.PutUint64(id[:], w.rnd.Uint64())
		binary.BigEndian.PutUint64(id[8:], w.ids)
		q := chain.Quote{
			Version: chain.Version, Chain: chainID, ID: id, Gateway: h.key, Connector: 1, Driver: c.key, Created: w.now, Expires: w.now + 300_000,
			MaxWh: min(most, meter.WattHour(1000+w.rnd.IntN(20_000))), Cap: limit, Redeem: w.chance(0.5),
		}
		power := int64(3000 + w.rnd.IntN(8000))
		if w.chance(0.1) {
			w.fault("v2v session")
			power = -power
			q.MaxWh, q.SellWh, q.SellLimit = 200, meter.WattHour(500+w.rnd.IntN(5000)), feedIn+chain.NanoPerWh(w.rnd.IntN(40_000))
		}
		q.Hold = chain.Nano(q.Cap) * chain.Nano(q.MaxWh)
		by := c.person
		if c.card != nil && w.chance(0.5) {
			by, q.Driver = c.card, c.card.key
		}
		raw := chain.Marshal(q)
		rec := chain.NewRecord(chain.KindSessionOpen, chain.SessionOpen{Quote: chain.SignedQuote{Quote: raw, Sig: chain.Sign(by.priv, chain.DomainQuote, raw)}})
		s := &charging{home: h, by: c, id: id, quote: q, reg: meter.WattHour(1000 + w.rnd.IntN(1e6)), out: meter.WattHour(1000 + w.rnd.IntN(1000)), power: power, ends: w.now + int64(1+w.rnd.IntN(30))*300_000, clean: true, opened: w.now}
		w.caps[id] = q.Cap
		items = append(items, w.submit(h, func(r ledger.TxResult) {
			if r.Code == ledger.CodeOK && len(r.Refused) == 0 {
				c.at, w.open[id] = s, s
				w.stats.Sessions++
			}
		}, rec)...)
		if w.wrong() {
			w.fault("duplicate start")
			items = append(items, w.submit(h, nil, rec)...)
		}
	}
	return items
}

// begins states the begin registers.
func (w *Walk) begins() (items []item) {
	for _, c := range w.cars {
		s := c.at
		if s == nil || s.begun {
			continue
		}
		if w.now-s.opened > 700_000 {
			continue // it will expire
		}
		if w.wrong() {
			w.fault("payment without energy")
			continue
		}
		s.begun, s.since, s.begin, s.seq = true, w.now, s.reg, 1
		shown := s.reg
		if w.wrong() {
			w.fault("begin register 0")
			shown, s.clean = 0, false
			w.spoil(s.home)
		}
		if s.home.away > 0 || len(s.home.queue) > 0 {
			s.clean = false
		}
		items = append(items, w.submit(s.home, nil, w.state(s, 1, shown, meter.Good))...)
	}
	return items
}

// spoil says that a home's next fills are not to be predicted.
func (w *Walk) spoil(h *home) { h.dirty = max(h.dirty, 3) }

func (w *Walk) state(s *charging, seq uint32, shown meter.WattHour, q meter.Quality) chain.Record {
	m := chain.SessionMeter{Session: s.id, Seq: seq, Slot: w.slot, Register: shown, Quality: q, At: w.now}
	if s.quote.SellWh > 0 {
		m.Export = s.out
	}
	return chain.NewRecord(chain.KindSessionMeter, m)
}

// flow lets the car charge, or give, until now.
func (w *Walk) flow(s *charging) {
	wh := meter.WattHour(s.power * (w.now - s.since) / 3_600_000)
	s.since = w.now
	if wh >= 0 {
		wh = min(wh, s.quote.MaxWh-(s.reg-s.begin))
		s.reg += wh
		s.home.ev += wh
		return
	}
	wh = min(-wh, s.quote.SellWh-s.given) // its floor
	s.given += wh
	s.out += wh
	s.home.v2g += wh
}

// report states a session's register, rightly or not.
func (w *Walk) report(s *charging) []chain.Record {
	w.flow(s)
	s.seq++
	shown, q := s.reg, meter.Good
	if w.wrong() {
		s.clean = false
		w.spoil(s.home)
		switch w.rnd.IntN(7) {
		case 0:
			w.fault("session register falls")
			shown -= 500
		case 1:
			w.fault("session register -1")
			shown = -1
		case 2:
			w.fault("session register jumps")
			shown += 910_000
		case 3:
			w.fault("session meter suspect")
			q = meter.Suspect
		case 4:
			w.fault("session record skipped")
			s.seq++
		case 5:
			w.fault("session record repeated")
			s.seq--
		case 6:
			w.fault("session stuck")
			shown = s.begin
		}
	}
	return []chain.Record{w.state(s, s.seq, shown, q)}
}

// stop ends a session, once or more often.
func (w *Walk) stop(s *charging) []chain.Record {
	records := w.report(s)
	m := chain.SessionStop{Session: s.id, Seq: s.seq + 1, Slot: w.slot, Register: s.reg, Quality: meter.Good, At: w.now, Reason: chain.StopDriver, Receipt: chain.Sum(s.id[:])}
	if s.quote.SellWh > 0 {
		m.Export = s.out
	}
	s.seq++
	records = append(records, chain.NewRecord(chain.KindSessionStop, m))
	if w.wrong() {
		w.fault("conflicting stop")
		m.Register += 700
		records = append(records, chain.NewRecord(chain.KindSessionStop, m))
	}
	if w.wrong() {
		w.fault("energy after stop")
		records = append(records, w.state(s, s.seq+1, s.reg+90, meter.Good))
	}
	s.by.at = nil
	s.by.rest = 4 + w.rnd.IntN(60)
	return records
}

// departures stops the sessions that end within a slot.
func (w *Walk) departures() (items []item) {
	for _, c := range w.cars {
		s := c.at
		if s == nil || !s.begun || s.ends > w.now && s.reg-s.begin < s.quote.MaxWh {
			continue
		}
		if w.wrong() {
			w.fault("stop missing")
			s.clean, c.at = false, nil
			w.spoil(s.home)
			continue
		}
		if s.home.away > 0 || len(s.home.queue) > 0 {
			s.clean = false
		}
		items = append(items, w.submit(s.home, nil, w.stop(s)...)...)
	}
	return items
}

// readings states every home's registers at the slot's end.
func (w *Walk) readings() (items []item) {
	charging := map[*home][]*charging{}
	for _, c := range w.cars {
		if c.at != nil && c.at.begun {
			charging[c.at.home] = append(charging[c.at.home], c.at)
		}
	}
	hour := int64(w.slot) % 96 / 4
	sun := max(0, 6-max(hour-12, 12-hour)) // 0..6 of 6
	w.expected[w.slot] = map[string]meter.WattHour{}
	for _, h := range w.homes {
		if h.gone {
			continue
		}
		if h.away > 0 {
			h.away--
			w.spoil(h)
		}
		var records []chain.Record
		for _, s := range charging[h] {
			if h.away > 0 || len(h.queue) > 0 {
				s.clean = false
			}
			records = append(records, w.report(s)...)
			if !s.clean {
				w.spoil(h)
			}
		}
		if len(h.queue) > 0 {
			w.spoil(h)
		}
		load := meter.WattHour(30 + w.rnd.IntN(400))
		made := meter.WattHour(h.pv * sun / 6 * int64(60+w.rnd.IntN(40)) / 400)
		h.gen += made
		net := load + h.ev - h.v2g - made
		imp, exp := max(net, 0), max(-net, 0)
		h.imp += imp
		h.exp += exp
		if max(imp, exp) > maxPower*slotMs/3_600_000 {
			w.spoil(h) // more than its connection carries: the ledger will doubt it
		}
		records = append(records, w.site(h)...)
		if h.dirty == 0 {
			used, gave := max(0, h.v2g-exp), max(0, h.ev-imp)
			through := min(used, gave)
			w.expected[w.slot]["buy/"+h.name] = max(0, imp-h.ev) + used - through
			w.expected[w.slot]["sell/"+h.name] = max(0, exp-h.v2g) + gave - through
		} else {
			h.dirty--
		}
		h.ev, h.v2g = 0, 0
		if w.chance(0.02) {
			limit := feedIn + chain.NanoPerWh(w.rnd.IntN(300_000))
			records = append(records, chain.NewRecord(chain.KindOffer, chain.Offer{From: w.slot + 1, To: w.slot + 9, Side: chain.Side(1 + w.rnd.IntN(2)), Limit: limit}))
		}
		if len(records) == 0 {
			continue
		}
		if w.wrong() && h.away == 0 && len(h.queue) == 0 {
			w.fault("partition")
			h.away = 1 + w.rnd.IntN(8)
			w.spoil(h)
			for _, s := range charging[h] {
				s.clean = false
			}
			delete(w.expected[w.slot], "buy/"+h.name)
			delete(w.expected[w.slot], "sell/"+h.name)
		}
		items = append(items, w.submit(h, nil, records...)...)
		if w.wrong() && h.away == 0 && len(h.queue) == 0 { // else the other truth would come first
			switch w.rnd.IntN(2) {
			case 0:
				w.fault("equivocation")
				twin := *h
				if twin.pos.Number--; twin.pos.Number == 0 {
					twin.prev = chain.Hash{}
				}
				items = append(items, w.plain(twin.sign(w.now, chain.NewRecord(chain.KindEvent, chain.Event{Code: fmt.Sprint(w.rnd.Uint64())}))))
			case 1:
				w.fault("journal lost")
				h.pos, h.prev, h.queue = chain.Position{Epoch: h.pos.Epoch + 1}, chain.Hash{}, nil
				for _, s := range charging[h] {
					s.clean = false
				}
				w.spoil(h)
			}
		}
	}
	if len(w.expected) > 64 { // slots that cleared without energy
		for s := range w.expected {
			if s < w.slot-32 {
				delete(w.expected, s)
			}
		}
	}
	return items
}

// site states the site meter, and the roof's if there is one, rightly or not.
func (w *Walk) site(h *home) []chain.Record {
	imp, exp, q := h.imp+h.offImp, h.exp+h.offExp, meter.Good
	if h.stuck > 0 {
		h.stuck--
		h.dirty = 9 // what it has missed looks like a jump, until enough time has passed
		imp, exp = h.shown.imp, h.shown.exp
	} else if w.wrong() {
		w.spoil(h)
		switch w.rnd.IntN(9) {
		case 0:
			w.fault("meter stuck")
			h.stuck = 1 + w.rnd.IntN(3)
			imp, exp = h.shown.imp, h.shown.exp
		case 1:
			w.fault("meter falls")
			imp -= 300
		case 2:
			w.fault("meter jumps")
			imp += 1e6
		case 3:
			w.fault("meter 0 after a reboot")
			imp, exp = 0, 0
		case 4:
			w.fault("meter suspect")
			q = meter.Suspect
		case 5:
			w.fault("reading missing")
			return nil
		case 6:
			w.fault("meter swapped")
			h.segment++
			h.offImp, h.offExp = meter.WattHour(w.rnd.IntN(50))-h.imp, meter.WattHour(w.rnd.IntN(50))-h.exp
			imp, exp = h.imp+h.offImp, h.exp+h.offExp
			h.shown = reg{imp, exp}
		case 7:
			w.fault("clock says 1970")
			h.page++
			return []chain.Record{chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: 3, Meter: "site", Role: chain.RoleSite, Page: h.page, Import: imp, Export: exp, Quality: q, At: 4000, Count: 1, Segment: h.segment})}
		case 8:
			w.fault("reading repeated")
			records := w.reading(h, w.slot, imp, exp, q)
			return append(records, records[0])
		}
	}
	if h.dirty == 0 {
		h.shown = reg{imp, exp}
	}
	return w.reading(h, w.slot, imp, exp, q)
}

func (w *Walk) reading(h *home, s chain.Slot, imp, exp meter.WattHour, q meter.Quality) []chain.Record {
	h.page++
	records := []chain.Record{chain.NewRecord(chain.KindMeter, chain.MeterRecord{
		Slot: s, Meter: "site", Role: chain.RoleSite, Page: h.page, Import: imp, Export: exp, Quality: q, At: w.end(s), Count: 1, Segment: h.segment, Root: chain.Sum([]byte(h.name)),
	})}
	if h.pv > 0 {
		h.pvPg++
		records = append(records, chain.NewRecord(chain.KindMeter, chain.MeterRecord{
			Slot: s, Meter: "pv", Role: chain.RoleProduction, Page: h.pvPg, Export: h.gen, Quality: meter.Good, At: w.end(s), Count: 1,
		}))
	}
	return records
}

// hostile makes what should not work.
func (w *Walk) hostile() (items []item) {
	if w.cfg.Faults == 0 {
		return nil
	}
	for range w.rnd.IntN(4) {
		h := pick(w, w.homes)
		p := newPerson(fmt.Sprint("nobody ", w.rnd.IntN(5)))
		big := chain.Nano(w.rnd.Uint64())
		sign := func(p *person, kind chain.TxKind, body any) { // without a claim to the nonce
			items = append(items, w.plain(chain.SignTx(chainID, ledger.NextNonce(w.st, p.key), kind, body, p.priv)))
		}
		switch w.rnd.IntN(12) {
		case 0:
			w.fault("hostile: replay")
			items = append(items, w.plain(pick(w, w.history)))
		case 1:
			w.fault("hostile: damaged")
			raw := bytes.Clone(pick(w, w.history))
			for range 1 + w.rnd.IntN(3) {
				raw[w.rnd.IntN(len(raw))] ^= byte(1 + w.rnd.IntN(255))
			}
			items = append(items, w.plain(raw))
		case 2:
			w.fault("hostile: forged mint")
			sign(p, chain.TxMint, chain.Mint{To: p.account(), Amount: 1e9, BankRef: "mine"})
		case 3:
			w.fault("hostile: overflow")
			sign(p, chain.TxTransfer, chain.Transfer{To: h.owner.account(), Amount: big})
		case 4:
			w.fault("hostile: payout of nothing")
			sign(p, chain.TxPayout, chain.Payout{Amount: big / 1e7 * 1e7})
		case 5:
			w.fault("hostile: dispute of others' session")
			if len(w.closed) > 0 {
				sign(p, chain.TxDispute, chain.Dispute{Session: pick(w, w.closed).id, Amount: 1, Reason: "greed"})
			}
		case 6:
			w.fault("hostile: too large")
			items = append(items, w.plain(make([]byte, chain.MaxTxBytes+1+w.rnd.IntN(100))))
		case 7:
			w.fault("hostile: noise")
			raw := make([]byte, w.rnd.IntN(300))
			for i := range raw {
				raw[i] = byte(w.rnd.Uint32())
			}
			items = append(items, w.plain(raw))
		case 8, 9:
			w.fault("dishonest gateway: wild record")
			if h.gone || h.away > 0 {
				continue
			}
			wild := meter.WattHour(w.rnd.Uint64())
			var id chain.ID
			if len(w.closed) > 0 {
				id = pick(w, w.closed).id
			}
			records := []chain.Record{
				chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: chain.Slot(w.rnd.Int64()), Meter: "spare", Role: chain.Role(1 + w.rnd.IntN(4)), Page: w.rnd.Uint64(), Import: wild, Export: -wild, Quality: meter.Quality(w.rnd.IntN(7)), At: w.rnd.Int64(), Segment: w.rnd.Uint32()}),
				chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: id, Seq: w.rnd.Uint32N(9), Slot: chain.Slot(w.rnd.Int64()), Register: wild, Quality: meter.Good, At: w.rnd.Int64()}),
				chain.NewRecord(chain.KindSessionStop, chain.SessionStop{Session: id, Seq: w.rnd.Uint32N(9), Slot: w.slot, Register: wild, Quality: meter.Good, At: w.now, Reason: 1}),
				chain.NewRecord(chain.KindOffer, chain.Offer{From: w.slot, To: w.slot, Side: chain.Side(w.rnd.IntN(4)), Limit: chain.NanoPerWh(big)}),
				chain.NewRecord(chain.RecordKind(w.rnd.IntN(30)), "nothing"),
			}
			items = append(items, w.submit(h, nil, records[w.rnd.IntN(len(records))])...)
		case 10:
			w.fault("hostile: another microgrid's")
			items = append(items, w.plain(chain.SignTx("other", 1, chain.TxMint, chain.Mint{To: p.account(), Amount: 1, BankRef: "x"}, w.op.priv)))
		case 11:
			w.fault("hostile: foreign block")
			s := newHome(100_000 + w.rnd.IntN(5))
			items = append(items, w.plain(s.sign(w.now, chain.NewRecord(chain.KindEvent, chain.Event{Code: "x"}))))
		}
	}
	for _, i := range items {
		ledger.CheckTx(ledger.NewOverlay(w.st), i.raw) // admission never panics
	}
	return items
}
