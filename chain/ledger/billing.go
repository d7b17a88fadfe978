package ledger

import (
	"bytes"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Invoices by themselves. When a calendar month (UTC) is over and all its
// slots are cleared, the ledger bills every account that has anything to
// bill, as if an operator had asked for it: everything that has been settled
// by then is on paper, once.
//
//	slots     ... Jan 31 23:45 | Feb 1 00:00 ...
//	clearing  ..............#  |  waits ..... #
//	invoices                   |  32 a block
//	late energy, corrections      -> next invoice, or a credit note
//
// Slots of the new month wait for the invoices of the old one, so that an
// invoice ends with its month whatever the number of accounts. How far a run
// has come is part of the state: a gateway that starts again goes on with the
// account that is next.

// Rules for when invoices are issued by themselves.
const (
	InvoicesMonthly = "monthly" // the default
	InvoicesOff     = "off"     // only when an operator asks
)

const (
	maxInvoicesPerBlock = 32 // account runs; the next block goes on
	maxBilledRefs       = 64 // of an account; corrections of what older ones billed name no invoice
)

// billing is how far invoices have been issued by rule.
type billing struct {
	From int64         `cbor:"1,keyasint"` // Unix ms; everything before it has been looked at
	Next chain.Account `cbor:"2,keyasint"` // of a run under way: the accounts before it are done
}

// billed remembers which documents hold a house's energy of some slots, for
// the credit notes that correct them.
type billed struct {
	From       chain.Slot `cbor:"1,keyasint"`
	To         chain.Slot `cbor:"2,keyasint"`
	Invoice    uint64     `cbor:"3,keyasint"` // number; 0: nothing was bought
	SelfBilled uint64     `cbor:"4,keyasint"` // number; 0: nothing was sold
}

func billedKey(a chain.Account) []byte { return key(tabBilled, a[:]) }

// monthOf returns the first moment (Unix ms) of the UTC month that holds ms.
func monthOf(ms int64) int64 {
	t := time.UnixMilli(ms).UTC()
	return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC).UnixMilli()
}

// period returns what has been billed by rule, and the end of the period
// whose invoices are due; due is false if none are.
func (r *run) period(st State) (b billing, end int64, due bool) {
	b, known := get[billing](st, key(tabBilling))
	if !known {
		b.From = monthOf(r.rules.GenesisMs)
	}
	end = monthOf(min(r.time, r.clock.Next.Start(r.rules.SlotSeconds)))
	return b, end, r.rules.Invoices == InvoicesMonthly && end > b.From
}

// invoices issues what is due, a bounded part of it in each block.
func (r *run) invoices(st State) error {
	b, end, due := r.period(st)
	if !due {
		return nil
	}
	left := maxInvoicesPerBlock
	for _, a := range Unbilled(st) {
		if bytes.Compare(a[:], b.Next[:]) < 0 || a.IsSystem() {
			continue
		}
		for more := true; more; left-- {
			if left == 0 {
				b.Next = a
				put(st, key(tabBilling), b)
				return nil
			}
			if err := r.attempt(st, nil, func(st State) (err error) {
				more, err = r.bill(st, a)
				return err
			}); err != nil {
				// What could not be billed stays, for the operator or the next run.
				r.event("invoice.waits", a.String(), "%v", err)
				more = false
			}
		}
	}
	put(st, key(tabBilling), billing{From: end})
	return nil
}

// billedBy returns the documents that billed a house's energy of a slot: the
// first, since what was late is on a later one.
func billedBy(st State, a chain.Account, s chain.Slot) billed {
	all, _ := get[[]billed](st, billedKey(a))
	for _, b := range all {
		if b.From <= s && s <= b.To {
			return b
		}
	}
	return billed{}
}

// remember notes the documents of a run, and forgets those whose slots can no
// longer be corrected.
func (r *run) remember(st State, a chain.Account, b billed) {
	all, _ := get[[]billed](st, billedKey(a))
	for len(all) > 0 && (len(all) >= maxBilledRefs || all[0].To.End(r.rules.SlotSeconds)+correctionMs < r.time) {
		all = all[1:]
	}
	put(st, billedKey(a), append(all, b))
}

// uncharge puts on paper that energy of a slot was neither bought from the
// supplier (a.GridWh) nor sold to him (a.FedWh) after all, once the money is
// back. What is still to be billed gets smaller; what has been billed gets a
// credit note.
func (r *run) uncharge(st State, m *member, s chain.Slot, a Accrual, reason string) error {
	account, at := m.owner(), s.Start(r.rules.SlotSeconds)
	ppm, taxed := r.rules.TaxAt(at)
	by := billedBy(st, account, s)
	for _, p := range []struct {
		kind      InvoiceKind
		item      ItemKind
		preceding uint64
		wh        meter.WattHour
		amount    chain.Nano
		taxed     bool
		open      func(*Accrual) (*meter.WattHour, *chain.Nano)
	}{
		{KindCreditNote, ItemBoughtGrid, by.Invoice, a.GridWh, a.Grid, taxed, func(a *Accrual) (*meter.WattHour, *chain.Nano) { return &a.GridWh, &a.Grid }},
		{KindSelfBilledCredit, ItemSoldGrid, by.SelfBilled, a.FedWh, a.Fed, taxed && ProfileOf(st, account).Tax == chain.TaxBusiness, func(a *Accrual) (*meter.WattHour, *chain.Nano) { return &a.FedWh, &a.Fed }},
	} {
		if p.wh == 0 && p.amount == 0 {
			continue
		}
		if p.preceding == 0 {
			k := accrualKey(account, ppm, taxed)
			sum, _ := get[Accrual](st, k)
			if wh, amount := p.open(&sum); *wh >= p.wh && *amount >= p.amount {
				*wh -= p.wh
				*amount -= p.amount
				if sum.empty() {
					st.Delete(k)
				} else {
					put(st, k, sum)
				}
				continue
			}
		}
		v := InvoiceView{Kind: p.kind, Account: account, Preceding: p.preceding, Reason: reason}
		i := InvoiceItem{Kind: p.item, Wh: p.wh, Amount: p.amount, Taxed: p.taxed, Billable: r.billable(st, m.Member.Device, 0, at)}
		if p.taxed {
			i.TaxPPM = ppm
		}
		v.add(i, at, s.End(r.rules.SlotSeconds))
		if err := r.round(st, &v); err != nil {
			return err
		}
		v = r.document(st, v)
		r.event("credit_note.issued", v.ID(), "%d nano, account %s", v.Total, account)
	}
	return nil
}
