package ledger

import (
	"bytes"
	"fmt"
	"math/bits"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/market"
	"github.com/joulegate/joulegate/meter"
)

// Late energy. What a meter tells of a slot that is cleared, or of several
// slots at once, cannot trade: other people's trades are final. It is not lost
// either. It is kept beside the slot, by gateway, and whoever asks who supplied
// whom gets the slot as it was traded and what came later:
//
//	by contract   trades of the slot   + late: house from and to the supplier,
//	              (final)                      car from and to the house it stood at
//	by wire       traced over the sum of both: the energy went where it went
//	certificates  of the slot's trades + issued late, one per Wh produced; withdrawn
//	              for what left the house without one, the others cancelled by the
//	              house, its battery among it. None go to neighbours any more.
//
// All of it is derived from sums, so that the order in which meters come back
// changes no margin. A battery that discharged late is certified as far as
// what it had charged allows when that is heard of.

// lateEnergy is what a gateway's meters told of a slot besides its settlement.
// The entry of a session holds its car's energy, the one without the rest. It
// leaves the state with the slot.
type lateEnergy struct {
	Import     meter.WattHour `cbor:"1,keyasint"`           // of the site, at the supplier's price
	Export     meter.WattHour `cbor:"2,keyasint"`           //
	Produced   meter.WattHour `cbor:"3,keyasint,omitempty"` // may be negative, when late discharge explains an export
	Charged    meter.WattHour `cbor:"4,keyasint,omitempty"` // into the battery
	Discharged meter.WattHour `cbor:"5,keyasint,omitempty"` //
	GridImport meter.WattHour `cbor:"6,keyasint,omitempty"` // of the microgrid; may be negative
	GridExport meter.WattHour `cbor:"7,keyasint,omitempty"` //
	FixImport  meter.WattHour `cbor:"8,keyasint,omitempty"` // booked corrections and releases; may be negative
	FixExport  meter.WattHour `cbor:"9,keyasint,omitempty"` //

	Issued    meter.WattHour `cbor:"10,keyasint,omitempty"` // certificates for Produced
	Stored    meter.WattHour `cbor:"11,keyasint,omitempty"` // for Discharged
	Withdrawn meter.WattHour `cbor:"12,keyasint,omitempty"` // of both: with what left the house
	Backed    meter.WattHour `cbor:"13,keyasint,omitempty"` // of the others: by charging the battery

	Car  meter.WattHour `cbor:"20,keyasint,omitempty"` // into a session's car
	Sold meter.WattHour `cbor:"21,keyasint,omitempty"` // out of it
}

func lateKey(s chain.Slot, device chain.Key, session chain.ID) []byte {
	return key(tabLateEnergy, slotBytes(s), device[:], session[:])
}

// lateOf calls fn for the late energy of a slot, ascending by gateway, its
// own before its sessions'.
func lateOf(st State, s chain.Slot, fn func(device chain.Key, session chain.ID, l lateEnergy)) {
	each(st, key(tabLateEnergy, slotBytes(s)), func(k []byte, l lateEnergy) bool {
		fn(chain.Key(k[8:40]), chain.ID(k[40:]), l)
		return true
	})
}

// bookLate books site energy that cannot trade any more, at the grid's price:
// hiding a reading gains nothing. What the owner's or the supplier's balance
// does not cover is left to the supplier's own bill. whole tells that it is
// the energy of slot s alone.
func (r *run) bookLate(st State, m *member, s chain.Slot, imp, exp meter.WattHour, whole bool) error {
	if imp == 0 && exp == 0 {
		return nil
	}
	because(st, "late energy of slot", s)
	retail, feedIn := r.prices(st, s)
	c := countersOf(st, m.Member.Device)
	if pay(st, m.owner(), chain.AccountGrid, retail, imp) {
		r.accrue(st, m, s, Accrual{GridWh: imp, Grid: chain.Nano(retail) * chain.Nano(imp)})
	} else {
		c.SupplierImport += imp
	}
	if pay(st, chain.AccountGrid, m.owner(), feedIn, exp) {
		r.accrue(st, m, s, Accrual{FedWh: exp, Fed: chain.Nano(feedIn) * chain.Nano(exp)})
	} else {
		c.SupplierExport += exp
	}
	put(st, key(tabCounters, m.Member.Device[:]), c)
	if whole {
		r.netLate(st, m, s, imp, 0)
	}
	r.event("meter.late", m.Member.Name, "slot %d: %d Wh imported, %d Wh exported at the grid's price", s, imp, exp)
	return r.late(st, m, s, lateEnergy{Import: imp, Export: exp})
}

