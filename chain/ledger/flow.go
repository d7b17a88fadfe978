package ledger

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/market"
	"github.com/joulegate/joulegate/meter"
)

// Who supplied whom. Every cleared slot has two matrices:
//
//	contractual   sellers x buyers: what was traded, and with it the certificates
//	physical      sources x sinks: which way the energy went (proportional sharing)
//
// Both are computed from what the slot has left in the state, by
// [market.Trace] on the fee tree, so that near comes before far, every row
// and column adds up to the Wh, and everybody gets the same answer at any
// time. Nothing of them is stored but the certificates of every fill. What
// comes after the slot was settled is in both: see late.go.

// Kinds of a FlowPart.
const (
	FlowLocal = "local" // traded in the slot's market
	FlowFirm  = "firm"  // traded under a firm contract
	FlowGrid  = "grid"  // the supplier's, settled here
	FlowBill  = "bill"  // the supplier's, on its own bill
	FlowLate  = "late"  // told too late to trade: the supplier's, or of a car the house's at which it stood
	FlowFix   = "correction"
	FlowWire  = "wire" // physical
)

// FlowGridParty is the supplier in a flow, FlowLoss what got lost.
const (
	FlowGridParty = "grid"
	FlowLoss      = "loss"
)

// FlowPart is energy that went from one party to another in a slot. Parties
// of the contractual matrix are orders ("sell/a", "buy/c", "car/SESSION",
// "v2v/SESSION") and "grid"; of the physical one "roof/a", "battery/a",
// "use/a", "car/SESSION", "v2v/SESSION", "unmetered/a", "grid" and "loss".
type FlowPart struct {
	From      string         `json:"from"`
	To        string         `json:"to"`
	Kind      string         `json:"kind"`
	Wh        meter.WattHour `json:"wh"`
	Certified meter.WattHour `json:"certified_wh,omitempty"` // of Wh: certificates cancelled by To
}

// Flow is who supplied whom in one slot.
type Flow struct {
	Slot        chain.Slot               `json:"slot"`
	Contractual []FlowPart               `json:"contractual"`
	Physical    []FlowPart               `json:"physical"`
	Late        []LateView               `json:"late,omitempty"` // of what is in both matrices
	Parties     map[string]chain.Account `json:"-"`              // whose a party is
}

// treeNow is the fee tree without the houses that are gone, ascending by id.
func treeNow(st State, houses map[chain.Key]bool) (nodes []market.Node) {
	each(st, key(tabNode), func(k []byte, n node) bool {
		if n.Device == (chain.Key{}) || houses[n.Device] {
			nodes = append(nodes, market.Node{ID: string(k), Parent: n.Parent, Fee: n.Fee})
		}
		return true
	})
	return nodes
}

// treeOf is the fee tree on which a slot was cleared.
func treeOf(st State, v *SlotView) ([]market.Node, error) {
	nodes := make([]market.Node, 0, len(v.Prices))
	for _, p := range v.Prices {
		z, ok := zoneAt(st, p.Node, v.Slot)
		if !ok {
			return nil, fmt.Errorf("node %q was not in the fee tree in slot %d", p.Node, v.Slot)
		}
		nodes = append(nodes, market.Node{ID: p.Node, Parent: z.Parent, Fee: z.Fee})
	}
	return nodes, nil
}

// ProblemOf reconstructs what there was to clear in a slot, and what came of
// it, from the state alone.
func ProblemOf(st State, s chain.Slot) (p market.Problem, r market.Result, err error) {
	v, ok := SlotOf(st, s)
	if !ok {
		return p, r, fmt.Errorf("slot %d has not been cleared with energy in it", s)
	}
	if p.Nodes, err = treeOf(st, &v); err != nil {
		return p, r, err
	}
	r = market.Result{
		Paid: v.Paid, Received: v.Received, Fees: v.Fees, Welfare: -v.Fees,
		Fills: map[string]meter.WattHour{}, Prices: map[string]chain.NanoPerWh{}, Flows: map[string]meter.WattHour{},
	}
	for i, n := range p.Nodes {
		r.Prices[n.ID] = v.Prices[i].Price
		if n.Parent != "" {
			r.Flows[n.ID] = v.Prices[i].Flow
		}
	}
	for _, f := range v.Fills {
		if f.Side == chain.Buy && f.Supplier > 0 {
			continue // not in the market
		}
		p.Orders = append(p.Orders, market.Order{ID: f.ID, Side: f.Side, Wh: f.rest(), Limit: f.Limit, Node: f.Node})
		r.Fills[f.ID] = f.Local
		value, err := chain.Cost(f.Limit, f.Local)
		if f.Side == chain.Sell {
			value = -value
		}
		if err == nil {
			r.Welfare, err = chain.AddNano(r.Welfare, value)
		}
		if err != nil {
			return p, r, fmt.Errorf("welfare of slot %d: %w", s, err)
		}
	}
	return p, r, nil
}

