package ledger

import (
	"slices"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// charge runs one session at h over one slot: wh for the car, and what the
// houses' site meters saw. It returns when everything is settled.
func (w *world) charge(id byte, h *house, s chain.Slot, wh meter.WattHour, redeem bool, site map[*house][2]meter.WattHour) {
	w.t.Helper()
	w.now = max(w.now, s.Start(900))
	q := w.quote(h, w.driver, id, 1, 5000)
	q.Redeem = redeem
	w.ok(h.sign(signQuote(q, w.driver)))
	equal(w.t, "state", w.session(id).State, SessionHeld)
	w.ok(h.sign(sessionMeter(id, 1, s, 1000, w.now)))
	equal(w.t, "state", w.session(id).State, SessionCharging)
	w.at(s)
	var txs [][]byte
	for _, x := range []*house{w.a, w.b, w.c} {
		records := []chain.Record{x.site(s, site[x][0], site[x][1])}
		if x == h {
			records = append(records, sessionStop(id, 2, s, 1000+wh, w.now))
		}
		txs = append(txs, x.sign(records...))
	}
	w.ok(txs...)
}

func TestNeighboursSurplusChargesCar(t *testing.T) {
	w := newWorld(t)
	driver, sellerBefore := w.balance(w.driver.account()), w.balance(w.a.owner.account())
	// a exports 1000 Wh of sun; a car at c, on the other feeder, takes 600 Wh.
	w.charge(1, w.c, firstSl, 600, false, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.c: {600, 0}})

	car, sell := w.fill(firstSl, "car/"+chain.ID{1}.String()), w.fill(firstSl, "sell/a")
	equal(t, "bought locally", car.Local, 600)
	equal(t, "sold locally", sell.Local, 600)
	equal(t, "rest to the supplier", sell.Grid, 400)
	// The path is c, f2, root, f1, a: two houses and two feeders.
	equal(t, "fees per Wh", car.Price-sell.Price, 30_000)
	if car.Price > 300_000 || sell.Price < 80_000 {
		t.Fatalf("prices %d and %d are outside retail and feed-in", car.Price, sell.Price)
	}
	v := w.slot(firstSl)
	equal(t, "fees", v.Fees, 600*30_000)
	equal(t, "traded", v.Energy.Traded, 600)
	equal(t, "grid export", v.Energy.GridExport, 400)

	s := w.session(1)
	equal(t, "state", s.State, SessionClosed)
	equal(t, "captured", s.Captured, 600*chain.Nano(car.Price))
	equal(t, "released", s.Released, s.Hold-s.Captured)
	equal(t, "paid", s.Paid, s.Captured)
	equal(t, "earned", s.CreditEarned, s.Paid*5/100)
	equal(t, "end register", s.Register, 1600)
	equal(t, "receipt", s.Receipt, chain.Hash{1})
	equal(t, "driver's balance", w.balance(w.driver.account()), driver-s.Paid)
	equal(t, "driver's credit", AccountOf(w.st, w.driver.account()).Credits, s.CreditEarned)
	equal(t, "seller's income", w.balance(w.a.owner.account())-sellerBefore, 600*chain.Nano(sell.Price)+400*80_000)
	equal(t, "network", w.balance(chain.AccountNetwork), v.Fees)
	e := EnergyOf(w.st)
	equal(t, "identity", e.Produced+e.GridImport, e.Consumed+e.GridExport+e.Loss)
	equal(t, "consumed", e.Consumed, 600)
}

func TestOwnSunChargesCarAtOwnHouse(t *testing.T) {
	w := newWorld(t)
	// The house's meter sees nothing of the 500 Wh from roof to car.
	w.charge(1, w.a, firstSl, 500, false, map[*house][2]meter.WattHour{})
	car, sell := w.fill(firstSl, "car/"+chain.ID{1}.String()), w.fill(firstSl, "sell/a")
	equal(t, "car", car.Local, 500)
	equal(t, "house", sell.Local, 500)
	equal(t, "price", car.Price, sell.Price)
	equal(t, "fees", w.slot(firstSl).Fees, 0)
	equal(t, "income", w.balance(w.a.owner.account()), w.session(1).Paid)
}

