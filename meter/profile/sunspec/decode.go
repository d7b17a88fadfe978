package sunspec

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// maxExponent bounds scale factors (SunSpec Device Information Model, type
// sunssf: -10..10).
const maxExponent = 10

// Value is one point that the device implements.
type Value struct {
	Path  string // "W", "module[2].DCW"; groups count from 1
	Point *Point
	// Int is an integer's value before its scale, and Exp the exponent of ten
	// to multiply with.
	Int   int64
	Exp   int
	Float float64 // of float types
	Text  string  // of texts and addresses
}

// String returns the value as people write it, scaled exactly, with symbols
// where they are known.
func (v Value) String() string {
	switch v.Point.Type {
	case String, IPv4, IPv6, EUI48:
		return v.Text
	case Float32:
		return strconv.FormatFloat(v.Float, 'g', -1, 32)
	case Float64:
		return strconv.FormatFloat(v.Float, 'g', -1, 64)
	case Bitfield16, Bitfield32, Bitfield64:
		return v.bits()
	}
	for _, s := range v.Point.Symbols {
		if s.Value == v.Int {
			return s.Name
		}
	}
	return decimal(v.Int, v.Exp)
}

func (v Value) bits() string {
	var names []string
	left := uint64(v.Int)
	for _, s := range v.Point.Symbols {
		if s.Value >= 0 && s.Value < 64 && left>>s.Value&1 == 1 {
			names, left = append(names, s.Name), left&^(1<<s.Value)
		}
	}
	if left != 0 || len(names) == 0 {
		names = append(names, fmt.Sprintf("0x%X", left))
	}
	return strings.Join(names, "|")
}

// decimal writes v x 10^exp.
func decimal(v int64, exp int) string {
	s := strconv.FormatInt(v, 10)
	if exp >= 0 {
		if v == 0 {
			return "0"
		}
		return s + strings.Repeat("0", exp)
	}
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	s = strings.Repeat("0", max(0, 1-exp-len(s))) + s
	cut := len(s) + exp
	return sign + s[:cut] + "." + s[cut:]
}

// Decode reads a model block: the registers from ID on, big-endian. Points
// that are not implemented, that lie beyond the block's own length or beyond
// what was read, and padding, are left out. An error says that the block is
// not of this model or that a scale factor cannot be one.
func (m *Model) Decode(block []byte) ([]Value, error) {
	if len(block) < 4 || len(block)%2 != 0 {
		return nil, fmt.Errorf("model %d: a block of %d bytes", m.ID, len(block))
	}
	if id := binary.BigEndian.Uint16(block); id != m.ID {
		return nil, fmt.Errorf("model %d: the block is of model %d", m.ID, id)
	}
	if l := 4 + 2*int(binary.BigEndian.Uint16(block[2:])); l < len(block) {
		block = block[:l]
	}
	d := decoder{block: block}
	if err := d.group(&m.Group, "", nil); err != nil {
		return nil, fmt.Errorf("model %d: %w", m.ID, err)
	}
	return d.out, nil
}

type decoder struct {
	block []byte
	at    int // bytes
	out   []Value
}

// frame is a group that is being read, and where its points are.
type frame struct {
	group *Group
	start int // bytes
	outer *frame
}

// word returns the register of a point by name, in the innermost group that
// has it.
func (d *decoder) word(f *frame, name string) (uint16, bool) {
	for ; f != nil; f = f.outer {
		at := f.start
		for i := range f.group.Points {
			p := &f.group.Points[i]
			if p.Name == name {
				if at+2 > len(d.block) {
					return 0, false
				}
				return binary.BigEndian.Uint16(d.block[at:]), true
			}
			at += 2 * p.Size
		}
	}
	return 0, false
}

