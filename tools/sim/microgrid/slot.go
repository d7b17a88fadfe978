package microgrid

import (
	"bytes"
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

const readingsPerBlock = 500

// Slot lives through one slot of fifteen minutes: people act, cars come, the
// meters are read, and at every turn something may go wrong.
func (w *Walk) Slot() error {
	b, e := w.begin(w.Current), w.end(w.Current)
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
		w.Now = max(w.Now, turn.at-1000)
		w.succeed()
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
	w.Current++
	w.Count.Slots++
	return nil
}

// submit hands a home's block to the ledger, or keeps it while the gateway is
// cut off. A neighbour may hand it in as well.
func (w *Walk) submit(h *home, done func(ledger.TxResult), records ...chain.Record) []item {
	w.Count.Records += len(records)
	raw := h.sign(w.Now, records...)
	if h.cut() || h.Flushed == w.Height+1 {
		h.Queue = append(h.Queue, raw)
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
	for _, h := range w.Homes {
		if h.Away == 0 && len(h.Queue) > 0 {
			items = append(items, w.plain(h.Queue[0]))
			h.Queue, h.Flushed = h.Queue[1:], w.Height+1
			w.spoil(h)
		}
	}
	return items
}

// wrong decides whether something goes wrong for one home or session now.
func (w *Walk) wrong() bool { return w.cfg.Faults > 0 && w.chance(w.cfg.Faults) }

// begins states the begin registers.
func (w *Walk) begins() (items []item) {
	for _, c := range w.Cars {
		s := c.at
		if s == nil || s.Begun {
			continue
		}
		if w.Now-s.Opened > 700_000 {
			continue // it will expire
		}
		if w.wrong() {
			w.fault("payment without energy")
			continue
		}
		s.Begun, s.Since, s.Begin, s.Seq = true, w.Now, s.Reg, 1
		shown := s.Reg
		if w.wrong() {
			w.fault("begin register 0")
			shown, s.Clean = 0, false
			w.spoil(s.home)
		}
		if s.home.cut() {
			s.Clean = false
		}
		items = append(items, w.submit(s.home, nil, w.state(s, 1, shown, meter.Good))...)
	}
	return items
}

// spoil says that a home's next fills are not to be predicted.
func (w *Walk) spoil(h *home) { h.Dirty = max(h.Dirty, 3) }

func (w *Walk) state(s *charging, seq uint32, shown meter.WattHour, q meter.Quality) chain.Record {
	m := chain.SessionMeter{Session: s.ID, Seq: seq, Slot: w.Current + s.home.Skew, Register: shown, Quality: q, At: w.clock(s.home)}
	if s.Quote.SellWh > 0 {
		m.Export = s.Out
	}
	return chain.NewRecord(chain.KindSessionMeter, m)
}

// clock is what a gateway's clock says.
func (w *Walk) clock(h *home) int64 { return w.Now + int64(h.Skew)*slotMs }

// flow lets the car charge, or give, until now.
func (w *Walk) flow(s *charging) {
	wh := meter.WattHour(s.Power * (w.Now - s.Since) / 3_600_000)
	s.Since = w.Now
	if wh >= 0 {
		wh = min(wh, s.Quote.MaxWh-(s.Reg-s.Begin))
		s.Reg += wh
		s.home.EV += wh
		return
	}
	wh = min(-wh, s.Quote.SellWh-s.Given) // its floor
	s.Given += wh
	s.Out += wh
	s.home.V2G += wh
}

// report states a session's register, rightly or not.
func (w *Walk) report(s *charging) []chain.Record {
	w.flow(s)
	s.Seq++
	shown, q := s.Reg, meter.Good
	s.Clean = s.Clean && s.home.Skew == 0
	if w.wrong() {
		s.Clean = false
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
			s.Seq++
		case 5:
			w.fault("session record repeated")
			s.Seq--
		case 6:
			w.fault("session stuck")
			shown = s.Begin
		}
	}
	return []chain.Record{w.state(s, s.Seq, shown, q)}
}

// stop ends a session, once or more often.
func (w *Walk) stop(s *charging) []chain.Record {
	records := w.report(s)
	m := chain.SessionStop{Session: s.ID, Seq: s.Seq + 1, Slot: w.Current + s.home.Skew, Register: s.Reg, Quality: meter.Good, At: w.clock(s.home), Reason: chain.StopDriver, Receipt: chain.Sum(s.ID[:])}
	if s.Quote.SellWh > 0 {
		m.Export = s.Out
	}
	s.Seq++
	records = append(records, chain.NewRecord(chain.KindSessionStop, m))
	if w.wrong() {
		w.fault("conflicting stop")
		m.Register += 700
		records = append(records, chain.NewRecord(chain.KindSessionStop, m))
	}
	if w.wrong() {
		w.fault("energy after stop")
		records = append(records, w.state(s, s.Seq+1, s.Reg+90, meter.Good))
	}
	s.by.at = nil
	s.by.Rest = 4 + w.rnd.IntN(60)
	return records
}

// departures stops the sessions that end within a slot.
func (w *Walk) departures() (items []item) {
	for _, c := range w.Cars {
		s := c.at
		if s == nil || !s.Begun || s.Ends > w.Now && s.Reg-s.Begin < s.Quote.MaxWh {
			continue
		}
		if w.wrong() {
			w.fault("stop missing")
			s.Clean, c.at = false, nil
			w.spoil(s.home)
			continue
		}
		if s.home.cut() {
			s.Clean = false
		}
		items = append(items, w.submit(s.home, nil, w.stop(s)...)...)
	}
	return items
}

// readings states every home's registers at the slot's end.
func (w *Walk) readings() (items []item) {
	charging := map[*home][]*charging{}
	for _, c := range w.Cars {
		if c.at != nil && c.at.Begun {
			charging[c.at.home] = append(charging[c.at.home], c.at)
		}
	}
	hour := int64(w.Current) % 96 / 4
	sun := max(0, 6-max(hour-12, 12-hour)) // 0..6 of 6
	w.Expected[w.Current] = map[string]meter.WattHour{}
	for _, h := range w.Homes {
		if h.Gone {
			continue
		}
		if h.Away > 0 {
			h.Away--
			w.spoil(h)
		}
		if h.Skewed > 0 {
			if h.Skewed--; h.Skewed == 0 {
				h.Skew = 0
			}
			w.doubt(h)
		}
		var records []chain.Record
		for _, s := range charging[h] {
			if h.cut() || h.Skewed > 0 {
				s.Clean = false
			}
			records = append(records, w.report(s)...)
			if !s.Clean {
				w.spoil(h)
			}
		}
		if len(h.Queue) > 0 {
			w.spoil(h)
		}
		load := meter.WattHour(30 + w.rnd.IntN(400))
		made := meter.WattHour(h.pv * sun / 6 * int64(60+w.rnd.IntN(40)) / 400)
		h.Gen += made
		in, out := w.store(h, made-load)
		net := load + h.EV - h.V2G - made + in - out
		imp, exp := max(net, 0), max(-net, 0)
		h.Imp += imp
		h.Exp += exp
		if max(imp, exp) > maxPower*slotMs/3_600_000 {
			w.spoil(h) // more than its connection carries: the ledger will doubt it
		}
		records = append(records, w.site(h)...)
		if h.Dirty == 0 {
			used, gave := max(0, h.V2G-exp), max(0, h.EV-imp)
			through := min(used, gave)
			w.Expected[w.Current]["buy/"+h.name] = max(0, imp-h.EV) + used - through
			w.Expected[w.Current]["sell/"+h.name] = max(0, exp-h.V2G) + gave - through
		} else {
			h.Dirty--
		}
		if h.V2G > exp {
			w.fault("v2h: a car feeds its house")
		}
		if min(h.V2G, exp) > 0 {
			w.fault("v2g: a car feeds the grid")
		}
		h.EV, h.V2G = 0, 0
		if w.chance(0.02) {
			limit := feedIn + chain.NanoPerWh(w.rnd.IntN(300_000))
			records = append(records, chain.NewRecord(chain.KindOffer, chain.Offer{From: w.Current + 1, To: w.Current + 9, Side: chain.Side(1 + w.rnd.IntN(2)), Limit: limit}))
		}
		if len(records) == 0 {
			continue
		}
		if w.wrong() && !h.cut() {
			w.fault("partition")
			h.Away = 1 + w.rnd.IntN(8)
			w.spoil(h)
			for _, s := range charging[h] {
				s.Clean = false
			}
			delete(w.Expected[w.Current], "buy/"+h.name)
			delete(w.Expected[w.Current], "sell/"+h.name)
		}
		items = append(items, w.submit(h, nil, records...)...)
		if w.wrong() && !h.cut() { // else the other truth would come first
			switch w.rnd.IntN(2) {
			case 0:
				w.fault("equivocation")
				twin := *h
				if twin.Pos.Number--; twin.Pos.Number == 0 {
					twin.Prev = chain.Hash{}
				}
				items = append(items, w.plain(twin.sign(w.Now, chain.NewRecord(chain.KindEvent, chain.Event{Code: fmt.Sprint(w.rnd.Uint64())}))))
			case 1:
				w.fault("journal lost")
				h.Pos, h.Prev, h.Queue = chain.Position{Epoch: h.Pos.Epoch + 1}, chain.Hash{}, nil
				for _, s := range charging[h] {
					s.Clean = false
				}
				w.spoil(h)
			}
		}
	}
	if len(w.Expected) > 64 { // slots that cleared without energy
		for s := range w.Expected {
			if s < w.Current-32 {
				delete(w.Expected, s)
			}
		}
	}
	return items
}

// site states the site meter, and the roof's if there is one, rightly or not.
func (w *Walk) site(h *home) []chain.Record {
	imp, exp, q := h.Imp+h.OffImp, h.Exp+h.OffExp, meter.Good
	if h.Stuck > 0 {
		h.Stuck--
		h.Dirty = 9 // what it has missed looks like a jump, until enough time has passed
		imp, exp = h.Shown.Imp, h.Shown.Exp
	} else if w.wrong() {
		w.spoil(h)
		switch w.rnd.IntN(12) {
		case 0:
			w.fault("meter stuck")
			h.Stuck = 1 + w.rnd.IntN(3)
			imp, exp = h.Shown.Imp, h.Shown.Exp
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
			h.Segment++
			h.OffImp, h.OffExp = meter.WattHour(w.rnd.IntN(50))-h.Imp, meter.WattHour(w.rnd.IntN(50))-h.Exp
			imp, exp = h.Imp+h.OffImp, h.Exp+h.OffExp
			h.Shown = reg{imp, exp}
		case 7:
			w.fault("clock says 1970")
			h.Page++
			return []chain.Record{chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: 3, Meter: "site", Role: chain.RoleSite, Page: h.Page, Import: imp, Export: exp, Quality: q, At: 4000, Count: 1, Segment: h.Segment})}
		case 8:
			w.fault("reading repeated")
			records := w.reading(h, w.Current, imp, exp, q)
			return append(records, records[0])
		case 9:
			w.fault("clock ahead")
			h.Skew, h.Skewed = 1+chain.Slot(w.rnd.IntN(4)), 1+w.rnd.IntN(6)
		case 10:
			w.fault("clock behind")
			h.Skew, h.Skewed = -1-chain.Slot(w.rnd.IntN(40)), 1+w.rnd.IntN(6)
		case 11:
			w.fault("clock years apart")
			h.Skew, h.Skewed = chain.Slot(w.rnd.IntN(2)*2-1)*96*400, 1+w.rnd.IntN(2)
		}
		if h.Skewed > 0 {
			w.doubt(h)
		}
	}
	if h.Dirty == 0 {
		h.Shown = reg{imp, exp}
	}
	return w.reading(h, w.Current+h.Skew, imp, exp, q)
}

