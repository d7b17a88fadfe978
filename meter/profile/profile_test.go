package profile_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

func get(t testing.TB, id string) *profile.Profile {
	t.Helper()
	p, err := profile.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parse(t testing.TB, text string) *profile.Profile {
	t.Helper()
	p, err := profile.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// base is a valid profile that tests change.
const base = `version: 1
id: acme-one
vendor: ACME
model: One
kind: meter
serial: {baud: 9600, framing: 8N1, unit: 1}
timing: {max_block: 20, gap: 10ms}
points:
  - {quantity: voltage, phase: 1, function: 4, address: 0x10, type: u16, scale: 100}
  - {quantity: power, function: 4, address: 0x20, type: s32, words: le, scale: 0.1, sign: export, absent: [0x7FFFFFFF]}
  - {quantity: import, function: 3, address: 5, type: s64, scale: "1/3"}
detect:
  - {quantity: voltage, phase: 1, min: 207000, max: 253000}
  - {quantity: power, min: -1000000, max: 1000000}
sources:
  - {name: "list 1.2", confidence: A}
`

func TestBuiltin(t *testing.T) {
	all := profile.All()
	if len(all) < 75 {
		t.Fatalf("%d profiles", len(all))
	}
	for _, p := range all {
		b, err := os.ReadFile(filepath.Join("data", p.ID+".yaml"))
		if err != nil {
			t.Fatalf("file and id differ: %v", err)
		}
		if p.Hash() != sha256.Sum256(b) {
			t.Errorf("%s: the hash is not the file's", p.ID)
		}
		if p.Serial.Baud == 0 && p.Serial.Port == 0 || p.Serial.Unit == 0 {
			t.Errorf("%s: no serial defaults", p.ID)
		}
		what := map[profile.Kind]meter.Quantity{profile.Meter: meter.Power, profile.Inverter: meter.Power, profile.Wallbox: meter.Status, profile.Battery: meter.StateOfCharge}[p.Kind]
		if !p.Has(what, 0) {
			t.Errorf("%s: no %s", p.ID, what)
		}
		r := get(t, p.ID+"+reversed")
		if r.Hash() == p.Hash() || r.ID == p.ID || r.Reversed() != r {
			t.Errorf("%s: the reversed variant has no identity of its own", p.ID)
		}
	}
	for _, id := range []string{"", "nope", "../profile", "eastron-sdm630+", "eastron-sdm630+reversed+reversed", "EASTRON-SDM630"} {
		if _, err := profile.Get(id); err == nil || !strings.Contains(err.Error(), "eastron-sdm630") {
			t.Errorf("Get(%q): %v", id, err)
		}
	}
}

// However a plan is cut while a device's limit is found, it reads every
// register that it read before.
func TestDivide(t *testing.T) {
	for _, p := range profile.All() {
		plan := p.Blocks(0)
		for _, limit := range []uint16{62, 38, 31, 19, 15, 10, 9, 7, 4} {
			var cut []profile.Block
			for _, b := range plan {
				if b.Count <= limit {
					cut = append(cut, b)
					continue
				}
				parts := p.Divide(b, limit)
				for _, part := range parts {
					if part.Function != b.Function || part.Slow != b.Slow || part.Address < b.Address || part.Address+part.Count > b.Address+b.Count {
						t.Errorf("%s: %+v is no part of %+v", p.ID, part, b)
					}
				}
				cut = append(cut, parts...)
			}
			plan = cut
			for _, pt := range p.Points {
				for _, addr := range slices.Concat([]uint16{pt.Address}, pt.Sum, pt.Less) {
					if !slices.ContainsFunc(plan, func(b profile.Block) bool {
						return b.Function == pt.Function && addr >= b.Address && addr+pt.Registers() <= b.Address+b.Count
					}) {
						t.Errorf("%s: cut to %d, register %d of %s is not read", p.ID, limit, addr, meter.PointName(pt.Quantity, pt.Phase))
					}
				}
			}
		}
	}
}

// Every point is read by exactly the blocks, none is cut, none is too long,
// and alone means alone.
func TestBlocks(t *testing.T) {
	alone := parse(t, strings.Replace(base, "sign: export,", "alone: true,", 1)+"")
	for _, p := range append(profile.All(), alone) {
		for _, limit := range []uint16{0, 4, 10, 20, 80, 125} {
			blocks := p.Blocks(limit)
			for i, b := range blocks {
				most := profile.MaxBlock
				if p.Timing.MaxBlock != 0 {
					most = int(p.Timing.MaxBlock)
				}
				if limit != 0 {
					most = min(most, int(limit))
				}
				if b.Count == 0 || int(b.Count) > most && !slices.ContainsFunc(p.Points, func(pt profile.Point) bool { return pt.Registers() == b.Count }) {
					t.Errorf("%s: block %+v is longer than %d", p.ID, b, most)
				}
				if i > 0 && blocks[i-1].Slow && !b.Slow {
					t.Errorf("%s: fast block %+v after a slow one", p.ID, b)
				}
			}
			for _, pt := range p.Points {
				for _, addr := range slices.Concat([]uint16{pt.Address}, pt.Sum, pt.Less) {
					n := 0
					for _, b := range blocks {
						if b.Function == pt.Function && b.Slow == pt.Slow && addr >= b.Address && addr+pt.Registers() <= b.Address+b.Count {
							n++
							if (pt.Alone || p.Timing.Alone) && b.Count != pt.Registers() {
								t.Errorf("%s: %d is not read alone but in %+v", p.ID, addr, b)
							}
						}
					}
					if n != 1 {
						t.Errorf("%s, limit %d: register %d is whole in %d blocks", p.ID, limit, addr, n)
					}
				}
			}
		}
	}
	if got := fmt.Sprint(get(t, "eastron-sdm630").Blocks(0)); got != "[{4 0 76 false} {4 342 16 true}]" {
		t.Errorf("an SDM630 snapshot takes %s", got)
	}
}

func float32Bytes(values ...float32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func words(values ...uint16) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func value(t *testing.T, points []meter.Point, name string) (int64, bool) {
	t.Helper()
	for _, p := range points {
		if p.Name() == name {
			return p.Value, true
		}
	}
	return 0, false
}

func wantValues(t *testing.T, p *profile.Profile, raw []meter.RawBlock, want map[string]int64) {
	t.Helper()
	points, err := p.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, pt := range points {
		got[pt.Name()] = pt.Value
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("decoded %v, want %v", got, want)
	}
}

// Registers written down by hand, as the devices send them.
func TestDecodeKnownRegisters(t *testing.T) {
	nan := float32(math.NaN())
	wantValues(t, get(t, "eastron-sdm120"), []meter.RawBlock{
		{Function: 4, Address: 0x00, Data: float32Bytes(230.5, 0, 0, 1.25)},
		{Function: 4, Address: 0x0C, Data: []byte{0xC3, 0x90, 0x20, 0x00}}, // -288.25
		{Function: 4, Address: 0x46, Data: float32Bytes(50.5, 1234.5, nan)},
	}, map[string]int64{"voltage_l1_mv": 230_500, "current_l1_ma": 1250, "power_mw": -288_250, "frequency_mhz": 50_500, "import_mwh": 1_234_500_000})

	// Tenths of a hertz from some units.
	wantValues(t, get(t, "eastron-sdm630"), []meter.RawBlock{{Function: 4, Address: 0x46, Data: float32Bytes(499.5)}}, map[string]int64{"frequency_mhz": 49_950})

	p := parse(t, base)
	wantValues(t, p, []meter.RawBlock{
		{Function: 4, Address: 0x10, Data: words(2305)},
		{Function: 4, Address: 0x20, Data: words(0xFFFE, 0xFFFF)}, // -2, low word first
		{Function: 3, Address: 5, Data: words(0, 0, 0, 5)},
	}, map[string]int64{"voltage_l1_mv": 230_500, "power_mw": 0, "import_mwh": 2})
	wantValues(t, p, []meter.RawBlock{
		{Function: 4, Address: 0x20, Data: words(0xFFFF, 0x7FFF)}, // not available
		{Function: 3, Address: 5, Data: words(0xFFFF, 0xFFFF, 0xFFFF, 0xFFFB)},
	}, map[string]int64{"import_mwh": -2})

	// Text in either byte of its register, and longer.
	for reg, want := range map[uint16]int64{0x4200: 'B', 0x0042: 'B', 0x4220: 'B'} {
		wantValues(t, get(t, "phoenix-ev-cc"), []meter.RawBlock{{Function: 4, Address: 24000, Data: words(reg)}}, map[string]int64{"status_code": want})
	}
	wantValues(t, get(t, "alfen-eve"), []meter.RawBlock{{Function: 3, Address: 1201, Data: words(0x4332, 0, 0, 0, 0)}}, map[string]int64{"status_code": 0x4332})
	wantValues(t, get(t, "alfen-eve"), []meter.RawBlock{{Function: 3, Address: 1201, Data: words(0x4332, 0x4332, 0x4300, 0, 0)}}, map[string]int64{})
	// Bits of a number.
	wantValues(t, get(t, "abb-terra-ac"), []meter.RawBlock{{Function: 3, Address: 0x400C, Data: words(0x1234, 0x8456)}}, map[string]int64{"status_code": 4})
	// Ratios of transformers multiply; a ratio of 0 is an error.
	ct := get(t, "chint-dtsu666-ct")
	power := meter.RawBlock{Function: 3, Address: 0x2012, Data: float32Bytes(1000)}
	wantValues(t, ct, []meter.RawBlock{power, {Function: 3, Address: 6, Data: words(40, 10)}}, map[string]int64{"power_mw": 4_000_000})
	wantValues(t, ct, []meter.RawBlock{power, {Function: 3, Address: 6, Data: words(40, 25)}}, map[string]int64{"power_mw": 10_000_000})
	wantValues(t, ct, []meter.RawBlock{power}, map[string]int64{})
	if v, err := ct.Decode([]meter.RawBlock{power, {Function: 3, Address: 6, Data: words(0, 10)}}); err == nil || !strings.Contains(err.Error(), "ratio at register 6 is 0") {
		t.Errorf("a ratio of 0: %v, %v", v, err)
	}
	// Two directions counted apart, and a sign in another register.
	wantValues(t, get(t, "sma-meter"), []meter.RawBlock{{Function: 3, Address: 30865, Data: words(0, 0, 0, 1500)}}, map[string]int64{"power_mw": -1_500_000})
	wantValues(t, get(t, "sma-meter"), []meter.RawBlock{{Function: 3, Address: 30865, Data: words(0x8000, 0, 0, 1500)}}, map[string]int64{})
	for state, want := range map[uint16]int64{2: 1_500_000, 4: -1_500_000} {
		wantValues(t, get(t, "sungrow-sh"), []meter.RawBlock{{Function: 4, Address: 13021, Data: words(1500)}, {Function: 4, Address: 13000, Data: words(state)}}, map[string]int64{"battery_power_mw": want})
	}
	// Not available, as ABB says it, and the function that another unit wants.
	wantValues(t, get(t, "abb-a-b-series"), []meter.RawBlock{{Function: 3, Address: 0x5B00, Data: words(0, 2305, 0xFFFF, 0xFFFF)}, {Function: 3, Address: 0x5B14, Data: words(0x7FFF, 0xFFFF)}}, map[string]int64{"voltage_l1_mv": 230_500})
	wantValues(t, get(t, "bernecker-mpm3pm"), []meter.RawBlock{{Function: 4, Address: 8, Data: words(0, 2305)}}, map[string]int64{"voltage_l1_mv": 230_500})

	evse := get(t, "simpleevse")
	for config, ma := range map[uint16]int64{0: 16_000_000 / 1000 * 100, 0x80: 16_000} {
		wantValues(t, evse, []meter.RawBlock{
			{Function: 3, Address: 1001, Data: words(1600, 3)}, {Function: 3, Address: 2005, Data: words(config)}, {Function: 3, Address: 1005, Data: words(17)},
		}, map[string]int64{"current_limit_ma": ma, "status_code": 3, "firmware_code": 17})
	}
	// Without the register that tells the unit, the value is not known.
	wantValues(t, evse, []meter.RawBlock{{Function: 3, Address: 1001, Data: words(1600, 3)}}, map[string]int64{"status_code": 3})
}

func sunspecBlock(id, length uint16, set map[int]uint16) meter.RawBlock {
	w := make([]uint16, 2+length)
	w[0], w[1] = id, length
	for off, v := range set {
		w[off] = v
	}
	return meter.RawBlock{Function: 3, Address: 40070, Data: words(w...)}
}

// A SunSpec block says itself what it is; scale factors count from the same
// read; marks for "not implemented" leave the point out.
func TestDecodeSunSpec(t *testing.T) {
	absent := map[int]uint16{2: 0xFFFF, 3: 0xFFFF, 4: 0xFFFF, 5: 0xFFFF, 10: 0xFFFF, 11: 0xFFFF, 12: 0xFFFF, 14: 0x8000, 16: 0xFFFF, 18: 0x8000, 20: 0x8000, 22: 0x8000, 38: 0xFFFF}
	with := func(set map[int]uint16) map[int]uint16 {
		out := map[int]uint16{}
		for _, m := range []map[int]uint16{absent, set} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	inv, mtr := get(t, "sunspec-inverter"), get(t, "sunspec-meter")
	for name, c := range map[string]struct {
		p    *profile.Profile
		b    meter.RawBlock
		want map[string]int64
	}{
		"nothing":         {inv, sunspecBlock(103, 50, absent), map[string]int64{}},
		"production":      {inv, sunspecBlock(103, 50, with(map[int]uint16{14: 345, 15: 1, 24: 1, 25: 2, 26: 0})), map[string]int64{"power_mw": -3_450_000, "export_mwh": 65_538_000}},
		"factor -2":       {inv, sunspecBlock(101, 50, with(map[int]uint16{14: 345, 15: 0xFFFE})), map[string]int64{"power_mw": -3450}},
		"factor absent":   {inv, sunspecBlock(102, 50, with(map[int]uint16{14: 345, 15: 0x8000})), map[string]int64{}},
		"short model":     {inv, sunspecBlock(103, 13, map[int]uint16{2: 0xFFFF, 3: 0xFFFF, 4: 0xFFFF, 5: 0xFFFF, 10: 2305, 11: 0xFFFF, 12: 0xFFFF, 13: 0xFFFF}), map[string]int64{"voltage_l1_mv": 230_500}},
		"negative energy": {inv, sunspecBlock(103, 50, with(map[int]uint16{24: 0xFFFF, 25: 0xFFFF})), map[string]int64{"export_mwh": -1000}},
		"import":          {mtr, sunspecBlock(203, 105, map[int]uint16{18: 0xFFF6, 22: 1, 47: 7, 39: 8, 54: 0}), nil},
		"export":          {mtr.Reversed(), sunspecBlock(203, 105, map[int]uint16{18: 0xFFF6, 22: 1, 47: 7, 39: 8, 54: 0}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want != nil {
				wantValues(t, c.p, []meter.RawBlock{c.b}, c.want)
				return
			}
			points, err := c.p.Decode([]meter.RawBlock{c.b})
			if err != nil {
				t.Fatal(err)
			}
			power := map[string]int64{"import": -100_000, "export": 100_000}[name]
			for n, want := range map[string]int64{"power_mw": power, "import_mwh": 7000, "export_mwh": 8000} {
				if got, _ := value(t, points, n); got != want {
					t.Errorf("%s = %d, want %d", n, got, want)
				}
			}
		})
	}
	for name, b := range map[string]meter.RawBlock{
		"moved map":   sunspecBlock(160, 50, nil),
		"wild factor": sunspecBlock(103, 50, map[int]uint16{14: 1, 15: 11}),
		"odd":         {Function: 3, Address: 0, Data: []byte{0, 103, 0}},
		"wraps":       {Function: 3, Address: 65535, Data: words(103, 50)},
	} {
		if points, err := inv.Decode([]meter.RawBlock{b}); err == nil || !strings.Contains(err.Error(), "sunspec-inverter") {
			t.Errorf("%s: %v, %v", name, points, err)
		}
	}
}

// Floats are rounded to the nearest integer unit, exactly: half away from
// zero, never by way of a second float.
func TestFloatRounding(t *testing.T) {
	p := get(t, "eastron-sdm120")
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.OneOf(rapid.Uint32(), rapid.Custom(func(t *rapid.T) uint32 {
			return math.Float32bits(float32(rapid.Float64Range(-1e6, 1e6).Draw(t, "f")))
		})).Draw(t, "bits")
		f := math.Float32frombits(bits)
		points, err := p.Decode([]meter.RawBlock{{Function: 4, Address: 0x48, Data: binary.BigEndian.AppendUint32(nil, bits)}})
		if math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
			if err != nil || len(points) != 0 {
				t.Fatalf("%g: %v, %v", f, points, err)
			}
			return
		}
		want := new(big.Rat).Mul(new(big.Rat).SetFloat64(float64(f)), big.NewRat(1_000_000, 1))
		if err != nil {
			if new(big.Rat).Abs(want).Cmp(big.NewRat(1<<62, 1)) < 0 {
				t.Fatalf("%g: %v", f, err)
			}
			return
		}
		d := new(big.Rat).Sub(want, big.NewRat(points[0].Value, 1))
		half := big.NewRat(1, 2)
		if c := d.Abs(d).Cmp(half); c > 0 || c == 0 && math.Abs(float64(points[0].Value)) < math.Abs(float64(f)*1e6) {
			t.Fatalf("%g kWh is %s mWh, decoded as %d", f, want.FloatString(3), points[0].Value)
		}
	})
}

// plausible draws a value that a device may measure and its registers hold.
func plausible(t *rapid.T, p *profile.Profile, pt profile.Point) int64 {
	name := meter.PointName(pt.Quantity, pt.Phase)
	lo, hi := int64(0), int64(1000)
	switch pt.Quantity {
	case meter.Power, meter.ReactivePower, meter.BatteryPower:
		lo, hi = -32_000_000, 32_000_000
	case meter.Import, meter.Export, meter.Energy:
		lo, hi = 1000, 90_000_000_000
	case meter.Voltage:
		hi = 255_000
	case meter.Current, meter.CurrentLimit:
		hi = 63_000
	case meter.Frequency:
		lo, hi = 45_000, 65_000
	case meter.PowerFactor:
		lo, hi = -1000, 1000
	case meter.Temperature, meter.SessionEnergy:
		hi = 80_000
	case meter.Status:
		if len(p.States) > 0 {
			return rapid.SampledFrom(slices.Sorted(maps.Keys(p.States))).Draw(t, name)
		}
	}
	switch pt.Type {
	case profile.U16, profile.U32, profile.U64:
		if pt.Sign == profile.SignExport {
			hi = 0
		} else {
			lo = max(lo, 0)
		}
	}
	return rapid.Int64Range(lo, hi).Draw(t, name)
}

// readAll reads an image as a gateway would: walking the chain if there is one.
func readAll(t interface{ Fatal(...any) }, p *profile.Profile, im profile.Image) []meter.RawBlock {
	blocks := p.Blocks(0)
	if p.SunSpec != nil {
		chain, err := walk(profile.NewWalk(p.SunSpec.Bases), im)
		if err != nil {
			t.Fatal(err)
		}
		if blocks, err = p.ChainBlocks(chain, 0); err != nil {
			t.Fatal(err)
		}
	}
	var raw []meter.RawBlock
	for _, b := range blocks {
		data, ok := im.Read(b.Function, b.Address, b.Count)
		if !ok {
			t.Fatal("the image has no block", b)
		}
		raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
	}
	return raw
}

func walk(w *profile.Walk, im profile.Image) (profile.Chain, error) {
	for {
		fn, addr, count, done := w.Next()
		if done {
			return w.Chain()
		}
		data, ok := im.Read(fn, addr, count)
		if !ok {
			data = nil
		}
		if err := w.Feed(data); err != nil {
			return profile.Chain{}, err
		}
	}
}

// What a simulator sets is what a gateway reads: to half a step of the
// registers, and from then on to the digit.
func TestRoundTrip(t *testing.T) {
	all := profile.All()
	all = append(all, get(t, "sunspec-meter+reversed"), parse(t, base))
	for _, p := range all {
		models := []uint16{0}
		if p.SunSpec != nil {
			models = nil
			for _, m := range p.SunSpec.Models {
				models = append(models, m.IDs...)
			}
		}
		for _, model := range models {
			t.Run(fmt.Sprintf("%s/%d", p.ID, model), func(t *testing.T) {
				rapid.Check(t, func(t *rapid.T) {
					im, err := p.NewImage(model, profile.Identity{})
					if err != nil {
						t.Fatal(err)
					}
					mapped := p.Points
					if p.SunSpec != nil {
						i := slices.IndexFunc(p.SunSpec.Models, func(m profile.SunSpecModel) bool { return slices.Contains(m.IDs, model) })
						mapped = p.SunSpec.Models[i].Points
					}
					scaled := func(v profile.Value) bool { // by a factor of ten: what fits is exact
						return slices.ContainsFunc(mapped, func(pt profile.Point) bool {
							return pt.Quantity == v.Quantity && pt.Phase == v.Phase && pt.Factor != nil
						})
					}
					var truth []meter.Point
					for _, pt := range mapped {
						if len(pt.Sum) > 0 {
							continue // see TestSums
						}
						truth = append(truth, meter.Point{Quantity: pt.Quantity, Phase: pt.Phase, Value: plausible(t, p, pt)})
					}
					if err := p.Encode(truth, im); err != nil {
						t.Fatal(err)
					}
					first, err := p.DecodeValues(readAll(t, p, im))
					if err != nil {
						t.Fatal(err)
					}
					first = slices.DeleteFunc(first, func(v profile.Value) bool {
						return slices.ContainsFunc(mapped, func(pt profile.Point) bool {
							return pt.Quantity == v.Quantity && pt.Phase == v.Phase && len(pt.Sum) > 0
						})
					})
					// A zero accumulator is "not implemented".
					truth = slices.DeleteFunc(truth, func(w meter.Point) bool {
						missing := !slices.ContainsFunc(first, func(v profile.Value) bool { return v.Quantity == w.Quantity && v.Phase == w.Phase })
						if missing && p.SunSpec == nil {
							t.Fatalf("%s = %d is gone", w.Name(), w.Value)
						}
						return missing
					})
					if len(first) != len(truth) {
						t.Fatalf("%d points became %d", len(truth), len(first))
					}
					var again []meter.Point
					for i, v := range first {
						if d := truth[i].Value - v.Value; max(d, -d) > (v.Digit+1)/2 || v.Digit > 1 && truth[i].Value%v.Digit == 0 && d != 0 && scaled(v) {
							t.Fatalf("%s = %d is read as %d; the registers can tell %d", v.Name(), truth[i].Value, v.Value, v.Digit)
						}
						again = append(again, v.Point)
					}
					if err := p.Encode(again, im); err != nil {
						t.Fatal(err)
					}
					second, err := p.Decode(readAll(t, p, im))
					second = slices.DeleteFunc(second, func(w meter.Point) bool {
						return !slices.ContainsFunc(again, func(v meter.Point) bool { return v.Quantity == w.Quantity && v.Phase == w.Phase })
					})
					if err != nil || !slices.Equal(second, again) {
						t.Fatalf("again: %v, want %v (%v)", second, again, err)
					}
				})
			})
		}
	}
}

// A total that a device does not have is the sum of its terms, whatever they
// were set to, and setting it moves the terms.
func TestSums(t *testing.T) {
	sums := 0
	for _, p := range profile.All() {
		for _, pt := range p.Points {
			if len(pt.Sum) == 0 {
				continue
			}
			sums++
			rapid.Check(t, func(t *rapid.T) {
				im, err := p.NewImage(0, profile.Identity{})
				if err != nil {
					t.Fatal(err)
				}
				var lines []meter.Point
				for _, o := range p.Points {
					if o.Quantity == pt.Quantity && len(o.Sum) == 0 {
						lines = append(lines, meter.Point{Quantity: o.Quantity, Phase: o.Phase, Value: plausible(t, p, o)})
					}
				}
				if err := p.Encode(lines, im); err != nil {
					t.Fatal(err)
				}
				points, err := p.Decode(readAll(t, p, im))
				if err != nil {
					t.Fatal(err)
				}
				got, sum := int64(0), int64(0)
				for _, v := range points {
					if v.Quantity == pt.Quantity && v.Phase == pt.Phase {
						got = v.Value
					} else if v.Quantity == pt.Quantity {
						sum += v.Value
					}
				}
				if len(lines) > 0 && got != sum {
					t.Fatalf("%s: %d, the lines add up to %d", p.ID, got, sum)
				}
				unsigned := pt
				if len(pt.Less) > 0 {
					unsigned.Type = profile.S32
				}
				step := pt.Scale.Num / pt.Scale.Den
				want := meter.Point{Quantity: pt.Quantity, Phase: pt.Phase, Value: plausible(t, p, unsigned) / step * step}
				if err := p.Encode([]meter.Point{want}, im); err != nil {
					t.Fatal(err)
				}
				if points, err = p.Decode(readAll(t, p, im)); err != nil || !slices.Contains(points, want) {
					t.Fatalf("%s: %+v is read as %v (%v)", p.ID, want, points, err)
				}
			})
		}
	}
	if sums < 10 {
		t.Errorf("%d sums", sums)
	}
}

// Every command of every profile comes back from its registers as what was
// meant, never as more, and nothing between the limits' gap is sent.
func TestWrites(t *testing.T) {
	for _, p := range profile.All() {
		for _, w := range p.Writes {
			var raw []meter.RawBlock
			for _, b := range w.Conditions() {
				raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: []byte{0, 0}})
			}
			rapid.Check(t, func(t *rapid.T) {
				v := rapid.Int64Range(w.Min, w.Max).Draw(t, "v")
				if w.Values != nil {
					v = rapid.SampledFrom(slices.Sorted(maps.Keys(w.Values))).Draw(t, "v")
				} else if w.Min > 0 && !w.Nonzero && rapid.Bool().Draw(t, "zero") {
					v = 0
				}
				c, err := w.Encode(v, raw)
				if err != nil {
					t.Fatalf("%s: %s %d: %v", p.ID, w.Name, v, err)
				}
				back, ok := w.Decode(c.Address, c.Values, raw)
				step := max(w.Scale.Num/max(w.Scale.Den, 1), 1)
				if !ok || max(back, -back) > max(v, -v) || max(v-back, back-v) >= step && v != back {
					t.Fatalf("%s: %s %d arrives as %d, %v", p.ID, w.Name, v, back, ok)
				}
			})
			if w.Unit() == "mA" {
				if c, err := w.Encode(3000, raw); err == nil {
					t.Errorf("%s: 3 A are sent as %v", p.ID, c)
				}
				if c, err := w.Encode(100_000, raw); err == nil && w.Values == nil {
					t.Errorf("%s: 100 A are sent as %v", p.ID, c)
				}
			}
		}
	}
	for _, c := range []struct {
		profile, name string
		value         int64
		want          string
	}{
		{"simpleevse", "current_limit", 16_900, "{6 1000 [16]}"},
		{"abl-emh1", "current_limit", 16_000, "{16 20 [266]}"},
		{"abl-emh1", "current_limit", 0, "{16 20 [1000]}"},
		{"abl-emh1", "enable", 0, "{16 5 [57568]}"},
		{"smartevse", "current_limit", 16_500, "{6 513 [4112]}"},
		{"alfen-eve", "current_limit", 16_000, "{16 1210 [16768 0]}"},
		{"mennekes-compact", "heartbeat", 1, "{6 3328 [21930]}"},
		{"phoenix-em-cp-pp-eth", "enable", 1, "{5 400 [65280]}"},
		{"peblar", "current_limit", 70_000, ""},
		{"peblar", "current_limit", 32_000, "{16 40000 [0 32000]}"},
		{"heidelberg-energy-control", "current_limit", 6_050, "{16 261 [60]}"},
	} {
		p := get(t, c.profile)
		w, ok := p.Write(c.name)
		if !ok {
			t.Fatalf("%s has no %s", c.profile, c.name)
		}
		var raw []meter.RawBlock
		for _, b := range w.Conditions() {
			if _, err := w.Encode(c.value, nil); err == nil {
				t.Errorf("%s: %s without its condition", c.profile, c.name)
			}
			raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: []byte{0, 0}})
		}
		got, err := w.Encode(c.value, raw)
		if (err != nil) != (c.want == "") || err == nil && fmt.Sprint(got) != c.want {
			t.Errorf("%s: %s %d: %v, %v; want %s", c.profile, c.name, c.value, got, err, c.want)
		}
	}
}