// CertifySlot proves that a slot was cleared optimally, without clearing it
// again: see [market.Certify].
func CertifySlot(st State, s chain.Slot) error {
	p, r, err := ProblemOf(st, s)
	if err != nil {
		return err
	}
	return market.Certify(p, r)
}

// Tags of a seller's lots.
const (
	tagPlain  = ""
	tagRoof   = "roof"
	tagStored = "stored"
)

// contractual is the matrix of a slot's trades. A seller's certificates go
// with its contracts first, then with its local sales, fresh ones before
// stored ones.
func contractual(nodes []market.Node, fills []FillView, contracts []FirmDelivery) ([]FlowPart, error) {
	type stock struct{ roof, stored meter.WattHour }
	left := map[string]*stock{}
	for i := range fills {
		if f := &fills[i]; f.Side == chain.Sell {
			left[f.ID] = &stock{f.Certified - f.Stored, f.Stored}
		}
	}
	var parts []FlowPart
	for _, d := range contracts {
		if d.Delivered == 0 {
			continue
		}
		seller := d.Seller.order(chain.Sell)
		s := left[seller]
		roof := min(s.roof, d.Delivered)
		stored := min(s.stored, d.Delivered-roof)
		s.roof, s.stored = s.roof-roof, s.stored-stored
		parts = append(parts, FlowPart{seller, d.Buyer.order(chain.Buy), FlowFirm, d.Delivered, roof + stored})
	}
	var lots []market.Lot
	for _, f := range fills {
		if f.Side == chain.Buy {
			lots = append(lots, market.Lot{ID: f.ID, Node: f.Node, Wh: -f.Local})
			continue
		}
		s := left[f.ID]
		lots = append(lots, market.Lot{ID: f.ID, Tag: tagPlain, Node: f.Node, Wh: f.Local - s.roof - s.stored},
			market.Lot{ID: f.ID, Tag: tagRoof, Node: f.Node, Wh: s.roof},
			market.Lot{ID: f.ID, Tag: tagStored, Node: f.Node, Wh: s.stored})
	}
	traced, err := market.Trace(nodes, lots)
	if err != nil {
		return nil, err
	}
	for _, t := range traced {
		p := FlowPart{From: t.From, To: t.To, Kind: FlowLocal, Wh: t.Wh}
		if t.Tag != tagPlain {
			p.Certified = t.Wh
		}
		if last := len(parts) - 1; last >= 0 && parts[last].From == p.From && parts[last].To == p.To && parts[last].Kind == p.Kind {
			parts[last].Wh += p.Wh
			parts[last].Certified += p.Certified
		} else {
			parts = append(parts, p)
		}
	}
	return parts, nil
}

// FlowOf returns who supplied whom in a slot that is settled.
func FlowOf(st State, s chain.Slot) (Flow, error) {
	f, ok, err := flowOf(st, s)
	if err == nil && !ok {
		err = fmt.Errorf("slot %d has not been cleared with energy in it", s)
		if _, gone := ArchivedSlot(st, s); gone {
			err = fmt.Errorf("slot %d is older than what the ledger's state keeps", s)
		}
	}
	return f, err
}

func flowOf(st State, s chain.Slot) (f Flow, ok bool, err error) {
	v, ok := SlotOf(st, s)
	v.Slot = s
	nodes, err := treeOf(st, &v)
	if err != nil {
		return f, false, err
	}
	f = Flow{Slot: s, Parties: map[string]chain.Account{}}
	if ok {
		if f.Contractual, err = contractual(nodes, v.Fills, FirmDeliveries(st, s)); err != nil {
			return f, false, err
		}
	}
	for _, x := range v.Fills {
		f.Parties[x.ID] = x.Account
		for kind, wh := range map[string]meter.WattHour{FlowGrid: x.Grid + x.FirmGrid, FlowBill: x.Supplier + x.FirmOwn} {
			p := FlowPart{From: FlowGridParty, To: x.ID, Kind: kind, Wh: wh}
			if x.Side == chain.Sell {
				p.From, p.To = p.To, p.From
			}
			if wh > 0 {
				f.Contractual = append(f.Contractual, p)
			}
		}
	}
	nodes, late, cars, err := lateFlow(st, &v, nodes, &f)
	if err != nil {
		return f, false, fmt.Errorf("late energy of slot %d: %w", s, err)
	}
	if !ok && len(f.Late) == 0 {
		return f, false, nil
	}
	order := func(a, b FlowPart) int {
		return cmp.Or(cmp.Compare(a.To, b.To), cmp.Compare(a.From, b.From), cmp.Compare(a.Kind, b.Kind), cmp.Compare(b.Wh, a.Wh))
	}
	slices.SortStableFunc(f.Contractual, order)

	g, measured := get[connection](st, key(tabGrid))
	traced, err := market.Trace(nodes, sources(&v, nodes, late, cars, measured && s >= g.From))
	if err != nil {
		return f, false, fmt.Errorf("physical flow of slot %d: %w", s, err)
	}
	for _, t := range traced {
		f.Physical = append(f.Physical, FlowPart{From: t.From, To: t.To, Kind: FlowWire, Wh: t.Wh})
	}
	owners := map[string]chain.Account{}
	each(st, key(tabMember), func(_ []byte, m member) bool {
		owners[m.Member.Name] = m.owner()
		return true
	})
	for _, n := range nodes {
		if owner, ok := owners[n.ID]; ok {
			for _, kind := range []string{"roof/", "battery/", "use/", "unmetered/"} {
				f.Parties[kind+n.ID] = owner
			}
		}
	}
	return f, true, nil
}

