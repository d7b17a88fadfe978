package ledger

import (
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// A settled slot and its sessions leave the state when the rules' time is
// over, on every replica in the same block; their hash stays, and proves a
// copy that somebody kept. What is not billed yet stays.
func TestOldSlotsAndSessionsLeaveTheState(t *testing.T) {
	w := newWorldOf(t, func(g *chain.Genesis) { g.RetainDays, g.Money.Invoices = 40, InvoicesOff })
	w.twin = plainState{}
	w.st.Iterate(nil, func(k, v []byte) bool {
		w.twin.Set(k, v)
		return true
	})
	w.charge(1, w.c, firstSl, 600, false, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.c: {600, 0}})
	w.ok(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: w.driver.account()}))
	w.charge(2, w.b, firstSl+1, 400, false, map[*house][2]meter.WattHour{w.b: {400, 0}})
	hash := func(prefixes ...[]byte) (h chain.Hash, n uint32) {
		for _, p := range prefixes {
			w.st.Iterate(p, func(k, v []byte) bool {
				h = ArchiveHash(h, k, v)
				n++
				return true
			})
		}
		return h, n
	}
	slot, entries := hash(SlotKey(firstSl), FillKey(firstSl, ""))
	session, both := hash(SessionKey(chain.ID{1}), billKey(chain.ID{1}))
	equal(t, "entries of the slot", entries, 3)
	equal(t, "entries of the session", both, 2)

	w.pass(39 * dayMs)
	w.slot(firstSl)
	w.session(1)
	w.pass(2 * dayMs)
	w.saw("state.pruned")
	for _, s := range []chain.Slot{firstSl, firstSl + 1} {
		if _, ok := SlotOf(w.st, s); ok {
			t.Fatalf("slot %d is still there", s)
		}
	}
	if n := len(collect[FillView](w.st, []byte{tabFill})); n != 0 {
		t.Fatalf("%d fills are still there", n)
	}
	if _, ok := SessionOf(w.st, chain.ID{1}); ok {
		t.Fatal("session 1 is still there")
	}
	a, _ := ArchivedSlot(w.st, firstSl)
	equal(t, "archive of the slot", a, Archive{slot, entries})
	a, _ = ArchivedSessions(w.st, w.now/dayMs)
	equal(t, "archive of the session", a, Archive{session, both})
	equal(t, "what is not billed stays", w.session(2).State, SessionClosed)

	// It is billed, and leaves when it is looked at again.
	w.ok(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: w.driver.account()}))
	w.pass(31 * dayMs)
	if _, ok := SessionOf(w.st, chain.ID{2}); ok {
		t.Fatal("session 2 is still there")
	}
	w.refused(CodeSession, w.bad(w.op, chain.TxRefund, chain.Refund{Session: chain.ID{1}, Amount: 1, Reason: "x"}))
	// Nothing is left to do: an idle chain comes to rest.
	before := StateHash(w.st)
	w.now += dayMs
	w.block()
	equal(t, "state", StateHash(w.st), before)
}

// Firm offers leave as well: with their last delivery or, where there was none,
// when its slot would have left.
func TestOldFirmOffersLeaveTheState(t *testing.T) {
	w := newWorldOf(t, func(g *chain.Genesis) { g.RetainDays = 40 })
	w.on(chain.FeatureFirm)
	w.ok(w.mint(w.a.owner.account(), 1e9), w.mint(w.b.owner.account(), 1e9))
	last := firstSl + 4
	for id := byte(3); id <= 5; id++ { // nobody takes them
		w.ok(w.tx(w.a.owner, chain.TxFirmOffer, chain.FirmOffer{ID: chain.ID{id}, Device: w.a.key, Side: chain.Sell, From: last, To: last, Wh: 100, Price: 120_000}))
	}
	w.ok(w.tx(w.a.owner, chain.TxFirmCancel, chain.FirmCancel{Offer: chain.ID{5}}))
	w.contract(1, firstSl+1, 500, 120_000) // delivered
	w.contract(2, last, 500, 120_000)      // nobody reports its slot
	w.report(firstSl, nil)
	w.report(firstSl+1, map[*house][2]meter.WattHour{w.a: {0, 500}, w.b: {500, 0}})
	w.now = last.End(900) + 61_000
	w.block()
	equal(t, "offers", len(FirmOffers(w.st, true)), 5)
	w.pass(39 * dayMs)
	equal(t, "offers of less than 40 days", len(FirmOffers(w.st, true)), 5)
	w.pass(2 * dayMs)
	n := 0
	w.st.Iterate([]byte{tabFirm}, func(_, _ []byte) bool { n++; return true })
	equal(t, "entries of firm offers", n, 0)
	a, _ := ArchivedSlot(w.st, firstSl+1)
	if a.Entries < 3 {
		t.Errorf("the archive of a delivered slot has %d entries", a.Entries)
	}
}

// Nothing but age lets an entry go.
func TestYoungEntriesMayNotBeRemoved(t *testing.T) {
	w := newWorld(t)
	w.charge(1, w.c, firstSl, 600, false, map[*house][2]meter.WattHour{w.c: {600, 0}})
	for what, k := range map[string][]byte{"slot": SlotKey(firstSl), "fill": FillKey(firstSl, "car/"+chain.ID{1}.String()), "session": SessionKey(chain.ID{1})} {
		block := NewOverlay(w.st)
		block.Delete(k)
		if bad := checkBlock(block); !mentions(bad, "was removed") {
			t.Errorf("%s: %v", what, bad)
		}
	}
}
