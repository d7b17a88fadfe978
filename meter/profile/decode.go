package profile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	return p.blocks(maxBlock, func(Block) bool { return true })
}

// Divide returns blocks of at most maxBlock registers that together read every
// register that whole, one of Blocks or of an earlier Divide, reads for a
// point. They have whole's function.
func (p *Profile) Divide(whole Block, maxBlock uint16) []Block {
	out := p.blocks(maxBlock, func(b Block) bool {
		return b.Slow == whole.Slow && (b.Function == whole.Function || whole.Function == p.Fallback) &&
			b.Address >= whole.Address && int(b.Address)+int(b.Count) <= int(whole.Address)+int(whole.Count)
	})
	for i := range out {
		out[i].Function = whole.Function
	}
	return out
}

// blocks plans the reads of those registers of points that are wanted.
func (p *Profile) blocks(maxBlock uint16, wanted func(Block) bool) []Block {
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
		alone := pt.Alone || p.Timing.Alone
		add := func(addr, n uint16) {
			if b := (Block{pt.Function, addr, n, pt.Slow}); wanted(b) {
				spans = append(spans, span{b, alone})
			}
		}
		for _, a := range pt.terms() {
			add(a, pt.Registers())
		}
		for _, a := range pt.Alt.registers() {
			add(a, 1)
		}
		for _, r := range pt.Ratios {
			add(r.Address, 1)
		}
	}
	slices.SortStableFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(boolInt(a.Slow), boolInt(b.Slow)), cmp.Compare(a.Function, b.Function), cmp.Compare(a.Address, b.Address), cmp.Compare(b.Count, a.Count))
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
		return p.decodeMap(registers{raw: raw, also: p.Fallback}, p.Points)
	}
	return p.decodeSunSpec(raw)
}

// registers looks registers up in blocks, relative to base. limit, if not 0,
// is the number of registers that belong to the map.
type registers struct {
	raw   []meter.RawBlock
	base  uint16
	limit int
	also  drivers.Function // the profile's fallback
}

func (r registers) get(fn drivers.Function, addr uint16) (uint16, bool) {
	if r.limit != 0 && int(addr) >= r.limit {
		return 0, false
	}
	a := int(r.base) + int(addr)
	for _, b := range r.raw {
		f := drivers.Function(b.Function)
		if i := a - int(b.Address); (f == fn || f == r.also) && i >= 0 && 2*i < len(b.Data) {
			return uint16(b.Data[2*i])<<8 | uint16(b.Data[2*i+1]), true
		}
	}
	return 0, false
}

// number puts the registers of the number of pt at addr together.
func (r registers) number(pt *Point, addr uint16) (raw uint64, ok bool) {
	n := pt.Type.Registers()
	for i := range n {
		a := addr + i
		if pt.Words == LittleEndian {
			a = addr + n - 1 - i
		}
		w, ok := r.get(pt.Function, a)
		if !ok {
			return 0, false
		}
		raw = raw<<16 | uint64(w)
	}
	return raw, true
}

// text returns the code of the text of pt.
func (r registers) text(pt *Point) (code int64, ok bool) {
	b := make([]byte, 0, 2*maxText)
	for i := range pt.Length {
		w, ok := r.get(pt.Function, pt.Address+i)
		if !ok {
			return 0, false
		}
		b = append(b, byte(w>>8), byte(w))
	}
	s, _, _ := strings.Cut(strings.TrimLeft(string(b), "\x00 "), "\x00")
	return Code(strings.TrimRight(s, " "))
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
	out := Value{meter.Point{Quantity: pt.Quantity, Phase: pt.Phase}, 1}
	if pt.Type == Text {
		code, ok := regs.text(pt)
		if !ok {
			return Value{}, errAbsent
		}
		out.Value = code
		return out, nil
	}
	n, err := p.value(regs, pt)
	if err != nil {
		return Value{}, err
	}
	scale, exp, err := regs.scale(pt)
	if err != nil {
		return Value{}, err
	}
	v, err := n.times(scale, exp)
	if err != nil {
		return Value{}, err
	}
	if a := pt.Alt; a != nil && a.Mask == 0 && v > a.Above {
		if scale, err = regs.multiply(a.Scale, pt); err != nil {
			return Value{}, err
		}
		if v, err = n.times(scale, exp); err != nil {
			return Value{}, err
		}
	}
	if p.negates(pt, regs) {
		if v == -v && v != 0 {
			return Value{}, errRange
		}
		v = -v
	}
	out.Value, out.Digit = v, pt.Type.digit(n, scale, exp)
	return out, nil
}

