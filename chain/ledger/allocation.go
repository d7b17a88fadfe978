package ledger

import (
	"cmp"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// AllocationSeconds is the interval in which suppliers and network operators
// exchange energy data.
const AllocationSeconds = 900

// AllocationRow is the energy of one metering point in one interval, divided
// into what neighbours supplied and what is the supplier's:
//
//	import + behind = local_in + supplier_in
//	export + behind = local_out + supplier_out
type AllocationRow struct {
	StartMs     int64          `json:"start_ms"` // of the interval, Unix
	Point       string         `json:"point"`    // member name
	Device      chain.Key      `json:"device"`
	Import      meter.WattHour `json:"import_wh"` // metered
	Export      meter.WattHour `json:"export_wh"`
	LocalIn     meter.WattHour `json:"local_in_wh"` // bought of neighbours, by house and cars
	LocalOut    meter.WattHour `json:"local_out_wh"`
	SupplierIn  meter.WattHour `json:"supplier_in_wh"`
	SupplierOut meter.WattHour `json:"supplier_out_wh"`
	OnBill      meter.WattHour `json:"on_bill_wh"`     // of SupplierIn and SupplierOut, not settled in the ledger
	Behind      meter.WattHour `json:"behind_wh"`      // traded without passing the metering point
	LateImport  meter.WattHour `json:"late_import_wh"` // told too late to trade, at the supplier's price; not in the other columns
	LateExport  meter.WattHour `json:"late_export_wh"`
	FixImport   meter.WattHour `json:"correction_import_wh"` // booked corrections, not in the other columns
	FixExport   meter.WattHour `json:"correction_export_wh"`
}

// AllocationCheck compares an interval's metering points with the meter at
// the grid connection.
type AllocationCheck struct {
	StartMs    int64          `json:"start_ms"`
	Points     meter.WattHour `json:"points_net_wh"`     // import less export of all metering points
	Connection meter.WattHour `json:"connection_net_wh"` // of the connection; without a meter there the same
	Mismatch   meter.WattHour `json:"mismatch_wh"`       // Connection - Points: losses, and meters read a moment apart
	Late       meter.WattHour `json:"late_mismatch_wh"`  // what late readings and corrections add to Mismatch
	Missing    int            `json:"missing"`           // sites that did not report in time, summed over slots
	Audit      bool           `json:"audit,omitempty"`   // a slot lost more than wires do
}

// Allocation is the energy of a period for suppliers and network operators.
// Readings that came after their slot was cleared stand apart, with the slot
// whose price they had.
type Allocation struct {
	FromMs      int64             `json:"from_ms"`
	ToMs        int64             `json:"to_ms"` // exclusive
	Seconds     int64             `json:"interval_seconds"`
	Rows        []AllocationRow   `json:"rows"` // ascending by time, point
	Checks      []AllocationCheck `json:"checks"`
	Mismatch    meter.WattHour    `json:"mismatch_wh"`      // of all intervals
	Late        meter.WattHour    `json:"late_mismatch_wh"` // of all intervals
	Outstanding []chain.Slot      `json:"outstanding_audits,omitempty"`
}

// AllocationOf divides the energy of slots from..to (inclusive).
func AllocationOf(st State, from, to chain.Slot) Allocation {
	rules := RulesOf(st)
	seconds := max(AllocationSeconds, rules.SlotSeconds)
	a := Allocation{FromMs: from.Start(rules.SlotSeconds), ToMs: to.End(rules.SlotSeconds), Seconds: seconds, Rows: []AllocationRow{}, Checks: []AllocationCheck{}}
	type place struct {
		start int64
		point string
	}
	rows := map[place]*AllocationRow{}
	checks := map[int64]*AllocationCheck{}
	devices := map[string]chain.Key{}
	for _, m := range collect[member](st, key(tabMember)) {
		devices[m.Member.Name] = m.Member.Device
	}
	row := func(s chain.Slot, point string) *AllocationRow {
		at := place{s.Start(rules.SlotSeconds) / (seconds * 1000) * seconds * 1000, point}
		if rows[at] == nil {
			rows[at] = &AllocationRow{StartMs: at.start, Point: point, Device: devices[point]}
		}
		return rows[at]
	}
	for _, v := range SlotsBetween(st, from, to) {
		start := v.Slot.Start(rules.SlotSeconds) / (seconds * 1000) * seconds * 1000
		c := checks[start]
		if c == nil {
			c = &AllocationCheck{StartMs: start}
			checks[start] = c
		}
		c.Connection += v.Energy.GridImport - v.Energy.GridExport
		c.Mismatch += v.Energy.Loss
		c.Missing += v.Missing
		if v.Audit {
			c.Audit = true
			a.Outstanding = append(a.Outstanding, v.Slot)
		}
		a.Mismatch += v.Energy.Loss
		buys := map[string]meter.WattHour{}
		for _, f := range v.Fills {
			r := row(v.Slot, f.Node)
			rest, bill := f.Grid+f.FirmGrid+f.Supplier+f.FirmOwn, f.Supplier+f.FirmOwn
			r.OnBill += bill
			if f.Side == chain.Buy {
				r.LocalIn += f.Local + f.Firm
				r.SupplierIn += rest
				buys[f.Node] += f.Wh
			} else {
				r.LocalOut += f.Local + f.Firm
				r.SupplierOut += rest
			}
		}
		for _, p := range v.Prices {
			if _, house := devices[p.Node]; !house {
				continue
			}
			r := row(v.Slot, p.Node)
			r.Import += p.Import
			r.Export += p.Export
			r.Behind += buys[p.Node] - p.Import
			c.Points += p.Import - p.Export
		}
	}
	each(st, key(tabLateEnergy), func(k []byte, l lateEnergy) bool {
		s := slotOf(k)
		if s < from || s > to {
			return s <= to
		}
		late := l.GridImport - l.GridExport - l.Import - l.FixImport + l.Export + l.FixExport
		a.Late += late
		if start := s.Start(rules.SlotSeconds) / (seconds * 1000) * seconds * 1000; checks[start] != nil {
			checks[start].Late += late
		} else if late != 0 {
			checks[start] = &AllocationCheck{StartMs: start, Late: late}
		}
		if l.Import|l.Export != 0 {
			m, _ := MemberOf(st, chain.Key(k[8:40]))
			r := row(s, m.Name)
			r.LateImport += l.Import
			r.LateExport += l.Export
		}
		return s <= to
	})
	for _, x := range CorrectionsOf(st, chain.Key{}) {
		if x.State == CorrectionBooked && x.Slot >= from && x.Slot <= to {
			m, _ := MemberOf(st, x.Device)
			r := row(x.Slot, m.Name)
			r.FixImport += x.Import
			r.FixExport += x.Export
		}
	}
	for _, r := range rows {
		a.Rows = append(a.Rows, *r)
	}
	slices.SortFunc(a.Rows, func(x, y AllocationRow) int {
		return cmp.Or(cmp.Compare(x.StartMs, y.StartMs), cmp.Compare(x.Point, y.Point))
	})
	for _, c := range checks {
		a.Checks = append(a.Checks, *c)
	}
	slices.SortFunc(a.Checks, func(x, y AllocationCheck) int { return cmp.Compare(x.StartMs, y.StartMs) })
	return a
}

// SlotsBetween returns the cleared slots of from..to that had energy, with
// their fills, ascending.
func SlotsBetween(st State, from, to chain.Slot) (all []SlotView) {
	c, _ := get[clock](st, key(tabClock))
	for s := from; s <= min(to, c.Cleared); s++ {
		if v, ok := SlotOf(st, s); ok {
			all = append(all, v)
		}
	}
	return all
}