// sources are the lots of the physical matrix: what was told in time, and
// late. They add up to zero because produced + imported = consumed + exported
// + lost. What the meter at the grid connection has not measured in either
// direction, the houses' sum says.
func sources(v *SlotView, nodes []market.Node, late map[string]lateEnergy, cars []lateCar, measured bool) (lots []market.Lot) {
	prices := map[string]PriceView{}
	for _, p := range v.Prices {
		prices[p.Node] = p
	}
	type car struct{ party, node string }
	moved := map[car]meter.WattHour{} // into (negative) and out of cars
	var order []car
	move := func(c car, wh meter.WattHour) {
		if _, ok := moved[c]; !ok {
			order = append(order, c)
		}
		moved[c] += wh
	}
	for _, f := range v.Fills {
		switch {
		case f.Session == chain.ID{}:
		case f.Side == chain.Buy:
			move(car{f.ID, f.Node}, -f.Wh)
		default:
			move(car{f.ID, f.Node}, f.Wh)
		}
	}
	for _, c := range cars {
		move(car{"car/" + c.session.String(), c.node}, -c.taken)
		move(car{"v2v/" + c.session.String(), c.node}, c.give)
	}
	e := v.Energy
	for _, n := range nodes {
		p, l := prices[n.ID], late[n.ID]
		imp, exp := p.Import+l.Import+l.FixImport, p.Export+l.Export+l.FixExport
		e.GridImport += l.GridImport
		e.GridExport += l.GridExport
		e.Loss += l.Export + l.FixExport + l.GridImport - l.Import - l.FixImport - l.GridExport
		add := func(id string, wh meter.WattHour) meter.WattHour {
			if wh != 0 {
				lots = append(lots, market.Lot{ID: id, Node: n.ID, Wh: wh})
			}
			return wh
		}
		inside := add("roof/"+n.ID, p.Produced+l.Produced) + add("battery/"+n.ID, p.Discharged+l.Discharged) + add("battery/"+n.ID, -p.Charged-l.Charged)
		for _, c := range order {
			if c.node == n.ID {
				inside += add(c.party, moved[c])
			}
		}
		// What is left is what the house used. Meters that are read a moment
		// apart, or late, can make that negative.
		if use := inside + imp - exp; use > 0 {
			add("use/"+n.ID, -use)
		} else {
			add("unmetered/"+n.ID, -use)
		}
	}
	if both := min(e.GridImport, e.GridExport); !measured {
		e.GridImport, e.GridExport = e.GridImport-both, e.GridExport-both
	}
	for _, n := range nodes {
		if n.Parent == "" {
			for _, l := range []market.Lot{{ID: FlowGridParty, Wh: e.GridImport}, {ID: FlowGridParty, Wh: -e.GridExport}, {ID: FlowLoss, Wh: -e.Loss}} {
				if l.Node = n.ID; l.Wh != 0 {
					lots = append(lots, l)
				}
			}
		}
	}
	return lots
}

