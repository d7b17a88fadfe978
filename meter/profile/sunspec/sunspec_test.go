package sunspec_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/joulegate/joulegate/meter/profile/sunspec"
)

func block(words ...uint16) []byte {
	var b []byte
	for _, w := range words {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

func decode(t *testing.T, id uint16, b []byte) map[string]string {
	t.Helper()
	m, ok := sunspec.Builtin().Model(id)
	if !ok {
		t.Fatalf("no model %d", id)
	}
	values, err := m.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, v := range values {
		if _, twice := out[v.Path]; twice {
			t.Errorf("%s is there twice", v.Path)
		}
		out[v.Path] = v.String()
		if v.Point.Unit != "" {
			out[v.Path] += " " + v.Point.Unit
		}
	}
	return out
}

// absent returns a block of a model whose points are all not implemented.
func absent(id uint16) []uint16 {
	m, _ := sunspec.Builtin().Model(id)
	w := []uint16{id, uint16(m.Length())}
	for _, p := range m.Points[2:] {
		first := uint16(0xFFFF)
		switch p.Type {
		case sunspec.Int16, sunspec.Int32, sunspec.Int64, sunspec.SF:
			first = 0x8000
		case sunspec.Acc16, sunspec.Acc32, sunspec.Acc64, sunspec.String, sunspec.Count, sunspec.IPv4, sunspec.IPv6:
			first = 0
		}
		w = append(w, first)
		for range p.Size - 1 {
			if first == 0x8000 {
				first = 0
			}
			w = append(w, first)
		}
	}
	return w
}

func TestBuiltinModels(t *testing.T) {
	c := sunspec.Builtin()
	want := []uint16{1, 101, 102, 103, 111, 112, 113, 120, 121, 122, 123, 124, 160, 201, 202, 203, 204, 211, 212, 213, 214}
	for id := uint16(701); id <= 714; id++ {
		want = append(want, id)
	}
	if want = append(want, 802); !slices.Equal(c.IDs(), want) {
		t.Fatalf("models %v, want %v", c.IDs(), want)
	}
	for _, id := range want {
		if got := decode(t, id, block(absent(id)...)); len(got) != 2 {
			t.Errorf("model %d without any point: %v", id, got)
		}
	}
	for id, length := range map[uint16]int{103: 50, 113: 60, 203: 105, 213: 124, 123: 24} {
		if m, _ := c.Model(id); m.Length() != length {
			t.Errorf("model %d has %d registers, want %d", id, m.Length(), length)
		}
	}
	// Where installers' notes and other programs have them, counted from ID.
	for _, c := range []struct {
		id   uint16
		name string
		at   int
	}{{103, "W", 14}, {103, "WH", 24}, {103, "St", 38}, {113, "W", 22}, {113, "WH", 32}, {203, "TotWhImp", 46}, {213, "TotWhExp", 60}, {123, "WMaxLimPct", 5}, {124, "ChaState", 8}, {160, "N", 8}, {713, "SoC", 4}, {802, "SoC", 11}, {802, "W", 47}, {704, "WMaxLimPct", 15}} {
		m, _ := sunspec.Builtin().Model(c.id)
		if at, _, ok := m.Offset(c.name); !ok || at != c.at {
			t.Errorf("model %d: %s at %d, want %d", c.id, c.name, at, c.at)
		}
	}
}

func TestDecode(t *testing.T) {
	with := func(id uint16, set map[int]uint16) []uint16 {
		w := absent(id)
		for at, v := range set {
			w[at] = v
		}
		return w
	}
	has := func(got map[string]string, want map[string]string) {
		t.Helper()
		want["ID"], want["L"] = got["ID"], got["L"]
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("decoded %v, want %v", got, want)
		}
	}
	has(decode(t, 103, block(with(103, map[int]uint16{14: 0xFFFB, 15: 1, 2: 1234, 6: 0xFFFE, 24: 1, 25: 2, 26: 0, 38: 4})...)),
		map[string]string{"W": "-50 W", "A": "12.34 A", "WH": "65538 Wh", "St": "4"})
	// A value whose scale factor is not there has no size.
	has(decode(t, 103, block(with(103, map[int]uint16{14: 5})...)), map[string]string{})
	// An accumulator below zero.
	has(decode(t, 103, block(with(103, map[int]uint16{24: 0xFFFF, 25: 0xFF9C, 26: 0})...)), map[string]string{"WH": "-100 Wh"})
	half := math.Float32bits(0.5)
	has(decode(t, 113, block(with(113, map[int]uint16{22: uint16(half >> 16), 23: uint16(half)})...)), map[string]string{"W": "0.5 W"})
	// A device's own length ends the model, whatever was read along.
	short := with(103, map[int]uint16{2: 1234, 6: 0xFFFE, 14: 7, 15: 0})
	short[1] = 6
	has(decode(t, 103, block(short...)), map[string]string{"A": "12.34 A"})

	// Repeated to the end of the block, with scale factors outside of it.
	mppt := with(160, map[int]uint16{2: 0xFFFF, 4: 0xFFFE, 8: 2})
	for _, w := range []uint16{1500, 3000} {
		mod := make([]uint16, 20)
		mod[0], mod[9], mod[10], mod[11], mod[16], mod[17] = 1, 1234, 0xFFFF, w, 0x8000, 0xFFFF
		mod[14], mod[15] = 0xFFFF, 0xFFFF
		mod[18], mod[19] = 0xFFFF, 0xFFFF
		mppt = append(mppt, mod...)
	}
	mppt[1] = uint16(len(mppt) - 2)
	has(decode(t, 160, block(mppt...)), map[string]string{
		"N": "2", "module[1].ID": "1", "module[1].DCA": "123.4 A", "module[1].DCW": "15.00 W", "module[2].ID": "1", "module[2].DCA": "123.4 A", "module[2].DCW": "30.00 W",
	})
	// A count that says more than there is ends with the block.
	m, _ := sunspec.Builtin().Model(705)
	volt := []uint16{705, 0}
	for _, p := range m.Points[2:] {
		v := uint16(0)
		if p.Name == "NCrv" || p.Name == "NPt" {
			v = 60_000
		}
		for range p.Size {
			volt = append(volt, v)
		}
	}
	for range 30 {
		volt = append(volt, 1)
	}
	volt[1] = uint16(len(volt) - 2)
	if got := decode(t, 705, block(volt...)); got["Crv[1].Pt[2].V"] == "" || len(got) > len(volt) {
		t.Errorf("%v", got)
	}

	one := append([]byte{0, 1, 0, 66}, []byte("ACME GmbH\x00junk")...)
	one = append(one, make([]byte, 4+2*66-len(one))...)
	if got := decode(t, 1, one); got["Mn"] != "ACME GmbH" {
		t.Errorf("%v", got)
	}
	inv, _ := sunspec.Builtin().Model(103)
	for name, b := range map[string][]byte{
		"empty": nil, "odd": {0, 103, 0}, "another model": block(absent(101)...),
		"wild factor": block(with(103, map[int]uint16{14: 5, 15: 11})...),
	} {
		if v, err := inv.Decode(b); err == nil || !strings.Contains(err.Error(), "model 103") {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
}

const modelJSON = `{"id": 64000, "group": {"name": "acme", "points": [
 {"name": "ID", "type": "uint16", "size": 1}, {"name": "L", "type": "uint16", "size": 1},
 {"name": "T", "type": "int16", "size": 1, "sf": -1, "units": "C"},
 {"name": "Mode", "type": "enum16", "size": 1, "symbols": [{"name": "ECO", "value": 3}]},
 {"name": "Evt", "type": "bitfield16", "size": 1, "symbols": [{"name": "HOT", "value": 0}, {"name": "WET", "value": 2}]}]}}`

func TestLoad(t *testing.T) {
	c, err := sunspec.Load(fstest.MapFS{
		"model_64000.json": {Data: []byte(modelJSON)}, "model_64001.json": {Data: []byte("{")}, "model_2.json": {Data: []byte(`{"id": 2, "group": {}}`)},
		"schema.json": {Data: []byte("no model")},
	})
	if err == nil || !strings.Contains(err.Error(), "model_64001.json") || !strings.Contains(err.Error(), "model_2.json") || strings.Contains(err.Error(), "schema") {
		t.Errorf("the wrong files are not named: %v", err)
	}
	if _, ok := c.Model(103); !ok {
		t.Error("the built-in models are gone")
	}
	if _, ok := c.Model(2); ok {
		t.Error("a wrong model was taken")
	}
	m, ok := c.Model(64000)
	if !ok {
		t.Fatal("the own model is not there")
	}
	values, err := m.Decode(block(64000, 3, 0xFFF6, 3, 0x0F))
	if err != nil || fmt.Sprint(values[2:]) != "[-1.0 ECO HOT|WET|0xA]" {
		t.Errorf("%v, %v", values, err)
	}
}

func TestParseJSONErrors(t *testing.T) {
	deep := strings.Repeat(`{"name": "g", "points": [{"name": "P", "type": "pad", "size": 1}], "groups": [`, 20) + strings.Repeat("]}", 20)
	for name, c := range map[string]struct{ old, new, want string }{
		"not json":       {"{\"id\"", "{id", "x.json"},
		"id":             {"64000", "65535", "65534"},
		"no header":      {`{"name": "L", "type": "uint16", "size": 1},`, "", "starts with ID and L"},
		"type":           {"enum16", "enum8", `type "enum8"`},
		"size":           {`"int16", "size": 1`, `"int16", "size": 2`, "2 registers for a s16"},
		"factor":         {"-1", `"T_SF"`, `no scale factor "T_SF"`},
		"exponent":       {"-1", "-11", "-11"},
		"twice":          {`"Mode"`, `"T"`, "T is there twice"},
		"deep":           {`"value": 2}]}]}`, `"value": 2}]}], "groups": [` + deep + `]}`, "deep"},
		"unknown count":  {`"value": 2}]}]}`, `"value": 2}]}], "groups": [{"name": "g", "count": "N", "points": [{"name": "P", "type": "pad", "size": 1}]}]}`, `no count "N"`},
		"endless":        {`"value": 2}]}]}`, `"value": 2}]}], "groups": [{"name": "g", "count": 0}]}`, "has no points"},
		"negative count": {`"value": 2}]}]}`, `"value": 2}]}], "groups": [{"name": "g", "count": -1, "points": [{"name": "P", "type": "pad", "size": 1}]}]}`, "count -1"},
	} {
		if !strings.Contains(modelJSON, c.old) {
			t.Fatalf("%s: %q is not in the model", name, c.old)
		}
		if _, err := sunspec.ParseJSON("x.json", []byte(strings.Replace(modelJSON, c.old, c.new, 1))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// The compact table against the official models, and all of them readable.
func TestOfficialModels(t *testing.T) {
	dir := os.Getenv("JOULEGATE_TESTDATA")
	if dir == "" {
		t.Skip("JOULEGATE_TESTDATA is not set: the official SunSpec models (sunspec/json) are not there to compare with")
	}
	all, err := sunspec.Load(os.DirFS(filepath.Join(dir, "sunspec", "json")))
	if err != nil {
		t.Errorf("official models that cannot be read: %v", err)
	}
	if len(all.IDs()) < 100 {
		t.Errorf("%d models", len(all.IDs()))
	}
	ours := sunspec.Builtin()
	for _, id := range ours.IDs() {
		m, _ := ours.Model(id)
		o, _ := all.Model(id)
		forget(&o.Group)
		o.Name = m.Name // models with equal points share a block
		if !reflect.DeepEqual(m, o) {
			t.Errorf("model %d:\n%+v\nofficial:\n%+v", id, m, o)
		}
	}
}

// forget drops what the table has not, and writes units with single blanks.
func forget(g *sunspec.Group) {
	for i := range g.Points {
		g.Points[i].Symbols = nil
		g.Points[i].Unit = strings.Join(strings.Fields(g.Points[i].Unit), " ")
	}
	for i := range g.Groups {
		forget(&g.Groups[i])
	}
}

// Whatever a device sends: an error, or points inside the block, once each.
func FuzzDecode(f *testing.F) {
	c := sunspec.Builtin()
	ids := c.IDs()
	for i, id := range ids {
		f.Add(uint8(i), block(absent(id)...))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		id := ids[int(which)%len(ids)]
		if len(b) >= 2 {
			binary.BigEndian.PutUint16(b, id)
		}
		m, _ := c.Model(id)
		values, err := m.Decode(b)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, v := range values {
			if seen[v.Path] || v.String() == "" || v.Exp < -10 || v.Exp > 10 {
				t.Fatalf("%s: %+v", v.Path, v)
			}
			seen[v.Path] = true
		}
		if len(values) > len(b)/2 {
			t.Fatalf("%d values from %d bytes", len(values), len(b))
		}
	})
}

// Whatever is in a model file: an error, or a model that reads any block.
func FuzzParseJSON(f *testing.F) {
	f.Add([]byte(modelJSON), []byte("some registers of a device"))
	f.Add([]byte(`{"id": 9, "group": {"points": [{"name":"ID","type":"uint16","size":1},{"name":"L","type":"uint16","size":1},{"name":"N","type":"count","size":1}], "groups": [{"count":"N","points":[{"name":"P","type":"pad","size":1}]}]}}`), []byte{})
	f.Fuzz(func(t *testing.T, b, registers []byte) {
		m, err := sunspec.ParseJSON("fuzz.json", b)
		if err != nil {
			return
		}
		head := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, m.ID), uint16(len(registers)/2))
		if values, err := m.Decode(append(head, registers[:len(registers)/2*2]...)); err == nil && len(values) > 2+len(registers)/2 {
			t.Fatalf("%d values", len(values))
		}
	})
}