func TestRestComesFromTheSupplierAtMostAtTheCap(t *testing.T) {
	w := newWorld(t)
	w.ok(w.tx(w.op, chain.TxTariff, chain.Tariff{From: firstSl + 1, To: firstSl + 1, Retail: 500_000, FeedIn: 80_000}))
	w.at(firstSl)
	w.ok(w.a.sign(w.a.site(firstSl, 0, 0)), w.b.sign(w.b.site(firstSl, 0, 0)), w.c.sign(w.c.site(firstSl, 0, 0)))
	grid := w.balance(chain.AccountGrid)
	w.charge(1, w.b, firstSl+1, 100, false, map[*house][2]meter.WattHour{w.b: {100, 0}})
	car := w.fill(firstSl+1, "car/"+chain.ID{1}.String())
	equal(t, "from the grid", car.Grid, 100)
	equal(t, "price", car.GridAt, 400_000) // the quote's cap, not the new tariff
	equal(t, "captured", w.session(1).Captured, 100*400_000)
	equal(t, "grid's income", w.balance(chain.AccountGrid)-grid, 100*400_000)
}

func TestCreditPaysPartOfTheNextBill(t *testing.T) {
	w := newWorld(t)
	site := map[*house][2]meter.WattHour{w.b: {3000, 0}}
	w.charge(1, w.b, firstSl, 3000, true, site)
	first := w.session(1)
	equal(t, "redeemed without credit", first.CreditRedeemed, 0)
	equal(t, "earned", first.CreditEarned, 3000*300_000/20)

	before := w.balance(w.driver.account())
	w.charge(2, w.b, firstSl+1, 100, true, map[*house][2]meter.WattHour{w.b: {100, 0}})
	s := w.session(2)
	bill := chain.Nano(100 * 300_000)
	equal(t, "redeemed", s.CreditRedeemed, bill/2) // the cap is half of the bill
	equal(t, "paid", s.Paid, bill/2)
	equal(t, "earned on cash only", s.CreditEarned, bill/2/20)
	equal(t, "balance", w.balance(w.driver.account()), before-bill/2)
	v := AccountOf(w.st, w.driver.account())
	equal(t, "credits", v.Credits, first.CreditEarned-s.CreditRedeemed+s.CreditEarned)
	equal(t, "lots", len(v.Lots), 2)
	equal(t, "first lot is spent first", v.Lots[0].Amount, first.CreditEarned-s.CreditRedeemed)

	// Nothing spends the rest within its life of 100 slots.
	promotion := w.balance(chain.AccountPromotion)
	w.at(firstSl + 110)
	w.block()
	w.saw("credit.expired")
	equal(t, "credits after expiry", AccountOf(w.st, w.driver.account()).Credits, 0)
	equal(t, "back in the pool", w.balance(chain.AccountPromotion)-promotion, v.Credits)
}

func TestHoldIsVoidWithoutStart(t *testing.T) {
	w := newWorld(t)
	before := w.balance(w.driver.account())
	w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 1, 1, 5000), w.driver)))
	equal(t, "held", AccountOf(w.st, w.driver.account()).Held, 5000*400_000)
	w.now += 299_000
	w.block()
	equal(t, "state", w.session(1).State, SessionHeld)
	w.now += 3000
	w.block()
	s := w.session(1)
	equal(t, "state", s.State, SessionExpired)
	equal(t, "released", s.Released, s.Hold)
	equal(t, "balance", w.balance(w.driver.account()), before)
	w.refusedRecord(CodeState, w.b, sessionMeter(1, 1, firstSl, 0, w.now))
	// The connector is free again.
	w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 2, 1, 5000), w.driver)))
}

// On an idle chain block time lags; the hold must not start out expired.
func TestHoldSurvivesLaggingBlockTime(t *testing.T) {
	w := newWorld(t)
	q := w.quote(w.b, w.driver, 1, 1, 5000)
	q.Created, q.Expires = w.now+600_000, w.now+900_000
	w.ok(w.b.sign(signQuote(q, w.driver)))
	w.now += 650_000
	w.block()
	equal(t, "state", w.session(1).State, SessionHeld)
}

func TestSilentSessionIsClosedOnItsLastSignedValue(t *testing.T) {
	w := newWorld(t)
	before := w.balance(w.driver.account())
	w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 1, 1, 5000), w.driver), sessionMeter(1, 1, firstSl, 10, w.now)))
	w.at(firstSl)
	w.ok(w.b.sign(w.b.site(firstSl, 300, 0), sessionMeter(1, 2, firstSl, 310, w.now)))
	w.at(firstSl + 1)
	w.block()
	equal(t, "captured in its slot", w.session(1).Captured, 300*300_000)
	w.at(firstSl + 5)
	w.block()
	s := w.session(1)
	equal(t, "state", s.State, SessionInterrupted)
	equal(t, "by rule", s.ByRule, true)
	equal(t, "balance", w.balance(w.driver.account()), before-300*300_000)
	// The gateway is back: its stop is acknowledged and changes no money.
	w.ok(w.b.sign(sessionStop(1, 3, firstSl+5, 900, w.now)))
	w.saw("session.energy_after_end")
	w.saw("session.stop_conflict")
	equal(t, "state", w.session(1).State, SessionInterrupted)
	equal(t, "balance", w.balance(w.driver.account()), before-300*300_000)
}

