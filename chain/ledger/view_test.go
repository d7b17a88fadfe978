package ledger

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Every kind of damage to the state is found by a full check.
func TestDamageIsFound(t *testing.T) {
	w := newWorld(t)
	w.charge(1, w.c, firstSl, 600, false, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.c: {600, 0}})
	w.ok(w.c.sign(signQuote(w.quote(w.c, w.driver, 2, 1, 100), w.driver)))
	if bad := CheckInvariants(w.st); len(bad) != 0 {
		t.Fatal(bad)
	}
	sell, car := FillKey(firstSl, "sell/a"), FillKey(firstSl, "car/"+chain.ID{1}.String())
	for _, c := range []struct {
		what, found string
		spoil       func(State)
	}{
		{"money from nowhere", "minted", func(st State) { edit(st, AccountKey(chain.AccountGrid), func(n *chain.Nano) { *n++ }) }},
		{"negative balance", "has -", func(st State) { edit(st, AccountKey(w.driver.account()), func(n *chain.Nano) { *n = -1 }) }},
		{"hold shrinks", "minted", func(st State) { edit(st, SessionKey(chain.ID{2}), func(s *SessionView) { s.Captured++ }) }},
		{"credit without reserve", "reserve", func(st State) { edit(st, lotKey(w.driver.account(), 1), func(l *lot) { l.Amount++ }) }},
		{"empty lot", "lot", func(st State) { edit(st, lotKey(w.driver.account(), 1), func(l *lot) { l.Amount = 0 }) }},
		{"release is lost", "released", func(st State) { edit(st, SessionKey(chain.ID{1}), func(s *SessionView) { s.Released-- }) }},
		{"more than the quote", "Wh of", func(st State) { edit(st, SessionKey(chain.ID{1}), func(s *SessionView) { s.Wh = s.MaxWh + 1 }) }},
		{"closed session is open", "index", func(st State) { put(st, openKey(chain.ID{1}), true) }},
		{"open session is forgotten", "index", func(st State) { st.Delete(openKey(chain.ID{2})) }},
		{"energy without its slot", "waits", func(st State) { edit(st, SessionKey(chain.ID{2}), func(s *SessionView) { s.PendingWh, s.Wh = 5, 5 }) }},
		{"buyer over his limit", "limit", func(st State) { edit(st, car, func(f *FillView) { f.Limit = f.Price - 1 }) }},
		{"seller under his limit", "limit", func(st State) { edit(st, sell, func(f *FillView) { f.Limit = f.Price + 1 }) }},
		{"sold twice", "sold", func(st State) { edit(st, sell, func(f *FillView) { f.Local++; f.Grid-- }) }},
		{"Wh is lost", "local", func(st State) { edit(st, sell, func(f *FillView) { f.Wh++ }) }},
		{"wrong amount", "settles", func(st State) { edit(st, sell, func(f *FillView) { f.Amount++ }) }},
		{"fee is lost", "fees", func(st State) { edit(st, SlotKey(firstSl), func(v *SlotView) { v.Fees-- }) }},
		{"slot out of balance", "slot", func(st State) { edit(st, SlotKey(firstSl), func(v *SlotView) { v.Energy.Loss++ }) }},
		{"totals out of balance", "totals", func(st State) { edit(st, key(tabEnergy), func(e *Energy) { e.GridImport++ }) }},
		{"share is lost", "members", func(st State) { edit(st, key(tabCounters, w.a.key[:]), func(c *counters) { c.SoldLocal-- }) }},
	} {
		o := NewOverlay(w.st)
		c.spoil(o)
		if bad := CheckInvariants(o); !mentions(bad, c.found) {
			t.Errorf("%s: found %v", c.what, bad)
		}
	}
	// What must not change once it is written is watched block by block.
	for what, spoil := range map[string]func(State){
		"register runs backwards": func(st State) { edit(st, meterKey(w.a.key, "site"), func(m *MeterView) { m.Page++; m.Export-- }) },
		"session runs backwards":  func(st State) { edit(st, SessionKey(chain.ID{1}), func(s *SessionView) { s.Seq-- }) },
		"slot is cleared twice":   func(st State) { edit(st, SlotKey(firstSl), func(v *SlotView) { v.Height++ }) },
		"session is removed":      func(st State) { st.Delete(SessionKey(chain.ID{1})) },
		"fill is removed":         func(st State) { st.Delete(sell) },
	} {
		o := NewOverlay(w.st)
		spoil(o)
		if len(checkBlock(o)) == 0 {
			t.Errorf("%s: not found", what)
		}
	}
}

