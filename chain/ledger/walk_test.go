package ledger

import (
	"flag"
	"fmt"
	"math/rand"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

var (
	walkSeed   = flag.Int64("ledger.seed", 0, "seed of the random walk; 0: a few fixed ones")
	walkBlocks = flag.Int("ledger.blocks", 150, "blocks of the random walk")
)

// walker drives a microgrid with honest gateways and hostile ones, in random
// order and with random failures.
type walker struct {
	*world
	rnd     *rand.Rand
	houses  []*house
	drivers []*person
	open    []*charging
	ids     byte
	history [][]byte
	base    map[string][2]meter.WattHour // first registers
	done    map[*house]chain.Slot        // newest slot reported
	seen    map[string]int               // result codes
	selling map[byte]*charging
	flown   int // slots whose flows were added up
}

type charging struct {
	house *house
	id    byte
	seq   uint32
	reg   meter.WattHour
	since int64
}

// Hundreds of blocks of honest and hostile transactions never break an
// invariant, and a second replica with another State, fed the same blocks,
// has the same hash after each.
func TestRandomWalk(t *testing.T) {
	seeds := []int64{1, 2, 3}
	if *walkSeed != 0 {
		seeds = []int64{*walkSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { walk(t, seed) })
	}
}

func walk(t *testing.T, seed int64) {
	t.Logf("replay with -ledger.seed=%d", seed)
	w := &walker{world: newWorld(t), rnd: rand.New(rand.NewSource(seed)), done: map[*house]chain.Slot{}, base: map[string][2]meter.WattHour{}, seen: map[string]int{}, selling: map[byte]*charging{}}
	w.houses = []*house{w.a, w.b, w.c}
	for _, h := range w.houses {
		w.done[h] = firstSl - 1
	}
	w.twin = plainState{}
	w.st.Iterate(nil, func(k, v []byte) bool {
		w.twin.Set(k, v)
		return true
	})
	for i := range 4 {
		p := newPerson(fmt.Sprint("driver ", i))
		w.drivers = append(w.drivers, p)
		w.ok(w.mint(p.account(), 3e9))
	}
	w.ok(w.mint(w.a.owner.account(), 2e9), w.mint(w.b.owner.account(), 2e8), w.mint(chain.AccountRounding, 1e8))
	w.on(chain.FeatureFirm)
	w.on(chain.FeatureV2V)

	var closed, redeemed int
	for range *walkBlocks {
		w.now += w.rnd.Int63n(600_000)
		txs := append(w.next(), w.trades()...)
		for _, q := range Quarantines(w.st) {
			if w.chance(50) {
				txs = append(txs, w.bad(w.op, chain.TxMeterRelease, chain.MeterRelease{Device: q.Device, Connector: q.Connector, Meter: q.Meter, Import: min(q.ExcessImport, meter.WattHour(w.rnd.Intn(50))), Reason: "walk"}))
				break
			}
		}
		before := Quarantines(w.st)
		cleared := StatusOf(w.st).LastCleared
		out := w.block(txs...) // checks all invariants in full
		for i, r := range out.Results {
			w.seen[r.Code.String()]++
			for _, rec := range r.Refused {
				w.seen["record "+rec.Code.String()]++
			}
			if r.Code == CodeOK {
				w.history = append(w.history, txs[i])
			}
		}
		w.flows(cleared)
		// A register in quarantine is followed; what it bills is told in scenarios.
		for _, q := range append(before, Quarantines(w.st)...) {
			for _, h := range w.houses {
				if m, _ := MeterOf(w.st, h.key, "site"); h.key == q.Device && q.Meter == "site" {
					imp, exp := w.booked(h)
					w.base[h.name] = [2]meter.WattHour{m.Import - imp, m.Export - exp}
				}
			}
		}
	}
	w.tradedEnough()
	settled, err := FlowsBetween(w.st, firstSl, StatusOf(w.st).Slot)
	if err != nil {
		t.Fatal(err)
	}
	late := 0
	for _, f := range settled { // again, with what came after they were cleared
		v, _ := SlotOf(w.st, f.Slot)
		checkFlow(t, w.st, &v, &f)
		late += len(f.Late)
	}
	if late == 0 {
		t.Fatal("nothing came late")
	}
	for _, s := range Sessions(w.st) {
		if s.State == SessionClosed {
			closed++
		}
		if s.CreditRedeemed > 0 {
			redeemed++
		}
	}
	// Every Wh of every register is booked, or waits for its slot.
	for _, h := range w.houses {
		m, _ := MeterOf(w.st, h.key, "site")
		imp, exp := w.booked(h)
		equal(t, h.name+"'s import", imp, m.Import-w.base[h.name][0])
		equal(t, h.name+"'s export", exp, m.Export-w.base[h.name][1])
	}
	e := EnergyOf(w.st)
	t.Logf("%d closed, %d redeemed, energy %+v, codes %v", closed, redeemed, e, w.seen)
	notes := 0
	for _, v := range Invoices(w.st, chain.Account{}) {
		if v.Kind == KindCreditNote {
			notes++
		}
	}
	t.Logf("%d documents, %d of them credit notes, %d payouts, %d disputes", len(Invoices(w.st, chain.Account{})), notes, len(Payouts(w.st)), len(Disputes(w.st)))
	if closed == 0 || redeemed == 0 || e.Traded == 0 || notes == 0 || len(Payouts(w.st)) == 0 || len(Disputes(w.st)) == 0 {
		t.Fatal("the walk exercised too little")
	}
}

func (w *walker) chance(percent int) bool { return w.rnd.Intn(100) < percent }
func pick[T any](w *walker, from []T) T   { return from[w.rnd.Intn(len(from))] }

// next composes a block.
func (w *walker) next() [][]byte {
	var txs [][]byte
	current := chain.SlotAt(w.now, 900)
	for _, h := range w.houses {
		if w.done[h] < current-1 && w.chance(85) {
			txs = append(txs, h.sign(w.report(h, current-1)...))
		}
	}
	if w.chance(60) {
		h := pick(w, w.houses)
		p := pick(w, w.drivers)
		w.ids++
		q := w.quote(h, p, w.ids, uint8(w.rnd.Intn(2)), meter.WattHour(1+w.rnd.Intn(3000)))
		q.Redeem = w.chance(60)
		if _, taken := SessionOf(w.st, q.ID); !taken {
			txs = append(txs, h.sign(signQuote(q, p)))
			w.open = append(w.open, &charging{house: h, id: w.ids, reg: meter.WattHour(w.rnd.Intn(5000)), since: w.now})
		}
	}
	kept := w.open[:0]
	for _, c := range w.open {
		switch s := chain.SlotAt(w.now, 900); {
		case c.seq == 0 && w.chance(80), c.seq > 0 && w.chance(50):
			c.seq++
			if c.seq > 1 {
				c.reg += meter.WattHour(w.rnd.Int63n((w.now-c.since)*11/3600 + 2))
			}
			c.since = w.now
			txs = append(txs, c.house.sign(sessionMeter(c.id, c.seq, s, c.reg, w.now)))
		case c.seq > 0 && w.chance(30):
			c.seq++
			txs = append(txs, c.house.sign(sessionStop(c.id, c.seq, s, c.reg+meter.WattHour(w.rnd.Intn(50)), w.now)))
			continue
		case w.chance(3):
			continue // forgotten
		}
		kept = append(kept, c)
	}
	w.open = kept
	for range w.rnd.Intn(4) {
		if tx := w.hostile(); tx != nil {
			txs = append(txs, tx)
		}
	}
	for range w.rnd.Intn(3) {
		if tx := w.people(); tx != nil {
			txs = append(txs, tx)
		}
	}
	if w.chance(5) {
		n := current + 1 + chain.Slot(w.rnd.Intn(50))
		retail := chain.NanoPerWh(w.rnd.Intn(500_000))
		txs = append(txs, w.bad(w.op, chain.TxTariff, chain.Tariff{From: n, To: n + chain.Slot(w.rnd.Intn(20)), Retail: retail, FeedIn: retail / 3}))
	}
	if w.chance(5) && len(w.houses) < 6 {
		w.rnd.Shuffle(len(txs), func(i, j int) { txs[i], txs[j] = txs[j], txs[i] }) // also out of order
		h := newHouse(fmt.Sprint("h", len(w.houses)))
		once := newPerson("one-time " + h.name)
		w.block(w.bad(w.op, chain.TxInvite, chain.Invite{Key: once.key, Node: "f2", Fee: 1, Validator: true, Expires: w.now + 1e7}), signJoin(h, once))
		w.houses = append(w.houses, h)
	}
	return txs
}

// people returns what honest people do with their money, at times when it is
// not the time for it.
func (w *walker) people() []byte {
	p := pick(w, w.drivers)
	some := chain.Nano(w.rnd.Int63n(4e8))
	var s SessionView
	if all := Sessions(w.st, SessionClosed, SessionInterrupted); len(all) > 0 {
		s = pick(w, all)
	}
	for _, d := range w.drivers {
		if s.DriverKey == d.key && w.chance(90) {
			p = d
		}
	}
	n := uint64(1 + w.rnd.Intn(12))
	switch w.rnd.Intn(9) {
	case 0:
		return w.bad(p, chain.TxPayout, chain.Payout{Amount: some - some%1e7})
	case 1:
		return w.bad(p, chain.TxPayoutCancel, chain.PayoutCancel{Payout: n})
	case 2:
		return w.bad(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: n, BankRef: fmt.Sprint("out ", w.rnd.Int())})
	case 3:
		return w.bad(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: min(some, s.Captured), Reason: "walk"})
	case 4:
		return w.bad(p, chain.TxDispute, chain.Dispute{Session: s.ID, Amount: min(some, s.Captured), Reason: "walk"})
	case 5:
		return w.bad(w.op, chain.TxAnswer, chain.Answer{Dispute: n, Concede: some / 4, Reason: "walk"})
	case 6:
		return w.bad(pick(w, []*person{p, w.op}), chain.TxResolve, chain.Resolve{Dispute: n, Refund: some / 8, Reason: "walk"})
	case 7:
		if all := Unbilled(w.st); len(all) > 0 {
			return w.bad(w.op, chain.TxInvoice, chain.IssueInvoice{Account: pick(w, all)})
		}
	case 8:
		return w.bad(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 2 + int64(w.rnd.Intn(9)), EarnPPM: ptr(int64(w.rnd.Intn(100_000))), Tax: &chain.TaxRate{From: w.now + w.rnd.Int63n(dayMs), PPM: int64(w.rnd.Intn(250_000))}})
	}
	return nil
}

