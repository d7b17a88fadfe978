package ledger

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// equivocation is the refusal of a block whose author has signed another one
// for the same position.
type equivocation struct {
	refusal
	author chain.Key
}

func (e *equivocation) Unwrap() error { return &e.refusal }

// gatewayBlock executes a gateway's block. A record that is refused does not
// void the others.
func (r *run) gatewayBlock(st State, raw []byte, e chain.Envelope) ([]RecordResult, error) {
	b, m, err := r.link(st, raw, e)
	if err != nil {
		return nil, err
	}
	var refused []RecordResult
	for i, rec := range b.Records {
		if rec.Kind >= chain.KindEvidence {
			continue
		}
		err := r.attempt(st, raw, func(st State) error { return r.record(st, &m, b.Epoch, rec) })
		if err != nil {
			res := result(err)
			refused = append(refused, RecordResult{Index: i, Kind: rec.Kind, Code: res.Code, Info: res.Info})
			if res.Code == CodeDuplicate {
				continue // an author that was killed says its last records again
			}
			r.event("record.refused", m.Member.Name, "block %s record %d of kind %d: %v", b.Position(), i, rec.Kind, err)
			if id, ok := quoted(st, b.Author, rec); ok {
				r.event("session.refused", id.String(), "%v", err)
			}
		}
	}
	return refused, nil
}

// quoted returns the session that a record of author's asks to open, if it is
// the author's to open and does not exist: nobody may cast doubt on a session
// of somebody else.
func quoted(st State, author chain.Key, rec chain.Record) (chain.ID, bool) {
	var o chain.SessionOpen
	var q chain.Quote
	if rec.Kind != chain.KindSessionOpen || chain.Unmarshal(rec.Body, &o) != nil || chain.Unmarshal(o.Quote.Quote, &q) != nil {
		return chain.ID{}, false
	}
	return q.ID, q.Gateway == author && st.Get(SessionKey(q.ID)) == nil
}

// link checks a gateway block's form, author and place in the author's chain,
// and advances that chain. It returns the block and its author.
//
//	same epoch    number = last + 1, previous = hash of the last
//	later epoch   number = 1
func (r *run) link(st State, raw []byte, e chain.Envelope) (*chain.Signed, member, error) {
	b, err := chain.OpenBlock(raw, e)
	if err != nil {
		return nil, member{}, refuse(formCode(err), "%v", err)
	}
	if b.Chain != r.rules.ChainID {
		return nil, member{}, refuse(CodeChain, "made for %q, this is %q", b.Chain, r.rules.ChainID)
	}
	m, ok := get[member](st, MemberKey(b.Author))
	if !ok || !m.Active {
		return nil, m, refuse(CodeNotMember, "author %s is no active member", b.Author.Short())
	}
	head, known := HeadOf(st, b.Author)
	pos := b.Position()
	fork := func(other chain.Hash) error {
		return &equivocation{refusal{CodeEquivocation, fmt.Sprintf("%s has block %s at %s, this is %s", b.Author.Short(), other, pos, b.Hash)}, b.Author}
	}
	switch {
	case known && !head.Position.Less(pos):
		past, ok := get[chain.Hash](st, pastKey(b.Author, pos))
		switch {
		case !ok:
			return nil, m, refuse(CodeStale, "block %s, %s is at %s", pos, b.Author.Short(), head.Position)
		case past == b.Hash:
			return nil, m, refuse(CodeDuplicate, "block %s is in the ledger", pos)
		}
		return nil, m, fork(past)
	case known && pos.Epoch == head.Position.Epoch:
		if pos.Number != head.Position.Number+1 {
			return nil, m, refuse(CodeGap, "block %s, %s is at %s", pos, b.Author.Short(), head.Position)
		}
		if b.Prev != head.Hash {
			// The author has signed a successor of another block at the head.
			pos = head.Position
			return nil, m, fork(head.Hash)
		}
	case pos.Number != 1:
		return nil, m, refuse(CodeGap, "block %s, but epoch %d starts at number 1", pos, pos.Epoch)
	}
	if known && pos.Epoch > head.Position.Epoch {
		// Keep the hashes of this epoch and the one before.
		var old [][]byte
		st.Iterate(key(tabPast, b.Author[:]), func(k, _ []byte) bool {
			if binary.BigEndian.Uint32(k[1+len(b.Author):]) < head.Position.Epoch {
				old = append(old, k)
			}
			return true
		})
		for _, k := range old {
			st.Delete(k)
		}
	}
	if pos.Number > pastBlocks {
		st.Delete(pastKey(b.Author, chain.Position{Epoch: pos.Epoch, Number: pos.Number - pastBlocks}))
	}
	put(st, pastKey(b.Author, pos), b.Hash)
	put(st, HeadKey(b.Author), Head{Position: pos, Hash: b.Hash, Height: r.height})
	return b, m, nil
}

