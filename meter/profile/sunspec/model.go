package sunspec

import (
	"errors"
	"fmt"
)

// Limits of a model. Beyond them it is refused.
const (
	MaxFileSize = 1 << 20 // bytes of a JSON file
	MaxPoints   = 4096    // with all groups, written once
	MaxDepth    = 8       // groups within one another
	maxString   = 512     // registers
	maxName     = 64      // bytes
	maxCount    = 1 << 16 // of a fixed repetition
)

// Type is how a point lies in registers.
type Type string

// Types of points. Bytes and registers are big-endian.
const (
	Int16      Type = "s16"
	Uint16     Type = "u16"
	Acc16      Type = "acc16"
	Enum16     Type = "enum16"
	Bitfield16 Type = "bits16"
	Int32      Type = "s32"
	Uint32     Type = "u32"
	Acc32      Type = "acc32"
	Enum32     Type = "enum32"
	Bitfield32 Type = "bits32"
	Int64      Type = "s64"
	Uint64     Type = "u64"
	Acc64      Type = "acc64"
	Bitfield64 Type = "bits64"
	Float32    Type = "f32"
	Float64    Type = "f64"
	String     Type = "str"
	IPv4       Type = "ipv4"
	IPv6       Type = "ipv6"
	EUI48      Type = "eui48"
	SF         Type = "sf"    // scale factor
	Count      Type = "count" // how often a group is repeated
	Pad        Type = "pad"
)

// types gives their official names and their length in registers; 0: any.
var types = map[Type]struct {
	official string
	size     int
}{
	Int16: {"int16", 1}, Uint16: {"uint16", 1}, Acc16: {"acc16", 1}, Enum16: {"enum16", 1}, Bitfield16: {"bitfield16", 1},
	Int32: {"int32", 2}, Uint32: {"uint32", 2}, Acc32: {"acc32", 2}, Enum32: {"enum32", 2}, Bitfield32: {"bitfield32", 2},
	Int64: {"int64", 4}, Uint64: {"uint64", 4}, Acc64: {"acc64", 4}, Bitfield64: {"bitfield64", 4},
	Float32: {"float32", 2}, Float64: {"float64", 4}, String: {"string", 0}, IPv4: {"ipaddr", 2}, IPv6: {"ipv6addr", 8},
	EUI48: {"eui48", 4}, SF: {"sunssf", 1}, Count: {"count", 1}, Pad: {"pad", 1},
}

// Point is one number or text of a group.
type Point struct {
	Name    string
	Type    Type
	Size    int    // registers
	Factor  string // name of its scale factor in this group or one around it, or empty
	Exp     int    // fixed exponent of ten, if there is no Factor
	Unit    string
	Symbols []Symbol // of enumerations and bit fields, only from JSON
}

// Symbol names a value of an enumeration, or a bit.
type Symbol struct {
	Name  string
	Value int64
}

// Group is points, then groups.
type Group struct {
	Name   string
	Points []Point
	Groups []Group
	// Repetition: by the value of a point, a fixed number of times, or until
	// the block ends if Rest. Otherwise the group is there once.
	CountBy string
	Count   int
	Rest    bool
}

// Model is one information model. The top group starts with ID and L.
type Model struct {
	ID uint16
	Group
}

// registers returns the length of g without its groups.
func (g *Group) registers() int {
	n := 0
	for i := range g.Points {
		n += g.Points[i].Size
	}
	return n
}

// Length returns L of the model with every repeated group left out: what its
// fixed part takes after ID and L.
func (m *Model) Length() int {
	return m.fixed() - 2
}

func (g *Group) fixed() int {
	n := g.registers()
	for i := range g.Groups {
		if s := &g.Groups[i]; s.CountBy == "" && !s.Rest {
			n += max(s.Count, 1) * s.fixed()
		}
	}
	return n
}

// Offset returns where a point of the top group lies, counted from ID.
func (m *Model) Offset(name string) (int, *Point, bool) {
	at := 0
	for i := range m.Points {
		if m.Points[i].Name == name {
			return at, &m.Points[i], true
		}
		at += m.Points[i].Size
	}
	return 0, nil, false
}

// check holds a model to the limits and its references to what is there.
func (m *Model) check() error {
	if m.ID == 0 || m.ID == 0xFFFF {
		return fmt.Errorf("model id %d is reserved", m.ID)
	}
	if len(m.Points) < 2 || m.Points[0].Name != "ID" || m.Points[1].Name != "L" || m.Points[0].Size != 1 || m.Points[1].Size != 1 {
		return errors.New("a model starts with ID and L")
	}
	total := 0
	return m.Group.check(nil, 1, &total)
}

func (g *Group) check(around []*Group, depth int, total *int) error {
	if depth > MaxDepth {
		return fmt.Errorf("groups more than %d deep", MaxDepth)
	}
	if len(g.Name) > maxName {
		return fmt.Errorf("name of %d bytes: want at most %d", len(g.Name), maxName)
	}
	if len(g.Points) == 0 && (g.CountBy != "" || g.Rest || g.Count > 1) {
		return fmt.Errorf("group %s is repeated and has no points", g.Name)
	}
	if g.Count < 0 || g.Count > maxCount {
		return fmt.Errorf("group %s: count %d: want at most %d", g.Name, g.Count, maxCount)
	}
	scope := append(around[:len(around):len(around)], g)
	names := map[string]bool{}
	for i := range g.Points {
		p := &g.Points[i]
		if *total++; *total > MaxPoints {
			return fmt.Errorf("more than %d points", MaxPoints)
		}
		t, ok := types[p.Type]
		if !ok {
			return fmt.Errorf("point %s: type %q is unknown", p.Name, p.Type)
		}
		if p.Name == "" || len(p.Name) > maxName || len(p.Unit) > maxName {
			return fmt.Errorf("point %q of unit %q: want 1..%d bytes", p.Name, p.Unit, maxName)
		}
		if names[p.Name] && p.Type != Pad {
			return fmt.Errorf("point %s is there twice", p.Name)
		}
		names[p.Name] = true
		if p.Size < 1 || p.Size > maxString || t.size != 0 && p.Size != t.size {
			return fmt.Errorf("point %s: %d registers for a %s", p.Name, p.Size, p.Type)
		}
		if p.Exp < -maxExponent || p.Exp > maxExponent {
			return fmt.Errorf("point %s: exponent %d: want -%d..%d", p.Name, p.Exp, maxExponent, maxExponent)
		}
		if p.Factor != "" {
			f := lookup(scope, p.Factor)
			if f == nil || f.Type != SF {
				return fmt.Errorf("point %s: there is no scale factor %q", p.Name, p.Factor)
			}
		}
	}
	if g.CountBy != "" {
		if f := lookup(around, g.CountBy); f == nil || f.Type != Uint16 && f.Type != Count {
			return fmt.Errorf("group %s: there is no count %q", g.Name, g.CountBy)
		}
	}
	for i := range g.Groups {
		if err := g.Groups[i].check(scope, depth+1, total); err != nil {
			return err
		}
	}
	return nil
}

// lookup finds a point by name in the innermost group that has it.
func lookup(scope []*Group, name string) *Point {
	for i := len(scope) - 1; i >= 0; i-- {
		for j := range scope[i].Points {
			if p := &scope[i].Points[j]; p.Name == name {
				return p
			}
		}
	}
	return nil
}
