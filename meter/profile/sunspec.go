package profile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Limits of a model chain. A device beyond them is refused.
const (
	MaxModels         = 64
	MaxChainRegisters = 16384
)

const (
	sunspecMarkerHi uint16 = 0x5375 // "Su"
	sunspecMarkerLo uint16 = 0x6E53 // "nS"
	sunspecEnd      uint16 = 0xFFFF
	commonModel     uint16 = 1
	commonLength    uint16 = 66
)

// Chain is what a SunSpec device says it is made of.
type Chain struct {
	Base   uint16 // of the marker "SunS"
	Models []ChainModel
	// Identity from model 1; empty where the device has no text.
	Manufacturer, Model, Version, Serial string
}

// ChainModel is one block of a chain.
type ChainModel struct {
	ID      uint16
	Length  uint16 // L: registers after L itself, as the device says
	Address uint16 // of the ID register
}

// Walk finds a device's model chain, one read at a time:
//
//	base   +2        +2+2+L1      ...
//	"SunS" [1  L1 ..] [103 L2 ..] [0xFFFF 0]
//
// It is a step machine: while Next has a read, do it and Feed the answer.
//
//	w := NewWalk(bases)
//	for {
//		fn, addr, count, done := w.Next()
//		if done {
//			break
//		}
//		if err := w.Feed(read(fn, addr, count)); err != nil { ... }
//	}
//	chain, err := w.Chain()
//
// The device's L is believed, not the official model's: vendors shorten and
// pad. A model nobody knows is stepped over.
type Walk struct {
	bases []uint16
	state walkState
	next  uint16 // address of the next header
	chain Chain
	err   error
}

type walkState uint8

const (
	walkMarker walkState = iota
	walkHeader
	walkCommon
	walkDone
)

// NewWalk starts a walk that looks for the marker at each of bases in turn.
func NewWalk(bases []uint16) *Walk {
	w := &Walk{bases: bases}
	if len(bases) == 0 {
		w.state, w.err = walkDone, errors.New("sunspec: no base address")
	}
	return w
}

// Next returns the next read, or done.
func (w *Walk) Next() (fn drivers.Function, addr, count uint16, done bool) {
	fn = drivers.HoldingRegisters
	switch w.state {
	case walkMarker:
		return fn, w.bases[0], 2, false
	case walkHeader:
		return fn, w.next, 2, false
	case walkCommon:
		m := w.chain.Models[len(w.chain.Models)-1]
		return fn, m.Address + 2, min(m.Length, commonLength), false
	}
	return 0, 0, 0, true
}

// Feed takes the answer to the read that Next asked for. nil means that the
// device refused it (an exception): at a base the next one is tried, later on
// it ends the chain. A time-out is not an answer: start a new walk then.
func (w *Walk) Feed(data []byte) error {
	_, addr, count, done := w.Next()
	if done {
		return errors.New("sunspec walk is over")
	}
	if data != nil && len(data) != 2*int(count) {
		return w.fail(fmt.Errorf("sunspec: %d bytes from register %d: want %d", len(data), addr, 2*count))
	}
	switch w.state {
	case walkMarker:
		if data == nil || word(data, 0) != sunspecMarkerHi || word(data, 1) != sunspecMarkerLo {
			if w.bases = w.bases[1:]; len(w.bases) == 0 {
				return w.fail(errors.New("sunspec: no marker \"SunS\" at any base address"))
			}
			return nil
		}
		w.chain.Base = addr
		return w.advance(int(addr) + 2)
	case walkHeader:
		if data == nil || word(data, 0) == sunspecEnd {
			w.state = walkDone
			return nil
		}
		return w.header(ChainModel{ID: word(data, 0), Length: word(data, 1), Address: addr})
	default: // walkCommon
		if data != nil {
			w.identify(data)
		}
		m := w.chain.Models[len(w.chain.Models)-1]
		return w.advance(int(m.Address) + 2 + int(m.Length))
	}
}

func (w *Walk) header(m ChainModel) error {
	if m.ID == 0 {
		return w.fail(fmt.Errorf("sunspec: model id 0 at register %d: the chain is broken", m.Address))
	}
	if len(w.chain.Models) == MaxModels {
		return w.fail(fmt.Errorf("sunspec: more than %d models", MaxModels))
	}
	w.chain.Models = append(w.chain.Models, m)
	if m.ID == commonModel && m.Length > 0 && w.chain.Manufacturer == "" {
		w.state = walkCommon
		return nil
	}
	return w.advance(int(m.Address) + 2 + int(m.Length))
}

// advance goes to the header at addr.
func (w *Walk) advance(addr int) error {
	if addr > 1<<16-2 || addr-int(w.chain.Base) > MaxChainRegisters {
		return w.fail(fmt.Errorf("sunspec: the chain from register %d leads to %d: beyond register 65535 or longer than %d", w.chain.Base, addr, MaxChainRegisters))
	}
	w.next, w.state = uint16(addr), walkHeader
	return nil
}

