package panel

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/market"
	"github.com/joulegate/joulegate/meter"
)

// fakeFlow is a slot in which house1 supplied house2 and a car at house3.
func fakeFlow() ledger.Flow {
	car := "car/" + openID.String()
	return ledger.Flow{
		Slot: slotNow,
		Contractual: []ledger.FlowPart{
			{From: "sell/house1", To: "buy/house2", Kind: ledger.FlowLocal, Wh: 300, Certified: 300},
			{From: "sell/house1", To: car, Kind: ledger.FlowFirm, Wh: 200},
			{From: "grid", To: car, Kind: ledger.FlowGrid, Wh: 50},
		},
		Physical: []ledger.FlowPart{
			{From: "roof/house1", To: "use/house2", Kind: ledger.FlowWire, Wh: 300},
			{From: "roof/house1", To: car, Kind: ledger.FlowWire, Wh: 200},
			{From: "grid", To: "loss", Kind: ledger.FlowWire, Wh: 5},
		},
		Parties: map[string]chain.Account{
			"sell/house1": account("one"), "roof/house1": account("one"), "buy/house2": account("two"), "use/house2": account("two"), car: chain.AccountOf(pub(driver)),
		},
	}
}

func account(name string) chain.Account { return chain.AccountOf(pub(key(name))) }

func (f *fake) Flow(_ context.Context, req FlowRequest) (Flow, error) {
	var viewer *chain.Account
	if req.Key != (chain.Key{}) && req.Key != pub(key("operator")) {
		a := chain.AccountOf(req.Key)
		viewer = &a
	}
	out := NewFlow([]ledger.Flow{fakeFlow(), fakeFlow()}, req.Session, viewer, map[chain.ID]string{openID: "house3"})
	out.From, out.To, out.SlotSeconds = req.From, req.To, 900
	return out, nil
}

func (f *fake) Allocation(_ context.Context, from, to chain.Slot) (ledger.Allocation, error) {
	return ledger.Allocation{FromMs: from.Start(900), ToMs: to.End(900), Seconds: 900, Rows: []ledger.AllocationRow{{Point: "house1", Export: 500}}, Checks: []ledger.AllocationCheck{}}, nil
}

func (f *fake) SlotProof(_ context.Context, slot chain.Slot) (SlotProof, error) {
	p := market.Problem{Nodes: []market.Node{{ID: "root"}}, Orders: []market.Order{{ID: "buy/house1", Side: chain.Buy, Wh: 5, Limit: 7, Node: "root"}}}
	r, err := market.Clear(p)
	r.Flows = nil // not part of the answer
	return SlotProof{Slot: slot, Proven: true, Problem: p, Result: r}, err
}

func (f *fake) Terms(context.Context) (Terms, error) {
	return Terms{
		SlotSeconds: 900, Slot: slotNow, Retail: 300_000, FeedIn: 80_000, Tariffs: []chain.Tariff{{From: 1, To: 2, Retail: 5, FeedIn: 4}},
		Zones: []ledger.ZoneView{{Node: chain.Node{ID: "root"}}}, Features: []ledger.FeatureView{{Feature: chain.FeatureFirm, On: true, Basis: "x"}},
		Firm: []ledger.FirmView{{ID: openID, Maker: ledger.FirmParty{Account: account("one"), Node: "house1"}, Side: chain.Sell, Wh: 5}}, Corrections: []ledger.CorrectionView{{Slot: 1, State: ledger.CorrectionWaits}},
	}, nil
}

func (f *fake) Correct(_ context.Context, c chain.MeterCorrection) error {
	if c.Reason == "" {
		return Invalid("no reason")
	}
	return nil
}

func ask(from, to chain.Slot, who ed25519.PrivateKey, at time.Time) FlowRequest {
	r := FlowRequest{From: from, To: to}
	if who != nil {
		r.Sign(who, at)
	}
	return r
}

