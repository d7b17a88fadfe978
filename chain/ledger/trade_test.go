package ledger

import (
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// slotOf lets the houses report a slot's import and export, and clears it.
func (w *world) report(s chain.Slot, of map[*house][2]meter.WattHour, more ...[]byte) SlotView {
	w.t.Helper()
	w.at(s)
	txs := more
	for _, h := range []*house{w.a, w.b, w.c} {
		txs = append(txs, h.sign(h.site(s, of[h][0], of[h][1])))
	}
	w.ok(txs...)
	return w.slot(s)
}

// on switches a feature on.
func (w *world) on(feature string) {
	w.t.Helper()
	w.ok(w.tx(w.op, chain.TxFeature, chain.FeatureBasis{Feature: feature, On: true, Basis: "test"}))
}

func TestTariffTable(t *testing.T) {
	w := newWorld(t)
	day := chain.Slot(96)
	var table []chain.Tariff
	for d := range chain.Slot(60) { // 120 ranges in one transaction
		at := firstSl + 10 + d*day
		table = append(table, chain.Tariff{From: at, To: at + 31, Retail: 200_000, FeedIn: 60_000}, chain.Tariff{From: at + 32, To: at + 87, Retail: 320_000, FeedIn: 90_000})
	}
	w.ok(w.tx(w.op, chain.TxTariffs, chain.Tariffs{Ranges: table}))
	equal(t, "ranges", len(Tariffs(w.st)), 120)
	for s, want := range map[chain.Slot]chain.NanoPerWh{firstSl + 9: 300_000, firstSl + 10: 200_000, firstSl + 41: 200_000, firstSl + 42: 320_000, firstSl + 98: 300_000, firstSl + 10 + day: 200_000} {
		retail, _ := TariffAt(w.st, s)
		equal(t, "retail", retail, want)
	}
	// A range over many cuts out what it covers, at both ends.
	w.ok(w.tx(w.op, chain.TxTariff, chain.Tariff{From: firstSl + 20, To: firstSl + 10 + 3*day + 5, Retail: 1_000_000, FeedIn: 0}))
	for s, want := range map[chain.Slot]chain.NanoPerWh{firstSl + 19: 200_000, firstSl + 20: 1_000_000, firstSl + 10 + 3*day + 5: 1_000_000, firstSl + 10 + 3*day + 6: 200_000} {
		retail, _ := TariffAt(w.st, s)
		equal(t, "retail", retail, want)
	}
	for _, bad := range [][]chain.Tariff{
		nil,
		{table[1], table[0]},
		{{From: firstSl, To: firstSl + 5, Retail: 1}},
		{{From: firstSl + 50, To: firstSl + 51, Retail: 1, FeedIn: 2}},
		make([]chain.Tariff, chain.MaxTableRanges+1),
	} {
		code := CodeRange
		if len(bad) == 0 || len(bad) > chain.MaxTableRanges {
			code = CodeMalformed
		}
		w.nonces[w.op.key]++
		w.refused(code, chain.SignTx("test", w.nonces[w.op.key], chain.TxTariffs, chain.Tariffs{Ranges: bad}, w.op.priv))
		w.nonces[w.op.key]--
	}
	w.refused(CodeNotAllowed, chain.SignTx("test", 1, chain.TxTariffs, chain.Tariffs{Ranges: table[:1]}, w.driver.priv))
}

// The fee tree changes with its slot, and every slot is proven optimal on the
// tree that it was cleared on.
func TestZonesChangeWithTheirSlot(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9))
	trade := map[*house][2]meter.WattHour{w.a: {0, 500}, w.b: {400, 0}}
	w.ok(w.tx(w.op, chain.TxZones, chain.Zones{From: firstSl + 1, Nodes: []chain.Node{{ID: "a", Parent: "f1", Fee: 50_000}}}),
		w.tx(w.op, chain.TxZones, chain.Zones{From: firstSl + 2, Nodes: []chain.Node{{ID: "f3", Parent: "root", Fee: 7_000}, {ID: "a", Parent: "f3", Fee: 1_000}}}))
	equal(t, "planned", len(ZonesOf(w.st)), 7)
	fees := []chain.Nano{10_000, 55_000, 1_000 + 7_000 + 10_000 + 5_000}
	for i, fee := range fees {
		v := w.report(firstSl+chain.Slot(i), trade)
		equal(t, "traded", v.Energy.Traded, 400)
		equal(t, "fees", v.Fees, 400*fee)
	}
	for i := range fees { // history stays provable
		p, _, err := ProblemOf(w.st, firstSl+chain.Slot(i))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "nodes", len(p.Nodes), 6+i/2)
		if err := CertifySlot(w.st, firstSl+chain.Slot(i)); err != nil {
			t.Fatal(err)
		}
	}
	zones := func(code Code, from chain.Slot, nodes ...chain.Node) {
		t.Helper()
		w.nonces[w.op.key]++
		w.refused(code, chain.SignTx("test", w.nonces[w.op.key], chain.TxZones, chain.Zones{From: from, Nodes: nodes}, w.op.priv))
		w.nonces[w.op.key]--
	}
	far := firstSl + 100
	zones(CodeMalformed, far)
	zones(CodeRange, firstSl+1, chain.Node{ID: "a", Parent: "f1"})
	zones(CodeRange, far, chain.Node{ID: "a", Parent: "f1", Fee: -1})
	zones(CodeNode, far, chain.Node{ID: "a", Parent: "nowhere"})
	zones(CodeNode, far, chain.Node{ID: "a", Parent: "b"})                                          // a house under a house
	zones(CodeNode, far, chain.Node{ID: "root", Parent: "f1"})                                      // no root
	zones(CodeNode, far, chain.Node{ID: "x"})                                                       // two roots
	zones(CodeNode, far, chain.Node{ID: "f1", Parent: "f2"}, chain.Node{ID: "f2", Parent: "f1"})    // a cycle
	zones(CodeMalformed, far, chain.Node{ID: "a", Parent: "f1"}, chain.Node{ID: "a", Parent: "f2"}) // twice
	w.ok(w.tx(w.op, chain.TxZones, chain.Zones{From: far, Nodes: []chain.Node{{ID: "f9", Parent: "root"}}}))
	zones(CodeRange, far-1, chain.Node{ID: "a", Parent: "f1"}) // before one that waits
	// A name that is planned is taken.
	w.nonces[w.op.key]++
	once := newPerson("once")
	w.nonces[w.op.key]--
	w.ok(w.tx(w.op, chain.TxInvite, chain.Invite{Key: once.key, Node: "f1", Expires: w.now + 1e7}))
	h := newHouse("f9")
	m := h.member()
	w.refused(CodeTaken, chain.SignTx("test", 1, chain.TxJoin, chain.Join{Member: m, Sig: chain.Sign(h.priv, chain.DomainMember, chain.Marshal(m))}, once.priv))
}