func edit[T any](st State, k []byte, fn func(*T)) {
	v, ok := get[T](st, k)
	if !ok {
		panic(string(k))
	}
	fn(&v)
	put(st, k, v)
}

func TestViews(t *testing.T) {
	w := newWorld(t)
	w.charge(1, w.c, firstSl, 600, false, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.c: {600, 0}})
	w.ok(w.c.sign(signQuote(w.quote(w.c, w.driver, 2, 3, 100), w.driver)))

	s := StatusOf(w.st)
	equal(t, "chain", s.ChainID, "test")
	equal(t, "last cleared", s.LastCleared, firstSl)
	equal(t, "open", s.OpenSessions, 1)
	var sum chain.Nano
	for _, a := range Accounts(w.st) {
		sum += a.Balance + a.Held
		if got := AccountOf(w.st, a.Account); got.Balance != a.Balance || got.Held != a.Held || got.Credits != a.Credits {
			t.Fatalf("%+v and %+v", got, a)
		}
	}
	equal(t, "money", sum, s.Minted-s.Burned)

	for _, m := range Members(w.st) {
		if m.Name == "a" {
			equal(t, "sold", m.SoldLocal, 600)
			equal(t, "exported", m.Export, 1000)
			equal(t, "slot", m.LastSlot, firstSl)
			equal(t, "head", m.Head.Position, w.a.pos)
		}
	}
	slots := RecentSlots(w.st, 5)
	equal(t, "slots", len(slots), 2) // the base records' slot, and the session's
	equal(t, "newest", slots[0].Slot, firstSl)
	flow := meter.WattHour(0)
	for _, p := range slots[0].Prices {
		if p.Node == "c" {
			flow = p.Flow
		}
	}
	equal(t, "flow into c", flow, 600)

	at, ok := OpenSession(w.st, w.c.key, 3)
	equal(t, "open at connector 3", ok && at.ID == chain.ID{2}, true)
	_, ok = OpenSession(w.st, w.c.key, 1)
	equal(t, "open at connector 1", ok, false)
	equal(t, "all", len(Sessions(w.st)), 2)
	equal(t, "held", len(Sessions(w.st, SessionHeld)), 1)
	equal(t, "closed", len(Sessions(w.st, SessionClosed, SessionHeld)), 2)
	meters := Meters(w.st, w.a.key)
	equal(t, "meters", len(meters) == 1 && meters[0].Meter == "site" && meters[0].Export == 1000, true)

	// Entries decode from the bytes that a proof carries.
	one, err := ParseSession(w.st.Get(SessionKey(chain.ID{1})))
	equal(t, "parsed", err == nil && one == w.session(1), true)
	fill, err := ParseFill(w.st.Get(FillKey(firstSl, "sell/a")))
	equal(t, "parsed", err == nil && fill == w.fill(firstSl, "sell/a"), true)
	if _, err := ParseBalance([]byte{0x82, 2, 0}); err == nil {
		t.Fatal("a later entry version was read")
	}

	b, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{`"id":"01`, `"state":"closed"`, `"driver":"`, `"gateway":"`, `"wh":600`, `"paid_nano":`, `"credit_earned_nano":`, `"credit_redeemed_nano":0`} {
		if !strings.Contains(string(b), field) {
			t.Errorf("no %s in %s", field, b)
		}
	}
	var again SessionView
	equal(t, "state from text", json.Unmarshal([]byte(`{"state":"interrupted"}`), &again) == nil && again.State == SessionInterrupted, true)
}

// After an outage of the whole ledger many slots are due at once; they clear
// in order, a bounded number per block, and still trade.
func TestSlotsOfAnOutageClearOverSeveralBlocks(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9))
	const outage = maxSlotsPerBlock + 10
	var txs [][]byte
	for _, h := range []*house{w.a, w.b, w.c} {
		var queue []chain.Record
		for s := firstSl; s < firstSl+outage; s++ {
			switch h {
			case w.a:
				queue = append(queue, h.site(s, 0, 20))
			default:
				queue = append(queue, h.site(s, 10, 0))
			}
		}
		txs = append(txs, h.sign(queue...))
	}
	w.at(firstSl + outage)
	w.ok(txs...)
	equal(t, "cleared", StatusOf(w.st).LastCleared, firstSl+maxSlotsPerBlock-1)
	w.block()
	equal(t, "cleared", StatusOf(w.st).LastCleared, firstSl+outage-1)
	equal(t, "traded", EnergyOf(w.st).Traded, 10*outage) // c has no money here
}
