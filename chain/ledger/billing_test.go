package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

var (
	february   = time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	februarySl = chain.SlotAt(february, 900)
)

// restarted is a replica that has read its state back from what is stored.
func (w *world) restarted() plainState {
	st := plainState{}
	w.st.Iterate(nil, func(k, v []byte) bool {
		st.Set(slices.Clone(k), slices.Clone(v))
		return true
	})
	return st
}

// When the month is over, everybody gets his invoices, a bounded number in
// each block: once, although an operator had billed some of it before and a
// gateway was restarted in between, and nothing of the new month.
func TestInvoicesIssueThemselvesAtTheTurnOfTheMonth(t *testing.T) {
	w := newWorld(t)
	a, b, driver := w.a.owner.account(), w.b.owner.account(), w.driver.account()
	w.ok(w.mint(b, 1e10), w.mint(w.c.owner.account(), 1e10))
	w.charge(1, w.c, firstSl, 600, false, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.b: {200, 0}, w.c: {600, 0}})
	// An operator does not wait, for the driver's first session and a's sun.
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: driver}))
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: a}))
	// Eighty more houses, without a settlement of their own.
	var more []chain.Account
	for i := range 80 {
		p := newPerson(fmt.Sprint("tenant ", i)).account()
		more = append(more, p)
		put(w.st, accrualKey(p, 0, false), Accrual{From: firstSl, To: firstSl, GridWh: 100, Grid: 3e7, Approved: true})
	}
	w.now = february - 3*slotMs
	w.block()
	equal(t, "in January", len(Invoices(w.st, chain.Account{})), 2)

	// Midnight: everybody has reported the last slot.
	w.charge(2, w.c, februarySl-1, 500, false, map[*house][2]meter.WattHour{w.a: {0, 700}, w.b: {300, 0}, w.c: {500, 0}})
	first := w.last
	issued := func(out BlockOutput) (n int) {
		for _, e := range out.Events {
			if e.Code == "invoice.issued" {
				n++
			}
		}
		return n
	}
	if n := issued(first); n < maxInvoicesPerBlock || n > 2*maxInvoicesPerBlock {
		t.Fatalf("%d documents in the first block", n)
	}
	w.twin = w.restarted() // a gateway that starts again in the middle
	w.ok(w.a.sign(w.a.site(februarySl, 0, 40)))
	blocks := 2
	for len(Unbilled(w.st)) > 0 && blocks < 10 {
		w.ok(w.b.sign(chain.NewRecord(chain.KindEvent, chain.Event{Code: "tick"})))
		blocks++
	}
	equal(t, "blocks", blocks, 3)
	w.now = max(w.now, februarySl.End(900))
	w.ok(w.b.sign(w.b.site(februarySl, 40, 0)), w.c.sign(w.c.site(februarySl, 0, 0)))
	equal(t, "sold in February", w.fill(februarySl, "sell/a").Local, 40)

	for _, p := range more {
		if all := Invoices(w.st, p); len(all) != 1 || all[0].Total != 3e7 {
			t.Fatalf("%s has %+v", p, all)
		}
	}
	var sold, bought, charged meter.WattHour
	sessions := map[chain.ID]int{}
	for _, v := range slices.Concat(Invoices(w.st, a), Invoices(w.st, b), Invoices(w.st, driver)) {
		if v.ToMs > february && v.Items[0].Kind != ItemSession {
			t.Errorf("%s goes on until %d", v.ID(), v.ToMs)
		}
		for _, i := range v.Items {
			switch {
			case i.Kind == ItemSession:
				sessions[i.Session]++
				charged += i.Wh
			case v.Kind == KindSelfBilled:
				sold += i.Wh
			default:
				bought += i.Wh
			}
		}
	}
	equal(t, "sold", sold, 1700)
	equal(t, "bought", bought, 500)
	equal(t, "charged", charged, 1100)
	equal(t, "sessions", fmt.Sprint(sessions[chain.ID{1}], sessions[chain.ID{2}], len(sessions)), "1 1 2")
	w.refused(CodeUnknown, w.bad(w.op, chain.TxInvoice, chain.IssueInvoice{Account: driver}))

	// Energy that is late goes on the next invoice, and a month without
	// anything to bill makes none.
	equal(t, "left for February", len(Unbilled(w.st)), 2)
	count := len(Invoices(w.st, chain.Account{}))
	w.pass(28 * dayMs)
	equal(t, "documents of February", len(Invoices(w.st, chain.Account{}))-count, 2)
	w.pass(31 * dayMs)
	equal(t, "documents of March", len(Invoices(w.st, chain.Account{}))-count, 2)
}