// firmWorld has money on both sides and the feature on.
func firmWorld(t *testing.T) *world {
	w := newWorld(t)
	w.on(chain.FeatureFirm)
	w.ok(w.mint(w.a.owner.account(), 1e9), w.mint(w.b.owner.account(), 1e9), w.mint(w.c.owner.account(), 1e9))
	return w
}

// contract has a sell wh in the slot at p, and b take it.
func (w *world) contract(id byte, s chain.Slot, wh meter.WattHour, p chain.NanoPerWh) {
	w.t.Helper()
	w.ok(w.tx(w.a.owner, chain.TxFirmOffer, chain.FirmOffer{ID: chain.ID{id}, Device: w.a.key, Side: chain.Sell, From: s, To: s, Wh: wh, Price: p}),
		w.tx(w.b.owner, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{id}, Device: w.b.key, Wh: wh}))
}

func TestFirmDelivery(t *testing.T) {
	const p, fee, retail, feedIn = 120_000, 10_000, 300_000, 80_000
	for _, c := range []struct {
		name                     string
		export, imp              meter.WattHour
		delivered, short, unused meter.WattHour
		seller, buyer            chain.Nano // in all, for the slot
	}{
		{"kept", 500, 500, 500, 0, 0, 500 * p, -500 * (p + fee)},
		{"seller short", 200, 500, 200, 300, 0, 200*p - 300*(retail-p-fee), -500 * (p + fee)},
		{"buyer short", 500, 100, 100, 0, 400, 500 * p, -100*(p+fee) - 400*(p-feedIn)},
		{"both short", 200, 100, 100, 0, 100, 200 * p, -100*(p+fee) - 100*(p-feedIn)},
		{"nothing at all", 0, 0, 0, 0, 0, 0, 0},
		{"more than promised", 700, 900, 500, 0, 0, 500*p + 200*290_000, -500*(p+fee) - 200*300_000 - 200*300_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := firmWorld(t)
			a, b := w.balance(w.a.owner.account()), w.balance(w.b.owner.account())
			w.contract(1, firstSl+1, 500, p)
			equal(t, "collateral", w.balance(chain.AccountCollateral), 500*(retail-p-fee)+500*(p+fee))
			equal(t, "held", AccountOf(w.st, w.a.owner.account()).Held, 500*(retail-p-fee))
			w.report(firstSl, nil)
			v := w.report(firstSl+1, map[*house][2]meter.WattHour{w.a: {0, c.export}, w.b: {c.imp, 0}})
			d := FirmDeliveries(w.st, firstSl+1)
			equal(t, "deliveries", len(d), 1)
			equal(t, "delivered", d[0].Delivered, c.delivered)
			equal(t, "seller short", d[0].SellerShort, c.short)
			equal(t, "buyer short", d[0].BuyerShort, c.unused)
			equal(t, "firm", v.FirmWh, c.delivered)
			equal(t, "collateral", w.balance(chain.AccountCollateral), 0)
			equal(t, "seller", w.balance(w.a.owner.account())-a, c.seller)
			equal(t, "buyer", w.balance(w.b.owner.account())-b, c.buyer)
		})
	}
}

// A seller whose meter is silent has delivered nothing, and pays.
func TestFirmSellerGone(t *testing.T) {
	w := firmWorld(t)
	w.contract(1, firstSl+1, 500, 120_000)
	w.report(firstSl, nil)
	a, b := w.balance(w.a.owner.account()), w.balance(w.b.owner.account())
	w.at(firstSl + 1)
	w.ok(w.b.sign(w.b.site(firstSl+1, 500, 0)), w.c.sign(w.c.site(firstSl+1, 0, 0)))
	w.now += 61_000
	w.block()
	equal(t, "missing", w.slot(firstSl+1).Missing, 1)
	equal(t, "seller gets back", w.balance(w.a.owner.account())-a, 0)
	equal(t, "buyer", w.balance(w.b.owner.account())-b, 0) // his hold was what he owed
	// A slot in which nobody reports at all returns both holds.
	w = firmWorld(t)
	w.contract(1, firstSl+5, 500, 120_000)
	w.now = (firstSl + 5).End(900) + 61_000
	w.block()
	equal(t, "cleared", StatusOf(w.st).LastCleared, firstSl+5)
	equal(t, "collateral", w.balance(chain.AccountCollateral), 0)
	equal(t, "seller", w.balance(w.a.owner.account()), 1e9)
}

