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
	owner := func() *home { return pick(w, w.Homes) }
	id := func() (id chain.ID) {
		w.IDs++
		binary.BigEndian.PutUint64(id[8:], w.IDs)
		id[0] = 0xf1
		return id
	}
	// Somebody looks at the meters that have jumped.
	for i, q := range ledger.Quarantines(w.st) {
		if i == 2 {
			break
		}
		b, by := chain.MeterRelease{Device: q.Device, Connector: q.Connector, Meter: q.Meter, Reason: "soak"}, w.Operator
		w.fault("meter released")
		switch w.rnd.IntN(3) {
		case 0: // some of it was energy
			b.Import, by = min(q.ExcessImport, meter.WattHour(w.rnd.IntN(500))), w.Auditor
		case 1: // less than was billed
			if q.Connector == 0 {
				b.Import, b.Export = -q.CapImport/2, -q.CapExport/2
			}
		}
		tell(by, chain.TxMeterRelease, b, func() {
			for _, h := range w.Homes {
				if h.key == b.Device && b.Meter == "site" {
					h.Last.SegImp += b.Import
					h.Last.SegExp += b.Export
				}
			}
		})
	}
	items = append(items, w.joins()...)
	for range 3 {
		w.Refs++
		ref := fmt.Sprint("ref ", w.Refs)
		switch w.rnd.IntN(30) {
		case 0:
			w.fault("price change")
			from := w.Current + 3 + chain.Slot(w.rnd.IntN(20))
			to, r := from+chain.Slot(w.rnd.IntN(16)), chain.NanoPerWh(200_000+w.rnd.IntN(300_000))
			f := min(r, feedIn+chain.NanoPerWh(w.rnd.IntN(60_000)))
			tell(w.Operator, chain.TxTariff, chain.Tariff{From: from, To: to, Retail: r, FeedIn: f}, func() {
				for s := from; s <= to; s++ {
					w.Books.Tariffs[s] = [2]chain.NanoPerWh{r, f}
				}
			})
		case 1, 2:
			if len(w.Ended) == 0 {
				continue
			}
			c := pick(w, w.Ended)
			s, _ := ledger.SessionOf(w.st, c.ID)
			if w.chance(0.5) {
				w.fault("refund")
				tell(w.Operator, chain.TxRefund, chain.Refund{Session: c.ID, Amount: 1 + chain.Nano(w.rnd.Int64N(int64(s.Captured)+1)), Reason: "soak"}, nil)
			} else {
				w.fault("dispute")
				tell(w.pays(c), chain.TxDispute, chain.Dispute{Session: c.ID, Amount: 1 + chain.Nano(w.rnd.Int64N(int64(s.Captured)+1)), Reason: "soak"}, nil)
			}
		case 3:
			if len(w.Disputes) > 0 {
				w.fault("dispute answered")
				n := pick(w, w.Disputes)
				v, _ := ledger.DisputeOf(w.st, n)
				tell(w.Operator, chain.TxAnswer, chain.Answer{Dispute: n, Concede: chain.Nano(w.rnd.Int64N(int64(v.Amount) + 1)), Reason: "soak"}, nil)
			}
		case 4:
			if len(w.Disputes) > 0 {
				w.fault("dispute resolved")
				n := pick(w, w.Disputes)
				v, _ := ledger.DisputeOf(w.st, n)
				tell(w.Auditor, chain.TxResolve, chain.Resolve{Dispute: n, Refund: chain.Nano(w.rnd.Int64N(int64(v.Amount) + 1)), Reason: "soak"}, nil)
			}
		case 5:
			w.fault("payout asked")
			p := owner().Owner
			have, _ := balanceOf(w.st, p.account())
			tell(p, chain.TxPayout, chain.Payout{Amount: have / 2 / 1e7 * 1e7}, nil)
		case 6:
			if len(w.Payouts) > 0 {
				w.fault("payout paid")
				n := pick(w, w.Payouts)
				v, _ := ledger.PayoutOf(w.st, n)
				tell(w.Operator, chain.TxPayoutPaid, chain.PayoutPaid{Payout: n, BankRef: ref}, func() { w.Books.Burned += v.Amount })
			}
		case 7:
			if len(w.Payouts) > 0 {
				w.fault("payout cancelled")
				n := pick(w, w.Payouts)
				for _, h := range w.Homes {
					if v, _ := ledger.PayoutOf(w.st, n); v.Account == h.Owner.account() {
						tell(h.Owner, chain.TxPayoutCancel, chain.PayoutCancel{Payout: n}, nil)
						break
					}
				}
			}
		case 8:
			w.fault("firm offer")
			h := owner()
			f := chain.FirmOffer{ID: id(), Device: h.key, Side: chain.Side(1 + w.rnd.IntN(2)), From: w.Current + 4, Wh: meter.WattHour(50 + w.rnd.IntN(800)), Price: 100_000 + chain.NanoPerWh(w.rnd.IntN(150_000))}
			f.To = f.From + chain.Slot(w.rnd.IntN(12))
			tell(h.Owner, chain.TxFirmOffer, f, func() { w.Firms = append(w.Firms, f.ID) })
		case 9, 10:
			if len(w.Firms) > 0 {
				w.fault("firm taken")
				h := owner()
				tell(h.Owner, chain.TxFirmTake, chain.FirmTake{Offer: w.Firms[len(w.Firms)-1], Device: h.key, Wh: meter.WattHour(1 + w.rnd.IntN(100))}, nil)
			}
		case 11:
			if len(w.Firms) > 0 {
				w.fault("firm cancelled")
				for _, h := range w.Homes {
					if o := ledger.FirmOffers(w.st, false); len(o) > 0 && o[0].Maker.Account == h.Owner.account() {
						tell(h.Owner, chain.TxFirmCancel, chain.FirmCancel{Offer: o[0].ID}, nil)
						break
					}
				}
			}
		case 12:
			w.fault("correction")
			h := owner()
			if h.Gone || h.cut() {
				continue
			}
			c := chain.MeterCorrection{ID: id(), Slot: w.Current - 2 - chain.Slot(w.rnd.IntN(50)), Import: meter.WattHour(w.rnd.IntN(60) - 20), Export: meter.WattHour(w.rnd.IntN(40) - 20), Reason: "soak"}
			w.Waits = append(w.Waits, chain.CorrectionRuling{Device: h.key, Slot: c.Slot, ID: c.ID})
			items = append(items, w.submit(h, nil, chain.NewRecord(chain.KindMeterCorrection, c))...)
		case 13:
			if len(w.Waits) > 0 {
				w.fault("correction ruled")
				c := w.Waits[len(w.Waits)-1]
				w.Waits = w.Waits[:len(w.Waits)-1]
				c.Accept = w.chance(0.7)
				tell(w.Operator, chain.TxCorrection, c, nil)
			}
		case 14:
			if w.chance(0.5) && w.cfg.Faults > 0 {
				items = append(items, w.revoke()...)
			}
		case 15:
			if p := ledger.Unbilled(w.st); len(p) > 0 {
				w.fault("invoice")
				tell(w.Operator, chain.TxInvoice, chain.IssueInvoice{Account: pick(w, p)}, nil)
			}
		case 16:
			w.fault("transfer")
			a, b := owner().Owner, owner().Owner
			have, _ := balanceOf(w.st, a.account())
			tell(a, chain.TxTransfer, chain.Transfer{To: b.account(), Amount: have / 3}, nil)
		case 17:
			w.fault("money paid in")
			if !w.used[w.Operator.key] {
				items = append(items, w.mint(owner().Owner.account(), chain.Nano(1+w.rnd.IntN(9))*1e9))
			}
		case 18:
			if len(w.Cars) == 0 {
				continue
			}
			c := pick(w, w.Cars)
			if w.chance(0.7) {
				w.fault("reserve")
				items = append(items, w.setApart(c, 10)...)
			} else if r := ledger.Reserves(w.st, w.payer(c).account()); len(r) > 0 {
				w.fault("reserve asked back")
				v := pick(w, r)
				tell(w.payer(c), chain.TxOffline, chain.Offline{Gateway: v.Gateway, Amount: -v.Amount / 3}, nil)
			}
		case 19:
			w.fault("order to dim")
			tell(w.Operator, chain.TxDim, chain.Dim{Node: owner().Feeder, Limit: 4200, Until: w.Now + 3_600_000, Reason: "soak"}, nil)
		case 20:
			w.fault("network fees change")
			h := owner()
			p := plan{max(w.Zoned, w.Current+2+chain.Slot(w.rnd.IntN(6))), h.Feeder, edge{"root", chain.NanoPerWh(w.rnd.IntN(30_000))}}
			if w.chance(0.3) { // a house moves to another cable
				p.Node, p.Edge = h.name, edge{owner().Feeder, chain.NanoPerWh(w.rnd.IntN(15_000))}
			}
			tell(w.Operator, chain.TxZones, chain.Zones{From: p.From, Nodes: []chain.Node{{ID: p.Node, Parent: p.Edge.Parent, Fee: p.Edge.Fee}}}, func() {
				w.Zoned = p.From
				w.Books.Plans = append(w.Books.Plans, p)
			})
		case 21:
			w.fault("rules change")
			earn, grace := int64(w.rnd.IntN(earnPPM+1)), int64(30+w.rnd.IntN(60))
			tell(w.Operator, chain.TxRules, chain.RulesChange{Height: w.Height + 3 + int64(w.rnd.IntN(40)), EarnPPM: &earn, Grace: &grace}, nil)
		case 22, 23, 28:
			if w.cfg.Faults > 0 && !w.used[w.Operator.key] {
				w.fault("gateway invited")
				items = append(items, w.invite(w.replaced()))
			}
		case 24:
			if w.cfg.Faults > 0 && w.chance(0.6) {
				items = append(items, w.handOver()...)
			}
		case 25:
			if len(w.Cars) == 0 {
				continue
			}
			if c := pick(w, w.Cars); c.Card != nil {
				w.fault("card lost")
				tell(w.payer(c), chain.TxMandateRevoke, chain.MandateRevoke{Token: c.Card.key}, func() { c.Card, c.Lost = nil, c.Card })
			} else if !w.used[w.payer(c).key] {
				w.fault("card issued")
				items = append(items, w.issue(c))
			}
		case 26, 29:
			for _, c := range w.Cars {
				if s := c.at; s != nil && s.Quote.SellWh > s.Given && s.Quote.Driver == c.Driver.key {
					w.fault("firm offer of a car")
					f := chain.FirmOffer{ID: id(), Device: s.home.key, Session: s.ID, Side: chain.Sell, From: w.Current + 2, To: w.Current + 3, Wh: meter.WattHour(50 + w.rnd.IntN(300)), Price: 100_000 + chain.NanoPerWh(w.rnd.IntN(100_000))}
					tell(c.Driver, chain.TxFirmOffer, f, func() { w.Firms = append(w.Firms, f.ID) })
					break
				}
			}
		case 27:
			w.fault("attested")
			tell(w.Auditor, chain.TxAttest, chain.Attestation{Scope: "soak", From: start, To: w.Now, Expires: w.Now + 7*86_400_000}, nil)
		}
	}
	return items
}
