package ledger

import (
	"fmt"
	"math/bits"

	"github.com/joulegate/joulegate/chain"
)

// Refunds. A settled session is never changed: what is given back is a
// credit note of its own. Of a bill that was paid partly with credit, credit
// and money return in the proportion in which they were paid, and the credit
// that the money earned is taken back in proportion.
//
//	bill = captured = paid + redeemed
//	credit back = floor(refunded * redeemed / bill)          into the lots it came from
//	money back  = refunded - credit back                     from the supplier's account
//	claw-back   = floor(earned * money refunded / paid)      this session's lot first
//
// All three are computed from running totals, so that many small refunds give
// what one large refund gives. What has been spent of credit to be taken back
// is kept from the money.

// bill is what became of a settled session's bill.
type bill struct {
	Spent    []spentLot `cbor:"1,keyasint,omitempty"` // credit lots that paid for it, less what was restored
	Refunded chain.Nano `cbor:"2,keyasint"`           // of the bill
	Money    chain.Nano `cbor:"3,keyasint"`           // of Refunded, in money
	Restored chain.Nano `cbor:"4,keyasint"`           // of Refunded, in credit
	Clawed   chain.Nano `cbor:"5,keyasint"`           // earned credit taken back
	Dispute  uint64     `cbor:"6,keyasint,omitempty"` // number; one per session
	Invoice  uint64     `cbor:"7,keyasint,omitempty"` // number; 0: not billed yet
}

// spentLot is what a redemption took of a lot.
type spentLot struct {
	Number  uint64     `cbor:"1,keyasint"`
	Amount  chain.Nano `cbor:"2,keyasint"`
	Expires chain.Slot `cbor:"3,keyasint"`
	Session chain.ID   `cbor:"4,keyasint"` // that earned it
}

func billKey(id chain.ID) []byte { return key(tabBill, id[:]) }

func billOf(st State, id chain.ID) bill {
	b, _ := get[bill](st, billKey(id))
	return b
}

// BillView is what became of a settled session's bill.
type BillView struct {
	Refunded chain.Nano // of the bill
	Money    chain.Nano // of Refunded, in money
	Restored chain.Nano // of Refunded, in credit
	Clawed   chain.Nano // earned credit taken back
	Dispute  uint64     // number; 0: none
	Invoice  string     // document that bills it; "": not billed yet
}

// BillOf returns what became of a session's bill; nothing yet is all zero.
func BillOf(st State, id chain.ID) BillView {
	b := billOf(st, id)
	v := BillView{Refunded: b.Refunded, Money: b.Money, Restored: b.Restored, Clawed: b.Clawed, Dispute: b.Dispute}
	if b.Invoice != 0 {
		rules := RulesOf(st)
		doc := InvoiceView{Kind: KindInvoice, Simulated: rules.Simulated(), Number: b.Invoice}
		v.Invoice = doc.ID()
	}
	return v
}

// share returns floor(n*part/whole) for 0 <= part <= whole, 0 < whole, n >= 0.
func share(n, part, whole chain.Nano) chain.Nano {
	hi, lo := bits.Mul64(uint64(n), uint64(part))
	q, _ := bits.Div64(hi, lo, uint64(whole))
	return chain.Nano(q)
}

// billed notes a settled session, to be put on an invoice.
func (r *run) billed(st State, s *SessionView, spent []spentLot) {
	if s.Captured == 0 {
		return
	}
	put(st, todoKey(todoSession, s.Driver[:], s.ID[:]), true)
	if len(spent) > 0 {
		put(st, billKey(s.ID), bill{Spent: spent})
	}
}

// settled returns a session whose bill is final.
func settled(st State, id chain.ID) (SessionView, error) {
	s, ok := SessionOf(st, id)
	switch {
	case !ok:
		return s, refuse(CodeSession, "no session %s", id)
	case s.State != SessionClosed && s.State != SessionInterrupted:
		return s, refuse(CodeState, "session %s is %s: its bill is not final", id, s.State)
	}
	return s, nil
}

func (r *run) refund(st State, by authority, b chain.Refund) error {
	if err := r.operators(by); err != nil {
		return err
	}
	s, err := settled(st, b.Session)
	if err != nil {
		return err
	}
	if err := checkReason(b.Reason); err != nil {
		return err
	}
	return r.giveBack(st, &s, b.Amount, b.Reason)
}

func checkReason(s string) error {
	if len(s) == 0 || len(s) > maxText {
		return refuse(CodeMalformed, "reason of %d bytes, 1..%d", len(s), maxText)
	}
	return nil
}