// The tariff rises after the contract: the seller answers for what it was,
// the buyer for the rise, on his own bill if he has no money.
func TestFirmAfterTariffChange(t *testing.T) {
	for _, c := range []struct {
		retail chain.NanoPerWh
		poor   bool
		bill   meter.WattHour
	}{{250_000, false, 0}, {400_000, false, 0}, {400_000, true, 500}, {100_000, false, 0}} {
		w := firmWorld(t)
		w.contract(1, firstSl+3, 500, 120_000)
		w.ok(w.tx(w.op, chain.TxTariff, chain.Tariff{From: firstSl + 3, To: firstSl + 3, Retail: c.retail, FeedIn: 80_000}))
		if c.poor {
			w.ok(w.tx(w.op, chain.TxBurn, chain.Burn{From: w.b.owner.account(), Amount: w.balance(w.b.owner.account()), BankRef: "out"}))
		}
		for s := firstSl; s < firstSl+3; s++ {
			w.report(s, nil)
		}
		held := AccountOf(w.st, w.b.owner.account())
		before := held.Balance + held.Held
		grid := w.balance(chain.AccountGrid)
		w.report(firstSl+3, map[*house][2]meter.WattHour{w.b: {500, 0}})
		d := FirmDeliveries(w.st, firstSl+3)[0]
		equal(t, "short", d.SellerShort, 500)
		equal(t, "own bill", d.OwnBill, c.bill)
		if c.bill == 0 {
			equal(t, "supplier", w.balance(chain.AccountGrid)-grid, chain.Nano(c.retail)*500)
		} else {
			equal(t, "buyer is made whole", d.BuyerPaid, -500*(300_000-130_000))
		}
		equal(t, "buyer", w.balance(w.b.owner.account())-before, -d.BuyerPaid)
	}
}

func TestFirmRefusals(t *testing.T) {
	w := newWorld(t)
	offer := chain.FirmOffer{ID: chain.ID{1}, Device: w.a.key, Side: chain.Sell, From: firstSl + 2, To: firstSl + 3, Wh: 500, Price: 120_000}
	try := func(code Code, p *person, kind chain.TxKind, body any) {
		t.Helper()
		w.refused(code, chain.SignTx("test", w.nonces[p.key]+1, kind, body, p.priv))
	}
	a, b, c := w.a.owner, w.b.owner, w.c.owner
	try(CodeRules, a, chain.TxFirmOffer, offer)
	w.on(chain.FeatureFirm)
	try(CodeFunds, a, chain.TxFirmOffer, offer)
	w.ok(w.mint(a.account(), 1e9), w.mint(b.account(), 1e9))
	with := func(fn func(*chain.FirmOffer)) chain.FirmOffer {
		o := offer
		fn(&o)
		return o
	}
	try(CodeNotAllowed, b, chain.TxFirmOffer, offer)
	try(CodeNotMember, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.Device = chain.Key{9} }))
	try(CodeSession, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.Session = chain.ID{9} }))
	try(CodeMalformed, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.Side = 3 }))
	try(CodeRange, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.From = firstSl }))
	try(CodeRange, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.To = o.From + MaxFirmSlots }))
	try(CodeRange, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.Wh = 0 }))
	try(CodeRange, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.Wh = 1 << 62 }))
	try(CodeRange, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.Price = 300_001 })) // above the supplier's
	try(CodeRange, a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.Price = -1 }))
	w.ok(w.tx(a, chain.TxFirmOffer, offer))
	try(CodeTaken, a, chain.TxFirmOffer, offer)
	try(CodeNotAllowed, a, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{1}, Device: w.a.key, Wh: 1})
	try(CodeRange, b, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{1}, Device: w.b.key, Wh: 501})
	try(CodeState, b, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{2}, Device: w.b.key, Wh: 1})
	try(CodeFunds, c, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{1}, Device: w.c.key, Wh: 1})
	try(CodeNotAllowed, b, chain.TxFirmCancel, chain.FirmCancel{Offer: chain.ID{1}})
	w.ok(w.tx(b, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{1}, Device: w.b.key, Wh: 200}))
	w.ok(w.tx(a, chain.TxFirmCancel, chain.FirmCancel{Offer: chain.ID{1}}))
	try(CodeState, a, chain.TxFirmCancel, chain.FirmCancel{Offer: chain.ID{1}})
	try(CodeAccount, w.op, chain.TxBurn, chain.Burn{From: chain.AccountCollateral, Amount: 1, BankRef: "x"})
	equal(t, "held for the 200 Wh of two slots", w.balance(chain.AccountCollateral), 2*200*300_000)
	// An offer that nobody takes is over when its first slot begins.
	w.ok(w.tx(a, chain.TxFirmOffer, with(func(o *chain.FirmOffer) { o.ID = chain.ID{3} })))
	w.at(firstSl + 1)
	w.block()
	w.saw("firm.closed")
	equal(t, "held", w.balance(chain.AccountCollateral), 2*200*300_000)
	// Switched off, what is promised still settles.
	w.ok(w.tx(w.op, chain.TxFeature, chain.FeatureBasis{Feature: chain.FeatureFirm}))
	w.at(firstSl + 4)
	w.now += 61_000
	w.block()
	equal(t, "collateral", w.balance(chain.AccountCollateral), 0)
}

