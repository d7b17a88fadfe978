package profile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// maxExponent is the largest SunSpec scale factor (SunSpec Device Information
// Model, type sunssf: -10..10).
const maxExponent = 10

// Value is a decoded point and the smallest step its registers can show there.
type Value struct {
	meter.Point
	Digit int64
}

// Blocks returns the reads of a profile with fixed addresses, ordered by
// function and address. maxBlock limits their length further than the profile
// does; 0 means no further limit. A number that is longer than maxBlock is
// read whole. It is nil for a SunSpec profile: see Chain.Blocks.
func (p *Profile) Blocks(maxBlock uint16) []Block {
	limit := p.Timing.maxBlock()
	if maxBlock != 0 {
		limit = min(limit, maxBlock)
	}
	type span struct {
		Block
		alone bool
	}
	spans := make([]span, 0, len(p.Points))
	for i := range p.Points {
		pt := &p.Points[i]
		spans = append(spans, span{Block{pt.Function, pt.Address, pt.Type.Registers(), pt.Slow}, pt.Alone})
		if a := pt.Alt; a != nil && a.Mask != 0 {
			spans = append(spans, span{Block{pt.Function, a.Address, 1, pt.Slow}, pt.Alone})
		}
	}
	slices.SortStableFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(boolInt(a.Slow), boolInt(b.Slow)), cmp.Compare(a.Function, b.Function), cmp.Compare(a.Address, b.Address))
	})
	var out []Block
	open := false // the last block may still grow
	for _, s := range spans {
		if n := len(out); n > 0 && out[n-1].Function == s.Function && out[n-1].Slow == s.Slow {
			last := &out[n-1]
			end := int(last.Address) + int(last.Count)
			length := max(end, int(s.Address)+int(s.Count)) - int(last.Address)
			if int(s.Address)+int(s.Count) <= end {
				continue // read already: two points share a condition register
			}
			if open && !s.alone && int(s.Address)-end <= int(p.Timing.Bridge) && length <= int(limit) {
				last.Count = uint16(length)
				continue
			}
		}
		out = append(out, s.Block)
		open = !s.alone
	}
	return out
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Decode turns the registers of one poll into points, in profile order. A
// point whose registers were not read, or which the device says it does not
// have (NaN, not implemented), is left out. Registers that no point wants are
// ignored. The error names the point and its register.
func (p *Profile) Decode(raw []meter.RawBlock) ([]meter.Point, error) {
	values, err := p.DecodeValues(raw)
	if err != nil {
		return nil, err
	}
	out := make([]meter.Point, len(values))
	for i, v := range values {
		out[i] = v.Point
	}
	return out, nil
}

// DecodeValues is Decode, with the step of each value.
func (p *Profile) DecodeValues(raw []meter.RawBlock) ([]Value, error) {
	for _, b := range raw {
		if n := len(b.Data); n == 0 || n%2 != 0 || n > 2*MaxBlock || int(b.Address)+n/2 > 1<<16 {
			return nil, fmt.Errorf("profile %s: block at register %d of function %d has %d bytes: want 2..%d, an even number, below register 65536", p.ID, b.Address, b.Function, n, 2*MaxBlock)
		}
	}
	if p.SunSpec == nil {
		return p.decodeMap(registers{raw: raw}, p.Points)
	}
	return p.decodeSunSpec(raw)
}

// registers looks registers up in blocks, relative to base. limit, if not 0,
// is the number of registers that belong to the map.
type registers struct {
	raw   []meter.RawBlock
	base  uint16
	limit int
}

func (r registers) get(fn drivers.Function, addr uint16) (uint16, bool) {
	if r.limit != 0 && int(addr) >= r.limit {
		return 0, false
	}
	a := int(r.base) + int(addr)
	for _, b := range r.raw {
		if i := a - int(b.Address); drivers.Function(b.Function) == fn && i >= 0 && 2*i < len(b.Data) {
			return uint16(b.Data[2*i])<<8 | uint16(b.Data[2*i+1]), true
		}
	}
	return 0, false
}

// number puts the registers of pt together.
func (r registers) number(pt *Point) (raw uint64, ok bool) {
	n := pt.Type.Registers()
	for i := range n {
		a := pt.Address + i
		if pt.Words == LittleEndian {
			a = pt.Address + n - 1 - i
		}
		w, ok := r.get(pt.Function, a)
		if !ok {
			return 0, false
		}
		raw = raw<<16 | uint64(w)
	}
	return raw, true
}

func (p *Profile) decodeMap(regs registers, points []Point) ([]Value, error) {
	out := make([]Value, 0, len(points))
	for i := range points {
		v, err := p.decodePoint(regs, &points[i])
		if errors.Is(err, errAbsent) {
			continue
		}
		if err != nil {
			pt := &points[i]
			return nil, fmt.Errorf("profile %s: %s at register %d: %w", p.ID, meter.PointName(pt.Quantity, pt.Phase), int(regs.base)+int(pt.Address), err)
		}
		out = append(out, v)
	}
	return out, nil
}

func (p *Profile) decodePoint(regs registers, pt *Point) (Value, error) {
	raw, ok := regs.number(pt)
	if !ok || slices.Contains(pt.Absent, raw) || p.SunSpec != nil && notImplemented(pt.Type, raw) {
		return Value{}, errAbsent
	}
	exp := 0
	if pt.Factor != nil {
		f, ok := regs.get(pt.Function, *pt.Factor)
		if !ok || f == 0x8000 {
			return Value{}, errAbsent
		}
		if exp = int(int16(f)); exp < -maxExponent || exp > maxExponent {
			return Value{}, fmt.Errorf("scale factor %d: want -%d..%d", exp, maxExponent, maxExponent)
		}
	}
	n, err := pt.Type.number(raw)
	if err != nil {
		return Value{}, err
	}
	scale := pt.Scale
	v, err := n.times(scale, exp)
	if err != nil {
		return Value{}, err
	}
	if a := pt.Alt; a != nil {
		use := a.Mask == 0 && v > a.Above
		if a.Mask != 0 {
			w, ok := regs.get(pt.Function, a.Address)
			if !ok {
				return Value{}, errAbsent // the scale is not known
			}
			use = w&a.Mask != 0
		}
		if use {
			scale = a.Scale
			if v, err = n.times(scale, exp); err != nil {
				return Value{}, err
			}
		}
	}
	if p.negates(pt) {
		if v == -v && v != 0 {
			return Value{}, errRange
		}
		v = -v
	}
	return Value{meter.Point{Quantity: pt.Quantity, Phase: pt.Phase, Value: v}, pt.Type.digit(raw, scale, exp)}, nil
}

// negates reports whether the device's sign of pt is the opposite of ours.
func (p *Profile) negates(pt *Point) bool {
	flow := pt.Quantity == meter.Power || pt.Quantity == meter.ReactivePower
	return (pt.Sign == SignExport) != (p.reversed && flow)
}