// Whoever asks over the network proves who he is, and learns what he was part
// of; on the gateway itself there is nothing to prove.
func TestFlowIsToldToThoseConcerned(t *testing.T) {
	tcp, control, _, _ := serve(t, &fake{})
	ctx := t.Context()
	lines := func(c *Client, r FlowRequest) []string {
		t.Helper()
		f, err := c.Flow(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, l := range append(f.Contractual, f.Physical...) {
			out = append(out, l.FromName+" > "+l.ToName)
		}
		return out
	}
	now := time.Now()
	if got := lines(control, ask(1, 2, nil, now)); len(got) != 6 {
		t.Errorf("on the gateway: %q", got)
	}
	if got := lines(tcp, ask(1, 2, key("operator"), now)); len(got) != 6 {
		t.Errorf("the operator: %q", got)
	}
	for who, want := range map[string][]string{
		"one":      {"house1 > house2", "house1 > the car at house3 (00000000)", "house1's roof > house2 itself", "house1's roof > the car at house3 (00000000)"},
		"two":      {"house1 > house2", "house1's roof > house2 itself"},
		"stranger": nil,
	} {
		for _, c := range []*Client{tcp, control} {
			if got := lines(c, ask(1, 2, key(who), now)); !slices.Equal(got, want) {
				t.Errorf("%s sees %q, want %q", who, got, want)
			}
		}
	}
	forged := ask(1, 2, key("stranger"), now)
	forged.Key = pub(key("one"))
	widened := ask(1, 2, key("one"), now)
	widened.To = 500
	for what, r := range map[string]FlowRequest{
		"unsigned": {From: 1, To: 2}, "forged": forged, "widened": widened,
		"old": ask(1, 2, key("one"), now.Add(-time.Hour)), "of tomorrow": ask(1, 2, key("one"), now.Add(time.Hour)),
	} {
		_, err := tcp.Flow(ctx, r)
		if e := (*Error)(nil); !errors.As(err, &e) || e.Status != 403 {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, q := range map[string]string{"many": "from=1&to=99999", "backwards": "from=5&to=4", "word": "slot=now", "session": "session=x", "key": "slot=1&key=x", "sig": "slot=1&key=" + pub(driver).String() + "&at=1&sig=!"} {
		if _, err := get[Flow](ctx, control, "/flow?"+q); err == nil {
			t.Errorf("%s was answered", what)
		}
	}
}

// A day adds up its slots, a session picks its lines, and both are told in
// words.
func TestFlowInWords(t *testing.T) {
	f := NewFlow([]ledger.Flow{fakeFlow(), fakeFlow()}, openID, nil, map[chain.ID]string{openID: "house3"})
	if len(f.Contractual) != 2 || f.Contractual[0].Wh != 400 || len(f.Physical) != 1 {
		t.Errorf("%+v", f)
	}
	want := []string{"The car at house3 (00000000) got 500 Wh: 400 Wh from house1, as promised and 100 Wh from the grid."}
	if !slices.Equal(f.Words, want) {
		t.Errorf("%q", f.Words)
	}
	f = NewFlow([]ledger.Flow{fakeFlow()}, chain.ID{}, nil, nil)
	if !slices.Contains(f.Words, "House2 got 300 Wh: 300 Wh from house1. Certificates of origin for 300 Wh were cancelled.") {
		t.Errorf("%q", f.Words)
	}
	late := ledger.LateView{Member: "house1", Owner: account("one"), Import: 500, Produced: 300, Issued: 300, Withdrawn: 100, Own: 200}
	for who, want := range map[string]int{"one": 1, "two": 0} {
		viewer := account(who)
		f = NewFlow([]ledger.Flow{{Slot: 1, Late: []ledger.LateView{late}}, {Slot: 2, Late: []ledger.LateView{late, {Member: "house2", Owner: account("three"), Export: 7}}}}, chain.ID{}, &viewer, nil)
		if len(f.Late) != want || len(f.Words) != want {
			t.Errorf("%s hears %q", who, f.Words)
		}
	}
	f = NewFlow([]ledger.Flow{{Slot: 1, Late: []ledger.LateView{late}}, {Slot: 2, Late: []ledger.LateView{late, {Member: "house1", Owner: account("one"), FixExport: -7}}}}, chain.ID{}, nil, nil)
	want = []string{
		"Of house1 came after the slot was settled: it took 1000 Wh from the supplier at the supplier's price and its roof produced 600 Wh; trades with neighbours stay as they were. Certificates of origin for 600 Wh were issued then: 200 Wh withdrawn with what left the house, 400 Wh cancelled by the house.",
		"Readings of house1 were corrected against the supplier: import by 0 Wh, export by -7 Wh.",
	}
	if !slices.Equal(f.Words, want) {
		t.Errorf("%q", f.Words)
	}
	if got := wattHours(meter.WattHour(12_345)); got != "12.34 kWh" {
		t.Error(got)
	}
}

func TestTradeThroughBothDoors(t *testing.T) {
	f := &fake{}
	tcp, control, _, _ := serve(t, f)
	ctx := t.Context()
	calls := map[string]func(b Backend) (any, error){
		"allocation": func(b Backend) (any, error) { return b.Allocation(ctx, 5, 9) },
		"proof":      func(b Backend) (any, error) { return b.SlotProof(ctx, 7) },
		"correct":    func(b Backend) (any, error) { return nil, b.Correct(ctx, chain.MeterCorrection{Reason: "x"}) },
	}
	for name, call := range calls {
		if _, err := call(tcp); err == nil {
			t.Errorf("%s passed the TCP door", name)
		}
		want, _ := call(f)
		if got, err := call(control); err != nil || asJSON(got) != asJSON(want) {
			t.Errorf("%s through the socket: %s %v, want %s", name, asJSON(got), err, asJSON(want))
		}
	}
	want, _ := f.Terms(ctx)
	if got, err := control.Terms(ctx); err != nil || asJSON(got) != asJSON(want) {
		t.Errorf("terms: %s %v", asJSON(got), err)
	}
	if got, err := tcp.Terms(ctx); err != nil || len(got.Firm) != 1 || len(got.Corrections) != 0 {
		t.Errorf("terms for everybody: %s %v", asJSON(got), err)
	}
	if err := control.Correct(ctx, chain.MeterCorrection{}); err == nil {
		t.Error("a correction without a reason was taken")
	}
	p, err := control.SlotProof(ctx, 7)
	if err != nil || market.Certify(p.Problem, p.Result) != nil {
		t.Errorf("the proof does not hold elsewhere: %v", err)
	}
}
