package ledger

import (
	"bytes"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

var sunny = chain.NewRecord(chain.KindOffer, chain.Offer{From: firstSl, To: firstSl, Side: chain.Sell, Limit: 100_000})

func TestGatewayChainsAreFollowedInOrder(t *testing.T) {
	w := newWorld(t)
	h := w.a
	first := h.sent[0]
	second, third, fourth := h.sign(sunny), h.sign(sunny), h.sign(sunny)
	w.refused(CodeGap, third)
	w.refused(CodeDuplicate, first)
	w.ok(second, third, fourth) // a whole queue fits in one block
	w.refused(CodeDuplicate, third)

	// The queue also passes admission in one go.
	mempool := NewOverlay(w.st)
	for _, raw := range [][]byte{h.sign(sunny), h.sign(sunny)} {
		if res := CheckTx(mempool, raw); res.Code != CodeOK {
			t.Fatal(res)
		}
	}
	head, _ := HeadOf(w.st, h.key)
	equal(t, "head", head.Position, chain.Position{Epoch: 1, Number: 4})

	// A gateway that lost its journal opens a new epoch; the old one is over.
	lost := h.sent[len(h.sent)-2]
	h.pos, h.prev = chain.Position{Epoch: 2}, chain.Hash{}
	w.ok(h.sign(sunny))
	w.refused(CodeStale, lost)
	w.refused(CodeDuplicate, fourth)
	h.pos.Epoch = 3
	w.refused(CodeGap, (&house{name: "a", priv: h.priv, key: h.key, pos: chain.Position{Epoch: 3, Number: 1}}).sign(sunny))
}

func TestEquivocationIsRefusedAndTold(t *testing.T) {
	w := newWorld(t)
	twin := *w.a
	w.ok(w.a.sign(sunny))
	other := twin.sign(chain.NewRecord(chain.KindOffer, chain.Offer{From: firstSl, To: firstSl, Side: chain.Sell, Limit: 1}))
	w.refused(CodeEquivocation, other)
	w.saw("block.equivocation")
	head, _ := HeadOf(w.st, w.a.key)
	equal(t, "the first stands", head.Hash, w.a.prev)
	w.refused(CodeEquivocation, twin.sign(sunny)) // its successor builds on the other
}

func TestForeignAndBrokenBlocksAreRefused(t *testing.T) {
	w := newWorld(t)
	w.refused(CodeNotMember, newHouse("stranger").sign(sunny))
	good := w.a.sign(sunny)
	bad := bytes.Clone(good)
	bad[len(bad)-1] ^= 1
	w.refused(CodeSignature, bad)
	w.refused(CodeMalformed, good[:len(good)-1])
	w.refused(CodeMalformed, nil)
	w.refused(CodeTooLarge, make([]byte, chain.MaxTxBytes+1))
	w.refused(CodeKind, chain.Marshal(chain.Envelope{Type: 9, Body: []byte{1}, Sig: make([]byte, 64)}))
	foreign, err := chain.SignBlock(chain.Block{Chain: "other", Epoch: 1, Number: 2, Prev: w.a.prev, Records: []chain.Record{sunny}}, w.a.priv)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(CodeChain, foreign.Raw)
	w.ok(good)
}

func TestBadRecordDoesNotVoidItsBlock(t *testing.T) {
	w := newWorld(t)
	raw := w.a.sign(
		chain.NewRecord(chain.KindOffer, chain.Offer{From: 2, To: 1, Side: chain.Sell}),
		chain.NewRecord(77, "from the future"),
		chain.NewRecord(chain.KindEvent, chain.Event{Code: "relay.opened"}),
		chain.NewRecord(0x9000, "evidence of a later version"),
		chain.NewRecord(chain.KindOffer, "no offer"),
		sunny,
	)
	out := w.block(raw)
	equal(t, "block", out.Results[0].Code, CodeOK)
	var got []Code
	for _, r := range out.Results[0].Refused {
		got = append(got, r.Code)
	}
	if len(got) != 3 || got[0] != CodeRange || got[1] != CodeKind || got[2] != CodeMalformed {
		t.Fatalf("refused %v", out.Results[0].Refused)
	}
	w.ok(w.a.sign(sunny)) // the chain goes on
}

func TestMeterRecords(t *testing.T) {
	w := newWorld(t)
	h := w.a
	bad := h.state("site", chain.RoleSite, firstSl, 5, 5, meter.Good)
	h.pages["site"] -= 2
	repeated := h.state("site", chain.RoleSite, firstSl, 5, 5, meter.Good)
	h.pages["site"] = 1
	_ = bad
	w.refusedRecord(CodeSequence, h, repeated)
	h.pages["site"] = 7
	w.refusedRecord(CodeSequence, h, h.state("site", chain.RoleSite, firstSl, 5, 5, meter.Good))
	h.pages["site"] = 1
	w.refusedRecord(CodeRole, h, h.state("second", chain.RoleSite, firstSl, 5, 5, meter.Good))
	w.refusedRecord(CodeRole, h, h.state("site", chain.RoleCharger, firstSl, 5, 5, meter.Good))
	w.refusedRecord(CodeMalformed, h, h.state("no/name", chain.RoleCharger, firstSl, 5, 5, meter.Good))
	h.pages["site"] = 1

	doubtful := func(rec chain.Record) {
		t.Helper()
		w.ok(h.sign(rec))
		w.saw("meter.suspect")
		m, _ := MeterOf(w.st, h.key, "site")
		equal(t, "page", m.Page, h.pages["site"]) // the page advances,
		equal(t, "register", m.Import, 0)         // the register does not
	}
	w.at(firstSl)
	doubtful(h.state("site", chain.RoleSite, firstSl, 100, 0, meter.Stale))
	doubtful(h.state("site", chain.RoleSite, firstSl, -1, 0, meter.Good))
	doubtful(h.state("site", chain.RoleSite, firstSl+999, 100, 0, meter.Good)) // clock far ahead
	w.at(firstSl)
	// 20 kW for a quarter of an hour is 5000 Wh; but a register of zero is no base.
	w.ok(h.sign(h.state("site", chain.RoleSite, firstSl, 900_000, 0, meter.Good)))
	w.saw("meter.rebased")
	w.at(firstSl + 1)
	w.ok(h.sign(h.state("site", chain.RoleSite, firstSl+1, 905_002, 0, meter.Good)))
	w.saw("meter.quarantined")
	w.ok(w.tx(w.op, chain.TxMeterRelease, chain.MeterRelease{Device: h.key, Meter: "site", Reason: "looked at"}))
	w.saw("meter.released")
	w.ok(h.sign(h.state("site", chain.RoleSite, firstSl+1, 905_003, 0, meter.Stale)))
	w.saw("meter.suspect")
	// What was not trusted moves with the next good record, if that is plausible.
	w.ok(h.sign(h.state("site", chain.RoleSite, firstSl+1, 905_003, 0, meter.Good)))
	m, _ := MeterOf(w.st, h.key, "site")
	equal(t, "register", m.Import, 905_003)

	// A swapped meter starts a new segment with a base of its own.
	h.pages["site"]++
	w.ok(h.sign(chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: firstSl + 1, Meter: "site", Role: chain.RoleSite, Page: h.pages["site"], Import: 3, Quality: meter.Good, At: w.now, Segment: 1})))
	w.saw("meter.segment")
	m, _ = MeterOf(w.st, h.key, "site")
	equal(t, "register", m.Import, 3)

	// A gateway that lost its journal does not know its page.
	h.pos, h.prev, h.pages["site"] = chain.Position{Epoch: 5}, chain.Hash{}, 0
	h.pages["site"]++
	w.ok(h.sign(chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: firstSl + 1, Meter: "site", Role: chain.RoleSite, Page: 1, Import: 4, Quality: meter.Good, At: w.now, Segment: 1})))
	m, _ = MeterOf(w.st, h.key, "site")
	equal(t, "page", m.Page, 1)
}