// netLate sets a house's late import off against its cars' late energy of the
// same slot. The owner was charged retail for the one and got feed-in for the
// other; for what passed straight through to a car, the supplier makes up the
// difference. Energy is matched within one slot only: over a longer gap it
// would pay to hide readings and net the day's sun against the night.
func (r *run) netLate(st State, m *member, s chain.Slot, imp, cars meter.WattHour) {
	k := key(tabLate, m.Member.Device[:])
	l, _ := get[lateSlot](st, k)
	if s < l.Slot {
		return
	}
	if s > l.Slot {
		l = lateSlot{Slot: s}
	}
	before := min(l.Import, l.Cars)
	l.Import += imp
	l.Cars += cars
	put(st, k, l)
	because(st, "late energy of slot", s)
	retail, feedIn := r.prices(st, s)
	if wh := min(l.Import, l.Cars) - before; pay(st, chain.AccountGrid, m.owner(), retail-feedIn, wh) {
		r.accrue(st, m, s, Accrual{Sold: chain.Nano(retail-feedIn) * chain.Nano(wh)})
	} else {
		r.event("supplier.owes", m.Member.Name, "slot %d: %d Wh at %d nano/Wh", s, wh, retail-feedIn)
	}
}

// lateCar notes a car's energy that was settled outside the market.
func (r *run) lateCar(st State, m *member, s chain.Slot, session chain.ID, taken, given meter.WattHour) error {
	k := lateKey(s, m.Member.Device, session)
	l, _ := get[lateEnergy](st, k)
	l.Car += taken
	l.Sold += given
	put(st, k, l)
	return r.late(st, m, s, lateEnergy{}) // what the house has produced may be less
}

// late adds d to what came late of slot s at m, and to the totals, and issues
// and cancels the certificates for it.
func (r *run) late(st State, m *member, s chain.Slot, d lateEnergy) error {
	device := m.Member.Device
	k := lateKey(s, device, chain.ID{})
	l, _ := get[lateEnergy](st, k)
	c := countersOf(st, device)
	o := r.told(st, s, m)
	imp, exp := d.Import+d.FixImport, d.Export+d.FixExport

	e := Energy{Produced: d.Produced}
	if !c.Production {
		// As in balance: what left the house, and came from nothing else in it.
		whole := o.Export + l.Export + l.FixExport + exp - o.Discharged - l.Discharged - d.Discharged - o.sold
		e.Produced = max(0, whole) - o.Produced - l.Produced
	}
	e.Consumed = e.Produced + imp - exp
	if g, ok := get[connection](st, key(tabGrid)); ok && s >= g.From {
		e.Loss = exp - imp // the connection has measured it already
	} else {
		// The sites' sum stands for the connection: one of its two sides moves.
		e.GridImport = imp - exp
		floor := EnergyOf(st).GridImport // what is taken back may have been booked on the other
		if d.FixImport == 0 && d.FixExport == 0 {
			floor = 0
		}
		if e.GridImport < -floor {
			e.GridImport = -floor
			e.GridExport = exp - imp - floor
		}
	}
	e.GridImport += d.GridImport
	e.GridExport += d.GridExport
	e.Loss += d.GridImport - d.GridExport

	l.Import += d.Import
	l.Export += d.Export
	l.FixImport += d.FixImport
	l.FixExport += d.FixExport
	l.Produced += e.Produced
	l.Charged += d.Charged
	l.Discharged += d.Discharged
	l.GridImport += e.GridImport
	l.GridExport += e.GridExport
	c.Import += imp
	c.Export += exp
	c.Produced += e.Produced
	l.certify(&c.Certificates, c.Produced, &o, r.rules.storage())
	if l != (lateEnergy{}) {
		put(st, k, l)
		put(st, key(tabCounters, device[:]), c)
	}
	return total(st, e)
}

// inTime is what is known of a house's part in a slot: how it was settled,
// and its cars' late energy.
type inTime struct {
	PriceView
	cars, sold  meter.WattHour // into and out of cars behind its meter
	uncertified meter.WattHour // left the house without a certificate
}

// slotOnce decodes a slot's entry, which is long, but once for all who are late
// for it. The caller does not change it.
func (r *run) slotOnce(st State, s chain.Slot) *SlotView {
	k := SlotKey(s)
	b := st.Get(k)
	if b == nil {
		return &SlotView{}
	}
	if !bytes.Equal(b, r.recentB) {
		r.recent, r.recentB = must[SlotView](k, b), b
	}
	return &r.recent
}