// What a device says is set is what was meant, where it says so.
func TestReadback(t *testing.T) {
	for _, c := range []struct {
		profile, name string
		words         []uint16
		want          int64
		ok            bool
	}{
		{"keba-p30", "failsafe_current", []uint16{0, 6000}, 6000, true},
		{"keba-p30", "failsafe_timeout", []uint16{0, 30}, 30_000, true},
		{"heidelberg-energy-control", "current_limit", []uint16{165}, 16_500, true},
		{"amperfied-connect", "phases", []uint16{3}, 3, true},
		{"amperfied-connect", "phases", []uint16{2}, 0, false},
		{"keba-p30", "phase_control", []uint16{0, 3}, 1, true},
		{"alfen-eve", "phases", []uint16{3}, 3, true},
		{"webasto-next", "failsafe_timeout", []uint16{60}, 60_000, true},
	} {
		w, ok := get(t, c.profile).Write(c.name)
		if !ok {
			t.Fatalf("%s has no %s", c.profile, c.name)
		}
		b, ok := w.ReadBlock()
		if !ok || int(b.Count) != len(c.words) {
			t.Fatalf("%s %s: read %+v, %v", c.profile, c.name, b, ok)
		}
		got, ok := w.DecodeRead([]meter.RawBlock{{Function: uint8(b.Function), Address: b.Address, Data: words(c.words...)}})
		if got != c.want || ok != c.ok {
			t.Errorf("%s %s %v: %d, %v; want %d, %v", c.profile, c.name, c.words, got, ok, c.want, c.ok)
		}
		if v, ok := w.DecodeRead(nil); ok {
			t.Errorf("%s %s: nothing says %d", c.profile, c.name, v)
		}
	}
	if _, ok := get(t, "simpleevse").Writes[0].ReadBlock(); ok {
		t.Error("a command without a readback has one")
	}
}