// giveBack refunds amount of a settled bill and issues the credit note.
func (r *run) giveBack(st State, s *SessionView, amount chain.Nano, reason string) error {
	b := billOf(st, s.ID)
	because(st, "refund", s.ID)
	switch {
	case amount <= 0:
		return refuse(CodeAmount, "amount %d", amount)
	case amount > s.Captured-b.Refunded:
		return refuse(CodeRange, "%d of a bill of %d with %d refunded", amount, s.Captured, b.Refunded)
	}
	b.Refunded += amount
	credit := share(s.CreditRedeemed, b.Refunded, s.Captured) - b.Restored
	money := amount - credit
	b.Restored += credit
	b.Money += money
	var claw chain.Nano
	if s.Paid > 0 {
		claw = share(s.CreditEarned, b.Money, s.Paid) - b.Clawed
	}
	b.Clawed += claw
	kept := min(claw-r.clawBack(st, s.Driver, s.ID, claw), money)

	// Money moves in whole minor units, because the credit note does.
	unit := chain.MinorUnit(r.rules.MinorDigits)
	total := halfUp(money, unit)
	up := max(total-money, 0)
	if up > 0 && balance(st, chain.AccountRounding) < up {
		total, up = money-money%unit, 0
	}
	kept = min(kept, total)
	for _, m := range []struct {
		from, to chain.Account
		amount   chain.Nano
	}{
		{chain.AccountRounding, chain.AccountGrid, up},
		{chain.AccountGrid, chain.AccountRounding, max(money-total, 0)},
		{chain.AccountGrid, chain.AccountPromotion, kept},
		{chain.AccountGrid, s.Driver, total - kept},
		{chain.AccountGrid, chain.AccountReserve, credit},
	} {
		if err := move(st, m.from, m.to, m.amount); err != nil {
			return err
		}
	}
	r.restore(st, s.Driver, &b, credit)
	put(st, billKey(s.ID), b)

	ppm, subject := r.rules.TaxAt(s.ClosedMs)
	n := r.document(st, InvoiceView{
		Kind: KindCreditNote, Account: s.Driver, FromMs: s.OpenedMs, ToMs: s.ClosedMs, Preceding: b.Invoice, Reason: reason,
		Items: []InvoiceItem{{Kind: ItemRefund, Session: s.ID, Amount: amount, Credit: credit, TaxPPM: ppm, Taxed: subject, Billable: r.billable(st, s.Gateway, s.Connector, s.OpenedMs)}},
		Exact: money, Total: total, Kept: kept,
	})
	r.event("session.refunded", s.ID.String(), "%d nano of the bill, %d as credit, %d earned credit taken back", amount, credit, claw)
	r.event("credit_note.issued", n.ID(), "%d nano to %s", total, s.Driver)
	return nil
}

// clawBack takes up to amount of an account's credit back to the promotion
// pool, the lot of that session first, then the oldest, and returns how much.
func (r *run) clawBack(st State, a chain.Account, session chain.ID, amount chain.Nano) chain.Nano {
	type numbered struct {
		key []byte
		lot
	}
	var lots []numbered
	each(st, key(tabLot, a[:]), func(k []byte, l lot) bool {
		n := numbered{append([]byte{tabLot}, k...), l}
		if l.Session == session {
			lots = append([]numbered{n}, lots...)
		} else {
			lots = append(lots, n)
		}
		return true
	})
	left := amount
	for _, l := range lots {
		n := min(left, l.Amount)
		left -= n
		takeLot(st, l.key, l.lot, n)
	}
	if err := move(st, chain.AccountReserve, chain.AccountPromotion, amount-left); err != nil {
		panic(fmt.Sprintf("ledger: the reserve does not back %d nano of credit: %v", amount-left, err))
	}
	return amount - left
}

// takeLot takes n of a lot away.
func takeLot(st State, k []byte, l lot, n chain.Nano) {
	if n == 0 {
		return
	}
	note(st, chain.Account(k[1:21]), -n, true)
	if l.Amount -= n; l.Amount > 0 {
		put(st, k, l)
		return
	}
	st.Delete(k)
	if l.Expires > 0 {
		st.Delete(key(tabExpiry, slotBytes(l.Expires), k[1:]))
	}
}

// restore gives credit back to the lots that b spent, the newest first. A lot
// that has expired meanwhile gets a new life: otherwise it would be no refund.
func (r *run) restore(st State, a chain.Account, b *bill, credit chain.Nano) {
	for i := len(b.Spent) - 1; i >= 0 && credit > 0; i-- {
		s := &b.Spent[i]
		n := min(credit, s.Amount)
		s.Amount -= n
		credit -= n
		k := lotKey(a, s.Number)
		l, ok := get[lot](st, k)
		if !ok {
			l = lot{Expires: s.Expires, Session: s.Session}
			if l.Expires > 0 && l.Expires < r.clock.Next {
				l.Expires = 0
				if r.rules.ExpirySlots > 0 {
					l.Expires = r.clock.Next + chain.Slot(r.rules.ExpirySlots)
				}
			}
			if l.Expires > 0 {
				put(st, expiryKey(l.Expires, a, s.Number), true)
			}
		}
		l.Amount += n
		put(st, k, l)
		note(st, a, n, true)
		if s.Amount == 0 {
			b.Spent = b.Spent[:i]
		}
	}
	if credit > 0 {
		panic(fmt.Sprintf("ledger: %d nano of credit to restore and no lot was spent", credit))
	}
}

// halfUp rounds n >= 0 to whole units, half of one up.
func halfUp(n, unit chain.Nano) chain.Nano {
	rest := n % unit
	if rest >= unit-rest {
		return n - rest + unit
	}
	return n - rest
}