// told returns what is known of m's part in slot s besides its own late
// energy. Of a slot that is not cleared, or has left the state, that is nothing.
func (r *run) told(st State, s chain.Slot, m *member) (o inTime) {
	o.PriceView, _ = priceOf(r.slotOnce(st, s), m.Member.Name)
	if o.Node != "" {
		if f, ok := get[FillView](st, FillKey(s, "sell/"+m.Member.Name)); ok {
			o.uncertified = f.Wh - f.Certified - f.Withdrawn
		}
		for _, cars := range []struct {
			prefix string
			sum    *meter.WattHour
		}{{"car/", &o.cars}, {"v2v/", &o.sold}} {
			each(st, FillKey(s, cars.prefix), func(_ []byte, f FillView) bool {
				if f.Device == m.Member.Device {
					*cars.sum += f.Wh
				}
				return true
			})
		}
	}
	each(st, key(tabLateEnergy, slotBytes(s), m.Member.Device[:]), func(_ []byte, l lateEnergy) bool {
		o.cars += l.Car
		o.sold += l.Sold
		return true
	})
	return o
}

// certify brings the certificates for late energy up to what is known: one
// for every Wh that the member has produced, in time or late.
func (l *lateEnergy) certify(t *CertificateTotals, produced meter.WattHour, o *inTime, storagePPM int64) {
	had, own := l.Issued+l.Stored, l.Issued+l.Stored-l.Withdrawn
	switch missing := produced + t.Owed - t.Issued; {
	case missing < 0: // issued for what was not produced after all
		t.Owed -= missing
	default:
		owed := min(t.Owed, missing)
		t.Owed -= owed
		t.Issued += missing - owed
		l.Issued += missing - owed
	}
	stored := max(0, min(l.Discharged-l.Stored, t.storable(storagePPM)-t.Stored))
	t.Stored += stored
	l.Stored += stored

	// What left the house takes its certificates with it, but for those that
	// the battery was charged with.
	backed := chargedWith(o.Charged, o.Own, o.Produced+o.Discharged+o.sold+o.Import-o.Export-o.cars)
	have, out := l.Issued+l.Stored, l.Withdrawn
	l.Withdrawn = max(0, min(have-max(0, l.Backed+backed-o.Own), o.uncertified+l.Export+l.FixExport))
	t.Exported += l.Withdrawn - out
	t.Own += have - l.Withdrawn - own
	if have < had || t.Own < 0 {
		panic(fmt.Sprintf("ledger: %d certificates after %d, %+v", have, had, *t))
	}
	if l.Charged > 0 {
		used := o.Produced + l.Produced + o.Discharged + l.Discharged + o.sold - o.cars + o.Import + l.Import + l.FixImport - o.Export - l.Export - l.FixExport
		now := max(l.Backed, min(l.Charged, chargedWith(o.Charged+l.Charged, o.Own+have-l.Withdrawn, used)-backed))
		t.Charged += now - l.Backed
		l.Backed = now
	}
}

// chargedWith is how many of the certificates that a house cancelled were for
// charging its battery: the battery has its part of what the house used.
func chargedWith(charged, own, used meter.WattHour) meter.WattHour {
	if charged <= 0 {
		return 0
	}
	used = max(used, charged)
	hi, lo := bits.Mul64(uint64(charged), uint64(min(own, used)))
	q, _ := bits.Div64(hi, lo, uint64(used))
	return meter.WattHour(q)
}

// settleLate certifies what of slot s came before the slot was cleared.
func (r *run) settleLate(st State, s chain.Slot) error {
	var devices []chain.Key
	lateOf(st, s, func(device chain.Key, _ chain.ID, _ lateEnergy) {
		if n := len(devices); n == 0 || devices[n-1] != device {
			devices = append(devices, device)
		}
	})
	for _, d := range devices {
		m, _ := get[member](st, MemberKey(d))
		if err := r.late(st, &m, s, lateEnergy{}); err != nil {
			return err
		}
	}
	return nil
}

// LateView is what came of a slot after it was settled, at one gateway.
type LateView struct {
	Member     string         `json:"member"`
	Owner      chain.Account  `json:"owner"`
	Import     meter.WattHour `json:"import_wh"` // of the site meter, at the supplier's price
	Export     meter.WattHour `json:"export_wh"`
	FixImport  meter.WattHour `json:"correction_import_wh"` // booked corrections
	FixExport  meter.WattHour `json:"correction_export_wh"`
	Produced   meter.WattHour `json:"produced_wh"`
	Charged    meter.WattHour `json:"charged_wh"`
	Discharged meter.WattHour `json:"discharged_wh"`
	Cars       meter.WattHour `json:"cars_wh"`             // into cars, settled by the house
	CarsGave   meter.WattHour `json:"cars_gave_wh"`        //
	Issued     meter.WattHour `json:"issued_wh"`           // certificates of origin
	Withdrawn  meter.WattHour `json:"withdrawn_wh"`        // of Issued, with what left the house
	Own        meter.WattHour `json:"own_certificates_wh"` // of Issued, cancelled by the house
}