// record executes one record of a block by m.
func (r *run) record(st State, m *member, epoch uint32, rec chain.Record) error {
	switch rec.Kind {
	case chain.KindOffer:
		return body(rec, func(o chain.Offer) error { return r.offer(st, m, o) })
	case chain.KindMeter:
		return body(rec, func(b chain.MeterRecord) error { return r.meterRecord(st, m, epoch, b) })
	case chain.KindSessionOpen:
		return body(rec, func(b chain.SessionOpen) error { return r.sessionOpen(st, m, b) })
	case chain.KindSessionMeter:
		return body(rec, func(b chain.SessionMeter) error { return r.sessionMeter(st, m, b) })
	case chain.KindSessionStop:
		return body(rec, func(b chain.SessionStop) error { return r.sessionStop(st, m, b) })
	case chain.KindMeterCorrection:
		return body(rec, func(b chain.MeterCorrection) error { return r.correction(st, m, b) })
	}
	return refuse(CodeKind, "record kind %d", rec.Kind)
}

// body hands the record to fn in its type.
func body[T any](rec chain.Record, fn func(T) error) error {
	var b T
	if err := chain.Unmarshal(rec.Body, &b); err != nil {
		return refuse(CodeMalformed, "record of kind %d: %v", rec.Kind, err)
	}
	return fn(b)
}

// offer sets the standing limit of one side, from its first slot on but not
// for slots that are over.
func (r *run) offer(st State, m *member, o chain.Offer) error {
	if o.Side != chain.Buy && o.Side != chain.Sell {
		return refuse(CodeMalformed, "side %d", o.Side)
	}
	if o.From < 0 || o.To < o.From || o.To > maxSlot || o.Wh < 0 {
		return refuse(CodeRange, "slots %d..%d, %d Wh", o.From, o.To, o.Wh)
	}
	if err := checkPrice("limit", o.Limit); err != nil {
		return err
	}
	k := limitKey(m.Member.Device, o.Side)
	next := standingLimit{From: max(o.From, r.slot), Limit: o.Limit}
	if last, ok := get[standingLimit](st, k); ok {
		next.Set, next.Before = last.Set, last.Before
		if last.From <= r.slot {
			next.Set, next.Before = true, last.Limit
		}
	}
	put(st, k, next)
	return nil
}

func goodQuality(q meter.Quality) bool { return q >= meter.Good && q <= meter.Stale }

// begun reports whether slot s can have begun, by block time and what a clock
// may run ahead of it.
func (r *run) begun(s chain.Slot) bool {
	return s <= maxSlot && s.Start(r.rules.SlotSeconds) <= r.time+r.skew()
}

// trust tells why registers that moved by imp and exp since fromMs cannot be
// energy, or "" if they can.
func (r *run) trust(q meter.Quality, s chain.Slot, fromMs, atMs int64, maxPower int64, deltas ...meter.WattHour) string {
	limit := plausible(maxPower, fromMs, atMs)
	switch {
	case q != meter.Good:
		return "quality is " + q.String()
	case s < 0 || !r.begun(s):
		return fmt.Sprintf("slot %d is ahead of block time", s)
	}
	for _, d := range deltas {
		switch {
		case d < 0:
			return fmt.Sprintf("the register fell by %d Wh", -d)
		case d > limit:
			return fmt.Sprintf("%d Wh in %d ms is more than %d W can carry", d, max(atMs-fromMs, 0), maxPower)
		}
	}
	return ""
}

// plausible is the most energy in Wh that power in W can carry between two
// times, and one digit of the register. Beyond three years, and beyond what
// all members' connections could carry, it does not grow.
func plausible(power, fromMs, toMs int64) meter.WattHour {
	seconds := min((max(toMs-fromMs, 0)+999)/1000, 100_000_000)
	power = min(power, MaxMembers*maxMemberPower)
	return meter.WattHour(power*seconds/3600 + 1)
}