// value returns what the registers of pt hold: a number, some of its bits, or
// a sum of numbers.
func (p *Profile) value(regs registers, pt *Point) (number, error) {
	total := number{}
	for i, a := range pt.terms() {
		raw, ok := regs.number(pt, a)
		if !ok || p.marked(pt, raw) {
			return number{}, errAbsent
		}
		if pt.Mask != 0 {
			raw = raw >> pt.Shift & uint64(pt.Mask)
		}
		n, err := pt.Type.number(raw)
		if err != nil {
			return number{}, err
		}
		switch { // the terms of a sum are integers of at most 32 bits
		case len(pt.Sum) == 0:
			return n, nil
		case i < len(pt.Sum):
			total.mant += n.mant
		default:
			total.mant -= n.mant
		}
	}
	return total, nil
}

// scale returns what a value of pt is to be multiplied with: a fraction and a
// power of ten, as far as the registers decide about it.
func (r registers) scale(pt *Point) (s Scale, exp int, err error) {
	if pt.Factor != nil {
		f, ok := r.get(pt.Function, *pt.Factor)
		if !ok || f == 0x8000 {
			return Scale{}, 0, errAbsent
		}
		if exp = int(int16(f)); exp < -maxExponent || exp > maxExponent {
			return Scale{}, 0, fmt.Errorf("scale factor %d: want -%d..%d", exp, maxExponent, maxExponent)
		}
	}
	s = pt.Scale
	if a := pt.Alt; a != nil && a.Mask != 0 {
		applies, ok := r.applies(pt.Function, a)
		if !ok {
			return Scale{}, 0, errAbsent // the scale is not known
		}
		if applies {
			s = a.Scale
		}
	}
	s, err = r.multiply(s, pt)
	return s, exp, err
}

// applies reports whether the condition of a, which has a mask, is met; ok is
// false if a register that decides was not read.
func (r registers) applies(fn drivers.Function, a *Alt) (met, ok bool) {
	w, ok := r.get(fn, a.Address)
	if !ok {
		return false, false
	}
	if a.Since != nil {
		firmware, ok := r.get(fn, a.Since.Address)
		if !ok || firmware < a.Since.Least {
			return false, ok
		}
	}
	return w&a.Mask != 0, true
}

// multiply returns s times the ratios of pt.
func (r registers) multiply(s Scale, pt *Point) (Scale, error) {
	for _, ratio := range pt.Ratios {
		w, ok := r.get(pt.Function, ratio.Address)
		if !ok {
			return Scale{}, errAbsent
		}
		if w == 0 {
			return Scale{}, fmt.Errorf("the transformer ratio at register %d is 0: set it at the meter", ratio.Address)
		}
		var err error
		if s, err = s.by(int64(w), ratio.Scale); err != nil {
			return Scale{}, err
		}
	}
	return s, nil
}

// marked reports whether raw means "not available".
func (p *Profile) marked(pt *Point, raw uint64) bool {
	switch {
	case slices.Contains(pt.Absent, raw):
		return true
	case p.SunSpec != nil || p.Marks == MarkMin:
		return notImplemented(pt.Type, raw)
	case p.Marks == MarkMax:
		return !pt.Type.float() && raw == markMax(pt.Type)
	}
	return false
}

func markMax(t Type) uint64 {
	if t.signed() {
		return t.most() >> 1
	}
	return t.most()
}

// negates reports whether the device's sign of pt is the opposite of ours.
func (p *Profile) negates(pt *Point, regs registers) bool {
	sign := pt.Sign
	if a := pt.Alt; a != nil && a.Sign != "" {
		if met, _ := regs.applies(pt.Function, a); met {
			sign = a.Sign
		}
	}
	flow := pt.Quantity == meter.Power || pt.Quantity == meter.ReactivePower
	return (sign == SignExport) != (p.reversed && flow)
}
