package ledger

import (
	"testing"

	"github.com/fxamacker/cbor/v2"

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

// FuzzStatement signs whatever body it is given, of any kind, as an operator
// or as a driver with money, credit, a payout and a dispute: no statement
// panics, halts the ledger or breaks an invariant.
func FuzzStatement(f *testing.F) {
	for _, s := range []struct {
		kind chain.TxKind
		body any
	}{
		{chain.TxPayout, chain.Payout{Amount: 1e7}},
		{chain.TxPayoutPaid, chain.PayoutPaid{Payout: 1, BankRef: "z"}},
		{chain.TxPayoutCancel, chain.PayoutCancel{Payout: 1}},
		{chain.TxRefund, chain.Refund{Session: chain.ID{1}, Amount: 1 << 62, Reason: "x"}},
		{chain.TxRefund, chain.Refund{Session: chain.ID{2}, Amount: 7, Reason: "x"}},
		{chain.TxDispute, chain.Dispute{Session: chain.ID{2}, Amount: 5, Reason: "x"}},
		{chain.TxAnswer, chain.Answer{Dispute: 1, Concede: 1, Reason: "x"}},
		{chain.TxResolve, chain.Resolve{Dispute: 1, Refund: 1, Reason: "x"}},
		{chain.TxInvoice, chain.IssueInvoice{Account: newPerson("driver").account()}},
		{chain.TxProfile, chain.Profile{Redeem: true}},
		{chain.TxMeterApproval, chain.MeterApproval{Device: newHouse("a").key, Approval: "x", Until: t0 + 1e9}},
		{chain.TxRules, chain.RulesChange{Height: 40, Grace: ptr(int64(1)), Tax: &chain.TaxRate{From: t0 * 2, PPM: 5}}},
		{chain.TxBurn, chain.Burn{From: newPerson("driver").account(), Amount: 1, BankRef: "y"}},
		{chain.TxTransfer, chain.Transfer{To: newPerson("x").account(), Amount: 1}},
		{chain.TxJoint, chain.Joint{Proposal: []byte{1}, Approvals: []chain.Approval{{}}}},
	} {
		f.Add(uint16(s.kind), chain.Marshal(s.body), true)
		f.Add(uint16(s.kind), chain.Marshal(s.body), false)
	}
	f.Fuzz(func(t *testing.T, kind uint16, body []byte, operator bool) {
		if len(body) > 20_000 || chain.Unmarshal(body, new(any)) != nil {
			return
		}
		w := newWorld(t)
		s, _ := twoCharges(w)
		w.ok(w.tx(w.driver, chain.TxPayout, chain.Payout{Amount: 1e7}), w.tx(w.driver, chain.TxDispute, chain.Dispute{Session: s.ID, Amount: 1e7, Reason: "x"}))
		by := w.driver
		if operator {
			by = w.op
		}
		raw := chain.SignTx("test", NextNonce(w.st, by.key), chain.TxKind(kind), cbor.RawMessage(body), by.priv)
		before := StateHash(w.st)
		if res := w.block(raw).Results[0]; res.Code != CodeOK && StateHash(w.st) != before {
			t.Fatalf("refused with %s, and the state changed", res.Code)
		}
		w.now += 70 * dayMs
		w.block(w.a.sign(chain.NewRecord(chain.KindEvent, chain.Event{Code: "tick"})))
	})
}

func encodable(rec chain.Record) (ok bool) {
	defer func() { ok = recover() == nil }()
	chain.Marshal(rec)
	return true
}
