package profile

import (
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
	for _, w := range p.Writes {
		im[Register{drivers.HoldingRegisters, w.Address}] = 0
	}
	for i := range p.Points {
		if pt := &p.Points[i]; len(pt.Absent) > 0 {
			im.put(0, pt, pt.Absent[0])
		}
	}
	return im, nil
}

// Identity is the text of SunSpec model 1.
type Identity struct{ Manufacturer, Model, Version, Serial string }

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
			im.put(base, pt, absentRaw(pt.Type))
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

func (im Image) put(base uint16, pt *Point, raw uint64) {
	n := pt.Type.Registers()
	for i := range n {
		a := pt.Address + n - 1 - i // least significant first
		if pt.Words == LittleEndian {
			a = pt.Address + i
		}
		im[Register{pt.Function, base + a}] = uint16(raw)
		raw >>= 16
	}
}

// Encode writes points into im, which NewImage made. It is the inverse of
// Decode: what is read back differs from points by no more than half of what
// the registers can resolve, and encoding what was read back changes nothing.
// A SunSpec scale factor is raised where a value would not fit. On error
// nothing is changed.
func (p *Profile) Encode(points []meter.Point, im Image) error {
	list, base, err := p.mapIn(im)
	if err != nil {
		return err
	}
	tmp := maps.Clone(im)
	factors := map[uint16]bool{}
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

func (p *Profile) encodePoint(pt *Point, v int64, im Image, base uint16) error {
	if p.negates(pt) {
		if v == -v && v != 0 {
			return errRange
		}
		v = -v
	}
	scale, exp := pt.Scale, 0
	if pt.Factor != nil {
		exp = int(int16(im[Register{pt.Function, base + *pt.Factor}]))
	}
	if a := pt.Alt; a != nil && a.Mask != 0 && im[Register{pt.Function, base + a.Address}]&a.Mask != 0 {
		scale = a.Scale
	}
	raw, err := pt.Type.raw(v, scale, exp)
	if err != nil {
		return err
	}
	if notImplemented(pt.Type, raw) && p.SunSpec != nil || slices.Contains(pt.Absent, raw) {
		return errRange
	}
	im.put(base, pt, raw)
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
			if data, ok := im.Read(pt.Function, base+pt.Address, pt.Type.Registers()); ok {
				f, _ := im.Read(pt.Function, base+factor, 1)
				old.raw = []meter.RawBlock{
					{Function: uint8(pt.Function), Address: base + pt.Address, Data: data},
					{Function: uint8(pt.Function), Address: base + factor, Data: f},
				}
				if v, err := p.decodePoint(old, pt); err == nil {
					keep = append(keep, kept{pt, v.Value})
				}
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
