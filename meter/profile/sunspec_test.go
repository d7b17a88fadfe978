package profile_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/meter/profile/sunspec"
)

// place puts words at an address of the holding registers.
func place(im profile.Image, addr uint16, w ...uint16) {
	for i, v := range w {
		im[profile.Register{Function: 3, Address: addr + uint16(i)}] = v
	}
}

const (
	sunHi = 0x5375 // "Su"
	sunLo = 0x6E53 // "nS"
)

func model(id, length uint16) []uint16 {
	return append([]uint16{id, length}, make([]uint16, length)...)
}

func TestWalk(t *testing.T) {
	p := get(t, "sunspec-inverter")
	chain := func(parts ...[]uint16) []uint16 {
		out := []uint16{sunHi, sunLo}
		for _, m := range parts {
			out = append(out, m...)
		}
		return out
	}
	end := []uint16{0xFFFF, 0}
	for name, c := range map[string]struct {
		base  uint16
		words []uint16
		want  string // models
		err   string
	}{
		"official":      {40000, chain(model(1, 66), model(103, 50), end), "[{1 66 40002} {103 50 40070}]", ""},
		"base 0":        {0, chain(model(1, 65), model(101, 50), end), "[{1 65 2} {101 50 69}]", ""},
		"base 50000":    {50000, chain(model(1, 66), model(102, 50), end), "[{1 66 50002} {102 50 50070}]", ""},
		"device's L":    {40000, chain(model(1, 80), model(103, 52), model(160, 48), end), "[{1 80 40002} {103 52 40084} {160 48 40138}]", ""},
		"unknown model": {40000, chain(model(1, 66), model(64999, 3), model(103, 50), end), "[{1 66 40002} {64999 3 40070} {103 50 40075}]", ""},
		"no end":        {40000, chain(model(1, 66), model(103, 50)), "[{1 66 40002} {103 50 40070}]", ""},
		"only end":      {40000, chain(end), "[]", ""},
		"no marker":     {40000, []uint16{1, 2, 3, 4}, "", `no marker "SunS"`},
		"model 0":       {40000, chain(model(1, 66), model(0, 3)), "", "model id 0 at register 40070"},
		"past the end":  {40000, chain([]uint16{1, 66}, make([]uint16, 66), []uint16{103, 65000}), "", "beyond register 65535"},
		"too long":      {0, chain([]uint16{64000, 20000}), "", "beyond register 65535 or longer"},
	} {
		t.Run(name, func(t *testing.T) {
			im := profile.Image{}
			place(im, c.base, c.words...)
			got, err := walk(profile.NewWalk(p.SunSpec.Bases), im)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want %q", err, c.err)
				}
				return
			}
			if err != nil || fmt.Sprint(got.Models) != c.want || got.Base != c.base {
				t.Fatalf("base %d, %v, %v; want %s", got.Base, got.Models, err, c.want)
			}
		})
	}
}

// A chain that runs in circles or never ends is given up.
func TestWalkIsBounded(t *testing.T) {
	w := profile.NewWalk([]uint16{0})
	steps := 0
	for ; steps < 10_000; steps++ {
		_, _, count, done := w.Next()
		if done {
			break
		}
		answer := words(sunHi, sunLo)
		if steps > 0 {
			answer = words(7, 0) // empty models for ever
		}
		if len(answer) != 2*int(count) {
			t.Fatalf("step %d asks for %d registers", steps, count)
		}
		_ = w.Feed(answer)
	}
	if _, err := w.Chain(); err == nil || steps > profile.MaxModels+2 {
		t.Fatalf("%d steps, %v", steps, err)
	}
	if err := w.Feed(nil); err == nil {
		t.Error("a finished walk takes another answer")
	}
}