func TestSessionRecordsAreIdempotentAndInSequence(t *testing.T) {
	w := newWorld(t)
	open := signQuote(w.quote(w.b, w.driver, 1, 1, 5000), w.driver)
	w.ok(w.b.sign(open))
	held := w.balance(w.driver.account())
	w.ok(w.b.sign(open)) // a retry reuses the hold
	equal(t, "balance", w.balance(w.driver.account()), held)

	w.ok(w.b.sign(sessionMeter(1, 1, firstSl, 100, w.now)))
	w.refusedRecord(CodeSequence, w.b, sessionMeter(1, 3, firstSl, 300, w.now))
	w.refusedRecord(CodeSession, w.a, sessionMeter(1, 2, firstSl, 300, w.now))
	w.refusedRecord(CodeSession, w.b, sessionMeter(9, 1, firstSl, 300, w.now))
	w.now += 300_000
	stop := sessionStop(1, 2, firstSl, 400, w.now)
	w.ok(w.b.sign(stop))
	wh := w.session(1).Wh
	w.ok(w.b.sign(sessionMeter(1, 1, firstSl, 100, w.now), sessionStop(1, 2, firstSl, 450, w.now)))
	w.saw("session.stop_conflict")
	equal(t, "energy", w.session(1).Wh, wh)
	equal(t, "register", w.session(1).Register, 400)

	// Stopped, but not settled: the next car can come.
	equal(t, "state", w.session(1).State, SessionMetered)
	w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 2, 1, 5000), w.driver)))
	w.refusedRecord(CodeConnector, w.b, signQuote(w.quote(w.b, w.driver, 3, 1, 5000), w.driver))
}

func TestQuotesAreRefused(t *testing.T) {
	w := newWorld(t)
	q := w.quote(w.b, w.driver, 1, 1, 5000)
	forged := signQuote(q, newPerson("thief"))
	w.refusedRecord(CodeSignature, w.b, forged)
	w.refusedRecord(CodeNotAllowed, w.a, signQuote(q, w.driver))
	other := q
	other.Chain = "other"
	w.refusedRecord(CodeChain, w.b, signQuote(other, w.driver))
	poor := newPerson("poor")
	p := q
	p.Driver = poor.key
	w.refusedRecord(CodeFunds, w.b, signQuote(p, poor))
	w.saw("session.refused")
	big := q
	big.MaxWh, big.Hold = 1<<40, 400_000<<40
	w.refusedRecord(CodeFunds, w.b, signQuote(big, w.driver))
	wrong := q
	wrong.Hold--
	w.refusedRecord(CodeMalformed, w.b, signQuote(wrong, w.driver))
	w.ok(w.b.sign(signQuote(q, w.driver)))
	other = q
	other.MaxWh, other.Hold = 10, 10*400_000
	w.refusedRecord(CodeTaken, w.b, signQuote(other, w.driver))
	other.Gateway = w.a.key // nobody casts doubt on a session of somebody else
	w.refusedRecord(CodeTaken, w.a, signQuote(other, w.driver))
	if slices.ContainsFunc(w.last.Events, func(e Event) bool { return e.Code == "session.refused" }) {
		t.Fatalf("events %+v", w.last.Events)
	}
	w.now += 400_000
	old := q
	old.ID = chain.ID{2}
	w.refusedRecord(CodeExpired, w.b, signQuote(old, w.driver))
}

func TestSuspectRegistersAreNotBilled(t *testing.T) {
	w := newWorld(t)
	w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 1, 1, 5000), w.driver)))
	w.ok(w.b.sign(sessionMeter(1, 1, firstSl, 0, w.now))) // a placeholder
	w.now += 60_000
	w.ok(w.b.sign(sessionMeter(1, 2, firstSl, 910_000, w.now)))
	w.saw("session.rebased")
	equal(t, "energy", w.session(1).Wh, 0)
	w.now += 60_000
	w.ok(w.b.sign(sessionMeter(1, 3, firstSl, 910_083, w.now)))
	equal(t, "energy", w.session(1).Wh, 83)
	w.ok(w.b.sign(sessionMeter(1, 4, firstSl, 900_000, w.now))) // rollback
	w.saw("session.suspect")
	w.now += 60_000
	w.ok(w.b.sign(sessionStop(1, 5, firstSl, -1, w.now))) // charge to the last good value
	equal(t, "energy", w.session(1).Wh, 83)
	equal(t, "register", w.session(1).Register, 910_083)
	equal(t, "state", w.session(1).State, SessionMetered)
}