// meterRecord books the energy between two records of a meter.
//
// A well-formed record that follows the last one is always taken, even if its
// energy is not trusted: then the registers stay where they were, and the
// energy moves with the next record that is trusted.
func (r *run) meterRecord(st State, m *member, epoch uint32, rec chain.MeterRecord) error {
	device := m.Member.Device
	if !goodName(rec.Meter) || !goodQuality(rec.Quality) || rec.Role < chain.RoleSite || rec.Role > chain.RoleStorage || rec.Page == 0 {
		return refuse(CodeMalformed, "meter %q role %s quality %s page %d", rec.Meter, rec.Role, rec.Quality, rec.Page)
	}
	at := min(rec.At, r.time+r.skew())
	if at < m.JoinedMs {
		at = r.time // a clock that was never set
	}
	k := meterKey(device, rec.Meter)
	last, known := get[MeterView](st, k)
	grid, hasGrid := get[connection](st, key(tabGrid))
	if known {
		switch {
		case rec.Role != last.Role:
			return refuse(CodeRole, "meter %q is %s, not %s", rec.Meter, last.Role, rec.Role)
		case rec.Role == chain.RoleConnection && hasGrid && (grid.Device != device || grid.Meter != rec.Meter):
			return refuse(CodeRole, "another meter measures the grid connection")
		case epoch == last.Epoch && rec.Page == last.Page && rec.Import == last.Import && rec.Export == last.Export:
			return refuse(CodeDuplicate, "meter %q page %d", rec.Meter, rec.Page)
		case epoch == last.Epoch && rec.Page != last.Page+1:
			return refuse(CodeSequence, "meter %q page %d, the last is %d", rec.Meter, rec.Page, last.Page)
		case rec.Segment < last.Segment:
			return refuse(CodeSequence, "meter %q segment %d, the last is %d", rec.Meter, rec.Segment, last.Segment)
		}
	} else if err := r.newMeter(st, device, rec, hasGrid); err != nil {
		return err
	}

	fresh := !known || !last.Based || rec.Segment > last.Segment
	imp, exp := rec.Import-last.Import, rec.Export-last.Export
	next := last
	next.Role, next.Epoch, next.Page, next.Segment, next.Profile = rec.Role, epoch, rec.Page, rec.Segment, rec.Profile
	var doubt string
	power := r.bound(st, m, rec.Role)
	if fresh {
		imp, exp = 0, 0
		if doubt = r.trust(rec.Quality, rec.Slot, at, at, power); doubt == "" && (rec.Import < 0 || rec.Export < 0) {
			doubt = "negative register"
		}
		if known && rec.Segment > last.Segment {
			r.event("meter.segment", m.Member.Name, "%s: segment %d from %d/%d Wh", rec.Meter, rec.Segment, rec.Import, rec.Export)
			next.Based = false
		}
	} else {
		doubt = r.trust(rec.Quality, rec.Slot, last.AtMs, at, power, imp, exp)
		placeholder := last.Import == 0 && last.Export == 0 && imp >= 0 && exp >= 0
		if doubt != "" && (placeholder || last.Released && min(rec.Import, rec.Export) >= 0) && r.trust(rec.Quality, rec.Slot, last.AtMs, at, power) == "" {
			// Zeros after a reboot are a placeholder, not a reading; nor is a
			// register that was a slip, and is back after its release.
			r.event("meter.rebased", m.Member.Name, "%s: %d/%d Wh", rec.Meter, rec.Import, rec.Export)
			doubt, imp, exp, fresh = "", 0, 0, true
		}
	}
	if q, jumped := QuarantineOf(st, device, 0, rec.Meter); jumped {
		return r.await(st, m, &q, &rec, &last, &next, at, power, fresh)
	}
	if doubt != "" {
		if !fresh && r.jumps(rec.Quality, rec.Slot, last.AtMs, at, power, imp, exp) {
			return r.meterJump(st, m, &rec, &last, &next, at, power)
		}
		r.event("meter.suspect", m.Member.Name, "%s page %d: %s", rec.Meter, rec.Page, doubt)
		put(st, k, next)
		return nil
	}
	if rec.Role == chain.RoleCharger && !fresh && imp > 0 {
		r.loose(st, m, &rec, last.Slot, imp)
	}
	next.follow(&rec, at)
	put(st, k, next)

	// Only energy that lies within its slot may trade there.
	whole := !fresh && rec.Slot >= last.Slot && rec.Slot <= last.Slot+1 && max(imp, exp) <= plausible(power, 0, 2*r.rules.SlotSeconds*1000)
	return r.book(st, m, &rec, max(rec.Slot, last.Slot), imp, exp, whole, fresh)
}

// loose tells of energy through a charger that no session explains: all of it
// flowed after the slot in which the gateway's last session ended. The site's
// own meter has counted it, so its owner pays for it.
func (r *run) loose(st State, m *member, rec *chain.MeterRecord, since chain.Slot, wh meter.WattHour) {
	c := countersOf(st, m.Member.Device)
	open := false
	st.Iterate(key(tabConnector, m.Member.Device[:]), func(_, _ []byte) bool {
		open = true
		return false
	})
	if open || since < c.SessionSlot {
		return
	}
	c.Unauthorised += wh
	put(st, key(tabCounters, m.Member.Device[:]), c)
	r.event("charger.unauthorised", m.Member.Name, "%s: %d Wh in slots %d..%d without a session, borne by the site", rec.Meter, wh, since+1, rec.Slot)
}