func (w *Walk) fail(err error) error {
	w.state, w.err = walkDone, err
	return err
}

// identify reads the texts of model 1 (offsets without ID and L).
func (w *Walk) identify(body []byte) {
	for _, f := range []struct {
		to         *string
		off, count int // registers
	}{{&w.chain.Manufacturer, 0, 16}, {&w.chain.Model, 16, 16}, {&w.chain.Version, 40, 8}, {&w.chain.Serial, 48, 16}} {
		if len(body) < 2*(f.off+f.count) {
			return
		}
		*f.to = text(body[2*f.off : 2*(f.off+f.count)])
	}
}

// text returns the printable ASCII of b up to the first NUL.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7E {
			return -1
		}
		return r
	}, s))
}

// Chain returns what was found. It is an error before the walk is over.
func (w *Walk) Chain() (Chain, error) {
	if w.state != walkDone {
		return Chain{}, errors.New("sunspec walk is not over")
	}
	return w.chain, w.err
}

func word(b []byte, i int) uint16 { return uint16(b[2*i])<<8 | uint16(b[2*i+1]) }

// ChainBlocks returns the reads of a SunSpec profile on a device with chain c:
// of the first model of the profile that the device has, from its ID register
// to the last point, so that values, their scale factors and the model's own
// header arrive together. maxBlock is as in Blocks.
func (p *Profile) ChainBlocks(c Chain, maxBlock uint16) ([]Block, error) {
	if p.SunSpec == nil {
		return nil, fmt.Errorf("profile %s is not a SunSpec profile", p.ID)
	}
	m, at, ok := p.SunSpec.find(c)
	if !ok {
		return nil, fmt.Errorf("profile %s: the device has models %s, none of %s", p.ID, modelIDs(c), p.SunSpec.ids())
	}
	limit := p.Timing.maxBlock()
	if maxBlock != 0 {
		limit = min(limit, maxBlock)
	}
	var out []Block
	left, addr := min(m.extent(), int(at.Length)+2), int(at.Address)
	for left > 0 && addr < 1<<16 {
		n := min(left, int(limit))
		out = append(out, Block{Function: drivers.HoldingRegisters, Address: uint16(addr), Count: uint16(n)})
		left, addr = left-n, addr+n
	}
	return out, nil
}

// find returns the first model of s that c has.
func (s *SunSpec) find(c Chain) (*SunSpecModel, ChainModel, bool) {
	for i := range s.Models {
		for _, id := range s.Models[i].IDs {
			if j := slices.IndexFunc(c.Models, func(m ChainModel) bool { return m.ID == id }); j >= 0 {
				return &s.Models[i], c.Models[j], true
			}
		}
	}
	return nil, ChainModel{}, false
}

func (s *SunSpec) model(id uint16) *SunSpecModel {
	for i := range s.Models {
		if slices.Contains(s.Models[i].IDs, id) {
			return &s.Models[i]
		}
	}
	return nil
}

func (s *SunSpec) ids() string {
	var all []uint16
	for i := range s.Models {
		all = append(all, s.Models[i].IDs...)
	}
	return fmt.Sprint(all)
}

func modelIDs(c Chain) string {
	var all []uint16
	for _, m := range c.Models {
		all = append(all, m.ID)
	}
	return fmt.Sprint(all)
}

// extent returns how many registers from the ID on hold points or factors.
func (m *SunSpecModel) extent() int {
	end := 2
	for i := range m.Points {
		pt := &m.Points[i]
		end = max(end, int(pt.Address)+int(pt.Type.Registers()))
		if pt.Factor != nil {
			end = max(end, int(*pt.Factor)+1)
		}
	}
	return end
}

// decodeSunSpec finds the block that starts with the header of a model of the
// profile. The raw registers thus describe themselves: no chain is needed to
// decode a recorded reading again.
func (p *Profile) decodeSunSpec(raw []meter.RawBlock) ([]Value, error) {
	for _, b := range raw {
		if drivers.Function(b.Function) != drivers.HoldingRegisters || len(b.Data) < 4 {
			continue
		}
		m := p.SunSpec.model(word(b.Data, 0))
		if m == nil {
			continue
		}
		return p.decodeMap(registers{raw: raw, base: b.Address, limit: int(word(b.Data, 1)) + 2}, m.Points)
	}
	return nil, fmt.Errorf("profile %s: no block starts with a model of %s: the device's map has changed, walk it again", p.ID, p.SunSpec.ids())
}

// notImplemented reports whether raw is SunSpec's mark for "not implemented".
func notImplemented(t Type, raw uint64) bool {
	switch t {
	case S16, S32, S64:
		return raw == 1<<(t.bits()-1)
	case U16, U32, U64:
		return raw == 1<<t.bits()-1
	}
	return false // NaN and zero accumulators are absent by their type
}
