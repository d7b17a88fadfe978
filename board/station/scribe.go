package station

import (
	"context"
	"fmt"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/slot"
)

// savedVersion is the format version of what Store keeps.
const savedVersion = 1

// saved is what survives a crash.
type saved struct {
	Version  uint8          `cbor:"1,keyasint"`
	Chargers []savedCharger `cbor:"2,keyasint"`
	Meters   []savedMeter   `cbor:"3,keyasint"`
	// Pending records belong to this state and may not be in the outbox yet.
	Pending []chain.Record `cbor:"4,keyasint"`
}

type savedCharger struct {
	ID      uint8             `cbor:"1,keyasint"`
	Session session.Saved     `cbor:"2,keyasint"`
	Quote   chain.SignedQuote `cbor:"3,keyasint"`
	Seq     uint32            `cbor:"4,keyasint"`
	Begin   Register          `cbor:"5,keyasint"`
	Last    Register          `cbor:"6,keyasint"`
	Goal    *savedGoal        `cbor:"7,keyasint,omitempty"`
	Sale    *savedSale        `cbor:"8,keyasint,omitempty"`
}

type savedGoal struct {
	Wh       meter.WattHour  `cbor:"1,keyasint"`
	By       int64           `cbor:"2,keyasint"`
	MaxPrice chain.NanoPerWh `cbor:"3,keyasint"`
}

// savedSale is the slot in which a vehicle gives, and the export register at
// its begin.
type savedSale struct {
	Slot int64          `cbor:"1,keyasint"`
	Base meter.WattHour `cbor:"2,keyasint"`
}

type savedMeter struct {
	ID    string     `cbor:"1,keyasint"`
	State slot.State `cbor:"2,keyasint"`
}

func (s *saved) parse(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := chain.Unmarshal(b, s); err != nil {
		return fmt.Errorf("station state: %w", err)
	}
	if s.Version != savedVersion {
		return fmt.Errorf("station state: version %d, this program knows %d", s.Version, savedVersion)
	}
	return nil
}

// entry is one record on its way to the outbox.
type entry struct {
	record chain.Record
	leaves *slot.Leaves
	done   func()      // in the loop, after it is durable
	failed func(error) // in the loop; set: the entry is dropped instead of tried again
}

// job is one errand for the scribe.
type job struct {
	state   []byte
	entries []entry
	acks    []func(error)
	receipt func() error
}

// result is the errand's outcome.
type result struct {
	job job
	err error
}

// scribe does what may wait for a disk, one job at a time.
func (s *Station) scribe(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-s.jobs:
			s.results <- result{j, s.carryOut(ctx, j)} // cap 1, one job at a time: never blocks
		}
	}
}

func (s *Station) carryOut(ctx context.Context, j job) error {
	if j.receipt != nil {
		return j.receipt()
	}
	// Readings first: a state that is saved may be all that is left of their
	// record, and does not hold them.
	var records []chain.Record
	for _, e := range j.entries {
		records = append(records, e.record)
		if e.leaves == nil {
			continue
		}
		if err := s.cfg.Outbox.Keep(*e.leaves); err != nil {
			return fmt.Errorf("keep readings of %s: %w", e.leaves.Meter, err)
		}
	}
	if err := s.cfg.Store.Save(j.state); err != nil {
		return fmt.Errorf("save station state: %w", err)
	}
	if len(records) == 0 {
		return nil
	}
	if err := s.cfg.Outbox.Append(ctx, records); err != nil {
		return fmt.Errorf("append %d records: %w", len(records), err)
	}
	return nil
}

const (
	retryAfter = time.Second            // a failed job is tried again
	writeLimit = 15 * time.Second       // a write that takes longer counts as failed until it returns
	lingerFor  = 500 * time.Millisecond // slot records wait for those of the other meters
)

// enqueue takes a record that must become durable soon.
func (s *Station) enqueue(e entry, urgent bool) {
	s.queue = append(s.queue, e)
	due := s.now
	if !urgent {
		due += lingerFor
	}
	if len(s.queue) == 1 || due < s.due {
		s.due = due
	}
	s.dirty = true
}