func TestEncodeRefuses(t *testing.T) {
	p := parse(t, base)
	im, err := p.NewImage(0, profile.Identity{})
	if err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(im)
	for name, points := range map[string][]meter.Point{
		"not mapped": {{Quantity: meter.Import, Value: 3}, {Quantity: meter.Voltage, Phase: 2, Value: 1}},
		"too large":  {{Quantity: meter.Import, Value: 3}, {Quantity: meter.Voltage, Phase: 1, Value: 6_553_600}},
		"negative":   {{Quantity: meter.Import, Value: 3}, {Quantity: meter.Voltage, Phase: 1, Value: -100}},
	} {
		if err := p.Encode(points, im); err == nil || fmt.Sprint(im) != before {
			t.Errorf("%s: %v, changed %v", name, err, fmt.Sprint(im) != before)
		}
	}
}

// A profile file with a mistake is refused with file, line and field.
func TestParseErrors(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown field":    {"kind: meter", "kind: meter\nsped: 9600", `test.yaml:6: unknown field "sped"`},
		"unknown in point": {"scale: 100}", "scale: 100, colour: red}", `test.yaml:9: unknown field "colour"`},
		"wrong type":       {"baud: 9600", "baud: fast", "test.yaml:6:"},
		"duplicate key":    {"kind: meter", "kind: meter\nkind: meter", "test.yaml:6:"},
		"not yaml":         {"points:", "points: [", "test.yaml:"},
		"version":          {"version: 1", "version: 2", "test.yaml:1: version"},
		"id":               {"acme-one", "ACME One", "test.yaml:2: id"},
		"vendor":           {"vendor: ACME", "vendor: ''", "test.yaml:3: vendor"},
		"kind":             {"kind: meter", "kind: toaster", "test.yaml:5: kind"},
		"framing":          {"8N1", "7E1", "test.yaml:6: serial.framing"},
		"baud":             {"baud: 9600", "baud: 96", "test.yaml:6: serial.baud"},
		"unit 0":           {"unit: 1}", "unit: 0}", "1..247"},
		"unit 300":         {"unit: 1}", "unit: 300}", "test.yaml:6:"},
		"max block":        {"max_block: 20", "max_block: 126", "test.yaml:7: timing.max_block"},
		"gap":              {"gap: 10ms", "gap: -1s", "test.yaml:7: timing.gap"},
		"quantity":         {"quantity: voltage, phase: 1, function", "quantity: volts, phase: 1, function", `test.yaml:9: points[0].quantity: unknown quantity "volts"`},
		"phase":            {"phase: 1, function", "phase: 4, function", "test.yaml:9: points[0].phase"},
		"function":         {"function: 3", "function: 1", "test.yaml:11: points[2].function"},
		"type":             {"type: s64", "type: s63", "test.yaml:11: points[2].type"},
		"words":            {"words: le", "words: middle", "test.yaml:10: points[1].words"},
		"sign":             {"sign: export", "sign: minus", "test.yaml:10: points[1].sign"},
		"scale zero":       {"scale: 100}", "scale: 0}", "test.yaml:9"},
		"scale text":       {`"1/3"`, `"1/0"`, "scale"},
		"scale huge":       {`"1/3"`, `1e999999999`, "scale"},
		"overlap":          {"address: 0x20", "address: 0xF", "test.yaml:10: points[1]: register 16 belongs to points[0] as well"},
		"beyond":           {"address: 5", "address: 65533", "test.yaml:11: points[2].address"},
		"mapped twice":     {"quantity: import", "quantity: power", "test.yaml:11: points[2]: power_mw is mapped twice"},
		"factor":           {"scale: 100}", "scale: 100, factor: 3}", "test.yaml:9: points[0].factor"},
		"alt":              {"scale: 100}", "scale: 100, alt: {scale: 10}}", "test.yaml:9: points[0].alt"},
		"one rule":         {"  - {quantity: power, min: -1000000, max: 1000000}\n", "", "detect: 1 rules"},
		"rule unmapped":    {"quantity: power, min", "quantity: export, min", "test.yaml:14: detect[1]: export_mwh is not mapped"},
		"rule inverted":    {"min: 207000", "min: 307000", "test.yaml:13: detect[0]"},
		"no sources":       {"sources:\n  - {name: \"list 1.2\", confidence: A}\n", "sources: []\n", "sources: missing"},
		"confidence":       {"confidence: A", "confidence: D", "test.yaml:16: sources[0].confidence"},
		"sum and address":  {"address: 0x20,", "address: 0x20, sum: [0x22],", "test.yaml:10: points[1].sum"},
		"sum overlaps":     {"address: 0x20, type: s32, words: le, scale: 0.1, sign: export, absent: [0x7FFFFFFF]", "sum: [0xF, 0x22], type: s32", "test.yaml:10: points[1].sum: register 16 belongs to points[0]"},
		"sum of floats":    {"address: 0x20, type: s32, words: le, scale: 0.1, sign: export, absent: [0x7FFFFFFF]", "sum: [0x20, 0x22], type: f32", "test.yaml:10: points[1].type"},
		"less alone":       {"address: 0x20,", "address: 0x20, less: [0x22],", "test.yaml:10: points[1].less"},
		"mask of float":    {"type: s64", "type: f64, mask: 1", "test.yaml:11: points[2].mask"},
		"mask with hole":   {"type: u16, scale: 100", "type: u16, mask: 5", "test.yaml:9: points[0].mask"},
		"text of power":    {"type: s32, words: le, scale: 0.1, sign: export, absent: [0x7FFFFFFF]", "type: text, length: 2", "test.yaml:10: points[1].type"},
		"length":           {"type: s64", "type: s64, length: 2", "test.yaml:11: points[2].length"},
		"fallback":         {"points:", "fallback: 4\npoints:", "test.yaml:8: fallback"},
		"marks":            {"points:", "marks: nan\npoints:", "test.yaml:8: marks"},
		"ratio":            {"type: s64", "type: s64, ratios: [{address: 9, scale: 7}]", "test.yaml:11: points[2].ratios[0].scale"},
		"write name":       {"detect:", "writes: [{name: explode, address: 1, max: 9}]\ndetect:", "test.yaml:12: writes[0].name"},
		"write function":   {"detect:", "writes: [{name: mode, address: 1, type: u32, function: 6, max: 9}]\ndetect:", "test.yaml:12: writes[0].function"},
		"write coil":       {"detect:", "writes: [{name: enable, address: 1, function: 5, values: {0: 0, 1: 1}}]\ndetect:", "test.yaml:12: writes[0].function"},
		"write range":      {"detect:", "writes: [{name: current_limit, address: 1, scale: 100, max: 9000000}]\ndetect:", "test.yaml:12: writes[0]"},
		"write twice":      {"detect:", "writes: [{name: mode, address: 1, max: 9}, {name: mode, address: 2, max: 9}]\ndetect:", "test.yaml:12: writes[1].name"},
		"write read":       {"detect:", "writes: [{name: mode, address: 1, max: 9, read: {function: 1, address: 2}}]\ndetect:", "test.yaml:12: writes[0].read"},
		"write sign":       {"detect:", "writes: [{name: mode, address: 1, max: 9, sign: export}]\ndetect:", "test.yaml:12: writes[0].sign"},
		"write setup":      {"detect:", "writes: [{name: mode, address: 1, max: 9, setup: 10}]\ndetect:", "test.yaml:12: writes[0].setup"},
		"write nonzero":    {"detect:", "writes: [{name: mode, address: 1, min: 1, max: 9, nonzero: true, setup: 0}]\ndetect:", "test.yaml:12: writes[0].setup"},
		"write zeros":      {"detect:", "writes: [{name: mode, address: 1, min: 1, max: 9, nonzero: true, zero: 7}]\ndetect:", "test.yaml:12: writes[0].zero"},
		"read values":      {"detect:", "writes: [{name: mode, address: 1, max: 9, read: {address: 2, values: {1: 1}}}]\ndetect:", "test.yaml:12: writes[0].read.values"},
		"watchdog":         {"detect:", "watchdog: {fed_by: heartbeat}\ndetect:", "test.yaml:12: watchdog.fed_by"},
		"watchdog time":    {"detect:", "watchdog: {fed_by: write, timeout: 25h}\ndetect:", "test.yaml:12: watchdog.timeout"},
		"watchdog current": {"detect:", "watchdog: {fed_by: write, current: 16}\ndetect:", "test.yaml:12: watchdog.current"},
		"no orders":        {"detect:", "writes: [{name: power_command, address: 1, max: 9}]\ndetect:", "orders: a power_command and orders go together"},
		"no release":       {"detect:", "writes: [{name: power_command, address: 1, max: 9}]\norders: {charge: [{write: power_command}]}\ndetect:", "test.yaml:13: orders"},
		"order name":       {"detect:", "writes: [{name: power_command, address: 1, max: 9}]\norders: {release: [{write: power_command, value: 0}], boost: [{write: power_command}]}\ndetect:", "test.yaml:13: orders"},
		"order write":      {"detect:", "writes: [{name: power_command, address: 1, max: 9}]\norders: {release: [{write: mode, value: 0}]}\ndetect:", "test.yaml:13: orders.release[0].write"},
		"order value":      {"detect:", "writes: [{name: power_command, address: 1, max: 9}]\norders: {release: [{write: power_command, value: 10}]}\ndetect:", "test.yaml:13: orders.release[0].value"},
		"order power":      {"detect:", "writes: [{name: power_command, address: 1, max: 9}]\norders: {release: [{write: power_command}]}\ndetect:", "test.yaml:13: orders.release"},
		"states":           {"detect:", "states: {1: A}\ndetect:", "test.yaml:12: states"},
		"no line":          {"serial: {baud: 9600, framing: 8N1, unit: 1}", "serial: {unit: 1}", "test.yaml:6: serial"},
		"unit 255":         {"unit: 1}", "unit: 255}", "255 on a device with a port"},
		"identity field":   {"detect:", "identity: [{field: colour, function: 3, address: 1, type: u32}]\ndetect:", "test.yaml:12: identity[0].field"},
		"identity type":    {"detect:", "identity: [{field: serial, function: 3, address: 1, type: s32}]\ndetect:", "test.yaml:12: identity[0].type"},
		"identity length":  {"detect:", "identity: [{field: serial, function: 3, address: 1, type: text}]\ndetect:", "test.yaml:12: identity[0].length"},
		"only C":           {"confidence: A", "confidence: C", "experimental"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(base, c.old) {
				t.Fatalf("%q is not in the profile", c.old)
			}
			_, err := profile.Parse("test.yaml", []byte(strings.Replace(base, c.old, c.new, 1)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	bomb := "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
	for i := range 8 {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 10))
	}
	for name, c := range map[string]struct{ text, want string }{
		"alias bomb": {bomb + base, "bomb.yaml:1: \"&\": anchors"},
		"brackets":   {"points: " + strings.Repeat("[", 20_000), "bomb.yaml:1: nested"},
		"braces":     {"points: " + strings.Repeat("{a: ", 10_000), "bomb.yaml:1: nested"},
		"dashes":     {"points:\n" + strings.Repeat("- ", 30_000), "bomb.yaml:2: nested"},
		"tag":        {strings.Replace(base, "ACME", "!!binary ACME", 1), "bomb.yaml:3:"},
	} {
		if _, err := profile.Parse("bomb.yaml", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.80v, want %q", name, err, c.want)
		}
	}
	if _, err := profile.Parse("big.yaml", make([]byte, profile.MaxFileSize+1)); err == nil {
		t.Error("a huge file was accepted")
	}
	if _, err := profile.Parse("c.yaml", []byte(strings.Replace(strings.Replace(base, "confidence: A", "confidence: C", 1), "kind: meter", "kind: meter\nexperimental: true", 1))); err != nil {
		t.Errorf("an experimental profile of confidence C: %v", err)
	}
}

// What the package comment shows is a profile.
func TestDocumentedFile(t *testing.T) {
	src, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(src), "//\tversion: 1\n")
	text, _, ok := strings.Cut("//\tversion: 1\n"+text, "\n//\n")
	if !ok {
		t.Fatal("no example in the package comment")
	}
	p := parse(t, strings.ReplaceAll(text, "//\t", "")+"\n")
	if p.ID != "acme-one" || !p.Has(meter.Power, 0) || p.Timing.ConnectDelay != time.Second {
		t.Errorf("%+v", p)
	}
}

