package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Invoices by themselves. When a billing period is over and all its slots are
// cleared, the ledger bills every account that has anything to bill, as if an
// operator had asked for it: everything that has been settled by then is on
// paper, once. Periods are the calendar months of the operator's time zone, as
// far as he has signed them as ranges of slots; elsewhere they are months of
// UTC.
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
	maxBounds           = 2 * chain.MaxTableRanges
	// A UTC month turns within this time of the month of any time zone: next
	// to a signed bound it is the same turn, not one more.
	zoneMs = 36 * 3600 * 1000
)

// billing is how far invoices have been issued by rule.
type billing struct {
	From int64         `cbor:"1,keyasint"` // Unix ms; everything before it has been looked at
	Next chain.Account `cbor:"2,keyasint"` // of a run under way: the accounts before it are done
}

// billed remembers the slots of which a document holds a house's energy, for
// the credit notes that correct it. It stays as long as slots do.
type billed struct {
	From chain.Slot `cbor:"1,keyasint"`
	To   chain.Slot `cbor:"2,keyasint"`
}

func billedPrefix(v *InvoiceView) []byte {
	s, _ := v.series()
	return key(tabBilled, v.Account[:], []byte{s})
}

// setPeriods puts bounds in the place of those to come.
func (r *run) setPeriods(st State, signer chain.Key, p chain.BillingPeriods) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	if len(p.Bounds) < 2 || len(p.Bounds) > chain.MaxTableRanges {
		return refuse(CodeMalformed, "%d bounds of billing periods, 2..%d", len(p.Bounds), chain.MaxTableRanges)
	}
	now := max(r.slot, r.clock.Next)
	last := now
	for _, s := range p.Bounds {
		if s <= last || s > maxSlot {
			return refuse(CodeRange, "a billing period begins with slot %d, the first free one is %d", s, last+1)
		}
		last = s
	}
	old := Bounds(st)
	for len(old) > 1 && old[1] <= now && len(old)+len(p.Bounds) > maxBounds {
		st.Delete(key(tabBound, slotBytes(old[0])))
		old = old[1:]
	}
	for _, s := range old {
		if s > now {
			st.Delete(key(tabBound, slotBytes(s)))
		}
	}
	for _, s := range p.Bounds {
		put(st, key(tabBound, slotBytes(s)), true)
	}
	r.event("billing.periods", fmt.Sprint(p.Bounds[0]), "%d billing periods, up to slot %d", len(p.Bounds)-1, last)
	return nil
}

// Bounds returns the slots with which signed billing periods begin, and the
// one with which the last ends, ascending.
func Bounds(st State) []chain.Slot {
	var all []chain.Slot
	st.Iterate([]byte{tabBound}, func(k, _ []byte) bool {
		all = append(all, slotOf(k[1:]))
		return true
	})
	return all
}

// turnBefore returns the first moment (Unix ms) of the billing period that
// holds ms.
func (r *run) turnBefore(st State, ms int64) int64 {
	near := func(a, b int64) bool { return max(a-b, b-a) <= zoneMs }
	bounds := Bounds(st)
	i, _ := slices.BinarySearchFunc(bounds, ms, func(s chain.Slot, ms int64) int {
		if s.Start(r.rules.SlotSeconds) <= ms {
			return -1
		}
		return 1
	})
	month := monthOf(ms)
	if i < len(bounds) && near(month, bounds[i].Start(r.rules.SlotSeconds)) {
		month = monthOf(month - 1) // the turn is still to come
	}
	if i == 0 {
		return month
	}
	bound := bounds[i-1].Start(r.rules.SlotSeconds)
	if i < len(bounds) || month < bound || near(month, bound) {
		return bound
	}
	return month
}

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
	end = r.turnBefore(st, min(r.time, r.clock.Next.Start(r.rules.SlotSeconds)))
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

// billedBy returns the number of the document of v's series that billed its
// account's energy of a slot: of the first, since what was late is on a later
// one. 0: none.
func billedBy(st State, v *InvoiceView, s chain.Slot) (number uint64) {
	prefix := billedPrefix(v)
	each(st, prefix, func(k []byte, b billed) bool {
		if b.From <= s && s <= b.To {
			number = binary.BigEndian.Uint64(k[len(prefix)-1:])
		}
		return number == 0
	})
	return number
}

// remember notes a document, and forgets those of the series whose slots have
// left the state.
func (r *run) remember(st State, v *InvoiceView, b billed) {
	var old [][]byte
	prefix := billedPrefix(v)
	each(st, prefix, func(k []byte, b billed) bool {
		if b.To.End(r.rules.SlotSeconds)+r.rules.retainMs() >= r.time {
			return false
		}
		old = append(old, key(tabBilled, k))
		return true
	})
	for _, k := range old {
		st.Delete(k)
	}
	put(st, append(prefix, be64(v.Number)...), b)
}

// uncharge puts on paper that energy of a slot was neither bought from the
// supplier (a.GridWh) nor sold to him (a.FedWh) after all, once the money is
// back. What is still to be billed gets smaller; what has been billed gets a
// credit note.
func (r *run) uncharge(st State, m *member, s chain.Slot, a Accrual, reason string) error {
	account, at := m.owner(), s.Start(r.rules.SlotSeconds)
	ppm, taxed := r.rules.TaxAt(at)
	by := func(kind InvoiceKind) uint64 {
		return billedBy(st, &InvoiceView{Kind: kind, Account: account, Simulated: r.rules.Simulated()}, s)
	}
	for _, p := range []struct {
		kind      InvoiceKind
		item      ItemKind
		preceding uint64
		wh        meter.WattHour
		amount    chain.Nano
		taxed     bool
		open      func(*Accrual) (*meter.WattHour, *chain.Nano)
	}{
		{KindCreditNote, ItemBoughtGrid, by(KindInvoice), a.GridWh, a.Grid, taxed, func(a *Accrual) (*meter.WattHour, *chain.Nano) { return &a.GridWh, &a.Grid }},
		{KindSelfBilledCredit, ItemSoldGrid, by(KindSelfBilled), a.FedWh, a.Fed, taxed && ProfileOf(st, account).Tax == chain.TaxBusiness, func(a *Accrual) (*meter.WattHour, *chain.Nano) { return &a.FedWh, &a.Fed }},
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