// dispatch gives the scribe its next job if it is free.
func (s *Station) dispatch() {
	if s.busy || s.now < s.retry {
		return
	}
	var j job
	switch {
	case len(s.receipts) > 0:
		j.receipt = s.receipts[0].make
	case len(s.queue) > 0 && s.now >= s.due || s.dirty && len(s.queue) == 0 || len(s.acks) > 0:
		n := min(len(s.queue), MaxBatch)
		j.entries = s.queue[:n:n]
		j.state = chain.Marshal(s.save())
		j.acks, s.acks = s.acks, nil
		s.dirty = false
	default:
		return
	}
	s.busy, s.busyAt = true, s.now
	s.jobs <- j
}

// errSlow is the state of a disk that neither takes records nor refuses them.
var errSlow = fmt.Errorf("records have waited for more than %s to be written", writeLimit)

// hurry suspends charging when a write hangs. It has not failed: it is not
// tried again, and charging goes on when it returns.
func (s *Station) hurry() {
	if s.busy && s.now-s.busyAt > writeLimit && s.diskErr == nil {
		s.cfg.Log.Error("records cannot be written; nobody is charged", "err", errSlow)
		s.setDisk(errSlow)
	}
}

// written takes the scribe's result.
func (s *Station) written(r result) {
	s.busy = false
	for _, ack := range r.job.acks {
		ack(r.err)
	}
	if r.err != nil {
		s.retry = s.now + retryAfter
		s.dirty = true
		if s.diskErr == nil {
			s.cfg.Log.Error("records cannot be written; nobody is charged", "err", r.err)
		}
		s.setDisk(r.err)
		kept := s.queue[:0:0]
		for i, e := range s.queue {
			if i < len(r.job.entries) && e.failed != nil {
				e.failed(r.err)
				continue
			}
			kept = append(kept, e)
		}
		s.queue = kept
		return
	}
	s.setDisk(nil)
	if r.job.receipt != nil {
		next := s.receipts[0]
		s.receipts = s.receipts[1:]
		next.done()
		return
	}
	s.queue = s.queue[len(r.job.entries):]
	for _, e := range r.job.entries {
		if e.done != nil {
			e.done()
		}
	}
}

// setDisk tells every session whether records can be written. Until the
// records of the time before a restart are out, they cannot.
func (s *Station) setDisk(err error) {
	s.diskErr = err
	for _, c := range s.chargers {
		s.step(c, session.Journal{OK: err == nil && len(s.old) == 0})
	}
}

func (s *Station) save() saved {
	v := saved{Version: savedVersion, Chargers: []savedCharger{}, Meters: []savedMeter{}, Pending: []chain.Record{}}
	for _, c := range s.chargers {
		sc := savedCharger{ID: c.ID, Session: c.st.Save(), Quote: c.signed, Seq: c.seq, Begin: c.begin, Last: c.last}
		if g := c.plan.goal; c.plan.on {
			sc.Goal = &savedGoal{g.Wh, g.By, g.MaxPrice}
		}
		if at, base, ok := c.sale.state.Begun(); ok {
			sc.Sale = &savedSale{at, base}
		}
		switch {
		case c.closing: // the stop record among Pending is all that is left
			sc.Session = session.Saved{Fault: c.st.Fault}
		case c.opening:
			sc.Session.ID, sc.Session.MaxWh = c.quote.ID, c.quote.MaxWh
		}
		v.Chargers = append(v.Chargers, sc)
	}
	for _, m := range s.meters {
		v.Meters = append(v.Meters, savedMeter{m.ID, m.cut.State()})
	}
	for _, e := range s.queue {
		v.Pending = append(v.Pending, e.record)
	}
	return v
}

// receipt is an ended session whose receipt is to be made before the record
// that names it.
type receipt struct {
	make func() error
	done func()
}

// slotOf returns the slot that holds Unix time ms.
func (s *Station) slotOf(ms int64) chain.Slot { return chain.SlotAt(ms, s.cfg.SlotSeconds) }

// sessionMeter is the record of a register. The other one of the meter belongs
// in it if the vehicle may sell.
func sessionMeter(id chain.ID, seq uint32, slot chain.Slot, r Register, sells bool) chain.Record {
	m := chain.SessionMeter{Session: id, Seq: seq, Slot: slot, Register: r.Value, Quality: meter.Good, At: r.At}
	if sells {
		m.Export = r.Export
	}
	return chain.NewRecord(chain.KindSessionMeter, m)
}
