package ledger

import (
	"strings"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// trades adds to a block of the random walk: firm orders kept and broken,
// cars that sell, batteries, a fee tree that changes, corrections; in and out
// of order, with features going off and on.
func (w *walker) trades() (txs [][]byte) {
	now := chain.SlotAt(w.now, 900)
	tx := func(p *person, kind chain.TxKind, body any) { txs = append(txs, w.bad(p, kind, body)) }
	id := func() chain.ID { return chain.ID{byte(w.rnd.Intn(256)), byte(w.rnd.Intn(4))} }
	some := func(n int) meter.WattHour { return meter.WattHour(w.rnd.Intn(n)) }
	switch n := w.rnd.Intn(30); n {
	case 0, 1:
		f := []string{chain.FeatureFirm, chain.FeatureV2V}[n]
		tx(w.op, chain.TxFeature, chain.FeatureBasis{Feature: f, On: !FeatureOf(w.st, f).On || w.chance(60), Basis: "walk"})
	case 2:
		var nodes []chain.Node
		for range 1 + w.rnd.Intn(3) {
			names := []string{"f1", "f2", "f3", "f4", "a", "b", "c", "root"}
			nodes = append(nodes, chain.Node{ID: pick(w, names), Parent: pick(w, names), Fee: chain.NanoPerWh(w.rnd.Intn(30_000) - 100)})
		}
		tx(w.op, chain.TxZones, chain.Zones{From: now + chain.Slot(w.rnd.Intn(6)), Nodes: nodes})
	case 3:
		var ranges []chain.Tariff
		for at := now + 1; len(ranges) < 5; at += 1 + chain.Slot(w.rnd.Intn(6)) {
			retail := chain.NanoPerWh(100_000 + w.rnd.Intn(300_000))
			ranges = append(ranges, chain.Tariff{From: at, To: at + chain.Slot(w.rnd.Intn(3)), Retail: retail, FeedIn: retail / 4})
		}
		tx(w.op, chain.TxTariffs, chain.Tariffs{Ranges: ranges})
	case 4:
		for _, c := range CorrectionsOf(w.st, chain.Key{}) {
			if c.State == CorrectionWaits {
				tx(w.op, chain.TxCorrection, chain.CorrectionRuling{Device: c.Device, Slot: c.Slot, ID: c.ID, Accept: w.chance(70)})
				break
			}
		}
	}
	if w.chance(60) {
		h := pick(w, w.houses)
		from := now + 1 + chain.Slot(w.rnd.Intn(3))
		o := chain.FirmOffer{ID: id(), Device: h.key, Side: chain.Side(1 + w.rnd.Intn(2)), From: from, To: from + chain.Slot(w.rnd.Intn(4)), Wh: some(700), Price: chain.NanoPerWh(70_000 + w.rnd.Intn(250_000))}
		p := h.owner
		for n := range byte(255) { // in a fixed order
			if c := w.selling[n]; c != nil && c.house == h && w.chance(50) {
				o.Session, o.Side, p = chain.ID{n}, chain.Sell, w.drivers[int(n)%len(w.drivers)]
				break
			}
		}
		tx(p, chain.TxFirmOffer, o)
	}
	for _, f := range FirmOffers(w.st, false) {
		switch h := pick(w, w.houses); {
		case w.chance(50):
			tx(h.owner, chain.TxFirmTake, chain.FirmTake{Offer: f.ID, Device: h.key, Wh: 1 + some(int(f.Left)+1)})
		case w.chance(10):
			tx(h.owner, chain.TxFirmCancel, chain.FirmCancel{Offer: f.ID})
		}
	}
	for _, h := range w.houses {
		if w.chance(25) { // one that has a battery, sooner or later
			txs = append(txs, h.sign(h.measure("battery", chain.RoleStorage, now-1, some(400), some(400))))
		}
		if w.chance(4) && now > firstSl+1 {
			txs = append(txs, h.sign(chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{
				ID: id(), Slot: now - 1 - chain.Slot(w.rnd.Intn(3)), Import: some(200) - 100, Export: some(200) - 100, Reason: "walk",
			})))
		}
	}
	if w.chance(20) {
		n := byte(200 + w.rnd.Intn(50))
		h, p := pick(w, w.houses), w.drivers[int(n)%len(w.drivers)]
		q := w.quote(h, p, n, uint8(5+w.rnd.Intn(2)), some(2)*1000)
		q.SellWh, q.SellLimit = 1+some(4000), chain.NanoPerWh(w.rnd.Intn(200_000))
		if _, taken := SessionOf(w.st, q.ID); !taken && w.selling[n] == nil {
			txs = append(txs, h.sign(signQuote(q, p)))
			w.selling[n] = &charging{house: h, id: n, since: w.now}
		}
	}
	for n := range byte(255) {
		c := w.selling[n]
		if c == nil || w.chance(40) {
			continue
		}
		c.seq++
		if c.seq > 1 {
			c.reg += meter.WattHour(w.rnd.Int63n((w.now-c.since)*11/3600 + 2))
		}
		c.since = w.now
		if c.seq > 1 && w.chance(15) {
			stop := chain.SessionStop{Session: chain.ID{n}, Seq: c.seq, Slot: now, Export: c.reg, Quality: meter.Good, At: w.now, Reason: chain.StopUnplugged}
			txs = append(txs, c.house.sign(chain.NewRecord(chain.KindSessionStop, stop)))
			delete(w.selling, n)
			continue
		}
		txs = append(txs, c.house.sign(exportMeter(n, c.seq, now, 0, c.reg, w.now)))
	}
	return txs
}