// newMeter checks that a meter's role is free.
func (r *run) newMeter(st State, device chain.Key, rec chain.MeterRecord, hasGrid bool) error {
	count, site := 0, ""
	each(st, key(tabMeter, device[:]), func(k []byte, v MeterView) bool {
		if count++; v.Role == chain.RoleSite {
			site = string(k[len(device):])
		}
		return true
	})
	switch {
	case count >= maxMeters:
		return refuse(CodeLimit, "%d meters", count)
	case rec.Role == chain.RoleSite && site != "":
		return refuse(CodeRole, "the site meter is %q", site)
	case rec.Role == chain.RoleConnection && hasGrid:
		return refuse(CodeRole, "another meter measures the grid connection")
	}
	return nil
}

// bound is the power in W that a meter can possibly carry: its house's, or
// that of all houses at the connection to the public grid.
func (r *run) bound(st State, m *member, role chain.Role) int64 {
	if role != chain.RoleConnection {
		return m.Member.MaxPower
	}
	var sum int64
	each(st, key(tabMember), func(_ []byte, m member) bool {
		sum += m.Member.MaxPower
		return true
	})
	return sum
}

// book books metered energy to its slot if that is still open, and to the
// totals at the grid's price if it is late. whole tells that it lies within
// the slot; fresh that the record only set a base. What is late has the price
// of slot priced, which is not before the meter's last record: nobody picks a
// cheap hour of the past.
func (r *run) book(st State, m *member, rec *chain.MeterRecord, priced chain.Slot, imp, exp meter.WattHour, whole, fresh bool) error {
	device := m.Member.Device
	k := bucketKey(rec.Slot, device)
	b, _ := get[bucket](st, k)
	c := countersOf(st, device)
	open, late := rec.Slot >= r.clock.Next, false
	var rest lateEnergy // of meters other than the site's, which has its price
	switch rec.Role {
	case chain.RoleSite:
		late = !open || !whole
		if !late {
			b.Import += imp
			b.Export += exp
		}
		b.Reported, b.Late = true, b.Late || late
		c.Site, c.LastSlot = true, max(c.LastSlot, rec.Slot)
	case chain.RoleProduction:
		c.Production = c.Production || !fresh // a base tells nothing of the slot before it
		if open && whole {
			b.Produced += exp
		} else {
			rest.Produced = exp
		}
	case chain.RoleStorage:
		c.Storage = true
		if open && whole {
			b.Charged += imp
			b.Discharged += exp
		} else {
			rest.Charged, rest.Discharged = imp, exp
		}
	case chain.RoleConnection:
		if st.Get(key(tabGrid)) == nil {
			put(st, key(tabGrid), connection{Device: device, Meter: rec.Meter, From: rec.Slot + 1})
		}
		if open {
			b.Connection = true
			b.GridImport += imp
			b.GridExport += exp
		} else {
			rest.GridImport, rest.GridExport = imp, exp
		}
	default:
		return nil
	}
	put(st, key(tabCounters, device[:]), c)
	if open {
		put(st, k, b)
	}
	switch {
	case fresh:
		return nil
	case late:
		return r.bookLate(st, m, priced, imp, exp, whole)
	case rest != lateEnergy{}:
		r.event("meter.late", m.Member.Name, "slot %d: %s meter: %d Wh imported, %d Wh exported", priced, rec.Role, imp, exp)
		return r.late(st, m, priced, rest)
	}
	return nil
}

// pay moves the price of energy if the payer's balance covers it and tells
// whether it did.
func pay(st State, from, to chain.Account, price chain.NanoPerWh, wh meter.WattHour) bool {
	amount, err := chain.Cost(price, wh)
	if err != nil || amount > balance(st, from) || balance(st, to) > math.MaxInt64-amount {
		return false
	}
	if from != to {
		if err := move(st, from, to, amount); err != nil {
			panic(fmt.Sprintf("ledger: %d nano from %s to %s: %v", amount, from, to, err))
		}
	}
	return true
}

func countersOf(st State, device chain.Key) counters {
	c, _ := get[counters](st, key(tabCounters, device[:]))
	return c
}

// total adds to the energy totals.
func total(st State, d Energy) error {
	e := EnergyOf(st)
	for _, p := range []struct{ sum, n *meter.WattHour }{
		{&e.Produced, &d.Produced},
		{&e.Consumed, &d.Consumed},
		{&e.Traded, &d.Traded},
		{&e.GridImport, &d.GridImport},
		{&e.GridExport, &d.GridExport},
		{&e.Loss, &d.Loss},
	} {
		sum, err := chain.AddNano(chain.Nano(*p.sum), chain.Nano(*p.n))
		if err != nil {
			return refuse(CodeOverflow, "%d Wh and %d Wh", *p.sum, *p.n)
		}
		*p.sum = meter.WattHour(sum)
	}
	put(st, key(tabEnergy), e)
	return nil
}
