package profile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Image is a device's registers, for simulators. A register that is not in it
// does not exist. An Image is not safe for concurrent use.
type Image map[Register]uint16

// Register is the place of one register.
type Register struct {
	Function drivers.Function
	Address  uint16
}

// Read returns count registers from addr on, big-endian, or false if one of
// them does not exist.
func (im Image) Read(fn drivers.Function, addr, count uint16) ([]byte, bool) {
	out := make([]byte, 0, 2*int(count))
	for i := range int(count) {
		if int(addr)+i > 0xFFFF {
			return nil, false
		}
		w, ok := im[Register{fn, addr + uint16(i)}]
		if !ok {
			return nil, false
		}
		out = append(out, byte(w>>8), byte(w))
	}
	return out, true
}

// NewImage returns the registers of a device of this profile that measures
// nothing yet: every block the profile reads exists. Registers are 0 or, where
// the profile has a mark for it, not available.
//
// A SunSpec image has the chain 1, model, 0xFFFF at the first base. model picks
// one of the profile's models; 0 is the first.
func (p *Profile) NewImage(model uint16, id Identity) (Image, error) {
	im := Image{}
	if p.SunSpec != nil {
		return im, p.buildChain(im, model, id)
	}
	if model != 0 {
		return nil, fmt.Errorf("profile %s has no SunSpec models", p.ID)
	}
	for _, b := range p.Blocks(0) {
		for i := range b.Count {
			im[Register{b.Function, b.Address + i}] = 0
		}
	}
	for i := range p.Writes {
		p.Writes[i].place(im)
	}
	for i := range p.Identity {
		f := &p.Identity[i]
		f.put(im, *id.field(f.Field))
	}
	for i := range p.Points {
		pt := &p.Points[i]
		if mark, ok := p.mark(pt); ok {
			for _, a := range pt.terms() {
				im.put(a, pt, mark)
			}
		}
	}
	for i := range p.Points { // last: a ratio may be a point as well
		for _, r := range p.Points[i].Ratios {
			im[Register{p.Points[i].Function, r.Address}] = r.one()
		}
	}
	return im, nil
}

// mark returns a raw value that says that pt is not available.
func (p *Profile) mark(pt *Point) (uint64, bool) {
	switch {
	case len(pt.Absent) > 0:
		return pt.Absent[0], true
	case pt.Type == Text || pt.Type == Acc32 || pt.Mask != 0:
		return 0, false
	case p.Marks == MarkMin:
		return absentRaw(pt.Type), true
	case p.Marks == MarkMax:
		return markMax(pt.Type), true
	}
	return 0, false
}

func (p *Profile) buildChain(im Image, model uint16, id Identity) error {
	if model == 0 {
		model = p.SunSpec.Models[0].IDs[0]
	}
	m := p.SunSpec.model(model)
	if m == nil {
		return fmt.Errorf("profile %s has no model %d, it has %s", p.ID, model, p.SunSpec.ids())
	}
	addr := p.SunSpec.Bases[0]
	set := func(words ...uint16) {
		for _, w := range words {
			im[Register{drivers.HoldingRegisters, addr}] = w
			addr++
		}
	}
	text := func(s string, registers int) {
		b := make([]byte, 2*registers)
		copy(b, s)
		for i := range registers {
			set(word(b, i))
		}
	}
	set(sunspecMarkerHi, sunspecMarkerLo, commonModel, commonLength)
	text(id.Manufacturer, 16)
	text(id.Model, 16)
	text("", 8)
	text(id.Version, 8)
	text(id.Serial, 16)
	set(uint16(p.Serial.Unit), 0x8000) // device address, pad
	base := addr
	set(model, m.Length)
	for range m.Length {
		set(0)
	}
	set(sunspecEnd, 0)
	for i := range m.Points {
		pt := &m.Points[i]
		if pt.Type != Acc32 {
			im.put(base+pt.Address, pt, absentRaw(pt.Type))
		}
	}
	for a, e := range m.Factors {
		im[Register{drivers.HoldingRegisters, base + a}] = uint16(e)
	}
	return nil
}

func absentRaw(t Type) uint64 {
	if t.signed() {
		return 1 << (t.bits() - 1)
	}
	return 1<<t.bits() - 1 // also a NaN
}