func (w *Walk) reading(h *home, s chain.Slot, imp, exp meter.WattHour, q meter.Quality) []chain.Record {
	h.Page++
	records := []chain.Record{chain.NewRecord(chain.KindMeter, chain.MeterRecord{
		Slot: s, Meter: "site", Role: chain.RoleSite, Page: h.Page, Import: imp, Export: exp, Quality: q, At: w.end(s), Count: 1, Segment: h.Segment, Root: chain.Sum([]byte(h.name)),
	})}
	if h.pv > 0 {
		h.PVPage++
		records = append(records, chain.NewRecord(chain.KindMeter, chain.MeterRecord{
			Slot: s, Meter: "pv", Role: chain.RoleProduction, Page: h.PVPage, Export: h.Gen, Quality: meter.Good, At: w.end(s), Count: 1,
		}))
	}
	if h.battery {
		h.BatteryPage++
		records = append(records, chain.NewRecord(chain.KindMeter, chain.MeterRecord{
			Slot: s, Meter: "battery", Role: chain.RoleStorage, Page: h.BatteryPage, Import: h.In, Export: h.Out, Quality: meter.Good, At: w.end(s), Count: 1,
		}))
	}
	return records
}

// store lets the battery take a surplus, or help out, and tells both by its
// registers.
func (w *Walk) store(h *home, surplus meter.WattHour) (in, out meter.WattHour) {
	if !h.battery {
		return 0, 0
	}
	if surplus > 0 {
		w.fault("battery charges")
		in = min(surplus, 1000)
	} else if full := h.In*9/10 - h.Out; full > 0 {
		w.fault("battery discharges")
		out = min(-surplus, full, 1000)
	}
	h.In += in
	h.Out += out
	return in, out
}