func TestWalkReadsIdentity(t *testing.T) {
	p := get(t, "sunspec-meter")
	want := profile.Identity{Manufacturer: "ACME GmbH", Model: "Meter 3", Version: "1.2.3", Serial: "0042"}
	im, err := p.NewImage(0, want)
	if err != nil {
		t.Fatal(err)
	}
	c, err := walk(profile.NewWalk(p.SunSpec.Bases), im)
	if err != nil {
		t.Fatal(err)
	}
	if got := (profile.Identity{Manufacturer: c.Manufacturer, Model: c.Model, Version: c.Version, Serial: c.Serial}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// The first model of the profile that the device has is read, with everything
// it needs and no register more than the device owns.
func TestChainBlocks(t *testing.T) {
	p := get(t, "sunspec-meter")
	chain := profile.Chain{Models: []profile.ChainModel{{1, 66, 2}, {201, 105, 70}, {203, 105, 177}}}
	blocks, err := p.ChainBlocks(chain, 0)
	if err != nil || fmt.Sprint(blocks) != "[{3 177 55 false}]" {
		t.Errorf("%v, %v", blocks, err)
	}
	blocks, err = p.ChainBlocks(chain, 20)
	if err != nil || fmt.Sprint(blocks) != "[{3 177 20 false} {3 197 20 false} {3 217 15 false}]" {
		t.Errorf("%v, %v", blocks, err)
	}
	blocks, err = p.ChainBlocks(profile.Chain{Models: []profile.ChainModel{{203, 10, 70}}}, 0)
	if err != nil || fmt.Sprint(blocks) != "[{3 70 12 false}]" {
		t.Errorf("short model: %v, %v", blocks, err)
	}
	if _, err = p.ChainBlocks(profile.Chain{Models: []profile.ChainModel{{1, 66, 2}, {103, 50, 70}}}, 0); err == nil || !strings.Contains(err.Error(), "[1 103]") {
		t.Errorf("an inverter for a meter: %v", err)
	}
}

// The profiles' few points against the tables of the models, which are compared
// with the official files in package sunspec.
func TestProfilesFitModels(t *testing.T) {
	kinds := map[sunspec.Type]profile.Type{
		sunspec.Int16: profile.S16, sunspec.Uint16: profile.U16, sunspec.Enum16: profile.U16, sunspec.Acc32: profile.Acc32,
		sunspec.Int32: profile.S32, sunspec.Uint32: profile.U32, sunspec.Uint64: profile.U64, sunspec.Float32: profile.F32,
	}
	units := map[string]string{ // official -> ours, and what one is in ours
		"W": "mw 1000", "VA": "mva 1000", "var": "mvar 1000", "Var": "mvar 1000", "Wh": "mwh 1000", "A": "ma 1000", "V": "mv 1000", "Hz": "mhz 1000",
		"Pct": "permille 10", "PF": "permille 1000", "%WHRtg": "permille 10", "% AhrRtg": "permille 10", "": "code 1",
	}
	catalog := sunspec.Builtin()
	for _, p := range profile.All() {
		if p.SunSpec == nil {
			continue
		}
		for _, m := range p.SunSpec.Models {
			for _, id := range m.IDs {
				t.Run(fmt.Sprintf("%s/%d", p.ID, id), func(t *testing.T) {
					o, ok := catalog.Model(id)
					if !ok || int(m.Length) != o.Length() {
						t.Fatalf("length %d, model %d has %d", m.Length, id, o.Length())
					}
					factors := maps.Clone(m.Factors)
					for _, pt := range m.Points {
						at, op, ok := o.Offset(pt.Name)
						if !ok {
							t.Errorf("%s is not in the model", pt.Name)
							continue
						}
						if at != int(pt.Address) || kinds[op.Type] != pt.Type {
							t.Errorf("%s: %s at %d, the model has %s at %d", pt.Name, pt.Type, pt.Address, op.Type, at)
						}
						want := units[op.Unit]
						if op.Unit == "" && pt.Quantity == meter.PowerFactor {
							want = "permille 1000"
						}
						if want != pt.Quantity.Unit()+" "+pt.Scale.String() {
							t.Errorf("%s: %s %s, the model's unit is %q", pt.Name, pt.Quantity.Unit(), pt.Scale, op.Unit)
						}
						if (op.Factor != "") != (pt.Factor != nil) {
							t.Errorf("%s: factor %v, the model has %q", pt.Name, pt.Factor, op.Factor)
						} else if pt.Factor != nil {
							if at, _, _ := o.Offset(op.Factor); at != int(*pt.Factor) {
								t.Errorf("%s: factor at %d, the model has it at %d", pt.Name, *pt.Factor, at)
							}
							delete(factors, *pt.Factor)
						}
					}
					if len(factors) != 0 {
						t.Errorf("factors of no point: %v", factors)
					}
				})
			}
		}
	}
}
