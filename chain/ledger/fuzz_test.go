package ledger

import (
	"slices"
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
	f.Add(w.bad(w.driver, chain.TxMandate, w.mandate(newPerson("card"), w.driver)))
	f.Add(w.bad(w.driver, chain.TxOffline, chain.Offline{Gateway: w.b.key, Amount: 1e9}))
	for kind, body := range map[chain.TxKind]any{
		chain.TxPeriods:    chain.BillingPeriods{Bounds: []chain.Slot{firstSl + 5, firstSl + 6}},
		chain.TxTariffs:    chain.Tariffs{Ranges: []chain.Tariff{{From: firstSl + 5, To: firstSl + 6, Retail: 2, FeedIn: 1}}},
		chain.TxZones:      chain.Zones{From: firstSl + 5, Nodes: []chain.Node{{ID: "f1", Parent: "root", Fee: 5}}},
		chain.TxFeature:    chain.FeatureBasis{Feature: chain.FeatureFirm, On: true, Basis: "x"},
		chain.TxFirmOffer:  chain.FirmOffer{ID: chain.ID{1}, Device: w.a.key, Side: chain.Sell, From: firstSl + 2, To: firstSl + 3, Wh: 5, Price: 100_000},
		chain.TxFirmTake:   chain.FirmTake{Offer: chain.ID{1}, Device: w.b.key, Wh: 5},
		chain.TxFirmCancel: chain.FirmCancel{Offer: chain.ID{1}},
		chain.TxCorrection: chain.CorrectionRuling{Device: w.a.key, Slot: firstSl, ID: chain.ID{1}},
	} {
		f.Add(w.bad(w.op, kind, body))
	}
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
		chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: chain.ID{1}, Slot: firstSl - 1, Import: 5, Reason: "x"}),
		seed.measure("battery", chain.RoleStorage, firstSl, 5, 5), exportMeter(1, 2, firstSl, 1000, 5, t0+60_000),
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

// FuzzStatement signs whatever body it is given, by whoever may have something
// to say, and executes it in a microgrid in which something of everything
// exists: no statement panics, is blamed for a broken invariant, halts the
// ledger, or changes anything when it is refused.
func FuzzStatement(f *testing.F) {
	r := newRipe(f)
	people := []*person{r.op, r.driver, r.a.owner, r.c.owner, r.auditor, r.once, r.stranger}
	for kind, row := range txRows {
		who := slices.Index(people, row.by(r))
		f.Add(uint16(kind), uint8(max(who, 0)), chain.Marshal(row.body(r)))
		for _, b := range row.bad(r) {
			if b.body != nil {
				f.Add(uint16(kind), uint8(max(who, 0)), chain.Marshal(b.body))
			}
		}
	}
	before := StateHash(r.st)
	f.Fuzz(func(t *testing.T, kind uint16, who uint8, body []byte) {
		p := people[int(who)%len(people)]
		tx := chain.Tx{Version: chain.Version, Chain: "test", Signer: p.key, Nonce: NextNonce(r.st, p.key), Kind: chain.TxKind(kind), Body: body}
		raw, ok := encode(tx, p)
		if !ok {
			return
		}
		st := NewOverlay(r.st)
		if res := CheckTx(st, raw); res.Code != CodeOK && StateHash(st) != before {
			t.Fatalf("refused with %s at admission, and the state changed", res.Code)
		}
		st = NewOverlay(r.st)
		for i, txs := range [][][]byte{{raw}, nil, nil} {
			out, err := Apply(st, BlockInput{Height: r.height + 1 + int64(i), TimeMs: r.now + 1000 + int64(i)*40*slotMs, Txs: txs})
			if err != nil || len(out.Violations) > 0 {
				t.Fatalf("%v %+v", err, out.Violations)
			}
			if i == 0 && out.Results[0].Code != CodeOK && StateHash(st) != before {
				t.Fatalf("refused with %s, and the state changed", out.Results[0].Code)
			}
		}
		if bad := CheckInvariants(st); len(bad) > 0 {
			t.Fatal(bad)
		}
	})
}

// encode signs a transaction whose body may be anything.
func encode(tx chain.Tx, p *person) (raw []byte, ok bool) {
	defer func() {
		if recover() != nil {
			raw, ok = nil, false // no CBOR
		}
	}()
	b := chain.Marshal(tx)
	raw = chain.Marshal(chain.Envelope{Type: chain.EnvelopeTx, Body: b, Sig: chain.Sign(p.priv, chain.DomainTx, b)})
	return raw, true
}

func encodable(rec chain.Record) (ok bool) {
	defer func() { ok = recover() == nil }()
	chain.Marshal(rec)
	return true
}