// put writes the number of pt at addr.
func (im Image) put(addr uint16, pt *Point, raw uint64) {
	n := pt.Type.Registers()
	for i := range n {
		a := addr + n - 1 - i // least significant first
		if pt.Words == LittleEndian {
			a = addr + i
		}
		im[Register{pt.Function, a}] = uint16(raw)
		raw >>= 16
	}
}

// block returns registers that exist as they would be read.
func (im Image) block(fn drivers.Function, addr, count uint16) []meter.RawBlock {
	data, ok := im.Read(fn, addr, count)
	if !ok {
		return nil
	}
	return []meter.RawBlock{{Function: uint8(fn), Address: addr, Data: data}}
}

// Encode writes points into im, which NewImage made. It is the inverse of
// Decode: what is read back differs from points by no more than half of what
// the registers can resolve, and encoding what was read back changes nothing.
// A SunSpec scale factor is raised where a value would not fit. A sum is
// shared by its terms after they have been written themselves: where they do
// not add up to it, they give way. On error nothing is changed.
func (p *Profile) Encode(points []meter.Point, im Image) error {
	list, base, err := p.mapIn(im)
	if err != nil {
		return err
	}
	tmp := maps.Clone(im)
	factors := map[uint16]bool{}
	points = slices.Clone(points)
	slices.SortStableFunc(points, func(a, b meter.Point) int {
		return cmp.Compare(boolInt(isSum(list, a)), boolInt(isSum(list, b)))
	})
	for _, want := range points {
		i := slices.IndexFunc(list, func(pt Point) bool { return pt.Quantity == want.Quantity && pt.Phase == want.Phase })
		if i < 0 {
			return fmt.Errorf("profile %s has no point %s", p.ID, want.Name())
		}
		pt := &list[i]
		if pt.Factor != nil {
			factors[*pt.Factor] = true
		}
		for {
			err := p.encodePoint(pt, want.Value, tmp, base)
			if err == nil {
				break
			}
			if !errors.Is(err, errRange) || pt.Factor == nil || !p.raise(list, *pt.Factor, tmp, base) {
				return fmt.Errorf("profile %s: %s = %d: %w", p.ID, want.Name(), want.Value, err)
			}
		}
	}
	// A factor that went up took the digits of the points before it along:
	// write them again as they were asked for.
	for _, want := range points {
		i := slices.IndexFunc(list, func(pt Point) bool { return pt.Quantity == want.Quantity && pt.Phase == want.Phase })
		if pt := &list[i]; pt.Factor != nil && factors[*pt.Factor] {
			if err := p.encodePoint(pt, want.Value, tmp, base); err != nil {
				return fmt.Errorf("profile %s: %s = %d: %w", p.ID, want.Name(), want.Value, err)
			}
		}
	}
	maps.Copy(im, tmp)
	return nil
}

// isSum reports whether the device has no number of its own for a point.
func isSum(list []Point, want meter.Point) bool {
	return slices.ContainsFunc(list, func(pt Point) bool {
		return pt.Quantity == want.Quantity && pt.Phase == want.Phase && len(pt.Sum) > 0
	})
}

// mapIn returns the points of the image and the address they count from.
func (p *Profile) mapIn(im Image) ([]Point, uint16, error) {
	if p.SunSpec == nil {
		return p.Points, 0, nil
	}
	base := p.SunSpec.Bases[0] + 2 + 2 + commonLength
	if m := p.SunSpec.model(im[Register{drivers.HoldingRegisters, base}]); m != nil {
		return m.Points, base, nil
	}
	return nil, 0, fmt.Errorf("profile %s: the image was not made by NewImage", p.ID)
}

// HasIn reports whether the device with these registers has quantity q on
// phase: a SunSpec image is of one of the profile's models.
func (p *Profile) HasIn(im Image, q meter.Quantity, phase uint8) bool {
	list, _, err := p.mapIn(im)
	return err == nil && slices.ContainsFunc(list, func(pt Point) bool { return pt.Quantity == q && pt.Phase == phase })
}

