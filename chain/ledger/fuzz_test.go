package ledger

import (
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// FuzzTx feeds bytes to admission: nothing panics, and what is refused
// changes nothing.
func FuzzTx(f *testing.F) {
	w := newWorld(f)
	f.Add(w.a.sent[0])
	f.Add(w.a.sign(sunny))
	f.Add(w.bad(w.op, chain.TxMint, chain.Mint{To: w.driver.account(), Amount: 1, BankRef: "x"}))
	f.Add(w.bad(w.op, chain.TxTariff, chain.Tariff{From: firstSl + 5, To: firstSl + 6, Retail: 2, FeedIn: 1}))
	f.Add([]byte{0x83, 1, 0x40, 0x40})
	before := StateHash(w.st)
	f.Fuzz(func(t *testing.T, raw []byte) {
		o := NewOverlay(w.st)
		if res := CheckTx(o, raw); res.Code != CodeOK && StateHash(o) != before {
			t.Fatalf("refused with %s, and the state changed", res.Code)
		}
	})
}

// FuzzApply signs whatever record it is given into a member's block, so that
// fuzzing gets past the signatures: no record of a dishonest gateway panics,
// halts the ledger or breaks an invariant.
func FuzzApply(f *testing.F) {
	seed := newHouse("a")
	for _, r := range []chain.Record{
		sunny, seed.site(firstSl, 5, 5), seed.state("site", chain.RoleSite, 1<<62, -1, 1<<62, meter.Suspect),
		sessionMeter(1, 2, firstSl, 2000, t0+60_000), sessionStop(1, 2, firstSl, 1<<62, t0+60_000),
		seed.measure("grid", chain.RoleConnection, firstSl, 0, 0), seed.measure("pv", chain.RoleProduction, firstSl, 0, 10),
	} {
		f.Add(uint16(r.Kind), []byte(r.Body))
	}
	f.Fuzz(func(t *testing.T, kind uint16, body []byte) {
		rec := chain.Record{Kind: chain.RecordKind(kind), Body: body}
		var again chain.Record
		if len(body) > 20_000 || !encodable(rec) || chain.Unmarshal(chain.Marshal(rec), &again) != nil {
			return
		}
		w := newWorld(t)
		w.ok(w.a.sign(signQuote(w.quote(w.a, w.driver, 1, 1, 5000), w.driver), sessionMeter(1, 1, firstSl, 1000, w.now)))
		w.now += 60_000
		if res := w.block(w.a.sign(rec)).Results[0]; res.Code != CodeOK {
			t.Fatalf("the whole block was refused: %+v", res)
		}
		w.at(firstSl + 1)
		w.block(w.b.sign(w.b.site(firstSl, 100, 0)))
		w.at(firstSl + 9)
		w.block()
		if n := len(Sessions(w.st, SessionHeld, SessionCharging, SessionMetered)); n != 0 {
			t.Fatalf("%d sessions hold money for ever", n)
		}
	})
}

func encodable(rec chain.Record) (ok bool) {
	defer func() { ok = recover() == nil }()
	chain.Marshal(rec)
	return true
}