// Buyers post firm orders too; part of one is taken by a far seller, who gets
// less.
func TestFirmBuyOffer(t *testing.T) {
	w := firmWorld(t)
	s := firstSl + 1
	w.ok(w.tx(w.b.owner, chain.TxFirmOffer, chain.FirmOffer{ID: chain.ID{1}, Device: w.b.key, Side: chain.Buy, From: s, To: s, Wh: 500, Price: 200_000}))
	w.ok(w.tx(w.c.owner, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{1}, Device: w.c.key, Wh: 300}),
		w.tx(w.a.owner, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{1}, Device: w.a.key, Wh: 200}))
	w.report(firstSl, nil)
	a, b, c := w.balance(w.a.owner.account()), w.balance(w.b.owner.account()), w.balance(w.c.owner.account())
	w.report(s, map[*house][2]meter.WattHour{w.a: {0, 200}, w.b: {500, 0}, w.c: {0, 300}})
	equal(t, "near seller", w.balance(w.a.owner.account())-a, 200*190_000+200*100_000)
	equal(t, "far seller", w.balance(w.c.owner.account())-c, 300*170_000+300*100_000)
	equal(t, "buyer", w.balance(w.b.owner.account()), b)
	equal(t, "network", w.balance(chain.AccountNetwork), 200*10_000+300*30_000)
	f, err := FlowOf(w.st, s)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "flow", len(f.Contractual), 2)
	equal(t, "kind", f.Contractual[0].Kind, FlowFirm)
}

// A car sells: its energy is an order of its own at the house's node.
func TestCarSells(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.a.owner.account(), 1e9), w.mint(w.b.owner.account(), 1e9))
	q := w.quote(w.a, w.driver, 1, 1, 0)
	q.Hold, q.SellWh, q.SellLimit = 0, 2000, 100_000
	w.refusedRecord(CodeRules, w.a, signQuote(q, w.driver))
	w.on(chain.FeatureV2V)
	w.ok(w.a.sign(signQuote(q, w.driver), exportMeter(1, 1, firstSl, 100, 70_000, w.now)))
	money := w.balance(w.driver.account())
	// Of 1500 Wh the house uses 600, 900 leave it; b takes 700 of a neighbour's price.
	w.at(firstSl)
	w.ok(w.a.sign(w.a.site(firstSl, 0, 900), exportMeter(1, 2, firstSl, 100, 71_500, w.now)), w.b.sign(w.b.site(firstSl, 700, 0)), w.c.sign(w.c.site(firstSl, 0, 0)))
	v := w.slot(firstSl)
	f := w.fill(firstSl, "v2v/"+chain.ID{1}.String())
	equal(t, "given", f.Wh, 1500)
	equal(t, "house bought", w.fill(firstSl, "buy/a").Wh, 600)
	equal(t, "traded", v.Energy.Traded, 1300)
	equal(t, "produced", v.Energy.Produced, 0) // a car is no roof
	equal(t, "certified", f.Certified, 0)
	s := w.session(1)
	equal(t, "sold", s.Sold, 1500)
	equal(t, "earned", s.Earned, f.Amount)
	equal(t, "driver", w.balance(w.driver.account())-money, s.Earned)
	if s.Earned < 1300*100_000 {
		t.Fatalf("earned %d", s.Earned)
	}
	// What is beyond the promise is the site's; the rest settles, the session closes.
	w.at(firstSl + 1)
	stop := chain.SessionStop{Session: chain.ID{1}, Seq: 3, Slot: firstSl + 1, Register: 100, Quality: meter.Good, At: w.now, Reason: chain.StopUnplugged, Export: 72_600}
	w.ok(w.a.sign(w.a.site(firstSl+1, 0, 1100), chain.NewRecord(chain.KindSessionStop, stop)), w.b.sign(w.b.site(firstSl+1, 0, 0)), w.c.sign(w.c.site(firstSl+1, 0, 0)))
	s = w.session(1)
	equal(t, "sold", s.Sold, 2000)
	equal(t, "state", s.State, SessionClosed)
	equal(t, "rest is the house's", w.fill(firstSl+1, "sell/a").Wh, 600)
}

func exportMeter(id byte, seq uint32, s chain.Slot, reg, export meter.WattHour, at int64) chain.Record {
	return chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: chain.ID{id}, Seq: seq, Slot: s, Register: reg, Export: export, Quality: meter.Good, At: at})
}

