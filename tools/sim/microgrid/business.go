package microgrid

import (
	"encoding/binary"
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// business is what people do about money, rules and promises. The operator
// says one thing in a block, as do all others.
func (w *Walk) business() (items []item) {
	tell := func(p *person, kind chain.TxKind, body any, done func()) {
		if !w.used[p.key] {
			items = append(items, w.tx(p, kind, body, done))
		}
	}
	owner := func() *home { return pick(w, w.homes) }
	id := func() (id chain.ID) {
		w.ids++
		binary.BigEndian.PutUint64(id[8:], w.ids)
		id[0] = 0xf1
		return id
	}
	// Somebody looks at the meters that have jumped.
	for i, q := range ledger.Quarantines(w.st) {
		if i == 2 {
			break
		}
		b, by := chain.MeterRelease{Device: q.Device, Connector: q.Connector, Meter: q.Meter, Reason: "soak"}, w.op
		w.fault("meter released")
		switch w.rnd.IntN(3) {
		case 0: // some of it was energy
			b.Import, by = min(q.ExcessImport, meter.WattHour(w.rnd.IntN(500))), w.aud
		case 1: // less than was billed
			if q.Connector == 0 {
				b.Import, b.Export = -q.CapImport/2, -q.CapExport/2
			}
		}
		tell(by, chain.TxMeterRelease, b, func() {
			for _, h := range w.homes {
				if h.key == b.Device && b.Meter == "site" {
					h.last.SegImp += b.Import
					h.last.SegExp += b.Export
				}
			}
		})
	}
	for range 3 {
		w.refs++
		ref := fmt.Sprint("ref ", w.refs)
		switch w.rnd.IntN(22) {
		case 0:
			w.fault("price change")
			from := w.slot + 3 + chain.Slot(w.rnd.IntN(20))
			to, r := from+chain.Slot(w.rnd.IntN(16)), chain.NanoPerWh(200_000+w.rnd.IntN(300_000))
			f := min(r, feedIn+chain.NanoPerWh(w.rnd.IntN(60_000)))
			tell(w.op, chain.TxTariff, chain.Tariff{From: from, To: to, Retail: r, FeedIn: f}, func() {
				for s := from; s <= to; s++ {
					w.books.tariffs[s] = [2]chain.NanoPerWh{r, f}
				}
			})
		case 1, 2:
			if len(w.closed) == 0 {
				continue
			}
			c := pick(w, w.closed)
			s, _ := ledger.SessionOf(w.st, c.id)
			if w.chance(0.5) {
				w.fault("refund")
				tell(w.op, chain.TxRefund, chain.Refund{Session: c.id, Amount: 1 + chain.Nano(w.rnd.Int64N(int64(s.Captured)+1)), Reason: "soak"}, nil)
			} else {
				w.fault("dispute")
				tell(c.by.person, chain.TxDispute, chain.Dispute{Session: c.id, Amount: 1 + chain.Nano(w.rnd.Int64N(int64(s.Captured)+1)), Reason: "soak"}, nil)
			}
		case 3:
			if len(w.disputes) > 0 {
				w.fault("dispute answered")
				n := pick(w, w.disputes)
				v, _ := ledger.DisputeOf(w.st, n)
				tell(w.op, chain.TxAnswer, chain.Answer{Dispute: n, Concede: chain.Nano(w.rnd.Int64N(int64(v.Amount) + 1)), Reason: "soak"}, nil)
			}
		case 4:
			if len(w.disputes) > 0 {
				w.fault("dispute resolved")
				n := pick(w, w.disputes)
				v, _ := ledger.DisputeOf(w.st, n)
				tell(w.aud, chain.TxResolve, chain.Resolve{Dispute: n, Refund: chain.Nano(w.rnd.Int64N(int64(v.Amount) + 1)), Reason: "soak"}, nil)
			}
		case 5:
			w.fault("payout asked")
			p := owner().owner
			have, _ := balanceOf(w.st, p.account())
			tell(p, chain.TxPayout, chain.Payout{Amount: have / 2 / 1e7 * 1e7}, nil)
		case 6:
			if len(w.payouts) > 0 {
				w.fault("payout paid")
				n := pick(w, w.payouts)
				v, _ := ledger.PayoutOf(w.st, n)
				tell(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: n, BankRef: ref}, func() { w.books.burned += v.Amount })
			}
		case 7:
			if len(w.payouts) > 0 {
				w.fault("payout cancelled")
				n := pick(w, w.payouts)
				for _, h := range w.homes {
					if v, _ := ledger.PayoutOf(w.st, n); v.Account == h.owner.account() {
						tell(h.owner, chain.TxPayoutCancel, chain.PayoutCancel{Payout: n}, nil)
						break
					}
				}
			}
		case 8:
			w.fault("firm offer")
			h := owner()
			f := chain.FirmOffer{ID: id(), Device: h.key, Side: chain.Side(1 + w.rnd.IntN(2)), From: w.slot + 4, Wh: meter.WattHour(50 + w.rnd.IntN(800)), Price: 100_000 + chain.NanoPerWh(w.rnd.IntN(150_000))}
			f.To = f.From + chain.Slot(w.rnd.IntN(12))
			tell(h.owner, chain.TxFirmOffer, f, func() { w.firms = append(w.firms, f.ID) })
		case 9, 10:
			if len(w.firms) > 0 {
				w.fault("firm taken")
				h := owner()
				tell(h.owner, chain.TxFirmTake, chain.FirmTake{Offer: w.firms[len(w.firms)-1], Device: h.key, Wh: meter.WattHour(1 + w.rnd.IntN(100))}, nil)
			}
		case 11:
			if len(w.firms) > 0 {
				w.fault("firm cancelled")
				for _, h := range w.homes {
					if o := ledger.FirmOffers(w.st, false); len(o) > 0 && o[0].Maker.Account == h.owner.account() {
						tell(h.owner, chain.TxFirmCancel, chain.FirmCancel{Offer: o[0].ID}, nil)
						break
					}
				}
			}
		case 12:
			w.fault("correction")
			h := owner()
			if h.gone || h.away > 0 || len(h.queue) > 0 {
				continue
			}
			c := chain.MeterCorrection{ID: id(), Slot: w.slot - 2 - chain.Slot(w.rnd.IntN(50)), Import: meter.WattHour(w.rnd.IntN(60) - 20), Export: meter.WattHour(w.rnd.IntN(40) - 20), Reason: "soak"}
			w.waits = append(w.waits, chain.CorrectionRuling{Device: h.key, Slot: c.Slot, ID: c.ID})
			items = append(items, w.submit(h, nil, chain.NewRecord(chain.KindMeterCorrection, c))...)
		case 13:
			if len(w.waits) > 0 {
				w.fault("correction ruled")
				c := w.waits[len(w.waits)-1]
				w.waits = w.waits[:len(w.waits)-1]
				c.Accept = w.chance(0.7)
				tell(w.op, chain.TxCorrection, c, nil)
			}
		case 14:
			if w.chance(0.1) && w.cfg.Faults > 0 {
				h := w.homes[len(w.homes)-1-w.rnd.IntN(max(1, len(w.homes)/4))] // not a validator, in a large microgrid
				w.fault("member revoked")
				tell(w.op, chain.TxRevoke, chain.Revoke{Device: h.key, Reason: "soak"}, func() {
					h.gone = true
					for _, c := range w.cars {
						if c.at != nil && c.at.home == h {
							c.at.clean = false
							c.at = nil
						}
					}
					delete(w.expected[w.slot], "buy/"+h.name)
					delete(w.expected[w.slot], "sell/"+h.name)
				})
			}
		case 15:
			if p := ledger.Unbilled(w.st); len(p) > 0 {
				w.fault("invoice")
				tell(w.op, chain.TxInvoice, chain.IssueInvoice{Account: pick(w, p)}, nil)
			}
		case 16:
			w.fault("transfer")
			a, b := owner().owner, owner().owner
			have, _ := balanceOf(w.st, a.account())
			tell(a, chain.TxTransfer, chain.Transfer{To: b.account(), Amount: have / 3}, nil)
		case 17:
			w.fault("money paid in")
			if !w.used[w.op.key] {
				items = append(items, w.mint(owner().owner.account(), chain.Nano(1+w.rnd.IntN(9))*1e9))
			}
		case 18:
			w.fault("reserve")
			if len(w.cars) > 0 {
				c := pick(w, w.cars)
				have, _ := balanceOf(w.st, c.account())
				amount := have / 10
				if w.chance(0.4) {
					amount = -amount
				}
				tell(c.person, chain.TxOffline, chain.Offline{Gateway: owner().key, Amount: amount}, nil)
			}
		case 19:
			w.fault("order to dim")
			tell(w.op, chain.TxDim, chain.Dim{Node: owner().feeder, Limit: 4200, Until: w.now + 3_600_000, Reason: "soak"}, nil)
		case 20:
			w.fault("network fees change")
			h := owner()
			p := plan{max(w.zoned, w.slot+2+chain.Slot(w.rnd.IntN(6))), h.feeder, edge{"root", chain.NanoPerWh(w.rnd.IntN(30_000))}}
			if w.chance(0.3) { // a house moves to another cable
				p.node, p.edge = h.name, edge{owner().feeder, chain.NanoPerWh(w.rnd.IntN(15_000))}
			}
			tell(w.op, chain.TxZones, chain.Zones{From: p.from, Nodes: []chain.Node{{ID: p.node, Parent: p.parent, Fee: p.fee}}}, func() {
				w.zoned = p.from
				w.books.plans = append(w.books.plans, p)
			})
		case 21:
			w.fault("rules change")
			earn, grace := int64(w.rnd.IntN(earnPPM+1)), int64(30+w.rnd.IntN(60))
			tell(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 3 + int64(w.rnd.IntN(40)), EarnPPM: &earn, Grace: &grace}, nil)
		}
	}
	return items
}
