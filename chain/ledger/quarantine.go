package ledger

import (
	"fmt"
	"math"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// A meter that jumps by more than its connection can have carried has broken,
// or lies. Three things happen in the block that says so:
//
//	cap         what the connection can have carried is billed, outside the local market
//	dispute     the excess is nobody's until somebody has decided: a driver's money for it
//	            is frozen, a house is not charged and not paid for it
//	quarantine  the meter bills nothing any more; what it goes on counting waits
//
// A release ends it (who: see cosign.go). It says how much of the excess was
// energy after all, and bills that, and what has waited, at the supplier's
// price. A dispute that nobody decides in time ends without the excess.
//
// A charging point in quarantine takes no new session. A jump of a session's
// meter is its last word: what follows in that session moves nothing.
const tabQuarantine = '2' // device, charging point, meter -> QuarantineView

// QuarantineView is a meter that bills nothing because it has jumped.
type QuarantineView struct {
	Device    chain.Key `cbor:"-" json:"device"`
	Connector uint8     `cbor:"-" json:"connector"`       // charging point; 0: a meter of the gateway
	Meter     string    `cbor:"-" json:"meter,omitempty"` // its id, with connector 0

	Height       int64          `cbor:"1,keyasint" json:"height"`
	SinceMs      int64          `cbor:"2,keyasint" json:"since_ms"` // block time
	Slot         chain.Slot     `cbor:"3,keyasint" json:"slot"`     // of the newest record
	CapImport    meter.WattHour `cbor:"4,keyasint" json:"cap_import_wh"`
	CapExport    meter.WattHour `cbor:"5,keyasint" json:"cap_export_wh"` // of the jump, what the connection can have carried
	ExcessImport meter.WattHour `cbor:"6,keyasint" json:"excess_import_wh"`
	ExcessExport meter.WattHour `cbor:"7,keyasint" json:"excess_export_wh"` // beyond it, in doubt; zero once that is decided
	Import       meter.WattHour `cbor:"8,keyasint" json:"waiting_import_wh"`
	Export       meter.WattHour `cbor:"9,keyasint" json:"waiting_export_wh"`          // counted and not billed
	Dispute      uint64         `cbor:"10,keyasint" json:"dispute,omitempty"`         // about the excess; 0: none, or decided
	Session      chain.ID       `cbor:"11,keyasint,omitzero" json:"session,omitzero"` // whose meter jumped
}

func quarantineKey(device chain.Key, connector uint8, meterID string) []byte {
	return key(tabQuarantine, device[:], []byte{connector}, []byte(meterID))
}

func (q *QuarantineView) key() []byte { return quarantineKey(q.Device, q.Connector, q.Meter) }

// QuarantineOf returns the quarantine of a gateway's meter (connector 0), or
// of a charging point's (no id).
func QuarantineOf(st State, device chain.Key, connector uint8, meterID string) (QuarantineView, bool) {
	q, ok := get[QuarantineView](st, quarantineKey(device, connector, meterID))
	q.Device, q.Connector, q.Meter = device, connector, meterID
	return q, ok
}

// Quarantines returns the meters that bill nothing, ascending by gateway.
func Quarantines(st State) []QuarantineView {
	var all []QuarantineView
	each(st, key(tabQuarantine), func(k []byte, q QuarantineView) bool {
		q.Device, q.Connector, q.Meter = chain.Key(k[:32]), k[32], string(k[33:])
		all = append(all, q)
		return true
	})
	return all
}

// jumps reports whether everything about a reading is in order but that the
// registers have moved further than the connection can have carried.
func (r *run) jumps(q meter.Quality, s chain.Slot, fromMs, atMs, maxPower int64, imp, exp meter.WattHour) bool {
	return min(imp, exp) >= 0 && max(imp, exp) > plausible(maxPower, fromMs, atMs) && r.trust(q, s, fromMs, atMs, 0) == ""
}

// meterJump caps a jump of a gateway's meter and puts it in quarantine. next
// is the meter with its new registers.
func (r *run) meterJump(st State, m *member, rec *chain.MeterRecord, last, next *MeterView, at, power int64) error {
	limit := plausible(power, last.AtMs, at)
	imp, exp := rec.Import-last.Import, rec.Export-last.Export
	next.follow(rec, at)
	put(st, meterKey(m.Member.Device, rec.Meter), *next)
	q := QuarantineView{
		Device: m.Member.Device, Meter: rec.Meter, Height: r.height, SinceMs: r.time, Slot: next.Slot,
		CapImport: min(imp, limit), CapExport: min(exp, limit),
	}
	q.ExcessImport, q.ExcessExport = imp-q.CapImport, exp-q.CapExport
	if rec.Role == chain.RoleSite {
		retail, feedIn := r.prices(st, next.Slot)
		// Nobody's money is frozen for what no wire can have carried.
		q.Dispute = r.disputeJump(st, &DisputeView{
			Driver: m.owner(), Device: q.Device, Meter: q.Meter, Wh: q.ExcessImport, ExportWh: q.ExcessExport,
			Amount: max(claim(retail, q.ExcessImport), claim(feedIn, q.ExcessExport)),
		})
		if q.Dispute == 0 {
			q.ExcessImport, q.ExcessExport = 0, 0
		}
		if err := r.book(st, m, rec, next.Slot, q.CapImport, q.CapExport, false, false); err != nil {
			return err
		}
	} else {
		q.Import, q.Export = q.CapImport, q.CapExport
	}
	put(st, q.key(), q)
	r.event("meter.quarantined", m.Member.Name, "%s: %d/%d Wh in %d ms, at most %d; dispute %d", rec.Meter, imp, exp, at-last.AtMs, limit, q.Dispute)
	return nil
}

// claim is the price of energy, or the most there is if it overflows.
func claim(p chain.NanoPerWh, wh meter.WattHour) chain.Nano {
	n, err := chain.Cost(p, wh)
	if err != nil {
		return math.MaxInt64
	}
	return n
}

// follow takes over a record's registers.
func (v *MeterView) follow(rec *chain.MeterRecord, at int64) {
	v.Released = false
	v.Based, v.Import, v.Export, v.AtMs, v.Slot = true, rec.Import, rec.Export, max(at, v.AtMs), max(rec.Slot, v.Slot)
}

// await lets a meter in quarantine count on without billing. What it counts
// must be plausible from record to record; a register that falls, or jumps
// again, sets a new base.
func (r *run) await(st State, m *member, q *QuarantineView, rec *chain.MeterRecord, last, next *MeterView, at, power int64, fresh bool) error {
	k := meterKey(m.Member.Device, rec.Meter)
	if doubt := r.trust(rec.Quality, rec.Slot, at, at, power); doubt != "" || min(rec.Import, rec.Export) < 0 {
		r.event("meter.suspect", m.Member.Name, "%s page %d in quarantine: %s", rec.Meter, rec.Page, doubt)
		put(st, k, *next)
		return nil
	}
	imp, exp := rec.Import-last.Import, rec.Export-last.Export
	next.follow(rec, at)
	put(st, k, *next)
	if limit := plausible(power, last.AtMs, at); fresh || min(imp, exp) < 0 || max(imp, exp) > limit {
		r.event("meter.rebased", m.Member.Name, "%s in quarantine: %d/%d Wh", rec.Meter, rec.Import, rec.Export)
		imp, exp = 0, 0
	}
	q.Import += imp // within what the connection carries: no overflow in a lifetime
	q.Export += exp
	q.Slot = max(q.Slot, rec.Slot)
	put(st, q.key(), *q)
	return nil
}

// sessionJump bills a session up to what the connection can have carried,
// freezes the driver's money for the rest and puts the charging point in
// quarantine. The caller stores s.
func (r *run) sessionJump(st State, m *member, s *SessionView, n reading, at int64, delta, given meter.WattHour) (imp, exp meter.WattHour) {
	limit := plausible(m.Member.MaxPower, s.RegisterMs, at)
	q := QuarantineView{
		Device: s.Gateway, Connector: s.Connector, Height: r.height, SinceMs: r.time, Slot: max(n.slot, 0), Session: s.ID,
		CapImport: min(delta, limit), CapExport: min(given, limit),
	}
	q.ExcessImport, q.ExcessExport = delta-q.CapImport, given-q.CapExport
	s.Jumped = true
	retail, _ := r.prices(st, n.slot)
	price := min(retail, s.Cap)
	wh := min(q.ExcessImport, max(s.MaxWh-s.Wh-q.CapImport, 0))
	// Within the hold, which is cap * MaxWh.
	if frozen := chain.Nano(price) * chain.Nano(wh); wh > 0 {
		s.MeterDispute = r.disputeJump(st, &DisputeView{
			Session: s.ID, Driver: s.Driver, Device: s.Gateway, Connector: s.Connector, Wh: wh, Amount: frozen, Frozen: frozen,
		})
		if s.MeterDispute != 0 && frozen > 0 {
			s.Disputed = frozen
			because(st, "frozen of session", s.ID)
			if err := add(st, chain.AccountDispute, frozen); err != nil {
				panic(fmt.Sprintf("ledger: %d nano of session %s cannot be frozen: %v", frozen, s.ID, err))
			}
		}
	}
	if q.Dispute = s.MeterDispute; q.Dispute == 0 {
		q.ExcessImport, q.ExcessExport = 0, 0
	}
	put(st, q.key(), q)
	r.event("meter.quarantined", m.Member.Name, "connector %d: %d/%d Wh in %d ms, at most %d; session %s, dispute %d", s.Connector, delta, given, at-s.RegisterMs, limit, s.ID, q.Dispute)
	r.event("session.suspect", s.ID.String(), "record %d jumps by %d Wh, %d are billed, %d nano in dispute", n.seq, max(delta, given), q.CapImport, s.Disputed)
	return q.CapImport, q.CapExport
}

// disputeJump opens a dispute about an excess by rule and returns its number,
// 0 if there is nothing to dispute or no room: then the excess is dropped.
func (r *run) disputeJump(st State, v *DisputeView) uint64 {
	if v.Amount == 0 || len(todo(st, todoDispute)) >= maxOpenDisputes {
		return 0
	}
	v.Number, v.State, v.Reason = next(st, todoDispute, chain.Account{}), DisputeOpen, "the meter jumped"
	v.OpenedMs, v.AnswerByMs, v.ResolveByMs = r.time, r.time+r.rules.AnswerDays*dayMs, r.time+r.rules.ResolveDays*dayMs
	put(st, disputeKey(v.Number), *v)
	put(st, todoKey(todoDispute, be64(v.Number)), true)
	r.event("dispute.opened", fmt.Sprint(v.Number), "%d Wh in, %d Wh out beyond what the connection carries, %d nano frozen", v.Wh, v.ExportWh, v.Frozen)
	return v.Number
}

// endJump thaws what a dispute about a jump froze: refund goes back to the
// driver, the rest is for energy that he has taken after all. The site's
// owner gets that: his own meter has counted it.
func (r *run) endJump(st State, v *DisputeView, refund chain.Nano) error {
	rest := v.Frozen - min(refund, v.Frozen)
	if v.Frozen > 0 {
		s := session(st, v.Session)
		m, _ := get[member](st, MemberKey(v.Device))
		because(st, "thawed by dispute", v.Number)
		if err := move(st, chain.AccountDispute, s.purse(st), v.Frozen-rest); err != nil {
			return err
		}
		if err := move(st, chain.AccountDispute, m.owner(), rest); err != nil {
			return err
		}
		wh := meter.WattHour(share(chain.Nano(v.Wh), rest, v.Frozen))
		slot := chain.SlotAt(v.OpenedMs, r.rules.SlotSeconds)
		r.accrueTo(st, v.Driver, v.Device, slot, Accrual{BoughtWh: wh, Bought: rest})
		r.accrue(st, &m, slot, Accrual{SoldWh: wh, Sold: rest})
	}
	if q, ok := QuarantineOf(st, v.Device, v.Connector, v.Meter); ok && q.Dispute == v.Number {
		q.Dispute, q.ExcessImport, q.ExcessExport = 0, 0, 0
		put(st, q.key(), q)
	}
	return nil
}

// meterRelease ends a quarantine and bills what was energy.
func (r *run) meterRelease(st State, by authority, b chain.MeterRelease) error {
	if !r.audited(by) {
		if err := r.operators(by); err != nil {
			return err
		}
	}
	q, ok := QuarantineOf(st, b.Device, b.Connector, b.Meter)
	if !ok {
		return refuse(CodeUnknown, "connector %d, meter %q of %s is not in quarantine", b.Connector, b.Meter, b.Device.Short())
	}
	if err := checkReason(b.Reason); err != nil {
		return err
	}
	m, _ := get[member](st, MemberKey(b.Device))
	switch top := plausible(r.bound(st, &m, chain.RoleConnection), 0, math.MaxInt64/2); {
	case b.Import < -q.CapImport || b.Import > min(q.ExcessImport, top) || b.Export < -q.CapExport || b.Export > min(q.ExcessExport, top):
		return refuse(CodeRange, "%d/%d Wh: from -%d/-%d that were billed to %d/%d in doubt", b.Import, b.Export, q.CapImport, q.CapExport, q.ExcessImport, q.ExcessExport)
	case b.Connector != 0 && (b.Import < 0 || b.Export != 0):
		return refuse(CodeRange, "a session's bill is final: what was too much of it is refunded")
	case (b.Import > 0 || b.Export > 0) && len(r.rules.Auditors) > 0 && !r.audited(by):
		return refuse(CodeApproval, "an auditor must approve that the excess was energy")
	}
	st.Delete(q.key())
	if b.Connector == 0 {
		v, _ := get[MeterView](st, meterKey(b.Device, b.Meter))
		v.Released = true
		put(st, meterKey(b.Device, b.Meter), v)
		if err := r.bookReleased(st, &m, v.Role, &q, b.Import, b.Export); err != nil {
			return err
		}
	}
	if v, open := DisputeOf(st, q.Dispute); open && v.State != DisputeResolved {
		refund := v.Amount
		if v.Wh > 0 && b.Import > 0 {
			refund -= share(v.Amount, chain.Nano(min(b.Import, v.Wh)), chain.Nano(v.Wh))
		}
		if err := r.endDispute(st, v, refund, b.Reason); err != nil {
			return err
		}
	}
	r.event("meter.released", m.Member.Name, "connector %d, meter %q: %d/%d Wh of the jump, %d/%d Wh that waited: %s", b.Connector, b.Meter, b.Import, b.Export, q.Import, q.Export, b.Reason)
	return nil
}

// bookReleased books what has waited and what of a jump was energy.
func (r *run) bookReleased(st State, m *member, role chain.Role, q *QuarantineView, imp, exp meter.WattHour) error {
	imp += q.Import
	exp += q.Export
	switch role {
	case chain.RoleSite:
		retail, feedIn := r.prices(st, q.Slot)
		because(st, "release of meter", q.Meter)
		_, err := r.adjust(st, m, q.Slot, retail, feedIn, imp, exp, "meter "+q.Meter+" has jumped and was released")
		return err
	case chain.RoleProduction:
		return r.late(st, m, q.Slot, lateEnergy{Produced: exp})
	case chain.RoleStorage:
		return r.late(st, m, q.Slot, lateEnergy{Charged: imp, Discharged: exp})
	case chain.RoleConnection:
		return r.late(st, m, q.Slot, lateEnergy{GridImport: imp, GridExport: exp})
	}
	return nil
}