// Add adds what came late of another slot.
func (v *LateView) Add(o LateView) {
	for _, p := range []struct{ sum, n *meter.WattHour }{
		{&v.Import, &o.Import},
		{&v.Export, &o.Export},
		{&v.FixImport, &o.FixImport},
		{&v.FixExport, &o.FixExport},
		{&v.Produced, &o.Produced},
		{&v.Charged, &o.Charged},
		{&v.Discharged, &o.Discharged},
		{&v.Cars, &o.Cars},
		{&v.CarsGave, &o.CarsGave},
		{&v.Issued, &o.Issued},
		{&v.Withdrawn, &o.Withdrawn},
		{&v.Own, &o.Own},
	} {
		*p.sum += *p.n
	}
}

// lateFlow adds late energy to a slot's flow: the lines by contract, and the
// lots by wire of what was told in time and late. v is empty if nothing was
// in time. It returns the tree of all concerned.
func lateFlow(st State, v *SlotView, nodes []market.Node, f *Flow) ([]market.Node, map[string]lateEnergy, []lateCar, error) {
	sums := map[string]lateEnergy{}
	var cars []lateCar
	var err error
	line := func(from, to, kind string, wh meter.WattHour) {
		if wh < 0 {
			from, to, wh = to, from, -wh
		}
		if wh > 0 {
			f.Contractual = append(f.Contractual, FlowPart{From: from, To: to, Kind: kind, Wh: wh})
		}
	}
	lateOf(st, v.Slot, func(device chain.Key, session chain.ID, l lateEnergy) {
		m, _ := get[member](st, MemberKey(device))
		name := m.Member.Name
		buy, sell := "buy/"+name, "sell/"+name
		f.Parties[buy], f.Parties[sell] = m.owner(), m.owner()
		if nodes, err = withNode(st, nodes, name, v.Slot); err != nil {
			return
		}
		if n := len(f.Late); n == 0 || f.Late[n-1].Member != name {
			f.Late = append(f.Late, LateView{Member: name, Owner: m.owner()})
		}
		at := &f.Late[len(f.Late)-1]
		if session != (chain.ID{}) {
			at.Cars += l.Car
			at.CarsGave += l.Sold
			cars = append(cars, lateCar{name, session, l.Car, l.Sold})
			for party, wh := range map[string]meter.WattHour{"car/" + session.String(): l.Car, "v2v/" + session.String(): l.Sold} {
				if s, ok := SessionOf(st, session); ok && wh > 0 {
					f.Parties[party] = s.Driver
				}
			}
			line(sell, "car/"+session.String(), FlowLate, l.Car)
			line("v2v/"+session.String(), buy, FlowLate, l.Sold)
			return
		}
		*at = LateView{
			Member: name, Owner: m.owner(), Import: l.Import, Export: l.Export, FixImport: l.FixImport, FixExport: l.FixExport,
			Produced: l.Produced, Charged: l.Charged, Discharged: l.Discharged, Cars: at.Cars, CarsGave: at.CarsGave,
			Issued: l.Issued + l.Stored, Withdrawn: l.Withdrawn, Own: l.Issued + l.Stored - l.Withdrawn,
		}
		sums[name] = l
		line(FlowGridParty, buy, FlowLate, l.Import)
		line(sell, FlowGridParty, FlowLate, l.Export)
		line(FlowGridParty, buy, FlowFix, l.FixImport)
		line(sell, FlowGridParty, FlowFix, l.FixExport)
	})
	return nodes, sums, cars, err
}

// lateCar is a car's late energy.
type lateCar struct {
	node        string
	session     chain.ID
	taken, give meter.WattHour
}

// withNode adds a node, and those above it, as they were in slot s; one that
// is younger is where it came first.
func withNode(st State, nodes []market.Node, id string, s chain.Slot) ([]market.Node, error) {
	for steps := 0; id != ""; steps++ {
		for _, n := range nodes {
			if n.ID == id {
				return nodes, nil
			}
		}
		z, ok := zoneAt(st, id, s)
		if !ok {
			n, known := get[node](st, nodeKey(id))
			if z = (zone{n.Parent, n.Fee}); !known || steps > maxDepth {
				return nil, fmt.Errorf("node %q is not in the fee tree", id)
			}
		}
		nodes = append(nodes, market.Node{ID: id, Parent: z.Parent, Fee: z.Fee})
		id = z.Parent
	}
	return nodes, nil
}

// FlowsBetween returns who supplied whom in the slots of from..to (inclusive)
// in which energy went anywhere, ascending.
func FlowsBetween(st State, from, to chain.Slot) (all []Flow, err error) {
	c, _ := get[clock](st, key(tabClock))
	for s := from; s <= to && s < c.Next; s++ {
		switch f, ok, err := flowOf(st, s); {
		case err != nil:
			return nil, err
		case ok:
			all = append(all, f)
		}
	}
	return all, nil
}