// A car's firm promise is off its account when it leaves.
func TestCarBreaksItsPromise(t *testing.T) {
	w := firmWorld(t)
	w.on(chain.FeatureV2V)
	q := w.quote(w.a, w.driver, 1, 1, 0)
	q.Hold, q.SellWh = 0, 2000
	w.ok(w.a.sign(signQuote(q, w.driver), exportMeter(1, 1, firstSl, 0, 0, w.now)))
	offer := chain.FirmOffer{ID: chain.ID{7}, Device: w.a.key, Session: chain.ID{1}, Side: chain.Sell, From: firstSl + 1, To: firstSl + 2, Wh: 400, Price: 150_000}
	w.refused(CodeNotAllowed, chain.SignTx("test", w.nonces[w.a.owner.key]+1, chain.TxFirmOffer, offer, w.a.owner.priv))
	w.ok(w.tx(w.driver, chain.TxFirmOffer, offer), w.tx(w.b.owner, chain.TxFirmTake, chain.FirmTake{Offer: chain.ID{7}, Device: w.b.key, Wh: 300}))
	duties := FirmDuties(w.st, w.a.key, firstSl, firstSl+5)
	equal(t, "duties of the car", len(duties), 2)
	equal(t, "the first", duties[0], FirmDuty{chain.ID{1}, chain.ID{7}, 1, firstSl + 1, 300})
	equal(t, "of another house", len(FirmDuties(w.st, w.b.key, firstSl, firstSl+5)), 0)
	w.report(firstSl, nil, w.a.sign(exportMeter(1, 2, firstSl, 0, 0, w.now)))
	before := AccountOf(w.st, w.driver.account())
	w.at(firstSl + 1) // kept
	w.report(firstSl+1, map[*house][2]meter.WattHour{w.a: {0, 300}, w.b: {300, 0}}, w.a.sign(exportMeter(1, 3, firstSl+1, 0, 300, w.now)))
	equal(t, "delivered", FirmDeliveries(w.st, firstSl+1)[0].Delivered, 300)
	equal(t, "earned", w.session(1).Earned, 300*150_000)
	stop := chain.SessionStop{Session: chain.ID{1}, Seq: 4, Slot: firstSl + 2, Quality: meter.Good, At: w.now, Reason: chain.StopUnplugged, Export: 300}
	w.ok(w.a.sign(chain.NewRecord(chain.KindSessionStop, stop)))
	w.report(firstSl+2, map[*house][2]meter.WattHour{w.b: {300, 0}})
	d := FirmDeliveries(w.st, firstSl+2)[0]
	equal(t, "short", d.SellerShort, 300)
	after := AccountOf(w.st, w.driver.account())
	equal(t, "driver", after.Balance+after.Held-before.Balance-before.Held, 300*150_000-300*(300_000-160_000))
	equal(t, "session", w.session(1).Earned, 300*150_000-300*(300_000-160_000))
}

// A car buys firmly of a car: what was promised is paid from the collateral,
// the rest of what it takes from its hold, and who is short makes the other
// whole.
func TestCarBuysOfACar(t *testing.T) {
	w := firmWorld(t)
	w.on(chain.FeatureV2V)
	buyer := newPerson("buyer")
	w.ok(w.mint(buyer.account(), 1e9))
	q := w.quote(w.a, w.driver, 1, 1, 0)
	q.Hold, q.SellWh = 0, 2000
	w.ok(w.a.sign(signQuote(q, w.driver), exportMeter(1, 1, firstSl, 0, 0, w.now)))
	w.ok(w.b.sign(signQuote(w.quote(w.b, buyer, 2, 1, 2000), buyer), sessionMeter(2, 1, firstSl, 0, w.now)))
	s := firstSl + 1
	w.ok(w.tx(w.driver, chain.TxFirmOffer, chain.FirmOffer{ID: chain.ID{7}, Device: w.a.key, Session: chain.ID{1}, Side: chain.Sell, From: s, To: s + 2, Wh: 300, Price: 150_000}))
	take := chain.FirmTake{Offer: chain.ID{7}, Device: w.b.key, Session: chain.ID{2}, Wh: 300}
	w.refused(CodeNotAllowed, chain.SignTx("test", w.nonces[w.b.owner.key]+1, chain.TxFirmTake, take, w.b.owner.priv))
	before := AccountOf(w.st, buyer.account())
	w.ok(w.tx(buyer, chain.TxFirmTake, take))
	w.report(firstSl, nil, w.a.sign(exportMeter(1, 2, firstSl, 0, 0, w.now)), w.b.sign(sessionMeter(2, 2, firstSl, 0, w.now)))

	w.at(s) // kept; the car takes 100 Wh more, of the supplier
	w.report(s, map[*house][2]meter.WattHour{w.a: {0, 300}, w.b: {400, 0}}, w.a.sign(exportMeter(1, 3, s, 0, 300, w.now)), w.b.sign(sessionMeter(2, 3, s, 400, w.now)))
	f := w.fill(s, "car/"+chain.ID{2}.String())
	equal(t, "firm", f.Firm, 300)
	equal(t, "of the supplier", f.Grid, 100)
	b := w.session(2)
	equal(t, "captured", b.Captured, 100*300_000)
	equal(t, "local", b.LocalWh, 300)
	equal(t, "firmly", b.FirmWh, 300)
	equal(t, "paid for it", b.FirmPaid, 300*160_000)
	flow, err := FlowOf(w.st, s)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "from the car", flow.Contractual[1].From, "v2v/"+chain.ID{1}.String())
	equal(t, "to the car", flow.Contractual[1].To, f.ID)

	w.at(s + 1) // the seller is short by 200
	w.report(s+1, map[*house][2]meter.WattHour{w.a: {0, 100}, w.b: {300, 0}}, w.a.sign(exportMeter(1, 4, s+1, 0, 400, w.now)), w.b.sign(sessionMeter(2, 4, s+1, 700, w.now)))
	b = w.session(2)
	equal(t, "the supplier's part is no bill of the hold", b.Captured, 100*300_000)
	equal(t, "local", b.LocalWh, 400)
	equal(t, "firmly, or made good", b.FirmWh, 600)
	equal(t, "made whole", b.FirmPaid, 600*160_000)

	w.at(s + 2) // the buyer is full after 50, and owes for 250
	w.report(s+2, map[*house][2]meter.WattHour{w.a: {0, 300}, w.b: {50, 0}}, w.a.sign(exportMeter(1, 5, s+2, 0, 700, w.now)), w.b.sign(sessionStop(2, 5, s+2, 750, w.now)))
	b = w.session(2)
	equal(t, "state", b.State, SessionClosed)
	equal(t, "paid from the hold", b.Paid, 100*300_000)
	equal(t, "paid beside it", b.FirmPaid, 650*160_000+250*(150_000-80_000))
	equal(t, "the seller", w.session(1).Earned, 300*150_000+100*150_000-200*(300_000-160_000)+300*150_000)
	after := AccountOf(w.st, buyer.account())
	equal(t, "the buyer", before.Balance+before.Held-after.Balance-after.Held, b.Paid+b.FirmPaid)
	w.ok(w.mint(chain.AccountRounding, 1e9))
	w.ok(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: buyer.account()}))
	var wh meter.WattHour
	for _, i := range Invoices(w.st, buyer.account())[0].Items {
		wh += i.Wh
	}
	equal(t, "billed once", wh, 750)
}