// hostile makes what should not work.
func (w *Walk) hostile() (items []item) {
	if w.cfg.Faults == 0 {
		return nil
	}
	for range w.rnd.IntN(4) {
		h := pick(w, w.Homes)
		p := newPerson(fmt.Sprint("nobody ", w.rnd.IntN(5)))
		big := chain.Nano(w.rnd.Uint64())
		sign := func(p *person, kind chain.TxKind, body any) { // without a claim to the nonce
			items = append(items, w.plain(chain.SignTx(chainID, ledger.NextNonce(w.st, p.key), kind, body, p.priv)))
		}
		switch w.rnd.IntN(14) {
		case 0:
			w.fault("hostile: replay")
			items = append(items, w.plain(pick(w, w.History)))
		case 1:
			w.fault("hostile: damaged")
			raw := bytes.Clone(pick(w, w.History))
			for range 1 + w.rnd.IntN(3) {
				raw[w.rnd.IntN(len(raw))] ^= byte(1 + w.rnd.IntN(255))
			}
			items = append(items, w.plain(raw))
		case 2:
			w.fault("hostile: forged mint")
			sign(p, chain.TxMint, chain.Mint{To: p.account(), Amount: 1e9, BankRef: "mine"})
		case 3:
			w.fault("hostile: overflow")
			sign(p, chain.TxTransfer, chain.Transfer{To: h.Owner.account(), Amount: big})
		case 4:
			w.fault("hostile: payout of nothing")
			sign(p, chain.TxPayout, chain.Payout{Amount: big / 1e7 * 1e7})
		case 5:
			w.fault("hostile: dispute of others' session")
			if len(w.Ended) > 0 {
				sign(p, chain.TxDispute, chain.Dispute{Session: pick(w, w.Ended).ID, Amount: 1, Reason: "greed"})
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
			if h.Gone || h.Away > 0 {
				continue
			}
			wild := meter.WattHour(w.rnd.Uint64())
			var id chain.ID
			if len(w.Ended) > 0 {
				id = pick(w, w.Ended).ID
			}
			records := []chain.Record{
				chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: chain.Slot(w.rnd.Int64()), Meter: "spare", Role: chain.Role(1 + w.rnd.IntN(4)), Page: w.rnd.Uint64(), Import: wild, Export: -wild, Quality: meter.Quality(w.rnd.IntN(7)), At: w.rnd.Int64(), Segment: w.rnd.Uint32()}),
				chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: id, Seq: w.rnd.Uint32N(9), Slot: chain.Slot(w.rnd.Int64()), Register: wild, Quality: meter.Good, At: w.rnd.Int64()}),
				chain.NewRecord(chain.KindSessionStop, chain.SessionStop{Session: id, Seq: w.rnd.Uint32N(9), Slot: w.Current, Register: wild, Quality: meter.Good, At: w.Now, Reason: 1}),
				chain.NewRecord(chain.KindOffer, chain.Offer{From: w.Current, To: w.Current, Side: chain.Side(w.rnd.IntN(4)), Limit: chain.NanoPerWh(big)}),
				chain.NewRecord(chain.RecordKind(w.rnd.IntN(30)), "nothing"),
			}
			items = append(items, w.submit(h, nil, records[w.rnd.IntN(len(records))])...)
		case 10:
			w.fault("hostile: another microgrid's")
			items = append(items, w.plain(chain.SignTx("other", 1, chain.TxMint, chain.Mint{To: p.account(), Amount: 1, BankRef: "x"}, w.Operator.priv)))
		case 11:
			w.fault("hostile: foreign block")
			s := newHome(100_000 + w.rnd.IntN(5))
			items = append(items, w.plain(s.sign(w.Now, chain.NewRecord(chain.KindEvent, chain.Event{Code: "x"}))))
		case 12:
			if len(w.Retired) > 0 {
				w.fault("hostile: retired operator's key")
				sign(pick(w, w.Retired), chain.TxMint, chain.Mint{To: h.Owner.account(), Amount: 1e12, BankRef: fmt.Sprint("old ", w.IDs)})
			}
		case 13:
			w.fault("hostile: joins uninvited")
			if h.N >= w.cfg.Homes {
				p = newPerson(fmt.Sprint("once ", h.N)) // the invitation was used
			}
			sign(p, chain.TxJoin, newHome(100_000+w.rnd.IntN(5)).join(true))
		}
	}
	for _, i := range items {
		ledger.CheckTx(ledger.NewOverlay(w.st), i.raw) // admission never panics
	}
	return items
}
