package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Identity is what a device says about who it is. Empty fields are not known.
type Identity struct{ Manufacturer, Model, Version, Serial string }

// IdentityPoint is where a device keeps one field of its identity.
type IdentityPoint struct {
	Field    string           `yaml:"field"` // manufacturer, model, version, serial
	Function drivers.Function `yaml:"function,omitempty"`
	Address  uint16           `yaml:"address"`
	Type     Type             `yaml:"type"` // an unsigned integer, or text
	Words    WordOrder        `yaml:"words,omitempty"`
	Length   uint16           `yaml:"length,omitempty"` // of a text, registers
}

// maxIdentity bounds a text of identity, in registers.
const maxIdentity = 32

func (id *Identity) field(name string) *string {
	switch name {
	case "manufacturer":
		return &id.Manufacturer
	case "model":
		return &id.Model
	case "version":
		return &id.Version
	case "serial":
		return &id.Serial
	}
	return nil
}

func (p *Profile) checkIdentity() error {
	seen := map[string]bool{}
	for i := range p.Identity {
		f := &p.Identity[i]
		here := fmt.Sprintf("identity[%d]", i)
		if new(Identity).field(f.Field) == nil || seen[f.Field] {
			return at(here+".field", "%q: want manufacturer, model, version or serial, each once", f.Field)
		}
		seen[f.Field] = true
		if p.SunSpec != nil {
			return at(here, "SunSpec devices say who they are in model 1")
		}
		if f.Function == 0 {
			f.Function = p.Function
		}
		if !readable(f.Function) {
			return at(here+".function", "%d: want 3 or 4", f.Function)
		}
		if !f.Words.valid() {
			return at(here+".words", "%q: want be or le", f.Words)
		}
		switch f.Type {
		case U16, U32, U64:
			if f.Length != 0 {
				return at(here+".length", "only a text has a length")
			}
		case Text:
			if f.Length < 1 || f.Length > maxIdentity {
				return at(here+".length", "%d: want 1..%d registers of text", f.Length, maxIdentity)
			}
		default:
			return at(here+".type", "%q: want u16, u32, u64 or text", f.Type)
		}
		if int(f.Address)+int(f.registers()) > 1<<16 {
			return at(here+".address", "%d: %d registers do not fit below 65536", f.Address, f.registers())
		}
	}
	return nil
}

func (f *IdentityPoint) registers() uint16 {
	if f.Type == Text {
		return f.Length
	}
	return f.Type.Registers()
}

// IdentityBlocks returns the reads that tell who a device with fixed addresses
// is and how its transformers are set. They are no part of a poll: read them
// when the device is commissioned and when it has been away. A device that
// refuses one does not tell that field.
func (p *Profile) IdentityBlocks() []Block {
	var out []Block
	add := func(b Block) {
		if !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	for i := range p.Identity {
		f := &p.Identity[i]
		add(Block{Function: f.Function, Address: f.Address, Count: f.registers()})
	}
	for i := range p.Points {
		for _, r := range p.Points[i].Ratios {
			add(Block{Function: p.Points[i].Function, Address: r.Address, Count: 1})
		}
	}
	slices.SortFunc(out, func(a, b Block) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Address, b.Address))
	})
	return out
}

// Identify reads the answers to IdentityBlocks; blocks may be missing. ratios
// names the transformer ratios in the order of their registers ("40, 10"),
// empty if the profile has none or they were not read.
func (p *Profile) Identify(raw []meter.RawBlock) (id Identity, ratios string) {
	regs := registers{raw: raw, also: p.Fallback}
	for i := range p.Identity {
		f := &p.Identity[i]
		*id.field(f.Field) = regs.identity(f)
	}
	var all []string
	for _, b := range p.IdentityBlocks() {
		ratio := slices.ContainsFunc(p.Points, func(pt Point) bool {
			return pt.Function == b.Function && slices.ContainsFunc(pt.Ratios, func(r Ratio) bool { return r.Address == b.Address })
		})
		if w, ok := regs.get(b.Function, b.Address); ok && ratio {
			all = append(all, strconv.Itoa(int(w)))
		}
	}
	return id, strings.Join(all, ", ")
}

// identity returns one field; empty if it was not read or says nothing.
func (r registers) identity(f *IdentityPoint) string {
	if f.Type == Text {
		b := make([]byte, 0, 2*maxIdentity)
		for i := range f.Length {
			w, ok := r.get(f.Function, f.Address+i)
			if !ok {
				return ""
			}
			b = append(b, byte(w>>8), byte(w))
		}
		return text(b)
	}
	raw, ok := r.number(&Point{Function: f.Function, Type: f.Type, Words: f.Words}, f.Address)
	if !ok || raw == 0 || raw == f.Type.most() {
		return ""
	}
	return strconv.FormatUint(raw, 10)
}

// put writes a field into an image. A number takes the digits of the text.
func (f *IdentityPoint) put(im Image, s string) {
	if f.Type == Text {
		b := make([]byte, 2*f.Length)
		copy(b, s)
		for i := range f.Length {
			im[Register{f.Function, f.Address + i}] = word(b, int(i))
		}
		return
	}
	digits := strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
	n, err := strconv.ParseUint(digits, 10, int(f.Type.bits()))
	if err != nil {
		n = 0 // not known
	}
	im.put(f.Address, &Point{Function: f.Function, Type: f.Type, Words: f.Words}, n)
}