// The tariff rises after a car has bought, its seller is short and the driver
// has no money left: the seller's part is the driver's, and the hold pays.
func TestCarBuysAndTheTariffRises(t *testing.T) {
	w := firmWorld(t)
	buyer, s := newPerson("buyer"), firstSl+1
	w.ok(w.mint(buyer.account(), 1000*400_000+300*130_000)) // hold and collateral
	w.ok(w.b.sign(signQuote(w.quote(w.b, buyer, 2, 1, 1000), buyer), sessionMeter(2, 1, firstSl, 0, w.now)))
	w.ok(w.tx(w.a.owner, chain.TxFirmOffer, chain.FirmOffer{ID: chain.ID{7}, Device: w.a.key, Side: chain.Sell, From: s, To: s, Wh: 300, Price: 120_000}))
	take := chain.FirmTake{Offer: chain.ID{7}, Device: w.b.key, Session: chain.ID{2}, Wh: 300}
	w.ok(w.tx(buyer, chain.TxFirmTake, take))
	w.refused(CodeState, chain.SignTx("test", w.nonces[buyer.key]+1, chain.TxFirmTake, take, buyer.priv)) // all is taken
	w.ok(w.tx(w.op, chain.TxTariff, chain.Tariff{From: s, To: s, Retail: 400_000, FeedIn: 80_000}))
	equal(t, "left beside hold and collateral", w.balance(buyer.account()), 0)
	w.report(firstSl, nil, w.b.sign(sessionMeter(2, 2, firstSl, 0, w.now)))
	w.at(s)
	w.report(s, map[*house][2]meter.WattHour{w.b: {300, 0}}, w.b.sign(sessionMeter(2, 3, s, 300, w.now)))
	d := FirmDeliveries(w.st, s)[0]
	equal(t, "left to the hold", d.OwnBill, 300)
	b := w.session(2)
	equal(t, "captured", b.Captured, 300*400_000)
	equal(t, "under contract", b.FirmWh, 0)
	equal(t, "made good", b.FirmPaid, -300*(300_000-130_000))
	equal(t, "driver", w.balance(buyer.account()), 300*130_000+300*(300_000-130_000))
}

// By departure: the deadline is the session's, its energy within the hold.
func TestByDeparture(t *testing.T) {
	w := newWorld(t)
	q := w.quote(w.c, w.driver, 1, 1, 5000)
	q.By, q.Want = firstSl+20, 5001
	w.refusedRecord(CodeMalformed, w.c, signQuote(q, w.driver))
	q.By, q.Want = firstSl, 4000
	w.refusedRecord(CodeExpired, w.c, signQuote(q, w.driver))
	q.By = firstSl + 20
	w.ok(w.c.sign(signQuote(q, w.driver)))
	s := w.session(1)
	equal(t, "by", s.By, firstSl+20)
	equal(t, "want", s.Want, 4000)
	equal(t, "hold covers it", s.Hold >= chain.Nano(s.Cap)*chain.Nano(s.Want), true)
}