func TestHiddenReadingsTradeAtTheGridsPrice(t *testing.T) {
	w := newWorld(t)
	w.at(firstSl)
	w.ok(w.b.sign(w.b.site(firstSl, 700, 0)), w.c.sign(w.c.site(firstSl, 0, 0)))
	if _, ok := SlotOf(w.st, firstSl); ok {
		t.Fatal("cleared without a's reading before the grace was over")
	}
	w.now += 61_000
	w.block()
	equal(t, "missing", w.slot(firstSl).Missing, 1)
	// The record for the slot after carries both slots' energy: none of it trades.
	w.at(firstSl + 1)
	w.ok(w.a.sign(w.a.site(firstSl+1, 0, 2000)), w.b.sign(w.b.site(firstSl+1, 700, 0)), w.c.sign(w.c.site(firstSl+1, 0, 0)))
	w.saw("meter.late")
	equal(t, "traded", EnergyOf(w.st).Traded, 0)
	equal(t, "income at feed-in", w.balance(w.a.owner.account()), 2000*80_000)
	// From then on it trades again.
	w.ok(w.mint(w.b.owner.account(), 1e9))
	w.at(firstSl + 2)
	w.ok(w.a.sign(w.a.site(firstSl+2, 0, 500)), w.b.sign(w.b.site(firstSl+2, 700, 0)), w.c.sign(w.c.site(firstSl+2, 0, 0)))
	equal(t, "traded", EnergyOf(w.st).Traded, 500)
}

func TestHouseWithoutMoneyIsBilledByTheSupplier(t *testing.T) {
	w := newWorld(t)
	w.at(firstSl)
	w.ok(w.mint(w.c.owner.account(), 500*300_000-1)) // one nano short at retail
	w.ok(w.a.sign(w.a.site(firstSl, 0, 500)), w.b.sign(w.b.site(firstSl, 0, 0)), w.c.sign(w.c.site(firstSl, 500, 0)))
	equal(t, "supplier", w.fill(firstSl, "buy/c").Supplier, 500)
	equal(t, "balance", w.balance(w.c.owner.account()), 500*300_000-1)
	m, _ := MemberOf(w.st, w.c.key)
	equal(t, "counted", m.SupplierImport, 500)
}

