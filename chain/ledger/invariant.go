package ledger

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// faults gathers violations, one line each.
type faults []string

func (f *faults) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

// CheckInvariants checks the invariants over the whole state and returns one
// line per violation.
//
//  1. Money in accounts and holds = minted - burned; what payouts and settlements lock and
//     disputes freeze is on its account.
//  2. Discount credit outstanding = credit reserve; nobody gets back more than he paid.
//  3. No negative balance; captured + released + disputed = held; what gateways may charge
//     offline against a driver is, in sum, money that he has set apart.
//  4. Buyers pay at most, sellers get at least their limit; paid = received + fees.
//  5. Bought = sold in every slot, every Wh in one trade and at most one certificate;
//     produced + imported = consumed + exported + lost.
//  6. Meters and sessions never run backwards.
//
// The seventh, that the same input gives the same state on every gateway, is
// what the app hash shows.
func CheckInvariants(st State) []string {
	var f faults
	f.money(st)
	f.firm(st)
	f.settlements(st)
	pending, sold := map[chain.ID]meter.WattHour{}, map[chain.ID]meter.WattHour{}
	each(st, key(tabLoad), func(k []byte, wh meter.WattHour) bool {
		pending[chain.ID(k[8:])] += wh
		return true
	})
	each(st, key(tabSale), func(k []byte, wh meter.WattHour) bool {
		sold[chain.ID(k[8:])] += wh
		return true
	})
	each(st, key(tabSession), func(_ []byte, s SessionView) bool {
		f.session(&s)
		if s.PendingWh != pending[s.ID] || s.PendingSold != sold[s.ID] {
			f.add("session %s waits for %d and %d Wh, its slots have %d and %d", s.ID, s.PendingWh, s.PendingSold, pending[s.ID], sold[s.ID])
		}
		if indexed := st.Get(openKey(s.ID)) != nil; indexed != s.State.Open() {
			f.add("session %s is %s, in the index of open ones: %t", s.ID, s.State, indexed)
		}
		return true
	})
	each(st, key(tabSlot), func(_ []byte, v SlotView) bool {
		f.slot(st, &v)
		return true
	})
	each(st, key(tabBill), func(k []byte, b bill) bool {
		f.bill(st, chain.ID(k), b)
		return true
	})
	f.documents(st)
	f.reserves(st)
	f.totals(st)
	return f
}

// checkBlock checks after a block what CheckInvariants checks: money and
// credits in full, of sessions, slots and meters those that the block changed.
// The others are as they were when they were checked.
func checkBlock(block *Overlay) []string {
	var f faults
	f.money(block)
	firm, reserved, settled := false, false, false
	block.changed(func(k, before, after []byte) {
		reserved = reserved || k[0] == tabReserve || k[0] == tabReserveDue
		settled = settled || k[0] == tabSettlement || k[0] == tabAccount && chain.Account(k[1:]) == chain.AccountSettlement
		firm = firm || k[0] == tabFirm || k[0] == tabContract || k[0] == tabAccount && chain.Account(k[1:]) == chain.AccountCollateral
		switch {
		case k[0] == tabSession && after != nil:
			s := must[SessionView](k, after)
			f.session(&s)
			f.sessionStep(k, before, &s)
		case k[0] == tabSlot && after != nil:
			v := must[SlotView](k, after)
			f.slot(block, &v)
			if before != nil {
				f.add("slot %d was cleared again", v.Slot)
			}
		case k[0] == tabBill && after != nil:
			f.bill(block, chain.ID(k[1:]), must[bill](k, after))
		case k[0] == tabInvoice && before != nil:
			f.add("document %x was changed", k)
		case k[0] == tabMeter && after != nil:
			// A register in quarantine may move as it likes: it bills nothing.
			if device := chain.Key(k[1:33]); block.Get(quarantineKey(device, 0, string(k[33:]))) == nil && block.parent.Get(quarantineKey(device, 0, string(k[33:]))) == nil {
				f.meterStep(k, before, must[MeterView](k, after))
			}
		case (k[0] == tabSession || k[0] == tabSlot || k[0] == tabFill || k[0] == tabDelivery || k[0] == tabCorrection) && after == nil && !mayRemove(block, k, before):
			f.add("entry %x was removed", k)
		}
	})
	if firm {
		f.firm(block)
	}
	if settled {
		f.settlements(block)
	}
	if reserved {
		f.reserves(block)
	}
	f.totals(block)
	return f
}

