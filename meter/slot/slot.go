// Package slot turns readings into records: at the end of each settlement
// interval it states what a meter's registers say, and commits to every
// reading that led there.
//
//	readings  ● ● ● ● ● ● ● ● ● ● ● ● ●
//	slots     ├───── 41 ─────┼───── 42 ─────┤
//	                         ▲              ▲
//	                         │ first good reading at or after the end:
//	                         │ MeterRecord{Slot: 41, registers, Merkle root}
//
// The record's registers are those of that reading, so energy between the
// slot's end and the reading is booked to the slot before. Nothing is lost by
// that or by a silent meter: the next record carries the whole difference.
//
// Only good readings move energy. All readings are committed to, so that one
// that was left out can be shown to have been.
//
// The package is pure; whoever uses it saves State before a record is used
// elsewhere, and continues with it after a restart.
package slot

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// MaxLeaves bounds the readings under one record. When more arrive, every
// second one is dropped, of those kept so far and of those to come, so that
// what remains spans the whole slot evenly; the reading that closes the slot
// is always among them.
const MaxLeaves = 1024

// Meter is what does not change about a meter.
type Meter struct {
	ID          string
	Role        chain.Role
	SlotSeconds int64
}

// State is what survives a restart. The zero value is a meter that has never
// made a record.
type State struct {
	Slot    chain.Slot     `cbor:"1,keyasint"` // of the last record
	Page    uint64         `cbor:"2,keyasint"` // of the last record
	Import  meter.WattHour `cbor:"3,keyasint"` // its registers
	Export  meter.WattHour `cbor:"4,keyasint"`
	Segment uint32         `cbor:"5,keyasint,omitempty"`
	At      int64          `cbor:"6,keyasint,omitempty"` // its reading, Unix ms
}

// Leaves are the canonical encodings of the readings under a record.
type Leaves struct {
	Meter string     `cbor:"1,keyasint"`
	Page  uint64     `cbor:"2,keyasint"` // of the record
	Root  chain.Hash `cbor:"3,keyasint"`
	Data  [][]byte   `cbor:"4,keyasint"` // chain.Marshal of meter.Reading, oldest first
}

// Cutter makes the records of one meter. It is used by one goroutine.
type Cutter struct {
	m      Meter
	s      State
	leaves [][]byte
	seen   int // readings since the last record
	stride int // one in so many is kept
}

// New continues from s.
func New(m Meter, s State) *Cutter {
	if m.SlotSeconds < 1 {
		panic(fmt.Sprintf("slot: %d seconds", m.SlotSeconds))
	}
	return &Cutter{m: m, s: s, stride: 1}
}

// State returns what has to be saved.
func (c *Cutter) State() State { return c.s }

// Swap starts a new segment: the meter was replaced and its registers begin
// anew.
func (c *Cutter) Swap() { c.s.Segment++; c.s.Import, c.s.Export = 0, 0 }

// Record is a slot's end.
type Record struct {
	chain.MeterRecord
	Leaves Leaves
}

// Read takes the next reading and returns a record when it ends a slot.
func (c *Cutter) Read(r meter.Reading) (Record, bool) {
	if r.Device != c.m.ID {
		panic(fmt.Sprintf("slot: reading of %q for meter %q", r.Device, c.m.ID))
	}
	leaf := chain.Marshal(r)
	kept := c.keep(leaf)
	imp, exp, ok := c.registers(&r)
	slot := chain.SlotAt(r.Wall, c.m.SlotSeconds) - 1
	if !ok || (c.s.Page > 0 && slot <= c.s.Slot) {
		return Record{}, false
	}
	if !kept {
		c.leaves = append(c.leaves, leaf)
	}
	c.s = State{Slot: slot, Page: c.s.Page + 1, Import: imp, Export: exp, Segment: c.s.Segment, At: r.Wall}
	root := chain.MerkleRoot(c.leaves)
	rec := Record{
		MeterRecord: chain.MeterRecord{
			Slot: slot, Meter: c.m.ID, Role: c.m.Role, Page: c.s.Page, Import: imp, Export: exp,
			Quality: meter.Good, At: r.Wall, Count: uint32(len(c.leaves)), Root: root,
			Profile: r.ProfileHash, Segment: c.s.Segment,
		},
		Leaves: Leaves{Meter: c.m.ID, Page: c.s.Page, Root: root, Data: c.leaves},
	}
	c.leaves, c.seen, c.stride = nil, 0, 1
	return rec, true
}

// registers returns the reading's registers if they may be booked: good,
// present, and not behind the last record's.
func (c *Cutter) registers(r *meter.Reading) (imp, exp meter.WattHour, ok bool) {
	if r.Quality != meter.Good {
		return 0, 0, false
	}
	i, hasImp := r.Import()
	e, hasExp := r.Export()
	if !hasImp && !hasExp {
		return 0, 0, false
	}
	imp, exp = i.WattHours(), e.WattHours()
	return imp, exp, imp >= c.s.Import && exp >= c.s.Export
}

// keep takes one reading in stride, and leaves room for the closing one.
func (c *Cutter) keep(leaf []byte) bool {
	if len(c.leaves) == MaxLeaves-1 {
		half := c.leaves[:0]
		for i := 0; i < len(c.leaves); i += 2 {
			half = append(half, c.leaves[i])
		}
		c.leaves, c.stride = half, 2*c.stride
	}
	in := c.seen%c.stride == 0
	c.seen++
	if in {
		c.leaves = append(c.leaves, leaf)
	}
	return in
}