func TestEnergyBeyondTheHoldIsTheSites(t *testing.T) {
	w := newWorld(t)
	q := w.quote(w.b, w.driver, 1, 1, 100)
	w.ok(w.b.sign(signQuote(q, w.driver), sessionMeter(1, 1, firstSl, 50, w.now)))
	w.at(firstSl)
	w.ok(w.b.sign(sessionStop(1, 2, firstSl, 250, w.now)), w.a.sign(w.a.site(firstSl, 0, 0)), w.c.sign(w.c.site(firstSl, 0, 0)), w.b.sign(w.b.site(firstSl, 200, 0)))
	s := w.session(1)
	equal(t, "billed", s.Wh, 100)
	equal(t, "excess", s.ExcessWh, 100)
	equal(t, "captured", s.Captured, 100*300_000)
	equal(t, "house", w.fill(firstSl, "buy/b").Wh, 100)
}

// A session that is reported after its slot pays the grid's price. The owner
// has no gain from reporting it late: he gets what the surplus is worth.
func TestLateSessionEnergyTradesAtTheGridsPrice(t *testing.T) {
	w := newWorld(t)
	w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 1, 1, 5000), w.driver), sessionMeter(1, 1, firstSl, 0, w.now)))
	w.at(firstSl)
	w.ok(w.a.sign(w.a.site(firstSl, 0, 900)), w.b.sign(w.b.site(firstSl, 300, 0)), w.c.sign(w.c.site(firstSl, 0, 0)))
	w.now += 61_000
	w.block() // the slot clears without the session
	owner := w.balance(w.b.owner.account())
	w.ok(w.b.sign(sessionStop(1, 2, firstSl, 300, w.now)))
	w.saw("session.late")
	s := w.session(1)
	equal(t, "state", s.State, SessionClosed)
	equal(t, "captured", s.Captured, 300*300_000)
	equal(t, "owner's income", w.balance(w.b.owner.account())-owner, 300*80_000)
}

// A gateway that was cut off submits its queue later: everything is settled
// at the grid's price, and energy that only passed through the house costs
// its owner nothing, in whichever order the records arrive.
func TestQueueOfACutOffGateway(t *testing.T) {
	for _, sessionFirst := range []bool{false, true} {
		w := newWorld(t)
		w.ok(w.mint(w.b.owner.account(), 1e9))
		w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 1, 1, 5000), w.driver), sessionMeter(1, 1, firstSl, 0, w.now)))
		w.at(firstSl)
		stopped := w.now
		records := []chain.Record{w.b.site(firstSl, 500, 0), sessionStop(1, 2, firstSl, 300, stopped)}
		if sessionFirst {
			records[0], records[1] = records[1], records[0]
		}
		queue := w.b.sign(records...)
		w.ok(w.a.sign(w.a.site(firstSl, 0, 900)), w.c.sign(w.c.site(firstSl, 0, 0)))
		w.at(firstSl + 2)
		w.block()
		w.ok(queue)
		s := w.session(1)
		equal(t, "state", s.State, SessionClosed)
		equal(t, "captured", s.Captured, 300*300_000)
		equal(t, "owner paid for the house", 1e9-w.balance(w.b.owner.account()), 200*300_000)
		equal(t, "traded", EnergyOf(w.st).Traded, 0)
		equal(t, "consumed", EnergyOf(w.st).Consumed, 500)
		rows := AllocationOf(w.st, firstSl, firstSl).Rows
		i := slices.IndexFunc(rows, func(r AllocationRow) bool { return r.Point == "b" })
		if i < 0 || rows[i].LateImport != 500 || rows[i].LateExport != 0 || rows[i].Import != 0 {
			t.Fatalf("allocation is %+v", rows)
		}
		w.now += (defaultRetain + 1) * dayMs
		w.ok(w.a.sign(chain.NewRecord(chain.KindEvent, chain.Event{Code: "tick"})))
		equal(t, "late energy in the state", len(collect[lateEnergy](w.st, key(tabLateEnergy))), 0)
	}
}

// The state of a written-down history is the same on every machine and in
// every version. A change here forks every ledger: once released, it needs a
// new format version, not a new number.
func TestStateOfAKnownHistory(t *testing.T) {
	w := newWorld(t)
	w.charge(1, w.c, firstSl, 600, true, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.c: {600, 0}})
	w.charge(2, w.a, firstSl+1, 500, true, map[*house][2]meter.WattHour{w.b: {70, 0}})
	equal(t, "state", StateHash(w.st).String(), "36dd82ae3d300f163df3d236ef18cb984ae242fdea7ecaae6cd7ecd4596c86fd")
}
