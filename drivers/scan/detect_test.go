package scan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/drivers/scan"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// household is what a meter shows behind a house that cooks.
var household = []meter.Point{
	{Quantity: meter.Voltage, Phase: 1, Value: 230_000},
	{Quantity: meter.Voltage, Phase: 2, Value: 231_000},
	{Quantity: meter.Voltage, Phase: 3, Value: 229_000},
	{Quantity: meter.Current, Phase: 1, Value: 5_000},
	{Quantity: meter.Current, Phase: 2, Value: 2_000},
	{Quantity: meter.Current, Phase: 3, Value: 1_000},
	{Quantity: meter.Current, Value: 8_000},
	{Quantity: meter.Power, Phase: 1, Value: 1_100_000},
	{Quantity: meter.Power, Phase: 2, Value: 400_000},
	{Quantity: meter.Power, Phase: 3, Value: 200_000},
	{Quantity: meter.Power, Value: 1_700_000},
	{Quantity: meter.Frequency, Value: 50_000},
	{Quantity: meter.PowerFactor, Value: 950},
	{Quantity: meter.PowerFactor, Phase: 1, Value: 950},
	{Quantity: meter.PowerFactor, Phase: 2, Value: 940},
	{Quantity: meter.PowerFactor, Phase: 3, Value: 930},
	{Quantity: meter.Import, Value: 1_700_000_000},
	{Quantity: meter.Import, Phase: 1, Value: 1_000_000_000},
	{Quantity: meter.Import, Phase: 2, Value: 400_000_000},
	{Quantity: meter.Import, Phase: 3, Value: 300_000_000},
	{Quantity: meter.Export, Value: 700_000_000},
	{Quantity: meter.Export, Phase: 1, Value: 700_000_000},
	{Quantity: meter.StateOfCharge, Value: 500},
	{Quantity: meter.BatteryPower, Value: 900_000},
	{Quantity: meter.Status, Value: 2},
	{Quantity: meter.CurrentLimit, Value: 16_000},
}

// image returns the registers of a device of p that shows what it can of
// points.
func image(t *testing.T, p *profile.Profile, points []meter.Point) profile.Image {
	t.Helper()
	im, err := p.NewImage(0, profile.Identity{Manufacturer: "ACME", Model: "One", Version: "1", Serial: "S1"})
	if err != nil {
		t.Fatalf("%s: %v", p.ID, err)
	}
	for _, pt := range points {
		if p.Kind == profile.Inverter && pt.Quantity == meter.Power {
			pt.Value = -pt.Value // the sun shines
		}
		if p.Has(pt.Quantity, pt.Phase) {
			_ = p.Encode([]meter.Point{pt}, im) // a point that this device cannot show
		}
	}
	return im
}