func TestInvoicesByThemselvesCanBeOff(t *testing.T) {
	w := newWorldOf(t, func(g *chain.Genesis) { g.Money.Invoices = InvoicesOff })
	w.charge(1, w.c, firstSl, 600, false, map[*house][2]meter.WattHour{w.c: {600, 0}})
	w.pass(40 * dayMs)
	equal(t, "off", len(Invoices(w.st, chain.Account{})), 0)
	bad, monthly := "daily", InvoicesMonthly
	w.refused(CodeMalformed, w.bad(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 10, Invoices: &bad}))
	w.took(w.tx(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 3, Invoices: &monthly}))
	w.block()
	w.block()
	w.block()
	equal(t, "on", RulesOf(w.st).Invoices, InvoicesMonthly)
	equal(t, "not before the month is over", len(Invoices(w.st, chain.Account{})), 0)
	w.pass(20 * dayMs)
	equal(t, "then", len(Invoices(w.st, w.driver.account())), 1)
}

// Who cannot be billed does not hold up the others, and is billed later.
func TestAnInvoiceThatCannotBeRoundedWaits(t *testing.T) {
	w := newWorld(t)
	poor := newPerson("poor").account()
	put(w.st, accrualKey(poor, 0, false), Accrual{From: firstSl, To: firstSl, GridWh: 1, Grid: 3_300_001})
	w.charge(1, w.c, firstSl, 1000, false, map[*house][2]meter.WattHour{w.c: {1000, 0}})
	w.now = february
	w.pass(slotMs)
	w.saw("invoice.waits")
	equal(t, "others", len(Invoices(w.st, w.driver.account())), 1)
	equal(t, "poor", len(Invoices(w.st, poor)), 0)
	w.ok(w.mint(chain.AccountRounding, 1e8))
	w.pass(31 * dayMs)
	equal(t, "poor", len(Invoices(w.st, poor)), 1)
}

// A correction in a house's favour makes what is not billed smaller, and gets
// a credit note on the invoice once it is; so does one that takes back what a
// seller was paid.
func TestCorrectionsOfWhatWasBilledGetCreditNotes(t *testing.T) {
	w := newWorldOf(t, func(g *chain.Genesis) {
		g.Basis = "licensed supplier"
		g.Money.Tax = []chain.TaxRate{{From: 0, PPM: 190_000}}
	})
	a, b := w.a.owner.account(), w.b.owner.account()
	w.ok(w.mint(a, 1e10), w.mint(b, 1e10))
	w.report(firstSl, map[*house][2]meter.WattHour{w.a: {0, 900}, w.b: {2000, 0}})
	w.report(firstSl+1, map[*house][2]meter.WattHour{w.a: {0, 700}})
	fix := func(h *house, id byte, s chain.Slot, imp, exp meter.WattHour) {
		t.Helper()
		w.ok(h.sign(chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: chain.ID{id}, Slot: s, Import: imp, Export: exp, Reason: "wrong CT ratio"})))
		for _, c := range CorrectionsOf(w.st, h.key) {
			if c.State == CorrectionWaits {
				w.took(w.tx(w.op, chain.TxCorrection, chain.CorrectionRuling{Device: h.key, Slot: s, ID: c.ID, Accept: true}))
			}
		}
	}
	line := func(v InvoiceView, kind ItemKind) InvoiceItem {
		t.Helper()
		i := slices.IndexFunc(v.Items, func(i InvoiceItem) bool { return i.Kind == kind })
		if i < 0 {
			t.Fatalf("%s has no line %s: %+v", v.ID(), kind, v.Items)
		}
		return v.Items[i]
	}
	fix(w.b, 1, firstSl, -100, 0)
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: b}))
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: a}))
	invoice := Invoices(w.st, b)[0]
	equal(t, "grid energy billed", line(invoice, ItemBoughtGrid).Wh, 1000)
	equal(t, "documents", len(Invoices(w.st, b)), 1)

	before, rounding := w.balance(b), w.balance(chain.AccountRounding)
	fix(w.b, 2, firstSl, -123, 0)
	note := Invoices(w.st, b)[1]
	equal(t, "note", note.ID(), "CN-000001")
	equal(t, "kind", note.Kind, KindCreditNote)
	equal(t, "preceding", note.Preceding, invoice.Number)
	equal(t, "exact", note.Exact, 123*300_000)
	equal(t, "rounded", note.Total, 4e7)
	equal(t, "money", w.balance(b)-before, note.Total)
	equal(t, "residue", rounding-w.balance(chain.AccountRounding), note.Total-note.Exact)
	equal(t, "tax", line(note, ItemBoughtGrid).TaxPPM, 190_000)
	equal(t, "reason", note.Reason, "wrong CT ratio")
	equal(t, "nothing else to bill", slices.Contains(Unbilled(w.st), b), false)

	// What was sold to the supplier, and was not.
	sb := Invoices(w.st, a)[0]
	before = w.balance(a)
	fix(w.a, 1, firstSl+1, 0, -250)
	credit := Invoices(w.st, a)[1]
	equal(t, "kind", credit.Kind, KindSelfBilledCredit)
	equal(t, "preceding", credit.Preceding, sb.Number)
	equal(t, "number", credit.Number, 1)
	equal(t, "total", credit.Total, 2e7)
	equal(t, "money", before-w.balance(a), credit.Total)
	equal(t, "untaxed", line(credit, ItemSoldGrid).Taxed, false)
	if got, ok := InvoiceOf(w.st, credit.ID()); !ok || got.Account != a || !strings.HasPrefix(credit.ID(), "SC-") {
		t.Fatalf("no %s", credit.ID())
	}
	// One that costs the house goes on its next invoice, the other way no more
	// than was billed.
	fix(w.b, 3, firstSl, 60, 0)
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: b}))
	equal(t, "next", line(Invoices(w.st, b)[2], ItemBoughtGrid).Wh, 60)
}