func (p *Profile) encodePoint(pt *Point, v int64, im Image, base uint16) error {
	if pt.Type == Text {
		return im.putText(pt, v)
	}
	regs := registers{raw: im.conditions(pt, base), base: base}
	if p.negates(pt, regs) {
		if v == -v && v != 0 {
			return errRange
		}
		v = -v
	}
	scale, exp, err := regs.scale(pt)
	if err != nil {
		return err
	}
	if len(pt.Sum) > 0 {
		return p.encodeSum(pt, v, scale, im)
	}
	raw, err := pt.Type.raw(v, scale, exp)
	if err != nil {
		return err
	}
	if pt.Mask != 0 {
		if raw > uint64(pt.Mask) {
			return errRange
		}
		old, _ := registers{raw: im.block(pt.Function, pt.Address, pt.Registers())}.number(pt, pt.Address)
		raw = old&^(uint64(pt.Mask)<<pt.Shift) | raw<<pt.Shift
	}
	if p.marked(pt, raw) {
		return errRange
	}
	im.put(base+pt.Address, pt, raw)
	return nil
}

// conditions returns the registers that decide about scale and sign of pt.
func (im Image) conditions(pt *Point, base uint16) []meter.RawBlock {
	var raw []meter.RawBlock
	if pt.Factor != nil {
		raw = append(raw, im.block(pt.Function, base+*pt.Factor, 1)...)
	}
	for _, a := range pt.Alt.registers() {
		raw = append(raw, im.block(pt.Function, base+a, 1)...)
	}
	for _, r := range pt.Ratios {
		raw = append(raw, im.block(pt.Function, r.Address, 1)...)
	}
	return raw
}

// encodeSum shares v among the terms of pt.
func (p *Profile) encodeSum(pt *Point, v int64, scale Scale, im Image) error {
	want, err := number{mant: v}.over(scale)
	if err != nil {
		return err
	}
	have := func(a uint16) (int64, bool) {
		raw, ok := registers{raw: im.block(pt.Function, a, pt.Registers())}.number(pt, a)
		n, err := pt.Type.number(raw)
		return n.mant, ok && err == nil && !p.marked(pt, raw)
	}
	set := func(a uint16, v int64) error {
		raw, err := pt.Type.integer(v)
		if err != nil || p.marked(pt, raw) {
			return errRange
		}
		im.put(a, pt, raw)
		return nil
	}
	sum, known := int64(0), true
	for i, a := range pt.terms() {
		n, ok := have(a)
		if known = known && ok; i >= len(pt.Sum) {
			n = -n
		}
		sum += n
	}
	if known && sum == want {
		return nil
	}
	if d := want - sum; known && max(d, -d) <= int64(len(pt.Sum)) { // rounding
		if n, _ := have(pt.Sum[0]); set(pt.Sum[0], n+d) == nil {
			return nil
		}
	}
	to, rest := pt.Sum, pt.Less
	if want < 0 && len(pt.Less) > 0 {
		to, rest, want = pt.Less, pt.Sum, -want
	}
	for _, a := range rest {
		if err := set(a, 0); err != nil {
			return err
		}
	}
	share := want / int64(len(to))
	for i, a := range to {
		n := share
		if i == 0 {
			n += want % int64(len(to))
		}
		if err := set(a, n); err != nil {
			return err
		}
	}
	return nil
}

// putText writes the text with a code.
func (im Image) putText(pt *Point, code int64) error {
	s, err := textOf(code)
	if err != nil {
		return err
	}
	b := make([]byte, 2*pt.Length)
	if copy(b, s) < len(s) {
		return errRange
	}
	for i := range pt.Length {
		im[Register{pt.Function, pt.Address + i}] = word(b, int(i))
	}
	return nil
}

// raise increments a factor and writes the points that use it again.
func (p *Profile) raise(list []Point, factor uint16, im Image, base uint16) bool {
	r := Register{drivers.HoldingRegisters, base + factor}
	exp := int16(im[r])
	if exp >= maxExponent {
		return false
	}
	old := registers{raw: nil, base: base}
	type kept struct {
		pt *Point
		v  int64
	}
	var keep []kept
	for i := range list {
		if pt := &list[i]; pt.Factor != nil && *pt.Factor == factor {
			old.raw = slices.Concat(im.block(pt.Function, base+pt.Address, pt.Registers()), im.block(pt.Function, base+factor, 1))
			if v, err := p.decodePoint(old, pt); err == nil {
				keep = append(keep, kept{pt, v.Value})
			}
		}
	}
	im[r] = uint16(exp + 1)
	for _, k := range keep {
		if err := p.encodePoint(k.pt, k.v, im, base); err != nil {
			return false
		}
	}
	return true
}