// Where sources disagree, the profile says so to the installer, and one whose
// billed registers are in doubt is experimental.
func TestConflictsAreSaid(t *testing.T) {
	for _, c := range []struct {
		id, says     string
		experimental bool
	}{
		{"bgetech-ds100", "0x118A", true},
		{"finder-7m38", "2638", true},
		{"siemens-pac2200", "function code", false},
		{"bernecker-mpm3pm", "function code", false},
		{"deye-sg04lp3-meter", "644", false},
		{"chint-dtsu666", "0x2000", false},
		{"chint-dtsu666-ct", "ratios", false},
		{"eastron-sdm72d-v2", "ten values", false},
		{"carlogavazzi-em24", "EM340", false},
		{"eltako-dsz16", "SDM630", false},
		{"sunspec-meter", "sign", false},
		{"solax-x3-meter", "tenths", false},
		{"janitza-umg604", "before billing", true},
		{"socomec-countis-e34", "before billing", true},
		{"sofar-g3", "wrong length", false},
		{"huawei-sun2000-meter", "one client", false},
		{"keba-p30", "1.2.1", false},
		{"smartevse", "check the version", false},
	} {
		if p := get(t, c.id); !strings.Contains(p.Note, c.says) || p.Experimental != c.experimental {
			t.Errorf("%s: experimental %v, note %q: want %q", c.id, p.Experimental, p.Note, c.says)
		}
	}
	if get(t, "siemens-pac2200").Fallback != 4 || get(t, "bernecker-mpm3pm").Fallback != 4 {
		t.Error("the other function is not tried")
	}
	if sma, kostal := get(t, "sma-inverter"), get(t, "kostal-inverter"); sma.Marks != profile.MarkMin || kostal.Serial.Unit != 71 || kostal.Serial.Port != 1502 {
		t.Error("SMA's marks or Kostal's unit are gone")
	}
	// A Kostal's accumulator below zero is negative, and 0x7FFFFFFF is not.
	for words32, want := range map[[2]uint16]int64{{0xFFFF, 0xFF9C}: -100_000, {0x7FFF, 0xFFFF}: 2_147_483_647_000} {
		points, err := get(t, "kostal-inverter").Decode([]meter.RawBlock{sunspecBlock(103, 50, map[int]uint16{24: words32[0], 25: words32[1]})})
		if v, ok := value(t, points, "export_mwh"); err != nil || !ok || v != want {
			t.Errorf("accumulator %x: %d, %v, want %d", words32, v, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	p := get(t, "eastron-sdm630")
	points := []meter.Point{{Quantity: meter.Voltage, Phase: 1, Value: 231_000}, {Quantity: meter.Frequency, Value: 50_010}}
	if evidence, ok := p.Match(points); !ok || len(evidence) != 2 {
		t.Errorf("%v %v", evidence, ok)
	}
	points[1].Value = 500
	if evidence, ok := p.Match(points); ok || !strings.Contains(evidence[1], "frequency_mhz = 500 outside") {
		t.Errorf("%v %v", evidence, ok)
	}
	if evidence, ok := p.Match(nil); ok || !strings.Contains(evidence[0], "missing") {
		t.Errorf("%v %v", evidence, ok)
	}
}

func BenchmarkDecodeSDM630(b *testing.B) {
	p := get(b, "eastron-sdm630")
	im, err := p.NewImage(0, profile.Identity{})
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Encode([]meter.Point{{Quantity: meter.Power, Value: 1_500_000}, {Quantity: meter.Import, Value: 1_234_567_000}}, im); err != nil {
		b.Fatal(err)
	}
	raw := readAll(b, p, im)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// Current transformers mounted the wrong way round: the meter counts imports
// as exports, and billing what it says would pay the consumer.
func TestSwappedTransformers(t *testing.T) {
	for _, id := range []string{"eastron-sdm630", "sunspec-meter"} {
		p := get(t, id)
		im, err := p.NewImage(0, profile.Identity{})
		if err != nil {
			t.Fatal(err)
		}
		// What the wrongly mounted meter shows while the house draws 1.5 kW.
		if err := p.Encode([]meter.Point{
			{Quantity: meter.Power, Value: -1_500_000}, {Quantity: meter.Export, Value: 7_000_000}, {Quantity: meter.Import, Value: 8_000},
		}, im); err != nil {
			t.Fatal(err)
		}
		s := get(t, id+"+swapped")
		if s.Hash() == p.Hash() || s.ID == p.ID || s.Swapped() != s {
			t.Errorf("%s: the swapped variant has no identity of its own", id)
		}
		fresh, err := s.NewImage(0, profile.Identity{})
		if err != nil {
			t.Fatal(err)
		}
		// The variant puts the truth into the very same registers.
		if err := s.Encode([]meter.Point{
			{Quantity: meter.Power, Value: 1_500_000}, {Quantity: meter.Import, Value: 7_000_000}, {Quantity: meter.Export, Value: 8_000},
		}, fresh); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(im, fresh) {
			t.Errorf("%s: the registers differ", id)
		}
		if got := get(t, id); !got.Has(meter.Import, 0) || got.Hash() != p.Hash() {
			t.Errorf("%s: the plain profile was changed", id)
		}
	}
}