// A battery's owner sets two limits: it is charged below the one and gives
// above the other, in slots of their own.
func TestBatteryTradesOnBothSides(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9), w.mint(w.c.owner.account(), 1e9))
	w.ok(w.b.sign(chain.NewRecord(chain.KindOffer, chain.Offer{Side: chain.Buy, Limit: 150_000}), chain.NewRecord(chain.KindOffer, chain.Offer{Side: chain.Sell, Limit: 220_000})),
		w.b.sign(w.b.measure("battery", chain.RoleStorage, firstSl-1, 0, 0)))
	meters := func(s chain.Slot, of map[*house][2]meter.WattHour, charged, given meter.WattHour) SlotView {
		t.Helper()
		w.at(s)
		return w.report(s, of, w.b.sign(w.b.measure("battery", chain.RoleStorage, s, charged, given)))
	}
	v := meters(firstSl, map[*house][2]meter.WattHour{w.a: {0, 800}, w.b: {800, 0}}, 800, 0)
	equal(t, "charged of the sun", v.Energy.Traded, 800)
	m, _ := MemberOf(w.st, w.b.key)
	equal(t, "cancelled by charging", m.Certificates.Charged, 800)
	v = meters(firstSl+1, map[*house][2]meter.WattHour{w.b: {0, 700}, w.c: {700, 0}}, 0, 700)
	equal(t, "given at the peak", v.Energy.Traded, 700)
	equal(t, "nothing was produced", v.Energy.Produced, 0)
	f := w.fill(firstSl+1, "sell/b")
	equal(t, "certified, less the losses of storing", f.Certified, 680)
	equal(t, "stored", f.Stored, 680)
	m, _ = MemberOf(w.st, w.b.key)
	equal(t, "issued on discharge", m.Certificates.Stored, 680)
	if f.Price < 220_000 || w.fill(firstSl, "buy/b").Price > 150_000 {
		t.Fatal("traded beyond its limits")
	}
	// Nothing is left to certify.
	meters(firstSl+2, map[*house][2]meter.WattHour{w.b: {0, 50}, w.c: {50, 0}}, 0, 50)
	equal(t, "certified", w.fill(firstSl+2, "sell/b").Certified, 0)
}

// Another storage efficiency holds for what is charged from then on.
func TestStorageEfficiencyIsARule(t *testing.T) {
	w := newWorldOf(t, func(g *chain.Genesis) { g.StoragePPM = 800_000 })
	w.ok(w.mint(w.b.owner.account(), 1e9), w.mint(w.c.owner.account(), 1e9))
	w.ok(w.b.sign(w.b.measure("battery", chain.RoleStorage, firstSl-1, 0, 0)))
	s := firstSl
	next := func(of map[*house][2]meter.WattHour, charged, given meter.WattHour) meter.WattHour {
		t.Helper()
		w.at(s)
		w.report(s, of, w.b.sign(w.b.measure("battery", chain.RoleStorage, s, charged, given)))
		s++
		m, _ := MemberOf(w.st, w.b.key)
		return m.Certificates.Stored
	}
	change := func(ppm int64) {
		t.Helper()
		w.took(w.tx(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 3, StoragePPM: &ppm}))
		w.block()
		w.block()
		equal(t, "in force", RulesOf(w.st).StoragePPM, ppm)
	}
	sun, peak := map[*house][2]meter.WattHour{w.a: {0, 1000}, w.b: {1000, 0}}, map[*house][2]meter.WattHour{w.b: {0, 300}, w.c: {300, 0}}
	next(sun, 1000, 0)
	equal(t, "at 80 %", next(peak, 0, 300), 300)
	change(950_000)
	equal(t, "of the old charge", next(peak, 0, 300), 600)
	equal(t, "no more than 80 % of it", next(peak, 0, 300), 800)
	next(sun, 1000, 0)
	equal(t, "95 % of the new", next(peak, 0, 300), 1100)
	change(100_000) // less than what is under way allows: nothing is taken back
	equal(t, "the old charge's", next(peak, 0, 300), 1400)
	for _, ppm := range []int64{-1, 99_999, 1_000_001} {
		w.refused(CodeRange, w.bad(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 10, StoragePPM: &ppm}))
	}
}

func TestCertificatesFollowTheEnergy(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9), w.mint(w.c.owner.account(), 1e9))
	w.ok(w.a.sign(w.a.measure("pv", chain.RoleProduction, firstSl-1, 0, 0)))
	pv := func(s chain.Slot, wh meter.WattHour) []byte {
		return w.a.sign(w.a.measure("pv", chain.RoleProduction, s, 0, wh))
	}
	w.at(firstSl)
	// 1000 made, 900 left the house; 500 and 300 sold, 100 to the grid, 100 used.
	w.report(firstSl, map[*house][2]meter.WattHour{w.a: {0, 900}, w.b: {500, 0}, w.c: {300, 0}}, pv(firstSl, 1000))
	w.at(firstSl + 1)
	// A roof that made 200 cannot certify 600.
	w.report(firstSl+1, map[*house][2]meter.WattHour{w.a: {0, 600}, w.b: {500, 0}}, pv(firstSl+1, 200))
	a, _ := MemberOf(w.st, w.a.key)
	b, _ := MemberOf(w.st, w.b.key)
	equal(t, "issued", a.Certificates, CertificateTotals{Issued: 1200, Sold: 1000, Exported: 100, Own: 100})
	equal(t, "bought", b.Certificates.Bought, 700)
	equal(t, "of 500", w.fill(firstSl+1, "buy/b").Certified, 200)
	// A correction takes 300 Wh back: they are not issued twice.
	w.ok(w.a.sign(chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: chain.ID{1}, Slot: firstSl, Export: -300, Reason: "wrong transformer ratio"})))
	w.saw("meter.corrected")
}