func (d *decoder) group(g *Group, path string, outer *frame) error {
	f := &frame{g, d.at, outer}
	for i := range g.Points {
		p := &g.Points[i]
		from := d.at
		d.at += 2 * p.Size
		if d.at > len(d.block) {
			d.at = len(d.block)
			return nil // the device's model is shorter
		}
		if err := d.point(p, path, d.block[from:d.at], f); err != nil {
			return err
		}
	}
	for i := range g.Groups {
		s := &g.Groups[i]
		n, repeated := d.count(s, f)
		for k := 0; k < n && d.at < len(d.block); k++ {
			name := path + s.Name
			if repeated {
				name += "[" + strconv.Itoa(k+1) + "]"
			}
			if err := d.group(s, name+".", f); err != nil {
				return err
			}
		}
	}
	return nil
}

// count returns how often a group is there. More than the block holds does no
// harm: reading ends with the block, and every repetition takes registers.
func (d *decoder) count(g *Group, f *frame) (n int, repeated bool) {
	switch {
	case g.Rest:
		return math.MaxInt, true
	case g.CountBy != "":
		w, ok := d.word(f, g.CountBy)
		if !ok || w == 0xFFFF {
			return 0, true
		}
		return int(w), true
	case g.Count > 0:
		return g.Count, true
	}
	return 1, false
}

func (d *decoder) point(p *Point, path string, b []byte, f *frame) error {
	v := Value{Path: path + p.Name, Point: p, Exp: p.Exp}
	var ok bool
	switch p.Type {
	case Pad, SF:
		return nil
	case String:
		v.Text, ok = text(b)
	case IPv4:
		v.Text, ok = netip.AddrFrom4([4]byte(b)).String(), !zero(b)
	case IPv6:
		v.Text, ok = netip.AddrFrom16([16]byte(b)).String(), !zero(b)
	case EUI48:
		v.Text, ok = fmt.Sprintf("% X", b[2:]), !all(b, 0xFF)
	case Float32:
		v.Float = float64(math.Float32frombits(binary.BigEndian.Uint32(b)))
		ok = !math.IsNaN(v.Float)
	case Float64:
		v.Float = math.Float64frombits(binary.BigEndian.Uint64(b))
		ok = !math.IsNaN(v.Float)
	default:
		v.Int, ok = integer(p.Type, b)
	}
	if !ok {
		return nil
	}
	if p.Factor != "" {
		w, ok := d.word(f, p.Factor)
		if !ok || w == 0x8000 {
			return nil // the value's size is not known
		}
		if v.Exp = int(int16(w)); v.Exp < -maxExponent || v.Exp > maxExponent {
			return fmt.Errorf("%s: scale factor %s is %d: want -%d..%d", v.Path, p.Factor, v.Exp, maxExponent, maxExponent)
		}
	}
	d.out = append(d.out, v)
	return nil
}

// integer reads a number and whether it is implemented. An accumulator with
// its top bit set is negative: some inverters let it run below zero.
func integer(t Type, b []byte) (int64, bool) {
	bits := uint(8 * len(b))
	raw := uint64(0)
	for _, x := range b {
		raw = raw<<8 | uint64(x)
	}
	signed := int64(raw<<(64-bits)) >> (64 - bits)
	switch t {
	case Int16, Int32, Int64:
		return signed, raw != 1<<(bits-1)
	case Acc16, Acc32, Acc64:
		return signed, raw != 0
	case Bitfield16, Bitfield32, Bitfield64:
		return int64(raw), raw>>(bits-1) == 0 // the top bit means not implemented
	case Count:
		return int64(raw), raw != 0
	}
	return int64(raw), !all(b, 0xFF) && (bits < 64 || raw <= math.MaxInt64)
}

func zero(b []byte) bool { return all(b, 0) }

func all(b []byte, x byte) bool {
	for _, y := range b {
		if y != x {
			return false
		}
	}
	return true
}

// text returns the printable ASCII of b up to the first NUL, and whether there
// is any.
func text(b []byte) (string, bool) {
	s, _, _ := strings.Cut(string(b), "\x00")
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7E {
			return -1
		}
		return r
	}, s))
	return s, s != ""
}