// checkDelta checks that what one transaction changed neither made nor lost
// money or credit, whatever the transaction was meant to do.
func checkDelta(tx *Overlay) []string {
	var f faults
	var money, minted, credit, reserve, locked, settling, frozen chain.Nano
	tx.changed(func(k, before, after []byte) {
		switch k[0] {
		case tabAccount:
			a := chain.Account(k[1:])
			n := zeroOr[chain.Nano](k, after)
			d := n - zeroOr[chain.Nano](k, before)
			money += d
			switch a {
			case chain.AccountReserve:
				reserve = d
			case chain.AccountPayout:
				locked += d
			case chain.AccountSettlement:
				settling += d
			case chain.AccountDispute:
				frozen += d
			}
			if n < 0 {
				f.add("account %s would have %d", a, n)
			}
		case tabSession:
			b, a := zeroOr[SessionView](k, before), zeroOr[SessionView](k, after)
			money += a.remaining() - b.remaining()
			f.session(&a)
		case tabLot:
			credit += zeroOr[lot](k, after).Amount - zeroOr[lot](k, before).Amount
		case tabPayout:
			b, a := zeroOr[PayoutView](k, before), zeroOr[PayoutView](k, after)
			locked -= a.locked() - b.locked()
		case tabSettlement:
			b, a := zeroOr[SettlementView](k, before), zeroOr[SettlementView](k, after)
			settling -= a.locked() - b.locked()
		case tabDispute:
			b, a := zeroOr[DisputeView](k, before), zeroOr[DisputeView](k, after)
			frozen -= a.frozen() - b.frozen()
		case tabMoney:
			b, a := zeroOr[supply](k, before), zeroOr[supply](k, after)
			minted = (a.Minted - b.Minted) - (a.Burned - b.Burned)
		}
	})
	if money != minted {
		f.add("money would change by %d, minted less burned by %d", money, minted)
	}
	if credit != reserve {
		f.add("credits would change by %d, their reserve by %d", credit, reserve)
	}
	if locked != 0 || settling != 0 || frozen != 0 {
		f.add("payouts would lock %d, settlements %d and disputes freeze %d of nobody's money", locked, settling, frozen)
	}
	return f
}

func zeroOr[T any](key, value []byte) T {
	if value == nil {
		var zero T
		return zero
	}
	return must[T](key, value)
}

// money checks 1, 2 and 3.
func (f *faults) money(st State) {
	var sum, credit chain.Nano
	count := func(n chain.Nano) {
		var err error
		if sum, err = chain.AddNano(sum, n); err != nil {
			f.add("the sum of money overflows")
		}
	}
	each(st, key(tabAccount), func(k []byte, n chain.Nano) bool {
		if n < 0 {
			f.add("account %s has %d", chain.Account(k), n)
		}
		count(n)
		return true
	})
	for _, id := range openSessions(st) {
		s := session(st, id)
		if !s.State.Open() {
			f.add("session %s is %s and in the index of open ones", id, s.State)
		}
		count(s.remaining())
	}
	m, _ := get[supply](st, key(tabMoney))
	if sum != m.Minted-m.Burned {
		f.add("accounts and holds have %d, minted %d less burned %d", sum, m.Minted, m.Burned)
	}
	each(st, key(tabLot), func(k []byte, l lot) bool {
		if l.Amount <= 0 {
			f.add("lot %x has %d", k, l.Amount)
		}
		credit += l.Amount
		return true
	})
	if reserve := balance(st, chain.AccountReserve); credit != reserve {
		f.add("credits outstanding are %d, their reserve is %d", credit, reserve)
	}
	var asked, frozen chain.Nano
	for _, v := range OpenPayouts(st) {
		asked += v.locked()
	}
	for _, n := range todo(st, todoDispute) {
		v, _ := DisputeOf(st, n)
		frozen += v.frozen()
	}
	if locked := balance(st, chain.AccountPayout); locked != asked {
		f.add("open payouts are of %d, locked are %d", asked, locked)
	}
	if held := balance(st, chain.AccountDispute); held != frozen {
		f.add("open disputes have %d frozen, their account has %d", frozen, held)
	}
}

