package profile_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// detect runs a detection on an image. It returns the findings and how many
// reads they took.
func detect(t testing.TB, all []*profile.Profile, im profile.Image) ([]profile.Finding, int) {
	t.Helper()
	d := profile.NewDetect(all)
	for reads := 0; ; reads++ {
		fn, addr, count, done := d.Next()
		if done {
			return d.Findings(), reads
		}
		if reads > 1000 || count == 0 || count > profile.MaxBlock || int(addr)+int(count) > 1<<16 {
			t.Fatalf("read %d: %d registers at %d", reads, count, addr)
		}
		data, ok := im.Read(fn, addr, count)
		if !ok {
			data = nil
		}
		d.Feed(data)
	}
}

// house is what a device of a profile measures in a house with a load on
// every line. Where the device has fewer points it shows fewer.
func house(t testing.TB, p *profile.Profile, model uint16) profile.Image {
	t.Helper()
	im, err := p.NewImage(model, profile.Identity{Manufacturer: p.Vendor, Model: "X", Serial: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var points []meter.Point
	set := func(q meter.Quantity, phase uint8, v int64) {
		if p.HasIn(im, q, phase) {
			points = append(points, meter.Point{Quantity: q, Phase: phase, Value: v})
		}
	}
	sign := int64(1)
	if p.Kind == profile.Inverter {
		sign = -1
	}
	lines := int64(3)
	if !p.HasIn(im, meter.Voltage, 2) && p.HasIn(im, meter.Voltage, 1) {
		lines = 1
	}
	for phase := uint8(1); phase <= 3; phase++ {
		set(meter.Voltage, phase, 230_000+int64(phase)*1000)
		set(meter.Current, phase, 4_500)
		set(meter.Power, phase, sign*1_000_000)
		set(meter.ApparentPower, phase, 1_030_000)
		set(meter.ReactivePower, phase, 200_000)
		set(meter.PowerFactor, phase, 970)
		set(meter.Import, phase, 411_000_000)
		set(meter.Export, phase, 13_000_000)
	}
	set(meter.Power, 0, sign*lines*1_000_000)
	set(meter.Current, 0, lines*4_500)
	set(meter.ApparentPower, 0, lines*1_030_000)
	set(meter.ReactivePower, 0, lines*200_000)
	set(meter.PowerFactor, 0, 970)
	set(meter.Frequency, 0, 50_000)
	set(meter.Import, 0, 1_233_000_000)
	set(meter.Export, 0, 39_000_000)
	set(meter.Energy, 0, 1_272_000_000)
	set(meter.BatteryPower, 0, 500_000)
	set(meter.StateOfCharge, 0, 640)
	set(meter.Temperature, 0, 31_000)
	set(meter.SessionEnergy, 0, 7_000_000)
	set(meter.Firmware, 0, 12)
	set(meter.CurrentLimit, 0, 16_000)
	if code, ok := p.StateCode("C"); ok {
		set(meter.Status, 0, code)
	}
	if err := p.Encode(points, im); err != nil {
		t.Fatal(err)
	}
	return im
}

// twins have the same registers for all that can be seen from outside: nobody
// can tell them apart, and nobody needs to.
var twins = [][]string{
	{"eastron-sdm120", "eastron-sdm220", "eastron-sdm230"},
	{"carlogavazzi-em340", "carlogavazzi-em24-e1"},
	{"inepro-pro380", "wago-879-30x0"},
	{"chint-dtsu666", "chint-dtsu666-ct"},
	{"heidelberg-energy-control", "amperfied-connect"},
	{"webasto-next", "vestel-evc04"},
	{"deye-sg04lp3", "deye-sg01hp3"},
	{"orno-we-525", "bgetech-ws100"},
	{"sunspec-inverter", "sma-sunspec", "fronius-inverter", "kostal-inverter", "solaredge-inverter"},
}

// Every device is among the findings, and what is found beside it is a twin or
// ambiguous for a reason that the findings show: another device is never the
// only answer.
func TestDetectFindsEveryDevice(t *testing.T) {
	all := profile.All()
	alone := 0
	for _, p := range all {
		t.Run(p.ID, func(t *testing.T) {
			im := house(t, p, 0)
			found, reads := detect(t, all, im)
			if reads > 400 {
				t.Errorf("%d reads", reads)
			}
			var ids []string
			for _, f := range found {
				ids = append(ids, f.Profile.ID)
				if len(f.Evidence) == 0 || f.Live == 0 {
					t.Errorf("%s: no evidence: %+v", f.Profile.ID, f)
				}
			}
			if len(ids) == 1 && ids[0] == p.ID {
				alone++
				return
			}
			twin := func(id string) bool {
				return id == p.ID || slices.ContainsFunc(twins, func(set []string) bool { return slices.Contains(set, id) && slices.Contains(set, p.ID) })
			}
			if !slices.ContainsFunc(ids, twin) {
				t.Errorf("is not found, but %v", ids)
			}
			t.Logf("%d reads: %s", reads, strings.Join(ids, ", "))
		})
	}
	if alone < len(all)*6/10 {
		t.Errorf("%d of %d are told alone", alone, len(all))
	}
}

// The pairs that share addresses and not numbers.
func TestDetectTraps(t *testing.T) {
	all := profile.All()
	for _, c := range []struct{ device, not string }{
		{"eltako-dsz16", "eastron-sdm630"},
		{"eastron-sdm630", "eltako-dsz16"},
		{"carlogavazzi-em24", "carlogavazzi-em340"},
		{"carlogavazzi-em340", "carlogavazzi-em24"},
		{"eastron-sdm120", "eastron-sdm630"},
		{"eastron-sdm630", "eastron-sdm120"},
		{"inepro-pro1", "inepro-pro380"},
	} {
		found, _ := detect(t, all, house(t, get(t, c.device), 0))
		for _, f := range found {
			if f.Profile.ID == c.not {
				t.Errorf("a %s may be a %s: %v", c.device, c.not, f.Evidence)
			}
		}
	}

	// A meter whose registers make sense both ways is ambiguous: here an EM24
	// in whose memory an EM340's frequency and energy lie as well.
	im := house(t, get(t, "carlogavazzi-em24"), 0)
	for r, v := range house(t, get(t, "carlogavazzi-em340"), 0) {
		if _, ok := im[r]; !ok || r.Address > 0x32 && r.Address < 0x36 {
			im[r] = v
		}
	}
	for r, v := range map[uint16]uint16{0x34: 777, 0x35: 0, 0x37: 500, 0x33: 500} {
		im[profile.Register{Function: 4, Address: r}] = v
	}
	found, _ := detect(t, all, im)
	var ids []string
	for _, f := range found {
		ids = append(ids, f.Profile.ID)
	}
	if !slices.Contains(ids, "carlogavazzi-em24") || !slices.Contains(ids, "carlogavazzi-em340") {
		t.Errorf("found %v, want both Gavazzi meters", ids)
	}

	if found, reads := detect(t, all, profile.Image{}); len(found) != 0 || reads > 300 {
		t.Errorf("nothing is a %v after %d reads", found, reads)
	}
	zeros := profile.Image{}
	for a := range 1 << 16 {
		zeros[profile.Register{Function: drivers.HoldingRegisters, Address: uint16(a)}] = 0
		zeros[profile.Register{Function: drivers.InputRegisters, Address: uint16(a)}] = 0
	}
	if found, _ := detect(t, all, zeros); len(found) != 0 {
		t.Errorf("zeros are a %v", found)
	}
}

// Whatever a device answers, a detection ends, and finds only what it has
// evidence for.
func FuzzDetect(f *testing.F) {
	all := profile.All()
	f.Add([]byte("SunS\x00\x01\x00\x42"), uint8(3))
	f.Add([]byte{0x43, 0x66, 0, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, pattern []byte, skip uint8) {
		d := profile.NewDetect(all)
		for reads := 0; ; reads++ {
			_, _, count, done := d.Next()
			if done {
				break
			}
			if reads > 1001 {
				t.Fatal("the detection does not end")
			}
			if len(pattern) == 0 || skip != 0 && reads%int(skip) == 0 {
				d.Feed(nil)
				continue
			}
			answer := make([]byte, 2*int(count))
			for i := range answer {
				answer[i] = pattern[(i+reads)%len(pattern)]
			}
			d.Feed(answer)
		}
		for _, found := range d.Findings() {
			if found.Profile == nil || len(found.Evidence) == 0 {
				t.Fatalf("%+v", found)
			}
		}
	})
}