// Months are the operator's local ones where he has signed them: of 745 and
// 743 hours when the clocks change, and of UTC before and after. Next to a
// bound there is no second turn of the same month.
func TestInvoicesEndWithTheSignedPeriods(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	turn := func(loc *time.Location, year int, m time.Month) chain.Slot {
		return chain.SlotAt(time.Date(year, m, 1, 0, 0, 0, 0, loc).UnixMilli(), 900)
	}
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e12))
	var bounds []chain.Slot
	for m := range time.Month(15) {
		bounds = append(bounds, turn(berlin, 2027, 2+m)) // February 2027 to March 2028
	}
	hours := func(i int) chain.Slot { return (bounds[i+1] - bounds[i]) / 4 }
	equal(t, "March", hours(1), 743)
	equal(t, "October", hours(8), 745)
	w.took(w.tx(w.op, chain.TxPeriods, chain.BillingPeriods{Bounds: bounds}))
	w.saw("billing.periods")

	// b takes 1 Wh in the last and 10 Wh in the first slot around every turn.
	turns := append([]chain.Slot{}, bounds...)
	turns = append(turns, turn(time.UTC, 2028, 5), turn(time.UTC, 2028, 6))
	for _, at := range turns {
		w.pass((at - 2).End(900) - w.now) // silent until then
		report := func(s chain.Slot, wh meter.WattHour) {
			w.at(s)
			w.ok(w.a.sign(w.a.site(s, 0, 0)), w.b.sign(w.b.site(s, wh, 0)), w.c.sign(w.c.site(s, 0, 0)))
		}
		report(at-2, 0)
		report(at-1, 1)
		report(at, 10)
		w.block()
	}
	w.pass(40 * dayMs)
	all := Invoices(w.st, w.b.owner.account())
	for i, v := range all {
		var wh meter.WattHour
		for _, x := range v.Items {
			wh += x.Wh
		}
		want := meter.WattHour(11)
		if i == 0 {
			want = 1
		} else if i == len(all)-1 {
			want = 10
		}
		if wh != want || i > 0 && i < len(turns) && v.FromMs != turns[i-1].Start(900) || i < len(turns) && v.ToMs != (turns[i]-1).End(900) {
			t.Errorf("%s: %d Wh from %s to %s", v.ID(), wh, time.UnixMilli(v.FromMs).In(berlin), time.UnixMilli(v.ToMs).In(berlin))
		}
	}
	equal(t, "invoices", len(all), len(turns)+1)
	// A new table replaces what is still to come, and the past is forgotten
	// when there is no room for it.
	for range 5 {
		from := chain.SlotAt(w.now, 900) + 2
		var many []chain.Slot
		for i := range chain.MaxTableRanges {
			many = append(many, from+chain.Slot(i))
		}
		w.took(w.tx(w.op, chain.TxPeriods, chain.BillingPeriods{Bounds: many}))
		w.pass(many[len(many)-1].End(900) - w.now)
	}
	if n := len(Bounds(w.st)); n > maxBounds {
		t.Errorf("%d bounds are kept", n)
	}
}

// Corrections find the document that billed a slot, however many there are.
func TestCorrectionsFindTheirInvoiceAmongMany(t *testing.T) {
	w := newWorld(t)
	a, b := w.a.owner.account(), w.b.owner.account()
	w.ok(w.mint(a, 1e11), w.mint(b, 1e11), w.mint(chain.AccountRounding, 1e9))
	const documents = 90
	for i := range chain.Slot(documents) {
		w.report(firstSl+i, map[*house][2]meter.WattHour{w.a: {0, 500}, w.b: {900, 0}})
		w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: a}))
		w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: b}))
	}
	equal(t, "invoices", len(Invoices(w.st, b)), documents)
	for i, s := range []chain.Slot{0, 3, 70, 89} {
		fix := func(h *house, imp, exp meter.WattHour) InvoiceView {
			t.Helper()
			id := chain.ID{byte(i + 1)}
			w.ok(h.sign(chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: id, Slot: firstSl + s, Import: imp, Export: exp, Reason: "wrong CT ratio"})))
			if imp < 0 {
				w.took(w.tx(w.op, chain.TxCorrection, chain.CorrectionRuling{Device: h.key, Slot: firstSl + s, ID: id, Accept: true}))
			}
			all := Invoices(w.st, h.owner.account())
			return all[len(all)-1]
		}
		note := fix(w.b, -50, 0)
		equal(t, "kind", note.Kind, KindCreditNote)
		equal(t, "of the invoice", note.Preceding, uint64(s)+1)
		note = fix(w.a, 0, -50)
		equal(t, "kind", note.Kind, KindSelfBilledCredit)
		equal(t, "of the self-billed invoice", note.Preceding, uint64(s)+1)
	}
}