// reserves checks that the sum of a driver's offline limits over all gateways
// never exceeds what he has: every limit is money of his on an account that
// only that gateway can charge, and what was asked back has its date.
func (f *faults) reserves(st State) {
	whose := map[chain.Account]string{}
	each(st, key(tabReserve), func(k []byte, v reserve) bool {
		payer, gateway := chain.Account(k), chain.Key(k[len(chain.Account{}):])
		purse, name := ReserveAccount(payer, gateway), fmt.Sprintf("%s for gateway %s", payer, gateway.Short())
		if other, twice := whose[purse]; twice || purse == payer || purse.IsSystem() {
			f.add("the reserve of %s is on %s, which is of %q", name, purse, other)
		}
		whose[purse] = name
		limit, have := ReserveOf(st, payer, gateway).Amount, balance(st, purse)
		if limit < 0 || limit > have || v.Leaving < 0 {
			f.add("the offline limit of %s is %d, set apart are %d, asked back %d", name, limit, have, v.Leaving)
		}
		if dated := st.Get(reserveDueKey(v.DueMs, payer, gateway)) != nil; dated != (v.Leaving > 0) {
			f.add("the reserve of %s has %d asked back, due: %t", name, v.Leaving, dated)
		}
		return true
	})
}

// documents checks that no series of documents has a gap.
func (f *faults) documents(st State) {
	each(st, key(tabSequence), func(k []byte, n uint64) bool {
		if k[0] == todoPayout || k[0] == todoDispute {
			return true
		}
		count := uint64(0)
		each(st, key(tabInvoice, k), func(_ []byte, v InvoiceView) bool {
			if count++; v.Number != count {
				f.add("document %s follows number %d", v.ID(), count-1)
			}
			return true
		})
		if count != n {
			f.add("series %q has %d documents and numbers up to %d", k[0], count, n)
		}
		return true
	})
}

// bill checks that a session gets back no more than it paid.
func (f *faults) bill(st State, id chain.ID, b bill) {
	s, _ := SessionOf(st, id)
	if b.Refunded < 0 || b.Refunded > s.Captured || b.Money < 0 || b.Restored < 0 || b.Money+b.Restored != b.Refunded ||
		b.Money > s.Paid || b.Restored > s.CreditRedeemed || b.Clawed < 0 || b.Clawed > s.CreditEarned {
		f.add("session %s: paid %d and %d credit, got back %d and %d credit, %d of %d earned taken back",
			id, s.Paid, s.CreditRedeemed, b.Money, b.Restored, b.Clawed, s.CreditEarned)
	}
}

// session checks 3 for one session.
func (f *faults) session(s *SessionView) {
	if out := s.Captured + s.Released + s.Disputed; min(s.Captured, s.Released, s.Disputed) < 0 || out > s.Hold || (!s.State.Open() && out != s.Hold) {
		f.add("session %s is %s: captured %d, released %d, disputed %d, held %d", s.ID, s.State, s.Captured, s.Released, s.Disputed, s.Hold)
	}
	if s.Sold < 0 || s.Sold > s.SellWh || s.PendingSold < 0 || s.PendingSold > s.Sold || (!s.State.Open() && s.PendingSold != 0) {
		f.add("session %s is %s: %d Wh sold of %d, %d pending", s.ID, s.State, s.Sold, s.SellWh, s.PendingSold)
	}
	if s.Wh < 0 || s.Wh > s.MaxWh || s.PendingWh < 0 || s.LocalWh < 0 || s.PendingWh+s.LocalWh > s.Wh || (!s.State.Open() && s.PendingWh != 0) {
		f.add("session %s is %s: %d Wh of %d, %d pending, %d local", s.ID, s.State, s.Wh, s.MaxWh, s.PendingWh, s.LocalWh)
	}
}

// sessionStep checks 6 for a session.
func (f *faults) sessionStep(k, before []byte, s *SessionView) {
	b := zeroOr[SessionView](k, before)
	if s.Seq < b.Seq || s.State < b.State || s.Wh < b.Wh || s.Sold < b.Sold || s.Captured < b.Captured || (b.Based && s.Register < b.Register) {
		f.add("session %s went from %s %d with register %d to %s %d with %d", s.ID, b.State, b.Seq, b.Register, s.State, s.Seq, s.Register)
	}
}

// meterStep checks 6 for a meter.
func (f *faults) meterStep(k, before []byte, m MeterView) {
	b := zeroOr[MeterView](k, before)
	same := m.Segment == b.Segment && b.Based && !b.Released
	if m.Epoch < b.Epoch || (m.Epoch == b.Epoch && m.Page <= b.Page) || m.Segment < b.Segment || (same && (m.Import < b.Import || m.Export < b.Export)) {
		f.add("meter %x went from page %d/%d %d/%d Wh to page %d/%d %d/%d Wh", k, b.Epoch, b.Page, b.Import, b.Export, m.Epoch, m.Page, m.Import, m.Export)
	}
}