// CertificateTotals sum up a member's certificates of origin in Wh: one for
// every Wh that it has produced, so that Issued = produced + Owed. A
// certificate is never stored alone: it is issued, goes with the Wh to who
// bought that, and is cancelled there, all in the slot that made it; what is
// told late goes to nobody else (late.go).
type CertificateTotals struct {
	Issued   meter.WattHour `cbor:"1,keyasint,omitempty" json:"issued_wh"`        // on production
	Stored   meter.WattHour `cbor:"2,keyasint,omitempty" json:"issued_stored_wh"` // on discharge of certified energy
	Sold     meter.WattHour `cbor:"3,keyasint,omitempty" json:"sold_wh"`          // cancelled by neighbours
	Exported meter.WattHour `cbor:"4,keyasint,omitempty" json:"exported_wh"`      // withdrawn with what went to the supplier
	Own      meter.WattHour `cbor:"5,keyasint,omitempty" json:"own_wh"`           // cancelled by the house itself
	Bought   meter.WattHour `cbor:"6,keyasint,omitempty" json:"bought_wh"`        // of neighbours, cancelled by house and cars
	Charged  meter.WattHour `cbor:"7,keyasint,omitempty" json:"charged_wh"`       // cancelled by charging the battery; bounds Stored
	Owed     meter.WattHour `cbor:"8,keyasint,omitempty" json:"owed_wh"`          // issued for energy that a correction took back: not issued again until made good
	Rated    meter.WattHour `cbor:"9,keyasint,omitempty" json:"-"`                // of Charged, before the storage efficiency last changed
	Allowed  meter.WattHour `cbor:"10,keyasint,omitempty" json:"-"`               // what Rated allows to be issued on discharge
}

// Storage efficiency: the part of the energy charged for which a battery gets
// certificates when it discharges.
const (
	DefaultStoragePPM = 850_000 // what batteries behind their own inverter return, charge to discharge
	MinStoragePPM     = 100_000 // less is no storage
	MaxStoragePPM     = 1_000_000
)

// storable is what certified charging allows to be issued on discharge. A
// change of the efficiency holds for what is charged from then on.
func (t *CertificateTotals) storable(ppm int64) meter.WattHour {
	return t.Allowed + meter.WattHour(chain.PPM(chain.Nano(t.Charged-t.Rated), ppm))
}

// rate puts another storage efficiency in force.
func rate(st State, before int64) {
	due := map[string]counters{}
	each(st, key(tabCounters), func(k []byte, c counters) bool {
		if c.Certificates.Charged > c.Certificates.Rated {
			due[string(k)] = c
		}
		return true
	})
	for k, c := range due {
		t := &c.Certificates
		t.Allowed, t.Rated = t.storable(before), t.Charged
		put(st, key(tabCounters, []byte(k)), c)
	}
}

// certificates issues and cancels the certificates of a slot.
func certificates(st State, view *SlotView, nodes []market.Node, sites []*site, fills []FillView, contracts []FirmDelivery, storagePPM int64) error {
	index := map[string]*FillView{}
	for i := range fills {
		index[fills[i].ID] = &fills[i]
	}
	type account struct {
		counters counters
		own      meter.WattHour // certificates that the house itself cancels
	}
	accounts := map[chain.Key]*account{}
	for _, at := range sites {
		c := countersOf(st, at.device)
		t := &c.Certificates
		owed := min(t.Owed, at.bucket.Produced)
		t.Owed -= owed
		roof := at.bucket.Produced - owed
		stored := min(at.bucket.Discharged, t.storable(storagePPM)-t.Stored)
		t.Issued += roof
		t.Stored += stored
		left := roof + stored
		if f := index["sell/"+at.member.Member.Name]; f != nil {
			f.Certified = min(f.Local+f.Firm, left)
			f.Stored = max(0, f.Certified-roof)
			left -= f.Certified
			t.Sold += f.Certified
			f.Withdrawn = min(left, f.Grid+f.Supplier+f.FirmGrid+f.FirmOwn)
			left -= f.Withdrawn
			t.Exported += f.Withdrawn
		}
		t.Own += left
		accounts[at.device] = &account{c, left}
	}
	parts, err := contractual(nodes, fills, contracts)
	if err != nil {
		return err
	}
	for _, p := range parts {
		index[p.To].Certified += p.Certified
	}
	for i := range fills {
		if f := &fills[i]; f.Side == chain.Buy && f.Certified > 0 {
			a := accounts[f.Device]
			a.counters.Certificates.Bought += f.Certified
			if f.Session == (chain.ID{}) {
				a.own += f.Certified
			}
		}
	}
	prices := map[string]*PriceView{}
	for i := range view.Prices {
		prices[view.Prices[i].Node] = &view.Prices[i]
	}
	for _, at := range sites {
		a := accounts[at.device]
		b := at.bucket
		a.counters.Certificates.Charged += chargedWith(b.Charged, a.own, b.Produced+b.Discharged+at.sold+b.Import-b.Export-at.cars)
		if p := prices[at.member.Member.Name]; p != nil {
			p.Own = a.own
		}
		put(st, key(tabCounters, at.device[:]), a.counters)
	}
	return nil
}