// flows adds up both matrices of the slots that were cleared since.
func (w *walker) flows(since chain.Slot) {
	w.t.Helper()
	for at := StatusOf(w.st).LastCleared; at > since && w.flown < 1000; {
		v := w.slot(at)
		f, err := FlowOf(w.st, at)
		if err != nil {
			w.t.Fatal(err)
		}
		checkFlow(w.t, w.st, &v, &f)
		at = v.Previous
		w.flown++
	}
}

// checkFlow adds up the margins of a slot's matrices: trades as they were
// made, and every house's and the microgrid's energy with what came late.
func checkFlow(t interface{ Fatalf(string, ...any) }, st State, v *SlotView, f *Flow) {
	left := map[string]meter.WattHour{}
	net := map[string]meter.WattHour{}
	certified := map[string]meter.WattHour{}
	for _, p := range f.Contractual {
		if p.Wh <= 0 || p.Certified < 0 || p.Certified > p.Wh {
			t.Fatalf("slot %d: %+v", f.Slot, p)
		}
		net[p.From] -= p.Wh
		net[p.To] += p.Wh
		certified[p.From] += p.Certified
		certified[p.To] += p.Certified
		if p.Kind != FlowLate && p.Kind != FlowFix {
			left[p.From] += p.Wh
			left[p.To] += p.Wh
		}
	}
	at := map[string]meter.WattHour{} // what houses and cars took less what they gave, by node
	for _, x := range v.Fills {
		if left[x.ID] != x.Wh || certified[x.ID] != x.Certified {
			t.Fatalf("slot %d: %s has %d Wh, %d certified, in its flows %d and %d", f.Slot, x.ID, x.Wh, x.Certified, left[x.ID], certified[x.ID])
		}
		if x.Session != (chain.ID{}) {
			at[x.Node] += net[x.ID]
			delete(net, x.ID)
		}
	}
	metered := map[string]meter.WattHour{}
	for _, p := range v.Prices {
		metered[p.Node] += p.Import - p.Export
	}
	e := v.Energy
	lateOf(st, f.Slot, func(device chain.Key, session chain.ID, l lateEnergy) {
		m, _ := MemberOf(st, device)
		for _, party := range []string{"car/", "v2v/"} {
			if session != (chain.ID{}) {
				at[m.Name] += net[party+session.String()]
				delete(net, party+session.String())
			}
		}
		metered[m.Name] += l.Import + l.FixImport - l.Export - l.FixExport
		e.Produced += l.Produced
		e.GridImport += l.GridImport
		e.GridExport += l.GridExport
		e.Loss += l.Export + l.FixExport + l.GridImport - l.Import - l.FixImport - l.GridExport
		if have := l.Issued + l.Stored; l.Withdrawn < 0 || l.Withdrawn > have || l.Backed < 0 || l.Backed > l.Charged || l.Stored > l.Discharged {
			t.Fatalf("slot %d: %s has %+v", f.Slot, m.Name, l)
		}
	})
	for name, wh := range metered {
		if got := net["buy/"+name] + net["sell/"+name] + at[name]; got != wh {
			t.Fatalf("slot %d: %s metered %d Wh net, its flows %d", f.Slot, name, wh, got)
		}
	}
	// Physical: produced + imported = consumed + exported + lost, and what
	// came out of cars and batteries besides.
	var roofs, imported, lost meter.WattHour
	for _, p := range f.Physical {
		if p.Wh <= 0 {
			t.Fatalf("slot %d: %+v", f.Slot, p)
		}
		for sign, party := range map[meter.WattHour]string{1: p.From, -1: p.To} {
			switch kind, _, _ := strings.Cut(party, "/"); kind {
			case "roof":
				roofs += sign * p.Wh
			case FlowGridParty:
				imported += sign * p.Wh
			case FlowLoss:
				lost -= sign * p.Wh
			}
		}
	}
	if roofs != e.Produced || imported != e.GridImport-e.GridExport || lost != e.Loss {
		t.Fatalf("slot %d: flows of %d produced, %d imported net, %d lost; the slot has %+v", f.Slot, roofs, imported, lost, e)
	}
}

// tradedEnough reports a walk that tried too little.
func (w *walker) tradedEnough() {
	w.t.Helper()
	var firm, sold meter.WattHour
	var c CertificateTotals
	for _, m := range Members(w.st) {
		firm += m.FirmSold
		c.Bought += m.Certificates.Bought
		c.Stored += m.Certificates.Stored
	}
	for _, s := range Sessions(w.st) {
		sold += s.Sold
	}
	corrections := len(CorrectionsOf(w.st, chain.Key{}))
	w.t.Logf("firm %d Wh, cars sold %d Wh, certificates for %d Wh bought, %d stored, %d corrections, %d slots' flows", firm, sold, c.Bought, c.Stored, corrections, w.flown)
	if firm == 0 || sold == 0 || c.Bought == 0 || c.Stored == 0 || corrections == 0 || w.flown == 0 {
		w.t.Fatal("the walk traded too little")
	}
}