// booked is a site's energy that was booked, or waits for its slot, without
// corrections.
func (w *walker) booked(h *house) (imp, exp meter.WattHour) {
	c := countersOf(w.st, h.key)
	imp, exp = c.Import, c.Export
	for _, x := range CorrectionsOf(w.st, h.key) {
		if x.State == CorrectionBooked {
			imp -= x.Import
			exp -= x.Export
		}
	}
	each(w.st, key(tabBucket), func(k []byte, b bucket) bool {
		if chain.Key(k[8:]) == h.key {
			imp += b.Import
			exp += b.Export
		}
		return true
	})
	return imp, exp
}

// report states a house's meters for a slot.
func (w *walker) report(h *house, s chain.Slot) []chain.Record {
	_, old := w.done[h]
	w.done[h] = s
	records := []chain.Record{h.site(s, meter.WattHour(w.rnd.Intn(900)), meter.WattHour(w.rnd.Intn(900)))}
	if m, ok := MeterOf(w.st, h.key, "site"); !old && (!ok || !m.Based) {
		w.base[h.name] = [2]meter.WattHour{h.imp["site"], h.exp["site"]}
	}
	if w.chance(70) {
		records = append(records, h.measure("pv", chain.RoleProduction, s, 0, meter.WattHour(w.rnd.Intn(900))))
	}
	if h == w.a && w.chance(70) {
		records = append(records, h.measure("grid", chain.RoleConnection, s, meter.WattHour(w.rnd.Intn(900)), meter.WattHour(w.rnd.Intn(900))))
	}
	if w.chance(20) {
		records = append(records, chain.NewRecord(chain.KindOffer, chain.Offer{From: s, To: s, Side: chain.Side(1 + w.rnd.Intn(2)), Limit: chain.NanoPerWh(w.rnd.Intn(400_000))}))
	}
	return records
}