func TestSupplierWithoutMoneyOwesOutsideTheLedger(t *testing.T) {
	w := newWorld(t)
	w.ok(w.tx(w.op, chain.TxBurn, chain.Burn{From: chain.AccountGrid, Amount: 1e12, BankRef: "out"}))
	w.at(firstSl)
	w.ok(w.a.sign(w.a.site(firstSl, 0, 500)), w.b.sign(w.b.site(firstSl, 0, 0)), w.c.sign(w.c.site(firstSl, 0, 0)))
	equal(t, "supplier", w.fill(firstSl, "sell/a").Supplier, 500)
	m, _ := MemberOf(w.st, w.a.key)
	equal(t, "counted", m.SupplierExport, 500)
}

func TestStandingLimits(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9))
	w.ok(w.a.sign(chain.NewRecord(chain.KindOffer, chain.Offer{Side: chain.Sell, Limit: 250_000})),
		w.b.sign(chain.NewRecord(chain.KindOffer, chain.Offer{Side: chain.Buy, Limit: 240_000})))
	w.at(firstSl)
	w.ok(w.a.sign(w.a.site(firstSl, 0, 500)), w.b.sign(w.b.site(firstSl, 500, 0)), w.c.sign(w.c.site(firstSl, 0, 0)))
	equal(t, "traded", EnergyOf(w.st).Traded, 0)
	equal(t, "sold at feed-in", w.balance(w.a.owner.account()), 500*80_000)
	// From the next slot but one on they meet; until then the old limit stands.
	w.ok(w.a.sign(chain.NewRecord(chain.KindOffer, chain.Offer{From: firstSl + 2, To: firstSl + 2, Side: chain.Sell, Limit: 200_000})))
	for s := firstSl + 1; s <= firstSl+2; s++ {
		w.at(s)
		w.ok(w.a.sign(w.a.site(s, 0, 500)), w.b.sign(w.b.site(s, 500, 0)), w.c.sign(w.c.site(s, 0, 0)))
		equal(t, "traded", EnergyOf(w.st).Traded, 500*meter.WattHour(s-firstSl-1))
	}
	w.refusedRecord(CodeRange, w.a, chain.NewRecord(chain.KindOffer, chain.Offer{Side: chain.Sell, Limit: -1}))
	w.refusedRecord(CodeMalformed, w.a, chain.NewRecord(chain.KindOffer, chain.Offer{Side: 3, Limit: 1}))
}

func TestLossesAgainstTheGridConnection(t *testing.T) {
	w := newWorld(t)
	w.at(firstSl)
	report := func(s chain.Slot, conn, imp meter.WattHour) {
		w.at(s)
		w.ok(w.a.sign(w.a.measure("pv", chain.RoleProduction, s, 0, 400), w.a.measure("grid", chain.RoleConnection, s, conn, 0), w.a.site(s, 0, 300)),
			w.b.sign(w.b.site(s, imp, 0)), w.c.sign(w.c.site(s, 0, 0)))
	}
	report(firstSl, 0, 500)               // the connection meter's base
	report(firstSl+1, 210, 500)           // 300 + 210 in, 500 out
	report(firstSl+2, 190, 500)           // meter timing
	e := w.slot(firstSl).Energy           // before the connection meter: the sums stand for it
	equal(t, "produced", e.Produced, 300) // no production yet but what was exported
	e = w.slot(firstSl + 1).Energy
	equal(t, "grid import", e.GridImport, 210)
	equal(t, "loss", e.Loss, 10)
	equal(t, "consumed", e.Consumed, 600) // 100 at a, 500 at b
	equal(t, "loss", w.slot(firstSl+2).Energy.Loss, -10)
	w.refusedRecord(CodeRole, w.b, w.b.measure("grid", chain.RoleConnection, firstSl+2, 0, 0))
	// Late records of site and connection keep the identity.
	w.at(firstSl + 5)
	w.ok(w.b.sign(w.b.site(firstSl+4, 500, 20)))
	w.ok(w.a.sign(w.a.measure("grid", chain.RoleConnection, firstSl+2, 480, 0)))
	e = EnergyOf(w.st)
	equal(t, "identity", e.Produced+e.GridImport, e.Consumed+e.GridExport+e.Loss)
}

func TestIdleChainStandsStill(t *testing.T) {
	w := newWorld(t)
	w.block()
	h := StateHash(w.st)
	for range 50 {
		w.now += slotMs
		w.block()
	}
	equal(t, "hash", StateHash(w.st), h)
	if _, err := Apply(w.st, BlockInput{Height: 1, TimeMs: w.now}); err == nil {
		t.Fatal("a block of an old height was applied")
	}
	if _, err := Apply(w.st, BlockInput{Height: 10_000, TimeMs: t0 - 1}); err == nil {
		t.Fatal("a block of an old time was applied")
	}
}