func TestCorrections(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9))
	w.report(firstSl, map[*house][2]meter.WattHour{w.a: {0, 800}, w.b: {500, 0}})
	before := w.slot(firstSl)
	fix := func(id byte, imp, exp meter.WattHour) chain.Record {
		return chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: chain.ID{id}, Slot: firstSl, Import: imp, Export: exp, Reason: "misread"})
	}
	grid, b := w.balance(chain.AccountGrid), w.balance(w.b.owner.account())
	w.ok(w.b.sign(fix(1, 40, 0))) // against oneself: at once
	equal(t, "owner", w.balance(w.b.owner.account())-b, -40*300_000)
	equal(t, "grid", w.balance(chain.AccountGrid)-grid, 40*300_000)
	w.refusedRecord(CodeDuplicate, w.b, fix(1, 40, 0))

	w.ok(w.b.sign(fix(2, -100, 0))) // in one's own favour: the operator decides
	w.saw("meter.correction_waits")
	equal(t, "owner", w.balance(w.b.owner.account())-b, -40*300_000)
	ruling := chain.CorrectionRuling{Device: w.b.key, Slot: firstSl, ID: chain.ID{2}, Accept: true}
	w.refused(CodeNotAllowed, chain.SignTx("test", 1, chain.TxCorrection, ruling, w.b.owner.priv))
	w.ok(w.tx(w.op, chain.TxCorrection, ruling))
	equal(t, "owner", w.balance(w.b.owner.account())-b, 60*300_000)
	w.refused(CodeState, chain.SignTx("test", w.nonces[w.op.key]+1, chain.TxCorrection, ruling, w.op.priv))
	w.ok(w.b.sign(fix(3, -10, 0)))
	ruling.ID, ruling.Accept = chain.ID{3}, false
	w.ok(w.tx(w.op, chain.TxCorrection, ruling))
	equal(t, "refused", w.balance(w.b.owner.account())-b, 60*300_000)

	w.refusedRecord(CodeRange, w.b, fix(4, -500, 0)) // 440 are left
	w.refusedRecord(CodeRange, w.b, fix(4, 1<<62, 0))
	w.refusedRecord(CodeMalformed, w.b, fix(4, 0, 0))
	w.refusedRecord(CodeState, w.b, chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: chain.ID{4}, Slot: firstSl + 1, Import: 1, Reason: "x"}))
	equal(t, "the slot stands", w.slot(firstSl).Energy, before.Energy)

	// Export that was not: paid back; certificates for it are owed.
	w.ok(w.mint(w.a.owner.account(), 1e9))
	w.ok(w.a.sign(fix(1, 0, -700)))
	a, _ := MemberOf(w.st, w.a.key)
	equal(t, "owed", a.Certificates.Owed, 700)
	w.report(firstSl+1, map[*house][2]meter.WattHour{w.a: {0, 500}})
	w.report(firstSl+2, map[*house][2]meter.WattHour{w.a: {0, 500}})
	a, _ = MemberOf(w.st, w.a.key)
	equal(t, "owed", a.Certificates.Owed, 0)
	equal(t, "issued", a.Certificates.Issued, 800+300)
	equal(t, "listed", len(CorrectionsOf(w.st, w.b.key)), 3)
	equal(t, "all", len(CorrectionsOf(w.st, chain.Key{})), 4)

	w.now = firstSl.End(900) + correctionMs + 1000
	w.refusedRecord(CodeExpired, w.b, fix(5, 1, 0))
}

func TestLossesAreSetAsideAndAudited(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9))
	connection := func(s chain.Slot, imp, exp meter.WattHour) []byte {
		return w.a.sign(w.a.measure("grid", chain.RoleConnection, s, imp, exp))
	}
	w.report(firstSl, nil, connection(firstSl, 0, 0))
	w.at(firstSl + 1)
	v := w.report(firstSl+1, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.b: {700, 0}}, connection(firstSl+1, 0, 290))
	equal(t, "loss", v.Energy.Loss, 10)
	equal(t, "audit", v.Audit, false)
	equal(t, "value", v.LossValue, 10*300_000)
	equal(t, "account", w.balance(chain.AccountLoss), 10*300_000)
	w.at(firstSl + 2)
	v = w.report(firstSl+2, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.b: {700, 0}}, connection(firstSl+2, 0, 100))
	equal(t, "audit", v.Audit, true)
	w.saw("slot.loss")
	equal(t, "as far as the fees go", w.balance(chain.AccountNetwork) >= 0, true)
	w.at(firstSl + 3)
	before := w.balance(chain.AccountLoss)
	v = w.report(firstSl+3, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.b: {700, 0}}, connection(firstSl+3, 0, 302))
	equal(t, "meters a moment apart", v.Energy.Loss, -2)
	equal(t, "given back", before-w.balance(chain.AccountLoss), 2*300_000)
}

// A grid connection whose meter claims what nobody can pay for is no reason
// to halt.
func TestAbsurdLossDoesNotHalt(t *testing.T) {
	w := newWorld(t)
	w.ok(w.tx(w.op, chain.TxTariff, chain.Tariff{From: firstSl + 1, To: firstSl + 9, Retail: MaxPrice, FeedIn: MaxPrice}))
	w.report(firstSl, nil, w.a.sign(w.a.measure("grid", chain.RoleConnection, firstSl, 0, 0)))
	w.at(firstSl + 1)
	v := w.report(firstSl+1, nil, w.a.sign(w.a.measure("grid", chain.RoleConnection, firstSl+1, 15_000, 0)))
	equal(t, "loss", v.Energy.Loss, 15_000)
	equal(t, "audit", v.Audit, true)
}