// hostile returns something that should not work, from somebody who may be a
// member.
func (w *walker) hostile() []byte {
	h, p := pick(w, w.houses), pick(w, w.drivers)
	big := chain.Nano(w.rnd.Uint64())
	switch w.rnd.Intn(12) {
	case 0: // replay
		if len(w.history) > 0 {
			return pick(w, w.history)
		}
	case 1: // damage
		if len(w.history) > 0 {
			raw := append([]byte(nil), pick(w, w.history)...)
			for range 1 + w.rnd.Intn(3) {
				raw[w.rnd.Intn(len(raw))] ^= byte(1 + w.rnd.Intn(255))
			}
			return raw
		}
	case 2: // equivocation
		twin := *h
		if twin.pos.Number > 1 {
			twin.pos.Number--
			twin.sent = nil
			return twin.sign(chain.NewRecord(chain.KindEvent, chain.Event{Code: fmt.Sprint(w.rnd.Int())}))
		}
	case 3:
		return w.bad(p, chain.TxMint, chain.Mint{To: p.account(), Amount: 1e9, BankRef: "mine"})
	case 4: // an operator's slip
		return w.bad(w.op, chain.TxMint, chain.Mint{To: p.account(), Amount: big, BankRef: fmt.Sprint(big)})
	case 5:
		return w.bad(w.op, chain.TxBurn, chain.Burn{From: p.account(), Amount: big, BankRef: fmt.Sprint("b", big)})
	case 6:
		return w.bad(p, chain.TxTransfer, chain.Transfer{To: w.drivers[0].account(), Amount: big})
	case 7: // a jump, a rollback, a slot of nowhere
		wild := meter.WattHour(w.rnd.Uint64())
		return h.sign(h.state("site", chain.RoleSite, chain.Slot(w.rnd.Int63()), wild, -wild, meter.Quality(w.rnd.Intn(6))))
	case 8:
		return h.sign(sessionMeter(byte(w.rnd.Intn(256)), uint32(w.rnd.Intn(6)), chain.Slot(w.rnd.Int63n(1<<42)), meter.WattHour(w.rnd.Uint64()), w.rnd.Int63()))
	case 9:
		return h.sign(sessionStop(byte(w.rnd.Intn(256)), uint32(w.rnd.Intn(6)), chain.SlotAt(w.now, 900), meter.WattHour(w.rnd.Intn(9000)), w.now))
	case 10: // a hold that nobody can pay
		q := w.quote(h, p, byte(w.rnd.Intn(256)), 3, 1<<20)
		return h.sign(signQuote(q, p))
	case 11: // a lost journal
		h.pos, h.prev = chain.Position{Epoch: h.pos.Epoch + 1}, chain.Hash{}
	}
	return nil
}