func get(t *testing.T, id string) *profile.Profile {
	t.Helper()
	p, err := profile.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// detect runs a detection against registers.
func detect(im profile.Image, longest uint16, profiles []*profile.Profile) (scan.Verdict, int) {
	d := scan.NewDetection(profiles)
	for reads := 0; ; reads++ {
		fn, addr, count, done := d.Next()
		if done {
			return d.Verdict(), reads
		}
		data, ok := im.Read(fn, addr, count)
		switch {
		case count > longest:
			d.Feed(nil, 3)
		case !ok:
			d.Feed(nil, 2)
		default:
			d.Feed(data, 0)
		}
	}
}

func names(v scan.Verdict) (ids []string) {
	for _, c := range v.Candidates {
		ids = append(ids, c.Profile.ID)
	}
	return ids
}

// Whatever is on the line: a device is never taken for one that reads it
// wrongly, and the right profile is always among the candidates.
func TestNeverTakenForAnother(t *testing.T) {
	profiles := profile.All()
	for _, p := range profiles {
		t.Run(p.ID, func(t *testing.T) {
			im := image(t, p, household)
			want, err := p.Decode(raw(p, im))
			if p.SunSpec == nil && err != nil {
				t.Fatal(err)
			}
			v, reads := detect(im, profile.MaxBlock, profiles)
			if reads > 400 {
				t.Errorf("%d reads", reads)
			}
			t.Logf("%d reads: %v %s", reads, names(v), v.Why)
			if _, ok := p.Match(want); ok && !slices.Contains(names(v), p.ID) {
				t.Fatalf("candidates are %v", names(v))
			}
			if v.Best == nil || v.Best.Profile.ID == p.ID {
				return
			}
			// Another profile: it must read the very same values.
			for _, pt := range want {
				i := slices.IndexFunc(v.Best.Points, func(o meter.Point) bool { return o.Quantity == pt.Quantity && o.Phase == pt.Phase })
				if i < 0 || v.Best.Points[i].Value != pt.Value {
					t.Fatalf("taken for %s, which does not read %s = %d", v.Best.Profile.ID, pt.Name(), pt.Value)
				}
			}
		})
	}
}

func raw(p *profile.Profile, im profile.Image) (raw []meter.RawBlock) {
	for _, b := range p.Blocks(0) {
		data, ok := im.Read(b.Function, b.Address, b.Count)
		if !ok {
			panic("an image lacks its own registers")
		}
		raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
	}
	return raw
}

// A three-phase meter fits the profile of its single-phase sister; it is the
// better description because all three lines are alive. With one line alive,
// on a device that answers unknown registers with zero, nobody can tell.
func TestSisters(t *testing.T) {
	p, sister := get(t, "eastron-sdm630"), get(t, "eastron-sdm120")
	both := []*profile.Profile{sister, p}
	im := image(t, p, household)
	v, _ := detect(im, profile.MaxBlock, both)
	if v.Best == nil || v.Best.Profile.ID != p.ID || len(v.Candidates) != 2 {
		t.Fatalf("%v %s", names(v), v.Why)
	}
	if len(v.Best.Evidence) < 2 || !strings.Contains(v.Best.Evidence[0], "voltage_l1_mv = 230000") {
		t.Errorf("evidence %q", v.Best.Evidence)
	}
	one := slices.DeleteFunc(slices.Clone(household), func(p meter.Point) bool { return p.Phase > 1 })
	if v, _ = detect(image(t, p, one), profile.MaxBlock, both); !v.Ambiguous() || len(v.Candidates) != 2 || v.Why == "" {
		t.Fatalf("one line alive: best %+v of %v", v.Best, names(v))
	}
	// The single-phase meter refuses what it does not have.
	if v, _ = detect(image(t, sister, one), profile.MaxBlock, both); v.Best == nil || v.Best.Profile.ID != sister.ID {
		t.Fatalf("single-phase meter: %v %s", names(v), v.Why)
	}
}

// A power factor of 0.5 on line 2 of one meter reads as 50.0 Hz in the map of
// another, at the same voltages and powers.
func TestTrapIsAmbiguous(t *testing.T) {
	em24, em340 := get(t, "carlogavazzi-em24"), get(t, "carlogavazzi-em340")
	// An EM24 that also has registers where the EM340 has its own.
	im := image(t, em24, household)
	if err := em24.Encode([]meter.Point{{Quantity: meter.PowerFactor, Phase: 2, Value: 500}}, im); err != nil {
		t.Fatal(err)
	}
	for _, b := range em340.Blocks(0) {
		for i := range b.Count {
			r := profile.Register{Function: b.Function, Address: b.Address + i}
			if _, ok := im[r]; !ok {
				im[r] = 0
			}
		}
	}
	v, _ := detect(im, profile.MaxBlock, []*profile.Profile{em340, em24})
	if !v.Ambiguous() || len(v.Candidates) != 2 || !strings.Contains(v.Why, em24.ID) || !strings.Contains(v.Why, em340.ID) {
		t.Fatalf("best %v of %v: %s", v.Best, names(v), v.Why)
	}
}

// The Eltako has integers where the Eastron has floats.
func TestEltakoIsNoEastron(t *testing.T) {
	eltako, eastron := get(t, "eltako-dsz16"), get(t, "eastron-sdm630")
	for _, p := range []*profile.Profile{eltako, eastron} {
		v, _ := detect(image(t, p, household), profile.MaxBlock, []*profile.Profile{eastron, eltako})
		if len(v.Candidates) != 1 || v.Best == nil || v.Best.Profile.ID != p.ID {
			t.Errorf("%s: %v", p.ID, names(v))
		}
	}
}

// Some meters accept ten values per read.
func TestShortReads(t *testing.T) {
	p := get(t, "eastron-sdm630")
	v, _ := detect(image(t, p, household), 20, []*profile.Profile{get(t, "eastron-sdm120"), p})
	if v.Best == nil || v.Best.Profile.ID != p.ID {
		t.Fatalf("%v %s", names(v), v.Why)
	}
}

// Silence, zeros and nonsense are nobody.
func TestNobody(t *testing.T) {
	all := profile.All()
	if v, _ := detect(profile.Image{}, profile.MaxBlock, all); len(v.Candidates) != 0 || v.Best != nil || v.Chain != nil {
		t.Errorf("refuses everything: %v", names(v))
	}
	for _, fill := range []uint16{0, 0xFFFF} {
		im := profile.Image{}
		for _, p := range all {
			for _, b := range p.Blocks(0) {
				for i := range b.Count {
					im[profile.Register{Function: b.Function, Address: b.Address + i}] = fill
				}
			}
		}
		if v, _ := detect(im, profile.MaxBlock, all); len(v.Candidates) != 0 {
			t.Errorf("answers %#x everywhere: %v", fill, names(v))
		}
	}
}

func TestSunSpecIsProof(t *testing.T) {
	p := get(t, "sunspec-inverter")
	v, _ := detect(image(t, p, household), profile.MaxBlock, profile.All())
	if v.Best == nil || v.Best.Profile.ID != p.ID || v.Chain == nil || v.Chain.Serial != "S1" {
		t.Fatalf("%v, chain %+v", names(v), v.Chain)
	}
	if !strings.Contains(strings.Join(v.Best.Evidence, "\n"), `serial number "S1"`) {
		t.Errorf("evidence %q", v.Best.Evidence)
	}
}

// Whatever a device answers, a detection ends and names only profiles it was
// given.
func FuzzDetection(f *testing.F) {
	f.Add([]byte{0x53, 0x75, 0x6E, 0x53, 0, 1, 0, 66}, uint8(1))
	f.Add([]byte{0x43, 0x66, 0, 0}, uint8(2))
	f.Add([]byte{}, uint8(3))
	all := profile.All()
	f.Fuzz(func(t *testing.T, answer []byte, code uint8) {
		d := scan.NewDetection(all)
		for n := 0; ; n++ {
			if n > 2000 {
				t.Fatal("it does not end")
			}
			_, _, count, done := d.Next()
			if done {
				break
			}
			data := make([]byte, 0, 2*int(count))
			for len(answer) > 0 && len(data) < 2*int(count) {
				data = append(data, answer[(len(data)+n)%len(answer)])
			}
			d.Feed(data, code)
		}
		if v := d.Verdict(); v.Best != nil && len(v.Candidates) == 0 {
			t.Fatal("a best of none")
		}
	})
}
