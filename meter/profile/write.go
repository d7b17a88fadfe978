package profile

import (
	"fmt"
	"maps"
	"slices"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Coils is the function that reads single bits. Profiles have no points there,
// but some devices take commands there, and an Image keeps them.
const Coils drivers.Function = 1

// Command is one write, ready for the bus.
type Command struct {
	Function uint8 // 5, 6 or 16
	Address  uint16
	Values   []uint16 // one for functions 5 and 6
}

// Write returns the profile's command of that name.
func (p *Profile) Write(name string) (*Write, bool) {
	i := slices.IndexFunc(p.Writes, func(w Write) bool { return w.Name == name })
	if i < 0 {
		return nil, false
	}
	return &p.Writes[i], true
}

// Unit returns what the command's value counts: "mA", "ms", or nothing for
// switches and codes.
func (w *Write) Unit() string { return writeUnits[w.Name] }

// Conditions returns the registers on which the scale of the command depends.
// Encode and Decode need them.
func (w *Write) Conditions() (out []Block) {
	for _, a := range w.Alt.registers() {
		out = append(out, Block{Function: drivers.HoldingRegisters, Address: a, Count: 1})
	}
	return out
}

func (w *Write) scale(raw []meter.RawBlock) (Scale, error) {
	a := w.Alt
	if a == nil {
		return w.Scale, nil
	}
	met, ok := registers{raw: raw}.applies(drivers.HoldingRegisters, a)
	switch {
	case !ok:
		return Scale{}, fmt.Errorf("%s: its scale depends on registers %d, which were not read", w.Name, a.registers())
	case met:
		return a.Scale, nil
	}
	return w.Scale, nil
}

// Encode returns the command that sets value. A limit that the registers
// cannot express exactly is rounded towards zero: never more than was asked
// for. raw holds the register of Condition.
func (w *Write) Encode(value int64, raw []meter.RawBlock) (Command, error) {
	c := Command{Function: w.Function, Address: w.Address}
	bits := uint64(0)
	if w.Values != nil {
		v, ok := w.listed(value)
		if !ok {
			return Command{}, fmt.Errorf("%s: there is no %d", w.Name, value)
		}
		bits = uint64(v)
	} else if value == 0 && w.Zero != nil {
		bits = uint64(*w.Zero)
	} else {
		if !w.Takes(value) {
			return Command{}, fmt.Errorf("%s: %d %s: want %s%d..%d", w.Name, value, w.Unit(), map[bool]string{false: "0 or "}[w.Nonzero], w.Min, w.Max)
		}
		if w.Sign == SignExport {
			value = -value
		}
		s, err := w.scale(raw)
		if err != nil {
			return Command{}, err
		}
		if bits, err = w.Type.floor(value, s); err != nil {
			return Command{}, fmt.Errorf("%s: %d %s: %w", w.Name, value, w.Unit(), err)
		}
	}
	n := w.Type.Registers()
	for i := range n {
		c.Values = append(c.Values, uint16(bits>>(16*(n-1-i))))
	}
	if w.Words == LittleEndian {
		slices.Reverse(c.Values)
	}
	return c, nil
}

// Takes reports whether value is one of the command.
func (w *Write) Takes(value int64) bool {
	if w.Values != nil {
		_, ok := w.listed(value)
		return ok
	}
	if value == 0 {
		return !w.Nonzero
	}
	return value >= w.Min && value <= w.Max
}

// listed returns the raw number of a listed value: of a current the largest
// that is not above it.
func (w *Write) listed(value int64) (uint32, bool) {
	raw, ok := w.Values[value]
	if ok || w.Unit() != "mA" {
		return raw, ok
	}
	keys := slices.Sorted(maps.Keys(w.Values))
	i, _ := slices.BinarySearch(keys, value)
	if i == 0 || value > 0 && keys[i-1] == 0 {
		return 0, false // nothing between 0 and the least current
	}
	return w.Values[keys[i-1]], true
}

// Decode is the inverse of Encode: the value that values, written from addr
// on, set. ok is false if they are not this command.
func (w *Write) Decode(addr uint16, values []uint16, raw []meter.RawBlock) (value int64, ok bool) {
	n, first := int(w.Type.Registers()), int(w.Address)-int(addr)
	if first < 0 || first+n > len(values) {
		return 0, false
	}
	words := slices.Clone(values[first : first+n])
	if w.Words == LittleEndian {
		slices.Reverse(words)
	}
	bits := uint64(0)
	for _, v := range words {
		bits = bits<<16 | uint64(v)
	}
	if w.Values != nil {
		for v, r := range w.Values {
			if uint64(r) == bits {
				return v, true
			}
		}
		return 0, false
	}
	if w.Zero != nil && bits == uint64(*w.Zero) {
		return 0, true
	}
	s, err := w.scale(raw)
	if err != nil {
		return 0, false
	}
	num, err := w.Type.number(bits)
	if err != nil {
		return 0, false
	}
	v, err := num.times(s, 0)
	if w.Sign == SignExport {
		v = -v
	}
	return v, err == nil
}

// ReadBlock returns the read that tells what is set, if the device tells.
func (w *Write) ReadBlock() (Block, bool) {
	if w.Read == nil {
		return Block{}, false
	}
	return Block{Function: w.Read.Function, Address: w.Read.Address, Count: w.Read.Type.Registers()}, true
}

// DecodeRead returns what is set from the answer to ReadBlock. ok is false if
// it was not read or is none of the listed values.
func (w *Write) DecodeRead(raw []meter.RawBlock) (value int64, ok bool) {
	if w.Read == nil {
		return 0, false
	}
	back := Write{Name: w.Name, Address: w.Read.Address, Type: w.Read.Type, Words: w.Words, Scale: w.Read.Scale, Sign: w.Sign, Values: w.readValues(), Zero: w.Zero}
	if back.Scale == (Scale{}) {
		back.Scale = w.Scale
	}
	regs := registers{raw: raw}
	var words []uint16
	for i := range back.Type.Registers() {
		v, ok := regs.get(w.Read.Function, w.Read.Address+i)
		if !ok {
			return 0, false
		}
		words = append(words, v)
	}
	return back.Decode(back.Address, words, nil)
}

// readValues are the listed values as they are read.
func (w *Write) readValues() map[int64]uint32 {
	if w.Read.Values != nil {
		return w.Read.Values
	}
	return w.Values
}

// Reflect makes a simulated device say that value is set. It reports whether
// the device says so at all.
func (w *Write) Reflect(im Image, value int64) bool {
	if w.Read == nil {
		return false
	}
	s := w.Read.Scale
	if s == (Scale{}) {
		s = w.Scale
	}
	signed := value
	if w.Sign == SignExport {
		signed = -value
	}
	bits, err := w.Read.Type.raw(signed, s, 0)
	if v, listed := w.readValues()[value]; listed {
		bits, err = uint64(v), nil
	} else if value == 0 && w.Zero != nil {
		bits, err = uint64(*w.Zero), nil
	}
	if err != nil {
		return false
	}
	im.put(w.Read.Address, &Point{Function: w.Read.Function, Type: w.Read.Type, Words: w.Words}, bits)
	return true
}

// Registers returns where the command is written.
func (w *Write) Registers() []Register {
	fn := drivers.HoldingRegisters
	if w.Function == writeCoil {
		fn = Coils
	}
	var out []Register
	for i := range w.Type.Registers() {
		out = append(out, Register{fn, w.Address + i})
	}
	return out
}

// place makes the registers of the command exist, unless they do.
func (w *Write) place(im Image) {
	regs := w.Registers()
	if b, ok := w.ReadBlock(); ok {
		for i := range b.Count {
			regs = append(regs, Register{b.Function, b.Address + i})
		}
	}
	for _, a := range w.Alt.registers() {
		regs = append(regs, Register{drivers.HoldingRegisters, a})
	}
	for _, r := range regs {
		if _, ok := im[r]; !ok {
			im[r] = 0
		}
	}
}