// slot checks 4 and 5 for one slot.
func (f *faults) slot(st State, v *SlotView) {
	var bought, sold, given, cancelled meter.WattHour
	var paid, received chain.Nano
	each(st, FillKey(v.Slot, ""), func(_ []byte, p FillView) bool {
		beyond := p.Price > p.Limit
		amount := chain.Nano(p.Price) * chain.Nano(p.Local)
		if p.Side == chain.Buy {
			bought += p.Local + p.Firm
			paid += amount
			cancelled += p.Certified
		} else {
			beyond = p.Price < p.Limit
			sold += p.Local + p.Firm
			received += amount
			given += p.Certified
		}
		if p.Local > 0 && beyond {
			f.add("slot %d: %s trades at %d, its limit is %d", v.Slot, p.ID, p.Price, p.Limit)
		}
		if min(p.Local, p.Grid, p.Supplier, p.Firm, p.FirmGrid, p.FirmOwn) < 0 || p.Local+p.Grid+p.Supplier != p.rest() {
			f.add("slot %d: %s has %d Wh, %d local, %d grid, %d supplier; firm %d, %d, %d", v.Slot, p.ID, p.Wh, p.Local, p.Grid, p.Supplier, p.Firm, p.FirmGrid, p.FirmOwn)
		}
		if p.Certified < 0 || p.Stored < 0 || p.Stored > p.Certified || p.Certified > p.Local+p.Firm {
			f.add("slot %d: %s has certificates for %d Wh, %d of them stored, of %d local and %d firm", v.Slot, p.ID, p.Certified, p.Stored, p.Local, p.Firm)
		}
		if amount += chain.Nano(p.GridAt) * chain.Nano(p.Grid); amount != p.Amount {
			f.add("slot %d: %s settles %d for %d", v.Slot, p.ID, p.Amount, amount)
		}
		return true
	})
	if bought != sold || bought != v.Energy.Traded {
		f.add("slot %d: %d Wh bought, %d sold, %d traded", v.Slot, bought, sold, v.Energy.Traded)
	}
	if given != cancelled {
		f.add("slot %d: certificates for %d Wh given, for %d cancelled", v.Slot, given, cancelled)
	}
	if v.Paid != v.Received+v.Fees || v.Paid != paid || v.Received != received || v.Fees < 0 {
		f.add("slot %d: paid %d, received %d, fees %d; the fills say %d and %d", v.Slot, v.Paid, v.Received, v.Fees, paid, received)
	}
	f.energy(fmt.Sprintf("slot %d", v.Slot), v.Energy)
	if err := CertifySlot(st, v.Slot); err != nil {
		f.add("slot %d: the clearing is not proven optimal: %v", v.Slot, err)
	}
}

// totals checks 5 over all slots: the members' shares add up to the whole.
func (f *faults) totals(st State) {
	e := EnergyOf(st)
	f.energy("totals", e)
	var imp, exp, produced, sold meter.WattHour
	var certificates CertificateTotals
	rules := RulesOf(st)
	storage := rules.storage()
	each(st, key(tabCounters), func(k []byte, c counters) bool {
		f.certificates(k, &c, storage)
		certificates.Sold += c.Certificates.Sold
		certificates.Bought += c.Certificates.Bought
		imp += c.Import
		exp += c.Export
		produced += c.Produced
		sold += c.SoldLocal
		return true
	})
	if certificates.Sold != certificates.Bought {
		f.add("certificates for %d Wh were sold, for %d bought", certificates.Sold, certificates.Bought)
	}
	if produced != e.Produced || produced+imp-exp != e.Consumed || sold != e.Traded {
		f.add("members produced %d, consumed %d and sold %d Wh, together %d, %d and %d", produced, produced+imp-exp, sold, e.Produced, e.Consumed, e.Traded)
	}
}

// certificates checks 5 for one member.
func (f *faults) certificates(device []byte, c *counters, storagePPM int64) {
	t := c.Certificates
	if t.Sold+t.Exported+t.Own != t.Issued+t.Stored || t.Issued != c.Produced+t.Owed || t.Stored > t.storable(storagePPM) || min(t.Sold, t.Exported, t.Own, t.Issued, t.Stored, t.Bought, t.Charged, t.Owed) < 0 {
		f.add("member %x produced %d Wh and has certificates %+v", device, c.Produced, t)
	}
}

// energy checks the balance of 5.
func (f *faults) energy(what string, e Energy) {
	if e.Produced+e.GridImport != e.Consumed+e.GridExport+e.Loss {
		f.add("%s: produced %d + grid import %d is not consumed %d + grid export %d + loss %d", what, e.Produced, e.GridImport, e.Consumed, e.GridExport, e.Loss)
	}
}
